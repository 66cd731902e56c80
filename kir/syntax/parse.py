"""Text to IR: limits, the LALR parse, and readable syntax errors. `elaborate` types the tree."""

from __future__ import annotations

from typing import Any

from lark import Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from kir.errors import KirError, LimitError, ParseError, Source, UsageError
from kir.ir import Kernel, Module, Span, Step
from kir.source import MAX_BYTES
from kir.syntax.module import elaborate_module, elaborate_steps
from kir.syntax.tables import parser

MAX_DEPTH = 150
"""Nesting of brackets and expressions: all walks over the IR recurse once or twice per level."""
MAX_TOKEN = 100
"""Longest identifier or number, in characters."""

_OPEN, _CLOSE = "([{", ")]}"
_TERMINALS = {
    "NAME": "a name",
    "INT": "a number",
    "FLOAT": "a number",
    "SIGNED": "an integer",
    "SIGNED_FLOAT": "a number",
    "LOOP": "a loop",
    "ASSIGN": "`=`",
    "$END": "the end of the file",
    "COMPARE": "a comparison",
    "SIGN": "`+`",
    "MULTIPLY": "`*`",
}


def parse(text: str | Source, name: str = "<text>") -> Module:
    """Parse and type a module. Raises a KirError that knows its place in the text."""
    source = text if isinstance(text, Source) else Source(name, text)
    tree = _tree(source, "module")
    try:
        return elaborate_module(tree)
    except KirError as error:
        raise error.at(source=source) from None


def parse_kernel(text: str | Source, name: str = "<text>") -> Kernel:
    """The single kernel of a text; UsageError where it holds none or several."""
    kernels = list(parse(text, name).kernels().values())
    if len(kernels) != 1:
        raise UsageError(f"one kernel was expected, and there are {len(kernels)}")
    return kernels[0]


def parse_steps(text: str, name: str = "<steps>") -> tuple[Step, ...]:
    """Rewrite steps without a `schedule` around them: `split(j, 8) bind(j, tile)`."""
    return elaborate_steps(_tree(Source(name, text), "steps"))


def _tree(source: Source, start: str) -> Tree[Any]:
    _check_limits(source)
    try:
        tree = parser(start).parse(source.text)
    except UnexpectedInput as error:
        raise _syntax_error(error, source) from None
    _check_depth(tree, source)
    return tree


def _check_limits(source: Source) -> None:
    if len(source.text) > MAX_BYTES:
        raise LimitError(
            f"the text has {len(source.text):,} characters; the limit is {MAX_BYTES:,}"
        )
    depth, run = 0, 0
    for number, line in enumerate(source.text.split("\n"), 1):
        for column, char in enumerate(line.split("#", 1)[0], 1):
            run = run + 1 if char.isalnum() or char == "_" else 0
            if char in _OPEN:
                depth += 1
            elif char in _CLOSE:
                depth -= 1
            if depth > MAX_DEPTH or run > MAX_TOKEN:
                what = (
                    f"brackets nest deeper than {MAX_DEPTH}"
                    if depth > MAX_DEPTH
                    else f"a word is longer than {MAX_TOKEN} characters"
                )
                span = Span(number, column, number, column + 1)
                hint = "name the parts: define them as tensors of their own, with short names"
                raise LimitError(what, span=span, source=source, hint=hint)
        run = 0


def _check_depth(tree: Tree[Any], source: Source) -> None:
    stack: list[tuple[Any, int]] = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > 2 * MAX_DEPTH:
            line, column = node.meta.line, node.meta.column
            raise LimitError(
                f"an expression nests deeper than {MAX_DEPTH}",
                span=Span(line, column, line, column + 1),
                source=source,
                hint="split it into several definitions",
            )
        stack += [(child, depth + 1) for child in node.children if isinstance(child, Tree)]


def _syntax_error(error: UnexpectedInput, source: Source) -> ParseError:
    line, column = max(error.line, 1), max(error.column, 1)
    if isinstance(error, UnexpectedToken):
        token: Token = error.token
        if token.type == "$END":
            lines = source.text.split("\n")
            line, column = len(lines), len(lines[-1]) + 1
            message, width = "the text ends too early", 1
        else:
            message, width = f"`{token}` was not expected here", len(token)
        allowed = error.accepts or error.expected
    else:
        assert isinstance(error, UnexpectedCharacters)
        char = source.text[error.pos_in_stream or 0]
        shown = f"`{char}`" if char.isprintable() else f"the character U+{ord(char):04X}"
        message, width, allowed = f"{shown} was not expected here", 1, error.allowed or set()
    span = Span(line, column, line, column + width)
    if message.startswith("`:`") and "COMMA" in allowed:
        inside = "a reduction inside an expression stands in brackets: `a + (sum(j: N) x[j])`"
        return ParseError(message, span=span, source=source, hint=inside)
    hint = _unclosed(source.text) if message.endswith("too early") else _expected(set(allowed))
    return ParseError(message, span=span, source=source, hint=hint)


def _unclosed(text: str) -> str | None:
    """Which bracket still waits for its partner at the end of the text."""
    waiting: list[tuple[str, int]] = []
    for number, line in enumerate(text.split("\n"), 1):
        for char in line.split("#", 1)[0]:
            if char in _OPEN:
                waiting.append((char, number))
            elif char in _CLOSE and waiting:
                waiting.pop()
    if not waiting:
        return "something is missing here: docs/language.md has the grammar"
    char, number = waiting[-1]
    return f"the `{char}` of line {number} is not closed"


def _expected(allowed: set[str]) -> str | None:
    grammar = {t.name: t.pattern.value for t in parser("module").terminals}
    words = set()
    for name in allowed:
        text = grammar.get(name, name)
        words.add(_TERMINALS.get(name) or f"`{text}`")
    if not words or len(words) > 12:
        return "the grammar is in docs/language.md" if words else None
    return "expected " + ", ".join(sorted(words))
