"""The oldest torch that is supported, checked where pip must not be asked to."""

from __future__ import annotations

__all__ = ["OLDEST_TORCH", "check_torch"]

OLDEST_TORCH = (2, 8)


def check_torch(version: str) -> None:
    """Raise an ImportError with the remedy for a torch that is too old.

    The metadata has no lower bound: pip would fulfil it by another build of torch than the one that a host (ComfyUI,
    a serving engine) came with.
    """
    found = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"fastcfg needs torch >= {oldest}, and this environment has {version}; upgrade torch as your host "
            f"(ComfyUI, diffusers, an engine) describes it, or pip install 'torch>={oldest}'"
        )
