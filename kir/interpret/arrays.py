"""Input arrays: checked against what a kernel or graph declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kir.errors import InputDataError
from kir.ir import Graph, Kernel, Param

Arrays = Mapping[str, np.ndarray[Any, Any]]


def check_inputs(kernel: Kernel | Graph, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs as contiguous arrays; InputDataError on a wrong name or dtype."""
    declared = {p.name: p for p in kernel.inputs}
    for name in inputs:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise InputDataError(
                f"`{kernel.name}` has no input `{name}`",
                hint=f"its inputs are: {known}",
                kernel=kernel,
            )
    return {p.name: _checked(kernel, p, inputs) for p in kernel.inputs}


def _checked(kernel: Kernel | Graph, p: Param, inputs: Arrays) -> np.ndarray[Any, Any]:
    if p.name not in inputs:
        raise InputDataError(f"no array for the input `{p.name}`", kernel=kernel, node=p)
    array = np.asarray(inputs[p.name])
    if array.dtype != p.type.numpy:
        raise InputDataError(
            f"`{p.name}` holds {array.dtype}, but {p.type} is declared",
            hint=f"convert it: {p.name}.astype({str(p.type.numpy)!r})",
            kernel=kernel,
            node=p,
        )
    return np.ascontiguousarray(array).reshape(array.shape)
