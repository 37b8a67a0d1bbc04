"""The table of pipelines against the source of the installed ones."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks.hosts.table import table
from fastcfg.adapters.diffusers import coverage
from fastcfg.adapters.diffusers.pipelines.table import GUIDERS, NOT_COVERED, to_markdown

ROOT = Path(__file__).parents[3]
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
OUTPUTS = (".sample", ".predicted_image_embedding")


@cache
def sources() -> dict[str, tuple[ast.FunctionDef, str]]:
    """``__call__`` of each pipeline class that diffusers keeps, and its text, by the class's name."""
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    found: dict[str, tuple[ast.FunctionDef, str]] = {}
    for path in sorted((Path(spec.origin).parent / "pipelines").rglob("pipeline_*.py")):
        if "deprecated" in path.parts:
            continue
        lines = path.read_text().splitlines()
        for cls in ast.parse("\n".join(lines)).body:
            if isinstance(cls, ast.ClassDef):
                for item in cls.body:
                    if isinstance(item, ast.FunctionDef) and item.name == "__call__":
                        found[cls.name] = item, "\n".join(lines[item.lineno - 1 : item.end_lineno])
    return found


def loop_of(call: ast.FunctionDef) -> ast.AST:
    """The innermost-last loop that steps the pipeline's own scheduler."""
    loops = [
        n for n in ast.walk(call) if isinstance(n, ast.For | ast.While) and "self.scheduler.step(" in ast.unparse(n)
    ]
    return loops[0]


def in_order(tree: ast.AST) -> list[ast.AST]:
    return sorted((n for n in ast.walk(tree) if hasattr(n, "lineno")), key=lambda n: (n.lineno, n.col_offset))  # type: ignore[attr-defined]


def pass_name(variable: str) -> str:
    for pattern, name in (("perturb|skip", "perturbed"), ("uncond|neg", "uncond"), ("image$|img", "image")):
        if re.search(pattern, variable):
            return name
    return "cond"


def denoiser_calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of a denoiser, ``current_model`` being whichever of two a step uses."""
    names = {f"self.{name}" for name in DENOISERS} | {"current_model"}
    return [n for n in in_order(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in names]


def batch_orders(tree: ast.AST) -> set[tuple[str, ...]]:
    """Names of the blocks that the loop splits its batch into."""
    orders = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
            continue
        text = ast.unparse(node)
        if re.search(r"(pred\w*|eps|velocity)\.chunk\(|torch\.split\(eps", text) and not re.search(
            "dim=1|variance", text
        ):
            orders.add(tuple(pass_name(ast.unparse(target)) for target in node.targets[0].elts))
    return orders


@pytest.mark.parametrize("name", coverage())
def test_form_is_what_the_source_says(name: str) -> None:
    form, call = coverage()[name], sources()[name][0]
    loop = loop_of(call)
    text = ast.unparse(loop)
    arguments = {a.arg for a in (*call.args.args, *call.args.kwonlyargs)}
    assert form.switch in arguments
    calls = denoiser_calls(loop)
    used = {ast.unparse(c.func).removeprefix("self.") for c in calls}
    if "current_model" in used:
        used = {n for n in DENOISERS if f"current_model = self.{n}" in text}
    assert used == set(form.denoisers)
    for c in calls:
        after = text[text.index(ast.unparse(c)) + len(ast.unparse(c)) :]
        assert after.startswith(("[0]", *OUTPUTS)), f"the output is read as {after[:20]}"

    negated = "noise_pred = -noise_pred" in text or "step(-noise_pred" in text
    assert negated == (form.sign < 0)
    frames = "noise_pred = noise_pred[:, :, 1:]" in text or "step(noise_pred[:, :, 1:]" in text
    ends = 2 if frames else 1 if "[:, -latents.size(1):]" in text or "step(pred_velocity[:, 1:]" in text else None
    assert ends == (2 if form.part == "ltx_frames" else form.tail)
    assert ("variance_pred" in text or "predicted_variance" in text) == (form.part == "variance")
    assert ("guidance_rescale" in arguments) == (form.own == "CFG(scale, rescale)") or name in OTHER_RESCALE
    assert ("torch.norm(" in text) == (form.factors == -1)

    if form.part == "list":  # Slices of a list of samples.
        assert text.index("pos_out = model_out_list[:actual_batch_size]") < text.index(
            "neg_out = model_out_list[actual"
        )
    elif "_apply_perturbed_attention_guidance" in text:
        assert set(form.also) == {("uncond", "cond", "perturbed")} and batch_orders(loop) == {form.passes}
    elif form.batched and len(form.passes) > 1:
        assert batch_orders(loop) == {form.passes}
        assert len(calls) == (1 if form.then is None else 2)
    elif form.batched:
        assert len(calls) == 1 and not batch_orders(loop)
    else:
        assert tuple(pass_name(" ".join(conditions_of(c))) for c in calls) == form.passes


# Both have an argument that also rescales, around a combination that the table names for something else.
OTHER_RESCALE = {name for name, form in coverage().items() if form.own.startswith(("InstructPix2Pix", "Perturbed"))}


def conditions_of(call: ast.Call) -> list[str]:
    """The texts of a call's conditions: its embeddings' variable names."""
    return [ast.unparse(k.value) for k in call.keywords if k.arg and re.search("encoder_hidden|prompt|text", k.arg)]


def test_every_guided_pipeline_is_in_one_of_the_lists() -> None:
    guided = {
        name
        for name, (_, text) in sources().items()
        if re.search(r"guidance_scale|cfg_scale", text) and "scheduler.step(" in text
    }
    assert guided - set(coverage()) - set(NOT_COVERED) - set(GUIDERS) == set()
    assert not set(coverage()) & set(NOT_COVERED)
    assert set(NOT_COVERED) <= set(sources())


def test_documentation_has_the_table() -> None:
    assert (ROOT / "docs" / "pipelines.md").read_text() == table(), "make docs/pipelines.md"


def test_rows_are_run_or_read() -> None:
    shown = {"dtype": "float32", "bits": True, "error": 0.0}
    page = to_markdown(
        {
            "WanPipeline": shown,
            "LTXPipeline": {**shown, "bits": False, "error": 1.2e-6},
            "MochiPipeline": {"failed": ""},
        }
    )
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[-1] for line in page.splitlines() if "|" in line}
    assert rows["WanPipeline"] == "run: the same bits, float32 |" and rows["LTXPipeline"] == "run: 1e-06, float32 |"
    assert rows["MochiPipeline"] == rows["FluxPipeline"] == "read |"
    assert "2 of the 183 pipelines were run" in page and rows["HunyuanVideo15Pipeline"] == "read |"
    assert set(rows) >= {*coverage(), *GUIDERS}
