"""Every failure KIR reports, one class each, and how a failure is shown.

An error says what is wrong, underlines the place, and says how to mend it. The place is a span of
the source text, or a node of the current IR: then the IR is printed as it is *now*, after the
rewrites, and the node underlined in that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kir.ir import Graph, Kernel, Node, Span


@dataclass(frozen=True)
class Source:
    """A text and the name to show for it."""

    name: str
    text: str


class KirError(Exception):
    """Base of all; `exit_code` is 2 for wrong input, 1 where a kernel or a check failed."""

    exit_code = 2
    title = "error"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        span: Span | None = None,
        source: Source | None = None,
        kernel: Kernel | Graph | None = None,
        node: Node | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.span = span
        self.source = source
        self.kernel = kernel
        self.node = node

    def at(
        self,
        *,
        span: Span | None = None,
        source: Source | None = None,
        kernel: Kernel | Graph | None = None,
        node: Node | None = None,
        hint: str | None = None,
    ) -> KirError:
        """Fill in what is not known yet about the place; the first (innermost) caller wins."""
        self.span = self.span or span
        self.source = self.source or source
        self.kernel = self.kernel or kernel
        self.node = self.node or node
        self.hint = self.hint or hint
        return self

    def render(self) -> str:
        """The message with its place underlined and its hint, as the command line prints it."""
        from kir.syntax.show import excerpt

        return excerpt(self)

    def __str__(self) -> str:
        return self.render()


class ParseError(KirError):
    title = "syntax error"


class LimitError(KirError):
    title = "too large"


class UnknownNameError(KirError):
    title = "unknown name"


class DuplicateNameError(KirError):
    title = "name already defined"


class DTypeError(KirError):
    title = "dtype error"


class ShapeError(KirError):
    title = "shape error"


class ScopeError(KirError):
    """A name is known but may not be used so here: storing to an input, reading too early."""

    title = "misused name"


class BoundsError(KirError):
    exit_code = 1  # the kernel is at fault, not the way it was given
    title = "out of bounds"


class RaceError(KirError):
    """A `grid` whose iterations depend on one another."""

    exit_code = 1
    title = "race"


class PromiseError(KirError):
    """A `tile` or `unroll` that breaks its promise: carried dependence, extent not constant."""

    exit_code = 1
    title = "broken promise"


class UnwrittenError(KirError):
    exit_code = 1
    title = "output not written"


class ConstraintError(KirError):
    """A dim's value breaks a `where` constraint, is missing, negative or contradicts an input."""

    title = "shape constraint"


class InputDataError(KirError):
    """A tensor given to a run has the wrong dtype, shape or an index out of range."""

    title = "bad input data"


class FileError(KirError):
    title = "cannot read"


class OutputError(KirError):
    title = "cannot write"


class UsageError(KirError):
    title = "usage"


class RewriteError(KirError):
    """A rewrite's precondition does not hold."""

    title = "rewrite refused"


class ScheduleError(KirError):
    """A step names no rewrite, has wrong arguments, or no longer applies."""

    title = "bad schedule"


class UnsupportedError(KirError):
    """A backend cannot express a construct, dtype or op."""

    title = "not supported by the target"


class MissingExtraError(KirError):
    """An optional package is not installed."""

    title = "missing extra"


class MissingHardwareError(KirError):
    title = "hardware not present"


class CompileError(KirError):
    """A backend's own compiler refused or crashed on what KIR generated."""

    exit_code = 1
    title = "compiler failed"


class EvaluationError(KirError):
    """A run-time check failed: an index read from a tensor is out of range."""

    exit_code = 1
    title = "run-time check failed"


class VerificationError(KirError):
    exit_code = 1
    title = "verification failed"


class StoreError(KirError):
    title = "store"
