"""What the functions of this room check before they compute; every message says name, expected, came."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError unless ``value`` is a number of at least ``least``."""
    if not value >= least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def wide(values: Array | np.ndarray) -> Array:
    """The array in float32 or wider; integers and truth values become float32 (float64 with x64)."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(jnp.result_type(float))
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def square(name: str, matrix: Array | np.ndarray, leading: int = 0) -> Array:
    """The matrix, or matrices with so many leading axes, in float32 or wider.

    Raises:
      ValueError: Of another rank, not square, or with an empty axis.
    """
    matrix = wide(matrix)
    if matrix.ndim != 2 + leading or matrix.shape[-1] != matrix.shape[-2] or 0 in matrix.shape:
        shape = f"[{', '.join(['batch'] * leading + ['n', 'n'])}]"
        raise ValueError(f"{name}: expected {shape}, no axis empty, got shape {matrix.shape}")
    return matrix


def node_counts(n_nodes: Array | np.ndarray | None, graphs: int, nodes: int) -> Array:
    """The number of nodes of each graph; all ``nodes`` where None.

    Raises:
      TypeError: Not integers.
      ValueError: Another shape, or (outside of ``jit``) a count that is not from 0 to ``nodes``.
    """
    if n_nodes is None:
        return jnp.full(graphs, nodes, jnp.int32)
    n_nodes = jnp.asarray(n_nodes)
    if not jnp.issubdtype(n_nodes.dtype, jnp.integer):
        raise TypeError(f"n_nodes: expected integers, got {n_nodes.dtype}")
    if n_nodes.shape != (graphs,):
        raise ValueError(f"n_nodes: expected one for each of {graphs} graphs, got shape {n_nodes.shape}")
    if not isinstance(n_nodes, Tracer):
        wrong = np.flatnonzero((np.asarray(n_nodes) < 0) | (np.asarray(n_nodes) > nodes))
        if wrong.size:
            raise ValueError(
                f"n_nodes: expected from 0 to {nodes}, got {int(n_nodes[wrong[0]])} for graph {wrong[0]}"
            )
    return n_nodes.astype(jnp.int32)
