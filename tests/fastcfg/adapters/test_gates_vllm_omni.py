"""Gates on vllm-omni's mixin, on our few lines of it, and on theirs where ``VLLM_OMNI_PATH`` has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from conformance.clients import vllm_omni as client
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from fastcfg import APG, CFG, APGMix, CFGZeroStar, Gate, GatedCFG, GuidedDenoiser, InstructPix2Pix, Rule, State
from fastcfg.adapters.vllm_omni import fuse

STEPS = 8
X = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PROMPTS = {"cond": torch.tensor(1.0), "uncond": torch.tensor(-0.5), "image": torch.tensor(0.3)}


class CFGParallelMixin:
    """The mixin's convention on one rank."""

    def predict_noise_maybe_with_cfg(
        self, do_true_cfg: bool, true_cfg_scale: float, positive_kwargs: Any, negative_kwargs: Any,
        cfg_normalize: bool = True, output_slice: Any = None, kwargs: Any = None,
    ) -> Any:  # fmt: skip
        found = [self.predict_noise(**given) for given in (positive_kwargs, negative_kwargs)]  # type: ignore[attr-defined]
        return self.combine_cfg_noise(*found, true_cfg_scale, cfg_normalize)

    def predict_noise_with_multi_branch_cfg(self, do_true_cfg: bool, scale: Any, branches_kwargs: Any, *_: Any) -> Any:
        return self.combine_multi_branch_cfg_noise([self.predict_noise(**g) for g in branches_kwargs], scale)  # type: ignore[attr-defined]

    def combine_cfg_noise(self, positive: Any, negative: Any, scale: float, normalize: bool = False) -> Any:
        return negative + scale * (positive - negative)

    def combine_multi_branch_cfg_noise(self, predictions: Any, scale: Any, normalize: bool = False) -> Any:
        raise NotImplementedError

    def scheduler_step_maybe_with_cfg(self, noise: Any, t: Any, latents: Any, do_true_cfg: bool, **_: Any) -> Any:
        return self.scheduler.step(noise, t, latents, return_dict=False)[0]  # type: ignore[attr-defined]


@pytest.fixture(
    params=[
        "convention",
        pytest.param("theirs", marks=pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))),
    ]
)
def mixin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    if request.param == "theirs":
        module: Any = client.load()
    else:
        module = ModuleType(client.MODULE)
        vars(module).update(CFGParallelMixin=CFGParallelMixin, _get_cfg_world_size_or_one=lambda: 1)
    for name, found in client.installed(module).items():
        monkeypatch.setitem(sys.modules, name, found)
    return module.CFGParallelMixin  # type: ignore[no-any-return]


class Expert(nn.Module):
    def __init__(self, pace: float) -> None:
        super().__init__()
        self.pace, self.calls = pace, 0

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        self.calls += 1
        turned = torch.sin(hidden_states + encoder_hidden_states * (1 + self.pace * timestep))
        return (0.4 * hidden_states + encoder_hidden_states * turned,)


def pipeline_class(mixin: type) -> type:
    """A pipeline whose loop is that of vllm-omni's own: no step reaches the guidance."""

    class Pipeline(nn.Module, mixin):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=10)
            self.transformer, self.transformer_2 = Expert(0.3), Expert(0.5)

        def predict_noise(self, current_model: Any = None, **given: Any) -> Any:
            return (current_model or self.transformer)(**given)[0]

        def run(self, *names: str, boundary: float | None = None, scale: Any = 4.0) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            x = X
            for t in self.scheduler.timesteps:
                expert = {} if boundary is None or t >= boundary else {"current_model": self.transformer_2}
                given = [
                    {"hidden_states": x, "timestep": t.double(), "encoder_hidden_states": PROMPTS[n].double(), **expert}
                    for n in names
                ]
                if len(names) == 2:
                    noise = self.predict_noise_maybe_with_cfg(True, scale, *given, False)
                else:
                    noise = self.predict_noise_with_multi_branch_cfg(True, scale, given)
                x = self.scheduler_step_maybe_with_cfg(noise, t, x, True)
            return x

    return Pipeline


def by_denoiser(rule: Rule, gate: Gate | None, names: tuple[str, ...]) -> tuple[int, Tensor]:
    model, scheduler, state, x = Expert(0.3), FlowMatchEulerDiscreteScheduler(num_train_timesteps=10), State(), X
    scheduler.set_timesteps(STEPS)
    denoiser = GuidedDenoiser(lambda x, t, p: model(x, t, p)[0], rule, gate=gate, mode="sequential")
    conditions = {name: {"p": PROMPTS[name].double()} for name in names}
    for step, t in enumerate(scheduler.timesteps):
        guess = denoiser(x, t.double(), conditions=conditions, step=step, num_steps=STEPS, state=state)
        x = scheduler.step(guess, t, x, return_dict=False)[0]
    return model.calls, x


GATES = [
    Gate(every=3), Gate(until=0.5), Gate(drift=1.5), Gate(stop=2.0), Gate(cosine=0.5),
    Gate(steps=(0, 1, 4), num_steps=STEPS, weights=((1.1, -0.1),) * STEPS),
]  # fmt: skip


@pytest.mark.parametrize("gate", GATES, ids=lambda g: ",".join(list(g.to_dict())[1:]))
@pytest.mark.parametrize("rule", [CFG(4.0), APG(4.0, momentum=-0.5)], ids=lambda r: type(r).__name__)
def test_a_gated_pipeline_is_a_gated_denoiser(mixin: type, rule: Rule, gate: Gate) -> None:
    pipeline = fuse(pipeline_class(mixin), rule, gate=gate)()
    got = pipeline.run("cond", "uncond")
    calls, expected = by_denoiser(rule, gate, ("uncond", "cond"))
    assert pipeline.transformer.calls == calls <= 2 * STEPS
    assert gate.ends or calls < 2 * STEPS
    # The scheduler steps in float32.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    again = pipeline.run("cond", "uncond")
    assert torch.equal(again, got) and pipeline.transformer.calls == 2 * calls, "a second request begins anew"


def test_experts_have_a_memory_each(mixin: type) -> None:
    pipeline = fuse(pipeline_class(mixin), GatedCFG(4.0, 50))()
    pipeline.run("cond", "uncond", boundary=5.0)
    assert pipeline.transformer.calls + pipeline.transformer_2.calls == STEPS + 2
    assert pipeline.transformer.calls > 2 < pipeline.transformer_2.calls


def test_three_branches_are_left_out_too(mixin: type) -> None:
    rule, names = InstructPix2Pix(4.0, 1.5), ("cond", "image", "uncond")
    pipeline = fuse(pipeline_class(mixin), rule, names, gate=Gate(every=4))()
    got = pipeline.run(*names, scale={"text": 4.0, "image": 1.5})
    calls, expected = by_denoiser(rule, Gate(every=4), ("uncond", "image", "cond"))
    assert pipeline.transformer.calls == calls == 3 * 2 + 6
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "rule", [CFGZeroStar(4.0), APGMix(4.0, start_step=2), GatedCFG(4.0, 2)], ids=lambda r: type(r).__name__
)
def test_rules_that_change_by_step_read_it_from_the_scheduler(mixin: type, rule: Rule) -> None:
    pipeline = fuse(pipeline_class(mixin), rule)()
    got = pipeline.run("cond", "uncond", scale=4.0)
    calls, expected = by_denoiser(rule, None, ("uncond", "cond"))
    assert pipeline.transformer.calls in (calls, 2 * STEPS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_calls_of_one_step_run_every_branch(mixin: type) -> None:
    """Requests in a batch have schedulers of their own, and the pipeline's stands still."""
    pipeline = fuse(pipeline_class(mixin), CFG(4.0), gate=Gate(until=0.0))()
    pipeline.scheduler.set_timesteps(STEPS)
    given = {"hidden_states": X, "timestep": torch.tensor(3.0), "encoder_hidden_states": PROMPTS["cond"].double()}
    for _ in range(3):
        pipeline.predict_noise_maybe_with_cfg(True, 4.0, given, given, False)
    assert pipeline.transformer.calls == 6


def test_what_can_t_leave_out_says_so(mixin: type) -> None:
    base = pipeline_class(mixin)

    class Own(base):  # type: ignore[misc, valid-type]
        def predict_noise_maybe_with_cfg(self, *args: Any, **kwargs: Any) -> Any:
            return super().predict_noise_maybe_with_cfg(*args, **kwargs)

    with pytest.raises(ValueError, match="gate: Own has a predict_noise_maybe_with_cfg of its own"):
        fuse(Own, CFG(4.0), gate=Gate(2))
    with pytest.raises(ValueError, match="gate: GatedCFG has one of its own"):
        fuse(base, GatedCFG(4.0), gate=Gate(2))
    silent = fuse(base, CFG(4.0), gate=Gate(2))()
    silent.scheduler = object()
    run: Callable[[], Any] = lambda: silent.predict_noise_maybe_with_cfg(True, 4.0, {}, {}, False)  # noqa: E731
    with pytest.raises(RuntimeError, match="gate: object says no step"):
        run()
