"""The kernels from papers: dims to try, inputs that are not free, and an independent reference.

As in `example_cases.py`, a reference gets the inputs (floats as f64) and the dims, and gives the
outputs in f64 (integers exactly); it is written as a paper's own text or NumPy would have it, by
rows and sorting, not as the kernel is written.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from example_cases import Array, Case, Dims, indices, sizes, softmax, uniform


def attention_scores(i: dict[str, Array], d: Dims) -> Array:
    scores: Array = i["q"] @ np.swapaxes(i["k"], -1, -2) / math.sqrt(d["D"])
    return scores


def past(size: int) -> Array:
    return np.tril(np.ones((size, size), bool))


def flash_attention(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    scores = np.where(past(d["L"]), attention_scores(i, d), -np.inf)
    return {"o": softmax(scores) @ i["v"]}


def flash_attention_backward(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    """The derivative of the softmax by its Jacobian, row by row."""
    p = np.where(past(d["L"]), np.exp(attention_scores(i, d) - i["lse"][..., None]), 0.0)
    dp = i["do"] @ np.swapaxes(i["v"], -1, -2)
    delta = np.einsum("bhid,bhid->bhi", i["do"], i["o"])
    ds = p * (dp - delta[..., None]) / math.sqrt(d["D"])
    return {
        "dq": ds @ i["k"],
        "dk": np.swapaxes(ds, -1, -2) @ i["q"],
        "dv": np.swapaxes(p, -1, -2) @ i["do"],
    }


def flash_sigmoid(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    scores = attention_scores(i, d) + i["bias"]
    return {"o": np.where(past(d["L"]), 1 / (1 + np.exp(-scores)), 0.0) @ i["v"]}


def moba(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    """Query by query: its earlier blocks sorted by score, the best of them, and its own."""
    size, top = d["block"], d["top"]
    o = np.zeros_like(i["q"])
    for b, h, t in np.ndindex(o.shape[:3]):
        q, k, v = i["q"][b, h, t], i["k"][b, h], i["v"][b, h]
        own = t // size
        gate = [k[n * size : (n + 1) * size].mean(0) @ q for n in range(own)]
        best = sorted(range(own), key=lambda n: -gate[n])[: top - 1]
        keys = [j for j in range(t + 1) if j // size == own or j // size in best]
        o[b, h, t] = softmax(k[keys] @ q / math.sqrt(d["D"])) @ v[keys]
    return {"o": o}


def blockffn(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    """Dense: every expert for every token, no chunks."""
    x = i["x"].reshape(-1, d["M"])
    r = np.maximum(x @ i["router"].T, 0.0)
    weight = r / np.sqrt(np.square(r).mean(1, keepdims=True) + 1e-6) * i["gain"]
    z = np.einsum("tm,efm->tef", x, i["up"])
    experts = np.einsum("tef,efn->ten", z / (1 + np.exp(-z)), i["down"])
    return {"y": np.einsum("te,ten->tn", weight, experts).reshape(i["x"].shape)}


def gqa_paged(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    """Each sequence's pages gathered into one array, cut at its length."""
    o = np.zeros_like(i["q"])
    for s, (table, length) in enumerate(zip(i["table"], i["length"], strict=True)):
        k = i["keys"][table].reshape(-1, d["K"], d["D"])[:length]
        v = i["values"][table].reshape(-1, d["K"], d["D"])[:length]
        for h in range(d["K"]):
            scores = i["q"][s, h] @ k[:, h].T / math.sqrt(d["D"])
            o[s, h] = softmax(scores) @ v[:, h]
    return {"o": o}


def rmsnorm_linear(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    norm = np.sqrt(np.square(i["x"]).mean(1, keepdims=True) + 1e-6)
    return {"y": (i["x"] / norm * i["gain"]) @ i["w"]}


def fused_cross_entropy(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    p = softmax(i["x"] @ i["w"].T)
    return {"loss": -np.log(p[np.arange(d["N"]), i["label"]])}


def factorisation_machine(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    return {"z": i["x"] @ (np.swapaxes(i["x"], 1, 2) @ i["y"])}


def jagged_truncate(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    ends = zip(i["offsets"][:-1], i["offsets"][1:], strict=True)
    parts = [i["x"][low:high][: int(i["most"])] for low, high in ends]
    y = np.zeros((d["R"], d["D"]))
    rows = np.concatenate(parts)[: d["R"]]
    y[: len(rows)] = rows
    return {"y": y, "kept": np.cumsum([0, *map(len, parts)])}


def selective_scan(i: dict[str, Array], d: Dims) -> dict[str, Array]:
    delta = np.logaddexp(0.0, i["step"] + i["bias"])
    h, ys = np.zeros((d["B"], d["E"], d["N"])), []
    for t in range(d["L"]):
        x = i["x"][:, t]
        h = np.exp(delta[:, t, :, None] * i["a"]) * h
        h += (delta[:, t] * x)[:, :, None] * i["b"][:, t, None]
        ys.append(np.einsum("ben,bn->be", h, i["c"][:, t]) + i["skip"] * x)
    return {"y": np.stack(ys, 1)}


# --- inputs that are not free ----------------------------------------------------------------


def offsets(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    """Ends of sequences, some of them empty, over T rows."""
    inner = np.sort(rng.integers(0, dims["T"] + 1, shape[0] - 2))
    return np.concatenate([[0], inner, [dims["T"]]]).astype(np.int64)


def most(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    return np.array(3, np.int64)


def lengths(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    """From 1 to all the tokens that the pages hold."""
    return rng.integers(1, dims["N"] * dims["page"] + 1, shape).astype(np.int32)


def pages(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    """Pages in any order."""
    return rng.permutation(dims["P"])[: math.prod(shape)].reshape(shape).astype(np.int32)


def log_sums(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    """Of about the size that makes the probabilities add up to 1 or so."""
    rows = np.log1p(np.arange(shape[-1])) + rng.uniform(0.0, 1.0, shape)
    return rows.astype(np.float32)


def small_bf16(rng: np.random.Generator, shape: tuple[int, ...], dims: Dims) -> Array:
    return (rng.standard_normal(shape) / 4).astype(ml_dtypes.bfloat16)


ATTENTION = sizes("B H L D", (2, 2, 5, 8), (1, 1, 33, 16), (1, 2, 130, 16))

PAPERS: tuple[Case, ...] = (
    Case("papers/flash_attention.kir", ATTENTION, flash_attention),
    Case(
        "papers/online_softmax.kir",
        sizes("M N", (3, 5), (7, 33), (2, 1300)),
        lambda i, d: {"y": softmax(i["x"])},
    ),
    Case(
        "papers/flash_attention_backward.kir",
        ATTENTION,
        flash_attention_backward,
        {
            "lse": log_sums,
            "do": small_bf16,
        },
    ),
    Case("papers/flash_sigmoid.kir", ATTENTION, flash_sigmoid, {"bias": uniform(-4.0, -2.0)}),
    Case(
        "papers/moba.kir",
        sizes(
            "B H L D block top",
            (2, 1, 11, 8, 4, 2),
            (1, 2, 33, 16, 4, 3),
            (1, 1, 130, 16, 16, 3),
            (1, 1, 20, 5, 3, 2),
        ),
        moba,
    ),
    Case(
        "papers/blockffn.kir",
        sizes("C M E F chunk", (2, 5, 3, 4, 4), (1, 16, 8, 8, 8), (3, 33, 5, 16, 8)),
        blockffn,
        {"up": small_bf16, "down": small_bf16, "router": small_bf16},
    ),
    Case(
        "papers/gqa_paged.kir",
        sizes("S K G N P D page", (2, 2, 3, 2, 5, 8, 4), (3, 1, 4, 3, 9, 16, 16)),
        gqa_paged,
        {"table": pages, "length": lengths},
    ),
    Case("papers/rmsnorm_linear.kir", sizes("M N K", (3, 5, 7), (17, 33, 70)), rmsnorm_linear),
    Case(
        "papers/fused_cross_entropy.kir",
        sizes("N V D", (3, 5, 8), (17, 133, 16)),
        fused_cross_entropy,
        {"label": indices("V")},
    ),
    Case(
        "papers/factorisation_machine.kir",
        sizes("B N D K", (2, 5, 8, 4), (3, 33, 16, 16), (1, 130, 7, 3)),
        factorisation_machine,
    ),
    Case(
        "papers/jagged_truncate.kir",
        sizes("B T R D", (4, 13, 12, 3), (7, 33, 20, 17)),
        jagged_truncate,
        {"offsets": offsets, "most": most},
    ),
    Case(
        "papers/selective_scan.kir",
        sizes("B L E N", (2, 5, 3, 4), (1, 17, 33, 16)),
        selective_scan,
        {"a": uniform(-2.0, -0.1)},
    ),
)
