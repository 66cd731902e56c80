"""From an artifact's launch description and a call's arrays to sizes: shared by what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact
from kir.dtypes import DTYPES
from kir.errors import InputDataError
from kir.ir import Param
from kir.specialise import infer_dims, output_shapes

NDArray = np.ndarray[Any, Any]
INDEX_OPS: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "cdiv": lambda a, b: -(-a // b) if b else 0,
    "neg": lambda a: -a,
    "max": max,
    "min": min,
}


def evaluate(data: Any, dims: Mapping[str, int]) -> int:
    """The value of an index expression in its JSON form; KeyError for what is unknown."""
    if isinstance(data, int):
        return data
    if isinstance(data, str):
        return dims[data]
    name, *args = data
    return int(INDEX_OPS[name](*(evaluate(a, dims) for a in args)))


@dataclass(frozen=True)
class Call:
    """One call: every dim, and an array for every tensor (outputs and temporaries are fresh
    unless given)."""

    dims: dict[str, int]
    tensors: dict[str, NDArray]

    def grid(self, kernel: Mapping[str, Any]) -> int:
        """How many programs a launch has; 0 means it is skipped."""
        blocks = 1
        for n in kernel["grid"]:
            blocks *= evaluate(n, self.dims)
        return blocks


def prepare(
    artifact: Artifact,
    inputs: Arrays,
    dims: Mapping[str, int] | None,
    outputs: Arrays | None,
) -> Call:
    """Check the arrays and size what they do not give. InputDataError or ConstraintError where
    they do not fit the kernel."""
    kernel = artifact.kernel
    tensors = {p.name: _checked(p, inputs) for p in kernel.inputs}
    found = infer_dims(kernel, {n: a.shape for n, a in tensors.items()}, dims)
    for name, shape in output_shapes(kernel, found).items():
        p = next(x for x in kernel.outputs if x.name == name)
        given = None if outputs is None else outputs.get(name)
        if given is None:
            tensors[name] = np.zeros(shape, p.type.numpy)
            continue
        if given.shape != shape or given.dtype != p.type.numpy or not given.flags.c_contiguous:
            raise InputDataError(f"`{name}` must be a row-major {p.type}{list(shape)}", node=p)
        tensors[name] = given
    for t in artifact.launch["temporaries"]:
        shape = tuple(evaluate(n, found) for n in t["shape"])
        tensors[t["name"]] = np.zeros(shape, DTYPES[t["dtype"]].numpy)
    return Call(found, tensors)


def _checked(p: Param, inputs: Arrays) -> NDArray:
    if p.name not in inputs:
        raise InputDataError(f"the input `{p.name}` is missing", node=p)
    array = np.asarray(inputs[p.name])
    if array.dtype != p.type.numpy:
        raise InputDataError(f"`{p.name}` is {array.dtype}, not {p.type}", node=p)
    return np.ascontiguousarray(array).reshape(array.shape)
