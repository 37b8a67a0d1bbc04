"""Writes the golden vectors from the fp64 oracles: ``PYTHONPATH=.:tests python -m conformance.golden.make``.

Inputs are multiples of 1/32 in -4 ... 4, exact in every dtype, so that float16 and bfloat16 code has the same exact
answer.
Nothing of fastcfg runs here; the entry ``fastcfg`` of a vector is data for our own test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..oracles import classifier_free, nonlinear, perturbed, projection, rescale
from ..oracles.arrays import Array

__all__ = ["FOLDER", "vectors"]

FOLDER = Path(__file__).parent
Entry = dict[str, Any]

_RULE = "per sample: sums run over all dimensions but the first"


def _inputs(names: Sequence[str], shape: tuple[int, ...], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng([seed, *shape])
    common = rng.normal(size=shape) + 0.2
    return {name: np.clip(np.rint(32 * (common + 0.5 * rng.normal(size=shape))) / 32, -4, 4) for name in names}


class _Vectors:
    """The vectors of one file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.entries: list[Entry] = []

    def add(
        self,
        rule: str,
        formula: str,
        inputs: Sequence[str],
        oracle: Callable[..., Array],
        fastcfg: dict[str, Any],
        *,
        conventions: str = "",
        shape: tuple[int, ...] = (2, 12),
        **parameters: Any,
    ) -> None:
        given = _inputs(inputs, shape, len(self.entries))
        result = oracle(**given, **parameters)
        self.entries.append(
            {
                "rule": rule,
                "formula": formula,
                "conventions": conventions or _RULE,
                "parameters": parameters,
                "inputs": {name: x.tolist() for name, x in given.items()},
                "result": np.asarray(result).tolist(),
                "fastcfg": fastcfg,
            }
        )

    def steps(
        self,
        rule: str,
        formula: str,
        oracle: Callable[..., tuple[Array, Array]],
        fastcfg: dict[str, Any],
        *,
        count: int,
        conventions: str,
        step: bool = False,
        **parameters: Any,
    ) -> None:
        """A rule with momentum: inputs and results are lists over steps."""
        average, given, results = None, [], []
        for k in range(count):
            now = _inputs(("uncond", "cond"), (2, 12), 100 * (len(self.entries) + 1) + k)
            position = {"step": k} if step else {}
            result, average = oracle(**now, average=average, **position, **parameters)
            given.append({name: x.tolist() for name, x in now.items()})
            results.append(result.tolist())
        self.entries.append(
            {
                "rule": rule,
                "formula": formula,
                "conventions": conventions,
                "parameters": parameters,
                "steps": given,
                "results": results,
                "fastcfg": fastcfg,
            }
        )


def _linear() -> _Vectors:
    v = _Vectors("weights that do not depend on the predictions")
    uc = ("uncond", "cond")
    cf, pt = classifier_free, perturbed
    for scale in (7.5, 0.5, -1.0):
        v.add("cfg", "u + s (c - u)", uc, cf.cfg, {"type": "CFG", "scale": scale}, scale=scale)
    v.add(
        "cfg", "c + s (c - u)", uc, cf.cfg, {"type": "CFG", "scale": 2.5, "base": "cond"},
        conventions="base cond: the scale is the papers' w = s - 1", scale=2.5, base="cond",
    )  # fmt: skip
    v.add("negative_prompt", "n + s (c - n)", ("cond", "negative"), cf.negative_prompt,
          {"type": "NegativePrompt", "scale": 4.0}, scale=4.0)  # fmt: skip
    v.add(
        "dual", "u + s (c - u) - k (n - u)", ("uncond", "cond", "negative"), cf.dual,
        {"type": "DualCFG", "scale": 5.0, "negative_scale": 2.0}, scale=5.0, negative_scale=2.0,
    )  # fmt: skip
    v.add(
        "instruct_pix2pix", "u + s_I (i - u) + s_T (c - i)", ("uncond", "image", "cond"), cf.instruct_pix2pix,
        {"type": "InstructPix2Pix", "scale": 7.5, "image_scale": 1.5}, scale=7.5, image_scale=1.5,
    )  # fmt: skip

    def composed(*, scales: Sequence[float], uncond: Array, **conds: Array) -> Array:
        return cf.multi_condition(uncond=uncond, conds=list(conds.values()), scales=list(scales))

    v.add(
        "multi_condition", "u + sum_i s_i (c_i - u)", ("uncond", "cond_1", "cond_2"), composed,
        {"type": "MultiCondition", "scales": [5.0, -1.5]}, scales=[5.0, -1.5],
    )  # fmt: skip
    v.add(
        "inner_guidance", "(1 + w1 + w2) c - w1 u - w2 (without inner)", ("uncond", "cond", "without_inner"),
        cf.inner_guidance, {"type": "InnerGuidance", "scale": 5.0, "inner_scale": 3.0}, scale=5.0, inner_scale=3.0,
    )  # fmt: skip
    v.add(
        "history_fractional", "c + w (partial - u)", ("uncond", "cond", "partial"), cf.history_fractional,
        {"type": "HistoryGuidance", "scale": 4.0, "kind": "fractional"},
        conventions="w = s - 1", weight=3.0,
    )  # fmt: skip
    v.add("autoguidance", "p + s (c - p)", ("cond", "perturbed"), pt.autoguidance,
          {"type": "Autoguidance", "scale": 2.5}, scale=2.5)  # fmt: skip
    v.add(
        "perturbed", "u + s (c - u) + k (c - p)", ("uncond", "cond", "perturbed"), pt.perturbed_sum,
        {"type": "Perturbed", "scale": 7.5, "perturbed_scale": 2.8}, scale=7.5, perturbed_scale=2.8,
    )  # fmt: skip
    v.add(
        "ltx2", "c + (s-1)(c-u) + k (c-p) + (m-1)(c-modality)", ("uncond", "cond", "perturbed", "modality"), pt.ltx2,
        {"type": "LTX2", "scale": 3.0, "perturbed_scale": 1.5, "modality_scale": 2.5},
        conventions="on x0 predictions", scale=3.0, perturbed_scale=1.5, modality_scale=2.5,
    )  # fmt: skip
    return v


def _perp_neg() -> _Vectors:
    v = _Vectors("Perp-Neg, arXiv 2304.04968")
    for scaled in (False, True):
        v.add(
            "perp_neg", "u + s (c - u) - k n_perp, n_perp the part of n - u across c - u",
            ("uncond", "cond", "negative"), classifier_free.perp_neg,
            {"type": "PerpNeg", "scale": 5.0, "negative_scales": [1.5], "scale_negative": scaled},
            conventions=f"dot products per sample, no guard; the negative is {'' if scaled else 'not '}multiplied by s",
            scale=5.0, negative_scale=1.5, scale_negative=scaled,
        )  # fmt: skip
    return v


def _projection() -> _Vectors:
    v = _Vectors("APG 2410.02416, CFG-Zero* 2503.18886, TCFG 2503.18137, MaMBO-G 2508.03442")
    uc = ("uncond", "cond")
    apg_formula = "b + s (D_perp + eta D_par), D = (c - u) min(1, tau/|c - u|), split along c"

    def apg(**kwargs: Any) -> Array:
        return projection.apg(**kwargs)[0]

    for base, eta, tau in (("uncond", 0.0, 0.0), ("uncond", 0.25, 1.0), ("cond", 0.0, 1.0)):
        v.add(
            "apg", apg_formula, uc, apg,
            {"type": "APG", "scale": 6.0, "eta": eta, "norm_threshold": tau, "base": base},
            conventions=f"base {base}; {_RULE}; threshold 0 is off", scale=6.0, eta=eta, norm_threshold=tau, base=base,
        )  # fmt: skip
    for dims in (1, -1):
        v.add(
            "apg", apg_formula, uc, apg,
            {"type": "APG", "scale": 6.0, "eta": 0.0, "norm_threshold": 1.0, "dims": [dims]},
            conventions=f"base uncond; norms and projection over dimension {dims} alone", shape=(2, 3, 4),
            scale=6.0, eta=0.0, norm_threshold=1.0, dims=dims,
        )  # fmt: skip
    momentum = "D = (c - u) + m D_before, kept before the threshold; D_before is zero at first"
    v.steps(
        "apg_momentum", apg_formula, projection.apg,
        {"type": "APG", "scale": 6.0, "eta": 0.25, "norm_threshold": 2.0, "momentum": -0.5},
        count=4, conventions=momentum, scale=6.0, eta=0.25, norm_threshold=2.0, momentum=-0.5,
    )  # fmt: skip
    v.steps(
        "apg_mix", "CFG while step <= start_step, then APG", projection.apg_mix,
        {"type": "APGMix", "scale": 3.5, "apg_scale": 10.0, "eta": 0.0, "norm_threshold": 2.0, "momentum": -0.5,
         "start_step": 1},
        count=4, conventions=f"{momentum}, and is updated while CFG runs too", step=True, start_step=1, scale=3.5,
        apg_scale=10.0, eta=0.0, norm_threshold=2.0, momentum=-0.5,
    )  # fmt: skip
    for base in ("uncond", "cond"):
        v.add(
            "cfg_zero_star", "a u + s (c - a u), a = <c,u>/(|u|^2 + eps)", uc, projection.cfg_zero_star,
            {"type": "CFGZeroStar", "scale": 5.0, "zero_init_steps": 0, "base": base},
            conventions=f"base {base} (cond: c + s (c - a u)); eps 1e-8; {_RULE}", scale=5.0, eps=1e-8, base=base,
        )  # fmt: skip
        v.add(
            "tcfg", "u' + s (c - u'), u' the projection of u on the first right singular vector of (c, u)", uc,
            projection.tcfg, {"type": "TCFG", "scale": 5.0, "base": base},
            conventions=f"base {base} (cond: c + s (c - u')); {_RULE}", scale=5.0, base=base, method="closed_form",
        )  # fmt: skip
        v.add(
            "mambo_g", "u + (1 + (s - 1) e) (c - u), e = exp(-alpha |c - u|/|u|)", uc, projection.mambo_g,
            {"type": "MaMBOG", "scale": 7.5, "alpha": 0.7, "base": base},
            conventions=f"base {base} (cond: c + s e (c - u)); {_RULE}", scale=7.5, alpha=0.7, base=base,
        )  # fmt: skip
    return v


def _modifiers() -> _Vectors:
    v = _Vectors("what is done to a guided prediction y = u + 5 (c - u)")
    uc = ("uncond", "cond")
    cfg = {"type": "CFG", "scale": 5.0}

    def on_cfg(modifier: Callable[..., Array]) -> Callable[..., Array]:
        def oracle(*, uncond: Array, cond: Array, scale: float, **parameters: Any) -> Array:
            return modifier(guided=classifier_free.cfg(uncond=uncond, cond=cond, scale=scale), cond=cond, **parameters)

        return oracle

    for phi in (0.7, 1.0):
        v.add(
            "rescale_std", "y (1 - phi + phi std(c)/std(y))", uc, on_cfg(rescale.rescale_std),
            {"type": "Rescale", "rule": cfg, "phi": phi}, conventions=f"arXiv 2305.08891; {_RULE}", scale=5.0, phi=phi,
        )  # fmt: skip
        v.add(
            "rescale_l2", "y (1 - phi + phi |c|/|y|)", uc, on_cfg(rescale.rescale_l2),
            {"type": "Rescale", "rule": cfg, "phi": phi, "norm": "l2"}, scale=5.0, phi=phi,
        )  # fmt: skip
    v.add(
        "clamp_std", "clip(y, -k std(c), k std(c))", uc, on_cfg(rescale.clamp_std),
        {"type": "Clamp", "rule": cfg, "k": 1.5}, conventions="around zero; unbiased std (N - 1)", scale=5.0, k=1.5,
    )  # fmt: skip
    for over, dims in (("sample", None), ("token", -1), ("channel", 1)):
        for mode, more in (("cap", {}), ("full", {}), ("clamp", {"low": 0.4, "eps": 1e-8})):
            v.add(
                "norm_cap", "y f, q = cap |c|/(|y| + eps); cap: min(1, q), full: q, clamp: min(max(q, low), 1)", uc,
                on_cfg(rescale.norm_cap),
                {"type": "NormCap", "rule": cfg, "cap": 1.1, "mode": mode, "over": over, **more},
                conventions=f"norms per {over}: " + (_RULE if dims is None else f"over dimension {dims} alone"),
                shape=(2, 3, 4), scale=5.0, cap=1.1, mode=mode, dims=dims, **more,
            )  # fmt: skip
    return v


def _cached() -> _Vectors:
    v = _Vectors("guidance without the unconditional pass")
    v.add(
        "residual_cfg", "delta z + s (c - delta z), z stock noise", ("cond", "stock"), nonlinear.residual_cfg,
        {"type": "ResidualCFG", "scale": 1.5, "delta": 0.8}, conventions="arXiv 2312.12491", scale=1.5, delta=0.8,
    )  # fmt: skip
    v.add(
        "gated", "c + (s - 1) D, D = c - u of an earlier step", ("cond", "cached_delta"), nonlinear.gated_guidance,
        {"type": "GatedCFG", "scale": 5.0, "phase": "reuse"}, conventions="D from a cache", scale=5.0,
    )  # fmt: skip
    return v


def vectors() -> dict[str, dict[str, Any]]:
    """The files' contents by name."""
    made = {"linear": _linear(), "perp_neg": _perp_neg(), "projection": _projection(), "modifiers": _modifiers(),
            "cached": _cached()}  # fmt: skip
    return {f"{name}.json": {"version": 1, "about": v.source, "vectors": v.entries} for name, v in made.items()}


def text(content: dict[str, Any]) -> str:
    """A file's text: one vector a line."""
    head, about = json.dumps(content["version"]), json.dumps(content["about"])
    lines = ",\n".join(json.dumps(entry) for entry in content["vectors"])
    return f'{{"version": {head}, "about": {about}, "vectors": [\n{lines}\n]}}\n'


def main() -> None:
    """The command."""
    for name, content in vectors().items():
        (FOLDER / name).write_text(text(content))
        print(f"{name}: {len(content['vectors'])} vectors, {(FOLDER / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
