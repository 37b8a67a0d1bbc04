"""The scripts of docs/examples run as they stand, and what they print is what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "examples"
FLOAT = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"


def printed(name: str, folder: Path, *launcher: str) -> str:
    """A script's output; it runs where it has nothing but the installed package."""
    command = [sys.executable, *launcher, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers of all lines like this."""
    found = re.findall(pattern, text)
    assert found, f"nothing like {pattern!r} in:\n{text}"
    return [float(number) for match in found for number in ([match] if isinstance(match, str) else match)]


def test_own_loop(tmp_path: Path) -> None:
    (difference,) = numbers(f"agree within {FLOAT}", printed("own_loop", tmp_path))
    assert difference < 1e-5


def test_schedules(tmp_path: Path) -> None:
    found = numbers(r": (\d+) passes, (\d+) saved, (\d+) of 10 right", printed("schedules", tmp_path))
    passes, saved, right = found[::3], found[1::3], found[2::3]
    assert [a + b for a, b in zip(passes, saved, strict=True)] == [40] * 4
    assert saved[0] == 0 and saved[1:] == [1, 10, 13], "from scale 1; half of the steps; two deltas of three"
    assert min(right) >= 9


def test_own_rule(tmp_path: Path) -> None:
    text = printed("own_rule", tmp_path)
    lengths = numbers(r"(0\.\d+)[,\]]", text.splitlines()[0])
    assert lengths == [0.75, 0.75] and "through JSON: True" in text and "def weigh" in text


def test_diffusers_classic(tmp_path: Path) -> None:
    text = printed("diffusers_classic", tmp_path)
    (difference,) = numbers(f"the pipeline's own: {FLOAT}", text)
    assert difference < 1e-4, "random weights at scale 7.5 make latents of some tens"
    assert "change it: True True" in text and "left behind: True" in text


def test_diffusers_modular(tmp_path: Path) -> None:
    text = printed("diffusers_modular", tmp_path)
    (difference,) = numbers(f"diffusers' own: {FLOAT}", text)
    assert difference < 1e-4 and "as before: True" in text
    assert re.findall(r"guider: (\w+) -> (\w+)", text) == [
        ("AdaptiveProjectedGuidance", "FusedAdaptiveProjectedGuidance"),
        ("AdaptiveProjectedGuidance", "RuleGuidance"),
    ]


def test_k_diffusion(tmp_path: Path) -> None:
    found = numbers(rf"mean {FLOAT} of a condition at 1, (\d+) passes", printed("k_diffusion", tmp_path))
    means, passes = found[::2], found[1::2]
    assert means[0] == pytest.approx(1, abs=0.1) and means[2] > 3 and means[1] > 3
    assert passes[:2] == [20, 40] and 20 < passes[2] < 40


def test_transformers_logits(tmp_path: Path) -> None:
    text = printed("transformers_logits", tmp_path)
    assert text.count("True") == 3 and "False" not in text


def test_export_onnx(tmp_path: Path) -> None:
    text = printed("export_onnx", tmp_path)
    (difference,) = numbers(f"after 5 steps: {FLOAT}", text)
    assert difference < 1e-3 and "sizes and scales: True" in text and "guidance_scale" in text


def test_student(tmp_path: Path) -> None:
    pattern = r"(\d+) passes instead of (\d+), (\d+)% from the teacher \((\d+)% without guidance\), (\d+) of 40 right"
    text = printed("student", tmp_path)
    found = numbers(pattern, text)
    for passes, teacher, error, without, right in zip(*(found[i::5] for i in range(5)), strict=True):
        assert 2 * passes == teacher and error < without and right >= 38


def test_serving_requests(tmp_path: Path) -> None:
    text = printed("serving_requests", tmp_path)
    assert text.count("to the bit: True") == 3 and "28 passes run, 2 saved" in text


def test_prometheus(tmp_path: Path) -> None:
    text = printed("prometheus", tmp_path)
    assert "the same bits as without: True" in text and 'passes_total{which="run"} 32.0' in text
    assert numbers(rf"delta_ratio_count {FLOAT}", text) == [16] and numbers(rf"limited_total {FLOAT}", text) == [16]
    (cosines,) = re.findall(r"first step: \[(.*)\]", text)
    assert all(-1 < float(cosine) < 1 for cosine in cosines.split(", "))


def test_training(tmp_path: Path) -> None:
    text = printed("training", tmp_path)
    (dropped,) = numbers(f"dropped {FLOAT}%", text)
    # 102,400 draws at 15 %: a standard deviation is 0.11 %.
    assert dropped == pytest.approx(15, abs=0.6)
    none, plain, guided = numbers(r"scale \d: (\d+)% in their quadrant", text)
    assert none < 40 < plain < guided, "a quarter by chance"


def test_parallel_passes(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    text = printed("parallel_passes", tmp_path, *launcher)
    assert sorted(re.findall(r"rank (\d): 10 calls instead of 20, same bits: True", text)) == ["0", "1"]


def test_every_example_is_tested_and_on_the_page() -> None:
    page, tests = (ROOT / "docs" / "examples.md").read_text(), Path(__file__).read_text()
    for script in FOLDER.glob("*.py"):
        assert f'--8<-- "docs/examples/{script.name}"' in page and f'printed("{script.stem}"' in tests, script.name
