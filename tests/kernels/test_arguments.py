"""Parameters in all their forms, and errors that name the argument."""

import re
from typing import Any

import fastcfg_kernels as fk
import pytest
import torch

import fastcfg
from fastcfg import CFG, FDG, Clamp, DualCFG, MultiCondition, PerpNeg, Rescale, schedules

U, C, N = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
BOTH = {"uncond": U, "cond": C}
by_backend = pytest.mark.parametrize("backend", ["auto", "torch", "triton"])


@by_backend
@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        (CFG(1.0), "scale", 5.3),
        (CFG(3.0, rescale=0.3), "rescale", 0.7),
        (CFG(1.0, base="cond", rescale=0.3), "scale", -2.1),
        (DualCFG(), "negative_scale", 2.7),
        (PerpNeg(), "negative_scale_1", 1.3),
        (Rescale(DualCFG(), 0.2, "l2"), "phi", 1.0),
        (Clamp(CFG(7.5), k=2.0), "k", 0.5),
    ],
    ids=str,
)
def test_forms_of_a_parameter_agree(rule: fastcfg.Rule, name: str, value: float, backend: str) -> None:
    tensors = {n: t for n, t in zip(("uncond", "cond", "negative"), (U, C, N), strict=True) if n in rule.conditions}

    def guided(form: Any) -> torch.Tensor:
        return fastcfg.guide(rule, params={name: form}, backend=backend, **tensors)

    expected = guided(value)
    assert not torch.allclose(expected, fastcfg.guide(rule, backend=backend, **tensors), atol=1e-3), "had no effect"
    forms = [
        torch.tensor(value),
        torch.tensor(value, dtype=torch.float64),
        torch.tensor([value]),
        torch.full((2,), value),
        torch.full((4,), value)[::2],
        torch.tensor(value).expand(2),
    ]
    for form in forms:
        # A float64 number and its float32 tensor differ by half a rounding, which the formula and the sums carry on.
        torch.testing.assert_close(guided(form), expected, rtol=2.0**-20, atol=2.0**-20)
    half = guided(torch.tensor(value, dtype=torch.bfloat16))
    torch.testing.assert_close(half, guided(float(torch.tensor(value, dtype=torch.bfloat16))), rtol=2**-20, atol=2**-20)


@by_backend
def test_a_scale_for_each_sample(backend: str) -> None:
    scales = torch.tensor([1.5, 8.0])
    for rule in (CFG(), CFG(rescale=0.5), CFG(base="cond")):
        whole = fastcfg.guide(rule, uncond=U, cond=C, params={"scale": scales}, backend=backend)
        for b in range(2):
            one = fastcfg.guide(
                rule, uncond=U[b : b + 1], cond=C[b : b + 1], params={"scale": scales[b : b + 1]}, backend=backend
            )
            assert torch.equal(whole[b : b + 1], one)
            number = fastcfg.guide(
                rule, uncond=U[b : b + 1], cond=C[b : b + 1], params={"scale": float(scales[b])}, backend=backend
            )
            torch.testing.assert_close(one, number, rtol=2**-20, atol=2**-20)


def test_a_tensor_overrides_a_schedule() -> None:
    rule = CFG(schedules.Ramp(1.0, 9.0))
    got = fastcfg.guide(rule, uncond=U, cond=C, params={"scale": 3.0})
    torch.testing.assert_close(got, fastcfg.guide(CFG(3.0), uncond=U, cond=C))


@pytest.mark.parametrize("backend", [None, "auto", "torch", "triton"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uncond": U}, r"predictions: CFG takes \['uncond', 'cond'\]; missing \['cond'\]"),
        ({"uncond": U, "cond": C, "image": C}, r"unknown \['image'\]"),
        ({"uncond": U, "negative": C}, r"missing \['cond'\], unknown \['negative'\]"),
        ({"uncond": U, "cond": C[:1]}, r"cond: expected the shape of uncond, \[2, 4, 9, 8\], got \[1, 4, 9, 8\]"),
        ({"uncond": U, "cond": C[..., :4]}, r"cond: expected the shape"),
        ({"uncond": U, "cond": C[0]}, r"cond: expected the shape"),
        ({"uncond": U, "cond": C.bfloat16()}, r"cond: expected the dtype of uncond, torch.float32, got torch.bfloat16"),
        ({"uncond": U, "cond": C.to("meta")}, r"cond: expected the device of uncond, cpu, got meta"),
        ({"uncond": U.long(), "cond": C.long()}, r"uncond: expected a float32.* got torch.int64"),
        ({"uncond": U[0, 0, 0], "cond": C[0, 0, 0]}, r"uncond: expected \[B, ...\] with at least two dimensions"),
        ({"uncond": U, "cond": 3.0}, r"cond: expected a tensor, got float"),
        ({**BOTH, "out": torch.empty(2, 4)}, r"out: expected the shape"),
        ({**BOTH, "out": torch.empty(U.shape, dtype=torch.half)}, r"out: expected the dtype"),
        ({**BOTH, "out": torch.empty(U.shape, device="meta")}, r"out: expected the device"),
        ({"batch": U[:1]}, r"batch: expected \[k\*B, ...\] with k = 2"),
        ({"batch": U, "uncond": U}, r"batch: give one tensor or named predictions"),
        ({"batch": U, "order": ("cond", "image")}, r"order: expected the names"),
        ({**BOTH, "params": {"skale": 3.0}}, r"params: CFG has no parameter 'skale'; it has \['scale'\]"),
        ({**BOTH, "params": {"scale": float("nan")}}, r"scale: expected a finite number, got nan"),
        ({**BOTH, "params": {"scale": float("inf")}}, r"scale: expected a finite number, got inf"),
        ({**BOTH, "params": {"scale": True}}, r"scale: expected a number or a floating tensor, got bool"),
        ({**BOTH, "params": {"scale": "7"}}, r"scale: expected a number or a floating tensor, got str"),
        ({**BOTH, "params": {"scale": None}}, r"scale: expected a number .* got NoneType"),
        ({**BOTH, "params": {"scale": torch.ones(3)}}, r"scale: expected a tensor of shape \[\] or \[2\], got \[3\]"),
        ({**BOTH, "params": {"scale": torch.ones(2, 2)}}, r"scale: expected a tensor of shape"),
        ({**BOTH, "params": {"scale": torch.tensor(7)}}, r"scale: expected a floating tensor, got torch.int64"),
        ({**BOTH, "params": {"scale": torch.ones(2, device="meta")}}, r"scale: expected a tensor on cpu"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else None,
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str, backend: str | None) -> None:
    given = {"backend": backend} if backend else {}
    with pytest.raises((TypeError, ValueError), match=message):
        fastcfg.guide(CFG(3.0), **given, **arguments)
    if "skale" not in message:
        with pytest.raises((TypeError, ValueError), match=message):
            fastcfg.guide(CFG(3.0, rescale=0.5), **given, **arguments)


@pytest.mark.parametrize("rule", [CFG(3.0), CFG(3.0, rescale=0.5)], ids=str)
def test_what_no_result_can_be_written_to_or_read_from(rule: CFG) -> None:
    for out in (torch.zeros(1, *U.shape[1:]).expand(U.shape), torch.zeros(*U.shape[:-1], 1).expand(U.shape)):
        with pytest.raises(ValueError, match="out: expected memory for each element, got overlapping ones"):
            fastcfg.guide(rule, uncond=U, cond=C, out=out)
    leaf = torch.zeros(U.shape, requires_grad=True)
    with pytest.raises(ValueError, match="out: expected a tensor that needs no gradient"):
        fastcfg.guide(rule, uncond=U, cond=C, out=leaf)
    with torch.no_grad():
        assert fastcfg.guide(rule, uncond=U, cond=C, out=leaf) is leaf
    with pytest.raises(TypeError, match=r"cond: expected a dense tensor, got one of layout torch\.sparse_coo"):
        fastcfg.guide(rule, uncond=U, cond=C.to_sparse())
    with pytest.raises(TypeError, match="uncond: expected a dense tensor"):
        fastcfg.guide(rule, uncond=U.to_sparse(), cond=C.to_sparse())


@pytest.mark.parametrize("rule", [CFG(3.0), CFG(3.0, rescale=0.5), fastcfg.FDG()], ids=str)
def test_what_is_no_tensor_or_no_mapping(rule: fastcfg.Rule) -> None:
    given = {"uncond": torch.randn(2, 3, 16, 16), "cond": torch.randn(2, 3, 16, 16)}
    for name, value in (("out", 3.0), ("params", [7.5]), ("uncond", [1.0]), ("cond", None)):
        with pytest.raises(TypeError, match=f"{name}: expected a (tensor|mapping .*), got {type(value).__name__}"):
            fastcfg.guide(rule, **{**given, name: value})
    with pytest.raises(TypeError, match="batch: expected a tensor, got list"):
        fastcfg.guide(rule, [1.0])
    with pytest.raises((TypeError, ValueError), match="out: expected"):
        fastcfg.guide(rule, out=torch.zeros(2, 3, 16, 16, dtype=torch.int64), **given)
    with pytest.raises((TypeError, ValueError), match="out: expected"):
        fastcfg.guide(rule, out=torch.zeros(2, 3, 16, 16, device="meta"), **given)
    with pytest.raises(TypeError, match="cond: expected a dense tensor"):
        fastcfg.guide(rule, uncond=given["uncond"], cond=given["cond"].to_sparse())
    if not rule.prepares:
        for name in ("scale_map", "mask"):
            if name == "scale_map" or rule.program.reduces:
                with pytest.raises(TypeError, match=f"{name}: expected a tensor, got float"):
                    fastcfg.guide(rule, **{**given, name: 2.0})


@pytest.mark.parametrize("rule", [CFG(3.0), CFG(3.0, rescale=0.5)], ids=str)
def test_one_value_in_a_tensor_gives_every_batch_the_same_bits(rule: CFG) -> None:
    predictions = {"uncond": torch.randn(4, 7, dtype=torch.float64), "cond": torch.randn(4, 7, dtype=torch.float64)}
    params = {"scale": torch.tensor([7.109375])}
    whole = fastcfg.guide(rule, params=params, **predictions)
    for b in range(4):
        alone = {name: p[b : b + 1] for name, p in predictions.items()}
        assert torch.equal(fastcfg.guide(rule, params=params, **alone), whole[b : b + 1])


def test_nan_in_a_tensor_parameter_is_found_when_asked() -> None:
    scale = torch.tensor([1.0, float("nan")])
    with pytest.raises(ValueError, match="scale: expected finite values"):
        fastcfg.guide(CFG(), uncond=U, cond=C, params={"scale": scale}, check=True)
    got = fastcfg.guide(CFG(), uncond=U, cond=C, params={"scale": scale})
    assert got[0].isfinite().all() and got[1].isnan().all()


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend: expected one of auto, triton, cpp, torch, got 'cuda'"):
        fastcfg.guide(CFG(), uncond=U, cond=C, backend="cuda")
    with pytest.raises(ValueError, match="backend: expected one of"):
        fastcfg.guide(FDG(), uncond=U, cond=C, backend="cuda")  # Which has no formula left for a backend.
    with pytest.raises(ValueError, match=r"backend: 'inductor' was removed; use 'cpp', or torch\.compile"):
        fastcfg.guide(CFG(), uncond=U, cond=C, backend="inductor")
    monkeypatch.setenv("FASTCFG_BACKEND", "inductor")
    with pytest.raises(ValueError, match="environment variable FASTCFG_BACKEND: 'inductor' was removed"):
        fastcfg.guide(CFG(rescale=0.5), uncond=U, cond=C)
    monkeypatch.setenv("FASTCFG_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"environment variable FASTCFG_BACKEND: expected one of .* got 'fast'"):
        fastcfg.guide(CFG(rescale=0.5), uncond=U, cond=C)
    monkeypatch.setenv("FASTCFG_BACKEND", "triton")
    program = CFG(rescale=0.5).program
    assert fk.choose_backend(program, torch.device("cpu")) == "triton"
    assert fk.choose_backend(program, torch.device("cpu"), "auto") != "triton"


def test_the_environment_chooses_for_plain_cfg_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTCFG_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTCFG_BACKEND"):
        fastcfg.guide(CFG(), uncond=U, cond=C)


def test_meta_tensors_are_refused_or_stay_meta() -> None:
    got = fastcfg.guide(CFG(rescale=0.5), uncond=U.to("meta"), cond=C.to("meta"))
    assert got.is_meta and got.shape == U.shape
    with pytest.raises(RuntimeError, match="backend: 'triton' is not available"):
        fastcfg.guide(CFG(rescale=0.5), uncond=U.to("meta"), cond=C.to("meta"), backend="triton")


def test_kernels_refuse_a_wrong_count_and_wrong_names() -> None:
    program = CFG(rescale=0.5).program
    with pytest.raises(ValueError, match=r"predictions: expected 2 \(uncond, cond\), got 1"):
        fk.guide([U], program, {"scale": 1.0, "rescale": 0.5})
    with pytest.raises(ValueError, match=re.escape("params: missing ['rescale'], unknown ['phi']")):
        fk.guide([U, C], program, {"scale": 1.0, "phi": 0.5})
    with pytest.raises(ValueError, match="strategy: 'row' holds at most"):
        x = torch.zeros(1, 100_000)
        fk.guide([x, x], program, {"scale": 1.0, "rescale": 0.5}, backend="triton", strategy="row")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CFG(float("nan")), "scale: expected a finite number, got nan"),
        (lambda: CFG(float("inf")), "scale: expected a finite number"),
        (lambda: CFG("7.5"), "scale: expected a number or a schedule, got str"),
        (lambda: CFG(True), "scale: expected a number or a schedule, got bool"),
        (lambda: CFG(None), "scale: expected a number or a schedule, got NoneType"),
        (lambda: CFG(torch.tensor(7.5)), "scale: .*got Tensor; give tensors to the call"),
        (lambda: CFG(rescale=1.5), r"rescale: expected a share in 0 \.\.\. 1, got 1.5"),
        (lambda: CFG(rescale=-0.1), "rescale: expected a share"),
        (lambda: CFG(base="both"), "base: expected 'uncond' or 'cond', got 'both'"),
        (lambda: DualCFG(1.0, float("nan")), "negative_scale: expected a finite number"),
        (lambda: fastcfg.InstructPix2Pix(1.0, "a"), "image_scale: expected a number"),
        (lambda: fastcfg.NegativePrompt([1.0]), "scale: expected a number or a schedule, got list"),
        (lambda: MultiCondition(()), "scales: expected one or more"),
        (lambda: MultiCondition(3.0), "scales: expected one or more"),
        (lambda: MultiCondition((1.0, float("nan"))), r"scales\[1\]: expected a finite number"),
        (lambda: PerpNeg(1.0, ()), "negative_scales: expected one or more"),
        (lambda: PerpNeg(1.0, (1.0,), 1), "scale_negative: expected a bool, got int"),
        (lambda: Rescale(3.0), "rule: expected a rule, got float"),
        (lambda: Rescale(CFG(), 2.0), "phi: expected a share"),
        (lambda: Rescale(CFG(), norm="l1"), "norm: expected 'std' or 'l2', got 'l1'"),
        (lambda: Rescale(CFG(), reference="a b"), "reference: expected distinct names of predictions"),
        (lambda: Clamp(CFG(), k=0.0), "k: expected a number above 0, got 0"),
        (lambda: Clamp(CFG(), k=-1), "k: expected a number above 0"),
        (lambda: Clamp(Clamp(CFG())), "rule: a clamp is the outermost modifier"),
        (lambda: Rescale(Clamp(CFG())).program, "a clamp .* outermost"),
        (lambda: fastcfg.Linear(()), "weights: expected one or more distinct predictions"),
        (lambda: fastcfg.Linear((("a", 1.0), ("a", 2.0))), "weights: expected one or more distinct"),
        (lambda: fastcfg.Linear((("a", float("nan")),)), r"weights\['a'\]: expected a finite number"),
        (lambda: fastcfg.guide("cfg", uncond=U, cond=C), "rule: expected a fastcfg rule, got str"),
        (lambda: schedules.Ramp("a", 1.0), "Ramp: start: expected a number, got str"),
        (lambda: schedules.Ramp(1.0, float("nan")), "Ramp: end: expected a finite number"),
        (lambda: schedules.Constant(True), "Constant: value: expected a number, got bool"),
        (lambda: schedules.Interval(5.0, 0.6, 0.4), "Interval: start, stop: expected shares"),
        (lambda: schedules.Interval(5.0, -0.1, 0.4), "Interval: start, stop"),
        (lambda: schedules.Interval(5.0, 0.1, 1.4), "Interval: start, stop"),
        (lambda: schedules.Step(5.0, 1.0, 1.5), "Step: switch: expected a share"),
        (lambda: schedules.Ramp(1.0, 2.0).at(0, 0), "num_steps: expected a positive integer, got 0"),
        (lambda: schedules.Ramp(1.0, 2.0).at(5, 5), r"step: expected an integer in 0 \.\.\. 4, got 5"),
        (lambda: schedules.Ramp(1.0, 2.0).at(-1, 5), "step: expected an integer"),
        (lambda: CFG().at(1.0, 5), "step: expected an integer"),
        (lambda: CFG().at(0, 2.5), "num_steps: expected a positive integer"),
        (lambda: fastcfg.guide(CFG(schedules.Ramp(1, 2)), uncond=U, cond=C), r"scale: is a schedule; .*at\(step"),
        (lambda: fastcfg.guide(CFG(schedules.Ramp(1, 2), 0.5), uncond=U, cond=C), "scale: is a schedule"),
    ],
)
def test_rules_and_schedules_refuse(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()
