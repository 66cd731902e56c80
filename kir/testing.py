"""Hypothesis strategies for KIR, and what tests assert of kernels and derivations.

    kernels(), inputs(kernel, dims), dims_for(kernel), derivations(kernel)      strategies
    assert_equivalent(a, b), assert_ring_equal(a, b), assert_derivation(kernel, steps)

Inputs are drawn as a profile and a seed, not element by element: that is fast, shrinks towards
small integers, and a failure is told in two words. The profiles are in `PROFILES`, tame first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kir.dtypes import DTYPES, DType
from kir.errors import EvaluationError, RewriteError, VerificationError
from kir.generate import kernels
from kir.inputs import index_bounds
from kir.interpret import (
    Bounded,
    Residues,
    difference,
    levels_of,
    oracle,
    run,
    run_ring,
)
from kir.interpret.bounded import float_limits
from kir.interpret.exact import Difference
from kir.interpret.rules import OpError
from kir.ir import Axis, Const, Dim, Expr, Graph, Kernel, Module, Step, Var, walk
from kir.rewrites import REWRITES, canonical, make_rewrite
from kir.specialise import bind_defaults, evaluate, input_shapes
from kir.staged import OVERFLOWING, Staged, loosened, stage
from kir.syntax import format_step

__all__ = [
    "PROFILES",
    "Example",
    "assert_derivation",
    "assert_equivalent",
    "assert_ring_equal",
    "derivations",
    "dims_choices",
    "dims_for",
    "examples",
    "inputs",
    "kernels",
    "make_array",
    "make_inputs",
    "wide_kernels",
]

Array = np.ndarray[Any, Any]
Item = Kernel | Graph

PROFILES = ("integers", "tame", "wide", "special", "shifted", "ties")
"""`integers`: -2 to 2; `tame`: normal; `wide`: magnitudes over the dtype's range; `special`: NaN,
infinities, signed zeros, subnormals, the greatest and least values among the others; `shifted`:
normal around places where exp over- and underflows, which change along each row; `ties`: on, or
just beside, the middle between two neighbours of a narrower dtype."""
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 32, 33, 64, 65, 100, 127, 128, 129, 257)
WORK = 1 << 17
"""Most points, the product of all dims, that a drawn example has."""
FEWEST = 3
"""Choices of dims kept where all are too dear."""


@dataclass(frozen=True)
class Example:
    """One way to call a kernel: `make_inputs(item, dims, profile, seed)` gives its arrays."""

    dims: tuple[tuple[str, int], ...]
    profile: str
    seed: int

    def __str__(self) -> str:
        dims = ", ".join(f"{n}={v}" for n, v in self.dims) or "no dims"
        return f"{dims}; inputs `{self.profile}`, seed {self.seed}"


# --- dims --------------------------------------------------------------------------------------


def sizes_of(item: Item, stages: Sequence[Kernel] = ()) -> tuple[int, ...]:
    """Sizes worth trying: small ones, primes, and those next to every constant extent."""
    found = set(SIZES)
    for kernel in (item, *stages):
        for node in walk(kernel):
            if isinstance(node, Axis) and isinstance(node.extent, Const):
                n = int(node.extent.value)
                found |= {n - 1, n, n + 1, 2 * n + 1}
        for constraint in kernel.constraints:
            for node in walk(constraint):
                if isinstance(node, Const) and type(node.value) is int:
                    found |= {node.value * k for k in (1, 2, 3)} | {node.value + 1}
    return tuple(sorted(n for n in found if 0 <= n <= 2100))


def dims_choices(
    item: Item,
    stages: Sequence[Kernel] = (),
    module: Module | None = None,
    seed: int = 0,
    parameters: bool = False,
) -> list[dict[str, int]]:
    """Valid bindings of all dims, small ones first. Parameters keep their defaults unless asked.

    Raises VerificationError where no binding tried satisfies the constraints.
    """
    shapes = {p.name: p.shape for p in item.inputs}
    indexed = index_bounds(item, module)
    space = _Space(
        item.dims,
        item.constraints,
        tuple(dict.fromkeys(e for p in item.params for e in p.shape if not isinstance(e, Var))),
        tuple((shapes[name], tuple(extents)) for name, extents in indexed.items()),
        sizes_of(item, stages),
        parameters,
    )
    found = _choices(space, seed)
    if not found:
        raise VerificationError(
            f"no dims were found that satisfy the constraints of `{item.name}`", kernel=item
        )
    return [dict(values) for values in found]


@dataclass(frozen=True)
class _Space:
    """All that decides which dims are valid; many kernels share one."""

    dims: tuple[Dim, ...]
    constraints: tuple[Expr, ...]
    extents: tuple[Expr, ...]
    """Those of the parameters, plain dims aside."""
    indexed: tuple[tuple[tuple[Expr, ...], tuple[Expr, ...]], ...]
    """Per input that holds indices: its shape, and what its values must stay below."""
    sizes: tuple[int, ...]
    parameters: bool

    def valid(self, values: Mapping[str, int]) -> bool:
        free = [values[d.name] for d in self.dims if d.default is None]
        if math.prod(max(v, 1) for v in free) > WORK:
            return False
        if not all(evaluate(c, values) for c in self.constraints):
            return False
        if any(evaluate(e, values) < 0 for e in self.extents):
            return False
        for shape, extents in self.indexed:
            some = all(evaluate(e, values) for e in shape)
            if some and any(evaluate(e, values) < 1 for e in extents):
                return False
        return True


@lru_cache(maxsize=256)
def _choices(space: _Space, seed: int) -> tuple[tuple[tuple[str, int], ...], ...]:
    free = [d.name for d in space.dims if d.default is None]
    fixed = {d.name: d.default for d in space.dims if d.default is not None}
    rng = np.random.default_rng(seed)
    tries: list[dict[str, int]] = [fixed]
    if free or space.parameters:
        small = itertools.islice(itertools.product((0, 1, 2, 3), repeat=len(free)), 64)
        tries = [fixed | dict(zip(free, values, strict=True)) for values in small]
    for _ in range(600 if free or space.parameters else 0):
        reach = int(rng.integers(4, len(space.sizes) + 1))
        drawn = {n: int(space.sizes[int(rng.integers(reach))]) for n in free}
        if space.parameters:
            drawn |= {n: int(rng.integers(0, 4)) for n in fixed}
        tries.append(fixed | drawn)
    good = {tuple(t.items()) for t in tries if space.valid(t)}
    return tuple(sorted(good, key=lambda t: (math.prod(n + 1 for _, n in t), t)))


def dims_for(kernel: Item, **options: Any) -> st.SearchStrategy[dict[str, int]]:
    """A strategy of valid dims: 0, 1, primes, off by one of every tile and constraint."""
    return st.sampled_from(dims_choices(kernel, **options))


# --- inputs ------------------------------------------------------------------------------------


def make_array(dtype: DType, shape: tuple[int, ...], profile: str, rng: Any) -> Array:
    """A random array of a profile."""
    if dtype.is_bool:
        return np.asarray(rng.integers(0, 2, shape).astype(np.bool_))
    if dtype.is_integer:
        return _integers(dtype, shape, profile, rng)
    if profile == "integers":
        values = rng.integers(-2, 3, shape).astype(np.float64)
    elif profile in ("tame", "shifted"):
        values = rng.standard_normal(shape)
        if profile == "shifted":
            values += _shifts(dtype, shape, rng)
    elif profile == "ties":
        values = _float_ties(dtype, shape, rng)
    else:
        values = _wide_floats(dtype, shape, rng)
    with np.errstate(all="ignore"):
        array: Array = np.asarray(values).astype(dtype.numpy)
    if profile == "special" and array.size:
        specials = _specials(dtype)
        hit = rng.random(shape) < min(0.3, 3 / array.size + 0.02)
        array = np.where(hit, specials[rng.integers(0, len(specials), shape)], array)
    return array


def _integers(dtype: DType, shape: tuple[int, ...], profile: str, rng: Any) -> Array:
    low, high = dtype.limits()
    if profile in ("wide", "special"):
        whole = rng.integers(low, high, shape, dtype=dtype.numpy, endpoint=True)
        edges = np.array([low, high, 0, 1, high - 1, low + 1], dtype.numpy)
        edge = rng.random(shape) < 0.2
        return np.asarray(np.where(edge, edges[rng.integers(0, len(edges), shape)], whole))
    if profile == "ties":
        return _integer_ties(dtype, shape, rng)
    reach = 2 if profile == "integers" else 100
    drawn = rng.integers(max(low, -reach), min(high, reach), shape, endpoint=True)
    return np.asarray(drawn).astype(dtype.numpy)


def _ties(dtype: DType, bits: int, shape: tuple[int, ...], rng: Any) -> tuple[Array, Array]:
    """Odd numbers with one bit more than a narrower float dtype holds, and how many bits: what
    such a dtype rounds lies on the middle of two of its neighbours (`bits`: most that `dtype`
    itself holds)."""
    narrower = [d.mantissa for d in DTYPES.values() if d.is_float and d.mantissa + 2 <= bits]
    mantissa = rng.choice(narrower or [1], shape)
    return 2 * rng.integers(1 << (mantissa - 1), 1 << mantissa, shape) + 1, mantissa


def _float_ties(dtype: DType, shape: tuple[int, ...], rng: Any) -> Array:
    odd, mantissa = _ties(dtype, dtype.mantissa, shape, rng)
    beside = rng.choice([-1.0, 0.0, 0.0, 1.0], shape) * 2.0 ** (1 - dtype.mantissa)
    scale = np.exp2(rng.integers(-4, 5, shape)) * rng.choice([-1.0, 1.0], shape)
    return np.asarray((odd * np.exp2(-mantissa) + beside) * scale)


def _integer_ties(dtype: DType, shape: tuple[int, ...], rng: Any) -> Array:
    low, high = dtype.limits()
    bits = int(high).bit_length()
    odd, mantissa = _ties(dtype, bits - 1, shape, rng)
    room = rng.integers(0, np.maximum(bits - mantissa - 1, 1), shape)
    values = (odd.astype(np.int64) << room) + rng.integers(-1, 2, shape)
    return np.asarray(values * rng.choice([-1, 1] if low else [1], shape)).astype(dtype.numpy)


def _shifts(dtype: DType, shape: tuple[int, ...], rng: Any) -> Array:
    """A few far places, each for a run of elements of the rows: what is scaled by the greatest
    element so far (a running softmax) must come through all orders of them."""
    reach = 1.5 * math.log(float_limits(dtype)[0])
    count, row = math.prod(shape), max(shape[-1] if shape else 1, 1)
    length = int(rng.integers(1, row + 1))
    places = rng.choice([-1.0, -1 / 3, 0.0, 1 / 3, 1.0], -(-count // length)) * reach
    return np.asarray(np.repeat(places, length)[:count].reshape(shape))


def _wide_floats(dtype: DType, shape: tuple[int, ...], rng: Any) -> Array:
    """Magnitudes whose logarithm is uniform over two thirds of the dtype's range."""
    greatest, _, subnormal = float_limits(dtype)
    span = np.log2(greatest) / 1.5, np.log2(subnormal) / 1.5
    exponent = rng.uniform(span[1], span[0], shape)
    return np.asarray(rng.choice([-1.0, 1.0], shape) * np.exp2(exponent))


def _specials(dtype: DType) -> Array:
    greatest, _, subnormal = float_limits(dtype)
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, greatest, -greatest,
              subnormal, -subnormal, subnormal * 2.0 ** (dtype.mantissa - 1)]  # fmt: skip
    with np.errstate(all="ignore"):
        return np.array(values).astype(dtype.numpy)


def make_inputs(
    item: Item,
    dims: Mapping[str, int],
    profile: str = "tame",
    seed: int = 0,
    module: Module | None = None,
) -> dict[str, Array]:
    """Arrays for all inputs; those that serve as indices are in range."""
    rng = np.random.default_rng([seed, PROFILES.index(profile)])
    shapes = input_shapes(item, dims)
    bounds = index_bounds(item, module)
    values = bind_defaults(item, dims)
    arrays = {}
    for p in item.inputs:
        shape = shapes[p.name]
        if p.name in bounds:
            below = min(int(evaluate(e, values)) for e in bounds[p.name])
            below = min(below, p.type.limits()[1])
            drawn = rng.integers(0, max(below, 1), shape)
            arrays[p.name] = np.asarray(drawn).astype(p.type.numpy)
        else:
            arrays[p.name] = make_array(p.type, shape, profile, rng)
    return arrays


@st.composite
def inputs(
    draw: st.DrawFn, kernel: Item, dims: Mapping[str, int], tame: bool = False
) -> dict[str, Array]:
    """Arrays for a kernel under `dims`: with `tame`, small finite values only."""
    profile = draw(st.sampled_from(PROFILES[:2] if tame else PROFILES))
    return make_inputs(kernel, dims, profile, draw(st.integers(0, 1 << 16)))


def examples(
    item: Item,
    stages: Sequence[Kernel] = (),
    module: Module | None = None,
    parameters: bool = False,
    profiles: Sequence[str] = PROFILES,
    affordable: Callable[[Mapping[str, int]], bool] | None = None,
) -> st.SearchStrategy[Example]:
    """Ways to call a kernel, shrinking to few elements and small integers. `affordable` says of
    dims whether a run under them is quick enough; the smallest are taken in any case."""
    choices = dims_choices(item, stages, module, parameters=parameters)
    if affordable is not None:
        choices = [c for c in choices if affordable(c)] or choices[:FEWEST]
    return st.builds(
        Example,
        st.sampled_from([tuple(sorted(c.items())) for c in choices]),
        st.sampled_from(list(profiles)),
        st.integers(0, 1 << 16),
    )


def wide_kernels() -> st.SearchStrategy[Kernel]:
    """Kernels of the fuzzer: all constructs, dtypes and ops. They shrink by their seed alone, so
    not to small ones; `kernels()` do."""
    from kir.fuzz.kernels import generate

    return st.integers(0, 1 << 32).map(generate)


# --- derivations -------------------------------------------------------------------------------


@st.composite
def derivations(
    draw: st.DrawFn,
    kernel: Kernel,
    most: int = 6,
    names: Sequence[str] | None = None,
    start: Sequence[Step] = (),
) -> tuple[Step, ...]:
    """Legal derivations of a kernel: at most `most` steps after those of `start`, by the rewrites
    in `names` (all of them). They shrink to fewer steps and to earlier moves.

    A rewrite is drawn, then one of its `candidates`, then a value for each parameter left open;
    what is refused is left out.
    """
    steps, here = list(start), kernel
    for step in start:
        here = make_rewrite(step).apply(here)
    table = list(REWRITES if names is None else names)
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from(table))
        moves = list(itertools.islice(REWRITES[name].candidates(here), CANDIDATES))
        if not moves:
            continue
        move = draw(st.sampled_from(moves))
        chosen = {n: draw(st.sampled_from(domain.tries)) for n, domain in move.domains}
        step = move.step(**chosen)
        try:
            here = make_rewrite(step).apply(here)
        except RewriteError:
            continue
        steps.append(canonical(step))
    return tuple(steps)


# --- equivalence -------------------------------------------------------------------------------


def assert_equivalent(
    a: Kernel,
    b: Kernel,
    tries: int = 12,
    seed: int = 0,
    exact: bool = False,
    profiles: Sequence[str] = PROFILES,
    approximates: bool = False,
    reals: bool = False,
    approximations: Sequence[tuple[Kernel, Mapping[str, OpError]]] = (),
) -> float:
    """Check that `b` computes what `a` says, on random dims and inputs.

    Each output of `b`, as written, must lie within the oracle's bound for `a`; with `exact` it
    must equal that of `a` bit for bit (NaN equals NaN). With `approximates` what the oracle allows
    for `b` itself is allowed too, around the value that `a` says; so it is with `reals`, for a `b`
    made by laws of the real numbers, of which nothing is asked where these do not hold: where the
    value is not finite, or overflows on its way. `approximations` (of `kir.derivation`) are stages
    in which something else was put in the place of ops: what that may change is allowed on top.
    Gives the worst error as a multiple of its bound; raises VerificationError.
    """
    rng = np.random.default_rng(seed)
    choices = dims_choices(a, (b,), seed=seed)
    worst = 0.0
    for n in range(tries):
        dims = choices[0 if n == 0 else int(rng.integers(len(choices)))]
        case = Example(tuple(dims.items()), profiles[n % len(profiles)], n)
        arrays = make_inputs(a, dims, case.profile, case.seed)
        try:
            want: Mapping[str, Any] = (
                run(a, arrays, dims) if exact else _allowed(a, b, case, arrays, approximates, reals)
            )
            for stage, stated in approximations:
                want = _with_errors(want, stage, stated, arrays, dims)
        except EvaluationError:
            continue  # an index that no bound is known for fell out of range: no valid input
        got = run(b, arrays, {d.name: dims[d.name] for d in b.dims})
        for name, expected in want.items():
            if isinstance(expected, Bounded):
                errors = expected.errors(got[name])
            else:
                errors = np.where(same_bits(expected, got[name]), 0.0, np.inf)
            worst = max(worst, float(errors.max(initial=0.0)))
            if worst > 1:
                raise VerificationError(
                    f"`{b.name}` differs from `{a.name}` in `{name}` for {case}:\n"
                    + describe_difference(expected, got[name], errors),
                    kernel=b,
                )
    return worst


def _allowed(
    a: Kernel,
    b: Kernel,
    case: Example,
    arrays: dict[str, Array],
    approximates: bool,
    reals: bool,
) -> dict[str, Bounded]:
    """What `b` may give: what `a` says, within the oracle's bound for `a`, or for `b` as well."""
    dims = dict(case.dims)
    wanted = oracle(a, arrays, dims, contraction=approximates)
    if not approximates and not reals:
        return wanted
    here = {d.name: dims[d.name] for d in b.dims}
    own = oracle(b, arrays, here, contraction=approximates, loose=approximates)
    overflows = case.profile in OVERFLOWING
    if reals:
        return {n: loosened(w, own[n], overflows) for n, w in wanted.items()}
    return {n: replace(w, bound=np.fmax(w.bound, own[n].bound)) for n, w in wanted.items()}


def _with_errors(
    wanted: Mapping[str, Any],
    stage: Kernel,
    errors: Mapping[str, OpError],
    arrays: dict[str, Array],
    dims: Mapping[str, int],
) -> dict[str, Any]:
    """`wanted`, and what the errors of ops in `stage` make its outputs differ by."""
    here = {d.name: dims[d.name] for d in stage.dims}
    more = oracle(stage, arrays, here, contraction=True, errors=errors)
    return {n: replace(w, bound=w.bound + more[n].bound) for n, w in wanted.items()}


RING_WORK = 1 << 12
"""Most points that an example for the ring has: a wrong element shows in small shapes, too."""
CANDIDATES = 300
"""Moves of one rewrite that `derivations` chooses among."""


def assert_ring_equal(
    a: Kernel, b: Kernel, tries: int = 6, seed: int = 0, special: bool = False
) -> int:
    """Check that `b` equals `a` bit for bit in the ring (`kir.interpret.ring`), on random dims.

    Float inputs are random field elements; with `special`, infinities and NaNs among them, which
    laws of the real numbers need not respect. Gives how many elements were lost in either, and
    differ: of these nothing is known. Raises VerificationError.
    """
    rng = np.random.default_rng(seed)
    choices = dims_choices(a, (b,), seed=seed)
    small = [c for c in choices if math.prod(max(n, 1) for n in c.values()) <= RING_WORK]
    choices = small or choices[:FEWEST]
    levels, unsure = levels_of(a, b), 0
    for n in range(tries):
        dims = choices[int(rng.integers(len(choices)))]
        case = Example(tuple(dims.items()), "special" if special and n % 2 else "integers", n)
        arrays = make_inputs(a, dims, case.profile, case.seed)
        try:
            want = run_ring(a, arrays, dims, n, levels)
        except EvaluationError:
            continue  # no valid input, as above
        got = run_ring(b, arrays, {d.name: dims[d.name] for d in b.dims}, n, levels)
        for name, expected in want.items():
            found = difference(expected, got[name])
            unsure += int(found.unsure.sum())
            if found.wrong.any():
                raise VerificationError(
                    f"`{b.name}` differs from `{a.name}` in the ring, in `{name}` for {case}:\n"
                    + describe_residues(expected, got[name], found),
                    kernel=b,
                )
    return unsure


def assert_derivation(
    kernel: Kernel, steps: Sequence[Step], tries: int = 8, seed: int = 0
) -> Staged:
    """Check that a derivation keeps the meaning of a kernel whose parameters are bound: bit for bit
    in the ring, but for steps that approximate and are not exact there; and in numbers, within what
    the oracle allows the spec, or, where a derivation is not exact, its result.

    Gives the stages, with the steps that the ring had to skip (`excused`). Raises
    VerificationError, and RewriteError where a step is refused.
    """
    made = stage(kernel, steps)
    rng = np.random.default_rng(seed)
    choices = dims_choices(kernel, (made.kernel,), seed=seed)
    small = [c for c in choices if math.prod(max(n, 1) for n in c.values()) <= RING_WORK]
    choices = small or choices[:FEWEST]
    for n in range(tries):
        dims = choices[int(rng.integers(len(choices)))]
        case = Example(tuple(dims.items()), PROFILES[n % len(PROFILES)], n)
        arrays = make_inputs(kernel, dims, case.profile, case.seed)
        try:
            wanted: Mapping[str, Bounded] = oracle(kernel, arrays, dims)
        except EvaluationError:
            continue  # no valid input, as above
        _assert_staged(made, case, arrays, wanted)
    return made


def _assert_staged(
    made: Staged, case: Example, arrays: Mapping[str, Array], wanted: Mapping[str, Bounded]
) -> None:
    dims, after = dict(case.dims), made.kernel
    found = made.in_ring(arrays, dims, case.seed)
    if found.wrong is not None:
        name, wrong = next((n, d) for n, d in found.wrong.items() if d.wrong.any())
        step = format_step(made.stages[found.step][0])
        raise VerificationError(
            f"`{made.spec.name}` differs in the ring after step {found.step + 1}, `{step}`, in "
            f"`{name}` for {case}:\n"
            + describe_residues(found.wanted[name], found.got[name], wrong),
            kernel=after,
        )
    got = run(after, arrays, {d.name: dims[d.name] for d in after.dims})
    if all(b.accepts(got[n]).all() for n, b in wanted.items()):
        return
    wanted = made.allowed(arrays, dims, case.profile) or wanted
    for name, bounded in wanted.items():
        errors = bounded.errors(got[name])
        if not bounded.accepts(got[name]).all():
            raise VerificationError(
                f"`{made.spec.name}` is wrong after its derivation, in `{name}` for {case}:\n"
                + describe_difference(bounded, got[name], errors),
                kernel=after,
            )


def describe_residues(expected: Residues, got: Residues, found: Difference) -> str:
    """The first element that differs: its index, and what it is in both."""
    place = tuple(int(p) for p in np.argwhere(found.wrong)[0]) if found.wrong.ndim else ()
    where = f"[{', '.join(map(str, place))}]"
    bad = int(found.wrong.sum())
    share = f"{bad} of {found.wrong.size} elements differ" if found.wrong.size > 1 else "it differs"
    return f"  at {where} expected {expected.show(place)}, got {got.show(place)} ({share})"


def same_bits(a: Array, b: Array) -> Array:
    """Where two arrays of one dtype hold the same value, NaN and signed zeros told apart."""
    if a.dtype.kind in "iub":
        return np.asarray(a == b)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    equal = (wide_a == wide_b) & (np.signbit(wide_a) == np.signbit(wide_b))
    return np.asarray(equal | (np.isnan(wide_a) & np.isnan(wide_b)))


def describe_difference(expected: Bounded | Array, got: Array, errors: Array) -> str:
    """The worst element: its index, what was expected, what came out, and the bound."""
    place = np.unravel_index(int(np.argmax(errors)), errors.shape) if errors.ndim else ()
    where = f"[{', '.join(str(int(p)) for p in place)}]"
    bad = int((errors > 1).sum())
    if isinstance(expected, Bounded):
        value, bound = expected.value[place], expected.bound[place]
        wanted = f"expected {value!s} within {bound:.3g}"
    else:
        wanted = f"expected {expected[place]!s}"
    share = f"{bad} of {errors.size} elements differ" if errors.size > 1 else "it differs"
    return f"  at {where} {wanted}, got {got[place]!s} ({share})"
