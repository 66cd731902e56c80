"""What every rewrite shares: the base class, finding things by name, editing blocks, fresh names.

A rewrite is a frozen dataclass. Its fields are its arguments; `apply` gives the new kernel in
normal form (`kir.simplify`) or raises RewriteError, which shows the kernel as it is now with the
place underlined. Nothing here mutates: blocks are rebuilt, what did not change is shared.
"""

from __future__ import annotations

import difflib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, NoReturn

from kir.errors import RewriteError
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
    StepArg,
    Stmt,
    Store,
    Var,
    children,
    rebuild,
    walk,
)
from kir.memo import declared_in, in_loops, statements_of, tensors_in, vars_of
from kir.simplify import simplify

if TYPE_CHECKING:
    from kir.interpret.rules import OpError

Effect = Literal["exact", "reassociates", "approximates"]
EFFECTS: tuple[Effect, ...] = ("exact", "reassociates", "approximates")
"""From the weakest to the strongest."""
Block = tuple[Stmt, ...]
KEPT_RESULTS = 4


@dataclass(frozen=True)
class Rewrite(ABC):
    """One move. `effect` is the most it may do to a float result: `exact` leaves every bit,
    `reassociates` changes the order of reductions or uses the laws of the real numbers,
    `approximates` changes roundings; `bound` then states by how much."""

    name: ClassVar[str]
    effect: ClassVar[Effect]

    def apply(self, kernel: Kernel) -> Kernel:
        """The rewritten kernel, simplified; RewriteError where the precondition does not hold.

        The last few results are kept on the kernel: a planner tries the steps that are replayed
        after it."""
        known: dict[Rewrite, Kernel] = kernel.__dict__.setdefault("_applied", {})
        if self in known:
            return known[self]
        after = simplify(self.edit(kernel))
        if after is not kernel:  # no node refers to itself
            if len(known) >= KEPT_RESULTS:
                del known[next(iter(known))]
            known[self] = after
        return after

    @abstractmethod
    def edit(self, kernel: Kernel) -> Kernel:
        """The edit itself, after its precondition was checked."""

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Moves that may be legal on `kernel`: every legal one is among them. Cheap to list;
        `legal_moves` drops those whose sample is refused."""
        return iter(())

    def effect_on(self, kernel: Kernel) -> Effect:
        """What it does to float results on this very kernel: at most `effect`."""
        return self.effect

    def bound(self) -> str:
        """Of one that approximates: the error it may add, in words and units roundoff."""
        return ""

    def errors(self, kernel: Kernel) -> Mapping[str, OpError]:
        """Of one that puts something else in the place of ops of `kernel`, where that is not equal
        in the reals: how far it may be off, for the oracle."""
        return {}

    @property
    def keeps_range(self) -> bool:
        """Whether no number overflows, of finite ones far from the dtype's extremes, that did not
        before: not where a law of the reals or a narrower type is at work."""
        return True

    def in_ring(self, kernel: Kernel) -> bool:
        """Whether the result equals `kernel` by laws that the ring has (`kir.interpret.ring`): not
        where something near stands in for ops, nor by laws of order, roots and logarithms. Where
        it does, the ring is the judge, whatever `effect_on` says of roundings."""
        return not self.errors(kernel)

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        """Loops, buffers and definitions of `before` that changed their name, to what they are
        called in `after`, most alike first; what is gone has no names. Others keep theirs."""
        gone = names_in(before) - names_in(after)
        return dict.fromkeys(sorted(gone), ())


@dataclass(frozen=True)
class Whole:
    """Any whole number from `low` to `high` (None: no limit); `tries` are worth trying first."""

    low: int
    high: int | None
    tries: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[StepArg, ...]

    @property
    def tries(self) -> tuple[StepArg, ...]:
        return self.values


Domain = Whole | Choice


@dataclass(frozen=True)
class Move:
    """A step with some parameters left open. Its legality depends on `fixed` alone: all values
    in the `domains` are as legal as the first ones."""

    rewrite: str
    fixed: tuple[tuple[str, StepArg], ...] = ()
    domains: tuple[tuple[str, Domain], ...] = ()

    def step(self, **values: StepArg) -> Step:
        """The step with the open parameters given; those left out take their first try."""
        chosen = {name: values.get(name, domain.tries[0]) for name, domain in self.domains}
        return Step(self.rewrite, options=(*self.fixed, *chosen.items()))

    def steps(self) -> Iterator[Step]:
        """The step under every combination of tries."""
        names = [name for name, _ in self.domains]
        for values in itertools.product(*(domain.tries for _, domain in self.domains)):
            yield self.step(**dict(zip(names, values, strict=True)))


def refuse(
    kernel: Kernel, message: str, *, node: Node | None = None, hint: str | None = None
) -> NoReturn:
    raise RewriteError(message, kernel=kernel, node=node, hint=hint)


# --- walking ---------------------------------------------------------------------------------


def statements(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """All statements below, parents first, in the order of the text."""
    return (below for stmt in body for below in statements_of(stmt))


def loops_of(body: Iterable[Stmt]) -> Iterator[Loop]:
    return (s for s in statements(body) if isinstance(s, Loop))


def buffers_of(body: Iterable[Stmt]) -> Iterator[Buffer]:
    return (s for s in statements(body) if isinstance(s, Buffer))


def var_names(*nodes: Node) -> set[str]:
    """The names of all Vars below, bound ones included."""
    return set().union(*(vars_of(n) for n in nodes))


def path_to(body: Block, target: Stmt) -> tuple[Stmt, ...] | None:
    """The Loops and Ifs around `target` (found by identity), outermost first; None if absent."""
    for stmt in body:
        if stmt is target:
            return ()
        if isinstance(stmt, Loop | If):
            inner = path_to(stmt.body, target)
            if inner is not None:
                return (stmt, *inner)
    return None


def extent_of(loop: Loop) -> int | None:
    """The loop's extent where it is a constant."""
    extent = loop.axis.extent
    return int(extent.value) if isinstance(extent, Const) else None


# --- finding by name -------------------------------------------------------------------------


def find_loop(kernel: Kernel, name: str) -> Loop:
    """The one loop called `name`; RewriteError naming near ones where there is none."""
    found = [loop for loop in loops_of(kernel.body) if loop.axis.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        refuse(
            kernel,
            f"{len(found)} loops are called `{name}`",
            node=found[1],
            hint="the rewrite `loops()` makes the names unique",
        )
    known = [loop.axis.name for loop in loops_of(kernel.body)]
    refuse(kernel, f"`{kernel.name}` has no loop `{name}`", hint=_near(name, known, "loops"))


def find_buffer(kernel: Kernel, name: str) -> Buffer:
    """The one buffer called `name`; RewriteError naming near ones where there is none."""
    found = [b for b in buffers_of(kernel.body) if b.name == name]
    if len(found) == 1:
        return found[0]
    known = [b.name for b in buffers_of(kernel.body)]
    if found:
        refuse(kernel, f"{len(found)} buffers are called `{name}`", node=found[1])
    refuse(kernel, f"`{kernel.name}` has no buffer `{name}`", hint=_near(name, known, "buffers"))


def _near(name: str, known: Sequence[str], what: str) -> str:
    if not known:
        extra = "; `loops()` makes them out of definitions" if what != "definitions" else ""
        return f"it has no {what}{extra}"
    near = difflib.get_close_matches(name, known, n=3)
    listed = ", ".join(f"`{k}`" for k in (near or dict.fromkeys(known)))
    return f"did you mean {listed}?" if near else f"its {what} are {listed}"


def require_loops(kernel: Kernel, body: Iterable[Stmt]) -> None:
    """RewriteError where there are definitions or reductions in `body` still."""
    for stmt in body:
        for node in () if in_loops(stmt) else walk(stmt):
            if isinstance(node, Define | Reduce):
                refuse(
                    kernel,
                    "this is not in loops yet",
                    node=node,
                    hint="`loops()` makes loops and buffers of definitions and reductions",
                )


# --- names -----------------------------------------------------------------------------------


def names_in(kernel: Kernel) -> set[str]:
    """Every name that is taken anywhere in the kernel."""
    used = {d.name for d in kernel.dims} | {p.name for p in kernel.params}
    return used.union(*(declared_in(s) for s in kernel.body))


def fresh(base: str, used: set[str]) -> str:
    """`base` if it is free, else `base_2`, `base_3`, ...; the name is entered into `used`."""
    name, stem, count = base, re.sub(r"_\d+$", "", base) or base, 2
    while name in used:
        name, count = f"{stem}_{count}", count + 1
    used.add(name)
    return name


def copy_with_fresh_names(
    body: Block, used: set[str], values: Mapping[str, Expr] | None = None
) -> Block:
    """A copy of the block whose loops and buffers have new names, which `used` grows by, with
    `values` in the place of indices."""
    loops = {x.axis.name: fresh(x.axis.name, used) for x in loops_of(body)}
    buffers = {b.name: fresh(b.name, used) for b in buffers_of(body)}
    return tuple(rename(s, loops, buffers, values or {}) for s in body)


def rename(
    node: Node,
    indices: Mapping[str, str],
    tensors: Mapping[str, str],
    values: Mapping[str, Expr] = MappingProxyType({}),
) -> Stmt:
    """The statement with indices (binders and uses) and tensors renamed, and with `values` in
    the place of other indices."""
    moving = {*indices, *values}

    def go(n: Node) -> Node:
        names = (vars_of(n), declared_in(n))
        if all(map(moving.isdisjoint, names)) and tensors_in(n).isdisjoint(tensors):
            return n
        n = rebuild(n, go)
        match n:
            case Var(name) if name in values:
                return values[name]
            case Var(name) | Axis(name) if name in indices:
                return replace(n, name=indices[name])
            case Read(tensor) if tensor in tensors:
                return replace(n, tensor=tensors[tensor])
            case Buffer(name) if name in tensors:
                return replace(n, name=tensors[name])
            case Store(target) if target in tensors:
                return replace(n, target=tensors[target])
        return n

    done = go(node)
    assert isinstance(done, Stmt)
    return done


# --- editing ---------------------------------------------------------------------------------


def map_blocks(body: Block, visit: Callable[[Block], Block]) -> Block:
    """The block with `visit` applied to it and to every block below it, inner ones first."""
    new = tuple(
        replace(s, body=map_blocks(s.body, visit)) if isinstance(s, Loop | If) else s for s in body
    )
    return visit(new if any(a is not b for a, b in zip(new, body, strict=True)) else body)


def edit_block(
    kernel: Kernel, target: Stmt, edit: Callable[[Block, int], Sequence[Stmt]]
) -> Kernel:
    """The kernel whose block that holds `target` (by identity) is `edit(block, position)`."""

    def go(body: Block) -> Block | None:
        for k, stmt in enumerate(body):
            if stmt is target:
                return tuple(edit(body, k))
            if isinstance(stmt, Loop | If):
                inner = go(stmt.body)
                if inner is not None:
                    return (*body[:k], replace(stmt, body=inner), *body[k + 1 :])
        return None

    done = go(kernel.body)
    assert done is not None
    return replace(kernel, body=done)


def replace_stmt(kernel: Kernel, target: Stmt, new: Sequence[Stmt]) -> Kernel:
    """The kernel with `new` in the place of `target`."""
    return edit_block(kernel, target, lambda block, k: (*block[:k], *new, *block[k + 1 :]))


def reindex(
    node: Node, tensor: str, index: Callable[[tuple[Expr, ...]], tuple[Expr, ...]], name: str
) -> Stmt:
    """The statement in which each access `tensor[i]` is `name[index(i)]`."""

    def go(n: Node) -> Node:
        if tensor not in tensors_in(n):
            return n
        n = rebuild(n, go)
        if isinstance(n, Read) and n.tensor == tensor:
            at = index(n.indices)  # without indices there is no out of bounds to fill
            return replace(n, tensor=name, indices=at, fill=n.fill if at else None)
        if isinstance(n, Store) and n.target == tensor:
            return replace(n, target=name, indices=index(n.indices))
        return n

    done = go(node)
    assert isinstance(done, Stmt)
    return done


def free_vars(expr: Node) -> set[str]:
    """The Vars of an expression that no reduction inside it binds."""
    if isinstance(expr, Var):
        return {expr.name}
    below: set[str] = set()
    for child in children(expr):
        below |= free_vars(child)
    return below - {a.name for a in expr.axes} if isinstance(expr, Reduce) else below


def guarded(conditions: Sequence[Expr], body: Block) -> Block:
    """The block under `if` for each condition."""
    for condition in reversed(conditions):
        body = (If(condition, body),)
    return body
