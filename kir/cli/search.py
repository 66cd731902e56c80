"""kir tune, replay: the search from the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kir.cli.common import (
    Arch,
    File,
    Json,
    KernelName,
    TargetName,
    Via,
    choose,
    complete_shape,
    emit_json,
    parse_shape,
    read_module,
    write_output,
)
from kir.errors import FileError, UsageError, VerificationError
from kir.ir import Kernel
from kir.syntax import format_kernel

if TYPE_CHECKING:
    from rich.live import Live

    from kir.agent.chat import Settings
    from kir.agent.search import Event
    from kir.agent.tune import Result

DEFAULT_DIM = 512
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def register(app: typer.Typer) -> None:
    app.command()(tune)
    app.command()(replay)
    app.command()(report)
    app.command("export-dataset")(export_dataset)
    store = typer.Typer(help="stores of searches as JSON lines", no_args_is_help=True)
    store.command("export")(export_store)
    store.command("import")(import_store)
    app.add_typer(store, name="store")


def parse_budget(text: str) -> float:
    """`30s`, `10m`, `1.5h` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"`{text}` is no budget", hint="write 30s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def tune(
    file: File,
    target: TargetName = "cpu",
    via: Via = None,
    arch: Arch = None,
    kernel: KernelName = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="dims, like M=4096,N=4096; give it again for more shapes"),
    ] = None,
    budget: Annotated[str, typer.Option(help="wall-clock time, like 30s or 10m")] = "60s",
    evaluations: Annotated[int | None, typer.Option(min=1, help="at most so many")] = None,
    store: Annotated[str, typer.Option(help="database URL")] = "sqlite:///kir-tune.db",
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the latest run")] = False,
    start: Annotated[str, typer.Option(help="begin at `default` or `loops`")] = "default",
    policy: Annotated[str, typer.Option(help="greedy, beam, mcts, evolutionary, random")] = "mcts",
    proposer: Annotated[str, typer.Option(help="rules, or openai: a language model")] = "rules",
    workers: Annotated[int, typer.Option(min=1, help="evaluations at a time")] = 1,
    executor: Annotated[str, typer.Option(help="local, or ray")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster")] = None,
    stall: Annotated[
        int | None, typer.Option(min=1, help="end after so many without a new best")
    ] = None,
    model: Annotated[str | None, typer.Option(help="that the proposer openai asks")] = None,
    base_url: Annotated[str | None, typer.Option(help="of the model's server")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="at most so many, in all")] = None,
    dollars: Annotated[float | None, typer.Option(min=0.0, help="at most so much, in all")] = None,
    prices: Annotated[
        str | None, typer.Option(help="dollars for a million tokens in and out, like 0.25,2")
    ] = None,
    learn: Annotated[
        Path | None, typer.Option(help="folder for a page on what was found, to be reviewed")
    ] = None,
    until: Annotated[float | None, typer.Option(help="end at so many times the default")] = None,
    as_json: Json = False,
) -> None:
    """Search for a faster schedule; print its derivation. Every variant tried is in the store.

    Of several shapes each gets its own; `kir lower --store` uses what was found for a shape.
    """
    from kir.agent.tune import tune_shapes as search

    seconds = parse_budget(budget)
    _, module = read_module(file)
    item = choose(module, kernel)
    if not isinstance(item, Kernel):
        names = ", ".join(module.kernels())
        raise UsageError("a search tunes one kernel, not a graph", hint=f"--kernel: {names}")
    shapes = [complete_shape(item, parse_shape(text), DEFAULT_DIM) for text in shape or [""]]
    asked = _model(model, base_url, tokens, dollars, prices) if proposer == "openai" else None
    display = None if as_json else _display(seconds)
    try:
        found = search(
            item, shapes, target, via=via, arch=arch, budget_s=seconds, evaluations=evaluations,
            store=store, seed=seed, resume=resume, start=start, policy=policy, proposer=proposer,
            workers=workers, executor=executor, address=address, stall=stall, fitness=until,
            model=asked, on_event=display.show if display else None,
        )  # fmt: skip
    finally:
        if display:
            display.close()
    if learn is not None:
        from kir.agent.learn import learn as write_page

        for one in found:
            page = write_page(store, item, one, learn)
            typer.echo(f"wrote {page}, for you to review", err=True)
    if as_json:
        emit_json([_record(one) for one in found] if len(shapes) > 1 else _record(found[0]))
        return
    for one in found:
        if len(shapes) > 1:
            typer.echo(f"# {_shape(one.dims)}")
        _print(one, store)
    if len(shapes) > 1:
        _table(found)


def _shape(dims: Mapping[str, int]) -> str:
    return ",".join(f"{name}={extent}" for name, extent in dims.items())


def _table(found: list[Result]) -> None:
    """What `kir lower --store` will use at each shape."""
    shapes = [_shape(one.dims) for one in found]
    width = max(map(len, shapes))
    typer.echo(f"\n{'shape':<{width}}  variant  over the default")
    for text, one in zip(shapes, found, strict=True):
        used = f"{one.node:7}" if one.speedup > 1 else "default"
        typer.echo(f"{text:<{width}}  {used}  {one.speedup:.2f}x")


def _model(
    model: str | None, base_url: str | None, tokens: int | None, dollars: float | None,
    prices: str | None,
) -> Settings:  # fmt: skip
    from kir.agent.chat import Settings

    given: dict[str, Any] = {
        "model": model, "base_url": base_url, "tokens": tokens, "dollars": dollars
    }  # fmt: skip
    if prices is not None:
        try:
            given["price_in"], given["price_out"] = (float(p) for p in prices.split(","))
        except ValueError:
            raise UsageError(f"`{prices}` is no pair of prices", hint="--prices 0.25,2") from None
    return Settings(**{k: v for k, v in given.items() if v is not None})


class _Display:
    """Progress: on a terminal a table that changes, in a pipe a line for each improvement."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(stderr=True, highlight=False)
        self.seconds, self.best = seconds, dict[str, float]()
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()

    def show(self, event: Event) -> None:
        best, shape = event.best.fitness if event.best else 0.0, _shape(event.shape)
        if self.live is not None:
            self.live.update(self._table(event, best))
        elif best > self.best.get(shape, 0.0):
            text = f"{event.evaluated} evaluated, best {best:.2f}x the default"
            print(f"{event.elapsed:6.1f} s  {text}{shape and f', {shape}'}", file=sys.stderr)
        self.best[shape] = max(self.best.get(shape, 0.0), best)

    def _table(self, event: Event, best: float) -> Any:
        from rich.table import Table

        verdicts = ", ".join(f"{n} {name}" for name, n in sorted(event.counts.items()))
        rate = event.evaluated / max(event.elapsed, 1e-9)
        rows = {
            "best": f"{best:.2f}x the default schedule"
            + (f", {event.best.seconds * 1e3:.3f} ms" if event.best and event.best.seconds else ""),
            "evaluated": f"{event.evaluated}, {rate:.2f} a second",
            "verdicts": verdicts,
            "time": f"{event.elapsed:.0f} of {self.seconds:.0f} s",
        }
        if event.shape:
            rows["shape"] = _shape(event.shape)
        if event.spent:
            rows["spent"] = ", ".join(f"{v:g} {k}" for k, v in event.spent.items())
        made = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            made.add_row(name, value)
        return made

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()


def _display(seconds: float) -> _Display:
    return _Display(seconds)


def _record(found: Result) -> dict[str, Any]:
    return {
        "run": found.run, "node": found.node, "derivation": found.derivation,
        "seconds": found.seconds, "baseline_seconds": found.baseline_seconds,
        "speedup": found.speedup, "spread": list(found.spread), "statuses": dict(found.statuses),
        "proposals": dict(found.proposals), "evaluations": found.evaluations,
        "elapsed": found.elapsed, "interrupted": found.interrupted, "spent": dict(found.spent),
        "modelled": found.modelled, "rungs": list(found.rungs),
    }  # fmt: skip


def _print(found: Result, store: str) -> None:
    statuses = ", ".join(f"{n} {name}" for name, n in found.statuses.items())
    typer.echo(found.derivation.rstrip())
    how = "modelled, not measured" if found.modelled else "re-timed on fresh inputs"
    typer.echo(
        f"\n{found.seconds * 1e3:.4g} ms, {found.speedup:.2f}x the default schedule's "
        f"{found.baseline_seconds * 1e3:.4g} ms ({how})"
    )
    typer.echo(f"verified: {'; '.join(found.rungs)}")
    typer.echo(f"{found.evaluations} evaluations in {found.elapsed:.0f} s: {statuses}")
    typer.echo(f"kir replay {store} {found.node}  # rebuilds and verifies it")
    if found.interrupted:
        typer.echo("interrupted: --resume goes on", err=True)


def replay(
    store: Annotated[str, typer.Argument(help="database URL", show_default=False)],
    node: Annotated[int, typer.Argument(help="the variant's id", show_default=False)],
    seed: Annotated[int, typer.Option(help="of the fresh inputs")] = 1,
    as_json: Json = False,
) -> None:
    """Rebuild a variant from its derivation, and verify and time it again."""
    from kir.agent.tune import replay as rebuild

    found = rebuild(store, node, seed=seed)
    verdict = found.verdict
    if as_json:
        emit_json({
            "node": found.node.id, "derivation": found.node.derivation,
            "ir": format_kernel(found.kernel), "status": verdict.status, "error": verdict.error,
            "seconds": verdict.seconds, "baseline_seconds": verdict.baseline_seconds,
        })  # fmt: skip
    else:
        typer.echo(found.node.derivation.rstrip() + "\n")
        typer.echo(format_kernel(found.kernel))
    if verdict.status != "ok":
        raise VerificationError(f"node {node} does not hold: {verdict.status}", hint=verdict.error)
    if not as_json and verdict.seconds and verdict.baseline_seconds:
        how = "modelled, not measured: " if "modelled" in verdict.report else ""
        typer.echo(
            f"verified; {how}{verdict.seconds * 1e3:.4g} ms, "
            f"{verdict.baseline_seconds / verdict.seconds:.2f}x the default schedule"
        )


StoreUrl = Annotated[str, typer.Argument(help="database URL", show_default=False)]
Out = Annotated[Path, typer.Option("-o", "--output", help="the file to write")]


def report(store: StoreUrl, output: Out = Path("report.html")) -> None:
    """Write the searches of a store as one page of HTML: graph, convergence, failures."""
    from kir.agent.report import report as page
    from kir.agent.store import Store

    database = Store(store, create=False)
    try:
        write_output(output, page(database))
    finally:
        database.close()
    typer.echo(f"wrote {output}")


def export_dataset(
    store: StoreUrl,
    output: Out = Path("dataset.jsonl"),
    fitness: Annotated[float, typer.Option(help="at least so many times the default")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="derivations no longer than this")] = 48,
    each: Annotated[int, typer.Option(min=1, help="at most so many of a search")] = 5,
) -> None:
    """Write (spec, steps, IR, speed) records to learn from, with a datasheet beside them."""
    from kir.agent.dataset import Filter, dataset
    from kir.agent.store import Store

    database = Store(store, create=False)
    try:
        found = dataset(database, Filter(fitness, steps, each))
    finally:
        database.close()
    write_output(output, found.lines)
    write_output(output.with_suffix(".md"), found.datasheet)
    typer.echo(f"wrote {found.summary.kept} of {found.summary.seen} variants to {output}")


def export_store(store: StoreUrl, output: Out = Path("store.jsonl")) -> None:
    """Write all runs, nodes and transcripts as JSON lines."""
    from kir.agent.store import Store
    from kir.agent.transfer import export

    database = Store(store, create=False)
    try:
        write_output(output, "".join(line + "\n" for line in export(database)))
    finally:
        database.close()


def import_store(
    store: StoreUrl, file: Annotated[Path, typer.Argument(show_default=False)]
) -> None:
    """Add the runs of JSON lines that `export` wrote to a store; it is made where there is none."""
    from kir.agent.store import Store
    from kir.agent.transfer import load

    database = Store(store)
    try:
        with opened(file) as lines:
            runs, nodes = load(database, lines)
    finally:
        database.close()
    typer.echo(f"{runs} runs, {nodes} variants")


@contextmanager
def opened(path: Path) -> Iterator[Iterator[str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            yield lines
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: {error}", hint="name a file that can be read") from None
