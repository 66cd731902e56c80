"""What of a model KIR compiles, and what PyTorch would run, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from kir.errors import UnsupportedError
from kir.frontends.torch.dynamo import decompositions
from kir.frontends.torch.lower import is_supported, located, lower, name_of


@dataclass(frozen=True)
class Explanation:
    """`graphs`: how many there were for KIR; `compiled`: operators that KIR compiles, and how many
    of each; `eager`: for each of the others why, with its dtypes and line. An operator is counted
    for the forward alone. More graphs than one: Python ran between them."""

    graphs: int
    compiled: dict[str, int]
    eager: tuple[str, ...]

    def __str__(self) -> str:
        count = sum(self.compiled.values())
        lines = [f"{self.graphs} graph(s); KIR compiles {count} operators, PyTorch runs "
                 f"{len(self.eager)}"]  # fmt: skip
        lines += [f"  {n:4d} aten.{name}" for name, n in sorted(self.compiled.items())]
        return "\n".join([*lines, *(f"  PyTorch: {why}" for why in self.eager)])


def explain(model: Any, *inputs: Any, **named: Any) -> Explanation:
    """Run `model` once, in eager, and say of each ATen operator of its forward who would run it."""
    graphs = 0
    compiled: Counter[str] = Counter()
    eager: list[str] = []

    def compiler(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
        nonlocal graphs
        graphs += 1
        nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
        refused = [n for n in nodes if not is_supported(n)]
        eager.extend(
            located(UnsupportedError(f"KIR does not compile `aten.{name_of(n)}`"), n).message
            for n in refused
        )
        compiled.update(name_of(n) for n in nodes if n not in refused and name_of(n) != "getitem")
        if not refused:
            try:
                lower(graph.graph)
            except UnsupportedError as error:
                eager.append(f"the whole graph: {error.message}")
                compiled.clear()
        return make_boxed_func(graph)

    made = aot_autograd(fw_compiler=compiler, decompositions=decompositions())
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=made, dynamic=False)(*inputs, **named)
    torch._dynamo.reset()
    return Explanation(graphs, dict(compiled), tuple(eager))
