"""The report, the dispatch table, the dataset and the command line, on a made-up search."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

import sqlalchemy as sa
from typer.testing import CliRunner

from kir.agent.dataset import Filter, dataset
from kir.agent.dispatch import steps_for, table, tuned
from kir.agent.report import report
from kir.agent.store import NodeRow, RunRow, Store
from kir.agent.variant import derivation_text
from kir.cli import app
from kir.cli.common import from_store
from kir.derivation import kernel_hash
from kir.errors import StoreError
from kir.ir import Kernel, Loop, Module, Step
from kir.pipeline import LOOPS, schedule
from kir.specialise import specialise
from kir.syntax import format_module, parse_kernel

KERNEL = parse_kernel(
    "kernel scale[M, N](x: f32[M, N]) -> (y: f32[M, N]) { y[i: M, j: N] = x[i, j] * 3.0 }"
)
DIMS = {"M": 8, "N": 64}
HOSTILE = "</script><script>alert(1)</script>"
STEPS = (
    LOOPS,
    (*LOOPS, Step("split", ("j", 16))),
    (*LOOPS, Step("split", ("j", 16)), Step("bind", ("j", "tile"))),
    (*LOOPS, Step("bind", ("i", "grid"))),
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A finished search of four variants: one slow, one wrong, two faster than the default."""
    url = f"sqlite:///{tmp_path}/t.db"
    store = Store(url)
    run = store.add_run(
        RunRow(
            0, "f", "scale", format_module(Module((KERNEL,))), DIMS, "cpu", "native",
            derivation_text("scale", LOOPS), 0, "done", {"policy": "mcts", "proposer": "rules"},
            {"confinement": "confines nothing"}, {},
        )
    )  # fmt: skip
    spec = specialise(KERNEL, DIMS)
    ids: list[int] = []
    for number, (steps, fitness) in enumerate(zip(STEPS, (1.0, 0.0, 2.0, 1.5))):
        ids.append(
            store.add_node(
                NodeRow(
                    run,
                    tuple(ids[:1]) if number else (),
                    derivation_text("scale", steps),
                    kernel_hash(schedule(spec, steps)),
                    "ok" if fitness else "wrong",
                    fitness,
                    1e-3 / fitness if fitness else None,
                    1e-3,
                    "" if fitness else f"off by 3 {HOSTILE}",
                    resources={"compile_s": 0.25},
                    provenance={"reason": HOSTILE},
                )
            )
        )
    store.finish_run(run, "done", {"node": ids[2], "speedup": 1.9, "seconds": 5e-4})
    store.close()
    return url


def payload(page: str) -> dict[str, object]:
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data: dict[str, object] = json.loads(found[1])
    return data


def test_a_report_is_one_page_that_asks_for_nothing(url: str) -> None:
    page = report(Store(url))
    assert HOSTILE not in page  # data cannot end the script that it is in
    assert not re.search(r"(src|href)=|@import|fetch\(|url\(", page)
    assert "default-src 'none'" in page
    data = payload(page)
    (run,) = data["runs"]  # type: ignore[misc]
    assert [n["status"] for n in run["nodes"]] == ["ok", "wrong", "ok", "ok"]
    assert "+    tile j: 16" in run["nodes"][2]["diff"]
    assert ["wrong: off by  </script><script>alert()</script>", 1] in run["causes"]
    assert run["time"] == [["compile", 1.0, 0.25]]
    assert data["dispatch"] == [
        {"kernel": "scale", "target": "cpu", "dims": "M=8, N=64", "speedup": 1.9, "node": 3}
    ]


def test_a_report_draws_in_a_browser(url: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no chromium here")
    page = tmp_path / "report.html"
    page.write_text(report(Store(url)), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    home = ["--user-data-dir=" + str(tmp_path / "profile")]
    done = subprocess.run([*command, *home, "--dump-dom", page.as_uri()],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.stdout.count('class="node') == 4, done.stderr[-500:]
    assert "Variant 3: ok, 2.00" in done.stdout and "alert(1)" in done.stdout
    assert done.stdout.count("<script>alert") == 0


def test_dispatch_is_for_just_the_shapes_that_were_tuned(url: str) -> None:
    assert steps_for(url, KERNEL, DIMS, "cpu") == STEPS[2]
    assert steps_for(url, KERNEL, {"M": 8, "N": 65}, "cpu") is None
    assert steps_for(url, KERNEL, DIMS, "nvidia") is None
    other = replace(KERNEL, name="other")
    assert steps_for(url, other, DIMS, "cpu") is None
    assert table(Store(url), KERNEL, "cpu", "another") == []
    store = Store(url)
    store.finish_run(1, "done", {"node": 1, "speedup": 1.0})  # nothing faster was found
    assert steps_for(url, KERNEL, DIMS, "cpu") is None
    with pytest.raises(StoreError):
        steps_for("sqlite:////nowhere/t.db", KERNEL, DIMS, "cpu")


def test_kernels_without_dims_are_found_by_what_they_compute(url: str) -> None:
    here = replace(specialise(KERNEL, DIMS), name="k0")
    elsewhere = replace(specialise(KERNEL, {"M": 8, "N": 65}), name="k1")
    made = tuned(Module((here, elsewhere, KERNEL)), url, "cpu")
    assert made.items == (schedule(here, STEPS[2]), elsewhere, KERNEL)
    assert tuned(Module((here,)), url, "nvidia").items == (here,)


def test_pytorch_uses_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from kir.frontends.torch import dynamo

    lowered: list[Module] = []
    compile = dynamo.kir.compile

    def noted(module: Module, *rest: object, **options: object) -> object:
        lowered.append(module)
        return compile(module, *rest, **options)

    monkeypatch.setattr(dynamo.kir, "compile", noted)

    def triple(x: torch.Tensor) -> torch.Tensor:
        return x * 3.0

    x = torch.randn(8, 64)
    torch.compile(triple, backend="kir")(x)
    (spec,) = lowered.pop().kernels().values()
    made = f"sqlite:///{tmp_path}/torch.db"
    store = Store(made)
    text = format_module(Module((spec,)))
    steps = (*LOOPS, Step("bind", (_first_loop(spec), "grid")))
    found = derivation_text(spec.name, steps)
    run = store.add_run(RunRow(0, "f", spec.name, text, {}, "cpu", "native", found, 0, "done",
                               {}, {}, {"node": 1, "speedup": 2.0}))  # fmt: skip
    ir = kernel_hash(schedule(spec, steps))
    store.add_node(
        NodeRow(run=run, parents=(), derivation=found, ir_hash=ir, status="ok", fitness=2.0)
    )
    torch._dynamo.reset()
    y = torch.compile(triple, backend="kir", options={"store": made})(x)
    assert lowered.pop().kernels()[spec.name] == schedule(spec, steps)
    assert torch.equal(y, x * 3.0)


def _first_loop(spec: Kernel) -> str:
    loop = schedule(spec, LOOPS).body[0]
    assert isinstance(loop, Loop)
    return loop.axis.name


def test_the_commands_use_what_was_found(url: str, tmp_path: Path) -> None:
    from kir.agent.store import Store as Opened
    from kir.pipeline import Target

    store = Opened(url)
    with store.session(writes=True) as session:
        session.execute(sa.text("update kir_runs set arch = :chip"), {"chip": Target("cpu").chip})
    file = tmp_path / "k.kir"
    file.write_text(format_module(Module((KERNEL,))), encoding="utf-8")
    found = [
        CliRunner().invoke(app, ["run", str(file), "--shape", shape, "--store", url])
        for shape in ("M=8,N=64", "M=8,N=65")
    ]
    assert [f.exit_code for f in found] == [0, 0], found[0].output
    module, name = from_store(url, Module((KERNEL,)), KERNEL, DIMS, Target("cpu"), None)
    assert name is not None and module.schedules()[name].steps == STEPS[2]
    other = {**DIMS, "N": 65}
    assert from_store(url, Module((KERNEL,)), KERNEL, other, Target("cpu"), None)[1] is None


def test_a_dataset_has_what_is_fast_short_and_unlike(url: str) -> None:
    found = dataset(Store(url))
    lines = [json.loads(line) for line in found.lines.splitlines()]
    assert [r["speedup"] for r in lines] == [2.0, 1.5, 1.0]
    assert "tile j: 16" in lines[0]["ir"] and lines[0]["steps"][1]["rewrite"] == "split"
    assert found.summary.left_out == {"wrong": 1}
    assert "3 records of 4" in found.datasheet
    assert dataset(Store(url), Filter(steps=2)).summary.left_out["long"] == 1
    assert dataset(Store(url), Filter(each=1)).summary.kept == 1
    assert dataset(Store(url), Filter(fitness=1.8)).summary.left_out["slow"] == 2


def test_the_commands(url: str, tmp_path: Path) -> None:
    run = CliRunner()
    for command, out in (("report", "r.html"), ("export-dataset", "d.jsonl")):
        done = run.invoke(app, [command, url, "-o", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
        assert (tmp_path / out).stat().st_size > 100
    assert (tmp_path / "d.md").exists()
    lines = tmp_path / "s.jsonl"
    assert run.invoke(app, ["store", "export", url, "-o", str(lines)]).exit_code == 0
    again = f"sqlite:///{tmp_path}/again.db"
    done = run.invoke(app, ["store", "import", again, str(lines)])
    assert done.output == "1 runs, 4 variants\n"
    assert [n.fitness for n in Store(again).nodes(1)] == [1.0, 0.0, 2.0, 1.5]
    missing = run.invoke(app, ["store", "import", again, str(tmp_path / "none")])
    assert missing.exit_code != 0
