"""ReLoRA: low-rank adapters on frozen linear layers, merged and begun anew every so often (arXiv 2307.05695)."""
