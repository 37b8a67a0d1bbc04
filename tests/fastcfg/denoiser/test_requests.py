"""Continuous batching: requests join and leave, and none of them notices the others."""

from typing import Any

import pytest
import torch

from fastcfg import (
    APG,
    CFG,
    CFGZeroStar,
    GatedCFG,
    GuidedDenoiser,
    InDomain,
    PerpNeg,
    Prediction,
    Requests,
    Rescale,
    ResidualCFG,
    Rule,
    State,
    schedules,
)

SHAPE = (3, 4, 5)


class Model:
    """Each row by itself, and by elementwise operations alone: a row's bits don't depend on the others."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.rows.append(x.shape[0])
        return torch.sin(x * y.view(-1, 1, 1, 1)) + 0.1 * t.view(-1, 1, 1, 1)


def conditions(rule: Rule, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"y": torch.tensor([1.0 + 0.3 * seed + 0.7 * i])} for i, name in enumerate(rule.conditions)}


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))


RULES: tuple[Rule, ...] = (
    CFG(4.0),
    CFG(2.5),
    CFG(schedules.Ramp(2.0, 6.0), rescale=0.5),
    CFG(schedules.Interval(5.0, 0.25, 0.75)),
    APG(5.0, momentum=-0.5),
    APG(3.0, momentum=-0.3),
    GatedCFG(4.0, every=3),
    GatedCFG(6.0, every=4, drift=0.3),
    Rescale(GatedCFG(5.0, every=8, stop=10.0), 0.5),
    PerpNeg(5.0, (1.0,)),
    CFGZeroStar(4.0),
)


def run(batch: Requests, order: list[int], steps: dict[int, int], start: dict[int, int]) -> dict[int, list[Any]]:
    """Sample: request i joins at ``start[i]`` and leaves after ``steps[i]`` steps; its latents step by step."""
    latents: dict[int, torch.Tensor] = {}
    seen: dict[int, list[Any]] = {i: [] for i in order}
    for now in range(100):
        for i in order:
            if start[i] == now:
                batch.add(i, conditions(RULES[i], i), num_steps=steps[i], rule=RULES[i])
                latents[i] = noise(i)
        if not batch.ids:
            if now > max(start.values()):
                break
            continue
        x = torch.cat([latents[i] for i in batch.ids])
        t = torch.tensor([1 - batch[i].step / steps[i] for i in batch.ids])
        guided = batch(x, t)
        for row, i in enumerate(batch.ids):
            latents[i] = latents[i] - guided[row : row + 1] / steps[i]
            seen[i].append(latents[i])
            if batch[i].done:
                batch.remove(i)
    return seen


def test_a_request_is_the_same_alone_and_among_others_that_come_and_go() -> None:
    order = list(range(len(RULES)))
    steps = {i: 5 + i % 4 for i in order}
    start = {i: i // 2 for i in order}
    together = run(Requests(GuidedDenoiser(Model(), CFG(1.0))), order, steps, start)
    for i in order:
        alone = run(Requests(GuidedDenoiser(Model(), CFG(1.0))), [i], steps, {i: 0})
        assert len(together[i]) == len(alone[i]) == steps[i]
        for step, (got, expected) in enumerate(zip(together[i], alone[i], strict=True)):
            assert torch.equal(got, expected), (RULES[i], step)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_request_is_what_a_denoiser_of_its_own_gives(rule: Rule) -> None:
    i = RULES.index(rule)
    batch = Requests(GuidedDenoiser(Model(), CFG(1.0)))
    got = run(batch, [i], {i: 6}, {i: 0})[i]
    denoiser, state, x = GuidedDenoiser(Model(), rule), State(), noise(i)
    for step in range(6):
        t = torch.tensor([1 - step / 6])
        given = conditions(rule, i)
        x = x - denoiser(x, t, conditions=given, step=step, num_steps=6, state=state) / 6
        # Parameters of requests are float32 tensors where a rule's own are numbers.
        torch.testing.assert_close(got[step], x, rtol=0, atol=(step + 1) * 2.0**-18)
    assert batch.report() == denoiser.report()


def test_each_request_takes_the_rows_that_it_needs() -> None:
    model = Model()
    batch = Requests(GuidedDenoiser(model, CFG(4.0)))
    interval = CFG(schedules.Interval(5.0, 0.5, 1.0))
    gated = GatedCFG(4.0, every=2)
    batch.add("a", conditions(CFG(), 0), num_steps=4)
    batch.add("b", conditions(CFG(), 1), num_steps=4, rule=interval)
    batch.add("c", conditions(CFG(), 2), num_steps=4, rule=gated)
    for _ in range(4):
        batch(torch.cat([noise(i) for i in range(3)]), torch.ones(3))
    # a: 2 2 2 2; b: 1 1 2 2; c: 2 1 2 1
    assert model.rows == [5, 4, 6, 5]
    assert (batch["a"].report.run, batch["b"].report.run, batch["c"].report.run) == (8, 6, 6)
    assert batch["b"].report.saved_by == {"schedule": 2} and batch["c"].report.saved_by == {"cached": 2}
    assert batch.report().run == 20 and batch.report().saved == 4
    with pytest.raises(ValueError, match="id: 'a' has made its 4 steps"):
        batch(torch.zeros(3, *SHAPE), torch.ones(3))
    assert batch.remove("b").done and batch.ids == ("a", "c") and len(batch) == 2


def test_a_limit_of_rows_splits_the_calls_and_nothing_else() -> None:
    results, models = [], []
    for limit in (None, 1, 4):
        models.append(Model())
        batch = Requests(GuidedDenoiser(models[-1], CFG(4.0)), max_rows=limit)
        for i in range(3):
            batch.add(i, conditions(CFG(), i), num_steps=2, rule=CFG(2.0 + i))
        results.append(batch(torch.cat([noise(i) for i in range(3)]), torch.ones(3)))
    assert [m.rows for m in models] == [[6], [1] * 6, [4, 2]]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_request_moves_to_another_batch_with_its_state() -> None:
    rule = APG(5.0, momentum=-0.5)
    first, second = (Requests(GuidedDenoiser(Model(), rule)) for _ in range(2))
    stay = Requests(GuidedDenoiser(Model(), rule))
    for batch in (first, stay):
        batch.add("r", conditions(rule, 0), num_steps=4)
        batch(noise(0), torch.ones(1))
    second.add("other", conditions(rule, 1), num_steps=9)
    moved = first.remove("r")
    second.add("r", conditions(rule, 0), num_steps=4, step=moved.step, state=State(moved.state.state_dict()))
    got = second(torch.cat([noise(3), noise(1)]), torch.ones(2))[1:]
    assert torch.equal(got, stay(noise(1), torch.ones(1)))
    fresh = Requests(GuidedDenoiser(Model(), rule))
    fresh.add("r", conditions(rule, 0), num_steps=4, step=1)
    assert not torch.equal(got, fresh(noise(1), torch.ones(1))), "the momentum does nothing"


def test_domains_take_each_requests_own_noise_level() -> None:
    rule = InDomain(CFG(schedules.Ramp(3.0, 5.0), rescale=0.7), "x0")
    batch = Requests(GuidedDenoiser(Model(), rule))
    for i in range(3):
        batch.add(i, conditions(rule, i), num_steps=4, step=i)
    levels = {"alpha": torch.tensor([0.9, 0.6, 0.3]), "sigma": torch.tensor([0.4, 0.8, 0.9])}
    x = torch.cat([noise(i) for i in range(3)])
    got = batch(x, torch.ones(3), prediction=Prediction("v", **levels))
    for i in range(3):
        alone = Requests(GuidedDenoiser(Model(), rule))
        alone.add(i, conditions(rule, i), num_steps=4, step=i)
        own = {name: level[i : i + 1] for name, level in levels.items()}
        assert torch.equal(got[i : i + 1], alone(x[i : i + 1], torch.ones(1), prediction=Prediction("v", **own)))


def test_sigmas_resolve_each_requests_own_schedule() -> None:
    rule, model = CFG(schedules.SigmaInterval(5.0, 0.5, 2.0)), Model()
    batch = Requests(GuidedDenoiser(model, rule))
    for i in range(3):
        batch.add(i, conditions(rule, i), num_steps=4, step=0)
    batch(torch.cat([noise(i) for i in range(3)]), torch.ones(3), sigmas=[4.0, 1.0, 0.1])
    assert model.rows == [4] and [batch[i].report.run for i in range(3)] == [1, 2, 1]


def test_sequences_of_unequal_length_share_a_batch() -> None:
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(mask)
        weight = mask.to(text.dtype)
        return x * ((text * weight).sum(1) / weight.sum(1)).view(-1, 1, 1, 1)

    rule = CFG(3.0)
    texts = [[torch.rand(1, 2 + i), torch.rand(1, 5 - i)] for i in range(3)]
    batch = Requests(GuidedDenoiser(model, rule), padding={"text": "mask"})
    for i, (u, c) in enumerate(texts):
        batch.add(i, {"uncond": {"text": u}, "cond": {"text": c}}, num_steps=4)
    x = torch.cat([noise(i) for i in range(3)])
    got = batch(x, torch.ones(3))
    assert seen[0].shape == (6, 5) and seen[0].sum(1).tolist() == [2, 5, 3, 4, 4, 3]
    for i, (u, c) in enumerate(texts):
        # A mean over padded text adds zeros to the same numbers, in another order.
        expected = x[i] * (u.mean() + 3 * (c.mean() - u.mean()))
        torch.testing.assert_close(got[i], expected, rtol=2.0**-20, atol=2.0**-20)


def test_errors_name_the_argument() -> None:
    denoiser = GuidedDenoiser(Model(), CFG(4.0))
    with pytest.raises(TypeError, match="denoiser: expected a GuidedDenoiser, got Model"):
        Requests(Model())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_rows: expected a positive integer or None, got 0"):
        Requests(denoiser, max_rows=0)
    batch = Requests(denoiser)
    batch.add("a", conditions(CFG(), 0), num_steps=4)
    with pytest.raises(ValueError, match="id: 'a' is in the batch already"):
        batch.add("a", conditions(CFG(), 0), num_steps=4)
    with pytest.raises(ValueError, match=r"conditions: CFG takes .* missing \['cond'\]"):
        batch.add("b", {"uncond": {}}, num_steps=4)
    with pytest.raises(ValueError, match="id: 'b' is not in the batch"):
        batch.remove("b")
    with pytest.raises(ValueError, match=r"x: expected a row for each of 1 requests, got \[2, 3, 4, 5\]"):
        batch(torch.zeros(2, *SHAPE), torch.ones(2))
    with pytest.raises(ValueError, match=r"t: expected a tensor \[1\] or \[1, ...\], got 0.5"):
        batch(noise(0), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigmas: expected 1 noise levels, got 2"):
        batch(noise(0), torch.ones(1), sigmas=[1.0, 2.0])
    assert batch["a"].step == 0


class Failing(Model):
    """A model that raises once, at a chosen call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result = super().__call__(x, t, y)
        if len(self.rows) == self.at:
            raise RuntimeError("out of memory")
        return result


def _run(requests: Requests, steps: int, x: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for step in range(steps):
        t = torch.full((len(requests),), float(step))
        try:
            found.append(requests(x, t))
        except RuntimeError:
            found.append(requests(x, t))
    return found


@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_step_that_raises_changes_nothing(at: int) -> None:
    x = torch.cat([noise(k) for k in range(3)])

    def made(model: Model) -> Requests:
        requests = Requests(GuidedDenoiser(model, CFG(3.0)), max_rows=2)  # Several calls of the model a step.
        rules = (APG(5.0, momentum=-0.5), GatedCFG(4.0, every=3, drift=0.3), CFG(2.0))
        for k, rule in enumerate(rules):
            requests.add(k, conditions(rule, k), num_steps=4, rule=rule)
        return requests

    sound = made(Model())
    failing = made(Failing(at))
    for a, b in zip(_run(failing, 4, x), _run(sound, 4, x), strict=True):
        assert torch.equal(a, b)
    assert [failing[k].report for k in range(3)] == [sound[k].report for k in range(3)]


def test_a_guidance_that_raises_after_another_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([noise(k) for k in range(2)])
    requests = Requests(GuidedDenoiser(Model(), CFG(3.0)))
    for k, rule in enumerate((APG(5.0, momentum=-0.5), CFG(2.0, rescale=0.5))):
        requests.add(k, conditions(rule, k), num_steps=4, rule=rule)
    requests(x, torch.zeros(2))
    before = requests[0].state["average"].clone()
    own = GuidedDenoiser.combine

    def combine(self: GuidedDenoiser, planned: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not isinstance(planned.rule, APG):
            raise MemoryError("the second group")
        return own(self, planned, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuidedDenoiser, "combine", combine)
        with pytest.raises(MemoryError):
            requests(x, torch.ones(2))
    assert torch.equal(requests[0].state["average"], before)
    assert [requests[k].step for k in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"cond": {"y": torch.ones(1)}}}, r"conditions: CFG takes .* missing \['uncond'\]"),
        ({"conditions": [1]}, "conditions: expected a mapping"),
        ({"conditions": {"uncond": {"y": torch.ones(1)}, "cond": 3}}, "conditions: 'cond': expected keyword arguments"),
        ({"conditions": {"uncond": {"y": torch.ones(1)}, "cond": {"y": torch.ones(1, 2)}}}, "has the shapes"),
        ({"conditions": {"uncond": {"y": torch.ones(1)}, "cond": {"z": torch.ones(1)}}}, "has arguments"),
        ({"rule": "CFG"}, "rule: expected a fastcfg rule, got str"),
        ({"rule": ResidualCFG(2.0), "conditions": {"cond": {"y": torch.ones(1)}}}, "reads 'stock', which the caller"),
        ({"num_steps": 0}, "num_steps: expected a positive integer, got 0"),
        ({"step": 9}, r"step: expected an integer in 0 \.\.\. 3, got 9"),
        ({"state": {}}, "state: expected a fastcfg.State, got dict"),
    ],
)
def test_a_bad_request_is_refused_by_its_id_and_leaves_nothing(change: dict[str, Any], message: str) -> None:
    requests = Requests(GuidedDenoiser(Model(), CFG(3.0)))
    requests.add("good", conditions(CFG(), 0), num_steps=4)
    for k in range(20):
        arguments = {"conditions": conditions(CFG(), 1), "num_steps": 4, "rule": CFG(4.0 + k)} | change
        with pytest.raises((TypeError, ValueError), match=f"id: 'bad' is refused: .*{message}"):
            requests.add("bad", **arguments)
    assert requests.ids == ("good",) and len(requests._denoisers) == 1


def test_a_scale_or_rule_changes_in_flight() -> None:
    x = noise(0)
    requests = Requests(GuidedDenoiser(Model(), CFG(3.0)))
    first, second = APG(5.0, momentum=-0.5), APG(2.0, momentum=-0.5)
    requests.add("a", conditions(first, 0), num_steps=3, rule=first)
    alone, state = Model(), State()
    for step, rule in enumerate((first, second, CFG(1.5))):
        if step:
            requests.change("a", rule=rule)
        expected = GuidedDenoiser(alone, rule)(
            x, torch.tensor([float(step)]), conditions=conditions(rule, 0), step=step, num_steps=3, state=state
        )
        # A number may take another path than one number a request.
        torch.testing.assert_close(requests(x, torch.tensor([float(step)])), expected, rtol=2.0**-21, atol=2.0**-21)
    assert len(requests._denoisers) == 2, "denoisers of rules that no request has any more"
    with pytest.raises(ValueError, match=r"id: 'a' is left as it was: .*missing \['negative'\]"):
        requests.change("a", rule=PerpNeg(5.0, (1.0,)))
    assert requests["a"].denoiser.rule == CFG(1.5)


def test_a_request_that_leaves_takes_its_own_rows_and_no_others() -> None:
    count, rule = 8, APG(5.0, momentum=-0.5)
    requests = Requests(GuidedDenoiser(Model(), rule))
    for k in range(count):
        requests.add(k, conditions(rule, k), num_steps=4)
    requests(torch.cat([noise(k) for k in range(count)]), torch.zeros(count))
    own = noise(0).nbytes
    for k in range(count - 1):
        left = requests.remove(k).state
        kept = [left, *(requests[other].state for other in requests.ids)]
        assert all(state._tensors["average"].untyped_storage().nbytes() == own for state in kept)
