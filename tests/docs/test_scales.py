"""The scales that the docs say diffusers' pipelines start with are those of the installed diffusers."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import diffusers
import pytest

import fastcfg

TEXT = (Path(__file__).parents[2] / "docs" / "scales.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+Pipeline)` \| `(\w+)` \| ([\d.]+) \|(?: (.*) \|)?$", TEXT, re.M)


def test_the_table_is_read() -> None:
    assert len(ROWS) == 34


@pytest.mark.parametrize(("name", "argument", "default", "rule"), ROWS, ids=[row[0] for row in ROWS])
def test_defaults_are_the_pipelines_own(name: str, argument: str, default: str, rule: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert float(parameters[argument].default) == float(default)
    if code := re.match(r"`(.*)`", rule):
        made = eval(code[1], vars(fastcfg).copy())
        plain = getattr(made, "rule", made)
        assert plain.scale == float(default)
        if name.endswith("InstructPix2PixPipeline"):
            assert plain.image_scale == parameters["image_guidance_scale"].default
