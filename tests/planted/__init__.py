"""Known bugs, planted one at a time in a copy of KIR, to see whether the verifier finds them.

bugs/*.toml   the bugs, as data: a file, a text that stands in it once, and what replaces it
run.py        plants each in a copy of the tree, runs the probe there, prints the share caught
probe.py      climbs the verifier's ladder on a corpus of programs until something is wrong
"""
