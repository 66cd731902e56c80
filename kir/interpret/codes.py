"""The code of a value in the ring, one byte beside its field elements; and the order of elements.

A float is a tuple of planes: its element in each field of the tower, then its code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kir.interpret import field
from kir.interpret.domain import Array, Value

LOST, ALL_LOST = 1, 7
"""Bit k: the element of field k is no function of what the kernel means."""
SIGNED = 8
"""A finite value not known to be at least 0."""
PLUS, MINUS, NAN = 64, 128, 192
KIND = 192
SPECIAL = 64
"""Codes from here on are of no finite number."""
NOTHING: Array = np.zeros((), np.uint8)
UNKNOWN_SIGN: Array = np.full((), SIGNED, np.uint8)
SCALE = 12
"""The order is that of x 2^12 taken between -q/2 and q/2."""


def residues(value: Value) -> Value:
    return value[:-1]


def is_known(value: Value) -> bool:
    """Whether it is a machine number that no tensor had a part in."""
    return len(value) == 1


def is_placed(v: Array) -> Array:
    """Which machine floats have the same place among the elements as in the reals. Between others
    the machine's comparison is not that of the same numbers out of tensors."""
    with np.errstate(over="ignore"):
        scaled = v * float(1 << SCALE)
    small = (np.abs(v) < 1 << SCALE) & (np.rint(scaled) == scaled)
    return np.asarray(small | ~np.isfinite(v))


def exactly(name: str, args: Sequence[Array]) -> Array | None:
    """An op on f64 numbers where no element is rounded, else None: the error of a sum after Knuth,
    of a product after Dekker. What has an infinite operand, or a divisor of 0, is exact."""
    if name not in ("add", "sub", "mul", "div"):
        return None
    a, b = args if name != "sub" else (args[0], -args[1])
    if name in ("add", "sub"):
        made = np.asarray(a + b)
        part = made - a
        error = (a - (made - part)) + (b - part)
    else:
        made = np.asarray(a / b if name == "div" else a * b)
        x, y, whole = (made, b, a) if name == "div" else (a, b, made)
        product, rest = x * y, _product_rest(x, y)
        error = np.where(product == whole, rest, np.inf)
        small = np.abs(whole) < 1e-200  # the error itself may have been rounded away
        error = np.where(small & (x != 0) & (y != 0), np.inf, error)
    wild = ~np.isfinite(a) | ~np.isfinite(b) | ((b == 0) & (name == "div"))
    return made if (wild | (error == 0)).all() else None


def _product_rest(x: Array, y: Array) -> Array:
    """What `x * y` rounds away."""

    def halves(v: Array) -> tuple[Array, Array]:
        scaled = v * 134217729.0
        high = scaled - (scaled - v)
        return high, v - high

    (xh, xl), (yh, yl) = halves(x), halves(y)
    return np.asarray(xl * yl - (((x * y - xh * yh) - xl * yh) - xh * yl))


def all_lost(lost: Array) -> Array:
    """ALL_LOST where `lost` is not 0."""
    return np.where(lost, np.uint8(ALL_LOST), np.uint8(0))


def kinds(v: Array) -> Array:
    infinite = np.where(v > 0, np.uint8(PLUS), np.uint8(MINUS))
    return np.where(np.isnan(v), np.uint8(NAN), infinite)


def is_nan(value: Value) -> Array:
    return np.asarray((value[-1] & np.uint8(KIND)) == NAN)


def infinity(value: Value) -> Array:
    """1, -1 or 0."""
    kind = value[-1] & np.uint8(KIND)
    return np.asarray(np.int8(1) * (kind == PLUS) - np.int8(1) * (kind == MINUS))


def is_zero(value: Value) -> Array:
    return np.asarray((value[0] == 0) & (value[-1] < SPECIAL))


def known_sign(value: Value) -> Array:
    """1 or -1 where the sign is known (0 counts as positive), else 0."""
    finite = value[-1] < SPECIAL
    return np.where(finite, np.int8(1) * ((value[-1] & np.uint8(SIGNED)) == 0), infinity(value))


def order(value: Value) -> Array:
    """The place of each element in the total order, infinities at its ends; NaN has that of 0."""
    found = field.fixed(value[0], field.PRIMES[0], SCALE)
    if value[-1].max(initial=0) < SPECIAL:
        return found
    kind = value[-1] & np.uint8(KIND)
    found = np.where(kind == PLUS, np.int64(1 << 40), found)
    return np.where(kind == MINUS, np.int64(-(1 << 40)), found)
