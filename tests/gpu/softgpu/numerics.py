"""Arithmetic as the hardware rounds it, on arrays: what NumPy has no exact operation for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "bit_field", "div_full", "divide", "fma32", "fma64", "high_half", "larger", "logic3", "permute_bytes", "remainder",
    "shift_left", "shift_right", "smaller", "to_bfloat16", "to_half",
]  # fmt: skip

Array = NDArray[Any]
u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i4, i8, f2, f4, f8 = np.int32, np.int64, np.float16, np.float32, np.float64


def _round_to_odd(total: Array, error: Array) -> Array:
    """float64 ``total + error`` cut to 53 bits with the last one set where that is inexact.

    A further rounding to fewer than 52 bits is then the rounding of the exact sum: Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
    """
    even = (error != 0) & np.isfinite(total) & (total.view(i8) & 1 == 0)
    return np.where(even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total) if even.any() else total


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    left = total - a
    return total, (a - (total - left)) + (b - left)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """float32 ``a * b + c`` with one rounding: the product of two float32 is exact in float64."""
    total, error = _two_sum(a.astype(f8) * b.astype(f8), c.astype(f8))
    return _round_to_odd(total, error).astype(f4)


_SPLIT = f8(2**27 + 1)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    product = a * b
    ah, bh = a * _SPLIT, b * _SPLIT
    ah, bh = ah - (ah - a), bh - (bh - b)
    al, bl = a - ah, b - bh
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def fma64(a: Array, b: Array, c: Array) -> Array:
    """float64 ``a * b + c`` with one rounding; in exact fractions where halves of a number could over- or underflow."""
    high, low = _two_product(a, b)
    up, down = _two_sum(c, low)
    top, rest = _two_sum(high, up)
    result = top + _round_to_odd(*_two_sum(rest, down))
    sizes = [np.abs(x) for x in (a, b, high, c)]
    safe = np.all([(s < 1e290) & ((s > 1e-250) | (s == 0)) for s in sizes], axis=0)
    safe &= (a != 0) & (b != 0) & (result != 0)
    for i in np.flatnonzero(~safe):
        x, y, z = a[i], b[i], c[i]
        if x == 0 or y == 0 or not np.isfinite([x, y, z]).all():
            result[i] = x * y + z
            continue
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        try:
            result[i] = float(exact) if exact else x * y + z
        except OverflowError:
            result[i] = np.inf if exact > 0 else -np.inf
    return result


def to_bfloat16(x: Array) -> Array:
    """float32 as bfloat16 bits, to nearest and even; NaN is 0x7fff."""
    bits = x.view(u4)
    rounded = (bits.astype(u8) + 0x7FFF + ((bits >> u4(16)) & u4(1))) >> u8(16)
    return np.where(np.isnan(x), u2(0x7FFF), rounded.astype(u2))


def to_half(x: Array) -> Array:
    """float32 as float16 bits, to nearest and even; NaN is 0x7fff."""
    return np.where(np.isnan(x), u2(0x7FFF), x.astype(f2).view(u2))


def div_full(a: Array, b: Array, spread: bool) -> Array:
    """``div.full.f32``, which may be 2 units in the last place off: the nearest, or with ``spread`` some value there.

    A spread result is the same for the same operands, as a device's is.
    """
    result = (a / b).astype(f4)
    if not spread:
        return result
    mixed = (a.view(u4) * u4(2654435761)) ^ (b.view(u4) * u4(40503))
    away = ((mixed >> u4(29)) % u4(5)).astype(i4) - i4(2)
    size = np.abs(result)
    return np.where((size > 1e-30) & (size < 1e30), (result.view(i4) + away).view(f4), result)


def _least(a: Array, b: Array, lower: bool, nan: bool) -> Array:
    if nan:
        found = (np.minimum if lower else np.maximum)(a, b)
    else:
        found = (np.fmin if lower else np.fmax)(a, b)
    zeros = (a == 0) & (b == 0)
    if zeros.any():  # -0 is less than +0.
        unsigned = {4: u4, 8: u8}[a.dtype.itemsize]
        x, y = a.view(unsigned), b.view(unsigned)
        found = np.where(zeros, ((x | y) if lower else (x & y)).view(a.dtype), found)
    return np.where(np.isnan(found), np.array(0x7FFFFFFF, u4).view(f4), found) if a.dtype == f4 else found


def smaller(a: Array, b: Array, nan: bool = False) -> Array:
    """Floating minimum; of a NaN and a number the number, or the NaN."""
    return _least(a, b, True, nan)


def larger(a: Array, b: Array, nan: bool = False) -> Array:
    """Floating maximum; of a NaN and a number the number, or the NaN."""
    return _least(a, b, False, nan)


def divide(a: Array, b: Array) -> Array:
    """Integer quotient, cut towards zero."""
    if (b == 0).any():
        raise ZeroDivisionError("an integer is divided by zero")
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a.astype(i8)) // np.abs(b.astype(i8))
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    """What :func:`divide` leaves, with the sign of ``a``."""
    rest: Array = a - divide(a, b) * b
    return rest


def high_half(a: Array, b: Array) -> Array:
    """The upper 32 bits of a product of 32-bit integers."""
    wide = i8 if a.dtype.kind == "i" else u8
    return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)


def shift_left(a: Array, by: Array) -> Array:
    """Shift; more than all the bits leaves none."""
    width = a.dtype.itemsize * 8
    return np.where(by >= width, a.dtype.type(0), a << np.minimum(by, width - 1).astype(a.dtype))


def shift_right(a: Array, by: Array) -> Array:
    """Shift; a signed number keeps its sign."""
    width = a.dtype.itemsize * 8
    moved = a >> np.minimum(by, width - 1).astype(a.dtype)
    return moved if a.dtype.kind == "i" else np.where(by >= width, a.dtype.type(0), moved)


def bit_field(a: Array, start: Array, length: Array) -> Array:
    """``bfe``: ``length`` bits from ``start`` on, the sign before them for a signed number."""
    wide = a.astype(i8 if a.dtype.kind == "i" else u8)
    start, length = np.minimum(start & 255, 63).astype(wide.dtype), np.minimum(length & 255, 63).astype(wide.dtype)
    one = wide.dtype.type(1)
    field = (wide >> start) & ((one << length) - one)
    if a.dtype.kind == "i":
        top = np.minimum(start + length, a.dtype.itemsize * 8) - one
        negative = (length > 0) & ((wide >> np.maximum(top, 0)) & one == 1)
        field = np.where(negative, field | ~((one << length) - one), field)
    return field.astype(a.dtype)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """``prmt``: four bytes chosen out of eight by a nibble each, or the sign of one."""
    pool = np.stack([a, b], 1).view(u1)
    rows = np.arange(len(a))
    chosen = []
    for k in range(4):
        nibble = (selector >> u4(4 * k)) & u4(15)
        byte = pool[rows, (nibble & u4(7)).astype(i8)]
        chosen.append(np.where(nibble & u4(8), np.where(byte & u1(128), u1(255), u1(0)), byte))
    return np.ascontiguousarray(np.stack(chosen, 1)).view(u4)[:, 0]


def logic3(a: Array, b: Array, c: Array, table: int) -> Array:
    """``lop3``: any function of three bits, by its truth table."""
    result = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result
