"""The formula language: which sums a formula's argument names ask for, and what is refused."""

from collections.abc import Callable
from typing import Any

import fastcfg_kernels as fk
import pytest
import torch
from fastcfg_kernels import Stage, compile_program
from fastcfg_kernels.backends.torch.functional import guide_rows
from fastcfg_kernels.formula.program import compiled

NAMES = ("uncond", "cond", "negative")
P = [torch.randn(2, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) + k for k in range(3)]
U, C, N = P


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1)


def _cov(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _dot(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))


def f_dot(dot_cond_d_negative: Any) -> Any:
    return dot_cond_d_negative, 0.0, 0.0


def f_cov(cov_d_cond_d_negative: Any) -> Any:
    return cov_d_cond_d_negative, 0.0, 0.0


def f_base(dot_uncond_uncond: Any, cov_uncond_cond: Any) -> Any:
    return dot_uncond_uncond + cov_uncond_cond, 0.0, 0.0


def f_sum(sum_negative: Any, sum_d_cond: Any, count: Any) -> Any:
    return sum_negative / count + sum_d_cond, 0.0, 0.0


def f_order(dot_d_negative_cond: Any, dot_cond_d_negative: Any) -> Any:
    return dot_d_negative_cond - dot_cond_d_negative, 0.0, 0.0


SUMS: list[tuple[Callable[..., Any], Callable[[], torch.Tensor]]] = [
    (f_dot, lambda: _dot(C, N - U)),
    (f_cov, lambda: _cov(C - U, N - U)),
    (f_base, lambda: _dot(U, U) + _cov(U, C)),
    (f_sum, lambda: N.mean(1) + (C - U).sum(1)),
    (f_order, lambda: torch.zeros(2, dtype=torch.float64)),
]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("formula", "expected"), SUMS, ids=lambda v: v.__name__)
def test_named_sums(formula: Callable[..., Any], expected: Callable[[], torch.Tensor], backend: str) -> None:
    program = compile_program(NAMES, (Stage(formula),))
    # The weight of the base is the sum itself, and the base is one everywhere but for what the sums need.
    got = fk.guide(P, program, backend=backend, strategy="two_launch" if backend == "triton" else None)
    torch.testing.assert_close(got, expected()[:, None] * U, rtol=1e-11, atol=1e-8)


def test_equal_sums_are_taken_once() -> None:
    program = compile_program(NAMES, (Stage(f_order),))
    assert len(program.pairs) == 1 and program.params == ()
    assert compile_program(NAMES, (Stage(f_order),)) is program
    assert not compile_program(("u", "c"), (Stage(lambda scale: (1.0, scale)),)).reduces


def test_d_stands_for_the_one_delta() -> None:
    def short(dot_d_d: Any, cov_cond_d: Any) -> Any:
        return dot_d_d, cov_cond_d

    def full(dot_d_cond_d_cond: Any, cov_cond_d_cond: Any) -> Any:
        return dot_d_cond_d_cond, cov_cond_d_cond

    programs = [compile_program(("uncond", "cond"), (Stage(f),)) for f in (short, full)]
    assert programs[0].pairs == programs[1].pairs
    assert torch.equal(*(guide_rows(p, P[:2], ())[0] for p in programs))
    with pytest.raises(ValueError, match="'dot_d_d' names an unknown vector"):
        compile_program(NAMES, (Stage(short),))


@pytest.mark.parametrize(
    ("names", "formula", "message"),
    [
        (NAMES, lambda dot_cond_image: (1.0, 0.0, 0.0), "'dot_cond_image' names an unknown vector; known are"),
        (NAMES, lambda cov_image_image: (1.0, 0.0, 0.0), "unknown vector"),
        (NAMES, lambda sum_image: (1.0, 0.0, 0.0), "'sum_image' names an unknown vector"),
        (NAMES, lambda dot_d_uncond_cond: (1.0, 0.0, 0.0), "unknown vector"),  # The base has no delta.
        (NAMES, lambda dot_y_y: (1.0, 0.0, 0.0), "'y' is known to modifiers only"),
        (("u", "a", "a_b", "b_c", "c"), lambda dot_a_b_c: (1.0,) * 5, "'a_b_c' reads in several ways"),
    ],
)
def test_names_that_cannot_be_read(names: tuple[str, ...], formula: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_program(names, (Stage(formula),))


def test_names_with_underscores() -> None:
    program = compile_program(
        ("u", "cond_1", "cond_2"), (Stage(lambda dot_cond_1_d_cond_2: (dot_cond_1_d_cond_2, 0.0, 0.0)),)
    )
    torch.testing.assert_close(guide_rows(program, P, ())[0], _dot(C, N - U)[:, None] * U)


_WEIGHTS = Stage(lambda: (1.0, 0.0))
_STEP = Stage(lambda: (1.0, 0.0), "step", reads=("x",), rows=1)


@pytest.mark.parametrize(
    ("names", "stages", "message"),
    [
        ((), (Stage(lambda: (1.0,)),), r"predictions.*: expected distinct names"),
        (("u", "u"), (Stage(lambda: (1.0, 0.0)),), r"predictions.*: expected distinct names"),
        (("u", "c"), (), "stages: the first, and only the first, returns weights"),
        (("u", "c"), (Stage(lambda: 1.0, "factor"),), "stages: the first"),
        (("u", "c"), (_WEIGHTS, _WEIGHTS), "stages: the first"),
        (("u", "c"), (_WEIGHTS, Stage(lambda: (0.0, 1.0), "clamp"), Stage(lambda: 1.0, "factor")), "outermost"),
        (("u", "c"), (Stage(lambda: (1.0, 0.0), width=3),), r"width: expected 1 \.\.\. 2, got 3"),
        (("u", "c"), (Stage(lambda: (1.0, 0.0), onto="u"),), r"onto: expected one of \('c',\), got 'u'"),
        (("u", "c"), (_STEP, _WEIGHTS), "stages: the first"),
        (("u", "c"), (_WEIGHTS, _STEP, Stage(lambda: 1.0, "factor")), "stages: a step comes last"),
        (("u", "c"), (_WEIGHTS, Stage(lambda: 1.0, "step", reads=("x",))), "stages: a step has at least one row"),
    ],
)
def test_stages_out_of_order(names: tuple[str, ...], stages: tuple[Stage, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_program(names, stages)


def test_sums_of_the_result_follow_every_stage_before() -> None:
    def weights(a: Any) -> Any:
        return 1.0, a, -0.5

    def by_norm(dot_y_y: Any, dot_y_cond: Any) -> Any:
        return dot_y_cond / dot_y_y

    def by_spread(cov_y_y: Any, cov_y_d_negative: Any, sum_y: Any) -> Any:
        return (cov_y_d_negative + sum_y) / cov_y_y

    program = compile_program(NAMES, (Stage(weights), Stage(by_norm, "factor"), Stage(by_spread, "factor")))
    y = U + 3 * (C - U) - 0.5 * (N - U)
    y = y * (_dot(y, C) / _dot(y, y))[:, None]
    y = y * ((_cov(y, N - U) + y.sum(1)) / _cov(y, y))[:, None]
    torch.testing.assert_close(guide_rows(program, P, (3.0,))[0], y, rtol=1e-10, atol=1e-10)


def test_aliases_and_public_names() -> None:
    def factor(dot_ref_ref: Any, dot_y_y: Any, k: Any) -> Any:
        return k * dot_ref_ref / dot_y_y

    for reference, tensor in (("cond", C), ("uncond", U), ("negative", N)):
        stage = Stage(factor, "factor", (("k", "cap"),), (("ref", reference),))
        program = compile_program(NAMES, (Stage(lambda scale: (1.0, scale, 0.0)), stage))
        assert program.params == ("scale", "cap")
        y = U + 2 * (C - U)
        expected = y * (0.5 * _dot(tensor, tensor) / _dot(y, y))[:, None]
        torch.testing.assert_close(guide_rows(program, P, (2.0, 0.5))[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_prediction(backend: str) -> None:
    def normalised(dot_cond_cond: Any, count: Any) -> Any:
        return (fk.math.sqrt(count / dot_cond_cond),)

    program = compile_program(("cond",), (Stage(normalised),))
    got = fk.guide([C], program, backend=backend)
    torch.testing.assert_close(got, C * (5000 / _dot(C, C)).sqrt()[:, None], rtol=1e-11, atol=0)


def test_onto_adds_to_another_prediction_than_the_base() -> None:
    def change(scale: Any) -> Any:
        return 1.0, scale, 0.0

    program = compile_program(NAMES, (Stage(change, onto="cond"),))
    torch.testing.assert_close(guide_rows(program, P, (3.0,))[0], C + 3.0 * (C - U))


def test_a_step_makes_rows_of_the_finished_result() -> None:
    def step(a: Any, b: Any) -> Any:
        return a, b, 0.0, 0.0, 2.0, 1.0

    stages = (
        Stage(lambda scale: (1.0, scale, 0.0)),
        Stage(lambda: (-0.5, 0.5), "clamp"),
        Stage(step, "step", reads=("x", "noise"), rows=2),
    )
    program = compile_program(NAMES, stages)
    assert (program.extras, program.tail, program.width, program.results) == (("x", "noise"), 2, 3, 2)
    x, noise = C * 0.5, N * 0.25
    first, second = guide_rows(program, [*P, x, noise], (3.0, 0.25, 4.0))
    torch.testing.assert_close(first, 0.25 * (U + 3.0 * (C - U)).clamp(-0.5, 0.5) + 4.0 * x)
    torch.testing.assert_close(second, 2.0 * x + noise)
    with pytest.raises(ValueError, match="stages: the step of an affine program reads x first"):
        compile_program(NAMES, (*stages[:2], Stage(step, "step", reads=("noise", "x"), rows=2)), affine=True)


def test_programs_are_kept_up_to_a_bound() -> None:
    def first(number: int) -> fk.Program:
        return compile_program((f"of {number}", "other"), (Stage(f_pair),))

    before = first(0)
    most = compiled.cache_info().maxsize or 0
    for number in range(most + 1):
        first(number)
    assert compiled.cache_info().currsize == most
    again = first(0)
    assert again is not before and again == before and hash(again) == hash(before)


def f_pair(scale: Any) -> Any:
    return 1.0, scale
