"""Every rule, dtype and backend against the fp64 oracles, within the bound of :mod:`conformance.tolerances`.

Sizes: 5,000 elements are one whole tile and a part of one; 33,001 an odd number of them and more than the small
path takes. Dropped: larger samples in the interpreter, which run the same code more often. The compiled CPU path has
its own file, since each program and dtype costs seconds of C++.
"""

import pytest
import torch

from conformance.cases import CASES, Case, draw, exact, run
from conformance.field_cases import FIELD
from conformance.tolerances import check_error
from fastcfg import Linear, Rule
from fastcfg.rules import registry

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# float64 predictions of one sample fill a program's registers at half the size.
ROW_SIZE = {torch.float32: 5000, torch.bfloat16: 5000, torch.float16: 5000, torch.float64: 3001}


def check(case: Case, path: str, size: int, dtype: torch.dtype) -> None:
    predictions = draw(case, (2, size), dtype)
    kept = {name: p.clone() for name, p in predictions.items()}
    actual = run(case.rule, predictions, path)
    assert actual.dtype == dtype and actual.shape == (2, size)
    assert all(torch.equal(p, kept[name]) for name, p in predictions.items()), "an input was written"
    truncates = path in ("row", "two_launch") and dtype == torch.bfloat16 and not torch.cuda.is_available()
    check_error(case, actual, exact(predictions), truncates=truncates)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", [1, 35, 5000, 33001])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_is_within_the_bound(case: Case, size: int, dtype: torch.dtype) -> None:
    check(case, "torch", size, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_two_launch_is_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    check(case, "two_launch", 5000, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", [c for c in CASES if c.rule.program.reduces], ids=str)
def test_triton_row_is_within_the_bound(case: Case, dtype: torch.dtype) -> None:
    check(case, "row", ROW_SIZE[dtype], dtype)


def test_every_rule_has_a_case() -> None:
    def kinds(rule: Rule) -> set[str]:
        inner = getattr(rule, "rule", None)
        return {type(rule).__name__} | (kinds(inner) if isinstance(inner, Rule) else set())

    # A rule that prepares tensors for its formula has a file of its own: no backend runs it from start to end.
    own = {n for n, cls in registry.items() if cls.__module__.startswith("fastcfg.") and cls.prepares is Rule.prepares}
    own -= {"InDomain"}  # It is tried over other rules in test_properties.py.
    tested = set().union(*(kinds(case.rule) for case in (*CASES, *FIELD)))
    assert own <= tested, "add the rule and its oracle to cases.py or field_cases.py"


@pytest.mark.parametrize("path", ["torch", "two_launch"])
def test_the_bound_can_fail(path: str) -> None:
    # A scale that is wrong by 1e-4 is well beyond the bound in float32.
    wrong = Linear((("uncond", -6.5007), ("cond", 7.5007)))
    case = next(c for c in CASES if c.name == "CFG")
    predictions = draw(case, (2, 5000), torch.float32)
    with pytest.raises(AssertionError, match="bound"):
        check_error(case, run(wrong, predictions, path), exact(predictions))
