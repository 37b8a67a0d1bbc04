"""Rings of records: their turn, their readers, threads, replays without Python, and memory that does not grow."""

import gc
import threading
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fastcfg
from fastcfg import CFG, GuidedDenoiser, Requests, schedules
from fastcfg.telemetry import Telemetry, recorder
from fastcfg.telemetry.rings import GraphRing, Ring, Write

RULE = CFG(3.0, rescale=0.7)
CPU = torch.device("cpu")


def pair(length: float = 1.0, batch: int = 3) -> dict[str, torch.Tensor]:
    """Predictions whose delta is so many times as long as the first."""
    u = torch.randn(batch, 2, 8, generator=torch.Generator().manual_seed(0))
    return {"uncond": u, "cond": u - length * u}


def guided(telemetry: Any, length: float = 1.0, batch: int = 3) -> torch.Tensor:
    return fastcfg.guide(RULE, **pair(length, batch), telemetry=telemetry)


def test_the_ring_turns() -> None:
    telemetry = Telemetry(capacity=8)
    for call in range(7):
        guided(telemetry.at(10 + call), 1.0 + call)
    found = telemetry.read()
    assert found.call.tolist() == [4, 4, 5, 5, 5, 6, 6, 6] and found.sample.tolist() == [1, 2, 0, 1, 2, 0, 1, 2]
    assert found.step.tolist() == [10 + c for c in found.call]
    np.testing.assert_allclose(found.figures["delta_ratio"], 1.0 + found.call, rtol=1e-5)
    assert telemetry.to_dict()["records_lost"] == 13


def test_draining_gives_each_record_once() -> None:
    telemetry = Telemetry(capacity=8)
    guided(telemetry)
    assert len(telemetry.read()) == 3
    assert len(telemetry.drain()) == 3 and len(telemetry.drain()) == 0
    guided(telemetry)
    found = telemetry.drain()
    assert found.call.tolist() == [1, 1, 1] and found.lost == 0
    for _ in range(4):
        guided(telemetry)
    found = telemetry.drain()
    assert len(found) == 8 and found.lost == 4


def test_a_call_with_more_samples_than_the_ring_holds() -> None:
    telemetry = Telemetry(capacity=4)
    guided(telemetry, batch=2)
    guided(telemetry.at([5, 6, 7, 8, 9, 10], "abcdef"), batch=6)
    found = telemetry.drain()
    assert found.sample.tolist() == [2, 3, 4, 5] and found.step.tolist() == [7, 8, 9, 10]
    assert found.ids == ("c", "d", "e", "f") and found.lost == 4


def test_threads_share_a_recorder() -> None:
    telemetry, calls = Telemetry(capacity=10_000), 40
    done = threading.Event()
    seen: list[int] = []

    def work(k: int) -> None:
        for step in range(calls):
            guided(telemetry.at(step, [k] * 3), 1.0 + k)

    def watch() -> None:
        while not done.is_set():
            seen.append(len(telemetry.read()))

    reader = threading.Thread(target=watch)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    found = telemetry.drain()
    assert len(found) == 4 * calls * 3 and seen == sorted(seen) and telemetry.calls == 4 * calls
    np.testing.assert_allclose(found.figures["delta_ratio"], 1.0 + np.array(found.ids), rtol=1e-5)
    for k in range(4):
        assert found[np.array(found.ids) == k].step.tolist() == [s for s in range(calls) for _ in range(3)]


def test_memory_does_not_grow() -> None:
    telemetry = Telemetry(capacity=16)

    def held() -> int:
        for call in range(300):
            guided(telemetry.at(call, [object() for _ in range(3)]))
        telemetry.read()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        held()
        sizes = [held() for _ in range(4)]
    finally:
        tracemalloc.stop()
    # What leaks grows each time; what another thread or a cache keeps for once does not.
    grown = min(after - before for before, after in pairwise(sizes))
    assert grown < 4096, "a few numbers and no records"
    [ring] = telemetry._rings.values()
    assert len(ring.placed()) <= 16 and ring.figures.shape[0] == 16


def test_a_replay_writes_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured is operations on tensors alone: traced, they run again and fill the ring."""
    telemetry = Telemetry(capacity=8)
    with monkeypatch.context() as patched:
        patched.setattr(recorder, "_capturing", lambda device: True)
        with pytest.raises(RuntimeError, match=r"telemetry: .* capture"):
            guided(telemetry)
        telemetry._rings[CPU, "graph"] = GraphRing(CPU, 8)
        inputs = pair(2.0)

        def step(uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            return fastcfg.guide(RULE, uncond=uncond, cond=cond, telemetry=telemetry, backend="torch")

        replay = make_fx(step)(*inputs.values())
    calls = telemetry.calls
    ring = telemetry._rings[CPU, "graph"]
    at = (ring.figures.data_ptr(), ring.position.data_ptr())
    telemetry.drain()
    for k in range(5):
        telemetry.set_step(20 + k, CPU)
        assert torch.equal(replay(*pair(1.0 + k).values()), fastcfg.guide(RULE, **pair(1.0 + k), backend="torch"))
    found = telemetry.drain()
    assert telemetry.calls == calls and (ring.figures.data_ptr(), ring.position.data_ptr()) == at
    assert found.step.tolist() == [22, 22, 23, 23, 23, 24, 24, 24] and found.call.tolist() == [-1] * 8
    assert found.sample.tolist() == [1, 2, 0, 1, 2, 0, 1, 2] and found.lost == 7
    np.testing.assert_allclose(found.figures["delta_ratio"], found.step - 19.0, rtol=1e-5)
    np.testing.assert_allclose(found.figures["factor"], guided_factor(found.step - 19.0), rtol=1e-4)


def guided_factor(length: np.ndarray) -> np.ndarray:
    """Of ``(1 - 3 length) u`` rescaled to ``(1 - length) u``."""
    return 0.3 + 0.7 * np.abs(1 - length) / np.abs(1 - 3 * length)


def test_a_captured_call_has_to_fit() -> None:
    ring = GraphRing(CPU, 2)
    with pytest.raises(ValueError, match="capacity"):
        ring.write(torch.zeros(3, 1, dtype=torch.float64), Write(("factor",), 1, 0, None, None))


class Later(Ring):
    """A ring whose copies arrive when they are told to, and may be torn."""

    def __init__(self, capacity: int) -> None:
        super().__init__(CPU, capacity)
        self.asynchronous = True
        self.ready = False
        self._copy.done = SimpleNamespace(
            query=lambda: self.ready, synchronize=lambda: setattr(self, "ready", True), record=lambda stream: None
        )


def test_a_reader_takes_what_has_arrived_and_is_whole() -> None:
    ring = Later(8)
    write = Write(("factor",), 1, 0, None, None)
    for k in range(3):
        ring.write(torch.full((2, 1), float(k), dtype=torch.float64), write)
    assert not ring.arrived(), "nothing was asked for"
    ring.request()
    assert not ring.arrived(), "it is on its way"
    ring.ready = True
    taken = ring.take(ring.placed())
    assert taken.first == 0 and taken.records.figures["factor"].tolist() == [0, 0, 1, 1, 2, 2]
    for k in range(3, 6):
        ring.write(torch.full((2, 1), float(k), dtype=torch.float64), write)
    ring.request()
    # While the ring was copied two more writes were made, and a third may have begun: records 4 to 9 of 10 are in
    # their places, of which the writes of numbers 12 and 13 replaced 4 and 5.
    ring._copy.before.fill_(10)
    ring._copy.after.fill_(12)
    taken = ring.take(ring.placed())
    assert taken.first == 6 and taken.records.figures["factor"].tolist() == [3, 3, 4, 4]
    ring.request()
    ring._copy.before.fill_(4)
    assert len(ring.take(ring.placed()).records) == 0, "all of it was overwritten meanwhile"


def model(x: torch.Tensor, t: Any, y: torch.Tensor) -> torch.Tensor:
    return torch.sin(x * y.view(-1, 1, 1))


def conditions(batch: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    return {"uncond": {"y": torch.full((batch,), 0.5)}, "cond": {"y": torch.full((batch,), 2.0)}}


def test_a_denoiser_counts_passes_and_notes_steps() -> None:
    telemetry = Telemetry()
    rule = CFG(schedules.Interval(4.0, start=0.25, stop=0.75), rescale=0.7)
    denoisers = [GuidedDenoiser(model, rule, telemetry=told) for told in (telemetry, None)]
    x = torch.randn(2, 3, 4)
    for step in range(8):
        arguments: dict[str, Any] = {"conditions": conditions(2), "step": step, "num_steps": 8}
        told, plain = (denoiser(x, 0.5, **arguments) for denoiser in denoisers)
        assert torch.equal(told, plain)
    report = telemetry.report()
    assert report == denoisers[0].report() and report.saved_by["schedule"] > 0
    found = telemetry.drain()
    assert sorted(set(found.step.tolist())) == [2, 3, 4, 5] and len(found) == 2 * telemetry.calls
    text = telemetry.to_prometheus()
    assert f'fastcfg_passes_saved_total{{reason="schedule"}} {report.saved}' in text
    assert f"fastcfg_passes_run_total {report.run}" in text


def test_requests_that_join_and_leave_keep_their_figures() -> None:
    telemetry = Telemetry()
    batch = Requests(GuidedDenoiser(model, RULE, telemetry=telemetry))
    x = {id: torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(k)) for k, id in enumerate("abc")}

    def step() -> None:
        ids = batch.ids
        batch(torch.cat([x[id] for id in ids]), torch.zeros(len(ids)))

    batch.add("a", conditions(), num_steps=4)
    step()
    batch.add("b", conditions(), num_steps=2, rule=CFG(5.0, rescale=0.7))
    step()
    batch.add("c", conditions(), num_steps=4, rule=fastcfg.APG(3.0))  # Guided in a call of its own.
    step()
    batch.remove("b")
    step()
    found = telemetry.drain()
    steps = {id: found[np.array([own == id for own in found.ids])].step.tolist() for id in "abc"}
    assert steps == {"a": [0, 1, 2, 3], "b": [0, 1], "c": [0, 1]}
    for k, id in enumerate(found.ids):
        p = [model(x[str(id)], 0, conditions()[n]["y"]).double() for n in ("uncond", "cond")]
        expected = float((p[1] - p[0]).norm() / p[0].norm())
        assert found.figures["delta_ratio"][k] == pytest.approx(expected, rel=1e-4)
    assert telemetry.report().run == batch.report().run == 16


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_a_captured_step_without_a_graph(backend: Any) -> None:
    telemetry = Telemetry()
    captured = GuidedDenoiser(model, RULE, telemetry=telemetry).capture(
        backend=backend, options={"backend": "aot_eager"} if backend == "compile" else None
    )
    plain = GuidedDenoiser(model, RULE)
    x = torch.randn(2, 3, 4)
    for step in range(3):
        arguments: dict[str, Any] = {"conditions": conditions(2), "step": step, "num_steps": 3}
        torch.testing.assert_close(captured(x, 0.5, **arguments), plain(x, 0.5, **arguments))
    assert telemetry.report().run == 6
    assert len(telemetry.drain()) == (6 if backend == "eager" else 0), "a compiled step is not recorded"
