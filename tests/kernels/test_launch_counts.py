"""Launches of a call beside the operations of diffusers' own functions, counted."""

from unittest import mock

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from fastcfg_kernels.backends.triton.launch import Launch
from torch.utils._python_dispatch import TorchDispatchMode

import fastcfg
from fastcfg import APG, CFG, CFGZeroStar

SHAPE = (2, 4, 16, 16)


class Operations(TorchDispatchMode):
    """Counts operations that touch elements: views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += not (func.is_view or "empty" in func.name() or "_unsafe_view" in func.name())
        return func(*args, **(kwargs or {}))


def launches(rule: fastcfg.Rule, tensors: dict[str, torch.Tensor]) -> int:
    found = []
    plain = Launch.__call__

    def launch(self: Launch, *rest: object) -> None:
        found.append(self)
        plain(self, *rest)

    state = fastcfg.State()
    with mock.patch.object(Launch, "__call__", launch):
        fastcfg.guide(rule, backend="triton", state=state, **tensors)
    return len(found)


CASES = {
    "rescale": (CFG(7.5, rescale=0.7), lambda: ClassifierFreeGuidance(7.5, guidance_rescale=0.7), 10),
    "CFG-Zero*": (CFGZeroStar(7.5).at(5, 10), lambda: ClassifierFreeZeroStarGuidance(7.5), 10),
    "APG": (APG(7.5, momentum=-0.5), lambda: AdaptiveProjectedGuidance(7.5, -0.5), 22),
}


@pytest.mark.parametrize("name", CASES)
def test_one_launch_in_the_place_of_many_operations(name: str) -> None:
    rule, peer, known = CASES[name]
    generator = torch.Generator().manual_seed(0)
    u, c = torch.randn(2, *SHAPE, generator=generator).unbind(0)
    guider = peer()
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(500))
    with Operations() as operations:
        guider.forward(pred_cond=c, pred_uncond=u)
    assert operations.count >= known
    assert launches(rule, {"uncond": u, "cond": c}) == 1


@pytest.mark.parametrize(("rule", "most"), [(CFG(7.5, rescale=0.7), 30), (APG(7.5, eta=0.5, norm_threshold=2.0), 25)])
@pytest.mark.parametrize("size", [SHAPE, (1, 4, 64, 64)], ids=str)
def test_the_torch_form_takes_few_operations(rule: fastcfg.Rule, most: int, size: tuple[int, ...]) -> None:
    u, c = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).unbind(0)
    with torch.no_grad(), Operations() as operations:
        fastcfg.guide(rule, uncond=u, cond=c, backend="torch")
    assert operations.count <= most
