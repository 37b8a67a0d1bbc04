"""The written graph: valid, open, equal to eager torch, and with its description inside."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fastcfg_export import Exported, ExportError, Signature, export_onnx, read_signature, verify
from fastcfg_export.metadata import hashes

import fastcfg
from benchmarks.export_models import Toy, toy
from fastcfg import APG, CFG, InDomain, PerpNeg

SIZES = (
    {"batch": 1, "height": 4, "width": 4, "tokens": 1},
    {"batch": 3, "height": 36, "width": 32, "tokens": 7},
    {"batch": 2, "height": 128, "width": 60, "tokens": 2},
)
CASES = [(sizes, {"scale": scale}) for sizes, scale in zip(SIZES, (7.5, 1.0, 15.0), strict=True)]


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_onnx(toy(), PerpNeg(), tmp_path_factory.mktemp("graph") / "toy.onnx")


def test_open_dimensions_are_named(exported: Exported) -> None:
    graph = onnx.load(exported.path).graph
    shapes = {value.name: dims(value) for value in (*graph.input, *graph.output)}
    assert shapes["sample"] == shapes["prediction"] == ["batch", 4, "4*height_4", "4*width_4"]
    assert shapes["timestep"] == shapes["guidance_scale"] == ["batch"]
    assert shapes["negative_embedding"] == ["batch", "tokens", 4]


def test_it_is_eager_torch_at_every_size(exported: Exported) -> None:
    parity = verify(exported.path, exported.module, cases=CASES)
    assert parity.ok and len(parity.rows) == 3
    assert all(row.graph_to_exact is not None for row in parity.rows)
    table = parity.to_markdown()
    assert "float32 units" in table and "scale 15" in table


def test_the_comparison_can_fail(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.path)
    weight = next(t for t in model.graph.initializer if "conv" in t.name and len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * (1 + 2**-10)
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    parity = verify(tmp_path / "other.onnx", exported.module, cases=CASES[:1])
    assert not parity.ok and parity.worst.difference > 100
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan, dtype=np.float32), weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    assert not verify(tmp_path / "nan.onnx", exported.module, cases=CASES[:1]).ok


def test_a_graph_that_the_checker_refuses(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(ExportError, match="graph: ONNX's checker refuses it"):
        verify(tmp_path / "broken.onnx", exported.module)


def test_its_description_is_inside(exported: Exported) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(exported.path).metadata_props}
    assert fastcfg.Rule.from_json(metadata["fastcfg.rule"]) == PerpNeg()
    assert metadata["fastcfg.version"] == fastcfg.__version__
    assert json.loads(metadata["fastcfg.versions"]).keys() == {"torch", "onnx", "onnxscript"}
    assert len(metadata["fastcfg.weights_sha256"]) == 64
    assert read_signature(exported.path) == exported.signature
    assert Signature.from_dict(json.loads(json.dumps(exported.signature.to_dict()))) == exported.signature


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    exported = export_onnx(toy(), CFG(), tmp_path / "toy.onnx", external_data=True)
    assert exported.data == tmp_path / "toy.onnx.data" and exported.data.is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.onnx", "toy.onnx.data"]
    assert hashes(exported.path).keys() == {"toy.onnx", "toy.onnx.data"}
    assert verify(exported.path, exported.module, cases=CASES[:2]).ok
    weights = exported.data.read_bytes()
    exported.data.write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    with pytest.raises(ValueError, match=r"path: .*toy\.onnx or its weights are damaged"):
        read_signature(exported.path)
    exported.data.unlink()
    with pytest.raises(ValueError, match=r"path: .*toy\.onnx: its weights cannot be read .*toy\.onnx\.data"):
        read_signature(exported.path)


def test_a_changed_graph_is_told_from_the_one_that_was_written(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.path)
    weight = next(t for t in model.graph.initializer if "conv" in t.name and len(t.dims) == 4)
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(model, tmp_path / "toy.onnx")
    with pytest.raises(ValueError, match=r"or a tool changed them: .* take fastcfg\.sha256 out of its metadata"):
        read_signature(tmp_path / "toy.onnx")
    kept = [entry for entry in model.metadata_props if entry.key != "fastcfg.sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "toy.onnx")
    assert read_signature(tmp_path / "toy.onnx") == exported.signature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    exported = export_onnx(toy(dtype), APG(7.5, 0.5, 10.0, -0.5), tmp_path / "toy.onnx")
    parity = verify(exported.path, exported.module, cases=CASES)
    assert parity.ok
    # The sums and the state are float32 inside.
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported.path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    sums = [types[n.output[0]] for n in graph.node if n.op_type == "ReduceSum"]
    assert sums and set(sums) == {onnx.TensorProto.FLOAT}
    assert exported.signature.outputs[1].dtype == "float32"
    if dtype == torch.bfloat16:
        # Widened, with the same weights: nothing is left but float32's rounding.
        assert all(row.difference < 2**-8 for row in parity.rows)


def test_a_domain_and_a_step_in_one_graph(tmp_path: Path) -> None:
    rule = InDomain(CFG(rescale=0.5), "x0")
    exported = export_onnx(toy(), rule, tmp_path / "toy.onnx", kind="eps", step="ddim")
    model = onnx.load(exported.path)
    assert not model.functions and {o.domain for o in model.opset_import} == {""}
    assert [spec.name for spec in exported.signature.outputs] == ["next_sample"]
    assert verify(exported.path, exported.module, cases=CASES).ok


def test_a_fixed_axis_is_fixed(tmp_path: Path) -> None:
    graph = toy()
    exported = export_onnx(
        graph, CFG(), tmp_path / "toy.onnx", axes={"height": replace(graph.axes["height"], low=16, high=16)}
    )
    assert dims(onnx.load(exported.path).graph.input[0])[2:] == [16, "4*width_4"]


class NoOnnx(Toy):
    """Has an operation that ONNX does not."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, *, embedding: torch.Tensor) -> torch.Tensor:
        return super().forward(x, t, embedding=embedding) + torch.linalg.matrix_exp(x[:, :, :4, :4]).mean()


def test_an_operation_without_an_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="model: an operation has no ONNX form at opset 20"):
        export_onnx(replace(toy(), module=NoOnnx().eval()), CFG(), tmp_path / "toy.onnx")
    assert not list(tmp_path.iterdir())


def test_paths_and_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected NAME\.onnx"):
        export_onnx(toy(), CFG(), tmp_path / "toy.bin")
    with pytest.raises(ValueError, match=r"axes: expected some of .*, got \['depth'\]"):
        export_onnx(toy(), CFG(), tmp_path / "toy.onnx", axes={"depth": toy().axes["height"]})
    with pytest.raises(FileNotFoundError, match="path: expected a file"):
        read_signature(tmp_path / "none.onnx")
    (tmp_path / "not.onnx").write_bytes(b"\x08\xff\xff\xff")
    with pytest.raises(ValueError, match="is not a readable ONNX file"):
        read_signature(tmp_path / "not.onnx")
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(empty, tmp_path / "empty.onnx")
    with pytest.raises(ValueError, match="has no fastcfg signature"):
        read_signature(tmp_path / "empty.onnx")


def test_removed_names_say_what_replaces_them() -> None:
    import fastcfg_export

    for name in ("custom_op", "plugin", "plugin_kernel"):
        with pytest.raises(AttributeError, match=r"plugin was removed: .* use fastcfg_export\.export_onnx"):
            getattr(fastcfg_export, name)
    with pytest.raises(ImportError, match=r"plugin was removed: .* use fastcfg_export\.export_onnx"):
        importlib.import_module("fastcfg_export.plugin")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(fastcfg_export, "nonsense")  # noqa: B009
