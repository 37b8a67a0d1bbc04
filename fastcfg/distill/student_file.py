"""A student's file, and how its scale input and adapter get onto a network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import load_tensors, save_tensors
from .card import Card
from .embedding import Convention
from .families import Family, family_named
from .lora import Lora, LoraConfig, copy_into
from .student import Student
from .task import fingerprint

__all__ = ["attach", "load_student", "save_student"]


def _tensors(network: nn.Module, card: Card, lora: Lora | None) -> dict[str, Tensor]:
    """Return what makes a student besides its teacher, by the names in its file."""
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
        for name, value in _tensors(student.network, student.card, student.lora).items()
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
        if lora is not None:
            lora.weigh_scale_input(family.output_layer(network))
    return lora
