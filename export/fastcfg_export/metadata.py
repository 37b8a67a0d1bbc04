"""Metadata of graphs, and the hashes of their files."""

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

__all__ = ["describe", "hashes", "read_signature", "require_onnx", "seal", "weights_hash"]

METADATA = "fastcfg"
"""Prefix of the keys of a graph's metadata."""

_DIGEST = f"{METADATA}.sha256"
_UNSEALED = hashlib.sha256(b"fastcfg: a digest is to stand here").hexdigest()
"""What stands in the place of a file's digest while the digest is taken."""


def require_onnx() -> Any:
    """The module ``onnx``.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it.
    except ImportError as error:
        raise ImportError(
            f"exporting needs onnx and onnxscript ({error}); pip install 'fastcfg-diffusion[export]'"
        ) from None
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
        _DIGEST: _UNSEALED,
    }


def seal(path: Path) -> None:
    """Put the digest of a graph's files into the graph that :func:`describe` left a place for it in."""
    content = path.read_bytes()
    assert content.count(_UNSEALED.encode()) == 1
    path.write_bytes(content.replace(_UNSEALED.encode(), _digest_of(path, content, _UNSEALED).encode()))


def _digest_of(path: Path, content: bytes, stands: str) -> str:
    """SHA-256 of a graph whose digest is the text that ``stands`` in it, and of its files of weights."""
    digest = hashlib.sha256(content.replace(stands.encode(), _UNSEALED.encode()))
    for name in _data_files(require_onnx().load_from_string(content)):
        digest.update(f"{name} {sha256_of(path.with_name(name))}".encode())
    return digest.hexdigest()


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_signature(path: Path | str) -> Signature:
    """The signature that :func:`export_onnx` wrote into a graph's metadata.

    The graph and its weights are compared with the digest that is kept there too, ``fastcfg.sha256``. Where a tool has
    to change a graph, it has to take that entry away.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: naming ``path``, if it is no ONNX graph of fastcfg's, or not what was written.
    """
    onnx = require_onnx()
    path = existing_file("path", path)
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
    except Exception as error:
        raise ValueError(f"path: {path} is not a readable ONNX file ({type(error).__name__})") from None
    found = {entry.key: entry.value for entry in model.metadata_props}
    if f"{METADATA}.signature" not in found:
        raise ValueError(f"path: {path} has no fastcfg signature; it was not written by fastcfg export")
    digest = found.get(_DIGEST)
    try:
        whole = digest is None or digest == _digest_of(path, content, digest)
    except (OSError, ValueError) as error:
        raise ValueError(f"path: {path}: its weights cannot be read ({error})") from None
    if not whole:
        raise ValueError(
            f"path: {path} or its weights are damaged, or a tool changed them: they are not what was exported (another "
            f"SHA-256); export it again, or take {_DIGEST} out of its metadata"
        )
    return Signature.from_dict(json.loads(found[f"{METADATA}.signature"]))


def hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a graph's file, and of every file of weights that it names, by file name."""
    model = require_onnx().load(path, load_external_data=False)
    return {name: sha256_of(path.with_name(name)) for name in (path.name, *_data_files(model))}


def _data_files(model: Any) -> list[str]:
    """Names of the files that a graph's weights are in."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    return sorted({ExternalDataInfo(t).location for t in model.graph.initializer if uses_external_data(t)})
