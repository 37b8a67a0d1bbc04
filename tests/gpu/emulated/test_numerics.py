"""The interpreter's arithmetic beside the C library's and torch's."""

import ctypes
import struct

import numpy as np
import pytest
import torch
from gpu.softgpu import numerics

_LIBM = ctypes.CDLL("libm.so.6")
_LIBM.fmaf.restype, _LIBM.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
_LIBM.fma.restype, _LIBM.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0]


def triples(kind: type, count: int, seed: int) -> list[np.ndarray]:
    """Operands of all sizes, near-cancelling ones among them."""
    rng = np.random.default_rng(seed)
    size = np.dtype(kind).itemsize
    bits = rng.integers(0, 256, (3, count, size), dtype=np.uint8).view(kind)[..., 0]
    small = rng.standard_normal((3, count)).astype(kind)
    small[2] = -(small[0] * small[1]) * (1 + rng.integers(-2, 3, count) * np.finfo(kind).eps)
    edge = np.array(np.meshgrid(*[SPECIAL] * 3)).reshape(3, -1).astype(kind)
    tiny = (rng.standard_normal((3, count)) * np.finfo(kind).tiny ** 0.5).astype(kind)
    tiny[2] *= np.finfo(kind).tiny ** 0.5
    return list(np.concatenate([bits, small, edge, tiny], 1))


@pytest.mark.parametrize(("kind", "name"), [(np.float32, "fmaf"), (np.float64, "fma")])
def test_fma_rounds_once(kind: type, name: str) -> None:
    operands = triples(kind, 4_000, seed=1)
    exact = getattr(_LIBM, name)
    with np.errstate(all="ignore"):
        found = {np.float32: numerics.fma32, np.float64: numerics.fma64}[kind](*operands)
    expected = np.array([exact(*(float(x) for x in one)) for one in zip(*operands, strict=True)], kind)
    same = (found == expected) & (np.signbit(found) == np.signbit(expected)) | (np.isnan(found) & np.isnan(expected))
    assert same.all(), [(o[~same][0]) for o in operands]


def test_half_types_round_to_nearest_and_even() -> None:
    rng = np.random.default_rng(2)
    numbers = np.concatenate([
        rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32),
        (rng.integers(0, 2**16, 20_000, dtype=np.uint32) << 16 | 0x8000).view(np.float32),  # Ties.
        np.array([*SPECIAL, 65_504, 65_519.99, 65_520, 6e-8, 2.9e-8, 3.4e38], np.float32),
    ])  # fmt: skip
    with np.errstate(all="ignore"):
        for function, dtype in ((numerics.to_bfloat16, torch.bfloat16), (numerics.to_half, torch.float16)):
            found = torch.from_numpy(function(numbers).view(np.int16)).view(dtype)
            expected = torch.from_numpy(numbers).to(dtype)
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found.nan_to_num(0.0), expected.nan_to_num(0.0))


def test_an_open_quotient_is_the_nearest_one_or_two_units_off() -> None:
    a, b = np.random.default_rng(3).standard_normal((2, 10_000)).astype(np.float32)
    nearest = numerics.div_full(a, b, spread=False)
    assert (nearest == a / b).all()
    away = numerics.div_full(a, b, spread=True).view(np.int32) - nearest.view(np.int32)
    assert set(away.tolist()) == {-2, -1, 0, 1, 2}
    assert (numerics.div_full(a, b, spread=True).view(np.int32) - nearest.view(np.int32) == away).all()


def test_integers() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(-(2**31), 2**31, (2, 5_000)).astype(np.int32)
    b[b == 0] = 3
    for x, y, q, r in zip(a, b, numerics.divide(a, b), numerics.remainder(a, b), strict=True):
        exact = abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1)
        assert int(q) == exact and int(r) == int(x) - exact * int(y)
    for kind in (np.int32, np.uint32):
        x, y = a.view(kind), b.view(kind)
        expected = [(int(p) * int(q) >> 32) & 0xFFFFFFFF for p, q in zip(x, y, strict=True)]
        assert numerics.high_half(x, y).view(np.uint32).tolist() == expected
    by = rng.integers(0, 40, 5_000).astype(np.uint32)
    u = a.view(np.uint32)
    assert numerics.shift_left(u, by).tolist() == [(int(x) << int(n)) & 0xFFFFFFFF for x, n in zip(u, by, strict=True)]
    assert numerics.shift_right(u, by).tolist() == [int(x) >> int(n) for x, n in zip(u, by, strict=True)]
    assert numerics.shift_right(a, by).tolist() == [int(x) >> int(n) for x, n in zip(a, by, strict=True)]


def test_bits_and_bytes() -> None:
    a = np.array([0x33221100, 0xFFEEDDCC], np.uint32)
    b = np.array([0x77665544, 0x00000080], np.uint32)
    chosen = numerics.permute_bytes(a, b, np.array([0x7240, 0x4C30], np.uint32))
    # The first takes bytes 0, 4, 2, 7; in the second byte 2 is the sign of byte 4, eight ones.
    assert [struct.pack("<I", x).hex() for x in chosen] == ["00442277", "ccffff80"]
    field = numerics.bit_field(a, np.array([4, 28], np.uint32), np.array([8, 8], np.uint32))
    assert field.tolist() == [0x10, 0xF]
    signed = numerics.bit_field(a.view(np.int32), np.array([28, 4], np.uint32), np.array([4, 4], np.uint32))
    assert signed.tolist() == [3, -4]
    assert numerics.logic3(a, b, a ^ b, 0x96).tolist() == [0, 0], "0x96 is exclusive or of three"


def test_of_a_nan_and_a_number_the_number_unless_asked() -> None:
    x, y = np.array([np.nan, 1.0, -0.0], np.float32), np.array([2.0, np.nan, 0.0], np.float32)
    assert numerics.smaller(x, y)[:2].tolist() == [2.0, 1.0] and np.isnan(numerics.larger(x, y, True)[:2]).all()
    assert np.signbit(numerics.smaller(x, y)[2]) and not np.signbit(numerics.larger(x, y)[2])
