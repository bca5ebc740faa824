"""How different images of one prompt are from each other, and how sure a classifier is of them.

Vendi score: Friedman and Dieng 2023, arXiv:2210.02410, equation 2. Inception score: Salimans et al. 2016,
arXiv:1606.03498, Section 4. The mean pairwise similarity and the entropy of groups are the measures of
arXiv:2412.01339 (there with DreamSim's features and a classifier of attributes).
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr, xlogy
from jaxtyping import Array, Float

from jaxneg.diffusion.arguments import at_least_float32


def vendi_score(features: Float[Array, "images width"]) -> Float[Array, ""]:
    """The effective number of different images.

    ``exp(-sum_i lambda_i ln lambda_i)``, with the eigenvalues of ``K / n``, ``K_ij = cos(x_i, x_j)``

    Args:
        features: one row for each of n images; subtract a mean first where similarity is meant around it.

    Returns:
        From 1, all directions the same, to n, all orthogonal.

    Raises:
        TypeError: features that are not floating.
        ValueError: no image, or an array that is not ``[n, width]``.

    Source:
        arXiv:2210.02410, equation 2.

    Example:
        >>> round(float(vendi_score(jnp.eye(3))), 4)
        3.0
    """
    unit = _unit_rows(features)
    values = jnp.linalg.eigvalsh(_products(unit) / len(unit))
    return jnp.exp(entr(jnp.maximum(values, 0)).sum())


def mean_pairwise_cosine(features: Float[Array, "images width"]) -> Float[Array, ""]:
    """How similar images are on average.

    ``1 / (n (n - 1)) sum_{i != j} cos(x_i, x_j)``

    Args:
        features: one row for each of n images, at least two.

    Returns:
        From -1 to 1; lower is more diverse.

    Raises:
        TypeError: features that are not floating.
        ValueError: fewer than two images, or an array that is not ``[n, width]``.

    Source:
        arXiv:2412.01339, Section 4 (there with DreamSim's features).

    Example:
        >>> round(float(mean_pairwise_cosine(jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]))), 4)
        0.3333
    """
    unit = _unit_rows(features, least=2)
    n = len(unit)
    cosines = jnp.where(jnp.eye(n, dtype=bool), 0, _products(unit))
    return cosines.sum() / (n * (n - 1))


def class_entropy(probs: Float[Array, "images classes"]) -> Float[Array, ""]:
    """How evenly images spread over classes: the entropy of their mean distribution.

    ``-sum_k p_k ln p_k,  p = mean_n p(k | x_n)``

    Args:
        probs: a classifier's distribution for each image; one-hot rows for hard decisions.

    Returns:
        From 0 to ln K, nats.

    Raises:
        TypeError: probabilities that are not floating.
        ValueError: no image, or an array that is not ``[n, K]``.

    Source:
        arXiv:2412.01339, Section 4.

    Example:
        >>> round(float(class_entropy(jnp.eye(2))), 4)
        0.6931
    """
    return entr(_rows("probs", probs).mean(0)).sum()


def inception_score(probs: Float[Array, "images classes"]) -> Float[Array, ""]:
    """How sure a classifier is of each image, and how evenly the images spread over its classes.

    ``exp(mean_n KL(p(y | x_n) || p(y))),  p(y) = mean_n p(y | x_n)``

    Args:
        probs: a classifier's distribution for each image.

    Returns:
        From 1 to K.

    Raises:
        TypeError: probabilities that are not floating.
        ValueError: no image, or an array that is not ``[n, K]``.

    Source:
        arXiv:1606.03498, Section 4.

    Example:
        >>> round(float(inception_score(jnp.eye(3))), 4)
        3.0
    """
    probs = _rows("probs", probs)
    return jnp.exp(xlogy(probs, probs).sum(1).mean() + entr(probs.mean(0)).sum())


def _rows(name: str, values: Array, least: int = 1) -> Array:
    values = at_least_float32(name, values)
    if values.ndim != 2 or values.shape[0] < least or not values.shape[1]:
        raise ValueError(f"{name}: expected at least {least} rows, [images, ...], got shape {values.shape}")
    return values


def _unit_rows(features: Array, least: int = 1) -> Array:
    features = _rows("features", features, least)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _products(rows: Array) -> Array:
    return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
