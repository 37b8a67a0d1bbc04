"""The golden vectors: what the oracles give, what README.md promises, and what fastcfg computes."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from conformance.golden import make
from fastcfg import Rule, State, guide

MADE = make.vectors()
FILES = {path.name: json.loads(path.read_text()) for path in sorted(make.FOLDER.glob("*.json"))}
VECTORS = [
    pytest.param(vector, id=f"{name[:-5]}-{i}-{vector['rule']}")
    for name, content in FILES.items()
    for i, vector in enumerate(content["vectors"])
]
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
DTYPES = pytest.mark.parametrize("dtype", list(UNIT), ids=lambda d: str(d)[6:])
STATE = {"stock": "stock", "cached_delta": "delta"}


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    else:
        yield value


def without_results(content: dict[str, Any]) -> dict[str, Any]:
    entries = [{k: v for k, v in entry.items() if not k.startswith("result")} for entry in content["vectors"]]
    return content | {"vectors": entries}


def test_the_files_are_what_the_oracles_give() -> None:
    assert FILES.keys() == MADE.keys(), "run python -m conformance.golden.make"
    for name, made in MADE.items():
        again = json.loads(make.text(made))
        assert without_results(again) == without_results(FILES[name]), name
        for old, new in zip(FILES[name]["vectors"], again["vectors"], strict=True):
            for key in ("result", "results"):
                # The last bits of NumPy's sums and exponential differ by machine.
                a, b = (np.array(list(numbers(v.get(key, [])))) for v in (old, new))
                assert a.shape == b.shape and np.allclose(a, b, rtol=1e-14, atol=1e-14), (name, old["rule"])


def test_they_are_small_and_their_inputs_exact() -> None:
    assert sum(path.stat().st_size for path in make.FOLDER.iterdir() if path.is_file()) < 300_000
    for content in FILES.values():
        for vector in content["vectors"]:
            for inputs in vector.get("steps", [vector.get("inputs")]):
                for x in inputs.values():
                    values = np.array(list(numbers(x)))
                    assert (values * 32 == np.rint(values * 32)).all() and (abs(values) <= 4).all()
                    assert np.array_equal(torch.tensor(values).to(torch.bfloat16).double().numpy(), values)


def tensors(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(x, dtype=dtype) for name, x in inputs.items()}


def check(actual: torch.Tensor, expected: Any, magnitude: float) -> None:
    exact = np.array(expected)
    assert actual.shape == exact.shape
    store = torch.finfo(actual.dtype).eps / 2 * abs(exact)
    bound = 64 * UNIT[actual.dtype] * magnitude + store + torch.finfo(actual.dtype).smallest_normal
    error = abs(actual.double().numpy() - exact)
    assert (error <= bound).all(), f"error {error.max():.3e}"


def magnitude(vector: dict[str, Any], inputs: dict[str, Any]) -> float:
    """The largest prediction times the rule's weights, which the parameters bound."""
    largest = max(abs(x) for values in inputs.values() for x in numbers(values))
    scales = [v for k, v in vector["parameters"].items() if "scale" in k or k == "weight"]
    return largest * (2 + 2 * sum(abs(x) for value in scales if not isinstance(value, bool) for x in numbers(value)))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@DTYPES
@pytest.mark.parametrize("vector", VECTORS)
def test_fastcfg_agrees(vector: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    rule = Rule.from_dict(vector["fastcfg"])
    state = State()
    steps = vector.get("steps", [vector.get("inputs")])
    for k, (inputs, expected) in enumerate(zip(steps, vector.get("results", [vector.get("result")]), strict=True)):
        given = tensors(inputs, dtype)
        for name in STATE.keys() & given.keys():
            state[STATE[name]] = given.pop(name).to(torch.float64 if dtype == torch.float64 else torch.float32)
        resolved = rule.at(k, len(steps)) if rule.scheduled else rule
        actual = guide(resolved, state=state, backend=backend, **given)
        assert actual.dtype == dtype
        check(actual, expected, magnitude(vector, inputs))


def test_a_wrong_parameter_is_noticed() -> None:
    for content in FILES.values():
        for vector in content["vectors"]:
            if "inputs" not in vector or "phase" in vector["fastcfg"]:
                continue
            fields = dict(vector["fastcfg"])
            inner = fields = json.loads(json.dumps(fields))
            while "rule" in inner:
                inner = inner["rule"]
            name = "scales" if "scales" in inner else "scale"
            value = inner[name]
            inner[name] = [1.001 * s for s in value] if isinstance(value, list) else 1.001 * value
            given = tensors(vector["inputs"], torch.float32)
            state = State({STATE[n]: given.pop(n) for n in STATE.keys() & given.keys()})
            actual = guide(Rule.from_dict(fields), state=state, **given)
            with pytest.raises(AssertionError, match="error"):
                check(actual, vector["result"], magnitude(vector, vector["inputs"]))


def test_the_readme_names_the_files_and_its_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (make.FOLDER / "README.md").read_text()
    assert set(re.findall(r"`(\w+\.json)`", readme)) == set(FILES)
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(make.FOLDER)
    exec(example, {})
