"""Stats of groups: from which sums they come, on which backends, where they are written, and what they leave alone."""

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
NAMES = ("dot_uncond_uncond", "dot_y_y", "cov_y_y", "dot_y_d", "sum_cond", "sum_y", "factor", "limited", "delta_ratio")


def cfg(scale: Any) -> Any:
    return 1.0, scale


def three(dot_d_cond_d_cond: Any, dot_d_cond_d_negative: Any, scale: Any) -> Any:
    return 1.0, scale, -dot_d_cond_d_negative / dot_d_cond_d_cond


def halved(cov_y_y: Any, cov_ref_ref: Any, phi: Any) -> Any:
    return phi * sqrt(cov_ref_ref / cov_y_y)


RESCALE = Stage(halved, "factor", vectors=(("ref", "cond"),))


def dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(1)


def written(program: fk.Program, params: list[Any], backend: str = "torch") -> dict[str, torch.Tensor]:
    stats = torch.full((3, len(program.stats)), -1e9, dtype=torch.float64)
    inputs = [U, C, N][: len(program.predictions)]
    fk.guide_checked(inputs, program, params, stats=stats, backend=backend)
    return dict(zip(program.stats, stats.unbind(1), strict=True))


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
@pytest.mark.parametrize("stages", [(Stage(cfg),), (Stage(cfg), RESCALE)], ids=["cfg", "rescale"])
def test_values(stages: tuple[Stage, ...], backend: str) -> None:
    program = compile_program(("uncond", "cond"), stages, stats=NAMES)
    d = C - U
    y = U + 3 * d
    factor = torch.ones(3, dtype=torch.float64) if len(stages) == 1 else 0.5 * C.std(1) / y.std(1)
    y = y * factor[:, None]
    expected = {
        "dot_uncond_uncond": dot(U, U),
        "dot_y_y": dot(y, y),
        "cov_y_y": y.var(1, correction=0) * 1000,
        "dot_y_d": dot(y, d),
        "sum_cond": C.sum(1),
        "sum_y": y.sum(1),
        "factor": factor,
        "limited": torch.zeros(3, dtype=torch.float64),
        "delta_ratio": d.norm(dim=1) / U.norm(dim=1),
    }
    found = written(program, [3.0, 0.5][: len(stages)], backend)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-6)


def test_three_predictions() -> None:
    names = ("dot_y_y", "dot_y_d_cond", "delta_ratio")
    found = written(compile_program(("uncond", "cond", "negative"), (Stage(three),), stats=names), [2.0])
    d, e = C - U, N - U
    y = U + 2 * d - (dot(d, e) / dot(d, d))[:, None] * e
    for name, value in zip(names, (dot(y, y), dot(y, d), d.norm(dim=1) / U.norm(dim=1)), strict=True):
        torch.testing.assert_close(found[name], value)


def test_a_program_takes_the_sums_of_its_stats_and_no_others() -> None:
    plain = compile_program(("uncond", "cond"), (Stage(cfg),))
    stats = compile_program(("uncond", "cond"), (Stage(cfg),), stats=("delta_ratio", "factor", "limited"))
    assert not plain.reduces and plain.is_lerp and len(stats.pairs) == 2 and not stats.means and not stats.is_lerp
    rescaled = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE))
    free = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), stats=("factor", "cov_cond_cond", "cov_y_y"))
    assert free.pairs == rescaled.pairs


@pytest.mark.parametrize("name", ["ratio", "dot_cond", "dot_uncond_other", "sum_other", "scale", ""])
def test_names_that_are_no_stats(name: str) -> None:
    with pytest.raises(ValueError, match=r"^stats: expected delta_ratio, .*, or a sum: dot_A_B.*; got "):
        compile_program(("uncond", "cond"), (Stage(cfg),), stats=(name,))


def test_stats_that_the_predictions_do_not_give() -> None:
    with pytest.raises(ValueError, match="stats: 'drift' takes dot_d_delta, and the vectors are uncond, d_cond"):
        compile_program(("uncond", "cond"), (Stage(cfg),), stats=("drift",))
    with pytest.raises(ValueError, match="stats: 'delta_ratio' takes dot_d_d"):
        compile_program(("cond",), (Stage(lambda: (1.0,)),), stats=("delta_ratio",))


@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(3, 2, dtype=torch.float64),
        torch.zeros(2, 9, dtype=torch.float64),
        torch.zeros(27, dtype=torch.float64),
        torch.zeros(3, 9),
        torch.zeros(9, 3, dtype=torch.float64).T,
        torch.zeros(3, 9, dtype=torch.float64, requires_grad=True),
    ],
    ids=["columns", "rows", "flat", "dtype", "strides", "gradient"],
)
def test_memory_that_does_not_fit(out: torch.Tensor) -> None:
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), stats=NAMES)
    with pytest.raises(ValueError, match=r"stats_out: expected a contiguous \[3, 9\] of torch.float64 on cpu"):
        fk.guide_checked([U, C], program, [3.0, 0.5], stats=out)


def test_stats_and_their_memory_go_together() -> None:
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), stats=NAMES)
    with pytest.raises(ValueError, match="stats_out: expected a tensor, since there are 9 stats"):
        fk.guide_checked([U, C], program, [3.0, 0.5])
    with pytest.raises(ValueError, match="stats_out: expected none"):
        fk.guide_checked([U, C], compile_program(("uncond", "cond"), (Stage(cfg),)), [3.0], stats=torch.zeros(3, 1))


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_stats_alone(backend: str) -> None:
    """No result is asked for: nothing is written but the stats."""
    program = compile_program(("uncond", "cond"), (Stage(cfg),), stats=("dot_uncond_uncond",))
    stats = torch.zeros(3, 1, dtype=torch.float64)
    assert fk.guide_checked([U, C], program, [2.0], stats=stats, targets=[], backend=backend) == []
    torch.testing.assert_close(stats[:, 0], dot(U, U))


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
@pytest.mark.parametrize("dims", [(1,), (2,), ()], ids=str)
def test_groups(dims: tuple[int, ...], backend: str) -> None:
    """A row for each group, samples first; the memory may have the groups' own shape."""
    u, c = U[:, :24].view(3, 4, 6), C[:, :24].view(3, 4, 6)
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), stats=("dot_cond_cond", "sum_cond"))
    whole = tuple(range(3)) if dims == () else dims
    expected = torch.stack([(c * c).sum(whole), c.sum(whole)], -1)
    stats = torch.zeros(expected.shape if dims else (1, 2), dtype=torch.float64)
    fk.guide_checked([u, c], program, [3.0, 0.5], dims=dims, stats=stats, backend=backend)
    torch.testing.assert_close(stats, expected.view(stats.shape))
    with pytest.raises(ValueError, match="stats_out: expected a contiguous"):
        fk.guide_checked([u, c], program, [3.0, 0.5], dims=dims, stats=torch.zeros(5, 2, dtype=torch.float64))


@pytest.mark.parametrize("strategy", ["row", "two_launch"])
def test_strategies_write_the_same(strategy: Any) -> None:
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), stats=NAMES)
    inputs = [t.repeat(1, 6).float() for t in (U, C)]
    stats = [torch.zeros(3, len(program.stats)) for _ in range(2)]
    for out, backend in zip(stats, ("triton", "torch"), strict=True):
        launch = strategy if backend == "triton" else None
        fk.guide_checked(inputs, program, [3.0, 0.5], stats=out, backend=backend, strategy=launch)
    torch.testing.assert_close(stats[0], stats[1], rtol=1e-4, atol=1e-3)


def test_under_torch_compile() -> None:
    program = compile_program(("uncond", "cond"), (Stage(cfg), RESCALE), stats=("delta_ratio", "factor"))

    def guided(u: torch.Tensor, c: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return fk.guide_checked([u, c], program, [3.0, 0.5], stats=out)[0]

    stats = torch.zeros(2, 3, 2, dtype=torch.float64)
    torch._dynamo.reset()
    got = torch.compile(guided, fullgraph=True, backend="aot_eager")(U, C, stats[0])
    torch.testing.assert_close(got, guided(U, C, stats[1]))
    torch.testing.assert_close(stats[0], stats[1])


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
        program = rule.lowered.variant(stats=("delta_ratio", "cosine", "limited", "dot_y_y"))
        stats = compile_ahead(program, torch.bfloat16, target, Sizes(count))
        print(rule, target, [one.kernel for one in stats])
        assert all(one.spills <= 0 for one in stats)
        assert all(b.loads <= a.loads + 0.01 for a, b in zip(plain, stats, strict=True)), "an element is read again"
"""


def test_stats_compile_ahead_and_read_nothing_again() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cooperative_kernel" in done.stdout and "row_kernel" in done.stdout
