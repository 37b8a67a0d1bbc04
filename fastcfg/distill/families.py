"""The networks that can be distilled: how each is called, takes a scale input, and is built again from a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .embedding import Convention

__all__ = ["Family", "Network", "family_of", "register_family"]


def _tensor(result: Any) -> Tensor:
    """The prediction in what a network returned: itself, or the first of a tuple or of diffusers' output."""
    return result if isinstance(result, Tensor) else result[0]


class Family:
    """A kind of network. Subclass it and :func:`register_family` it for one of your own.

    The scale input is added in place and begins at zero: the network's output under the keyword of the convention is
    that of the network before, to the bit.
    """

    name = ""

    def handles(self, network: nn.Module) -> bool:
        """Return whether the network is of this family."""
        raise NotImplementedError

    def call(self, network: nn.Module, x: Tensor, t: Tensor | float, **arguments: Any) -> Tensor:
        """The prediction ``[B, ...]`` at ``t``, in the scheduler's unit; a number, 0-dim or ``[B]``."""
        return _tensor(network(x, t, **arguments))

    def add_scale_input(self, network: nn.Module, convention: Convention) -> None:
        """Add a scale input in place, zero-initialised, on the network's device and in its dtype.

        Raises:
            ValueError: if the network has one already, or the convention is none of the family's.
        """
        raise NotImplementedError

    def remove_scale_input(self, network: nn.Module) -> None:
        """Undo :meth:`add_scale_input`."""
        raise NotImplementedError

    def scale_module(self, network: nn.Module) -> str:
        """Name of the module that :meth:`add_scale_input` added."""
        raise NotImplementedError

    def feature_layer(self, network: nn.Module) -> nn.Linear:
        """The layer of the scale input that reads the embedding's features."""
        return self._scale_layers(network)[0]

    def output_layer(self, network: nn.Module) -> nn.Linear:
        """The layer of the scale input whose output goes into the network."""
        return self._scale_layers(network)[-1]

    def _scale_layers(self, network: nn.Module) -> list[nn.Linear]:
        module = network.get_submodule(self.scale_module(network))
        return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]

    def config(self, network: nn.Module) -> dict[str, Any]:
        """Return what :meth:`build` makes an equal network from, as JSON-serialisable data."""
        raise NotImplementedError

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A network with untrained weights."""
        raise NotImplementedError


class _Diffusers(Family):
    """Base of the families of diffusers' models."""

    class_name = ""

    def handles(self, network: nn.Module) -> bool:
        return any(
            kind.__name__ == self.class_name and kind.__module__.startswith("diffusers.")
            for kind in type(network).__mro__
        )

    def config(self, network: nn.Module) -> dict[str, Any]:
        return {key: value for key, value in network.config.items() if not key.startswith("_")}  # type: ignore[union-attr, operator]

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        try:
            import diffusers
        except ImportError as error:
            raise ImportError(
                f"the student is diffusers' {self.class_name}: pip install 'fastcfg-diffusion[diffusers]'"
            ) from error
        network: nn.Module = getattr(diffusers, self.class_name).from_config(dict(config))
        return network


class DiffusersUNet(_Diffusers):
    """diffusers' ``UNet2DConditionModel``: the LCM form, as ``time_cond_proj_dim`` and ``timestep_cond``."""

    name = "diffusers-unet"
    class_name = "UNet2DConditionModel"

    def add_scale_input(self, network: nn.Module, convention: Convention) -> None:
        if convention.form != "lcm":
            raise ValueError(f"form: UNet2DConditionModel takes its scale in the 'lcm' form, got {convention.form!r}")
        embedding: Any = network.time_embedding
        if embedding.cond_proj is not None:
            raise ValueError("network: takes a guidance scale already (time_cond_proj_dim)")
        weight = embedding.linear_1.weight
        embedding.cond_proj = nn.Linear(convention.dim, weight.shape[1], bias=False).to(weight)
        nn.init.zeros_(embedding.cond_proj.weight)
        network.register_to_config(time_cond_proj_dim=convention.dim)  # type: ignore[operator]

    def remove_scale_input(self, network: nn.Module) -> None:
        network.time_embedding.cond_proj = None  # type: ignore[union-attr]
        network.register_to_config(time_cond_proj_dim=None)  # type: ignore[operator]

    def scale_module(self, network: nn.Module) -> str:
        return "time_embedding.cond_proj"


class DiffusersFlux(_Diffusers):
    """diffusers' ``FluxTransformer2DModel``: the Flux form, as ``guidance_embeds`` and ``guidance``.

    The model takes t in [0, 1] where schedulers count to 1000; a call divides.
    """

    name = "diffusers-flux"
    class_name = "FluxTransformer2DModel"

    def call(self, network: nn.Module, x: Tensor, t: Tensor | float, **arguments: Any) -> Tensor:
        timestep = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        return _tensor(network(hidden_states=x, timestep=timestep / 1000, return_dict=False, **arguments))

    def add_scale_input(self, network: nn.Module, convention: Convention) -> None:
        from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings

        if (convention.form, convention.dim) != ("flux", 256):
            raise ValueError(
                "form, dim: FluxTransformer2DModel takes its scale in the 'flux' form with 256, "
                f"got {convention.form!r} with {convention.dim}"
            )
        plain: Any = network.time_text_embed
        if hasattr(plain, "guidance_embedder"):
            raise ValueError("network: takes a guidance scale already (guidance_embeds)")
        pooled = plain.text_embedder.linear_1.in_features
        guided: Any = CombinedTimestepGuidanceTextProjEmbeddings(network.inner_dim, pooled)  # type: ignore[no-untyped-call]
        # The weights stay where they are: the same modules under the same names.
        guided.time_proj, guided.timestep_embedder = plain.time_proj, plain.timestep_embedder
        guided.text_embedder = plain.text_embedder
        guided.guidance_embedder.to(plain.timestep_embedder.linear_1.weight)
        for parameter in guided.guidance_embedder.linear_2.parameters():
            nn.init.zeros_(parameter)
        network.time_text_embed = guided
        network.register_to_config(guidance_embeds=True)  # type: ignore[operator]

    def remove_scale_input(self, network: nn.Module) -> None:
        from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings

        guided: Any = network.time_text_embed
        pooled = guided.text_embedder.linear_1.in_features
        plain: Any = CombinedTimestepTextProjEmbeddings(network.inner_dim, pooled)  # type: ignore[no-untyped-call]
        plain.time_proj, plain.timestep_embedder = guided.time_proj, guided.timestep_embedder
        plain.text_embedder = guided.text_embedder
        network.time_text_embed = plain
        network.register_to_config(guidance_embeds=False)  # type: ignore[operator]

    def scale_module(self, network: nn.Module) -> str:
        return "time_text_embed.guidance_embedder"


_families: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a family known by its name; the last one registered is asked first."""
    if not family.name:
        raise ValueError("family: has no name")
    _families[family.name] = family
    return family


for _family in (DiffusersUNet(), DiffusersFlux()):
    register_family(_family)


def family_of(network: nn.Module) -> Family:
    """The family of a network.

    Raises:
        TypeError: if it is of none that is known.
    """
    for family in reversed(_families.values()):
        if family.handles(network):
            return family
    raise TypeError(
        f"network: {type(network).__name__} is of no known family ({', '.join(_families)}); "
        "subclass fastcfg.distill.Family and register_family() it"
    )


def family_named(name: str) -> Family:
    """The family of a file.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _families:
        raise ValueError(f"family: expected one of {sorted(_families)}, got {name!r}; register_family() it first")
    return _families[name]


class Network:
    """A network as the callable ``model(x, t, **condition)`` that samplers and :class:`GuidedDenoiser` take.

    Attributes:
        network: the module.
        family: how it is called.
    """

    def __init__(self, network: nn.Module, family: Family | None = None) -> None:
        self.network = network
        self.family = family or family_of(network)

    def __call__(self, x: Tensor, t: Tensor | float, **arguments: Any) -> Tensor:
        """The prediction ``[B, ...]``."""
        return self.family.call(self.network, x, t, **arguments)


def copy_network(network: nn.Module) -> nn.Module:
    """A copy that shares no weights, in evaluation mode and without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)
