"""What a run will need, from its configuration alone: memory, traffic, FLOPs, time. Torch-free."""
