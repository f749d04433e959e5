"""How parameters train: freezing and learning rates by pattern."""
