"""Tasks, views and noised histories."""

import pytest
import torch

from fastcfg import HistoryGuidance
from fastcfg.methods.history import (
    HistoryTask,
    HistoryView,
    history_conditions,
    history_views,
    interpolation_task,
    noise_frames,
    prediction_task,
    signal_and_noise,
    with_history,
)


def test_tasks() -> None:
    task = prediction_task(5, 2)
    assert task == HistoryTask(5, (0, 1)) and task.generated == (2, 3, 4)
    assert task.mask().tolist() == [True, True, False, False, False]
    assert interpolation_task(5).history == (0, 4) and interpolation_task(5).generated == (1, 2, 3)
    assert interpolation_task(5, (2, -1, 2)).history == (2, 4)
    assert prediction_task(5, 0).generated == (0, 1, 2, 3, 4)


def test_levels() -> None:
    task = prediction_task(4, 2)
    assert task.levels(0.75).tolist() == [0, 0, 0.75, 0.75]
    assert task.levels(0.75, HistoryView(frames=())).tolist() == [1, 1, 0.75, 0.75]
    assert task.levels(0.75, HistoryView((1,), 0.25)).tolist() == [1, 0.25, 0.75, 0.75]
    assert task.levels(0.75, HistoryView((1, 0), (0.25, 0.5))).tolist() == [0.5, 0.25, 0.75, 0.75]
    by_sample = task.levels(torch.tensor([0.25, 0.75]))
    assert by_sample.tolist() == [[0, 0, 0.25, 0.25], [0, 0, 0.75, 0.75]]
    pyramid = torch.tensor([[9.0, 9.0, 0.25, 0.5]])
    assert task.levels(pyramid).tolist() == [[0, 0, 0.25, 0.5]]


@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_signal_and_noise_end_exactly(schedule: str) -> None:
    for dtype in (torch.float32, torch.float64):
        alpha, sigma = signal_and_noise(torch.tensor([0.0, 0.5, 1.0], dtype=dtype), schedule)
        assert alpha[0] == 1 and sigma[0] == 0 and alpha[2] == 0 and sigma[2] == 1
        total = alpha + sigma if schedule == "flow" else alpha**2 + sigma**2
        torch.testing.assert_close(total, torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("frame_dim", [1, 2])
def test_noise_frames(frame_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    clean, noise = (torch.randn(2, 3, 4, 2, 2).movedim(2, frame_dim).to(dtype) for _ in range(2))
    levels = torch.tensor([[0.0, 0.3, 0.8, 1.0], [1.0, 0.0, 0.5, 0.1]])
    for schedule in ("flow", "cosine", lambda k: (1 - k**2, k**2)):
        actual = noise_frames(clean, noise, levels, schedule=schedule, frame_dim=frame_dim)
        assert actual.dtype == dtype
        for b in range(2):
            for f in range(4):
                alpha, sigma = signal_and_noise(levels[b, f].double(), schedule)
                x, n, y = (v.select(frame_dim, f)[b].double() for v in (clean, noise, actual))
                tolerance = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float64: 2.0**-22}[dtype]
                torch.testing.assert_close(y, alpha * x + sigma * n, rtol=0, atol=4 * tolerance)
                if levels[b, f] in (0, 1):
                    assert torch.equal(y, n if levels[b, f] else x)
    assert noise_frames(clean, noise, levels[0], frame_dim=frame_dim).shape == clean.shape


def test_what_a_frame_is_not_made_of_does_not_matter() -> None:
    clean, noise = torch.full((1, 1, 2, 1, 1), torch.nan), torch.full((1, 1, 2, 1, 1), torch.nan)
    clean[:, :, 0], noise[:, :, 1] = 3.0, 5.0
    assert noise_frames(clean, noise, torch.tensor([0.0, 1.0])).flatten().tolist() == [3, 5]


def test_views_at_the_same_levels_share_a_condition() -> None:
    task = prediction_task(4, 2)
    clean, noise = torch.randn(2, 2, 3, 4, 2, 2).unbind()
    rule = HistoryGuidance(3.0, kind="fractional")
    for level, same in ((0.0, "cond"), (1.0, "uncond")):
        conditions = history_conditions(task, history_views(rule, level=level), clean=clean, noise=noise)
        assert conditions["partial"] is conditions[same]
    middle = history_conditions(task, history_views(rule, level=0.5), clean=clean, noise=noise)
    assert len({id(c) for c in middle.values()}) == 3
    assert middle["partial"]["levels"].tolist() == [[0.5, 0.5, 1, 1]] * 2
    assert middle["cond"]["known"].tolist() == [[True, True, False, False]] * 2


def test_a_model_sees_the_history_and_the_levels() -> None:
    seen = {}

    def model(x: torch.Tensor, levels: torch.Tensor, y: int) -> torch.Tensor:
        seen.update(x=x, levels=levels, y=y)
        return x

    task = interpolation_task(3)
    clean, noise = torch.ones(2, 3, 1, 2, 2), torch.zeros(2, 3, 1, 2, 2)
    rule = HistoryGuidance(3.0)
    kwargs = history_conditions(task, history_views(rule), clean=clean, noise=noise, frame_dim=1)["cond"]
    call = with_history(model, frame_dim=1)
    for t in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])):
        call(torch.full((2, 3, 1, 2, 2), 7.0), t, **kwargs, y=4)
        assert seen["levels"].tolist() == [[0, 0.5, 0]] * 2 and seen["y"] == 4
        assert seen["x"][0, :, 0, 0, 0].tolist() == [1, 7, 1]


V = torch.zeros(2, 3, 4, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HistoryTask(0, ()), "num_frames: expected a positive integer"),
        (lambda: HistoryTask(3, (3,)), r"history: expected frame numbers in 0 ... 2, got \(3,\)"),
        (lambda: prediction_task(3, 3), "history: expected a number of frames in 0 ... 2, got 3"),
        (lambda: interpolation_task(3, (5,)), "keyframes: expected frame numbers in -3 ... 2"),
        (lambda: interpolation_task(3, ()), "keyframes: expected frame numbers"),
        (lambda: HistoryView(level=1.5), "level: expected noise levels in 0 ... 1, got 1.5"),
        (lambda: HistoryView((2,)).levels_of(prediction_task(3, 2)), r"frames: \[2\] are not known"),
        (lambda: HistoryView((0, 1), (0.5,)).levels_of(prediction_task(3, 2)), "level: expected one number, or 2"),
        (lambda: prediction_task(3, 2).levels(torch.ones(2, 2)), r"t: expected \[\], \[B\] or \[B, 3\]"),
        (lambda: signal_and_noise(torch.ones(2), "linear"), "schedule: expected 'flow', 'cosine'"),
        (lambda: noise_frames(V.long(), V, torch.ones(4)), "clean: expected a floating tensor"),
        (lambda: noise_frames(V, V[:1], torch.ones(4)), "noise: expected the shape"),
        (lambda: noise_frames(V, V, torch.ones(3)), r"levels: expected the shape \[4\] or \[2, 4\], got \[3\]"),
        (lambda: noise_frames(V, V, torch.ones(4), frame_dim=0), "frame_dim: expected a dimension 1"),
        (lambda: history_views(HistoryGuidance((1.0, 2.0), kind="temporal")), "parts: expected 2 views, got 0"),
        (lambda: history_views(HistoryGuidance((1.0,), kind="between"), bands=[]), "bands: expected 1 pairs"),
        (
            lambda: history_conditions(prediction_task(3, 2), {}, clean=V, noise=V),
            "clean: expected 3 frames in dimension 2",
        ),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()  # type: ignore[operator]
