"""A formula is tried when it is defined, and what it names belongs to it from then on."""

import math
from collections.abc import Callable
from typing import Any

import fastcfg_kernels as fk
import numpy as np
import pytest
import torch
from fastcfg_kernels import Stage, compile_program
from fastcfg_kernels.math import sqrt, where

NAMES = ("uncond", "cond")
U, C = (torch.randn(2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(2))
FACTOR = 2.0
TABLE = [1.0, 2.0]


def branches(dot_d_d: Any) -> Any:
    if dot_d_d > 1e9:
        return 1.0, 0.0
    return 1.0, 2.0


def chooses(dot_d_d: Any) -> Any:
    return 1.0, 2.0 if dot_d_d > 1e9 else 1.0


def smallest(dot_d_d: Any) -> Any:
    return 1.0, min(dot_d_d, 2.0)


def of_the_math_module(dot_d_d: Any) -> Any:
    return 1.0, math.sqrt(dot_d_d)


def of_torch(dot_d_d: Any) -> Any:
    return 1.0, torch.sqrt(dot_d_d)


def of_numpy(dot_d_d: Any) -> Any:
    return 1.0, np.sqrt(dot_d_d)


def a_method(dot_d_d: Any) -> Any:
    return 1.0, dot_d_d.sqrt()


def missing(dot_d_d: Any) -> Any:
    return 1.0, dot_d_d * not_there  # type: ignore[name-defined]  # noqa: F821


def of_a_list(dot_d_d: Any) -> Any:
    return 1.0, dot_d_d * TABLE[0]


def too_many(dot_d_d: Any) -> Any:
    return 1.0, dot_d_d, 0.0


def no_tuple(dot_d_d: Any) -> Any:
    return dot_d_d


def a_comparison(dot_d_d: Any) -> Any:
    return 1.0, dot_d_d > 1.0


def a_number_as_condition(dot_d_d: Any) -> Any:
    return 1.0, where(dot_d_d, 1.0, 2.0)


def both(dot_d_d: Any) -> Any:
    return 1.0, where(dot_d_d > 1.0 and dot_d_d < 2.0, 1.0, 2.0)


def inverted(dot_d_d: Any) -> Any:
    return 1.0, where(~(dot_d_d > 1.0), 1.0, 2.0)


def modulo(dot_d_d: Any) -> Any:
    return 1.0, dot_d_d % 2.0


def a_power_of_a_value(dot_d_d: Any) -> Any:
    return 1.0, 2.0**dot_d_d


def loops(dot_d_d: Any) -> Any:
    return 1.0, sum(dot_d_d for _ in range(3))


def any_number(*sums: Any) -> Any:
    return 1.0, 1.0


def imports(dot_d_d: Any) -> Any:
    import math as m

    return 1.0, m.pi


REFUSED: list[tuple[Callable[..., Any], str]] = [
    (branches, r"can't branch on a value; use fastcfg_kernels\.math\.where"),
    (chooses, r"can't branch on a value; use fastcfg_kernels\.math\.where"),
    (both, "can't branch on a value"),
    (smallest, r"calls 'min'.* there is fastcfg_kernels\.math\.minimum"),
    (of_the_math_module, r"uses the module 'math'.*functions of fastcfg_kernels\.math \(abs, exp, log"),
    (of_torch, "uses the module 'torch'"),
    (of_numpy, "uses the module 'numpy'"),
    (a_method, "a value has no methods"),
    (missing, "the name 'not_there' is not defined"),
    (of_a_list, "reads 'TABLE', a list; a formula may name finite numbers"),
    (too_many, "expected a tuple of 2 values, got 3"),
    (no_tuple, "expected a tuple of 2 values, got a Term"),
    (a_comparison, "expected to return numbers, got a comparison"),
    (a_number_as_condition, "where expects a comparison first"),
    (inverted, "~ does not run on every backend"),
    (modulo, "does not run on every backend"),
    (a_power_of_a_value, "expected an exponent that is a number"),
    (loops, "calls '(sum|range)'"),
    (any_number, r"argument \*sums: Any can't be given by position"),
    (imports, "imports math"),
]


@pytest.mark.parametrize(("formula", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_what_not_every_backend_runs_alike_is_refused_with_its_line(formula: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"formula {formula.__name__} \(.*line \d+\).*{message}") as caught:
        compile_program(NAMES, (Stage(formula),))
    line = int(str(caught.value).split("line ")[1].split(")")[0])
    first = formula.__code__.co_firstlineno
    assert first <= line <= first + 4


@pytest.mark.parametrize(
    ("kind", "formula", "message"),
    [
        ("factor", lambda dot_y_y: (dot_y_y,), "expected to return numbers, got a tuple"),
        ("clamp", lambda dot_y_y: dot_y_y, "expected a tuple of 2 values"),
        ("factor", lambda dot_y_y: dot_y_y > 1.0, "expected to return numbers, got a comparison"),
    ],
)
def test_modifiers_are_tried_too(kind: Any, formula: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_program(NAMES, (Stage(lambda: (1.0, 2.0)), Stage(formula, kind)))


@pytest.mark.parametrize("name", ["y", "d", "d_cond"])
def test_names_of_the_language_are_no_predictions(name: str) -> None:
    with pytest.raises(ValueError, match="mean the result and the deltas"):
        compile_program(("uncond", name), (Stage(lambda: (1.0, 2.0)),))


def powers(dot_d_d: Any, count: Any) -> Any:
    mean = dot_d_d / count
    mean **= 1
    return 1.0, mean**2 + mean**0.5 - (mean - 5.0) ** -3 + mean**0.3


@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
def test_powers_run_everywhere(backend: str) -> None:
    program = compile_program(NAMES, (Stage(powers),))
    mean = (C - U).square().mean(1, keepdim=True)
    exact = U + (mean**2 + mean**0.5 - (mean - 5.0) ** -3 + mean**0.3) * (C - U)
    torch.testing.assert_close(fk.guide([U, C], program, backend=backend), exact, rtol=1e-12, atol=1e-12)


def helper(a: Any) -> Any:
    return FACTOR * sqrt(a)


def reads_globals(dot_d_d: Any) -> Any:
    return 1.0, FACTOR + helper(dot_d_d)


@pytest.mark.parametrize("backend", ["cpp", "torch", "triton"])
def test_a_global_is_that_of_the_definition_on_every_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(dot_d_d: Any) -> Any:  # A function of its own for each backend: nothing is kept from the one before.
        return 1.0, FACTOR + helper(dot_d_d)

    stage = Stage(here)
    monkeypatch.setattr(f"{__name__}.FACTOR", 50.0)
    monkeypatch.setattr(f"{__name__}.helper", lambda a: 1e9 * a)
    exact = U + (2.0 + 2.0 * (C - U).square().sum(1, keepdim=True).sqrt()) * (C - U)
    got = fk.guide([U, C], compile_program(NAMES, (stage,)), backend=backend)
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)
    assert fk.captured_numbers(stage.fn) == {"FACTOR": 2.0, "helper.FACTOR": 2.0}


def test_equal_formulas_with_equal_numbers_are_one() -> None:
    def made(k: Any) -> Stage:
        def formula(dot_d_d: Any) -> Any:
            return 1.0, k * dot_d_d

        return Stage(formula)

    assert made(2.0) == made(np.float32(2.0)) != made(3.0)
    assert compile_program(NAMES, (made(2.0),)) is compile_program(NAMES, (made(2.0),))
    assert fk.content_digest(made(2.0).fn) == fk.content_digest(made(3.0).fn) != fk.content_digest(Stage(powers).fn)
    with pytest.raises(ValueError, match="k: expected a finite number, got inf"):
        made(math.inf)


def test_programs_are_bounded_in_depth_width_and_sums() -> None:
    def factor(dot_y_y: Any, k: Any) -> Any:
        return where(dot_y_y > 0.0, k / sqrt(dot_y_y), 1.0)

    def weights(count: int) -> Stage:
        return Stage(fk.function_from_source("w", f"def w():\n    return {', '.join(['1.0'] * count)},\n", {}))

    def program(width: int, depth: int) -> fk.Program:
        names = tuple(f"p{k}" for k in range(width))
        return compile_program(names, (weights(width), *[Stage(factor, "factor")] * depth))

    assert len(program(64, 0).predictions) == 64 and len(program(20, 20).pairs) == 210
    with pytest.raises(ValueError, match="at most 64 inputs and 24 formulas, got 65 and 1"):
        program(65, 0)
    with pytest.raises(ValueError, match="at most 64 inputs and 24 formulas, got 2 and 25"):
        program(2, 24)
    with pytest.raises(ValueError, match="at most 256 sums, got 528 over 32 predictions"):
        program(32, 1)
