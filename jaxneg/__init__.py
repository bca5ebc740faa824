"""Negatives in machine learning, in JAX: pure functions and optax transforms.

Each field has a room of its own (``jaxneg.diffusion``, ``jaxneg.mtl``, ...), ``jaxneg.nn`` holds the models
that the experiments need and ``jaxneg.train`` the engine. Rooms are imported when they are first used, so
that ``import jaxneg`` costs nothing and touches no device.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "contrastive",
    "coulomb",
    "diffusion",
    "face",
    "fairness",
    "federated",
    "graphs",
    "kg",
    "language",
    "mtl",
    "nn",
    "retrieval",
    "train",
    "unlearning",
)

__all__ = list(_ROOMS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"jaxneg.{name}")
    raise AttributeError(f"module 'jaxneg' has no attribute {name!r}; its rooms are {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted([*_ROOMS, "__version__"])
