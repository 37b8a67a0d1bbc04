"""Low-rank adapters of a network, through peft: added, taken off and merged in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..validate import number

__all__ = ["Lora", "LoraConfig"]

_ADAPTER = "fastcfg"


@dataclass(frozen=True)
class LoraConfig:
    """Size and place of an adapter.

    Args:
        rank: of each low-rank product.
        alpha: the product is scaled by ``alpha / rank``; None is ``rank``.
        targets: names of the modules, or their last parts (``to_q``); empty for every linear layer and convolution.
        full_at: the guidance scale at which the adapter has its full :meth:`strength`. None: at every scale, and so
            is it for a teacher that is not its own conditional pass at scale 1 (a negative prompt of its own scale).

    Raises:
        ValueError: naming the argument.

    Source: Hu et al., 2106.09685.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    full_at: float | None = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank: expected a positive integer, got {self.rank!r}")
        if self.full_at is not None and number("full_at", self.full_at) == 1.0:
            raise ValueError("full_at: expected a scale other than 1, at which a student is its teacher")
        object.__setattr__(self, "targets", tuple(self.targets))

    def strength(self, scale: Tensor) -> Tensor:
        """Return what the adapter counts at guidance scales ``[B]``.

        ``sqrt((s - 1) / (full_at - 1))``, float32 ``[B]``.

        None at s = 1, where the student is then its teacher's conditional pass to the bit, and what training does at
        the larger scales costs the small ones little. Below 1 it is negative.
        """
        if self.full_at is None:
            return torch.ones_like(scale, dtype=torch.float32)
        away = scale.float() - 1.0
        return away.sign() * (away.abs() / abs(self.full_at - 1.0)).sqrt()


class Lora:
    """An adapter on a network, zero at first.

    With a ``full_at``, :meth:`follow` comes before each pass.

    Args:
        network: changed in place; its own weights stay as they are.
        config: size and place.
        seed: of the random half of each product.

    Raises:
        ImportError: peft is not installed.
        ValueError: no module has one of the targets' names.
    """

    def __init__(self, network: nn.Module, config: LoraConfig, seed: int = 0) -> None:
        try:
            import peft
        except ImportError as error:
            raise ImportError(f"adapters need peft ({error}): pip install 'fastcfg-diffusion[distill]'") from error
        names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if config.targets:
            wanted = tuple(f".{target}" for target in config.targets)
            names = [name for name in names if f".{name}".endswith(wanted)]
            if not names:
                raise ValueError(f"targets: no linear layer or convolution is called {', '.join(config.targets)}")
        self.network = network
        self.config = config
        self._strength: Tensor | None = None
        self._hooks: list[Any] = []
        self._scale_layer: nn.Linear | None = None
        self._gradients = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        alpha = float(config.rank) if config.alpha is None else config.alpha
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._tuner: Any = peft.LoraModel(
                network,
                peft.LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0),  # type: ignore[arg-type]
                _ADAPTER,
            )
        if config.full_at is not None:
            for name, module in network.named_modules():
                if name.endswith(f".lora_B.{_ADAPTER}"):
                    self._hooks.append(module.register_forward_hook(self._weigh))

    def weigh_scale_input(self, layer: nn.Linear) -> None:
        """Let the last layer of the scale input have the adapter's strength too."""
        if self.config.full_at is not None:
            self._scale_layer = layer
            self._hooks.append(layer.register_forward_hook(self._weigh))

    def follow(self, scale: Tensor) -> None:
        """Take the strength of guidance scales ``[B]`` in the passes to come."""
        self._strength = None if self.config.full_at is None else self.config.strength(scale)

    def _weigh(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._strength is None:
            raise RuntimeError("the adapter's strength follows the scale: call the student, not its network")
        strength = self._strength.to(output)
        if output.shape[0] != strength.shape[0]:  # The samples' frames or tokens are along dim 0.
            strength = strength.repeat_interleave(output.shape[0] // strength.shape[0])
        return output * strength.view(-1, *[1] * (output.dim() - 1))

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights, by their names in the network."""
        return {name: value for name, value in self.network.named_parameters() if f".{_ADAPTER}." in name}

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights under the names that peft and diffusers use in files."""
        return {_file_name(name): value.detach() for name, value in self.parameters().items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Replace the adapter's weights.

        Raises:
            ValueError: if the names are not those of :meth:`state_dict`.
        """
        own = {_file_name(name): value for name, value in self.parameters().items()}
        _copy_into(own, tensors)

    def unload(self) -> None:
        """Take the adapter off: the network is what it was, to the bit."""
        self._tuner.unload()
        self._leave()

    def merge(self, scale: float | None = None) -> None:
        """Add the products to the weights and take the adapter off. It can't be undone.

        Args:
            scale: whose strength they are added with, where it follows the scale.
        """
        if self.config.full_at is not None:
            strength = float(self.config.strength(torch.tensor([scale]))[0])
            for module in self.network.modules():
                if _ADAPTER in (scaling := getattr(module, "scaling", {})):
                    scaling[_ADAPTER] *= strength
            if self._scale_layer is not None:
                with torch.no_grad():
                    for parameter in self._scale_layer.parameters():
                        parameter.mul_(strength)
        self._tuner.merge_and_unload()
        self._leave()

    def _leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if hasattr(self.network, "peft_config"):
            del self.network.peft_config
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self._gradients.get(name, False))


def _file_name(name: str) -> str:
    return name.replace(f".{_ADAPTER}.", ".")


def _copy_into(own: Any, tensors: dict[str, Tensor]) -> None:
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unknown:
        raise ValueError(f"weights: do not fit the network; missing {missing[:3]}, unknown {unknown[:3]}")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(
                    f"weights: {name} has the shape {list(tensors[name].shape)}, expected {list(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def copy_into(network: nn.Module, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Replace a network's parameters and buffers, or those under a prefix.

    Raises:
        ValueError: if names or shapes differ.
    """
    own: Sequence[str] = [name for name in network.state_dict() if name.startswith(prefix)]
    state = network.state_dict(keep_vars=True)
    _copy_into({name: state[name] for name in own}, tensors)
