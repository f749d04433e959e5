"""The papers' settings for SFT and DPO, each with what its paper leaves open.

family-sft, family-dpo   Family: the set-up of Meng et al. (SimPO, arXiv 2405.14734) with its own rates
step-alpaca              STEP, table 6
wso-tulu                 WSO, table 3
nano-sft, nano-dpo       ours, for models of the nano recipes on a CPU

Units: rates are AdamW's, batches are examples per update over all processes, lengths are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_growth.errors import UserError, nearest

Kind = Literal["sft", "dpo"]
WSO_RATES = (5e-7, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)


@dataclass(frozen=True)
class Preset:
    """One paper's training; the defaults are Meng et al.'s, whom Family names.

    Attributes:
        lr: the largest rate, reached after the warm-up; a cosine to 0 follows.
        data: address of the paper's data on the hub; "" for none.
        warmup: steps, or a share of all steps where it is below 1.
        valid: share of the examples that is held out.
        rates: the rates that the paper sweeps over.
        beta: DPO's weight of the distance to the reference model; 0 for SFT.
        open: settings that the paper does not print, and the source of ours.
    """

    name: str
    kind: Kind
    lr: float
    data: str = ""
    epochs: float = 1
    batch: int = 128
    warmup: float = 0.1
    max_length: int = 2048
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    valid: float = 0.0
    rates: tuple[float, ...] = ()
    beta: float = 0.0
    open: tuple[tuple[str, str], ...] = ()


_MENG = "Meng et al. (SimPO)"
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="family-sft",
            kind="sft",
            data="hf:HuggingFaceH4/ultrachat_200k/train_sft",
            lr=3e-5,
            open=(("batch, warmup, epochs, max_length", _MENG),),
        ),
        Preset(
            name="step-alpaca",
            kind="sft",
            data="hf:tatsu-lab/alpaca/train",
            lr=1e-4,
            epochs=2,
            warmup=100,
            max_length=512,
            betas=(0.9, 0.95),
            open=(("batch, max_length", "Stanford Alpaca's own training"),),
        ),
        Preset(
            name="wso-tulu",
            kind="sft",
            data="hf:allenai/tulu-3-sft-olmo-2-mixture/train",
            lr=5e-6,
            warmup=100,
            valid=0.1,
            rates=WSO_RATES,
            open=(
                ("lr", "without --lr-sweep: Tulu 3's own rate; the paper takes the best of the sweep"),
                ("max_length", "the sequence length of the paper's pre-training"),
            ),
        ),
        Preset(
            name="nano-sft",
            kind="sft",
            lr=3e-4,
            batch=16,
            max_length=256,
            valid=0.1,
            rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        ),
        Preset(
            name="family-dpo",
            kind="dpo",
            data="hf:HuggingFaceH4/ultrafeedback_binarized/train_prefs",
            lr=5e-7,
            beta=0.01,
            open=(("beta, batch, warmup, epochs, max_length", f"{_MENG}, beta as for its base models"),),
        ),
        Preset(
            name="nano-dpo",
            kind="dpo",
            lr=5e-6,
            batch=16,
            max_length=256,
            valid=0.1,
            rates=(5e-7, 5e-6, 5e-5),
            beta=0.1,
        ),
    )
}


def find(name: str, kind: Kind) -> Preset:
    """The preset with this name and kind.

    Raises:
        UserError: there is no such preset, or it is of the other kind.
    """
    names = [preset.name for preset in PRESETS.values() if preset.kind == kind]
    if name not in names:
        what = (
            f"the preset {name!r} is for {PRESETS[name].kind}" if name in PRESETS else f"no preset is called {name!r}"
        )
        raise UserError(what, where="--preset", fix=nearest(name, names))
    return PRESETS[name]
