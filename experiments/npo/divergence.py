"""How fast gradient ascent and NPO leave their start: Theorem 2 on the model it is proved for.

Implements Zhang et al., arXiv:2404.05868, Theorem 2: binary logistic regression with fewer points than
dimensions, full-batch gradient descent on the mean loss, distance ``||theta - theta_0|| = ||X (theta -
theta_0)||_2``. Gradient ascent diverges linearly in the number of steps, NPO logarithmically.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.npo.gaussian_logistic import negative_log_likelihood
from jaxneg.unlearning import ga_loss, npo_loss


class Setting(NamedTuple):
    """A kind of instance and how it is unlearned."""

    n_forget: int
    dimension: int
    learning_rate: float
    beta: float
    """NPO's inverse temperature."""
    orthogonal: bool
    """Whether the inputs are orthogonal to one another."""


INSTANCES = {
    "general": Setting(n_forget=20, dimension=400, learning_rate=0.5, beta=0.5, orthogonal=False),
    "orthogonal": Setting(n_forget=12, dimension=64, learning_rate=1.0, beta=1.0, orthogonal=True),
}


class Instance(NamedTuple):
    """A logistic regression to unlearn."""

    x: Float[Array, "n d"]
    y: Int[Array, " n"]
    theta: Float[Array, " d"]
    """Weights to start from."""


def draw_instance(key: jax.Array, setting: Setting) -> Instance:
    """An instance that meets the theorem's assumptions.

    Rows of X have norms around 1 and small inner products: N(0, I/d), or orthogonal with norms uniform in
    [0.8, 1.3]. Labels are coins, the start is N(0, 0.25^2 I).

    Args:
        key: randomness.
        setting: sizes, with at most as many points as dimensions.

    Returns:
        The instance.
    """
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], (setting.n_forget, setting.dimension))
    if setting.orthogonal:
        norms = jax.random.uniform(keys[1], (setting.n_forget, 1), minval=0.8, maxval=1.3)
        x = norms * jnp.linalg.qr(x.T)[0].T
    else:
        x = x / setting.dimension**0.5
    y = jax.random.bernoulli(keys[2], 0.5, (setting.n_forget,)).astype(int)
    return Instance(x, y, 0.25 * jax.random.normal(keys[3], (setting.dimension,)))


def diverge(
    instance: Instance, setting: Setting, steps: int
) -> tuple[dict[str, Float[Array, " steps"]], dict[str, Float[Array, " d"]]]:
    """Unlearns the instance by gradient ascent and by NPO.

    Args:
        instance: the regression.
        setting: learning rate and beta.
        steps: gradient steps.

    Returns:
        For "GA" and "NPO" the distances from the start after steps 1, 2, ..., and the weights after the last.
    """
    ones = jnp.ones(instance.y.shape, int)
    ref_nll = negative_log_likelihood(instance.x @ instance.theta, instance.y)
    losses = {
        "GA": lambda nll: ga_loss(nll, ones).mean(),
        "NPO": lambda nll: npo_loss(nll, ref_nll, setting.beta).mean(),
    }

    def loss(weights: dict[str, Array]) -> Array:
        terms = [
            losses[name](negative_log_likelihood(instance.x @ theta, instance.y))
            for name, theta in weights.items()
        ]
        return sum(terms, jnp.zeros(()))

    def step(weights: dict[str, Array], _: None) -> tuple[dict[str, Array], dict[str, Array]]:
        gradient = jax.grad(loss)(weights)
        weights = jax.tree.map(lambda theta, g: theta - setting.learning_rate * g, weights, gradient)
        moved = {name: instance.x @ (theta - instance.theta) for name, theta in weights.items()}
        return weights, jax.tree.map(jnp.linalg.norm, moved)

    weights, distances = jax.lax.scan(step, dict.fromkeys(losses, instance.theta), length=steps)
    return distances, weights


def slopes(distance_ga: np.ndarray, distance_npo: np.ndarray, setting: Setting) -> tuple[float, float]:
    """The two rates, fitted on the second half of the steps.

    Args:
        distance_ga: distances of gradient ascent after steps 1, 2, ...
        distance_npo: distances of NPO.
        setting: beta and the number of points.

    Returns:
        The slope of ``log distance`` against ``log t`` for gradient ascent, 1 where it is linear; and that of
        ``beta distance / sqrt(n_forget)`` against ``log t`` for NPO, 1 where it is logarithmic as Lemma 4 has
        it.
    """
    log_t = np.log(np.arange(1, len(distance_ga) + 1))
    half = slice(len(log_t) // 2, None)
    linear = np.polyfit(log_t[half], np.log(distance_ga[half]), 1)[0]
    logarithmic = np.polyfit(log_t[half], setting.beta * distance_npo[half] / np.sqrt(setting.n_forget), 1)[0]
    return float(linear), float(logarithmic)
