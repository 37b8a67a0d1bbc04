"""The optimiser beside torch's AdamW and singular values."""

import torch
from torch import nn

from fastcfg.distill.optimizer import MuonAdamW, matrices, orthogonalised


def test_singular_values_go_to_one_and_vectors_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((12, 40), (40, 12), (16, 16)):
        left, _, right = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
        values = torch.linspace(0.05, 1.0, min(rows, columns))
        found = left.T @ orthogonalised(left @ values.diag() @ right) @ right.T
        # In the basis of the singular vectors the result stays diagonal: the iteration is a polynomial in the matrix.
        assert (found - found.diagonal().diag()).abs().max() < 1e-4
        assert found.diagonal().min() > 0.6 and found.diagonal().max() < 1.25
    assert not orthogonalised(torch.zeros(3, 5)).any()


def test_what_is_no_matrix_gets_adamw() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.05}
    own = MuonAdamW([{"params": [mine]}], **settings)  # type: ignore[arg-type]
    peer = torch.optim.AdamW([theirs], **settings)  # type: ignore[arg-type]
    for _ in range(20):
        gradient = torch.randn(5, 3)
        mine.grad, theirs.grad = gradient, gradient.clone()
        own.step()
        peer.step()
    # 20 steps of a dozen roundings each, of numbers up to about 4.
    torch.testing.assert_close(mine, theirs, rtol=0, atol=20 * 12 * 4 * 2**-24)


def test_matrices_step_along_their_orthogonal_part() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    optimizer = MuonAdamW([{"params": [weight], "matrix": True}], lr=0.01)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    # The first momentum is along the gradient. 6 of 36 singular values at 1, times 0.2 sqrt(36).
    step = weight.detach().flatten(1)
    left, _, right = torch.linalg.svd(weight.grad.flatten(1), full_matrices=False)
    aligned = (left.T @ step @ right.T).diagonal()
    assert (aligned < 0).all() and torch.allclose(-aligned / (0.01 * 0.2 * 6), torch.ones(6), atol=0.4)
    # A larger gradient is no larger step.
    other = nn.Parameter(torch.zeros(6, 4, 3, 3))
    other.grad = 1000 * weight.grad
    MuonAdamW([{"params": [other], "matrix": True}], lr=0.01).step()
    torch.testing.assert_close(other, weight, rtol=1e-4, atol=1e-7)


def test_only_layers_that_multiply_channels_are_matrices() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2), nn.Embedding(3, 4))
    assert matrices(network) == {"0.weight", "2.weight"}
