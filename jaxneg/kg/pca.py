"""Principal components, with the signs of scikit-learn's convention."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class PCA(NamedTuple):
    """Principal components.

    Attributes:
        mean: of the rows.
        components: unit vectors, by falling variance; in each the loading of largest size is positive.
        var: explained variances, with n - 1.
    """

    mean: Float[Array, "d"]
    components: Float[Array, "z d"]
    var: Float[Array, "z"]


def pca_fit(X: Float[Array, "n d"], Z: int) -> PCA:
    """The Z principal components of the rows.

    Args:
        X: rows.
        Z: number of components, at most ``min(n, d)``.

    Returns:
        Mean, components and variances; in float32 at least.

    Raises:
        ValueError: fewer than two rows, or Z out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> pca_fit(jnp.array([[0.0, -2.0], [0.0, 2.0]]), 1).components.tolist()
        [[0.0, 1.0]]
    """
    X = jnp.asarray(X)
    if X.ndim != 2 or X.shape[0] < 2:
        raise ValueError(f"X: expected shape [n, d] with at least two rows, got {X.shape}")
    if not 1 <= Z <= min(X.shape):
        raise ValueError(f"Z: expected from 1 to min(n, d) = {min(X.shape)}, got {Z}")
    X = X.astype(jnp.promote_types(X.dtype, jnp.float32))
    mean = jnp.mean(X, axis=0)
    _, singular, components = jnp.linalg.svd(X - mean, full_matrices=False)
    components = components[:Z]
    largest = jnp.take_along_axis(components, jnp.argmax(jnp.abs(components), axis=1)[:, None], axis=1)
    components = components * jnp.where(largest < 0, -1, 1)
    return PCA(mean, components, jnp.square(singular[:Z]) / (X.shape[0] - 1))


def pca_transform(pca: PCA, X: Float[Array, "n d"]) -> Float[Array, "n z"]:
    """Coordinates of rows along the components.

    Args:
        pca: of `pca_fit`.
        X: rows.

    Returns:
        ``(X - mean) components^T``.

    Example:
        >>> import jax.numpy as jnp
        >>> X = jnp.array([[0.0, -2.0], [0.0, 2.0]])
        >>> pca_transform(pca_fit(X, 1), X).tolist()
        [[-2.0], [2.0]]
    """
    return jnp.matmul(X.astype(pca.mean.dtype) - pca.mean, pca.components.T, precision="highest")
