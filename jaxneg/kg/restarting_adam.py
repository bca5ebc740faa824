"""Adam as RotatE's code runs it: made anew, with a tenth of the learning rate, after half of the steps.

``codes/run.py`` of ``DeepGraphLearning/KnowledgeGraphEmbedding``: after step ``max_steps // 2`` the optimizer
is created again, which forgets its moments; the next drop comes at three times that step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxneg.kg.arguments import at_least

MOST_DROPS = 16


class RestartingAdamState(NamedTuple):
    """Steps made, and Adam's moments since the last restart."""

    step: Int[Array, ""]
    adam: Any


def restarting_adam(
    learning_rate: float | Float[Array, ""], max_steps: int, factor: float = 0.1
) -> optax.GradientTransformation:
    """Adam that restarts with ``factor`` times the learning rate after steps w, 3w, 9w, ... of w =
    max_steps // 2.

    Args:
        learning_rate: at first.
        max_steps: steps of the whole training.
        factor: of the learning rate at every restart.

    Returns:
        A gradient transformation.

    Raises:
        ValueError: max_steps below 1.

    Source:
        RotatE's ``run.py``.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = restarting_adam(1.0, max_steps=2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(3):
        ...     update, state = tx.update(jnp.ones(1), state)
        >>> round(float(update[0]), 4)
        -0.1
    """
    at_least("max_steps", max_steps, 1)
    adam = optax.scale_by_adam()
    drops = [max(max_steps // 2, 1) * 3**i for i in range(MOST_DROPS) if max_steps * 3**i < 2**30]

    def init(params: Any) -> RestartingAdamState:
        return RestartingAdamState(jnp.zeros((), jnp.int32), adam.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RestartingAdamState]:
        # Step number w is the last with the old optimizer, since the official loop counts from 0.
        past = jnp.asarray(drops, jnp.int32) < state.step
        restart = jnp.any(jnp.asarray(drops, jnp.int32) + 1 == state.step)
        fresh = jax.tree.map(lambda x: jnp.where(restart, jnp.zeros_like(x), x), state.adam)
        updates, moments = adam.update(updates, fresh, params)
        rate = -learning_rate * factor ** jnp.sum(past)
        return jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates), RestartingAdamState(
            state.step + 1, moments
        )

    return optax.GradientTransformation(init, update)
