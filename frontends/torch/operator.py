"""A kernel in KIR's text as an operator of PyTorch: under torch.compile, and autograd where a
backward kernel is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import kir
from kir.errors import UsageError
from kir.frontends.torch.lower import KIR_DTYPES, as_array
from kir.ir import Kernel, Param
from kir.specialise import infer_dims, output_shapes
from kir.syntax import load, parse

TORCH_DTYPES = {ours: theirs for theirs, ours in KIR_DTYPES.items()}


def load_op(
    source: str | Path,
    kernel: str | None = None,
    *,
    backward: str | Path | None = None,
    target: str = "cpu",
    threads: int = 0,
) -> Callable[..., Any]:
    """The kernel of a file (or its text) as a function of tensors, `torch.ops.kir.<its name>`.

    It takes the kernel's inputs in order and gives its outputs, contiguous. `backward` is a kernel
    whose inputs are named like inputs or outputs of the first, or `d_<output>`, the gradient of
    one; its outputs are `d_<input>`. An input without one has no gradient.

    UsageError where the file has several kernels and none is named, or a name fits nothing.
    """
    forward = _kernel(source, kernel)
    run = _runner(forward, source, kernel, target, threads)
    schema = _schema(forward)

    def fake(*tensors: torch.Tensor) -> Any:
        shapes = _shapes(forward, tensors)
        made = [tensors[0].new_empty(shapes[p.name], dtype=_dtype(p)) if tensors else torch.empty(
            shapes[p.name], dtype=_dtype(p)) for p in forward.outputs]  # fmt: skip
        return made[0] if len(made) == 1 else tuple(made)

    made = torch.library.custom_op(
        f"kir::{forward.name}", run, mutates_args=(), schema=schema, device_types="cpu"
    )
    made.register_fake(fake)
    if backward is not None:
        _register_backward(made, forward, _kernel(backward, None), backward, target, threads)
    result: Callable[..., Any] = made
    return result


def _kernel(source: str | Path, name: str | None) -> Kernel:
    text = str(source)
    module = parse(text) if "{" in text else parse(load(text))
    kernels = module.kernels()
    if name is None and len(kernels) != 1:
        raise UsageError(f"there are {len(kernels)} kernels", hint="name one: "
                         + ", ".join(kernels))  # fmt: skip
    if name is not None and name not in kernels:
        raise UsageError(f"there is no kernel `{name}`", hint="there are: " + ", ".join(kernels))
    return kernels[name] if name is not None else next(iter(kernels.values()))


def _dtype(param: Param) -> torch.dtype:
    found = TORCH_DTYPES.get(param.type)
    if found is None:
        raise UsageError(f"PyTorch has no dtype like {param.type} of `{param.name}`",
                         hint="give the kernel one that it has")  # fmt: skip
    return found


def _schema(kernel: Kernel) -> str:
    inputs = ", ".join(f"Tensor {p.name}" for p in kernel.inputs)
    outputs = ", ".join("Tensor" for _ in kernel.outputs)
    return f"({inputs}) -> " + (outputs if len(kernel.outputs) == 1 else f"({outputs})")


def _shapes(kernel: Kernel, tensors: Sequence[torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Of the outputs, from those of the inputs."""
    given = {
        p.name: tuple(int(n) for n in t.shape) for p, t in zip(kernel.inputs, tensors, strict=True)
    }
    return output_shapes(kernel, infer_dims(kernel, given))


def _runner(
    kernel: Kernel, source: str | Path, name: str | None, target: str, threads: int
) -> Callable[..., Any]:
    function = kir.compile(source, name, target=target, threads=threads)
    for param in kernel.params:
        _dtype(param)

    def run(*tensors: torch.Tensor) -> Any:
        for param, tensor in zip(kernel.inputs, tensors, strict=True):
            if tensor.dtype != _dtype(param):
                raise UsageError(f"`{param.name}` is {tensor.dtype}, and the kernel takes "
                                 f"{param.type}", hint="convert it: `.to(...)`")  # fmt: skip
        shapes = _shapes(kernel, tensors)
        results = [torch.empty(shapes[p.name], dtype=_dtype(p)) for p in kernel.outputs]
        function(
            *(as_array(t.detach().contiguous()) for t in tensors),
            out=[as_array(r) for r in results],
        )
        return results[0] if len(results) == 1 else tuple(results)

    return run


def _register_backward(
    made: Any, forward: Kernel, kernel: Kernel, source: str | Path, target: str, threads: int
) -> None:
    inputs, outputs = [p.name for p in forward.inputs], [p.name for p in forward.outputs]
    known = {*inputs, *outputs, *(f"d_{n}" for n in outputs)}
    for name in (p.name for p in kernel.inputs):
        if name not in known:
            raise UsageError(f"the backward kernel takes `{name}`, which is neither input nor "
                             "output", hint="it may take: " + ", ".join(sorted(known)))  # fmt: skip
    for name in (p.name for p in kernel.outputs):
        if name.removeprefix("d_") not in inputs or not name.startswith("d_"):
            raise UsageError(f"the backward kernel gives `{name}`, no gradient of an input",
                             hint="name it d_<input>: " + ", ".join(inputs))  # fmt: skip
    inner = torch.library.custom_op(
        f"kir::{forward.name}_backward", _runner(kernel, source, None, target, threads),
        mutates_args=(), schema=_schema(kernel), device_types="cpu",
    )  # fmt: skip

    def fake(*tensors: torch.Tensor) -> Any:
        shapes = _shapes(kernel, tensors)
        found = [tensors[0].new_empty(shapes[p.name], dtype=_dtype(p)) for p in kernel.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    inner.register_fake(fake)
    gradients = [p.name for p in kernel.outputs]

    def keep(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs, *(output if isinstance(output, tuple) else (output,)))

    def back(ctx: Any, *grads: Any) -> Any:
        values = dict(zip([*inputs, *outputs], ctx.saved_tensors, strict=True))
        for name, gradient in zip(outputs, grads, strict=True):
            values[f"d_{name}"] = torch.zeros_like(values[name]) if gradient is None else gradient
        found = inner(*(values[p.name] for p in kernel.inputs))
        listed = dict(zip(gradients, found if isinstance(found, tuple) else (found,), strict=True))
        return tuple(listed.get(f"d_{name}") for name in inputs)

    made.register_autograd(back, setup_context=keep)
