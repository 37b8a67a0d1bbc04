"""Shadow mode compares with the torch path; Triton's cache may be read-only."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import fastcfg_kernels as fk
import pytest
import torch
from fastcfg_kernels.backends.triton import backend as triton_backend
from fastcfg_kernels.backends.triton import formula as triton_formula
from fastcfg_kernels.backends.triton.gates import PARAMS, programs

import fastcfg


@pytest.fixture(autouse=True)
def off() -> Iterator[None]:
    yield
    fk.shadow("off")


def guided(backend: str, tensors: list[torch.Tensor], **options: object) -> torch.Tensor:
    program = programs()["rescale"]
    return fk.guide_checked(tensors, program, [PARAMS[n] for n in program.params], backend=backend, **options)[0]


def draw(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 40, generator=generator).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dims", [None, (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_right_results_pass(backend: str, dtype: torch.dtype, dims: tuple[int, ...] | None) -> None:
    expected = guided(backend, draw(dtype), dims=dims)
    fk.shadow("raise")
    tensors = draw(dtype)
    assert torch.equal(guided(backend, tensors, dims=dims), expected)
    assert torch.equal(guided(backend, tensors, dims=dims, out=tensors[0]), expected)


def test_a_wrong_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = triton_backend.guide_triton

    def wrong(program: object, inputs: object, params: object, outs: list, *rest: object, **o: object) -> None:
        plain(program, inputs, params, outs, *rest, **o)
        outs[0][1].mul_(1 + 2**-10)

    monkeypatch.setattr(triton_backend, "guide_triton", wrong)
    guided("triton", draw())
    fk.shadow("raise")
    with pytest.raises(ArithmeticError, match=r"result 0 differs from the torch path by .* in sample 1"):
        guided("triton", draw())
    fk.shadow("warn")
    with pytest.warns(RuntimeWarning, match="fastcfg shadow: result 0 differs"):
        guided("triton", draw())
    with pytest.raises(ValueError, match="mode: expected one of off, warn, raise, got 'loud'"):
        fk.shadow("loud")


def test_a_nan_that_torch_has_too_is_no_difference() -> None:
    fk.shadow("raise")
    u, c = draw()
    c[1, 0, 0] = torch.nan
    assert guided("triton", [u, c])[1].isnan().all()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    blocked = tmp_path / "file"
    blocked.touch()
    before = triton.knobs.cache.dir
    triton_formula.writable_cache.cache_clear()
    try:
        triton.knobs.cache.dir = str(blocked / "cache")
        with pytest.warns(RuntimeWarning, match="Triton's cache can't be written"):
            triton_formula.writable_cache()
        assert Path(triton.knobs.cache.dir).is_dir() and triton.knobs.cache.dir != before
        triton_formula.writable_cache.cache_clear()
        triton.knobs.cache.dir = str(tmp_path / "new" / "cache")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            triton_formula.writable_cache()
        assert triton.knobs.cache.dir == str(tmp_path / "new" / "cache")
    finally:
        triton.knobs.cache.dir = before
        triton_formula.writable_cache.cache_clear()


def test_warmup_guides_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = triton_backend.run

    def run(call: fk.Call) -> list[torch.Tensor]:
        seen.append((tuple(call.first.shape), call.first.dtype))
        return plain(call)

    monkeypatch.setattr(triton_backend, "run", run)
    monkeypatch.setenv("FASTCFG_BACKEND", "triton")
    shapes = [(1, 4, 8, 8), (2, 30)]
    fastcfg.warmup(fastcfg.APG(momentum=-0.5), shapes, torch.bfloat16, "cpu")
    assert seen == [(shape, torch.bfloat16) for shape in shapes]
    with pytest.raises(ValueError, match=r"shapes: expected \[B, ...\]"):
        fastcfg.warmup(fastcfg.CFG(), [(4,)], torch.float32, "cpu")
