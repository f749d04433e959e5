"""What several methods need to know of Megatron; imports torch, so methods import it inside their hooks."""
