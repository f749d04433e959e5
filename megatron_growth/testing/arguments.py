"""Command lines of models small enough to train in a test, and the arguments that a checkpoint keeps."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_growth.layout.architecture import arguments_of
from megatron_growth.shape import ModelShape
from megatron_growth.testing.corpus import counting_corpus


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """The choices of `tiny_pretrain_args`; the sizes are those of `ModelShape`.

    Attributes:
        vocab: tokens; Megatron adds one for the end of a document and pads to a multiple of 128 x TP.
        sequence: tokens per sample.
        micro_batch: samples per forward pass and data-parallel rank.
        global_batch: samples per iteration.
        iterations: of the whole schedule; stop earlier with --exit-interval.
        lr: constant learning rate.
        tensor, pipeline: parallel sizes.
        virtual_layers: layers per virtual pipeline stage.
        data: prefix of an indexed dataset; None for a corpus that counts (`corpus.counting_corpus`).
        load, save: checkpoint folders to start from, and to write to at the end.
        bf16: mixed precision; otherwise fp32.
        seed: of weights and data.
    """

    layers: int = 4
    hidden: int = 32
    heads: int = 4
    query_groups: int = 2
    ffn: int = 96
    vocab: int = 255
    sequence: int = 32
    micro_batch: int = 2
    global_batch: int = 4
    iterations: int = 30
    lr: float = 1e-3
    tensor: int = 1
    pipeline: int = 1
    virtual_layers: int | None = None
    data: str | Path | None = None
    load: str | Path | None = None
    save: str | Path | None = None
    bf16: bool = False
    seed: int = 1234

    def options(self) -> dict[str, object]:
        """Megatron's options that take a value."""
        found: dict[str, object] = {
            "num-layers": self.layers,
            "hidden-size": self.hidden,
            "num-attention-heads": self.heads,
            "num-query-groups": self.query_groups,
            "ffn-hidden-size": self.ffn,
            "vocab-size": self.vocab,
            "seq-length": self.sequence,
            "max-position-embeddings": self.sequence,
            "micro-batch-size": self.micro_batch,
            "global-batch-size": self.global_batch,
            "train-iters": self.iterations,
            "lr": self.lr,
            "tensor-model-parallel-size": self.tensor,
            "pipeline-model-parallel-size": self.pipeline,
            "seed": self.seed,
            "data-path": self.data or counting_corpus(self.vocab),
            "split": "100,0,0" if self.data else "90,5,5",
            **_FIXED,
        }
        if self.virtual_layers:
            found["num-layers-per-virtual-pipeline-stage"] = self.virtual_layers
        if self.load:
            found["load"] = self.load
        if self.save:
            found |= {"save": self.save, "save-interval": self.iterations}
        return found


def tiny_pretrain_args(**choices: Any) -> list[str]:
    """Megatron arguments of a nano Llama: RMSNorm, SwiGLU, RoPE, no biases, no dropout, untied embeddings.

    Args:
        choices: attributes of `TinyRun` that are not as they are there.

    Returns:
        The words of the command line, without those that only a host without GPU needs (`backend.cpu.cpu_flags`).
    """
    run = TinyRun(**choices)
    words = [word for name, value in run.options().items() for word in (f"--{name}", str(value))]
    return [*words, *_SWITCHES, *(["--bf16"] if run.bf16 else [])]


def saved_arguments(shape: ModelShape, **more: Any) -> argparse.Namespace:
    """The part of Megatron's saved arguments that growth reads, for a model of this shape; `more` overrides them."""
    saved = arguments_of(shape) | {
        "bias_gelu_fusion": False,  # as `layout.model_shape.transformer_config` builds it
        "layernorm_epsilon": 1e-5,
        "init_method_std": 0.02,
        "padded_vocab_size": shape.vocab,
        "position_embedding_type": "rope",
        "rotary_base": 10000,
        "max_position_embeddings": 2048,
        "consumed_train_samples": 0,
    }
    return argparse.Namespace(**saved | more)


_FIXED = {
    "normalization": "RMSNorm",
    "position-embedding-type": "rope",
    "tokenizer-type": "NullTokenizer",
    "hidden-dropout": 0,
    "attention-dropout": 0,
    "lr-decay-style": "constant",
    "log-interval": 1,
    "eval-iters": 0,
    "eval-interval": 1000,
    "ckpt-format": "torch_dist",
    "num-workers": 0,
}
_SWITCHES = ["--group-query-attention", "--swiglu", "--disable-bias-linear", "--untie-embeddings-and-output-weights"]
