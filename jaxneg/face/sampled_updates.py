"""Which class centres an optimiser moves: all of them, or those that were sampled.

With sampled centres the gradient of the others is zero, but weight decay and momentum move them all the same
(insightface's Partial FC, second version). Here those rows and their optimiser state stay as they are (the
first version).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool


def update_sampled_rows(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimiser that leaves rows alone that took no part in the step, and their state.

    Args:
        tx: the optimiser of the class centres; its state is per element, or one for all of them (counts).

    Returns:
        A transformation whose ``update`` also takes ``sampled``, booleans ``[rows]``, as
        `sharded_margin_softmax` returns them: arrays whose leading axis has as many rows as ``sampled`` are
        masked, others not.

    Source:
        insightface, ``partial_fc.py``.

    Example:
        >>> tx = update_sampled_rows(optax.sgd(1.0, momentum=0.9))
        >>> weights = jnp.ones((2, 1))
        >>> updates, _ = tx.update(weights, tx.init(weights), sampled=jnp.array([True, False]))
        >>> updates.ravel().tolist()
        [-1.0, 0.0]
    """
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: Any, state: Any, params: Any = None, *, sampled: Bool[Array, " rows"], **extra: Any
    ) -> tuple[Any, Any]:
        def rows_of(new: Array, old: Array | float) -> Array:
            if jnp.ndim(new) == 0 or new.shape[0] != sampled.shape[0]:
                return new
            return jnp.where(sampled.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        moved, following = inner.update(updates, state, params, **extra)
        moved = jax.tree.map(lambda new: rows_of(new, 0), moved)
        return moved, jax.tree.map(rows_of, following, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)  # pyright: ignore[reportArgumentType]
