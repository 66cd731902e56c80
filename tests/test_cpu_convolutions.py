"""Convolutions and poolings on the cpu by its default schedule, against NumPy in float64 within
the bound of a sum in any order: (terms + 3) * eps * sum |x| |w|."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kir.backends.cpu import BACKEND
from kir.ir import Buffer, Loop, Read, Store, walk
from kir.pipeline import Target, choose_steps, lower, schedule
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.windows import blocks, cycles
from kir.specialise import specialise
from kir.syntax import load, parse

ROOT = Path(__file__).resolve().parent.parent
Array = np.ndarray[Any, Any]
EPS = {"f32": 2.0**-23, "bf16": 2.0**-8}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIR_CACHE_DIR", "")


def kernel_of(name: str) -> Any:
    """The spec of an example, or of one of the suite's."""
    for folder in (ROOT / "examples", ROOT / "benchmarks" / "suite"):
        if (folder / f"{name}.kir").exists():
            return next(iter(parse(load(folder / f"{name}.kir")).kernels().values()))
    raise KeyError(name)


def run(name: str, dims: Mapping[str, int], arrays: dict[str, Array]) -> list[Array]:
    """The output by one thread and by two; dims constant."""
    kernel = specialise(kernel_of(name), dims)
    target = Target("cpu")
    artifact = lower(kernel, target, choose_steps(kernel, target))
    (output,) = [p.name for p in kernel.outputs]
    return [BACKEND.with_threads(artifact, threads)(arrays)[output] for threads in (1, 2)]


def normal(*shape: int, seed: int, dtype: str = "f32") -> Array:
    made = np.random.default_rng(seed).standard_normal(shape)
    return made.astype(np.float32 if dtype == "f32" else ml_dtypes.bfloat16)


def correlate(
    x: Array, w: Array, stride: int = 1, pad: int = 0, dilation: int = 1, groups: int = 1
) -> Array:
    """Cross-correlation of [N, C, space...] with [O, C // groups, taps...], in float64."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    space = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *[(pad, pad)] * space])
    taps = w.shape[2:]
    out = [(n - dilation * (t - 1) - 1) // stride + 1 for n, t in zip(x.shape[2:], taps)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    rows, columns = w.shape[0] // groups, w.shape[1]
    for tap in np.ndindex(*taps):
        window = tuple(
            slice(t * dilation, t * dilation + (n - 1) * stride + 1, stride)
            for t, n in zip(tap, out)
        )
        part = x[(slice(None), slice(None), *window)]
        for g in range(groups):
            mine = w[(slice(g * rows, (g + 1) * rows), slice(None), *tap)]
            inputs = part[:, g * columns : (g + 1) * columns]
            y[:, g * rows : (g + 1) * rows] += np.einsum("nc...,oc->no...", inputs, mine)
    return y


def transposed(x: Array, w: Array, stride: int, pad: int) -> Array:
    """Transposed convolution of [N, C, H, W] with [C, O, R, S], in float64."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    (n, _, height, width), (_, o, taps, more) = x.shape, w.shape
    y = np.zeros((n, o, (height - 1) * stride + taps, (width - 1) * stride + more))
    for r in range(taps):
        for s in range(more):
            ends = r + (height - 1) * stride + 1, s + (width - 1) * stride + 1
            part = np.einsum("nchw,co->nohw", x, w[:, :, r, s])
            y[:, :, r : ends[0] : stride, s : ends[1] : stride] += part
    return y[:, :, pad : y.shape[2] - pad, pad : y.shape[3] - pad]


def near(got: list[Array], want: Array, scale: Array, terms: int, dtype: str = "f32") -> None:
    """Within the bound, and equal for one thread and two; `scale` is the sum of magnitudes."""
    bound = (terms + 3) * EPS["f32"] * scale
    if dtype != "f32":
        bound = bound + EPS[dtype] * np.abs(want)
    for y in got:
        assert y.shape == want.shape
        assert np.all(np.abs(y.astype(np.float64) - want) <= bound)
    np.testing.assert_array_equal(got[0], got[1])


def check_conv2d(
    shape: tuple[int, int, int, int], filters: tuple[int, int, int], dtype: str = "f32",
    **options: int,
) -> None:  # fmt: skip
    (n, c, h, w), (o, r, s) = shape, filters
    x = normal(n, c, h, w, seed=1, dtype=dtype)
    weights = normal(o, c // options.get("groups", 1), r, s, seed=2, dtype=dtype)
    bias = normal(o, seed=3, dtype=dtype)
    dims = {"N": n, "C": c, "H": h, "W": w, "O": o, "R": r, "S": s, **options}
    name = "conv2d" if dtype == "f32" else "conv2d_bf16"
    got = run(name, dims, {"x": x, "w": weights, "bias": bias})
    more = bias.astype(np.float64)[:, None, None]
    scale = correlate(np.abs(x), np.abs(weights), **options) + np.abs(more)
    terms = c // options.get("groups", 1) * r * s + 1
    near(got, correlate(x, weights, **options) + more, scale, terms, dtype)


@pytest.mark.parametrize(
    "shape, filters, options",
    [
        ((1, 16, 14, 14), (32, 3, 3), {"pad": 1}),
        ((2, 5, 9, 23), (7, 3, 3), {"pad": 1}),
        ((1, 3, 17, 19), (13, 7, 7), {"pad": 3, "stride": 2}),
        ((2, 4, 16, 11), (6, 3, 3), {"pad": 1, "stride": 2}),
        ((1, 4, 13, 29), (8, 3, 3), {"pad": 1, "stride": 3}),
        ((1, 3, 21, 40), (5, 3, 3), {"stride": 5}),
        ((1, 8, 15, 15), (9, 3, 3), {"pad": 2, "dilation": 2}),
        ((1, 8, 12, 31), (4, 3, 3), {"pad": 2, "dilation": 2, "stride": 2}),
        ((2, 12, 8, 8), (18, 3, 3), {"pad": 1, "groups": 3}),
        ((1, 8, 10, 10), (8, 3, 3), {"pad": 1, "groups": 8}),
        ((1, 32, 7, 7), (64, 1, 1), {}),
        ((2, 6, 9, 9), (10, 1, 1), {"stride": 2}),
        ((1, 6, 5, 5), (10, 1, 1), {"pad": 1}),
        ((1, 4, 6, 33), (3, 1, 5), {"pad": 2}),
        ((1, 4, 33, 6), (3, 5, 1), {"pad": 2}),
        ((1, 1, 3, 3), (1, 3, 3), {}),
        ((3, 1, 1, 1), (1, 1, 1), {}),
        ((1, 2, 1, 17), (12, 1, 3), {"pad": 1}),
        ((0, 4, 8, 8), (4, 3, 3), {"pad": 1}),
        ((2, 4, 8, 8), (0, 3, 3), {"pad": 1}),
        ((2, 0, 8, 8), (4, 3, 3), {"pad": 1}),
    ],
)
def test_conv2d(
    shape: tuple[int, int, int, int], filters: tuple[int, int, int], options: dict[str, int]
) -> None:
    check_conv2d(shape, filters, **options)


@pytest.mark.parametrize(
    "shape, filters, options",
    [
        ((1, 8, 14, 14), (12, 3, 3), {"pad": 1}),
        ((2, 3, 15, 18), (7, 3, 3), {"pad": 1, "stride": 2}),
        ((1, 8, 9, 9), (8, 3, 3), {"pad": 1, "groups": 2}),
        ((1, 16, 7, 7), (10, 1, 1), {}),
    ],
)
def test_conv2d_of_bf16(
    shape: tuple[int, int, int, int], filters: tuple[int, int, int], options: dict[str, int]
) -> None:
    check_conv2d(shape, filters, "bf16", **options)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_conv2d_of_any_shape(data: st.DataObject) -> None:
    def whole(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    options = {"stride": whole(1, 4), "pad": whole(0, 3), "dilation": whole(1, 3)}
    r, s = whole(1, 4), whole(1, 4)
    high, wide = options["dilation"] * (r - 1) + 1, options["dilation"] * (s - 1) + 1
    shape = (whole(1, 2), groups * whole(1, 5), whole(high, high + 12), whole(wide, wide + 30))
    check_conv2d(shape, (groups * whole(1, 9), r, s), groups=groups, **options)


def test_dims_may_stay_unknown() -> None:
    kernel = specialise(kernel_of("conv2d"), {"stride": 2, "pad": 1})
    target = Target("cpu")
    artifact = lower(kernel, target, choose_steps(kernel, target))
    for n, c, h, w, o in ((2, 3, 9, 12, 5), (1, 1, 3, 3, 1), (0, 2, 5, 5, 3)):
        x, weights = normal(n, c, h, w, seed=1), normal(o, c, 3, 3, seed=2)
        arrays = {"x": x, "w": weights, "bias": np.zeros(o, np.float32)}
        scale = correlate(np.abs(x), np.abs(weights), 2, 1)
        got = [BACKEND.with_threads(artifact, t)(arrays)["y"] for t in (1, 2)]
        near(got, correlate(x, weights, 2, 1), scale, 9 * c)


@pytest.mark.parametrize(
    "n, c, length, o, taps, stride, pad",
    [
        (2, 6, 50, 9, 3, 1, 1),
        (1, 4, 33, 6, 5, 2, 2),
        (3, 1, 7, 1, 1, 1, 0),
        (1, 3, 300, 2, 9, 3, 4),
    ],
)
def test_conv1d(n: int, c: int, length: int, o: int, taps: int, stride: int, pad: int) -> None:
    x, w, bias = normal(n, c, length, seed=1), normal(o, c, taps, seed=2), normal(o, seed=3)
    dims = {"N": n, "C": c, "L": length, "O": o, "R": taps, "stride": stride, "pad": pad}
    got = run("conv1d", dims, {"x": x, "w": w, "bias": bias})
    scale = correlate(np.abs(x), np.abs(w), stride, pad) + np.abs(bias)[:, None]
    near(got, correlate(x, w, stride, pad) + bias[:, None], scale, c * taps + 1)


@pytest.mark.parametrize("c, o, space, taps", [(3, 7, (5, 6, 11), 3), (2, 1, (2, 1, 20), 1)])
def test_conv3d(c: int, o: int, space: tuple[int, int, int], taps: int) -> None:
    x, w = normal(1, c, *space, seed=1), normal(o, c, taps, taps, taps, seed=2)
    bias, pad = normal(o, seed=3), taps // 2
    dims = dict(zip("NCDHWOQRS", (1, c, *space, o, taps, taps, taps), strict=True)) | {"pad": pad}
    got = run("conv3d", dims, {"x": x, "w": w, "bias": bias})
    more = bias.astype(np.float64)[:, None, None, None]
    scale = correlate(np.abs(x), np.abs(w), 1, pad) + np.abs(more)
    near(got, correlate(x, w, 1, pad) + more, scale, c * taps**3 + 1)


@pytest.mark.parametrize(
    "n, c, h, w, o, taps, stride, pad",
    [
        (1, 8, 7, 9, 6, 4, 2, 1),
        (2, 5, 6, 5, 7, 3, 2, 1),
        (1, 3, 5, 20, 2, 5, 3, 2),
        (1, 4, 6, 6, 3, 3, 1, 1),
        (1, 2, 4, 4, 3, 2, 2, 0),
        (1, 3, 4, 9, 2, 2, 3, 0),
        (1, 1, 1, 1, 1, 4, 2, 1),
        (0, 4, 5, 5, 3, 4, 2, 1),
    ],
)
def test_conv_transpose(
    n: int, c: int, h: int, w: int, o: int, taps: int, stride: int, pad: int
) -> None:
    check_transposed(n, c, h, w, o, taps, stride, pad)


@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 2), c=st.integers(1, 4), h=st.integers(1, 9), w=st.integers(1, 20),
    o=st.integers(1, 14), taps=st.integers(1, 5), stride=st.integers(1, 4),
)  # fmt: skip
def test_conv_transpose_of_any_shape(
    n: int, c: int, h: int, w: int, o: int, taps: int, stride: int
) -> None:
    check_transposed(n, c, h, w, o, taps, stride, (taps - 1) // 2)


def check_transposed(
    n: int, c: int, h: int, w: int, o: int, taps: int, stride: int, pad: int
) -> None:
    x, weights = normal(n, c, h, w, seed=1), normal(c, o, taps, taps, seed=2)
    dims = {"N": n, "C": c, "H": h, "W": w, "O": o, "R": taps, "S": taps}
    got = run("conv_transpose", {**dims, "stride": stride, "pad": pad}, {"x": x, "w": weights})
    scale = transposed(np.abs(x), np.abs(weights), stride, pad)
    near(got, transposed(x, weights, stride, pad), scale, c * taps * taps)


@pytest.mark.parametrize(
    "dtype, n, c, h, w, stride",
    [
        ("f32", 2, 5, 14, 14, 1),
        ("f32", 1, 3, 9, 30, 2),
        ("bf16", 1, 4, 8, 17, 1),
        ("f32", 1, 1, 1, 1, 1),
    ],
)
def test_depthwise(dtype: str, n: int, c: int, h: int, w: int, stride: int) -> None:
    x, weights = normal(n, c, h, w, seed=1, dtype=dtype), normal(c, 3, 3, seed=2, dtype=dtype)
    dims = {"N": n, "C": c, "H": h, "W": w, "R": 3, "S": 3, "stride": stride}
    got = run("depthwise_conv" + ("_bf16" if dtype == "bf16" else ""), dims,
              {"x": x, "w": weights})  # fmt: skip
    scale = correlate(np.abs(x), np.abs(weights)[:, None], stride, 1, 1, c)
    near(got, correlate(x, weights[:, None], stride, 1, 1, c), scale, 9, dtype)


POOLS = [
    (1, 3, 12, 12, 2, 2, 0),
    (2, 3, 13, 35, 3, 2, 1),
    (1, 2, 9, 9, 3, 1, 1),
    (1, 2, 10, 41, 2, 3, 0),
    (1, 1, 64, 7, 5, 4, 2),
    (1, 2, 6, 70, 1, 1, 0),
    (0, 2, 6, 6, 2, 2, 0),
]


@pytest.mark.parametrize("n, c, h, w, size, stride, pad", POOLS)
def test_avg_pool(n: int, c: int, h: int, w: int, size: int, stride: int, pad: int) -> None:
    x, ones = normal(n, c, h, w, seed=1), np.ones((c, 1, size, size))
    dims = {"N": n, "C": c, "H": h, "W": w, "R": size, "S": size, "stride": stride, "pad": pad}
    got = run("avg_pool", dims, {"x": x})
    scale = correlate(np.abs(x), ones, stride, pad, 1, c) / size**2
    near(got, correlate(x, ones, stride, pad, 1, c) / size**2, scale, size**2)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("n, c, h, w, size, stride, pad", POOLS)
def test_max_pool(
    dtype: str, n: int, c: int, h: int, w: int, size: int, stride: int, pad: int
) -> None:
    x = normal(n, c, h, w, seed=1, dtype=dtype)
    if x.size:
        x[0, 0, h // 2, w // 2] = np.nan
    dims = {"N": n, "C": c, "H": h, "W": w, "R": size, "S": size, "stride": stride, "pad": pad}
    got = run("max_pool" + ("_bf16" if dtype == "bf16" else ""), dims, {"x": x})
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (pad, pad), (pad, pad)],
                    constant_values=-np.inf)  # fmt: skip
    views = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    want = views[:, :, ::stride, ::stride].max(axis=(4, 5))
    for y in got:
        np.testing.assert_array_equal(y.astype(np.float64), want)


# --- the schedule itself


@pytest.mark.parametrize(
    "name, dims",
    [
        ("conv2d", {"C": 16, "H": 28, "W": 28, "O": 24, "R": 3, "S": 3, "pad": 1}),
        ("conv2d", {"C": 16, "H": 28, "W": 28, "O": 20, "R": 3, "S": 3, "pad": 1, "stride": 2}),
        ("depthwise_conv", {"C": 16, "H": 30, "W": 30, "R": 3, "S": 3}),
        ("max_pool", {"C": 4, "H": 28, "W": 28}),
        ("conv_transpose", {"C": 16, "H": 28, "W": 28, "O": 16, "R": 4, "S": 4}),
    ],
)
def test_padding_is_paid_while_staging(name: str, dims: dict[str, int]) -> None:
    """Where results accumulate, no loop has a mask and no read a fill."""
    kernel = specialise(kernel_of(name), {"N": 1, **dims})
    target = Target("cpu")
    made = schedule(kernel, choose_steps(kernel, target))
    buffers = {n.name for n in walk(made) if isinstance(n, Buffer) and n.space == "reg"}
    inner = [
        loop
        for loop in walk(made)
        if isinstance(loop, Loop)
        and loop.kind == "tile"
        and any(isinstance(s, Store) and s.target in buffers for s in walk(loop))
    ]
    assert inner
    for loop in inner:
        assert not loop.where
        assert all(n.fill is None for n in walk(loop) if isinstance(n, Read))


@pytest.mark.parametrize("bits, registers", [(128, 16), (256, 16), (512, 32)])
def test_blocks_fit_the_registers(bits: int, registers: int) -> None:
    chip = Chip(vector_bits=bits, registers=registers)
    for b in blocks(chip):
        vectors = b.lines * b.vectors
        assert b.rows * vectors + vectors + 1 <= registers
    best = min(blocks(chip), key=lambda b: cycles(b, 512, 56, 56, chip))
    assert best.rows * best.lines * best.vectors >= registers // 2


@pytest.mark.parametrize(("size", "packed"), [(28, True), (5, False)])
def test_narrow_weights_are_converted_once_where_they_serve_often(size: int, packed: bool) -> None:
    dims = {"N": 1, "C": 16, "H": size, "W": size, "O": 13, "R": 3, "S": 3, "stride": 1, "pad": 1}
    spec = kernel_of("conv2d_bf16")
    kernel = specialise(spec, {d.name: dims[d.name] for d in spec.dims if d.name in dims})
    steps = choose_steps(kernel, Target("cpu"))
    buffers = {n.name: n.type.name for n in walk(schedule(kernel, steps)) if isinstance(n, Buffer)}
    assert buffers["x_local"] == "f32"
    assert buffers.get("w_local") == ("f32" if packed else None)
