"""Modules under the paths that they had before: an import finds them, with a warning that names the new path."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["keep_former_modules"]


class _FormerModules(MetaPathFinder, Loader):
    def __init__(self, moved: Mapping[str, str]) -> None:
        self._moved = moved

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._new(fullname) else None

    def _new(self, former: str) -> str | None:
        """Return the new path of a module, or of a module in a package that moved."""
        package, _, name = former.rpartition(".")
        if former in self._moved:
            return self._moved[former]
        return f"{self._moved[package]}.{name}" if package in self._moved else None

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__
        new = self._new(former)
        assert new is not None
        warnings.warn(f"{former} is now {new}", DeprecationWarning, stacklevel=2)
        # Importlib returns what stands here, so that both paths are one module.
        sys.modules[former] = importlib.import_module(new)


def keep_former_modules(moved: Mapping[str, str]) -> None:
    """Let ``import`` find modules by former paths.

    Args:
        moved: new path of each former module, or of a package with all its modules.
    """
    # First, for a package that moved would find its modules a second time by their former paths.
    sys.meta_path.insert(0, _FormerModules(moved))
