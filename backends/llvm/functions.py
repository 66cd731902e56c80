"""f32 functions as straight-line code on vectors of any lanes: polynomials, no tables, no calls.

Bounds on the error, in ulp of the exact result, as the tests measure them: log, log2, log1p, expm1,
sin and cos 2, exp2 3, tanh and erf 5, exp and sigmoid 6 (of arguments within 20: 4). NaN,
infinities, signed zeros and subnormals come out as the exact function gives them. `sin` and `cos`
of magnitudes from 2^28 on go to libm or, where there is none, to the run-time system's `kir_sinf`
and `kir_cosf`. The coefficients are weighted minimax fits made for this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kir.backends.llvm.builder import Builder, V, integer, real
from kir.backends.llvm.machine import Machine

LOG2E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.6931471824645996, -1.9046542121259336e-09
LN2_SHORT, LN2_REST = 0.693145751953125, 1.4286068203094173e-06
"""The first has 11 trailing zero bits: its products with exponents are exact."""
ROUND = 12582912.0
"""1.5 * 2^23: adding it rounds to an integer, which stands in the low bits."""
ROUND_BITS = 0x4B400000

EXPM1 = (0.5, 0.1666666567325592, 0.04166635870933533, 0.008333389647305012,
         0.0013940720818936825, 0.00019845884526148438)  # fmt: skip
EXP2 = (0.6931470036506653, 0.24022246897220612, 0.0555071197450161, 0.009671307168900967,
        0.001326913945376873)  # fmt: skip
LOG = (0.3333333134651184, -0.250008225440979, 0.20001228153705597, -0.1662333458662033,
       0.14201723039150238, -0.13160377740859985, 0.12761935591697693,
       -0.07634418457746506)  # fmt: skip
SIN = (-0.1666666716337204, 0.008333329111337662, -0.0001983930415008217, 2.7180462893738877e-06)
COS = (0.0416666679084301, -0.0013888883404433727, 2.479945214872714e-05)
EXP = (0.499992311000824, 0.16667115688323975, 0.041890256106853485,
       0.008312467485666275)  # fmt: skip
ERF_LIMIT = 3.85
ERF = (29133.26953125, 4851.3359375, 1354.9652099609375, 94.85865020751953, 7.375777244567871,
       0.05443217605352402)  # fmt: skip
ERF_BELOW = (25818.6875, 12905.6025390625, 2920.867431640625, 381.7317810058594,
             29.57590103149414)  # fmt: skip
TANH_LIMIT = 9.02
TANH = (1288320.625, 172373.703125, 4501.44091796875, 26.51818084716797, 0.01715930365025997)
TANH_BELOW = (1288320.625, 601813.6875, 33330.25390625, 422.9682312011719)
"""Coefficients from the lowest power on; the highest of each denominator is 1 and left out."""

_23 = integer(23, "i32")

Function = Callable[["Single", V], V]


class Single:
    """f32 arithmetic on a builder, as short names."""

    def __init__(self, b: Builder, machine: Machine) -> None:
        self.b, self.machine = b, machine

    def c(self, value: float) -> V:
        return real(value, "float")

    def add(self, x: V, y: V) -> V:
        return self.b.op("fadd", x, y)

    def sub(self, x: V, y: V) -> V:
        return self.b.op("fsub", x, y)

    def mul(self, x: V, y: V) -> V:
        return self.b.op("fmul", x, y)

    def div(self, x: V, y: V) -> V:
        return self.b.op("fdiv", x, y)

    def fma(self, x: V, y: V, z: V) -> V:
        """x*y + z; fused where that is an instruction."""
        if self.machine.fma:
            return self.b.intrinsic("llvm.fma", x, y, z)
        return self.add(self.mul(x, y), z)

    def abs(self, x: V) -> V:
        return self.b.intrinsic("llvm.fabs", x)

    def copysign(self, x: V, sign: V) -> V:
        return self.b.intrinsic("llvm.copysign", x, sign)

    def poly(self, coefficients: Sequence[float], x: V) -> V:
        """Estrin's scheme: pairs, then pairs of pairs, so that latencies overlap."""
        terms, power = [self.c(k) for k in coefficients], x
        while len(terms) > 1:
            pairs = zip(terms[::2], terms[1::2], strict=False)
            odd = terms[-1:] if len(terms) % 2 else []
            terms = [self.fma(high, power, low) for low, high in pairs] + odd
            if len(terms) > 1:
                power = self.mul(power, power)
        return terms[0]

    def bits(self, x: V) -> V:
        return self.b.convert("bitcast", x, "i32")

    def from_bits(self, x: V) -> V:
        return self.b.convert("bitcast", x, "float")

    def below(self, x: V, limit: float) -> V:
        """min(x, limit), NaN staying NaN."""
        return self.b.select(self.b.fcmp("ogt", x, self.c(limit)), self.c(limit), x)

    def above(self, x: V, limit: float) -> V:
        return self.b.select(self.b.fcmp("olt", x, self.c(limit)), self.c(limit), x)

    def nearest(self, scaled: V) -> tuple[V, V]:
        """(n as f32, n as i32) for the f32 `n + ROUND`."""
        n = self.sub(scaled, self.c(ROUND))
        return n, self.b.op("sub", self.bits(scaled), integer(ROUND_BITS, "i32"))

    def power_of_two(self, n: V) -> V:
        """2^n for an i32 n in [-126, 127]."""
        biased = self.b.op("add", n, integer(127, "i32"))
        return self.from_bits(self.b.op("shl", biased, integer(23, "i32")))

    def scale(self, x: V, n: V) -> V:
        """x * 2^n in two steps, so that results may be subnormal or infinite."""
        half = self.b.op("ashr", n, integer(1, "i32"))
        rest = self.b.op("sub", n, half)
        return self.mul(self.mul(x, self.power_of_two(half)), self.power_of_two(rest))

    def reduced(self, x: V, coefficients: Sequence[float]) -> tuple[V, V]:
        """x = n*ln2 + r: (expm1(r), n as i32), for x in about [-104, 89]."""
        n, whole = self.nearest(self.fma(x, self.c(LOG2E), self.c(ROUND)))
        r = self.fma(n, self.c(-LN2_HIGH), x)
        r = self.fma(n, self.c(-LN2_LOW), r)
        return self.fma(self.mul(r, r), self.poly(coefficients, r), r), whole

    def horner(self, coefficients: Sequence[float], x: V) -> V:
        """The fewest instructions: for vectors of several registers, whose chains overlap."""
        total = self.c(coefficients[-1])
        for k in reversed(coefficients[:-1]):
            total = self.fma(total, x, self.c(k))
        return total

    def ratio(self, x: V, above: Sequence[float], below: Sequence[float]) -> V:
        """x * A(x^2) / B(x^2), within [-1, 1]; B's highest coefficient is 1, which an addition in
        place of a multiply-add takes in."""
        z = self.mul(x, x)
        lower = self.add(z, self.c(below[-1]))
        for k in reversed(below[:-1]):
            lower = self.fma(lower, z, self.c(k))
        quotient = self.div(self.mul(x, self.horner(above, z)), lower)
        return self.above(self.below(quotient, 1.0), -1.0)

    def within(self, x: V, limit: float) -> V:
        """Whether |x| <= limit in all lanes, as one i1; NaN is not. Magnitudes compare as integers,
        and the greatest of several registers is compared."""
        size = self.b.op("and", self.bits(x), integer(0x7FFFFFFF, "i32"))
        return self._all_to(size, self.bits(self.c(limit)))

    def normal(self, x: V) -> V:
        """Whether x is positive, finite and not subnormal in all lanes, as one i1."""
        size = self.b.op("sub", self.bits(x), integer(0x00800000, "i32"))
        return self._all_to(size, integer(0x7EFFFFFF, "i32"))

    def _all_to(self, size: V, limit: V) -> V:
        """Whether no lane is above the limit, as unsigned integers."""
        b, lanes = self.b, size.lanes
        while size.lanes > max(8, self.machine.vector_bits // 32) and size.lanes % 2 == 0:
            size = b.intrinsic("llvm.umax", *b.halves(size))
        good = b.icmp("ule", size, limit)
        return b.all(good) if lanes else good

    def quick(self, test: V, x: V, usual: Function, rare: Function) -> V:
        """usual(x) where the test holds, as it mostly does, else rare(x)."""
        b = self.b
        here, there, done = b.fresh("usual"), b.fresh("rare"), b.fresh("done")
        b.branch(test, here, there)
        b.label(here)
        one = usual(self, x)
        here = b.block
        b.jump(done)
        b.label(there)
        two = rare(self, x)
        there = b.block
        b.jump(done)
        b.label(done)
        return b.phi(one, here, two, there)


def _exp_usual(s: Single, x: V, sign: float = 1.0) -> V:
    """e^(sign*x) where 2^n is a normal number: n + 127 stands in the low bits of the sum. One step
    takes n*ln2 off: what ln2 as a f32 lacks, 1.9e-9, adds an ulp for each 30 of n."""
    scaled = s.fma(x, s.c(sign * LOG2E), s.c(ROUND + 127))
    n = s.sub(scaled, s.c(ROUND + 127))
    scale = s.from_bits(s.b.op("shl", s.bits(scaled), _23))
    r = s.fma(n, s.c(-sign * LN2_HIGH), x)
    square = s.mul(r, r)
    odd = [k * sign if i % 2 else k for i, k in enumerate(EXP)]
    low, high = s.fma(r, s.c(odd[1]), s.c(odd[0])), s.fma(r, s.c(odd[3]), s.c(odd[2]))
    t = s.fma(square, s.fma(square, high, low), r if sign > 0 else s.b.fneg(r))
    return s.fma(t, scale, scale)


def _exp_rare(s: Single, x: V) -> V:
    t, n = s.reduced(s.above(s.below(x, 89.0), -104.0), EXP)
    return s.scale(s.add(t, s.c(1.0)), n)


def exp(s: Single, x: V) -> V:
    """Where all lanes are moderate, as they mostly are, clamping and scaling in steps fall away."""
    return s.quick(s.within(x, 87.0), x, _exp_usual, _exp_rare)


def _exp2_usual(s: Single, x: V) -> V:
    scaled = s.add(x, s.c(ROUND + 127))
    r = s.sub(x, s.sub(scaled, s.c(ROUND + 127)))
    scale = s.from_bits(s.b.op("shl", s.bits(scaled), _23))
    return s.fma(s.mul(r, s.poly(EXP2, r)), scale, scale)


def _exp2_rare(s: Single, x: V) -> V:
    inside = s.above(s.below(x, 129.0), -151.0)
    n, whole = s.nearest(s.add(inside, s.c(ROUND)))
    r = s.sub(inside, n)
    return s.scale(s.fma(r, s.poly(EXP2, r), s.c(1.0)), whole)


def exp2(s: Single, x: V) -> V:
    return s.quick(s.within(x, 126.0), x, _exp2_usual, _exp2_rare)


def expm1(s: Single, x: V) -> V:
    t, n = s.reduced(s.above(s.below(x, 89.0), -18.0), EXPM1)
    half_scale = s.power_of_two(s.b.op("sub", n, integer(1, "i32")))  # 2^128 is out of range
    result = s.fma(t, half_scale, s.sub(half_scale, s.c(0.5)))
    result = s.add(result, result)
    tiny = s.b.fcmp("olt", s.abs(x), s.c(2.0**-25))
    return s.b.select(tiny, x, result)


def _log_parts(s: Single, x: V, normal: bool) -> tuple[V, V, V]:
    """x = 2^k * (1 + f), f in [sqrt(1/2) - 1, sqrt(2) - 1]: (f, log(1 + f) - f, k as f32)."""
    b = s.b
    small = b.fcmp("olt", x, s.c(2.0**-126))
    scaled = x if normal else b.select(small, s.mul(x, s.c(2.0**23)), x)
    i = b.op("sub", s.bits(scaled), integer(0x3F3504F3, "i32"))
    k = b.convert("sitofp", b.op("ashr", i, integer(23, "i32")), "float")
    if not normal:
        k = s.sub(k, b.select(small, b.splat(s.c(23.0), x.lanes), b.splat(s.c(0.0), x.lanes)))
    m = b.op("add", b.op("and", i, integer(0x7FFFFF, "i32")), integer(0x3F3504F3, "i32"))
    f = s.sub(s.from_bits(m), s.c(1.0))
    square = s.mul(f, f)
    return f, s.mul(square, s.fma(f, s.poly(LOG, f), s.c(-0.5))), k


def _log_specials(s: Single, x: V, result: V, zero: float = 0.0) -> V:
    """The values of a logarithm that is -inf at `zero`: NaN below it, inf and NaN as they are."""
    b = s.b
    result = b.select(b.fcmp("uge", x, s.c(math.inf)), x, result)
    result = b.select(b.fcmp("oeq", x, s.c(zero)), s.c(-math.inf), result)
    return b.select(b.fcmp("olt", x, s.c(zero)), s.c(math.nan), result)


def _log_sum(s: Single, x: V, normal: bool = False) -> V:
    f, rest, k = _log_parts(s, x, normal)
    low = s.fma(k, s.c(LN2_REST), rest)
    return s.fma(k, s.c(LN2_SHORT), s.add(f, low))


def _log_usual(s: Single, x: V) -> V:
    return _log_sum(s, x, normal=True)


def _log_rare(s: Single, x: V) -> V:
    return _log_specials(s, x, _log_sum(s, x))


def log(s: Single, x: V) -> V:
    return s.quick(s.normal(x), x, _log_usual, _log_rare)


def _log2_usual(s: Single, x: V, normal: bool = True) -> V:
    f, rest, k = _log_parts(s, x, normal)
    log_high = s.add(f, rest)
    low = s.add(s.sub(f, log_high), rest)
    return s.fma(log_high, s.c(LOG2E), s.fma(low, s.c(LOG2E), k))


def _log2_rare(s: Single, x: V) -> V:
    return _log_specials(s, x, _log2_usual(s, x, normal=False))


def log2(s: Single, x: V) -> V:
    return s.quick(s.normal(x), x, _log2_usual, _log2_rare)


def _log1p_lost(s: Single, x: V, u: V) -> V:
    """What rounding 1 + x to u leaves out of the logarithm."""
    return s.div(s.sub(x, s.sub(u, s.c(1.0))), u)


def _log1p_usual(s: Single, x: V) -> V:
    u = s.add(x, s.c(1.0))
    result = s.add(_log_sum(s, u, normal=True), _log1p_lost(s, x, u))
    return s.b.select(s.b.fcmp("olt", s.abs(x), s.c(2.0**-26)), x, result)


def _log1p_rare(s: Single, x: V) -> V:
    u = s.add(x, s.c(1.0))
    result = _log_specials(s, x, s.add(_log_sum(s, u), _log1p_lost(s, x, u)), -1.0)
    return s.b.select(s.b.fcmp("olt", s.abs(x), s.c(2.0**-26)), x, result)


def log1p(s: Single, x: V) -> V:
    return s.quick(s.normal(s.add(x, s.c(1.0))), x, _log1p_usual, _log1p_rare)


def tanh(s: Single, x: V) -> V:
    """x * A(x^2) / B(x^2): beyond the limit it is 1 to within an ulp."""
    return s.ratio(s.above(s.below(x, TANH_LIMIT), -TANH_LIMIT), TANH, TANH_BELOW)


def _sigmoid_usual(s: Single, x: V) -> V:
    return s.div(s.c(1.0), s.add(_exp_usual(s, x, -1.0), s.c(1.0)))


def _sigmoid_rare(s: Single, x: V) -> V:
    e = _exp_rare(s, s.b.fneg(s.abs(x)))
    d = s.div(s.c(1.0), s.add(e, s.c(1.0)))
    return s.b.select(s.b.fcmp("oge", x, s.c(0.0)), d, s.mul(e, d))


def sigmoid(s: Single, x: V) -> V:
    return s.quick(s.within(x, 87.0), x, _sigmoid_usual, _sigmoid_rare)


def erf(s: Single, x: V) -> V:
    """x * A(x^2) / B(x^2): beyond the limit it is 1 to within an ulp."""
    return s.ratio(s.above(s.below(x, ERF_LIMIT), -ERF_LIMIT), ERF, ERF_BELOW)


def _sine_cosine(quarter: int) -> Function:
    def wave(s: Single, x: V) -> V:
        """Reduced modulo pi/2 in f64, where the product with n is exact enough up to 2^28."""
        b = s.b
        wide = b.convert("fpext", x, "double")
        shifter = real(6755399441055744.0, "double")
        scaled = b.op("fadd", b.op("fmul", wide, real(2 / math.pi, "double")), shifter)
        n = b.op("fsub", scaled, shifter)
        r = b.intrinsic("llvm.fma", n, real(-1.5707963267948966, "double"), wide)
        r = b.intrinsic("llvm.fma", n, real(-6.123233995736766e-17, "double"), r)
        r = b.convert("fptrunc", r, "float")
        turns = b.convert("trunc", b.convert("bitcast", scaled, "i64"), "i32")
        turns = b.op("add", turns, integer(quarter, "i32"))
        z = s.mul(r, r)
        sine = s.fma(s.mul(z, r), s.poly(SIN, z), r)
        cosine = s.fma(s.mul(z, z), s.poly(COS, z), s.fma(z, s.c(-0.5), s.c(1.0)))
        odd = b.icmp("ne", b.op("and", turns, integer(1, "i32")), integer(0, "i32"))
        flip = b.op("shl", b.op("and", turns, integer(2, "i32")), integer(30, "i32"))
        result = s.from_bits(b.op("xor", s.bits(b.select(odd, cosine, sine)), flip))
        if quarter == 0:
            result = b.select(b.fcmp("oeq", x, s.c(0.0)), x, result)
        return result

    return wave


FUNCTIONS: dict[str, Function] = {
    "exp": exp, "exp2": exp2, "expm1": expm1, "log": log, "log2": log2, "log1p": log1p,
    "tanh": tanh, "sigmoid": sigmoid, "erf": erf, "sin": _sine_cosine(0), "cos": _sine_cosine(1),
}  # fmt: skip
WAVES = ("sin", "cos")
WAVE_LIMIT = 2.0**28


def call(b: Builder, machine: Machine, name: str, x: V) -> V:
    """FUNCTIONS[name] on a f32 scalar or vector, as a call of an inlined function of the module."""
    shape = f"v{x.lanes}" if x.lanes else "s"
    inner = f"kir.{name}.{shape}"
    if inner not in b.module.made:
        b.module.made.add(inner)
        f = Builder(b.module)
        argument = V("%x", "float", x.lanes)
        result = FUNCTIONS[name](Single(f, machine), argument)
        if name in WAVES:
            exact = f"{name}f" if machine.libm else f"kir_{name}f"
            result = _wave_or_exact(f, exact, argument, result)
        head = f"define internal {result.type} @{inner}({argument})"
        f.define(head, "alwaysinline", f"ret {result}")
    return b.emit(f"call {x.type} @{inner}({x})", "float", x.lanes, pure=True)


def _wave_or_exact(f: Builder, symbol: str, x: V, result: V) -> V:
    """Lane by lane `symbol`, a C function, where a lane is large."""
    large = f.fcmp("oge", f.intrinsic("llvm.fabs", x), real(WAVE_LIMIT, "float"))
    some = f.any(large) if x.lanes else large
    before, slow, done = f.block, f.fresh("slow"), f.fresh("done")
    f.branch(some, slow, done)
    f.label(slow)
    exact = f.select(large, by_lane(f, symbol, x), result)
    f.jump(done)
    f.label(done)
    return f.phi(result, before, exact, slow)


def by_lane(b: Builder, symbol: str, *args: V) -> V:
    """A C function on each lane of f32 or f64 vectors, or on scalars."""
    vectors = b.together(*args)
    ty, lanes = vectors[0].ty, vectors[0].lanes
    if not lanes:
        return b.call(symbol, ty, 0, *vectors, attributes="nounwind memory(none)")
    result = V("poison", ty, lanes)
    for i in range(lanes):
        value = by_lane(b, symbol, *(b.lane(v, i) for v in vectors))
        result = b.insert(result, value, i)
    return result
