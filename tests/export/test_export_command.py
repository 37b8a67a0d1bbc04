"""``fastcfg export``: what it writes, says and refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastcfg_export import Axis, ExportError, GraphModel, GuidedModule, read_signature
from fastcfg_export.command import Options, command
from fastcfg_export.sample_inputs import draw_inputs
from fastcfg_export.sources import parse_profile, parse_rule, resolve_model
from rich.console import Console
from typer.testing import CliRunner

import fastcfg
from benchmarks.export_models import Toy
from benchmarks.export_models import toy as toy_model
from fastcfg import CFG, PerpNeg
from fastcfg.cli.app import app


def toy() -> GraphModel:
    """A model for ``tests.export…:toy``."""
    return toy_model()


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


def test_a_graph_a_plan_and_a_repository(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux and Windows on x86-64 alone")
    code, said = run(
        "benchmarks.export_models:toy", "--rule", "PerpNeg", "-o", tmp_path / "toy.onnx", "--engine", "--capability",
        "8.6", "--profile", "batch=1:2:4", "--profile", "height=32:64:128", "--serve", tmp_path / "models",
    )  # fmt: skip
    assert code == 0, said
    for part in ("one-ulp control", "the comparison passed", "building toy.plan: there is no plan yet", "docker run"):
        assert part in said
    assert fastcfg.Rule.from_dict(read_signature(tmp_path / "toy.onnx").rule or {}) == PerpNeg()
    assert (tmp_path / "toy.plan").is_file() and (tmp_path / "models" / "toy" / "config.pbtxt").is_file()
    # A graph that is there is taken as it is.
    again = ("--engine", "--capability", "8.6", "--profile", "batch=1:2:4", "--profile", "height=32:64:128")
    code, said = run(tmp_path / "toy.onnx", *again)
    assert code == 0 and "toy.plan is up to date" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "model: expected 'demo', a diffusers model's folder"),
        (["benchmarks.export_models:nothing"], "model: expected MODULE:FUNCTION"),
        (["--rule", "Nope"], "rule: rule.type: expected one of"),
        (["--rule", '{"type": "CFG", "phi": 1}'], "rule: CFG has no field phi"),
        (["--dtype", "int8"], "dtype: expected float32, float16 or bfloat16, got 'int8'"),
        (["benchmarks.export_models:toy", "--param", "phi"], "parameters: CFG has"),
        (["--engine", "--runtime", "openvino"], "runtime: expected one of"),
        (["none.onnx"], "path: expected a file, there is none at none.onnx"),
        (["benchmarks.export_models:toy", "--sample"], "sample: only the demo's pictures are known"),
    ],
)
def test_bad_input_ends_in_one_line(arguments: list[str], message: str) -> None:
    code, said = run(*arguments)
    assert code == 1 and "Traceback" not in said
    assert message in " ".join(said.split()), said


class Other(Toy):
    """Something else in a graph than in eager torch."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, *, embedding: torch.Tensor) -> torch.Tensor:
        return super().forward(x, t, embedding=embedding) * (1.001 if torch.compiler.is_exporting() else 1.0)


def test_a_graph_that_differs_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(toy_model(), module=Other().eval())
    monkeypatch.setattr("fastcfg_export.command.resolve_model", lambda name, dtype: model)
    with pytest.raises(ExportError, match="differs from eager torch by"):
        command(Options(model="other", output=tmp_path / "toy.onnx"), Console(quiet=True))


def test_rules_by_name_json_and_file(tmp_path: Path) -> None:
    assert parse_rule("CFG") == CFG()
    assert parse_rule('{"type": "CFG", "rescale": 0.7}') == CFG(rescale=0.7)
    (tmp_path / "rule.json").write_text(PerpNeg(3.0).to_json())
    assert parse_rule(str(tmp_path / "rule.json")) == PerpNeg(3.0)
    assert parse_rule("none") is None
    with pytest.raises(FileNotFoundError, match="rule: there is no file"):
        parse_rule(str(tmp_path / "none.json"))
    for content in (b'{"type": "Dance"}', b"\xff", b""):
        (tmp_path / "wrong.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"^rule: .*wrong\.json: "):
            parse_rule(str(tmp_path / "wrong.json"))


def test_profiles_in_pixels() -> None:
    axes = {"batch": Axis(1, 1, 16), "height": Axis(8, 64, 256, 8, 8)}
    assert parse_profile(["height=512:768:1024", "batch=2"], axes) == {
        "height": Axis(64, 96, 128, 8, 8),
        "batch": Axis(2, 2, 2),
    }
    assert parse_profile(["height=512:1024"], axes)["height"] == Axis(64, 64, 128, 8, 8)
    for text, message in (
        ("depth=3", "profile: expected AXIS=LOW:USUAL:HIGH with one of batch, height"),
        ("height=a:b", "profile: expected whole numbers"),
        ("height=1:2:3:4", "profile: expected at most"),
        ("height=100", "profile: height: low: expected a multiple of 64 pixels, got 100"),
        ("batch=32", "profile: batch: low: the graph serves 1 to 16"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_profile([text], axes)


def test_a_diffusers_folder(tmp_path: Path) -> None:
    from benchmarks.export_models import ARCHITECTURES

    ARCHITECTURES["sd3"]().save_pretrained(tmp_path / "pipeline" / "transformer")
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "transformer"):
        graph = resolve_model(str(folder), torch.float16)
        assert graph.float_dtype == torch.float16 and set(graph.conditions) == {
            "encoder_hidden_states",
            "pooled_projections",
        }
    config = tmp_path / "pipeline" / "transformer" / "config.json"
    config.write_text(config.read_text().replace("SD3Transformer2DModel", "NoSuchModel"))
    with pytest.raises(ValueError, match="names the class 'NoSuchModel'"):
        resolve_model(str(tmp_path / "pipeline"))


def test_a_distilled_student_is_a_graph_of_one_pass() -> None:
    from fastcfg.demo.model import UNet, UNetConfig
    from fastcfg.distill import Card, Convention, Student, family_of

    torch.manual_seed(0)
    network, convention = UNet(UNetConfig(width=8, embedding=16)).eval(), Convention(dim=16)
    family_of(network).add_scale_input(network, convention)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    card = Card("demo-unet", {}, "full", convention, CFG().to_dict(), 1.0, 8.0, "cond", "")
    student = Student(network, card)
    module = GuidedModule(student, None)  # type: ignore[arg-type]
    inputs = draw_inputs(module.signature, {"batch": 2}, parameters={"scale": 4.0})
    given = dict(zip((spec.name for spec in module.signature.inputs), inputs, strict=True))
    with torch.no_grad():
        expected = student(
            given["sample"],
            given["timestep"],
            conditions={"cond": {"digit": given["cond_digit"], "colour": given["cond_colour"]}},
            scale=given["guidance_scale"],
        )
        torch.testing.assert_close(module(*inputs)[0], expected, rtol=0, atol=0)


def test_the_demo_beside_itself(tmp_path: Path) -> None:
    from fastcfg_export.demo_sampling import sample_demo

    from fastcfg.demo.model import UNet, UNetConfig

    class Engine(fastcfg.GuidedDenoiser):
        runs_on = "onnxruntime"

    torch.manual_seed(0)
    model = UNet(UNetConfig(width=8, embedding=16)).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    engine = Engine(model, CFG(3.0))
    result = sample_demo(engine, model, tmp_path, steps=2, rounds=1)  # type: ignore[arg-type]
    assert result.difference == 0 < result.control < 1e-3
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert '"images": 10' in (tmp_path / "demo.json").read_text()
    engine = Engine(model, fastcfg.NegativePrompt(3.0))
    with pytest.raises(ValueError, match="rule: the demo's pictures take one with uncond and cond"):
        sample_demo(engine, model, tmp_path)  # type: ignore[arg-type]
