"""The fuzzer: random kernels and random legal derivations, held to what they mean.

| module | |
|---|---|
| `kernels`, `expressions`, `templates` | a kernel from a seed |
| `derivations` | legal steps found by trying |
| `judge`, `session` | the properties, and one kernel held to them |
| `cases`, `shrink` | a failure as data, made small |
| `campaign`, `coverage` | many kernels over processes, and what they met |
"""
