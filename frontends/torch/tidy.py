"""What rows write for the general case, as it is for the sizes at hand."""

from __future__ import annotations

from dataclasses import replace

from kir.ir import Axis, Buffer, Const, Define, Expr, Kernel, Node, Read, transform, walk
from kir.simplify import interval, simplify


def tidy(kernel: Kernel) -> Kernel:
    """A kernel of constant sizes: simplified, and without the fills of reads that never leave their
    tensor (a window without padding)."""
    kernel = simplify(kernel)
    shapes: dict[str, tuple[Expr, ...]] = {p.name: p.shape for p in kernel.params}
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for node in walk(kernel):
        if isinstance(node, Define) and len(node.axes) == len(node.dims):
            shapes.setdefault(node.name, tuple(a.extent for a in node.axes))
        elif isinstance(node, Buffer):
            shapes.setdefault(node.name, node.shape)
        elif isinstance(node, Axis) and isinstance(node.extent, Const):
            other = ranges.get(node.name, (0, 0))[1] or 0
            ranges[node.name] = 0, max(other, int(node.extent.value) - 1)

    def visit(node: Node) -> Node | None:
        if not isinstance(node, Read) or node.fill is None or node.tensor not in shapes:
            return None
        for index, extent in zip(node.indices, shapes[node.tensor], strict=True):
            low, high = interval(index, ranges)
            if low is None or high is None or not isinstance(extent, Const):
                return None
            if low < 0 or high >= int(extent.value):
                return None
        return replace(node, fill=None)

    return transform(kernel, visit)
