"""`validate`: the structural rules of the IR, to be checked after any rewrite.

Names are in scope and shadow nothing, dtypes and ranks fit, only outputs and buffers are stored
to. What the parser ensures for a text, this ensures for a kernel made by a program.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.dtypes import DType, bool_, i64
from kir.errors import (
    DTypeError,
    DuplicateNameError,
    KirError,
    ScopeError,
    ShapeError,
    UnknownNameError,
)
from kir.ir import (
    ARG_REDUCTIONS,
    LOOP_KINDS,
    REDUCTIONS,
    SPACES,
    UPDATE_OPS,
    Axis,
    Bitcast,
    Buffer,
    Cast,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    walk,
)
from kir.ops import OPS, result_dtype


@dataclass(frozen=True)
class Meaning:
    """What a name stands for: a dim or an index (`dtype` is None), or a tensor."""

    role: str
    dtype: DType | None = None
    rank: int = 0


Scope = dict[str, Meaning]


def validate(kernel: Kernel) -> None:
    """Raise the KirError for the first structural rule that `kernel` breaks."""
    try:
        _Validator(kernel).run()
    except KirError as error:
        raise error.at(kernel=kernel) from None


class _Validator:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def run(self) -> None:
        k = self.kernel
        scope: Scope = {}
        for d in k.dims:
            self.declare(scope, d.name, Meaning("dim"), d)
        for p in k.params:
            for extent in p.shape:
                self.index(extent, scope)
        for role, params in (("input", k.inputs), ("output", k.outputs)):
            for p in params:
                self.declare(scope, p.name, Meaning(role, p.type, len(p.shape)), p)
        for c in k.constraints:
            self.condition(c, scope)
        self.block(k.body, scope)

    def declare(self, scope: Scope, name: str, meaning: Meaning, node: Node) -> None:
        if name in scope:
            raise DuplicateNameError(
                f"`{name}` is already defined here", node=node, hint="choose another name"
            )
        scope[name] = meaning

    # statements

    def block(self, body: tuple[Stmt, ...], scope: Scope) -> None:
        scope = dict(scope)
        for s in body:
            self.stmt(s, scope)

    def stmt(self, s: Stmt, scope: Scope) -> None:
        match s:
            case Loop():
                self.loop(s, scope)
            case If():
                self.condition(s.condition, scope)
                self.block(s.body, scope)
            case Define():
                self.define(s, scope)
            case Buffer():
                for extent in s.shape:
                    self.index(extent, scope)
                if s.init is not None:
                    self.typed(s.init, s.type, scope)
                if s.space not in SPACES:
                    raise UnknownNameError(f"there is no memory space `{s.space}`", node=s)
                self.declare(scope, s.name, Meaning("buffer", s.type, len(s.shape)), s)
            case Store():
                self.store(s, scope)
            case _:
                raise ScopeError(f"{type(s).__name__} is no statement", node=s)

    def loop(self, s: Loop, scope: Scope) -> None:
        if s.kind not in LOOP_KINDS:
            raise UnknownNameError(f"there is no loop kind `{s.kind}`", node=s)
        self.index(s.axis.extent, scope)
        inner = dict(scope)
        for n in walk(s):  # a recurrence is known in the whole loop
            if isinstance(n, Define) and n.name not in inner and Var(s.axis.name) in n.dims:
                scope[n.name] = inner[n.name] = Meaning("definition", n.value.dtype, len(n.dims))
        self.declare(inner, s.axis.name, Meaning("loop"), s)
        for c in s.where:
            self.condition(c, inner)
        self.block(s.body, inner)

    def define(self, s: Define, scope: Scope) -> None:
        known = scope.get(s.name)
        own = known is not None and known.role == "definition" and len(s.axes) < len(s.dims)
        if known is not None and known.role != "output" and not own:
            raise DuplicateNameError(f"`{s.name}` is already defined", node=s)
        inner = dict(scope)
        for d in s.dims:
            if isinstance(d, Axis):
                self.index(d.extent, scope)
                self.declare(inner, d.name, Meaning("index"), s)
            elif scope.get(d.name, Meaning("")).role != "loop":
                raise ScopeError(f"`{d.name}` is no loop around this definition", node=s)
        meaning = Meaning("definition", s.value.dtype, len(s.dims))
        if known is not None and (known.dtype, known.rank) != (meaning.dtype, meaning.rank):
            raise ShapeError(
                f"`{s.name}` is {known.dtype} with {known.rank} dims, its definition "
                f"{meaning.dtype} with {meaning.rank}",
                node=s,
            )
        self.expr(s.value, inner)
        scope.setdefault(s.name, meaning)

    def store(self, s: Store, scope: Scope) -> None:
        meaning = self.tensor(s.target, len(s.indices), s, scope)
        if meaning.role not in ("output", "buffer"):
            raise ScopeError(
                f"`{s.target}` is {'an input' if meaning.role == 'input' else 'a definition'} "
                "and cannot be stored to",
                node=s,
                hint="only outputs and buffers change",
            )
        for i in s.indices:
            self.index(i, scope)
        assert meaning.dtype is not None
        self.typed(s.value, meaning.dtype, scope)
        if s.op is not None:
            if s.op not in UPDATE_OPS:
                raise UnknownNameError(f"there is no update `{s.op}=`", node=s)
            if (s.op in ("and", "or")) != meaning.dtype.is_bool:
                raise DTypeError(f"`{s.op}` is no update of {meaning.dtype}", node=s)

    # expressions

    def tensor(self, name: str, rank: int, node: Node, scope: Scope) -> Meaning:
        meaning = scope.get(name)
        if meaning is None or meaning.dtype is None:
            raise UnknownNameError(f"there is no tensor `{name}` here", node=node)
        if meaning.rank != rank:
            raise ShapeError(
                f"`{name}` has {meaning.rank} dims, and {rank} indices are given", node=node
            )
        return meaning

    def index(self, e: Expr, scope: Scope) -> None:
        self.typed(e, i64, scope)

    def condition(self, e: Expr, scope: Scope) -> None:
        self.typed(e, bool_, scope)

    def typed(self, e: Expr, wanted: DType, scope: Scope) -> None:
        self.expr(e, scope)
        if e.dtype != wanted:
            raise DTypeError(f"{wanted} is wanted here, and this is {e.dtype}", node=e)

    def expr(self, e: Expr, scope: Scope) -> None:
        match e:
            case Const():
                _literal(e)
            case Var():
                if scope.get(e.name, Meaning("", i64)).dtype is not None:
                    raise UnknownNameError(f"there is no index or dim `{e.name}` here", node=e)
            case Read():
                meaning = self.tensor(e.tensor, len(e.indices), e, scope)
                if meaning.dtype != e.type:
                    raise DTypeError(f"`{e.tensor}` is {meaning.dtype}, read as {e.type}", node=e)
                for i in e.indices:
                    self.index(i, scope)
                if e.fill is not None:
                    self.typed(e.fill, e.type, scope)
            case Op():
                self.op(e, scope)
            case Cast():
                self.expr(e.value, scope)
            case Bitcast():
                self.expr(e.value, scope)
                if e.value.dtype.bits != e.type.bits:
                    raise DTypeError(f"{e.value.dtype} and {e.type} differ in width", node=e)
            case Reduce():
                self.reduce(e, scope)
            case _:
                raise ScopeError(f"{type(e).__name__} is no expression", node=e)

    def op(self, e: Op, scope: Scope) -> None:
        if e.name not in OPS:
            raise UnknownNameError(f"there is no op `{e.name}`", node=e)
        for a in e.args:
            self.expr(a, scope)
        try:
            expected = result_dtype(e.name, [a.dtype for a in e.args])
        except DTypeError as error:
            raise error.at(node=e) from None
        if expected != e.type:
            raise DTypeError(f"`{e.name}` gives {expected}, not {e.type}", node=e)

    def reduce(self, e: Reduce, scope: Scope) -> None:
        if e.name not in REDUCTIONS and e.name not in ARG_REDUCTIONS:
            raise UnknownNameError(f"there is no reduction `{e.name}`", node=e)
        if e.name in ARG_REDUCTIONS and len(e.axes) != 1:
            raise ShapeError(f"`{e.name}` has one axis", node=e)
        inner = dict(scope)
        for a in e.axes:
            self.index(a.extent, inner)
            self.declare(inner, a.name, Meaning("index"), e)
        for c in e.where:
            self.condition(c, inner)
        self.expr(e.body, inner)
        logical = e.name in ("all", "any")
        if e.name not in ARG_REDUCTIONS and logical != e.body.dtype.is_bool:
            raise DTypeError(f"`{e.name}` is not defined on {e.body.dtype}", node=e)


def _literal(e: Const) -> None:
    kind = {"float": float, "int": int, "uint": int, "bool": bool}[e.type.kind]
    if type(e.value) is not kind:
        raise DTypeError(f"{e.value!r} is no literal of {e.type}", node=e)
    if e.type.is_integer and not e.type.holds(int(e.value)):
        raise DTypeError(f"{e.value} does not fit in {e.type}", node=e)
