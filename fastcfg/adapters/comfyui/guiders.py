"""ComfyUI guiders for rules of three and more conditions, which run in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from .gated import GatedCall, needs_all
from .hooks import comfy, guided, inside, recipe_of, stages_of
from .recipe import Recipe, needed, with_base
from .run import memory_of

__all__ = ["rule_guider"]


def _encoded_as(prompt_type: str, conditioning: Any) -> list[Any]:
    """A copy of a CONDITIONING that models encode as they do the ``positive`` or the ``negative``."""
    return [[item[0], {**item[1], "prompt_type": prompt_type}] for item in conditioning]


@cache
def _guider_class(base: type) -> type:
    """The guider on ComfyUI's ``CFGGuider``, which is there only when a node runs."""

    class RuleGuider(base):  # type: ignore[misc, valid-type]
        """A guider that combines its conditions by a recipe.

        The hooks of other nodes see ``positive`` and ``negative`` as with ComfyUI's own guiders.
        """

        recipe: Recipe
        weak: Any = None

        def inner_sample(self, *args: Any, **kwargs: Any) -> Any:
            if self.weak is not None:
                self.weak.pre_run()
            return super().inner_sample(*args, **kwargs)

        def predict_noise(
            self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
        ) -> Tensor:
            options = {} if model_options is None else model_options
            recipe, model, memory = self.recipe, self.inner_model, memory_of(self, options)
            made = stages_of(recipe, float(self.cfg), memory, options, timestep, model)
            names = needed(made) if inside(recipe, timestep) else {"cond"}
            # ComfyUI's hooks index [cond, uncond].
            order = dict.fromkeys(("positive", "negative", *(source for _, source in recipe.sources)))
            order.pop("weak", None)
            runs = {source for name, source in recipe.sources if name in names} | {"positive"}
            gated, memory.ended = None, False
            if recipe.gate is not None and not needs_all(options):
                wanted = [source for source in (*order, "weak") if source in runs]
                gated = GatedCall(recipe.gate, wanted, "positive", self.conds, memory, options, x, timestep, model)
                runs = set(gated.plan.passes)
            conds = [self.conds.get(source) if source in runs else None for source in order]
            out = comfy("samplers").calc_cond_batch(model, conds, x, timestep, options)
            if gated is not None:
                results = {source: sample for source, sample in zip(order, out, strict=True) if source in runs}
                if "weak" in runs:
                    results["weak"] = self._weak_pass(self.conds["positive"], x, timestep, options)
                found = gated.complete(results, wanted)
                out = [found.get(source, sample) for source, sample in zip(order, out, strict=True)]
            shared = {"input": x, "sigma": timestep, "model": model, "model_options": options, "cond_scale": self.cfg}
            for hook in options.get("sampler_pre_cfg_function", []):
                out = hook({**shared, "conds": conds, "conds_out": out, "timestep": timestep})
            passes, given = dict(zip(order, out, strict=True)), dict(zip(order, conds, strict=True))
            if gated is not None:
                passes |= {"weak": found["weak"]} if "weak" in found else {}
            elif "weak" in runs:
                passes["weak"] = self._weak_pass(given["positive"], x, timestep, options)
            if inside(recipe, timestep) and not memory.ended:
                predictions = {name: passes[source] for name, source in recipe.sources if name in names}
                result = guided(made, predictions, x, timestep, model, memory)
            else:
                result = passes["positive"]
            negative = "negative" if "negative" in (found if gated is not None else runs) else "positive"
            shared |= {"cond": given["positive"], "uncond": given["negative"]}
            shared |= {"cond_denoised": passes["positive"], "uncond_denoised": passes[negative]}
            for source in order:
                shared |= {f"{source}_cond": given[source], f"{source}_cond_denoised": passes[source]}
            for hook in options.get("sampler_post_cfg_function", []):
                result = hook({**shared, "denoised": result})
            return result

        def _weak_pass(self, cond: Any, x: Tensor, timestep: Tensor, options: Mapping[str, Any]) -> Tensor:
            own = dict(self.weak.model_options)
            sigmas = options.get("transformer_options", {}).get("sample_sigmas")
            own["transformer_options"] = {**own.get("transformer_options", {}), "sample_sigmas": sigmas}
            [weak] = comfy("samplers").calc_cond_batch(self.weak.model, [cond], x, timestep, own)
            return weak  # type: ignore[no-any-return]

    return RuleGuider


def rule_guider(
    model: Any, recipe: Recipe, cfg: float, conditionings: Mapping[str, Any], weak_model: Any = None
) -> Any:
    """A ComfyUI GUIDER.

    Args:
        model: a MODEL; guidance nodes before it give their modifiers, schedule and window.
        recipe: its sources name the conditions: ``positive``, ``negative`` and others, and ``weak`` for the positive
            under ``weak_model``.
        cfg: the recipe's scale.
        conditionings: CONDITIONING by source; those not named ``positive…`` are encoded as negatives are.

    Raises:
        ValueError: if ``weak_model`` is a patched copy of ``model``, whose weights it would share.
    """
    recipe = with_base(recipe_of(model), recipe)
    if weak_model is not None:
        if weak_model.model is model.model:
            raise ValueError(
                "weak_model: expected another checkpoint, got a patched copy of model, which shares weights"
            )
        model = model.clone()
        model.set_additional_models("fastcfg_weak", [weak_model])
    guider = _guider_class(comfy("samplers").CFGGuider)(model)
    kinds = {name: "positive" if name.startswith("positive") else "negative" for name in conditionings}
    guider.inner_set_conds({name: _encoded_as(kinds[name], given) for name, given in conditionings.items()})
    guider.set_cfg(cfg)
    guider.recipe, guider.weak = recipe, weak_model
    return guider
