"""What Megatron needs beneath it: a CPU stand-in for CUDA, and layer parts that need no Transformer Engine.

Nothing is imported or replaced here; see `cpu` (Megatron on CPU with gloo) and `layer_spec` (norm and attention).
"""
