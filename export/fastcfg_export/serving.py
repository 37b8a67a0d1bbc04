"""A model repository for Triton Inference Server: a graph or a plan, batched over images by the server."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from fastcfg_kernels.partial import errors_name, partial_folder

from fastcfg.files import write_atomically
from fastcfg.validate import check_choice

from .files import existing_file
from .metadata import hashes, read_signature
from .sidecar import Sidecar
from .signature import BATCH, Axis, Signature, TensorSpec

__all__ = ["IMAGE", "docker_command", "model_config", "write_repository"]

IMAGE = "nvcr.io/nvidia/tritonserver:25.10-py3"
"""The server's container that the documentation names; a plan needs the container of its TensorRT version."""

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}


def _tensor(spec: TensorSpec, axes: Mapping[str, Axis]) -> str:
    """One entry of ``input`` or ``output``; the batch is the server's affair and does not stand in ``dims``."""
    dims = [-1 if isinstance(d, str) and not axes[d].fixed else axes[d].low if isinstance(d, str) else d
            for d in spec.dims[1:]]  # fmt: skip
    # The server has no tensors of the batch alone: clients send [B, 1].
    shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ]\n    reshape: { shape: [ ] }"
    return f'  {{\n    name: "{spec.name}"\n    data_type: {_TYPES[spec.dtype]}\n    {shape}\n  }}'


def model_config(
    signature: Signature, name: str, filename: str, *, platform: str, kind: str, delay_us: int, batch: Axis
) -> str:
    """The text of ``config.pbtxt``.

    Args:
        platform: ``onnxruntime_onnx`` or ``tensorrt_plan``; kind: ``KIND_CPU`` or ``KIND_GPU``.
        delay_us: microseconds that a request may wait for others to share its batch.
        batch: sizes of the batch; its usual size is preferred.
    """
    inputs = ",\n".join(_tensor(spec, signature.axes) for spec in signature.inputs)
    outputs = ",\n".join(_tensor(spec, signature.axes) for spec in signature.outputs)
    return f"""name: "{name}"
platform: "{platform}"
default_model_filename: "{filename}"
max_batch_size: {batch.high}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{
  preferred_batch_size: [ {batch.usual} ]
  max_queue_delay_microseconds: {delay_us}
}}
instance_group [
  {{
    count: 1
    kind: {kind}
  }}
]
parameters {{
  key: "fastcfg.signature"
  value: {{ string_value: {json.dumps(json.dumps(signature.to_dict(), sort_keys=True))} }}
}}
"""


def write_repository(
    path: Path | str,
    repository: Path | str,
    *,
    name: str | None = None,
    kind: str | None = None,
    delay_us: int = 5000,
) -> Path:
    """Write ``REPOSITORY/NAME/config.pbtxt`` and ``REPOSITORY/NAME/1/`` with the model's files.

    Dim 0 of every input and output is the image batch, so that the server puts requests together: two users' images
    share a batch at scales of their own. The batcher joins requests of one latent size; the others stay apart.

    Args:
        path: ``NAME.onnx``, for the server's ONNX Runtime backend, or ``NAME.plan`` of TensorRT for its TensorRT
            backend. The server has no backend for TensorRT-RTX.
        repository: folder of models, made if missing.
        name: of the model on the server; default the file's.
        kind: ``KIND_GPU`` or ``KIND_CPU``; default the CPU for float32 graphs and the GPU for everything else.
        delay_us: microseconds that a request may wait for others.

    Returns:
        The model's folder.

    Raises:
        FileNotFoundError, ValueError: naming the argument.
        SidecarError: for a plan that its sidecar does not describe.
    """
    path = existing_file("path", path)
    repository = Path(repository)
    name = path.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"name: expected letters, digits, dots, dashes and underscores, got {name!r}")
    if type(delay_us) is not int or delay_us < 0:
        raise ValueError(f"delay_us: expected 0 or more microseconds, got {delay_us!r}")
    if path.suffix == ".plan":
        sidecar = Sidecar.read(path)
        sidecar.check_plan(path)
        if sidecar.runtime != "tensorrt":
            raise ValueError(
                f"path: {path.name} is a plan of {sidecar.runtime}; Triton Inference Server runs those of TensorRT. "
                "Serve the ONNX graph, or build with runtime='tensorrt'"
            )
        signature, platform, files = sidecar.signature, "tensorrt_plan", [path]
        batch = sidecar.profiles[0][BATCH]
    elif path.suffix == ".onnx":
        signature, platform = read_signature(path), "onnxruntime_onnx"
        files = [path.with_name(file) for file in hashes(path)]
        batch = signature.axes[BATCH]
    else:
        raise ValueError(f"path: expected NAME.onnx or NAME.plan, got {path}")
    if kind is None:
        plain = platform == "onnxruntime_onnx" and all(s.dtype != "float16" for s in signature.inputs)
        kind = "KIND_CPU" if plain else "KIND_GPU"
    check_choice("kind", kind, ("KIND_CPU", "KIND_GPU"))
    folder = repository / name
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    for file in files:
        _place(file, version / file.name)
    config = model_config(signature, name, path.name, platform=platform, kind=kind, delay_us=delay_us, batch=batch)
    # Last: the server does not load a folder without it.
    write_atomically(folder / "config.pbtxt", config)
    return folder


def _place(source: Path, target: Path) -> None:
    """A file under another name: linked where it can be, copied where not."""
    if target.exists() and target.samefile(source):
        return  # Renaming one link of a file over another leaves both.
    with errors_name(target), partial_folder(target) as folder:
        made = folder / target.name
        try:
            made.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, made)
        made.replace(target)


def docker_command(repository: Path | str, *, gpu: bool) -> str:
    """The command that serves a repository."""
    gpus = "--gpus all " if gpu else ""
    return (
        f"docker run --rm {gpus}-p 8000:8000 -p 8001:8001 -p 8002:8002 -v {Path(repository).resolve()}:/models:ro "
        f"{IMAGE} tritonserver --model-repository=/models"
    )
