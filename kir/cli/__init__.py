"""The command line: `main` builds the app, turns KirErrors into messages and exit codes."""

from __future__ import annotations

import json
import os
import sys
from types import TracebackType

import typer

from kir.cli import (
    bench,
    build,
    fuzz,
    importing,
    info,
    knowledge,
    rewrite,
    search,
    text,
    verify,
)
from kir.errors import KirError

app = typer.Typer(
    name="kir",
    help="KIR: write what a kernel computes, check it, lower it, run it, verify it, tune it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (text, rewrite, build, bench, verify, fuzz, search, knowledge, importing, info):
    module.register(app)


def main() -> None:
    """Entry point of the `kir` command. Exit codes: 0 good, 1 kernel or check failed, 2 usage."""
    if os.environ.get("KIR_DEBUG") != "1":
        sys.excepthook = _unexpected
    command = typer.main.get_command(app)  # app() itself would replace the excepthook
    try:
        command(prog_name="kir")
    except KirError as error:
        report(error)
        if os.environ.get("KIR_DEBUG") == "1":
            raise
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output is gone; nothing is left to say
        sys.stderr.close()
        sys.exit(1)


def report(error: KirError) -> None:
    """Print an error to stderr: as text, or as JSON where the command was asked for JSON."""
    if "--json" in sys.argv:
        span = error.span
        record = {
            "error": type(error).__name__,
            "title": error.title,
            "message": error.message,
            "hint": error.hint,
            "file": error.source.name if error.source else None,
            "line": span.line if span else None,
            "column": span.column if span else None,
        }
        print(json.dumps(record), file=sys.stderr)
        return
    print(error.render(), file=sys.stderr)


def _unexpected(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    print(f"internal error: {kind.__name__}: {error}", file=sys.stderr)
    print("  = hint: this is a bug of KIR; KIR_DEBUG=1 shows where", file=sys.stderr)
