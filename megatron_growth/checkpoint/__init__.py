"""Checkpoints: read any Megatron layout, plan what a grown model needs from it, and fill or write the target."""
