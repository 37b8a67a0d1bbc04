"""Compiles plugins and registers them with a stand-in for TensorRT; run apart from Triton's interpreter."""

import inspect
import json
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from fastcfg_export import GuidedModule
from fastcfg_export.plugin import compile_plugin, register_plugin
from fastcfg_export.runtimes import TensorRT

from benchmarks.export_models import toy
from fastcfg import APG, CFG, TCFG

RULES: dict[str, tuple[Any, list[str]]] = {
    "cfg": (CFG(), ["scale"]),
    "rescale": (CFG(rescale=0.7), ["scale", "rescale"]),
    "apg_momentum": (APG(7.5, 0.5, 10.0, -0.5), ["scale", "eta", "norm_threshold", "momentum"]),
    "tcfg": (TCFG(), ["scale"]),
}
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def assembled(ptx: str, target: str) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(PTXAS), f"-arch={target}", "-o", str(source.with_suffix(".cubin")), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr


@dataclass
class Plugin:
    """What TensorRT's plugin module would keep."""

    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    class TensorDesc:
        pass

    class AutoTuneCombination:
        def __init__(self, types: str, formats: str) -> None:
            self.types, self.formats = types, formats

    class KernelLaunchParams(SimpleNamespace):
        pass

    class SymExprs(list):  # type: ignore[type-arg]
        pass

    class SymIntExprs(SymExprs):
        def __init__(self, size: int) -> None:
            super().__init__([None] * size)

    @staticmethod
    def SymInt32(value: Any) -> Any:
        return value

    def _keep(self, name: str, part: str) -> Any:
        def keep(fn: Any) -> Any:
            self.kept.setdefault(name, {})[part] = fn
            return fn

        return keep

    def register(self, name: str) -> Any:
        return self._keep(name, "register")

    def autotune(self, name: str) -> Any:
        return self._keep(name, "autotune")

    def aot_impl(self, name: str) -> Any:
        return self._keep(name, "aot_impl")


class Tensor(SimpleNamespace):
    def like(self) -> "Tensor":
        return Tensor(**vars(self))


def main() -> None:
    results: dict[str, Any] = {}
    for name, (rule, parameters) in RULES.items():
        module = GuidedModule(toy(torch.float16), rule, parameters=parameters)
        kernel = compile_plugin(module)
        entry = kernel.ptx.split(".entry")[1].split(")")[0]
        plugin = Plugin()
        library = TensorRT("tensorrt", SimpleNamespace(__version__="10.13", plugin=plugin, float32="float32"))
        registered = register_plugin(module, library)
        parts = plugin.kept[registered]
        signature = inspect.signature(parts["register"])
        tensors = [Tensor(dtype="float16", shape_expr=[2, 4, 16, 8]) for _ in signature.parameters]
        described = parts["register"](*tensors)
        (tactic,) = parts["autotune"](*tensors, (None,))
        entry_name, ptx, launch, extra = parts["aot_impl"](*tensors, (None,), 0)
        results[name] = {
            "arguments": entry.count(".param"),
            "sm_80": assembled(kernel.ptx, "sm_80"),
            "sm_90": assembled(kernel.ptx, "sm_90"),
            "registered": registered,
            "inputs": list(signature.parameters),
            "annotated": [p.annotation is Plugin.TensorDesc for p in signature.parameters.values()],
            "after": list(inspect.signature(parts["aot_impl"]).parameters)[-2:],
            "outputs": len(described) if isinstance(described, tuple) else 1,
            "types": tactic.types.split(", "),
            "entry": entry_name == kernel.name and kernel.name in ptx,
            "grid": [launch.grid_x, launch.grid_y, launch.block_x],
            "extra": list(extra),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
