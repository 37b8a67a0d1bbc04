"""Reports of made-up results, and a browser to read them in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from html_results import fill, hostile

from benchmarks.html import write_report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every kind."""
    return fill(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="session")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of :func:`folder`, compared with itself."""
    return write_report(folder, tmp_path_factory.mktemp("report") / "report.html", (folder, folder))


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of results whose texts attack the page."""
    where = tmp_path_factory.mktemp("attacked")
    return write_report(fill(where / "results", hostile), where / "report.html")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    quiet = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=quiet.split())
        yield opened
        opened.close()
