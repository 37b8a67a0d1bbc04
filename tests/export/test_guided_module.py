"""The guided module: what it takes, what it computes, what it refuses."""

import pytest
import torch
from fastcfg_export import Axis, GuidedModule
from fastcfg_export.onnx_export import trace
from fastcfg_export.sample_inputs import draw_inputs

import fastcfg
from benchmarks.export_models import Toy, toy
from fastcfg import APG, CFG, TCFG, CFGZeroStar, Clamp, InDomain, MaMBOG, MultiCondition, NormCap, PerpNeg, Rescale

RULES = {
    "cfg": CFG(),
    "rescale": CFG(rescale=0.7),
    "perp_neg": PerpNeg(),
    "apg": APG(7.5, 0.5, 10.0),
    "apg_momentum": APG(7.5, 0.5, 10.0, -0.5),
    "tcfg": TCFG(),
    "zero_star": CFGZeroStar(zero_init_steps=0),
    "mambo": MaMBOG(),
    "norm_cap": NormCap(CFG(), over="channel"),
    "clamp": Clamp(Rescale(CFG(), norm="l2"), k=2.0),
    "multi": MultiCondition((1.0, 2.0)),
}


def names(module: GuidedModule) -> list[str]:
    return [spec.name for spec in module.signature.inputs]


def test_inputs_are_in_order_and_dim_0_is_the_images() -> None:
    module = GuidedModule(toy(), PerpNeg(), parameters=["scale", "negative_scale_1"])
    conditions = ["uncond_embedding", "cond_embedding", "negative_embedding"]
    assert names(module) == ["sample", "timestep", *conditions, "guidance_scale", "negative_scale_1"]
    assert {spec.dims[0] for spec in (*module.signature.inputs, *module.signature.outputs)} == {"batch"}
    assert module.signature.inputs[-1].default == 1.0


@pytest.mark.parametrize("name", RULES)
def test_it_is_the_denoiser(name: str) -> None:
    rule, graph = RULES[name], toy()
    module = GuidedModule(graph, rule)
    inputs = draw_inputs(module.signature, {"batch": 3, "height": 16, "width": 12, "tokens": 5})
    given = dict(zip(names(module), inputs, strict=True))
    state = fastcfg.State({key: given[f"state_{key}"] for key in rule.lowered.extras})
    expected = fastcfg.GuidedDenoiser(graph.module, rule)(
        given["sample"],
        given["timestep"],
        conditions={c: {"embedding": given[f"{c}_embedding"]} for c in rule.conditions},
        params={spec.key: given[spec.name] for spec in module.signature.by_role("parameter")},
        state=state,
    )
    got, *others = module(*inputs)
    assert torch.equal(got, expected)
    assert len(others) == len(rule.lowered.updates)
    for spec, other in zip(module.signature.outputs[1:], others, strict=True):
        assert torch.equal(other, state[spec.key.removeprefix("next_")])


@pytest.mark.parametrize("name", RULES)
def test_every_size_stays_open(name: str) -> None:
    module = GuidedModule(toy(), RULES[name]).eval()
    program = trace(module).module()
    # One element of a tile, one tile and a part, many tiles: the sums are not cut into tiles in a graph.
    for batch, height, width in ((1, 4, 4), (2, 36, 32), (3, 128, 60)):
        inputs = draw_inputs(module.signature, {"batch": batch, "height": height, "width": width, "tokens": 3})
        for got, expected in zip(program(*inputs), module(*inputs), strict=True):
            assert got.shape == expected.shape
            # Sums of up to 30,720 terms in another order: their rounding is a few units of the sum.
            torch.testing.assert_close(got, expected, rtol=2**-18, atol=2**-18 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_plain_cfg_is_float32_inside_whatever_the_models_dtype(dtype: torch.dtype) -> None:
    module = GuidedModule(toy(dtype), CFG(), parameters=())
    inputs = draw_inputs(module.signature, {"batch": 2, "height": 16, "width": 16, "tokens": 2})
    given = dict(zip(names(module), inputs, strict=True))
    u, c = (
        module.module(given["sample"], given["timestep"], embedding=given[f"{n}_embedding"]).double()
        for n in ("uncond", "cond")
    )
    program = trace(module.eval()).module()
    expected = u + 7.5 * (c - u)
    # One rounding to the dtype, and float32's beside it.
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + 2**-20 * (u.abs() + c.abs()) * 8.5
    assert ((program(*inputs)[0].double() - expected).abs() <= bound).all()


def test_a_domain_and_a_step_take_their_levels() -> None:
    rule = InDomain(APG(5.0, 0.5, 3.0), "x0")
    module = GuidedModule(toy(), rule, kind="v", step="ddim")
    assert names(module)[-4:] == ["alpha", "sigma", "next_alpha", "next_sigma"]
    assert module.signature.outputs[0].name == "next_sample"
    inputs = draw_inputs(module.signature, {"batch": 2, "height": 8, "width": 8, "tokens": 2})
    given = dict(zip(names(module), inputs, strict=True))
    now, after = (given["alpha"], given["sigma"]), (given["next_alpha"], given["next_sigma"])
    prediction = fastcfg.GuidedDenoiser(module.module, rule)(
        given["sample"],
        given["timestep"],
        conditions={c: {"embedding": given[f"{c}_embedding"]} for c in rule.conditions},
        params={"scale": given["guidance_scale"]},
        prediction=fastcfg.Prediction("v", *now),
    )
    levels = dict(zip(("alpha", "sigma", "next_alpha", "next_sigma"), (*now, *after), strict=True))
    expected = fastcfg.ddim_step(prediction, given["sample"], kind="v", **levels)
    torch.testing.assert_close(module(*inputs)[0], expected, rtol=2**-20, atol=2**-20)


class Fixed(Toy):
    """Works at a height of 8 alone."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, *, embedding: torch.Tensor) -> torch.Tensor:
        return super().forward(x, t, embedding=embedding) + torch.zeros(8, 1)


def test_a_model_that_fixes_a_size_is_refused() -> None:
    from dataclasses import replace

    from fastcfg_export import ExportError

    graph = replace(toy(), module=Fixed())
    with pytest.raises(ExportError, match="model: Fixed cannot be traced with open dimensions"):
        trace(GuidedModule(graph, CFG()).eval())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": CFG(fastcfg.schedules.Ramp(1, 2))}, "rule: has schedules"),
        ({"rule": None}, "rule: expected a rule, since the model takes no guidance scale"),
        ({"rule": PerpNeg(over="batch")}, "rule: its sums run over the whole batch"),
        ({"parameters": ["phi"]}, r"parameters: CFG has \['scale'\], got \['phi'\]"),
        ({"parameters": "scale"}, "parameters: expected a sequence of names"),
        ({"kind": "noise"}, "kind: expected one of 'eps'"),
        ({"step": "heun"}, "step: expected one of 'ddim'"),
        ({"step": "ddim"}, "kind: expected what the model predicts, since the step depends on it"),
        ({"rule": InDomain(APG(), "x0")}, "kind: expected what the model predicts, since the rule depends on it"),
        ({"model": torch.nn.Linear(2, 2)}, "model: Linear is not a known architecture"),
        ({"model": 3}, "model: expected a torch.nn.Module or a GraphModel, got int"),
    ],
)
def test_it_refuses(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"model": toy(), "rule": CFG(), **change}
    with pytest.raises((TypeError, ValueError), match=message):
        GuidedModule(**arguments)  # type: ignore[arg-type]


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(ValueError, match=r"inputs: expected 5 \(sample, timestep, uncond_embedding"):
        GuidedModule(toy(), CFG())(torch.zeros(1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1), "low: expected a positive integer"),
        ((4, 2, 8), "usual: expected low <= usual <= high"),
        ((3, 4, 8, 2), "low: expected a multiple of 2"),
    ],
)
def test_axes_refuse(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Axis(*sizes)


def test_axes_in_pixels() -> None:
    side = Axis(8, 64, 256, 8, 8)
    assert side.in_pixels(512, 768, 1024) == Axis(64, 96, 128, 8, 8)
    with pytest.raises(ValueError, match="low: expected a multiple of 64 pixels, got 500"):
        side.in_pixels(500, 768, 1024)
    with pytest.raises(ValueError, match="high: the graph serves 8 to 256"):
        side.in_pixels(512, 768, 4096)
