"""What one loop waits for in another, and how what it adds up depends on that: for `online`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NoReturn

from kir.ir import (
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
    substitute,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Block,
    buffers_of,
    find_loop,
    fresh,
    loops_of,
    names_in,
    path_to,
    refuse,
    require_loops,
    statements,
    var_names,
)
from kir.rewrites.legality import accesses
from kir.rewrites.nests import (
    Place,
    is_zero,
    iterations,
    places,
    renamings,
    stored,
    uses,
)
from kir.rewrites.scaling import NEUTRAL, Exponent, Scale, Scaling
from kir.simplify import Interval, interval, linear, simplify

SEQUENTIAL = ("for", "unroll")
"""The kinds of loops whose iterations may depend on earlier ones."""


@dataclass(frozen=True)
class Sum:
    """An accumulator of the second loop that scales with scalars."""

    place: Place
    scale: Scale
    kept: tuple[Loop, ...]
    """The loops that index it."""


@dataclass(frozen=True)
class Product:
    """An accumulator of products of distances from means: `sum (x - mean x) * (y - mean y)`."""

    place: Place
    kept: tuple[Loop, ...]
    means: tuple[str, str]
    """The scalars that the means are of."""
    sign: int


@dataclass(frozen=True)
class Names:
    """Of the running value of an extremum: what it was, and itself, 0 while there is none."""

    old: str
    safe: str


@dataclass(frozen=True)
class Mean:
    """The names of a running mean, of how many values it is, and of what these were; the sum."""

    sum: Place
    value: str
    count: str
    old: str
    old_count: str
    step: str


@dataclass
class Waiting:
    """Two loops of one block, the second of which waits for what the first reduces."""

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
    sums: list[Sum] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    means: dict[str, Mean] = field(default_factory=dict)
    running: dict[str, Names] = field(default_factory=dict)
    updates: dict[str, Place] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Scalars that are stored to between the loops too."""
    plain: set[str] = field(default_factory=set)
    """Tensors that are given values of no scale."""
    scaled_inits: set[str] = field(default_factory=set)
    witnesses: dict[int, str] = field(default_factory=dict)
    """Buffers that tell whether a store (by its identity) ever ran."""
    loops: tuple[Loop, ...] = ()
    """Those around the expression of the second loop at hand."""

    @cached_property
    def _uses(self) -> dict[str, list[tuple[Expr, ...]]]:
        return uses(self.kernel.body)

    @cached_property
    def _uses_here(self) -> dict[str, list[tuple[Expr, ...]]]:
        return uses((self.b,))

    @cached_property
    def _uses_before(self) -> dict[str, list[tuple[Expr, ...]]]:
        return uses((*self.before, self.a, *self.between, self.b))

    @cached_property
    def _stored(self) -> set[str]:
        return stored((self.a, *self.between, self.b))

    @cached_property
    def _stored_late(self) -> set[str]:
        return stored((*self.between, self.b))

    @cached_property
    def _reductions(self) -> dict[str, list[Place]]:
        """The stores of the first loop, by tensor."""
        found: dict[str, list[Place]] = {}
        for p in places(self.a):
            found.setdefault(p.stmt.target, []).append(p)
        return found

    @cached_property
    def _ranges(self) -> dict[str, Interval]:
        """Bounds of the indices of the second loop and those inside."""
        return {
            x.axis.name: (0, int(e.value) - 1 if isinstance(e := x.axis.extent, Const) else None)
            for x in loops_of((self.b,))
        }

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
        if a.kind not in SEQUENTIAL:
            refuse(
                kernel,
                f"`{self.first}` is a {a.kind}: its iterations would correct one another in turn",
                node=a,
                hint=f"`bind({self.first}, for)`, or a loop of blocks around it",
            )
        require_loops(kernel, (a, b))
        self.before, self.between = self.block[:at], self.block[at + 1 : to]
        self.used = names_in(kernel)

    def _scalars(self) -> None:
        """What the second loop waits for, and what is computed from it in between."""
        inside = {x.axis.name for x in loops_of((self.a,))}
        written: dict[str, set[tuple[Expr, ...]]] = {}
        for x in accesses((self.a,)):
            if x.op != "read":
                written.setdefault(x.tensor, set()).add(x.indices)
        fixed = {
            name: at
            for name, (at, *others) in ((n, tuple(found)) for n, found in written.items())
            if not others and not any(var_names(i) & inside for i in at)
        }
        values: dict[str, tuple[tuple[Expr, ...], Expr]] = {}
        for s in self.between:
            if isinstance(s, Store) and s.op is None:
                reads = {n.tensor for n in walk(s.value) if isinstance(n, Read)}
                if reads & (set(fixed) | set(values)):
                    values[s.target] = (s.indices, s.value)
        known = set(fixed) | set(values)
        wanted = {x.tensor for x in accesses((self.b,)) if x.op == "read"} & known
        if not wanted:
            refuse(
                self.kernel,
                f"`{self.second}` does not wait for a reduction of `{self.first}`",
                node=self.b,
                hint=f"`fuse({self.first}, {self.second})` needs no corrections",
            )
        self._check_final(wanted, values)
        self.scaling = Scaling(
            scalars=fixed,
            values=values,
            running=self._running,
            peaks=self._peak,
            invariant=self._invariant,
            refuse=lambda message, node: refuse(self.kernel, message, node=node),
        )

    def _check_final(
        self, wanted: Iterable[str], values: dict[str, tuple[tuple[Expr, ...], Expr]]
    ) -> None:
        """What the second loop reads is what the scalars are at its start."""
        todo, seen = list(wanted), set[str]()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            stores: list[Stmt] = [p.stmt for p in places(self.b) if p.stmt.target == name]
            at = [k for k, s in enumerate(self.between) if name in stored((s,))]
            if name in values:
                todo += [n.tensor for n in walk(values[name][1]) if isinstance(n, Read)]
                more = statements([self.between[k] for k in at[1:]])
                stores += [s for s in more if isinstance(s, Store)]
            elif at:
                self.changed.add(name)
                stores += [s for s in self.between[: at[-1]] if _reads(s, name, values)]
            if stores:
                message = f"`{name}` changes after `{self.first}` has reduced it"
                refuse(self.kernel, message, node=stores[-1])

    # --- questions that the algebra asks

    def _running(self, name: str) -> Read:
        """The running value of a scalar in exponents: 0 for as long as it is the identity."""
        dtype = self._update(name).stmt.value.dtype
        if name not in self.running:
            old, safe = (fresh(f"{name}_{what}", self.used) for what in ("old", "safe"))
            self.running[name] = Names(old, safe)
        return Read(self.running[name].safe, (), dtype)

    def _update(self, name: str, ops: tuple[str, ...] = ("max", "min")) -> Place:
        """The one update of a scalar, by one of `ops`."""
        if name not in self.updates:
            found = self._reductions[name]
            s = found[0].stmt
            self._check_unchanged(name)
            if len(found) != 1 or s.op not in ops or not s.value.dtype.is_float:
                one = " or ".join(f"`{o}`" for o in ops)
                refuse(
                    self.kernel,
                    f"`{name}` is in an exponent, and is no {one} of one expression",
                    node=s,
                    hint="only relative to the greatest value can exp not overflow",
                )
            self.updates[name] = found[0]
        return self.updates[name]

    def _check_unchanged(self, name: str) -> None:
        if name in self.changed:
            (*_, last) = (s for s in self.between if name in stored((s,)))
            message = f"`{name}` changes after `{self.first}` has reduced it"
            refuse(self.kernel, message, node=last)

    def _peak(self, e: Expr) -> str | None:
        """The scalar that `e`, in the second loop, is the extremum of."""
        if not isinstance(e, Read | Op | Cast):
            return None
        for name in self.scaling.scalars:
            place = self._reductions[name][0]
            if place.stmt.op not in ("max", "min"):
                continue
            value = place.stmt.value
            if type(value) is not type(e) or value.dtype != e.dtype:
                continue
            if self._same(e, place):
                return name
        return None

    def _same(self, e: Expr, place: Place) -> bool:
        """Whether `e`, in the second loop, is what is reduced at `place` in the first."""
        value = place.stmt.value
        return not self._changed(value) and any(
            substitute(e, here) == value for here in renamings(self.loops, place.loops)
        )

    def _changed(self, value: Expr) -> bool:
        """Whether a tensor read by `value` is stored to after the first loop."""
        reads = {n.tensor for n in walk(value) if isinstance(n, Read)}
        return bool(reads & self._stored_late)

    def _invariant(self, e: Expr) -> bool:
        inside = self._ranges.keys()
        reads = {n.tensor for n in walk(e) if isinstance(n, Read)}
        fixed = not reads & self._stored
        return fixed and not var_names(e) & inside

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
                made.append(self._store(Place(s, loops, where)))
            else:
                made.append(s)
        return tuple(made)

    def _store(self, place: Place) -> Store:
        s = place.stmt
        self.loops = place.loops
        for i in s.indices:
            self.scaling.plain(i, "this index")
        distances = self._distances(place)
        if distances is not None:
            return distances
        scale, value = self.scaling.of(s.value)
        known = self.scaling.scales.get(s.target, NEUTRAL)
        if scale or known:
            if not scale and is_zero(s.value) and s.op is None:
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
        elif not is_zero(s.value):
            self.plain.add(s.target)
        return replace(s, value=value)

    def _scaled(self, name: str, scale: Scale, node: Stmt) -> None:
        if self.scaling.scales.setdefault(name, scale) != scale:
            refuse(self.kernel, f"`{name}` is given values that are corrected apart", node=node)

    def _check_temporaries(self) -> None:
        """Temporaries that scale must do so from the start, wherever they are read."""
        for name in (*self.scaling.scales, *self.scaling.distances):
            buffer = next(x for x in buffers_of(self.kernel.body) if x.name == name)
            if name in self.scaling.unscaled:
                refuse(self.kernel, f"`{name}` is read before it is computed", node=self.b)
            started = buffer.init is not None and not is_zero(buffer.init)
            inner = any(x is buffer for x in buffers_of((self.b,)))
            if name in self.plain or (started and not (inner and name in self.scaled_inits)):
                refuse(self.kernel, f"`{name}` is given values that are not corrected", node=buffer)

    def _is_temporary(self, name: str) -> bool:
        """Whether a buffer is used within single iterations of the second loop alone."""
        if any(x.name == name for x in buffers_of((self.b,))):
            return True
        if not any(x.name == name for x in buffers_of(self.kernel.body)):
            return False
        mine = self._uses_here[name]
        if len(mine) != len(self._uses[name]):
            return False
        return any(self._steps([i[d] for i in mine]) for d in range(len(mine[0])))

    def _steps(self, indices: Sequence[Expr]) -> bool:
        """Whether different iterations of the second loop have different indices: each is
        c*j + rest, with 0 <= rest < c."""
        ranges = self._ranges
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

    def _sum(self, place: Place, scale: Scale) -> Sum:
        kept = self._accumulator(place)
        for exponent, c in scale.ordered():
            self._check_sign(exponent, c, place)
            self._check_domain(self._update(exponent.scalar), place, kept)
        return Sum(place, scale, kept)

    def _accumulator(self, place: Place) -> tuple[Loop, ...]:
        """The loops that index an accumulator, after checks that corrections reach all of it."""
        s, kernel = place.stmt, self.kernel
        declared = [x for x in (*self.before, *self.between) if isinstance(x, Buffer)]
        buffer = next((x for x in declared if x.name == s.target), None)
        if buffer is None or buffer.init is None or not is_zero(buffer.init):
            refuse(
                kernel,
                f"`{s.target}` does not start from 0 in the block of the two loops",
                node=s,
                hint="accumulate into a buffer that is declared there, `= 0.0`",
            )
        if len(self._uses_before[s.target]) > 1:
            refuse(kernel, f"`{s.target}` is used before it is complete", node=s)
        indexed = {n for i in s.indices for n in var_names(i)}
        kept = tuple(x for x in place.loops if x.axis.name in indexed)
        if self.b in kept:
            refuse(kernel, f"`{s.target}` is no sum over `{self.second}`", node=s)
        dropped = {x.axis.name for x in place.loops if x not in kept}
        for x in kept:
            if var_names(x.axis.extent) & dropped:
                refuse(kernel, f"the extent of `{x.axis.name}` is not fixed", node=x)
        return kept

    def _check_sign(self, exponent: Exponent, c: float, place: Place) -> None:
        name = exponent.scalar
        if (c > 0) != (self._update(name).stmt.op == "min"):
            refuse(
                self.kernel,
                f"`{exponent.function}` of the distance to `{name}` grows with it, so running "
                "values may overflow where the final one does not",
                node=place.stmt,
            )

    def _check_domain(self, update: Place, place: Place, kept: tuple[Loop, ...]) -> None:
        """What is added up and what the scalar reduces must be the same iterations: then one is
        empty, or NaN, just when the other is."""
        outside = [x for x in place.loops if x not in kept]
        dropped = {x.axis.name for x in outside}
        wanted = set(update.conditions)
        reads = {n.tensor for c in wanted for n in walk(c) if isinstance(n, Read)}
        alike = not reads & self._stored
        for here in renamings(tuple(outside), update.loops) if alike else ():
            extra = [x for x in outside if x.axis.name not in here]
            if any(not isinstance(x.axis.extent, Const) or x.axis.extent.value < 1 for x in extra):
                continue
            mine = {c: substitute(c, here) for c in place.conditions}
            more = [c for c, new in mine.items() if new not in wanted]
            if wanted <= set(mine.values()) and not any(var_names(c) & dropped for c in more):
                return
        refuse(
            self.kernel,
            f"`{place.stmt.target}` is not summed over the iterations over which "
            f"`{update.stmt.target}` is reduced",
            node=place.stmt,
            hint="give both the same loops and masks",
        )

    # --- distances from means

    def _distances(self, place: Place) -> Store | None:
        """A store of a distance from a mean to a temporary, or an update by the product of two
        such, for running means; None for any other store."""
        s = place.stmt
        if s.op is None:
            found = self._distance(s.value)
            if found is None or not self._is_temporary(s.target):
                return None
            name, sign, value = found
            if self.scaling.distances.setdefault(s.target, (name, sign)) != (name, sign):
                self._mixed(s)
            return replace(s, value=value)
        match s.value:
            case Op("mul", (a, b), _) if s.op == "add":
                one, two = self._distance(a), self._distance(b)
                if one is None or two is None:
                    return None
                kept = self._accumulator(place)
                for name in (one[0], two[0]):
                    self._check_domain(self.means[name].sum, place, kept)
                means = (one[0], two[0])
                self.products.append(Product(place, kept, means, one[1] * two[1]))
                return replace(s, value=op("mul", one[2], two[2]))
        return None

    def _mixed(self, s: Store) -> NoReturn:
        refuse(self.kernel, f"`{s.target}` is given distances from different means", node=s)

    def _distance(self, e: Expr) -> tuple[str, int, Expr] | None:
        """Of `x - mean` and `mean - x`, where the mean is of all x: the sum that it is of, the
        sign of x, and the same for the running mean."""
        match e:
            case Read(name) if name in self.scaling.distances:
                return (*self.scaling.distances[name], e)
            case Op("sub", (a, b), _):
                for x, mean, sign in ((a, b, 1), (b, a, -1)):
                    found = self._mean(x, mean)
                    if found is not None:
                        running = Read(self.means[found].value, (), e.dtype)
                        pair = (x, running) if sign > 0 else (running, x)
                        return found, sign, op("sub", *pair)
        return None

    def _looked_up(self, e: Expr) -> Expr:
        """What was stored between the loops, for a read of it."""
        while isinstance(e, Read) and e.tensor in self.scaling.values and e.fill is None:
            at, value = self.scaling.values[e.tensor]
            if at != e.indices:
                break
            e = value
        return e

    def _mean(self, x: Expr, mean: Expr) -> str | None:
        """The scalar s such that `mean` is s / n, where s is the sum of x over n iterations."""
        if self.scaling.depends(x):
            return None
        match self._looked_up(mean):
            case Op("div", (total, count), _):
                total = self._looked_up(total)
                if not isinstance(total, Read) or self.scaling.depends(count):
                    return None
                name = total.tensor
                if self.scaling.scalars.get(name) != total.indices or total.fill is not None:
                    return None
                found = self._reductions[name]
                if len(found) != 1 or found[0].stmt.op != "add" or not self._same(x, found[0]):
                    return None
                if not _counts(count, found[0]):
                    return None
                self._check_unchanged(name)
                if name not in self.means:
                    made = (fresh(f"{name}_{w}", self.used) for w in _MEAN_NAMES)
                    self.means[name] = Mean(found[0], *made)
                return name
        return None


_MEAN_NAMES = ("mean", "count", "mean_old", "count_old", "step")


def _reads(s: Stmt, name: str, values: dict[str, tuple[tuple[Expr, ...], Expr]]) -> bool:
    """Whether `s` stores one of `values` that is computed from the tensor `name`."""
    if not isinstance(s, Store) or values.get(s.target) != (s.indices, s.value):
        return False
    return any(isinstance(n, Read) and n.tensor == name for n in walk(s.value))


def _counts(e: Expr, place: Place) -> bool:
    """Whether `e` is the number of iterations in which a statement runs."""
    count = iterations(place, place.loops)
    match e:
        case Cast(value) if value.dtype.is_integer:
            return count is not None and simplify(value) == count
        case Const(value):
            return isinstance(count, Const) and value == count.value
    return False
