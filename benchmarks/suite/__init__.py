"""The suite of the cpu target: what issue and docs/benchmarks.md list, one `Case` each.

A case is a kernel at given dims beside the PyTorch function of the same inputs. Kernels stand in
`examples/`, or here where no example is the same; the `_bf16` ones read and write bf16, compute in
f32, and round once at the end.
"""

from __future__ import annotations

from benchmarks.suite import attention, convolutions, memory, products
from benchmarks.suite.case import GROUPS, Case

CASES: tuple[Case, ...] = (
    *products.CASES,
    *convolutions.CASES,
    *memory.CASES,
    *attention.CASES,
)


def quick() -> tuple[Case, ...]:
    """A third of the suite, always the same: of each group the first case and each third after."""
    return tuple(c for g in GROUPS for c in [x for x in CASES if x.group == g][::3])


__all__ = ["CASES", "GROUPS", "Case", "quick"]
