"""From a failing case to one that a person can read: fewer steps, then a smaller kernel.

Each change is kept where the case still fails in the same way. The order is that of what helps a
reader most: steps, outputs, statements, parts of expressions, sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kir.dtypes import DType
from kir.errors import KirError
from kir.fuzz.cases import Case, Failure
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Read,
    Reduce,
    Step,
    Stmt,
    Store,
    children,
    rebuild,
    walk,
)
from kir.testing import Example

Judge = Callable[[Case], Failure | None]
SECONDS = 25.0
"""Spent at most on one failure."""


@dataclass
class Shrinker:
    """Shrinks one case; `judge` runs it."""

    judge: Judge
    case: Case
    failure: Failure
    seconds: float = SECONDS

    def run(self) -> tuple[Case, Failure]:
        """The smallest case found, and how it fails."""
        until = time.monotonic() + self.seconds
        changed = True
        while changed and time.monotonic() < until:
            changed = False
            for source in (self.steps, self.examples, self.kernels):
                while time.monotonic() < until and self.better(source(), until):
                    changed = True
        return self.case, self.failure

    def better(self, cases: Iterator[Case], until: float) -> bool:
        """Take the first of `cases` that fails alike; whether there was one."""
        for case in cases:
            if time.monotonic() > until:
                return False
            found = self.judge(case)
            if found is not None and found.kind == self.failure.kind:
                self.case, self.failure = case, found
                return True
        return False

    # --- what may become smaller -------------------------------------------------------------

    def steps(self) -> Iterator[Case]:
        """Without some of the steps, many at once first; with smaller numbers."""
        steps = self.case.steps
        size = len(steps)
        while size >= 1:
            for at in range(len(steps) - size, -1, -size):
                yield replace(self.case, steps=steps[:at] + steps[at + size :])
            size //= 2
        for n, step in enumerate(steps):
            for simpler in _simpler_step(step):
                yield replace(self.case, steps=(*steps[:n], simpler, *steps[n + 1 :]))

    def examples(self) -> Iterator[Case]:
        example = self.case.example
        if example is None:
            return
        if example.profile != "integers":
            yield replace(self.case, example=replace(example, profile="integers"))
        for n, (name, value) in enumerate(example.dims):
            for less in range(value):
                dims = (*example.dims[:n], (name, less), *example.dims[n + 1 :])
                yield replace(self.case, example=replace(example, dims=dims))

    def kernels(self) -> Iterator[Case]:
        for kernel in smaller_kernels(self.case.kernel):
            yield replace(self.case, kernel=kernel, example=_fitted(self.case.example, kernel))


def _fitted(example: Example | None, kernel: Kernel) -> Example | None:
    """The example without the dims that are gone."""
    if example is None:
        return None
    names = {d.name for d in kernel.dims}
    return replace(example, dims=tuple((n, v) for n, v in example.dims if n in names))


def _simpler_step(step: Step) -> Iterator[Step]:
    for n, arg in enumerate(step.args):
        if isinstance(arg, int) and arg > 2:
            yield replace(step, args=(*step.args[:n], 2, *step.args[n + 1 :]))
    for n in range(len(step.options)):
        yield replace(step, options=step.options[:n] + step.options[n + 1 :])


def smaller_kernels(kernel: Kernel) -> Iterator[Kernel]:
    """Kernels with something left out, tidied; many of them are not well formed."""
    if len(kernel.outputs) > 1:
        for p in kernel.outputs:
            yield tidied(_without_output(kernel, p.name))
    for body in _smaller_blocks(kernel.body):
        yield tidied(replace(kernel, body=body))
    if kernel.constraints:
        yield replace(kernel, constraints=())
    for d in kernel.dims:
        if d.default is not None and d.default > 1:
            dims = tuple(replace(x, default=1) if x is d else x for x in kernel.dims)
            yield replace(kernel, dims=dims)


def _without_output(kernel: Kernel, name: str) -> Kernel:
    """An output becomes a temporary, or goes with all that writes it where nothing reads it."""
    kept = tuple(p for p in kernel.outputs if p.name != name)
    (gone,) = (p for p in kernel.outputs if p.name == name)
    body = kernel.body
    if any(isinstance(n, Read) and n.tensor == name for s in body for n in walk(s)):
        if any(isinstance(n, Store) and n.target == name for s in body for n in walk(s)):
            body = (Buffer(name, gone.type, gone.shape, "global"), *body)
    else:
        body = _without(body, name)
    return replace(kernel, outputs=kept, body=body)


def _without(body: tuple[Stmt, ...], name: str) -> tuple[Stmt, ...]:
    """The block without what makes or writes the tensor `name`."""
    made: list[Stmt] = []
    for s in body:
        if isinstance(s, Loop | If):
            inner = _without(s.body, name)
            if inner:
                made.append(replace(s, body=inner))
        elif not (
            (isinstance(s, Define | Buffer) and s.name == name)
            or (isinstance(s, Store) and s.target == name)
        ):
            made.append(s)
    return tuple(made)


def tidied(kernel: Kernel) -> Kernel:
    """Without temporaries, inputs and dims that nothing uses."""
    body = kernel.body
    outputs = {p.name for p in kernel.outputs}
    while True:
        read = {n.tensor for s in body for n in walk(s) if isinstance(n, Read)}
        made = {n.name for s in body for n in walk(s) if isinstance(n, Define | Buffer)}
        idle = made - read - outputs
        if not idle:
            break
        for name in sorted(idle):
            body = _without(body, name)
    inputs = tuple(p for p in kernel.inputs if p.name in read)
    found = replace(kernel, inputs=inputs, body=body)
    used = {getattr(n, "name", "") for n in walk(found) if not hasattr(n, "default")}
    return replace(found, dims=tuple(d for d in kernel.dims if d.name in used))


def _smaller_blocks(body: tuple[Stmt, ...]) -> Iterator[tuple[Stmt, ...]]:
    for n, s in enumerate(body):
        if len(body) > 1:
            yield body[:n] + body[n + 1 :]
        if isinstance(s, If):
            yield (*body[:n], *s.body, *body[n + 1 :])
    for n, s in enumerate(body):
        for smaller in _smaller_stmts(s):
            yield (*body[:n], smaller, *body[n + 1 :])


def _smaller_stmts(s: Stmt) -> Iterator[Stmt]:
    if isinstance(s, Loop):
        if s.where:
            yield replace(s, where=())
        if s.hints:
            yield replace(s, hints=())
        if s.kind != "for":
            yield replace(s, kind="for")
        for body in _smaller_blocks(s.body):
            yield replace(s, body=body)
        for n, c in enumerate(s.where):
            for e in smaller(c):
                yield replace(s, where=(*s.where[:n], e, *s.where[n + 1 :]))
    elif isinstance(s, If):
        for body in _smaller_blocks(s.body):
            yield replace(s, body=body)
        for e in smaller(s.condition):
            yield replace(s, condition=e)
    elif isinstance(s, Define | Store):
        for e in smaller(s.value):
            yield replace(s, value=e)
    elif isinstance(s, Buffer) and s.init is not None:
        for e in smaller(s.init):
            yield replace(s, init=e)


def smaller(e: Expr) -> Iterator[Expr]:
    """Expressions of the same dtype with less in them, the smallest first."""
    if isinstance(e, Const):
        return
    yield from (c for c in _constants(e.dtype))
    if isinstance(e, Reduce) and len(e.axes) > 1:
        for n in range(len(e.axes)):
            yield replace(e, axes=e.axes[:n] + e.axes[n + 1 :])
    if isinstance(e, Reduce) and e.where:
        yield replace(e, where=())
    yield from (c for c in _parts(e) if c.dtype == e.dtype)
    if isinstance(e, Read) and e.fill is not None:
        yield replace(e, fill=None)
    for old in _parts(e):
        for new in smaller(old):
            yield _swap(e, old, new)


def _parts(e: Expr) -> list[Expr]:
    """The expressions directly below; not the indices of reads, nor extents."""
    if isinstance(e, Read):
        return [e.fill] if e.fill is not None else []
    return [c for c in children(e) if isinstance(c, Expr) and not isinstance(c, Axis)]


def _swap(e: Expr, old: Expr, new: Expr) -> Expr:
    def visit(n: Node) -> Node:
        return new if n is old else n

    return rebuild(e, visit)


def _constants(dtype: DType) -> tuple[Const, ...]:
    if dtype.is_bool:
        return (Const(True, dtype), Const(False, dtype))
    return (Const(1.0, dtype),) if dtype.is_float else (Const(1, dtype),)


def shrink(
    judge: Judge, case: Case, failure: Failure, seconds: float = SECONDS
) -> tuple[Case, Failure]:
    """The smallest case found within the time that fails in the same way."""

    def careful(smaller_case: Case) -> Failure | None:
        try:
            return judge(smaller_case)
        except KirError:
            return None  # no longer a well-formed case

    return Shrinker(careful, case, failure, seconds).run()
