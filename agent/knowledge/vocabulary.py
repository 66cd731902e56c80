"""The words that the front matter of a page may use, each with what it means."""

from __future__ import annotations

KINDS = {
    "constraint": "what no candidate may break: results, promises, measurement",
    "guidance": "a transformation, when it pays and how it is written, on all targets",
    "hardware": "what one kind of chip is like, in numbers, and what follows from them",
}
TARGETS = {
    "any": "every target",
    "cpu": "CPUs",
    "nvidia": "NVIDIA's GPUs",
    "amd": "AMD's GPUs",
    "accel": "accelerators that a machine file describes",
}
DIAGNOSES = {
    "memory": "limited by the bytes that move between memory and chip",
    "matrix": "limited by matrix units, or would be if it used them",
    "vector": "limited by vector or scalar arithmetic, conversions and functions included",
    "latency": "waits: for dependent instructions, loads or barriers",
    "launch": "too little work for what it costs to start, or too few programs to fill the chip",
    "spills": "values do not fit the registers",
    "occupancy": "too few programs resident at once to hide latency",
    "wrong": "gave another result than the oracle allows",
    "refused": "a rewrite, the checker or a backend refused it",
}
FEATURES = {
    "elementwise": "no reduction, recurrence, gather or scatter",
    "contraction": "a sum of products whose factors have an index each that the other lacks",
    "matvec": "a sum of products of which only one factor has an index of its own",
    "window": "reads at a sum of two indices: convolutions, pools, stencils",
    "sum": "a sum that is no contraction",
    "extremum": "a maximum or minimum",
    "argextremum": "an argmax or argmin",
    "softmax": "a maximum, and a sum of exponentials",
    "normalisation": "a sum, and a division by a root or a variance",
    "recurrence": "iterations that read what earlier ones gave: scans, LSTM",
    "gather": "reads at an index that is read from a tensor",
    "scatter": "updates at an index that is read from a tensor",
    "transposed": "the last index of an output is not the last index of what is read",
    "padded": "reads with a fill for what is out of bounds",
    "triangular": "a condition that compares two indices, as causal masks do",
    "masked": "loops with a condition: tails, or work that is left out",
    "random": "random numbers",
    "functions": "exp, tanh, erf and the like",
    "division": "float division, roots",
    "integer_division": "// and % by what is no power of two",
    "casts": "conversions between dtypes",
    "chain": "three or more definitions, or temporaries in memory between loops",
    "symbolic": "dims that are not known when the kernel is compiled",
    "small": "moves less than 256 KiB",
    "large": "moves more than 32 MiB",
    "low_intensity": "fewer than 4 operations for each byte that it must move",
    "high_intensity": "at least 32 operations for each byte that it must move",
    "f64": "computes in f64",
    "f32": "tensors of f32",
    "f16": "tensors of f16",
    "bf16": "tensors of bf16",
    "f8": "tensors of f8e4m3 or f8e5m2",
    "i8": "tensors of i8 or u8",
}
TELLING = frozenset(list(FEATURES)[: list(FEATURES).index("padded")])
"""Features that say what a kernel is; the others say what it has beside that."""
