"""Many threads: a denoiser each gives the bits of one thread; one for all is refused while it is in use."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fastcfg import APG, CFG, GuidedDenoiser, Requests, State

CONDITIONS: dict[str, Any] = {"uncond": {"label": torch.zeros(2)}, "cond": {"label": torch.ones(2)}}


def model(x: torch.Tensor, t: Any, label: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) + label.view(-1, *[1] * (x.dim() - 1))


def steps(seed: int) -> list[torch.Tensor]:
    denoiser, state = GuidedDenoiser(model, APG(3.0 + seed, eta=0.3, momentum=-0.5)), State()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    found = []
    for step in range(4):
        x = denoiser(x, step, step=step, num_steps=4, conditions=CONDITIONS, state=state)
        found.append(x)
    return found


def test_a_denoiser_each_gives_the_bits_of_one_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(steps, range(16)))
    for seed, results in enumerate(found):
        assert all(torch.equal(a, b) for a, b in zip(results, steps(seed), strict=True))


def entered_from_two_threads(make: Any, call: Any) -> None:
    inside, leave = threading.Event(), threading.Event()

    def slow(x: torch.Tensor, t: Any, label: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert leave.wait(30)
        return model(x, t, label)

    shared = make(slow)
    first = threading.Thread(target=call, args=(shared,))
    first.start()
    assert inside.wait(30)
    try:
        with pytest.raises(RuntimeError, match="another thread is in a call of it"):
            call(shared)
    finally:
        leave.set()
        first.join()
    call(shared)


def test_a_denoiser_in_use_is_refused_to_another_thread() -> None:
    x = torch.randn(2, 3, 8, 8)
    entered_from_two_threads(
        lambda slow: GuidedDenoiser(slow, CFG(3.0)), lambda denoiser: denoiser(x, 0, conditions=CONDITIONS)
    )


def test_requests_in_use_are_refused_to_another_thread() -> None:
    one = {name: {"label": given["label"][:1]} for name, given in CONDITIONS.items()}

    def make(slow: Any) -> Requests:
        made = Requests(GuidedDenoiser(slow, CFG(3.0)))
        made.add("a", one, num_steps=10)
        return made

    entered_from_two_threads(make, lambda requests: requests(torch.randn(1, 3, 8, 8), torch.zeros(1)))


def test_a_model_may_call_its_own_denoiser_and_an_error_lets_go() -> None:
    depth = []

    def nested(x: torch.Tensor, t: Any, label: torch.Tensor) -> torch.Tensor:
        depth.append(1)
        if len(depth) == 1:
            outer(x[:2], t, conditions=CONDITIONS)
        if len(depth) == 3:
            raise KeyError("model")
        return model(x, t, label)

    outer = GuidedDenoiser(nested, CFG(3.0), mode="sequential")
    for error in (KeyError, None):
        if error is None:
            assert outer(torch.randn(2, 3), 0, conditions=CONDITIONS).shape == (2, 3)
        else:
            with pytest.raises(error):
                outer(torch.randn(2, 3), 0, conditions=CONDITIONS)


def test_requests_with_rules_of_their_own_leave_nothing_behind() -> None:
    requests = Requests(GuidedDenoiser(model, CFG(3.0)))
    one = {name: {"label": given["label"][:1]} for name, given in CONDITIONS.items()}
    kept = []
    for number in range(50):
        request = requests.add(number, one, num_steps=1, rule=CFG(4.0 + number / 10))
        twin = requests.add("twin", one, num_steps=1, rule=CFG(4.0 + number / 10))
        assert twin.denoiser is request.denoiser
        requests.remove("twin")
        requests(torch.randn(1, 3), torch.zeros(1))
        kept.append(weakref.ref(request.denoiser))
        requests.remove(number)
    del request, twin
    gc.collect()
    assert sum(ref() is not None for ref in kept) == 0
    assert len(requests._denoisers) == 1
