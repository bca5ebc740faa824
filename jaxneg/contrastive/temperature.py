"""AMCL's temperatures: every pair in every head has its own, from a small network of the two vectors.

L. Wang et al. 2024, "Adaptive multi-head contrastive learning", arXiv:2310.05615, Equation 3 and the
regulariser of its Table 2. A temperature is the variance of a Gaussian around the anchor, so that
``-log p(z+ | z) = const + omega(tau) - cos / tau``.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.contrastive.arguments import check_range, floating

TemperatureNet = dict[str, Array]
"""``{"w1": [dim, hidden], "b1": [hidden], "w2": [hidden, dim], "b2": [dim]}``"""


def omega(tau: Float[ArrayLike, "*pairs"], dim: int) -> Float[Array, "*pairs"]:
    """The regulariser of a temperature, least at 2 / dim.

    ``omega = dim / 2 log tau + 1 / tau``

    Args:
        tau: temperatures, positive.
        dim: of the vectors that are compared.

    Returns:
        One value for each temperature.

    Raises:
        ValueError: dim below 1.

    Source:
        arXiv:2310.05615, Equations 2.1 to 2.4.

    Example:
        >>> float(omega(1.0, 128))
        1.0
    """
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, got {dim}")
    tau = jnp.asarray(tau)
    return dim / 2 * jnp.log(tau) + 1 / tau


def init_temperature_net(key: PRNGKeyArray, in_dim: int, hidden: int = 128) -> TemperatureNet:
    """The network behind the temperatures, shared by all heads and all kinds of pairs.

    ``phi(z) = relu(z w1 + b1) w2 + b2``; weights and biases from ``U(-1, 1) / sqrt(inputs)``

    Args:
        key: random key.
        in_dim: numbers in a vector: those of a head's output, or for Barlow Twins the batch size.
        hidden: units.

    Returns:
        Parameters ``w1``, ``b1``, ``w2``, ``b2``.

    Raises:
        ValueError: a size below 1.

    Source:
        arXiv:2310.05615, Equation 3; PyTorch's initialisation of linear layers.

    Example:
        >>> {name: x.shape for name, x in init_temperature_net(jax.random.key(0), 4, 3).items()}
        {'w1': (4, 3), 'b1': (3,), 'w2': (3, 4), 'b2': (4,)}
    """
    if in_dim < 1 or hidden < 1:
        raise ValueError(f"in_dim, hidden: expected at least 1, got {in_dim} and {hidden}")
    shapes = {"w1": (in_dim, hidden), "b1": (hidden,), "w2": (hidden, in_dim), "b2": (in_dim,)}
    inputs = {"w1": in_dim, "b1": in_dim, "w2": hidden, "b2": hidden}
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(of_part, shape, minval=-1.0, maxval=1.0) / inputs[name] ** 0.5
        for of_part, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def temperature_features(
    params: TemperatureNet, z: Float[Array, "*vectors dim"]
) -> Float[Array, "*vectors dim"]:
    """What the network makes of each vector alone; a pair's score is a product of two.

    ``phi(z) = relu(z w1 + b1) w2 + b2``

    Args:
        params: from `init_temperature_net`.
        z: vectors.

    Returns:
        phi(z), in float32 or wider.

    Raises:
        ValueError: parameters that are missing, or for vectors of another length.

    Source:
        arXiv:2310.05615, Equation 3.

    Example:
        >>> phi = init_temperature_net(jax.random.key(0), 4)
        >>> temperature_features(phi, jnp.ones((2, 3, 4))).shape
        (2, 3, 4)
    """
    if missing := {"w1", "b1", "w2", "b2"} - params.keys():
        raise ValueError(f"phi: parameter {min(missing)!r} is missing; init_temperature_net makes all four")
    w1, b1, w2, b2 = (floating(name, params[name]) for name in ("w1", "b1", "w2", "b2"))
    if w1.shape[0] != z.shape[-1]:
        raise ValueError(f"phi: expected parameters for vectors of length {z.shape[-1]}, got {w1.shape[0]}")
    return jax.nn.relu(floating("z", z) @ w1 + b1) @ w2 + b2


def temperature_scores(
    params: TemperatureNet,
    za: Float[Array, "*heads n dim"],
    zb: Float[Array, "*heads m dim"],
    *,
    matrix: bool,
) -> Float[Array, "*heads n m"] | Float[Array, "*heads n"]:
    """How sure the network is that two vectors belong together, for pairs or for all combinations.

    ``r_ij = phi(za_i) . phi(zb_j)``

    The network sees each vector once: all pairs cost one matrix product.

    Args:
        params: from `init_temperature_net`.
        za: vectors, of length one for SimCLR, MoCo and SimSiam.
        zb: vectors.
        matrix: whether each vector of ``za`` meets each of ``zb``, or row meets row.

    Returns:
        Scores ``[..., n, m]``, or ``[..., n]`` for row and row.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        arXiv:2310.05615, Equation 3.

    Example:
        >>> phi = init_temperature_net(jax.random.key(0), 4)
        >>> temperature_scores(phi, jnp.ones((3, 4)), jnp.ones((5, 4)), matrix=True).shape
        (3, 5)
    """
    if za.ndim < 1 or za.shape[-1] != zb.shape[-1] or (not matrix and za.shape != zb.shape):
        rule = "vectors of the same length" if matrix else "vectors of the same shape"
        raise ValueError(f"zb: expected {rule} as za, {za.shape}, got {zb.shape}")
    fa, fb = temperature_features(params, za), temperature_features(params, zb)
    return fa @ jnp.swapaxes(fb, -1, -2) if matrix else jnp.sum(fa * fb, -1)


def score_to_temperature(
    score: Float[ArrayLike, "*pairs"], tau_min: ArrayLike = 1e-5, tau_max: ArrayLike = 2.0
) -> Float[Array, "*pairs"]:
    """The temperature of a score: low where the network is sure.

    ``tau = tau_min + (tau_max - tau_min) sigmoid(-score)``

    Args:
        score: of pairs.
        tau_min: lower bound, reached exactly from a large score on.
        tau_max: upper bound.

    Returns:
        Temperatures in float32 or wider.

    Raises:
        ValueError: bounds that are not ``0 < tau_min < tau_max``.

    Source:
        arXiv:2310.05615, Equation 3.

    Example:
        >>> score_to_temperature(jnp.array([-200.0, 0.0, 200.0]), 0.5, 1.5).tolist()
        [1.5, 1.0, 0.5]
    """
    check_range(tau_min, tau_max)
    score = floating("score", score)
    span = jnp.asarray(tau_max) - tau_min
    tail = span * jax.nn.sigmoid(jnp.where(score > 0, -score, score))  # at most half: both ends are exact
    return jnp.where(score > 0, tau_min + tail, tau_max - tail)


def best_temperature(sim: Float[ArrayLike, "*pairs"], dim: int) -> Float[Array, "*pairs"]:
    """The most likely temperature of a positive pair alone, the minimiser of ``-sim / tau + omega(tau)``.

    ``tau* = 2 (1 - sim) / dim``

    Args:
        sim: cosines.
        dim: of the vectors that are compared.

    Returns:
        One temperature for each pair.

    Raises:
        ValueError: dim below 1.

    Source:
        arXiv:2310.05615, the likelihood behind Table 2, with beta = 1.

    Example:
        >>> float(best_temperature(0.5, 4))
        0.25
    """
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, got {dim}")
    return 2 * (1 - jnp.asarray(sim)) / dim
