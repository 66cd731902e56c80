"""Elements of the tower of fields: arithmetic and functions on floats of `kir.interpret.ring`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kir.dtypes import DType
from kir.interpret import field
from kir.interpret.codes import (
    ALL_LOST,
    KIND,
    LOST,
    MINUS,
    NAN,
    PLUS,
    SCALE,
    SIGNED,
    SPECIAL,
    all_lost,
    infinity,
    is_nan,
    is_zero,
    kinds,
    known_sign,
    order,
    residues,
)
from kir.interpret.domain import (
    Array,
    Value,
)
from kir.ops import OPS

HASHED = ("log2", "sin", "cos", "asin", "acos", "atan", "atan2", "erf", "pow")
"""Functions without laws, but for f(-x) = -f(x) or f(x) of some, and of `pow` constant exponents
that are whole and small, 1/2 or -1/2."""
ODD, EVEN = ("sin", "asin", "atan", "erf"), ("cos",)
EXPONENTIALS = ("exp", "exp2", "expm1", "sigmoid", "sinh", "cosh", "tanh")
"""What takes a field of the tower each time."""
_MODULI = tuple(np.uint64(q) for q in field.PRIMES)
_HALF = 1 << (SCALE - 1)
_ROUND: dict[str, Callable[[Array], Array]] = {
    "floor": lambda n: n >> SCALE,
    "ceil": lambda n: -(-n >> SCALE),
    "trunc": lambda n: np.sign(n) * (np.abs(n) >> SCALE),
    "round": lambda n: np.where(  # ties to even
        (n & (2 * _HALF - 1)) == _HALF, ((n >> SCALE) + 1) >> 1 << 1, (n + _HALF) >> SCALE
    ),
}
"""Fixed-point numbers to whole ones."""


class Elements:
    """The tower's first `levels` fields; `seed` chooses log2(e) and the hash functions."""

    def __init__(self, levels: int = 3, seed: int = 0) -> None:
        self.levels = levels
        self.seed = seed
        rng = np.random.default_rng([seed, 2718])
        self.primes = field.PRIMES[:levels]
        self.log2e = [int(rng.integers(2, q - 1)) for q in self.primes]
        self.ln2 = [pow(x, -1, q) for x, q in zip(self.log2e, self.primes, strict=True)]
        self.salt = int(rng.integers(1 << 62))
        self.constants: dict[tuple[float, DType | None], Value] = {}

    def embed(self, v: Array) -> Value:
        """Machine floats as elements, each the fraction that it is."""
        if v.ndim == 0 and v == v:
            key = (float(v), None)
            if key not in self.constants:
                self.constants[key] = self._embed(v)
            return self.constants[key]
        return self._embed(v)

    def _embed(self, v: Array) -> Value:
        finite = np.isfinite(v)
        code = np.where(v < 0, np.uint8(SIGNED), np.uint8(0))
        if not finite.all():
            code = np.where(finite, code, kinds(v))
            v = np.where(finite, v, 0.0)
        return *(field.of_floats(v, q) for q in self.primes), code

    def cleared(self, made: Sequence[Array], code: Array) -> Value:
        """With 0 in the fields of what is no finite number, so that equal values look equal."""
        special = code >= SPECIAL
        if not special.any():
            return *made, code
        return *(np.where(special, np.uint64(0), m) for m in made), code

    # --- arithmetic --------------------------------------------------------------------------

    @property
    def moduli(self) -> tuple[Any, ...]:
        return _MODULI[: self.levels]

    def add(self, a: Value, b: Value) -> Value:
        made = [(x + y) % q for x, y, q in zip(a[:-1], b[:-1], self.moduli, strict=True)]
        code = a[-1] | b[-1]
        if code.max(initial=0) < SPECIAL:
            return *made, code
        infinite = [infinity(v) for v in (a, b)]
        plus = (infinite[0] == 1) | (infinite[1] == 1)
        minus = (infinite[0] == -1) | (infinite[1] == -1)
        nan = is_nan(a) | is_nan(b) | (plus & minus)
        return self.marked(made, code, nan, plus, minus)

    def marked(
        self, made: Sequence[Array], code: Array, nan: Array, plus: Array, minus: Array
    ) -> Value:
        """With kinds: NaN first, then infinities, else finite."""
        kind = np.where(
            nan, np.uint8(NAN), np.uint8(PLUS) * plus + np.uint8(MINUS) * (minus & ~plus)
        )
        return self.cleared(made, (code & np.uint8(KIND ^ 255)) | kind.astype(np.uint8))

    def neg(self, a: Value) -> Value:
        made = [(q - x) % q for x, q in zip(a[:-1], self.moduli, strict=True)]
        code = a[-1] | np.uint8(SIGNED)
        if code.max(initial=0) >= SPECIAL:
            kind = code & np.uint8(KIND)
            swap = (kind == PLUS) | (kind == MINUS)
            code = np.where(swap, code ^ np.uint8(KIND), code)
            return self.cleared(made, code)
        return *made, code

    def sub(self, a: Value, b: Value) -> Value:
        return self.add(a, self.neg(b))

    def mul(self, a: Value, b: Value) -> Value:
        made = [x * y % q for x, y, q in zip(a[:-1], b[:-1], self.moduli, strict=True)]
        code = a[-1] | b[-1]
        if code.max(initial=0) < SPECIAL:
            return *made, code
        return self.product_kinds(made, code, a, b, is_zero(a), is_zero(b))

    def product_kinds(
        self, made: Sequence[Array], code: Array, a: Value, b: Value, zero_a: Array, zero_b: Array
    ) -> Value:
        infinite = [infinity(v) for v in (a, b)]
        some = (infinite[0] != 0) | (infinite[1] != 0)
        sign = known_sign(a) * known_sign(b)
        nan = is_nan(a) | is_nan(b) | (some & (zero_a | zero_b))
        unsure = some & ~nan & (sign == 0)
        code = code | np.where(unsure, np.uint8(ALL_LOST), np.uint8(0))
        return self.marked(made, code, nan | unsure, some & (sign > 0), some & (sign < 0))

    def recip(self, a: Value) -> Value:
        made = [field.inverse(x, q) for x, q in zip(a[:-1], self.primes, strict=True)]
        code = a[-1]
        zero = is_zero(a)
        if code.max(initial=0) < SPECIAL and not zero.any():
            return *made, code
        finite = np.where(infinity(a) != 0, code & np.uint8(KIND ^ 255), code)
        code = np.where(zero, (code & np.uint8(ALL_LOST)) | np.uint8(PLUS), finite)
        return self.cleared(made, code)

    def div(self, a: Value, b: Value) -> Value:
        code = a[-1] | b[-1]
        zero = is_zero(b)
        if code.max(initial=0) < SPECIAL and not zero.any():
            inverse = [field.inverse(x, q) for x, q in zip(b[:-1], self.primes, strict=True)]
            made = [x * y % q for x, y, q in zip(a[:-1], inverse, self.moduli, strict=True)]
            return *made, code
        return self.mul(a, self.recip(b))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        return self.add(self.mul(a, b), c)

    def pow(self, a: Value, exponent: Value) -> Value:
        """By its law where the exponent, wherever it comes from, has one; else any function."""
        at = np.where(exponent[-1] < SPECIAL, order(exponent), np.int64(1 << 40))
        made = self.hashed("pow", [a, exponent])
        for n in (float(x) / (1 << SCALE) for x in np.unique(at)):
            found = self.power(a, n)
            if found is None:
                continue
            here = at == n * (1 << SCALE)
            found = *residues(found), found[-1] | (exponent[-1] & np.uint8(ALL_LOST))
            made = tuple(np.where(here, x, y) for x, y in zip(found, made, strict=True))
        return made

    def power(self, a: Value, n: float) -> Value | None:
        """To an exponent that has a law; else None."""
        if n in (0.5, -0.5):
            return self.sqrt(a) if n > 0 else self.recip(self.sqrt(a))
        if n == 0:
            return self.embed(np.ones(a[0].shape))
        if n != int(n) or abs(n) > 64:
            return None
        made, square, left = None, a, abs(int(n))
        while left:
            if left & 1:
                made = square if made is None else self.mul(made, square)
            left >>= 1
            if left:
                square = self.mul(square, square)
                square = *residues(square), square[-1] & np.uint8(255 ^ SIGNED)
        assert made is not None
        return made if n > 0 else self.recip(made)

    # --- functions ---------------------------------------------------------------------------

    def exp2(self, a: Value) -> Value:
        """The element of each field is two to the power of the one below; the last is lost."""
        made = [field.power_of_two(a[k + 1], k) for k in range(self.levels - 1)]
        top = self.levels - 1
        made.append(np.where(a[top] == 0, np.uint64(1), self.hash("exp2", [a[top]], top)))
        low = a[-1] & np.uint8(ALL_LOST)
        code = (low >> np.uint8(1)) | np.uint8(1 << top)
        if a[-1].max(initial=0) < SPECIAL:
            return *made, code
        infinite = infinity(a)
        made = [np.where(infinite < 0, np.uint64(0), m) for m in made]
        code = np.where(infinite != 0, all_lost(low & np.uint8(LOST)), code)
        none = np.zeros((), np.bool_)
        return self.marked(made, code, is_nan(a), infinite > 0, none)

    def exp(self, a: Value) -> Value:
        return self.exp2(self.scaled(a, self.log2e))

    def scaled(self, a: Value, factors: Sequence[int]) -> Value:
        """Times one positive element for each field."""
        made = [x * np.uint64(f) % q for x, f, q in zip(a[:-1], factors, self.moduli, strict=True)]
        return *made, a[-1]

    def small(self, value: float) -> Value:
        return self.embed(np.asarray(value))

    def expm1(self, a: Value) -> Value:
        return self.sub(self.exp(a), self.small(1.0))

    def sigmoid(self, a: Value) -> Value:
        return self.recip(self.add(self.small(1.0), self.exp(self.neg(a))))

    def tanh(self, a: Value) -> Value:
        below = self.add(self.exp(self.add(a, a)), self.small(1.0))
        return self.sub(self.small(1.0), self.div(self.small(2.0), below))

    def sinh(self, a: Value) -> Value:
        return self.mul(self.small(0.5), self.sub(self.exp(a), self.exp(self.neg(a))))

    def cosh(self, a: Value) -> Value:
        return self.mul(self.small(0.5), self.add(self.exp(a), self.exp(self.neg(a))))

    def tan(self, a: Value) -> Value:
        return self.div(self.hashed("sin", [a]), self.hashed("cos", [a]))

    def log(self, a: Value) -> Value:
        return self.scaled(self.hashed("log2", [a]), self.ln2)

    def log1p(self, a: Value) -> Value:
        return self.log(self.add(self.small(1.0), a))

    def sqrt(self, a: Value) -> Value:
        made = [field.sqrt(x, q) for x, q in zip(a[:-1], self.primes, strict=True)]
        code = a[-1] & np.uint8(255 ^ SIGNED)
        if code.max(initial=0) < SPECIAL:
            return *made, code
        infinite = infinity(a)
        none = np.zeros((), np.bool_)
        return self.marked(made, code, is_nan(a) | (infinite < 0), infinite > 0, none)

    def rsqrt(self, a: Value) -> Value:
        return self.recip(self.sqrt(a))

    def hash(self, name: str, elements: Sequence[Array], level: int) -> Array:
        salt = self.salt ^ zlib.crc32(name.encode()) ^ (level << 40)
        return np.asarray(field.digest(elements, salt) % np.uint64(field.PRIMES[level]))

    def hashed(self, name: str, args: Sequence[Value]) -> Value:
        """A function without laws; infinities and NaN as the real one has them, of one argument."""
        made = [self.hash(name, planes, k) for k, planes in enumerate(zip(*(a[:-1] for a in args)))]
        code = args[0][-1] if len(args) == 1 else args[0][-1] | args[1][-1]
        code = code | np.uint8(SIGNED)
        if len(args) == 2:
            nan = code >= SPECIAL
            lost = np.where(nan, np.uint8(ALL_LOST), np.uint8(0))
            return self.cleared(made, code | np.uint8(NAN) * nan | lost)
        (a,) = args
        if name in ODD or name in EVEN:
            turned = [(q - x) % q for x, q in zip(a[:-1], self.moduli, strict=True)]
            other = [self.hash(name, [x], k) for k, x in enumerate(turned)]
            sign = 1 if name in EVEN else -1
            pairs = zip(made, other, self.moduli, strict=True)
            made = [(x + y if sign > 0 else x + (q - y)) % q for x, y, q in pairs]
        if name == "log2":
            zero = is_zero(a)
            if zero.any():
                code = np.where(zero, (code & np.uint8(ALL_LOST)) | np.uint8(MINUS), code)
        if code.max(initial=0) < SPECIAL:
            return *made, code
        ends = self.embed(np.asarray(OPS[name].numpy(np.array([math.inf, -math.inf, math.nan]))))
        kind = a[-1] & np.uint8(KIND)
        for k, which in enumerate((PLUS, MINUS, NAN)):
            hit = kind == which
            if hit.any():
                made = [np.where(hit, e[k], m) for e, m in zip(ends[:-1], made, strict=True)]
                code = np.where(hit, (code & np.uint8(ALL_LOST)) | ends[-1][k], code)
        return self.cleared(made, code)

    def rounded(self, name: str, a: Value) -> Value:
        """`floor` and its like: elements are fixed-point numbers with SCALE bits behind the point,
        as in the order."""
        ring = [
            field.of_integers(_ROUND[name](field.fixed(x, q, SCALE)), q)
            for x, q in zip(a[:-1], self.primes, strict=True)
        ]
        code = a[-1] | np.uint8(SIGNED)
        return self.cleared(ring, np.where(code < SPECIAL, code, a[-1]))

    def floor(self, a: Value) -> Value:
        return self.rounded("floor", a)

    def ceil(self, a: Value) -> Value:
        return self.rounded("ceil", a)

    def round(self, a: Value) -> Value:
        return self.rounded("round", a)

    def trunc(self, a: Value) -> Value:
        return self.rounded("trunc", a)

    def abs(self, a: Value) -> Value:
        below = order(a) < 0
        code = a[-1] & np.uint8(255 ^ SIGNED)
        code = np.where(infinity(a) < 0, code ^ np.uint8(KIND), code)
        made = [np.where(below, (q - x) % q, x) for x, q in zip(a[:-1], self.moduli, strict=True)]
        return self.decided(self.cleared(made, code), a[-1])

    def sign(self, a: Value) -> Value:
        found = self.embed(np.sign(order(a)).astype(np.float64))
        nan = np.where(is_nan(a), np.uint8(NAN), np.uint8(0))
        code = found[-1] | nan | (a[-1] & np.uint8(ALL_LOST))
        return self.decided(self.cleared(found[:-1], code), a[-1])

    def decided(self, value: Value, by: Array) -> Value:
        """A value that a comparison in the first field chose: all lost where that was."""
        lost = by & np.uint8(LOST)
        return value if not lost.any() else (*value[:-1], value[-1] | all_lost(lost))

    def max(self, a: Value, b: Value) -> Value:
        return self.extreme(a, b, 1)

    def min(self, a: Value, b: Value) -> Value:
        return self.extreme(a, b, -1)

    def extreme(self, a: Value, b: Value, sign: int) -> Value:
        code = a[-1] | b[-1]
        first = sign * order(a) >= sign * order(b)
        if code.max(initial=0) >= SPECIAL:
            first = (first | is_nan(a)) & ~is_nan(b)
        made = [np.where(first, x, y) for x, y in zip(a[:-1], b[:-1], strict=True)]
        chosen = np.where(first, a[-1], b[-1])
        signed = (a[-1] & b[-1] if sign > 0 else code) & np.uint8(SIGNED)
        chosen = (chosen & np.uint8(255 ^ SIGNED)) | signed
        return self.decided((*made, chosen), code)
