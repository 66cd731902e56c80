"""The suite's functions in JAX, run by an interpreter that has it, on behalf of benchmarks/cpu.py.

    python benchmarks/jax_worker.py THREADS

Nothing of KIR or PyTorch is imported here, so that any environment with JAX will do. Requests and
answers are lines of JSON. `{"function", "dims", "kernel", "inputs": [[file, dtype], ...]}` compiles
a case and gives the seconds of its first call; `{"count": n, "cpu_time": false}` runs it n
times and gives seconds, or those of the processor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):  # XLA's pool has a thread per CPU
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Dims = dict[str, int]


def conv(x: Any, w: Any, bias: Any, d: Dims) -> Any:
    spatial = x.ndim - 2
    stride, pad = d.get("stride", 1), d.get("pad", 1)
    y = lax.conv_general_dilated(x, w, (stride,) * spatial, ((pad, pad),) * spatial,
                                 feature_group_count=d.get("groups", 1))  # fmt: skip
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * spatial)


def conv_transpose(x: Any, w: Any) -> Any:
    """Stride 2 and padding 1, as a convolution of the input with zeros between."""
    flipped = jnp.flip(w, (2, 3)).swapaxes(0, 1)
    pads = [(n - 2, n - 2) for n in w.shape[2:]]
    return lax.conv_general_dilated(x, flipped, (1, 1), pads, lhs_dilation=(2, 2))


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    wide = x.astype(jnp.float32)
    moved = wide - wide.mean(-1, keepdims=True)
    y = moved * lax.rsqrt((moved * moved).mean(-1, keepdims=True) + 1e-5) * weight + bias
    return y.astype(x.dtype)


def rms_norm(x: Any, weight: Any) -> Any:
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-6)
    return (wide * scale * weight).astype(x.dtype)


def group_norm(x: Any, weight: Any, bias: Any) -> Any:
    wide = x.astype(jnp.float32)
    moved = wide - wide.mean((2, 3), keepdims=True)
    scale = lax.rsqrt((moved * moved).mean((2, 3), keepdims=True) + 1e-5)
    return (moved * scale * weight[..., None] + bias[..., None]).astype(x.dtype)


def batch_norm_relu(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> Any:
    m, v, w, b = (t[:, None].astype(jnp.float32) for t in (mean, var, weight, bias))
    return jax.nn.relu((x - m) * lax.rsqrt(v + 1e-5) * w + b).astype(x.dtype)


def cross_entropy(x: Any, label: Any) -> Any:
    picked = jnp.take_along_axis(x, label[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(x.astype(jnp.float32), -1) - picked).mean().astype(x.dtype)


def pool(x: Any, op: str) -> Any:
    if op == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2),
                                 ((0, 0), (0, 0), (1, 1), (1, 1)))  # fmt: skip
    zero = np.zeros((), x.dtype)[()]
    return lax.reduce_window(x, zero, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4


def rotary(x: Any, cosine: Any, sine: Any) -> Any:
    one, two = x[:, :, 0], x[:, :, 1]
    c, s = cosine[:, None], sine[:, None]
    return jnp.stack((one * c - two * s, two * c + one * s), 2)


def attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
    moved = (t.swapaxes(1, 2) for t in (q, k, v))
    return jax.nn.dot_product_attention(*moved, is_causal=causal).swapaxes(1, 2)


def lstm(x: Any, w: Any, u: Any, bias_x: Any, bias_h: Any, h0: Any, c0: Any) -> Any:
    def step(state: Any, given: Any) -> Any:
        h, c = state
        z = given + jnp.einsum("bj,gkj->gbk", h, u)
        c = jax.nn.sigmoid(z[1]) * c + jax.nn.sigmoid(z[0]) * jnp.tanh(z[2])
        h = jax.nn.sigmoid(z[3]) * jnp.tanh(c)
        return (h, c), h

    given = jnp.einsum("tbi,gki->tgbk", x, w) + (bias_x + bias_h)[:, None]
    (_, c), h = lax.scan(step, (h0, c0), given)
    return h, c


def chain(x: Any, z: Any) -> Any:
    return jnp.abs(jax.nn.relu(x * 0.5 + z) * z - x)


def function_of(name: str, d: Dims, kernel: str) -> Any:
    """The function of a case: named as PyTorch's in benchmarks/suite is."""
    op, _, axis = kernel.partition("_")
    table = {
        "matmul": lambda a, b: a @ b,
        "matmul_tn": lambda a, b: a.T @ b,
        "matmul_nt": lambda a, b: a @ b.T,
        "matmul_i8": lambda a, b: lax.dot(a, b, preferred_element_type=jnp.int32),
        "linear_gelu": lambda x, w, b: jax.nn.gelu(x @ w.T + b, approximate=False),
        "conv1d": lambda x, w, b: conv(x, w, b, d),
        "conv2d": lambda x, w, b: conv(x, w, b, d),
        "conv3d": lambda x, w, b: conv(x, w, b, d),
        "depthwise": lambda x, w: conv(x, w[:, None], None, {**d, "groups": x.shape[1]}),
        "conv_transpose": conv_transpose,
        "softmax": lambda x: jax.nn.softmax(x, -1),
        "log_softmax": lambda x: jax.nn.log_softmax(x, -1),
        "layer_norm": layer_norm,
        "rms_norm": rms_norm,
        "group_norm": group_norm,
        "batch_norm_relu": batch_norm_relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "silu": jax.nn.silu,
        "mish": jax.nn.mish,
        "chain": chain,
        "embedding": lambda table, ids: table[ids],
        "cross_entropy": cross_entropy,
        "cumsum": lambda x: jnp.cumsum(x, -1),
        "max_pool": lambda x: pool(x, "max"),
        "avg_pool": lambda x: pool(x, "avg"),
        "rotary": rotary,
        "transposed": lambda x: x.swapaxes(-1, -2),
        "heads": lambda x: x.swapaxes(1, 2),
        "reduce": lambda x: getattr(jnp, op)(x, None if axis == "all" else int(axis)),
        "full": lambda q, k, v: attention(q, k, v, False),
        "causal": lambda q, k, v: attention(q, k, v, True),
        "lstm": lstm,
    }
    return table[name]


def read(path: str, dtype: str) -> Any:
    array = np.load(path)
    if dtype == "bf16":
        return jnp.asarray(array.view(jnp.bfloat16.dtype))
    return jnp.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)


def main() -> None:
    call: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if "count" in request:
            clock = time.process_time if request["cpu_time"] else time.perf_counter
            start = clock()
            for _ in range(request["count"]):
                jax.block_until_ready(call())
            answer = {"seconds": clock() - start}
        else:
            arrays = [read(*given) for given in request["inputs"]]
            made = jax.jit(function_of(request["function"], request["dims"], request["kernel"]))
            start = time.perf_counter()
            result = jax.block_until_ready(made(*arrays))
            answer = {"seconds": time.perf_counter() - start}
            results = result if isinstance(result, tuple) else (result,)
            answer["sums"] = [float(jnp.sum(jnp.abs(r.astype(jnp.float32)))) for r in results]

            def call(made: Any = made, arrays: Any = arrays) -> Any:
                return made(*arrays)

        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
