"""Prints our error beside the peers' own code: ``PYTHONPATH=tests python -m conformance.peer_table``.

In units of the ideal rounding (1 is the exact value rounded once to the dtype; for float32 the unit is the expected
error of such a rounding), on predictions ``[B, ...]`` drawn as a denoiser's are. ``--json`` prints the rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcfg import (
    APG,
    Rule,
    State,
    guide,
)

from .cases import BY_NAME, Case, draw, exact, rescaled
from .field_cases import BY_FIELD_NAME, apg
from .oracles.rounding import error_in_ideal_units
from .peers import diffusers_guiders as peers

__all__ = ["DTYPES", "ROWS", "Row", "errors"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPE = (2, 4, 64, 64)
STEPS = 4


@dataclass(frozen=True)
class Row:
    """A rule of ours and the guider that computes the same.

    Attributes:
        peer: from a call's tensors by name, or from those of each step for a rule with momentum.
        momentum: whether the peer runs over steps.
    """

    name: str
    case: Case
    peer: Callable[..., Tensor | list[Tensor]]
    momentum: bool = False
    shape: tuple[int, ...] = SHAPE

    def __str__(self) -> str:
        return self.name

    @property
    def rule(self) -> Rule:
        return self.case.rule


def _apg(rule: APG) -> Callable[..., list[Tensor]]:
    def peer(pairs: list[dict[str, Tensor]]) -> list[Tensor]:
        return peers.adaptive_projected(
            pairs=[(p["uncond"], p["cond"]) for p in pairs], scale=rule.scale, eta=rule.eta,
            norm_threshold=rule.norm_threshold, momentum=rule.momentum or None, original=rule.base == "cond",
        )  # fmt: skip

    return peer


def _apg_row(name: str, rule: APG) -> Row:
    return Row(name, apg(name, rule), _apg(rule), momentum=True)


_SKIPS = {"SLG": peers.skip_layer, "PAG": peers.perturbed_attention, "SEG": peers.smoothed_energy}
_WINDOW = {"perturbed_start": 0.0, "perturbed_stop": 1.0}
_FIELD = BY_FIELD_NAME
_LTX2_SCALES = {"scale": 3.0, "perturbed_scale": 1.5, "modality_scale": 2.5}

ROWS: tuple[Row, ...] = (
    Row("CFG", BY_NAME["CFG"], lambda **p: peers.classifier_free(**p, scale=7.5)),
    Row("CFG, base cond", BY_NAME["CFG_cond"], lambda **p: peers.classifier_free(**p, scale=2.5, original=True)),
    Row("CFG, rescale 0.7", BY_NAME["CFG(rescale)"], lambda **p: peers.classifier_free(**p, scale=7.5, rescale=0.7)),
    _apg_row("APG, eta 0", APG(7.5, eta=0.0)),
    _apg_row("APG, eta 0.25, norm 15", APG(7.5, eta=0.25, norm_threshold=15.0)),
    _apg_row("APG, eta 0, norm 15, momentum -0.5", APG(7.5, eta=0.0, norm_threshold=15.0, momentum=-0.5)),
    _apg_row("APG, momentum 0.75, base cond", APG(6.5, eta=0.0, norm_threshold=50.0, momentum=0.75, base="cond")),
    Row("CFG-Zero*", _FIELD["CFGZeroStar"], lambda **p: peers.classifier_free_zero_star(**p, scale=7.5)),
    Row(
        "CFG-Zero*, base cond", _FIELD["CFGZeroStar_cond"],
        lambda **p: peers.classifier_free_zero_star(**p, scale=6.5, original=True),
    ),
    Row("TCFG", _FIELD["TCFG"], lambda **p: peers.tangential(**p, scale=7.5)),
    Row("TCFG, base cond", _FIELD["TCFG_cond"], lambda **p: peers.tangential(**p, scale=6.5, original=True)),
    Row("MaMBO-G", _FIELD["MaMBOG"], lambda **p: peers.magnitude_aware(**p, scale=7.5), shape=(2, 16, 1024)),
    Row(
        "MaMBO-G, alpha 0.7, base cond", _FIELD["MaMBOG_cond"],
        lambda **p: peers.magnitude_aware(**p, scale=6.5, alpha=0.7, original=True), shape=(2, 16, 1024),
    ),
    Row("Autoguidance", _FIELD["Autoguidance"], lambda **p: peers.auto(**p, scale=2.5)),
    Row("Autoguidance, base cond", _FIELD["Autoguidance_cond"], lambda **p: peers.auto(**p, scale=1.5, original=True)),
    *(
        Row(f"Perturbed ({name})", _FIELD["Perturbed"],
            lambda peer=peer, **p: peer(**p, scale=7.5, perturbed_scale=2.8, **_WINDOW))
        for name, peer in _SKIPS.items()
    ),
    Row(
        "Perturbed (SLG), base cond", _FIELD["Perturbed_cond"],
        lambda **p: peers.skip_layer(**p, scale=6.5, perturbed_scale=3.0, original=True, **_WINDOW),
    ),
    Row("LTX-2", _FIELD["LTX2"], lambda **p: peers.ltx2(**p, **_LTX2_SCALES)),
    Row(
        "LTX-2, rescale 0.7", rescaled(_FIELD["LTX2"], "std", 0.7),
        lambda **p: peers.ltx2(**p, **_LTX2_SCALES, rescale=0.7),
    ),
    Row(
        "Autoguidance, rescale 0.7", rescaled(_FIELD["Autoguidance"], "std", 0.7),
        lambda **p: peers.auto(**p, scale=2.5, rescale=0.7),
    ),
)  # fmt: skip


def errors(row: Row, dtype: torch.dtype) -> tuple[float, float]:
    """Our error and the peer's; of a rule with momentum, the last of :data:`STEPS` steps."""
    count = STEPS if row.momentum else 1
    steps = [draw(row.case, row.shape, dtype, seed) for seed in range(count)]
    state = State()
    given = [exact(p) for p in steps]
    for p in steps:
        ours = guide(row.rule, state=state, **p)
    last = given[-1]
    if row.momentum and (m := getattr(row.rule, "momentum", 0.0)):
        average = 0 * last["cond"]
        for p in given[:-1]:
            average = p["cond"] - p["uncond"] + m * average
        last = {**last, "average": average}
    expected = row.case.oracle(last)
    theirs = row.peer(steps)[-1] if row.momentum else row.peer(**steps[0])
    return error_in_ideal_units(ours, expected), error_in_ideal_units(theirs, expected)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    rows = [{"rule": row.name} | {str(d)[6:]: errors(row, d) for d in DTYPES} for row in ROWS]
    if parser.parse_args().json:
        print(json.dumps(rows, indent=1))
        return
    names = [str(d)[6:] for d in DTYPES]
    print("| rule | " + " | ".join(f"{n}: ours | diffusers" for n in names) + " |")
    print("|---|" + "---:|" * (2 * len(names)))
    for row in rows:
        print(f"| {row['rule']} | " + " | ".join(f"{x:.2f}" for n in names for x in row[n]) + " |")


if __name__ == "__main__":
    main()
