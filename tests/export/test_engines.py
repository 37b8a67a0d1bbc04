"""Plans: built without a GPU, trusted only as their sidecar describes them, and run elsewhere as graphs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastcfg_export import Built, Engine, SidecarError, build_engine, export_onnx
from fastcfg_export.sample_inputs import draw_inputs
from fastcfg_export.sidecar import Sidecar
from fastcfg_kernels.notices import warn_once
from torch import Tensor

import fastcfg
from benchmarks.export_models import toy
from fastcfg import APG, CFG
from fastcfg.schedules import Interval

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux and Windows on x86-64 alone")

RULE = CFG(rescale=0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with its weights beside it, and its plan."""
    folder = tmp_path_factory.mktemp("engine")
    export_onnx(toy(torch.float16), RULE, folder / "toy.onnx", external_data=True)
    build_engine(folder / "toy.onnx", capabilities=["8.9"])
    return folder


@pytest.fixture
def plan(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "toy.plan"


def rebuild(plan: Path, **options: object) -> tuple[Built, list[str]]:
    lines: list[str] = []
    built = build_engine(plan.with_suffix(".onnx"), **{"capabilities": ["8.9"], "report": lines.append, **options})
    return built, lines


def test_a_plan_with_all_it_depends_on(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["toy.onnx", "toy.onnx.data", "toy.plan", "toy.plan.json"]
    data = json.loads((folder / "toy.plan.json").read_text())
    assert data["sources"].keys() == {"toy.onnx", "toy.onnx.data"}
    assert data["runtime"] == "tensorrt_rtx" and data["capabilities"] == ["8.9"]
    assert data["plan_bytes"] == (folder / "toy.plan").stat().st_size
    assert data["seconds"] > 0 and data["peak_bytes"] > 2**20


def test_a_plan_that_still_serves_is_not_built_again(plan: Path) -> None:
    before = plan.stat().st_mtime_ns
    built, lines = rebuild(plan)
    assert (built.reasons, lines) == ((), ["toy.plan is up to date"])
    assert plan.stat().st_mtime_ns == before


def test_a_build_says_why_and_how_far(plan: Path) -> None:
    phases: list[str] = []
    built, lines = rebuild(plan, force=True, on_step=phases.append)
    assert built.reasons == ("asked to",) and lines[0] == "building toy.plan: asked to"
    assert "MiB in" in lines[1] and "peak memory" in lines[1]
    assert "Building engine" in phases


def test_each_reason_to_build_is_said(plan: Path) -> None:
    side = toy().axes["height"].in_pixels(64, 128, 256)
    assert rebuild(plan, profiles=[{"height": side}])[0].reasons == ("the profiles differ",)
    assert rebuild(plan)[0].reasons == ("the profiles differ",)
    reasons = rebuild(plan, capabilities=["12.0", "8.9"])[0].reasons
    assert reasons == ("capabilities: built with 8.9, wanted 8.9, 12.0",)
    sidecar = Sidecar.read(plan)
    replace(sidecar, runtime_version=f"0.{sidecar.runtime_version}").write(plan)
    assert "runtime version: built with 0." in rebuild(plan, capabilities=["8.9", "12.0"])[0].reasons[0]
    export_onnx(toy(torch.float16), CFG(rescale=0.2), plan.with_suffix(".onnx"), external_data=True)
    reasons = rebuild(plan, capabilities=["8.9", "12.0"])[0].reasons
    assert reasons[0] == "toy.onnx changed" and reasons[1].startswith("signature: ")


def test_damage_is_found(plan: Path) -> None:
    content, sidecar = plan.read_bytes(), plan.with_name("toy.plan.json")
    described = sidecar.read_text()

    def refused(message: str) -> None:
        with pytest.raises(SidecarError, match=message):
            Engine(plan)

    plan.write_bytes(content[:-1])
    refused("toy.plan has .* bytes, not the .* of its sidecar; build it")
    plan.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    refused("toy.plan is not what its sidecar describes")
    plan.write_bytes(content)
    sidecar.write_text(described[: len(described) // 2])
    refused(r"plan: toy\.plan\.json is damaged")
    sidecar.write_text(described.replace('"format": 2', '"format": 99'))
    refused(r"plan: toy\.plan\.json is damaged \(ValueError: format is not 2\)")
    sidecar.write_text(described.replace('"low": 1,', '"low": 2,'))
    refused(r"plan: toy\.plan\.json is damaged \(ValueError: it is not what was written, by its SHA-256\)")
    sidecar.write_text(described.replace('"plan_sha256"', '"plan_hash"'))
    refused(r"plan: toy\.plan\.json is damaged")
    sidecar.unlink()
    refused(r"plan: .*toy\.plan has no toy\.plan\.json beside it")
    assert rebuild(plan)[0].reasons[0].startswith("plan: ")
    assert Engine(plan).signature


def test_a_graph_that_changed_since_is_not_run_in_the_plans_place(plan: Path) -> None:
    weights = plan.with_name("toy.onnx.data")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(SidecarError, match=r"toy\.plan was built from another graph: toy\.onnx\.data changed"):
        Engine(plan)
    plan.with_suffix(".onnx").unlink()
    with pytest.raises(SidecarError, match=r"was built from toy\.onnx, which is not beside it"):
        Engine(plan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"capabilities": ["9.0"]}, ValueError, r"capabilities: expected some of 7\.5, .*, got 9\.0"),
        ({"capabilities": "8.9"}, TypeError, "capabilities: expected a sequence"),
        ({"runtime": "openvino"}, ValueError, "runtime: expected one of"),
        ({"runtime": "tensorrt"}, ImportError, "runtime: tensorrt cannot be imported"),
        ({"plan": "toy.engine"}, ValueError, r"plan: expected NAME\.plan"),
        ({"profiles": [{"depth": toy().axes["height"]}]}, ValueError, "axes: expected some of"),
        ({"profiles": [{"tokens": toy().axes["height"]}]}, ValueError, "profiles: tokens: the graph serves 1 to 64"),
    ],
)
def test_builds_refuse(folder: Path, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_engine(folder / "toy.onnx", **{"capabilities": ["8.9"], **options})


def test_there_has_to_be_a_graph(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="onnx: expected a file"):
        build_engine(tmp_path / "none.onnx", capabilities=["8.9"])


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@no_gpu
def test_without_a_gpu_the_graph_runs_and_a_warning_says_why(folder: Path) -> None:
    warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"toy\.plan runs in ONNX Runtime \(there is no CUDA GPU\)"):
        engine = Engine(folder / "toy.plan")
    assert engine.runs_on == "onnxruntime"
    with pytest.raises(RuntimeError, match=r"runtime: toy\.plan cannot run here: there is no CUDA GPU"):
        Engine(folder / "toy.plan", runtime="plan")


def conditions(batch: int, rule: fastcfg.Rule, dtype: torch.dtype = torch.float16) -> dict[str, dict[str, Tensor]]:
    return {name: {"embedding": torch.randn(batch, 3, 4).to(dtype)} for name in rule.conditions}


def test_an_engine_is_a_denoiser(folder: Path) -> None:
    engine = Engine(folder / "toy.onnx")
    assert engine.rule == RULE
    x, given = torch.randn(3, 4, 16, 8, dtype=torch.float16), conditions(3, RULE)
    denoiser = fastcfg.GuidedDenoiser(toy(torch.float16).module, RULE)
    for t in (500, torch.tensor(500.0), torch.full((3,), 500.0)):
        for scale in (3.0, torch.tensor([1.0, 5.0, 9.0])):
            got = engine(x, t, conditions=given, params={"scale": scale})
            times = torch.full((3,), 500.0)
            expected = denoiser(x, times, conditions=given, params={"scale": scale})
            # The convolution is rounded by another order of its sums, and scaled by up to 2 * 9 - 1.
            bound = 20 * 2**-11 * float(expected.abs().max())
            torch.testing.assert_close(got, expected, rtol=0, atol=bound)
    assert engine(x.float(), 500, conditions=given).dtype == torch.float32


def test_schedules_are_resolved_outside(folder: Path) -> None:
    scheduled = CFG(Interval(4.0, start=0.25, stop=0.75), rescale=0.7)
    engine, plain = Engine(folder / "toy.onnx", rule=scheduled), Engine(folder / "toy.onnx")
    x, given = torch.randn(1, 4, 8, 8, dtype=torch.float16), conditions(1, RULE)
    for step, scale in ((0, 1.0), (2, 4.0)):
        got = engine(x, 10, conditions=given, step=step, num_steps=4)
        assert torch.equal(got, plain(x, 10, conditions=given, params={"scale": scale}))
    with pytest.raises(ValueError, match="step: the rule has schedules"):
        engine(x, 10, conditions=given)
    with pytest.raises(ValueError, match="rule: the engine computes CFG"):
        Engine(folder / "toy.onnx", rule=fastcfg.TCFG())
    with pytest.raises(ValueError, match=r"rule: rescale is 0\.7 in the engine and no input of it, got 0\.2"):
        Engine(folder / "toy.onnx", rule=CFG(rescale=0.2))


def test_state_goes_through_the_engine(tmp_path: Path) -> None:
    rule = APG(5.0, 0.5, 10.0, -0.5)
    exported = export_onnx(toy(), rule, tmp_path / "toy.onnx")
    engine = Engine(exported.path)
    states = [fastcfg.State(), fastcfg.State()]
    denoiser = fastcfg.GuidedDenoiser(toy().module, rule)
    torch.manual_seed(1)
    for _ in range(3):
        x, given = torch.randn(2, 4, 8, 8), conditions(2, rule, torch.float32)
        got = engine(x, torch.full((2,), 9.0), conditions=given, state=states[0])
        expected = denoiser(x, torch.full((2,), 9.0), conditions=given, state=states[1])
        torch.testing.assert_close(got, expected, rtol=2**-17, atol=2**-17 * float(expected.abs().max()))
        torch.testing.assert_close(states[0]["average"], states[1]["average"], rtol=2**-17, atol=2**-15)
    with pytest.raises(ValueError, match="state: the engine carries 'average'"):
        engine(x, 9.0, conditions=given)


def test_calls_are_checked(folder: Path) -> None:
    engine = Engine(folder / "toy.onnx")
    x, given = torch.randn(1, 4, 8, 8, dtype=torch.float16), conditions(1, RULE)

    def refused(message: str, **change: object) -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            engine(**{"x": x, "t": 1.0, "conditions": given, **change})  # type: ignore[arg-type]

    refused(r"x: expected \[B, \.\.\.\]", x=3.0)
    refused("sample: height: expected a multiple of 4, got 6", x=x[:, :, :6])
    refused(r"sample: expected \[batch, 4, .*\], got \[1, 3, 8, 8\]", x=x[:, :3])
    refused("uncond_embedding: expected", conditions={**given, "uncond": {"embedding": torch.zeros(2, 3, 4)}})
    refused(r"conditions: expected \['uncond', 'cond'\], got \['cond'\]", conditions={"cond": given["cond"]})
    refused("'cond': expected the arguments", conditions={**given, "cond": {"label": x}})
    refused("'cond' has a model", conditions={**given, "cond": fastcfg.Condition(given["cond"], model=toy().module)})
    refused(r"params: expected some of \['scale'\].*got \['rescale'\]", params={"rescale": 0.5})
    refused("cond_embedding: expected a tensor", conditions={**given, "cond": {"embedding": 1.0}})
    inputs = {s.name: t for s, t in zip(engine.signature.inputs, draw_inputs(engine.signature, {}), strict=True)}
    with pytest.raises(ValueError, match=r"inputs: expected .*missing \['timestep'\]"):
        engine.run({k: v for k, v in inputs.items() if k != "timestep"})
    with pytest.raises(TypeError, match=r"timestep: expected float32, got torch\.int64"):
        engine.run({**inputs, "timestep": inputs["timestep"].long()})
    with pytest.raises(ValueError, match=r"path: expected NAME\.plan or NAME\.onnx"):
        Engine(folder / "toy.onnx.data")
