"""From a graph of ATen operators (torch.fx, after AOTAutograd) to a KIR module.

Every operator makes a lazy tensor of its operands (`values`). What is worth memory is stored: sums,
what several operators use and is costly, and outputs; it becomes a definition. Definitions are put
into kernels, each with at most one product, and the kernels into one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KINDS
from torch._prims_common import elementwise_dtypes

from kir.dtypes import DTYPES, DType, bool_
from kir.errors import DTypeError, UnsupportedError
from kir.frontends.torch.bessels import BESSELS
from kir.frontends.torch.chebyshev import CHEBYSHEV
from kir.frontends.torch.convolutions import CONVOLUTIONS
from kir.frontends.torch.dims import Dim, Index, View, unify
from kir.frontends.torch.distances import DISTANCES
from kir.frontends.torch.gathers import GATHERS
from kir.frontends.torch.orders import ORDERS
from kir.frontends.torch.prims import PRIM_POINTWISE, PRIMS
from kir.frontends.torch.randoms import RANDOMS
from kir.frontends.torch.scatters import SCATTERS
from kir.frontends.torch.sharing import shared
from kir.frontends.torch.specials import SPECIALS
from kir.frontends.torch.structural import STRUCTURAL as PLAIN
from kir.frontends.torch.table import POINTWISE as TABLE
from kir.frontends.torch.table import Pointwise, Structural
from kir.frontends.torch.tidy import tidy
from kir.frontends.torch.values import (
    CHEAP,
    PRODUCT,
    REDUCED,
    Names,
    Value,
    cast,
    fresh,
    index_of,
    pointwise,
)
from kir.frontends.torch.windows import WINDOWS
from kir.ir import (
    Axis,
    Call,
    Const,
    Define,
    Expr,
    Graph,
    Kernel,
    Module,
    Param,
    Read,
    Stmt,
    Var,
    const,
    walk,
)

POINTWISE: dict[str, Pointwise] = {**TABLE, **PRIM_POINTWISE}
STRUCTURAL: dict[str, Structural] = {
    **PLAIN, **WINDOWS, **CONVOLUTIONS, **GATHERS, **SCATTERS, **ORDERS, **RANDOMS, **PRIMS,
    **SPECIALS, **BESSELS, **DISTANCES, **CHEBYSHEV,
}  # fmt: skip
SEED = "seed"
LARGEST = 48
"""Operators of an expression that is computed where it is used; beyond it, it is stored."""
SHARED = 4
"""The same of one that several operators use."""
VIEWS = frozenset((
    "view.default", "_unsafe_view.default", "permute.default", "transpose.int", "t.default",
    "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "expand.default",
    "slice.Tensor", "select.int", "alias.default", "detach.default", "diagonal.default",
    "split.Tensor", "split_with_sizes.default", "unbind.int", "getitem", "unfold.default",
    "as_strided.default",
))  # fmt: skip
"""Operators that move no data: of outputs, torch takes them itself."""
MOST_DEFINITIONS = 24
"""Of a kernel: planning takes longer than in proportion."""

TORCH_FILES = f'File "{Path(torch.__file__).parent}'
"""How the line of a trace begins that is PyTorch's own: the user's is told instead."""

KIR_DTYPES: dict[torch.dtype, DType] = {
    torch.float64: DTYPES["f64"], torch.float32: DTYPES["f32"], torch.float16: DTYPES["f16"],
    torch.bfloat16: DTYPES["bf16"], torch.int8: DTYPES["i8"], torch.int16: DTYPES["i16"],
    torch.int32: DTYPES["i32"], torch.int64: DTYPES["i64"], torch.uint8: DTYPES["u8"],
    torch.bool: DTYPES["bool"],
}  # fmt: skip


@dataclass(frozen=True)
class Meta:
    """The shape, dtype and strides that torch says a result has."""

    shape: tuple[int, ...]
    dtype: DType
    torch_dtype: torch.dtype
    strides: tuple[int, ...]
    order: tuple[int, ...]
    """Axes from the one that walks memory in the greatest strides to that of the least."""
    dense: bool

    @cached_property
    def in_order(self) -> bool:
        """Whether memory is walked in the order of the axes."""
        return self.order == tuple(range(len(self.order)))


@dataclass(frozen=True)
class Place:
    """A tensor at the edge of the module: its array's shape; its own axes are `shape` permuted."""

    name: str
    array: tuple[int, ...]
    meta: Meta


@dataclass(frozen=True)
class Result:
    """An output of the torch graph: the output or input of that number, or what `views`, ATen
    operators that move no data, make of it."""

    is_input: bool
    number: int
    views: tuple[tuple[Any, tuple[Any, ...]], ...] = ()


@dataclass(frozen=True)
class Lowered:
    """A module whose graph `main` takes `inputs` (the torch graph's tensors, in order) and gives
    `outputs`. `results` says of each output of the torch graph what it is of these; None is
    None, and a number itself.
    """

    module: Module
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    results: tuple[Result | int | float | None, ...]
    constants: tuple[torch.Tensor, ...] = ()
    """Those of the last inputs that the graph itself holds."""
    draws: bool = False
    """Whether `main` takes a seed of random numbers, a u64, as its last input."""


def dtype_of(dtype: torch.dtype) -> DType:
    """UnsupportedError where KIR has no such dtype."""
    found = KIR_DTYPES.get(dtype)
    if found is None:
        raise UnsupportedError(f"KIR has no dtype like {dtype}")
    return found


def meta_of(value: torch.Tensor) -> Meta:
    """Symbolic sizes are taken as they are now, which torch then guards."""
    shape = tuple(int(n) for n in value.shape)
    strides = [int(s) for s in value.stride()]
    order = tuple(sorted(range(len(shape)), key=lambda d: (-strides[d], d)))
    expected, dense = 1, True
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != expected and 0 not in shape:
            dense = False
        expected *= shape[d]
    return Meta(shape, dtype_of(value.dtype), value.dtype, tuple(strides), order, dense)


def name_of(node: torch.fx.Node) -> str:
    """`add.Tensor` for aten's."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removeprefix("aten.")
    return getattr(node.target, "__name__", str(node.target))


def as_array(memory: torch.Tensor) -> Any:
    """The NumPy array of a contiguous tensor's memory, in the dtype that KIR has for it."""
    if memory.dtype == torch.bfloat16:
        return memory.view(torch.int16).numpy().view(dtype_of(memory.dtype).numpy)
    return memory.numpy()


def has_row(operator: Any) -> bool:
    """Whether the tables have a row for an ATen operator: torch need not take it apart."""
    name = str(operator).removeprefix("aten.")
    return name in POINTWISE or name in STRUCTURAL


def is_supported(node: torch.fx.Node) -> bool:
    """Whether the tables have a row; a dtype may still be refused."""
    return has_row(node.target) or name_of(node) == "getitem"


class Lowering:
    """What the operators of the table may ask of the graph that is lowered."""

    def __init__(self) -> None:
        self.names = Names()
        self.views: list[View] = []
        self.stored: list[Value] = []
        self.outs: list[Meta] = []
        self.metas: list[Meta | None] = []
        """Of the operands at hand that are tensors in the first place of the arguments."""
        self.drawn = 0
        """Random numbers that the graph has used: where those of the next operator begin."""

    @property
    def out(self) -> Meta:
        """The (first) result of the operator at hand."""
        return self.outs[0]

    def dims(self, shape: Sequence[int]) -> tuple[Dim, ...]:
        return fresh(shape)

    def walk_together(self, a: Dim, b: Dim) -> None:
        unify(a, b)

    def whole(self, dim: Dim) -> None:
        """Keep a dim in one piece."""
        dim.find().whole = True
        dim.find().cuts = set()

    def viewed(self, v: Value, shape: Sequence[int]) -> Value:
        dims = fresh(shape)
        made = View(v.dims, dims)
        self.views.append(made)
        return v.seen(dims, lambda indices: v.at(made.index(indices)))

    def readable(self, v: Value) -> Value:
        """A value of which each element is a read: this one, or this one stored."""
        return v if v.plain else self.keep(v)

    def factor(self, v: Value) -> Value:
        """A factor of a product, of which each element is used many times: what is computed is
        stored, and is the end of the kernel that makes what it is computed of."""
        return v if v.size == 1 else self.keep(v)

    def keep(self, v: Value) -> Value:
        """Store it."""
        if v.stored is None:
            v.stored = f"t{len(self.stored)}"
            self.stored.append(v)
        return v

    def made(
        self, dims: Sequence[Dim], dtype: DType, build: Callable[[str], tuple[Stmt, ...]]
    ) -> Value:
        """A stored value that statements make: `build(name)` gives them. They are a kernel of
        their own, of which `name` is the output."""

        def nothing(indices: Sequence[Index]) -> Expr:
            raise AssertionError("a value that statements make has no expression")

        found = Value(dims, dtype, nothing)
        found.build = build
        return self.keep(found)

    def random(self, count: int) -> tuple[Expr, int]:
        """The seed, and the first of `count` counters that nothing else in the graph uses."""
        first = self.drawn
        self.drawn += max(count, 1)
        return Read(SEED, (), DTYPES["u64"]), first


def lower(graph: torch.fx.Graph, plain: bool = False) -> Lowered:
    """`plain`, for people: inputs and outputs have the shapes of their tensors, in their order, and
    every output is stored, also one that views another or is an input.

    UnsupportedError for an operator or a dtype that has no row, naming both and the line of
    the model that they come from."""
    low = Lowering()
    values: dict[torch.fx.Node, Any] = {}
    arguments: list[tuple[str, Meta, Value]] = []
    constants: list[torch.Tensor] = []
    for node in sorted(graph.nodes, key=lambda n: (n.op == "get_attr" and 1) or (
        0 if n.op == "placeholder" else 2)):  # fmt: skip
        if node.op == "placeholder":
            values[node] = _placeholder(low, node.meta["val"], arguments, plain)
        elif node.op == "get_attr":
            constant = _attribute(graph, node)
            values[node] = _placeholder(low, constant, arguments, plain)
            constants.append(constant)
        elif node.op == "call_function":
            values[node] = _operator(low, node, values)
        elif node.op != "output":
            raise UnsupportedError(f"a graph with a node `{node.op}` is not lowered")
    (outputs,) = next(n for n in reversed(graph.nodes) if n.op == "output").args
    listed = [outputs] if isinstance(outputs, torch.fx.Node) else list(outputs)
    try:
        made = _Assembly(low, arguments, plain).run(listed, values)
        return replace(made, constants=tuple(constants))
    except DTypeError as error:  # of an op that KIR has for other dtypes only
        raise UnsupportedError(error.message) from None


def _placeholder(
    low: Lowering, example: Any, arguments: list[tuple[str, Meta, Value]], plain: bool
) -> Any:
    if not isinstance(example, torch.Tensor):
        return int(example)
    meta, name = meta_of(example), f"x{len(arguments)}"
    if plain:
        meta = replace(meta, order=tuple(range(len(meta.shape))))
    ordered = fresh([meta.shape[d] for d in meta.order])
    back = {d: k for k, d in enumerate(meta.order)}

    def read(indices: Sequence[Index]) -> Expr:
        places = tuple(p for d in meta.order for p in indices[d])
        if plain:
            places = tuple(d.joined(i) for d, i in zip(ordered, indices, strict=True))
        return Read(name, places, meta.dtype)

    found = Value([ordered[back[d]] for d in range(len(ordered))], meta.dtype, read)
    found.plain = True
    arguments.append((name, meta, found))
    return found


def _attribute(graph: torch.fx.Graph, node: torch.fx.Node) -> torch.Tensor:
    """A tensor that the graph's module holds."""
    found: Any = graph.owning_module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    if not isinstance(found, torch.Tensor):
        raise UnsupportedError(f"the constant `{node.target}` is no tensor")
    node.meta.setdefault("val", found)
    return found


def _operator(low: Lowering, node: torch.fx.Node, values: Mapping[torch.fx.Node, Any]) -> Any:
    name = name_of(node)
    if name == "getitem":
        source, k = node.args
        assert isinstance(source, torch.fx.Node)
        return values[source][k]
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    results = node.meta["val"]
    listed = results if isinstance(results, tuple | list) else [results]
    try:
        low.outs = [meta_of(r) for r in listed if isinstance(r, torch.Tensor)]
        low.metas = [
            meta_of(a.meta["val"])
            if isinstance(a, torch.fx.Node) and isinstance(a.meta["val"], torch.Tensor)
            else None
            for a in node.args
        ]
        if name in POINTWISE:
            made: Any = _pointwise(low, POINTWISE[name], args, kwargs, node)
        elif name in STRUCTURAL:
            made = STRUCTURAL[name](low, *args, **kwargs)
        else:
            raise UnsupportedError(f"KIR does not compile `aten.{name}`")
    except UnsupportedError as error:
        raise located(error, node) from None
    if isinstance(made, Value):
        users = len(node.users)
        big = made.size > (LARGEST if users < 2 else SHARED)
        if made.cost >= REDUCED or big or (users > 1 and made.cost > CHEAP):
            low.keep(made)
    return made


def located(error: UnsupportedError, node: torch.fx.Node) -> UnsupportedError:
    """With the dtypes of the operands and the line of the model."""
    dtypes = [
        str(a.meta["val"].dtype).removeprefix("torch.")
        for a in node.all_input_nodes
        if isinstance(a.meta.get("val"), torch.Tensor)
    ]
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    lines = [line.strip() for line in trace if line.strip().startswith("File ")]
    lines = [line for line in lines if not line.startswith(TORCH_FILES)] or lines
    where = f", {lines[-1]}" if lines else ""
    return UnsupportedError(
        f"{error.message} (`aten.{name_of(node)}` of {', '.join(dtypes) or 'no tensors'}){where}",
        hint=error.hint or "without `strict`, PyTorch runs it",
    )


def _pointwise(low: Lowering, row: Pointwise, args: Any, kwargs: Any, node: torch.fx.Node) -> Value:
    """Operands are tensors, and numbers in the place of one (`row.operands` of them at most); what
    follows is an option of the row."""
    out = low.out.dtype
    operands = list(args[: row.operands])
    if any(isinstance(v, Value) for v in (*args[row.operands :], *kwargs.values())):
        raise UnsupportedError("a tensor in the place of an option is not compiled")
    wide = _computed_in(row, node, out)

    def element(*elements: Expr) -> Expr:
        left = iter(elements)
        full: list[Any] = []
        for k, a in enumerate(operands):
            if a is None:
                full.append(None)
                continue
            e = next(left) if isinstance(a, Value) else _literal(a, wide or out)
            is_condition = row.kind == "WHERE" and k == 0
            full.append(e if is_condition or wide is None else cast(e, wide))
        return cast(row.element(*full, *args[row.operands :], **kwargs), out)

    return pointwise(element, [a for a in operands if isinstance(a, Value)], out, row.heavy)


def _computed_in(row: Pointwise, node: torch.fx.Node, out: DType) -> DType | None:
    """The dtype that operands are cast to; None: as they are."""
    if row.kind in ("BOOL", "BOOL_OF", "SELF", "WHERE"):
        return {"BOOL": bool_, "WHERE": out}.get(row.kind)
    examples = [
        a.meta["val"] if isinstance(a, torch.fx.Node) else a
        for a in node.args[: row.operands]
        if a is not None
    ]
    kind = getattr(KINDS, row.kind)
    return dtype_of(elementwise_dtypes(*examples, type_promotion_kind=kind)[0])


def _literal(a: Any, dtype: DType) -> Const:
    if dtype.is_bool:
        return Const(bool(a), dtype)
    return Const(float(a) if dtype.is_float else int(a), dtype)


def _root(node: torch.fx.Node) -> tuple[torch.fx.Node, tuple[tuple[Any, tuple[Any, ...]], ...]]:
    """The node of which `node` is a view, and how."""
    views: list[tuple[Any, tuple[Any, ...]]] = []
    while node.op == "call_function" and name_of(node) in VIEWS and not node.kwargs:
        source, *rest = node.args
        if not isinstance(source, torch.fx.Node) or len(node.all_input_nodes) != 1:
            break
        if not _is_fixed(rest) or (name_of(node) == "getitem" and name_of(source) not in VIEWS):
            break
        views.append((node.target, tuple(rest)))
        node = source
    return node, tuple(reversed(views))


def _is_fixed(args: Any) -> bool:
    if isinstance(args, list | tuple):
        return all(_is_fixed(a) for a in args)
    return args is None or isinstance(args, int)


@dataclass(frozen=True)
class _Piece:
    """What makes one tensor; `alone`: in a kernel of its own."""

    name: str
    body: tuple[Stmt, ...]
    alone: bool = False


class _Assembly:
    """Definitions into kernels, kernels into a graph."""

    def __init__(
        self, low: Lowering, arguments: Sequence[tuple[str, Meta, Value]], plain: bool
    ) -> None:
        self.low, self.arguments, self.plain = low, arguments, plain
        self.definitions: list[_Piece] = []
        self.shapes: dict[str, tuple[DType, tuple[int, ...]]] = {}
        self.products: set[str] = set()

    def run(
        self, outputs: Sequence[torch.fx.Node | None], values: Mapping[torch.fx.Node, Any]
    ) -> Lowered:
        results: list[Result | int | float | None] = []
        wanted: dict[torch.fx.Node, int] = {}
        given = {id(v): k for k, (_, _, v) in enumerate(self.arguments)}
        for node in outputs:
            if not isinstance(node, torch.fx.Node):
                results.append(node)
                continue
            root, views = (node, ()) if self.plain else _root(node)
            value = values[root]
            if not isinstance(value, Value):
                raise UnsupportedError(f"an output is the number {value}, no tensor")
            if id(value) in given and not self.plain:
                results.append(Result(True, given[id(value)], views))
            else:
                results.append(Result(False, wanted.setdefault(root, len(wanted)), views))
        metas = [meta_of(node.meta["val"]) for node in wanted]
        self._settle()
        names: list[str] = []
        for k, (node, meta) in enumerate(zip(wanted, metas, strict=True)):
            name = self._name(k, values[node], meta)
            names.append(f"y{k}" if name in names else name)
        for value in self.low.stored:
            self._define(value, tuple(range(len(value.dims))))
        for node, name, meta in zip(wanted, names, metas, strict=True):
            if name not in self.shapes:
                if self.plain:
                    self._define_plainly(values[node], name)
                else:
                    self._define(values[node], meta.order, name)
        places = [Place(n, self.shapes[n][1], m) for n, m in zip(names, metas, strict=True)]
        inputs = []
        for name, meta, value in self.arguments:
            array = meta.shape
            if not self.plain:
                array = tuple(f for d in meta.order for f in value.dims[d].factors)
            self.shapes[name] = meta.dtype, array
            inputs.append(Place(name, array, meta))
        draws = self.low.drawn > 0
        if draws:
            self.shapes[SEED] = DTYPES["u64"], ()
        named = [p.name for p in inputs] + ([SEED] if draws else [])
        module = self._module(named, [p.name for p in places])
        return Lowered(module, tuple(inputs), tuple(places), tuple(results), draws=draws)

    def _settle(self) -> None:
        """Cut dims until nothing changes; cuts only grow, so it ends."""
        changed = True
        while changed:
            changed = False
            for view in self.low.views:
                changed |= view.settle()

    def _name(self, k: int, value: Value, meta: Meta) -> str:
        """That under which it is stored, where memory is in the order that torch expects."""
        if not meta.dense and 0 in meta.strides:
            raise UnsupportedError(f"an output of shape {meta.shape} overlaps itself")
        in_order = meta.order == tuple(range(len(meta.order)))
        if self.plain:
            in_order = all(d.factors == (d.size,) for d in value.dims)
        return value.stored if value.stored and in_order else f"y{k}"

    def _define(self, value: Value, order: Sequence[int], name: str | None = None) -> None:
        if name is None and value.build is not None:
            assert value.stored is not None
            shape = tuple(f for d in value.dims for f in d.factors)
            self.shapes[value.stored] = value.dtype, shape
            self.definitions.append(_Piece(value.stored, value.build(value.stored), True))
            return
        axes = [self.low.names.axes(d) for d in value.dims]
        index = [index_of(a) for a in axes]
        placed: list[Axis] = [a for d in order for a in axes[d]]
        shape = tuple(int(a.extent.value) for a in placed if isinstance(a.extent, Const))
        if name is None:
            assert value.stored is not None
            name, element = value.stored, value.element(index)
            if value._cost == PRODUCT:
                self.products.add(name)
        else:
            element = value.at(index)
        self.shapes[name] = value.dtype, shape
        self.definitions.append(_Piece(name, (Define(name, tuple(placed), element),)))

    def _define_plainly(self, value: Value, name: str) -> None:
        """In the shape of the tensor: an axis for each dim, be it cut or 1."""
        axes = tuple(Axis(f"a{self.low.names.next()}", const(d.size)) for d in value.dims)
        index: list[Index] = [
            () if d.size == 1 else d.split(Var(a.name))
            for d, a in zip(value.dims, axes, strict=True)
        ]
        self.shapes[name] = value.dtype, value.shape
        self.definitions.append(_Piece(name, (Define(name, axes, value.at(index)),)))

    def _module(self, inputs: Sequence[str], outputs: Sequence[str]) -> Module:
        kept = _alive(self.definitions, outputs)
        groups = self._groups(kept)
        kernels, calls = [], []
        for k, group in enumerate(groups):
            made = [d.name for d in group]
            reads = _read(group)
            later = {n for g in groups[k + 1 :] for n in _read(g)}
            results = [n for n in made if n in later or n in outputs]
            name = f"k{k}"
            body = tuple(s for piece in group for s in piece.body)
            params = self._params(reads), self._params(results)
            kernels.append(tidy(Kernel(name, (), *params, (), body)))
            calls.append(Call(tuple(results), name, (), tuple(reads)))
        graph = Graph("main", (), self._params(inputs), self._params(outputs), (), tuple(calls))
        return shared(Module((*kernels, graph)))

    def _params(self, names: Sequence[str]) -> tuple[Param, ...]:
        return tuple(
            Param(n, self.shapes[n][0], tuple(const(e) for e in self.shapes[n][1])) for n in names
        )

    def _groups(self, definitions: Sequence[_Piece]) -> list[list[_Piece]]:
        groups: list[list[_Piece]] = []
        for d in definitions:
            full = not groups or len(groups[-1]) >= MOST_DEFINITIONS
            second = d.name in self.products and any(
                e.name in self.products for e in (groups[-1] if groups else ())
            )
            apart = d.alone or (groups and groups[-1] and groups[-1][-1].alone)
            if full or second or apart:
                groups.append([])
            groups[-1].append(d)
        return groups


def _read(group: Sequence[_Piece]) -> list[str]:
    """The tensors that pieces read and do not make."""
    made = {p.name for p in group}
    found = (n.tensor for p in group for s in p.body for n in walk(s) if isinstance(n, Read))
    return [n for n in dict.fromkeys(found) if n not in made]


def _alive(definitions: Sequence[_Piece], outputs: Sequence[str]) -> list[_Piece]:
    """Those that an output needs, an output right after what it is made of."""
    needed = set(outputs)
    kept: list[_Piece] = []
    for d in reversed(definitions):
        if d.name in needed:
            kept.append(d)
            needed.update(_read([d]))
    return list(reversed(kept))
