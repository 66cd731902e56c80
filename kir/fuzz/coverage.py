"""What a run has met: ops, constructs, dtypes, rewrites; each of how many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kir.dtypes import DTYPES
from kir.ir import (
    ARG_REDUCTIONS,
    LOOP_KINDS,
    REDUCTIONS,
    UPDATE_OPS,
    Bitcast,
    Buffer,
    Cast,
    Const,
    Define,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Reduce,
    Store,
    Var,
    walk,
)
from kir.ops import OPS
from kir.rewrites import REWRITES

CONSTRUCTS = (
    "definition",
    "scalar definition",
    "nested reduction",
    "reduction with where",
    "reduction over several indices",
    "triangular reduction",
    *(f"reduction {name}" for name in (*REDUCTIONS, *ARG_REDUCTIONS)),
    "padded read",
    "fill that reads",
    "gather",
    "scatter",
    "recurrence",
    "cast",
    "bitcast",
    "buffer",
    "assignment",
    *(f"update {name}" for name in UPDATE_OPS),
    *(f"loop {kind}" for kind in LOOP_KINDS),
    "loop with where",
    "guard",
    "hint",
    "parameter",
    "constraint",
    "shape expression",
    "several outputs",
    "scalar input",
)


def constructs_of(kernel: Kernel) -> Iterator[str]:
    """Which of CONSTRUCTS a kernel has, some of them several times."""
    if any(d.default is not None for d in kernel.dims):
        yield "parameter"
    if kernel.constraints:
        yield "constraint"
    if len(kernel.outputs) > 1:
        yield "several outputs"
    if any(not isinstance(e, Var | Const) for p in kernel.params for e in p.shape):
        yield "shape expression"
    if any(not p.shape for p in kernel.inputs):
        yield "scalar input"
    for node in walk(kernel):
        yield from _of_node(node)


def _of_node(node: Node) -> Iterator[str]:
    match node:
        case Define():
            yield "definition" if node.dims else "scalar definition"
            if len(node.axes) < len(node.dims):
                yield "recurrence"
        case Reduce():
            yield from _of_reduction(node)
        case Read():
            if node.fill is not None:
                yield "padded read"
                if not isinstance(node.fill, Const):
                    yield "fill that reads"
            if _indirect(node):
                yield "gather"
        case Cast():
            yield "cast"
        case Bitcast():
            yield "bitcast"
        case Buffer():
            yield "buffer"
        case Store():
            yield f"update {node.op}" if node.op else "assignment"
            if any(isinstance(n, Read) for i in node.indices for n in walk(i)):
                yield "scatter"
        case Loop():
            yield f"loop {node.kind}"
            if node.where:
                yield "loop with where"
            if node.hints:
                yield "hint"
        case If():
            yield "guard"


def _of_reduction(node: Reduce) -> Iterator[str]:
    yield f"reduction {node.name}"
    if node.where:
        yield "reduction with where"
    if len(node.axes) > 1:
        yield "reduction over several indices"
    if any(isinstance(n, Reduce) for n in walk(node.body)):
        yield "nested reduction"
    if any(isinstance(n, Var) and n.name.islower() for a in node.axes for n in walk(a.extent)):
        yield "triangular reduction"


def _indirect(read: Read) -> bool:
    return any(isinstance(n, Read) for i in read.indices for n in walk(i))


def dtypes_of(kernel: Kernel) -> Iterator[str]:
    for node in walk(kernel):
        found = getattr(node, "type", None)
        if found is not None:
            yield str(found)


@dataclass
class Coverage:
    """How often each was met."""

    ops: Counter[str] = field(default_factory=Counter)
    constructs: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    rewrites: Counter[str] = field(default_factory=Counter)

    def see(self, kernel: Kernel) -> None:
        self.ops.update(n.name for n in walk(kernel) if isinstance(n, Op))
        self.constructs.update(set(constructs_of(kernel)))
        self.dtypes.update(set(dtypes_of(kernel)))

    def add(self, record: Mapping[str, Mapping[str, int]]) -> None:
        """The counts of another one, as plain data."""
        for name, counts in record.items():
            getattr(self, name).update(counts)

    def record(self) -> dict[str, dict[str, int]]:
        return {name: dict(getattr(self, name)) for name in WHOLE}

    def missing(self) -> dict[str, list[str]]:
        return {
            name: [x for x in whole if x not in getattr(self, name)]
            for name, whole in WHOLE.items()
        }

    def lines(self) -> list[str]:
        """`ops 61 of 61`, with what is missing."""
        found = []
        for name, gone in self.missing().items():
            total = len(WHOLE[name])
            text = f"{name} {total - len(gone)} of {total}"
            found.append(text + (f"; not met: {', '.join(gone)}" if gone else ""))
        return found

    def summary(self) -> dict[str, Any]:
        return {
            name: {"met": len(WHOLE[name]) - len(gone), "of": len(WHOLE[name]), "missing": gone}
            for name, gone in self.missing().items()
        }


WHOLE: dict[str, tuple[str, ...]] = {
    "ops": tuple(OPS),
    "constructs": CONSTRUCTS,
    "dtypes": tuple(DTYPES),
    "rewrites": tuple(REWRITES),
}
