"""IR to canonical text: what it prints parses back to the equal IR.

A literal is printed bare exactly where the parser gives it the same dtype from its neighbours or
its place (`context`), and as a cast of itself elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from kir.dtypes import NARROW_FLOATS, DType, bool_, i64
from kir.errors import Source
from kir.ir import (
    Axis,
    Bitcast,
    Buffer,
    Call,
    Cast,
    Const,
    Define,
    Dim,
    Expr,
    Graph,
    If,
    Item,
    Kernel,
    Loop,
    Module,
    Op,
    Param,
    Read,
    Reduce,
    Schedule,
    Step,
    StepArg,
    Stmt,
    Store,
    Var,
)
from kir.ops import OPS

INDENT = "  "
MAX_WIDTH = 100

# precedence levels, loosest first, as in grammar.lark
_LEVEL = {"or": 1, "and": 2, "not": 3, "eq": 4, "ne": 4, "lt": 4, "le": 4, "gt": 4, "ge": 4,
          "bit_or": 5, "bit_xor": 6, "bit_and": 7, "shl": 8, "shr": 8, "add": 9, "sub": 9,
          "mul": 10, "div": 10, "floordiv": 10, "mod": 10}  # fmt: skip
_REDUCE, _COMPARE, _PREFIX, _PRIMARY = 0, 4, 11, 12
_UPDATE = {"add": "+=", "mul": "*=", None: "="}


class _Always:
    """A context in which no literal may be bare: the operand of a cast."""


Context = DType | None | _Always
ALWAYS = _Always()


@dataclass
class Line:
    """A printed line and the source lines of what it shows (0 where it came from no text)."""

    text: str
    depth: int
    start: int = 0


@dataclass
class Printer:
    """Collects lines; `dtypes` holds the dtype of every tensor declared so far."""

    dtypes: dict[str, DType] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    depth: int = 0

    # --- expressions

    def expr(self, e: Expr, context: Context = None, level: int = 0) -> str:
        if is_literal(e) and context != e.dtype and not (context is None and e.dtype == i64):
            return (
                f"{e.dtype}({self.bare(e, e.dtype, 0)})"
                if not _is_bool(e)
                else self.bare(e, None, 0)
            )
        return self.bare(e, context, level)

    def bare(self, e: Expr, context: Context, level: int) -> str:
        match e:
            case Const():
                text = literal(e)
                return f"({text})" if text[0] == "-" and level > _PREFIX else text
            case Var():
                return e.name
            case Read():
                return self.read(e, level)
            case Cast():
                return f"{e.type}({self.expr(e.value, ALWAYS)})"
            case Bitcast():
                return f"bitcast[{e.type}]({self.expr(e.value, ALWAYS)})"
            case Reduce():
                text = self.reduce(e)
                return f"({text})" if level > _REDUCE else text
            case Op():
                return self.op(e, context, level)
        raise TypeError(f"not an expression: {e!r}")

    def read(self, e: Read, level: int) -> str:
        text = f"{e.tensor}[{self.indices(e.indices)}]" if e.indices else e.tensor
        if e.fill is None:
            return text
        text += f" else {self.expr(e.fill, self.dtypes.get(e.tensor), _PREFIX)}"
        return f"({text})" if level > _REDUCE else text

    def indices(self, indices: Iterable[Expr]) -> str:
        return ", ".join(self.expr(i, i64) for i in indices)

    def reduce(self, e: Reduce) -> str:
        axes = ", ".join(map(self.axis, e.axes)) + self.where(e.where)
        body = e.body
        narrow = e.name in ("sum", "prod") and body.dtype in NARROW_FLOATS
        dtype = f"[{body.dtype}]" if narrow else ""
        return f"{e.name}{dtype}({axes}) {self.expr(body)}"

    def op(self, e: Op, context: Context, level: int) -> str:
        d = OPS[e.name]
        contexts = self.operand_contexts(e, context)
        if e.name in _LEVEL and d.arity == 2:
            mine = _LEVEL[e.name]
            left = self.expr(e.args[0], contexts[0], mine + (mine == _COMPARE))
            right = self.expr(e.args[1], contexts[1], mine + 1)
            text = f"{left} {d.infix} {right}"
        elif d.infix:
            mine = _LEVEL.get(e.name, _PREFIX)
            operand = self.expr(e.args[0], contexts[0], mine)
            if isinstance(e.args[0], Const) or operand.startswith("-"):
                operand = f"({operand})"
            text = f"not {operand}" if e.name == "not" else f"{d.infix}{operand}"
        else:
            args = ", ".join(self.expr(a, c) for a, c in zip(e.args, contexts))
            return f"{e.name}({args})"
        return f"({text})" if level > mine else text

    def operand_contexts(self, e: Op, context: Context) -> list[Context]:
        """Per operand, the dtype that the parser would give a literal there."""
        rule = OPS[e.name].rule
        if rule in ("philox", "rand"):
            return [a.dtype for a in e.args]
        first: list[Context] = [bool_] if rule == "select" else []
        values = e.args[len(first) :]
        strong = [a.dtype for a in values if not is_literal(a)]
        inherited: Context = context if rule in ("same", "select", "shift") else None
        if strong:
            inherited = strong[0]
        return first + [inherited] * len(values)

    def axis(self, a: Axis) -> str:
        return f"{a.name}: {self.expr(a.extent, i64)}"

    def where(self, conditions: tuple[Expr, ...]) -> str:
        if not conditions:
            return ""
        return " where " + ", ".join(self.expr(c, bool_) for c in conditions)

    # --- statements

    def line(self, text: str, node: object = None) -> None:
        span = getattr(node, "span", None)
        self.lines.append(Line(text, self.depth, span.line if span else 0))

    def block(self, body: Iterable[Stmt]) -> None:
        around = dict(self.dtypes)  # a name of a block may mean something else in the next
        self.depth += 1
        for s in body:
            self.stmt(s)
        self.depth -= 1
        self.dtypes = around
        self.line("}")

    def stmt(self, s: Stmt) -> None:
        match s:
            case Define():
                self.define(s)
            case Buffer():
                init = f" = {self.expr(s.init, s.type)}" if s.init is not None else ""
                self.line(f"buffer {s.name}: {self.type(s.type, s.shape)} in {s.space}{init}", s)
                self.dtypes[s.name] = s.type
            case Store():
                target = f"{s.target}[{self.indices(s.indices)}]" if s.indices else s.target
                assign = _UPDATE.get(s.op) or f"{s.op}="
                value = self.expr(s.value, self.dtypes.get(s.target))
                self.line(f"{target} {assign} {value}", s)
            case Loop():
                self.loop(s)
            case If():
                self.line(f"if {self.expr(s.condition, bool_)} {{", s)
                self.block(s.body)
            case _:
                raise TypeError(f"not a statement: {s!r}")

    def define(self, s: Define) -> None:
        dims = ", ".join(self.axis(d) if isinstance(d, Axis) else d.name for d in s.dims)
        target = f"{s.name}[{dims}]" if s.dims else s.name
        self.line(f"{target} = {self.expr(s.value, self.dtypes.get(s.name))}", s)
        self.dtypes[s.name] = s.value.dtype

    def loop(self, s: Loop) -> None:
        first, axes = s, [s.axis]
        while not s.where and len(s.body) == 1:
            inner = s.body[0]
            if not isinstance(inner, Loop) or inner.kind != s.kind or inner.hints:
                break
            s = inner
            axes.append(s.axis)
        text = f"{s.kind} {', '.join(map(self.axis, axes))}{self.where(s.where)}"
        if first.hints:
            text += " hint(" + ", ".join(f"{k} = {v}" for k, v in first.hints) + ")"
        self.line(text + " {", first)
        self.block(s.body)

    # --- items

    def type(self, dtype: DType, shape: tuple[Expr, ...]) -> str:
        return f"{dtype}[{self.indices(shape)}]" if shape else str(dtype)

    def param(self, p: Param) -> str:
        return f"{p.name}: {self.type(p.type, p.shape)}"

    def dim(self, d: Dim) -> str:
        return d.name if d.default is None else f"{d.name} = {d.default}"

    def header(self, word: str, item: Kernel | Graph) -> None:
        dims = f"[{', '.join(map(self.dim, item.dims))}]" if item.dims else ""
        inputs = ", ".join(map(self.param, item.inputs))
        outputs = ", ".join(map(self.param, item.outputs))
        where = self.where(item.constraints)
        text = f"{word} {item.name}{dims}({inputs}) -> ({outputs}){where} {{"
        if len(text) <= MAX_WIDTH:
            self.line(text, item)
            return
        self.line(f"{word} {item.name}{dims}(", item)
        for i, p in enumerate(item.inputs):
            comma = "," if i + 1 < len(item.inputs) else ""
            self.lines.append(Line(self.param(p) + comma, self.depth + 1, _start(p)))
        if len(f") -> ({outputs}){where} {{") <= MAX_WIDTH or not where:
            self.line(f") -> ({outputs}){where} {{")
            return
        self.line(f") -> ({outputs})")
        self.line(f"{where.strip()} {{")

    def item(self, item: Item) -> None:
        if isinstance(item, Schedule):
            self.line(f"schedule {item.name} of {item.kernel} {{", item)
            for step in item.steps:
                self.lines.append(Line(format_step(step), 1, _start(step)))
            self.line("}")
            return
        self.dtypes = {p.name: p.type for p in item.params}
        self.header("kernel" if isinstance(item, Kernel) else "graph", item)
        if isinstance(item, Kernel):
            self.block(item.body)
            return
        for call in item.calls:
            self.lines.append(Line(self.call(call), 1, _start(call)))
        self.line("}")

    def call(self, c: Call) -> str:
        dims = ", ".join(f"{k} = {self.expr(v, i64)}" for k, v in c.dims)
        kernel = f"{c.kernel}[{dims}]" if dims else c.kernel
        return f"{', '.join(c.results)} = {kernel}({', '.join(c.args)})"


def _start(node: object) -> int:
    span = getattr(node, "span", None)
    return span.line if span else 0


def _is_bool(e: Expr) -> bool:
    return e.dtype == bool_


def is_literal(e: Expr) -> bool:
    """Whether the parser would leave the dtype of this expression open (see elaborate: weak)."""
    if isinstance(e, Const):
        return not e.type.is_bool
    if not isinstance(e, Op):
        return False
    rule = OPS[e.name].rule
    if rule not in ("same", "select", "shift") or e.dtype.is_bool:
        return False
    return all(is_literal(a) for a in (e.args[1:] if rule == "select" else e.args))


def literal(e: Const) -> str:
    """The shortest text that rounds to this value in its dtype."""
    if isinstance(e.value, bool):
        return "true" if e.value else "false"
    if isinstance(e.value, int):
        return str(e.value)
    if not math.isfinite(e.value):
        return "nan" if math.isnan(e.value) else "inf" if e.value > 0 else "-inf"
    return float_text(e.value, e.type)


def float_text(value: float, dtype: DType) -> str:
    for digits in range(1, 18):
        text = f"{value:.{digits}g}"
        if float(np.asarray(float(text)).astype(dtype.numpy).astype(np.float64)) == value:
            break
    text = repr(float(text))
    return text if any(c in text for c in ".e") else text + ".0"


def format_expr(e: Expr, dtypes: Mapping[str, DType] | None = None) -> str:
    return Printer(dict(dtypes or {})).expr(e)


def format_stmt(s: Stmt, dtypes: Mapping[str, DType] | None = None) -> str:
    printer = Printer(dict(dtypes or {}))
    printer.stmt(s)
    return _join(printer.lines)


def format_kernel(item: Kernel | Graph) -> str:
    """Canonical text of one kernel or graph, ending in a newline."""
    printer = Printer()
    printer.item(item)
    return _join(printer.lines) + "\n"


def format_module(module: Module) -> str:
    """Canonical text of a module, without comments."""
    texts = []
    for item in module.items:
        printer = Printer()
        printer.item(item)
        texts.append(_join(printer.lines) + "\n")
    return "\n".join(texts)


def format_step(step: Step) -> str:
    parts = [_argument(a) for a in step.args]
    parts += [f"{name} = {_argument(value)}" for name, value in step.options]
    return f"{step.rewrite}({', '.join(parts)})"


def _argument(value: StepArg) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_argument(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return str(value)


def _join(lines: list[Line]) -> str:
    return "\n".join(wrap(INDENT * line.depth + line.text) for line in lines)


def wrap(line: str) -> str:
    """Break a long line after commas and before operators, at the outermost brackets that fit."""
    indent = " " * (len(line) - len(line.lstrip()))
    done: list[str] = []
    while len(line) > MAX_WIDTH:
        at = _break(line, len(indent) + 32)
        if at is None:
            break
        done.append(line[:at].rstrip())
        line = indent + 2 * INDENT + line[at:].lstrip()
    return "\n".join([*done, line])


def _break(line: str, least: int) -> int | None:
    """Where to break: the last place of least bracket depth within the width."""
    depth, best = 0, None
    for i, char in enumerate(line[:MAX_WIDTH]):
        depth += (char in "([") - (char in ")]")
        breakable = line[i - 1] in ",)" or line[i + 1 : i + 3] in ("+ ", "- ", "* ", "/ ")
        if char == " " and i >= least and breakable and (best is None or depth <= best[0]):
            best = (depth, i)
    return best[1] if best else None


# --- the formatter ---------------------------------------------------------------------------


def format_source(source: Source) -> str:
    """Canonical text of a file with its comments and single blank lines kept. Idempotent."""
    from kir.syntax.parse import parse

    lines: list[Line] = []
    for item in parse(source).items:
        printer = Printer()
        if lines:
            printer.lines.append(Line("", 0))
        printer.item(item)
        lines += printer.lines
    return _Comments(source.text).weave(lines)


class _Comments:
    """Puts a text's comments and blank lines back among printed lines, by their line numbers."""

    def __init__(self, text: str) -> None:
        self.source = text.split("\n")
        self.pending = [n for n, line in enumerate(self.source, 1) if "#" in line]
        self.out: list[str] = []

    def weave(self, lines: list[Line]) -> str:
        starts = self._starts(lines)
        for line, start, following in zip(lines, starts, [*starts[1:], len(self.source) + 2]):
            inside = line.depth + (line.text == "}")
            self._own_lines(start, inside)
            if line.text == "" and (not self.out or self.out[-1] == ""):
                continue
            if start and self._blank_before(start) and self.out and self.out[-1] != "":
                self.out.append("")
            self.out.append(
                wrap(INDENT * line.depth + line.text) + self._trailing(start, following)
            )
        self._own_lines(len(self.source) + 2, 0)
        return "\n".join(self.out).strip("\n") + "\n" if self.out else ""

    def _starts(self, lines: list[Line]) -> list[int]:
        """The source line of each printed line; a `}` and a blank take the last line of the text
        before the next thing printed."""
        starts, known = [0] * len(lines), len(self.source) + 1
        for i in range(len(lines) - 1, -1, -1):
            if lines[i].start:
                known = lines[i].start
                starts[i] = known
            else:
                starts[i] = -known
        last = 0
        for i, line in enumerate(lines):
            if starts[i] < 0:
                starts[i] = self._closing(line, last, -starts[i])
            last = max(last, starts[i])
            starts[i] = last
        return starts

    def _closing(self, line: Line, after: int, before: int) -> int:
        if line.text == "}":
            for n in range(after, before):
                bare = self.source[n - 1].split("#", 1)[0].strip() if n else ""
                if bare == "}":
                    return n
        return after

    def _own_lines(self, until: int, depth: int) -> None:
        """Emit the pending comments that stand before source line `until`."""
        while self.pending and self.pending[0] < until:
            n = self.pending.pop(0)
            if self._blank_before(n) and self.out and self.out[-1] != "":
                self.out.append("")
            comment = self.source[n - 1]
            self.out.append(INDENT * depth + comment[comment.index("#") :].rstrip())

    def _trailing(self, start: int, following: int) -> str:
        """The comment at the end of the source lines of this printed line."""
        found: list[str] = []
        while self.pending and start <= self.pending[0] < max(following, start + 1):
            text = self.source[self.pending[0] - 1]
            if text.split("#", 1)[0].strip() == "" or found:
                break
            found.append(text[text.index("#") :].rstrip())
            self.pending.pop(0)
        return "  " + found[0] if found else ""

    def _blank_before(self, n: int) -> bool:
        return n >= 2 and not self.source[n - 2].strip()
