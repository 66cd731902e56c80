"""Kernels of the kinds that rewrites are made for, as text over dtypes: a random kernel may begin
with one, and have random statements after it. `T` is a float dtype, `I` an integer one."""

from __future__ import annotations

from functools import lru_cache

from kir.ir import Kernel
from kir.syntax import parse_kernel

TEMPLATES: dict[str, str] = {
    "softmax": """kernel k[M, N](x: T[M, N]) -> (y: T[M, N]) {
      m[i: M] = max(j: N) x[i, j]
      e[i: M, j: N] = exp(x[i, j] - m[i])
      s[i: M] = sum(j: N) e[i, j]
      y[i: M, j: N] = T(e[i, j] / T(s[i]))
    }""",
    "logsumexp": """kernel k[M, N](x: T[M, N]) -> (y: T[M]) {
      m[i: M] = max(j: N) x[i, j]
      s[i: M] = sum(j: N) exp(x[i, j] - m[i])
      y[i: M] = T(log(s[i])) + m[i]
    }""",
    "variance": """kernel k[M, N](x: f32[M, N]) -> (y: f32[M]) where N >= 1 {
      mean[i: M] = (sum(j: N) x[i, j]) / f32(N)
      v[i: M] = sum(j: N) (x[i, j] - mean[i]) * (x[i, j] - mean[i])
      y[i: M] = v[i] / f32(N)
    }""",
    "rms": """kernel k[M, N](x: T[M, N], w: T[N]) -> (y: T[M, N]) where N >= 1 {
      s[i: M] = (sum(j: N) f32(x[i, j]) * f32(x[i, j])) / f32(N)
      r[i: M] = rsqrt(s[i] + 0.5)
      y[i: M, j: N] = T(f32(x[i, j]) * r[i]) * w[j]
    }""",
    "product": """kernel k[M, N, K](a: T[M, K], b: T[K, N], u: T[N]) -> (y: T[M, N]) {
      c[i: M, j: N] = sum(k: K) f32(a[i, k]) * f32(b[k, j])
      y[i: M, j: N] = max(T(c[i, j]) + u[j], 0.0)
    }""",
    "integer_product": """kernel k[M, N, K](a: I[M, K], b: I[K, N]) -> (y: I[M, N]) {
      c[i: M, j: N] = sum(k: K) a[i, k] * b[k, j]
      y[i: M, j: N] = max(c[i, j] - 7, 0)
    }""",
    "chain": """kernel k[M, N, K](a: T[M, K], b: T[K, N], c: T[N]) -> (y: f32[M]) {
      d[i: M, j: N] = sum(k: K) f32(a[i, k]) * f32(b[k, j])
      y[i: M] = sum(j: N) d[i, j] * f32(c[j])
    }""",
    "attention": """kernel k[M, N, K](q: T[M, K], x: T[N, K], v: T[N, K]) -> (y: T[M, K]) {
      a[i: M, j: N] = sum(d: K) f32(q[i, d]) * f32(x[j, d])
      s[i: M, j: N] = select(j <= i, a[i, j] * 0.5, -inf)
      m[i: M] = max(j: N) s[i, j]
      e[i: M, j: N] = exp(s[i, j] - m[i])
      l[i: M] = sum(j: N) e[i, j]
      p[i: M, j: N] = e[i, j] / l[i]
      y[i: M, d: K] = T(sum(j: N) p[i, j] * f32(v[j, d]))
    }""",
    "scaled_sum": """kernel k[M, N](x: T[M, N], c: f32[M]) -> (y: f32[M]) {
      y[i: M] = sum(j: N) f32(x[i, j]) * c[i]
    }""",
    "scaled_max": """kernel k[M, N](x: I[M, N], c: I[M]) -> (y: I[M], z: I[M]) {
      y[i: M] = sum(j: N) x[i, j] * c[i]
      z[i: M] = sum(j: N) (x[i, j] + c[i]) * 2
    }""",
    "convolution": """kernel k[M, N, R = 2, stride = 2](x: T[M, N], w: T[R])
        -> (y: f32[M, (N - R) // stride + 1]) where N >= R {
      y[i: M, p: (N - R) // stride + 1] = sum(r: R) f32(x[i, p * stride + r]) * f32(w[r])
    }""",
    "padded": """kernel k[M, N, P = 1](x: T[M, N], w: T[3, 3]) -> (y: f32[M, N]) {
      y[i: M, j: N] = sum(r: 3, s: 3) f32(x[i + r - P, j + s - P] else 0.0) * f32(w[r, s])
    }""",
    "pool": """kernel k[M, N, size = 3](x: I[M, N]) -> (y: I[M, cdiv(N, size)]) {
      y[i: M, p: cdiv(N, size)] = max(r: size where p * size + r < N) x[i, p * size + r]
    }""",
    "blocks": """kernel k[M, N](x: T[M, N]) -> (y: f32[M, N // 4], z: T[M, N]) where N % 4 == 0 {
      y[i: M, b: N // 4] = sum(r: 4) f32(x[i, b * 4 + r])
      z[i: M, j: N] = T(y[i, j // 4]) + x[i, j]
    }""",
    "recurrence": """kernel k[M, N](x: T[M, N], w: T[N, N]) -> (y: T[M, N]) {
      for t: M {
        g[i: N] = T(sum(k: N) f32(w[i, k]) * f32(h[t - 1, k] else T(0.5)))
        h[t, i: N] = tanh(x[t, i] + g[i])
        y[t, i: N] = h[t, i] - g[i]
      }
    }""",
    "scan": """kernel k[M, N](x: I[M, N]) -> (y: I[M, N], z: I[M, N]) {
      for j: N { y[i: M, j] = x[i, j] + (y[i, j - 1] else 0) }
      for i: M { for l: N { z[i, l] = x[i, l] * 2 + (z[i - 1, l + 1] else 1) } }
    }""",
    "histogram": """kernel k[M, N](ids: i32[M], x: I[M]) -> (y: I[N]) where N >= 1 {
      y[n: N] = 0
      for i: M { y[ids[i]] += x[i] }
    }""",
    "triangle": """kernel k[M, N](x: I[M, N], w: I[N]) -> (y: I[M, N], z: I[M]) {
      a[i: M, j: N] = x[i, j] * w[j]
      b[i: M] = sum(j: N where j <= i) a[i, j]
      c[i: M, j: N] = a[i, j] + b[i]
      y[i: M, j: N] = c[i, N - 1 - j] + (c[i - 1, j] else b[i])
      z[i: M] = max(k: N) (c[i, k] - (sum(l: k) w[l]))
    }""",
    "guards": """kernel k[M, N](x: I[M, N], w: I[N]) -> (y: I[M, N]) {
      y[i: M, j: N] = 0
      s[j: N] = w[j] * 2
      for i: M where i > 0 {
        t[j: N] = x[i, j] + s[j]
        if (sum(j: N) t[j]) > 0 {
          for j: N where t[j] > 1 {
            y[i, j] += t[j]
            y[i - 1, j] max= 3
          }
        }
      }
    }""",
    "top": """kernel k[M, N](x: T[M, N]) -> (first: i64[M], y: T[M]) {
      first[i: M] = argmax(j: N) x[i, j]
      y[i: M] = x[i, first[i]] else 0.0
    }""",
    "twice": """kernel k[M, N](x: f32[M, N], u: f32[M]) -> (y: f32[M, N], z: f32[M, N]) {
      y[i: M, j: N] = (x[i, j] + u[i]) * (x[i, j] + u[i]) + exp(min(x[i, j] + u[i], 2.0))
      z[i: M, j: N] = sigmoid(y[i, j]) * u[i] / 4.0
    }""",
}


@lru_cache(maxsize=512)
def template(name: str, floating: str, whole: str) -> Kernel:
    """The template with its dtypes; parsed once."""
    words = TEMPLATES[name].replace("T[", f"{floating}[").replace("T(", f"{floating}(")
    return parse_kernel(words.replace(" I[", f" {whole}["))
