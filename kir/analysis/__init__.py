"""What a kernel touches, and which of its loops depend on themselves or each other (islpy)."""

from kir.analysis.depend import (
    Conflict,
    Parallel,
    describe,
    fission_legal,
    fusion_legal,
    parallel,
    reorder_legal,
)
from kir.analysis.model import Access, AxisFrame, Decl, Guard, Model, model_of

__all__ = [
    "Access",
    "AxisFrame",
    "Conflict",
    "Decl",
    "Guard",
    "Model",
    "Parallel",
    "describe",
    "fission_legal",
    "fusion_legal",
    "model_of",
    "parallel",
    "reorder_legal",
]
