"""`skip`: iterations of which a bound on the index says that they do nothing are left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

from kir.fold import cast, fold
from kir.ir import (
    TRUE,
    Buffer,
    Cast,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Stmt,
    Store,
    Var,
    const,
    rebuild,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    find_loop,
    loops_of,
    refuse,
    replace_stmt,
    require_loops,
    var_names,
)
from kir.simplify import FALSE, linear, simplify


@dataclass(frozen=True)
class Skip(Rewrite):
    """`skip(j)`: the loop `j` ends where a bound on its index leaves nothing to do.

    Before::

        for j_o: cdiv(N, 64) {
          for j: 64 where j_o*64 + j < N {
            acc += select(j_o*64 + j <= i, x[j_o*64 + j], 0.0) * v[j_o*64 + j]
          }
        }

    After `skip(j_o)`::

        for j_o: min(cdiv(N, 64), cdiv(i + 1, 64)) {
          for j: 64 where j_o*64 + j < N {
            acc += select(j_o*64 + j <= i, x[j_o*64 + j], 0.0) * v[j_o*64 + j]
          }
        }

    The bound is a comparison, in a mask, a guard or a `select`, that fails from some iteration
    on. With it false, each store to what outlives an iteration must add 0, multiply by 1, take
    the maximum with -inf, and so on. That may take the laws of the real numbers, such as
    0 * x = 0 and exp(-inf - x) = 0: then a NaN or an infinity that was multiplied by 0 in an
    iteration left out is not seen any more. So causal attention leaves out the blocks of keys
    that lie ahead of a query.
    """

    name: ClassVar[str] = "skip"
    effect: ClassVar[Effect] = "reassociates"
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        return self._edited(kernel)[0]

    def effect_on(self, kernel: Kernel) -> Effect:
        return "reassociates" if self._edited(kernel)[1] else "exact"

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for loop in loops_of(kernel.body):
            if _bounds(loop):
                yield Move(cls.name, (("loop", loop.axis.name),))

    def _edited(self, kernel: Kernel) -> tuple[Kernel, bool]:
        """The kernel after, and whether that takes the laws of the real numbers."""
        loop = find_loop(kernel, self.loop)
        require_loops(kernel, (loop,))
        if loop.kind != "for":
            refuse(kernel, f"the extent of a {loop.kind} stays as it is", node=loop)
        bounds = _bounds(loop)
        if not bounds:
            refuse(
                kernel,
                f"nothing in `{self.loop}` is bounded in its index from above",
                node=loop,
                hint="a bound is a comparison such as `j <= i`, in a mask or a `select`",
            )
        left: Store | None = None
        for bound in dict.fromkeys(bounds.values()):
            view = _View(loop, {c for c, b in bounds.items() if b == bound})
            left = view.first_effect()
            if left is None:
                extent = simplify(op("min", loop.axis.extent, op("max", bound, const(0))))
                made = replace(loop, axis=replace(loop.axis, extent=extent))
                return replace_stmt(kernel, loop, (made,)), view.reals
        assert left is not None
        return refuse(
            kernel,
            f"`{left.target}` is changed in every iteration, bounds on `{self.loop}` or not",
            node=left,
        )


def _bounds(loop: Loop) -> dict[Expr, Expr]:
    """The comparisons that fail from some iteration on, whatever the indices inside are; from
    which one on."""
    ranges = {x.axis.name: x.axis.extent for x in loops_of(loop.body)}
    found: dict[Expr, Expr] = {}
    for s in (*loop.body, *loop.where):
        for n in walk(s):
            if isinstance(n, Op) and n.name in ("lt", "le", "gt", "ge") and n not in found:
                bound = _bound(n, loop.axis.name, ranges)
                if bound is not None and bound != loop.axis.extent:
                    found[n] = bound
    return found


def _bound(e: Op, index: str, ranges: dict[str, Expr]) -> Expr | None:
    """The least value of `index` from which on a comparison fails."""
    low, high = e.args if e.name in ("lt", "le") else reversed(e.args)
    if low.dtype != const(0).dtype or any(isinstance(n, Read) for n in walk(e)):
        return None
    form = linear(op("sub", low, high))
    step = form.terms.pop(Var(index), 0)
    form.constant += e.name in ("lt", "gt")  # it holds where step * index + form <= 0
    if step <= 0 or any(index in var_names(t) for t in form.terms):
        return None
    for atom, c in list(form.terms.items()):
        inside = var_names(atom) & ranges.keys()
        if not inside:
            continue
        if not isinstance(atom, Var):
            return None
        extent = ranges[atom.name]
        if c < 0:
            if not isinstance(extent, Const):
                return None
            form.constant += c * max(int(extent.value) - 1, 0)
        del form.terms[atom]
    form.constant -= 1
    return simplify(op("cdiv", op("neg", form.cleaned().build()), const(step)))


@dataclass
class _View:
    """An iteration in which some comparisons are false: what is known of the values in it."""

    loop: Loop
    false: set[Expr]
    values: dict[str, Expr | None] = field(default_factory=dict)
    """Of buffers of the iteration: the one value of all elements; None if there is none."""
    reals: bool = False

    def first_effect(self) -> Store | None:
        """A store that may change what outlives the iteration, or None."""
        if any(self.value(c) == FALSE for c in self.loop.where):
            return None
        return self.block(self.loop.body)

    def block(self, body: Block) -> Store | None:
        for s in body:
            found = self.stmt(s)
            if found is not None:
                return found
        return None

    def stmt(self, s: Stmt) -> Store | None:
        if isinstance(s, Buffer):
            self.values.pop(s.name, None)
            if s.init is not None:
                self.values[s.name] = self.uniform(self.value(s.init))
        elif isinstance(s, Loop):
            if not any(self.value(c) == FALSE for c in s.where):
                self.forget(s)
                return self.block(s.body)
        elif isinstance(s, If):
            if self.value(s.condition) != FALSE:
                return self.block(s.body)
        elif isinstance(s, Store):
            return self.store(s)
        return None

    def forget(self, loop: Loop) -> None:
        """In a loop that updates a buffer, its value is that of no one iteration."""
        changed = True
        while changed:
            changed = False
            for n in walk(loop):
                if isinstance(n, Store) and self.values.get(n.target) is not None:
                    value = self.value(n.value)
                    same = n.op is None and value == self.values[n.target]
                    if not same and not self.idle(n, value):
                        self.values[n.target], changed = None, True

    def store(self, s: Store) -> Store | None:
        value = self.value(s.value)
        mine = any(isinstance(n, Buffer) and n.name == s.target for n in walk(self.loop))
        if self.idle(s, value):
            return None
        if not mine:
            return s
        known = s.op is None and (s.target not in self.values or self.values[s.target] == value)
        self.values[s.target] = self.uniform(value) if known else None
        return None

    def idle(self, s: Store, value: Expr) -> bool:
        """Whether a store leaves its target as it is."""
        if s.op is None:
            return isinstance(value, Read) and (value.tensor, value.indices) == (
                s.target,
                s.indices,
            )
        if s.op == "add" and _is(value, 0.0):
            self.law(value)  # -0.0 + 0.0 is 0.0
            return True
        return value == identity(s.op, value.dtype)

    def uniform(self, value: Expr) -> Expr | None:
        """The value if it is the same for all elements, in all of the iteration."""
        inside = {x.axis.name for x in loops_of((self.loop,))}
        stored = {n.target for n in walk(self.loop) if isinstance(n, Store)}
        reads = [n for n in walk(value) if isinstance(n, Read)]
        settled = all(r.tensor not in stored or self.unchanged(r.tensor) for r in reads)
        return value if settled and not var_names(value) & inside else None

    def unchanged(self, tensor: str) -> bool:
        """Whether the iteration leaves a tensor that outlives it as it is: it must, to be skipped,
        if only by a store that does nothing."""
        return not any(isinstance(n, Buffer) and n.name == tensor for n in walk(self.loop))

    # --- expressions

    def value(self, e: Expr) -> Expr:
        """`e`, as far as it is known in this iteration."""
        if e in self.false:
            return FALSE

        def visit(n: Node) -> Node:
            assert isinstance(n, Expr)
            return self.value(n)

        done = rebuild(e, visit)
        if isinstance(done, Read):
            return self.values.get(done.tensor) or done
        if isinstance(done, Cast):
            return cast(done)
        if isinstance(done, Op):
            if all(isinstance(a, Const) for a in done.args):
                return fold(done) or self.by_laws(done)
            return self.by_laws(done)
        return done

    def by_laws(self, e: Op) -> Expr:
        """`e` made smaller by laws that hold for finite operands beside what is known."""
        a, *rest = e.args
        b = rest[0] if rest else a
        match e.name:
            case "select":
                return e.args[1] if a == TRUE else e.args[2] if a == FALSE else e
            case "and" | "or":
                short, unit = (FALSE, TRUE) if e.name == "and" else (TRUE, FALSE)
                if short in (a, b):
                    return short
                return b if a == unit else a if b == unit else e
            case "mul":
                for x, y in ((a, b), (b, a)):
                    if _is(x, 1.0):
                        return y
                    if _is(x, 0.0):
                        return self.law(x)
            case "div" if _is(a, 0.0):
                return self.law(a)
            case "add" | "sub":
                if _is(b, 0.0):
                    return a
                if _is(a, -math.inf):
                    return self.law(a)
            case "exp" | "exp2" if _is(a, -math.inf):
                return Const(0.0, e.type)
            case "exp" | "exp2" if _is(a, 0.0):
                return Const(1.0, e.type)
            case "eq" | "le" | "ge" if a == b:
                return self.law(TRUE)
        return e

    def law(self, e: Expr) -> Expr:
        self.reals = True
        return e


def _is(e: Expr, value: float) -> bool:
    return isinstance(e, Const) and e.dtype.is_float and e.value == value
