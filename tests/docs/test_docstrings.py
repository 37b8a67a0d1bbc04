"""Docstrings begin with what a thing is or does, not with a question word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUESTION = re.compile(r"(What|How|Whether|Where|Which|From|Of|In the place)\b")
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


def first_lines() -> list[tuple[str, str]]:
    found = []
    for folder in ("fastcfg", "kernels", "export", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                    found.append((f"{path.relative_to(ROOT)}: {getattr(node, 'name', '')}", text.splitlines()[0]))
    return found


def test_first_lines_are_statements() -> None:
    lines = first_lines()
    asked = [f"{where}: {line}" for where, line in lines if QUESTION.match(line)]
    assert len(lines) > 1500 and len(asked) < len(lines) / 100, asked
