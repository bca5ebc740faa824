"""A trajectory of a stochastic integrator as one loop on the device."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxneg.coulomb.arguments import whole

State = TypeVar("State")


def trajectory(
    step: Callable[[State, PRNGKeyArray], State],
    state: State,
    key: PRNGKeyArray,
    steps: int,
    every: int,
    observe: Callable[[State], Any] | None,
) -> tuple[State, Any]:
    """Steps with a key of their own each, and what is seen after every so many of them.

    Args:
        step: ``(state, key) -> state``.
        state: to begin with.
        key: folded with the number of each step.
        steps: how many, a multiple of ``every``.
        every: steps between observations.
        observe: ``state -> tree of arrays``; None: nothing is observed.

    Returns:
        The last state, and the observations stacked on a leading axis ``[steps // every, ...]``.

    Raises:
        ValueError: counts that are not positive, or steps that ``every`` does not divide.

    Example:
        >>> last, seen = trajectory(lambda x, _: x + 1, jnp.zeros(()), jax.random.key(0), 6, 2, lambda x: x)
        >>> float(last), seen.tolist()
        (6.0, [2.0, 4.0, 6.0])
    """
    whole("steps", steps)
    whole("every", every)
    if steps % every:
        raise ValueError(f"steps: expected a multiple of every = {every}, got {steps}")

    def advanced(state: State, block: Any) -> tuple[State, Any]:
        state = jax.lax.fori_loop(
            0, every, lambda i, x: step(x, jax.random.fold_in(key, block * every + i)), state
        )
        return state, None if observe is None else observe(state)

    return jax.lax.scan(advanced, state, jnp.arange(steps // every))
