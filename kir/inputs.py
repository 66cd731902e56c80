"""Random inputs that a kernel accepts: values in range, indices within what they index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kir.dtypes import DType
from kir.errors import InputDataError
from kir.ir import Buffer, Cast, Expr, Graph, Kernel, Module, Read, Store, walk
from kir.specialise import evaluate, free_dims

Array = np.ndarray[Any, Any]


def index_bounds(item: Kernel | Graph, module: Module | None = None) -> dict[str, list[Expr]]:
    """Inputs whose values index tensors -> the extents that those values must stay below.

    Follows an index through casts, and through the calls of a graph.
    """
    if isinstance(item, Graph):
        found: dict[str, list[Expr]] = {}
        kernels = module.kernels() if module else {}
        for call in item.calls:
            kernel = kernels[call.kernel]
            inner = index_bounds(kernel)
            names = {p.name: arg for p, arg in zip(kernel.inputs, call.args)}
            shapes = {p.name: p.shape for p in item.inputs}
            for name, extents in inner.items():
                found.setdefault(names[name], []).extend(
                    _in_caller(kernel, names, shapes, e) for e in extents
                )
        return found
    dims = {d.name for d in item.dims}
    shapes = {b.name: b.shape for b in walk(item) if isinstance(b, Buffer)}
    shapes = {n: shape for n, shape in shapes.items() if all(free_dims(e) <= dims for e in shape)}
    shapes |= {p.name: p.shape for p in item.params}
    inputs = {p.name for p in item.inputs}
    bounds: dict[str, list[Expr]] = {}
    for node in walk(item):
        if isinstance(node, Read | Store):
            tensor = node.tensor if isinstance(node, Read) else node.target
            for position, index in enumerate(node.indices):
                for name in _indirect(index, inputs):
                    if tensor in shapes:
                        bounds.setdefault(name, []).append(shapes[tensor][position])
    return bounds


def _in_caller(
    kernel: Kernel, names: Mapping[str, str], shapes: Mapping[str, tuple[Expr, ...]], extent: Expr
) -> Expr:
    """An extent of the callee in the caller's dims: that of the tensor it was declared on."""
    for param in kernel.inputs:
        for mine, theirs in zip(param.shape, shapes.get(names[param.name], ())):
            if mine == extent:
                return theirs
    return extent


def _indirect(index: Expr, inputs: set[str]) -> set[str]:
    while isinstance(index, Cast):
        index = index.value
    return {index.tensor} if isinstance(index, Read) and index.tensor in inputs else set()


def random_array(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Normal floats, small integers, fair bools: what a benchmark or a first run wants."""
    if dtype.is_float:
        return rng.standard_normal(shape, np.float32).astype(dtype.numpy)
    if dtype.is_bool:
        return rng.integers(0, 2, shape).astype(np.bool_)
    low, high = dtype.limits()
    return rng.integers(max(low, -100), min(high, 100), shape, endpoint=True).astype(dtype.numpy)


def random_inputs(
    item: Kernel | Graph,
    dims: Mapping[str, int],
    seed: int = 0,
    module: Module | None = None,
) -> dict[str, Array]:
    """One random array per input. InputDataError where an index has no value it could take."""
    rng = np.random.default_rng(seed)
    bounds = index_bounds(item, module)
    arrays = {}
    for param in item.inputs:
        shape = tuple(int(evaluate(e, dims)) for e in param.shape)
        extents = [int(evaluate(e, dims)) for e in bounds.get(param.name, [])]
        if not extents:
            arrays[param.name] = random_array(param.type, shape, rng)
            continue
        if min(extents) == 0 and np.prod(shape) > 0:
            raise InputDataError(f"`{param.name}` indexes a tensor that has no elements")
        below = max(1, min(extents))
        arrays[param.name] = rng.integers(0, below, shape).astype(param.type.numpy)
    return arrays
