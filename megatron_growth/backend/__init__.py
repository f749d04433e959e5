"""What may be missing beneath Megatron (a GPU, Transformer Engine, Apex, a Makefile), and what then stands in.

See `stand_ins` (the table), `start` (a process made ready), `cpu` (Megatron on the host with gloo), `layer_spec` (norm
and attention), `te_on_host` (Transformer Engine's layers without a GPU).
"""
