"""A graph or a plan as a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from fastcfg_kernels.notices import warn_once
from torch import Tensor

import fastcfg
from fastcfg.core.conditions import Conditions
from fastcfg.denoiser.structure import structure_of
from fastcfg.validate import check_choice

from .arguments import condition_arguments, fit, noise_levels, state_entry
from .errors import SidecarError
from .files import existing_file
from .metadata import hashes, read_signature
from .ort import OrtSession
from .plan_runner import PlanRunner, check_inputs
from .runtimes import load_runtime
from .sidecar import Sidecar
from .signature import Signature

__all__ = ["Engine"]

Runtime = Literal["auto", "plan", "onnx"]


class _Runner(Protocol):
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class _OnnxRunner:
    def __init__(self, path: Path, signature: Signature) -> None:
        self._signature = signature
        self._session = OrtSession(path, widen=any(spec.dtype == "bfloat16" for spec in signature.inputs))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signature = self._signature
        contiguous = {name: tensor.contiguous() for name, tensor in inputs.items()}
        check_inputs(signature.inputs, contiguous, torch.device("cpu"))
        signature.sizes({name: tensor.shape for name, tensor in inputs.items()})
        given = [contiguous[spec.name] for spec in signature.inputs]
        results = self._session.run([t.float() if t.dtype == torch.bfloat16 else t for t in given])
        return {spec.name: t.to(spec.torch_dtype) for spec, t in zip(signature.outputs, results, strict=True)}


class Engine:
    """A guided model, called as :class:`fastcfg.GuidedDenoiser` is, or by the names of its inputs.

    A plan runs where it can: on a GPU of a compute capability that it was built for, with the library version that
    built it. Elsewhere the graph that it was built from runs in ONNX Runtime, and one warning says why.

    Args:
        path: ``NAME.plan`` with its sidecar, or ``NAME.onnx``.
        rule: the rule to resolve at each step, where it has schedules: the engine's own but for the values of
            parameters that are inputs. Default: the engine's own. For a student, any rule with a ``scale``.
        runtime: ``"auto"``; ``"plan"``, which raises where the plan can't run; or ``"onnx"``.
        cuda_graph: capture and replay the launches of a plan, for each set of shapes.
        device: of a plan; default the current GPU.

    Attributes:
        signature: inputs, outputs and sizes.
        runs_on: ``"tensorrt_rtx"``, ``"tensorrt"`` or ``"onnxruntime"``.

    Raises:
        FileNotFoundError, ValueError: naming the argument.
        SidecarError: if the plan, its sidecar or its graph are missing, damaged or not of one build.
        RuntimeError: with ``runtime="plan"``, saying why the plan can't run here.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        rule: fastcfg.Rule | None = None,
        runtime: Runtime = "auto",
        cuda_graph: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        check_choice("runtime", runtime, ("auto", "plan", "onnx"))
        path = existing_file("path", path)
        if path.suffix == ".plan":
            sidecar = Sidecar.read(path)
            sidecar.check_plan(path)
            self.signature = sidecar.signature
            why_not = "runtime='onnx' was asked for" if runtime == "onnx" else _obstacle(sidecar)
            if why_not is None:
                where = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)
                library = load_runtime(sidecar.runtime)  # type: ignore[arg-type]
                self._runner: _Runner = PlanRunner(library, path, sidecar, where, cuda_graph)
                self.runs_on = sidecar.runtime
            else:
                if runtime == "plan":
                    raise RuntimeError(f"runtime: {path.name} cannot run here: {why_not}")
                if runtime == "auto":
                    warn_once(f"fastcfg: {path.name} runs in ONNX Runtime ({why_not})")
                self._runner = _OnnxRunner(_graph_of(path, sidecar), self.signature)
                self.runs_on = "onnxruntime"
        elif path.suffix == ".onnx":
            if runtime == "plan":
                raise ValueError(f"path: runtime='plan' needs NAME.plan, got {path}")
            self.signature = read_signature(path)
            self._runner = _OnnxRunner(path, self.signature)
            self.runs_on = "onnxruntime"
        else:
            raise ValueError(f"path: expected NAME.plan or NAME.onnx, got {path}")
        described = self.signature.rule
        self._own = None if described is None else fastcfg.Rule.from_dict(described)
        self._rule = self._own if rule is None else rule
        if rule is not None and not rule.scheduled:
            self._check_rule(rule)

    @property
    def rule(self) -> fastcfg.Rule | None:
        """The rule that is resolved at each step; None for a student without one."""
        return self._rule

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The graph itself: its outputs by name for its inputs by name.

        Tensors have the signature's shapes and dtypes. On a GPU they are read in place, on the current stream, and
        nothing waits.

        Raises:
            TypeError, ValueError: naming the input that does not fit.
        """
        return self._runner.run(inputs)

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        *,
        conditions: Conditions,
        step: int | None = None,
        num_steps: int | None = None,
        sigma: float | None = None,
        params: Mapping[str, Any] | None = None,
        state: fastcfg.State | None = None,
        prediction: fastcfg.Prediction | None = None,
        levels: Mapping[str, Tensor | float] | None = None,
        shared: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The guided prediction, or the next latent where the graph ends in a step.

        Arguments are those of :meth:`fastcfg.GuidedDenoiser.__call__`; every pass is always run.

        Args:
            conditions: for each pass its arguments by name. Mappings inside (diffusers' ``added_cond_kwargs``) are
                taken apart.
            params: values of parameters that are inputs: numbers, or tensors ``[]`` or ``[B]``.
            levels: for a graph that ends in a step, ``next_alpha`` and ``next_sigma`` (and ``alpha`` and ``sigma``
                where ``prediction`` does not give them).
            shared: arguments that all passes share.

        Returns:
            ``[B, …]`` in x's dtype.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if not isinstance(x, Tensor) or x.dim() < 2:
            raise ValueError(f"x: expected [B, ...], got {list(x.shape) if isinstance(x, Tensor) else type(x)}")
        rule = self._resolved(step, num_steps, sigma)
        values = self._parameters(rule, params or {})
        given = noise_levels(prediction, levels or {})
        conditioned = condition_arguments(self.signature, conditions)
        inputs: dict[str, Tensor] = {}
        for spec in self.signature.inputs:
            if spec.role == "sample":
                value: Any = x
            elif spec.role == "timestep":
                value = t
            elif spec.role == "condition":
                value = conditioned[spec.name]
            elif spec.role == "state":
                value = state_entry(spec, state, x)
            else:
                source = {"parameter": values, "level": given}.get(spec.role, dict(shared or {}))
                if spec.key not in source:
                    raise ValueError(f"{spec.key}: expected a value, since it is an input of the graph; got none")
                value = source[spec.key]
            inputs[spec.name] = fit(spec, value, x)
        results = self.run(inputs)
        first, *others = (results[spec.name] for spec in self.signature.outputs)
        if state is not None:
            for spec, tensor in zip(self.signature.outputs[1:], others, strict=True):
                state[spec.key.removeprefix("next_")] = tensor
        return first.to(x.dtype)

    def _resolved(self, step: int | None, num_steps: int | None, sigma: float | None) -> fastcfg.Rule | None:
        rule = self._rule
        if rule is None or not rule.scheduled:
            return rule
        if step is None or num_steps is None:
            raise ValueError("step: the rule has schedules, so the call needs step= and num_steps=")
        resolved = rule.at(step, num_steps, sigma=sigma)
        self._check_rule(resolved)
        return resolved

    def _check_rule(self, rule: fastcfg.Rule) -> None:
        """Refuse a rule that the graph does not compute."""
        if self._own is None:
            return
        if structure_of(rule) != structure_of(self._own):
            raise ValueError(f"rule: the engine computes {self._own}, which {rule} differs from by more than numbers")
        open_ = {spec.key for spec in self.signature.by_role("parameter")}
        own = self._own.lowered.params
        for name, value in rule.lowered.params.items():
            if name not in open_ and value != own[name]:
                raise ValueError(f"rule: {name} is {own[name]} in the engine and no input of it, got {value}")

    def _parameters(self, rule: fastcfg.Rule | None, params: Mapping[str, Any]) -> dict[str, Any]:
        specs = self.signature.by_role("parameter")
        names = [spec.key for spec in specs]
        if unknown := sorted(set(params) - set(names)):
            raise ValueError(f"params: expected some of {names}, the parameters that are inputs, got {unknown}")
        own: Mapping[str, Any] = {} if rule is None else rule.lowered.params
        return {name: own[name] for name in names if name in own} | dict(params)


def _graph_of(plan: Path, sidecar: Sidecar) -> Path:
    """The graph that a plan was built from, unchanged since."""
    path = plan.with_name(sidecar.onnx)
    if not path.is_file():
        raise SidecarError(f"plan: {plan.name} was built from {sidecar.onnx}, which is not beside it")
    try:
        found = hashes(path)
    except Exception as error:
        raise SidecarError(f"plan: {sidecar.onnx} or its weights cannot be read ({error})") from None
    if reasons := sidecar.changes({"sources": found}):
        raise SidecarError(f"plan: {plan.name} was built from another graph: {'; '.join(reasons)}; build it again")
    return path


def _obstacle(sidecar: Sidecar) -> str | None:
    """Why a plan can't run here, or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    try:
        library = load_runtime(sidecar.runtime)  # type: ignore[arg-type]
    except (ImportError, ValueError) as error:
        return str(error)
    if library.version != sidecar.runtime_version:
        return f"it was built by {sidecar.runtime} {sidecar.runtime_version}, here is {library.version}"
    here = ".".join(map(str, torch.cuda.get_device_capability()))
    if here not in sidecar.capabilities:
        return f"it was built for compute capability {', '.join(sidecar.capabilities)}, the GPU has {here}"
    return None
