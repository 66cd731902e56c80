"""What the commands share: their common options, reading modules, shapes, writing files."""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kir.errors import (
    ConstraintError,
    InputDataError,
    OutputError,
    ScheduleError,
    Source,
    UsageError,
)
from kir.ir import Graph, Kernel, Module, Schedule
from kir.syntax import load, parse

if TYPE_CHECKING:
    from kir.pipeline import Target

File = Annotated[Path, typer.Argument(help="a .kir file", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
KernelName = Annotated[
    str | None, typer.Option("--kernel", help="which kernel or graph, where the file has several")
]
Shape = Annotated[str | None, typer.Option("--shape", help="dims, like M=4096,N=4096")]
TargetName = Annotated[str, typer.Option("--target", help="cpu, nvidia, amd, accel")]
Via = Annotated[str | None, typer.Option("--via", help="the road: triton or cute for nvidia")]
Arch = Annotated[str | None, typer.Option("--arch", help="the chip, like sm_90 or gfx942")]
ScheduleName = Annotated[
    str | None,
    typer.Option("--schedule", help="a schedule's name or file, or `none`; else the default"),
]

StoreOption = Annotated[
    str | None, typer.Option("--store", help="of searches: use what was found for these dims")
]
FOUND = "found_by_search"
"""What the schedule that a store gave is called."""


def from_store(
    store: str | None,
    module: Module,
    item: Kernel | Graph,
    dims: Mapping[str, int],
    target: Target,
    schedule: str | None,
) -> tuple[Module, str | None]:
    """The module with the derivation that a store holds for a kernel at just these dims, and its
    name; both as they were where it holds none, or a schedule was asked for by name."""
    if store is None or schedule is not None or not isinstance(item, Kernel):
        return module, schedule
    from kir.agent.dispatch import steps_for

    steps = steps_for(store, item, dims, target.name, target.chip)
    if steps is None:
        return module, schedule
    return Module((*module.items, Schedule(FOUND, item.name, steps))), FOUND


def read_module(path: Path) -> tuple[Source, Module]:
    source = load(path)
    return source, parse(source)


def choose(module: Module, name: str | None) -> Kernel | Graph:
    """The kernel or graph asked for; without a name the only one, or the only graph."""
    items: dict[str, Kernel | Graph] = {**module.kernels(), **module.graphs()}
    if name is not None:
        if name not in items:
            near = difflib.get_close_matches(name, items, 2) or list(items)
            raise UsageError(f"there is no kernel `{name}`", hint="there is: " + ", ".join(near))
        return items[name]
    if not items:
        raise UsageError("the file holds no kernel", hint="write one: docs/language.md")
    graphs = module.graphs()
    if len(items) == 1 or len(graphs) == 1:
        return next(iter((graphs or items).values()))
    raise UsageError("the file holds several kernels", hint=f"--kernel {' or '.join(items)}")


def parse_shape(text: str | None) -> dict[str, int]:
    """`M=4,N=8` to {"M": 4, "N": 8}; UsageError on anything else."""
    dims: dict[str, int] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(-?\d{1,18})\s*", part)
        if match is None:
            raise UsageError(f"`{part}` is no dim", hint="write --shape M=4096,N=4096")
        if match[1] in dims:
            raise UsageError(f"dim `{match[1]}` is given twice")
        dims[match[1]] = int(match[2])
    return dims


def complete_shape(item: Kernel | Graph, dims: Mapping[str, int], default: int) -> dict[str, int]:
    """Dims not given take `default` (parameters keep theirs), so that a first try needs none."""
    missing = {d.name: default for d in item.dims if d.default is None and d.name not in dims}
    return {**missing, **dims}


def write_output(path: Path, content: str | bytes) -> None:
    """Write whole or not at all: to a temporary file beside it, then rename."""
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        hint = "choose a folder that exists and that you may write to"
        raise OutputError(f"{path}: {error.strerror}", hint=hint) from None


@contextmanager
def locating(source: Source, schedule: str | None = None) -> Iterator[None]:
    """Say in which text an error's place is: the kernel's file, or the schedule's own."""
    try:
        yield
    except ScheduleError as error:
        own = schedule is not None and Path(schedule).is_file()
        raise error.at(source=load(schedule) if own and schedule else source) from None
    except (ConstraintError, InputDataError) as error:
        raise error.at(source=source) from None


def emit_json(record: Any) -> None:
    typer.echo(json.dumps(record, indent=2))


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """A plain table: coloured on a terminal, bare text in a pipe."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    shown = Table(*header, box=SIMPLE)
    for row in rows:
        shown.add_row(*map(str, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200, no_color=True)
    console.print(shown)
