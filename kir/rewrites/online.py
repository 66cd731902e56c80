"""`online`: a reduction that waits for another one runs beside it, and is corrected as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import ClassVar

from kir.dtypes import DType, bool_
from kir.ir import (
    TRUE,
    Buffer,
    Cast,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Op,
    Read,
    Stmt,
    Store,
    Var,
    const,
    substitute,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    edit_block,
    find_loop,
    fresh,
    guarded,
    map_blocks,
    names_in,
    path_to,
    refuse,
    require_loops,
    var_names,
)
from kir.rewrites.legality import accesses, conflict, fusion_conflict, stored_in
from kir.rewrites.scaling import NEUTRAL, Exponent, Scale, Scaling
from kir.simplify import interval, linear, simplify


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
          m_scale = select(m_old == m, 1.0, exp(select(m_old == -inf, 0.0, m_old) - m_safe))
          s *= m_scale
          s += exp(x[j] - m_safe)
        }
        if N > 0 and m == -inf { s *= exp(-m) }

    What `second` adds up must be a product in which the scalar occurs as exp(c*(x - m)), where m
    is the greatest x (exp2 likewise; the least x for a negative c), or as a factor or divisor,
    which is then applied once, after the loop. So softmax becomes online softmax (Milakov and
    Gimelshein 2018), attention flash attention (Dao et al. 2022). While all x are -inf the sums
    are kept relative to 0, so that they come out as written, NaN included.
    """

    name: ClassVar[str] = "online"
    effect: ClassVar[Effect] = "approximates"
    first: str
    second: str

    def edit(self, kernel: Kernel) -> Kernel:
        return _Work(kernel, self.first, self.second).done()

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for block in _blocks(kernel.body):
            loops = [s for s in block if isinstance(s, Loop)]
            for k, a in enumerate(loops):
                for b in loops[k + 1 :]:
                    if a.kind == b.kind and a.axis.extent == b.axis.extent:
                        names = (("first", a.axis.name), ("second", b.axis.name))
                        yield Move(cls.name, names)

    def effect_on(self, kernel: Kernel) -> Effect:
        work = _Work(kernel, self.first, self.second)
        work.done()
        exponents = any(s.scale.exponents for s in work.sums)
        return "approximates" if exponents or work.scaling.narrowed else "reassociates"

    def bound(self) -> str:
        return (
            "each time the reference changes from r to r', relative (10 + 2*|c*(r - r')|) * 2^-24 "
            "on every sum of f32 (the correction exp(c*(r - r')), and its product with the sum); "
            "what is cast to a narrower dtype is rounded relative to a running reference, so "
            "relative 2^-8 on each term in bf16, 2^-11 in f16"
        )

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return {self.second: (self.first,)}


def _blocks(body: Block) -> Iterator[Block]:
    yield body
    for s in body:
        if isinstance(s, Loop | If):
            yield from _blocks(s.body)


# --- what is found -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A statement with the loops around it (from the loop at hand inwards) and all conditions."""

    stmt: Store
    loops: tuple[Loop, ...]
    conditions: tuple[Expr, ...]


def _places(loop: Loop) -> Iterator[_Place]:
    def go(body: Block, loops: tuple[Loop, ...], where: tuple[Expr, ...]) -> Iterator[_Place]:
        for s in body:
            if isinstance(s, Store):
                yield _Place(s, loops, where)
            elif isinstance(s, Loop):
                yield from go(s.body, (*loops, s), (*where, *s.where))
            elif isinstance(s, If):
                yield from go(s.body, loops, (*where, s.condition))

    yield from go(loop.body, (loop,), loop.where)


@dataclass(frozen=True)
class _Sum:
    """An accumulator of the second loop that scales with scalars."""

    place: _Place
    scale: Scale
    kept: tuple[Loop, ...]
    """The loops that index it."""


@dataclass
class _Names:
    old: str
    safe: str


@dataclass
class _Work:
    """One application: checks and builds."""

    kernel: Kernel
    first: str
    second: str
    a: Loop = field(init=False)
    b: Loop = field(init=False)
    block: Block = field(init=False)
    between: Block = field(init=False)
    before: Block = field(init=False)
    used: set[str] = field(init=False)
    scaling: Scaling = field(init=False)
    sums: list[_Sum] = field(default_factory=list)
    running: dict[str, _Names] = field(default_factory=dict)
    updates: dict[str, _Place] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)
    """Tensors that are given values of no scale."""
    scaled_inits: set[str] = field(default_factory=set)
    witnesses: dict[int, str] = field(default_factory=dict)
    """Buffers that tell whether a store (by its identity) ever ran."""
    loops: tuple[Loop, ...] = ()
    """Those around the expression of the second loop at hand."""

    def done(self) -> Kernel:
        self._find()
        self._scalars()
        body = self._body(self.b.body, (self.b,), tuple(self._conditions(self.b)))
        if not self.sums:
            refuse(
                self.kernel,
                f"nothing that `{self.second}` adds up depends on what `{self.first}` reduces",
                node=self.b,
                hint=f"`fuse({self.first}, {self.second})` needs no corrections",
            )
        self._check_temporaries()
        ahead, behind = self._moved(replace(self.b, body=body))
        fused, after = self._fused(body), self._after()
        made = (*ahead, *self._flags(), self._flagged(fused), *after, *behind)

        def edit(block: Block, k: int) -> Block:
            at = next(n for n, s in enumerate(block) if s is self.b)
            return (*block[:k], *made, *block[at + 1 :])

        return edit_block(self.kernel, self.a, edit)

    def _find(self) -> None:
        kernel = self.kernel
        self.a, self.b = a, b = find_loop(kernel, self.first), find_loop(kernel, self.second)
        path = path_to(kernel.body, a) or ()
        around = path[-1] if path else None
        self.block = around.body if isinstance(around, Loop | If) else kernel.body
        at = next(k for k, s in enumerate(self.block) if s is a)
        to = next((k for k, s in enumerate(self.block) if s is b), -1)
        if to <= at:
            refuse(
                kernel,
                f"`{self.second}` does not follow `{self.first}` in its block",
                node=b,
                hint="loops around them are fused first",
            )
        if a.kind != b.kind or simplify(a.axis.extent) != simplify(b.axis.extent):
            refuse(kernel, "the two loops differ in kind or extent", node=b)
        require_loops(kernel, (a, b))
        self.before, self.between = self.block[:at], self.block[at + 1 : to]
        self.used = names_in(kernel)

    def _scalars(self) -> None:
        """What the second loop waits for, and what is computed from it in between."""
        inside = {x.axis.name for x in walk(self.a) if isinstance(x, Loop)}
        written = {x.tensor: x.indices for x in accesses((self.a,)) if x.op != "read"}
        fixed = {n: at for n, at in written.items() if not any(var_names(i) & inside for i in at)}
        values: dict[str, tuple[tuple[Expr, ...], Expr]] = {}
        for s in self.between:
            if isinstance(s, Store) and s.op is None:
                reads = {n.tensor for n in walk(s.value) if isinstance(n, Read)}
                if reads & (set(fixed) | set(values)):
                    values[s.target] = (s.indices, s.value)
        wanted = {x.tensor for x in accesses((self.b,)) if x.op == "read"} & (
            set(fixed) | set(values)
        )
        if not wanted:
            refuse(
                self.kernel,
                f"`{self.second}` does not wait for a reduction of `{self.first}`",
                node=self.b,
                hint=f"`fuse({self.first}, {self.second})` needs no corrections",
            )
        self.scaling = Scaling(
            scalars=fixed,
            values=values,
            running=self._running,
            peaks=self._peak,
            invariant=self._invariant,
            refuse=lambda message, node: refuse(self.kernel, message, node=node),
        )

    # --- questions that the algebra asks

    def _running(self, name: str) -> Read:
        """The running value of a scalar in exponents: 0 for as long as it is the identity."""
        dtype = self._update(name).stmt.value.dtype
        if name not in self.running:
            old, safe = (fresh(f"{name}_{what}", self.used) for what in ("old", "safe"))
            self.running[name] = _Names(old, safe)
        return Read(self.running[name].safe, (), dtype)

    def _update(self, name: str) -> _Place:
        """The one update of a scalar that is an extremum."""
        if name not in self.updates:
            found = [p for p in _places(self.a) if p.stmt.target == name]
            s = found[0].stmt
            if len(found) != 1 or s.op not in ("max", "min") or not s.value.dtype.is_float:
                refuse(
                    self.kernel,
                    f"`{name}` is in an exponent, and is no `max` or `min` of one expression",
                    node=s,
                    hint="only relative to the greatest value can exp not overflow",
                )
            self.updates[name] = found[0]
        return self.updates[name]

    def _peak(self, e: Expr) -> str | None:
        """The scalar that `e`, in the second loop, is the extremum of."""
        if not isinstance(e, Read | Op | Cast):
            return None
        for name in self.scaling.scalars:
            place = next((p for p in _places(self.a) if p.stmt.target == name), None)
            if place is None or place.stmt.op not in ("max", "min"):
                continue
            value = place.stmt.value
            if type(value) is not type(e) or value.dtype != e.dtype:
                continue
            for here in _renamings(self.loops, place.loops):
                if substitute(e, here) == value and not self._changed(value):
                    return name
        return None

    def _changed(self, value: Expr) -> bool:
        """Whether a tensor read by `value` is stored to after the first loop read it."""
        reads = {n.tensor for n in walk(value) if isinstance(n, Read)}
        return any(x.op != "read" and x.tensor in reads for x in accesses((*self.between, self.b)))

    def _invariant(self, e: Expr) -> bool:
        inside = {x.axis.name for x in walk(self.b) if isinstance(x, Loop)}
        stored = {x.tensor for x in accesses((self.a, *self.between, self.b)) if x.op != "read"}
        reads = {n.tensor for n in walk(e) if isinstance(n, Read)}
        return not var_names(e) & inside and not reads & stored

    # --- the second loop

    def _conditions(self, stmt: Loop | If) -> list[Expr]:
        found = stmt.where if isinstance(stmt, Loop) else (stmt.condition,)
        return [self.scaling.plain(c, "this condition") for c in found]

    def _body(self, body: Block, loops: tuple[Loop, ...], where: tuple[Expr, ...]) -> Block:
        """The statements for running values; fills `sums` and the scales of temporaries."""
        made: list[Stmt] = []
        for s in body:
            if isinstance(s, Loop):
                self.scaling.plain(s.axis.extent, "this extent")
                below = (*where, *self._conditions(s))
                made.append(replace(s, body=self._body(s.body, (*loops, s), below)))
            elif isinstance(s, If):
                below = (*where, *self._conditions(s))
                made.append(replace(s, body=self._body(s.body, loops, below)))
            elif isinstance(s, Buffer):
                self.loops = loops
                scale, init = self.scaling.of(s.init) if s.init is not None else (NEUTRAL, None)
                if scale:
                    self._scaled(s.name, scale, s)
                    self.scaled_inits.add(s.name)
                made.append(replace(s, init=init))
            elif isinstance(s, Store):
                made.append(self._store(_Place(s, loops, where)))
            else:
                made.append(s)
        return tuple(made)

    def _store(self, place: _Place) -> Store:
        s = place.stmt
        self.loops = place.loops
        for i in s.indices:
            self.scaling.plain(i, "this index")
        scale, value = self.scaling.of(s.value)
        known = self.scaling.scales.get(s.target, NEUTRAL)
        if scale or known:
            if not scale and _is_zero(s.value) and s.op is None:
                return s
            if s.op not in (None, "add"):
                refuse(self.kernel, f"`{s.op}` of corrected values is not corrected", node=s)
            if self._is_temporary(s.target):
                self._scaled(s.target, scale, s)
            elif s.op == "add":
                self.sums.append(self._sum(place, scale))
            else:
                names = sorted({e.scalar for e, _ in scale.exponents} | dict(scale.powers).keys())
                refuse(
                    self.kernel,
                    f"`{s.target}` needs the final value of `{names[0]}`: it outlives the loop, "
                    "and is no sum",
                    node=s,
                )
        elif not _is_zero(s.value):
            self.plain.add(s.target)
        return replace(s, value=value)

    def _scaled(self, name: str, scale: Scale, node: Stmt) -> None:
        if self.scaling.scales.setdefault(name, scale) != scale:
            refuse(self.kernel, f"`{name}` is given values that are corrected apart", node=node)

    def _check_temporaries(self) -> None:
        """Temporaries that scale must do so from the start, wherever they are read."""
        for name in self.scaling.scales:
            buffer = next(x for x in buffers_of(self.kernel.body) if x.name == name)
            if name in self.scaling.unscaled:
                refuse(self.kernel, f"`{name}` is read before it is computed", node=self.b)
            started = buffer.init is not None and not _is_zero(buffer.init)
            inner = any(x is buffer for x in buffers_of((self.b,)))
            if name in self.plain or (started and not (inner and name in self.scaled_inits)):
                refuse(self.kernel, f"`{name}` is given values that are not corrected", node=buffer)

    def _is_temporary(self, name: str) -> bool:
        """Whether a buffer is used within single iterations of the second loop alone."""
        if any(x.name == name for x in buffers_of((self.b,))):
            return True
        if not any(x.name == name for x in buffers_of(self.kernel.body)):
            return False
        mine = _indices((self.b,), name)
        if len(mine) != len(_indices(self.kernel.body, name)):
            return False
        return any(self._steps([i[d] for i in mine]) for d in range(len(mine[0])))

    def _steps(self, indices: Sequence[Expr]) -> bool:
        """Whether different iterations of the second loop have different indices: each is
        c*j + rest, with 0 <= rest < c."""
        ranges = {
            x.axis.name: (0, int(e.value) - 1 if isinstance(e := x.axis.extent, Const) else None)
            for x in walk(self.b)
            if isinstance(x, Loop)
        }
        index, steps, shared = Var(self.b.axis.name), set[int](), set[str]()
        for e in indices:
            form = linear(e)
            step = form.terms.pop(index, 0)
            if any(self.b.axis.name in var_names(t) for t in form.terms):
                return False
            moving = {t: c for t, c in form.terms.items() if var_names(t) & ranges.keys()}
            if any(not isinstance(t, Var) for t in moving):
                return False
            shared.add(repr(sorted((repr(t), c) for t, c in form.terms.items() if t not in moving)))
            for t in list(form.terms):
                if t not in moving:
                    del form.terms[t]
            low, high = interval(form.build(), ranges)
            if low is None or high is None or low < 0 or high >= step:
                return False
            steps.add(step)
        return len(steps) == len(shared) == 1

    def _sum(self, place: _Place, scale: Scale) -> _Sum:
        """An accumulator of the second loop, after checks that corrections reach all of it."""
        s, kernel = place.stmt, self.kernel
        declared = [x for x in (*self.before, *self.between) if isinstance(x, Buffer)]
        buffer = next((x for x in declared if x.name == s.target), None)
        if buffer is None or buffer.init is None or not _is_zero(buffer.init):
            refuse(
                kernel,
                f"`{s.target}` does not start from 0 in the block of the two loops",
                node=s,
                hint="accumulate into a buffer that is declared there, `= 0.0`",
            )
        others = [
            x
            for x in accesses((*self.before, self.a, *self.between, self.b))
            if x.tensor == s.target and x.node is not s
        ]
        if others:
            node = others[0].node
            refuse(kernel, f"`{s.target}` is used before it is complete", node=node)
        indexed = {n for i in s.indices for n in var_names(i)}
        kept = tuple(x for x in place.loops if x.axis.name in indexed)
        if self.b in kept:
            refuse(kernel, f"`{s.target}` is no sum over `{self.second}`", node=s)
        dropped = {x.axis.name for x in place.loops if x not in kept}
        for x in kept:
            if var_names(x.axis.extent) & dropped:
                refuse(kernel, f"the extent of `{x.axis.name}` is not fixed", node=x)
        for exponent, c in scale.ordered():
            self._check_sign(exponent, c, place)
            self._check_domain(exponent.scalar, place, dropped, kept)
        return _Sum(place, scale, kept)

    def _check_sign(self, exponent: Exponent, c: float, place: _Place) -> None:
        name = exponent.scalar
        if (c > 0) != (self._update(name).stmt.op == "min"):
            refuse(
                self.kernel,
                f"`{exponent.function}` of the distance to `{name}` grows with it, so running "
                "values may overflow where the final one does not",
                node=place.stmt,
            )

    def _check_domain(
        self, name: str, place: _Place, dropped: set[str], kept: tuple[Loop, ...]
    ) -> None:
        """What is added up and what the scalar is the extremum of must be the same iterations:
        then one is empty, or NaN, just when the other is."""
        update = self._update(name)
        outside = [x for x in place.loops if x not in kept]
        wanted = set(update.conditions)
        for here in _renamings(tuple(outside), update.loops):
            extra = [x for x in outside if x.axis.name not in here]
            if any(not isinstance(x.axis.extent, Const) or x.axis.extent.value < 1 for x in extra):
                continue
            mine = {c: substitute(c, here) for c in place.conditions}
            more = [c for c, new in mine.items() if new not in wanted]
            if wanted <= set(mine.values()) and not any(var_names(c) & dropped for c in more):
                return
        refuse(
            self.kernel,
            f"`{place.stmt.target}` is not summed over the iterations that `{name}` is the "
            "extremum of",
            node=place.stmt,
            hint="give both the same loops and masks",
        )

    # --- putting it together

    def _moved(self, second: Loop) -> tuple[Block, Block]:
        """The statements in between: those that go before the loop, and those behind it."""
        running = tuple(
            Buffer(names.safe, self._scalar(name).type, (), "reg")
            for name, names in self.running.items()
        )

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
            scalar = self._scalar(name)
            around = self._steady(name)
            save.append(Buffer(names.old, scalar.type, (), "reg"))
            save.extend(guarded(around, (Store(names.old, (), scalar),)))
            correct.append(Buffer(names.safe, scalar.type, (), "reg"))
            safe = Store(names.safe, (), _safe(scalar, self._update(name)))
            correct.extend(guarded(around, (safe,)))
        factors: dict[tuple[Exponent, float], Read] = {}
        for s in self.sums:
            for exponent, c in s.scale.ordered():
                if (exponent, c) not in factors:
                    factors[exponent, c] = self._factor(exponent, c, correct)
        for s in self.sums:
            for key in s.scale.ordered():
                correct.append(self._on(s, factors[key], "mul"))
        return tuple(save), tuple(correct)

    def _factor(self, exponent: Exponent, c: float, into: list[Stmt]) -> Read:
        """The factor f(c*(r_old - r)) by which sums relative to the old scalar are corrected."""
        name, dtype = exponent.scalar, exponent.type
        scalar, names = self._scalar(name), self.running[name]
        old = replace(scalar, tensor=names.old, indices=())
        gap: Expr = op("sub", _safe(old, self._update(name)), Read(names.safe, (), scalar.type))
        value = op(exponent.function, _times(gap, -c, exponent.factors, dtype))
        same = op("select", op("eq", old, scalar), Const(1.0, dtype), value)
        made = Buffer(fresh(f"{name}_scale", self.used), dtype, (), "reg")
        into.append(made)
        into.extend(guarded(self._steady(name), (Store(made.name, (), same),)))
        return Read(made.name, (), dtype)

    def _scalar(self, name: str) -> Read:
        place = self._update(name)
        return Read(name, place.stmt.indices, place.stmt.value.dtype)

    def _steady(self, name: str) -> tuple[Expr, ...]:
        """The conditions on a scalar's update that do not change in the loop."""
        place = self._update(name)
        inside = {x.axis.name for x in place.loops}
        return tuple(c for c in place.conditions if not var_names(c) & inside)

    def _on(self, s: _Sum, factor: Expr, name: str) -> Stmt:
        """A nest that multiplies (divides) all of an accumulator by a factor."""
        store = s.place.stmt
        dtype = store.value.dtype
        value = factor if factor.dtype == dtype else Cast(factor, dtype)
        if name == "mul":
            made: Stmt = Store(store.target, store.indices, value, "mul")
        else:
            old = Read(store.target, store.indices, dtype)
            made = Store(store.target, store.indices, op(name, old, value))
        kept = {x.axis.name for x in s.kept}
        dropped = {x.axis.name for x in s.place.loops} - kept
        conditions = [c for c in s.place.conditions if not var_names(c) & dropped]
        for x in reversed(s.kept):
            mine = tuple(c for c in conditions if x.axis.name in var_names(c))
            conditions = [c for c in conditions if c not in mine]
            new = fresh(x.axis.name, self.used)
            loop = Loop(x.kind, replace(x.axis, name=new), mine, (made,))
            made = substitute(loop, {x.axis.name: Var(new)})
        rest = tuple(conditions)
        return guarded(rest, (made,))[0]

    def _after(self) -> Block:
        """What is due after the loop: sums whose reference stayed 0, and plain factors."""
        made: list[Stmt] = []
        for s in self.sums:
            for exponent, c in s.scale.ordered():
                scalar, place = self._scalar(exponent.scalar), self._update(exponent.scalar)
                value = _times(scalar, c, exponent.factors, exponent.type)
                factor = op(exponent.function, value)
                assert place.stmt.op is not None
                never = op("eq", scalar, identity(place.stmt.op, scalar.type))
                some = self._some(place, place.loops)
                due = _all((*self._steady(exponent.scalar), *some, never))
                made.append(If(due, (self._on(s, factor, "mul"),)))
            made.extend(self._powers(s))
        return tuple(made)

    def _flags(self) -> Block:
        return tuple(
            Buffer(name, bool_, (), "reg", Const(False, bool_)) for name in self.witnesses.values()
        )

    def _flagged(self, loop: Loop) -> Loop:
        """The loop with flags set where they are due."""
        if not self.witnesses:
            return loop
        wanted = {
            (p.stmt.target, p.stmt.op): self.witnesses[id(p.stmt)]
            for p in (*_places(self.a), *_places(self.b))
            if id(p.stmt) in self.witnesses
        }

        def block(body: Block) -> Block:
            made: list[Stmt] = []
            for s in body:
                made.append(s)
                if isinstance(s, Store) and (s.target, s.op) in wanted:
                    flag = wanted[s.target, s.op]
                    made.append(Store(flag, (), TRUE, "or"))
            return tuple(made)

        return replace(loop, body=map_blocks(loop.body, block))

    def _powers(self, s: _Sum) -> Block:
        """A sum times (over) the final scalars that are factors (divisors) of all its terms."""
        made: list[Stmt] = []
        outside = tuple(x for x in s.place.loops if x not in s.kept)
        for name, power in sorted(s.scale.powers):
            stores = [p.stmt for p in _places(self.a) if p.stmt.target == name]
            scalar = Read(name, stores[0].indices, stores[0].value.dtype)
            nest = self._on(s, scalar, "mul" if power > 0 else "div")
            made.extend(guarded(self._some(s.place, outside), (nest,) * abs(power)))
        return tuple(made)

    def _some(self, place: _Place, loops: tuple[Loop, ...]) -> tuple[Expr, ...]:
        """Conditions for a statement to run at all in these loops around it."""
        inside = {x.axis.name for x in loops}
        first: dict[str, Expr] = dict.fromkeys(inside, const(0))
        found: list[Expr] = []
        for x in loops:
            if var_names(x.axis.extent) & inside:
                return (self._witness(place),)
            found.append(op("lt", const(0), _counted(x.axis.extent)))
        for c in place.conditions:
            if var_names(c) & inside:
                if not _grows(c, inside):
                    return (self._witness(place),)
                found.append(substitute(c, first))
        return tuple(c for c in dict.fromkeys(map(simplify, found)) if c != TRUE)

    def _witness(self, place: _Place) -> Expr:
        """A flag that is set where the statement runs."""
        key = id(place.stmt)
        if key not in self.witnesses:
            self.witnesses[key] = fresh(f"{place.stmt.target}_any", self.used)
        return Read(self.witnesses[key], (), bool_)


# --- small questions -----------------------------------------------------------------------------


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and not e.dtype.is_bool and e.value == 0


def _indices(body: Sequence[Stmt], name: str) -> list[tuple[Expr, ...]]:
    """The indices of every access to a tensor."""
    found: list[tuple[Expr, ...]] = []
    for s in body:
        for n in walk(s):
            match n:
                case Read(tensor, indices) | Store(tensor, indices) if tensor == name:
                    found.append(indices)
    return found


def _renamings(second: tuple[Loop, ...], first: tuple[Loop, ...]) -> Iterator[dict[str, Expr]]:
    """Ways to call loops of `second` what those of `first` are called: in order, the outermost
    ones alike, extents equal."""

    def go(k: int, start: int, here: dict[str, Expr]) -> Iterator[dict[str, Expr]]:
        if k == len(first):
            yield here
            return
        for n in range(start, len(second) if k else 1):
            extent = substitute(second[n].axis.extent, here)
            if extent == first[k].axis.extent:
                name = second[n].axis.name
                yield from go(k + 1, n + 1, {**here, name: Var(first[k].axis.name)})

    yield from go(0, 0, {})


def _grows(condition: Expr, names: set[str]) -> bool:
    """Whether a condition that holds for some indices holds where they are 0: an upper bound on
    a sum of them."""
    match condition:
        case Op("and", (a, b), _):
            return all(_grows(c, names) or not var_names(c) & names for c in (a, b))
        case Op("lt" | "le", (low, high), _) | Op("gt" | "ge", (high, low), _):
            if low.dtype != high.dtype or var_names(high) & names:
                return False
            form = linear(low)
            moving = {t: c for t, c in form.terms.items() if var_names(t) & names}
            return all(isinstance(t, Var) and c > 0 for t, c in moving.items())
    return False


def _all(conditions: Sequence[Expr]) -> Expr:
    return reduce(partial(op, "and"), conditions)


def _counted(extent: Expr) -> Expr:
    """What is positive just when `extent` is."""
    match extent:
        case Op("cdiv", (whole, Const(c)), _) if c > 0:
            return whole
    return extent


def _safe(scalar: Read, update: _Place) -> Expr:
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
