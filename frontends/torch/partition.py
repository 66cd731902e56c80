"""Graphs that KIR compiles in part: PyTorch runs the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupport

from kir.frontends.torch.lower import is_supported

if TYPE_CHECKING:
    from kir.frontends.torch.dynamo import Options


class _Supported(OperatorSupport):  # type: ignore[misc]
    def is_node_supported(
        self, submodules: Mapping[str, torch.nn.Module], node: torch.fx.Node
    ) -> bool:
        return node.op == "call_function" and is_supported(node)


def partitioned(module: torch.fx.GraphModule, options: Options) -> Callable[..., Any]:
    """The graph with the largest parts that are supported compiled."""
    from kir.frontends.torch.dynamo import compiled

    parts: Any = CapabilityBasedPartitioner(
        module, _Supported(), allows_single_node_partition=True
    ).partition_and_fuse()
    for name, part in parts.named_children():
        if isinstance(part, torch.fx.GraphModule) and name.startswith("fused_"):
            made = compiled(part, options)
            single = not isinstance(_output(part), tuple | list)
            setattr(parts, name, _Wrapped(made, single))
    parts.recompile()
    result: Callable[..., Any] = parts
    return result


def _output(module: torch.fx.GraphModule) -> Any:
    return next(n for n in module.graph.nodes if n.op == "output").args[0]


class _Wrapped(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any], single: bool) -> None:
        super().__init__()
        self.function, self.single = function, single

    def forward(self, *args: Any) -> Any:
        found = self.function(*args)
        return found[0] if self.single else found
