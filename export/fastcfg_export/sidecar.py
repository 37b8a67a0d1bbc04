"""Sidecars of plans, ``NAME.plan.json``, which decide whether a plan is still valid."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcfg.files import write_atomically

from .errors import SidecarError
from .files import sha256_of
from .signature import Axis, Signature

__all__ = ["FORMAT", "Profile", "Sidecar", "profile_shapes", "sidecar_path"]

FORMAT = 2

Profile = Mapping[str, Axis]
"""Sizes that a plan is built for, by axis."""


@dataclass(frozen=True)
class Sidecar:
    """All that a plan depends on.

    Attributes:
        onnx: file name of the graph; sources: SHA-256 of it and of its weights' files, by name.
        plan_sha256, plan_bytes: of the plan.
        runtime, runtime_version: the library that built it, and the only one that can read it.
        capabilities: compute capabilities it was built for.
        profiles: sizes, by axis.
        signature: the graph's.
        fastcfg: version that built it; seconds, peak_bytes: what the build took.
    """

    onnx: str
    sources: Mapping[str, str]
    plan_sha256: str
    plan_bytes: int
    runtime: str
    runtime_version: str
    capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    signature: Signature
    fastcfg: str
    seconds: float = 0.0
    peak_bytes: int = 0

    def write(self, plan: Path) -> Path:
        """Write ``PLAN.json`` beside the plan, atomically, with a digest of what it says."""
        path = sidecar_path(plan)
        data = {"format": FORMAT, **dataclasses.asdict(self)}
        write_atomically(path, json.dumps({**data, "sha256": _digest(data)}, indent=2, sort_keys=True))
        return path

    @staticmethod
    def read(plan: Path) -> Sidecar:
        """The sidecar of a plan, not yet compared with it.

        Raises:
            SidecarError: if it is missing, damaged, or of another format.
        """
        path = sidecar_path(plan)
        if not path.is_file():
            raise SidecarError(f"plan: {plan} has no {path.name} beside it, so nothing says what it was built from")
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format is not {FORMAT}")
            if data.pop("sha256") != _digest(data):
                raise ValueError("it is not what was written, by its SHA-256")
            del data["format"]
            data["capabilities"] = tuple(data["capabilities"])
            data["profiles"] = tuple({k: Axis(**v) for k, v in profile.items()} for profile in data["profiles"])
            data["signature"] = Signature.from_dict(data["signature"])
            return Sidecar(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SidecarError(f"plan: {path.name} is damaged ({type(error).__name__}: {error})") from None

    def check_plan(self, plan: Path) -> None:
        """Compare the plan's bytes with what was written here.

        Raises:
            SidecarError: if it is missing, cut short or changed.
        """
        if not plan.is_file():
            raise SidecarError(f"plan: there is none at {plan}")
        if (size := plan.stat().st_size) != self.plan_bytes:
            raise SidecarError(
                f"plan: {plan.name} has {size} bytes, not the {self.plan_bytes} of its sidecar; build it"
            )
        if sha256_of(plan) != self.plan_sha256:
            raise SidecarError(f"plan: {plan.name} is not what its sidecar describes (another SHA-256); build it again")

    def changes(self, wanted: Mapping[str, Any]) -> list[str]:
        """Return what differs from a request, in words; empty if the plan serves it.

        Args:
            wanted: some of this object's fields.
        """
        reasons = []
        for name, value in wanted.items():
            old = getattr(self, name)
            if old == value:
                continue
            if name == "sources":
                changed = sorted(k for k in {*old, *value} if old.get(k) != value.get(k))
                reasons.append(f"{', '.join(changed)} changed")
            elif name == "profiles":
                reasons.append("the profiles differ")
            else:
                reasons.append(f"{name.replace('_', ' ')}: built with {_text(old)}, wanted {_text(value)}")
        return reasons


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def sidecar_path(plan: Path) -> Path:
    """``NAME.plan.json`` for ``NAME.plan``."""
    return plan.with_name(plan.name + ".json")


def profile_shapes(
    signature: Signature, profile: Profile
) -> dict[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]:
    """Lowest, usual and highest shape of every input."""
    sizes = [{name: getattr(axis, bound) for name, axis in profile.items()} for bound in ("low", "usual", "high")]
    return {spec.name: (spec.shape(sizes[0]), spec.shape(sizes[1]), spec.shape(sizes[2])) for spec in signature.inputs}
