"""``FusedCFG`` on the mixin's convention, and on vllm-omni's own mixin where ``VLLM_OMNI_PATH`` has it."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conformance.clients import vllm_omni as client
from torch import Tensor

from fastcfg import APG, CFG, CFGZeroStar, PerpNeg, Prediction, Rescale, State, guide
from fastcfg.adapters.vllm_omni import FusedCFG, fuse
from fastcfg.schedules import Ramp

UNIT = 2.0**-24


def draw(seed: int, shape: tuple[int, ...] = (2, 7, 16)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class CFGParallelMixin:
    """The mixin's convention in float64."""

    def predict_noise(self, value: Tensor) -> Any:
        return value

    def predict(self, scale: Any, normalize: bool, positive: Any, negative: Any, **options: Any) -> Any:
        return self.combine_cfg_noise(positive, negative, scale, normalize, **options)

    def cfg_normalize_function(self, noise_pred: Tensor, comb_pred: Tensor) -> Tensor:
        return comb_pred * (noise_pred.norm(dim=-1, keepdim=True) / comb_pred.norm(dim=-1, keepdim=True))

    def combine_cfg_noise(
        self, positive_noise_pred: Any, negative_noise_pred: Any, true_cfg_scale: float, cfg_normalize: bool = False,
        kwargs: Any = None,
    ) -> Any:  # fmt: skip
        many = isinstance(positive_noise_pred, tuple)
        pairs = zip(positive_noise_pred, negative_noise_pred, strict=True) if many else [
            (positive_noise_pred, negative_noise_pred)
        ]  # fmt: skip
        results = []
        for p, n in pairs:
            y = n + true_cfg_scale * (p - n)
            results.append(self.cfg_normalize_function(p, y) if cfg_normalize else y)
        return tuple(results) if len(results) > 1 else results[0]

    def combine_multi_branch_cfg_noise(self, predictions: Any, true_cfg_scale: Any, cfg_normalize: bool = False) -> Any:
        return self.combine_cfg_noise(*predictions, true_cfg_scale, cfg_normalize)


class Pipeline(CFGParallelMixin):
    """A pipeline that overrides nothing."""


class Clamping(CFGParallelMixin):
    """A pipeline with a norm of its own (LongCat's)."""

    def cfg_normalize_function(self, noise_pred: Tensor, comb_pred: Tensor) -> Tensor:
        ratio = noise_pred.norm(dim=-1, keepdim=True) / comb_pred.norm(dim=-1, keepdim=True)
        return comb_pred * ratio.clamp(0.4, 1.0)


class VideoAndAudio(CFGParallelMixin):
    """A pipeline of two outputs, one of them guided."""

    def combine_cfg_noise(self, positive_noise_pred: Any, negative_noise_pred: Any, *args: Any, **kwargs: Any) -> Any:
        video = super().combine_cfg_noise(positive_noise_pred[0], negative_noise_pred[0], *args, **kwargs)
        return video, positive_noise_pred[1]


@pytest.fixture(
    params=[
        "convention",
        pytest.param("theirs", marks=pytest.mark.skipif(client.WHY is not None, reason=str(client.WHY))),
    ]
)
def mixin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The mixin where vllm-omni has it: our few lines, or theirs."""
    if request.param == "theirs":
        module = client.load()
    else:
        module = ModuleType(client.MODULE)
        module.CFGParallelMixin = CFGParallelMixin  # type: ignore[attr-defined]
    for name, found in client.installed(module).items():
        monkeypatch.setitem(sys.modules, name, found)
    return module.CFGParallelMixin


def pipelines(mixin: type, base: type = Pipeline) -> tuple[Any, type]:
    """A stock pipeline, and its class, on a mixin."""
    members = {k: v for k, v in vars(base).items() if not k.startswith("__")}
    if base is VideoAndAudio:  # Its super() is bound to its class.

        def combine_cfg_noise(self: Any, positive: Any, negative: Any, *args: Any, **kwargs: Any) -> Any:
            return super(cls, self).combine_cfg_noise(positive[0], negative[0], *args, **kwargs), positive[1]

        members = {"combine_cfg_noise": combine_cfg_noise}
    cls = type(base.__name__, (mixin,), members)
    return cls(), cls


def close(got: Tensor, exact: Tensor, scale: float = 4.0) -> None:
    """Within the roundings of three terms and of the norms over the last dimension."""
    assert got.dtype == torch.float32
    bound = UNIT * (24 * (2 * scale + 1) * 4.0 + 4 * exact.abs().max())
    assert float((got.double() - exact).abs().max()) <= bound


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("base", [Pipeline, Clamping, VideoAndAudio], ids=lambda cls: cls.__name__)
def test_fused_pipelines_combine_as_theirs(mixin: type, base: type, normalize: bool) -> None:
    stock, cls = pipelines(mixin, base)
    fused = fuse(cls)()
    p, n = draw(0), draw(1)
    given = ((p, draw(2)), (n, draw(3))) if base is VideoAndAudio else (p, n)
    exact_given = tuple(tuple(t.double() for t in g) if isinstance(g, tuple) else g.double() for g in given)
    exact = stock.combine_cfg_noise(*exact_given, 4.0, normalize)
    got = fused.combine_cfg_noise(*given, 4.0, normalize)
    if base is VideoAndAudio:
        assert torch.equal(got[1], given[0][1])
        got, exact = got[0], exact[0]
    close(got, exact)


def test_signatures_are_theirs(mixin: type) -> None:
    for name in ("combine_cfg_noise", "cfg_normalize_function", "combine_multi_branch_cfg_noise"):
        theirs = list(inspect.signature(getattr(mixin, name)).parameters)
        assert list(inspect.signature(getattr(FusedCFG, name)).parameters)[: len(theirs)] == theirs


def test_tuples_are_guided_one_by_one(mixin: type) -> None:
    stock, cls = pipelines(mixin)
    p, n = (draw(0), draw(1, (2, 3, 5, 4))), (draw(2), draw(3, (2, 3, 5, 4)))
    got = fuse(cls)().combine_cfg_noise(p, n, 4.0, True)
    exact = stock.combine_cfg_noise(tuple(t.double() for t in p), tuple(t.double() for t in n), 4.0, True)
    assert isinstance(got, tuple)
    for ours, theirs in zip(got, exact, strict=True):
        close(ours, theirs)
    one = fuse(cls)().combine_cfg_noise((draw(0),), (draw(2),), 4.0)
    assert isinstance(one, Tensor), "as the mixin unwraps it"


def test_rules_take_the_scale_and_the_context(mixin: type) -> None:
    _, cls = pipelines(mixin)
    p, n, x = draw(0), draw(1), draw(2)
    got = fuse(cls, Rescale(CFG(), 0.7))().combine_cfg_noise(p, n, 4.0)
    assert torch.equal(got, guide(Rescale(CFG(4.0), 0.7), cond=p, uncond=n))
    got = fuse(cls, Rescale(CFG(), 0.7))().combine_cfg_noise(p, n, 4.0, True)
    inner = guide(Rescale(CFG(4.0), 0.7), cond=p, uncond=n)
    close(got, inner.double() * (p.double().norm(dim=-1, keepdim=True) / inner.double().norm(dim=-1, keepdim=True)))
    state, ours = State(), State()
    pipeline = fuse(cls, APG(momentum=-0.5))()
    for seed in range(3):
        p, n = draw(seed), draw(seed + 10)
        got = pipeline.combine_cfg_noise(p, n, 4.0, kwargs={"state": state})
        assert torch.equal(got, guide(APG(4.0, momentum=-0.5), cond=p, uncond=n, state=ours))
    zero = fuse(cls, CFGZeroStar())()
    assert not zero.combine_cfg_noise(p, n, 4.0, kwargs={"step": 0, "num_steps": 5}).any()
    assert zero.combine_cfg_noise(p, n, 4.0, kwargs={"step": 1, "num_steps": 5}).any()
    level = Prediction("flow", 0.4, 0.6)
    got = pipeline.combine_cfg_noise(p, n, 4.0, kwargs={"state": State(), "x": x, "prediction": level})
    assert torch.equal(got, guide(APG(4.0, momentum=-0.5), cond=p, uncond=n, state=State()))
    with pytest.raises(ValueError, match="kwargs: expected some of"):
        pipeline.combine_cfg_noise(p, n, 4.0, kwargs={"steps": 3})
    with pytest.raises(ValueError, match="state"):
        pipeline.combine_cfg_noise(p, n, 4.0)


def test_a_scale_for_each_request(mixin: type) -> None:
    _, cls = pipelines(mixin)
    p, n = draw(0), draw(1)
    both = fuse(cls)().combine_cfg_noise(p, n, torch.tensor([2.0, 5.0]))
    for i, scale in enumerate((2.0, 5.0)):
        close(both[i], (n + scale * (p - n))[i].double(), scale)


def test_several_branches(mixin: type) -> None:
    _, cls = pipelines(mixin)
    pos, ref, neg = draw(0), draw(1), draw(2)
    fused = fuse(cls)()
    exact = neg.double() + 1.5 * (ref.double() - neg.double()) + 4.0 * (pos.double() - ref.double())
    for names in (("text", "image"), ("cfg_scale", "img_cfg_scale")):
        got = fused.combine_multi_branch_cfg_noise([pos, ref, neg], dict(zip(names, (4.0, 1.5), strict=True)))
        close(got, exact)
    close(fused.combine_multi_branch_cfg_noise([pos, neg], 4.0), neg.double() + 4.0 * (pos.double() - neg.double()))
    close(
        fused.combine_multi_branch_cfg_noise([pos, ref, neg], {"text": 4.0, "image": 1.5}, True),
        exact * (pos.double().norm(dim=-1, keepdim=True) / exact.norm(dim=-1, keepdim=True)),
    )
    perp = fuse(cls, PerpNeg(), ("cond", "negative", "uncond"))()
    got = perp.combine_multi_branch_cfg_noise([pos, ref, neg], 4.0)
    assert torch.equal(got, guide(PerpNeg(4.0), cond=pos, negative=ref, uncond=neg))
    with pytest.raises(ValueError, match="predictions: expected"):
        perp.combine_multi_branch_cfg_noise([pos, neg], 4.0)
    with pytest.raises(ValueError, match="true_cfg_scale: PerpNeg has no parameter 'audio'"):
        perp.combine_multi_branch_cfg_noise([pos, ref, neg], {"audio": 1.0})


def test_a_zero_row_is_zero_and_not_nan(mixin: type) -> None:
    stock, cls = pipelines(mixin)
    p, n = draw(0), draw(1)
    p[:, 2] = n[:, 2] = 0
    assert stock.combine_cfg_noise(p, n, 4.0, True).isnan().any()
    got = fuse(cls)().combine_cfg_noise(p, n, 4.0, True)
    assert got.isfinite().all() and not got[:, 2].any()


def test_half_precision_is_rounded_once(mixin: type) -> None:
    stock, cls = pipelines(mixin)
    p, n = draw(0).bfloat16(), draw(1).bfloat16()
    exact = stock.combine_cfg_noise(p.double(), n.double(), 4.0, True)
    ours, theirs = (pipe.combine_cfg_noise(p, n, 4.0, True).double() for pipe in (fuse(cls)(), stock))
    errors = [float((y - exact).abs().max()) for y in (ours, theirs)]
    assert errors[0] <= float(np.spacing(np.float32(exact.abs().max())) * 2**16) < errors[1]


def test_ranks_have_the_same_bits_whatever_their_batch(mixin: type) -> None:
    pipeline = fuse(pipelines(mixin)[1], Rescale(CFG(), 0.7))()
    p, n = draw(0), draw(1)
    both = pipeline.combine_cfg_noise(p, n, 4.0)
    for i in range(2):
        assert torch.equal(pipeline.combine_cfg_noise(p[i : i + 1], n[i : i + 1], 4.0), both[i : i + 1])


def test_fuse_refuses_what_it_can_not_guide(mixin: type) -> None:
    with pytest.raises(TypeError, match="pipeline: expected"):
        fuse(int)
    own = pipelines(mixin, VideoAndAudio)[1]
    with pytest.raises(ValueError, match="combine_cfg_noise of its own"):
        fuse(own, APG())


def test_without_vllm_omni_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm_omni", None)
    with pytest.raises(ImportError, match="pip install vllm-omni"):
        fuse(Pipeline)


def test_scheduled_rules_say_what_they_need(mixin: type) -> None:
    pipeline = fuse(pipelines(mixin)[1], Rescale(CFG(), Ramp(0.2, 0.8)))()
    with pytest.raises(ValueError, match="kwargs: expected step and num_steps"):
        pipeline.combine_cfg_noise(draw(0), draw(1), 4.0)
