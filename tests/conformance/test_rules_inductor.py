"""The torch path compiled by Inductor: the bound, batch invariance and run-time scales, on a few rules.

A program and a dtype cost seconds of C++, so that one rule of each kind stands for the others: linear, a ratio of
sums, centred sums of all pairs, a clamp.
"""

import pytest
import torch
from fastcfg_kernels import inductor

import fastcfg
from conformance.cases import BY_NAME, Case, draw, exact, run
from conformance.tolerances import check_error

pytestmark = pytest.mark.skipif(not inductor.can_compile(), reason="there is no C++ compiler")

SIZE = 33001
COMPILED = [
    (BY_NAME["DualCFG"], torch.bfloat16),
    (BY_NAME["CFG(rescale)"], torch.float32),
    (BY_NAME["CFG(rescale)"], torch.bfloat16),
    (BY_NAME["CFG(rescale)"], torch.float16),
    (BY_NAME["PerpNeg_2"], torch.float32),
    (BY_NAME["PerpNeg_1+rescale_l2"], torch.float64),
    (BY_NAME["CFG+clamp"], torch.bfloat16),
]


@pytest.mark.parametrize(("case", "dtype"), COMPILED, ids=str)
def test_inductor_is_within_the_bound_and_batch_invariant(case: Case, dtype: torch.dtype) -> None:
    predictions = draw(case, (8, SIZE), dtype)
    whole = run(case.rule, predictions, "inductor")
    check_error(case, whole, exact(predictions))
    for b in range(8):
        alone = run(case.rule, {name: p[b : b + 1].clone() for name, p in predictions.items()}, "inductor")
        assert torch.equal(alone, whole[b : b + 1]), f"sample {b}"


def test_scales_and_sizes_change_without_a_recompile() -> None:
    case = BY_NAME["CFG(rescale)"]
    predictions = draw(case, (2, SIZE), torch.float32)
    run(case.rule, predictions, "inductor")
    with torch.compiler.set_stance("fail_on_recompile"):
        for scale in (1.5, torch.tensor(2.5), torch.tensor([3.0, 4.0]), 9.0):
            run(case.rule, predictions, "inductor", params={"scale": scale})
        for size in (SIZE + 4, 77_777):
            run(case.rule, draw(case, (3, size), torch.float32), "inductor")
        for shape in ((1, SIZE), (5, SIZE), (2, 3, 131, 91), (3, 5, 2, 91, 91), (2, SIZE // 3, 3)):
            predictions = draw(case, shape, torch.float32)
            expected = run(case.rule, predictions, "inductor")
            # Views of one batch, of a wider tensor, and one tensor for both: all the same to a compiled function.
            views = dict(zip(case.conditions, torch.cat(list(predictions.values())).chunk(2), strict=True))
            assert torch.equal(run(case.rule, views, "inductor"), expected)
            wide = {name: torch.cat([p, p, p], 1)[:, p.shape[1] : 2 * p.shape[1]] for name, p in predictions.items()}
            assert torch.equal(run(case.rule, wide, "inductor"), expected)
            run(case.rule, dict.fromkeys(case.conditions, predictions["cond"]), "inductor", out=torch.empty(shape))


def test_out_may_alias_an_input() -> None:
    case = BY_NAME["CFG(rescale)"]
    predictions = draw(case, (2, SIZE), torch.bfloat16)
    expected = run(case.rule, predictions, "inductor")
    for name in case.conditions:
        copies = {n: p.clone() for n, p in predictions.items()}
        assert run(case.rule, copies, "inductor", out=copies[name]) is copies[name]
        assert torch.equal(copies[name], expected)


def test_parameters_that_were_equal_at_first_do_not_stay_one() -> None:
    u, c = torch.randn(2, 1, 40_000)
    equal, apart = fastcfg.APG(2.0, eta=0.5, norm_threshold=0.5), fastcfg.APG(2.0, eta=0.25, norm_threshold=9.0)
    fastcfg.guide(equal, uncond=u, cond=c, backend="inductor")
    result = fastcfg.guide(apart, uncond=u, cond=c, backend="inductor")
    torch.testing.assert_close(result, fastcfg.guide(apart, uncond=u, cond=c, backend="torch"))
