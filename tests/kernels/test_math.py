"""The math module gives the same on numbers, on torch tensors, and in Triton."""

import math
from collections.abc import Callable
from typing import Any

import fastcfg_kernels as fk
import numpy as np
import pytest
import torch
from fastcfg_kernels import Stage, compile_program
from fastcfg_kernels.math import abs as absolute
from fastcfg_kernels.math import exp, log, maximum, minimum, power, sqrt, where

NAN = float("nan")


def f_sqrt(a: Any, b: Any) -> Any:
    return (sqrt(a + b),)


def f_exp(a: Any, b: Any) -> Any:
    return (exp(a - b),)


def f_abs(a: Any, b: Any) -> Any:
    return (absolute(a - b),)


def f_minimum(a: Any, b: Any) -> Any:
    return (minimum(a, b),)


def f_minimum_number(a: Any, b: Any) -> Any:
    return (minimum(a, 1.5) + minimum(1.5, b),)


def f_maximum(a: Any, b: Any) -> Any:
    return (maximum(a, b),)


def f_maximum_number(a: Any, b: Any) -> Any:
    return (maximum(a, 1.5) + maximum(1.5, b),)


def f_where(a: Any, b: Any) -> Any:
    return (where(a > b, a / b, -1.0),)


def f_log(a: Any, b: Any) -> Any:
    return (log(a + b),)


def f_power(a: Any, b: Any) -> Any:
    return (power(a, 3) + power(b - 3.0, -2) + power(a, 2.5),)


def f_power_of_any(a: Any, b: Any) -> Any:
    return (power(b, 0.3),)


EXPECTED: dict[Callable[..., Any], Callable[[float, float], float]] = {
    f_sqrt: lambda a, b: math.sqrt(a + b),
    f_exp: lambda a, b: math.exp(a - b),
    f_abs: lambda a, b: abs(a - b),
    f_minimum: lambda a, b: NAN if a != a or b != b else min(a, b),
    f_minimum_number: lambda a, b: NAN if a != a or b != b else min(a, 1.5) + min(b, 1.5),
    f_maximum: lambda a, b: NAN if a != a or b != b else max(a, b),
    f_maximum_number: lambda a, b: NAN if a != a or b != b else max(a, 1.5) + max(b, 1.5),
    f_log: lambda a, b: math.log(a + b) if a + b else -math.inf,
    f_power: lambda a, b: a**3 + (b - 3.0) ** -2 + a**2.5,
    f_power_of_any: lambda a, b: b**0.3,
    f_where: lambda a, b: a / b if a > b else -1.0,
}
VALUES = [(2.0, 1.0), (1.0, 2.0), (0.0, 0.0), (3.25, 0.5), (NAN, 1.0), (1.0, NAN)]


@pytest.mark.parametrize(("a", "b"), VALUES)
@pytest.mark.parametrize("formula", EXPECTED, ids=lambda f: f.__name__)
def test_forms_agree(formula: Callable[..., Any], a: float, b: float) -> None:
    expected = torch.tensor(EXPECTED[formula](a, b))
    tensors = [torch.tensor(v) for v in (a, b)]
    with np.errstate(all="ignore"):
        numbers = formula(np.float64(a), np.float64(b))[0]
    torch.testing.assert_close(torch.as_tensor(numbers).float(), expected, equal_nan=True)
    torch.testing.assert_close(torch.as_tensor(formula(*tensors)[0]), expected, equal_nan=True)
    one_of_each = formula(tensors[0], b)[0]
    torch.testing.assert_close(torch.as_tensor(one_of_each).float(), expected, equal_nan=True)
    program = compile_program(("x",), (Stage(formula),))
    ones = torch.ones(1, 3)
    got = fk.guide([ones], program, {"a": tensors[0], "b": tensors[1]}, backend="triton")
    torch.testing.assert_close(got, expected.expand(1, 3), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_square_root_is_correctly_rounded(dtype: torch.dtype) -> None:
    x = torch.rand(500, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 100
    program = compile_program(("x",), (Stage(f_sqrt),))
    ones = torch.ones(500, 1, dtype=dtype)
    got = fk.guide([ones], program, {"a": x, "b": 0.0}, backend="triton")
    assert torch.equal(got[:, 0], torch.from_numpy(np.sqrt(x.numpy())))  # torch's own on a CPU is not.
