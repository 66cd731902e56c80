"""PyTorch: `torch.compile(model, backend="kir")`. Importing this imports torch."""

from kir.frontends.torch.dynamo import Options, backend
from kir.frontends.torch.explain import Explanation, explain
from kir.frontends.torch.operator import load_op

__all__ = ["Explanation", "Options", "backend", "explain", "load_op"]
