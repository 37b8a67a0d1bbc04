"""Run a diffusers checkout's fast tests' pipelines beside themselves, and write what they show."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Imported before a process is forked for each file.
import diffusers
import torch
import transformers  # noqa: F401

from fastcfg.adapters.diffusers import coverage, fuse  # noqa: F401
from fastcfg.adapters.diffusers.pipelines.table import GUIDERS

from .differential import compare
from .hub import without_hub
from .report import write_report

TIMEOUT = 420


def test_classes(module: Any) -> dict[str, Any]:
    """A fast test's class for each pipeline that a module of tests makes from tiny components."""
    found: dict[str, Any] = {}
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__module__ != module.__name__ or not hasattr(cls, "get_dummy_components"):
            continue
        pipeline = getattr(cls, "pipeline_class", None)
        if inspect.isclass(pipeline):
            found.setdefault(pipeline.__name__, cls)
    return found


def inputs_of(test: Any) -> Any:
    takes = inspect.signature(test.get_dummy_inputs).parameters
    return test.get_dummy_inputs("cpu") if "device" in takes else test.get_dummy_inputs()


def pipelines_of(path: str) -> Iterator[dict[str, Any]]:
    """Return what the pipelines of a test file show."""
    module = importlib.import_module(".".join(Path(path).with_suffix("").parts))
    for name, cls in test_classes(module).items():
        if name not in coverage() and name not in GUIDERS:
            continue
        line: dict[str, Any] = {"pipeline": name, "file": path}
        try:
            pipe = cls.pipeline_class(**(test := cls()).get_dummy_components())
            pipe.set_progress_bar_config(disable=True)
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
            line |= compare(pipe, lambda test=test: inputs_of(test))
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line["where"] = "ours" if any("/fastcfg/" in frame.filename for frame in frames) else "theirs"
            line["failed"] = f"{type(error).__name__}: {error}"[:300]
            line["at"] = [f"{Path(f.filename).name}:{f.lineno}" for f in frames[-4:]]
        yield line


def in_child(path: str, send: Connection) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            for line in pipelines_of(path):
                send.send(line)
        except Exception as error:
            send.send({"file": path, "failed": f"{type(error).__name__}: {error}"[:300], "where": "theirs"})
    send.close()


def in_own_process(path: str) -> list[dict[str, Any]]:
    """:func:`pipelines_of` a file, in a process that may fail or hang."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(path, send))
    child.start()
    send.close()
    lines: list[dict[str, Any]] = []
    try:
        while receive.poll(TIMEOUT):
            lines.append(receive.recv())
        lines.append({"file": path, "failed": f"no result in {TIMEOUT} s", "where": "theirs"})
    except EOFError:
        pass
    child.kill()
    child.join()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers, for its tests/")
    parser.add_argument("--only", default="", help="test files whose path has this in it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--resume", action="store_true", help="run what has not run in the table that is in --out")
    given = parser.parse_args()
    root, out = given.checkout.resolve(), given.out.resolve()
    files = sorted((root / "tests" / "pipelines").rglob("test_*.py"))
    if not files:
        parser.error(f"checkout: {root} has no tests/pipelines")
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    diffusers.utils.logging.set_verbosity_error()
    without_hub()
    os.chdir(root)
    sys.path.insert(0, str(root))
    lines: list[dict[str, Any]] = []
    if given.resume:
        before = json.loads((out / "hosts.json").read_text())["pipelines"].values()
        lines = [line for line in before if "failed" not in line]
    done = {line["file"] for line in lines}
    for number, file in enumerate(files, 1):
        relative = str(file.relative_to(root))
        if given.only not in relative or relative in done:
            continue
        for line in in_own_process(relative):
            lines.append(line)
            shown = line.get("failed") or ("bits" if line["bits"] else f"error {line['error']:.1e}")
            print(f"[{number}/{len(files)}] {line.get('pipeline', line['file'])}: {shown}", flush=True)
        write_report(lines, out)
    print(f"written to {out}/hosts.md")


if __name__ == "__main__":
    main()
