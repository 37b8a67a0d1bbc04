"""What a student learns from: targets are the teacher's guidance, at the states that sampling meets."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fastcfg import APG, CFG, GuidedDenoiser, InDomain, PerpNeg, Rule, State
from fastcfg.distill import DistillConfig, Distiller, Task
from fastcfg.distill.process import levels, noisy, prediction_at
from fastcfg.distill.rollout import mixed, on_data, trajectories
from fastcfg.schedules import Interval, Ramp, SigmaInterval

STEPS, COUNT = 4, 3
SCALES = torch.tensor([1.0, 3.0, 7.0])
Make = Callable[..., Task]


def by_hand(task: Task, rule_of: Callable[[float], Rule]) -> tuple[torch.Tensor, torch.Tensor]:
    """States and guided predictions ``[STEPS * COUNT, ...]`` of an ordinary sampling loop for each scale alone."""
    generator = torch.Generator().manual_seed(5)
    noise, conditions = task.noise(COUNT, generator), task.conditions(COUNT, generator)
    task.scheduler.set_timesteps(STEPS)
    states = torch.empty(STEPS, *noise.shape)
    targets = torch.empty_like(states)
    for row, scale in enumerate(SCALES.tolist()):
        denoiser, state = GuidedDenoiser(task.network, rule_of(scale), mode="sequential"), State()
        own = {name: {key: value[row : row + 1] for key, value in c.items()} for name, c in conditions.items()}
        x = noise[row : row + 1]
        for step, t in enumerate(task.scheduler.timesteps):
            alpha, sigma = (level.item() for level in levels(task.scheduler, t[None]))
            v = denoiser(
                x,
                t.item(),
                conditions=own,
                step=step,
                num_steps=STEPS,
                sigma=sigma / alpha,
                state=state,
                prediction=prediction_at(task.scheduler, float(t)),
            )
            states[step, row], targets[step, row] = x[0], v[0]
            x = task.scheduler.step(v, t, x).prev_sample
    return states.flatten(0, 1), targets.flatten(0, 1)


RULES = [
    pytest.param(CFG(7.5), CFG, id="CFG"),
    pytest.param(CFG(7.5, base="cond"), lambda s: CFG(s - 1, base="cond"), id="CFG-w"),
    pytest.param(
        InDomain(APG(6.5, eta=0.0, norm_threshold=5.0, base="cond")),
        lambda s: InDomain(APG(s - 1, eta=0.0, norm_threshold=5.0, base="cond")),
        id="APG-w-x0",
    ),
    pytest.param(CFG(7.5, rescale=0.7), lambda s: CFG(s, rescale=0.7), id="rescale"),
    pytest.param(CFG(7.5, rescale=Ramp(0.0, 0.7)), lambda s: CFG(s, rescale=Ramp(0.0, 0.7)), id="rescale-schedule"),
    pytest.param(CFG(Interval(4.0, 0.25, 0.75)), lambda s: CFG(Interval(s, 0.25, 0.75)), id="interval"),
    pytest.param(CFG(Ramp(5.0, 1.0)), lambda s: CFG(Ramp(s, 1.0)), id="linear"),
    pytest.param(CFG(SigmaInterval(4.0, 0.2, 5.0)), lambda s: CFG(SigmaInterval(s, 0.2, 5.0)), id="sigma-interval"),
    pytest.param(PerpNeg(7.5, (1.5,)), lambda s: PerpNeg(s, (1.5,)), id="perp-neg"),
    pytest.param(APG(7.5, eta=0.0, momentum=-0.5), lambda s: APG(s, eta=0.0, momentum=-0.5), id="apg-momentum"),
    pytest.param(InDomain(CFG(7.5, rescale=0.7), "x0"), lambda s: InDomain(CFG(s, rescale=0.7), "x0"), id="domain"),
]


@pytest.mark.parametrize(("rule", "rule_of"), RULES)
def test_examples_are_the_teachers_own_sampling(tiny_task: Make, rule: Rule, rule_of: Callable[[float], Rule]) -> None:
    task = tiny_task(rule)
    generator = torch.Generator().manual_seed(5)
    found = trajectories(task, COUNT, SCALES, STEPS, generator)
    states, targets = by_hand(tiny_task(rule), rule_of)
    assert len(found) == STEPS * COUNT
    # The network's batch and the plan of the passes differ: roundings of float32, carried through four steps at scales
    # of up to 7. A control: the same sampling from noise that is one ulp larger.
    control = tiny_task(rule)
    noise = control.noise
    moved_states, moved_targets = by_hand(replace(control, noise=lambda n, g: noise(n, g) * (1 + 2**-22)), rule_of)
    for mine, theirs, moved in ((found.x, states, moved_states), (found.target, targets, moved_targets)):
        bound = 64 * (moved - theirs).abs().max() + 1e-6
        assert (mine - theirs).abs().max() <= bound < 0.05 * theirs.abs().max()
    assert torch.equal(found.scale, SCALES.repeat(STEPS))
    assert torch.equal(found.t, torch.tensor(task.times(STEPS)).repeat_interleave(COUNT))


def test_batches_have_their_own_conditions(tiny_task: Make) -> None:
    found = trajectories(tiny_task(), COUNT, SCALES, STEPS, torch.Generator().manual_seed(5))
    index = torch.tensor([7, 0, 4])
    x, target, t, scale, condition = found.batch(index)
    assert torch.equal(x, found.x[index]) and torch.equal(target, found.target[index])
    assert torch.equal(scale, SCALES[index % COUNT]) and torch.equal(t, found.t[index])
    assert torch.equal(condition["digit"], found.condition["digit"][index % COUNT])


def test_rounds_are_held_for_a_window_and_then_replaced(tiny_task: Make) -> None:
    # A round has 3 * 4 states and lasts for 12 * 2 / 6 = 4 batches.
    config = DistillConfig(batch=6, trajectories=3, sampler_steps=(4,), window=2, reuse=2, steps=8)
    distiller = Distiller(tiny_task(), config)
    for number, held in ((0, [0, 1]), (3, [0, 1]), (4, [1, 2]), (13, [3, 4])):
        x, *_ = distiller._examples(number)
        assert sorted(distiller._rounds) == held
        states = torch.cat([distiller._rounds[key].x for key in held])
        assert all((row == states).flatten(1).all(1).any() for row in x)
    # What a batch is does not depend on the batches before it.
    again = Distiller(tiny_task(), config)._examples(13)
    assert all(torch.equal(one, other) for one, other in zip(distiller._examples(13)[:4], again[:4], strict=True))


def test_mixed_batches_keep_what_belongs_together(flux_task: Task) -> None:
    # As many rows as text tokens: an argument's kind is told where the row count is known.
    rounds = [
        trajectories(flux_task, count, torch.full((count,), 2.0 + count), 2, torch.Generator()) for count in (2, 3)
    ]
    x, target, t, scale, condition = mixed(rounds, 40, torch.Generator().manual_seed(0))
    assert len(x) == len(target) == 40 and condition["txt_ids"].shape == (5, 3)
    assert set(scale.tolist()) == {4.0, 5.0} and set(t.tolist()) == set(rounds[0].t.tolist())
    again = flux_task.family.call(flux_task.network, x, t, **condition)
    null = {**condition, **{name: 0 * condition[name] for name in ("encoder_hidden_states", "pooled_projections")}}
    uncond = flux_task.family.call(flux_task.network, x, t, **null)
    # In another batch the same passes differ by roundings of float32, which the scale of 5 multiplies.
    expected = uncond + scale[:, None, None] * (again - uncond)
    torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)


def test_data_is_noised_and_guided(tiny_task: Make) -> None:
    task = tiny_task(CFG(7.5))
    generator = torch.Generator().manual_seed(1)
    found = on_data(task, 64, torch.full((64,), 3.0), 20, generator)
    again = torch.Generator().manual_seed(1)
    assert task.data is not None
    clean, conditions = task.data(64, again)
    t = torch.randint(1000, (64,), generator=again).float()
    noise = torch.randn(clean.shape, generator=again)
    assert torch.equal(found.t, t) and t.unique().numel() > 32
    assert torch.equal(found.x, noisy(task.scheduler, clean, noise, t))
    peer = task.scheduler.add_noise(clean, noise, t.long())
    torch.testing.assert_close(found.x, peer, rtol=0, atol=1e-6)  # Two roundings of numbers up to about 5.
    guided = GuidedDenoiser(task.network, CFG(3.0))(found.x, t, conditions=conditions)
    # The scale as a number and as a tensor: one more rounding each.
    torch.testing.assert_close(found.target, guided, rtol=1e-4, atol=1e-5)


def test_data_under_a_schedule_is_one_step(tiny_task: Make) -> None:
    task = tiny_task(CFG(Interval(4.0, 0.0, 0.5)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        found = on_data(task, 2, torch.tensor([1.0, 5.0]), 4, generator)
        assert found.t[0] == found.t[1] and found.t[0].item() in task.times(4)
        unguided = task.network(found.x, found.t, **found.condition)
        late = task.times(4).index(found.t[0].item()) >= 2
        assert torch.allclose(found.target[1], unguided[1], atol=1e-6) == late


def test_flow_matching_levels(flux_task: Task) -> None:
    alpha, sigma = levels(flux_task.scheduler, torch.tensor([1000.0, 250.0]))
    assert sigma.tolist() == [1.0, 0.25] and alpha.tolist() == [0.0, 0.75]
    assert prediction_at(flux_task.scheduler, 250.0).kind == "flow"
    found = trajectories(flux_task, 2, torch.tensor([1.0, 4.0]), 3, torch.Generator().manual_seed(0))
    assert found.x.shape == (6, 9, 4) and found.target.isfinite().all()


def test_tasks_name_what_is_wrong(tiny_task: Make) -> None:
    task = tiny_task()
    with pytest.raises(ValueError, match=r"^condition: .*'uncond', 'cond'"):
        replace(task, condition="text")
    with pytest.raises(ValueError, match=r"^parameter: CFG has no parameter 'phi'"):
        replace(task, parameter="phi")
    with pytest.raises(TypeError, match=r"^teacher: expected a GuidedDenoiser"):
        replace(task, teacher=task.network)
    with pytest.raises(TypeError, match=r"^teacher: expected a model"):
        replace(task, teacher=GuidedDenoiser(lambda x, t: x, CFG(3.0)))
    with pytest.raises(ValueError, match=r"^rule: .*'image'"):
        from fastcfg import InstructPix2Pix

        tiny_task(InstructPix2Pix())
