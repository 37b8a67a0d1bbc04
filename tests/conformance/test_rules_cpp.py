"""Native CPU code: the bound for every rule, batch invariance, threads, and what happens without a compiler.

A program and a dtype cost a third of a second of C++: float32 and bfloat16 for every rule, the others for rules of
each kind (linear, a ratio of sums, centred sums of all pairs, a clamp).
"""

import importlib

import pytest
import torch
from fastcfg_kernels.backends import registry as backends
from fastcfg_kernels.backends.cpu import build as cpp_build
from fastcfg_kernels.notices import warn_once

import fastcfg
from conformance.cases import BY_NAME, CASES, Case, draw, exact, run
from conformance.tolerances import check_error

pytestmark = pytest.mark.skipif(cpp_build.compiler() is None, reason="there is no C++ compiler")

# An element, less than a vector, several blocks, several chunks with a part of one.
SIZES = (1, 35, 5000, 33_001)
KINDS = ("DualCFG", "CFG(rescale)", "PerpNeg_2", "PerpNeg_1+rescale_l2", "CFG+clamp")
DTYPES = [(case, dtype) for case in CASES for dtype in (torch.float32, torch.bfloat16)]
DTYPES += [(BY_NAME[name], dtype) for name in KINDS for dtype in (torch.float16, torch.float64)]


@pytest.mark.parametrize(("case", "dtype"), DTYPES, ids=str)
def test_native_code_is_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    for size in SIZES:
        predictions = draw(case, (2, size), dtype)
        kept = {name: p.clone() for name, p in predictions.items()}
        actual = run(case.rule, predictions, "cpp")
        assert actual.dtype == dtype and actual.shape == (2, size)
        assert all(torch.equal(p, kept[name]) for name, p in predictions.items()), "an input was written"
        check_error(case, actual, exact(predictions))


@pytest.mark.parametrize("shape", [(8, 5, 7), (8, 4, 64, 64), (8, 33_001)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sample_does_not_depend_on_its_batch_mates(case: Case, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        predictions = draw(case, shape, dtype)
        whole = run(case.rule, predictions, "cpp")
        for b in (0, 3, 7):
            alone = run(case.rule, {name: p[b : b + 1].clone() for name, p in predictions.items()}, "cpp")
            assert torch.equal(alone, whole[b : b + 1]), f"sample {b}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_results_that_go_past_the_caches_have_the_same_bits(dtype: torch.dtype) -> None:
    # All samples are more than STREAM, one is less; not every one of them starts where a vector may be streamed to.
    case = BY_NAME["CFG(rescale)"]
    for size in (480_000, 480_007):
        predictions = draw(case, (12, size), dtype)
        whole = run(case.rule, predictions, "cpp")
        apart = torch.empty(12 * size + 3, dtype=dtype)[3:].view(12, size)
        fastcfg.guide(case.rule, **predictions, out=apart, backend="cpp")
        assert torch.equal(apart, whole)
        for b in (0, 1, 11):
            alone = run(case.rule, {name: p[b : b + 1].clone() for name, p in predictions.items()}, "cpp")
            assert torch.equal(alone, whole[b : b + 1]), f"sample {b} of {size}"


@pytest.mark.parametrize("count", [2, 3, 8])
def test_threads_do_not_show_in_the_bits(count: int) -> None:
    case = BY_NAME["PerpNeg_2+rescale_std"]
    predictions = draw(case, (3, 300_001), torch.float32)
    expected = run(case.rule, predictions, "cpp")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        assert torch.equal(run(case.rule, predictions, "cpp"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_out_may_be_an_input_or_overlap_one(dtype: torch.dtype) -> None:
    case = BY_NAME["CFG(rescale)"]
    predictions = draw(case, (2, 33_001), dtype)
    expected = run(case.rule, predictions, "cpp")
    for name in case.conditions:
        copies = {n: p.clone() for n, p in predictions.items()}
        assert run(case.rule, copies, "cpp", out=copies[name]) is copies[name]
        assert torch.equal(copies[name], expected)
    shared = torch.empty(2 * 33_001 + 5, dtype=dtype)
    cond, out = shared[5:].view(2, -1), shared[:-5].view(2, -1)
    cond.copy_(predictions["cond"])
    run(case.rule, {"uncond": predictions["uncond"], "cond": cond}, "cpp", out=out)
    assert torch.equal(out, expected)


def test_per_sample_parameters() -> None:
    case = BY_NAME["CFG(rescale)"]
    predictions = draw(case, (3, 5000), torch.float32)
    scales = torch.tensor([1.5, 4.0, 9.0])
    whole = run(case.rule, predictions, "cpp", params={"scale": scales})
    for b, scale in enumerate(scales.tolist()):
        one = {name: p[b : b + 1] for name, p in predictions.items()}
        assert torch.equal(run(case.rule, one, "cpp", params={"scale": scale}), whole[b : b + 1])


def test_auto_is_native_code_at_every_size() -> None:
    case = BY_NAME["CFG(rescale)"]
    for size in (3, 5000, 33_001):
        predictions = draw(case, (2, size), torch.float32)
        assert torch.equal(run(case.rule, predictions, "auto"), run(case.rule, predictions, "cpp"))


def test_half_types_round_to_nearest_even_and_keep_what_is_not_finite() -> None:
    values = torch.tensor([1.0, 1.00390625, 1.01171875, 3e38, float("inf"), float("-inf"), float("nan"), 1e-41, -0.0])
    for dtype in (torch.bfloat16, torch.float16):
        given = values.to(dtype)
        # Base weight 0 and one at 1, over a rule that is no torch.lerp: what is stored is what was read.
        rule = fastcfg.Linear((("a", 0.0), ("b", 1.0), ("c", 0.0)))
        zeros = torch.zeros(1, 9, dtype=dtype)
        got = fastcfg.guide(rule, a=zeros, b=given[None], c=zeros, backend="cpp")[0]
        assert torch.equal(got.isnan(), given.isnan())
        assert torch.equal(got[~given.isnan()], given[~given.isnan()])
    program = fastcfg.Clamp(fastcfg.CFG(2.0), k=1e30)
    u, c = torch.randn(2, 1, 5000, dtype=torch.float32)
    exact_result = fastcfg.guide(program, uncond=u, cond=c, backend="cpp")
    assert exact_result.isfinite().all()


def test_what_cannot_be_built_takes_the_torch_path_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a header is missing")

    monkeypatch.setattr(importlib.import_module("fastcfg_kernels.backends.cpu.backend"), "guide_cpp", fail)
    monkeypatch.setattr(backends, "_BROKEN", set())
    case = BY_NAME["CFG+rescale_l2"]
    predictions = draw(case, (2, 5000), torch.float32)
    with pytest.raises(RuntimeError, match="a header is missing"):
        run(case.rule, predictions, "cpp")
    warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="a header is missing"):
        got = run(case.rule, predictions, "auto")
    expected = run(case.rule, predictions, "torch")
    assert torch.equal(got, expected) and torch.equal(run(case.rule, predictions, "auto"), expected)


def test_a_compiler_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"failed: .*error"):
        cpp_build.load("this is no C++")


def test_without_a_compiler_there_is_one_warning_and_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    cpp_build.compiler.cache_clear()
    warn_once.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    case = BY_NAME["CFG(rescale)"]
    predictions = draw(case, (2, 5000), torch.float32)
    try:
        with pytest.warns(RuntimeWarning, match="no-such-compiler") as caught:
            got = run(case.rule, predictions, "auto")
            run(case.rule, predictions, "auto")
        assert len(caught) == 1
        assert torch.equal(got, run(case.rule, predictions, "torch"))
        with pytest.raises(RuntimeError, match="backend: 'cpp'"):
            run(case.rule, predictions, "cpp")
    finally:
        cpp_build.compiler.cache_clear()


def test_compiled_code_is_kept_and_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("FASTCFG_CACHE_DIR", str(tmp_path))
    cpp_build.cache_folder.cache_clear()
    try:
        text = 'extern "C" int answer() { return 42; }'
        assert cpp_build.load(text).answer() == 42
        cpp_build.load.cache_clear()
        monkeypatch.setattr(cpp_build.subprocess, "run", None)  # Nothing is compiled the second time.
        assert cpp_build.load(text).answer() == 42
    finally:
        cpp_build.cache_folder.cache_clear()
        cpp_build.load.cache_clear()
