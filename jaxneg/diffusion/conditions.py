"""Conditions of a denoiser, dropped at random so that one network learns both branches of guidance.

Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv:2207.12598, Section 3.2.
"""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxneg.diffusion.arguments import check_range


def null_like(null_cond: Any, cond: Any) -> Any:
    """The null condition of every example.

    Args:
        null_cond: what stands for no condition: a tree whose leaves broadcast to those of ``cond``, as the
            index of a class that there is not, or one empty prompt's embedding.
        cond: conditions, a tree of arrays with the examples on their leading axis.

    Returns:
        A tree like ``cond``, with the null condition in every row.

    Raises:
        ValueError: trees of other structures, or a leaf that does not broadcast. The message names the path.

    Source:
        arXiv:2207.12598, Section 3.2.

    Example:
        >>> null_like(10, jnp.array([3, 1])).tolist()
        [10, 10]
    """
    if jax.tree.structure(null_cond) != jax.tree.structure(cond):
        raise ValueError(
            f"null_cond: expected the structure of cond, {jax.tree.structure(cond)}, got"
            f" {jax.tree.structure(null_cond)}"
        )

    def rows(path: tuple[Any, ...], leaf: Array, null: Any) -> Array:
        shape = jnp.shape(null)
        if len(shape) > leaf.ndim or any(n not in (1, m) for n, m in zip(shape[::-1], leaf.shape[::-1])):  # noqa: B905
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"null_cond {name}: expected to broadcast to {leaf.shape}, got shape {shape}")
        return jnp.zeros_like(leaf) + jnp.asarray(null).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(rows, cond, null_cond)


def drop_condition(key: PRNGKeyArray, cond: Any, null_cond: Any, rate: float) -> Any:
    """Conditions of which some are replaced by the null condition.

    ``c_b <- null with probability rate``, each example by itself

    Args:
        key: random key.
        cond: conditions, a tree of arrays with the examples on their leading axis.
        null_cond: as in `null_like`.
        rate: probability, in [0, 1]; with 0 the conditions come back as they are.

    Returns:
        A tree like ``cond``.

    Raises:
        ValueError: a rate outside [0, 1], or a null condition that does not fit.

    Source:
        arXiv:2207.12598, Algorithm 1.

    Example:
        >>> drop_condition(jax.random.key(0), jnp.array([3, 1]), 10, 1.0).tolist()
        [10, 10]
    """
    check_range("rate", rate, 0, 1)
    if (isinstance(rate, Real) and rate == 0) or not jax.tree.leaves(cond):
        return cond
    dropped = jax.random.bernoulli(key, rate, jax.tree.leaves(cond)[0].shape[:1])

    def choose(leaf: Array, null: Array) -> Array:
        # On the devices of the leaf, as a choice asks for under explicit axes.
        where = jnp.zeros_like(leaf, bool) | dropped.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(where, null, leaf)

    return jax.tree.map(choose, cond, null_like(null_cond, cond))
