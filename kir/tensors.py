"""Tensors by name in a safetensors file: a header of JSON, then bytes. Nothing in it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kir.dtypes import DTYPES
from kir.errors import FileError, MissingExtraError

NDArray = np.ndarray[Any, Any]
NAMES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8e4m3",
    "F8_E5M2": "f8e5m2", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8", "U64": "u64",
    "U32": "u32", "U16": "u16", "U8": "u8", "BOOL": "bool",
}  # fmt: skip
"""The file's dtype -> KIR's."""


def package() -> Any:
    """The module `safetensors`; MissingExtraError where it is not installed."""
    try:
        import safetensors
    except ImportError:
        raise MissingExtraError(
            "weights are in a safetensors file, and the package safetensors is not installed",
            hint="pip install 'kir[safetensors]'",
        ) from None
    return safetensors


def read(path: str | Path) -> dict[str, NDArray]:
    """FileError where it is not there or no such file; MissingExtraError without the package."""
    safetensors = package()
    try:
        found = safetensors.deserialize(Path(path).read_bytes())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", hint="check the path") from None
    except safetensors.SafetensorError as error:
        raise FileError(f"{path} is no safetensors file: {error}") from None
    made: dict[str, NDArray] = {}
    for name, tensor in found:
        dtype = DTYPES.get(NAMES.get(tensor["dtype"], ""))
        if dtype is None:
            raise FileError(f"`{name}` of {path} is {tensor['dtype']}, which KIR has not")
        made[name] = np.frombuffer(tensor["data"], dtype.numpy).reshape(tensor["shape"])
    return made
