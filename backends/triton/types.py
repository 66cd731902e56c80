"""How a KIR dtype is held: in memory (the pointer's element) and as a value in registers.

Values of f16, bf16 and the fp8 types are held as f32 that are exactly representable in the
narrow type, and rounded after each operation: the arithmetic is then right on every target,
and a cast to f32 costs nothing. bool and fp8 live in memory as bytes (`int8`, `uint8`), since
not every target has the fp8 types and Triton's `int1` pointers are best avoided.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.dtypes import DType


@dataclass(frozen=True)
class Held:
    """`value`: the Triton type of a register value; `memory`: of an element in memory;
    `pointer`: Triton's signature name of the pointer; `torch`: the torch dtype in memory."""

    value: str
    memory: str
    pointer: str
    torch: str


TYPES: dict[str, Held] = {
    "f64": Held("tl.float64", "tl.float64", "*fp64", "float64"),
    "f32": Held("tl.float32", "tl.float32", "*fp32", "float32"),
    "f16": Held("tl.float32", "tl.float16", "*fp16", "float16"),
    "bf16": Held("tl.float32", "tl.bfloat16", "*bf16", "bfloat16"),
    "f8e4m3": Held("tl.float32", "tl.uint8", "*u8", "uint8"),
    "f8e5m2": Held("tl.float32", "tl.uint8", "*u8", "uint8"),
    "bool": Held("tl.int1", "tl.int8", "*i8", "int8"),
    **{f"i{b}": Held(f"tl.int{b}", f"tl.int{b}", f"*i{b}", f"int{b}") for b in (8, 16, 32, 64)},
    **{f"u{b}": Held(f"tl.uint{b}", f"tl.uint{b}", f"*u{b}", f"uint{b}") for b in (8, 16, 32, 64)},
}
DOT_TYPES = {
    "f16": "tl.float16",
    "bf16": "tl.bfloat16",
    "f8e4m3": "tl.float8e4nv",
    "f8e5m2": "tl.float8e5",
}


def held(dtype: DType) -> Held:
    return TYPES[dtype.name]
