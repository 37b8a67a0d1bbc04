"""The hooks of a patched ComfyUI model: which passes a step runs, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from importlib import import_module
from typing import Any

from torch import Tensor

from .gated import FLAG, OURS, GatedCall, needs_all
from .recipe import PLAIN, Recipe, Stage, combine, needed, scheduled, spaces, stages
from .run import Memory, begin_run, memory_of
from .space import kind_of, prediction_at

__all__ = ["Guidance", "attach", "comfy", "guided", "inside", "recipe_of", "stages_of"]

Options = MutableMapping[str, Any]


def comfy(name: str) -> Any:
    """The module ``comfy.<name>``.

    Raises:
        ImportError: outside of ComfyUI.
    """
    try:
        return import_module(f"comfy.{name}")
    except ImportError as error:
        raise ImportError(
            f"fastcfg.adapters.comfyui needs ComfyUI ({error}); its nodes run inside of it: "
            "fastcfg comfyui install DIR puts them into an installation"
        ) from error


def inside(recipe: Recipe, sigma: Tensor) -> bool:
    """Return whether a noise level is in the recipe's window."""
    if recipe.window is None:
        return True
    low, high = recipe.window
    return low <= float(sigma.max()) <= high


def stages_of(
    recipe: Recipe, scale: float, memory: Memory, options: Options, sigma: Tensor, model: Any
) -> tuple[Stage, ...]:
    """The rules of the step at a noise level."""
    kinds = tuple((space, kind_of(space, model)) for space in sorted(spaces(recipe), key=str))
    if scheduled(recipe, scale):
        return stages(recipe, scale, *memory.step(options, sigma), kinds)
    return stages(recipe, scale, None, None, kinds)


def guided(
    made: tuple[Stage, ...], predictions: Mapping[str, Tensor], x: Tensor, sigma: Tensor, model: Any, memory: Memory
) -> Tensor:
    """The guided clean sample of a step."""
    stateful = any(stage.rule.lowered.extras or stage.rule.lowered.updates for stage in made)
    state = memory.follow(sigma) if stateful else memory.state
    space = prediction_at(model, sigma, x, {stage.kind for stage in made})
    return combine(made, predictions, x, space, state)


class Guidance:
    """A recipe as ComfyUI's ``sampler_calc_cond_batch_function`` and ``sampler_cfg_function``.

    Args:
        conditionings: CONDITIONING of the recipe's own passes, by name. They run in one batch with the others.
        previous: a ``sampler_calc_cond_batch_function`` that was there before.
    """

    def __init__(self, recipe: Recipe, conditionings: Mapping[str, Any], previous: Any = None) -> None:
        self.recipe = recipe
        self.conditionings = dict(conditionings)
        self.previous = previous

    def calc_cond_batch(self, args: dict[str, Any]) -> list[Tensor]:
        """``[cond, uncond]`` as clean samples; a pass that the step doesn't need is left out, and is ``cond`` then."""
        recipe, x, sigma, options = self.recipe, args["input"], args["sigma"], args["model_options"]
        memory = memory_of(self, options)
        cond, uncond = args["conds"][:2]
        wanted = {source for _, source in recipe.sources}
        if not inside(recipe, sigma):
            wanted = {"cond"}
        elif recipe.schedule is not None:
            # The CFG value is not told here; a schedule stands in for it.
            names = needed(stages_of(recipe, 1.0, memory, options, sigma, args["model"]))
            wanted = {source for name, source in recipe.sources if name in names}
        runs = {"cond": cond}
        if uncond is not None and "uncond" in wanted:
            runs["uncond"] = uncond
        runs |= {name: self._encoded(name, memory, args) for name in self.conditionings if name in wanted}
        order, gated = list(runs), None
        memory.ended = False
        if recipe.gate is not None and not needs_all(options):
            gated = GatedCall(recipe.gate, order, "cond", runs, memory, options, x, sigma, args["model"])
            runs = {name: runs[name] for name in gated.plan.passes}
        results = dict(zip(runs, self._run(args, list(runs.values())), strict=True))
        if gated is not None:
            results = gated.complete(results, order)
        memory.x = x
        memory.passes = {name: results[name] for name in self.conditionings if name in results}
        return [results["cond"], results.get("uncond", results["cond"])]

    def combine(self, args: dict[str, Any]) -> Tensor:
        """``input`` minus the guided clean sample."""
        x, sigma, options, model = args["input"], args["sigma"], args["model_options"], args["model"]
        recipe, memory = self.recipe, memory_of(self, options)
        # ComfyUI leaves the pass out at a CFG value of 1, where the rule is cond, and where there is no negative.
        if not inside(recipe, sigma) or args["input_uncond"] is None or memory.ended:
            return args["cond"]  # type: ignore[no-any-return]
        made = stages_of(recipe, float(args["cond_scale"]), memory, options, sigma, model)
        names = needed(made)
        predictions = {}
        for name, source in recipe.sources:
            if name in names:
                predictions[name] = (
                    args[f"{source}_denoised"] if source in ("cond", "uncond") else self._pass(source, args)
                )
        result: Tensor = x - guided(made, predictions, x, sigma, model, memory)
        return result

    def _run(self, args: Mapping[str, Any], conds: list[Any]) -> list[Tensor]:
        if self.previous is not None:
            return list(self.previous({**args, "conds": conds}))
        run = comfy("samplers").calc_cond_batch
        return list(run(args["model"], conds, args["input"], args["sigma"], args["model_options"]))

    def _pass(self, name: str, args: Mapping[str, Any]) -> Tensor:
        """A prediction of the recipe's own, run here where another node's hook has run the batch."""
        memory = memory_of(self, args["model_options"])
        if memory.x is not args["input"]:
            memory.x, memory.passes = args["input"], {}
        if name not in memory.passes:
            [memory.passes[name]] = self._run(args, [self._encoded(name, memory, args)])
        return memory.passes[name]

    def _encoded(self, name: str, memory: Memory, args: Mapping[str, Any]) -> Any:
        """A condition as the model's passes take it, made once a run."""
        if name not in memory.conditions:
            cond = comfy("sampler_helpers").convert_cond(self.conditionings[name])
            x = args["input"]
            encode = comfy("samplers").encode_model_conds
            memory.conditions[name] = encode(args["model"].extra_conds, cond, x, x.device, "negative")
        return memory.conditions[name]


def _owner(function: Any) -> Guidance | None:
    owner = getattr(function, "__self__", None)
    return owner if isinstance(owner, Guidance) else None


def recipe_of(model: Any) -> Recipe:
    """The recipe that a model was patched with, or plain CFG."""
    owner = _owner(model.model_options.get("sampler_cfg_function"))
    return PLAIN if owner is None else owner.recipe


def attach(model: Any, recipe: Recipe, conditionings: Mapping[str, Any] | None = None) -> Any:
    """A clone of a ComfyUI model that is guided by ``recipe``, in the place of its ``sampler_cfg_function``.

    Args:
        conditionings: of the recipe's own passes; None keeps those that the model was patched with.
    """
    clone = model.clone()
    before = _owner(clone.model_options.get("sampler_cfg_function"))
    if conditionings is None:
        conditionings = {} if before is None else before.conditionings
    previous = clone.model_options.get("sampler_calc_cond_batch_function")
    if (earlier := _owner(previous)) is not None:
        previous = earlier.previous
    guidance = Guidance(recipe, conditionings, previous)
    clone.set_model_sampler_cfg_function(guidance.combine)
    if (recipe.always or recipe.schedule is not None) and not needs_all(clone.model_options):
        clone.model_options[FLAG] = OURS
    clone.set_model_sampler_calc_cond_batch_function(guidance.calc_cond_batch)
    if hasattr(clone, "add_wrapper_with_key"):
        clone.remove_wrappers_with_key("sampler_sample", "fastcfg")
        clone.add_wrapper_with_key("sampler_sample", "fastcfg", begin_run)
    return clone
