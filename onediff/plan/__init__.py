"""Memory, traffic, FLOPs and time of a run, predicted from its configuration only. Torch-free."""
