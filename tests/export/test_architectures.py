"""The denoisers of diffusers as graphs: their arguments, their layout, and every size."""

from pathlib import Path

import onnx
import pytest
import torch
from fastcfg_export import Axis, GuidedModule, adapt, export_onnx, from_example, verify
from fastcfg_export.sample_inputs import draw_inputs

from benchmarks.export_models import ARCHITECTURES
from fastcfg import APG, CFG, TCFG, PerpNeg

# Each architecture with a rule of its own. The U-Net and Flux are here as students, and guided in the benchmark.
GUIDED = {"sdxl": APG(7.5, 0.5, 10.0), "sd3": TCFG(), "wan": PerpNeg()}
STUDENTS = ("lcm", "flux-guidance")
SMALL = {"batch": 1, "tokens": 3, "height": 8, "width": 12, "frames": 2}
LARGE = {"batch": 3, "tokens": 7, "height": 20, "width": 16, "frames": 3}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval().requires_grad_(False)
    for parameter in model.parameters():  # What begins at zero would hide an argument.
        if not parameter.any():
            parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("name", [*GUIDED, *STUDENTS])
def test_graphs(name: str, tmp_path: Path) -> None:
    # SDXL in half precision mixes dtypes in its added conditions.
    model = build(name).half() if name == "sdxl" else build(name)
    exported = export_onnx(model, GUIDED.get(name), tmp_path / f"{name}.onnx")
    axes = exported.signature.axes
    cases = [({k: v for k, v in sizes.items() if k in axes}, {"scale": s}) for sizes, s in ((SMALL, 7.5), (LARGE, 2.0))]
    parity = verify(exported.path, exported.module, cases=cases)
    assert parity.ok, parity.to_markdown()
    # TensorRT has no float64.
    graph = onnx.load(exported.path).graph
    assert not [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.DOUBLE]
    assert not [n for n in graph.node for a in n.attribute if n.op_type == "Cast" and a.i == onnx.TensorProto.DOUBLE]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_scale_is_its_own_input(name: str) -> None:
    module = GuidedModule(build(name), None)
    assert module.signature.conditions == ("cond",) and module.signature.rule is None
    sizes = {k: v for k, v in LARGE.items() if k in module.signature.axes}
    low, high = (module(*draw_inputs(module.signature, sizes, parameters={"scale": s}))[0] for s in (2.0, 6.0))
    assert not torch.allclose(low, high)
    guided = GuidedModule(build(name), CFG())
    assert "embedded_guidance_scale" in [spec.name for spec in guided.signature.inputs]


def test_flux_is_diffusers_flux_on_packed_latents() -> None:
    from diffusers import FluxPipeline

    model = build("flux")
    module = adapt(model).module
    x, text, pooled, t = torch.randn(2, 4, 12, 8), torch.randn(2, 5, 16), torch.randn(2, 16), torch.rand(2)
    packed = FluxPipeline._pack_latents(x, 2, 4, 12, 8)
    ids = FluxPipeline._prepare_latent_image_ids(2, 6, 4, x.device, x.dtype)
    expected = model(packed, text, pooled, t, ids, torch.zeros(5, 3), return_dict=False)[0]
    expected = FluxPipeline._unpack_latents(expected, 12 * 8, 8 * 8, 8)
    got = module(x, t, encoder_hidden_states=text, pooled_projections=pooled)
    # The table of angles holds diffusers' own values.
    assert torch.equal(got, expected)
    assert type(model.pos_embed).__name__ == "FluxPosEmbed"


def test_sdxl_takes_its_added_conditions_by_name() -> None:
    model = build("sdxl")
    x, text, t = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), torch.tensor([10.0, 900.0])
    added = {"text_embeds": torch.randn(2, 16), "time_ids": torch.randn(2, 6)}
    expected = model(x, t, text, added_cond_kwargs=added, return_dict=False)[0]
    assert torch.equal(adapt(model).module(x, t, encoder_hidden_states=text, **added), expected)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("unet", "class_embed_type", "timestep"),
        ("unet", "addition_embed_type", "image"),
        ("flux", "in_channels", 6),
        ("wan", "image_dim", 32),
    ],
)
def test_what_a_graph_does_not_take_is_named(name: str, option: str, value: object) -> None:
    model = build(name)
    model.register_to_config(**{option: value})
    with pytest.raises(ValueError, match=rf"model: {type(model).__name__} with {option}.* is not supported"):
        adapt(model)


def test_any_module_from_an_example() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, *, label: torch.Tensor) -> torch.Tensor:
            return x * label.view(-1, 1, 1) + t.view(-1, 1, 1)

    x, label = torch.randn(2, 3, 10), torch.tensor([1, 4])
    graph = from_example(Net(), x, {"label": label}, open_dims={"x": {-1: "length"}}, axes={"length": Axis(1, 10, 50)})
    assert graph.sample.dims == ("batch", 3, "length")
    assert graph.conditions["label"].span == (0.0, 5.0)
    module = GuidedModule(graph, CFG(2.0))
    inputs = draw_inputs(module.signature, {"batch": 3, "length": 7})
    assert module(*inputs)[0].shape == (3, 3, 7)
    with pytest.raises(ValueError, match=r"open_dims: expected some of \['label', 'x'\]"):
        from_example(Net(), x, {"label": label}, open_dims={"y": {1: "length"}})
    with pytest.raises(ValueError, match="sample: dims name the axes"):
        from_example(Net(), x, {"label": label}, open_dims={"x": {1: "length"}})
    with pytest.raises(ValueError, match="label: expected dim 0 of 2"):
        from_example(Net(), x, {"label": torch.zeros(3)})
