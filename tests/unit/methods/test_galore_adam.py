"""GaLore's Adam against galore-torch's own, step by step, on the separate matrices of fused weights."""

import argparse

import pytest
import torch

from megatron_growth.backend.fused_adam import FusedAdam
from megatron_growth.errors import RecipeError, UserError
from megatron_growth.layout.parameters import FC1, FC2, PROJ, QKV
from megatron_growth.methods import get
from megatron_growth.methods.galore.adam import galore_adam
from megatron_growth.methods.galore.matrices import matrices_of
from megatron_growth.methods.galore.projection import MARK, Place, Places, Ranks
from megatron_growth.shape import ModelShape
from tests.unit.methods.galore_reference import reference_adamw

SHAPE = ModelShape(hidden=24, ffn=40, layers=1, heads=4, query_groups=2, head_dim=6, vocab=32)
RANK, GAP, SCALE, STEPS = 4, 3, 0.25, 10


class Alone:
    """A process group of one."""

    def size(self):
        return 1

    def rank(self):
        return 0


def places(name):
    found = {m.name: Place(m, RANK, None, 1, i) for i, m in enumerate(matrices_of(name, SHAPE))}
    return Places(found, (12, 6, 6) if name == QKV else None)


def separate(name, weight):
    """The matrices of a fused weight, by hand: per query group two query heads, a key and a value of six rows."""
    if name == QKV:
        groups = weight.view(2, 4, 6, -1)
        return [part.reshape(-1, weight.size(1)) for part in (groups[:, :2], groups[:, 2:3], groups[:, 3:])]
    return list(weight.chunk(2)) if name == FC1 else [weight]


def trained(grads, weights, change=None):
    """Our weights after every step."""
    parameters = {name: torch.nn.Parameter(w.clone()) for name, w in weights.items()}
    for name, p in parameters.items():
        if name != "norm":
            setattr(p, MARK, places(name))
    groups = [
        {"params": [parameters[n] for n in (QKV, PROJ, FC1, FC2)], "weight_decay": 0.1},
        {"params": [parameters["norm"]], "weight_decay": 0.0},
    ]
    optimizer = galore_adam(FusedAdam)(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    optimizer.gap, optimizer.scale, optimizer.ranks, optimizer.anew = GAP, SCALE, Ranks(Alone(), Alone()), set()
    history = []
    for step in range(STEPS):
        for name, p in parameters.items():
            p.grad = grads[step][name].clone()
        if change:
            change(optimizer, parameters, step)
        optimizer.step()
        history.append({name: p.detach().clone() for name, p in parameters.items()})
    return history


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    sizes = {QKV: (48, 24), PROJ: (24, 24), FC1: (80, 24), FC2: (24, 40), "norm": (24,)}
    weights = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    grads = [{n: torch.randn(size, generator=generator) for n, size in sizes.items()} for _ in range(STEPS)]
    return grads, weights


@pytest.fixture(scope="module")
def theirs(case):
    """galore-torch's weights after every step, on the separate matrices; the norm by torch's AdamW."""
    grads, weights = case
    matrices = {n: [torch.nn.Parameter(m.clone()) for m in separate(n, w)] for n, w in weights.items() if n != "norm"}
    norm = torch.nn.Parameter(weights["norm"].clone())
    projected = {"params": [m for found in matrices.values() for m in found], "weight_decay": 0.1}
    projected |= {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "proj_type": "std"}
    optimizer = reference_adamw()([projected], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, no_deprecation_warning=True)
    plain = torch.optim.AdamW([norm], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    history = []
    for step in range(STEPS):
        for name, found in matrices.items():
            for matrix, gradient in zip(found, separate(name, grads[step][name]), strict=True):
                matrix.grad = gradient.clone()
        norm.grad = grads[step]["norm"].clone()
        optimizer.step()
        plain.step()
        history.append(
            {n: [m.detach().clone() for m in found] for n, found in matrices.items()} | {"norm": [norm.clone()]}
        )
    return history


def differences(ours, theirs):
    return [
        float((a - b).abs().max())
        for mine, found in zip(ours, theirs, strict=True)
        for name in mine
        for a, b in zip(separate(name, mine[name]), found[name], strict=True)
    ]


def test_every_step_is_galore_torchs(case, theirs):
    assert max(differences(trained(*case), theirs)) < 2e-6


@pytest.mark.fault
def test_a_fused_weight_projected_as_one_is_caught(case, theirs):
    """Query, key and value in one projector: the optimizer would train something else."""

    def fuse(optimizer, parameters, step):
        from megatron_growth.methods.galore.matrices import Matrix

        setattr(parameters[QKV], MARK, Places({"whole": Place(Matrix("whole", 48, 24), RANK, None, 1, 0)}))

    assert max(differences(trained(*case, change=fuse), theirs)) > 1e-3


def test_state_takes_what_the_formula_says(case):
    held = {}
    trained(*case, change=lambda optimizer, parameters, step: held.update(o=optimizer, p=parameters))
    for name in (QKV, PROJ, FC1, FC2):
        numbers = sum(t.numel() for t in held["o"].state[held["p"][name]].values())
        assert numbers == sum(m.state_numbers(RANK) for m in matrices_of(name, SHAPE))


def test_what_begins_anew_does_not_wait_for_the_next_projection(case):
    """A parameter that had no state in the checkpoint, between two projections: zero projectors would keep it still."""

    def unfreeze(optimizer, parameters, step):
        if step == GAP + 1:
            for kept in optimizer.state[parameters[PROJ]].values():
                kept.zero_()
            optimizer.anew.add(parameters[PROJ])

    history = trained(*case, change=unfreeze)
    decayed = history[GAP][PROJ] * (1 - 1e-2 * 0.1)
    assert float((history[GAP + 1][PROJ] - decayed).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("galore:rank=0", "greater than or equal to 1"),
        ("galore:gap=0", "greater than or equal to 1"),
        ("galore:scale=nan", "not a finite number"),
        ("galore:depth=3", "no parameter 'depth'"),
    ],
)
def test_bad_words(words, said):
    with pytest.raises(RecipeError, match=said):
        get(words)


def test_a_rank_that_a_matrix_does_not_have_is_refused():
    with pytest.raises(RecipeError, match=r"rank 13 is larger than the key matrix, 12 x 24"):
        get("galore:rank=13").check(SHAPE)
    get("galore:rank=12").check(SHAPE)


def test_a_target_that_is_no_matrix_is_refused():
    names = ["decoder.layers.0.mlp.linear_fc1.weight", "embedding.word_embeddings.weight"]
    assert get("galore:rank=4").select(names) == (names[0],)
    with pytest.raises(RecipeError, match="no matrix"):
        get("galore:targets=[embedding.*]").select(names)


def test_flat_slices_are_refused():
    with pytest.raises(UserError, match="whole matrices"):
        get("galore").check_arguments(argparse.Namespace(use_distributed_optimizer=True))


@pytest.mark.parametrize("flag", ["optimizer_cpu_offload", "use_precision_aware_optimizer", "optimizer_cuda_graph"])
def test_flags_under_which_nothing_is_projected_are_refused(flag):
    with pytest.raises(UserError, match="--" + flag.replace("_", "-")):
        get("galore").check_arguments(argparse.Namespace(**{flag: True}))


def test_query_groups_that_ranks_share_are_refused():
    """Their keys and values are cut through the middle: no rank has the rows of a group."""
    shared = argparse.Namespace(tensor_model_parallel_size=4, group_query_attention=True, num_query_groups=2)
    with pytest.raises(UserError, match="2 are shared by 4 tensor-parallel ranks") as caught:
        get("galore").check_arguments(shared)
    assert caught.value.fix == "--tensor-model-parallel-size 2"
    get("galore").check_arguments(argparse.Namespace(**vars(shared) | {"num_query_groups": 4}))


@pytest.mark.parametrize(
    ("target", "layers"), [("decoder.layers.{0..1}.*", {0, 1}), ("decoder.layers.{1,3}.mlp.*", {1, 3})]
)
def test_targets_are_patterns_as_everywhere(target, layers):
    names = [f"decoder.layers.{n}.mlp.linear_fc{k}.weight" for n in range(4) for k in (1, 2)]
    method = get({"name": "galore", "targets": [target]})
    taken = method.select([*names, "decoder.layers.0.mlp.linear_fc1.layer_norm_weight"])
    assert taken == tuple(name for name in names if int(name.split(".")[2]) in layers)
    assert all((method.group(name) is not None) == (name in taken) for name in names)
