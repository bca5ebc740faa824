"""The paper's synthetic forget and retain sets: two logistic populations under one random-feature model.

Implements Zhang et al., arXiv:2404.05868, Section 4: Gaussian inputs around opposite
centres, labels from opposite linear rules, and a model that is linear in fixed random ReLU features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import check_positive


class GaussianLogistic(NamedTuple):
    """The sets of the synthetic experiment; labels are the classes 0 and 1."""

    projection: Float[Array, "width dimension"]
    """W of the model ``P(y = 1 | x) = sigmoid(theta^T relu(W x))``, entries N(0, 1/dimension)."""
    x_forget: Float[Array, "forget dimension"]
    y_forget: Int[Array, " forget"]
    y_idk: Int[Array, " forget"]
    """A coin for each forget point: the label "I don't know"."""
    x_retain: Float[Array, "retain dimension"]
    y_retain: Int[Array, " retain"]
    eval_forget: Float[Array, "eval dimension"]
    """Fresh inputs of the forget population."""
    eval_retain: Float[Array, "eval dimension"]
    """Fresh inputs of the retain population."""


def synthetic_gaussian_logistic(
    key: jax.Array,
    alpha: float = 1.0,
    *,
    dimension: int = 16,
    n_forget: int = 200,
    n_retain: int = 1000,
    n_eval: int = 1000,
    width: int = 128,
) -> GaussianLogistic:
    """Draws the forget and the retain population of the synthetic experiment.

    ``x ~ N(mu, I)`` with ``mu_f = alpha 1 = -mu_r``, and ``P(y = 1 | x) = sigmoid((x - mu_f)^T theta_f + 1)``
    for the forget set, ``sigmoid((x - mu_r)^T theta_r - 1)`` for the retain set, ``theta_f =
    1/sqrt(dimension) = -theta_r``.

    Args:
        key: randomness.
        alpha: half the distance between the centres in each coordinate; 0 puts both sets on one another.
        dimension: of the inputs.
        n_forget: forget points.
        n_retain: retain points.
        n_eval: fresh points of each population.
        width: random features of the model.

    Returns:
        The sets, in jax's default floating dtype.

    Raises:
        ValueError: a size below 1.

    Source:
        arXiv:2404.05868, Section 4.

    Example:
        >>> data = synthetic_gaussian_logistic(jax.random.key(0), alpha=1.0)
        >>> data.x_forget.shape, data.projection.shape
        ((200, 16), (128, 16))
    """
    check_positive(dimension=dimension, n_forget=n_forget, n_retain=n_retain, n_eval=n_eval, width=width)
    keys = jax.random.split(key, 8)
    theta_forget = jnp.full(dimension, dimension**-0.5)

    def inputs(key: jax.Array, number: int, centre: float | Array) -> Array:
        return jax.random.normal(key, (number, dimension)) + centre

    x_forget = inputs(keys[0], n_forget, alpha)
    x_retain = inputs(keys[1], n_retain, -alpha)
    p_forget = jax.nn.sigmoid((x_forget - alpha) @ theta_forget + 1)
    p_retain = jax.nn.sigmoid((x_retain + alpha) @ -theta_forget - 1)
    return GaussianLogistic(
        projection=jax.random.normal(keys[2], (width, dimension)) * dimension**-0.5,
        x_forget=x_forget,
        y_forget=jax.random.bernoulli(keys[3], p_forget).astype(int),
        y_idk=jax.random.bernoulli(keys[4], 0.5, (n_forget,)).astype(int),
        x_retain=x_retain,
        y_retain=jax.random.bernoulli(keys[5], p_retain).astype(int),
        eval_forget=inputs(keys[6], n_eval, alpha),
        eval_retain=inputs(keys[7], n_eval, -alpha),
    )
