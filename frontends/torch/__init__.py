"""PyTorch: `torch.compile(model, backend="kir")`. Importing this imports torch."""

from kir.frontends.torch.dynamo import Options, backend

__all__ = ["Options", "backend"]
