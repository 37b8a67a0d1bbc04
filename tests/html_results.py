"""Made-up results of every kind, and the same with texts that attack the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WHERE = {"device": "cpu", "hardware": "a processor", "threads": 2, "commit": "abc", "versions": {"torch": "2.13.0"}}
HOSTILE = "</title></style></script><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>\"'&$\\frac$"
KEYS_OF_TEXT = frozenset(
    (
        "rule", "model", "scheduler", "hardware", "commit", "title", "alt", "name", "setup", "unit", "source", "run",
        "curve", "contestant", "torch",
    )
)  # fmt: skip
"""Whatever stands under these names is text that the report shows."""


def _kernels() -> dict[str, Any]:
    ratios = {"fastcfg": 1.0, "diffusers ClassifierFreeGuidance": 4.0, "torch.compile": 0.8, "eager": 3.0}
    rows = [
        {
            "rule": rule, "provider": peer, "metric": "time", "shape": shape, "dtype": dtype, "p20": 0.9 * ratio,
            "p50": ratio, "p80": 1.1 * ratio, "ratio": ratio, "ratio_p20": 0.9 * ratio, "ratio_p80": 1.1 * ratio,
            "rounds": 5, "error": 0.7 * ratio, "launches": 1, "moved": 3072, "least": 3072, "copy": 0.5,
        }
        for rule in ("CFG", "APG") for shape in ([1, 4, 8, 8], [1, 4, 16, 16]) for dtype in ("fp32", "bf16")
        for peer, ratio in ratios.items()
    ]  # fmt: skip
    left_out = [{"case": "CFG-1x4", "provider": "eager", "reason": "too slow"}]
    return {"kind": "kernels", "cache": "hot", "environment": WHERE, "left_out": left_out, "rows": rows}


def _steps() -> Iterator[dict[str, Any]]:
    contestants = {"batched": (16, 1.0), "by hand": (16, 0.95), "gated, every 2": (12, 0.8), "sequential": (16, 1.2)}
    rows: list[dict[str, Any]] = [
        {"model": "unet", "shape": "1×4×16×16", "contestant": name, "passes": passes, "full": 16,
         "p20": 9 * ratio, "p50": 10 * ratio, "p80": 11 * ratio, "ratio": ratio, "rounds": 12}
        for name, (passes, ratio) in contestants.items()
    ]  # fmt: skip
    yield {"kind": "guided-step", "environment": WHERE, "rows": rows}
    rows = [
        {"model": "unet", "scheduler": "DDIM", "rule": "CFG", "provider": provider, "ms_per_step": 10 * ratio,
         "ratio": ratio, "ratio_p20": 0.99 * ratio, "ratio_p80": 1.01 * ratio, "guidance_ms": 0.1 * ratio,
         "outside_ms": ratio, "outside_ratio": 2 * ratio, "outside_ratio_p20": ratio, "outside_ratio_p80": 3 * ratio,
         "guidance_share": 0.01, "error": 1e-6, "bound": 1e-5}
        for provider, ratio in {"fastcfg": 1.0, "diffusers": 1.05, "by hand": 0.99}.items()
    ]  # fmt: skip
    parts = [{"name": "passes", "ms": 9.0}, {"name": "guidance", "ms": 1.0}]
    what = {"model": "unet", "scheduler": "DDIM", "rule": "CFG"}
    lines = [{**what, "provider": name, "parts": parts} for name in ("fastcfg", "diffusers")]
    yield {"kind": "samplers", "environment": WHERE, "rows": rows, "timelines": lines}
    rows = [
        {"rule": "CFG, 2 passes", "ranks": ranks, "ms": 10 / ratio, "serial_ms": 10.0, "ratio": ratio}
        for ranks, ratio in {1: 1.0, 2: 1.6, 4: 1.1}.items()
    ]
    yield {"kind": "parallel", "environment": WHERE, "batch": 16, "rows": rows}


def _scaling() -> dict[str, Any]:
    rows = [
        {"axis": axis, "value": value, "what": what, "rule": "CFG", "dtype": "fp32", "ms": 0.1 + 0.2 * value,
         "per_unit": 0.2, "elements": 4096 * value}
        for what in ("combine", "step") for axis in ("batch", "pixels") for value in (1, 2, 4, 8)
    ]  # fmt: skip
    fits = [{"axis": "batch", "what": "combine", "rule": "CFG", "fixed_ms": 0.1, "ms_per_unit": 0.2, "exponent": 0.8}]
    setups = [
        {"setup": name, "passes_per_step": passes, "gpus": gpus, "latency_s": 2.0 / relative,
         "images_per_second": relative * gpus, "images_per_second_per_gpu": relative, "relative": relative}
        for name, passes, gpus, relative in (("two passes", 2, 1, 1.0), ("a student", 1, 1, 1.9), ("split", 2, 2, 0.9))
    ]  # fmt: skip
    assumed = [{"name": "a pass", "value": 50, "unit": "ms", "source": "measured"}]
    fleet = {"assumptions": assumed, "rows": setups}
    return {"kind": "scaling", "environment": WHERE, "rows": rows, "fits": fits, "fleet": fleet}


def _quality() -> dict[str, Any]:
    curves = [
        {"curve": f"{rule}, {schedule}, {who}", "rule": rule, "schedule": schedule, "who": who, "scale": scale,
         "accuracy": 0.8 + 0.02 * scale, "precision": 0.9, "recall": 1 - 0.05 * scale, "density": 1.0,
         "coverage": 0.9, "frechet_distance": 10 + scale, "spread": 1.0,
         "passes_per_sample": 20.0 if who == "student" else 40.0, "samples": 200, "reference": "all"}
        for rule, schedule, who in (
            ("CFG", "constant", "teacher"), ("APG", "constant", "teacher"), ("CFG", "interval", "teacher"),
            ("CFG", "constant", "student"),
        )
        for scale in (1.0, 3.0, 7.5)
    ]  # fmt: skip
    geometry = [
        {"scale": scale, "step": step, "noise_level": 1 - step / 4, "delta_ratio": 0.1, "cosine": 0.2,
         "parallel_share": 0.3, "norm_ratio": 1 + 0.1 * scale, "spread_ratio": 1.1}
        for scale in (1.0, 3.0) for step in range(4)
    ]  # fmt: skip
    equal = [
        {"curve": curve, "scale": 2.0, "frechet_distance": 10 + difference, "recall": 0.9, "spread": 1.0,
         "coverage": 0.9, "passes_per_sample": 40.0, "difference": difference, "error": error}
        for curve, difference, error in (("CFG", 0.0, 0.0), ("near", -1.0, 0.2), ("alike", 0.3, 0.2), ("far", 2.0, 0.5))
    ]  # fmt: skip
    few = [{**row, "scale": scale, "reference": "all but red"} for row in curves[:1] for scale in (1.5, 3.0)]
    curves += few
    return {
        "kind": "quality", "environment": WHERE, "settings": {}, "curves": curves,
        "geometry": geometry, "at_equal_accuracy": {"accuracy": 0.97, "rows": equal},
    }  # fmt: skip


def _students() -> Iterator[dict[str, Any]]:
    figures = {"accuracy": 0.9, "precision": 0.9, "recall": 0.8, "density": 1.0, "coverage": 0.9,
               "frechet_distance": 12.0, "spread": 1.0, "samples": 200}  # fmt: skip
    gaps = [
        {"scale": s, "student": 0.02 * s, "unguided": 0.05 * s, "student_sample": 0.1, "unguided_sample": 0.2}
        for s in (1.0, 5.0, 10.0)
    ]
    judged = [{"scale": s, "teacher": figures, "student": {**figures, "accuracy": 0.85}} for s in (1.0, 5.0)]
    time = {"teacher": 20.0, "student": 10.0, "teacher_passes": 2, "batch": 64}
    found = {"title": "CFG, all weights", "gaps": gaps, "judged": judged, "time": time, "steps": 9, "size": 2e6}
    yield {"kind": "distillation", "environment": WHERE, "steps": 9, "findings": {"full": found}}
    rows = [
        {"name": name, "rule": "CFG", "unconditional": share, "passes": (1 + share) / 2, "difference": 1 - share,
         "quality": {**figures, "accuracy": accuracy}}
        for name, share, accuracy in (("full", 1.0, 0.99), ("cached, every 3", 0.35, 0.98), ("interval", 0.5, 0.8))
    ]  # fmt: skip
    yield {"kind": "gating", "environment": WHERE, "sweet_spot": "cached, every 3", "rows": rows}


def _rest() -> Iterator[dict[str, Any]]:
    sampling = {"difference": 6e-5, "control": 3e-5, "eager_ms": 3000.0, "graph_ms": 2000.0, "steps": 20, "images": 10,
                "threads": 1, "runs_on": "onnxruntime"}  # fmt: skip
    rows = [
        {"model": model, "rule": "CFG", "dtype": dtype, "parameters": 520460, "export_s": 19.7, "onnx_mb": 2.3,
         "ok": ok, "difference": 11.0, "control": 12.0, **more}
        for model, dtype, ok, more in (
            ("demo", "float32", True, {"sampling": sampling, "plan_s": 4.2, "plan_mb": 6.6}),
            ("unet", "float32", False, {}), ("unet", "float16", True, {}),
        )
    ]  # fmt: skip
    yield {"kind": "export-parity", "environment": WHERE, "rows": rows}
    rows = [
        {"model": "demo", "rule": "CFG", "dtype": "fp32", "batch": 1, "provider": provider, "p20": 9 * ratio,
         "p50": 10 * ratio, "p80": 11 * ratio, "ratio": ratio, "ratio_p20": 0.99 * ratio, "ratio_p80": 1.01 * ratio,
         "error": 1e-6, "bound": 1e-5}
        for provider, ratio in {"fastcfg": 1.0, "eager torch": 1.5, "outside": 0.9}.items()
    ]  # fmt: skip
    yield {"kind": "export", "environment": WHERE, "rows": rows}


def results() -> dict[str, dict[str, Any]]:
    """By kind."""
    found = (_kernels(), *_steps(), _scaling(), _quality(), *_students(), *_rest())
    return {data["kind"]: data for data in found}


def hostile(value: Any) -> Any:
    """The same results, whose texts all attack the page."""
    if isinstance(value, list):
        return [hostile(each) for each in value]
    if isinstance(value, dict):
        return {
            key: f"{each}{HOSTILE}" if key in KEYS_OF_TEXT and isinstance(each, str) else hostile(each)
            for key, each in value.items()
        }
    return value


def fill(folder: Path, change: Callable[[Any], Any] = lambda data: data) -> Path:
    """Write all kinds."""
    folder.mkdir(exist_ok=True)
    for kind, data in results().items():
        (folder / f"{kind}.json").write_text(json.dumps(change(data)))
    return folder
