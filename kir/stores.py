"""What searches have found, for whoever compiles: the one who reads stores is named here, as the
backends are in `kir.backend`, because searches build on compiling and not the other way round."""

from __future__ import annotations

import importlib

from kir.ir import Module

READER = "kir.agent.dispatch:tuned"


def tuned(module: Module, store: str, target: str) -> Module:
    """The module with those kernels scheduled for which the store has something at their dims.

    StoreError where there is no such store, MissingExtraError where `kir[agent]` is not installed.
    """
    place, name = READER.split(":")
    made: Module = getattr(importlib.import_module(place), name)(module, store, target)
    return made
