"""What the ring does not prove: laws of the real numbers that its fields lack.

No order of a finite field goes with its sums and products, so a step that moves a sum or a positive
factor through a maximum shows there as a difference. Such a step is named, and what comes before
and after it is proven apart from it; so are steps that approximate in a way which is not exact in
the reals.
"""

from __future__ import annotations

from kir.ir import Define, Kernel, Reduce, Step, walk
from kir.rewrites import make_rewrite

LAWS = ("abs_of_mul", "mul_of_abs", "abs_of_div", "div_of_abs", "max_of_adds", "add_of_max",
        "min_of_adds", "add_of_min")  # fmt: skip
"""Laws of `rule` that leave a result as it is in the reals, but not in the ring."""


def beyond_ring(step: Step, kernel: Kernel) -> str:
    """Why the ring cannot be asked about a step on this kernel; empty where it can."""
    rewrite = make_rewrite(step)
    if rewrite.effect_on(kernel) == "approximates":
        return "it approximates in a way that is not exact in the reals"
    named = [a for a in (*step.args, *(v for _, v in step.options)) if isinstance(a, str)]
    if step.rewrite == "rule" and set(named) & set(LAWS):
        return "fields have no order that goes with sums and products"
    if step.rewrite == "factor":
        defined = [s for s in walk(kernel) if isinstance(s, Define) and s.name in named]
        reductions = (n for s in defined for n in walk(s.value) if isinstance(n, Reduce))
        if any(r.name in ("max", "min") for r in reductions):
            return "fields have no order that goes with products"
    return ""
