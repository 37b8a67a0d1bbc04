"""The matrix of rules: each one tried on every backend, sampler and exporter.

A cell is what happened when the rule was tried on tiny tensors, and not what somebody wrote down. ``fastcfg``'s own
catalogue says which backends run a formula; the adapters are asked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import fastcfg
from fastcfg import GatedCFG, GuidedDenoiser, Prediction, Requests, Rule, Sampler, State
from fastcfg.cli.catalog import entries, example
from fastcfg.rules import registry

from .gated_hosts import check

__all__ = ["COLUMNS", "Line", "compact", "full", "lines"]

BACKENDS = ("torch", "cpp", "triton")


@dataclass(frozen=True)
class Line:
    """A rule, and what takes it.

    Attributes:
        rule: its name; taken: names of :data:`BACKENDS` and :data:`COLUMNS`; refused: the errors of the others.
        guiders: diffusers' guiders whose fused counterparts it is; nodes: ComfyUI's nodes of it.
    """

    rule: str
    taken: frozenset[str]
    refused: Mapping[str, str]
    guiders: tuple[str, ...]
    nodes: tuple[str, ...]


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class _Model(torch.nn.Module):
    """``x`` by a factor of the condition's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Any, label: Tensor) -> Tensor:
        return x * label.view(-1, *[1] * (x.dim() - 1)) * self.weight


def _conditions(rule: Rule, batch: int) -> dict[str, dict[str, Tensor]]:
    return {name: {"label": torch.full((batch,), 1.0 + k)} for k, name in enumerate(rule.conditions)}


def _predictions(rule: Rule) -> dict[str, Tensor]:
    return {name: _drawn(k, 1, 4, 8, 8) for k, name in enumerate(rule.conditions)}


def _state(rule: Rule) -> State:
    """A state with what the caller has to put there."""
    return State({name: _drawn(7, 1, 4, 8, 8) for name in rule.at(0, 2).lowered.given})


def _step(rule: Rule) -> None:
    step, x = next(iter(Sampler.flow([1.0, 0.5, 0.0]))), _drawn(9, 1, 4, 8, 8)
    fastcfg.guide_step(rule.at(0, 2), step, x=x, state=_state(rule), **_predictions(rule))


def _requests(rule: Rule) -> None:
    batch = Requests(GuidedDenoiser(_Model(), rule))
    batch.add("a", _conditions(rule, 1), num_steps=2, state=_state(rule))
    batch(_drawn(9, 1, 4, 8, 8), torch.tensor([1.0]), sigmas=[1.0], prediction=Prediction("eps", 0.5, 0.5))


def _k_diffusion(rule: Rule) -> None:
    from fastcfg.adapters.k_diffusion import CFGDenoiser

    denoiser = CFGDenoiser(_Model(), rule, argument="label", sigmas=[2.0, 1.0])
    denoiser.state = _state(rule)
    denoiser(_drawn(9, 1, 4, 8, 8), torch.tensor([2.0]), **{n: c["label"] for n, c in _conditions(rule, 1).items()})


def _vllm_omni(rule: Rule) -> None:
    from fastcfg.adapters.vllm_omni import FusedCFG

    pipeline = type("Pipeline", (FusedCFG,), {"guidance": rule, "branches": rule.conditions})()
    given = _predictions(rule)
    space = {"x": _drawn(9, 1, 4, 8, 8), "prediction": Prediction("eps", 0.5, 0.5)}
    context = {"step": 0, "num_steps": 2, "sigma": 1.0, "state": _state(rule), **space}
    pipeline.combine_multi_branch_cfg_noise([given[n] for n in rule.conditions], 4.0, kwargs=context)


def _comfyui(rule: Rule) -> None:
    """The node of any rule; those with conditions of their own have nodes and guiders, if any: :func:`_nodes`."""
    from fastcfg.adapters.comfyui import NODES

    if not _nodes(type(rule).__name__):
        (node,) = (node for node in NODES if node.name == "FastcfgRule")
        node.run(_Patcher(), rule=rule.to_json(), space="x0")


def _modular(rule: Rule) -> None:
    from diffusers.hooks import LayerSkipConfig

    from fastcfg.adapters.diffusers import RuleGuidance

    skip = {"perturbed": LayerSkipConfig(indices=[0])} if "perturbed" in rule.conditions else {}
    RuleGuidance(rule, **skip)


def _classic(rule: Rule) -> None:
    from fastcfg.adapters.diffusers import guided

    inputs = {name: {"encoder_hidden_states": _drawn(k, 1, 3, 8)} for k, name in enumerate(rule.conditions)}
    given = {name: value for name, value in inputs.items() if name not in ("uncond", "cond")}
    if "uncond" not in rule.conditions:
        given.pop("negative", None)  # The pipeline's own negative prompt.
    pipe = _pipeline()
    embeds = {"prompt_embeds": _drawn(1, 1, 3, 8), "negative_prompt_embeds": _drawn(2, 1, 3, 8)}
    with guided(pipe, rule, conditions=given) as run:
        for name in rule.lowered.given:
            run.state[name] = _drawn(7, 1, 4, 8, 8)
        pipe(**embeds, height=8, width=8, num_inference_steps=2, guidance_scale=5.0, output_type="latent")
    if isinstance(rule, GatedCFG) and run.passes_run != 3:
        raise ValueError(f"gate: ran {run.passes_run} of 4 passes, where 3 do")


@cache
def _pipeline() -> Any:
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts = {"unet": unet, "vae": vae, "scheduler": diffusers.EulerDiscreteScheduler(), **nothing}
    pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _graph(rule: Rule) -> None:
    from fastcfg_export import GuidedModule
    from fastcfg_export.sample_inputs import draw_inputs

    from .export_models import toy

    module = GuidedModule(toy(), rule, kind="eps" if rule.lowered.domain else None)
    module(*draw_inputs(module.signature, {"batch": 1, "height": 8, "width": 8, "tokens": 3}))


def _student(rule: Rule) -> None:
    from fastcfg.demo.diffusion import noise_scheduler
    from fastcfg.distill import Task

    teacher = GuidedDenoiser(_Model(), rule)
    Task(teacher, noise_scheduler(), lambda n, _: _drawn(9, n, 4, 8, 8), lambda n, _: _conditions(rule, n))


COLUMNS: Mapping[str, Callable[[Rule], None]] = {
    "guide_step": _step,
    "Requests": _requests,
    "diffusers classic": _classic,
    "diffusers modular": _modular,
    "ComfyUI": _comfyui,
    "k-diffusion": _k_diffusion,
    "vllm-omni": _vllm_omni,
    "ONNX": _graph,
    "student": _student,
}
"""What a rule is tried on, by the name in the table."""


class _Patcher:
    """The part of ComfyUI's MODEL that a node patches."""

    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {}

    def clone(self) -> _Patcher:
        return _Patcher()

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("set_model_"):
            raise AttributeError(name)
        return lambda *_, **__: None


def _names(code: CodeType) -> Iterator[str]:
    """The globals that a function's code refers to, with those of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@cache
def _nodes(rule: str) -> tuple[str, ...]:
    """ComfyUI's nodes of a rule: those that make it, or else those of its paper. Guiders can't run without ComfyUI."""
    from fastcfg.adapters.comfyui import NODES

    nodes = [node for node in NODES if node.name != "FastcfgRule"]
    made = tuple(node.name for node in nodes if rule in _names(node.run.__code__))
    entry = next(entry for entry in entries() if entry.name == rule)
    source = entry.source.split(",")[0]
    if made or {*entry.conditions} <= {"uncond", "cond"} or not source:
        return made
    return tuple(node.name for node in nodes if source in node.description)


@cache
def _guiders(rule: str) -> tuple[str, ...]:
    """The fused counterparts of diffusers' guiders that guide by a rule."""
    from fastcfg.adapters import diffusers

    fused = [name for name in diffusers.__all__ if name.startswith("Fused")]
    return tuple(name for name in fused if rule in _names(getattr(diffusers, name)._rule.__code__))


def why_not(rule: Rule, column: str) -> str | None:
    """Try a rule: None where it is taken, or the error's first line."""
    with warnings.catch_warnings(), patch.dict(os.environ, FASTCFG_BACKEND="torch"):
        warnings.simplefilter("ignore")
        try:
            COLUMNS[column](rule)
            if isinstance(rule, GatedCFG):  # Where passes are the point, they are counted.
                check(column, rule)
        except (TypeError, ValueError, RuntimeError) as error:
            return str(error).splitlines()[0]
    return None


@cache
def lines() -> tuple[Line, ...]:
    """Every rule of the catalogue, tried.

    Raises:
        ImportError: naming the package that a column needs.
    """
    found = []
    for entry in entries():
        rule = example(registry[entry.name])
        tried = {column: why_not(rule, column) for column in COLUMNS}
        refused = {column: why for column, why in tried.items() if why is not None}
        taken = frozenset((*entry.backends, *(column for column in COLUMNS if column not in refused)))
        found.append(Line(entry.name, taken, refused, _guiders(entry.name), _nodes(entry.name)))
    return tuple(found)


def compact() -> str:
    """A line for all rules that have the same cells, the largest group first."""
    columns = (*BACKENDS, *COLUMNS)
    groups: dict[tuple[str, ...], list[str]] = {}
    for line in lines():
        groups.setdefault(tuple("✓" if name in line.taken else "–" for name in columns), []).append(line.rule)
    rows = [
        (", ".join(f"`{rule}`" for rule in rules), *cells)
        for cells, rules in sorted(groups.items(), key=lambda group: (-len(group[1]), group[1]))
    ]
    return table(("rules", *columns), rows, "l" + "c" * len(columns))


def full() -> str:
    """A line a rule; nodes of ComfyUI and guiders by their names."""
    columns = (*BACKENDS, *COLUMNS)
    rows = []
    for line in lines():
        cells = {name: "✓" if name in line.taken else "–" for name in columns}
        named = {"diffusers modular": line.guiders, "ComfyUI": line.nodes}
        cells |= {name: ", ".join(f"`{n}`" for n in names) for name, names in named.items() if names}
        rows.append((f"`{line.rule}`", *cells.values()))
    return table(("rule", *columns), rows, "l" + "c" * len(columns))


def refusals() -> str:
    """A Markdown list: each rule that something does not take, and the error."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines():
        for column, why in line.refused.items():
            found.setdefault((column, why), []).append(line.rule)
    rows = [f"- {', '.join(f'`{r}`' for r in rules)}, {column}: {why}" for (column, why), rules in found.items()]
    return "\n".join(rows) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """Markdown."""
    marks = {"l": "---", "c": ":-:", "r": "---:"}
    body = [header, [marks[letter] for letter in align], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body) + "\n"
