"""bf16, f8e4m3, f8e5m2 and f16 as integers: their values are held as f32, converted by bit work.

LLVM's own conversions of these types call compiler-rt on machines that lack the instructions, so
none is used (but `half` where `Machine.half` says that it is an instruction). Rounding is to
nearest even; from f64 there is one rounding, through f32 rounded to odd.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.backends.llvm.builder import Builder, V, integer, real
from kir.backends.llvm.machine import Machine
from kir.dtypes import DType, bf16, f8e4m3, f8e5m2, f16


@dataclass(frozen=True)
class Layout:
    """Where a narrow float's bits are: `width` in all, `mantissa` stored; `top` is the least
    magnitude (as bits) that is not finite, `nan` the quiet NaN."""

    width: int
    mantissa: int
    bias: int
    top: int
    nan: int

    @property
    def ty(self) -> str:
        return f"i{self.width}"


LAYOUTS = {
    f16: Layout(16, 10, 15, 0x7C00, 0x7E00),
    bf16: Layout(16, 7, 127, 0x7F80, 0x7FC0),
    f8e5m2: Layout(8, 2, 15, 0x7C, 0x7E),
    f8e4m3: Layout(8, 3, 7, 0x7F, 0x7F),
}


def unpack(b: Builder, machine: Machine, bits: V, dtype: DType) -> V:
    """The stored bits of a narrow float as a f32 (exact)."""
    layout = LAYOUTS[dtype]
    if dtype == f16 and machine.half:
        return b.convert("fpext", b.convert("bitcast", bits, "half"), "float")
    wide = b.convert("zext", bits, "i32")
    if dtype == bf16:
        return b.convert("bitcast", b.op("shl", wide, integer(16, "i32")), "float")
    sign_bit = 1 << (layout.width - 1)
    magnitude = b.op("and", wide, integer(sign_bit - 1, "i32"))
    sign = b.op(
        "shl", b.op("and", wide, integer(sign_bit, "i32")), integer(32 - layout.width, "i32")
    )
    shifted = b.op("shl", magnitude, integer(23 - layout.mantissa, "i32"))
    # read as f32, the bits are the value times 2^(bias - 127): subnormals come out right too
    scaled = b.op(
        "fmul", b.convert("bitcast", shifted, "float"), real(2.0 ** (127 - layout.bias), "float")
    )
    special = b.icmp("uge", magnitude, integer(layout.top, "i32"))
    infinite = b.op("or", shifted, integer(0x7F800000, "i32"))
    result = b.select(special, infinite, b.convert("bitcast", scaled, "i32"))
    return b.convert("bitcast", b.op("or", result, sign), "float")


def stored(b: Builder, machine: Machine, value: V, dtype: DType) -> V:
    """The stored bits of a f32 that holds a value of a narrow float: nothing is left to round."""
    if dtype == bf16:
        bits = b.convert("bitcast", value, "i32")
        return b.convert("trunc", b.op("lshr", bits, integer(16, "i32")), "i16")
    return pack(b, machine, value, dtype)


def pack(b: Builder, machine: Machine, value: V, dtype: DType) -> V:
    """A f32 rounded to the stored bits of a narrow float."""
    layout = LAYOUTS[dtype]
    if dtype == f16 and machine.half:
        return b.convert("bitcast", b.convert("fptrunc", value, "half"), "i16")
    bits = b.convert("bitcast", value, "i32")
    magnitude = b.op("and", bits, integer(0x7FFFFFFF, "i32"))
    packed = _pack_magnitude(b, layout, magnitude)
    sign = b.op("lshr", bits, integer(32 - layout.width, "i32"))
    sign = b.op("and", sign, integer(1 << (layout.width - 1), "i32"))
    nan = b.fcmp("uno", value, value)
    packed = b.select(nan, integer(layout.nan, "i32"), packed)
    return b.convert("trunc", b.op("or", packed, sign), layout.ty)


def _rounded_bits(b: Builder, value: V) -> V:
    """The bits of a f32, its upper 16 those of the nearest bf16: a carry out of the mantissa goes
    to the exponent, as it should, and to infinity; only NaN must be kept from it."""
    bits = _round_at(b, b.convert("bitcast", value, "i32"), 16)
    nan = b.convert("sext", b.fcmp("uno", value, value), "i32")  # all ones are a NaN, too
    return b.op("or", bits, nan)


def _round_at(b: Builder, bits: V, shift: int) -> V:
    """Round to nearest even at bit `shift`: what stands below it is garbage afterwards."""
    odd = b.op("and", b.op("lshr", bits, integer(shift, "i32")), integer(1, "i32"))
    return b.op("add", b.op("add", bits, integer((1 << (shift - 1)) - 1, "i32")), odd)


def _pack_magnitude(b: Builder, layout: Layout, magnitude: V) -> V:
    shift = 23 - layout.mantissa
    rebias = integer(-((127 - layout.bias) << layout.mantissa), "i32")
    rounded = b.op("lshr", _round_at(b, magnitude, shift), integer(shift, "i32"))
    normal = b.op("add", rounded, rebias)
    overflow = b.icmp("sge", normal, integer(layout.top, "i32"))
    normal = b.select(overflow, integer(layout.top, "i32"), normal)
    # below the least normal, adding a power of two makes the f32 adder round at the right bit
    magic = 2.0 ** (1 - layout.bias - layout.mantissa + 23)
    magic_bits = (int(1 - layout.bias - layout.mantissa + 23) + 127) << 23
    small = b.op("fadd", b.convert("bitcast", magnitude, "float"), real(magic, "float"))
    subnormal = b.op("sub", b.convert("bitcast", small, "i32"), integer(magic_bits, "i32"))
    least_normal = (127 - layout.bias + 1) << 23
    return b.select(b.icmp("ult", magnitude, integer(least_normal, "i32")), subnormal, normal)


def rounded(b: Builder, machine: Machine, value: V, dtype: DType) -> V:
    """A f32 rounded to a narrow float's precision and range, held as f32."""
    if dtype == bf16:
        kept = b.op("and", _rounded_bits(b, value), integer(-65536, "i32"))
        return b.convert("bitcast", kept, "float")
    return unpack(b, machine, pack(b, machine, value, dtype), dtype)


def to_odd(b: Builder, value: V) -> V:
    """A f64 as a f32 rounded to odd: rounding that once more to fewer bits rounds once in all."""
    near = b.convert("fptrunc", value, "float")
    back = b.convert("fpext", near, "double")
    bits = b.convert("bitcast", near, "i32")
    away = b.fcmp("ogt", b.intrinsic("llvm.fabs", back), b.intrinsic("llvm.fabs", value))
    bits = b.select(away, b.op("sub", bits, integer(1, "i32")), bits)
    odd = b.op("or", bits, integer(1, "i32"))
    bits = b.select(b.fcmp("one", back, value), odd, bits)
    return b.convert("bitcast", bits, "float")
