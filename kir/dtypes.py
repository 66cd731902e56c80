"""The element types of KIR: one frozen record each.

Floats are IEEE 754 (`f8e4m3` is the "fn" variant of OCP MX/PyTorch: no infinities, NaN on
overflow). NumPy holds them through `ml_dtypes` where it has none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import ml_dtypes
import numpy as np

Kind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True)
class DType:
    """A scalar type. `bits` is its width in memory (bool takes one byte, like NumPy's)."""

    name: str
    kind: Kind
    bits: int
    mantissa: int = 0
    """Bits of precision of a float, the hidden one included (24 for f32)."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next float; 0 for what is exact."""
        return 2.0**-self.mantissa if self.is_float else 0.0

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(_NUMPY[self.name])
        return found

    def limits(self) -> tuple[int, int]:
        """The least and greatest value of an integer type."""
        if self.kind == "int":
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        if self.kind == "uint":
            return 0, (1 << self.bits) - 1
        raise ValueError(f"{self} is not an integer type")

    def holds(self, value: int) -> bool:
        """Whether an integer literal is representable in this integer type."""
        low, high = self.limits()
        return low <= value <= high


f64 = DType("f64", "float", 64, 53)
f32 = DType("f32", "float", 32, 24)
f16 = DType("f16", "float", 16, 11)
bf16 = DType("bf16", "float", 16, 8)
f8e4m3 = DType("f8e4m3", "float", 8, 4)
f8e5m2 = DType("f8e5m2", "float", 8, 3)
i8, i16, i32, i64 = (DType(f"i{b}", "int", b) for b in (8, 16, 32, 64))
u8, u16, u32, u64 = (DType(f"u{b}", "uint", b) for b in (8, 16, 32, 64))
bool_ = DType("bool", "bool", 8)

DTYPES: dict[str, DType] = {
    t.name: t
    for t in (f64, f32, f16, bf16, f8e4m3, f8e5m2, i8, i16, i32, i64, u8, u16, u32, u64, bool_)
}
FLOATS = tuple(t for t in DTYPES.values() if t.is_float)
INTEGERS = tuple(t for t in DTYPES.values() if t.is_integer)
NARROW_FLOATS = (f16, bf16, f8e4m3, f8e5m2)
"""Floats whose sums and products accumulate in f32 unless the text says otherwise."""

_NUMPY: dict[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
    "bool": np.bool_,
    **{f"i{b}": np.dtype(f"int{b}") for b in (8, 16, 32, 64)},
    **{f"u{b}": np.dtype(f"uint{b}") for b in (8, 16, 32, 64)},
}


def from_numpy(dtype: Any) -> DType:
    """The KIR type of a NumPy (or ml_dtypes) dtype; KeyError where there is none."""
    wanted = np.dtype(dtype)
    for found in DTYPES.values():
        if found.numpy == wanted:
            return found
    raise KeyError(str(wanted))
