"""Plans: built from a graph, and built again when their inputs change."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fastcfg_kernels.partial import errors_name, move_into_place, partial_folder

from fastcfg.version import __version__

from .errors import SidecarError
from .files import existing_file, sha256_of
from .metadata import hashes, read_signature
from .runtimes import CAPABILITIES, TensorRT, load_runtime
from .sidecar import Profile, Sidecar, profile_shapes, sidecar_path
from .signature import Signature, merge_axes

__all__ = ["Built", "build_engine", "peak_memory", "rebuild_reasons"]


@dataclass(frozen=True)
class Built:
    """A plan on disk.

    Attributes:
        path: the plan; sidecar: what it was built from.
        reasons: why it was built; empty if the one that was there still serves.
        warnings: the builder's.
    """

    path: Path
    sidecar: Sidecar
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def rebuild_reasons(plan: Path, wanted: Mapping[str, object]) -> list[str]:
    """Why a plan does not serve a request; empty if it does."""
    if not plan.is_file():
        return ["there is no plan yet"]
    try:
        sidecar = Sidecar.read(plan)
        sidecar.check_plan(plan)
    except SidecarError as error:
        return [str(error)]
    return sidecar.changes(wanted)


def build_engine(
    onnx: Path | str,
    plan: Path | str | None = None,
    *,
    runtime: str = "tensorrt_rtx",
    capabilities: Sequence[str] = (),
    profiles: Sequence[Profile] = (),
    force: bool = False,
    on_step: Callable[[str], None] = lambda phase: None,
    report: Callable[[str], None] = lambda line: None,
) -> Built:
    """Build a strongly typed engine of a graph, unless the one that is there still serves.

    Precision is the graph's own. A plan is only read by the library version that built it, on the compute capabilities
    it was built for.

    Args:
        onnx: a graph that :func:`export_onnx` wrote.
        plan: file to write, ``NAME.plan``; default beside the graph.
        runtime: ``"tensorrt_rtx"``, which builds without a GPU, or ``"tensorrt"``, which needs one.
        capabilities: compute capabilities such as ``"8.9"``; default the GPU's here. TensorRT-RTX takes those in
            :data:`CAPABILITIES`, several in one plan; TensorRT builds for the GPU that is there.
        profiles: sizes by axis, each for one range that is to be fast; axes that are not named keep the graph's. Make
            them with :meth:`Axis.in_pixels`. Default: the graph's own sizes.
        force: build even if nothing changed.
        on_step: called with the running phase, at each of the builder's steps.
        report: called with a line for each thing worth saying: why it builds, how long it took.

    Raises:
        ImportError: if the library is not installed.
        FileNotFoundError, ValueError: naming the argument.
        BuildError: if the library refuses the graph.
    """
    onnx = existing_file("onnx", onnx)
    plan = onnx.with_suffix(".plan") if plan is None else Path(plan)
    if plan.suffix != ".plan":
        raise ValueError(f"plan: expected NAME.plan, got {plan}")
    signature = read_signature(onnx)
    library = load_runtime(runtime)
    chosen = _capabilities(library, capabilities)
    ranges = tuple(_profile(signature, profile) for profile in profiles or ({},))
    wanted = {
        "sources": hashes(onnx),
        "runtime": library.name,
        "runtime_version": library.version,
        "capabilities": chosen,
        "profiles": ranges,
        "signature": signature,
    }
    reasons = ["asked to"] if force else rebuild_reasons(plan, wanted)
    if not reasons:
        report(f"{plan.name} is up to date")
        return Built(plan, Sidecar.read(plan), ())
    report(f"building {plan.name}: {'; '.join(reasons)}")
    started = time.perf_counter()
    with peak_memory() as peak:
        named = chosen if library.ahead_of_time else ()
        content, warnings = library.build(
            onnx, [profile_shapes(signature, p) for p in ranges], capabilities=named, on_step=on_step
        )
    seconds = time.perf_counter() - started
    with errors_name(plan), partial_folder(plan) as folder:
        temporary = folder / plan.name
        temporary.write_bytes(content)
        size = content.nbytes
        del content
        sidecar = Sidecar(
            onnx=onnx.name,
            sources=wanted["sources"],  # type: ignore[arg-type]
            plan_sha256=sha256_of(temporary),
            plan_bytes=size,
            runtime=library.name,
            runtime_version=library.version,
            capabilities=chosen,
            profiles=ranges,
            signature=signature,
            fastcfg=__version__,
            seconds=round(seconds, 2),
            peak_bytes=peak(),
        )
        # A plan without its sidecar is not trusted: at no moment does an old one describe the new plan.
        sidecar_path(plan).unlink(missing_ok=True)
        move_into_place(temporary, plan)
    sidecar.write(plan)
    report(f"built {plan.name}: {size / 2**20:.1f} MiB in {seconds:.1f} s, peak memory {peak() / 2**30:.2f} GiB")
    return Built(plan, sidecar, tuple(reasons), tuple(warnings))


def _profile(signature: Signature, profile: Profile) -> Profile:
    """A profile with all axes, checked against the graph's."""
    merged = merge_axes(signature.axes, profile)
    for name, axis in merged.items():
        for bound in (axis.low, axis.usual, axis.high):
            if why := signature.axes[name].refusal(bound):
                raise ValueError(f"profiles: {name}: the graph serves {why}, got {bound}")
    return merged


def _capabilities(library: TensorRT, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TypeError(f"capabilities: expected a sequence such as ['8.9'], got the string {given!r}")
    here = ""
    if torch.cuda.is_available():
        here = ".".join(map(str, torch.cuda.get_device_capability()))
    if library.ahead_of_time:
        chosen = tuple(given) or ((here,) if here else ())
        if not chosen or any(c not in CAPABILITIES for c in chosen):
            got = ", ".join(chosen) or "none, and there is no GPU to ask"
            raise ValueError(f"capabilities: expected some of {', '.join(CAPABILITIES)}, got {got}")
        return tuple(sorted(set(chosen), key=CAPABILITIES.index))
    if not here:
        raise RuntimeError(f"runtime: {library.name} builds on the GPU it is for, and there is none here")
    if given and tuple(given) != (here,):
        raise ValueError(f"capabilities: {library.name} builds for the GPU here, {here}, got {', '.join(given)}")
    return (here,)


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """The largest resident memory of the process inside the block, in bytes.

    On Linux the kernel's own high-water mark, set back at the start; elsewhere that of the process's whole life.
    """
    status = Path("/proc/self/status")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    def read() -> int:
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource  # Not on Windows.

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    taken: list[int] = []
    yield lambda: taken[0] if taken else read()
    taken.append(read())
