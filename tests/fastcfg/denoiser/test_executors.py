"""How passes are run: together or apart, from buffers that stay, and never with another result."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcfg import CFG, Condition, DualCFG, GuidedDenoiser, Perturbed, Sampler, guide, schedules
from fastcfg.core.conditions import same_condition
from fastcfg.denoiser import Auto, Batched, Executor, Pass, Sequential
from fastcfg.denoiser.automatic import CPU_ELEMENTS, fits

from .models import Counting, draw, labels

X = draw(2, 3, 4, 5)


class Copies(TorchDispatchMode):
    """Names of the operations that make a batch of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func.overloadpacket.__name__) in ("cat", "repeat", "copy_", "stack"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Hooked(Counting):
    """A model with a switch, as hooks that skip layers are one: it counts for every row of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.skips = False
        self.seen: list[tuple[bool, int]] = []

    def __call__(self, x: torch.Tensor, t: Any, y: torch.Tensor, **other: Any) -> Any:
        self.seen.append((self.skips, x.shape[0]))
        return super().__call__(0.5 * x if self.skips else x, t, y, **other)

    @contextmanager
    def skip(self) -> Iterator[None]:
        self.skips = True
        try:
            yield
        finally:
            self.skips = False


@pytest.mark.parametrize("mode", ["batched", "sequential", "auto"])
def test_a_pass_with_a_hook_keeps_it_from_the_others(mode: str) -> None:
    model, rule = Hooked(), Perturbed(4.0, 2.0)
    given: dict[str, Any] = labels(*rule.conditions)
    given["perturbed"] = Condition(given["cond"], context=model.skip)
    got = GuidedDenoiser(model, rule, mode=mode)(X, 0.5, conditions=given)
    plain, own = Counting(), labels(*rule.conditions)
    u, c, p = plain(X, 0.5, **own["uncond"]), plain(X, 0.5, **own["cond"]), plain(0.5 * X, 0.5, **own["cond"])
    torch.testing.assert_close(got, u + 4 * (c - u) + 2 * (c - p), rtol=0, atol=2.0**-19)
    apart = [(False, 2), (False, 2), (True, 2)]
    assert model.seen == (apart if mode == "sequential" else [(False, 4), (True, 2)])
    assert not model.skips


def test_hooked_passes_of_one_context_share_a_batch_and_models_don_t() -> None:
    model, weaker = Hooked(), Counting()
    rule = DualCFG(4.0, 2.0)
    given: dict[str, Any] = labels(*rule.conditions)
    skipped = {n: Condition(c, context=model.skip) for n, c in given.items() if n != "cond"}
    GuidedDenoiser(model, rule)(X, 0.5, conditions={**given, **skipped})
    assert sorted(model.seen) == [(False, 2), (True, 4)]
    model.seen = []
    GuidedDenoiser(model, rule)(X, 0.5, conditions={**given, "negative": Condition(given["negative"], model=weaker)})
    assert model.seen == [(False, 4)] and weaker.sizes == [2]


def test_conditions_are_the_same_only_with_the_same_model_and_context() -> None:
    kwargs = labels("a")["a"]
    model, other = Counting(), Counting()
    assert same_condition(Condition(kwargs, model), Condition({"y": kwargs["y"][:]}, model))
    assert same_condition(Condition(kwargs), kwargs) and same_condition(kwargs, Condition(kwargs))
    assert not same_condition(Condition(kwargs, model), Condition(kwargs, other))
    assert not same_condition(Condition(kwargs, context=Hooked().skip), kwargs)
    given = {"uncond": kwargs, "cond": Condition(kwargs, model=other)}
    denoiser = GuidedDenoiser(model, CFG(3.0))
    denoiser(X, 0.5, conditions=given)
    assert denoiser.passes_run == 2 and model.sizes == other.sizes == [2]


@torch.no_grad()
def test_nothing_is_concatenated_from_the_second_step_on() -> None:
    denoiser, given = GuidedDenoiser(Counting(), CFG(4.0)), labels("uncond", "cond")
    first = denoiser(X, 0.5, conditions=given)
    address = denoiser.model.calls[0]["x"].data_ptr()  # type: ignore[attr-defined]
    with Copies() as copies:
        again = denoiser(X, 0.5, conditions=given)
    assert copies.seen == ["copy_"] and torch.equal(first, again)
    assert denoiser.model.calls[1]["x"].data_ptr() == address  # type: ignore[attr-defined]
    denoiser.reset()
    with Copies() as copies:
        denoiser(X, 0.5, conditions=given)
    assert "cat" in copies.seen


def test_a_condition_that_was_written_to_is_read_again() -> None:
    denoiser, given = GuidedDenoiser(Counting(), CFG(4.0)), labels("uncond", "cond")
    denoiser(X, 0.5, conditions=given)
    for change in ("write", "replace"):
        if change == "write":
            given["cond"]["y"].add_(1)
        else:
            given["cond"]["y"] = given["cond"]["y"] * 2
        fresh = GuidedDenoiser(Counting(), CFG(4.0))(X, 0.5, conditions=given)
        assert torch.equal(denoiser(X, 0.5, conditions=given), fresh)
    with torch.inference_mode():
        frozen = labels("uncond", "cond")
        denoiser(X, 0.5, conditions=frozen)
        frozen["cond"]["y"].add_(1)
        fresh = GuidedDenoiser(Counting(), CFG(4.0))(X, 0.5, conditions=frozen)
        assert torch.equal(denoiser(X, 0.5, conditions=frozen), fresh)


def test_gradients_pass_through_the_steps() -> None:
    given, sampler = labels("uncond", "cond"), Sampler.flow([1.0, 0.5, 0.25], timesteps=[1.0, 0.5])
    grads = []
    for mode in ("batched", "sequential"):
        weight = torch.tensor(1.1, requires_grad=True)
        model = Counting(lambda y, w=weight: w * y)
        denoiser = GuidedDenoiser(model, CFG(4.0), mode=mode)  # type: ignore[arg-type]
        x = X
        with torch.no_grad():
            denoiser.step(x, sampler.steps[0], conditions=given)  # Buffers that a graph may not hold.
        for step in sampler:
            x = denoiser.step(x, step, conditions=given)
        x = denoiser(x, 0.5, conditions=given)
        (grad,) = torch.autograd.grad(x.sum(), weight)
        grads.append(grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=2.0**-16, atol=2.0**-16)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@torch.no_grad()
def test_the_input_keeps_its_order_of_memory(layout: torch.memory_format) -> None:
    denoiser = GuidedDenoiser(Counting(), CFG(4.0))
    x = X.to(memory_format=layout)
    got = denoiser(x, 0.5, conditions=labels("uncond", "cond"))
    assert denoiser.model.calls[0]["x"].is_contiguous(memory_format=layout)  # type: ignore[attr-defined]
    torch.testing.assert_close(got, GuidedDenoiser(Counting(), CFG(4.0))(X, 0.5, conditions=labels("uncond", "cond")))


def test_nested_arguments_are_put_together_item_by_item() -> None:
    seen: list[Any] = []

    def model(x: torch.Tensor, t: Any, added: Any, residuals: Any, ids: torch.Tensor) -> torch.Tensor:
        seen.append((added, residuals, ids))
        return x * added["y"].view(-1, 1, 1, 1) + residuals[0]

    ids = torch.arange(7)
    given = {
        n: {"added": c, "residuals": (draw(2, 3, 4, 5, seed=i), None), "ids": ids}
        for i, (n, c) in enumerate(labels("uncond", "cond").items())
    }
    modes = ("batched", "sequential")
    batched, apart = (GuidedDenoiser(model, CFG(4.0), mode=m)(X, 0.5, conditions=given) for m in modes)
    assert torch.equal(batched, apart)
    added, residuals, kept = seen[0]
    assert added["y"].shape == (4,) and residuals[0].shape == (4, 3, 4, 5) and residuals[1] is None and kept is ids
    given["cond"]["added"] = {**given["cond"]["added"], "z": torch.ones(2)}
    with pytest.raises(ValueError, match="conditions: 'added' differs between passes"):
        GuidedDenoiser(model, CFG(4.0))(X, 0.5, conditions=given)


def masked(x: torch.Tensor, t: Any, text: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    weight = torch.ones_like(text[..., 0]) if mask is None else mask.to(text.dtype)
    return x * ((text[..., 0] * weight).sum(1) / weight.sum(1)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("given_mask", [None, torch.bool, torch.float32, torch.int64], ids=str)
def test_padding_and_its_mask(given_mask: torch.dtype | None) -> None:
    given: dict[str, dict[str, Any]] = {"uncond": {"text": draw(2, 3, 1)}, "cond": {"text": draw(2, 6, 1, seed=1)}}
    if given_mask is not None:
        given["cond"]["mask"] = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).to(given_mask)
    calls: list[Any] = []

    def model(x: torch.Tensor, t: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs)
        return masked(x, t, **kwargs)

    got = GuidedDenoiser(model, CFG(4.0), mode=Batched(padding={"text": "mask"}))(X, 0.5, conditions=given)
    (call,) = calls
    assert call["text"].shape == (4, 6, 1) and call["mask"].dtype == (given_mask or torch.bool)
    assert call["mask"].sum(1).tolist() == [3, 3, 6 if given_mask is None else 4, 6]
    apart = GuidedDenoiser(masked, CFG(4.0), mode="sequential")(X, 0.5, conditions=given)
    torch.testing.assert_close(got, apart, rtol=2.0**-20, atol=2.0**-20)


def test_equal_lengths_get_no_mask() -> None:
    given = {"uncond": {"text": draw(2, 3, 1)}, "cond": {"text": draw(2, 3, 1, seed=1)}}
    calls: list[Any] = []

    def model(x: torch.Tensor, t: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs)
        return masked(x, t, **kwargs)

    GuidedDenoiser(model, CFG(4.0), mode=Batched(padding={"text": "mask"}))(X, 0.5, conditions=given)
    assert list(calls[0]) == ["text"]


def test_padding_errors() -> None:
    text = {"uncond": {"text": draw(2, 3, 1)}, "cond": {"text": draw(2, 6, 1)}}
    with pytest.raises(ValueError, match=r"name its mask in Batched\(padding=...\)"):
        GuidedDenoiser(masked, CFG(4.0))(X, 0.5, conditions=text)
    with pytest.raises(ValueError, match="padding: expected pairs of argument names"):
        Batched(padding={"text": "text"})
    padded = GuidedDenoiser(masked, CFG(4.0), mode=Batched(padding={"text": "mask"}))
    wrong = {"uncond": {"text": draw(2, 3, 1), "mask": torch.ones(2, 4)}, "cond": text["cond"]}
    with pytest.raises(ValueError, match=r"conditions: 'mask': expected \[2, 3\], got \[2, 4\]"):
        padded(X, 0.5, conditions=wrong)
    with pytest.raises(
        ValueError, match=r"conditions: 'text': expected a sequence \[2, L, ...\] in each pass, got NoneType"
    ):
        padded(X, 0.5, conditions={"uncond": {"text": None}, "cond": text["cond"]})
    two = Batched(padding={"text": "mask", "other": "mask"})
    given = {n: {**c, "other": draw(2, 5, 1)} for n, c in text.items()}
    with pytest.raises(ValueError, match=r"padding: the sequences of 'mask' have the lengths \[3, 6\] and \[5, 5\]"):
        GuidedDenoiser(masked, CFG(4.0), mode=two)(X, 0.5, conditions=given)


def test_auto_takes_one_batch_while_it_is_small_and_what_can_t_be_one_apart() -> None:
    given = labels("uncond", "cond")
    for elements, sizes in ((CPU_ELEMENTS // 4, [4]), (CPU_ELEMENTS // 4 + 1, [2, 2])):
        model = Counting()
        GuidedDenoiser(model, CFG(4.0), mode="auto")(torch.zeros(2, elements), 0.5, conditions=given)
        assert model.sizes == sizes
    model = Counting()
    unlike = {"uncond": {**given["uncond"], "k": 1}, "cond": {**given["cond"], "k": 2}}
    got = GuidedDenoiser(model, CFG(4.0), mode="auto")(X, 0.5, conditions=unlike)
    assert model.sizes == [2, 2]
    assert torch.equal(got, GuidedDenoiser(Counting(), CFG(4.0), mode="sequential")(X, 0.5, conditions=unlike))


def test_a_batch_fits_with_a_tenth_to_spare() -> None:
    assert fits(activation=100, passes=2, free=223) and not fits(activation=100, passes=2, free=222)
    assert fits(activation=0, passes=9, free=0)


@pytest.mark.parametrize(("free", "sizes"), [(500, [2, 2, 4, 4]), (400, [2, 2, 2, 2, 2, 2])])
def test_auto_s_choice_by_memory(free: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    # The first pass raises the peak to 1,000 with 800 allocated; 60 of what is free is the allocator's reserve.
    peaks = iter([1000, 5000])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 800)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 860)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 60, 9999))
    auto, model = Auto(), Counting()
    passes = [Pass(name, kwargs, model) for name, kwargs in labels("uncond", "cond").items()]
    found = [auto._on_cuda(X, 0.5, passes) for _ in range(3)]
    assert model.sizes == sizes, "2 passes of 200 fit 0.9 of 500 and not of 400"
    assert all(torch.equal(one["cond"], found[0]["cond"]) for one in found)
    auto.reset()
    auto._on_cuda(X, 0.5, passes)
    assert next(peaks, None) is None, "measured anew after a reset"


def test_a_batch_that_runs_out_of_memory_is_repeated_pass_by_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Counting):
        def __call__(self, x: torch.Tensor, *arguments: Any, **kwargs: Any) -> Any:
            result = super().__call__(x, *arguments, **kwargs)
            if x.shape[0] > 2:
                raise torch.OutOfMemoryError("no room")
            return result

    auto, model = Auto(), Small()
    monkeypatch.setattr(auto, "_measured", lambda x, t, passes, key: auto._fits.update({key: True}) or {})
    passes = [Pass(name, kwargs, model) for name, kwargs in labels("uncond", "cond").items()]
    for _ in range(3):
        found = auto._on_cuda(X, 0.5, passes)
    assert model.sizes == [4, 2, 2, 2, 2] and list(found) == ["uncond", "cond"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures the memory of a GPU; there is none")
def test_auto_measures_the_first_step_of_a_shape_on_a_gpu() -> None:
    model, x = Counting(), X.cuda()
    given = {n: {"y": c["y"].cuda()} for n, c in labels("uncond", "cond").items()}
    denoiser = GuidedDenoiser(model, CFG(4.0), mode="auto")
    results = [denoiser(x, 0.5, conditions=given) for _ in range(3)]
    assert model.sizes == [2, 2, 4, 4] and torch.equal(results[0], results[2])


def test_an_executor_of_one_s_own() -> None:
    class Reversed:
        def run(self, x: torch.Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, torch.Tensor]:
            return {one.name: one.predict(x, t) for one in reversed(passes)}

    model, given = Counting(), labels("uncond", "cond")
    executor = Reversed()
    assert isinstance(executor, Executor) and all(isinstance(e, Executor) for e in (Batched(), Sequential(), Auto()))
    got = GuidedDenoiser(model, CFG(4.0), mode=executor)(X, 0.5, conditions=given)
    assert torch.equal(got, GuidedDenoiser(Counting(), CFG(4.0))(X, 0.5, conditions=given))
    assert torch.equal(model.calls[0]["y"], given["cond"]["y"])
    with pytest.raises(ValueError, match=r"mode: expected 'batched', .* or an executor, got <class"):
        GuidedDenoiser(model, CFG(4.0), mode=Reversed)  # type: ignore[arg-type]


def test_interval_and_batch_buffers_of_two_sizes_live_side_by_side() -> None:
    rule, given = DualCFG(schedules.Interval(4.0, 0.0, 0.5), 0.0), labels("uncond", "cond", "negative")
    model = Counting()
    denoiser = GuidedDenoiser(model, rule)
    for step in range(4):
        got = denoiser(X, 0.5, conditions=given, step=step, num_steps=4)
        apart = GuidedDenoiser(Counting(), rule, mode="sequential")(X, 0.5, conditions=given, step=step, num_steps=4)
        assert torch.equal(got, apart)


def test_condition_errors() -> None:
    with pytest.raises(TypeError, match="kwargs: expected a mapping of keyword arguments, got list"):
        Condition([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected a callable, got int"):
        Condition({}, model=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="context: expected a callable, got str"):
        Condition({}, context="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["sequential", "batched", "auto"])
def test_a_model_that_writes_one_buffer(mode: Any) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    buffer = torch.empty(0)

    def engine(x: torch.Tensor, t: Any, y: torch.Tensor) -> torch.Tensor:
        nonlocal buffer
        result = x * y.view(-1, 1, 1, 1)
        buffer = result.clone() if buffer.shape != result.shape else buffer
        return buffer.copy_(result)

    given = {"uncond": {"y": torch.tensor([1.0, 2.0])}, "cond": {"y": torch.tensor([3.0, 5.0])}}
    denoiser = GuidedDenoiser(engine, CFG(4.0), mode=mode)
    for _ in range(2):
        got = denoiser(x, 0.5, conditions=given)
        torch.testing.assert_close(got, x * torch.tensor([9.0, 14.0]).view(-1, 1, 1, 1))
    # A pass with another model has a call of its own; both may be one engine's.
    apart = {"uncond": Condition(given["uncond"], model=lambda x, t, y: engine(x, t, y)), "cond": given["cond"]}
    torch.testing.assert_close(denoiser(x, 0.5, conditions=apart), got)


def test_timesteps_by_frame_go_with_the_passes() -> None:
    x = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))

    def model(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert t.shape == (x.shape[0], 5)
        return x * t[:, None, :, None, None] * y.view(-1, 1, 1, 1, 1)

    given = {"uncond": {"y": torch.tensor([1.0, 2.0])}, "cond": {"y": torch.tensor([3.0, 5.0])}}
    expected = x * t[:, None, :, None, None] * torch.tensor([9.0, 14.0]).view(-1, 1, 1, 1, 1)
    for mode in ("batched", "sequential"):
        got = GuidedDenoiser(model, CFG(4.0), mode=mode)(x, t, conditions=given)
        torch.testing.assert_close(got, expected)


def test_maps_and_masks_reach_the_sums() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scale_map, mask = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4) > 0.3

    def model(x: torch.Tensor, t: Any, y: torch.Tensor) -> torch.Tensor:
        return torch.sin(x * y.view(-1, 1, 1, 1))

    given = {"uncond": {"y": torch.tensor([1.0, 2.0])}, "cond": {"y": torch.tensor([3.0, 5.0])}}
    tensors = {name: model(x, 0, **one) for name, one in given.items()}
    for rule in (CFG(4.0, rescale=0.5), CFG(1.0)):  # At scale 1 a map still weighs both predictions.
        got = GuidedDenoiser(model, rule)(x, 0.5, conditions=given, scale_map=scale_map, mask=mask)
        torch.testing.assert_close(got, guide(rule, scale_map=scale_map, mask=mask, **tensors))
