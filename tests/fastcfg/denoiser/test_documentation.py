"""The page about the denoiser: its code runs."""

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "denoiser.md"


def test_the_page_s_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 5
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    names = runpy.run_path(str(script))
    assert names["guided"].shape == (2, 4, 8, 8) and names["batch"].ids == ("b",)
    assert "passes run" in capsys.readouterr().out
