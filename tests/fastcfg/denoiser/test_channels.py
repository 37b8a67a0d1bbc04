"""Models that predict more than what is guided, and models that wrap it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fastcfg import APG, CFG, GuidedDenoiser, State, guide, schedules

from .models import Counting, draw, labels

X = draw(2, 3, 4, 5)


def six(y: torch.Tensor) -> torch.Tensor:
    """Three channels of prediction, three of variance."""
    return torch.cat([y, y.cos()], 1)


@pytest.mark.parametrize("mode", ["batched", "sequential"])
@pytest.mark.parametrize("rule", [CFG(4.0), CFG(4.0, rescale=0.5), CFG(1.0), APG(4.0, momentum=-0.5)], ids=repr)
def test_a_learned_variance_is_not_guided(rule: Any, mode: str) -> None:
    given = labels("uncond", "cond")
    u, c = (Counting()(X, 0.5, **given[n]) for n in ("uncond", "cond"))
    expected = guide(rule, uncond=u, cond=c, state=State())
    for rest, width in ((None, 3), ("cond", 6), ("uncond", 6)):
        denoiser = GuidedDenoiser(Counting(six), rule, mode=mode, guided_channels=3, rest=rest)  # type: ignore[arg-type]
        for out in (None, torch.full((2, width, 4, 5), float("nan"))):
            got = denoiser(X, 0.5, conditions=given, state=State(), out=out)
            assert got.shape == (2, width, 4, 5) and (out is None or got is out)
            torch.testing.assert_close(got[:, :3], expected, rtol=0, atol=2.0**-18)
            if rest is not None:
                # A step that does not run the pass takes the rest of one that it runs.
                source = c if rule == CFG(1.0) or rest == "cond" else u
                assert torch.equal(got[:, 3:], source.cos())


def test_a_model_of_fewer_channels_is_guided_whole_or_refused() -> None:
    given = labels("uncond", "cond")
    whole = GuidedDenoiser(Counting(), CFG(4.0), guided_channels=3, rest="cond")(X, 0.5, conditions=given)
    assert torch.equal(whole, GuidedDenoiser(Counting(), CFG(4.0))(X, 0.5, conditions=given))
    with pytest.raises(ValueError, match=r"guided_channels: the model predicts \[2, 3, 4, 5\], which has not 4"):
        GuidedDenoiser(Counting(), CFG(4.0), guided_channels=4)(X, 0.5, conditions=given)


def test_a_state_has_the_guided_channels() -> None:
    rule, state = APG(4.0, momentum=-0.5), State()
    denoiser = GuidedDenoiser(Counting(six), rule, guided_channels=3, rest="cond")
    for step in range(2):
        denoiser(X, 0.5, conditions=labels("uncond", "cond"), state=state, step=step, num_steps=2)
    assert state["average"].shape == (2, 3, 4, 5)


def test_what_an_output_of_one_s_own_takes_out() -> None:
    @dataclass
    class Output:
        variance: torch.Tensor
        prediction: torch.Tensor

    given = labels("uncond", "cond")
    expected = GuidedDenoiser(Counting(), CFG(4.0))(X, 0.5, conditions=given)
    for mode in ("batched", "sequential"):
        model = Counting(lambda y: Output(y.cos(), y))
        denoiser = GuidedDenoiser(model, CFG(4.0), mode=mode, output=lambda result: result.prediction)  # type: ignore[arg-type]
        assert torch.equal(denoiser(X, 0.5, conditions=given), expected)
        assert torch.equal(denoiser.with_rule(CFG(1.0))(X, 0.5, conditions=given), Counting()(X, 0.5, **given["cond"]))


def test_errors_name_the_argument() -> None:
    for count in (0, True, 2.0):
        with pytest.raises(ValueError, match="guided_channels: expected a positive integer"):
            GuidedDenoiser(Counting(), CFG(4.0), guided_channels=count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rest: goes with guided_channels, got 'cond' alone"):
        GuidedDenoiser(Counting(), CFG(schedules.Ramp(1, 2)), rest="cond")
    with pytest.raises(ValueError, match=r"rest: expected one of \['uncond', 'cond'\], got 'image'"):
        GuidedDenoiser(Counting(), CFG(4.0), guided_channels=3, rest="image")
    with pytest.raises(TypeError, match="output: expected a callable, got str"):
        GuidedDenoiser(Counting(), CFG(), output="sample")  # type: ignore[arg-type]
