"""What the functions of this room check before they compute; every message says name, expected, came."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

SIDES = ("head", "tail")


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError unless ``value`` is a number of at least ``least``."""
    if not value >= least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def share(name: str, value: float | Array) -> None:
    """Raises ValueError if a concrete value lies outside [0, 1]."""
    if not isinstance(value, Tracer) and not 0 <= float(value) <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")


def triple_rows(name: str, triples: Array | np.ndarray) -> Array:
    """The triples as an integer array; raises unless they are ``[rows, 3]`` of an integer type."""
    triples = jnp.asarray(triples)
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise ValueError(f"{name}: expected shape [triples, 3] (head, relation, tail), got {triples.shape}")
    if not jnp.issubdtype(triples.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer ids, got dtype {triples.dtype}")
    return triples


def concrete(name: str, values: object) -> np.ndarray:
    """The values on the host; raises TypeError under ``jit``, where they are not known."""
    if isinstance(values, Tracer):
        raise TypeError(f"{name}: expected known values, got an array under jit: shapes depend on them")
    return np.asarray(values)


def ids_in_range(name: str, triples: np.ndarray, num_entities: int, num_relations: int | None) -> None:
    """Raises ValueError at the first triple with an id that no row of the tables has."""
    limits = (num_entities, num_relations, num_entities)
    for column, (what, limit) in enumerate(zip(("head", "relation", "tail"), limits, strict=True)):
        ids = triples[:, column]
        wrong = ids < 0 if limit is None else (ids < 0) | (ids >= limit)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            bound = "at least 0" if limit is None else f"from 0 to {limit - 1}"
            raise ValueError(f"{name}: {what} of triple {row}: expected an id {bound}, got {ids[row]}")


def explicit_axes(array: Array) -> bool:
    """Whether the array lies on a mesh whose axes are part of its type."""
    return jax.sharding.AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types
