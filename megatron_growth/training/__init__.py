"""What happens to parameters while they train: which are frozen, and which learning rate each follows."""
