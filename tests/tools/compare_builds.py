"""Compare the working tree with a baseline commit, bit by bit, in one environment.

``python tests/tools/compare_builds.py COMMIT`` runs every rule × dtype × path in both trees, compiles the programs of
the kernels' gates in both, and lists what differs: results whose bits changed, PTX that changed apart from names and
line numbers, public names that are gone. Bits and PTX differ from machine to machine and from Triton to Triton, so
both sides are made on the spot; committed vectors stay values with bounds. A rearrangement passes when nothing is
listed; a change that is meant (the torch form's order of operations, say) is left out with ``--without torch``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATHS = ("auto", "cpp", "torch", "triton")
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHAPES = ((2, 3, 17, 5), (3, 4, 40, 40))
"""Less than one tile, and several with a rest."""
PACKAGES = ("fastcfg", "fastcfg_kernels")


def _digest(tensors: list[Any]) -> str:
    import torch

    made = hashlib.sha256()
    for tensor in tensors:
        made.update(str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
        made.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]


def _calls(path: str) -> Iterator[tuple[str, Any]]:
    """Every call of a path by name, as a function that returns tensors."""
    import torch

    import fastcfg as fc
    from fastcfg.rules import registry

    try:
        from fastcfg.rules import catalog
    except ImportError:  # Where it was before the rooms.
        catalog = importlib.import_module("fastcfg.catalog")
    rules = {name: catalog.example(cls) for name, cls in sorted(registry.items()) if cls.__module__.startswith("fastc")}
    rules |= {
        "CFG+rescale": fc.CFG(7.5, rescale=0.7),
        "APG+momentum": fc.APG(7.5, momentum=-0.5, norm_threshold=2.0),
        "Clamp(Rescale)": fc.Clamp(fc.Rescale(fc.CFG(4.0), 0.6), 1.5),
        "InDomain": fc.InDomain(fc.CFG(5.0, rescale=0.5), "x0"),
    }
    for dtype, shape in ((d, s) for d in DTYPES for s in SHAPES):
        generator = torch.Generator().manual_seed(7)

        def new(*size: int, kind: str = dtype, source: Any = generator) -> Any:
            return torch.randn(*size, generator=source, dtype=torch.float32).to(getattr(torch, kind))

        for name, rule in rules.items():
            resolved = rule.at(3, 10) if rule.scheduled else rule
            given = {c: new(*shape) for c in resolved.conditions}
            x, batch = new(*shape), shape[0]
            space = {"x": x, "prediction": fc.Prediction("v", alpha=0.8, sigma=0.6)} if resolved.lowered.domain else {}

            def run(given: Any = given, rule: Any = resolved, space: Any = space, **more: Any) -> list[Any]:
                state = fc.State()
                backend = None if path == "auto" else path
                made = [fc.guide(rule, backend=backend, state=state, **space, **given, **more) for _ in range(2)]
                return [*made, *(state[k] for k in sorted(state))]

            def over(run: Any = run, given: Any = given) -> list[Any]:
                last = given[next(reversed(given))].clone()
                return run({**given, next(reversed(given)): last}, out=last)

            wide = {c: t.repeat(1, 1, 1, 2)[..., ::2] for c, t in given.items()}
            last = {c: t.to(memory_format=torch.channels_last) for c, t in given.items()}
            key = f"{path} {name} {dtype} {'x'.join(map(str, shape))}"
            yield f"{key} plain", run
            yield f"{key} out", lambda run=run, x=x: run(out=torch.empty_like(x))
            yield f"{key} over", over
            yield f"{key} strided", lambda run=run, wide=wide: run(wide)
            yield f"{key} channels_last", lambda run=run, last=last: run(last)
            if "scale" in resolved.lowered.params:
                scales = torch.linspace(1.5, 8.0, batch)
                yield f"{key} [B]", lambda run=run, s=scales: run(params={"scale": s})
                yield f"{key} 0-dim", lambda run=run: run(params={"scale": torch.tensor(3.25)})
            if dtype in (
                "float16",
                "float64",
            ):  # Two dtypes are enough for what follows, each kind of which is compiled.
                continue
            maps = {"scale_map": new(batch, 1, *shape[2:]).abs(), "mask": new(batch, 1, *shape[2:]) > -1}
            yield f"{key} map", lambda run=run, maps=maps: run(**maps)
            if len(resolved.conditions) > 1 and not space:
                step = next(iter(fc.Sampler.flow([0.8, 0.6, 0.0])))
                backend = None if path == "auto" else path
                yield (
                    f"{key} step",
                    lambda r=resolved, g=given, x=x, s=step, b=backend: [
                        fc.guide_step(r, s, x=x, state=fc.State(), backend=b, **g)
                    ],
                )


def _ptx() -> dict[str, str]:
    """Digests of the PTX of every gate program for sm_90, without names and line numbers."""
    import triton

    found: dict[str, str] = {}
    texts: list[str] = []
    compile_one = triton.compile

    def recording(*arguments: Any, **options: Any) -> Any:
        made = compile_one(*arguments, **options)
        lines = (re.sub(r"//.*", "", line).strip() for line in made.asm["ptx"].splitlines())
        code = [line for line in lines if line and not line.startswith((".loc", ".file", ".section"))]
        text = "\n".join(code).split(".debug")[0]
        texts.append(re.sub(r"\b(\w+_kernel\w*|__triton\w+|\$L__\w+|global_smem\w*)", "NAME", text))
        return made

    triton.compile = recording
    try:
        gates = importlib.import_module("fastcfg_kernels.backends.triton.gates")
    except ImportError:
        gates = importlib.import_module("fastcfg_kernels.gpu.gates")
    rows = gates.measure(["cuda:90"])
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        key = f"ptx {number} {row.program} {row.dtype} {row.compiled.strategy} {row.compiled.kernel}"
        found[key] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def probe(part: str) -> dict[str, str]:
    """What a tree gives, by name: digests of results or of PTX, or public names."""
    if part == "ptx":
        return _ptx()
    if part == "names":
        return {f"{p}.{n}": "" for p in PACKAGES for n in importlib.import_module(p).__all__}
    found = {}
    for name, call in _calls(part):
        try:
            found[name] = _digest(call())
        except (TypeError, ValueError) as error:  # A refusal is part of the behaviour.
            found[name] = type(error).__name__
    return found


def _side(tree: Path, part: str) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / p) for p in (".", "kernels", "export"))}
    environment |= {"TRITON_INTERPRET": "1"} if part == "triton" else {"TRITON_INTERPRET": "0"}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([sys.executable, __file__, "--probe", part, file.name], env=environment, cwd=tree, check=True)
        found: dict[str, str] = json.loads(Path(file.name).read_text())
    return found


def compare(tree: Path, baseline: Path, parts: list[str]) -> list[str]:
    """What differs, a line each."""
    found = []
    for part in parts:
        old, new = _side(baseline, part), _side(tree, part)
        changed = [name for name in old if name in new and old[name] != new[name]]
        gone = [name for name in old if name not in new]
        found += [f"changed: {name}: {old[name]} -> {new[name]}" for name in changed]
        found += [f"gone: {name}" for name in gone]
        print(f"{part}: {len(old)} before, {len(changed)} changed, {len(gone)} gone, {len(new)} now")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", nargs="?", help="a commit, or the folder of a checked-out one")
    parser.add_argument("--without", action="append", default=[], choices=(*PATHS, "ptx", "names"))
    parser.add_argument("--only", action="append", default=[], choices=(*PATHS, "ptx", "names"))
    parser.add_argument("--probe", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.probe:
        part, file = given.probe
        import torch

        torch.set_num_threads(1)
        Path(file).write_text(json.dumps(probe(part)))
        return 0
    tree = Path(__file__).resolve().parents[2]
    parts = [p for p in (given.only or (*PATHS, "ptx", "names")) if p not in given.without]
    if not given.baseline:
        parser.error("give the baseline's commit or folder")
    if Path(given.baseline).is_dir():
        differences = compare(tree, Path(given.baseline), parts)
    else:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "baseline"
            git = ["git", "-C", str(tree), "worktree"]
            subprocess.run([*git, "add", "-q", "--detach", str(place), given.baseline], check=True)
            try:
                differences = compare(tree, place, parts)
            finally:
                subprocess.run([*git, "remove", "--force", str(place)], check=True)
    print("\n".join(differences))
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
