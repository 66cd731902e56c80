"""Helper functions that generated Triton code calls, each included only where it is used.

They give KIR's semantics where Triton's own operators differ: integer division, shifts beyond
the width, saturating casts, fp8 without hardware, NaN-propagating extremes, Philox.
"""

from __future__ import annotations

import re

HELPERS: dict[str, str] = {
    "add_of": """
def add_of(a, b):
    return a + b
""",
    "mul_of": """
def mul_of(a, b):
    return a * b
""",
    "and_of": """
def and_of(a, b):
    return a & b
""",
    "or_of": """
def or_of(a, b):
    return a | b
""",
    "max_of": """
def max_of(a, b):
    return tl.maximum(a, b)
""",
    "min_of": """
def min_of(a, b):
    return tl.minimum(a, b)
""",
    "max_nan": """
def max_nan(a, b):
    # the greater one; NaN if either is
    return tl.where((a > b) | (a != a), a, b)
""",
    "min_nan": """
def min_nan(a, b):
    # the lesser one; NaN if either is
    return tl.where((a < b) | (a != a), a, b)
""",
    "tdiv": """
def tdiv(a, b):
    # rounds to zero; 0 where b is 0; the least integer divided by -1 wraps
    q = a // tl.where((b == 0) | (b == -1), b * 0 + 1, b)
    return tl.where(b == 0, a * 0, tl.where(b == -1, -a, q))
""",
    "trem": """
def trem(a, b):
    # sign of the dividend; 0 where b is 0
    return tl.where(b == 0, a * 0, a - tdiv(a, b) * b)
""",
    "floordiv": """
def floordiv(a, b):
    # rounds down; 0 where b is 0
    q = tdiv(a, b)
    r = a - q * b
    return q - ((b != 0) & (r != 0) & ((r < 0) != (b < 0))).to(a.dtype)
""",
    "mod": """
def mod(a, b):
    # sign of the divisor; 0 where b is 0
    r = trem(a, b)
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
""",
    "cdiv": """
def cdiv(a, b):
    # rounds up; 0 where b is 0
    q = tdiv(a, b)
    r = a - q * b
    return q + ((b != 0) & (r != 0) & ((r < 0) == (b < 0))).to(a.dtype)
""",
    "udiv": """
def udiv(a, b):
    # 0 where b is 0
    return tl.where(b == 0, a * 0, a // tl.where(b == 0, b * 0 + 1, b))
""",
    "umod": """
def umod(a, b):
    # 0 where b is 0
    return tl.where(b == 0, a * 0, a % tl.where(b == 0, b * 0 + 1, b))
""",
    "ucdiv": """
def ucdiv(a, b):
    # rounds up; 0 where b is 0
    return udiv(a, b) + (umod(a, b) != 0).to(a.dtype)
""",
    "shl": """
def shl(a, b):
    # 0 once all bits are out
    inside = (b >= 0) & (b < a.dtype.primitive_bitwidth)
    return tl.where(inside, a << tl.where(inside, b, b * 0).to(a.dtype), a * 0)
""",
    "shr": """
def shr(a, b):
    # fills with the sign; 0 or -1 once all bits are out
    inside = (b >= 0) & (b < a.dtype.primitive_bitwidth)
    far = tl.where(a < 0, a * 0 - 1, a * 0)
    return tl.where(inside, a >> tl.where(inside, b, b * 0).to(a.dtype), far)
""",
    "ushr": """
def ushr(a, b):
    # 0 once all bits are out
    inside = (b >= 0) & (b < a.dtype.primitive_bitwidth)
    return tl.where(inside, a >> tl.where(inside, b, b * 0).to(a.dtype), a * 0)
""",
    "sign": """
def sign(x):
    # -1, 0 or 1
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)
""",
    "fsign": """
def fsign(x):
    # -1, 0 or 1; NaN of NaN
    one = tl.full([], 1.0, x.dtype)
    return tl.where(x > 0, one, tl.where(x < 0, -one, x))
""",
    "float_to_int": """
def float_to_int(x, low, high, to: tl.constexpr):
    # truncates and saturates; 0 of NaN; low and high are the limits of the integer type
    below = x < low.to(x.dtype)
    above = x >= high.to(x.dtype)
    inside = (x == x) & (below == False) & (above == False)  # noqa: E712
    y = tl.where(inside, x, 0.0).to(to)
    return tl.where(below, low, tl.where(above, high, y))
""",
    "f32_odd": """
def f32_odd(x):
    # f64 to f32, rounded to odd, so that a second rounding to a narrower type is exact
    y = x.to(tl.float32)
    inexact = y.to(tl.float64) != x
    bits = y.to(tl.int32, bitcast=True)
    bits = tl.where(tl.abs(y.to(tl.float64)) > tl.abs(x), bits - 1, bits)
    odd = (bits | 1).to(tl.float32, bitcast=True)
    return tl.where(inexact & (x == x), odd, y)
""",
    "int_f32_odd": """
def int_f32_odd(x):
    # an integer to f32, rounded to odd, so that a second rounding to a narrower type is exact
    low = x & 0x7FF
    sticky = tl.where(low != 0, low * 0 + 0x800, low * 0)
    near = x.to(tl.float64)
    far = ((x - low) | sticky).to(tl.float64)
    return f32_odd(tl.where(tl.abs(near) < 9007199254740992.0, near, far))
""",
    "f8e4m3_bits": """
def f8e4m3_bits(x):
    # f32 to the byte of an f8e4m3, to nearest even; NaN beyond 464 (half past the greatest)
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960
    # below 2**-6 the spacing is 2**-9: let the f32 adder round at that place
    small = (tl.abs(x) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, normal)
    code = tl.where(size > 0x43E80000, code * 0 + 0x7F, code)
    return (code | sign).to(tl.uint8)
""",
    "f8e4m3_value": """
def f8e4m3_value(byte):
    # the f32 that an f8e4m3 stands for
    b = byte.to(tl.uint32)
    size = b & 0x7F
    normal = ((size << 20) + 0x3C000000).to(tl.float32, bitcast=True)
    small = ((size << 20) + 0x3C800000).to(tl.float32, bitcast=True) - 0.015625
    y = tl.where(size < 8, small, normal)
    y = tl.where(size == 0x7F, float("nan"), y)
    return (y.to(tl.uint32, bitcast=True) | ((b & 0x80) << 24)).to(tl.float32, bitcast=True)
""",
    "f8e5m2_bits": """
def f8e5m2_bits(x):
    # f32 to the byte of an f8e5m2, to nearest even; infinity from 61440 on
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    normal = ((size + 0xFFFFF + ((size >> 21) & 1)) >> 21) - 448
    # below 2**-14 the spacing is 2**-16: let the f32 adder round at that place
    small = (tl.abs(x) + 128.0).to(tl.uint32, bitcast=True) - 0x43000000
    code = tl.where(size < 0x38800000, small, normal)
    code = tl.where(size >= 0x47700000, code * 0 + 0x7C, code)
    code = tl.where(x != x, code * 0 + 0x7E, code)
    return (code | sign).to(tl.uint8)
""",
    "f8e5m2_value": """
def f8e5m2_value(byte):
    # the f32 that an f8e5m2 stands for: the upper byte of an f16
    return (byte.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
""",
    "round_f8e4m3": """
def round_f8e4m3(x):
    return f8e4m3_value(f8e4m3_bits(x))
""",
    "round_f8e5m2": """
def round_f8e5m2(x):
    return f8e5m2_value(f8e5m2_bits(x))
""",
    "divide": """
def divide(a, b):
    # IEEE division: Triton's `/` on f32 is approximate
    if a.dtype == tl.float32:
        q = tl.div_rn(a, b)
    else:
        q = a / b
    return q
""",
    "square_root": """
def square_root(x):
    # IEEE square root: Triton's `tl.sqrt` on f32 is approximate
    if x.dtype == tl.float32:
        y = tl.sqrt_rn(x)
    else:
        y = tl.sqrt(x)
    return y
""",
    "sigmoid": """
def sigmoid(x):
    e = libdevice.exp(-tl.abs(x))
    one = tl.full([], 1.0, x.dtype)
    return divide(tl.where(x >= 0.0, one, e), one + e)
""",
    "nan_upward": """
def nan_upward(x):
    # NaN with a clear sign, which an atomic maximum keeps
    return tl.where(x != x, float("nan"), x)
""",
    "nan_downward": """
def nan_downward(x):
    # NaN with the sign set, which an atomic minimum keeps
    if x.dtype == tl.float32:
        nan = tl.full([], -0x400000, tl.int32).to(tl.float32, bitcast=True)
    else:
        nan = tl.full([], -0x8000000000000, tl.int64).to(tl.float64, bitcast=True)
    return tl.where(x != x, nan, x)
""",
    "philox": """
def philox(seed, counter):
    # first word of Philox4x32-10, key = seed, counter = (counter, 0)
    counter = counter.to(tl.uint64)
    c0 = counter & 0xFFFFFFFF
    c1 = counter >> 32
    c2 = c0 * 0
    c3 = c0 * 0
    k0 = seed & 0xFFFFFFFF
    k1 = seed >> 32
    for _ in tl.static_range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0 = (p1 >> 32) ^ c1 ^ k0
        c1 = p1 & 0xFFFFFFFF
        c2 = (p0 >> 32) ^ c3 ^ k1
        c3 = p0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0.to(tl.uint32)
""",
    "rand": """
def rand(seed, counter):
    # uniform on [0, 1): the top 24 bits of philox
    return (philox(seed, counter) >> 8).to(tl.float32) * 5.9604644775390625e-08
""",
}

_CALLS = {
    name: tuple(n for n in HELPERS if n != name and re.search(rf"\b{n}\(", text))
    for name, text in HELPERS.items()
}


def include(names: set[str]) -> str:
    """The source of the helpers `names` and of those they call, callees first."""
    wanted: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in wanted:
            for callee in _CALLS[name]:
                visit(callee)
            wanted[name] = None

    for name in HELPERS:
        if name in names:
            visit(name)
    return "".join(f"\n\n@triton.jit\n{HELPERS[name].strip()}\n" for name in wanted)
