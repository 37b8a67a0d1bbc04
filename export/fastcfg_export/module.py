"""A model and its guidance as one ``torch.nn.Module``: the form that exporters take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor

import fastcfg
from fastcfg.prediction import Kind
from fastcfg.validate import check_choice

from .models import GraphModel, Input, adapt
from .sampler_step import STEPS
from .signature import BATCH, Role, Signature, TensorSpec, dtype_name

__all__ = ["GuidedModule", "input_name"]


def input_name(parameter: str) -> str:
    """The name of a rule's parameter as a graph's input: ``scale`` is ``guidance_scale``."""
    return "guidance_scale" if parameter == "scale" else parameter


class GuidedModule(torch.nn.Module):
    """The passes, the guidance and, if wanted, the sampler's step, from tensors ``[B, …]`` to tensors ``[B, …]``.

    ``forward`` takes the tensors of :attr:`signature`'s inputs in order. The passes are one batch inside, which leaves
    dim 0 the number of images; sums and weights are float32 whatever the model's dtype.

    Args:
        model: a :class:`GraphModel`, or a model that :func:`adapt` knows.
        rule: the guidance, or None for a student, whose one pass takes the scale itself.
        parameters: the rule's parameters that are inputs ``[B]`` of float32; the others are constants of the graph.
        kind: what the model predicts (``eps``, ``x0``, ``v``, ``flow``); for a rule with a domain and for ``step``.
        step: a sampler's step inside the graph, a key of :data:`fastcfg_export.STEPS`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        model: torch.nn.Module | GraphModel,
        rule: fastcfg.Rule | None,
        *,
        parameters: Sequence[str] | None = None,
        kind: Kind | None = None,
        step: str | None = None,
    ) -> None:
        super().__init__()
        graph = adapt(model)
        self.graph_model = graph
        self.module = graph.module
        self.rule = rule
        self.kind = kind
        self.parameters_in = _check_rule(graph, rule, parameters)
        if kind is not None:
            check_choice("kind", kind, get_args(Kind))
        if step is not None:
            check_choice("step", step, tuple(STEPS))
        self.step = None if step is None else STEPS[step]
        needs = "step" if step else "rule" if rule is not None and rule.lowered.domain else None
        if needs and kind is None:
            raise ValueError(f"kind: expected what the model predicts, since the {needs} depends on it; got None")
        if rule is None:
            kind = kind if step else None
        self.signature = self._signature(step)

    def _signature(self, step: str | None) -> Signature:
        graph, rule = self.graph_model, self.rule
        own = dtype_name(graph.float_dtype)

        def spec(name: str, what: Input, role: Role, key: str, condition: str = "") -> TensorSpec:
            dtype = own if what.dtype is None else dtype_name(what.dtype)
            return TensorSpec(name, what.dims, dtype, role, key, condition, span=what.span)

        def row(name: str, role: Role, key: str, default: float | None = None) -> TensorSpec:
            span = graph.times if role == "timestep" else None
            return TensorSpec(name, (BATCH,), "float32", role, key, default=default, span=span)

        inputs = [spec("sample", graph.sample, "sample", "sample"), row("timestep", "timestep", "timestep")]
        for condition in ("cond",) if rule is None else rule.conditions:
            inputs += [
                spec(f"{condition}_{key}", what, "condition", key, condition) for key, what in graph.conditions.items()
            ]
        inputs += [spec(key, what, "shared", key) for key, what in graph.shared.items()]
        outputs = []
        if rule is None:
            inputs.append(row("guidance_scale", "parameter", "scale"))
        else:
            lowered = rule.lowered
            defaults = cast(Mapping[str, Any], lowered.params)
            inputs += [row(input_name(key), "parameter", key, defaults[key]) for key in self.parameters_in]
            if graph.scale is not None:
                inputs.append(row("embedded_guidance_scale", "parameter", "embedded_scale"))
            state = Input(graph.sample.dims, torch.float32)
            inputs += [spec(f"state_{key}", state, "state", key) for key in lowered.extras]
            outputs = [spec(f"next_{key}", state, "output", key) for key in lowered.updates]
        levels = ["alpha", "sigma"] if self._domain or self.step else []
        levels += [] if self.step is None else list(self.step.levels)
        inputs += [row(key, "level", key) for key in levels]
        main = "next_sample" if step else "prediction"
        return Signature(
            inputs=tuple(inputs),
            outputs=(spec(main, graph.sample, "output", main), *outputs),
            axes=graph.axes,
            rule=None if rule is None else rule.to_dict(),
            kind=self.kind,
            step=step,
        )

    @property
    def _domain(self) -> bool:
        return self.rule is not None and self.rule.lowered.domain is not None

    def _guided(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Guide by position; return the guided prediction, then the state's new tensors.

        Args:
            tensors: the rule's predictions in the order of ``rule.conditions``; its state; x, alpha and sigma where
                it has a domain; then a tensor ``[B]`` for each of ``parameters_in``.
        """
        assert self.rule is not None
        lowered = self.rule.lowered
        given = iter(tensors)
        predictions: dict[str, Any] = {name: next(given) for name in self.rule.conditions}
        state = fastcfg.State({name: next(given) for name in lowered.extras})
        space: dict[str, Any] = {}
        if self._domain:
            x, alpha, sigma = next(given), next(given), next(given)
            space = {"x": x, "prediction": fastcfg.Prediction(cast(Kind, self.kind), alpha, sigma)}
        # Never None: without overrides, plain CFG would be a lerp in the model's dtype.
        params = {name: next(given) for name in self.parameters_in}
        carries = bool(lowered.extras or lowered.updates)
        result = fastcfg.guide(self.rule, params=params, state=state if carries else None, **space, **predictions)
        return [result, *(state[name] for name in lowered.updates)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors of ``signature.outputs`` for those of ``signature.inputs``, both in order."""
        specs = self.signature.inputs
        if len(inputs) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise ValueError(f"inputs: expected {len(specs)} ({names}), got {len(inputs)}")
        given = {spec.name: tensor for spec, tensor in zip(specs, inputs, strict=True)}
        x = given["sample"]
        predictions = self._passes(x, given)
        levels = {spec.key: given[spec.name] for spec in self.signature.by_role("level")}
        if self.step is not None:
            # The step is taken before anything is rounded to the model's dtype.
            predictions = [p.float() if p.dtype != torch.float64 else p for p in predictions]
        results: Sequence[Tensor] = predictions
        if self.rule is not None:
            tensors = [*predictions, *(given[f"state_{name}"] for name in self.rule.lowered.extras)]
            if self._domain:
                tensors += [x.to(predictions[0].dtype), levels["alpha"], levels["sigma"]]
            results = self._guided([*tensors, *(given[input_name(name)] for name in self.parameters_in)])
        if self.step is not None:
            moved = self.step(results[0], x.to(results[0].dtype), levels, cast(Kind, self.kind)).to(x.dtype)
            results = [moved, *results[1:]]
        return tuple(results)

    def _passes(self, x: Tensor, given: Mapping[str, Tensor]) -> list[Tensor]:
        """The model's prediction for each pass, all run as one batch."""
        names = self.signature.conditions
        passes = len(names)

        def repeat(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * passes) if passes > 1 else tensor

        arguments: dict[str, Tensor] = {}
        for key in self.graph_model.conditions:
            parts = [given[f"{name}_{key}"] for name in names]
            arguments[key] = torch.cat(parts) if passes > 1 else parts[0]
        for key in self.graph_model.shared:
            arguments[key] = repeat(given[key])
        if self.graph_model.scale is not None:
            name = "guidance_scale" if self.rule is None else "embedded_guidance_scale"
            arguments[self.graph_model.scale] = repeat(given[name])
        result = self.module(repeat(x), repeat(given["timestep"]), **arguments)
        if not isinstance(result, Tensor):
            raise TypeError(f"model: expected a tensor, got {type(result).__name__}")
        if passes == 1:
            return [result]
        # Not chunk(passes): exporters take its split sizes for constants, which fixes the batch.
        return list(torch.unflatten(result, 0, (passes, x.shape[0])).unbind(0))


def _check_rule(graph: GraphModel, rule: fastcfg.Rule | None, parameters: Sequence[str] | None) -> tuple[str, ...]:
    """The rule's parameters that become inputs."""
    if rule is None:
        if graph.scale is None:
            raise ValueError("rule: expected a rule, since the model takes no guidance scale of its own; got None")
        if parameters:
            raise ValueError(f"parameters: a graph without a rule has only guidance_scale, got {list(parameters)}")
        return ()
    if not isinstance(rule, fastcfg.Rule):
        raise TypeError(f"rule: expected a fastcfg rule or None, got {type(rule).__name__}")
    if rule.scheduled:
        raise ValueError("rule: has schedules; give numbers, and the engine the rule with its schedules")
    if rule.lowered.dims == ():
        raise ValueError("rule: its sums run over the whole batch, so that images of a request would change each other")
    known = rule.lowered.params
    if parameters is None:
        return ("scale",) if "scale" in known else tuple(known)
    if isinstance(parameters, str):
        raise TypeError(f"parameters: expected a sequence of names, got the string {parameters!r}")
    if unknown := [name for name in parameters if name not in known]:
        raise ValueError(f"parameters: {type(rule).__name__} has {sorted(known)}, got {unknown}")
    return tuple(dict.fromkeys(parameters))
