"""Figures of groups: from which sums they come, on which backends, and what they leave alone."""

import os
import subprocess
import sys
from typing import Any

import fastcfg_kernels as fk
import pytest
import torch
from fastcfg_kernels import Stage, compile_program
from fastcfg_kernels.math import sqrt

U, C, N = (torch.randn(3, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) + k for k in range(3))


def cfg(scale: Any) -> Any:
    return 1.0, scale


def three(dot_d_cond_d_cond: Any, dot_d_cond_d_negative: Any, scale: Any) -> Any:
    return 1.0, scale, -dot_d_cond_d_negative / dot_d_cond_d_cond


def by_products(dot_d_d: Any, dot_cond_d: Any, dot_cond_cond: Any, scale: Any) -> Any:
    return 1.0, scale + 0.0 * (dot_d_d + dot_cond_d + dot_cond_cond)


def halved(cov_y_y: Any, cov_ref_ref: Any, phi: Any) -> Any:
    return phi * sqrt(cov_ref_ref / cov_y_y)


def base_square(dot_base_base: Any) -> Any:
    return dot_base_base


def target_square(dot_target_target: Any) -> Any:
    return dot_target_target


def result_square(dot_y_y: Any) -> Any:
    return dot_y_y


def result_with_delta(dot_y_delta: Any) -> Any:
    return dot_y_delta


def spread(cov_y_y: Any) -> Any:
    return cov_y_y


def share(factor: Any) -> Any:
    return factor


def given(phi: Any) -> Any:
    return phi


def weight(weight_delta: Any) -> Any:
    return weight_delta


def earlier(weight: Any, share: Any = 0.25) -> Any:
    return weight + share


FIGURES = tuple(
    (fn.__name__, fn)
    for fn in (base_square, target_square, result_square, result_with_delta, spread, share, weight, earlier)
)
RESCALE = Stage(halved, "factor", vectors=(("ref", "cond"),), figures=(("own", given),))


def dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(1)


def told(program: fk.Program, params: list[Any], backend: str = "torch") -> dict[str, torch.Tensor]:
    figures = torch.full((3, len(program.stats)), -1e9, dtype=torch.float64)
    inputs = [U, C, N][: len(program.predictions)]
    fk.guide_checked(inputs, program, params, stats=figures, backend=backend)
    return dict(zip(program.stats, figures.unbind(1), strict=True))


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_sums_follow_from_those_that_are_there(backend: str) -> None:
    """Plain sums from centred ones and the means, and a base's from those of the other and of their difference."""
    d = C - U
    for stages, params, scale in (
        ((Stage(cfg), RESCALE), [3.0, 0.5], None),
        ((Stage(by_products),), [3.0], 3.0),
    ):
        plain = compile_program(("uncond", "cond"), stages)
        program = compile_program(("uncond", "cond"), stages, figures=FIGURES)
        assert program.pairs == plain.pairs and set(program.means) <= set(plain.centred), "no sum more"
        y = U + 3 * d
        if scale is None:
            y = y * (0.5 * C.std(1) / y.std(1))[:, None]
        found = told(program, params, backend)
        expected = {
            "base_square": dot(U, U),
            "target_square": dot(C, C),
            "result_square": dot(y, y),
            "result_with_delta": dot(y, d),
            "spread": y.var(1, correction=0) * 1000,
        }
        for name in found.keys() & expected.keys():
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-6)
        assert ("spread" in found) == (scale is None) and ("share" in found) == (scale is None)
        assert found.keys() >= expected.keys() - {"spread"}
        extra = found["share"] if scale is None else 0.25
        torch.testing.assert_close(found["earlier"], found["weight"] + extra)


def test_missing_sums_are_left_out_or_added() -> None:
    few = compile_program(("uncond", "cond"), (Stage(cfg),), figures=FIGURES)
    assert few.stats == ("weight", "earlier") and not few.reduces
    more = compile_program(("uncond", "cond"), (Stage(cfg),), figures=FIGURES, more_sums=True)
    assert set(FIGURES_OF_SUMS) <= set(more.stats) and len(more.pairs) == 3
    assert "spread" not in more.stats, "centred sums are never added"
    torch.testing.assert_close(told(more, [2.0])["result_square"], dot(2 * C - U, 2 * C - U))


FIGURES_OF_SUMS = ("base_square", "target_square", "result_square", "result_with_delta")


def test_three_predictions() -> None:
    program = compile_program(("uncond", "cond", "negative"), (Stage(three),), figures=FIGURES, more_sums=True)
    found = told(program, [2.0])
    d, e = C - U, N - U
    y = U + 2 * d - (dot(d, e) / dot(d, d))[:, None] * e
    torch.testing.assert_close(found["result_square"], dot(y, y))
    torch.testing.assert_close(found["result_with_delta"], dot(y, d))


def test_a_stage_s_own_figures_come_first_and_take_its_parameters() -> None:
    def passed_on(own: Any) -> Any:
        return own

    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), figures=(("own", passed_on),))
    assert program.stats == ("own",) and told(program, [3.0, 0.5])["own"].tolist() == [0.5] * 3
    assert compile_program(("uncond", "cond"), (Stage(cfg), RESCALE)).stats == (), "asked for by nobody"


@pytest.mark.parametrize("shape", [(3, 2), (3, 9), (24,)], ids=str)
def test_room_for_figures(shape: tuple[int, ...]) -> None:
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), figures=FIGURES)
    with pytest.raises(ValueError, match=r"stats: expected a contiguous \[G, 8\] of torch.float64 on cpu"):
        fk.guide_checked([U, C], program, [3.0, 0.5], stats=torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="stats: expected a tensor, the program has 8"):
        fk.guide_checked([U, C], program, [3.0, 0.5])
    with pytest.raises(ValueError, match="stats: expected none"):
        fk.guide_checked([U, C], compile_program(("uncond", "cond"), (Stage(cfg),)), [3.0], stats=torch.zeros(3, 1))


def test_sums_alone() -> None:
    """No result is asked for: nothing is written but the figures."""
    program = compile_program(("uncond", "cond"), (Stage(cfg),), figures=FIGURES, more_sums=True)
    for backend in ("torch", "cpp", "triton"):
        figures = torch.zeros(3, len(program.stats), dtype=torch.float64)
        assert fk.guide_checked([U, C], program, [2.0], stats=figures, targets=[], backend=backend) == []
        torch.testing.assert_close(figures[:, program.stats.index("base_square")], dot(U, U))


@pytest.mark.parametrize("strategy", ["row", "two_launch"])
def test_strategies_tell_the_same(strategy: Any) -> None:
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), figures=FIGURES)
    inputs = [t.repeat(1, 6).float() for t in (U, C)]
    figures = [torch.zeros(3, len(program.stats), dtype=torch.float64) for _ in range(2)]
    for told, backend in zip(figures, ("triton", "torch"), strict=True):
        launch = strategy if backend == "triton" else None
        fk.guide_checked(inputs, program, [3.0, 0.5], stats=told, backend=backend, strategy=launch)
    torch.testing.assert_close(figures[0], figures[1], rtol=1e-4, atol=1e-3)


COMPILED = """
import torch
from fastcfg import APG, CFG
from fastcfg_kernels.backends.triton.aot import Sizes, compile_ahead
for rule, target, counts in (
    (CFG(rescale=0.7), "cuda:90", (4_096, 65_536)),
    (APG(norm_threshold=5.0), "hip:gfx942", (65_536,)),
):
    for count in counts:
        plain = compile_ahead(rule.program, torch.bfloat16, target, Sizes(count))
        told = compile_ahead(rule.lowered.variant(figures="gram"), torch.bfloat16, target, Sizes(count))
        print(rule, target, [one.kernel for one in told])
        assert all(one.spills <= 0 for one in told)
        assert all(b.loads <= a.loads + 0.01 for a, b in zip(plain, told, strict=True)), "an element is read again"
"""


def test_figures_compile_ahead_and_read_nothing_again() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cooperative_kernel" in done.stdout and "row_kernel" in done.stdout
