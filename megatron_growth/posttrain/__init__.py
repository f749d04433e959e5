"""Instruction tuning (SFT) and preference tuning (DPO) of an exported model, by TRL, over several GPUs by DeepSpeed.

trl, datasets, accelerate and deepspeed are imported inside functions: the extra `posttrain` brings them.
"""
