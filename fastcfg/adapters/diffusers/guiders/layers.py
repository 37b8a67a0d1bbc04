"""The layers of a diffusers model that a guider weakens for a pass: skipped, or without attention scores."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from diffusers.hooks._common import _FEEDFORWARD_CLASSES
from diffusers.hooks._helpers import AttentionProcessorRegistry, TransformerBlockRegistry
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import unwrap_module
from torch import nn
from torch.nn import functional

__all__ = ["LayerSwitch", "own_configs", "self_attention", "skipped_layers"]

Weak = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
Weaken = Callable[[nn.Module, Any], Iterator[tuple[nn.Module, Weak]]]

_STACKS = (
    "transformer_blocks", "blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks",
    "temporal_transformer_blocks",
)  # fmt: skip


def own_configs(configs: Sequence[Any]) -> list[Any]:
    """Copies of configs of layers (applying one writes to it), their numbers in lists, as applying them expects."""
    return [replace(c, indices=[c.indices] if isinstance(c.indices, int) else list(c.indices)) for c in configs]


def _blocks(denoiser: nn.Module, config: Any) -> list[nn.Module]:
    """The layers that a config names."""
    name = next((s for s in _STACKS if hasattr(denoiser, s)), None) if config.fqn == "auto" else config.fqn
    if name is None:
        raise ValueError(f"fqn: 'auto' finds no stack of layers in {type(denoiser).__name__}; name it")
    stack = dict(denoiser.named_modules()).get(name)
    if not isinstance(stack, nn.ModuleList):
        raise ValueError(f"fqn: expected the name of a ModuleList of {type(denoiser).__name__}, got {name!r}")
    found = [stack[index] for index in config.indices if -len(stack) <= index < len(stack)]
    if not found:
        raise ValueError(f"indices: expected layers of {name!r}, 0 ... {len(stack) - 1}, got {config.indices}")
    return found


def self_attention(denoiser: nn.Module, config: Any) -> Iterator[nn.Module]:
    """The self-attention modules of the layers that a config names.

    Args:
        config: diffusers' ``LayerSkipConfig`` or ``SmoothedEnergyGuidanceConfig``: ``indices`` of the stack ``fqn``,
            ``"auto"`` being the first known name of a stack that the model has.

    Raises:
        ValueError: naming ``fqn`` if the model has no such stack, or ``indices`` if it has no such layers or they have
            no self-attention.
    """
    found = False
    for block in _blocks(denoiser, config):
        for module in block.modules():
            attends = isinstance(module, Attention | AttentionModuleMixin)
            if attends and not getattr(module, "is_cross_attention", False):
                found = True
                yield module
    if not found:
        raise ValueError(f"indices: expected layers with self-attention, got {config.indices} of {config.fqn!r}")


class _Flag:
    on = False


class LayerSwitch:
    """Layers of a model that are weakened while the switch is on: skipped, without attention scores, or blurred.

    One wrapper of each layer's ``forward`` for all passes and runs, which reads a flag: under ``torch.compile`` a model
    has two versions, strong and weak. (A hook made anew for each pass is a new version each time.) :meth:`put` and
    :meth:`take` put the wrappers in and out; with the switch off they change nothing.

    Args:
        denoiser: a transformer of diffusers, or any model with a stack of blocks at a config's ``fqn``.
        configs: diffusers' ``LayerSkipConfig``, or whatever ``weaken`` takes.
        weaken: gives the layers of a config, each with what it does when it is weak:
            ``weak(strong, args, kwargs)``.

    Raises:
        ValueError: naming what the model does not have, as :func:`self_attention`.
    """

    def __init__(self, denoiser: nn.Module, configs: Sequence[Any], weaken: Weaken | None = None) -> None:
        self.denoiser = denoiser
        self._flag = _Flag()
        found = (pair for config in configs for pair in (weaken or skipped_layers)(denoiser, config))
        self._pairs = list(found)
        self._put: list[tuple[nn.Module, Any, Any]] = []
        self._wrappers: list[Any] = []

    @property
    def on(self) -> bool:
        """Return whether the layers are weak."""
        return self._flag.on

    @on.setter
    def on(self, value: bool) -> None:
        self._flag.on = value

    def __del__(self) -> None:
        if hasattr(self, "_put"):
            self.take()

    def put(self) -> None:
        """Put the wrappers in, the same ones each time."""
        if self._put:
            return
        for k, (module, weak) in enumerate(self._pairs):
            before = vars(module).get("forward")
            if k == len(self._wrappers):
                self._wrappers.append(self._wrapped(module.forward, weak))
            module.forward = self._wrappers[k]
            self._put.append((module, self._wrappers[k], before))

    def take(self) -> None:
        """Take the wrappers out."""
        self.on = False
        for module, wrapper, before in reversed(self._put):
            if vars(module).get("forward") is not wrapper:
                continue  # Wrapped again by someone else meanwhile; off it changes nothing.
            del module.forward
            if before is not None:
                module.forward = before
        self._put.clear()

    @contextmanager
    def weak(self) -> Iterator[None]:
        """Weaken the layers inside a ``with`` block."""
        already = bool(self._put)
        self.put()
        self.on = True
        try:
            yield
        finally:
            self.on = False
            if not already:
                self.take()

    def _wrapped(self, strong: Any, weak: Any) -> Any:
        flag = self._flag  # And not the switch, which takes its wrappers out when nobody holds it.

        @functools.wraps(strong)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return weak(strong, args, kwargs) if flag.on else strong(*args, **kwargs)

        return forward


def skipped_layers(denoiser: nn.Module, config: Any) -> Iterator[tuple[nn.Module, Weak]]:
    """Return what diffusers' ``LayerSkipConfig`` says to skip, with what a layer gives instead.

    Attention scores are skipped for any processor: diffusers looks the processor up among those that it knows, which
    Wan's default is not, though skipping the scores takes nothing from there.

    Raises:
        ValueError: as :func:`self_attention`.
    """
    if config.skip_attention_scores:
        if config.skip_attention or not math.isclose(config.dropout, 1.0):
            raise ValueError("skip_attention_scores: goes without skip_attention and dropout")
        for module in self_attention(denoiser, config):
            yield module, _without_scores
    for block in _blocks(denoiser, config):
        if config.skip_attention and config.skip_ff:
            yield block, _dropped(config.dropout, _inputs_of_block(block))
            continue
        for module in block.modules():
            attends = isinstance(module, Attention | AttentionModuleMixin)
            if config.skip_attention and attends and not getattr(module, "is_cross_attention", False):
                yield module, _dropped(config.dropout, _unattended(module))
            elif config.skip_ff and isinstance(module, _FEEDFORWARD_CLASSES):
                yield module, _dropped(config.dropout, _first_input)


def _without_scores(strong: Any, args: Any, kwargs: Any) -> Any:
    with AttentionScoreSkipFunctionMode():
        return strong(*args, **kwargs)


def _dropped(dropout: float, instead: Any) -> Weak:
    """Something else than a layer's output, or the output with some of it dropped."""
    if math.isclose(dropout, 1.0):
        return lambda strong, args, kwargs: instead(*args, **kwargs)
    return lambda strong, args, kwargs: functional.dropout(strong(*args, **kwargs), p=dropout)


def _unattended(module: nn.Module) -> Any:
    """Return what a skipped attention gives: by diffusers' list of processors, else its input."""
    try:
        known = AttentionProcessorRegistry.get(type(module.processor)).skip_processor_output_fn
    except ValueError:
        return _first_input
    return functools.partial(known, module)


def _first_input(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))


def _inputs_of_block(block: nn.Module) -> Any:
    """The inputs that a skipped block hands on, in the order of its outputs."""
    known = TransformerBlockRegistry.get(type(unwrap_module(block)))
    names = [known.hidden_states_argument_name]
    if known.return_encoder_hidden_states_index is not None:
        names.insert(known.return_encoder_hidden_states_index, known.encoder_hidden_states_argument_name)
    places = list(inspect.signature(type(block).forward).parameters)[1:]
    at = [places.index(name) for name in names]

    def inputs(*args: Any, **kwargs: Any) -> Any:
        values = [kwargs[name] if name in kwargs else args[i] for name, i in zip(names, at, strict=True)]
        return values[0] if len(values) == 1 else tuple(values)

    return inputs
