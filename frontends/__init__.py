"""Roads into the IR: index notation in Python (`kernel`), and `einsum`."""

from kir.frontends.builder import TYPES, Builder, Type, kernel
from kir.frontends.einsum import einsum

f64, f32, f16, bf16 = (TYPES[n] for n in ("f64", "f32", "f16", "bf16"))
f8e4m3, f8e5m2 = TYPES["f8e4m3"], TYPES["f8e5m2"]
i8, i16, i32, i64 = (TYPES[n] for n in ("i8", "i16", "i32", "i64"))
u8, u16, u32, u64 = (TYPES[n] for n in ("u8", "u16", "u32", "u64"))
boolean = TYPES["bool"]

__all__ = [
    "TYPES",
    "Builder",
    "Type",
    "bf16",
    "boolean",
    "einsum",
    "f8e4m3",
    "f8e5m2",
    "f16",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "kernel",
    "u8",
    "u16",
    "u32",
    "u64",
]
