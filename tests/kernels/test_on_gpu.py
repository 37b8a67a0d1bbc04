"""What only a GPU can show: equal bits of all strategies over many runs, and captured launches."""

import sys

import pytest
import torch
from fastcfg_kernels import guide_outputs
from fastcfg_kernels.backends.triton.gates import PARAMS, programs
from fastcfg_kernels.backends.triton.verify import STRATEGIES, check_strategy, run_watched, verify

import fastcfg
from fastcfg import CFG

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
RUNS = 1_000
PARAMS_OF = {name: PARAMS[name] for name in programs()["rescale"].params}


@pytest.fixture(scope="module")
def passed() -> set[str]:
    """Strategies that passed in a process of their own: a hang must not stop the tests."""
    return {outcome.strategy for outcome in verify() if outcome.passed}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_passes_under_the_watchdog(strategy: str, passed: set[str]) -> None:
    if strategy == "cooperative" and torch.version.hip:
        pytest.skip("AMD's GPUs run such launches one after the other")
    assert strategy in passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bits_do_not_depend_on_the_layout_that_the_compiler_picks(dtype: torch.dtype) -> None:
    """Alignment and slices change which thread holds what, and no bit of the result."""
    program = programs()["rescale"]
    generator = torch.Generator("cuda").manual_seed(0)
    wide = [torch.randn(2, 65_537, device="cuda", generator=generator).to(dtype) for _ in program.predictions]
    odd = [w[:, 1:] for w in wide]
    even = [o.clone() for o in odd]
    results = [
        guide_outputs(tensors, program, PARAMS_OF, backend="triton", strategy=strategy)[0]
        for tensors in (odd, even)
        for strategy in ("two_launch", None)
    ]
    assert all(torch.equal(result, results[0]) for result in results)
    alone = guide_outputs([e[1:] for e in even], program, PARAMS_OF, backend="triton")[0]
    assert torch.equal(alone, results[0][1:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_captured_guidance_replays_what_it_was_given(strategy: str, passed: set[str]) -> None:
    if strategy not in passed:
        pytest.skip(f"{strategy} did not pass its check on this device")
    program = programs()["rescale"]
    count = 4_096 if strategy == "row" else 65_536
    inputs = [torch.randn(2, count, device="cuda") for _ in program.predictions]
    out = torch.empty_like(inputs[0])

    def step() -> None:
        guide_outputs(inputs, program, PARAMS_OF, out=out, backend="triton", strategy=strategy)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(RUNS):
        for t in inputs:
            t.normal_()
        graph.replay()
        replayed = out.clone()
        step()
        assert torch.equal(replayed, out)


def test_a_first_cooperative_launch_inside_a_capture_is_an_error() -> None:
    code = (
        "import torch; from fastcfg_kernels import guide_outputs\n"
        "from fastcfg_kernels.backends.triton.gates import PARAMS, programs\n"
        "p = programs()['rescale']; x = [torch.randn(1, 65536, device='cuda') for _ in p.predictions]\n"
        "with torch.cuda.graph(torch.cuda.CUDAGraph()):\n"
        "    guide_outputs(x, p, {n: PARAMS[n] for n in p.params}, backend='triton', strategy='cooperative')\n"
    )
    reason = run_watched([sys.executable, "-c", code], 300)
    assert reason is not None and "falls inside a CUDA graph capture" in reason


def test_a_captured_loop_of_guidance_follows_its_scale() -> None:
    u, c = torch.randn(2, 1, 4, 128, 128, device="cuda", dtype=torch.bfloat16).unbind(0)
    scale = torch.tensor(7.5, device="cuda")
    rule = CFG(rescale=0.7)
    fastcfg.warmup(rule, [u.shape], u.dtype, "cuda", params={"scale": scale})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fastcfg.guide(rule, uncond=u, cond=c, params={"scale": scale})
    for value in (1.5, 7.5, 0.25):
        scale.fill_(value)
        graph.replay()
        assert torch.equal(out, fastcfg.guide(rule, uncond=u, cond=c, params={"scale": scale}))


def test_the_check_itself(passed: set[str]) -> None:
    check_strategy("two_launch", torch.device("cuda"), runs=RUNS)
