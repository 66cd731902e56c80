"""How large the temporaries of a kernel are, for the evaluator's choice of chunks."""

from __future__ import annotations

import math

from kir.interpret.affine import LoopPlan
from kir.interpret.contract import Product, product
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Reduce,
    Stmt,
    children,
    walk,
)
from kir.simplify import interval

GUESS = 256
"""Extent assumed where none is known beforehand."""


class Sizes:
    """Sizes in elements per lane. Nodes are known by their ids: the kernel outlives this."""

    def __init__(self, kernel: Kernel, plan: LoopPlan, contracts: bool) -> None:
        self.plan = plan
        self.contracts = contracts
        self.costs: dict[int, int] = {}
        self.products: dict[int, Product | None] = {}
        self.ranges = {
            a.name: (0, max(int(a.extent.value) - 1, 0) if isinstance(a.extent, Const) else None)
            for a in walk(kernel)
            if isinstance(a, Axis)
        }

    def product(self, e: Reduce) -> Product | None:
        """What a reduction sums, where the domain can contract it."""
        if not self.contracts:
            return None
        if id(e) not in self.products:
            self.products[id(e)] = product(e)
        return self.products[id(e)]

    def upper(self, extent: Expr) -> int:
        high = interval(extent, self.ranges)[1]
        return GUESS if high is None else max(high, 1)

    def cost(self, expr: Node) -> int:
        """Of the largest temporary in an expression. A contraction's own are left out."""
        if id(expr) not in self.costs:
            below = max((self.cost(c) for c in children(expr)), default=1)
            if isinstance(expr, Reduce) and self.product(expr) is None:
                below *= math.prod(self.upper(a.extent) for a in expr.axes)
            self.costs[id(expr)] = below
        return self.costs[id(expr)]

    def cost_of_block(self, block: Loop | If) -> int:
        if id(block) not in self.costs:
            self.costs[id(block)] = max((self.cost_of(s) for s in block.body), default=1)
        return self.costs[id(block)]

    def cost_of(self, s: Stmt) -> int:
        if isinstance(s, Loop):
            inside = self.upper(s.axis.extent) if self.plan.side_by_side(s) else 1
            return inside * self.cost_of_block(s)
        if isinstance(s, If):
            return self.cost_of_block(s)
        if isinstance(s, Buffer):
            return math.prod(self.upper(e) for e in s.shape)
        if isinstance(s, Define):
            return self.cost(s.value) * math.prod(self.upper(a.extent) for a in s.axes)
        return self.cost(s)
