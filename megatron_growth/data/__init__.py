"""Text to Megatron's indexed dataset, the tokenizers for it, and the one sample order that all stages of a run share.

`prepare.prepare` writes a dataset folder, `manifest.Manifest` describes it and gives Megatron's flags for it, and
`windows.window_train_dataset` gives a stage its window of the global sample order.
"""
