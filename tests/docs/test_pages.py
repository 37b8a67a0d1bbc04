"""Every Python block of the pages for readers runs as printed, in its page's order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["tutorial.md", "coming-from.md", "concepts.md", "numerics.md", "environment.md", "index.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_printed(page: str) -> None:
    names: dict[str, object] = {"__name__": f"docs.{page}"}
    found = blocks(page)
    assert found
    for number, block in enumerate(found, 1):
        exec(compile(block, f"docs/{page}, block {number}", "exec"), names)
