"""The op table of this backend: how each op of `kir.ops.OPS` is written in Triton.

A handler gets the sources of its operands, typed and at common axes, and the dtype of its
operands; narrow floats arrive as f32 and the caller rounds the result. INFIX ops are written with
Python's operator; a literal beside a typed operand stays bare.
"""

from __future__ import annotations

from collections.abc import Callable

from kir.backends.triton.types import held
from kir.dtypes import DType

LIBDEVICE = ("exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tan", "asin", "acos",
             "atan", "sinh", "cosh", "tanh", "erf")  # fmt: skip
"""Ops of one operand that libdevice has under the same name."""
Handler = Callable[[list[str], DType], str]

INFIX = {"add": "+", "sub": "-", "mul": "*", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
         "gt": ">", "ge": ">=", "bit_and": "&", "bit_or": "|", "bit_xor": "^"}  # fmt: skip
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
EXACT = {"neg", "abs", "sign", "max", "min", "select", "floor", "ceil", "round", "trunc"}
"""Ops whose result on narrow floats needs no rounding (beside those that give no float)."""
NAN_MAX = "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"
NAN_MIN = "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"


def _call(template: str) -> Handler:
    return lambda a, dtype: template.format(*a)


def _signed(signed: str, unsigned: str) -> Handler:
    def write(a: list[str], dtype: DType) -> str:
        return (unsigned if dtype.kind == "uint" else signed).format(*a)

    return write


def _float(floats: str, others: str) -> Handler:
    return lambda a, dtype: (floats if dtype.is_float else others).format(*a)


def _extreme(nan: str, helper: str, plain: str) -> Handler:
    def write(a: list[str], dtype: DType) -> str:
        if not dtype.is_float:
            return plain.format(*a)
        return (helper if dtype.bits == 64 else nan).format(*a)

    return write


def _one(a: list[str], dtype: DType, template: str) -> str:
    return template.format(*a, one=f"tl.full([], 1.0, {held(dtype).value})")


HANDLERS: dict[str, Handler] = {
    "div": _call("divide({0}, {1})"),
    "neg": _float("({0} * -1.0)", "(-{0})"),
    "fma": _call("tl.fma({0}, {1}, {2})"),
    "floordiv": _signed("floordiv({0}, {1})", "udiv({0}, {1})"),
    "mod": _signed("mod({0}, {1})", "umod({0}, {1})"),
    "cdiv": _signed("cdiv({0}, {1})", "ucdiv({0}, {1})"),
    "tdiv": _signed("tdiv({0}, {1})", "udiv({0}, {1})"),
    "trem": _signed("trem({0}, {1})", "umod({0}, {1})"),
    "max": _extreme(NAN_MAX, "max_nan({0}, {1})", "tl.maximum({0}, {1})"),
    "min": _extreme(NAN_MIN, "min_nan({0}, {1})", "tl.minimum({0}, {1})"),
    "abs": _signed("tl.abs({0})", "{0}"),
    "sign": _float("fsign({0})", "sign({0})"),
    "and": _call("({0} & {1})"),
    "or": _call("({0} | {1})"),
    "not": _call("({0} == False)"),
    "select": _call("tl.where({0}, {1}, {2})"),
    "bit_not": _call("(~{0})"),
    "shl": _call("shl({0}, {1})"),
    "shr": _signed("shr({0}, {1})", "ushr({0}, {1})"),
    "floor": _call("tl.floor({0})"),
    "ceil": _call("tl.ceil({0})"),
    "round": _call("libdevice.rint({0})"),
    "trunc": _call("libdevice.trunc({0})"),
    "sqrt": _call("square_root({0})"),
    "rsqrt": lambda a, t: _one(a, t, "divide({one}, square_root({0}))"),
    "recip": lambda a, t: _one(a, t, "divide({one}, {0})"),
    "sigmoid": _call("sigmoid({0})"),
    "isnan": _call("({0} != {0})"),
    "isinf": _call('(tl.abs({0}) == float("inf"))'),
    "philox": _call("philox({0}, {1})"),
    "rand": _call("rand({0}, {1})"),
    **{name: _call(f"libdevice.{name}({{0}})") for name in LIBDEVICE},
    "pow": _call("libdevice.pow({0}, {1})"),
    "atan2": _call("libdevice.atan2({0}, {1})"),
}
