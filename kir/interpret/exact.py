"""Exact equivalence: kernels run over the tower of fields of `kir.interpret.ring`, and compared.

a, b = run_ring(spec, inputs, seed=1), run_ring(scheduled, inputs, seed=1)
difference(a["y"], b["y"])       where they differ, and where it cannot be told
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kir.dtypes import DType
from kir.graphs import resolve
from kir.interpret.arrays import Arrays, check_inputs
from kir.interpret.codes import KIND, LOST, MINUS, NAN, PLUS
from kir.interpret.domain import Array, Value
from kir.interpret.elements import EXPONENTIALS
from kir.interpret.evaluate import Evaluator
from kir.interpret.program import program
from kir.interpret.ring import Ring
from kir.ir import Buffer, Define, Expr, Graph, Kernel, Module, Op, Read, Store, children, walk
from kir.specialise import infer_dims

# --- how many fields a kernel takes --------------------------------------------------------------


def levels_of(*kernels: Kernel) -> int:
    """1 and how deep exponentials nest, through tensors; 3 at most."""
    return 1 + max((max(_depths(k).values(), default=0) for k in kernels), default=0)


def _depths(kernel: Kernel) -> dict[str, int]:
    """How deep exponentials nest in each tensor's value; 2 at most."""
    made: list[tuple[str, Expr]] = []
    for node in walk(kernel):
        if isinstance(node, Define | Buffer):
            value = node.value if isinstance(node, Define) else node.init
            made += [(node.name, value)] if value is not None else []
        elif isinstance(node, Store):
            made.append((node.target, node.value))
    depths: dict[str, int] = {}
    if not any(isinstance(n, Op) and n.name in EXPONENTIALS for _, e in made for n in walk(e)):
        return depths
    changed = True
    while changed:
        changed = False
        for name, e in made:
            depth = min(_depth(e, depths), 2)
            if depth > depths.get(name, 0):
                depths[name], changed = depth, True
    return depths


def _depth(e: Expr, depths: Mapping[str, int]) -> int:
    below = max((_depth(c, depths) for c in children(e) if isinstance(c, Expr)), default=0)
    if isinstance(e, Read):
        return max(below, depths.get(e.tensor, 0))
    return below + (isinstance(e, Op) and e.name in EXPONENTIALS)


# --- running --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Residues:
    """One output: elements of the first field (integers and booleans as they are), for floats the
    kind of what is no finite number (PLUS, MINUS, NAN, else 0), and where nothing is said."""

    value: Array
    kind: Array
    lost: Array
    dtype: DType

    def show(self, place: tuple[int, ...]) -> str:
        """One element in words: a float as an element of the first field, #123."""
        if not self.dtype.is_float:
            return str(self.value[place])
        names = {PLUS: "inf", MINUS: "-inf", NAN: "nan"}
        return names.get(int(self.kind[place])) or f"#{int(self.value[place])}"


@dataclass(frozen=True)
class Difference:
    """Where two outputs differ; `unsure` are those that differ but are lost in one of them."""

    wrong: Array
    unsure: Array


def difference(a: Residues, b: Residues) -> Difference:
    """Element by element. What is lost and still equal counts as equal: the functions that stand
    for what was lost are the same in both."""
    apart = (a.value != b.value) | (a.kind != b.kind)
    lost = a.lost | b.lost
    return Difference(apart & ~lost, apart & lost)


def _residues(value: Value, dtype: DType) -> Residues:
    code = np.broadcast_to(value[-1], value[0].shape)
    kind = code & np.uint8(KIND) if dtype.is_float else np.zeros(code.shape, np.uint8)
    return Residues(value[0], kind, (code & np.uint8(LOST)) > 0, dtype)


def run_ring(
    kernel: Kernel,
    inputs: Arrays,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    levels: int | None = None,
) -> dict[str, Residues]:
    """The outputs of `kernel` on random field elements, a function of `seed` and the inputs' names.

    Of a float input only the shape counts, and its infinities and NaNs; other inputs are as they
    are. Kernels to be compared are run with the same `levels` (those that the deepest of them
    takes, `levels_of`). Raises what `run` raises.
    """
    arrays = check_inputs(kernel, inputs)
    values = infer_dims(kernel, {n: a.shape for n, a in arrays.items()}, dims)
    domain = Ring(levels or levels_of(kernel), seed)
    drawn = {p.name: domain.draw(arrays[p.name], p.type, seed, p.name) for p in kernel.inputs}
    found = Evaluator(domain, program(kernel, values), drawn).run()
    return {p.name: _residues(found[p.name], p.type) for p in kernel.outputs}


def run_graph_ring(
    module: Module,
    graph: Graph,
    inputs: Arrays,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    levels: int = 3,
) -> dict[str, Residues]:
    """The same for a graph, kernel by kernel."""
    arrays = check_inputs(graph, inputs)
    values = infer_dims(graph, {n: a.shape for n, a in arrays.items()}, dims)
    domain = Ring(levels, seed)
    known = {p.name: domain.draw(arrays[p.name], p.type, seed, p.name) for p in graph.inputs}
    for step in resolve(module, graph, values):
        kernel, call = step.kernel, step.call
        given = {p.name: known[a] for p, a in zip(kernel.inputs, call.args, strict=True)}
        results = Evaluator(domain, program(kernel, step.dims), given).run()
        for name, p in zip(call.results, kernel.outputs, strict=True):
            known[name] = results[p.name]
    return {p.name: _residues(known[p.name], p.type) for p in graph.outputs}
