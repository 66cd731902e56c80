"""One launch: a grid of programs, as one Triton function."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kir.backends.triton.scope import MemoryBuffer, conjuncts
from kir.backends.triton.statements import Statements
from kir.backends.triton.types import held
from kir.dtypes import DType
from kir.ir import Axis, Buffer, Expr, Kernel, Loop, Read, Stmt, Store, const
from kir.ops import op
from kir.syntax import format_expr


@dataclass(frozen=True)
class Argument:
    """`kind`: `tensor` (of the kernel, or a temporary), `scratch`, `dim` or `index` (of a loop on
    the host); `name` is the IR's name, `parameter` the Python one, `type` the signature's."""

    kind: str
    name: str
    parameter: str
    type: str


@dataclass(frozen=True)
class ScratchArgument:
    """Memory to allocate for a launch: `size` elements for each program."""

    name: str
    type: DType
    size: Expr


@dataclass(frozen=True)
class Function:
    name: str
    source: str
    grid: tuple[Expr, ...]
    arguments: tuple[Argument, ...]
    scratch: tuple[ScratchArgument, ...]
    hints: Mapping[str, int] = field(default_factory=dict)


class Program(Statements):
    """Writes the function of one launch from the statements `body`; a `grid` nest or others."""

    def __init__(
        self,
        kernel: Kernel,
        body: Sequence[Stmt],
        temporaries: Sequence[Buffer],
        host_indices: Mapping[str, Expr],
    ) -> None:
        super().__init__(kernel, body)
        self.body = tuple(body)
        self.grid: list[Loop] = []
        for name in [d.name for d in kernel.dims] + list(host_indices):
            self.scalars[name] = self.names.fresh(name)
        self.extents.update(host_indices)
        self.host_indices = dict(host_indices)
        tensors = [(p.name, p.type, p.shape) for p in kernel.params]
        tensors += [(b.name, b.type, b.shape) for b in temporaries]
        self.memory: dict[str, MemoryBuffer] = {}
        for name, dtype, shape in tensors:
            self.memory[name] = MemoryBuffer(self.names.fresh(name), dtype, shape)
        self.tensors.update(self.memory)
        for name in self.memory:
            uses = self.uses.get(name, [])
            stored = any(isinstance(u.node, Store) for u in uses)
            read = any(isinstance(u.node, Read) or u.update for u in uses)
            if stored and read:
                self.read_and_written.add(name)

    def grid_names(self) -> set[str]:
        return {loop.axis.name for loop in self.grid}

    def function(self, name: str) -> Function:
        inner: Sequence[Stmt] = self.body
        where: list[Expr] = []
        while len(inner) == 1 and isinstance(inner[0], Loop) and inner[0].kind == "grid":
            loop = inner[0]
            self.grid.append(loop)
            where += conjuncts(loop.where)
            inner = loop.body
            if loop.where:
                break
        hints = {k: v for loop in reversed(self.grid) for k, v in loop.hints}
        for tensor, memory in self.memory.items():
            if tensor in self.uses:
                for place, extent in enumerate(memory.shape):
                    if place:
                        self.name_dim(extent, f"{tensor}_dim")
        if self.grid:
            self.program = self.names.fresh("program")
            self.line(f"{self.program} = tl.cast(tl.program_id(0), tl.int64)")
            self.unflatten(hints.get("group"))
        self.guarded(where, inner)
        return self.finish(name, hints)

    def unflatten(self, group: int | None) -> None:
        """The grid's indices from the number of the program, the last varying fastest."""
        axes = [loop.axis for loop in self.grid]
        for axis in axes:
            self.name_dim(axis.extent, f"{axis.name}_count")
        names = [self.names.fresh(a.name) for a in axes]
        for axis, name in zip(axes, names, strict=True):
            self.scalars[axis.name] = name
            self.extents[axis.name] = axis.extent
        rest = self.program
        if group is not None and group > 1 and len(axes) >= 2:
            rest = self.grouped(axes, names, group)
            axes, names = axes[:-2], names[:-2]
        for k in reversed(range(len(axes))):
            if axes[k].extent == const(1):
                self.line(f"{names[k]} = tl.full([], 0, tl.int64)")
                continue
            if all(a.extent == const(1) for a in axes[:k]):
                self.line(f"{names[k]} = {rest}")
                continue
            extent = self.dim(axes[k].extent)
            self.line(f"{names[k]} = {rest} % {extent}")
            rest = f"{rest} // {extent}"

    def grouped(self, axes: Sequence[Axis], names: Sequence[str], group: int) -> str:
        """The last two indices in groups of rows, column by column, so that programs which run at
        once share what they read."""
        rows, columns = self.dim(axes[-2].extent), self.dim(axes[-1].extent)
        place, first, height = (self.names.fresh(n) for n in ("place", "first", "height"))
        self.line(f"{place} = {self.program} % ({rows} * {columns})")
        self.line(f"{first} = {place} // ({group} * {columns}) * {group}")
        self.line(f"{height} = tl.minimum({rows} - {first}, {group})")
        self.line(f"{names[-2]} = {first} + {place} % ({group} * {columns}) % {height}")
        self.line(f"{names[-1]} = {place} % ({group} * {columns}) // {height}")
        return f"{self.program} // ({rows} * {columns})"

    def finish(self, name: str, hints: Mapping[str, int]) -> Function:
        text = "\n".join(self.lines)
        arguments: list[Argument] = []
        for tensor, memory in self.memory.items():
            if _uses(text, memory.pointer):
                pointer = held(memory.type).pointer
                arguments.append(Argument("tensor", tensor, memory.pointer, pointer))
        for s in self.scratch:
            pointer = held(s.type).pointer
            arguments.append(Argument("scratch", s.pointer, s.pointer, pointer))
        for scalar, parameter in self.scalars.items():
            outside = scalar in self.host_indices or scalar in self.dims()
            if outside and _uses(text, parameter):
                kind = "index" if scalar in self.host_indices else "dim"
                arguments.append(Argument(kind, scalar, parameter, "i64"))
        grid = tuple(loop.axis.extent for loop in self.grid)
        axes = ", ".join(f"{x.axis.name}: {format_expr(x.axis.extent)}" for x in self.grid)
        comment = f"    # grid {axes}\n" if self.grid else ""
        head = f"def {name}({', '.join(a.parameter for a in arguments)}):"
        return Function(
            name,
            f"@triton.jit\n{head}\n{comment}{text}\n",
            grid,
            tuple(arguments),
            tuple(ScratchArgument(s.pointer, s.type, s.size) for s in self.scratch),
            hints,
        )


def _uses(text: str, name: str) -> bool:
    return re.search(rf"(?<![.\w]){re.escape(name)}\b", text) is not None


def programs(grid: Sequence[Expr]) -> Expr:
    """The number of programs of a grid."""
    total: Expr = const(1)
    for extent in grid:
        total = op("mul", total, extent)
    return total


def is_launch(stmt: Stmt) -> bool:
    return isinstance(stmt, Loop) and stmt.kind == "grid"
