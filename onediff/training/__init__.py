"""Training: engine, loop, phases, checkpoints."""
