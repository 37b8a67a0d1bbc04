"""The TensorRT plugin as far as a machine without TensorRT can see: values, arguments, machine code, signatures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fastcfg_export import GuidedModule
from fastcfg_export.plugin import plugin_constants, plugin_inputs, register_plugin, without_scratch
from fastcfg_export.runtimes import TensorRT, load_runtime

import fastcfg
from benchmarks.export_models import toy
from fastcfg import APG, CFG, TCFG, Clamp, InDomain, PerpNeg

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")

# A part of a tile, tiles and a part, more tiles than programs.
COUNTS = (700, 4096 * 3 + 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs the kernel in Triton's interpreter")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "rule", [CFG(), CFG(rescale=0.7), PerpNeg(), Clamp(CFG(), k=1.5), TCFG(), APG(5.0, 0.5, 9.0, -0.5)], ids=str
)
def test_values(rule: fastcfg.Rule, count: int) -> None:
    from fastcfg_export.plugin_kernel import guidance_kernel

    program = rule.program
    torch.manual_seed(0)
    # A mean far from zero: only sums that are centred and merged rightly survive it.
    predictions = [torch.randn(2, count) + 30 for _ in rule.conditions]
    extras = [torch.randn(2, count) for _ in program.extras]
    params = [torch.tensor([float(rule.lowered.params[name])] * 2) for name in program.params]
    outs = [torch.full((2, count), torch.nan) for _ in range(program.outputs)]
    inputs = (*predictions, *extras)
    guidance_kernel[(2, 2)](inputs, tuple(params), count, tuple(outs), **plugin_constants(program))
    state = fastcfg.State({k: e.double() for k, e in zip(program.extras, extras, strict=True)})
    named = {n: p.double() for n, p in zip(rule.conditions, predictions, strict=True)}
    exact = fastcfg.guide(rule, state=state, **named)
    scale = float(exact.abs().max())
    # Float32 sums of tiles: 4096 terms in a tree, and their merge; the weights are up to the scale.
    torch.testing.assert_close(outs[0].double(), exact, rtol=0, atol=2**-17 * scale)
    for name, out in zip(rule.lowered.updates, outs[1:], strict=True):
        torch.testing.assert_close(out.double(), state[name], rtol=2**-20, atol=2**-20 * scale)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Triton chooses between its interpreter and its compiler when it is imported.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_plugins.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("cfg", ["uncond", "cond", "scale"], 1),
        ("rescale", ["uncond", "cond", "scale", "rescale"], 1),
        (
            "apg_momentum",
            ["uncond", "cond", "state_average", "scale", "eta", "norm_threshold", "momentum"],
            2,
        ),
        ("tcfg", ["uncond", "cond", "scale"], 1),
    ],
)
def test_what_tensorrt_is_told(compiled: dict[str, Any], name: str, inputs: list[str], outputs: int) -> None:
    row = compiled[name]
    assert row["inputs"] == inputs and all(row["annotated"])
    assert row["after"] == ["outputs", "tactic"]
    assert row["outputs"] == outputs
    half = ["FP16", "FP16"]
    assert row["types"] == half + ["FP32"] * (len(inputs) - 2) + ["FP16"] + ["FP32"] * (outputs - 1)
    # The pointers in, the count, the pointers out: what TensorRT passes, and no more.
    assert row["arguments"] == len(inputs) + 1 + outputs
    assert row["extra"] == [4 * 16 * 8]
    assert row["grid"][0] == 2 and row["grid"][2] % 32 == 0
    assert row["entry"] and row["registered"].startswith("fastcfg::")


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_ptx_assembles(compiled: dict[str, Any], target: str) -> None:
    for name, row in compiled.items():
        assert row[target][0] == 0, f"{name}: {row[target][1]}"


def test_scratch_that_is_used_is_not_left_out() -> None:
    head = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{\n"
    ptx = head + " ld.param.b64 r0, [k_param_%d];\n}"
    assert "k_param_1" not in without_scratch(ptx % 0, 1).split("{")[0]
    with pytest.raises(ValueError, match="ptx: the kernel uses k_param_1"):
        without_scratch(ptx % 1, 1)
    with pytest.raises(ValueError, match="ptx: expected at least 3 arguments, got 2"):
        without_scratch(ptx % 0, 3)


def test_rtx_gets_no_plugin() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(RuntimeError, match="library: tensorrt_rtx runs no plugins"):
        register_plugin(GuidedModule(toy(), CFG()), load_runtime("tensorrt_rtx"))


def test_it_refuses() -> None:
    with pytest.raises(ValueError, match="parameters: the plugin takes all of them as inputs"):
        plugin_inputs(GuidedModule(toy(), CFG(rescale=0.7)))
    with pytest.raises(ValueError, match="rule: the plugin's kernel has no domain"):
        plugin_inputs(GuidedModule(toy(), InDomain(CFG(rescale=0.7), "x0"), kind="eps"))
    old = TensorRT("tensorrt", type("trt", (), {"__version__": "10.3"}))
    with pytest.raises(RuntimeError, match=r"library: TensorRT 10\.3 has no plugin\.aot_impl"):
        register_plugin(GuidedModule(toy(), CFG()), old)
