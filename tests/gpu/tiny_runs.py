"""Words of the tiny runs that are made on the GPU as on the host."""

from pathlib import Path

from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing import tiny_pretrain_args

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-plug-in"
STOCK, PLUGGED = EXAMPLE / "pretrain_gpt_stock.py", EXAMPLE / "pretrain_gpt.py"
SMALL = {"layers": 2, "hidden": 64, "heads": 4, "query_groups": 2, "ffn": 96}
LARGE = {"layers": 3, "hidden": 96, "heads": 6, "query_groups": 3, "ffn": 160}
AUTO, LOCAL = ("--growth-layer-spec", "auto"), ("--transformer-impl", "local", "--growth-layer-spec", "local")
ZERO = ("--use-distributed-optimizer", "--dist-ckpt-optim-fully-reshardable")
# Kernels of a GPU sum in other orders, and Transformer Engine multiplies in TF32.
TOLERANCE = {"cuda": 5e-3, "host": 1e-5}


def words(*more, sizes=SMALL, iterations=8, lr=1e-3, **options):
    args = tiny_pretrain_args(iterations=iterations, lr=lr, **sizes, **options)
    return [*args, "--kv-channels", "16", *map(str, more)]


def exact_growth():
    """The words of operators that keep the function of SMALL in LARGE."""
    shapes = [ModelShape(**sizes, vocab=256, head_dim=16) for sizes in (SMALL, LARGE)]
    epsilon = build_map(*shapes, get("width", "zero-pad"), get("depth", "identity")).norm_epsilon(1e-5)
    return ("--growth-width", "zero-pad", "--growth-depth", "identity", "--norm-epsilon", repr(epsilon))
