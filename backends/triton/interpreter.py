"""Repairs to Triton's interpreter, so that it computes what the compiled code does.

As of Triton 3.9 it truncates where it should round to bf16, multiplies the bits of bf16 operands
in a product, has no libdevice, takes small integers for 32-bit ones, splats comparisons of scalars
as numbers, and walks custom reductions element by element in Python; 3.6 rounds `fma` twice too.
Each repair stands in for a piece of the hardware, as its own use of
NumPy does. This module is imported only in the worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from kir.ops import OPS

_NARROW: dict[Any, Any] = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
}
_REDUCE: dict[str, Any] = {
    "add_of": np.add,
    "mul_of": np.multiply,
    "and_of": np.bitwise_and,
    "or_of": np.bitwise_or,
    "max_of": np.maximum,
    "min_of": np.minimum,
    "max_nan": np.maximum,
    "min_nan": np.minimum,
}


def _decoded(data: Any, dtype: Any) -> Any:
    """The array as numbers, where its bits stand for a narrow float."""
    narrow = _NARROW.get(dtype.scalar)
    return data if narrow is None else np.ascontiguousarray(data).view(narrow)


def _convert_float(data: Any, old: Any, new: Any, rounding: Any) -> Any:
    """Between float types, to nearest even; gives the bits where NumPy has no such type."""
    wide = _decoded(data, old).astype(np.float64 if old.primitive_bitwidth == 64 else np.float32)
    to = _NARROW.get(new.scalar, interpreter._get_np_dtype(new))
    bits = np.dtype(f"uint{np.dtype(to).itemsize * 8}")
    return wide.astype(to).view(bits)


def _dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    wide = np.int64 if d.data.dtype.kind == "i" else np.float64
    product = np.matmul(
        _decoded(a.data, a.dtype).astype(wide), _decoded(b.data, b.dtype).astype(wide)
    )
    return interpreter.TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


def _binary(original: Callable[..., Any]) -> Callable[..., Any]:
    """A comparison is an `int1`, not of its operands' type (which a splat would turn it into)."""

    def apply(self: Any, *args: Any) -> Any:
        made = original(self, *args)
        is_bool = made.data.dtype == np.bool_
        return interpreter.TensorHandle(made.data, tl.int1) if is_bool else made

    return apply


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """One rounding, which older interpreters do not give."""
    made = OPS["fma"].numpy(*np.broadcast_arrays(x.data, y.data, z.data))
    return interpreter.TensorHandle(made.astype(z.data.dtype), z.dtype.scalar)


def _all_ones(self: Any, type: Any) -> Any:
    made = np.invert(np.zeros(1, interpreter._get_np_dtype(type)))
    return interpreter.TensorHandle(made, type.scalar)


def _indexable(original: Callable[..., None]) -> Callable[..., None]:
    """A scalar bounds a `range`: older interpreters convert an array of one element, which NumPy
    no longer does."""

    def patch(tensor: Any, *rest: Any) -> None:
        original(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    return patch


def _implicit(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(arg: Any) -> Any:
        if type(arg) is int:
            handle = interpreter.TensorHandle(np.array([arg], np.int64), tl.int64)
            return tl.tensor(handle, tl.int64)
        return original(arg)

    return convert


def _reduce(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(self: Any, inputs: Any) -> Any:
        function = getattr(self.combine_fn, "fn", self.combine_fn)
        ufunc = _REDUCE.get(getattr(function, "__name__", ""))
        if ufunc is None:
            return original(self, inputs)
        (x,) = inputs
        data = x.handle.data
        out = ufunc.reduce(data, axis=self.axis, keepdims=self.keep_dims, dtype=data.dtype)
        return self.to_tensor(out, x.dtype)

    return apply


def repair() -> None:
    """Apply the repairs to the interpreter in this process."""
    builder = interpreter.InterpreterBuilder
    interpreter._convert_float = _convert_float
    builder.create_dot = _dot
    builder.create_fma = _fma
    builder.get_all_ones_value = _all_ones
    builder.binary_op = _binary(builder.binary_op)
    interpreter._patch_lang_tensor = _indexable(interpreter._patch_lang_tensor)
    interpreter._implicit_cvt = _implicit(interpreter._implicit_cvt)
    interpreter.ReduceOps.apply_impl = _reduce(interpreter.ReduceOps.apply_impl)
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(
        sanitize_overflow=False
    )


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """A libdevice function: computed in f64 and rounded once."""

    def apply(*args: Any) -> Any:
        first = args[0]
        data = [a.handle.data for a in args]
        out = np.asarray(function(*(d.astype(np.float64) for d in data)))
        shape = np.broadcast_shapes(*(d.shape for d in data))
        handle = interpreter.TensorHandle(
            np.broadcast_to(out, shape).astype(data[0].dtype), first.dtype
        )
        widest = max(args, key=lambda a: len(a.shape))
        return tl.tensor(handle, widest.type)

    return apply


LIBDEVICE = SimpleNamespace(
    rint=_elementwise(np.rint),
    trunc=_elementwise(np.trunc),
    exp=_elementwise(np.exp),
    exp2=_elementwise(np.exp2),
    expm1=_elementwise(np.expm1),
    log=_elementwise(np.log),
    log2=_elementwise(np.log2),
    log1p=_elementwise(np.log1p),
    sin=_elementwise(np.sin),
    cos=_elementwise(np.cos),
    tan=_elementwise(np.tan),
    asin=_elementwise(np.arcsin),
    acos=_elementwise(np.arccos),
    atan=_elementwise(np.arctan),
    atan2=_elementwise(np.arctan2),
    sinh=_elementwise(np.sinh),
    cosh=_elementwise(np.cosh),
    tanh=_elementwise(np.tanh),
    pow=_elementwise(np.power),
    erf=_elementwise(np.vectorize(math.erf, otypes=[np.float64])),
)


def prepare(module: ModuleType) -> ModuleType:
    """Give a generated module the libdevice it imports, and spare its helpers the cost of being
    entered as kernels."""
    if hasattr(module, "libdevice"):
        module.__dict__["libdevice"] = LIBDEVICE
    helpers = [
        name
        for name, f in vars(module).items()
        if isinstance(f, interpreter.InterpretedFunction) and _is_helper(name)
    ]
    for name in helpers:
        module.__dict__[name] = module.__dict__[name].rewrite()
    return module


def _is_helper(name: str) -> bool:
    from kir.backends.triton.prelude import HELPERS

    return name in HELPERS
