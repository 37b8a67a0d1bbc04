"""The check behind a gate's ticks: it passes for the hosts as they are, and fails for one that saves nothing."""

from __future__ import annotations

import pytest

from benchmarks import gated_hosts
from benchmarks.gated_hosts import HOSTS, STEPS, check
from fastcfg import APG, CFG, Gate, GatedCFG


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_run_fewer_passes_to_the_same_end(host: str) -> None:
    check(host, GatedCFG(4.0))
    for gate in (Gate(every=3), Gate(until=0.5), Gate(drift=0.5), Gate(steps=(0, 1, 5), num_steps=STEPS)):
        check(host, CFG(4.0), gate)
        check(host, APG(4.0, momentum=-0.5), gate)


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    full, x = HOSTS["Requests"](CFG(4.0), None)
    assert full == 2 * STEPS
    passes, gated = HOSTS["Requests"](CFG(4.0), Gate(every=2))
    monkeypatch.setattr(gated_hosts, "HOSTS", {"full": lambda *_: (full, x), "off": lambda *_: (passes, 1.01 * gated)})
    with pytest.raises(ValueError, match="gate: ran 16 of 16 passes, where 12 do"):
        check("full", CFG(4.0), Gate(every=2))
    with pytest.raises(ValueError, match="off the same policy in a GuidedDenoiser"):
        check("off", CFG(4.0), Gate(every=2))
