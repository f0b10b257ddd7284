"""A run on Slurm or on this machine: plan, submit, follow, requeue. Nothing here imports torch."""
