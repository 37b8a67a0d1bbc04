"""What a graph says of itself, and the hashes of its files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch

from fastcfg.version import __version__

from .files import existing_file, sha256_of
from .module import GuidedModule
from .signature import Signature

__all__ = ["describe", "hashes", "read_signature", "require_onnx", "weights_hash"]

METADATA = "fastcfg"
"""Prefix of the keys of a graph's metadata."""


def require_onnx() -> Any:
    """The module ``onnx``.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it.
    except ImportError as error:
        raise ImportError(f"exporting needs onnx and onnxscript ({error}); pip install 'fastcfg[export]'") from None
    return onnx


def describe(module: GuidedModule) -> dict[str, str]:
    """The metadata of a module's graph."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    rule = module.rule
    return {
        f"{METADATA}.version": __version__,
        f"{METADATA}.rule": "" if rule is None else rule.to_json(),
        f"{METADATA}.program": "" if rule is None else rule.program.source,
        f"{METADATA}.signature": json.dumps(module.signature.to_dict(), sort_keys=True),
        f"{METADATA}.model": type(module.graph_model.module).__name__.lstrip("_"),
        f"{METADATA}.weights_sha256": weights_hash(module.graph_model.module),
        f"{METADATA}.versions": json.dumps(versions, sort_keys=True),
    }


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_signature(path: Path | str) -> Signature:
    """The signature that :func:`export_onnx` wrote into a graph's metadata.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: naming ``path``, if it is no ONNX graph of fastcfg's.
    """
    onnx = require_onnx()
    path = existing_file("path", path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise ValueError(f"path: {path} is not a readable ONNX file ({type(error).__name__})") from None
    found = {entry.key: entry.value for entry in model.metadata_props}
    if f"{METADATA}.signature" not in found:
        raise ValueError(f"path: {path} has no fastcfg signature; it was not written by fastcfg export")
    return Signature.from_dict(json.loads(found[f"{METADATA}.signature"]))


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a graph's file, and of every file of weights that it names, by file name."""
    onnx = require_onnx()
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(path, load_external_data=False)
    names = {ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)}
    return {name: sha256_of(path.with_name(name)) for name in (path.name, *sorted(names))}
