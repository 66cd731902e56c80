"""A scheduled kernel as phases that all PEs run together, and where things lie.

A top-level `grid` nest is a phase of its own, shared by the PEs; other top-level statements in a
row are a phase that PE 0 does alone, a `grid` within them an ordinary loop. Buffers in `global`
become temporaries that the launcher allocates; `local` ones get fixed places in the scratchpad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kir.backends.accel.engines import Counts, with_engines
from kir.backends.accel.machine import Machine
from kir.errors import UnsupportedError
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    If,
    Kernel,
    Loop,
    Param,
    Reduce,
    Stmt,
    Store,
    Var,
    walk,
)


@dataclass(frozen=True)
class Phase:
    """`shared`: the body is one `grid` nest, split over the PEs; else PE 0 runs it."""

    body: tuple[Stmt, ...]
    shared: bool


@dataclass(frozen=True)
class Placed(Buffer):
    """A buffer in `local`, at this many bytes from the start of the scratchpad."""

    offset: int = 0


@dataclass(frozen=True)
class Program:
    """What a kernel does on a machine; `local_bytes` of scratchpad are used at most."""

    kernel: Kernel
    machine: Machine
    temporaries: tuple[Param, ...]
    phases: tuple[Phase, ...]
    local_bytes: int
    counts: Counts


def program(kernel: Kernel, machine: Machine) -> Program:
    """Split, place and check a kernel. UnsupportedError for what this target cannot express:
    definitions, a scratchpad too small, a temporary whose shape changes as the kernel runs."""
    for node in walk(kernel):
        if isinstance(node, Define | Reduce):
            raise UnsupportedError(
                f"{type(node).__name__} is no scheduled IR",
                hint="apply the rewrite `loops` first",
                kernel=kernel,
                node=node,
            )
    lowered, counts = with_engines(kernel, machine)
    temporaries = _Temporaries(lowered)
    scratchpad = _Scratchpad(kernel, machine)
    phases, used = [], 0
    for phase in _phases(temporaries.block(lowered.body, grid=False)):
        most, body = scratchpad.block(phase.body, 0)
        phases.append(replace(phase, body=body))
        used = max(used, most)
    return Program(kernel, machine, tuple(temporaries.found), tuple(phases), used, counts)


def _phases(body: Sequence[Stmt]) -> list[Phase]:
    phases: list[Phase] = []
    alone: list[Stmt] = []
    for k, stmt in enumerate(body):
        if isinstance(stmt, Buffer):  # local or reg: alive to the end, so the rest is one program
            alone.extend(body[k:])
            break
        if isinstance(stmt, Loop) and stmt.kind == "grid":
            if alone:
                phases.append(Phase(tuple(alone), False))
                alone = []
            phases.append(Phase((stmt,), True))
        else:
            alone.append(stmt)
    if alone:
        phases.append(Phase(tuple(alone), False))
    return phases


class _Temporaries:
    """Takes buffers in `global` out of a kernel; what they begin with becomes stores."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.dims = {d.name for d in kernel.dims}
        self.taken = {n.name for n in walk(kernel) if isinstance(n, Buffer | Param | Axis)}
        self.found: list[Param] = []

    def block(self, body: Sequence[Stmt], grid: bool) -> tuple[Stmt, ...]:
        done: list[Stmt] = []
        for stmt in body:
            if isinstance(stmt, Buffer) and stmt.space == "global":
                done.extend(self.buffer(stmt, grid))
            elif isinstance(stmt, Loop):
                inner = self.block(stmt.body, grid or stmt.kind == "grid")
                done.append(replace(stmt, body=inner))
            elif isinstance(stmt, If):
                done.append(replace(stmt, body=self.block(stmt.body, grid)))
            else:
                done.append(stmt)
        return tuple(done)

    def buffer(self, buffer: Buffer, grid: bool) -> tuple[Stmt, ...]:
        names = {n.name for e in buffer.shape for n in walk(e) if isinstance(n, Var)}
        problem = None
        if grid:
            problem = "stands in a `grid`, whose iterations would need one each"
        elif not names <= self.dims:
            problem = "has a shape that changes as the kernel runs"
        elif any(p.name == buffer.name for p in self.found):
            problem = "shares its name with another one"
        if problem is not None:
            raise UnsupportedError(
                f"the buffer `{buffer.name}` in global memory {problem}",
                hint="put it in `local`, or outside",
                kernel=self.kernel,
                node=buffer,
            )
        self.found.append(Param(buffer.name, buffer.type, buffer.shape))
        if buffer.init is None:
            return ()
        axes = [Axis(self.fresh(f"{buffer.name}_{d}"), e) for d, e in enumerate(buffer.shape)]
        stmt: Stmt = Store(buffer.name, tuple(Var(a.name) for a in axes), buffer.init)
        for axis in reversed(axes):
            stmt = Loop("grid", axis, (), (stmt,))
        return (stmt,)

    def fresh(self, stem: str) -> str:
        name, count = stem, 2
        while name in self.taken:
            name, count = f"{stem}_{count}", count + 1
        self.taken.add(name)
        return name


@dataclass(frozen=True)
class _Scratchpad:
    """Places for buffers, as on a stack: blocks that are not alive together share room."""

    kernel: Kernel
    machine: Machine

    def block(
        self, body: Sequence[Stmt], start: int, lanes: bool = False
    ) -> tuple[int, tuple[Stmt, ...]]:
        """The end of what the block and all within it use, and the block with its places."""
        end = most = start
        done: list[Stmt] = []
        for stmt in body:
            if isinstance(stmt, Buffer) and (
                stmt.space == "local" or (not lanes and self.spills(stmt))
            ):
                done.append(
                    Placed(
                        stmt.name, stmt.type, stmt.shape, "local", stmt.init, end, span=stmt.span
                    )
                )
                end += self.size(stmt, lanes)
                most = max(most, end)
                self.check(stmt, most)
            elif isinstance(stmt, Loop | If):
                inside = lanes or (isinstance(stmt, Loop) and stmt.kind == "tile")
                used, inner = self.block(stmt.body, end, inside)
                most = max(most, used)
                done.append(replace(stmt, body=inner))
            else:
                done.append(stmt)
        return most, tuple(done)

    def spills(self, buffer: Buffer) -> bool:
        """Whether a `reg` buffer is larger than the vector registers: it lies in the scratchpad
        then, since a PE has no other memory."""
        return self.size(buffer, False) > 32 * self.machine.core.vector_bits // 8

    def check(self, buffer: Buffer, needed: int) -> None:
        if needed > self.machine.local.bytes:
            raise UnsupportedError(
                f"`{buffer.name}` does not fit: with what is alive beside it, it needs"
                f" {needed} bytes of scratchpad, and a PE of `{self.machine.name}` has"
                f" {self.machine.local.bytes}",
                hint="split the loops that it is staged for into smaller blocks",
                kernel=self.kernel,
                node=buffer,
            )

    def size(self, buffer: Buffer, lanes: bool) -> int:
        if lanes:
            raise UnsupportedError(
                f"`{buffer.name}` is declared in a `tile`, so each lane would need its own",
                hint="declare it outside, or in `reg`",
                kernel=self.kernel,
                node=buffer,
            )
        size = buffer.type.bytes
        for extent in buffer.shape:
            if not isinstance(extent, Const):
                raise UnsupportedError(
                    f"the size of `{buffer.name}` on chip is not constant",
                    hint="give the dims it depends on, as in `--shape N=1024`, or split its loop",
                    kernel=self.kernel,
                    node=buffer,
                )
            size *= int(extent.value)
        alignment = self.machine.local.alignment
        return -(-size // alignment) * alignment
