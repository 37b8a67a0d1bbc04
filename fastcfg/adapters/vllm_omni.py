"""Guidance in vllm-omni's diffusion pipelines, whose ``CFGParallelMixin`` calls three methods to combine branches.

With CFG-parallel each rank computes the combination of the same gathered predictions: ours gives the same bits on each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor

from ..core.guide import guide
from ..denoiser import Gate
from ..denoiser.gates import gate_for
from ..rules import CFG, InstructPix2Pix, Linear, NormCap, Rule
from .common import with_scale
from .engine_gate import EngineRun, where

__all__ = ["FusedCFG", "fuse"]

Prediction = Tensor | tuple[Tensor, ...]
_CONTEXT = ("params", "state", "x", "prediction", "step", "num_steps", "sigma")
_MIXIN = "vllm_omni.diffusion.distributed.cfg_parallel"
_SCALES = {"text": "scale", "image": "image_scale", "cfg_scale": "scale", "img_cfg_scale": "image_scale"}


@lru_cache(maxsize=256)
def _scaled(rule: Rule, scales: tuple[tuple[str, float], ...], normalized: bool) -> Rule:
    """The rule with a call's scales, and the norm per token where it is asked for."""
    for name, scale in scales:
        changed = with_scale(rule, scale, name)
        if changed is None:
            raise ValueError(f"true_cfg_scale: {type(rule).__name__} has no parameter {name!r}")
        rule = changed
    return NormCap(rule, mode="full", over="token") if normalized else rule


def _elements(prediction: Prediction) -> tuple[Tensor, ...]:
    return prediction if isinstance(prediction, tuple) else (prediction,)


class FusedCFG:
    """The combining methods of ``CFGParallelMixin``, by any rule, in one launch each.

    ``class MyPipeline(nn.Module, FusedCFG, CFGParallelMixin)``, or :func:`fuse` for a pipeline that is there.

    Attributes:
        guidance: the rule; its scale is the call's ``true_cfg_scale``. None is CFG, and for three branches with the
            scales ``{"text": …, "image": …}`` that of InstructPix2Pix.
        branches: the rule's names of the multi-branch predictions in their order, the positive first; None takes
            ``("cond", "uncond")`` and ``("cond", "image", "uncond")``.
        gate: when branches beside the positive one are left out, where they run in turn on one rank; all of
            CFG-parallel's run, for they take no time of their own. Where the run is, is read from ``self.scheduler``.

    A rule's memory (a momentum) and its step, where the pipeline passes none, are those of the run.
    A pipeline that overrides one of the methods keeps its own; its ``super()`` call comes here.
    """

    guidance: Rule | None = None
    branches: tuple[str, ...] | None = None
    gate: Gate | None = None

    def predict_noise_maybe_with_cfg(
        self,
        do_true_cfg: bool,
        true_cfg_scale: float,
        positive_kwargs: dict[str, Any],
        negative_kwargs: dict[str, Any] | None,
        cfg_normalize: bool = True,
        output_slice: int | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The mixin's prediction, without the negative branch where the gate leaves it out."""
        more = {} if kwargs is None else {"kwargs": kwargs}
        if not do_true_cfg or self.gate is None or _parallel():
            return super().predict_noise_maybe_with_cfg(  # type: ignore[misc]
                do_true_cfg, true_cfg_scale, positive_kwargs, negative_kwargs, cfg_normalize, output_slice, **more
            )
        given = {"cond": positive_kwargs, "uncond": negative_kwargs}
        positive, negative = self._branches(("cond", "uncond"), given, output_slice)
        if self._run().ended:
            return positive[0] if len(positive) == 1 else positive
        return self.combine_cfg_noise(positive, negative, true_cfg_scale, cfg_normalize, **more)

    def predict_noise_with_multi_branch_cfg(
        self,
        do_true_cfg: bool,
        true_cfg_scale: float | dict[str, float],
        branches_kwargs: list[dict[str, Any]],
        cfg_normalize: bool = False,
        output_slice: int | None = None,
    ) -> Any:
        """The mixin's prediction, without the branches that the gate leaves out; the first is always run."""
        if not do_true_cfg or self.gate is None or _parallel():
            return super().predict_noise_with_multi_branch_cfg(  # type: ignore[misc]
                do_true_cfg, true_cfg_scale, branches_kwargs, cfg_normalize, output_slice
            )
        names = ("cond", *(f"branch_{i}" for i in range(1, len(branches_kwargs))))
        found = self._branches(names, dict(zip(names, branches_kwargs, strict=True)), output_slice)
        plain = [parts[0] if len(parts) == 1 else parts for parts in found]
        if self._run().ended:
            return plain[0]
        return self.combine_multi_branch_cfg_noise(plain, true_cfg_scale, cfg_normalize)

    def _branches(
        self, names: Sequence[str], given: Mapping[str, Mapping[str, Any] | None], output_slice: int | None
    ) -> list[tuple[Tensor, ...]]:
        """The predictions of a step's branches, run in turn or left out by the gate."""
        assert self.gate is not None

        def predict(arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
            parts = _elements(self.predict_noise(**arguments))  # type: ignore[attr-defined]
            return parts if output_slice is None else tuple(part[:, :output_slice] for part in parts)

        positive = given[names[0]] or {}
        model = positive.get("current_model", getattr(self, "transformer", None))
        return self._run().predict(self.gate, names, given, predict, getattr(self, "scheduler", None), model)

    def _run(self) -> EngineRun:
        """Return what this pipeline remembers of its run."""
        run: EngineRun = vars(self).setdefault("_fastcfg_run", EngineRun())
        return run

    def cfg_normalize_function(self, noise_pred: Tensor, comb_pred: Tensor) -> Tensor:
        """``comb_pred`` with the norms of ``noise_pred`` over the last dimension; a zero row stays zero (theirs: NaN).

        Args:
            noise_pred: the positive prediction ``[B, ..., C]``; comb_pred: the guided one.
        """
        return guide(_NORMALIZED, guided=comb_pred, cond=noise_pred)

    def combine_cfg_noise(
        self,
        positive_noise_pred: Prediction,
        negative_noise_pred: Prediction,
        true_cfg_scale: float | Tensor,
        cfg_normalize: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """The guided prediction of two branches.

        Args:
            positive_noise_pred, negative_noise_pred: ``[B, ..., C]``, or tuples of them, guided one by one.
            true_cfg_scale: a number, or a tensor ``[B]``.
            cfg_normalize: whether to give the result the positive's norms, by :meth:`cfg_normalize_function`.
            kwargs: what the rule needs besides: ``step``, ``num_steps``, ``sigma``, ``params``, ``state`` (for each
                element of a tuple one, in a tuple), ``x``, ``prediction``, as for :func:`fastcfg.guide`.

        Returns:
            As the positive: a tensor, or a tuple where it has more than one element.
        """
        rule = CFG() if self.guidance is None else self.guidance
        names = ("cond", "uncond")
        branches = [positive_noise_pred, negative_noise_pred]
        return self._combine(rule, names, branches, {"scale": true_cfg_scale}, cfg_normalize, kwargs or {})

    def combine_multi_branch_cfg_noise(
        self,
        predictions: Sequence[Prediction],
        true_cfg_scale: float | Mapping[str, float],
        cfg_normalize: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """The guided prediction of any number of branches.

        Args:
            predictions: in the order of :attr:`branches`.
            true_cfg_scale: the rule's scale, or its scales by name (``text`` is ``scale``, ``image``
                ``image_scale``).
            cfg_normalize, kwargs: as for :meth:`combine_cfg_noise`.

        Raises:
            ValueError: naming the argument that doesn't fit the rule.
        """
        rule = self.guidance
        if rule is None:
            rule = CFG() if len(predictions) == 2 else InstructPix2Pix()
        names = self.branches or (("cond", "uncond") if len(predictions) == 2 else ("cond", "image", "uncond"))
        if len(names) != len(predictions) or sorted(names) != sorted(rule.conditions):
            raise ValueError(
                f"predictions: expected those of {type(rule).__name__}, {list(rule.conditions)}, got "
                f"{len(predictions)} named {list(names)}; set branches"
            )
        scales = true_cfg_scale if isinstance(true_cfg_scale, Mapping) else {"scale": true_cfg_scale}
        return self._combine(rule, names, predictions, scales, cfg_normalize, kwargs or {})

    def _combine(
        self, rule: Rule, names: Sequence[str], branches: Sequence[Prediction], scales: Mapping[str, Any],
        normalized: bool, context: Mapping[str, Any],
    ) -> Prediction:  # fmt: skip
        """Each element of the branches guided by the rule at a call's scales."""
        if unknown := sorted(set(context) - set(_CONTEXT)):
            raise ValueError(f"kwargs: expected some of {list(_CONTEXT)}, got {unknown}")
        given = {_SCALES.get(name, name): scale for name, scale in scales.items()}
        params = dict(context.get("params") or {})
        params |= {name: scale.reshape(-1) for name, scale in given.items() if isinstance(scale, Tensor)}
        numbers = tuple((name, float(scale)) for name, scale in given.items() if not isinstance(scale, Tensor))
        fused = normalized and type(self).cfg_normalize_function is FusedCFG.cfg_normalize_function
        # Norms by token can't share a launch with a rule's sums over samples.
        apart = fused and rule.lowered.program.reduces
        rule = _scaled(rule, numbers, fused and not apart)
        at, memory = self._at(rule, context)
        if rule.scheduled:
            if at is None:
                raise ValueError(
                    f"kwargs: expected step and num_steps, for {type(rule).__name__} changes by step and the "
                    "pipeline's scheduler says none"
                )
            rule = rule.at(*at, sigma=context.get("sigma"))
        rule = rule if params else rule.simplify()
        results = []
        for i, tensors in enumerate(zip(*(_elements(branch) for branch in branches), strict=True)):
            predictions: dict[str, Any] = dict(zip(names, tensors, strict=True))
            used = {name: predictions[name] for name in rule.conditions}
            known = ("state",) if rule.lowered.domain is None else ("state", "x", "prediction")
            space = {name: _of(context.get(name), i) for name in known}
            if memory is not None:
                space["state"] = memory.state(i)
            y = guide(rule, params=params or None, **space, **used)
            if normalized and (apart or not fused):
                y = self.cfg_normalize_function(predictions["cond"], y)
            results.append(y)
        return results[0] if len(results) == 1 else tuple(results)

    def _at(self, rule: Rule, context: Mapping[str, Any]) -> tuple[tuple[int, int] | None, EngineRun | None]:
        """The step of a call and what remembers for its rule: the context's, else the run's."""
        at = where(getattr(self, "scheduler", None))
        stateful = bool(rule.lowered.extras or rule.lowered.updates) and context.get("state") is None
        memory = self._momentum() if stateful and at is not None else None
        if "step" in context and "num_steps" in context:
            return (context["step"], context["num_steps"]), memory
        return at, memory

    def _momentum(self) -> EngineRun:
        """Return what a rule remembers of the run, apart from what the gate does."""
        run: EngineRun = vars(self).setdefault("_fastcfg_memory", EngineRun())
        run.begin(getattr(self, "scheduler", None))
        return run


def _parallel() -> bool:
    """Return whether branches run on a rank each."""
    module = sys.modules.get(_MIXIN)
    return module is not None and module._get_cfg_world_size_or_one() > 1


def _of(value: Any, i: int) -> Any:
    """Return what belongs to an element: the value itself, or one of a tuple."""
    return value[i] if isinstance(value, tuple) else value


_NORMALIZED = NormCap(Linear((("guided", 1.0),)), mode="full", over="token")


def fuse(
    pipeline: type,
    guidance: Rule | None = None,
    branches: tuple[str, ...] | None = None,
    gate: Gate | None = None,
) -> type:
    """A subclass of a vllm-omni pipeline that combines by :class:`FusedCFG` wherever it does by ``CFGParallelMixin``.

    Args:
        pipeline: a class that inherits from ``CFGParallelMixin``; what it overrides itself it keeps.
        guidance, branches, gate: as :class:`FusedCFG`'s attributes; a :class:`fastcfg.GatedCFG` is a rule and a gate.

    Raises:
        ImportError: without vllm-omni.
        TypeError: if the class has no ``CFGParallelMixin``.
        ValueError: for a rule where the pipeline has a combination of its own.
    """
    try:
        mixin = import_module(_MIXIN).CFGParallelMixin
    except ImportError as error:
        raise ImportError(f"fastcfg.adapters.vllm_omni needs vllm-omni ({error}); pip install vllm-omni") from error
    if not (isinstance(pipeline, type) and issubclass(pipeline, mixin)):
        raise TypeError(f"pipeline: expected a class with vllm-omni's CFGParallelMixin, got {pipeline!r}")
    hook = "combine_cfg_noise" if branches is None else "combine_multi_branch_cfg_noise"
    owner = next(cls for cls in pipeline.__mro__ if hook in vars(cls))
    if guidance is not None and owner is not mixin:
        raise ValueError(f"guidance: {owner.__name__} has a {hook} of its own, which would not come to the rule")
    if guidance is not None or gate is not None:
        guidance, gate = gate_for(CFG() if guidance is None else guidance, gate)
    predict = "predict_noise_maybe_with_cfg" if branches is None else "predict_noise_with_multi_branch_cfg"
    runs = next((cls for cls in pipeline.__mro__ if predict in vars(cls)), mixin)
    if gate is not None and runs is not mixin:
        raise ValueError(f"gate: {runs.__name__} has a {predict} of its own, whose branches can't be left out")
    # Between the pipeline and the mixin: the pipeline's own overrides come first, and their super() comes here.
    fused = type("FusedCFGParallelMixin", (FusedCFG, mixin), {"guidance": guidance, "branches": branches, "gate": gate})
    return type(f"Fused{pipeline.__name__}", (pipeline, fused), {"__module__": pipeline.__module__})
