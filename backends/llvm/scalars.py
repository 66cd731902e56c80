"""Every op of the op table, every cast and bitcast, as LLVM instructions.

A KIR value of dtype t is an SSA value of type `ssa(t)`: narrow floats are f32 that hold a value of
the narrow type exactly, bools are i1. In memory it has type `memory(t)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from kir.backends.llvm import functions, narrow
from kir.backends.llvm.builder import Builder, V, bits_of, integer, real, suffix
from kir.backends.llvm.machine import Machine
from kir.dtypes import NARROW_FLOATS, DType, f32, f64
from kir.errors import UnsupportedError
from kir.ir import Const
from kir.ops import PHILOX_M, PHILOX_W


def ssa(t: DType) -> str:
    if t.is_float:
        return "double" if t == f64 else "float"
    return "i1" if t.is_bool else f"i{t.bits}"


def memory(t: DType) -> str:
    return f"i{t.bits}" if t in NARROW_FLOATS or t.is_bool else ssa(t)


class Scalars:
    """Writes ops on the current builder. `dtypes` of a handler are the operands'."""

    def __init__(self, b: Builder, machine: Machine) -> None:
        self.b, self.machine = b, machine

    # --- values and memory

    def constant(self, e: Const) -> V:
        if not e.type.is_float:
            return integer(int(e.value), ssa(e.type))
        value = float(e.value)
        if e.type in NARROW_FLOATS:
            value = float(e.type.numpy.type(value))
        return real(value, ssa(e.type))

    def to_memory(self, value: V, t: DType) -> V:
        if t in NARROW_FLOATS:
            return narrow.stored(self.b, self.machine, value, t)
        return self.b.convert("zext", value, "i8") if t.is_bool else value

    def from_memory(self, bits: V, t: DType) -> V:
        if t in NARROW_FLOATS:
            return narrow.unpack(self.b, self.machine, bits, t)
        return self.b.icmp("ne", bits, integer(0, "i8")) if t.is_bool else bits

    def rounded(self, value: V, t: DType) -> V:
        """The f32 result of an op on a narrow float, rounded to it; others as they are."""
        return narrow.rounded(self.b, self.machine, value, t) if t in NARROW_FLOATS else value

    # --- ops

    def op(self, name: str, dtypes: Sequence[DType], args: Sequence[V]) -> V:
        """An op of the table; UnsupportedError where it needs a libm that is not there."""
        operand = dtypes[-1] if name == "select" else dtypes[0]
        handler = HANDLERS[name]
        result = handler(self, operand, list(self.b.together(*args)) if len(args) > 1 else [*args])
        if name in UNROUNDED or not operand.is_float:
            return result
        return self.rounded(result, operand)

    def update(self, name: str, t: DType, old: V, new: V) -> V:
        return self.op(name, (t, t), (old, new))

    def update_lanes(self, name: str, t: DType, old: V, new: V) -> V:
        """As `update`, for vectors: where no new value is NaN, which one test of several registers
        tells, an extremum is one instruction, and keeps a NaN that was there."""
        b = self.b
        if name not in ("max", "min") or not t.is_float or new.lanes % 16:
            return self.update(name, t, old, new)
        bad = b.any(b.fcmp("uno", *b.halves(new)))
        rare, usual, done = b.fresh("nan"), b.fresh("usual"), b.fresh("chosen")
        b.branch(bad, rare, usual)
        b.label(usual)
        one = b.select(b.fcmp("ogt" if name == "max" else "olt", new, old), new, old)
        b.jump(done)
        b.label(rare)
        two = self.update(name, t, old, new)
        b.jump(done)
        b.label(done)
        return b.phi(one, usual, two, rare)

    def reduce(self, name: str, t: DType, value: V) -> V:
        """The lanes of a vector combined by an update op, in no particular order."""
        b, lanes = self.b, value.lanes
        if name in ("max", "min") and t.is_float:
            return self._reduce_extremum(name, t, value)
        tail = suffix(value.ty, lanes)
        if t.is_float:
            stem = "fadd" if name == "add" else "fmul"
            start = real(-0.0 if name == "add" else 1.0, value.ty)
            total = b.call(
                f"llvm.vector.reduce.{stem}.{tail}", value.ty, 0, start, value, flags="reassoc"
            )
            return self.rounded(total, t)
        stem = name if name not in ("max", "min") else ("s" if t.kind == "int" else "u") + name
        return b.call(f"llvm.vector.reduce.{stem}.{tail}", value.ty, 0, value)

    def _reduce_extremum(self, name: str, t: DType, value: V) -> V:
        """Halve until one lane is left: LLVM's own reduction orders signed zeros, at a cost. One
        test in front tells whether any lane is NaN; where none is, each step is one instruction,
        and none is a branch that cannot be foreseen."""
        if value.lanes < 4 or value.lanes % 2:
            return self._halved(value, HANDLERS[name], t)
        b, compare = self.b, "ogt" if name == "max" else "olt"

        def plain(s: Scalars, _: DType, args: list[V]) -> V:
            return s.b.select(s.b.fcmp(compare, *args), *args)

        rare, usual, done = b.fresh("nan"), b.fresh("usual"), b.fresh("reduced")
        b.branch(b.any(b.fcmp("uno", *b.halves(value))), rare, usual)
        with b.arm(usual):
            one, one_end = self._halved(value, plain, t), b.block
            b.jump(done)
        with b.arm(rare):
            two, two_end = self._halved(value, HANDLERS[name], t), b.block
            b.jump(done)
        b.label(done, dominated=True)
        return b.phi(one, one_end, two, two_end)

    def _halved(self, value: V, combine: Handler, t: DType) -> V:
        b = self.b
        while value.lanes > 1:
            half = value.lanes // 2
            both = combine(self, t, [self._slice(value, k * half, half) for k in (0, 1)])
            if value.lanes % 2:
                last = b.splat(b.lane(value, value.lanes - 1), half)
                both = combine(self, t, [both, last])
            value = both
        return b.lane(value, 0)

    def _slice(self, value: V, start: int, lanes: int) -> V:
        mask = ", ".join(f"i32 {start + i}" for i in range(lanes))
        other = V("poison", value.ty, value.lanes)
        return self.b.emit(
            f"shufflevector {value}, {other}, <{lanes} x i32> <{mask}>", value.ty, lanes
        )

    # --- conversions

    def cast(self, value: V, source: DType, target: DType) -> V:
        b = self.b
        if source == target:
            return value
        if target.is_bool:
            if source.is_float:
                return b.fcmp("une", value, real(0.0, value.ty))
            return b.icmp("ne", value, integer(0, value.ty))
        if source.is_float:
            return self._from_float(value, source, target)
        if target.is_float:
            return self._integer_to_float(value, source, target)
        extend = "sext" if source.kind == "int" else "zext"
        shrink = bits_of(value.ty) > target.bits
        return b.convert("trunc" if shrink else extend, value, ssa(target))

    def _from_float(self, value: V, source: DType, target: DType) -> V:
        b = self.b
        if target.is_integer:
            stem = "llvm.fptosi.sat" if target.kind == "int" else "llvm.fptoui.sat"
            ty = ssa(target)
            name = f"{stem}.{suffix(ty, value.lanes)}.{suffix(value.ty, value.lanes)}"
            return b.call(name, ty, value.lanes, value)
        if target == f64:
            return b.convert("fpext", value, "double")
        if target == f32:
            return b.convert("fptrunc", value, "float")
        if source == f64:
            value = narrow.to_odd(b, value)
        return self.rounded(value, target)

    def _integer_to_float(self, value: V, source: DType, target: DType) -> V:
        b = self.b
        name = "sitofp" if source.kind == "int" else "uitofp"
        if target in (f32, f64):
            return b.convert(name, value, ssa(target))
        if source.bits <= 16:  # exact in f32
            return self.rounded(b.convert(name, value, "float"), target)
        return self.rounded(narrow.to_odd(b, b.convert(name, value, "double")), target)

    def bitcast(self, value: V, source: DType, target: DType) -> V:
        bits = self.to_memory(value, source)
        return self.from_memory(self.b.convert("bitcast", bits, memory(target)), target)


Handler = Callable[[Scalars, DType, list[V]], V]


def _instruction(of_float: str, signed: str, unsigned: str | None = None) -> Handler:
    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        name = of_float if t.is_float else signed if t.kind != "uint" else unsigned or signed
        return s.b.op(name, args[0], args[1])

    return handle


def _compare(of_float: str, signed: str, unsigned: str) -> Handler:
    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        if t.is_float:
            return s.b.fcmp(of_float, args[0], args[1])
        return s.b.icmp(signed if t.kind == "int" else unsigned, args[0], args[1])

    return handle


def _intrinsic(stem: str) -> Handler:
    return lambda s, t, args: s.b.intrinsic(stem, *args)


def _neg(s: Scalars, t: DType, args: list[V]) -> V:
    return s.b.fneg(args[0]) if t.is_float else s.b.op("sub", integer(0, args[0].ty), args[0])


def _abs(s: Scalars, t: DType, args: list[V]) -> V:
    if t.is_float:
        return s.b.intrinsic("llvm.fabs", args[0])
    if t.kind == "uint":
        return args[0]
    below = s.b.icmp("slt", args[0], integer(0, args[0].ty))
    return s.b.select(below, _neg(s, t, args), args[0])


def _sign(s: Scalars, t: DType, args: list[V]) -> V:
    (x,), b = args, s.b
    if t.is_float:
        one = b.intrinsic("llvm.copysign", real(1.0, x.ty) if not x.lanes else
                          b.splat(real(1.0, x.ty), x.lanes), x)  # fmt: skip
        plain = b.fcmp("one", x, real(0.0, x.ty))
        return b.select(plain, one, x)  # zeros and NaN as they are
    positive = b.convert("zext", b.icmp("ne", x, integer(0, x.ty)), x.ty)
    if t.kind == "uint":
        return positive
    return b.select(b.icmp("slt", x, integer(0, x.ty)), integer(-1, x.ty), positive)


def _extremum(name: str) -> Handler:
    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        (x, y), b = args, s.b
        if not t.is_float:
            return b.intrinsic(f"llvm.{'u' if t.kind == 'uint' else 's'}{name}", x, y)
        chosen = b.select(b.fcmp("ogt" if name == "max" else "olt", x, y), x, y)
        return b.select(b.fcmp("uno", x, x), x, chosen)  # a NaN y was chosen already

    return handle


def _division(name: str) -> Handler:
    """Quotients and remainders that never trap: 0 for a zero divisor, wrapping at MIN / -1."""

    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        (x, y), b = args, s.b
        zero, one = integer(0, x.ty), integer(1, x.ty)
        signed = t.kind == "int"
        if x.constant is not None and y.constant is not None and signed:
            return integer(_fold_division(name, x.constant, y.constant), x.ty)
        constant = _plain_divisor(y)
        bad = b.icmp("eq", y, zero) if constant is None else integer(0, "i1")
        minus = (
            b.icmp("eq", y, integer(-1, y.ty)) if signed and constant is None else integer(0, "i1")
        )
        divisor = y if constant is not None else b.select(b.op("or", bad, minus), one, y)
        quotient = b.op("sdiv" if signed else "udiv", x, divisor)
        remainder = b.op("sub", x, b.op("mul", quotient, divisor))
        quotient = b.select(minus, b.op("sub", zero, quotient), quotient)
        exact = b.icmp("eq", remainder, zero)
        if not signed:
            below, beyond = integer(0, "i1"), b.op("xor", exact, integer(1, "i1"))
        elif constant is not None:
            below = b.icmp("slt", remainder, zero)
            beyond = b.icmp("sgt", remainder, zero)
        else:
            different = b.icmp("slt", b.op("xor", remainder, divisor), zero)
            inexact = b.op("xor", exact, integer(1, "i1"))
            below = b.op("and", different, inexact)
            beyond = b.op("and", b.op("xor", different, integer(1, "i1")), inexact)
        if name == "floordiv":
            result = b.op("sub", quotient, b.convert("zext", below, x.ty))
        elif name == "cdiv":
            result = b.op("add", quotient, b.convert("zext", beyond, x.ty))
        elif name == "tdiv":
            result = quotient
        elif name == "mod":
            result = b.op("add", remainder, b.select(below, divisor, zero))
        else:
            result = remainder
        return b.select(bad, zero, result)

    return handle


def _plain_divisor(y: V) -> int | None:
    """The value of a constant divisor (of all lanes) above 0; None where it is not known."""
    if y.constant is not None:
        return y.constant if y.constant > 0 else None
    if y.lanes and y.ref.startswith("splat (i"):
        value = int(y.ref.rstrip(")").split()[-1])
        return value if value > 0 else None
    return None


def _fold_division(name: str, x: int, y: int) -> int:
    if y == 0:
        return 0
    truncated = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
    values = {"floordiv": x // y, "mod": x % y, "cdiv": -(-x // y), "tdiv": truncated}
    return values.get(name, x - truncated * y)


def _shift(name: str) -> Handler:
    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        (x, y), b = args, s.b
        width = bits_of(x.ty)
        outside = b.icmp("uge", y, integer(width, y.ty)) if width < 1 << (bits_of(y.ty) - 1) else (
            b.icmp("uge", b.convert("sext", y, "i64"), integer(width)))  # fmt: skip
        amount = b.select(outside, integer(0, y.ty), y)
        amount = b.convert("trunc" if bits_of(y.ty) > width else "zext", amount, x.ty)
        kind = "shl" if name == "shl" else "ashr" if t.kind == "int" else "lshr"
        far = integer(0, x.ty) if kind != "ashr" else b.op("ashr", x, integer(width - 1, x.ty))
        return b.select(outside, far, b.op(kind, x, amount))

    return handle


def _function(name: str) -> Handler:
    """f32 through `functions` where it has inline code, else libm lane by lane."""
    symbol = LIBM.get(name)

    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        if t != f64 and name in functions.FUNCTIONS:
            return functions.call(s.b, s.machine, name, args[0])
        if not s.machine.libm or symbol is None:
            raise UnsupportedError(
                f"`{name}` on {t} needs the C math library, which this machine does not link",
                hint="these have inline code on f32: " + ", ".join(functions.FUNCTIONS),
            )
        return functions.by_lane(s.b, symbol + ("" if t == f64 else "f"), *args)

    return handle


def _sigmoid(s: Scalars, t: DType, args: list[V]) -> V:
    if t != f64:
        return functions.call(s.b, s.machine, "sigmoid", args[0])
    b, one = s.b, real(1.0, "double")
    e = _function("exp")(s, t, [b.fneg(b.intrinsic("llvm.fabs", args[0]))])
    d = b.op("fdiv", one, b.op("fadd", one, e))
    return b.select(b.fcmp("oge", args[0], real(0.0, "double")), d, b.op("fmul", e, d))


def _fma(s: Scalars, t: DType, args: list[V]) -> V:
    if s.machine.fma:
        return s.b.intrinsic("llvm.fma", *args)
    if t != f64:  # f32 products are exact in f64; rounding to odd on the way makes it one rounding
        wide = [s.b.convert("fpext", a, "double") for a in args]
        total = _sum_to_odd(s.b, s.b.op("fmul", wide[0], wide[1]), wide[2])
        return s.b.convert("fptrunc", total, "float")
    if not s.machine.libm:
        raise UnsupportedError("`fma` on f64 needs the C math library or an instruction")
    return functions.by_lane(s.b, "fma", *args)


def _sum_to_odd(b: Builder, x: V, y: V) -> V:
    """x + y in f64 rounded to odd (Boldo and Melquiond 2008), by the error of the sum."""
    total = b.op("fadd", x, y)
    back = b.op("fsub", total, x)
    error = b.op("fadd", b.op("fsub", x, b.op("fsub", total, back)), b.op("fsub", y, back))
    bits = b.convert("bitcast", total, "i64")
    even = b.icmp("eq", b.op("and", bits, integer(1)), integer(0))
    inexact = b.fcmp("one", error, real(0.0, "double"))
    same = b.icmp("sge", b.op("xor", b.convert("bitcast", error, "i64"), bits), integer(0))
    moved = b.select(same, b.op("add", bits, integer(1)), b.op("sub", bits, integer(1)))
    return b.convert("bitcast", b.select(b.op("and", even, inexact), moved, bits), "double")


def _reciprocal(root: bool) -> Handler:
    def handle(s: Scalars, t: DType, args: list[V]) -> V:
        below = s.b.intrinsic("llvm.sqrt", args[0]) if root else args[0]
        return s.b.op("fdiv", real(1.0, below.ty), below)

    return handle


def _philox(s: Scalars, t: DType, args: list[V]) -> V:
    (seed, counter), b = args, s.b
    low, word = integer(0xFFFFFFFF), integer(32)
    k0, k1 = b.op("and", seed, low), b.op("lshr", seed, word)
    c0, c1 = b.op("and", counter, low), b.op("lshr", counter, word)
    c2 = c3 = b.splat(integer(0), c0.lanes)
    for _ in range(10):
        p0, p1 = b.op("mul", c0, integer(PHILOX_M[0])), b.op("mul", c2, integer(PHILOX_M[1]))
        c0 = b.op("xor", b.op("xor", b.op("lshr", p1, word), c1), k0)
        c2 = b.op("xor", b.op("xor", b.op("lshr", p0, word), c3), k1)
        c1, c3 = b.op("and", p1, low), b.op("and", p0, low)
        k0 = b.op("and", b.op("add", k0, integer(PHILOX_W[0])), low)
        k1 = b.op("and", b.op("add", k1, integer(PHILOX_W[1])), low)
    return b.convert("trunc", c0, "i32")


def _rand(s: Scalars, t: DType, args: list[V]) -> V:
    word = s.b.op("lshr", _philox(s, t, args), integer(8, "i32"))
    return s.b.op("fmul", s.b.convert("uitofp", word, "float"), real(2.0**-24, "float"))


def _not(s: Scalars, t: DType, args: list[V]) -> V:
    return s.b.op("xor", args[0], integer(-1, args[0].ty))


def _isinf(s: Scalars, t: DType, args: list[V]) -> V:
    magnitude = s.b.intrinsic("llvm.fabs", args[0])
    return s.b.fcmp("oeq", magnitude, real(math.inf, args[0].ty))


LIBM = {name: name for name in
        ("exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "sin", "cos", "tan", "asin",
         "acos", "atan", "atan2", "sinh", "cosh", "tanh", "erf")}  # fmt: skip

HANDLERS: dict[str, Handler] = {
    "add": _instruction("fadd", "add"),
    "sub": _instruction("fsub", "sub"),
    "mul": _instruction("fmul", "mul"),
    "div": _instruction("fdiv", "sdiv"),
    "neg": _neg,
    "fma": _fma,
    **{name: _division(name) for name in ("floordiv", "mod", "cdiv", "tdiv", "trem")},
    "max": _extremum("max"),
    "min": _extremum("min"),
    "abs": _abs,
    "sign": _sign,
    "eq": _compare("oeq", "eq", "eq"),
    "ne": _compare("une", "ne", "ne"),
    "lt": _compare("olt", "slt", "ult"),
    "le": _compare("ole", "sle", "ule"),
    "gt": _compare("ogt", "sgt", "ugt"),
    "ge": _compare("oge", "sge", "uge"),
    "and": _instruction("and", "and"),
    "or": _instruction("or", "or"),
    "not": _not,
    "select": lambda s, t, args: s.b.select(*args),
    "bit_and": _instruction("and", "and"),
    "bit_or": _instruction("or", "or"),
    "bit_xor": _instruction("xor", "xor"),
    "bit_not": _not,
    "shl": _shift("shl"),
    "shr": _shift("shr"),
    "floor": _intrinsic("llvm.floor"),
    "ceil": _intrinsic("llvm.ceil"),
    "round": _intrinsic("llvm.roundeven"),
    "trunc": _intrinsic("llvm.trunc"),
    "sqrt": _intrinsic("llvm.sqrt"),
    "rsqrt": _reciprocal(True),
    "recip": _reciprocal(False),
    **{name: _function(name) for name in LIBM},
    "sigmoid": _sigmoid,
    "isnan": lambda s, t, args: s.b.fcmp("uno", args[0], args[0]),
    "isinf": _isinf,
    "philox": _philox,
    "rand": _rand,
}
UNROUNDED = {"neg", "abs", "sign", "max", "min", "select", "floor", "ceil", "round", "trunc",
             "isnan", "isinf", "philox", "rand", "eq", "ne", "lt", "le", "gt", "ge"}  # fmt: skip
"""Ops whose result on a narrow float is one already, or no float."""
