"""Elements as boxes: quick answers, with no sets, to whether stores fill what is asked for.

A store fills a box if each of its indices is a constant and a sum of multiples of loops' indices
that leaves no gap (`o*8 + i` over `o: 4, i: 8`), no loop taking part in two of them. Only the
answer yes is an answer; anything else is for the integer sets to decide.
"""

from __future__ import annotations

from kir.analysis.model import Access, AxisFrame, Decl, Frames, Model
from kir.ir import Const, Expr, Var
from kir.simplify import interval, linear

Box = tuple[tuple[int, int], ...]
"""The least and the greatest index of each dim, inclusive."""


def fills(model: Model, output: Decl) -> bool:
    """Whether stores that always run write all of a tensor of constant shape."""
    whole = _whole(model, output)
    stores = [a for a in model.accesses if a.decl is output and a.kind == "write"]
    return whole is not None and _covered(whole, [_filled(model, a, a.frames) for a in stores])


def filled_before(model: Model, access: Access) -> bool:
    """Whether stores that always run, and are done when `access` has its turn, write all that it
    may touch."""
    wanted = _touched(model, access)
    if wanted is None:
        return False
    boxes = []
    for a in model.accesses:
        if a.decl is access.decl and a.kind == "write" and a.position < access.position:
            boxes.append(_filled(model, a, a.frames[_common(a.frames, access.frames) :]))
    return _covered(wanted, boxes)


def _common(one: Frames, other: Frames) -> int:
    """How many frames around two accesses are the same."""
    count = 0
    for x, y in zip(one, other, strict=False):
        if x is not y:
            break
        count += 1
    return count


def _whole(model: Model, decl: Decl) -> Box | None:
    extents = [model.prepare(e) for e in decl.shape]
    sizes = [int(e.value) for e in extents if isinstance(e, Const)]
    return tuple((0, n - 1) for n in sizes) if len(sizes) == len(extents) else None


def _touched(model: Model, access: Access) -> Box | None:
    """A box that an access stays in; out of its tensor it touches nothing."""
    whole = _whole(model, access.decl)
    if whole is None:
        return None
    ranges = model.ranges(access.axes)
    found = []
    for index, (least, most) in zip(access.indices, whole, strict=True):
        low, high = interval(model.prepare(index), ranges)
        found.append((
            least if low is None else max(low, least),
            most if high is None else min(high, most),
        ))  # fmt: skip
    return tuple(found)


def _filled(model: Model, store: Access, frames: Frames) -> Box | None:
    """The box that a store fills in one run of the loops `frames`, the innermost around it."""
    extents: dict[str, int] = {}
    for f in frames:
        extent = model.prepare(f.extent) if isinstance(f, AxisFrame) else None
        if not isinstance(f, AxisFrame) or not isinstance(extent, Const) or int(extent.value) < 1:
            return None  # a guard, or a loop that may not run
        extents[f.name] = int(extent.value)
    box = []
    for index in store.indices:
        side = _side(model.prepare(index), extents)
        if side is None:
            return None
        box.append(side)
    return tuple(box)


def _side(index: Expr, extents: dict[str, int]) -> tuple[int, int] | None:
    """The values of an index, which have no gap; takes the loops in it out of `extents`."""
    form = linear(index)
    steps: list[tuple[int, int]] = []
    for atom, coefficient in form.terms.items():
        if not isinstance(atom, Var) or atom.name not in extents or coefficient < 1:
            return None
        steps.append((coefficient, extents.pop(atom.name)))
    reach = 0
    for coefficient, extent in sorted(steps):
        if extent > 1 and coefficient > reach + 1:
            return None
        reach += coefficient * (extent - 1)
    return form.constant, form.constant + reach


def _covered(wanted: Box, boxes: list[Box | None]) -> bool:
    """Whether a box lies within the union of others, as far as these join into larger boxes."""
    known = [b for b in boxes if b is not None]
    joined = True
    while joined:
        if any(_inside(wanted, b) for b in known):
            return True
        joined = False
        for k, one in enumerate(known):
            for other in known[:k]:
                both = _joined(one, other)
                if both is not None and both not in known:
                    known.append(both)
                    joined = True
                    break
            if joined:
                break
    return False


def _inside(inner: Box, outer: Box) -> bool:
    return all(c <= a and b <= d for (a, b), (c, d) in zip(inner, outer, strict=True))


def _joined(one: Box, other: Box) -> Box | None:
    """The union of two boxes, where it is a box."""
    apart = [d for d, (x, y) in enumerate(zip(one, other, strict=True)) if x != y]
    if len(apart) != 1:
        return None
    d = apart[0]
    (a, b), (c, e) = one[d], other[d]
    if c > b + 1 or a > e + 1:
        return None
    return (*one[:d], (min(a, c), max(b, e)), *one[d + 1 :])
