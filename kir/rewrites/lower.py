"""From definitions to loops: `loops`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from kir.dtypes import i64
from kir.errors import RewriteError
from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
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
    Stmt,
    Store,
    Var,
    const,
    rebuild,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import Block, Effect, Move, Rewrite, free_vars, fresh


@dataclass(frozen=True)
class Loops(Rewrite):
    """`loops()`: every definition and reduction becomes loops and buffers.

    Before::

        s[i: M] = sum(j: N) x[i, j]
        y[i: M] = s[i] * 2

    After (`y` is an output)::

        buffer s: f32[M] in global
        for i: M {
          buffer s_acc: f32[] in reg = 0
          for j: N { s_acc += x[i, j] }
          s[i] = s_acc
        }
        for i_2: M { y[i_2] = s[i_2] * 2 }

    A reduction stands before the loops it does not depend on. An arg-reduction becomes a pass for
    the greatest value and a pass for the least index that has it. A temporary of a recurrence
    becomes a buffer outside the loop it recurs over. The names of loops and buffers are unique
    afterwards (`i`, `i_2`, `i_3` in the order of the text).
    """

    name: ClassVar[str] = "loops"
    effect: ClassVar[Effect] = "exact"

    def edit(self, kernel: Kernel) -> Kernel:
        for stmt in kernel.body:
            for node in walk(stmt):
                if isinstance(node, Axis) and any(isinstance(x, Reduce) for x in walk(node)):
                    raise RewriteError(
                        "the extent of an axis contains a reduction", kernel=kernel, node=node
                    )
        return replace(kernel, body=_Lowering(kernel).block(kernel.body, _Scope()))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        if any(isinstance(n, Define | Reduce) for s in kernel.body for n in walk(s)):
            yield Move(cls.name)


@dataclass
class _Scope:
    """New names: indices by their old names, tensors by theirs, and all indices in scope."""

    indices: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    bound: frozenset[str] = frozenset()

    def inside(self, renamed: dict[str, str]) -> _Scope:
        return _Scope(
            {**self.indices, **renamed}, dict(self.tensors), self.bound | set(renamed.values())
        )


@dataclass(frozen=True)
class _Ahead:
    """Statements that compute a reduction, and the indices that they need in scope."""

    stmts: Block
    needs: frozenset[str]


class _Lowering:
    def __init__(self, kernel: Kernel) -> None:
        self.outputs = {p.name for p in kernel.outputs}
        self.shapes = {p.name: p.shape for p in kernel.params}
        tensors = {
            s.name for top in kernel.body for s in walk(top) if isinstance(s, Define | Buffer)
        }
        self.used = {d.name for d in kernel.dims} | {p.name for p in kernel.params} | tensors
        self.dims = {d.name for d in kernel.dims}
        self.unclaimed = tensors - self.outputs
        self.names: dict[int, str] = {}  # by id of the Define or Buffer
        self.hoisted: dict[str, list[Stmt]] = {}  # buffers to put before a loop, by its new name
        self.extents: dict[str, Expr] = {}  # of the loops around, by their new names

    # --- names

    def declare(self, stmt: Define | Buffer, scope: _Scope) -> None:
        if id(stmt) not in self.names and stmt.name not in self.outputs:
            free = stmt.name in self.unclaimed
            self.unclaimed.discard(stmt.name)
            self.names[id(stmt)] = stmt.name if free else fresh(stmt.name, self.used)
        scope.tensors[stmt.name] = self.names.get(id(stmt), stmt.name)

    def declare_block(self, body: Block, scope: _Scope) -> None:
        for stmt in body:
            if isinstance(stmt, Define | Buffer):
                self.declare(stmt, scope)

    # --- statements

    def block(self, body: Block, scope: _Scope) -> Block:
        self.declare_block(body, scope)
        return tuple(new for stmt in body for new in self.stmt(stmt, scope))

    def stmt(self, stmt: Stmt, scope: _Scope) -> Block:
        ahead: list[_Ahead] = []
        match stmt:
            case Define():
                return self.define(stmt, scope)
            case Loop():
                return self.loop(stmt, scope)
            case If(condition, body):
                lowered = self.expr(condition, scope, ahead, "if")
                inner = replace(stmt, condition=lowered, body=self.block(body, scope.inside({})))
                return (*_flat(ahead), inner)
            case Buffer(name, _, shape, _, init):
                new = scope.tensors[name]
                self.shapes[new] = tuple(self.expr(e, scope, ahead, new) for e in shape)
                value = None if init is None else self.expr(init, scope, ahead, new)
                made = replace(stmt, name=new, shape=self.shapes[new], init=value)
                return (*_flat(ahead), made)
            case Store(target, indices, value):
                new = scope.tensors.get(target, target)
                at = tuple(self.expr(e, scope, ahead, new) for e in indices)
                right = self.expr(value, scope, ahead, new)
                return (*_flat(ahead), replace(stmt, target=new, indices=at, value=right))
        raise TypeError(type(stmt).__name__)

    def loop(self, loop: Loop, scope: _Scope) -> Block:
        name = fresh(loop.axis.name, self.used)
        extent = self.expr(loop.axis.extent, scope, [], name)
        self.extents[name] = extent
        for below in walk(loop):
            if isinstance(below, Define) and Var(loop.axis.name) in below.dims:
                self.declare(below, scope)
        inner = scope.inside({loop.axis.name: name})
        ahead: list[_Ahead] = []
        where = tuple(self.expr(c, inner, ahead, name) for c in loop.where)
        body = self.block(loop.body, inner)
        before = tuple(s for a in ahead if name not in a.needs for s in a.stmts)
        inside = tuple(s for a in ahead if name in a.needs for s in a.stmts)
        if inside:  # a condition that reduces over something that depends on the index
            body, where = (*inside, If(_all(where), body)), ()
        axis = replace(loop.axis, name=name, extent=extent)
        made = replace(loop, axis=axis, where=where, body=body)
        return (*self.hoisted.pop(name, ()), *before, made)

    def define(self, stmt: Define, scope: _Scope) -> Block:
        name = scope.tensors[stmt.name]
        renamed = {a.name: fresh(a.name, self.used) for a in stmt.axes}
        inner = scope.inside(renamed)
        indices: list[Expr] = []
        shape: list[Expr] = []
        axes: list[Axis] = []
        for dim in stmt.dims:
            new = inner.indices[dim.name]
            indices.append(Var(new, span=dim.span))
            if isinstance(dim, Axis):
                axes.append(replace(dim, name=new, extent=self.expr(dim.extent, scope, [], name)))
                shape.append(axes[-1].extent)
            else:
                shape.append(self.extents[new])
        self.shapes.setdefault(name, tuple(shape))
        ahead: list[_Ahead] = []
        value = self.expr(stmt.value, inner, ahead, name)
        store = Store(name, tuple(indices), value, span=stmt.span)
        outer: list[_Ahead] = []
        nest = self.nest(axes, (), [], ahead, (store,), outer)
        if name in self.outputs:
            return (*_flat(outer), *nest)
        made = Buffer(name, stmt.value.dtype, tuple(shape), "global", span=stmt.span)
        recurs = [i.name for i in indices if isinstance(i, Var) and i.name in scope.bound]
        if not recurs:
            return (made, *_flat(outer), *nest)
        first = next(loop for loop in self.extents if loop in recurs)  # the outermost of them
        self.hoisted.setdefault(first, []).append(made)
        return (*_flat(outer), *nest)

    def nest(
        self,
        axes: Sequence[Axis],
        where: tuple[Expr, ...],
        guards: Sequence[_Ahead],
        ahead: Sequence[_Ahead],
        body: Block,
        outer: list[_Ahead],
    ) -> Block:
        """Loops over `axes` around `body`, with what must be computed ahead placed as far out as
        the indices it needs allow; what needs none of the axes goes to `outer`. Under a `where`,
        or an extent that depends on indices, all stays inside: only there may it be in bounds."""
        names = [a.name for a in axes]
        pinned = bool(where) or any(free_vars(a.extent) - self.dims for a in axes)
        placed: list[list[_Ahead]] = [[] for _ in axes]
        for item in ahead:
            depth = max((k for k, n in enumerate(names) if n in item.needs), default=-1)
            if pinned:
                depth = len(axes) - 1
            (placed[depth] if depth >= 0 else outer).append(item)
        masked: tuple[Expr, ...] = where
        if where and guards:
            body = (*_flat(guards), If(_all(where), (*_flat(placed[-1]), *body)))
            placed[-1], masked = [], ()
        for k in reversed(range(len(axes))):
            last = k == len(axes) - 1
            inside = (*_flat(placed[k]), *body)
            body = (Loop("for", axes[k], masked if last else (), inside, span=axes[k].span),)
        return body

    # --- expressions

    def expr(self, e: Expr, scope: _Scope, ahead: list[_Ahead], hint: str) -> Expr:
        """The expression without reductions; what computes these is appended to `ahead`."""
        if isinstance(e, Var):
            return replace(e, name=scope.indices.get(e.name, e.name))
        if isinstance(e, Reduce):
            return self.reduce(e, scope, ahead, hint)

        def visit(child: Node) -> Node:
            assert isinstance(child, Expr)
            return self.expr(child, scope, ahead, hint)

        done = rebuild(e, visit)
        if isinstance(done, Read):
            done = replace(done, tensor=scope.tensors.get(done.tensor, done.tensor))
        return done

    def reduce(self, e: Reduce, scope: _Scope, ahead: list[_Ahead], hint: str) -> Expr:
        if e.name in ARG_REDUCTIONS:
            return self.arg_reduce(e, scope, ahead, hint)
        acc = fresh(f"{hint}_acc", self.used)
        update = REDUCTIONS[e.name]
        stmts = self.accumulate(e, scope, ahead, acc, update, None)
        made = Buffer(acc, e.dtype, (), "reg", identity(update, e.dtype), span=e.span)
        ahead.append(_Ahead((made, *stmts), self.needs(e, scope)))
        return Read(acc, (), e.dtype, span=e.span)

    def arg_reduce(self, e: Reduce, scope: _Scope, ahead: list[_Ahead], hint: str) -> Expr:
        update, dtype = ARG_REDUCTIONS[e.name], e.body.dtype
        best, at = fresh(f"{hint}_best", self.used), fresh(f"{hint}_at", self.used)
        none = identity("min", i64)
        first = self.accumulate(e, scope, ahead, best, update, None)
        second = self.accumulate(e, scope, ahead, at, "min", Read(best, (), dtype))
        stmts = (
            Buffer(best, dtype, (), "reg", identity(update, dtype), span=e.span),
            *first,
            Buffer(at, i64, (), "reg", none, span=e.span),
            *second,
        )
        ahead.append(_Ahead(stmts, self.needs(e, scope)))
        found = Read(at, (), i64, span=e.span)
        return op("select", op("eq", found, none), const(-1), found)

    def accumulate(
        self,
        e: Reduce,
        scope: _Scope,
        ahead: list[_Ahead],
        acc: str,
        update: str,
        best: Read | None,
    ) -> Block:
        """The loops of `acc op= body`; with `best`, of the index pass of an arg-reduction."""
        inner = scope.inside({a.name: fresh(a.name, self.used) for a in e.axes})
        axes = [
            replace(a, name=inner.indices[a.name], extent=self.expr(a.extent, inner, ahead, acc))
            for a in e.axes
        ]
        guards: list[_Ahead] = []
        where = tuple(self.expr(c, inner, guards, acc) for c in e.where)
        below: list[_Ahead] = []
        value = self.expr(e.body, inner, below, acc)
        if best is not None:
            same = op("eq", value, best)
            if value.dtype.is_float:
                same = op("or", same, op("and", op("isnan", value), op("isnan", best)))
            value = op("select", same, Var(axes[0].name), identity("min", i64))
        store = Store(acc, (), value, update, span=e.span)
        return self.nest(axes, where, guards, below, (store,), ahead)

    def needs(self, e: Expr, scope: _Scope) -> frozenset[str]:
        """The indices that must be in scope for `e`; all of them where an index of a read is in
        bounds only because the loops around run at all (`x[N - 1]`, `x[0]`)."""
        needed = {scope.indices[v] for v in free_vars(e) if v in scope.indices}
        bound = {a.name for r in walk(e) if isinstance(r, Reduce) for a in r.axes}
        for read in walk(e):
            if isinstance(read, Read) and read.fill is None:
                shape = self.shapes.get(scope.tensors.get(read.tensor, read.tensor), ())
                for k, index in enumerate(read.indices):
                    extent = shape[k] if k < len(shape) else None
                    if not self._safe(index, extent, scope, bound):
                        return scope.bound
        return frozenset(needed)

    def _safe(self, index: Expr, extent: Expr | None, scope: _Scope, bound: set[str]) -> bool:
        names = free_vars(index)
        if names & bound or any(n in scope.indices for n in names):
            return True
        return (
            isinstance(index, Const)
            and isinstance(extent, Const)
            and 0 <= index.value < extent.value
        )


def _flat(ahead: Sequence[_Ahead]) -> Block:
    return tuple(s for a in ahead for s in a.stmts)


def _all(conditions: Sequence[Expr]) -> Expr:
    result = conditions[0]
    for c in conditions[1:]:
        result = op("and", result, c)
    return result
