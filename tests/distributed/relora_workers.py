"""What one rank does in the adapters' tests: a tiny GPT under Megatron's own DDP, optimizer and schedules, without its
training loop.  Every layout starts from the same whole weights and sees the same batches."""

import contextlib
import dataclasses

import torch
import torch.distributed as dist

from megatron_growth.layout.parameters import MOMENTS
from megatron_growth.methods.parts import optimizer_tensors
from megatron_growth.methods.relora import layers as relora_layers
from megatron_growth.methods.relora import restart as relora_restart
from megatron_growth.methods.relora.layers import Form
from megatron_growth.shape import ModelShape
from megatron_growth.testing import saved_arguments
from megatron_growth.testing.models import tiny_gpt
from megatron_growth.testing.reference import random_state
from tests.distributed.growth_workers import set_weights

SHAPE = ModelShape(hidden=32, ffn=96, layers=2, heads=4, query_groups=2, vocab=128)
SEQUENCE, BATCH, MICRO = 16, 8, 2
FORM = Form(rank=4, alpha=8)


@dataclasses.dataclass(frozen=True)
class Run:
    """A layout and what is trained in it."""

    tensor: int = 1
    pipeline: int = 1
    sp: bool = False
    bf16: bool = False
    distributed: bool = False
    overlap: bool = False
    form: Form = FORM
    layers: tuple | None = None
    lr: float = 3e-3
    shape: ModelShape = SHAPE
    spec: str = "local"  # stock: Transformer Engine's modules where it is installed


def state(shape=SHAPE):
    """Whole weights that every run starts from."""
    return random_state(shape, seed=3, std=0.15, dtype="float32")


def build(run, attach=True):
    """This rank's chunk with the common weights, and its adapters."""
    from megatron_growth.layout import parse_key

    dtype = torch.bfloat16 if run.bf16 else torch.float32
    more = {"sequence_parallel": run.sp, "tp_comm_overlap": False}
    model = tiny_gpt(
        run.shape,
        sequence=SEQUENCE,
        spec=run.spec,
        tensor=run.tensor,
        pipeline=run.pipeline,
        dtype=dtype,
        **more,
    )
    full = {}
    for key, value in state(run.shape).items():
        parsed = parse_key(key)
        full[parsed.name, parsed.layer] = torch.from_numpy(value)
    set_weights([model], full)
    if attach:
        relora_layers.attach([model], run.form, run.layers)
    return model


def wrap(model, run):
    """Megatron's DDP and optimizer around the chunk."""
    from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.training.training import wrap_model_chunks_with_ddp

    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=run.distributed,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=run.overlap,
        overlap_param_gather=run.overlap,
    )
    chunks = wrap_model_chunks_with_ddp([model], model.config, ddp)
    config = OptimizerConfig(
        optimizer="adam",
        lr=run.lr,
        min_lr=run.lr,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        bf16=run.bf16,
        params_dtype=torch.bfloat16 if run.bf16 else torch.float32,
        use_distributed_optimizer=run.distributed,
        clip_grad=1.0,
        overlap_param_gather=run.overlap,
    )
    optimizer = get_megatron_optimizer(config, chunks, config_overrides=get_standard_config_overrides(config))
    OptimizerParamScheduler(  # sets each group's weight decay: none for norms
        optimizer,
        init_lr=0.0,
        max_lr=run.lr,
        min_lr=run.lr,
        lr_warmup_steps=0,
        lr_decay_steps=1000,
        lr_decay_style="constant",
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=1000,
        wd_incr_style="constant",
    )
    model.config.finalize_model_grads_func = finalize_model_grads
    model.config.grad_scale_func = optimizer.scale_loss
    if run.overlap:
        model.config.no_sync_func = chunks[0].no_sync
    return chunks, optimizer


def tokens_of(step):
    """The global batch of a step, (BATCH, SEQUENCE + 1)."""
    return torch.randint(0, 128, (BATCH, SEQUENCE + 1), generator=torch.Generator().manual_seed(100 + step))


def forward_backward(chunks, step, forward_only=False):
    """The loss of a step's batch over all ranks."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    mine = tokens_of(step).chunk(ranks)[rank]
    position = torch.arange(SEQUENCE).unsqueeze(0)

    def forward_step(iterator, model):
        part = next(iterator)
        output = model(part[:, :-1].contiguous(), position.expand(len(part), -1), None, labels=part[:, 1:].contiguous())
        return output, lambda o: (o.float().mean(), {"loss": o.float().mean().detach()})

    for chunk in chunks:
        with contextlib.suppress(AttributeError):
            chunk.zero_grad_buffer()
    found = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(mine.split(MICRO)),
        model=chunks,
        num_microbatches=len(mine) // MICRO,
        seq_length=SEQUENCE,
        micro_batch_size=MICRO,
        forward_only=forward_only,
    )
    total = torch.stack([f["loss"] for f in found]).mean().double() if found else torch.zeros((), dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / (ranks * parallel_state.get_tensor_model_parallel_world_size())


def whole_weights(chunks):
    """{layout-free name: whole fp32 tensor} of every parameter of this pipeline stage."""
    from megatron_growth.layout.model_names import named_parameters

    if chunks[0].ddp_config.overlap_param_gather:
        chunks[0].start_param_sync(force_sync=True)
    found = named_parameters(chunks)
    return {n: optimizer_tensors.over_tensor_ranks(p, p.detach().float().contiguous()).clone() for n, p in found}


def train(run, steps=6, restarts=None, how="zero", ratio=0.9, fault=None):
    """Train, restart after the steps of `restarts`; what every rank saw."""
    plant(fault)
    chunks, optimizer = wrap(build(run), run)
    losses, norms, around = [], [], []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(forward_backward(chunks, step))
        done, norm, _ = optimizer.step()
        assert done
        norms.append(float(norm))
        if step + 1 in (restarts or ()):
            others = mains(chunks, optimizer, lora=False)
            before = None if run.overlap else forward_backward(chunks, 999, forward_only=True)
            relora_restart.restart(chunks, optimizer, 1 + restarts.index(step + 1), how, ratio)
            after = None if run.overlap else forward_backward(chunks, 999, forward_only=True)
            same = all(
                torch.equal(mains(chunks, optimizer, lora=False)[n][k], t)
                for n, o in others.items()
                for k, t in o.items()
            )
            around.append((before, after, same, moments(chunks, optimizer)))
    return {
        "losses": losses,
        "norms": norms,
        "around": around,
        "weights": whole_weights(chunks),
        "initial": {
            m.lora_name: (relora_layers.Adapter.lora_initial(m, 0), m.lora_initial(1)) for m in adapters(chunks)
        },
        "drift": drift(chunks),
        "classes": sorted({type(module).__name__ for module in adapters(chunks)}),
    }


def adapters(chunks):
    return list(relora_layers.adapters(chunks))


def mains(chunks, optimizer, lora):
    """{name: tensors of the optimizer here} of the adapters' factors, or of all other trained parameters."""
    from megatron_growth.layout.model_names import named_parameters

    found = {}
    for name, p in named_parameters(chunks):
        if p.requires_grad and (".lora_" in name) == lora and (mine := optimizer_tensors.held(optimizer, p)):
            found[name] = {k: t.detach().clone() for k, t in mine.tensors.items()}
    return found


def moments(chunks, optimizer):
    """{name: (exp_avg, exp_avg_sq)} of the adapters' factors, whole."""
    from megatron_growth.layout.model_names import named_parameters

    found = {}
    for name, p in named_parameters(chunks):
        if ".lora_" in name:
            pair = [optimizer_tensors.whole(optimizer, p, key) for key in MOMENTS]
            found[name] = [optimizer_tensors.over_tensor_ranks(p, t) for t in pair]
    return found


def drift(chunks):
    """How far the ranks' copies of what all tensor-parallel ranks hold have come apart."""
    from megatron.core import parallel_state

    group, worst = parallel_state.get_tensor_model_parallel_group(), 0.0
    for module in adapters(chunks):
        same = module.lora_b if module.lora_row else module.lora_a
        copies = [torch.empty_like(same) for _ in range(group.size())]
        dist.all_gather(copies, same.detach().contiguous(), group=group)
        worst = max([worst, *(float((c - copies[0]).abs().max()) for c in copies)])
    return worst


def gradients(run, seed=5):
    """Loss, logits' checksum and whole gradients of the factors for B that is not zero, and the factors themselves."""
    from megatron_growth.layout.model_names import named_parameters

    model, factors = with_factors(run, seed), {}
    chunks, _ = wrap(model, run)
    loss = forward_backward(chunks, 0)
    grads = {}
    for name, p in named_parameters(chunks):
        if ".lora_" in name:
            factors[name] = optimizer_tensors.over_tensor_ranks(p, p.detach().clone())
            grads[name] = optimizer_tensors.over_tensor_ranks(p, p.main_grad.clone())
    return loss, grads, factors


def plant(fault):
    """Undo one thing that the adapters need."""
    from megatron.core.tensor_parallel import mappings

    if fault == "no sequence-parallel mark":
        attach = relora_layers.attach

        def without(chunks, *rest):
            found = attach(chunks, *rest)
            for module in found:
                module.lora_a.sequence_parallel = module.lora_b.sequence_parallel = False
            return found

        relora_layers.attach = without
    elif fault == "no copy to the tensor-parallel region":
        relora_layers.mappings.copy_to_tensor_model_parallel_region = lambda z, group=None: z
        assert relora_layers.mappings is mappings
    elif fault == "merge before the parameters have come":
        relora_restart._settle = lambda chunks: None
    elif fault == "a mask for each moment":
        relora_restart.reset_moments = separate_masks


def separate_masks(optimizer, parameter, how, ratio, random):
    """The authors' code: an entry may keep its first moment and lose the second."""
    found = optimizer_tensors.held(optimizer, parameter)
    for key in MOMENTS:
        tensor = found.tensors[key]
        tensor.mul_(relora_restart.largest(tensor.abs(), ratio))


def with_factors(run, seed=5):
    """A chunk whose B is not zero: whole random values, the same in every layout."""
    from megatron_growth.layout.model_names import named_parameters

    model = build(run)
    with torch.no_grad():
        for name, p in named_parameters([model]):
            if name.endswith("lora_b"):
                whole = torch.randn(relora_restart._whole_shape(p), generator=relora_layers.generator(seed, name)) * 0.1
                p.copy_(optimizer_tensors.own_part(p, whole))
    return model


def merge(run, times=1):
    """Whole weights (masters in bf16) before and after merges of the same adapters, and what each merge adds."""
    model = with_factors(run)
    found = {}
    for module in adapters([model]):
        before = module.weight.detach().float().clone()
        factors = [optimizer_tensors.over_tensor_ranks(p, p.detach().clone()) for p in (module.lora_a, module.lora_b)]
        found[module.lora_name] = [optimizer_tensors.over_tensor_ranks(module.weight, before), *factors]
    for _ in range(times):
        relora_restart.merge([model])
    for module in adapters([model]):
        after = module.weight.detach().float() if module.lora_master is None else module.lora_master
        assert torch.equal(after.to(module.weight.dtype), module.weight)
        found[module.lora_name].append(optimizer_tensors.over_tensor_ranks(module.weight, after))
    return found


def save(run, path, fault=None):
    """Save a chunk with adapters; in bf16 after a merge, so that there are masters."""
    from megatron.core import dist_checkpointing

    model = with_factors(run)
    if run.bf16:
        relora_restart.merge([model])
    for module in adapters([model]) if fault == "no SwiGLU factory" else ():
        module.lora_gated = False
    if dist.get_rank() == 0:
        path.mkdir()
    dist.barrier()
    layers = f",layers={list(run.layers)}".replace(" ", "") if run.layers is not None else ""
    args = saved_arguments(run.shape, growth_method=[f"relora:rank={run.form.rank},alpha={run.form.alpha}{layers}"])
    common = {"args": args, "iteration": 7, "checkpoint_version": 3.0}
    dist_checkpointing.save(sharded(model, run) | common, str(path))


def load(run, path, fault=None):
    """Whole tensors of the adapters after loading into fresh ones."""
    from megatron.core import dist_checkpointing

    model = build(run)
    for module in adapters([model]) if fault == "no SwiGLU factory" else ():
        module.lora_gated = False
    request = sharded(model, run)
    state = dist_checkpointing.load(dict(request), str(path))
    model.load_state_dict({key: state[key] for key in request})
    found = {}
    for module in adapters([model]):
        for name, p in (("a", module.lora_a), ("b", module.lora_b)):
            found[module.lora_name, name] = optimizer_tensors.over_tensor_ranks(p, p.detach().float().contiguous())
        if module.lora_master is not None:
            master = optimizer_tensors.over_tensor_ranks(module.weight, module.lora_master)
            found[module.lora_name, "master"] = master
    return found


def sharded(model, run):
    return model.sharded_state_dict(metadata={"non_homogeneous_layers": True} if run.layers is not None else None)


def plain(run, path):
    """Save the same model without adapters."""
    from megatron.core import dist_checkpointing

    path.mkdir()
    model = build(run, attach=False)
    common = {"args": saved_arguments(run.shape), "iteration": 7, "checkpoint_version": 3.0}
    dist_checkpointing.save(sharded(model, run) | common, str(path))


def train_and_tell(run, **options):
    """`train` without tensors, which do not pass between processes that were not started by one another."""
    found = train(run, **options)
    return {key: found[key] for key in ("losses", "drift", "classes")} | {"names": sorted(found["weights"])}


def several(jobs):
    """What each of (function's name, Run, its other arguments, its keywords) returns, one after the other.

    Starting a process takes longer than training a tiny model; every build sets Megatron's groups up anew.
    """
    found = []
    for name, run, args, kwargs in jobs:
        try:
            found.append(globals()[name](run, *args, **kwargs))
        except BaseException as error:
            error.add_note(f"in {name}({run}, {args}, {kwargs})")
            raise
    return found
