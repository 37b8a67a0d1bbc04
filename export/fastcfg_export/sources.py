"""Models, rules and sizes that a command line names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastcfg

from .models import GraphModel, adapt
from .signature import Axis

__all__ = ["parse_profile", "parse_rule", "resolve_model"]

_DENOISERS = ("unet", "transformer")


def resolve_model(name: str, dtype: torch.dtype = torch.float32) -> GraphModel:
    """A model by name, in a dtype, without gradients.

    Args:
        name: ``demo``; a folder of a diffusers denoiser or pipeline on this disk; the file of a distilled student
            with weights of its own; or ``MODULE:FUNCTION``, a function without arguments that returns a module or a
            :class:`GraphModel`.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: saying what is wrong with the name.
    """
    if name == "demo":
        from fastcfg.demo.checkpoint import load_denoiser

        model: Any = load_denoiser()[0]
    elif name.endswith(".safetensors"):
        from fastcfg.distill import load_student

        student = load_student(Path(name))
        student.network.to(dtype)
        return adapt(student)
    elif ":" in name:
        module, _, function = name.partition(":")
        try:
            model = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model: expected MODULE:FUNCTION, {name!r} cannot be read ({error})") from None
    else:
        # Which of its parts stay in float32 is the model's own affair.
        return adapt(_from_folder(Path(name), dtype).eval().requires_grad_(False))
    if isinstance(model, GraphModel):
        return model
    if isinstance(model, torch.nn.Module):
        model = model.to(dtype).eval().requires_grad_(False)
    return adapt(model)


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    for candidate in (folder, *(folder / part for part in _DENOISERS)):
        if (config := candidate / "config.json").is_file():
            kind = json.loads(config.read_text()).get("_class_name", "")
            try:
                import diffusers
            except ImportError as error:
                raise ImportError(
                    f"model: {folder} needs diffusers ({error}); pip install 'fastcfg-diffusion[diffusers]'"
                ) from None
            if not hasattr(diffusers, kind):
                raise ValueError(f"model: {config} names the class {kind!r}, which diffusers does not have")
            return getattr(diffusers, kind).from_pretrained(
                candidate, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
    raise FileNotFoundError(
        f"model: expected 'demo', a diffusers model's folder, a graph NAME.onnx or MODULE:FUNCTION, got {str(folder)!r}"
    )


def parse_rule(text: str) -> fastcfg.Rule | None:
    """A rule of ``CFG``, ``{"type": "CFG", "rescale": 0.7}``, or the name of a JSON file; ``none`` is no rule.

    Raises:
        FileNotFoundError, ValueError: naming the rule, and the file where it is one.
    """
    if text.lower() == "none":
        return None
    data, where = text.strip(), ""
    try:
        if text.endswith(".json"):
            path, where = Path(text), f"{text}: "
            if not path.is_file():
                raise FileNotFoundError(f"rule: there is no file {text}")
            data = path.read_text().strip()
        return fastcfg.Rule.from_json(data) if data.startswith("{") else fastcfg.Rule.from_dict({"type": data})
    except (ValueError, TypeError) as error:
        raise ValueError(f"rule: {where}{str(error).removeprefix('rule: ')}") from None


def parse_profile(texts: Sequence[str], axes: dict[str, Axis]) -> dict[str, Axis]:
    """Sizes of ``batch=1:2:8`` and ``height=512:768:1024``: lowest, usual and highest; pixels where the axis has them.

    One number fixes a size, two are the lowest and the highest.

    Raises:
        ValueError: naming the profile.
    """
    found = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        if name not in axes:
            raise ValueError(f"profile: expected AXIS=LOW:USUAL:HIGH with one of {', '.join(axes)}, got {text!r}")
        try:
            numbers = [int(size) for size in sizes.split(":")]
        except ValueError:
            raise ValueError(f"profile: expected whole numbers LOW:USUAL:HIGH, got {text!r}") from None
        if len(numbers) > 3:
            raise ValueError(f"profile: expected at most LOW:USUAL:HIGH, got {text!r}")
        low, high = numbers[0], numbers[-1]
        usual = numbers[1] if len(numbers) == 3 else low
        try:
            found[name] = axes[name].in_pixels(low, usual, high)
        except ValueError as error:
            raise ValueError(f"profile: {name}: {error}") from None
    return found
