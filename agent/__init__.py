"""The search for faster kernels: nodes are derivations, edges are rewrites, all kept in a store.

Read `search.py` first: it is the loop. What it calls, each behind one small interface:
`graph/policy.py` (which node to expand), `proposer.py` (which derivations to try from it),
`evaluate.py` (compile, verify and measure one in a child process, `worker.py`), `store.py`.
`tune.py` is what the command line calls.
"""
