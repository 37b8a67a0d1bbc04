"""docs/stats.md: its table is complete, and its first example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastcfg_kernels import STATS

PAGE = (Path(__file__).parents[2] / "docs" / "stats.md").read_text()


def test_every_stat_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)`", PAGE, re.M) == list(STATS)


def test_the_example_runs() -> None:
    names: dict[str, Any] = {}
    exec(compile(re.findall(r"```python\n(.*?)```", PAGE, re.S)[0], "docs/stats.md", "exec"), names)
    ratio, cosine, product = names["stats"].unbind(1)
    lengths = [names[name].flatten(1).norm(dim=1) for name in ("uncond", "cond")]
    assert (abs(product / lengths[0] / lengths[1] - cosine) < 1e-5).all() and (ratio > 1).all()
