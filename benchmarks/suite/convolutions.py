"""Convolutions, of NCHW images unless the name says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.suite.case import Case


def _conv2d(stride: int, pad: int, groups: int = 1) -> Callable[..., Any]:
    def conv2d(x: Any, w: Any, bias: Any) -> Any:
        from torch.nn import functional

        return functional.conv2d(x, w, bias, stride=stride, padding=pad, groups=groups)

    return conv2d


def _depthwise(stride: int) -> Callable[..., Any]:
    def depthwise(x: Any, w: Any) -> Any:
        from torch.nn import functional

        return functional.conv2d(x, w[:, None], stride=stride, padding=1, groups=x.shape[1])

    return depthwise


def conv1d(x: Any, w: Any, bias: Any) -> Any:
    from torch.nn import functional

    return functional.conv1d(x, w, bias, padding=1)


def conv3d(x: Any, w: Any, bias: Any) -> Any:
    from torch.nn import functional

    return functional.conv3d(x, w, bias, padding=1)


def conv_transpose(x: Any, w: Any) -> Any:
    from torch.nn import functional

    return functional.conv_transpose2d(x, w, stride=2, padding=1)


def _image(
    label: str, c: int, o: int, size: int, taps: int, stride: int = 1, groups: int = 1,
    dtype: str = "f32",
) -> Case:  # fmt: skip
    pad = taps // 2
    out = (size + 2 * pad - taps) // stride + 1
    dims = {"N": 1, "C": c, "H": size, "W": size, "O": o, "R": taps, "S": taps,
            "stride": stride, "pad": pad, "groups": groups}  # fmt: skip
    flops = 2.0 * o * out * out * (c // groups) * taps * taps
    file = "conv2d" if dtype == "f32" else "conv2d_bf16"
    name = f"conv2d {dtype} {label} {c}x{size}x{size}" + (f" to {o}" if o != c else "")
    return Case(name, "conv", file, dims, _conv2d(stride, pad, groups), flops)


def _depth(c: int, size: int, stride: int, dtype: str = "f32") -> Case:
    out = (size - 1) // stride + 1
    dims = {"N": 1, "C": c, "H": size, "W": size, "R": 3, "S": 3, "stride": stride, "pad": 1}
    file = "depthwise_conv" if dtype == "f32" else "depthwise_conv_bf16"
    name = f"depthwise {dtype} {c}x{size}x{size}" + (f" /{stride}" if stride > 1 else "")
    return Case(name, "conv", file, dims, _depthwise(stride), 18.0 * c * out * out)


def _line(dtype: str) -> Case:
    n, c, length = 4, 256, 1024
    return Case(f"conv1d {dtype} {n}x{c}x{length}", "conv",
                "conv1d" if dtype == "f32" else "conv1d_bf16",
                {"N": n, "C": c, "L": length, "O": c, "R": 3}, conv1d,
                6.0 * n * c * c * length)  # fmt: skip


def _volume(dtype: str) -> Case:
    c, size = 32, 28
    return Case(f"conv3d {dtype} {c}x16x{size}x{size} to 64", "conv",
                "conv3d" if dtype == "f32" else "conv3d_bf16",
                {"N": 1, "C": c, "D": 16, "H": size, "W": size, "O": 64, "Q": 3, "R": 3, "S": 3},
                conv3d, 54.0 * c * 64 * 16 * size * size)  # fmt: skip


def _transposed(dtype: str) -> Case:
    c, o, size = 128, 64, 28
    return Case(f"conv_transpose {dtype} {c}x{size}x{size} to {o}", "conv",
                "conv_transpose" if dtype == "f32" else "conv_transpose_bf16",
                {"N": 1, "C": c, "H": size, "W": size, "O": o, "R": 4, "S": 4},
                conv_transpose, 32.0 * c * o * size * size)  # fmt: skip


CASES = (
    _image("3x3", 64, 64, 56, 3),
    _image("3x3", 128, 128, 28, 3),
    _image("3x3", 256, 256, 14, 3),
    _image("3x3", 512, 512, 7, 3),
    _image("1x1", 64, 256, 56, 1),
    _image("1x1", 128, 512, 28, 1),
    _image("1x1", 512, 512, 7, 1),
    _image("3x3 /2", 64, 128, 56, 3, stride=2),
    _image("grouped 3x3", 256, 256, 28, 3, groups=32),
    _image("7x7 /2", 3, 64, 224, 7, stride=2),
    _depth(64, 56, 1),
    _depth(256, 28, 2),
    _depth(512, 14, 1),
    _line("f32"),
    _volume("f32"),
    _transposed("f32"),
    _image("3x3", 64, 64, 56, 3, dtype="bf16"),
    _image("3x3", 256, 256, 14, 3, dtype="bf16"),
    _image("1x1", 128, 512, 28, 1, dtype="bf16"),
    _image("3x3 /2", 64, 128, 56, 3, stride=2, dtype="bf16"),
    _image("grouped 3x3", 256, 256, 28, 3, groups=32, dtype="bf16"),
    _image("7x7 /2", 3, 64, 224, 7, stride=2, dtype="bf16"),
    _depth(64, 56, 1, "bf16"),
    _line("bf16"),
    _volume("bf16"),
    _transposed("bf16"),
)
