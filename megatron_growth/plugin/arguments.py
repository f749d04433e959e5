"""The --growth-* arguments that the plugin adds to a Megatron training script, and what they mean together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from megatron_growth import methods
from megatron_growth.backend.layer_spec import Kind, Sublayers
from megatron_growth.errors import UnsupportedError, UserError
from megatron_growth.hints import at_door
from megatron_growth.methods import Method
from megatron_growth.operators import GrowthSpec, OptimizerState
from megatron_growth.records.numbers import SEED, finite, whole

_READ = ("source", "growth", "methods", "document_masks")  # options that are more than one argument of their name
_SAY_HOW = ("growth", "data_start", "data_repeat", "document_masks")  # options that alone ask nothing of the plugin


def _path(text: str) -> Path:
    """A path; an unset shell variable gives an empty word, which would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the --growth-* arguments; give this to Megatron as `extra_args_provider`."""
    group = parser.add_argument_group(
        "growth", "start from a smaller model, freeze parameters, and follow a run (megatron_growth)"
    )
    _add_growth_arguments(group)
    _add_training_arguments(group)
    _add_data_arguments(group)
    _add_run_arguments(group)
    _add_model_arguments(group)
    return parser


def _add_growth_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--growth-from",
        metavar="DIR",
        type=_path,
        help="grow the weights from this smaller model, a Megatron checkpoint (any parallel layout) or a Hugging Face "
        "folder, when --load holds no checkpoint yet; iteration, samples, learning rate and optimizer start anew",
    )
    group.add_argument(
        "--growth-width",
        metavar="OPERATOR",
        default="aki",
        help="how width grows: NAME or NAME:parameter=value,... such as fpi, aki (default: %(default)s)",
    )
    group.add_argument(
        "--growth-depth",
        metavar="OPERATOR",
        default="stack",
        help="how depth grows, such as stack, interpolate (default: %(default)s)",
    )
    group.add_argument(
        "--growth-seed",
        metavar="N",
        type=whole(0, SEED),
        default=0,
        help="seed of the operators' random choices (default: %(default)s)",
    )
    group.add_argument(
        "--growth-optimizer-state",
        choices=get_args(OptimizerState),
        default="reset",
        help="what becomes of the source's optimizer state: reset starts from scratch; grow (with the weights) and "
        "asymmetric (old entries keep theirs) need a checkpoint from `megatron-growth grow` (default: %(default)s)",
    )
    group.add_argument(
        "--growth-start-anew",
        action="store_true",
        help="--load holds a checkpoint grown offline with its optimizer state: begin at iteration 0, with that state; "
        "for the first start only",
    )


def _add_training_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--growth-freeze",
        metavar="PATTERNS",
        nargs="+",
        action="extend",
        default=[],
        help="parameters that do not train, as patterns over their names in the whole model, separated by commas: "
        "'embedding.*,output_layer.*,decoder.layers.{0..5}.*'",
    )
    group.add_argument(
        "--growth-schedule",
        metavar="PATTERN=SCHEDULE",
        nargs="+",
        action="extend",
        default=[],
        help="learning rate by parameter, the first match wins: a multiple of the run's ('embedding.*=0.1'), "
        "'frozen', or a schedule of its own ('*=wsd:stable_fraction=0.75,min_lr_ratio=0.1')",
    )
    group.add_argument(
        "--growth-method",
        metavar="METHOD",
        nargs="+",
        action="extend",
        default=[],
        help="further training methods, each as NAME or NAME:parameter=value,... such as relora:rank=128 "
        "(docs/methods.md)",
    )


def _add_data_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--growth-data-start",
        metavar="N",
        type=whole(0),
        help="first sample of this run's window in the one sample order of all stages (needs --growth-data-pool)",
    )
    group.add_argument(
        "--growth-data-pool",
        metavar="N",
        type=whole(),
        help="samples in the one order that all stages share; the same number in every stage",
    )
    group.add_argument(
        "--growth-data-repeat",
        action="store_true",
        help="when the window runs past the pool, go on from the pool's first sample (Fixed Data) instead of refusing",
    )
    group.add_argument(
        "--growth-tokenizer",
        metavar="HASH",
        default="",
        help="identity of the data's tokenizer, saved in every checkpoint; a source with another one is refused",
    )


def _add_run_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--growth-metrics",
        metavar="FILE",
        type=_path,
        help="append the figures of every iteration, validation and checkpoint to this file, one JSON object a line",
    )
    group.add_argument(
        "--growth-evaluate-at-start",
        action="store_true",
        help="evaluate before the first step: what growth did to the validation loss",
    )
    group.add_argument(
        "--growth-stop-below",
        metavar="LOSS",
        type=finite(above=True),
        help="save and exit after the evaluation (--eval-interval) whose validation loss is at or below this",
    )

    group.add_argument(
        "--growth-reshardable-end",
        action="store_true",
        help="save the distributed optimizer's state of the last checkpoint as --dist-ckpt-optim-fully-reshardable "
        "does, so that it can be grown; earlier ones stay in Megatron's cheaper form",
    )


def _add_model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--growth-layer-spec",
        choices=get_args(Kind),
        default="stock",
        help="stock: what Megatron would build; local: without Transformer Engine, with sequence parallelism and "
        "fused attention; auto: stock with Transformer Engine, local without (default: %(default)s)",
    )
    group.add_argument(
        "--growth-sublayers",
        choices=get_args(Sublayers),
        default="full",
        help="attention: layers have no feed-forward block; none: there are no layers (with --num-layers 1): the "
        "stage-1 models of the Reuse paper (default: %(default)s)",
    )


@dataclass(frozen=True)
class PluginOptions:
    """The --growth-* arguments of one run, checked; attributes are named after their flags."""

    source: Path | None = None
    growth: GrowthSpec = field(default_factory=GrowthSpec)
    start_anew: bool = False
    methods: tuple[Method, ...] = ()
    data_start: int | None = None
    data_pool: int | None = None
    data_repeat: bool = False
    metrics: Path | None = None
    evaluate_at_start: bool = False
    stop_below: float | None = None
    reshardable_end: bool = False
    layer_spec: Kind = "stock"
    sublayers: Sublayers = "full"
    document_masks: bool = False  # Megatron's --reset-attention-mask

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> PluginOptions:
        """Read and check Megatron's parsed arguments.

        Raises:
            UserError: flags contradict each other, or add_arguments() was not given to Megatron.
            RecipeError: a pattern, a rule or a method cannot be read.
        """
        if not hasattr(args, "growth_from"):
            raise UserError(
                "the --growth-* arguments are missing",
                fix="parse_and_validate_args(extra_args_provider=growth.add_arguments, ...)",
            )
        with at_door("script"):
            growth = GrowthSpec.from_arguments(args, "growth_")
        options = cls(
            source=args.growth_from,
            growth=growth,
            methods=methods_of(args),
            document_masks=bool(getattr(args, "reset_attention_mask", False)),
            **{f.name: getattr(args, f"growth_{f.name}") for f in fields(cls) if f.name not in _READ},
        )
        options._check(args)
        return options

    @property
    def windowed(self) -> bool:
        """Whether the run reads a window of a shared sample order."""
        return self.data_pool is not None

    @property
    def wanted(self) -> bool:
        """Whether anything is asked of the plugin."""
        return any(getattr(self, f.name) != f.default for f in fields(self) if f.name not in _SAY_HOW)

    def _check(self, args: argparse.Namespace) -> None:
        self._check_growth(args)
        self._check_data(args)
        methods.check_together(self.methods)
        for method in self.methods:
            method.check_arguments(args)
        self._check_evaluation(args)
        for name in ("use_megatron_fsdp", "use_torch_fsdp2", "init_model_with_meta_device"):
            if getattr(args, name, False) and (self.source or self.methods):
                flag = f"--{name.replace('_', '-')}"
                raise UnsupportedError(f"growing and freezing do not support {flag}", fix=f"leave out {flag}")
        if self.methods and (optimizer := getattr(args, "optimizer", "adam")) != "adam":
            raise UnsupportedError(
                "with --growth-freeze, --growth-schedule or --growth-method a run can resume only from the saved state "
                f"of Adam, not with --optimizer {optimizer}",
                fix="leave out --optimizer",
            )
        if self.methods and getattr(args, "decoupled_lr", None) is not None:
            raise UserError(
                "--decoupled-lr and --growth-schedule both set the embedding's learning rate",
                fix="write it as a rule: --growth-schedule 'embedding.*=MULTIPLE' 'output_layer.*=MULTIPLE'",
            )

    def _check_evaluation(self, args: argparse.Namespace) -> None:
        if self.metrics is not None and os.path.isdir(self.metrics):
            raise UserError("--growth-metrics names a folder", where=str(self.metrics), fix="name a file in it")
        if self.evaluate_at_start and not args.eval_iters:
            raise UserError("--growth-evaluate-at-start needs an evaluation", fix="set --eval-iters above 0")
        if self.stop_below is not None and not (args.eval_iters and args.eval_interval):
            raise UserError(
                "--growth-stop-below needs evaluations during training",
                fix="set --eval-iters and --eval-interval above 0",
            )

    def _check_growth(self, args: argparse.Namespace) -> None:
        if self.source is None:
            return
        if self.growth.optimizer_state != "reset":
            raise UnsupportedError(
                f"growing on load starts the optimizer from scratch; it cannot {self.growth.optimizer_state} its state",
                fix=f"`megatron-growth grow --from DIR --to DIR --optimizer-state {self.growth.optimizer_state}` "
                "writes a checkpoint to --load",
            )
        if getattr(args, "fp8_param_gather", False):
            raise UnsupportedError(
                "growing on load fills bf16 weights; with --fp8-param-gather Megatron would train from the values that "
                "they had before growth",
                fix="leave out --fp8-param-gather; --fp8-format stays",
            )
        if not self.source.is_dir():
            raise UserError(
                "--growth-from does not name a folder",
                where=str(self.source),
                fix="name a Megatron checkpoint or a Hugging Face folder",
            )
        if args.pretrained_checkpoint is not None:
            raise UserError("--growth-from and --pretrained-checkpoint both set the first weights", fix="keep one")
        for flag in ("load", "save"):
            folder: Any = getattr(args, flag)
            if folder is not None and Path(folder).resolve() == self.source.resolve():
                raise UserError(
                    f"--growth-from and --{flag} name the same folder",
                    where=str(self.source),
                    fix="the grown model needs a folder of its own",
                )

    def _check_data(self, args: argparse.Namespace) -> None:
        if (self.data_start is None) != (self.data_pool is None):
            raise UserError("--growth-data-start and --growth-data-pool belong together", fix="give both, or neither")
        if self.data_start is not None and self.data_pool is not None:
            if self.data_start >= self.data_pool:
                raise UserError(
                    f"a window from sample {self.data_start} does not lie in a pool of {self.data_pool}",
                    fix="0 <= --growth-data-start < --growth-data-pool",
                )
            if args.dataloader_type not in (None, "single"):
                raise UserError(
                    f"a data window needs samples in order, but --dataloader-type is {args.dataloader_type}",
                    fix="--dataloader-type single",
                )
        if self.data_repeat and self.data_pool is None:
            raise UserError("--growth-data-repeat needs --growth-data-start and --growth-data-pool")


def methods_of(args: argparse.Namespace) -> tuple[Method, ...]:
    """The methods that the arguments of a run or of a checkpoint name; freezing comes before rates.

    Raises:
        RecipeError: a method cannot be read.
    """
    written: Sequence[str] = getattr(args, "growth_method", None) or ()
    freeze, rates = getattr(args, "growth_freeze", None), getattr(args, "growth_schedule", None)
    found: list[Method] = []
    if freeze:
        found.append(methods.get({"name": "freeze", "patterns": freeze}))
    if rates:
        found.append(methods.get({"name": "rates", "rules": rates}))
    return (*found, *map(methods.get, written))
