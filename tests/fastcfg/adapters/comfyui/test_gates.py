"""Gates in ComfyUI: the host's own calc_cond_batch is called with the conditions that are needed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg import CFG, Gate, GuidedDenoiser, Prediction, Rule, State

from . import protocol as fake
from .harness import EMPTY, apply, defaults, noise

STEPS = 8
SIGMAS = torch.cat([torch.linspace(9.0, 0.5, STEPS), torch.zeros(1)])
FLOW = torch.linspace(1.0, 0.0, STEPS + 1)
X = noise((2, 4, 6, 8))


def passes(model: Any, cfg: float = 5.0, sigmas: Tensor = SIGMAS, before: int = 0) -> tuple[list[int], Tensor]:
    got = fake.run(model, X, cfg, sigmas)
    return [len(call) for call in model.model.calls[before:]], got


def by_denoiser(rule: Rule, gate: Gate, kind: str, sigmas: Tensor) -> tuple[list[int], Tensor]:
    """The same run by a denoiser whose predictions are of the network's own kind."""

    def level(sigma: Tensor) -> Prediction:
        return Prediction(kind, 1.0 - sigma if kind == "flow" else 1.0, sigma)  # type: ignore[arg-type]

    def model(x: Tensor, sigma: Tensor, c: float) -> Tensor:
        clean = Prediction("x0", level(sigma).alpha, sigma)
        return clean.convert(fake.predict(x, c), x, kind)  # type: ignore[arg-type]

    denoiser, state, x, counts = GuidedDenoiser(model, rule, gate=gate, mode="sequential"), State(), X.double(), []
    for step in range(STEPS):
        sigma, before = sigmas[step].double(), denoiser.passes_run
        guess = denoiser(
            x, sigma, conditions={"uncond": {"c": -0.5}, "cond": {"c": 1.0}}, step=step, num_steps=STEPS, state=state,
            prediction=level(sigma),
        )  # fmt: skip
        counts.append(denoiser.passes_run - before)
        clean = level(sigma).convert(guess, x, "x0")
        x = x + (x - clean) / sigma * (sigmas[step + 1].double() - sigma)
    return counts, x


GATES = [
    Gate(every=3), Gate(until=0.5), Gate(drift=2.0), Gate(stop=0.3), Gate(cosine=0.9), Gate(every=3, space="x0"),
    Gate(steps=(0, 1, 4), num_steps=STEPS, weights=((1.1, -0.1),) * STEPS),
]  # fmt: skip


@pytest.mark.parametrize("gate", GATES, ids=lambda g: ",".join(list(g.to_dict())[1:]))
@pytest.mark.parametrize(("sampling", "kind", "sigmas"), [(fake.EPS, "eps", SIGMAS), (fake.CONST, "flow", FLOW)])
def test_a_gated_node_is_a_gated_denoiser(gate: Gate, sampling: type, kind: str, sigmas: Tensor) -> None:
    model = apply("FastcfgGate", apply("FastcfgCFG", fake.Patcher(sampling)), policy=gate.to_json())
    counts, got = passes(model, 2.0, sigmas)
    expected_counts, expected = by_denoiser(CFG(2.0), gate, kind, sigmas)
    assert counts == expected_counts
    assert gate.ends or sum(counts) < 2 * STEPS
    # Clean samples are float32 here; eight steps at scale 5 carry their roundings on.
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("gate", [Gate(stop=100.0), Gate(cosine=-1.0)], ids=["stop", "cosine"])
def test_where_guidance_ends_the_result_is_cond_whatever_was_remembered(gate: Gate) -> None:
    """A momentum of the steps before would go on pushing."""
    model = apply("FastcfgGate", apply("FastcfgAPG", fake.Patcher(), momentum=-0.5), policy=gate.to_json())
    given: list[Tensor] = []

    def hook(args: dict[str, Any]) -> Tensor:
        given.append((args["denoised"] - args["cond_denoised"]).abs().max())
        return args["denoised"]  # type: ignore[no-any-return]

    model.set_model_sampler_post_cfg_function(hook)
    assert passes(model)[0] == [2] + [1] * (STEPS - 1)
    assert given[0] > 0.1 and max(given[1:]) < 1e-5
    guider = apply(
        "FastcfgPerpNegGuider", model, positive=fake.conditioning(1.0), negative=fake.conditioning(-0.5),
        empty_conditioning=EMPTY,
    )  # fmt: skip
    given.clear()
    guider.sample(X, SIGMAS)
    assert given[0] > 0.1 and max(given[1:]) < 1e-5


def test_the_node_s_widgets_and_the_rule_s_shorthand() -> None:
    assert passes(apply("FastcfgGate", fake.Patcher()))[0] == [2, 1] * 4
    assert passes(apply("FastcfgGate", fake.Patcher(), every=0, until=0.5))[0] == [2] * 4 + [1] * 4
    shorthand = apply("FastcfgRule", fake.Patcher(), rule=json.dumps({"type": "GatedCFG", "every": 2}))
    same = apply("FastcfgGate", fake.Patcher(), every=2, policy='{"type": "Gate", "every": 2, "space": null}')
    one, other = passes(shorthand), passes(same)
    assert one[0] == other[0] == [2, 1] * 4
    torch.testing.assert_close(one[1], other[1])


def test_a_gate_is_over_any_node_and_modifiers_and_windows_compose() -> None:
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.5)
    model = apply("FastcfgRescale", apply("FastcfgGate", model, every=4))
    assert passes(model)[0] == [2, 1, 1, 1, 2, 1, 1, 1]
    model = apply("FastcfgInterval", apply("FastcfgGate", fake.Patcher(), every=3), start_percent=0.3, end_percent=0.8)
    assert passes(model)[0] == [1, 1, 2, 1, 1, 2, 1, 1]
    model = apply("FastcfgSchedule", apply("FastcfgGate", fake.Patcher(), every=3), start=2.0, end=6.0)
    assert passes(model)[0] == [2, 1, 1, 2, 1, 1, 2, 1]
    model = apply("FastcfgPerpNeg", apply("FastcfgGate", fake.Patcher(), every=3), empty_conditioning=EMPTY)
    assert passes(model)[0] == [3, 1, 1, 3, 1, 1, 3, 1]


def test_guiders_leave_their_passes_out() -> None:
    model = apply("FastcfgGate", fake.Patcher(), every=3)
    for node, count, given in (
        ("FastcfgPerpNegGuider", 3, {"empty_conditioning": EMPTY}),
        ("FastcfgMultiConditionGuider", 3, {"positive_2": EMPTY}),
        ("FastcfgTwoStageGuider", 3, {"middle": EMPTY}),
    ):
        inputs = {"positive": fake.conditioning(1.0), "negative": fake.conditioning(-0.5), **given}
        guider = apply(node, model, **{**defaults(node), **inputs})
        before = len(model.model.calls)
        gated = guider.sample(X, SIGMAS)
        assert [len(call) for call in model.model.calls[before:]] == [count, 1, 1, count, 1, 1, count, 1], node
        full = apply(node, fake.Patcher(), **{**defaults(node), **inputs}).sample(X, SIGMAS)
        assert not torch.equal(gated, full)


def test_autoguidance_leaves_the_weak_model_out() -> None:
    weak, model = fake.Patcher(), apply("FastcfgGate", fake.Patcher(), every=4)
    guider = apply(
        "FastcfgAutoguidanceGuider", model, weak_model=weak, cfg=3.0,
        positive=fake.conditioning(1.0), negative=fake.conditioning(-0.5),
    )  # fmt: skip
    guider.sample(X, SIGMAS)
    assert [len(call) for call in model.model.calls] == [2, 1, 1, 1] * 2 and len(weak.model.calls) == 2


def test_another_node_that_needs_both_passes_gets_them_fresh() -> None:
    seen: list[Tensor] = []

    def hook(args: dict[str, Any]) -> Tensor:
        seen.append(args["uncond_denoised"] - fake.predict(args["input"], -0.5))
        return args["denoised"]  # type: ignore[no-any-return]

    model = apply("FastcfgGate", apply("FastcfgRule", fake.Patcher()))
    model.set_model_sampler_post_cfg_function(hook)
    assert passes(model)[0] == [2, 1] * 4, "the node's own wish for both at a CFG value of 1 is none of another's"
    assert seen[1].any() and not seen[0].any()
    seen.clear()
    model.model_options["disable_cfg1_optimization"] = True  # As such a node sets it.
    before = len(model.model.calls)
    assert passes(model, before=before)[0] == [2] * STEPS
    assert not any(difference.any() for difference in seen)
    again = apply("FastcfgCFG", model)
    assert passes(again, before=before + STEPS)[0] == [2] * STEPS, "the wish outlives our later nodes"


def test_a_condition_that_changes_by_step_is_fresh() -> None:
    model = apply("FastcfgGate", fake.Patcher(), every=0, until=0.0)
    guider = fake.Guider(model)
    guider.set_conds(fake.conditioning(1.0), [[-0.5, {"timestep_end": 5.0}], [0.4, {"timestep_start": 5.0}]])
    guider.set_cfg(5.0)
    guider.sample(X, SIGMAS)
    fresh = [len(call) for call in model.model.calls]
    switch = next(i for i, sigma in enumerate(SIGMAS) if sigma < 5.0)
    assert fresh == [2 if i in (0, switch) else 1 for i in range(STEPS)]


def test_runs_do_not_share_a_memory() -> None:
    model = apply("FastcfgGate", fake.Patcher(), every=0, until=0.0)
    first, second = passes(model), passes(model, before=STEPS)
    assert first[0] == second[0] == [2] + [1] * (STEPS - 1) and torch.equal(first[1], second[1])


def test_errors_name_the_policy() -> None:
    for policy, message in (("{", "gate: expected JSON"), ('{"type": "CFG"}', "type: expected 'Gate'")):
        with pytest.raises(ValueError, match=message):
            apply("FastcfgGate", fake.Patcher(), policy=policy)
    tuned = apply("FastcfgGate", fake.Patcher(), policy=Gate(steps=(0,), num_steps=5).to_json())
    with pytest.raises(ValueError, match="gate: it is for runs of 5 steps, got 8"):
        passes(tuned)
