"""`online`: a reduction that waits for another one runs beside it, and is corrected as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import ClassVar

from kir.dtypes import DType, bool_, i64
from kir.ir import (
    TRUE,
    Buffer,
    Cast,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Read,
    Stmt,
    Store,
    Var,
    const,
    substitute,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    edit_block,
    fresh,
    guarded,
    map_blocks,
    refuse,
    var_names,
)
from kir.rewrites.legality import conflict, fusion_conflict, stored_in
from kir.rewrites.nests import Place, counted, grows, places
from kir.rewrites.scaling import Exponent
from kir.rewrites.waiting import SEQUENTIAL, Mean, Product, Sum, Waiting
from kir.simplify import simplify


@dataclass(frozen=True)
class Online(Rewrite):
    """`online(first, second)`: `second`, which waits for what `first` reduces, runs within it.

    Before::

        buffer m: f32 in reg = -inf
        for j: N { m max= x[j] }
        buffer s: f32 in reg = 0.0
        for j_2: N { s += exp(x[j_2] - m) }

    After `online(j, j_2)`::

        buffer m: f32 in reg = -inf
        buffer s: f32 in reg = 0.0
        for j: N {
          buffer m_old: f32 in reg
          m_old = m
          m max= x[j]
          buffer m_safe: f32 in reg
          m_safe = select(m == -inf, 0.0, m)
          buffer m_scale: f32 in reg
          m_scale = select(m_old == m or m_old == -inf, 1.0, exp(m_old - m_safe))
          s *= m_scale
          s += exp(x[j] - m_safe)
        }
        if N > 0 and m == -inf { s *= exp(-m) }

    What `second` adds up must be a product in which the scalar occurs as exp(c*(x - m)), where m
    is the greatest x (exp2 likewise; the least x for a negative c), or as a factor or divisor,
    which is then applied once, after the loop. So softmax becomes online softmax (Milakov and
    Gimelshein 2018), attention flash attention (Dao et al. 2022). While all x are -inf the sums
    are kept relative to 0, so that they come out as written, NaN included.

    A product of two distances from means, (x - s/n) * (y - t/n) with s and t the sums of x and y
    over the n iterations, is taken about running means, and the sum of the k products before
    gains k times the steps of the two: so the variance becomes Welford's (1962), and by blocks
    that of Chan, Golub and LeVeque (1983).
    """

    name: ClassVar[str] = "online"
    effect: ClassVar[Effect] = "approximates"
    first: str
    second: str

    def edit(self, kernel: Kernel) -> Kernel:
        return _Build(kernel, self.first, self.second).done()

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for block in _blocks(kernel.body):
            loops = [s for s in block if isinstance(s, Loop) and s.kind in SEQUENTIAL]
            for k, a in enumerate(loops):
                for b in loops[k + 1 :]:
                    if a.kind == b.kind and a.axis.extent == b.axis.extent:
                        names = (("first", a.axis.name), ("second", b.axis.name))
                        yield Move(cls.name, names)

    def effect_on(self, kernel: Kernel) -> Effect:
        work = _Build(kernel, self.first, self.second)
        work.done()
        other = any(s.scale.exponents for s in work.sums) or work.products
        return "approximates" if other or work.scaling.narrowed else "reassociates"

    def bound(self) -> str:
        return (
            "each time the greatest value changes from r to r', relative (10 + 3*|c*(r - r')|) * "
            "2^-24 on every sum of f32 (the correction exp(c*(r - r')), its argument, and its "
            "product with the sum); what is cast to a narrower dtype is rounded relative to a "
            "running value, so relative 2^-8 on each term in bf16, 2^-11 in f16; on a sum of n "
            "products of distances from means, relative n*(1 + |mean|/deviation) * 2^-24"
        )

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return {self.second: (self.first,)}


def _blocks(body: Block) -> Iterator[Block]:
    yield body
    for s in body:
        if isinstance(s, Loop | If):
            yield from _blocks(s.body)


class _Build(Waiting):
    """The loop that does both."""

    def done(self) -> Kernel:
        """The kernel after the rewrite; RewriteError where it is refused."""
        self._find()
        self._scalars()
        body = self._body(self.b.body, (self.b,), tuple(self._conditions(self.b)))
        if not self.sums and not self.products:
            refuse(
                self.kernel,
                f"nothing that `{self.second}` adds up depends on what `{self.first}` reduces",
                node=self.b,
                hint=f"`fuse({self.first}, {self.second})` needs no corrections",
            )
        self._check_temporaries()
        ahead, behind = self._moved(replace(self.b, body=body))
        fused, after = self._fused(body), self._after()
        powers = [p for s in self.sums for p in self._powers(s)]
        made = (*ahead, *self._declared(), self._with_counts(fused), *after, *behind, *powers)

        def edit(block: Block, k: int) -> Block:
            at = next(n for n, s in enumerate(block) if s is self.b)
            return (*block[:k], *made, *block[at + 1 :])

        return edit_block(self.kernel, self.a, edit)

    # --- putting it together

    def _moved(self, second: Loop) -> tuple[Block, Block]:
        """The statements in between: those that go before the loop, and those behind it."""
        running = [
            Buffer(names.safe, self._scalar(name).type, (), "reg")
            for name, names in self.running.items()
        ]
        running += [
            Buffer(mean.value, mean.sum.stmt.value.dtype, (), "reg") for mean in self.means.values()
        ]

        def edit(block: Block, k: int) -> Block:
            rest = tuple(second if s is self.b else s for s in block[k:])
            return (*block[:k], *running, *rest)

        trial = edit_block(self.kernel, self.a, edit)
        found = fusion_conflict(trial, self.a, second)
        if found:
            message = f"`{self.second}` must wait for `{self.first}`: {found}"
            refuse(self.kernel, message, node=self.b)
        before: list[Stmt] = []
        after: list[Stmt] = []
        for s in self.between:
            blocked = conflict((s,), (self.a, *after)) or conflict((self.a, *after), (s,))
            if not blocked:
                before.append(s)
                continue
            stays = conflict((s,), (second,)) or conflict((second,), (s,))
            if stays:
                name = stays.first.tensor
                message = f"this must stay between the two loops because of `{name}`"
                refuse(self.kernel, message, node=s)
            after.append(s)
        return tuple(before), tuple(after)

    def _fused(self, body: Block) -> Loop:
        here: dict[str, Expr] = {self.b.axis.name: Var(self.a.axis.name)}
        where = tuple(substitute(c, here) for c in self.b.where)
        second = tuple(substitute(s, here) for s in body)
        save, correct = self._corrections()
        hints = tuple(dict((*self.b.hints, *self.a.hints)).items())
        if where == self.a.where and not stored_in(where, self.a.body):
            whole = (*save, *self.a.body, *correct, *second)
            return replace(self.a, body=whole, hints=hints)
        whole = (*save, *guarded(self.a.where, self.a.body), *correct, *guarded(where, second))
        return replace(self.a, where=(), body=whole, hints=hints)

    def _corrections(self) -> tuple[Block, Block]:
        """Statements that keep the old scalars, and those that correct sums for the new ones."""
        save: list[Stmt] = []
        correct: list[Stmt] = []
        for name, names in self.running.items():
            scalar, around = self._scalar(name), self._steady(self._update(name))
            save.extend(_kept(names.old, scalar, around))
            safe = _safe(scalar, self._update(name))
            correct.extend(_kept(names.safe, safe, around))
        for mean in self.means.values():
            self._move_mean(mean, save, correct)
        factors: dict[tuple[Exponent, float], Read] = {}
        for s in self.sums:
            for exponent, c in s.scale.ordered():
                if (exponent, c) not in factors:
                    factors[exponent, c] = self._factor(exponent, c, correct)
        for s in self.sums:
            for key in s.scale.ordered():
                correct.append(self._on(s, factors[key], "mul"))
        for p in self.products:
            correct.append(self._recentred(p))
        return tuple(save), tuple(correct)

    def _move_mean(self, mean: Mean, save: list[Stmt], correct: list[Stmt]) -> None:
        """The mean of what was added up so far, and how far it moved; 0 while there is none."""
        store, around = mean.sum.stmt, self._steady(mean.sum)
        dtype = store.value.dtype
        value, zero = Read(mean.value, (), dtype), Const(0.0, dtype)
        count, old_count = Read(mean.count, (), i64), Read(mean.old_count, (), i64)
        save.extend(_kept(mean.old, value, ()))
        save.extend(_kept(mean.old_count, count, ()))
        total = op("div", Read(store.target, store.indices, dtype), Cast(count, dtype))
        new = op("select", op("eq", count, const(0)), zero, total)
        correct.extend(guarded(around, (Store(mean.value, (), new),)))
        gap = op("sub", value, Read(mean.old, (), dtype))
        first = op("eq", old_count, const(0))
        correct.extend(_kept(mean.step, op("select", first, zero, gap), ()))

    def _recentred(self, p: Product) -> Stmt:
        """The sum of the n products so far, taken about the new means: n * step * step more
        (Chan, Golub and LeVeque 1983, equation 1.5)."""
        one, two = (self.means[n] for n in p.means)
        store = p.place.stmt
        dtype = store.value.dtype
        count: Expr = Cast(Read(one.old_count, (), i64), dtype)
        more = op("mul", op("mul", Read(one.step, (), dtype), Read(two.step, (), dtype)), count)
        value = more if p.sign > 0 else op("neg", more)
        return self._nest(p.place, p.kept, Store(store.target, store.indices, value, "add"))

    def _factor(self, exponent: Exponent, c: float, into: list[Stmt]) -> Read:
        """The factor f(c*(r_old - r)) by which sums relative to the old scalar are corrected."""
        name, dtype = exponent.scalar, exponent.type
        scalar, names = self._scalar(name), self.running[name]
        old = replace(scalar, tensor=names.old, indices=())
        update = self._update(name)
        assert update.stmt.op is not None
        gap: Expr = op("sub", old, Read(names.safe, (), scalar.type))
        value = op(exponent.function, _times(gap, -c, exponent.factors, dtype))
        # while the old one is the identity, all that was added is 0: a factor could only overflow
        none = op("eq", old, identity(update.stmt.op, scalar.type))
        same = op("select", op("or", op("eq", old, scalar), none), Const(1.0, dtype), value)
        made = fresh(f"{name}_scale", self.used)
        into.extend(_kept(made, same, self._steady(self._update(name))))
        return Read(made, (), dtype)

    def _scalar(self, name: str) -> Read:
        place = self._update(name)
        return Read(name, place.stmt.indices, place.stmt.value.dtype)

    def _steady(self, place: Place) -> tuple[Expr, ...]:
        """The conditions on a scalar's update that do not change in the loop."""
        inside = {x.axis.name for x in place.loops}
        return tuple(c for c in place.conditions if not var_names(c) & inside)

    def _on(self, s: Sum, factor: Expr, name: str) -> Stmt:
        """A nest that multiplies (divides) all of an accumulator by a factor."""
        store = s.place.stmt
        dtype = store.value.dtype
        value = factor if factor.dtype == dtype else Cast(factor, dtype)
        if name == "mul":
            made: Stmt = Store(store.target, store.indices, value, "mul")
        else:
            old = Read(store.target, store.indices, dtype)
            made = Store(store.target, store.indices, op(name, old, value))
        return self._nest(s.place, s.kept, made)

    def _nest(self, place: Place, kept: tuple[Loop, ...], made: Stmt) -> Stmt:
        """`made` for all of an accumulator: in the loops that index it, under their masks."""
        dropped = {x.axis.name for x in place.loops if x not in kept}
        conditions = [c for c in place.conditions if not var_names(c) & dropped]
        for x in reversed(kept):
            mine = tuple(c for c in conditions if x.axis.name in var_names(c))
            conditions = [c for c in conditions if c not in mine]
            new = fresh(x.axis.name, self.used)
            loop = Loop(x.kind, replace(x.axis, name=new), mine, (made,))
            made = substitute(loop, {x.axis.name: Var(new)})
        return guarded(tuple(conditions), (made,))[0]

    def _after(self) -> Block:
        """What is due after the loop for sums whose reference stayed 0."""
        made: list[Stmt] = []
        for s in self.sums:
            for exponent, c in s.scale.ordered():
                scalar, place = self._scalar(exponent.scalar), self._update(exponent.scalar)
                value = _times(scalar, c, exponent.factors, exponent.type)
                factor = op(exponent.function, value)
                assert place.stmt.op is not None
                never = op("eq", scalar, identity(place.stmt.op, scalar.type))
                some = self._some(place, place.loops)
                due = _all((*self._steady(place), *some, never))
                made.append(If(due, (self._on(s, factor, "mul"),)))
        return tuple(made)

    def _declared(self) -> Block:
        """The buffers that outlive an iteration: flags and running means."""
        made = [Buffer(n, bool_, (), "reg", Const(False, bool_)) for n in self.witnesses.values()]
        for mean in self.means.values():
            dtype = mean.sum.stmt.value.dtype
            made.append(Buffer(mean.value, dtype, (), "reg", Const(0.0, dtype)))
            made.append(Buffer(mean.count, i64, (), "reg", const(0)))
        return tuple(made)

    def _with_counts(self, loop: Loop) -> Loop:
        """The loop, where flags are set and what is averaged is counted."""
        extra: dict[tuple[str, str | None], Store] = {
            (mean.sum.stmt.target, "add"): Store(mean.count, (), const(1), "add")
            for mean in self.means.values()
        }
        for p in (*places(self.a), *places(self.b)):
            if id(p.stmt) in self.witnesses:
                flag = self.witnesses[id(p.stmt)]
                extra[p.stmt.target, p.stmt.op] = Store(flag, (), TRUE, "or")

        def block(body: Block) -> Block:
            made: list[Stmt] = []
            for s in body:
                made.append(s)
                if isinstance(s, Store) and (s.target, s.op) in extra:
                    made.append(extra[s.target, s.op])
            return tuple(made)

        return replace(loop, body=map_blocks(loop.body, block)) if extra else loop

    def _powers(self, s: Sum) -> Block:
        """A sum times (over) the final scalars that are factors (divisors) of all its terms."""
        made: list[Stmt] = []
        outside = tuple(x for x in s.place.loops if x not in s.kept)
        for name, power in sorted(s.scale.powers):
            stores = [p.stmt for p in self._reductions[name]]
            scalar = Read(name, stores[0].indices, stores[0].value.dtype)
            nest = self._on(s, scalar, "mul" if power > 0 else "div")
            made.extend(guarded(self._some(s.place, outside), (nest,) * abs(power)))
        return tuple(made)

    def _some(self, place: Place, loops: tuple[Loop, ...]) -> tuple[Expr, ...]:
        """Conditions for a statement to run at all in these loops around it."""
        inside = {x.axis.name for x in loops}
        first: dict[str, Expr] = dict.fromkeys(inside, const(0))
        found: list[Expr] = []
        for x in loops:
            if var_names(x.axis.extent) & inside:
                return (self._witness(place),)
            found.append(op("lt", const(0), counted(x.axis.extent)))
        for c in place.conditions:
            if var_names(c) & inside:
                if not grows(c, inside):
                    return (self._witness(place),)
                found.append(substitute(c, first))
        return tuple(c for c in dict.fromkeys(map(simplify, found)) if c != TRUE)

    def _witness(self, place: Place) -> Expr:
        """A flag that is set where the statement runs."""
        key = id(place.stmt)
        if key not in self.witnesses:
            self.witnesses[key] = fresh(f"{place.stmt.target}_any", self.used)
        return Read(self.witnesses[key], (), bool_)


def _all(conditions: Sequence[Expr]) -> Expr:
    return reduce(partial(op, "and"), conditions)


def _safe(scalar: Read, update: Place) -> Expr:
    """The scalar, or 0 while it is the identity of its reduction."""
    assert update.stmt.op is not None
    never = op("eq", scalar, identity(update.stmt.op, scalar.type))
    return op("select", never, Const(0.0, scalar.type), scalar)


def _times(e: Expr, coefficient: float, factors: tuple[Expr, ...], dtype: DType) -> Expr:
    """`coefficient * factors * e` in a dtype."""
    value = e if e.dtype == dtype else Cast(e, dtype)
    for f in factors:
        value = op("mul", value, f)
    if coefficient == 1.0:
        return value
    return op("neg", value) if coefficient == -1.0 else op("mul", value, Const(coefficient, dtype))


def _kept(name: str, value: Expr, conditions: Sequence[Expr]) -> Block:
    """A new scalar in registers with a value."""
    store = Store(name, (), value)
    return (Buffer(name, value.dtype, (), "reg"), *guarded(conditions, (store,)))
