"""The mark is torch's own."""

import torch
from fastcfg_kernels.tracing import constant_when_traced


def test_the_mark_is_what_torch_sets() -> None:
    def ours() -> int:
        return 1

    def torchs() -> int:
        return 1

    assert vars(constant_when_traced(ours)) == vars(torch.compiler.assume_constant_result(torchs))
