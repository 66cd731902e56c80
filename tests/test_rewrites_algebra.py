"""The algebra on whole examples: effects, compositions, and generated kernels."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kir.check import check_kernel
from kir.derivation import effect_of, replay
from kir.errors import RewriteError
from kir.fuzz.kernels import generate
from kir.ir import Define, Kernel, Reduce, Var, walk
from kir.rewrites import legal_moves, make_rewrite, refusal
from kir.rewrites.places import find_define, find_place, find_valued, places, put
from kir.syntax import format_kernel, load, parse, parse_kernel, parse_steps
from kir.testing import assert_equivalent, assert_ring_equal

EXAMPLES = Path(__file__).parent.parent / "examples"
ALGEBRA = ("inline", "recompute", "factor", "outline", "hoist", "cse", "distribute", "regroup",
           "transpose", "rule")  # fmt: skip


def example(name: str) -> Kernel:
    (kernel,) = parse(load(EXAMPLES / f"{name}.kir")).kernels().values()
    return kernel


def after(kernel: Kernel, steps: str) -> Kernel:
    return replay(kernel, parse_steps(steps))[-1][1]


def kernel(body: str, signature: str = "[N](x: f32[N], a: f32[N]) -> (y: f32[N])") -> Kernel:
    return parse_kernel(f"kernel k{signature} {{ {body} }}")


# --- compositions --------------------------------------------------------------------------------


def test_the_divisor_of_attention_leaves_its_sum() -> None:
    spec = example("attention")
    done = after(spec, "inline(p) factor(o, into = num)")
    numerator = find_define(done, "num")
    assert isinstance(numerator.value, Reduce)
    assert "/" not in format_kernel(done).split("num[")[1].split("\n")[0]
    assert effect_of(spec, replay(spec, parse_steps("inline(p) factor(o)"))) == "approximates"
    assert_equivalent(spec, done, approximates=True, reals=True)


def test_the_factorisation_machine_is_regrouped() -> None:
    spec = example("papers/factorisation_machine")
    done = after(spec, "inline(g)" if _inlines(spec) else "recompute(g) regroup(z, (1, 0))")
    sums = [n for n in walk(find_define(done, "z").value) if isinstance(n, Reduce)]
    assert sums[0].axes[0].name.startswith("d")
    assert Var("i") not in set(walk(sums[1])), "the inner sum is shared by all rows"
    assert_equivalent(spec, done, reals=True)
    assert_ring_equal(spec, done)


def _inlines(spec: Kernel) -> bool:
    return refusal(spec, parse_steps("inline(g)")[0]) is None


def test_a_regrouped_product_can_be_hoisted() -> None:
    spec = example("papers/factorisation_machine")
    done = after(spec, "recompute(g) regroup(z, (1, 0))")
    (inner,) = [p for p in places(find_define(done, "z")) if p.path == _inner(done)]
    text = f"hoist(z, ({', '.join(map(str, inner.path))}), into = h)"
    shared = after(done, text)
    assert len(find_define(shared, "h").axes) == 3
    assert_equivalent(spec, shared, reals=True)


def _inner(done: Kernel) -> tuple[int, ...]:
    found = [p.path for p in places(find_define(done, "z")) if isinstance(p.expr, Reduce)]
    return found[-1]


def test_distribute_undoes_factor() -> None:
    spec = kernel("y[i: N] = sum(j: N) a[i] * x[j]")
    factored = after(spec, "factor(y)")
    assert after(factored, "distribute(y)") == spec


def test_recompute_undoes_cse() -> None:
    spec = kernel("y[i: N] = exp(x[i]) * (a[i] + exp(x[i]))")
    shared = after(spec, "cse()")
    assert len(shared.body) == 2
    assert after(shared, "recompute(t)") == spec


def test_variance_becomes_two_sums() -> None:
    spec = parse_kernel(
        """kernel variance[M, N](x: f32[M, N], m: f32[M]) -> (v: f32[M]) where N >= 1 {
          v[i: M] = sum(j: N) (x[i, j] - m[i]) * (x[i, j] - m[i])
        }"""
    )
    steps = "distribute(v) distribute(v) distribute(v)"
    done = after(spec, steps)
    reductions = [n for n in walk(find_define(done, "v").value) if isinstance(n, Reduce)]
    assert len(reductions) >= 1
    assert_ring_equal(spec, done)


# --- effects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "body", "effect"),
    [
        ("factor(y)", "y[i: N] = sum(j: N) a[i] * x[j]", "reassociates"),
        ("factor(y)", "y[i: N] = sum(j: N) f32(bf16(a[i] * x[j]))", "approximates"),
        ("factor(y)", "y[i: N] = max(j: N) -x[j]", "exact"),
        ("factor(y)", "y[i: N] = max(j: N) 2.0 * x[j]", "approximates"),
        ("factor(y)", "y[i: N] = f32(sum(j: N) 3 * i32(x[j]))", "exact"),
        ("distribute(y)", "y[i: N] = a[i] * (sum(j: N) x[j])", "reassociates"),
        ("distribute(y)", "y[i: N] = f32(3 * (i32(x[i]) + 2))", "exact"),
        ("regroup(y, (1, 0))", "y[i: N] = sum(j: N) (sum(k: N) x[k] * a[j]) * a[i]",
         "reassociates"),
        ("regroup(y, (1))", "y[i: N] = max(j: N) max(k: N) x[k] * a[j]", "exact"),
        ("rule(y, add_commute)", "y[i: N] = x[i] + a[i]", "exact"),
        ("rule(y, add_left)", "y[i: N] = x[i] + (a[i] + x[i])", "reassociates"),
        ("rule(y, div_to_recip)", "y[i: N] = x[i] / a[i]", "approximates"),
        ("rule(y, add_left)", "y[i: N] = f32(i32(x[i]) + (i32(a[i]) + 1))", "exact"),
    ],
)  # fmt: skip
def test_effects(step: str, body: str, effect: str) -> None:
    spec = kernel(body)
    made = make_rewrite(parse_steps(step)[0])
    made.apply(spec)
    assert made.effect_on(spec) == effect
    if effect == "approximates":
        assert "u" in made.bound()


# --- places --------------------------------------------------------------------------------------


def test_places_are_found_by_their_paths() -> None:
    spec = kernel("y[i: N] = sum(j: N where j < i) exp(x[j]) * (x[i - 1] else 0.5)")
    stmt = find_define(spec, "y")
    for place in places(stmt):
        again = find_place(spec, stmt, place.path)
        assert again.expr is place.expr
        assert (again.reductions, again.fixed) == (place.reductions, place.fixed)
        assert put(stmt, place.path, place.expr) == stmt
    fixed = {format_of(p.path) for p in places(stmt) if p.fixed}
    assert fixed and "1" in fixed and "2.0" not in fixed


def format_of(path: tuple[int, ...]) -> str:
    return ".".join(map(str, path))


def test_statements_of_one_name_are_numbered() -> None:
    spec = parse_kernel(
        """kernel k[N](x: f32[N]) -> (y: f32[N]) {
          for i: N { y[i] = exp(x[i]) }
          for i: N { y[i] = exp(y[i]) }
        }"""
    )
    done = after(spec, "rule(y, exp_to_exp2, nth = 1)")
    first, second = (find_valued(done, "y", n) for n in (0, 1))
    assert first == find_valued(spec, "y", 0)
    assert second != find_valued(spec, "y", 1)


# --- every legal move ----------------------------------------------------------------------------


def held(spec: Kernel, most: int) -> int:
    """Apply legal moves of the algebra, some of each kind, and compare; how many there were.
    Bit for bit where nothing is summed: the interpreter's order of a sum follows the layout."""
    count = 0
    ordered = any(isinstance(n, Reduce) and n.dtype.is_float for n in walk(spec))
    for name in ALGEBRA:
        moves = legal_moves(spec, [name])
        chosen = moves[:: max(1, len(moves) // most)][:most]
        for move in chosen:
            made = make_rewrite(move.step())
            effect = made.effect_on(spec)
            done = made.apply(spec)
            check_kernel(done)
            assert parse_kernel(format_kernel(done)) == done
            profiles = ("integers", "tame", "wide", "special")
            assert_equivalent(
                spec,
                done,
                tries=4,
                exact=effect == "exact" and not ordered,
                approximates=effect == "approximates",
                reals=effect != "exact",
                profiles=profiles if effect == "exact" else profiles[:2],
            )
            count += 1
    return count


@pytest.mark.parametrize("name", ["softmax", "layer_norm", "gelu", "attention", "conv2d", "lstm"])
def test_moves_on_examples(name: str) -> None:
    assert held(example(name), 1) >= 2


@pytest.mark.parametrize("seed", range(12))
def test_moves_on_generated_kernels(seed: int) -> None:
    held(generate(f"algebra-{seed}"), 1)


def test_an_application_never_changes_the_kernel_given() -> None:
    spec = example("softmax")
    text = format_kernel(spec)
    for name in ALGEBRA:
        for move in legal_moves(spec, [name])[:2]:
            make_rewrite(move.step()).apply(spec)
    assert format_kernel(spec) == text


def test_outlining_an_outlined_part_is_refused() -> None:
    spec = kernel("y[i: N] = exp(x[i]) * 2.0")
    done = after(spec, "outline(y, (0))")
    assert isinstance(done.body[0], Define)
    with pytest.raises(RewriteError, match="needs no name"):
        make_rewrite(parse_steps("outline(y, (0))")[0]).edit(done)


# --- sums of products, nested -------------------------------------------------------------------

FACTORS = ("x[i, {j}]", "x[{j}, i]", "a[i]", "a[{j}]", "b[{k}]", "w[{j}, {k}]", "w[i, {k}]",
           "f32(2.0)", "f32(bf16(a[{j}] * b[{k}]))", "-b[{k}]", "(a[i] / c[{j}])",
           "c[i]")  # fmt: skip
RANGES = ("M", "M where {} <= i", "M where {} > i", "i + 1 where {} < M", "M where {} < K")


def nested(seed: int) -> Kernel:
    """A sum of sums of products, with empty ranges, conditions, casts and divisors."""
    rng = random.Random(seed)

    def product(j: str, k: str) -> str:
        parts = [rng.choice(FACTORS).format(j=j, k=k) for _ in range(rng.randint(1, 3))]
        return " * ".join(parts)

    def total(j: str, k: str) -> str:
        first = rng.choice(RANGES).format(j)
        second = rng.choice(("K", f"K where {k} <= {j}", f"K where {k} > 1"))
        inner = f"(sum({k}: {second}) {product(j, k)})"
        around = product(j, "K - 1").replace("[K - 1]", "[0]").replace(", K - 1]", ", 0]")
        outer = f"{inner} * {around}" if rng.random() < 0.6 else f"{around} * {inner}"
        return f"sum({j}: {first}) {inner if rng.random() < 0.2 else outer}"

    body = f"({total('j', 'k')})"
    if rng.random() < 0.5:
        body = f"{rng.choice(('a[i] *', '-', '2.0 +'))} {body}"
    if rng.random() < 0.5:
        body = f"{body} {rng.choice('+-')} ({total('j', 'k')})"
    needs = " where K >= 1" if "0]" in body or rng.random() < 0.5 else ""
    return parse_kernel(
        f"""kernel nested[M, K](x: f32[M, M], a: f32[M], b: f32[K], c: f32[M], w: f32[M, K])
          -> (y: f32[M]){needs} {{ y[i: M] = {body} }}"""
    )


NESTED = ("factor", "distribute", "join", "regroup", "outline", "hoist")


def test_nested_sums_meet_every_rewrite() -> None:
    met = {m.rewrite for seed in range(14) for m in legal_moves(nested(seed), NESTED)}
    assert met == set(NESTED)


@pytest.mark.parametrize("seed", range(14))
def test_moves_on_nested_sums(seed: int) -> None:
    spec = nested(seed)
    check_kernel(spec)
    for name in NESTED:
        for move in legal_moves(spec, [name])[:3]:
            made = make_rewrite(move.step())
            done = made.apply(spec)
            check_kernel(done)
            effect = made.effect_on(spec)
            assert_equivalent(
                spec,
                done,
                tries=4,
                approximates=effect == "approximates",
                reals=effect != "exact",
                profiles=("integers", "tame") if effect != "exact" else ("tame", "special"),
            )
            assert_ring_equal(spec, done, tries=2)
