"""Measurements of the export: ``python -m benchmarks.export`` writes ``benchmarks/results/export.{md,json}``.

Every graph goes through ONNX's checker and is compared with eager torch in ONNX Runtime at several sizes and scales;
TensorRT-RTX plans are built ahead of time for a GPU that need not be there. ``--sd15`` adds a U-Net of the size of
Stable Diffusion 1.5 (860 million parameters, about 8 GB of memory); ``--resume`` goes on with a run that was stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fastcfg_export import Engine, build_engine, export_onnx, verify
from fastcfg_export.build import peak_memory
from torch import nn

import fastcfg
from fastcfg import APG, CFG, TCFG, PerpNeg
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.files import write_atomically

from .environment import Environment
from .export_models import SD15, build
from .records import read

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"
CAPABILITY = "8.9"
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "tensorrt-rtx")
RULES: dict[str, fastcfg.Rule] = {
    "CFG": CFG(),
    "CFG, rescale 0.7": CFG(rescale=0.7),
    "PerpNeg": PerpNeg(),
    "APG": APG(7.5, 0.5, 10.0),
    "TCFG": TCFG(),
}
GUIDED = ("unet", "sdxl", "sd3", "flux", "wan")
STUDENTS = ("lcm", "flux-guidance")
LARGE = "SD 1.5-sized"


def _cases() -> list[tuple[str, str, torch.dtype, bool]]:
    """Model, rule, dtype, and whether to build a plan; what matters most first, since a run may be stopped."""
    rescale, full = "CFG, rescale 0.7", torch.float32
    cases = [(name, rescale, full, True) for name in GUIDED]
    cases += [(name, rescale, torch.bfloat16, True) for name in GUIDED]
    cases += [(name, "student", full, True) for name in STUDENTS]
    cases += [("unet", rule, full, False) for rule in RULES if rule != rescale]
    cases.append(("unet", rescale, torch.float16, True))
    others = [(rule, name) for rule in ("PerpNeg", "APG", "TCFG", "CFG") for name in GUIDED[1:]]
    cases += [(name, rule, full, False) for rule, name in others]
    return cases + [(name, rescale, torch.float16, True) for name in GUIDED[1:]]


def _row(
    name: str, rule: str, model: nn.Module, folder: Path, *, plan: bool, cases: Any = None, exact: bool | None = None
) -> dict[str, Any]:
    with peak_memory() as peak:
        exported = export_onnx(model, RULES.get(rule), folder / f"{name}.onnx")
    row: dict[str, Any] = {
        "model": name,
        "rule": rule,
        "dtype": str(exported.module.graph_model.float_dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "export_s": round(exported.seconds, 1),
        "export_peak_gb": round(peak() / 2**30, 2),
        "onnx_mb": round(exported.bytes / 2**20, 2),
    }
    parity = verify(exported.path, exported.module, cases=cases, exact=exact)
    row |= {
        "sizes": len(parity.rows),
        "ok": parity.ok,
        "difference": max(r.difference for r in parity.rows),
        "control": max(r.control for r in parity.rows),
        "rows": [asdict(r) for r in parity.rows],
    }
    path, module = exported.path, exported.module
    del exported, model, module
    gc.collect()
    if plan:
        built = build_engine(path, capabilities=[CAPABILITY], force=True)
        row |= {
            "plan_s": built.sidecar.seconds,
            "plan_mb": round(built.sidecar.plan_bytes / 2**20, 2),
            "plan_peak_gb": round(built.sidecar.peak_bytes / 2**30, 2),
        }
    print(
        f"{name:14} {rule:18} {row['dtype']:9} ok={row['ok']} {row['difference']:.1f}/{row['control']:.1f}", flush=True
    )
    return row


def _demo(folder: Path) -> dict[str, Any]:
    from fastcfg_export.demo_sampling import sample_demo

    model, _ = load_denoiser()
    row = _row("demo", "CFG, rescale 0.7", model, folder, plan=True)
    sampled = sample_demo(Engine(folder / "demo.onnx"), model, folder)
    return row | {"sampling": {name: value for name, value in vars(sampled).items() if name != "picture"}}


def _sd15(folder: Path) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        model = UNet2DConditionModel(**SD15).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    small = [({"batch": 1, "tokens": 77, "height": 16, "width": 24}, {"scale": 7.5})]
    return _row(LARGE, "CFG, rescale 0.7", model, folder, plan=True, cases=small)


def to_markdown(data: dict[str, Any]) -> str:
    """The tables of a result."""
    environment = Environment(**data["environment"])
    lines = [
        "# Guidance inside exported graphs",
        "",
        f"Written by `python -m benchmarks.export` on {environment.label}. {environment.origin}",
        "",
        "Every graph passed ONNX's checker. *Difference*: ONNX Runtime and eager torch, the largest over several sizes",
        "(batch, tokens, height, width, frames) and scales (1, 7.5, 15), in units of the dtype (`eps * max|eager|`).",
        "*Control*: eager torch and itself with the sample and the timestep one ulp up; for bfloat16, which ONNX",
        "Runtime does not run on a CPU, the graph is widened to float32 and compared with a float32 twin of the same",
        "weights, and the control is bfloat16 eager beside it. Plans: TensorRT-RTX for compute capability",
        f"{CAPABILITY}, **built on a machine without a GPU and not run**. Seconds are of one run on a shared machine.",
        "",
        "| model | rule | dtype | difference | control | export s | ONNX MiB | plan s | plan MiB | build peak GiB |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in data["rows"]:
        plan = [row.get(key) for key in ("plan_s", "plan_mb", "plan_peak_gb")]
        cells = [row["model"], row["rule"], row["dtype"], f"{row['difference']:.3g}", f"{row['control']:.3g}"]
        cells += [row["export_s"], row["onnx_mb"], *("" if value is None else value for value in plan)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for row in data["rows"]:
        if "sampling" in row:
            s = row["sampling"]
            lines += [
                "",
                f"The demo, {s['images']} images of {s['steps']} DDIM steps on {s['threads']} thread(s), whole runs",
                f"interleaved in one process, median: eager {s['eager_ms']} ms, {s['runs_on']} {s['graph_ms']} ms.",
                f"Largest difference of a pixel in [-1, 1]: {s['difference']:.1e}; with the starting noise one ulp up,",
                f"eager torch itself: {s['control']:.1e}.",
            ]
        if row["model"].startswith("SD"):
            lines += [
                "",
                f"SD 1.5-sized U-Net, {row['parameters'] / 1e6:.0f} M parameters, float16, random weights: export",
                f"{row['export_s']} s at a peak of {row['export_peak_gb']} GiB (the model itself included), plan "
                f"{row['plan_s']} s, {row['plan_peak_gb']} GiB.",
            ]
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["rule"], row["dtype"]


def main() -> None:
    """Measure, and write the results after each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sd15", action="store_true", help="also the SD 1.5-sized U-Net")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, and measure the others")
    parser.add_argument("--only", metavar="MODEL", help="this model alone, keeping the rows of the others")
    options = parser.parse_args()
    target = RESULTS / "export.json"
    rows: list[dict[str, Any]] = []
    if target.exists() and (options.resume or options.only):
        rows = [row for row in read(target, ("export-parity",))["rows"] if row["model"] != options.only]

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        environment = asdict(Environment.of("cpu", *PACKAGES))
        data = {"kind": "export-parity", "environment": environment, "capability": CAPABILITY, "rows": rows}
        write_atomically(target, json.dumps(data, indent=1) + "\n")
        write_atomically(RESULTS / "export.md", to_markdown(data))

    with tempfile.TemporaryDirectory() as folder:
        there = {_key(row) for row in rows}

        def wanted(name: str, rule: str, dtype: torch.dtype) -> bool:
            return options.only in (None, name) and (name, rule, str(dtype).removeprefix("torch.")) not in there

        if wanted("demo", "CFG, rescale 0.7", torch.float32):
            add(_demo(Path(folder)))
        for name, rule, dtype, plan in _cases():
            if wanted(name, rule, dtype):
                add(_row(name, rule, build(name, dtype), Path(folder), plan=plan))
        if (options.sd15 or options.only == LARGE) and wanted(LARGE, "CFG, rescale 0.7", torch.float16):
            add(_sd15(Path(folder)))


if __name__ == "__main__":
    main()
