"""A rule's memory: explicit, the caller's, and whole after a round trip."""

import pytest
import torch
from conformance.cases import draw

from fastcfg import APG, CFG, APGMix, GatedCFG, ResidualCFG, State, guide
from fastcfg.core.state import gather_states, scatter_states


def test_it_is_a_mapping_of_tensors() -> None:
    state = State()
    assert len(state) == 0 and "average" not in state and list(state) == []
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    state["average"], state["delta"] = a, b
    assert state["average"] is a and list(state) == ["average", "delta"] and len(state) == 2
    assert "[2, 3]" in repr(state)
    with pytest.raises(KeyError):
        state["stock"]
    state.reset()
    assert len(state) == 0


def test_saving_and_loading() -> None:
    state = State({"average": torch.ones(2, 3)})
    saved = state.state_dict()
    state["average"] = torch.zeros(2, 3)
    assert torch.equal(saved["average"], torch.ones(2, 3)), "what was saved has changed"
    state.load_state_dict(saved)
    saved["other"] = torch.ones(1)
    assert list(state) == ["average"] and torch.equal(state["average"], torch.ones(2, 3))
    given = {"average": torch.ones(1)}
    state = State(given)
    state["delta"] = torch.ones(1)
    assert list(given) == ["average"]


def test_safetensors_round_trip(tmp_path: object) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    predictions = draw(("uncond", "cond"), (2, 4, 6, 6), torch.bfloat16)
    rule, state = APG(3.0, 0.0, 2.0, -0.5), State()
    guide(rule, state=state, **predictions)
    safetensors.save_file(state.state_dict(), tmp_path / "state.safetensors")
    again = State(safetensors.load_file(tmp_path / "state.safetensors"))
    assert torch.equal(guide(rule, state=again, **predictions), guide(rule, state=state, **predictions))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtype_and_shape_of_what_is_kept(dtype: torch.dtype, backend: str) -> None:
    predictions = draw(("uncond", "cond"), (2, 4, 6, 6), dtype)
    for rule, name in (
        (APG(3.0, momentum=-0.5), "average"),
        (APG(3.0, momentum=-0.5, dims=(1,)), "average"),
        (APG(3.0, momentum=-0.5, dims=(-1,)), "average"),
        (APGMix(phase="cfg"), "average"),
        (GatedCFG(3.0, phase="refresh"), "delta"),
    ):
        state = State()
        guide(rule, state=state, backend=backend, **predictions)
        assert list(state) == [name] and state[name].shape == (2, 4, 6, 6)
        assert state[name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        delta = predictions["cond"].to(state[name].dtype) - predictions["uncond"].to(state[name].dtype)
        assert torch.equal(state[name], delta), rule


def test_requests_do_not_meet() -> None:
    rule = APG(3.0, 0.0, 2.0, -0.5)
    a, b = State(), State()
    first, second = (draw(("uncond", "cond"), (1, 4, 6, 6), torch.float32, seed) for seed in (0, 1))
    alone = State()
    expected = [guide(rule, state=alone, **first) for _ in range(3)]
    got = []
    for _ in range(3):
        got.append(guide(rule, state=a, **first))
        guide(rule, state=b, **second)
    assert all(map(torch.equal, got, expected))
    assert not torch.equal(got[0], got[1]), "the momentum does nothing"


def test_what_a_call_kept_is_not_written_by_the_next() -> None:
    predictions = draw(("uncond", "cond"), (2, 4, 6, 6), torch.float32)
    for rule in (APG(3.0, momentum=-0.5), GatedCFG(3.0, phase="refresh")):
        state = State()
        guide(rule, state=state, **predictions)
        (name,) = state
        before, copy = state[name], state[name].clone()
        guide(rule, state=state, **{n: 2 * p for n, p in predictions.items()})
        assert torch.equal(before, copy) and not torch.equal(state[name], copy)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("target", ["uncond", "cond"])
def test_out_may_alias_an_input_of_a_rule_with_state(target: str, backend: str) -> None:
    for rule in (APG(3.0, 0.0, 2.0, -0.5), APG(3.0, 0.0, 2.0, -0.5, dims=(1,)), GatedCFG(3.0, phase="refresh")):
        predictions = draw(("uncond", "cond"), (2, 4, 6, 6), torch.float32)
        fresh, state = State(), State()
        expected = [guide(rule, state=fresh, backend=backend, **predictions) for _ in range(2)]
        for want in expected:
            copies = {n: p.clone() for n, p in predictions.items()}
            assert guide(rule, state=state, backend=backend, out=copies[target], **copies) is copies[target]
            assert torch.equal(copies[target], want), rule
        assert all(torch.equal(state[n], fresh[n]) for n in fresh)


def test_rules_without_memory_leave_it_alone() -> None:
    predictions = draw(("uncond", "cond"), (2, 30), torch.float32)
    state = State()
    assert torch.equal(guide(CFG(3.0), state=state, **predictions), guide(CFG(3.0), **predictions))
    guide(APG(3.0), state=state, **predictions)
    assert len(state) == 0


def test_a_state_of_another_request_is_refused_by_its_shape() -> None:
    state = State({"stock": torch.ones(3, 5)})
    with pytest.raises(ValueError, match="stock: expected"):
        guide(ResidualCFG(2.0), state=state, cond=torch.ones(2, 5))
    state = State({"stock": torch.ones(2, 5, dtype=torch.float64)})
    with pytest.raises(ValueError, match="stock: expected"):
        guide(ResidualCFG(2.0), state=state, cond=torch.ones(2, 5, dtype=torch.float16))


@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
def test_stock_noise_may_have_the_predictions_dtype(backend: str) -> None:
    cond, stock = draw(("cond", "stock"), (2, 5), torch.float16).values()
    results = [
        guide(ResidualCFG(2.0, 0.5), state=State({"stock": s}), cond=cond, backend=backend)
        for s in (stock, stock.float())
    ]
    assert torch.equal(*results)


def test_a_stock_noise_that_is_missing_is_an_error() -> None:
    cond = torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"state: ResidualCFG reads 'stock', which the caller gives; put it there"):
        guide(ResidualCFG(2.0), state=State(), cond=cond)


def test_a_new_run_forgets_what_rules_remember_and_nothing_else() -> None:
    predictions = draw(("uncond", "cond"), (2, 4, 6, 6), torch.float32)
    state = State({"stock": torch.ones(2, 4, 6, 6)})
    guide(APG(3.0, momentum=-0.5), state=state, **predictions)
    state.numbers["refreshed"] = 3.0
    assert set(state) == {"stock", "average"}
    state.restart()
    assert set(state) == {"stock"} and not state.numbers
    state.reset()
    assert not list(state)


def test_what_is_kept_comes_back() -> None:
    predictions = draw(("uncond", "cond"), (2, 4, 6, 6), torch.float32)
    state = State()
    guide(APG(3.0, momentum=-0.5), state=state, **predictions)
    before, back = state["average"], state.kept()
    guide(APG(3.0, momentum=-0.5), state=state, **predictions)
    state["stock"] = torch.ones(1)
    assert not torch.equal(state["average"], before)
    back()
    assert state["average"] is before and list(state) == ["average"]


def test_rows_of_a_batch_are_copied_before_they_are_given_away() -> None:
    batch = State({"average": torch.randn(32, 4, 6, 6)})
    states = [State() for _ in range(32)]
    scatter_states(batch, states, ["average"])
    assert gather_states(states, ["average"])["average"] is batch["average"], "a batch that stays is not put together"
    for give in (lambda s: s["average"], lambda s: s.get("average"), lambda s: s.state_dict()["average"]):
        scatter_states(batch, states, ["average"])
        row = give(states[3])
        assert torch.equal(row, batch["average"][3:4])
        assert row.untyped_storage().nbytes() == 4 * 6 * 6 * 4, "the storage holds other requests' rows"
    assert torch.equal(gather_states(states, ["average"])["average"], batch["average"])
