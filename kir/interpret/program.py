"""Kernels under dims, ready to be run, with what is worth remembering from run to run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from kir.interpret.affine import Affine, LoopPlan
from kir.interpret.size import Sizes
from kir.ir import Expr, Kernel
from kir.specialise import specialise


class Program:
    """A kernel whose dims are all constants, and what runs of it have found out about its text."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.plan = LoopPlan(frozenset(p.name for p in kernel.outputs))
        self.forms: dict[int, Affine | None] = {}
        """By the id of an index expression; all of them live as long as the kernel."""
        self.slots: dict[int, tuple[Expr, ...]] = {}
        """The indices that a definition stores to, by its id."""
        self._sizes: dict[bool, Sizes] = {}

    def sizes(self, contracts: bool) -> Sizes:
        if contracts not in self._sizes:
            self._sizes[contracts] = Sizes(self.kernel, self.plan, contracts)
        return self._sizes[contracts]


_PROGRAMS: OrderedDict[tuple[int, tuple[tuple[str, int], ...]], tuple[Kernel, Program]]
_PROGRAMS = OrderedDict()
"""The latest programs, by the id of a kernel, which lives as long, and the dims put into it."""
REMEMBERED = 64


def program(kernel: Kernel, dims: Mapping[str, int]) -> Program:
    """`kernel` under `dims`, which must be complete; remembered for a while, since a kernel is
    often run several times: in several domains, on several inputs."""
    key = (id(kernel), tuple(sorted(dims.items())))
    known = _PROGRAMS.pop(key, None)
    if known is None:
        known = kernel, Program(specialise(kernel, dims))
        while len(_PROGRAMS) >= REMEMBERED:
            _PROGRAMS.popitem(last=False)
    _PROGRAMS[key] = known
    return known[1]
