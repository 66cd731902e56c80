"""What a case is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kir.cost import cost
from kir.ir import Kernel
from kir.specialise import bind_defaults, input_shapes, output_shapes, specialise
from kir.syntax import load, parse

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
GROUPS = (
    "matmul f32", "matmul bf16", "matmul i8", "conv", "rows", "pointwise", "reduction",
    "gather", "scan", "pool", "transpose", "attention", "lstm",
)  # fmt: skip
MEMORY = frozenset(("rows", "pointwise", "reduction", "gather", "scan", "pool", "transpose"))
"""The groups that memory limits, whose goal is a share of a copy's bandwidth."""

Dims = Mapping[str, int]
Fill = Callable[["np.random.Generator", tuple[int, ...]], Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A kernel at given dims.

    `function` is PyTorch's, of tensors in the order of the kernel's inputs; it gives the outputs
    in order (a tensor where there is one). `flops` are the floating-point operations that the
    sum of products needs (0: memory alone limits the case). `moved` are the bytes that must move
    where they are not all inputs once and all outputs once. `fills` override the random values of
    an input. `cold`: inputs and outputs are larger than 32 MiB, so that they come from memory;
    else they may stay in a cache from call to call, on all sides alike.
    """

    name: str
    group: str
    file: str
    dims: Dims
    function: Callable[..., Any]
    flops: float = 0.0
    kernel_name: str = ""
    moved: int | None = None
    fills: Mapping[str, Fill] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        own = HERE / f"{self.file}.kir"
        return own if own.exists() else EXAMPLES / f"{self.file}.kir"

    def spec(self) -> Kernel:
        """The kernel as written, dims symbolic."""
        kernels = parse(load(self.path)).kernels()
        return kernels[self.kernel_name] if self.kernel_name else next(iter(kernels.values()))

    def kernel(self) -> Kernel:
        """The kernel with all dims constant."""
        return specialise(self.spec(), self.dims)

    @property
    def bytes(self) -> int:
        """That must move at the least: inputs read once, outputs written once."""
        if self.moved is not None:
            return self.moved
        spec = self.spec()
        bound = bind_defaults(spec, self.dims)
        shapes = {**input_shapes(spec, bound), **output_shapes(spec, bound)}
        return sum(math.prod(shapes[p.name]) * p.type.bytes for p in spec.params)

    @property
    def written(self) -> int:
        """Of these bytes, those of the outputs."""
        spec = self.spec()
        shapes = output_shapes(spec, bind_defaults(spec, self.dims))
        return sum(math.prod(shapes[p.name]) * p.type.bytes for p in spec.outputs)

    @property
    def operations(self) -> float:
        """`flops`, or all operations on elements that the kernel's text states."""
        return self.flops or float(
            cost(self.spec(), bind_defaults(self.spec(), self.dims)).operations
        )

    @property
    def cold(self) -> bool:
        return self.bytes > 1 << 25
