"""ExcessMTL: tasks that are further from what they can reach weigh more, by multiplicative updates.

He et al., arXiv:2402.02009, Algorithm 1. The excess risk is estimated from the gradients as Adagrad scales
them: elementwise, with an accumulator of T gradients beside the parameters; only T numbers cross the mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def excess_risks(accumulated: Any, stacked_grads: Any) -> tuple[Any, Float[Array, " tasks"]]:
    """The accumulator of squares after this step, and the estimated excess risks.

    ``a_ip <- a_ip + J_ip^2``, ``e_i = sum_p J_ip^2 / sqrt(a_ip + 1e-7)``

    Args:
        accumulated: a, pytree of ``[T, ...]``; zeros at first.
        stacked_grads: J, pytree of ``[T, ...]``.

    Returns:
        ``(a, e)`` with e ``[T]``, not negative.

    Source:
        arXiv:2402.02009, Algorithm 1; LibMTL and torchjd have 1e-7 inside the root.

    Example:
        >>> import jax.numpy as jnp
        >>> accumulated, risks = excess_risks(jnp.zeros((2, 1)), jnp.array([[2.0], [0.0]]))
        >>> [round(float(e), 3) for e in risks]
        [2.0, 0.0]
    """
    accumulated = jax.tree.map(lambda a, J: a + jnp.square(J).astype(a.dtype), accumulated, stacked_grads)

    def risk(a: Array, J: Array) -> Array:
        return jnp.sum(jnp.square(J) / jnp.sqrt(a + 1e-7), axis=range(1, J.ndim))

    risks: list[Array] = jax.tree.leaves(jax.tree.map(risk, accumulated, stacked_grads))
    return accumulated, jnp.sum(jnp.stack(risks), axis=0)


def excess_weights(
    w: Float[Array, " tasks"], risks: Float[Array, " tasks"], step_size: float = 1e-2
) -> Float[Array, " tasks"]:
    """The next weights.

    ``w_i <- w_i exp(step_size e_i)``, brought to the sum that they had; computed in logarithms.

    Args:
        w: weights ``[T]``, positive.
        risks: e ``[T]``, relative to those of the first step in the paper.
        step_size: of the logarithms.

    Returns:
        Weights ``[T]``.

    Source:
        arXiv:2402.02009, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp
        >>> excess_weights(jnp.ones(2), jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """
    return jnp.sum(w) * jax.nn.softmax(jnp.log(w) + step_size * risks)
