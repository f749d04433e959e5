"""A run's stages as Slurm jobs: the chain, its submission, a job's life on its nodes, health and status."""
