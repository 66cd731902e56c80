"""Arithmetic in a tower of prime fields, vectorised: arrays of residues are u64 and below 2^32.

The primes q0 > q1 > q2 are such that q1 divides q0 - 1 and q2 divides q1 - 1: each has elements
whose order is the next prime, so exponents of the field above are the elements of the one below.
That makes `exp` a homomorphism from sums to products (Wu et al., "Mirage: A Multi-Level
Superoptimizer for Tensor Programs", OSDI 2025, section 5, with two primes). Here they are a chain
of Sophie Germain primes, q0 = 2 q1 + 1 and q1 = 2 q2 + 1, all 3 modulo 4 and q0, q1 being 7 modulo
8, so that 2 itself has the order q1 (q2): `exp2` of a whole number is the power of two that it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

PRIMES = (4294944047, 2147472023, 1073736011)
FEW = 24
"""Arrays of at most so many elements are inverted one by one."""
_WINDOW = 16
_LEAST, _MOST = -1200, 1100
"""Exponents of two of every f64, its 53 bits taken as a whole number."""


def inverse(x: Array, q: int) -> Array:
    """The inverse of each element, 0 for 0: a tree of products of pairs, one inversion at its top
    and back down (Montgomery 1987): three products for each element."""
    flat = x.reshape(-1)
    zero = flat == 0
    top = np.where(zero, np.uint64(1), flat)
    below: list[Array] = []
    while top.size > FEW:
        below.append(top)
        even = top.size // 2 * 2
        pairs = top[:even:2] * top[1:even:2] % np.uint64(q)
        top = np.concatenate([pairs, top[even:]])
    made = np.array([pow(v, -1, q) for v in top.tolist()], np.uint64)
    for values in reversed(below):
        half = values.size // 2
        wide = np.empty_like(values)
        wide[: 2 * half : 2] = made[:half] * values[1 : 2 * half : 2] % np.uint64(q)
        wide[1 : 2 * half : 2] = made[:half] * values[: 2 * half : 2] % np.uint64(q)
        wide[2 * half :] = made[half:]
        made = wide
    return np.asarray(np.where(zero, np.uint64(0), made).reshape(x.shape))


def power(x: Array, n: int, q: int) -> Array:
    """Each element to the power n >= 0."""
    made: Array = np.ones(x.shape, np.uint64)
    while n:
        if n & 1:
            made = made * x % np.uint64(q)
        n >>= 1
        if n:
            x = x * x % np.uint64(q)
    return made


def sqrt(x: Array, q: int) -> Array:
    """x^((q + 1) / 4): the square root that is a square itself, where x has one. It takes products
    to products in any case; where x has no root, its square is -x."""
    return power(x, (q + 1) // 4, q)


def power_of_two(x: Array, level: int) -> Array:
    """2^x modulo the prime of `level`, of elements x of the level below."""
    low, high = _powers_of_two(level)
    product = low[x & np.uint64((1 << _WINDOW) - 1)] * high[x >> np.uint64(_WINDOW)]
    return np.asarray(product % np.uint64(PRIMES[level]))


@cache
def _powers_of_two(level: int) -> tuple[Array, Array]:
    q = PRIMES[level]
    return _powers(2, q), _powers(pow(2, 1 << _WINDOW, q), q)


def _powers(base: int, q: int) -> Array:
    made = np.ones(1 << _WINDOW, np.uint64)
    for k in range(_WINDOW):
        n = 1 << k
        made[n : 2 * n] = made[:n] * np.uint64(pow(base, n, q)) % np.uint64(q)
    return made


def product(x: Array, q: int) -> Array:
    """The product along the first axis, 1 where it is empty."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        made = x[:half] * x[half : 2 * half] % np.uint64(q)
        x = np.concatenate([made, x[2 * half :]]) if x.shape[0] % 2 else made
    return np.asarray(x[0] if x.shape[0] else np.ones(x.shape[1:], np.uint64))


def digest(values: Sequence[Array], salt: int) -> Array:
    """64 bits that depend on elements and a salt alone: SplitMix64 (Steele et al., OOPSLA 2014)."""
    made: Array = np.asarray(np.uint64(salt & 0xFFFFFFFFFFFFFFFF))
    for v in values:
        made = v + (made + np.uint64(0x9E3779B97F4A7C15 & 0x7FFFFFFFFFFFFFFF))
        made = (made ^ (made >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        made = (made ^ (made >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        made = made ^ (made >> np.uint64(31))
    return made


@cache
def _scales(q: int) -> Array:
    """Powers of two, `_LEAST` the first."""
    half = pow(2, -1, q)
    least = pow(half, -_LEAST, q)
    return np.array([least * pow(2, k, q) % q for k in range(_MOST - _LEAST + 1)], np.uint64)


def of_floats(v: Array, q: int) -> Array:
    """Finite f64 numbers, each the dyadic fraction that it is."""
    fraction, exponent = np.frexp(v)
    whole = np.ldexp(fraction, 53).astype(np.int64) % np.int64(q)
    scale = _scales(q)[exponent.astype(np.int64) - (53 + _LEAST)]
    return np.asarray(whole.astype(np.uint64) * scale % np.uint64(q))


def of_integers(v: Array, q: int) -> Array:
    """Integers of any type."""
    if v.dtype.kind == "u":
        return np.asarray(v.astype(np.uint64) % np.uint64(q))
    return np.asarray((v.astype(np.int64) % np.int64(q)).astype(np.uint64))


def of_fraction(v: Fraction, q: int) -> int:
    """A fraction whose denominator q does not divide."""
    return v.numerator % q * pow(v.denominator, -1, q) % q


def fixed(x: Array, q: int, bits: int) -> Array:
    """Each element as a fixed-point number with so many bits behind the point: x 2^bits, taken
    between -q/2 and q/2. What is small in the reals comes out as it is."""
    turned = x * np.uint64(1 << bits) % np.uint64(q)
    found = turned.astype(np.int64)
    return np.asarray(np.where(turned > np.uint64(q // 2), found - np.int64(q), found))
