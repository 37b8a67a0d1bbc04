"""Tensors without memory of their own, and what traces or transforms: torch operations, never a pointer."""

from collections.abc import Callable

import pytest
import torch
from fastcfg_kernels.memory import observed, readable
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import fastcfg

RULES = {
    "CFG": fastcfg.CFG(3.0),
    "CFG+rescale": fastcfg.CFG(3.0, rescale=0.7),
    "APG": fastcfg.APG(3.0, eta=0.5, norm_threshold=1.0),
}
SIZE = (2, 3, 17, 5)


def draw() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0)).unbind(0)


def guided(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda u, c: fastcfg.guide(RULES[name], uncond=u, cond=c)


@pytest.fixture(params=RULES)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    guided(chosen)(*draw())  # What is kept from a plain call must not be taken for these.
    return chosen


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=2**-18, atol=2**-18)


def test_fake_tensors(name: str) -> None:
    with FakeTensorMode() as mode:
        got = guided(name)(*(mode.from_tensor(t) for t in draw()))
        assert isinstance(got, FakeTensor) and got.shape == SIZE
        out = torch.empty(SIZE)
        assert isinstance(
            fastcfg.guide(RULES[name], uncond=torch.empty(SIZE), cond=torch.empty(SIZE), out=out), FakeTensor
        )


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_fake_tensors_of_a_backend_asked_for(name: str, backend: str) -> None:
    with FakeTensorMode():
        u, c = torch.empty(SIZE), torch.empty(SIZE)
        scale = torch.full((2,), 3.0)
        assert fastcfg.guide(RULES[name], uncond=u, cond=c, backend=backend, params={"scale": scale}).shape == SIZE


def test_a_traced_graph_computes(name: str) -> None:
    u, c = draw()
    for graph in (make_fx(guided(name))(u, c), torch.jit.trace(guided(name), (u, c), check_trace=False)):
        close(graph(c, u), guided(name)(c, u))


class Negated(torch.Tensor):
    """A wrapper without memory, which holds the negative of its value."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Negated":
        made: Negated = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner.neg()
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        plain = torch.utils._pytree.tree_map_only(Negated, lambda t: t.inner.neg(), (args, kwargs or {}))
        made = func(*plain[0], **plain[1])
        return torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: Negated(t) if t.is_floating_point() else t, made
        )


def test_a_subclass(name: str) -> None:
    u, c = draw()
    for given in ((Negated(u), Negated(c)), (u, Negated(c)), (Negated(u), c)):
        got = guided(name)(*given)
        assert isinstance(got, Negated)
        close(got.inner.neg(), guided(name)(u, c))


def test_a_subclass_as_a_parameter(name: str) -> None:
    u, c = draw()
    scale = torch.tensor([2.0, 5.0])
    got = fastcfg.guide(RULES[name], uncond=u, cond=c, params={"scale": Negated(scale)})
    assert isinstance(got, Negated)
    close(got.inner.neg(), fastcfg.guide(RULES[name], uncond=u, cond=c, params={"scale": scale}))


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen += 1
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operations(name: str) -> None:
    u, c = draw()
    with Watch() as mode:
        got = guided(name)(u, c)
    assert mode.seen >= 1
    close(got, guided(name)(u, c))


@pytest.mark.parametrize("how", ["vmap", "grad", "functionalize", "jvp"])
def test_transforms(name: str, how: str) -> None:
    u, c = draw()
    run = guided(name)
    if how == "vmap":
        got = torch.func.vmap(lambda a, b: run(a[None], b[None])[0])(u, c)
    elif how == "grad":
        got = torch.func.grad_and_value(lambda a: run(a, c).sum(), has_aux=False)(u)[1] / 1
        close(got, run(u, c).sum())
        return
    elif how == "functionalize":
        got = torch.func.functionalize(run)(u, c)
    else:
        got = torch.func.jvp(run, (u, c), (c, u))[0]
    close(got, run(u, c))


def test_plain_tensors_are_readable() -> None:
    u, c = draw()
    assert not observed() and readable((u, torch.nn.Parameter(c, requires_grad=False)), (1.0, torch.ones(2)))
    assert not readable((u, c.requires_grad_()))
    with torch.no_grad():
        assert readable((u, c))
