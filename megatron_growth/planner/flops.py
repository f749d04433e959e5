"""FLOPs of training, by the papers' accounting and by an exact one.

Paper (STEP, appendix A; Reuse, appendix B; Family, section 3.1 without frozen parts):

    C = (6 N_trainable + 2 N_untrainable) T

Exact, per token and matrix of `in x out` weights: 2 in out for the forward pass, as much again for the weight's
gradient where the weight trains, and as much again for the input's gradient where the weight trains (Megatron's linear
layers then always compute it) or something trainable lies below.  So a trained weight costs 6, a frozen one 4 when
something trains below it, and 2 otherwise.  Attention scores add 4 S A D for the
forward pass (S sequence length; the causal half is not skipped, as in Megatron's own and torch's counters) and twice
that for the backward pass.  Norms, activations, softmax and the optimizer are not counted: under 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_growth.layout.parameters import LAYERS, OUTPUT, QKV, parameter_count
from megatron_growth.planner.inventory import Entry, Inventory
from megatron_growth.shape import ModelShape


@dataclass(frozen=True)
class Counted:
    """N_trainable and N_untrainable of the paper accounting, in weights."""

    trainable: float
    frozen: float = 0.0

    @property
    def flops_per_token(self) -> float:
        """6 N_trainable + 2 N_untrainable."""
        return 6 * self.trainable + 2 * self.frozen


def step_layer_parameters(hidden: int) -> int:
    """P of STEP: 12 h^2, four attention matrices and a gated FFN of 8h/3 (table 1's sizes count these only)."""
    return 12 * hidden**2


def step_adapter_parameters(hidden: int, rank: int) -> int:
    """E of STEP: rank-r adapters on all seven linear layers of such a layer: r (4 (h + h) + 3 (h + 8h/3)) = 19 r h."""
    return 19 * rank * hidden


def nominal_size(shape: ModelShape, vocab: int, rule: str) -> float:
    """The size that budgets count with.

    Args:
        shape: sizes; its vocabulary may be padded.
        vocab: vocabulary without padding.
        rule: `transformer`, `non-embedding` or `12h2`, see `recipes.schema.Model`.
    """
    if rule == "12h2":
        return shape.layers * step_layer_parameters(shape.hidden)
    return parameter_count(shape, ends=False) + (vocab * shape.hidden if rule == "non-embedding" else 0)


def counted(inventory: Inventory, vocab: int, rule: str, nominal: float, adapter_rank: int = 0) -> Counted:
    """N_trainable and N_untrainable of a model for the paper accounting.

    Args:
        inventory: with frozen parameters marked.
        vocab: vocabulary without padding.
        nominal: the size; split in the proportion of what trains and what does not.
        adapter_rank: rank of adapters, for `12h2`.
    """
    shape = inventory.shape
    if rule == "12h2":
        layers = [[p for p in inventory.parameters if p.layer == i and p.kind == "linear"] for i in range(shape.layers)]
        frozen = sum(not any(p.trainable for p in layer) for layer in layers)
        adapted = sum(any(p.adapter for p in layer) for layer in layers)
        size = step_layer_parameters(shape.hidden)
        adapters = adapted * step_adapter_parameters(shape.hidden, adapter_rank)
        return Counted((shape.layers - frozen) * size + adapters, frozen * size)
    sizes = {True: 0, False: 0}
    for p in inventory.parameters:
        if p.kind in ("linear", "vector"):
            sizes[p.trainable] += p.size
    if rule == "non-embedding":
        sizes[_head(inventory).trainable] += vocab * shape.hidden
    scale = nominal / sum(sizes.values())
    return Counted(sizes[True] * scale + inventory.adapters, sizes[False] * scale)


def exact_flops_per_token(inventory: Inventory, sequence_length: int, *, recompute: bool = False) -> float:
    """FLOPs of one token's forward and backward pass by the exact accounting.

    Args:
        inventory: with frozen parameters and adapters marked.
        sequence_length: S, tokens of a sequence.
        recompute: full activation recomputation: the layers' forward pass twice.
    """
    return sum(exact_flops_by_part(inventory, sequence_length, recompute=recompute).values())


def exact_flops_by_part(inventory: Inventory, sequence_length: int, *, recompute: bool = False) -> dict[str, float]:
    """The same by `linear` (the layers' matrices, which may compute in FP8), `output` and `scores` of attention."""
    shape, below = inventory.shape, False
    found = {"linear": 0.0, "output": 0.0, "scores": 0.0}
    scores = 4.0 * sequence_length * shape.heads * shape.head_dim
    again = 1 if recompute else 0
    for p in _in_forward_order(inventory):
        if p.kind == "linear":
            found["linear"] += 2 * p.size * (1 + again + p.trainable + (p.trainable or below))
            # A gradient always passes through the second factor of an adapter, through its first if needed below.
            passed = sum(factor.size for factor in (p.factors if below else p.factors[1:]))
            found["linear"] += 2 * p.adapter * (2 + again) + 2 * passed
        elif p.kind == "output":
            found["output"] += 2 * p.size * (1 + p.trainable + (p.trainable or below))
        below = below or p.trainable or p.adapter > 0
        if p.name.endswith(QKV.removeprefix(LAYERS)):
            found["scores"] += scores * (1 + again + 2 * below)
    return found


def _in_forward_order(inventory: Inventory) -> list[Entry]:
    """All parameters from the embedding to the output layer; a tied output layer is listed again at the end."""
    order = list(inventory.parameters)
    return [*order, _head(inventory)] if inventory.shape.tied_embeddings else order


def _head(inventory: Inventory) -> Entry:
    """The output layer; the embedding in its place when they are tied."""
    if not inventory.shape.tied_embeddings:
        return inventory.parameters[-1]
    first = inventory.parameters[0]
    return replace(first, name=OUTPUT, kind="output", layer=inventory.shape.layers, ends=first.ends[::-1])
