"""Loops of one block become one: `fuse`, `merge`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Buffer, Expr, If, Kernel, Loop, Stmt, Var, substitute
from kir.memo import declared_in
from kir.rewrites.base import (
    EFFECTS,
    Block,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    edit_block,
    find_loop,
    fresh,
    guarded,
    loops_of,
    names_in,
    path_to,
    refuse,
    rename,
)
from kir.rewrites.legality import (
    conflict,
    fusion_conflict,
    order_across,
    order_of_blocks,
    parallel_conflict,
    stored_in,
)
from kir.simplify import simplify


@dataclass(frozen=True)
class Fuse(Rewrite):
    """`fuse(i, j)`: two loops of one block, equal in extent and kind, become one, called `i`.

    Before::

        for i: M { a[i] = x[i] }
        for j: M { y[j] = a[j] }

    After::

        for i: M {
          a[i] = x[i]
          y[i] = a[i]
        }

    Statements between them move before or behind where they are independent. Masks that differ
    become guards. Refused where an iteration of `j` needs a later one of `i`; of a grid or tile,
    any other one.
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    second: str

    def edit(self, kernel: Kernel) -> Kernel:
        a, b = find_loop(kernel, self.loop), find_loop(kernel, self.second)
        if a is b or a.kind != b.kind:
            what = "the same loop" if a is b else "of different kinds; `bind` them alike first"
            refuse(kernel, f"`{self.loop}` and `{self.second}` are {what}", node=b)
        if simplify(a.axis.extent) != simplify(b.axis.extent):
            refuse(kernel, "the extents of the two loops differ", node=b)
        block = block_of(kernel, a)
        if not any(s is b for s in _after(block, a)):
            refuse(
                kernel,
                f"`{self.second}` does not follow `{self.loop}` in its block",
                node=b,
                hint="loops around them are fused first",
            )
        return _fused(kernel, a, b, kernel)[0]

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every pair of loops of one block that are alike."""
        for loop in loops_of(kernel.body):
            for other in _alike(kernel, loop):
                yield Move("fuse", (("loop", loop.axis.name), ("second", other.axis.name)))

    def effect_on(self, kernel: Kernel) -> Effect:
        return _effect(kernel, find_loop(kernel, self.loop), find_loop(kernel, self.second))

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return {self.second: (self.loop,)}


@dataclass(frozen=True)
class Merge(Rewrite):
    """`merge(i, depth = 1, until = j)`: the nest at `i` and all nests like it that follow in its
    block become one, `depth` loops deep.

    Before::

        for i: M { for k: N { a[i, k] = x[i, k] } }
        buffer s: f32[M] in global = 0.0
        for i_2: M { for k_2: N { s[i_2] += a[i_2, k_2] } }
        for i_3: M { y[i_3] = s[i_3] }

    After `merge(i, 2, until = i_2)`::

        buffer s: f32[M] in global = 0.0
        for i: M {
          for k: N {
            a[i, k] = x[i, k]
            s[i] += a[i, k]
          }
        }
        for i_3: M { y[i_3] = s[i_3] }

    Alike are loops of equal kind and extent; they are fused one after the other, as by `fuse`,
    then the first loop in the body with those like it there, and so on. Statements in between
    move before or behind where they are independent, so buffers come to stand in front. With
    `until` the outermost loop takes in no nest behind that one. Refused where some pair cannot
    be fused, or at some depth there is nothing to fuse.
    """

    name: ClassVar[str] = "merge"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    depth: int = 1
    until: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        return self._merged(kernel)[0]

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop with the next one or more that are alike, as deep as the first nest goes."""
        for loop in loops_of(kernel.body):
            others = _alike(kernel, loop)
            for k, last in enumerate(others):
                until = () if k == len(others) - 1 else (("until", last.axis.name),)
                inner: Loop | None = loop
                depth = 0
                while inner is not None:
                    depth += 1
                    yield Move("merge", (("loop", loop.axis.name), ("depth", depth), *until))
                    inner = next((s for s in inner.body if isinstance(s, Loop)), None)

    def effect_on(self, kernel: Kernel) -> Effect:
        found = (_effect(*fusion) for fusion in self._merged(kernel)[1])
        return max(found, key=EFFECTS.index, default="exact")

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return {b.axis.name: (a.axis.name,) for _, a, b in self._merged(before)[1]}

    def _merged(self, kernel: Kernel) -> tuple[Kernel, list[tuple[Kernel, Loop, Loop]]]:
        """The kernel after, and the fusions on the way: a kernel and the two loops of it."""
        if self.depth < 1:
            refuse(kernel, f"nests cannot be merged {self.depth} deep")
        given, loop = kernel, find_loop(kernel, self.loop)
        fusions: list[tuple[Kernel, Loop, Loop]] = []
        for level in range(self.depth):
            others = _alike(kernel, loop)
            if level == 0 and self.until is not None:
                others = self._limited(kernel, loop, others)
            if not others:
                name = loop.axis.name
                refuse(
                    given,
                    f"no loop of the same kind and extent follows `{name}` in its block",
                    node=find_loop(given, name),
                )
            for other in others:
                fusions.append((kernel, loop, other))
                kernel, loop = _fused(kernel, loop, other, given)
            if level + 1 < self.depth:
                below = next((s for s in loop.body if isinstance(s, Loop)), None)
                if below is None:
                    name = loop.axis.name
                    message = f"there is no loop in the body of `{name}` to merge"
                    refuse(given, message, node=find_loop(given, name))
                loop = below
        return kernel, fusions

    def _limited(self, kernel: Kernel, loop: Loop, others: list[Loop]) -> list[Loop]:
        assert self.until is not None
        last = find_loop(kernel, self.until)
        at = next((k for k, s in enumerate(others) if s is last), None)
        if at is None:
            refuse(
                kernel,
                f"`{self.until}` is no loop like `{self.loop}` that follows it in its block",
                node=last,
            )
        return others[: at + 1]


def block_of(kernel: Kernel, stmt: Stmt) -> Block:
    """The block that holds `stmt` (by identity)."""
    path = path_to(kernel.body, stmt)
    assert path is not None
    if not path:
        return kernel.body
    assert isinstance(path[-1], Loop | If)
    return path[-1].body


def _after(block: Block, stmt: Stmt) -> Block:
    at = next(k for k, s in enumerate(block) if s is stmt)
    return block[at + 1 :]


def _alike(kernel: Kernel, loop: Loop) -> list[Loop]:
    """The loops of the same kind and extent that follow `loop` in its block."""
    extent = simplify(loop.axis.extent)
    return [
        s
        for s in _after(block_of(kernel, loop), loop)
        if isinstance(s, Loop) and s.kind == loop.kind and simplify(s.axis.extent) == extent
    ]


def _fused(kernel: Kernel, a: Loop, b: Loop, given: Kernel) -> tuple[Kernel, Loop]:
    """`kernel` with `b`, which follows `a` in its block, fused into it; and the new loop.

    A refusal shows `given`, the kernel as it was before other loops were fused.
    """
    found = fusion_conflict(kernel, a, b)
    if found:
        first, second = a.axis.name, b.axis.name
        message = f"`{second}` must wait for `{first}`: {found}"
        refuse(given, message, node=find_loop(given, second))
    new = _joined(a, _renamed(kernel, a, b))

    def edit(block: Block, k: int) -> Sequence[Stmt]:
        at = next(n for n, s in enumerate(block) if s is b)
        before, after = _moved(given, a, b, block[k + 1 : at])
        return (*block[:k], *before, new, *after, *block[at + 1 :])

    made = edit_block(kernel, a, edit)
    if a.kind in ("grid", "tile"):
        found = parallel_conflict(made, new)
        if found:
            message = (
                f"with `{b.axis.name}` in it the {a.kind} `{a.axis.name}` carries a dependence"
            )
            refuse(given, f"{message}: {found}", node=find_loop(given, b.axis.name))
    return made, new


def _effect(kernel: Kernel, a: Loop, b: Loop) -> Effect:
    """What fusing `b` into `a` does to float results: exact unless both update one element, or
    what stands between them updates what they do."""
    block = block_of(kernel, a)
    between = tuple(itertools.takewhile(lambda s: s is not b, _after(block, a)))
    return max(order_across(a, b), order_of_blocks(between, (a, b)), key=EFFECTS.index)


def _moved(kernel: Kernel, a: Loop, b: Loop, between: Block) -> tuple[Block, Block]:
    """The statements between `a` and `b`: those that go before both, and those that go behind."""
    before: list[Stmt] = []
    after: list[Stmt] = []
    for s in between:
        if isinstance(s, Buffer) and any(x.name == s.name for x in buffers_of((a,))):
            refuse(kernel, f"another buffer inside `{a.axis.name}` is called `{s.name}`", node=s)
        blocked = conflict((s,), (a, *after)) or conflict((a, *after), (s,))
        if not blocked:
            before.append(s)
        else:
            stays = conflict((s,), (b,)) or conflict((b,), (s,))
            if stays:
                name = stays.first.tensor
                refuse(
                    kernel,
                    f"this stands between the two loops, and `{name}` keeps it there",
                    node=s,
                )
            after.append(s)
    return tuple(before), tuple(after)


def _renamed(kernel: Kernel, a: Loop, b: Loop) -> Loop:
    """`b` with other names for what would shadow `a`'s index or a buffer of its body."""
    taken = {a.axis.name} | {s.name for s in a.body if isinstance(s, Buffer)}
    bound = {n for n in taken if any(n in declared_in(s) for s in b.body)}
    if not bound:
        return b
    used = names_in(kernel)
    names = {n: fresh(n, used) for n in sorted(bound)}
    return replace(b, body=tuple(rename(s, names, names) for s in b.body))


def _joined(a: Loop, b: Loop) -> Loop:
    here: dict[str, Expr] = {b.axis.name: Var(a.axis.name)}
    where = tuple(substitute(c, here) for c in b.where)
    body = tuple(substitute(s, here) for s in b.body)
    hints = tuple(dict((*b.hints, *a.hints)).items())
    if where == a.where and not stored_in(where, a.body):
        return replace(a, body=a.body + body, hints=hints)
    both = (*guarded(a.where, a.body), *guarded(where, body))
    return replace(a, where=(), body=both, hints=hints)
