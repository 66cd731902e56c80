"""How an error is shown: the message, the place underlined, the hint. Plain text."""

from __future__ import annotations

from kir.errors import KirError, Source
from kir.ir import Call, Graph, Kernel, Node, Span, walk

MAX_COLUMNS = 160


def excerpt(error: KirError) -> str:
    """The full text of an error, several lines, no newline at the end."""
    parts = [f"{error.title}: {error.message}"]
    place = locate(error)
    if place:
        source, span = place
        parts.append(underline(source, span))
    elif error.source is not None:
        parts.append(f"  --> {error.source.name}")
    if error.hint:
        parts.append(f"  = hint: {error.hint}")
    return "\n".join(parts)


def locate(error: KirError) -> tuple[Source, Span] | None:
    """The text and span to underline: the user's source where known, else the current IR."""
    span = error.span or (error.node.span if error.node and error.source else None)
    if error.source is not None and span is not None:
        return error.source, span
    if error.kernel is not None and error.node is not None:
        return in_current_ir(error.kernel, error.node)
    return None


def in_current_ir(kernel: Kernel | Graph, node: Node) -> tuple[Source, Span] | None:
    """Print the kernel as it is now, and find where `node` stands in that text."""
    from kir.syntax.format import format_kernel
    from kir.syntax.parse import parse

    text = format_kernel(kernel)
    if not isinstance(kernel, Kernel):
        return Source(f"<{kernel.name}, as it is now>", text), _line_of(kernel, node, text)
    source = Source(f"<{kernel.name}, as it is now>", text)
    try:
        printed = next(iter(parse(text).kernels().values()))
    except KirError:  # it is no valid kernel, which is what the error is about
        return source, Span(1, 1, 1, len(text.split("\n")[0]) + 1)
    nodes = list(walk(kernel))
    place = next((i for i, n in enumerate(nodes) if n is node), None)
    if place is None:
        place = next((i for i, n in enumerate(nodes) if n == node), 0)
    again = list(walk(printed))
    span = (again[place].span if len(again) == len(nodes) else None) or printed.span
    return (source, span) if span else None


def _line_of(graph: Graph, node: Node, text: str) -> Span:
    """The line of a graph's text on which the call `node` stands, else its first line."""
    lines = text.split("\n")
    start = ", ".join(node.results) + " = " if isinstance(node, Call) else ""
    for number, line in enumerate(lines, 1):
        bare = line.lstrip()
        if start and bare.startswith(start):
            return Span(number, len(line) - len(bare) + 1, number, len(line) + 1)
    return Span(1, 1, 1, len(lines[0]) + 1)


def underline(source: Source, span: Span) -> str:
    """The source line with carets below; the first line of a place that has several."""
    lines = source.text.split("\n")
    line = lines[span.line - 1] if span.line <= len(lines) else ""
    line = "".join(c if c.isprintable() else " " for c in line.replace("\t", " "))
    end = span.end_column if span.end_line == span.line else len(line) + 1
    first = span.column - 1
    if len(line) > MAX_COLUMNS:  # keep the place in view
        shift = max(0, first - MAX_COLUMNS // 2)
        line, first, end = line[shift : shift + MAX_COLUMNS], first - shift, end - shift
    width = max(1, min(end - 1, len(line)) - first)
    number = str(span.line)
    margin = " " * len(number)
    shown = [f"  --> {source.name}:{span.line}:{span.column}"]
    if source.name.endswith("as it is now>"):
        shown = [f"  --> in the current IR, line {span.line}:"]
        around = range(max(1, span.line - 3), span.line)
        shown += [f" {n:>{len(number)}} | {lines[n - 1]}" for n in around]
    return "\n".join([*shown, f" {number} | {line}", f" {margin} | {' ' * first}{'^' * width}"])
