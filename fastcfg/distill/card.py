"""Cards of students: the metadata of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..validate import check_choice
from ..version import __version__
from .embedding import Convention
from .lora import LoraConfig

__all__ = ["Card", "Mode"]

FORMAT = 1

Mode = Literal["full", "lora", "embedding"]


@dataclass(frozen=True)
class Card:
    """The card of a student, as its file has it.

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
