"""The short way to a launch: the long way's bits, at whatever signature, and few functions of Python."""

import sys

import pytest
import torch
from fastcfg_kernels import Call
from fastcfg_kernels.backends.triton import backend
from gpu.softgpu import driver

import fastcfg
from fastcfg import CFG

SHORT = 20
"""Functions of Python from ``guide`` to the launcher."""


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that went the long way."""
    seen: list[Call] = []
    plain = backend.run

    def run(call: Call) -> list[torch.Tensor]:
        seen.append(call)
        return plain(call)

    monkeypatch.setattr(backend, "run", run)
    return seen


def guided(rule: fastcfg.Rule, u: torch.Tensor, c: torch.Tensor, **options: object) -> torch.Tensor:
    return fastcfg.guide(rule, uncond=u, cond=c, backend="triton", **options)


def test_calls_of_a_known_signature_are_launched_at_once(long: list[Call]) -> None:
    rule = CFG(3.5, rescale=0.6)
    u, c = torch.randn(2, 2, 3, 100).unbind(0)
    scales = torch.tensor([2.0, 5.0])
    for options in ({}, {"params": {"scale": 1.5}}, {"params": {"scale": scales}}, {"out": torch.empty_like(u)}):
        expected = guided(rule, u, c, **options).clone()
        before = len(long)
        assert torch.equal(guided(rule, u, c, **options), expected)
        assert len(long) == before
    assert torch.equal(guided(CFG(3.5, rescale=0.6), u, c), guided(rule, u, c)) and len(long) == before
    over = u.clone()
    guided(rule, over, c, out=over)
    over.copy_(u)
    assert torch.equal(guided(rule, over, c, out=over), guided(rule, u, c))


def test_another_signature_goes_the_long_way(long: list[Call]) -> None:
    rule = CFG(3.5, rescale=0.6)
    wide = torch.randn(2, 3, 4_100)
    u, c = wide[:, :, :4_096].unbind(0)
    guided(rule, u, c)
    scales = torch.tensor([1.0, 2.0, 3.0])
    others = [
        ({}, wide[:, :, 1:4_097]),
        ({}, wide[:, :, :4_097]),
        ({}, wide[:, :2, :4_096]),
        ({}, wide[:, :, :4_096].bfloat16()),
        ({"params": {"scale": scales}}, wide[:, :, :4_096]),
        ({"params": {"scale": scales.bfloat16()}}, wide[:, :, :4_096]),
        ({"params": {"scale": scales.double()}}, wide[:, :, :4_096]),
        ({"params": {"scale": scales[1]}}, wide[:, :, :4_096]),
    ]
    for options, pair in others:
        before = len(long)
        got = guided(rule, *pair.unbind(0), **options)
        assert len(long) == before + 1
        assert torch.equal(got, guided(rule, *pair.clone().unbind(0), **options))


def test_what_the_long_way_refuses_is_refused() -> None:
    rule = CFG(3.5, rescale=0.6)
    u, c = torch.randn(2, 2, 3, 100).unbind(0)
    guided(rule, u, c)
    for options, message in (
        ({"params": {"scale": float("nan")}}, "scale: expected a finite number"),
        ({"params": {"strength": 1.0}}, "has no parameter 'strength'"),
        ({"params": {"scale": torch.ones(3)}}, r"scale: expected a tensor of shape \[\] or \[2\]"),
        ({"out": torch.empty(2, 3, 99)}, "out: "),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            guided(rule, u, c, **options)


def test_few_functions_from_guide_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = CFG(3.5, rescale=0.6)
    u, c = torch.randn(2, 2, 3, 64).unbind(0)
    scales, out = torch.tensor([2.0, 5.0]), torch.empty_like(u)
    launched = []
    for options in ({}, {"params": {"scale": scales}}, {"out": out}):
        guided(rule, u, c, **options)
        names: list[str] = []
        monkeypatch.setattr(driver._Launcher, "__call__", lambda *given: launched.append(given))

        def note(frame: object, event: str, argument: object, names: list[str] = names) -> None:
            if event == "call" and not launched:
                names.append(frame.f_code.co_name)  # type: ignore[attr-defined]

        launched.clear()
        sys.setprofile(note)
        fastcfg.guide(rule, uncond=u, cond=c, backend="triton", **options)
        sys.setprofile(None)
        monkeypatch.undo()
        assert launched and len(names) <= SHORT, names
