"""The troubleshooting page quotes what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUOTED = re.findall(r"^\*\*`+ ?(.*?)`+\*\*", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.M)


def texts() -> str:
    """All string literals of the packages, joined as the compiler joins them, with gaps where values go."""
    found = []
    for folder in ("fastcfg", "kernels", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (n.value if isinstance(n, ast.Constant) else "\0" for n in node.values)
                    found.append("".join(map(str, parts)))
    return "\n".join(found)


ALL = texts()


def test_the_page_is_read() -> None:
    assert len(QUOTED) >= 12


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_code_says_it(quoted: str) -> None:
    assert quoted.strip() in ALL
