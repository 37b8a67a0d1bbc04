"""The demo itself: what it writes, and that guidance does what it is for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastcfg
from fastcfg.demo import run_demo
from fastcfg.demo.checkpoint import SHIPPED, load_denoiser
from fastcfg.demo.classifier import load_classifier
from fastcfg.demo.report import DemoResult, to_json, to_markdown
from fastcfg.demo.rows import NUM_SAMPLED_ROWS
from fastcfg.demo.run import measure_accuracy, shipped_student
from fastcfg.demo.sample import draw_noise, labels, sample
from fastcfg.demo.stock import compare, fused_guidance, stock_guidance


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return run_demo(output, device="cpu", steps=4, samples_per_digit=1, scales=(1.0, 3.0), progress=False)


def test_demo_writes_its_files_and_nothing_else(result: DemoResult) -> None:
    written = sorted(file.name for file in result.data.parent.iterdir())
    assert written == ["result.json", "samples.png", "table.md"]
    assert result.picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert result.picture.stat().st_size > 50_000


def test_demo_json_has_the_numbers(result: DemoResult) -> None:
    data = json.loads(result.data.read_text())
    assert data["steps"] == 4
    assert [row["scale"] for row in data["accuracy"]] == [1.0, 3.0]
    assert all(row["samples"] == 10 and 0 <= row["digit"] <= 1 for row in data["accuracy"])
    assert [row["guidance"] for row in data["timing"]] == ["CFG 3", "CFG 7.5 + rescale 0.7"]
    assert all(row["stock_us"] > 0 and row["fused_us"] > 0 for row in data["timing"])
    assert all(row["largest_difference"] < 1e-3 for row in data["timing"])
    assert len(data["rows"]) == NUM_SAMPLED_ROWS + 2  # Real images, and the student.
    labels = [row["label"] for row in data["rows"]]
    assert "% from CFG" in data["rows"][labels.index("… its student")]["note"]
    assert data["real_digit"] >= 0.96
    assert data["denoiser"]["training"]["steps"] >= 1000
    assert data["versions"]["torch"]
    assert data == json.loads(json.dumps(to_json(result, data["denoiser"], seed=0, steps=4)))


def test_demo_goes_without_a_student(tmp_path: Path) -> None:
    assert shipped_student(tmp_path, torch.device("cpu")) is None


def test_demo_markdown_has_the_numbers(result: DemoResult) -> None:
    text = result.table.read_text()
    assert text == to_markdown(result)
    changed = replace(result, accuracy=(replace(result.accuracy[0], digit=0.1234), *result.accuracy[1:]))
    assert "| 1 | 12.3 |" in to_markdown(changed)


def test_demo_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcfg.demo import run

    def fail(*args: object) -> bytes:
        raise RuntimeError("no picture")

    monkeypatch.setattr(run, "draw", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        run_demo(tmp_path, device="cpu", steps=1, samples_per_digit=1, scales=(1.0,), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_command_trains_where_it_writes_and_prints_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: DemoResult
) -> None:
    from fastcfg.demo import run

    calls: list[tuple[str, Path, dict[str, object]]] = []
    monkeypatch.setattr(run, "train_demo", lambda path, **kwargs: calls.append(("train", path, kwargs)))

    def run_instead(path: Path, **kwargs: object) -> DemoResult:
        calls.append(("run", path, kwargs))
        return result

    monkeypatch.setattr(run, "run_demo", run_instead)
    run.command(tmp_path, train=True, train_steps=7, seed=3)
    (_, trained_at, training), (_, ran_at, running) = calls
    assert trained_at == running["checkpoints"] == tmp_path / "checkpoints"
    assert (training["steps"], training["resume"], ran_at, running["seed"]) == (7, True, tmp_path, 3)
    printed = capsys.readouterr().out
    assert "CFG 7.5 + rescale 0.7" in printed
    assert "samples.png" in printed

    calls.clear()
    run.command(tmp_path)
    assert [(name, kwargs["checkpoints"]) for name, _, kwargs in calls] == [("run", SHIPPED)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be 1-1000, got 0"),
        ({"steps": 1001}, "steps must be 1-1000, got 1001"),
        ({"samples_per_digit": 0}, "samples_per_digit must be at least 1"),
        ({"scales": ()}, "scales must not be empty"),
        ({"device": "nowhere"}, "device must be 'cpu' or 'cuda'"),
        ({"device": "cuda:99"}, "'cuda:99' is not available"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_demo(tmp_path / "out", progress=False, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_guidance_makes_digits_more_recognisable() -> None:
    model, _ = load_denoiser()
    classifier, _ = load_classifier()
    accuracy = {
        scale: measure_accuracy(model, classifier, scale, samples_per_digit=5, seed=0, steps=12)
        for scale in (0.0, 1.0, 3.0)
    }
    assert accuracy[3.0].digit >= accuracy[1.0].digit + 0.05
    assert accuracy[3.0].digit >= 0.95
    assert accuracy[3.0].colour >= 0.95
    # Without the condition the digit is right by chance: one in ten of 50, plus five standard deviations.
    assert accuracy[0.0].digit <= 0.32


def test_negative_colour_is_avoided() -> None:
    model, _ = load_denoiser()
    classifier, _ = load_classifier()
    noise = draw_noise(10, 0)
    digit = torch.arange(10)
    conditions = {"uncond": labels(like=noise), "cond": labels(digit, like=noise)}
    free = classifier.predict(sample(model, fastcfg.CFG(scale=3.0), conditions, noise, steps=12))[1]
    conditions["negative"] = labels(colour=free, like=noise)
    rule = fastcfg.PerpNeg(scale=3.0, negative_scales=(1.2,))
    images = sample(model, rule, conditions, noise, steps=12)
    seen_digit, seen_colour = classifier.predict(images)
    assert (seen_colour == free).sum() <= 3
    assert (seen_digit == digit).sum() >= 9


def test_labels_not_given_are_null() -> None:
    x = torch.zeros(2, 3, 28, 28)
    given = torch.tensor([3, 5])
    for made, digit, colour in (
        (labels(like=x), [10, 10], [6, 6]),
        (labels(given, like=x), [3, 5], [6, 6]),
        (labels(colour=given, like=x), [10, 10], [3, 5]),
    ):
        assert made["digit"].tolist() == digit
        assert made["colour"].tolist() == colour


def test_sequential_and_batched_sampling_agree() -> None:
    model, _ = load_denoiser()
    noise = draw_noise(2, 0)
    conditions = {"uncond": labels(like=noise), "cond": labels(torch.tensor([3, 8]), like=noise)}
    rule = fastcfg.CFG(scale=2.0)
    batched = sample(model, rule, conditions, noise, steps=4)
    sequential = sample(model, rule, conditions, noise, steps=4, mode="sequential")
    torch.testing.assert_close(batched, sequential, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_stock_and_fused_agree(rescale: float) -> None:
    uncond, cond = draw_noise(4, 0), draw_noise(4, 1)
    torch.testing.assert_close(fused_guidance(5.0, rescale)(uncond, cond), stock_guidance(5.0, rescale)(uncond, cond))


def test_comparison_would_see_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcfg.demo import stock

    monkeypatch.setattr(stock, "fused_guidance", lambda scale, rescale: stock_guidance(scale + 0.5, rescale))
    model, _ = load_denoiser()
    noise = draw_noise(2, 0)
    timing = compare(model, labels(like=noise), labels(torch.tensor([3, 8]), like=noise), noise, scale=3.0, steps=3)
    assert timing.largest_difference > 0.01
