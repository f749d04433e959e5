"""What a rank does in the tests of exchange: load a checkpoint into a model that Megatron built, and run it."""

import torch


def load(path, shape, *, sequence=32, **options):
    """A model of Megatron's with the weights of a checkpoint folder (`.metadata` lies in it)."""
    from megatron.core import dist_checkpointing

    from megatron_growth.testing.models import tiny_gpt

    model = tiny_gpt(shape, sequence=sequence, **options)
    keys = set(model.state_dict())
    loaded = dist_checkpointing.load(model.sharded_state_dict(), str(path))
    model.load_state_dict({key: value for key, value in loaded.items() if key in keys})
    return model.eval()


def logits(path, shape, ids, **options):
    """Logits (batch, T, V of this rank) of a checkpoint folder, as Megatron computes them."""
    return forward(load(path, shape, **options), ids)


def forward(model, ids):
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    with torch.no_grad():
        return model(ids, positions, None).float()


def greedy(path, shape, ids, count, vocab, **options):
    """The ids (count) that the model continues one sequence (1, T) with."""
    model = load(path, shape, **options)
    for _ in range(count):
        best = forward(model, ids)[:, -1, :vocab].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, best], dim=1)
    return ids[0, -count:].tolist()


def grown_on_load(source, shape, ids, *, width, depth, tensor, epsilon=1e-5, rotary=None):
    """Logits of a model that was filled on load from any source, in a layout of its own."""
    from megatron_growth.checkpoint.grow_on_load import fill
    from megatron_growth.exchange import open_source
    from megatron_growth.testing.models import tiny_gpt

    model = tiny_gpt(shape, tensor=tensor, rotary=rotary, layernorm_epsilon=epsilon, sequence=ids.shape[1])
    fill([model], source, width=width, depth=depth, open_source=open_source)
    return forward(model.eval(), ids)
