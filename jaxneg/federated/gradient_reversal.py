"""Gradient reversal, and the schedule of its strength.

Ganin and Lempitsky 2015 (arXiv:1409.7495, Equations 4 to 6 and Section 4.1), as FedKA's features
disentangler uses them (Sun, Chong and Ochiai 2022, arXiv:2203.11635).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


@jax.custom_vjp
def grl(x: Float[Array, "..."], scale: ArrayLike) -> Float[Array, "..."]:
    """The gradient reversal layer: identity forward, ``-scale`` times the cotangent backward.

    ``R(x) = x,  dR/dx = -scale I``

    Args:
      x: Any floating-point array.
      scale: How strongly the gradient is reversed, a scalar; it gets no gradient itself.

    Returns:
      ``x``.

    Source:
      Ganin and Lempitsky 2015, arXiv:1409.7495, Equations 4 and 5.

    Example:
      >>> import jax
      >>> from jaxneg.federated import grl
      >>> float(jax.grad(lambda x: grl(x, 0.5) ** 2)(3.0))
      -3.0
    """
    del scale
    return x


def _forward(x: Array, scale: ArrayLike) -> tuple[Array, ArrayLike]:
    return x, scale


def _backward(scale: ArrayLike, cotangent: Array) -> tuple[Array, Array]:
    return (-jnp.asarray(scale) * cotangent).astype(cotangent.dtype), jnp.zeros_like(jnp.asarray(scale))


grl.defvjp(_forward, _backward)


def adaptation_schedule(progress: ArrayLike, gamma: float = 5.0) -> Float[Array, "..."]:
    """How strongly features are adapted at a point of the training.

    ``lambda(p) = 2 / (1 + exp(-gamma p)) - 1``

    Args:
      progress: Share of the training that is over, between 0 and 1.
      gamma: Steepness: 5 in FedKA, 10 in the paper of gradient reversal.

    Returns:
      Numbers from 0 to below 1, of the shape of ``progress``.

    Raises:
      ValueError: If ``gamma`` is not positive.

    Source:
      Ganin and Lempitsky 2015, arXiv:1409.7495, Section 4.1; FedKA's published code.

    Example:
      >>> from jaxneg.federated import adaptation_schedule
      >>> [round(float(x), 3) for x in adaptation_schedule([0.0, 0.5, 1.0])]
      [0.0, 0.848, 0.987]
    """
    if not gamma > 0:
        raise ValueError(f"gamma: expected a positive number, got {gamma}")
    # 2 / (1 + exp(-x)) - 1 = tanh(x / 2), which does not lose the digits near 0.
    progress = jnp.asarray(progress)
    return jnp.tanh(0.5 * gamma * progress.astype(jnp.promote_types(progress.dtype, jnp.float32)))
