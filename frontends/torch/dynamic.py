"""Graphs whose sizes PyTorch left open: compiled for each combination of sizes that is met.

PyTorch traces and guards such a graph once (`mark_dynamic`, `dynamic=True`, or after a second
shape); here its sizes become constants again, so that kernels are as good as for fixed shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

if TYPE_CHECKING:
    from kir.frontends.torch.dynamo import Options

KEPT = 64
"""Combinations of sizes of one graph that stay compiled, those used last."""
NUMBERS = (int, float, bool)


def is_open(graph: torch.fx.Graph) -> bool:
    """Whether a size of the graph is a symbol."""
    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    return any(
        isinstance(v, torch.SymInt | torch.SymFloat)
        or (isinstance(v, torch.Tensor) and any(isinstance(n, torch.SymInt) for n in v.shape))
        for v in values
    )


class Dynamic:
    """A graph, compiled when its sizes are known: at a call."""

    def __init__(self, module: torch.fx.GraphModule, options: Options) -> None:
        self.module, self.options = module, options
        self.made: OrderedDict[Any, Callable[..., Any]] = OrderedDict()

    def __call__(self, *args: Any) -> Any:
        key = tuple([(a.shape, a.stride()) if isinstance(a, torch.Tensor) else a for a in args])
        found = self.made.get(key)
        if found is None:
            from kir.frontends.torch.dynamo import compiled

            found = compiled(with_sizes(self.module, args), self.options)
            self.made[key] = found
            while len(self.made) > KEPT:
                self.made.popitem(last=False)
        else:
            self.made.move_to_end(key)
        return found(*args)


def with_sizes(module: torch.fx.GraphModule, args: Sequence[Any]) -> torch.fx.GraphModule:
    """The graph for arguments of these shapes: each number in it a constant."""
    graph = torch.fx.Graph(module)
    graph.output(graph.graph_copy(module.graph, {}))
    made = torch.fx.GraphModule(module, graph)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    given = [
        mode.from_tensor(a, static_shapes=True) if isinstance(a, torch.Tensor) else a for a in args
    ]
    FakeTensorProp(made, mode).propagate_dont_convert_inputs(*given)
    found: dict[torch.fx.Node, Any] = {}
    for node in list(made.graph.nodes):
        value = node.meta.get("val")
        if node.op != "output" and isinstance(value, NUMBERS):
            found[node] = value

    def constant(node: torch.fx.Node) -> Any:
        return found.get(node, node)

    for node in made.graph.nodes:
        node.args = torch.fx.node.map_arg(node.args, constant)
        node.kwargs = torch.fx.node.map_arg(node.kwargs, constant)
    for node in reversed(list(made.graph.nodes)):
        if node in found and node.op != "placeholder":
            made.graph.erase_node(node)
    made.recompile()
    return made
