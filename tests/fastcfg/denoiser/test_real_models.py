"""Models of diffusers: what a batch does to their result, beside what one ulp of the input does to it."""

from collections.abc import Iterator

import pytest
import torch

from fastcfg import CFG, GatedCFG, GuidedDenoiser, PerpNeg, Rule, State, schedules
from fastcfg.denoiser import Batched

from .models import REAL, Real, draw, unet

pytest.importorskip("diffusers")


@pytest.fixture(scope="module", params=REAL, ids=str)
def real(request: pytest.FixtureRequest) -> Iterator[Real]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield REAL[request.param]()


def rms(difference: torch.Tensor) -> float:
    return difference.double().square().mean().sqrt().item()


@pytest.mark.parametrize("rule", [CFG(5.0), CFG(5.0, rescale=0.7), PerpNeg(5.0)], ids=["CFG", "rescale", "PerpNeg"])
def test_a_batch_differs_as_one_ulp_of_the_input_does(real: Real, rule: Rule) -> None:
    conditions = {name: real.condition(i) for i, name in enumerate(rule.conditions)}

    def run(mode: str, x: torch.Tensor) -> torch.Tensor:
        return GuidedDenoiser(real.model, rule, mode=mode)(x, real.t, conditions=conditions)

    one_by_one, batched, auto = (run(mode, real.x) for mode in ("sequential", "batched", "auto"))
    control = run("sequential", torch.nextafter(real.x, draw(*real.x.shape, seed=9).sign() * float("inf")))
    assert rms(one_by_one) > 1e-2 and rms(control - one_by_one) > 0
    # Both differences are roundings that the same network magnifies: a batch is another order of the same sums.
    assert rms(batched - one_by_one) <= 3 * rms(control - one_by_one)
    assert torch.equal(auto, batched)


def test_passes_are_those_that_interval_and_gate_need(real: Real) -> None:
    calls = []

    def model(x: torch.Tensor, t: torch.Tensor, **kwargs: object) -> object:
        calls.append(x.shape[0] // 2)
        return real.model(x, t, **kwargs)

    conditions = {"uncond": real.condition(0), "cond": real.condition(1)}
    for rule, passes in (
        (CFG(schedules.Interval(5.0, 0.25, 0.75)), [1, 2, 2, 1]),
        (GatedCFG(5.0, every=3), [2, 1, 1, 2]),
    ):
        denoiser, state = GuidedDenoiser(model, rule), State()
        for step in range(4):
            denoiser(real.x, real.t, conditions=conditions, step=step, num_steps=4, state=state)
        assert calls == passes and denoiser.report().run == sum(passes) and denoiser.report().saved == 8 - sum(passes)
        calls.clear()


def test_padded_prompts_of_a_unet_are_its_prompts() -> None:
    torch.manual_seed(0)
    real = unet()
    conditions = {
        "uncond": {"encoder_hidden_states": draw(2, 3, 8, seed=1)},
        "cond": {"encoder_hidden_states": draw(2, 7, 8, seed=2)},
    }
    batched = Batched(padding={"encoder_hidden_states": "encoder_attention_mask"})

    def run(mode: object, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return GuidedDenoiser(real.model, CFG(5.0), mode=mode)(x, real.t, conditions=conditions)  # type: ignore[arg-type]

    one_by_one, padded = run("sequential", real.x), run(batched, real.x)
    control = run("sequential", torch.nextafter(real.x, torch.full_like(real.x, float("inf"))))
    assert rms(padded - one_by_one) <= 3 * rms(control - one_by_one)

    def filled(encoder_hidden_states: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "encoder_hidden_states": torch.nn.functional.pad(
                encoder_hidden_states, (0, 0, 0, 7 - encoder_hidden_states.shape[1])
            )
        }

    conditions = {name: filled(**condition) for name, condition in conditions.items()}
    assert rms(run("batched", real.x) - one_by_one) > 1000 * rms(control - one_by_one), "the mask does nothing"
