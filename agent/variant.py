"""A variant is (spec, dims, derivation): from its texts to IR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kir.errors import KirError, ScheduleError
from kir.ir import Kernel, Module, Schedule, Step
from kir.specialise import specialise
from kir.syntax import format_module, parse

if TYPE_CHECKING:
    from kir.agent.evaluate import Problem


def specialised(problem: Problem) -> Kernel:
    """The problem's spec with its dims as constants."""
    spec = parse(problem.source, "<store>").kernels().get(problem.kernel)
    if spec is None:
        raise KirError(f"the module holds no kernel `{problem.kernel}`")
    return specialise(spec, problem.dims)


def parse_derivation(text: str) -> tuple[Step, ...]:
    """The steps of the one schedule in `text`; ScheduleError where there is not just one."""
    items = parse(text, "<derivation>").items
    if len(items) == 1 and isinstance(items[0], Schedule):
        return items[0].steps
    raise ScheduleError("a derivation is one `schedule name of kernel { ... }`")


def derivation_text(kernel: str, steps: tuple[Step, ...]) -> str:
    """`schedule tuned of kernel { steps }`."""
    return format_module(Module((Schedule("tuned", kernel, steps),)))
