"""Gradients and torch.compile of what calls fastcfg."""

import pytest
import torch
from conformance.cases import BY_NAME, Case, draw, run
from torch.autograd import forward_ad

import fastcfg
from fastcfg import CFG, Clamp, PerpNeg, Rescale

DIFFERENTIABLE = [BY_NAME[n] for n in ("CFG", "DualCFG", "CFG(rescale)", "CFG+rescale_l2", "PerpNeg_2", "CFG+clamp")]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_gradients(case: Case) -> None:
    predictions = draw(case, (2, 3, 4), torch.float64)
    inputs = tuple(p.requires_grad_() for p in predictions.values())

    def guided(*tensors: torch.Tensor) -> torch.Tensor:
        return fastcfg.guide(case.rule, **dict(zip(predictions, tensors, strict=True)))

    assert torch.autograd.gradcheck(guided, inputs)


@pytest.mark.parametrize("size", [(2, 5, 7), (2, 33_001)], ids=str)
def test_gradient_of_a_scale_and_of_the_rescale_formula(size: tuple[int, ...]) -> None:
    u, c = draw(("uncond", "cond"), size, torch.float64).values()
    scale = torch.tensor([2.0, 5.0], dtype=torch.float64)
    grads = []
    for form in ("guide", "formula"):
        inputs = [t.clone().requires_grad_() for t in (u, c, scale)]
        if form == "guide":
            y = fastcfg.guide(CFG(rescale=0.7), uncond=inputs[0], cond=inputs[1], params={"scale": inputs[2]})
        else:
            flat = [t.flatten(1) for t in inputs[:2]]
            y = flat[0] + inputs[2][:, None] * (flat[1] - flat[0])
            y = y * (0.3 + 0.7 * flat[1].std(1, keepdim=True) / y.std(1, keepdim=True))
            y = y.view(size)
        y.sin().sum().backward()
        grads.append([t.grad for t in inputs])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_value_with_gradients_is_that_without() -> None:
    case = BY_NAME["CFG(rescale)"]
    predictions = draw(case, (2, 5000), torch.float32)
    expected = run(case.rule, predictions, "auto")
    predictions["cond"].requires_grad_()
    got = run(case.rule, predictions, "auto")
    assert got.requires_grad
    torch.testing.assert_close(got.detach(), expected, rtol=2**-20, atol=2**-20)


@pytest.mark.parametrize("name", ["CFG", "rescale", "clamp", "perp_neg"])
def test_fullgraph_compile_without_a_recompile(name: str) -> None:
    # A new rule: nothing about it has been worked out by an earlier call.
    rule = {
        "CFG": lambda: CFG(),
        "rescale": lambda: CFG(rescale=0.7),
        "clamp": lambda: Clamp(Rescale(CFG(), norm="l2"), k=2.0),
        "perp_neg": lambda: PerpNeg(),
    }[name]()
    torch._dynamo.reset()
    names = rule.conditions

    def step(x: torch.Tensor, scale: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        predictions = dict(zip(names, tensors, strict=True))
        return x - 0.1 * fastcfg.guide(rule, params={"scale": scale}, **predictions)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, scale in enumerate((1.5, 7.5, 0.0)):
        tensors = list(draw(names, (2, 4, 9, 8), torch.float32, seed=i).values())
        arguments = (torch.ones(2, 4, 9, 8), torch.tensor(scale), *tensors)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            got = compiled(*arguments)
        torch.testing.assert_close(got, step(*arguments), rtol=2**-18, atol=2**-18)


def test_fullgraph_compile_by_inductor() -> None:
    torch._dynamo.reset()
    rule = CFG(4.0, rescale=0.7)
    tensors = draw(("uncond", "cond"), (2, 4, 9, 8), torch.bfloat16)
    got = torch.compile(lambda u, c: fastcfg.guide(rule, uncond=u, cond=c), fullgraph=True)(*tensors.values())
    torch.testing.assert_close(got, fastcfg.guide(rule, **tensors), rtol=2**-8, atol=2**-8)


def rescaled(u: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return fastcfg.guide(CFG(3.0, rescale=0.7), uncond=u, cond=c)


def test_vmap_is_the_loop() -> None:
    u, c = draw(("uncond", "cond"), (3, 2, 40), torch.float64).values()
    expected = torch.stack([rescaled(a, b) for a, b in zip(u, c, strict=True)])
    torch.testing.assert_close(torch.func.vmap(rescaled)(u, c), expected, rtol=1e-12, atol=1e-12)


def test_forward_mode_is_reverse_mode() -> None:
    u, c = draw(("uncond", "cond"), (2, 40), torch.float64).values()
    du, dc = draw(("uncond", "cond"), (2, 40), torch.float64, seed=1).values()
    weights = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = [u.clone().requires_grad_(), c.clone().requires_grad_()]
    (rescaled(*inputs) * weights).sum().backward()
    expected = sum((t.grad * d).sum() for t, d in zip(inputs, (du, dc), strict=True))
    value, slope = torch.func.jvp(rescaled, (u, c), (du, dc))
    torch.testing.assert_close(value, rescaled(u, c), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((slope * weights).sum(), expected, rtol=1e-10, atol=1e-10)
    with forward_ad.dual_level():
        dual = rescaled(forward_ad.make_dual(u, du), forward_ad.make_dual(c, dc))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, slope)
