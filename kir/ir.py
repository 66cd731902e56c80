"""The whole IR: expressions, statements, kernels; every stage, spec to schedule, is made of it.

Nodes are immutable and compare by meaning: source places (`span`) take no part in equality, so
`parse(print(k)) == k`. Every expression carries its `dtype`; loop indices and dims are i64. Build
operators with `kir.ops.op`, which applies the dtype rules. Loops have one axis each; the text
`tile i: 8, j: 16 where c { ... }` is two nested loops, `c` and the body on the inner one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import wraps
from operator import is_not
from typing import Any, Literal, TypeVar

from kir.dtypes import DType, bool_, i64

LoopKind = Literal["for", "grid", "tile", "unroll"]
LOOP_KINDS: tuple[LoopKind, ...] = ("for", "grid", "tile", "unroll")
Space = Literal["global", "local", "reg"]
SPACES: tuple[Space, ...] = ("global", "local", "reg")
UPDATE_OPS = ("add", "mul", "max", "min", "and", "or")
"""Operators of `+= *= max= min= and= or=`, by their names in the op table."""
REDUCTIONS = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "all": "and", "any": "or"}
"""Reduction name -> the op that combines two values. `argmax`/`argmin` stand beside them."""
ARG_REDUCTIONS = {"argmax": "max", "argmin": "min"}


@dataclass(frozen=True, slots=True)
class Span:
    """A place in the source text; lines and columns count from 1, the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, kw_only=True)
class Node:
    span: Span | None = field(default=None, compare=False, repr=False)


# --- expressions -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Expr(Node):
    @property
    def dtype(self) -> DType:
        raise TypeError(f"{type(self).__name__} has no dtype")


@dataclass(frozen=True)
class Const(Expr):
    """A literal. `value` is an int for integer dtypes, a float for floats, a bool for bool."""

    value: int | float | bool
    type: DType

    @property
    def dtype(self) -> DType:
        return self.type

    def __eq__(self, other: object) -> bool:  # nan == nan, 0.0 != -0.0, 1 != True
        return isinstance(other, Const) and (self.type, repr(self.value)) == (
            other.type,
            repr(other.value),
        )

    def __hash__(self) -> int:
        return hash((self.type, repr(self.value)))


@dataclass(frozen=True)
class Var(Expr):
    """A loop index, a definition's index or a dim: an i64."""

    name: str

    @property
    def dtype(self) -> DType:
        return i64


@dataclass(frozen=True)
class Read(Expr):
    """`tensor[indices]`, or `tensor` alone for a 0-d one; `fill` where an index is out of range."""

    tensor: str
    indices: tuple[Expr, ...]
    type: DType
    fill: Expr | None = None

    @property
    def dtype(self) -> DType:
        return self.type


@dataclass(frozen=True)
class Op(Expr):
    """An operator or function of the op table (`kir.ops.OPS`), `select` included."""

    name: str
    args: tuple[Expr, ...]
    type: DType

    @property
    def dtype(self) -> DType:
        return self.type


@dataclass(frozen=True)
class Cast(Expr):
    """`f32(x)`: conversion. Rounds to nearest even; float to integer truncates and saturates."""

    value: Expr
    type: DType

    @property
    def dtype(self) -> DType:
        return self.type


@dataclass(frozen=True)
class Bitcast(Expr):
    """`bitcast[f32](x)`: the same bits as another type of equal width."""

    value: Expr
    type: DType

    @property
    def dtype(self) -> DType:
        return self.type


@dataclass(frozen=True)
class Axis(Node):
    """`name: extent`: an index that takes 0, 1, ..., extent - 1."""

    name: str
    extent: Expr


@dataclass(frozen=True)
class Reduce(Expr):
    """`sum(j: N, k: K where c) body`. `name` is a key of REDUCTIONS or ARG_REDUCTIONS.

    The accumulation type is the body's dtype. An arg-reduction has one axis, gives the first
    index (i64) of the greatest (least) value, NaN counting as such, and -1 over an empty range.
    """

    name: str
    axes: tuple[Axis, ...]
    where: tuple[Expr, ...]
    body: Expr

    @property
    def dtype(self) -> DType:
        return i64 if self.name in ARG_REDUCTIONS else self.body.dtype


# --- statements ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stmt(Node):
    pass


@dataclass(frozen=True)
class Define(Stmt):
    """`name[i: M, j: N] = value`: a new tensor (or a whole output), each element defined once.

    A `Var` among `dims` is the index of an enclosing `for`: the tensor has one slice for each of
    its iterations, and `value` may read the slices of earlier ones (a recurrence).
    """

    name: str
    dims: tuple[Axis | Var, ...]
    value: Expr

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(d for d in self.dims if isinstance(d, Axis))


@dataclass(frozen=True)
class Buffer(Stmt):
    """`buffer name: dtype[shape] in space = init`, alive to the end of its block."""

    name: str
    type: DType
    shape: tuple[Expr, ...]
    space: Space
    init: Expr | None = None


@dataclass(frozen=True)
class Store(Stmt):
    """`target[indices] = value`, or an update `target[indices] op= value` (op of UPDATE_OPS)."""

    target: str
    indices: tuple[Expr, ...]
    value: Expr
    op: str | None = None


@dataclass(frozen=True)
class Loop(Stmt):
    """`kind axis where ... hint(...) { body }`. All kinds mean an ordinary loop from 0.

    The kinds are promises, checked by `kir.check`: `grid` iterations are independent (updates
    aside), `tile` lanes may run statement by statement together and have a constant extent,
    `unroll` has a constant extent. `where` skips the iterations for which a condition is false.
    """

    kind: LoopKind
    axis: Axis
    where: tuple[Expr, ...]
    body: tuple[Stmt, ...]
    hints: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class If(Stmt):
    """`if condition { body }`: a guard."""

    condition: Expr
    body: tuple[Stmt, ...]


# --- kernels, graphs, modules ----------------------------------------------------------------


@dataclass(frozen=True)
class Dim(Node):
    """A symbolic dim (at least 0), or with a `default` a compile-time parameter."""

    name: str
    default: int | None = None


@dataclass(frozen=True)
class Param(Node):
    """An input or output tensor. A scalar is a 0-d tensor."""

    name: str
    type: DType
    shape: tuple[Expr, ...]


@dataclass(frozen=True)
class Kernel(Node):
    name: str
    dims: tuple[Dim, ...]
    inputs: tuple[Param, ...]
    outputs: tuple[Param, ...]
    constraints: tuple[Expr, ...]
    body: tuple[Stmt, ...]

    @property
    def params(self) -> tuple[Param, ...]:
        return self.inputs + self.outputs


@dataclass(frozen=True)
class Call(Node):
    """`a, b = kernel[stride = 2](x, w)` in a graph; `dims` gives compile-time parameters."""

    results: tuple[str, ...]
    kernel: str
    dims: tuple[tuple[str, Expr], ...]
    args: tuple[str, ...]


@dataclass(frozen=True)
class Graph(Node):
    """Kernels called one after another; results that are no output are temporaries."""

    name: str
    dims: tuple[Dim, ...]
    inputs: tuple[Param, ...]
    outputs: tuple[Param, ...]
    constraints: tuple[Expr, ...]
    calls: tuple[Call, ...]

    @property
    def params(self) -> tuple[Param, ...]:
        return self.inputs + self.outputs


StepArg = int | float | str | tuple["StepArg", ...]


@dataclass(frozen=True)
class Step(Node):
    """One rewrite with its arguments: `split(j, 1024, tail = mask)`. Names are strings."""

    rewrite: str
    args: tuple[StepArg, ...] = ()
    options: tuple[tuple[str, StepArg], ...] = ()


@dataclass(frozen=True)
class Schedule(Node):
    """`schedule name of kernel { steps }`: a derivation in text."""

    name: str
    kernel: str
    steps: tuple[Step, ...]


Item = Kernel | Graph | Schedule


@dataclass(frozen=True)
class Module(Node):
    items: tuple[Item, ...]

    def kernels(self) -> dict[str, Kernel]:
        return {x.name: x for x in self.items if isinstance(x, Kernel)}

    def graphs(self) -> dict[str, Graph]:
        return {x.name: x for x in self.items if isinstance(x, Graph)}

    def schedules(self) -> dict[str, Schedule]:
        return {x.name: x for x in self.items if isinstance(x, Schedule)}


# --- walking and rebuilding ------------------------------------------------------------------

N = TypeVar("N", bound=Node)


_PARTS: dict[type[Node], tuple[str, ...]] = {}
_LEAVES = {"str", "str | None", "int | None", "int | float | bool", "DType", "LoopKind", "Space"}
"""Annotations of fields that hold no node, as they are written above."""


def _parts(node: Node) -> tuple[str, ...]:
    """The names of the fields that may hold nodes; looked up once for each class."""
    kind = type(node)
    found = _PARTS.get(kind)
    if found is None:
        found = tuple(f.name for f in fields(node) if f.name != "span" and f.type not in _LEAVES)
        _PARTS[kind] = found
    return found


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below `node`, in the order of its fields."""
    return iter(_below(node))


def _below(node: Node) -> tuple[Node, ...]:
    """The children, kept on the node: it never changes."""
    memory: dict[str, Any] = node.__dict__
    found: tuple[Node, ...] | None = memory.get("_below")
    if found is None:
        made: list[Node] = []
        for name in _parts(node):
            value = memory[name]
            if isinstance(value, Node):
                made.append(value)
            elif isinstance(value, tuple):
                made += [x for x in value if isinstance(x, Node)]
        found = memory["_below"] = tuple(made)
    return found


def walk(node: Node) -> Iterator[Node]:
    """`node` and all nodes below it, parents first."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        below = _below(top)
        if below:
            stack.extend(below[::-1])


def rebuild(node: N, visit: Callable[[Node], Node]) -> N:
    """`node` with `visit` applied to each direct child; the same object where nothing changed."""
    changes: dict[str, Any] = {}
    for name in _parts(node):
        old = getattr(node, name)
        if isinstance(old, Node):
            new = visit(old)
            if new is not old:
                changes[name] = new
        elif isinstance(old, tuple):
            made = [visit(x) if isinstance(x, Node) else x for x in old]
            if any(map(is_not, made, old)):
                changes[name] = tuple(made)
    return _changed(node, changes) if changes else node


_FIELDS: dict[type[Node], tuple[str, ...]] = {}


def _changed(node: N, changes: dict[str, Any]) -> N:
    """`dataclasses.replace` for nodes, which have no `__post_init__`; several times as fast."""
    kind = type(node)
    names = _FIELDS.get(kind)
    if names is None:
        names = _FIELDS[kind] = tuple(f.name for f in fields(kind))
    made = object.__new__(kind)
    old, new = node.__dict__, made.__dict__
    for name in names:
        new[name] = changes[name] if name in changes else old[name]
    return made


def transform(node: N, visit: Callable[[Node], Node | None]) -> N:
    """Rebuild bottom-up: `visit` gets each node with its children done; None keeps it."""

    def go(n: Node) -> Node:
        n = rebuild(n, go)
        new = visit(n)
        return n if new is None else new

    return go(node)  # type: ignore[return-value]


T = TypeVar("T")


def kept(compute: Callable[[N], T]) -> Callable[[N], T]:
    """`compute`, its result kept on the node: a node never changes, so what depends on it alone
    stays true, and is freed with it. The result is shared: it must not be changed either."""
    key = f"_{compute.__module__}.{compute.__qualname__}"

    @wraps(compute)
    def look(node: N) -> T:
        memory: dict[str, Any] = node.__dict__
        try:
            return memory[key]  # type: ignore[no-any-return]
        except KeyError:
            found = memory[key] = compute(node)
            return found

    return look


@kept
def vars_of(node: Node) -> frozenset[str]:
    """The names of all Vars below, bound ones included."""
    if isinstance(node, Var):
        return frozenset((node.name,))
    return frozenset().union(*(vars_of(c) for c in children(node)))


def substitute(node: N, values: dict[str, Expr]) -> N:
    """`node` with each `Var` in `values` replaced; binders of the same name are not renamed."""

    def go(n: Node) -> Node:
        if vars_of(n).isdisjoint(values):
            return n
        return values[n.name] if isinstance(n, Var) else rebuild(n, go)

    return go(node)  # type: ignore[return-value]


def const(value: int) -> Const:
    """An index constant (i64)."""
    return Const(value, i64)


TRUE = Const(True, bool_)
