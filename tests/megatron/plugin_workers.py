"""What one rank does in the plugin's tests: train through the plugged example script, and look at what happened.

`train` returns a picture of the rank at the end: names and bytes of what is frozen and what is trained, and whether a
frozen parameter has changed by a bit.
"""

import contextlib
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-plug-in"
PLUGGED = EXAMPLE / "pretrain_gpt.py"
STOCK = EXAMPLE / "pretrain_gpt_stock.py"


@dataclasses.dataclass
class Picture:
    """One rank after training."""

    names: list  # layout-free names of the parameters here
    frozen: list
    changed: list  # frozen parameters of which a bit has changed
    with_gradient: list  # frozen parameters that have a gradient or a main gradient
    with_state: list  # names that the optimizer holds state or a main copy for
    state_bytes: int  # storage of weights, gradients, masters and moments
    elements: dict  # {"frozen": n, "trainable": n}
    main_gradients: dict  # name -> main gradient, for `keep_gradients`
    moments: dict  # name -> (exp_avg, exp_avg_sq, main weight), for `keep_moments`
    flops: dict  # aten operation -> FLOPs of one iteration, for `count_flops`


def load_script(path=PLUGGED):
    """The script as a module, its main part not run."""
    spec = importlib.util.spec_from_file_location("plugged_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


class AddedWeightGradients:
    """What Apex' extension of this name does: weight gradients are added to the main gradients in place."""

    calls = 0

    @classmethod
    def wgrad_gemm_accum_fp32(cls, inputs, grad_output, main_grad):
        cls.calls += 1
        main_grad.add_(grad_output.t().to(main_grad.dtype) @ inputs.to(main_grad.dtype))


def train(
    argv, *, keep_gradients=False, keep_moments=False, count_flops=False, only_load=False, fused=False, fault=None
):
    """Train with the words `argv` and return this rank's Picture; `fused`: with gradient accumulation fusion."""
    from megatron.core.datasets.gpt_dataset import MockGPTLowLevelDataset

    import megatron_growth as growth
    from megatron_growth.backend import cpu

    MockGPTLowLevelDataset.size = 2000  # documents; every run shuffles their samples, Megatron's own 100,000 for long
    if fused:
        from megatron.core.tensor_parallel import layers

        layers.fused_weight_gradient_mlp_cuda, layers._grad_accum_fusion_available = AddedWeightGradients, True
    if fault == "no recompute hook":
        from megatron_growth.methods import freeze

        freeze._keep_recomputation_trainable = lambda model: None
    script = load_script()
    script.train_valid_test_datasets_provider.is_distributed = True
    ours = [word for word in cpu.cpu_flags(argv) if not (fused and word == "--no-gradient-accumulation-fusion")]
    sys.argv = [str(PLUGGED), *argv, *ours]
    watch = Watch(fault, count_flops, only_load)
    args = script.parse_and_validate_args(extra_args_provider=growth.add_arguments)
    model_cfg = growth.plug_into(
        script.gpt_config_from_args(args), args, after_setup=[watch.begin], after_iteration=[watch.iteration]
    )
    config = script.pretrain_cfg_container_from_args(args, model_cfg)
    provider, kind = script.train_valid_test_datasets_provider, script.ModelType.encoder_or_decoder
    with contextlib.suppress(SystemExit):  # --exit-interval
        script.pretrain(config, provider, kind, script.forward_step)
    assert bool(AddedWeightGradients.calls) == fused
    return watch.picture(keep_gradients, keep_moments)


class Watch:
    """Remembers the parameters at the start of training and compares them with the end."""

    def __init__(self, fault, count_flops, only_load):
        self.fault, self.count_flops, self.only_load = fault, count_flops, only_load
        self.counter, self.flops = None, {}

    def begin(self, model, optimizer, scheduler):
        from megatron_growth.layout.model_names import named_parameters

        self.model, self.optimizer = model, optimizer
        self.parameters = dict(named_parameters(model))
        self.before = {n: p.detach().clone() for n, p in self.parameters.items() if not p.requires_grad}
        if self.only_load:
            raise SystemExit

    def iteration(self, model, optimizer, scheduler, iteration):
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        if self.fault == "weight decay" and self.before:
            with torch.no_grad():
                self.parameters[min(self.before)].mul_(1 - 1e-3)
        if self.count_flops and iteration == 1:
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        elif self.counter is not None and iteration == 2:
            self.counter.__exit__(None, None, None)
            self.flops = {str(op): n for op, n in self.counter.get_flop_counts()["Global"].items()}
            self.counter = None

    def picture(self, keep_gradients, keep_moments):
        frozen = {n: p for n, p in self.parameters.items() if not p.requires_grad}
        held = {name: tensors for name, *tensors in self.optimizer_tensors()}
        elements = {False: 0, True: 0}
        for p in self.parameters.values():
            elements[p.requires_grad] += p.numel()
        return Picture(
            names=sorted(self.parameters),
            frozen=sorted(frozen),
            changed=sorted(n for n, p in frozen.items() if not bitwise_equal(p, self.before[n])),
            with_gradient=sorted(n for n, p in frozen.items() if p.grad is not None or hasattr(p, "main_grad")),
            with_state=sorted(held),
            state_bytes=self.state_bytes(),
            elements={"frozen": elements[False], "trainable": elements[True]},
            main_gradients={n: p.main_grad.clone() for n, p in self.parameters.items() if hasattr(p, "main_grad")}
            if keep_gradients
            else {},
            moments={n: [t.detach().clone().flatten() for t in tensors] for n, tensors in held.items()}
            if keep_moments
            else {},
            flops=self.flops,
        )

    def optimizer_tensors(self):
        """(name, exp_avg, exp_avg_sq, main weight) of every parameter that an optimizer of this rank steps."""
        from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

        from megatron_growth.methods.parts.optimizer_tensors import leaves, model_and_main

        name_of = {id(p): n for n, p in self.parameters.items()}
        for part in leaves(self.optimizer):
            if isinstance(part, DistributedOptimizer):
                pairs = [
                    (p, part.optimizer.param_groups[group]["params"][order])
                    for p, (group, order) in part.model_param_group_index_map.items()
                ]
            else:
                pairs = list(model_and_main(part))
            for parameter, main in pairs:
                state = part.optimizer.state[main]
                if "exp_avg" in state:  # GaLore's has another shape
                    yield name_of[id(parameter)], state["exp_avg"], state["exp_avg_sq"], main

    def state_bytes(self):
        """Bytes of all distinct storages that hold weights, gradients and optimizer state."""
        tensors = list(self.parameters.values())
        for chunk in self.model:
            for buffer in chunk.buffers:
                tensors += [t for t in (buffer.grad_data, buffer.param_data) if t is not None]
        for _, *held in self.optimizer_tensors():
            tensors += held
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())


def bitwise_equal(one, other):
    import torch

    return torch.equal(one.detach().view(torch.uint8), other.detach().view(torch.uint8))


def metrics(path, key="loss"):
    """{iteration: value} of the iteration lines of a metrics file."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {r["iteration"]: r[key] for r in records if "event" not in r}


def events(path):
    """The event lines of a metrics file, without times."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "time")} for r in records if "event" in r]


def train_several(jobs):
    """Train once for each list of words, in the same processes, and return this rank's last Picture.

    Starting a process takes longer than training a tiny model; Megatron forgets one run before the next.
    """
    import torch.distributed as dist
    from megatron.training import training

    import megatron_growth as growth

    for number, argv in enumerate(jobs):
        if number:
            training.destroy_global_state()
        try:
            picture = train(argv)
        except BaseException as error:
            error.add_note(f"in the run number {number}: {' '.join(argv)}")
            raise
        growth.unplug()
        dist.barrier()
    return picture
