"""ComfyUI's protocol stands in for it in every test here."""

from __future__ import annotations

import pytest

from . import protocol


@pytest.fixture(autouse=True)
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol.install_fake(monkeypatch)
