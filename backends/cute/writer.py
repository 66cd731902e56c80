"""Lines of a generated function: names, indentation, guards, loops, views of memory."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kir.backends.cute.expressions import HELPERS, SCALARS, STORAGE, Printer, bare
from kir.backends.cute.nests import reads_memory
from kir.dtypes import DType, i64
from kir.ir import Const, Expr

SHARED_ALIGN = 16
RESERVED = {
    "cute", "cutlass", "tid", "pid", "smem", "scratch", "launch",
    *SCALARS.values(), *STORAGE.values(), *HELPERS, *keyword.kwlist, *keyword.softkwlist,
    *dir(builtins),
}  # fmt: skip


@dataclass
class Names:
    """KIR names to Python identifiers that are unique in one generated function."""

    taken: set[str] = field(default_factory=lambda: set(RESERVED))

    def fresh(self, name: str) -> str:
        candidate, n = name if name not in RESERVED else f"{name}_", 2
        while candidate in self.taken:
            candidate, n = f"{name}_{n}", n + 1
        self.taken.add(candidate)
        return candidate


class Writer:
    """The text of one function in the making. `scope` maps KIR names to Python text; `shared` is
    how many bytes of shared memory were dealt out."""

    def __init__(self) -> None:
        self.names = Names()
        self.scope: dict[str, str] = {}
        self.lines: list[str] = []
        self.depth = 1
        self.shared = 0
        self.print: Printer

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.emit(head)
        self.depth += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.emit("pass")
        self.depth -= 1

    @contextmanager
    def under(self, conditions: Sequence[Expr]) -> Iterator[None]:
        """Nested guards; conditions that read memory get their own, inside the earlier ones."""
        depth = self.depth
        plain: list[Expr] = []
        for c in (*conditions, None):
            if c is not None and not reads_memory(c):
                plain.append(c)
                continue
            if plain:
                self.emit(f"if {self.print.all(plain)}:")
                self.depth += 1
                plain = []
            if c is not None:
                self.emit(f"if {bare(self.print(c))}:")
                self.depth += 1
        before = len(self.lines)
        yield
        if len(self.lines) == before:
            self.emit("pass")
        self.depth = depth

    @contextmanager
    def index(self, axis: str, extent: Expr, constant_trip: bool) -> Iterator[None]:
        """A loop over an axis, unrolled or at run time; its index is an Int64."""
        name = self.names.fresh(axis)
        old = self.scope.get(axis)
        self.scope[axis] = name
        extent_text = bare(self._size(extent))
        if constant_trip or isinstance(extent, Const):
            counter, kind = self.names.fresh(f"{axis}_n"), "range_constexpr" * constant_trip
            with self.block(f"for {counter} in cutlass.{kind or 'range'}({extent_text}):"):
                self.emit(f"{name} = Int64({counter})")
                yield
        else:
            with self.block(f"for {name} in cutlass.range(0, {extent_text}, 1):"):
                yield
        if old is None:
            del self.scope[axis]
        else:
            self.scope[axis] = old

    def _tensor(self, pointer: str, shape: Sequence[Expr], padding: int = 0) -> str:
        """A row-major view; a 0-d tensor is one element."""
        sizes = [self._size(n) for n in shape] or ["1"]
        strides = ["1"]
        for n in reversed(shape[1:]):
            size = self._size(n)
            inner = strides[0]
            strides.insert(0, size if inner == "1" else f"{size} * {inner}")
        tuple_ = ", ".join(sizes) + ("," if len(sizes) == 1 else "")
        stride = ", ".join(strides) + ("," if len(strides) == 1 else "")
        layout = f"cute.make_layout(({tuple_}), stride=({stride}))"
        return f"cute.make_tensor({pointer}, {layout})"

    def _size(self, n: Expr) -> str:
        return str(n.value) if isinstance(n, Const) else self.print(n)

    def _at_smem(
        self, name: str, dtype: DType, shape: Sequence[int], row: int | None = None
    ) -> None:
        """A view of fresh shared memory; `row` is the distance between rows of a 2-D one."""
        where = f"cute.recast_ptr(smem + {self.shared}, dtype={STORAGE[dtype]})"
        if row is None:
            sizes = [Const(n, i64) for n in shape]
            self.emit(f"{name} = {self._tensor(where, sizes)}")
            count = 1
            for n in shape:
                count *= n
        else:
            layout = f"cute.make_layout(({shape[0]}, {shape[1]}), stride=({row}, 1))"
            self.emit(f"{name} = cute.make_tensor({where}, {layout})")
            count = shape[0] * row
        size = count * dtype.bytes
        self.shared += -(-size // SHARED_ALIGN) * SHARED_ALIGN
