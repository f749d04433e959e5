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
    from megatron_growth.checkpoint.grow_on_load import GrowthRequest, fill
    from megatron_growth.exchange import open_source
    from megatron_growth.testing.models import tiny_gpt

    model = tiny_gpt(shape, tensor=tensor, rotary=rotary, layernorm_epsilon=epsilon, sequence=ids.shape[1])
    fill([model], source, GrowthRequest(width, depth, open_source=open_source))
    return forward(model.eval(), ids)


def logits_of_flags(path, words, ids):
    """Logits of a checkpoint in the model that Megatron's parser and builder make of the flags, plugged in to grow."""
    import sys

    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.models.gpt import GPTModelBuilder

    import megatron_growth as growth
    from megatron_growth.backend import cpu

    training = ["--seq-length", ids.shape[1], "--micro-batch-size", 1, "--train-iters", 1, "--lr", 0, "--mock-data"]
    training += ["--tokenizer-type", "NullTokenizer", "--make-vocab-size-divisible-by", 1]
    training += ["--growth-from", path]
    sys.argv = ["pretrain_gpt.py", *map(str, [*words, *training])]
    sys.argv += cpu.cpu_flags(sys.argv)
    args = parse_and_validate_args(extra_args_provider=growth.add_arguments)
    args.padded_vocab_size = args.vocab_size  # a tokenizer would say it
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    config = growth.plug_into(gpt_config_from_args(args), args)
    model = GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    keys = set(model.state_dict())
    loaded = dist_checkpointing.load(model.sharded_state_dict(), str(path))
    model.load_state_dict({key: value for key, value in loaded.items() if key in keys})
    return forward(model.eval(), ids)


def exported_as_megatron_computes(checkpoint, shape, folder, **options):
    """Export a checkpoint; whether transformers loads a plain model that computes what Megatron's does (to 1e-5)."""
    from transformers import AutoModelForCausalLM

    from megatron_growth.checkpoint.paths import resolve
    from megatron_growth.cli.main import main
    from megatron_growth.testing import run_distributed

    assert main(["export", str(checkpoint), "--to", str(folder), "--dtype", "float32", "--no-tokenizer"]) == 0
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(32)[None] * 3 % model.config.vocab_size
    (ours,) = run_distributed(logits, 1, resolve(checkpoint), shape, ids, **options)
    with torch.no_grad():
        theirs = model(ids).logits
    return torch.allclose(ours[..., : theirs.shape[-1]], theirs, atol=1e-5, rtol=0)
