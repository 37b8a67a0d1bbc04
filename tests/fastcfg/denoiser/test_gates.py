"""Gates over any rule: which passes a step runs, what stands for the others, and what makes a memory void."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg import (
    APG,
    CFG,
    Gate,
    GatedCFG,
    GuidedDenoiser,
    InstructPix2Pix,
    MultiCondition,
    PerpNeg,
    Prediction,
    Requests,
    Rescale,
    Rule,
    State,
    guide,
    schedules,
)
from fastcfg.denoiser.planner import run_cost

from .models import draw

X = draw(2, 3, 4, 5)
STEPS = 10


class Model:
    """``x + a**t * sin(y)``, whose deltas move at a known pace, and which counts its passes."""

    def __init__(self, pace: float = 1.1, dtype: torch.dtype = torch.float64) -> None:
        self.pace, self.calls, self.dtype = pace, 0, dtype

    def __call__(self, x: Tensor, t: float, y: Tensor) -> Tensor:
        self.calls += x.shape[0] // X.shape[0]
        moved: Tensor = x.double() + self.pace**t * y.double()
        return moved.to(self.dtype)


def given(rule: Rule, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    return {n: {"y": draw(*X.shape, seed=100 * seed + i)} for i, n in enumerate(rule.conditions)}


def run(
    rule: Rule, gate: Gate | None, steps: int = STEPS, model: Model | None = None, **options: Any
) -> tuple[list[int], Tensor]:
    """Passes at each step, and the last latent of an Euler run."""
    model = Model() if model is None else model
    denoiser, state, x = GuidedDenoiser(model, rule, gate=gate, **options), State(), X.to(model.dtype)
    conditions, counts = given(rule), []
    for step in range(steps):
        before = model.calls
        x = x - 0.01 * denoiser(x, float(step), conditions=conditions, step=step, num_steps=steps, state=state)
        counts.append(model.calls - before)
    assert sum(counts) == denoiser.passes_run
    return counts, x


RULES: list[Rule] = [
    CFG(4.0), CFG(4.0, rescale=0.5), APG(5.0, 0.5, 2.0, -0.5), PerpNeg(4.0, (1.0,)), InstructPix2Pix(5.0, 1.5),
    MultiCondition((3.0, 2.0)), Rescale(CFG(schedules.Linear(2.0, 5.0)), 0.3),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_a_left_out_pass_is_cond_less_its_own_last_delta(rule: Rule) -> None:
    """Against a loop written out in float64: each prediction has a memory of its own, whatever the rule makes of it."""
    model, conditions, state = Model(), given(rule), State()
    denoiser = GuidedDenoiser(model, rule, gate=Gate(every=3))
    main = "cond" if "cond" in rule.conditions else "cond_1"
    x, deltas, own = X.double(), {}, State()
    for step in range(STEPS):
        before = model.calls
        got = denoiser(x, float(step), conditions=conditions, step=step, num_steps=STEPS, state=state)
        assert model.calls - before == (len(rule.conditions) if step % 3 == 0 else 1)
        true = {n: model(x, float(step), **conditions[n]) for n in rule.conditions}
        if step % 3 == 0:
            deltas = {n: true[main] - true[n] for n in rule.conditions}
        predictions = {n: true[main] - deltas[n] for n in rule.conditions}
        expected = guide(rule.at(step, STEPS), state=own, **dict[str, Any](predictions))
        # One subtraction more and one less, of numbers below 16.
        torch.testing.assert_close(got, expected, rtol=2.0**-40, atol=2.0**-44)
        x = x - 0.01 * expected


@pytest.mark.parametrize(
    ("gate", "fresh"),
    [
        (Gate(), range(10)), (Gate(every=1), range(10)), (Gate(every=4), (0, 4, 8)),
        (Gate(until=0.6), range(6)), (Gate(until=0.0), (0,)), (Gate(until=1.0), range(10)),
        (Gate(every=2, until=0.6), (0, 2, 4)), (Gate(steps=(0, 1, 5), num_steps=10), (0, 1, 5)),
        (Gate(steps=(), num_steps=10), (0,)), (Gate(every=3, steps=(1,), num_steps=10), (0, 1, 4, 7)),
    ],
    ids=repr,
)  # fmt: skip
def test_the_steps_say_which_passes_are_fresh(gate: Gate, fresh: Any) -> None:
    expected = [2 if step in fresh else 1 for step in range(10)]
    counts, _ = run(CFG(4.0), gate)
    assert counts == expected
    assert run_cost(CFG(4.0), 10, gate=gate).passes == tuple(expected)
    assert Gate.from_json(gate.to_json()) == gate


@pytest.mark.parametrize("steps", [7, 10, 30, 50])
@pytest.mark.parametrize("share", [0.0, 0.29, 0.5, 0.6, 0.7, 1.0])
def test_a_share_is_the_engines_formula(share: float, steps: int) -> None:
    """FastVideo 0.2.1 and sglang 0.5.23: ``i >= int(len(timesteps) * share)`` and a delta in the cache."""
    gate_step, cached, expected = int(steps * share), False, []
    for i in range(steps):
        reuse = i >= gate_step and cached
        cached = True
        expected.append(1 if reuse else 2)
    assert run_cost(CFG(4.0), steps, gate=Gate(until=share)).passes == tuple(expected)


def test_an_interval_a_schedule_and_a_gate_compose() -> None:
    rule = CFG(schedules.Interval(4.0, 0.3, 0.8), rescale=schedules.Linear(0.1, 0.3))
    for gate in (Gate(every=3), Gate(until=0.5), Gate(steps=(1, 4, 6), num_steps=10), None):
        counts, _ = run(rule, gate)
        assert tuple(counts) == run_cost(rule, 10, gate=gate).passes
    assert run(rule, Gate(every=3))[0] == [1, 1, 1, 2, 1, 1, 2, 1, 1, 1]
    # A step of the list that the interval left out is made up for at the first that is guided.
    assert run(rule, Gate(steps=(1, 4, 6), num_steps=10))[0] == [1, 1, 1, 2, 2, 1, 2, 1, 1, 1]


def test_adaptive_guidance_goes_on_with_cond_alone() -> None:
    conditions = given(CFG())

    def cosine(step: int) -> float:
        u, c = (model(X.double(), float(step), **conditions[n]).flatten(1) for n in ("uncond", "cond"))
        return float(torch.nn.functional.cosine_similarity(u, c).min())

    model = Model(pace=0.7)
    found = [cosine(step) for step in range(STEPS)]
    first = next(step for step, value in enumerate(found) if value >= 0.9)
    assert 0 < first < STEPS - 2 and found == sorted(found)
    denoiser, state, model.calls = GuidedDenoiser(model, CFG(4.0), gate=Gate(cosine=0.9)), State(), 0
    for step in range(STEPS):
        got = denoiser(X.double(), float(step), conditions=conditions, step=step, num_steps=STEPS, state=state)
        if step > first:
            assert torch.equal(got, Model(0.7)(X.double(), float(step), **conditions["cond"]))
    assert model.calls == 2 * (first + 1) + STEPS - 1 - first
    assert denoiser.report().saved_by == {"stopped": STEPS - 1 - first}


def test_a_linear_extrapolation_takes_the_last_two_deltas() -> None:
    # A delta that grows by a constant amount each step is met exactly by 2 d(n-1) - d(n-2) and the like.
    class Linear(Model):
        def __call__(self, x: Tensor, t: float, y: Tensor) -> Tensor:
            self.calls += x.shape[0] // X.shape[0]
            return x.double() + (1 + t) * y.double()

    fresh = (0, 2, 4, 7)
    weights = []
    for step in range(STEPS):
        last, before = [*[s for s in fresh if s <= step][::-1], 0, 0][:2]
        ahead = (step - last) / (last - before) if last > before else 0.0
        weights.append((1 + ahead, -ahead))
    gate = Gate(steps=fresh, weights=tuple(weights), num_steps=STEPS)
    counts, got = run(CFG(4.0), gate, model=Linear())
    _, full = run(CFG(4.0), None, model=Linear())
    _, held = run(CFG(4.0), Gate(steps=fresh, num_steps=STEPS), model=Linear())
    assert counts == [2 if step in fresh else 1 for step in range(STEPS)]
    # Step 1 alone has one delta to go by, and misses its growth of (s - 1) d.
    first = 0.01 * 3 * (given(CFG())["cond"]["y"].double() - given(CFG())["uncond"]["y"].double()) * 0.99**8
    torch.testing.assert_close(got - full, first, rtol=1e-9, atol=1e-12)
    assert (got - full).norm() < 0.2 * (held - full).norm()


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_deltas_are_remembered_in_a_space(space: Any) -> None:
    """In a space, what is taken again is the delta of the clean samples, say, not that of the model's own kind."""
    rule, conditions, state, model = CFG(4.0), given(CFG()), State(), Model()
    denoiser = GuidedDenoiser(model, rule, gate=Gate(every=3, space=space))
    for step in range(4):
        level = Prediction("v", 0.6 + 0.05 * step, (1 - (0.6 + 0.05 * step) ** 2) ** 0.5)
        got = denoiser(
            X.double(), float(step), conditions=conditions, step=step, num_steps=4, state=state, prediction=level
        )
        u, c = (model(X.double(), float(step), **conditions[n]) for n in ("uncond", "cond"))
        gain = -level.sigma if space == "x0" else level.alpha
        if step % 3 == 0:
            delta = gain * (c - u)
        torch.testing.assert_close(got, c + 3.0 * delta / gain, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=f"prediction: the gate remembers deltas as {space}"):
        denoiser(X.double(), 0.0, conditions=conditions, step=4, num_steps=9, state=state)


def counts_of(calls: list[dict[str, Any]], gate: Gate | None = None) -> list[int]:
    """Passes of calls that share a state; each may name its model, latent, conditions and step."""
    state, found = State(), []
    denoisers: dict[int, GuidedDenoiser] = {}
    for step, call in enumerate(calls):
        model = call.get("model", COMMON)
        denoiser = denoisers.setdefault(id(model), GuidedDenoiser(model, CFG(4.0), gate=gate or Gate(until=0.0)))
        before = denoiser.passes_run
        denoiser(
            call.get("x", X), 0.0, conditions=call.get("conditions", CONDITIONS), state=state,
            step=call.get("step", step), num_steps=STEPS,
        )  # fmt: skip
        found.append(denoiser.passes_run - before)
    return found


COMMON, CONDITIONS = Model(), given(CFG())


def test_another_model_resolution_condition_or_run_is_fresh() -> None:
    high, low = Model(), Model()
    assert counts_of([{"model": high}] * 3 + [{"model": low}] * 3) == [2, 1, 1, 2, 1, 1]
    wide = {"x": X.transpose(2, 3), "conditions": {n: {"y": c["y"].transpose(2, 3)} for n, c in CONDITIONS.items()}}
    assert counts_of([{}, {}, wide, wide, {}]) == [2, 1, 2, 1, 2]
    for name in ("cond", "uncond"):
        other = {"conditions": CONDITIONS | {name: {"y": draw(*X.shape, seed=77)}}}
        assert counts_of([{}, {}, other, other, {}]) == [2, 1, 2, 1, 2], name
    copies = [{"conditions": {n: {"y": c["y"].clone()} for n, c in CONDITIONS.items()}} for _ in range(4)]
    assert counts_of(copies) == [2, 1, 1, 1], "equal values are the same condition"
    assert counts_of([{}, {}, {"step": 0}, {"step": 1}]) == [2, 1, 2, 1], "a new run"


def test_a_condition_that_is_written_to_is_another() -> None:
    conditions, state = given(CFG()), State()
    denoiser = GuidedDenoiser(Model(), CFG(4.0), gate=Gate(until=0.0))
    for step, expected in enumerate((2, 3, 5, 6)):
        if step == 2:
            conditions["uncond"]["y"].mul_(2.0)
        denoiser(X, 0.0, conditions=conditions, step=step, num_steps=STEPS, state=state)
        assert denoiser.passes_run == expected


def test_each_prediction_has_a_memory_of_its_own() -> None:
    # The second condition joins at step 4, when uncond has been remembered since step 0.
    rule = MultiCondition((3.0, schedules.Interval(2.0, 0.4, 1.0, outside=0.0)))
    full, _ = run(rule, None)
    counts, _ = run(rule, Gate(every=6))
    assert full == [2] * 4 + [3] * 6
    assert counts == [2, 1, 1, 1, 2, 1, 2, 1, 1, 1]
    assert run_cost(rule, STEPS, gate=Gate(every=6)).passes == tuple(counts)


@pytest.mark.parametrize(
    "gate",
    [
        Gate(every=3),
        Gate(drift=0.25),
        Gate(until=0.3, stop=0.05),
        Gate(every=2, weights=((1.2, -0.2),) * 10, num_steps=10),
    ],
    ids=repr,
)
def test_a_run_interrupted_and_resumed_keeps_its_gate(gate: Gate) -> None:
    rule, model = APG(5.0, momentum=-0.5), Model()
    whole, last = run(rule, gate)
    state, x, counts = State(), X.double(), []
    for step in range(STEPS):
        denoiser = GuidedDenoiser(model, rule, gate=gate)
        x = x - 0.01 * denoiser(x, float(step), conditions=given(rule), step=step, num_steps=STEPS, state=state)
        counts.append(denoiser.passes_run)
        state = State({name: tensor.clone() for name, tensor in state.state_dict().items()})
    assert counts == whole and torch.equal(x, last)


@pytest.mark.parametrize(
    "gate",
    [Gate(every=3), Gate(drift=0.3), Gate(weights=((1.2, -0.2),) * 10, every=2, num_steps=10), Gate(cosine=0.5)],
    ids=repr,
)
def test_captured_and_by_request_it_is_the_same_run(gate: Gate) -> None:
    model = Model(dtype=torch.float32)

    def batched(x: Tensor, t: Any, y: Tensor) -> Tensor:
        times = t if isinstance(t, Tensor) and t.dim() else torch.full((x.shape[0],), float(t))
        model.calls += 1
        return x + 1.1 ** times.view(-1, 1, 1, 1) * y

    conditions, finals, runs = given(CFG()), [], []
    for name in ("plain", "captured", "requests"):
        denoiser, state, x = GuidedDenoiser(batched, CFG(4.0), gate=gate), State(), X
        step_by = denoiser if name == "plain" else denoiser.capture(backend="eager")
        batch = Requests(denoiser)
        for i in range(2 if name == "requests" else 0):
            batch.add(i, {n: {"y": c["y"][i : i + 1]} for n, c in conditions.items()}, num_steps=STEPS)
        for step in range(STEPS):
            t = torch.full((2,), float(step))
            if name == "requests":
                x = x - 0.01 * batch(x, t)
            else:
                x = x - 0.01 * step_by(x, t, conditions=conditions, step=step, num_steps=STEPS, state=state)
        finals.append(x)
        runs.append(batch.report().run / 2 if name == "requests" else denoiser.report().run)
    assert runs[0] == runs[1] < 20 and (gate.measures or runs[2] == runs[0])
    torch.testing.assert_close(finals[1], finals[0], rtol=0, atol=2.0**-18)
    if not gate.measures:  # A request decides by itself.
        torch.testing.assert_close(finals[2], finals[0], rtol=0, atol=2.0**-18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_reuse_costs_half_precision_one_rounding_of_the_left_out_pass(dtype: torch.dtype) -> None:
    model, conditions, state = Model(dtype=dtype), given(CFG()), State()
    denoiser = GuidedDenoiser(model, CFG(4.0), gate=Gate(until=0.0))
    for step in range(3):
        got = denoiser(X.to(dtype), float(step), conditions=conditions, step=step, num_steps=STEPS, state=state)
        u, c = (model(X.to(dtype), float(step), **conditions[n]).double() for n in ("uncond", "cond"))
        if step == 0:
            delta = c - u
        exact = c + 3.0 * delta
        half = torch.finfo(dtype).eps / 2
        bound = half * (3.0 * (c - delta).abs() + exact.abs()) + 8 * 2.0**-24 * (c.abs() + 4 * delta.abs())
        assert (got.double() - exact).abs().le(bound * (1 + 2 * half)).all()
        assert got.dtype == dtype


def test_gates_are_values_and_files(tmp_path: Path) -> None:
    gate = Gate(steps=(0, 3), weights=((1.0, 0.0),) * 5, num_steps=5, space="x0")
    gate.save(tmp_path / "gate.json")
    assert Gate.load(tmp_path / "gate.json") == gate and hash(gate) == hash(Gate.from_json(gate.to_json()))
    assert gate.to_dict()["type"] == "Gate" and "drift" not in gate.to_dict()
    for a, b in itertools.combinations([Gate(), Gate(every=2), Gate(until=0.5), gate], 2):
        assert a != b
    assert GuidedDenoiser(Model(), GatedCFG(4.0, 3, drift=0.2)).gate == Gate(3, drift=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate(every=0), "every: expected 1 or more steps"),
        (lambda: Gate(until=1.5), "until: expected a number of 0 to 1"),
        (lambda: Gate(until=True), "until: expected a number or None, got bool"),
        (lambda: Gate(drift=-1), "drift: expected a number of 0 or more"),
        (lambda: Gate(stop=float("inf")), "stop: expected"),
        (lambda: Gate(cosine=2), "cosine: expected a number of -1 to 1"),
        (lambda: Gate(steps=(1,)), "num_steps: expected the number"),
        (lambda: Gate(steps=(2, 1), num_steps=4), "steps: expected rising"),
        (lambda: Gate(steps=(4,), num_steps=4), "steps: expected steps below 4"),
        (lambda: Gate(steps=(1,), until=0.5, num_steps=4), "until: goes with every"),
        (lambda: Gate(weights=((1.0, 0.0),), num_steps=2), "weights: expected two for each of 2"),
        (lambda: Gate(**dict[str, Any](space="z")), "space: expected one of"),
        (lambda: Gate.from_json("{"), "gate: expected JSON"),
        (lambda: Gate.from_json("[]"), "gate: expected a JSON object"),
        (lambda: Gate.from_dict({"type": "CFG"}), "type: expected 'Gate', got 'CFG'"),
        (lambda: Gate.from_dict({"type": "Gate", "evry": 2}), "gate: no field evry"),
        (lambda: GuidedDenoiser(Model(), GatedCFG(), gate=Gate(2)), "gate: GatedCFG has one of its own"),
        (lambda: GuidedDenoiser(Model(), CFG(), **dict[str, Any](gate=2)), "gate: expected a fastcfg.Gate"),
        (lambda: run_cost(CFG(), 4, gate=Gate(drift=0.1)), "gate: what it measures decides"),
        (
            lambda: GuidedDenoiser(Model(), CFG(), gate=Gate(2))(X, 0.0, conditions=CONDITIONS, step=0, num_steps=4),
            "state: the gate remembers",
        ),
        (
            lambda: GuidedDenoiser(Model(), CFG(), gate=Gate(2))(X, 0.0, conditions=CONDITIONS, state=State()),
            "step: the gate needs",
        ),
        (lambda: run_cost(CFG(), 5, gate=Gate(steps=(1,), num_steps=4)), "gate: it is for runs of 4 steps, got 5"),
    ],
)
def test_errors_name_the_argument(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()
