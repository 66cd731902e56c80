"""Integer sets: contexts and index expressions as isl sets, with what is not affine made free.

A sum of indices and dims, their division by constants, `min`, `max` and `select` are exact.
Anything else (a product of two indices, a value read from a tensor) becomes an extra dimension
whose known range bounds it: the set then holds all that may happen, and perhaps more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import islpy as isl

from kir.analysis.model import AxisFrame, Frames, Guard, Model
from kir.ir import Const, Expr, Op, Read, Reduce, Var, walk
from kir.ops import op
from kir.simplify import Interval, interval

_CONTEXT = isl.Context()
MAX_OPERATIONS = 25_000
"""Steps isl may take for one question; beyond, the answer is "not proven". Every question about
the examples and their schedules fits; twice as many steps can take isl a minute."""


class Undecided(Exception):
    """isl gave up: the question is too hard within MAX_OPERATIONS."""


def solve(text: str) -> isl.Set:
    """The set written as `text`; Undecided where isl runs out of steps."""
    _CONTEXT.reset_operations()
    _CONTEXT.set_max_operations(MAX_OPERATIONS)
    try:
        return isl.Set.read_from_str(_CONTEXT, text)
    except isl.Error as error:
        raise Undecided from error


@lru_cache(maxsize=20_000)
def point(text: str) -> tuple[tuple[str, int], ...] | None:
    """A point of the set, as (name, value) pairs of its dims and params; None where it is empty."""
    return sample(solve(text))


def sample(found: isl.Set) -> tuple[tuple[str, int], ...] | None:
    """A point with small coordinates, None where there is none; Undecided where isl gives up."""
    _CONTEXT.reset_operations()
    try:
        if found.is_empty():
            return None
        for limit in (1, 2, 4, 200, 5000, None):
            small = found if limit is None else _within(found, limit)
            p = small.sample_point()
            if not p.is_void():
                return _coordinates(found, p)
    except isl.Error as error:
        raise Undecided from error
    raise Undecided


def _within(found: isl.Set, limit: int) -> isl.Set:
    for k in range(found.dim(isl.dim_type.param)):
        found = found.upper_bound_val(isl.dim_type.param, k, isl.Val(limit, _CONTEXT))
    return found


def _coordinates(found: isl.Set, p: isl.Point) -> tuple[tuple[str, int], ...]:
    return tuple(
        (found.get_dim_name(kind, k), p.get_coordinate_val(kind, k).to_python())
        for kind in (isl.dim_type.param, isl.dim_type.set)
        for k in range(found.dim(kind))
    )


def difference(one: isl.Set, others: Iterable[isl.Set]) -> isl.Set:
    """`one` without `others`; Undecided where isl gives up."""
    _CONTEXT.reset_operations()
    try:
        for other in others:
            one = one.subtract(other).coalesce()
            if one.is_empty():
                break
    except isl.Error as error:
        raise Undecided from error
    return one


Polynomial = dict[tuple[Expr, ...], int]
"""Sums of products of atoms: factors in a fixed order -> coefficient; `()` is the constant."""


def _polynomial(e: Expr) -> Polynomial:
    if isinstance(e, Const):
        return {(): int(e.value)} if e.value else {}
    if isinstance(e, Op):
        if e.name in ("add", "sub"):
            return _add(
                _polynomial(e.args[0]), _polynomial(e.args[1]), 1 if e.name == "add" else -1
            )
        if e.name == "neg":
            return _add({}, _polynomial(e.args[0]), -1)
        if e.name == "mul":
            return _times(_polynomial(e.args[0]), _polynomial(e.args[1]))
    return {(e,): 1}


def _add(a: Polynomial, b: Polynomial, factor: int = 1) -> Polynomial:
    total = dict(a)
    for factors, c in b.items():
        total[factors] = total.get(factors, 0) + factor * c
    return {f: c for f, c in total.items() if c}


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for f, c in a.items():
        for g, d in b.items():
            total = _add(total, {tuple(sorted((*f, *g), key=repr)): c * d})
    return total


@dataclass(frozen=True)
class Env:
    """What the names of one context are called in the set."""

    names: Mapping[str, str]
    extents: Mapping[str, Expr]
    suffix: str
    shared: frozenset[str]
    """Names whose value the contexts have in common."""


class Text:
    """A set under construction: dims, params and constraints, in isl's notation."""

    def __init__(self, model: Model, written: frozenset[str] = frozenset()) -> None:
        self.model = model
        self.written = written
        self.dims: list[str] = []
        self.params: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.where: list[str] = []
        self.unknown: dict[tuple[str, Expr], str] = {}
        self.unknowns = 0
        self.exact = True
        self.data = False
        """Whether something read from a tensor took part."""

    # building

    def enter(self, frames: Frames, suffix: str = "", shared: Frames = ()) -> Env:
        """Bring a context into the set. Axes in `shared` are the same for every suffix."""
        env = Env({}, {}, suffix, frozenset())
        for f in frames:
            if isinstance(f, Guard):
                if f not in shared or not suffix or suffix == "a":
                    self.condition(f.condition, env)
                continue
            env = self.axis(f, env, any(f is s for s in shared))
        return env

    def axis(self, f: AxisFrame, env: Env, shared: bool) -> Env:
        name = f"{f.name}_{f.number}" + ("" if shared else env.suffix)
        if name not in self.labels:
            self.dims.append(name)
            self.labels[name] = f.name
            self.where.append(self.below(name, self.model.prepare(f.extent), env))
        extents = {**env.extents, f.name: f.extent}
        common = env.shared | {f.name} if shared else env.shared
        return Env({**env.names, f.name: name}, extents, env.suffix, common)

    def below(self, name: str, extent: Expr, env: Env) -> str:
        """`0 <= name < extent`; an extent that is a quotient needs no integer division for it."""
        if isinstance(extent, Op) and extent.name in ("cdiv", "floordiv"):
            x, d = extent.args
            if isinstance(d, Const) and d.value > 0:
                scaled = f"{d.value}*{name}" + (f" + {d.value - 1}" * (extent.name == "floordiv"))
                return f"0 <= {name} and {scaled} < {self.affine(x, env)}"
        return f"0 <= {name} < {self.affine(extent, env)}"

    def condition(self, e: Expr, env: Env) -> None:
        text = self.truth(self.model.prepare(e), env, True)
        if text is None:
            self.exact = False
        else:
            self.where.append(text)

    def elements(self, rank: int) -> list[str]:
        names = [f"e{d}" for d in range(rank)]
        self.dims.extend(names)
        return names

    # rendering

    def set(self, extra: Iterable[str] = (), keep: list[str] | None = None) -> str:
        """The text of the set; with `keep`, of its projection on those dims."""
        where = " and ".join(f"({c})" for c in (*self.facts(), *self.where, *extra)) or "true"
        params = ", ".join(self.params.values())
        if keep is None:
            return f"[{params}] -> {{ [{', '.join(self.dims)}] : {where} }}"
        hidden = [d for d in self.dims if d not in keep]
        if hidden:
            where = f"exists {', '.join(hidden)} : {where}"
        return f"[{params}] -> {{ [{', '.join(keep)}] : {where} }}"

    def find(self, extra: Iterable[str]) -> tuple[tuple[str, int], ...] | None:
        """A point where `extra` holds too, or None. Undecided where isl gives up.

        Most sets are empty for a reason that involves few of their dims, so the constraints
        connected to `extra` are tried alone before all of them are.
        """
        extra = list(extra)
        if point(self.near(extra)) is None:
            return None
        return point(self.set(extra))

    def near(self, extra: list[str]) -> str:
        """The set with only the constraints that share dims with `extra`, directly or not."""
        dims = set(self.dims)
        rest = [(c, dims.intersection(_WORD.findall(c))) for c in (*self.facts(), *self.where)]
        reached = dims.intersection(*[_WORD.findall(" ".join(extra))])
        kept: list[str] = []
        while True:
            close = [(c, names) for c, names in rest if not names or names & reached]
            if not close:
                break
            kept += [c for c, _ in close]
            reached = reached.union(*(names for _, names in close))
            rest = [x for x in rest if x not in close]
        where = " and ".join(f"({c})" for c in (*kept, *extra)) or "true"
        params = ", ".join(self.params.values())
        names = ", ".join(d for d in self.dims if d in reached)
        return f"[{params}] -> {{ [{names}] : {where} }}"

    def facts(self) -> list[str]:
        """What holds of the dims: at least 0, the constraints, shapes at least 0."""
        outer = Env({}, {}, "", frozenset())
        found: list[str] = []
        kernel = self.model.kernel
        for e in kernel.constraints:
            text = self.truth(self.model.prepare(e), outer, True)
            if text is not None:
                found.append(text)
        for p in kernel.params:
            for e in map(self.model.prepare, p.shape):
                if not isinstance(e, Const | Var):
                    found.append(f"{self.affine(e, outer)} >= 0")
        found += [f"{name} >= 0" for key, name in self.params.items() if name.startswith("d_")]
        return found

    # expressions

    def expr(self, e: Expr, env: Env) -> str:
        return self.affine(self.model.prepare(e), env)

    def affine(self, e: Expr, env: Env) -> str:
        return self.polynomial(_polynomial(e), env)

    def polynomial(self, p: Polynomial, env: Env) -> str:
        parts = []
        for factors, c in p.items():
            if not factors:
                parts.append(str(c))
                continue
            text = self.atom(factors[0], env) if len(factors) == 1 else self.product(factors, env)
            parts.append(text if c == 1 else f"{c}*({text})")
        return parts[0] if len(parts) == 1 else f"({' + '.join(parts)})" if parts else "0"

    def atom(self, e: Expr, env: Env) -> str:
        if isinstance(e, Var):
            return env.names.get(e.name) or self.dim(e.name)
        if isinstance(e, Op):
            if e.name in ("floordiv", "mod", "cdiv") and isinstance(e.args[1], Const):
                d = int(e.args[1].value)
                if d > 0:
                    x = self.affine(e.args[0], env)
                    if e.name == "mod":
                        return f"(({x}) mod {d})"
                    return (
                        f"floor(({x})/{d})" if e.name == "floordiv" else f"(-floor((-({x}))/{d}))"
                    )
            if e.name in ("max", "min"):
                return f"{e.name}({self.affine(e.args[0], env)}, {self.affine(e.args[1], env)})"
            if e.name == "select":
                return self.choice(e, env)
        return self.free(e, env)

    def dim(self, name: str) -> str:
        self.params.setdefault(name, f"d_{name}")
        self.labels[f"d_{name}"] = name
        return f"d_{name}"

    def choice(self, e: Op, env: Env) -> str:
        key = (env.suffix, e)
        if key in self.unknown:
            return self.unknown[key]
        yes, no = self.truth(e.args[0], env, True), self.truth(e.args[0], env, False)
        if yes is None or no is None:
            return self.free(e, env)
        a, b = self.affine(e.args[1], env), self.affine(e.args[2], env)
        name = self.new_dim(e, env, env.suffix)
        self.where.append(f"(({yes}) and {name} = {a}) or (({no}) and {name} = {b})")
        return name

    def product(self, factors: tuple[Expr, ...], env: Env) -> str:
        whole = factors[0]
        for f in factors[1:]:
            whole = op("mul", whole, f)
        name, fresh = self.name_free(whole, env)
        if not fresh or not all(self.is_natural(f, env) for f in factors):
            return name
        self.where.append(f"{name} >= 0")
        for k, f in enumerate(factors):
            if isinstance(f, Var) and f.name in env.extents:
                rest: Polynomial = {(*factors[:k], *factors[k + 1 :]): 1}
                extent = _polynomial(self.model.prepare(env.extents[f.name]))
                bound = _add(_times(extent, rest), rest, -1)
                self.where.append(f"{name} <= {self.polynomial(bound, env)}")
        return name

    def free(self, e: Expr, env: Env) -> str:
        """A dimension (or, of dims alone, a parameter) for what is not affine."""
        name, fresh = self.name_free(e, env)
        if fresh:
            self.known(e, name, env)
        return name

    def name_free(self, e: Expr, env: Env) -> tuple[str, bool]:
        nodes = list(walk(e))
        names = {n.name for n in nodes if isinstance(n, Var)} & set(env.names)
        reads = {n.tensor for n in nodes if isinstance(n, Read)}
        self.data = self.data or bool(reads)
        if not reads and not names and not any(isinstance(n, Reduce) for n in nodes):
            products = self.model.products
            name = products.setdefault(e, f"q{len(products)}")
            fresh = name not in self.params.values()
            self.params[f"#{name}"] = name
            return name, fresh
        self.exact = False
        common = names <= env.shared and not reads & self.written
        key = ("" if common else env.suffix, e)
        fresh = key not in self.unknown or bool(reads & self.model.mutable)
        if fresh:
            self.new_dim(e, env, key[0])
        return self.unknown[key], fresh

    def new_dim(self, e: Expr, env: Env, suffix: str) -> str:
        name = f"u{self.unknowns}{suffix}"  # one that is read again has a new one, and is replaced
        self.unknowns += 1
        self.unknown[(suffix, e)] = name
        self.dims.append(name)
        return name

    def known(self, e: Expr, name: str, env: Env) -> None:
        """Constrain the dimension that stands for `e` by what is known of its value."""
        low, high = interval(e, self.ranges(env))
        if low is not None:
            self.where.append(f"{name} >= {low}")
        if high is not None:
            self.where.append(f"{name} <= {high}")
        if not isinstance(e, Op):
            return
        if e.name == "mod" and self.is_natural(e.args[1], env):
            d = self.affine(e.args[1], env)
            self.where.append(f"{name} >= 0 and ({name} < {d} or ({d} = 0 and {name} = 0))")
        if e.name == "floordiv" and all(self.is_natural(a, env) for a in e.args):
            self.where.append(f"{name} >= 0 and {name} <= {self.affine(e.args[0], env)}")
            quotient = self.quotient(e, env)
            if quotient is not None:
                self.where.append(f"{name} < {self.polynomial(quotient, env)}")

    def quotient(self, e: Op, env: Env) -> Polynomial | None:
        """E where `e` is `x // d` and the index x runs below `E * d`."""
        x, d = e.args
        if not isinstance(x, Var) or x.name not in env.extents:
            return None
        extent = _polynomial(self.model.prepare(env.extents[x.name]))
        divisor = _polynomial(d)
        if len(divisor) != 1 or len(extent) != 1:
            return None
        ((factors, c),), ((whole, times),) = divisor.items(), extent.items()
        left = list(whole)
        for f in factors:
            if f not in left:
                return None
            left.remove(f)
        return {tuple(left): times // c} if c > 0 and times % c == 0 else None

    def is_natural(self, e: Expr, env: Env) -> bool:
        low = interval(e, self.ranges(env))[0]
        return low is not None and low >= 0

    def ranges(self, env: Env) -> dict[str, Interval]:
        found: dict[str, Interval] = {}
        for name, extent in env.extents.items():
            e = self.model.prepare(extent)
            found[name] = (0, max(int(e.value) - 1, 0) if isinstance(e, Const) else None)
        return found

    # conditions

    def truth(self, e: Expr, env: Env, wanted: bool) -> str | None:
        """The condition (or its negation) as a constraint; None where it says nothing affine."""
        if isinstance(e, Const):
            return "true" if bool(e.value) is wanted else "false"
        if not isinstance(e, Op):
            return None
        if e.name == "not":
            return self.truth(e.args[0], env, not wanted)
        if e.name in ("and", "or"):
            return self.logic(e, env, wanted)
        symbol = _COMPARE.get(e.name)
        if symbol is None or not all(a.dtype.is_integer for a in e.args):
            return None
        if any(a.dtype.bits < 64 or a.dtype.kind != "int" for a in e.args):
            return None
        left, right = (self.affine(a, env) for a in e.args)
        return f"{left} {symbol if wanted else _COMPARE[_OPPOSITE[e.name]]} {right}"

    def logic(self, e: Op, env: Env, wanted: bool) -> str | None:
        a, b = (self.truth(x, env, wanted) for x in e.args)
        if (e.name == "and") is wanted:  # both hold: half of it is still true
            if a is None or b is None:
                self.exact = False
                return a or b
            return f"({a}) and ({b})"
        return None if a is None or b is None else f"(({a}) or ({b}))"


_WORD = re.compile(r"[A-Za-z_]\w*")
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=", "ne": "!="}
_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
