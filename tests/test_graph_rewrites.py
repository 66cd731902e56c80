"""Rewrites of graphs: fused and split kernels compute what the graph did, on every road."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kir.check import check_module
from kir.cli import main
from kir.derivation import from_json
from kir.errors import EvaluationError, RewriteError, ScheduleError, VerificationError
from kir.fuzz.kernels import generate
from kir.graph_derivation import (
    derive_graph,
    graph_effect,
    graph_hash,
    only,
    replay_derivation,
    replay_graph,
)
from kir.interpret import difference, oracle_graph, run_graph, run_graph_ring
from kir.ir import Buffer, Call, Define, Graph, Kernel, Module, Param, Var
from kir.pipeline import compile
from kir.rewrites.graph import apply_graph_step, legal_graph_moves
from kir.specialise import specialise
from kir.syntax import format_module, load, parse, parse_steps
from kir.testing import dims_choices, make_inputs, same_bits
from kir.verify import verify

EXAMPLES = Path(__file__).parent.parent / "examples"
Dims = dict[str, int]

NET = """
kernel hidden[M, N, K, scale = 2](
  x: f32[M, K], w: f32[N, K]
) -> (y: f32[M, N], s: f32[M]) where N >= 1 {
  z[i: M, j: N] = sum(k: K) x[i, k] * w[j, k]
  y[i: M, j: N] = tanh(z[i, j]) * f32(scale)
  s[i: M] = max(j: N) z[i, j]
}

kernel shift[M, N](x: f32[M, N], s: f32[M], z: f32[N]) -> (y: f32[M, N]) {
  y[i: M, j: N] = x[i, j] - s[i] + z[j]
}

kernel histogram[M, B](ids: i32[M], x: f32[M]) -> (y: f32[B]) {
  y[b: B] = 0.0
  for i: M where ids[i] >= 0, ids[i] < i32(B) { y[ids[i]] += x[i] }
}

kernel square[N](x: f32[N, N]) -> (y: f32[N]) {
  y[i: N] = sum(j: N) x[i, j] * x[j, i]
}

kernel scale[N](x: f32[N]) -> (y: f32[N]) {
  y[i: N] = x[i] * 0.5
}

kernel grown[N](x: f32[N + 2]) -> (y: f32[N]) {
  y[i: N] = x[i] + x[i + 1] + x[i + 2]
}

graph net[B, I, H](x: f32[B, I], w: f32[H, I], b: f32[H]) -> (y: f32[B, H]) where H >= 1 {
  t, m = hidden[scale = 3](x, w)
  y = shift(t, m, b)
}

graph shared[B, I, H](
  x: f32[B, I], w: f32[H, I], b: f32[H]
) -> (t: f32[B, H], y: f32[B, H], q: f32[B]) where H >= 1 {
  t, m = hidden(x, w)
  q = scale(m)
  y = shift(t, m, b)
}

graph counts[M, B](ids: i32[M], x: f32[M]) -> (y: f32[B]) {
  h = histogram[B = B](ids, x)
  y = scale(h)
}

graph squares[N](x: f32[N, N], w: f32[N, N], b: f32[N]) -> (y: f32[N]) where N >= 1 {
  t, m = hidden(x, w)
  y = square(t)
}

graph windows[N](x: f32[N]) -> (y: f32[N - 2]) where N >= 2 {
  t = scale(x)
  y = grown(t)
}

graph around[B, I, H](x: f32[B, I], w: f32[H, I], b: f32[H]) -> (y: f32[B, H]) where H >= 1 {
  t, m = hidden(x, w)
  q = scale(m)
  y = shift(t, q, b)
}
"""


def net() -> Module:
    return parse(NET)


def sizes(graph: Graph) -> list[Dims]:
    return [
        {d.name: n for d, n in zip(graph.dims, row, strict=False)}
        for row in ((3, 4, 5), (2, 2, 2), (5, 3, 1), (4, 7, 4))
    ]


def same(before: Module, after: Module, name: str) -> None:
    """Both graphs by the interpreter: within the oracle's bound, and equal in the ring."""
    assert not check_module(only(after, name))
    old, new = before.graphs()[name], after.graphs()[name]
    assert (old.params, old.constraints) == (new.params, new.constraints)
    assert parse(format_module(after)).graphs()[name] == new
    for seed, dims in enumerate(sizes(old)):
        arrays = make_inputs(old, dims, "tame", seed, before)
        wanted = oracle_graph(before, old, arrays, dims)
        got = run_graph(after, new, arrays, dims)
        for output, bounded in wanted.items():
            assert bounded.accepts(got[output]).all(), output
            assert np.isfinite(bounded.bound).any() or not bounded.bound.size
        one = run_graph_ring(before, old, arrays, dims, seed)
        two = run_graph_ring(after, new, arrays, dims, seed)
        for output in one:
            assert not difference(one[output], two[output]).wrong.any(), output


def rewritten(name: str, steps: str) -> tuple[Module, Module]:
    module = net()
    return module, replay_graph(module, name, parse_steps(steps))[-1][1]


def test_fused_kernels_keep_what_lies_between_to_themselves() -> None:
    before, after = rewritten("net", "fuse_kernels(t, y, kernel = both)")
    (call,) = after.graphs()["net"].calls
    assert (call.kernel, call.results, call.args) == ("both", ("y",), ("x", "w", "b"))
    made = after.kernels()["both"]
    assert [p.name for p in made.outputs] == ["y_2"]
    assert {s.name for s in made.body if isinstance(s, Define)} >= {"z", "y", "s", "y_2"}
    assert [d.name for d in made.dims] == ["M", "N", "K"]  # the parameter is a constant now
    same(before, after, "net")


def test_a_result_that_others_take_stays_one() -> None:
    before, after = rewritten("shared", "fuse_kernels(t, y)")
    graph = after.graphs()["shared"]
    assert [c.results for c in graph.calls] == [("t", "m", "y"), ("q",)]
    same(before, after, "shared")


def test_what_is_stored_to_becomes_a_buffer() -> None:
    _, after = rewritten("counts", "fuse_kernels(h, y, kernel = both)")
    made = after.kernels()["both"]
    assert [s.name for s in made.body if isinstance(s, Buffer)] == ["y"]
    assert after.graphs()["counts"].calls[0].dims  # the bins are told by the call alone
    module = only(after, "counts")
    assert not check_module(module)
    ids = np.array([0, 2, 2, 5], np.int32)
    arrays = {"ids": ids, "x": np.array([1, 2, 3, 4], np.float32)}
    got = run_graph(after, after.graphs()["counts"], arrays, {"B": 4})["y"]
    assert got.tolist() == [0.5, 0.0, 2.5, 0.0]


def test_shapes_that_the_graph_makes_equal_become_constraints() -> None:
    before, after = rewritten("squares", "fuse_kernels(t, y, kernel = both)")
    made = after.kernels()["both"]
    assert len(made.constraints) == 2
    same(before, after, "squares")


def test_a_dim_is_solved_for_from_an_extent() -> None:
    before, after = rewritten("windows", "fuse_kernels(t, y, kernel = both)")
    assert [d.name for d in after.kernels()["both"].dims] == ["N"]
    same(before, after, "windows")


def test_a_chain_is_fused_in_any_order() -> None:
    before, one = rewritten("around", "fuse_kernels(t, q) fuse_kernels(t, y, kernel = all_)")
    same(before, one, "around")
    assert len(one.graphs()["around"].calls) == 1
    before, two = rewritten("around", "fuse_kernels(q, y) fuse_kernels(t, y, kernel = all_)")
    same(before, two, "around")


@pytest.mark.parametrize("after", ["z", "y"])
def test_a_kernel_is_split_after_a_definition(after: str) -> None:
    steps = f"split_kernel(t, {after}, first = front, second = rear)"
    before, done = rewritten("net", steps)
    assert len(done.graphs()["net"].calls) == 3
    same(before, done, "net")


def test_split_then_fused_is_the_same_again() -> None:
    before, after = rewritten("shared", "split_kernel(t, z) fuse_kernels(z, t) fuse_kernels(t, y)")
    same(before, after, "shared")


def test_halves_are_told_the_dims_that_their_inputs_leave_open() -> None:
    text = """
    kernel tiles[M, N](x: f32[M], w: f32[N]) -> (y: f32[M, N]) {
      t[i: M] = x[i] * f32(N)
      y[i: M, j: N] = t[i] * w[j]
    }
    graph g[A, B](x: f32[A], w: f32[B]) -> (y: f32[A, B]) { y = tiles(x, w) }
    """
    module = parse(text)
    (step,) = parse_steps("split_kernel(y, t)")
    after = apply_graph_step(module, "g", step)
    assert [name for name, _ in after.graphs()["g"].calls[0].dims] == ["N"]
    assert not check_module(only(after, "g"))
    arrays = {"x": np.arange(3, dtype=np.float32), "w": np.ones(4, np.float32)}
    got = run_graph(after, after.graphs()["g"], arrays)["y"]
    assert (got == run_graph(module, module.graphs()["g"], arrays)["y"]).all()


def test_a_recurrence_crosses_from_one_half_to_the_other() -> None:
    text = """
    kernel leaky[T, B](x: f32[T, B]) -> (y: f32[T, B]) {
      for t: T { h[t, b: B] = 0.5 * (h[t - 1, b] else f32(0.0)) + x[t, b] }
      y[t: T, b: B] = h[t, b] * 2.0
    }
    graph g[T, B](x: f32[T, B]) -> (y: f32[T, B]) { y = leaky(x) }
    """
    module = parse(text)
    after = apply_graph_step(module, "g", parse_steps("split_kernel(y, h)")[0])
    same(module, after, "g")
    again = apply_graph_step(after, "g", parse_steps("fuse_kernels(h, y)")[0])
    same(module, again, "g")


REFUSED = [
    ("net", "fuse_kernels(y, t)", "is not made from"),
    ("net", "fuse_kernels(u, y)", "no call of `net` gives `u`"),
    ("net", "fuse_kernels(t, y, kernel = scale)", "is taken"),
    ("around", "fuse_kernels(t, y)", "stands between"),
    ("net", "split_kernel(y, y)", "all that `shift` gives is there"),
    ("net", "split_kernel(t, w)", "does not define `w`"),
    ("net", "within(scale, loops)", "calls no kernel `scale`"),
    ("net", "within(shift, split, k, 4)", "has no loop `k`"),
]


@pytest.mark.parametrize(("name", "steps", "why"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refusals_say_why(name: str, steps: str, why: str) -> None:
    with pytest.raises(RewriteError, match=why) as caught:
        replay_graph(net(), name, parse_steps(steps))
    assert caught.value.render()


def test_a_refusal_shows_the_graph_as_it_is() -> None:
    with pytest.raises(RewriteError) as caught:
        replay_graph(net(), "around", parse_steps("fuse_kernels(t, y)"))
    assert "  q = scale(m)\n" in caught.value.render() and "^^^^^^^^^^^^" in caught.value.render()


def test_a_buffer_does_not_cross() -> None:
    text = """
    kernel f[N](x: f32[N]) -> (y: f32[N], z: f32[N]) {
      buffer t: f32[N] in global
      for i: N { t[i] = x[i] }
      y[i: N] = x[i] + 1.0
      z[i: N] = t[i]
    }
    graph g[N](x: f32[N]) -> (y: f32[N], z: f32[N]) { y, z = f(x) }
    """
    with pytest.raises(RewriteError, match="the buffer `t` is used before and after"):
        apply_graph_step(parse(text), "g", parse_steps("split_kernel(y, y)")[0])


@pytest.mark.parametrize(
    "steps", ["fuse_kernels(t)", "fuse_kernels(t, 3)", "within(net)", "merge_kernels(t, y)"]
)
def test_bad_steps(steps: str) -> None:
    with pytest.raises(ScheduleError):
        replay_graph(net(), "net", parse_steps(steps))


def test_a_schedule_of_a_graph_replays_by_text_and_json() -> None:
    module = parse(NET + "schedule s of net { fuse_kernels(t, y, kernel = both) within(both, loops)"
                   " within(both, split, i, 4, tail = guard) }")  # fmt: skip
    steps = module.schedules()["s"].steps
    made = derive_graph(module, "net", steps, "s")
    after = replay_graph(module, "net", steps)
    assert graph_hash(after[-1][1], "net") == made.result
    again = from_json(made.json())
    assert again == made
    assert replay_derivation(again, module)[-1][1] == after[-1][1]
    (read_back,) = parse(NET + made.text()).schedules().values()
    assert graph_hash(replay_graph(module, "net", read_back.steps)[-1][1], "net") == made.result
    same(module, after[-1][1], "net")
    assert graph_effect(module, "net", after) == "exact"
    regrouped = replay_graph(module, "net", parse_steps("within(hidden, split_reduction, z, k, 4)"))
    assert graph_effect(module, "net", regrouped) == "reassociates"


def test_another_graph_is_not_taken_for_the_one_derived() -> None:
    made = derive_graph(net(), "net", parse_steps("fuse_kernels(t, y)"))
    other = parse(NET.replace("tanh(z", "exp(z"))
    with pytest.raises(ScheduleError, match="another graph than it claims"):
        replay_derivation(made, other)


@pytest.mark.parametrize("name", ["net", "shared", "counts", "squares", "windows", "around"])
def test_all_moves_offered_apply_and_keep_the_meaning(name: str) -> None:
    module = net()
    moves = legal_graph_moves(module, name)
    assert {m.rewrite for m in moves} >= {"fuse_kernels"}
    for move in moves:
        after = apply_graph_step(module, name, move.step())
        assert not check_module(only(after, name)), move
        if name != "counts":
            same(module, after, name)


def test_a_perceptron_in_one_kernel_on_the_cpu() -> None:
    module = parse(load(EXAMPLES / "mlp.kir"))
    after = apply_graph_step(module, "mlp", parse_steps("fuse_kernels(t, y)")[0])
    split = apply_graph_step(module, "mlp", parse_steps("split_kernel(t, z)")[0])
    dims = {"B": 5, "I": 17, "H": 9, "O": 3}
    graph = module.graphs()["mlp"]
    arrays = make_inputs(graph, dims, "tame", 1, module)
    wanted = oracle_graph(module, graph, arrays)
    for changed in (after, split):
        got: dict[str, Any] = compile(changed.graphs()["mlp"], "cpu", module=changed)(arrays)
        assert wanted["y"].accepts(got["y"]).all()
    kernels: list[Kernel] = [after.kernels()[c.kernel] for c in after.graphs()["mlp"].calls]
    assert len(kernels) == 1


# --- on the command line --------------------------------------------------------------------------


class Command:
    """Runs `kir ARGS` in this process: its exit code, and all that it prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["kir", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = self.capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err


@pytest.fixture
def kir(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_the_command_lists_and_applies_steps_of_a_graph(kir: Command, tmp_path: Path) -> None:
    file = tmp_path / "net.kir"
    file.write_text(NET + "schedule s of net { fuse_kernels(t, y, kernel = both) }\n")
    code, text = kir("rewrite", str(file), "--kernel", "net")
    assert code == 0
    assert "fuse_kernels(t, y)" in text and "split_kernel(t, z)" in text
    code, text = kir(
        "rewrite", str(file), "within(both, loops)", "--kernel", "net", "--schedule", "s"
    )
    assert code == 0
    assert parse(text).graphs()["net"].calls[0].kernel == "both"
    saved = tmp_path / "d.json"
    words = ("rewrite", str(file), "within(hidden, loops)", "--kernel", "net", "--save", str(saved))
    assert kir(*words)[0] == 0
    code, text = kir("rewrite", str(file), "--kernel", "net", "--schedule", str(saved), "--json",
                     "fuse_kernels(t, y)")  # fmt: skip
    assert code == 0 and '"effect": "exact"' in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("fuse_kernels(u, y)",), "no call of `net` gives `u`"),
        (("loops()",), "there is no rewrite `loops`"),
        (("--shape", "B=3"), "is a graph"),
        (("--schedule", "nowhere"), "no schedule or file `nowhere`"),
        (("--only", "split"), "graphs have no rewrite `split`"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: tuple[str, ...], why: str, kir: Command, tmp_path: Path
) -> None:
    file = tmp_path / "net.kir"
    file.write_text(NET)
    code, text = kir("rewrite", str(file), "--kernel", "net", *words)
    assert code in (1, 2) and why in text and "Traceback" not in text


# --- random kernels -------------------------------------------------------------------------------


def alone(kernel: Kernel) -> Module:
    """A module of the kernel and a graph `g` that calls it, told all its dims."""
    outputs = tuple(Param(f"r_{p.name}", p.type, p.shape) for p in kernel.outputs)
    call = Call(
        tuple(p.name for p in outputs),
        kernel.name,
        tuple((d.name, Var(d.name)) for d in kernel.dims),
        tuple(p.name for p in kernel.inputs),
    )
    graph = Graph("g", kernel.dims, kernel.inputs, outputs, kernel.constraints, (call,))
    return parse(format_module(Module((kernel, graph))))


def assert_same_bits(before: Module, after: Module) -> None:
    small = only(after, "g")
    assert not check_module(small)
    assert parse(format_module(small)) == small
    kernel = next(iter(before.kernels().values()))
    choices = dims_choices(kernel)
    for n, profile in enumerate(("integers", "tame", "special")):
        dims = choices[7 * n % len(choices)]
        arrays = make_inputs(kernel, dims, profile, n)
        try:
            wanted = run_graph(before, before.graphs()["g"], arrays, dims)
        except EvaluationError:
            continue  # an index read from a tensor is out of range
        got = run_graph(after, after.graphs()["g"], arrays, dims)
        for name, array in wanted.items():
            assert same_bits(array, got[name]).all(), (name, dims)


TEXTS = {
    "no-inputs": """kernel k[N](x: f32[N]) -> (y: f32[N]) {
      t[i: N] = f32(i)
      y[i: N] = x[i] + t[i]
    }""",
    "scalar": "kernel k[N](x: f32[N]) -> (y: f32[N]) { t = sum(i: N) x[i]\n y[i: N] = x[i] * t }",
    "no-index": """kernel k[N](x: f32[N]) -> (y: f32[N]) {
      for t: N { h[t] = 0.5 * (h[t - 1] else f32(1.0)) + x[t] }
      y[i: N] = h[i] - x[i]
    }""",
    "an-output-read-later": """kernel k[N](x: f32[N]) -> (y: f32[N], z: f32[N]) {
      for i: N { y[i] = x[i] * 2.0 }
      z[i: N] = y[N - 1 - i]
    }""",
}
RANDOM = {f"seed-{seed}": format_module(Module((generate(seed),))) for seed in range(1, 16)}


@pytest.mark.parametrize("name", [*TEXTS, *RANDOM])
def test_splitting_and_fusing_again_keeps_every_bit(name: str) -> None:
    (kernel,) = parse({**TEXTS, **RANDOM}[name]).kernels().values()
    module = alone(specialise(kernel))
    for split in [m for m in legal_graph_moves(module, "g") if m.rewrite == "split_kernel"][:3]:
        halves = apply_graph_step(module, "g", split.step())
        assert_same_bits(module, halves)
        for fuse in [m for m in legal_graph_moves(halves, "g") if m.rewrite == "fuse_kernels"]:
            assert_same_bits(module, apply_graph_step(halves, "g", fuse.step()))


MLP = Path(__file__).parent.parent / "examples" / "mlp.kir"


@pytest.mark.parametrize("schedule", ["one", "parts"])
def test_a_graph_is_verified_under_a_schedule_of_its_own(schedule: str) -> None:
    module = parse(load(MLP))
    report = verify(
        module.graphs()["mlp"], module=module, schedule=schedule, target="cpu", examples=4
    )
    runs = {r.name: r.runs for r in report.rungs if r.verdict in ("proven", "verified")}
    assert runs["ring"] >= 4 and runs["schedule"] == 4 and runs["target cpu"] == 8


def test_a_graph_rewritten_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = parse(load(MLP))
    text = format_module(module).replace("0.5 * z[i, j]", "0.4 * z[i, j]")
    wrong = parse(text)
    choose = lambda *_: (wrong, wrong.graphs()["mlp"], None)  # noqa: E731
    monkeypatch.setattr("kir.subject.chosen_graph", choose)
    with pytest.raises(VerificationError, match="wrong on the rung `ring`"):
        verify(module.graphs()["mlp"], module=module, schedule="one", examples=4)


def test_a_schedule_of_a_graph_runs_and_lowers(tmp_path: Path, kir: Command) -> None:
    module = parse(load(MLP))
    graph = module.graphs()["mlp"]
    dims = {"B": 3, "I": 4, "H": 5, "O": 2}
    arrays = make_inputs(graph, dims, "tame", 0, module)
    wanted = oracle_graph(module, graph, arrays, dims, True)["y"]
    assert wanted.accepts(compile(graph, choice="one", module=module)(arrays)["y"]).all()
    out = tmp_path / "mlp.ll"
    words = ["lower", str(MLP), "--kernel", "mlp", "--schedule", "one", "--target", "cpu"]
    assert kir(*words, "--emit", "llvm", "-o", str(out))[0] == 0
    assert "both" in out.read_text()
