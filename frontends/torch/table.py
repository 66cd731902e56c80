"""ATen operators as lazy tensors: what KIR compiles of PyTorch, one row for each.

A pointwise row says how torch promotes its operands and gives an element of the result from those
of the operands, in the dtype in which torch computes it (`_prims_common.elementwise_dtypes`: f32
for bf16). The others are functions of the operands as ATen passes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kir.dtypes import DTYPES, DType
from kir.frontends.torch.values import Value
from kir.ir import Cast, Const, Expr
from kir.ops import op

Element = Callable[..., Expr]


@dataclass(frozen=True)
class Pointwise:
    """`kind` is one of torch's promotion kinds; `heavy`: worth memory where it is used twice."""

    element: Element
    kind: str = "DEFAULT"
    heavy: bool = False
    operands: int = 1
    """Arguments that are tensors, or numbers in the place of one."""


def number(like: Expr, value: float) -> Const:
    """A literal of the dtype of `like`."""
    return Const(float(value) if like.dtype.is_float else int(value), like.dtype)


def _op(name: str) -> Element:
    return lambda *args: op(name, *args)


def _unary(name: str) -> Pointwise:
    return Pointwise(_op(name), "INT_TO_FLOAT", heavy=True)


def _compare(name: str) -> Pointwise:
    def element(a: Expr, b: Expr) -> Expr:
        if a.dtype.is_bool and name not in ("eq", "ne"):  # bools have no order: those of integers
            a, b = Cast(a, DTYPES["i8"]), Cast(b, DTYPES["i8"])
        return op(name, a, b)

    return Pointwise(element, "ALWAYS_BOOL", operands=2)


def added(a: Expr, b: Expr, alpha: float = 1) -> Expr:
    if a.dtype.is_bool:
        return op("or", a, b)
    return op("add", a, b if alpha == 1 else op("mul", b, number(b, alpha)))


def _sub(a: Expr, b: Expr, alpha: float = 1) -> Expr:
    return op("sub", a, b if alpha == 1 else op("mul", b, number(b, alpha)))


def _mul(a: Expr, b: Expr) -> Expr:
    return op("and" if a.dtype.is_bool else "mul", a, b)


def _relu(x: Expr) -> Expr:
    return op("max", x, number(x, 0))


def _gelu(x: Expr, approximate: str = "none") -> Expr:
    half = op("mul", x, number(x, 0.5))
    if approximate == "tanh":
        cube = op("mul", op("mul", x, x), x)
        inner = op("add", x, op("mul", number(x, 0.044715), cube))
        return op("mul", half, op("add", number(x, 1), op("tanh", op("mul", inner, number(
            x, math.sqrt(2 / math.pi))))))  # fmt: skip
    return op("mul", half, op("add", op("erf", op("mul", x, number(x, math.sqrt(0.5)))),
                              number(x, 1)))  # fmt: skip


def _silu(x: Expr) -> Expr:
    return op("div", x, op("add", number(x, 1), op("exp", op("neg", x))))


def _max(a: Expr, b: Expr) -> Expr:
    return op("or" if a.dtype.is_bool else "max", a, b)


def _min(a: Expr, b: Expr) -> Expr:
    return op("and" if a.dtype.is_bool else "min", a, b)


def _rounded(name: str) -> Element:
    """Of an integer itself."""
    return lambda x: op(name, x) if x.dtype.is_float else x


def _of_float(name: str) -> Element:
    """Of an integer or a bool, False."""
    return lambda x: op(name, x) if x.dtype.is_float else Const(False, DTYPES["bool"])


def _clamp(x: Expr, low: float | None = None, high: float | None = None) -> Expr:
    if low is not None:
        x = op("max", x, number(x, low))
    return x if high is None else op("min", x, number(x, high))


def _where(c: Expr, a: Expr, b: Expr) -> Expr:
    return op("select", c, a, b)


def _hardtanh(x: Expr, low: float = -1.0, high: float = 1.0) -> Expr:
    return _clamp(x, low, high)


def _leaky_relu(x: Expr, slope: float = 0.01) -> Expr:
    return op("select", op("gt", x, number(x, 0)), x, op("mul", x, number(x, slope)))


def _elu(x: Expr, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Expr:
    grown = op("mul", op("expm1", op("mul", x, number(x, input_scale))), number(x, alpha * scale))
    return op("select", op("gt", x, number(x, 0)), op("mul", x, number(x, scale)), grown)


def _div(a: Expr, b: Expr) -> Expr:
    return op("div", a, b)


def _pow(x: Expr, n: float) -> Expr:
    if n == 2:
        return _mul(x, x)
    if n == 3:
        return op("mul", op("mul", x, x), x)
    if n == 1:
        return x
    named = {0.5: "sqrt", -0.5: "rsqrt", -1: "recip"}
    if n in named and x.dtype.is_float:
        return op(named[n], x)
    return op("pow", x, number(x, n))


def _not(x: Expr) -> Expr:
    return op("not", x)


def _bitwise(boolean: str, whole: str) -> Element:
    return lambda *args: op(boolean if args[0].dtype.is_bool else whole, *args)


def _clamp_tensor(x: Expr, low: Expr | None = None, high: Expr | None = None) -> Expr:
    x = x if low is None else _max(x, low)
    return x if high is None else _min(x, high)


def _known(name: str) -> Element:
    """fmax, fmin: of a NaN and a number, the number."""

    def element(a: Expr, b: Expr) -> Expr:
        if not a.dtype.is_float:
            return (_max if name == "max" else _min)(a, b)
        rest = op("select", op("isnan", b), a, op(name, a, b))
        return op("select", op("isnan", a), b, rest)

    return element


def _asinh(x: Expr) -> Expr:
    """log1p(a + a^2 / (1 + sqrt(a^2 + 1))), a = |x|; log(2a) where the square overflows."""
    a, one = op("abs", x), number(x, 1)
    square = op("mul", a, a)
    near = op("log1p", op("add", a, op("div", square, op("add", one, op("sqrt", op(
        "add", square, one))))))  # fmt: skip
    far = op("add", op("log", a), number(x, math.log(2)))
    found = op("select", op("gt", a, number(x, 1e9)), far, near)
    return op("select", op("lt", x, number(x, 0)), op("neg", found), found)


def _acosh(x: Expr) -> Expr:
    t = op("sub", x, number(x, 1))
    root = op("sqrt", op("add", op("mul", number(x, 2), t), op("mul", t, t)))
    far = op("add", op("log", x), number(x, math.log(2)))
    near = op("log1p", op("add", t, root))
    return op("select", op("gt", x, number(x, 1e9)), far, near)


def _atanh(x: Expr) -> Expr:
    ratio = op("div", op("mul", number(x, 2), x), op("sub", number(x, 1), x))
    return op("mul", number(x, 0.5), op("log1p", ratio))


def _log10(x: Expr) -> Expr:
    return op("mul", op("log2", x), number(x, math.log10(2)))


POINTWISE: dict[str, Pointwise] = {
    "clamp.Tensor": Pointwise(_clamp_tensor, operands=3),
    "clamp_min.Tensor": Pointwise(_max, operands=2),
    "clamp_max.Tensor": Pointwise(_min, operands=2),
    "fmax.default": Pointwise(_known("max"), operands=2),
    "fmin.default": Pointwise(_known("min"), operands=2),
    "logical_xor.default": Pointwise(_op("ne"), "BOOL", operands=2),
    "bitwise_xor.Tensor": Pointwise(_bitwise("ne", "bit_xor"), operands=2),
    "asinh.default": Pointwise(_asinh, "INT_TO_FLOAT", True),
    "acosh.default": Pointwise(_acosh, "INT_TO_FLOAT", True),
    "atanh.default": Pointwise(_atanh, "INT_TO_FLOAT", True),
    "log10.default": Pointwise(_log10, "INT_TO_FLOAT", True),
    "pow.Scalar": Pointwise(_op("pow"), heavy=True, operands=2),
    "add.Tensor": Pointwise(added, operands=2),
    "add.Scalar": Pointwise(added, operands=2),
    "sub.Tensor": Pointwise(_sub, operands=2),
    "sub.Scalar": Pointwise(_sub, operands=2),
    "rsub.Scalar": Pointwise(lambda a, b, alpha=1: _sub(b, a, alpha), operands=2),
    "mul.Tensor": Pointwise(_mul, operands=2),
    "mul.Scalar": Pointwise(_mul, operands=2),
    "div.Tensor": Pointwise(_div, "INT_TO_FLOAT", operands=2),
    "div.Scalar": Pointwise(_div, "INT_TO_FLOAT", operands=2),
    "neg.default": Pointwise(_op("neg")),
    "abs.default": Pointwise(_op("abs")),
    "sign.default": Pointwise(lambda x: x if x.dtype.is_bool else op("sign", x)),
    "maximum.default": Pointwise(_max, operands=2),
    "minimum.default": Pointwise(_min, operands=2),
    "relu.default": Pointwise(_relu),
    "hardtanh.default": Pointwise(_hardtanh),
    "leaky_relu.default": Pointwise(_leaky_relu),
    "elu.default": Pointwise(_elu, heavy=True),
    "gelu.default": Pointwise(_gelu, heavy=True),
    "silu.default": Pointwise(_silu, heavy=True),
    "clamp.default": Pointwise(_clamp),
    "clamp_min.default": Pointwise(lambda x, low: _clamp(x, low)),
    "clamp_max.default": Pointwise(lambda x, high: _clamp(x, None, high)),
    "floor.default": Pointwise(_rounded("floor")),
    "ceil.default": Pointwise(_rounded("ceil")),
    "trunc.default": Pointwise(_rounded("trunc")),
    "round.default": Pointwise(_rounded("round")),
    "reciprocal.default": Pointwise(_op("recip"), "INT_TO_FLOAT"),
    "sqrt.default": _unary("sqrt"),
    "rsqrt.default": _unary("rsqrt"),
    "exp.default": _unary("exp"),
    "exp2.default": _unary("exp2"),
    "expm1.default": _unary("expm1"),
    "log.default": _unary("log"),
    "log2.default": _unary("log2"),
    "log1p.default": _unary("log1p"),
    "sin.default": _unary("sin"),
    "cos.default": _unary("cos"),
    "tan.default": _unary("tan"),
    "asin.default": _unary("asin"),
    "acos.default": _unary("acos"),
    "atan.default": _unary("atan"),
    "atan2.default": Pointwise(_op("atan2"), "INT_TO_FLOAT", True, 2),
    "sinh.default": _unary("sinh"),
    "cosh.default": _unary("cosh"),
    "tanh.default": _unary("tanh"),
    "erf.default": _unary("erf"),
    "sigmoid.default": _unary("sigmoid"),
    "pow.Tensor_Scalar": Pointwise(_pow, heavy=True),
    "pow.Tensor_Tensor": Pointwise(_op("pow"), heavy=True, operands=2),
    "square.default": Pointwise(lambda x: _mul(x, x)),
    "where.self": Pointwise(_where, "WHERE", operands=3),
    "eq.Tensor": _compare("eq"),
    "eq.Scalar": _compare("eq"),
    "ne.Tensor": _compare("ne"),
    "ne.Scalar": _compare("ne"),
    "lt.Tensor": _compare("lt"),
    "lt.Scalar": _compare("lt"),
    "le.Tensor": _compare("le"),
    "le.Scalar": _compare("le"),
    "gt.Tensor": _compare("gt"),
    "gt.Scalar": _compare("gt"),
    "ge.Tensor": _compare("ge"),
    "ge.Scalar": _compare("ge"),
    "logical_not.default": Pointwise(_not, "BOOL"),
    "logical_and.default": Pointwise(_op("and"), "BOOL", operands=2),
    "logical_or.default": Pointwise(_op("or"), "BOOL", operands=2),
    "bitwise_not.default": Pointwise(_bitwise("not", "bit_not")),
    "bitwise_and.Tensor": Pointwise(_bitwise("and", "bit_and"), operands=2),
    "bitwise_or.Tensor": Pointwise(_bitwise("or", "bit_or"), operands=2),
    "isnan.default": Pointwise(_of_float("isnan"), "BOOL_OF"),
    "isinf.default": Pointwise(_of_float("isinf"), "BOOL_OF"),
}
"""ATen's name -> the row. Kinds beside torch's: WHERE (the first operand is a bool and takes no
part in promotion), BOOL (operands are made bools), BOOL_OF (a bool of an operand as it is)."""

Structural = Callable[..., Value | tuple[Value | None, ...]]
"""A function of the lowering, then the operands as ATen passes them."""


def wide_of(dtype: DType) -> DType:
    """The dtype in which torch sums a float."""
    from kir.dtypes import f32

    return f32 if dtype.is_float and dtype.bits < 32 else dtype


def axes_of(given: Any, rank: int) -> list[int]:
    """Axes as torch gives them (an int, a list, None for all), from 0."""
    if given is None or (isinstance(given, Sequence) and not given):
        return list(range(rank))
    listed = [given] if isinstance(given, int) else list(given)
    return [a % rank if rank else 0 for a in listed] if rank else []
