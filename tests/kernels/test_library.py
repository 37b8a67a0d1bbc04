"""The registered op: its schema, fake, gradients, and graphs that hold it without recompiling for a scale."""

import warnings

import pytest
import torch
from fastcfg_kernels import library, notices
from fastcfg_kernels.backends import registry
from fastcfg_kernels.backends.triton.gates import PARAMS, programs

import fastcfg
from fastcfg import CFG, PerpNeg


def arguments(name: str, dims: list[int] | None, dtype: torch.dtype, grad: bool = False) -> tuple[object, ...]:
    program = programs()[name]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 3, 5, generator=generator, dtype=dtype) for _ in range(2 + len(program.extras))]
    params = [torch.tensor(PARAMS[n], dtype=dtype) for n in program.params]
    if grad:
        tensors = [t.requires_grad_() for t in tensors]
        params = [p.requires_grad_() for p in params]
    results = list(range(program.results))
    names = ",".join([str(dtype)[6:]] * len(results))
    return tensors, params, program.in_graph(), names, results, dims, None, False


@pytest.mark.parametrize("dims", [None, [1]], ids=str)
@pytest.mark.parametrize("name", ["cfg", "rescale", "projected"])
def test_the_op_is_sound(name: str, dims: list[int] | None) -> None:
    torch.library.opcheck(torch.ops.fastcfg.guide.default, arguments(name, dims, torch.float32))
    torch.library.opcheck(torch.ops.fastcfg.guide.default, arguments(name, dims, torch.float64, grad=True))


@pytest.mark.parametrize("name", ["rescale", "projected"])
def test_gradients(name: str) -> None:
    tensors, params, *rest = arguments(name, None, torch.float64, grad=True)

    def guided(*every: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.ops.fastcfg.guide(list(every[: len(tensors)]), list(every[len(tensors) :]), *rest))

    assert torch.autograd.gradcheck(guided, (*tensors, *params))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op in graphs for a CPU too."""
    monkeypatch.setattr(library, "wanted", lambda is_lerp, *_: not is_lerp)


@pytest.mark.parametrize("rule", [CFG(rescale=0.7), PerpNeg()], ids=["rescale", "perp_neg"])
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_a_graph_holds_the_op_and_a_new_scale_is_no_new_graph(rule: fastcfg.Rule, kind: str, everywhere: None) -> None:
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(2, 4, 6, generator=generator) for name in rule.conditions}
    graphs = []

    def backend(graph: torch.fx.GraphModule, examples: list[object]) -> object:
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def step(scale: float | torch.Tensor, **predictions: torch.Tensor) -> torch.Tensor:
        return fastcfg.guide(rule, params={"scale": scale}, **predictions) * 2

    for scale in (1.5, 7.5, 0.25, 3.0):
        got = step(torch.tensor(scale) if kind == "tensor" else scale, **tensors)
        expected = fastcfg.guide(rule, params={"scale": scale}, backend="torch", **tensors) * 2
        torch.testing.assert_close(got, expected, rtol=2**-20, atol=2**-18)
    assert len(graphs) <= (1 if kind == "tensor" else 2)
    assert all(any(node.target is torch.ops.fastcfg.guide for node in graph.graph.nodes) for graph in graphs)


def test_plain_cfg_stays_torch(everywhere: None) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, examples: list[object]) -> object:
        graphs.append(graph)
        return graph.forward

    u, c = torch.randn(2, 2, 8).unbind(0)
    rule = CFG(4.0)
    torch.compile(lambda: fastcfg.guide(rule, uncond=u, cond=c), fullgraph=True, backend=backend)()
    assert all(node.target is not torch.ops.fastcfg.guide for node in graphs[0].graph.nodes)


def test_gradients_through_a_graph(everywhere: None) -> None:
    torch._dynamo.reset()
    u, c = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    rule, grads = CFG(4.0, rescale=0.7), []
    for compiled in (False, True):
        inputs = [t.clone().requires_grad_() for t in (u, c)]

        def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return fastcfg.guide(rule, uncond=a, cond=b).sin().sum()

        (torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss)(*inputs).backward()
        grads.append([t.grad for t in inputs])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_graph_leaves_for_torch_where_the_kernel_fails_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As eager calls do, unless ``backend="triton"`` asked for the kernel."""

    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("no such instruction")

    monkeypatch.setattr(library.triton_backend, "guide_triton", broken)
    monkeypatch.setattr(registry, "_BROKEN", set())
    notices.warn_once.cache_clear()
    given = arguments("rescale", None, torch.float32)
    expected = torch.ops.fastcfg.guide(*given)
    with pytest.warns(RuntimeWarning, match="run by triton, the torch path is used .ValueError: no such instruction"):
        assert torch.equal(library._run(*given)[0], expected[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(library._run(*given)[0], expected[0])
    with pytest.raises(ValueError, match="no such instruction"):
        library._run(*given[:-1], True)


def test_the_environment_keeps_the_op_out_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    is_lerp = programs()["rescale"].is_lerp
    monkeypatch.setattr(library.triton_backend, "unavailable", lambda device: None)
    assert library.wanted(is_lerp, "cuda")
    monkeypatch.setenv("FASTCFG_BACKEND", "torch")
    assert not library.wanted(is_lerp, "cuda") and library.wanted(is_lerp, "cuda", "triton")
