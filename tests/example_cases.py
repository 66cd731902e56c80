"""The examples' table: dims to try, inputs that are not free, and an independent reference.

This is the one place where an example is added to the tests. A reference gets the inputs (floats
as f64) and the dims, and gives the outputs in f64 (integers exactly); it is written with NumPy
alone, by slices and matrix products, not as the kernel is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Array = np.ndarray[Any, Any]
Dims = Mapping[str, int]
Reference = Callable[[dict[str, Array], Dims], dict[str, Array]]
Maker = Callable[[np.random.Generator, tuple[int, ...], Dims], Array]


@dataclass(frozen=True, eq=False)
class Case:
    """One example: `path` under examples/, what to call in it, and how to judge it.

    `sizes` holds several bindings of all dims, odd sizes among them. `make` overrides the random
    values of an input.
    """

    path: str
    sizes: tuple[Dims, ...]
    reference: Reference
    make: Mapping[str, Maker] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def file(self) -> Path:
        return EXAMPLES / self.path


def indices(dim: str) -> Maker:
    """Indices in [0, dims[dim])."""
    return lambda rng, shape, dims: rng.integers(0, dims[dim], shape, dtype=np.int64)


def uniform(low: float, high: float) -> Maker:
    return lambda rng, shape, dims: rng.uniform(low, high, shape).astype(np.float32)


def seed(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    return np.array(0x9E3779B97F4A7C15, np.uint64)


def small_steps(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    """Few distinct values, so that the greatest one stands in several places."""
    return rng.integers(0, 4, shape).astype(np.float32)


# --- references ------------------------------------------------------------------------------


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    y: Array = e / e.sum(-1, keepdims=True)
    return y


def gelu(x: Array) -> Array:
    erf = np.array([math.erf(v / math.sqrt(2.0)) for v in x.ravel()]).reshape(x.shape)
    y: Array = x * (1 + erf) / 2
    return y


def normalised(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    y: Array = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return y


def channel(v: Array) -> Array:
    return v[:, None, None]


def padded(x: Array, pad: int, value: float = 0.0) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=value)


def windows(x: Array, size: tuple[int, int], stride: int, dilation: int = 1) -> Array:
    """All windows of an image [N, C, H, W], as [N, C, P, Q, R, S]."""
    span = tuple(dilation * (s - 1) + 1 for s in size)
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, ::stride, ::stride, ::dilation, ::dilation]


def conv2d(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    stride, pad, dilation, groups = (d[k] for k in ("stride", "pad", "dilation", "groups"))
    x, w = padded(i["x"], pad), i["w"]
    parts = [
        np.einsum("ncpqrs,ocrs->nopq", windows(xg, w.shape[2:], stride, dilation), wg)
        for xg, wg in zip(np.split(x, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    return {"y": np.concatenate(parts, 1) + channel(i["bias"])}


def depthwise_conv(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    x = windows(padded(i["x"], d["pad"]), i["w"].shape[1:], d["stride"])
    return {"y": np.einsum("ncpqrs,crs->ncpq", x, i["w"])}


def conv_transpose(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    """By scattering: every input element adds its multiple of the filter to the output."""
    x, w, stride, pad = i["x"], i["w"], d["stride"], d["pad"]
    n, _, height, width = x.shape
    _, o, r, s = w.shape
    full = np.zeros((n, o, (height - 1) * stride + r, (width - 1) * stride + s))
    for h in range(height):
        for v in range(width):
            patch = np.einsum("nc,cors->nors", x[:, :, h, v], w)
            full[:, :, h * stride : h * stride + r, v * stride : v * stride + s] += patch
    return {"y": full[:, :, pad : full.shape[2] - pad, pad : full.shape[3] - pad]}


def max_pool(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    x = padded(i["x"], d["pad"], -np.inf)
    return {"y": windows(x, (d["R"], d["S"]), d["stride"]).max((-2, -1))}


def avg_pool(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    x = padded(i["x"], d["pad"])
    return {"y": windows(x, (d["R"], d["S"]), d["stride"]).mean((-2, -1))}


def scatter_add(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    y = i["base"].copy()
    np.add.at(y, (i["ids"], np.arange(d["D"])[None, :]), i["src"])
    return {"y": y}


def cross_entropy(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    p = softmax(i["x"])[np.arange(d["N"]), i["label"]]
    return {"loss": -np.log(p).mean()}


def attention(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    scores = i["q"] @ np.swapaxes(i["k"], -1, -2) / math.sqrt(d["D"])
    future = np.triu(np.ones((d["T"], d["T"]), bool), 1)
    return {"o": softmax(np.where(future, -np.inf, scores)) @ i["v"]}


def rotary(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    z = i["x"][:, :, 0] + 1j * i["x"][:, :, 1]
    turned = z * (i["cosine"] + 1j * i["sine"])[:, None]
    return {"y": np.stack([turned.real, turned.imag], 2)}


def lstm(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    def sigmoid(v: Array) -> Array:
        return 1 / (1 + np.exp(-v))

    h, c, hs, cs = i["h0"], i["c0"], [], []
    for x in i["x"]:
        g, f, n, o = (
            x @ w.T + h @ u.T + b for w, u, b in zip(i["w"], i["u"], i["bias"], strict=True)
        )
        c = sigmoid(f) * c + sigmoid(g) * np.tanh(n)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
        cs.append(c)
    shape = (d["T"], d["B"], d["H"])
    return {"h": np.reshape(hs, shape), "c": np.reshape(cs, shape)}


def philox(key: int, counter: int) -> int:
    """Philox4x32-10 in Python integers; its first word."""
    mask = 0xFFFFFFFF
    c = [counter & mask, counter >> 32, 0, 0]
    k = [key & mask, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & mask, (p >> 32) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[0]


def dropout(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    key, p = int(i["seed"]), float(i["p"])
    draws = np.array([(philox(key, n) >> 8) / 2**24 for n in range(d["N"])])
    return {"y": np.where(draws >= p, i["x"] / (1 - p), 0.0)}


def linear(x: Array, w: Array, b: Array) -> Array:
    return x @ w.T + b


def matmul_int8(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    product = i["a"].astype(np.int64) @ i["b"].astype(np.int64)
    return {"c": np.outer(i["scale_a"], i["scale_b"]) * product}


def batch_norm(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    axes = (0, 2, 3)
    y = normalised(i["x"], axes, 1e-5) * channel(i["weight"]) + channel(i["bias"])
    return {"y": y, "mean": i["x"].mean(axes), "var": i["x"].var(axes)}


# --- the table -------------------------------------------------------------------------------


def sizes(names: str, *rows: tuple[int, ...]) -> tuple[Dims, ...]:
    """`sizes("M N", (3, 5))` is `({"M": 3, "N": 5},)`."""
    return tuple(dict(zip(names.split(), row, strict=True)) for row in rows)


ROWS = sizes("M N", (3, 5), (1, 1), (7, 33), (4, 130))
PRODUCTS = sizes("M N K", (3, 5, 7), (1, 1, 1), (17, 33, 9), (16, 16, 32))
IMAGE_PARAMS = "N C H W R S stride pad"

CASES: tuple[Case, ...] = (
    Case("add.kir", ROWS, lambda i, d: {"c": i["a"] + i["b"]}),
    Case("gelu.kir", ROWS, lambda i, d: {"y": gelu(i["x"])}),
    Case("softmax.kir", ROWS, lambda i, d: {"y": softmax(i["x"])}),
    Case("log_softmax.kir", ROWS, lambda i, d: {"y": np.log(softmax(i["x"]))}),
    Case(
        "layer_norm.kir",
        sizes("M N", (3, 5), (7, 33), (4, 130)),
        lambda i, d: {"y": normalised(i["x"], (1,), 1e-5) * i["weight"] + i["bias"]},
    ),
    Case(
        "rms_norm.kir",
        ROWS,
        lambda i, d: {
            "y": i["x"] / np.sqrt(np.square(i["x"]).mean(1, keepdims=True) + 1e-6) * i["weight"]
        },
    ),
    Case("batch_norm.kir", sizes("N C H W", (3, 2, 5, 3), (2, 5, 4, 7)), batch_norm),
    Case("matmul.kir", PRODUCTS, lambda i, d: {"c": i["a"] @ i["b"]}),
    Case("matmul_bf16.kir", PRODUCTS, lambda i, d: {"c": i["a"] @ i["b"]}),
    Case(
        "batched_matmul.kir",
        sizes("B M N K", (2, 3, 5, 7), (3, 17, 9, 1)),
        lambda i, d: {"c": i["a"] @ i["b"]},
    ),
    Case(
        "linear_gelu.kir",
        PRODUCTS,
        lambda i, d: {"y": gelu(linear(i["x"], i["w"], i["bias"]))},
    ),
    Case(
        "conv2d.kir",
        sizes(
            "N C H W O R S stride pad dilation groups",
            (2, 3, 7, 5, 4, 3, 3, 1, 1, 1, 1),
            (1, 4, 9, 8, 6, 3, 2, 2, 1, 2, 2),
            (1, 2, 5, 5, 3, 1, 1, 1, 0, 1, 1),
        ),
        conv2d,
    ),
    Case(
        "depthwise_conv.kir",
        sizes(IMAGE_PARAMS, (2, 3, 7, 5, 3, 3, 1, 1), (1, 5, 8, 9, 3, 2, 2, 0)),
        depthwise_conv,
    ),
    Case(
        "conv_transpose.kir",
        sizes(
            "N C H W O R S stride pad",
            (2, 3, 4, 5, 2, 4, 4, 2, 1),
            (1, 2, 3, 3, 3, 3, 2, 3, 0),
        ),
        conv_transpose,
    ),
    Case(
        "max_pool.kir",
        sizes(IMAGE_PARAMS, (2, 3, 7, 5, 3, 3, 2, 1), (1, 2, 6, 9, 2, 3, 1, 0)),
        max_pool,
    ),
    Case(
        "avg_pool.kir",
        sizes(IMAGE_PARAMS, (2, 3, 7, 5, 2, 2, 2, 0), (1, 2, 6, 9, 3, 3, 1, 1)),
        avg_pool,
    ),
    Case(
        "argmax.kir",
        ROWS,
        lambda i, d: {"y": np.argmax(i["x"], 1)},
        {"x": small_steps},
    ),
    Case("cumsum.kir", ROWS, lambda i, d: {"y": np.cumsum(i["x"], 1)}),
    Case(
        "embedding.kir",
        sizes("T V D", (5, 7, 3), (33, 4, 17)),
        lambda i, d: {"y": i["table"][i["ids"]]},
        {"ids": indices("V")},
    ),
    Case(
        "scatter_add.kir",
        sizes("V T D", (4, 13, 3), (3, 7, 33)),
        scatter_add,
        {"ids": indices("V")},
    ),
    Case(
        "cross_entropy.kir",
        sizes("N C", (3, 5), (17, 33)),
        cross_entropy,
        {"label": indices("C")},
    ),
    Case("attention.kir", sizes("B H T D", (2, 2, 5, 8), (1, 1, 33, 16)), attention),
    Case("rotary.kir", sizes("T H D", (5, 2, 4), (3, 3, 17)), rotary),
    Case("lstm.kir", sizes("T B I H", (4, 2, 3, 5), (1, 3, 5, 9)), lstm),
    Case(
        "dropout.kir",
        sizes("N", (7,), (133,)),
        dropout,
        {"seed": seed, "p": uniform(0.25, 0.75)},
    ),
    Case(
        "matmul_int8.kir",
        PRODUCTS,
        matmul_int8,
        {"scale_a": uniform(0.01, 0.1), "scale_b": uniform(0.01, 0.1)},
    ),
    Case(
        "mlp.kir",
        sizes("B I H O", (3, 5, 7, 2), (4, 9, 17, 6)),
        lambda i, d: {"y": linear(gelu(linear(i["x"], i["w1"], i["b1"])), i["w2"], i["b2"])},
    ),
    Case("scheduled/softmax_half.kir", ROWS, lambda i, d: {"y": softmax(i["x"])}),
    Case(
        "scheduled/softmax_tiled.kir",
        sizes("M N", (3, 5), (2, 1025)),
        lambda i, d: {"y": softmax(i["x"])},
    ),
    Case(
        "scheduled/matmul_tiled.kir",
        sizes("M N K", (3, 5, 7), (129, 10, 65)),
        lambda i, d: {"c": i["a"] @ i["b"]},
    ),
    Case(
        "scheduled/split_k.kir",
        sizes("M N K", (3, 5, 7), (17, 10, 300)),
        lambda i, d: {"c": i["a"] @ i["b"]},
    ),
)
BY_NAME = {case.name: case for case in CASES}
