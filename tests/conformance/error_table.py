"""Prints the error of every rule, dtype and backend: ``PYTHONPATH=tests python -m conformance.error_table``.

In units of the ideal rounding: 1 is the exact value rounded once to the dtype. For float32 and float64 the unit is
the expected error of such a rounding. Option: ``--json``.
"""

from __future__ import annotations

import argparse
import json
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from .cases import CASES, draw, exact, run
from .oracles.rounding import error_in_ideal_units

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = {"torch": 33_001, "cpp": 33_001, "row": 5_000, "two_launch": 5_000}


def table(paths: tuple[str, ...]) -> list[dict[str, object]]:
    """One row for each rule and path: errors by dtype. A float64 row kernel takes 3,001 elements."""
    rows = []
    for case in CASES:
        for path in paths:
            if path == "row" and not case.rule.program.reduces:
                continue
            errors: dict[str, object] = {"rule": case.name, "backend": path}
            for dtype in DTYPES:
                size = 3001 if path == "row" and dtype == torch.float64 else SIZES[path]
                predictions = draw(case, (2, size), dtype)
                actual = run(case.rule, predictions, path)
                expected = case.oracle(exact(predictions))
                errors[str(dtype)[6:]] = round(error_in_ideal_units(actual, expected), 3)
            rows.append(errors)
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = table(("cpp", "torch", "row", "two_launch"))
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    names = [str(d)[6:] for d in DTYPES]
    print("| rule | backend | " + " | ".join(names) + " |")
    print("|---|---|" + "---:|" * len(names))
    for row in rows:
        print(f"| {row['rule']} | {row['backend']} | " + " | ".join(f"{row[n]:.2f}" for n in names) + " |")


if __name__ == "__main__":
    main()
