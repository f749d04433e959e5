"""A run: its directory, its stages as torchrun processes or Slurm jobs, its state, and going on after a crash."""
