"""A distilled network as a denoiser, and its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..combination import check_choice, number
from ..conditions import Conditions
from ..files import load_tensors, save_tensors
from ..rules import Rule
from ..version import __version__
from .embedding import Convention
from .families import Family, family_named, family_of
from .lora import Lora, LoraConfig, copy_into
from .task import arguments_of, fingerprint

__all__ = ["Card", "ScaledNetwork", "Student", "load_student", "save_student"]

FORMAT = 1

Mode = Literal["full", "lora", "embedding"]


@dataclass(frozen=True)
class Card:
    """What a student is, as its file says.

    Attributes:
        family, network: name of the network's family and its configuration, scale input included.
        mode: ``"full"`` (all weights are the student's own), ``"lora"`` (an adapter and the scale input) or
            ``"embedding"`` (the scale input alone).
        convention: how the network takes its scale.
        rule: the teacher's rule, as JSON data.
        low, high: the scales that it was trained on; 1 was always among them.
        condition: which of the rule's conditions the student takes.
        teacher: :func:`fingerprint` of the teacher's network.
        lora: the adapter's size and place.
        training: the configuration of the distillation.
        version: of fastcfg.
    """

    family: str
    network: dict[str, Any]
    mode: Mode
    convention: Convention
    rule: dict[str, Any]
    low: float
    high: float
    condition: str
    teacher: str
    lora: LoraConfig | None = None
    training: dict[str, Any] | None = None
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable data."""
        return {"format": FORMAT, **asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Card:
        """The card that :meth:`to_dict` described.

        Raises:
            ValueError: if it is none, or of a later format.
        """
        fields = dict(data)
        if (found := fields.pop("format", None)) != FORMAT:
            raise ValueError(f"format: expected a student of format {FORMAT}, got {found!r}")
        check_choice("mode", fields.get("mode"), ("full", "lora", "embedding"))
        lora = fields.get("lora")
        try:
            fields["convention"] = Convention(**fields["convention"])
            fields["lora"] = None if lora is None else LoraConfig(**lora)
            return Card(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"card: not that of a student: {error}") from error


class ScaledNetwork(nn.Module):
    """A student as ``forward(x, t, scale, **condition)`` with scales ``[B]``: the form that exporters take.

    The scale's embedding is inside.
    """

    def __init__(self, network: nn.Module, family: Family, convention: Convention) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.convention = convention

    def forward(self, x: Tensor, t: Tensor, scale: Tensor, **condition: Any) -> Tensor:
        """The guided prediction ``[B, ...]``."""
        return self.family.call(self.network, x, t, **condition, **self.convention.arguments(scale, x.dtype))


class Student:
    """A network that predicts what its teacher's guidance would, in one pass.

    It is called as a :class:`fastcfg.GuidedDenoiser` is (``conditions`` by name, of which it takes one), and as a plain
    model ``student(x, t, **condition)``, so that it fits samplers and adapters of both kinds.

    Args:
        network: with its scale input.
        card: what it is.
        scale: guidance scale where a call gives none.
        lora: the adapter on it, if it has one.

    Attributes:
        passes_run, passes_saved: passes that were run, and those that the teacher's rule would have run besides.
    """

    def __init__(self, network: nn.Module, card: Card, scale: float | None = None, *, lora: Lora | None = None) -> None:
        self.network = network
        self.card = card
        self.family = family_of(network)
        self.rule = Rule.from_dict(card.rule)
        self.lora = lora
        self.passes_run = 0
        self.passes_saved = 0
        self._scale = min(max(7.5, card.low), card.high)
        if scale is not None:
            self.scale = scale

    @property
    def scale(self) -> float:
        """Guidance scale of calls that give none."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = self._checked(value)

    @property
    def embedded_scale(self) -> float:
        """The scale that the network takes itself: guiding it by a rule would guide twice."""
        return self._scale

    def _checked(self, value: Any) -> float:
        scale = number("scale", value)
        if scale != 1.0 and not self.card.low <= scale <= self.card.high:
            warnings.warn(
                f"scale {scale:g} is outside {self.card.low:g} ... {self.card.high:g}, which the student was trained "
                "on; its prediction is an extrapolation",
                UserWarning,
                stacklevel=3,
            )
        return scale

    def reset(self) -> None:
        """Set the pass counters to zero."""
        self.passes_run = self.passes_saved = 0

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        *,
        conditions: Conditions | None = None,
        scale: float | Tensor | None = None,
        params: Mapping[str, Any] | None = None,
        step: int | None = None,
        num_steps: int | None = None,
        sigma: float | None = None,
        state: Any = None,
        prediction: Any = None,
        **condition: Any,
    ) -> Tensor:
        """The guided prediction of one step, in one pass.

        Args:
            x: the noisy latent ``[B, ...]``.
            t: time as the scheduler has it: a number, a 0-dim tensor, or ``[B]``.
            conditions: the network's arguments by the names of the teacher's predictions; the one that the student
                takes has to be there, others are not looked at. Or give its arguments themselves, as ``condition``.
            scale: guidance scale ``s`` (not ``w = s - 1``), a number or ``[B]``; a number outside the trained range
                warns.
            params: ``{"scale": ...}``, another way to give it.
            step, num_steps, sigma, state, prediction: taken for the sake of the shared protocol. The teacher's
                schedules and its state are part of the student.

        Returns:
            ``[B, ...]``.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if conditions is not None:
            if condition:
                raise ValueError(f"conditions: give them or arguments of their own, not both (got {sorted(condition)})")
            if self.card.condition not in conditions:
                raise ValueError(f"conditions: expected one called {self.card.condition!r}, got {sorted(conditions)}")
            condition = arguments_of(conditions[self.card.condition])
        if params:
            if unknown := sorted(set(params) - {"scale"}):
                raise ValueError(f"params: a student takes 'scale' alone, got {unknown}")
            scale = params["scale"]
        self.passes_run += 1
        self.passes_saved += len(self.rule.conditions) - 1
        arguments = self.card.convention.arguments(self._scales(scale, x), x.dtype)
        return self.family.call(self.network, x, t, **condition, **arguments)

    def _scales(self, scale: float | Tensor | None, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if isinstance(scale, Tensor):
            if scale.shape not in ((), (1,), (batch,)) or not scale.is_floating_point():
                raise ValueError(f"scale: expected a floating tensor [{batch}], got {scale.dtype} {list(scale.shape)}")
            return scale.to(device=x.device, dtype=torch.float32).expand(batch)
        value = self._scale if scale is None else self._checked(scale)
        return torch.full((batch,), value, device=x.device)

    def module(self) -> ScaledNetwork:
        """The network with its embedding of the scale, for exporters; merge an adapter first."""
        return ScaledNetwork(self.network, self.family, self.card.convention).eval()

    def merge(self) -> None:
        """Fold the adapter into the weights, so that nothing but the scale input is left of it.

        Raises:
            ValueError: if there is none.
        """
        if self.lora is None:
            raise ValueError("mode: the student has no adapter to merge")
        self.lora.merge()
        self.lora = None

    def unload(self) -> nn.Module:
        """Take adapter and scale input off the teacher's network, which is then what it was, to the bit.

        Returns:
            The teacher's network.

        Raises:
            ValueError: for a student of its own weights, or a merged one.
        """
        if self.card.mode == "full" or (self.card.mode == "lora" and self.lora is None):
            what = "has weights of its own" if self.card.mode == "full" else "was merged into the weights"
            raise ValueError(f"mode: the student {what}; there is no teacher to restore")
        if self.lora is not None:
            self.lora.unload()
            self.lora = None
        self.family.remove_scale_input(self.network)
        return self.network


def student_tensors(network: nn.Module, card: Card, lora: Lora | None) -> dict[str, Tensor]:
    """What makes a student besides its teacher, by the names in its file."""
    if card.mode == "full":
        return dict(network.state_dict())
    prefix = family_named(card.family).scale_module(network) + "."
    own = {name: value for name, value in network.state_dict().items() if name.startswith(prefix)}
    return own | (lora.state_dict() if lora is not None else {})


def save_student(path: Path, student: Student, dtype: torch.dtype | None = None) -> None:
    """Writes a student: all weights, or its adapter and scale input alone.

    Args:
        path: the file, safetensors with the card as JSON in its metadata.
        dtype: of the floating weights in the file; None leaves them.

    Raises:
        ValueError: for an adapter that was merged.
    """
    if student.card.mode == "lora" and student.lora is None:
        raise ValueError("mode: the adapter was merged into the weights; save the student before")
    tensors = {
        name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
        for name, value in student_tensors(student.network, student.card, student.lora).items()
    }
    save_tensors(path, tensors, {"student": student.card.to_dict()})


def load_student(
    path: Path,
    teacher: nn.Module | None = None,
    *,
    scale: float | None = None,
    device: torch.device | str | None = None,
    check: bool = True,
) -> Student:
    """Reads what :func:`save_student` wrote.

    Args:
        teacher: the teacher's network, needed for an adapter, which is put on it in place; :meth:`Student.unload`
            takes it off again.
        scale: guidance scale of calls that give none.
        device: of a student of its own weights; an adapter goes to its teacher's.
        check: refuse a teacher whose weights (dtype included) are not those of the distillation.

    Raises:
        FileNotFoundError, ImportError: something is missing.
        ValueError: the file is damaged or holds no student, or the teacher is another.
    """
    tensors, metadata = load_tensors(path)
    if "student" not in metadata:
        raise ValueError(f"{path} holds no student (its metadata has {sorted(metadata)})")
    card = Card.from_dict(metadata["student"])
    family = family_named(card.family)
    if card.mode == "full":
        network = family.build(card.network)
        copy_into(network, tensors)
        return Student(network.eval().requires_grad_(False).to(device or "cpu"), card, scale)
    if teacher is None:
        raise ValueError(f"teacher: {path} holds a student of mode {card.mode!r}, which needs its teacher's network")
    if check and (found := fingerprint(teacher)) != card.teacher:
        raise ValueError(
            f"teacher: its weights are not those that the student was distilled from (sha256 {found[:12]}, expected "
            f"{card.teacher[:12]}); another dtype counts too; check=False takes it all the same"
        )
    lora = attach(teacher, family, card.convention, card.lora)
    prefix = family.scale_module(teacher) + "."
    try:
        copy_into(teacher, {name: value for name, value in tensors.items() if name.startswith(prefix)}, prefix)
        if lora is not None:
            lora.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(prefix)})
    except ValueError:
        if lora is not None:
            lora.unload()
        family.remove_scale_input(teacher)
        raise
    teacher.requires_grad_(False)
    return Student(teacher.eval(), card, scale, lora=lora)


def attach(
    network: nn.Module, family: Family, convention: Convention, config: LoraConfig | None, seed: int = 0
) -> Lora | None:
    """Give a network a scale input and, with a configuration, an adapter; both in place and zero at first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The adapter comes first: the scale input is trained as it is, and gets none.
        lora = Lora(network, config, seed) if config is not None else None
        try:
            family.add_scale_input(network, convention)
        except ValueError:
            if lora is not None:
                lora.unload()
            raise
    return lora
