"""Lloyd's k-means with k-means++ seeding, on the device.

Papers: Lloyd 1982; Arthur and Vassilvitskii, "k-means++: The advantages of careful seeding", SODA 2007.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.kg.arguments import at_least, one_of

ROWS_AT_ONCE = 2**14
"""Rows whose distances to all centres are held at once."""

INITS = ("k-means++", "random")


def kmeans(
    key: PRNGKeyArray,
    X: Float[Array, "n z"],
    K: int,
    init: str | Float[Array, "k z"] = "k-means++",
    max_iter: int = 300,
) -> tuple[Int[Array, "n"], Float[Array, "k z"], Float[Array, ""]]:
    """Clusters rows until no label changes.

    Args:
        key: random key for the seeding.
        X: rows.
        K: number of clusters, at most the number of rows.
        init: "k-means++"; "random": K different rows; or the first centres.
        max_iter: most iterations.

    Returns:
        Labels, centres, and inertia, the sum of squared distances of rows to their centres.

    Raises:
        ValueError: K out of range, an unknown init or centres of another shape, rows that are not finite
            (outside of ``jit``).

    Source:
        Arthur and Vassilvitskii 2007, Section 2.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> labels, _, inertia = kmeans(jax.random.key(0), jnp.array([[0.0], [9.0], [0.0]]), 2)
        >>> bool(labels[0] == labels[2]), bool(labels[0] == labels[1]), float(inertia)
        (True, False, 0.0)
    """
    X = _checked(X, K)
    if isinstance(init, str):
        one_of("init", init, INITS)
        centers = (
            kmeans_plus_plus(key, X, K) if init == "k-means++" else jax.random.choice(key, X, (K,), False)
        )
    else:
        centers = jnp.asarray(init, X.dtype)
        if centers.shape != (K, X.shape[1]):
            raise ValueError(f"init: expected centres of shape {(K, X.shape[1])}, got {centers.shape}")
    return lloyd(X, centers, max_iter)[:3]


def kmeans_plus_plus(key: PRNGKeyArray, X: Float[Array, "n z"], K: int) -> Float[Array, "k z"]:
    """First centres: each a row, drawn with a probability that grows with the squared distance to the others.

    Args:
        key: random key.
        X: rows.
        K: number of centres.

    Returns:
        Centres.

    Raises:
        ValueError: K out of range.

    Source:
        Arthur and Vassilvitskii 2007, Section 2.2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> sorted(kmeans_plus_plus(jax.random.key(0), jnp.array([[0.0], [9.0], [0.0]]), 2)[:, 0].tolist())
        [0.0, 9.0]
    """
    X = _checked(X, K)
    keys = jax.random.split(key, K)

    def squared(center: Array) -> Array:
        return jnp.sum(jnp.square(X - center), axis=1)

    first = X[jax.random.randint(keys[0], (), 0, X.shape[0])]
    centers = jnp.zeros((K, X.shape[1]), X.dtype).at[0].set(first)

    def choose(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centers, nearest = carry
        # If every row is a centre already, all are as good as each other.
        weight = jnp.where(jnp.any(nearest > 0), nearest, 1)
        total = jnp.cumsum(weight)
        # In (0, total]: a row of weight 0 is never chosen.
        wanted = (1 - jax.random.uniform(keys[i], (), X.dtype)) * total[-1]
        center = X[jnp.minimum(jnp.searchsorted(total, wanted), X.shape[0] - 1)]
        return centers.at[i].set(center), jnp.minimum(nearest, squared(center))

    return jax.lax.fori_loop(1, K, choose, (centers, squared(first)))[0]


def lloyd(
    X: Float[Array, "n z"], centers: Float[Array, "k z"], max_iter: int = 300
) -> tuple[Int[Array, "n"], Float[Array, "k z"], Float[Array, ""], Int[Array, ""]]:
    """Lloyd's iterations from given centres, until no label changes.

    A cluster that loses all its rows takes the row that is farthest from its own centre; several such
    clusters take one each.

    Args:
        X: rows.
        centers: first centres.
        max_iter: most iterations.

    Returns:
        Labels, centres, inertia, and the number of iterations, the one that changed nothing included.

    Raises:
        ValueError: as in `kmeans`, max_iter below 1.

    Source:
        Lloyd 1982; empty clusters as in scikit-learn.

    Example:
        >>> import jax.numpy as jnp
        >>> lloyd(jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[0.0], [9.0]]))[0].tolist()
        [0, 0, 1]
    """
    K = centers.shape[0]
    X = _checked(X, K)
    at_least("max_iter", max_iter, 1)
    centers = centers.astype(X.dtype)
    middle = jnp.mean(X, axis=0)  # near the middle squares lose fewer digits
    X = X - middle

    def moved(labels: Array, distance: Array, centers: Array) -> Array:
        count = jnp.zeros(K, X.dtype).at[labels].add(1)
        total = jnp.zeros_like(centers).at[labels].add(X)
        empty = count == 0
        # The i-th empty cluster takes the i-th farthest row, which leaves its own cluster.
        farthest = jax.lax.top_k(distance, K)[1]
        row = farthest[jnp.where(empty, jnp.cumsum(empty) - 1, 0)]
        taken = jnp.where(empty[:, None], X[row], 0)
        loser = jnp.where(empty, labels[row], K)
        total = total.at[loser].add(-taken, mode="drop") + taken
        count = count.at[loser].add(-1, mode="drop") + empty
        return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], centers)

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, labels, _, centers, distance = state
        centers = moved(labels, distance, centers)
        nearest, distance = nearest_centers(X, centers)
        return number + 1, nearest, jnp.any(nearest != labels), centers, distance

    labels, distance = nearest_centers(X, centers - middle)
    start = (jnp.int32(1), labels, jnp.bool_(True), centers - middle, distance)
    number, labels, _, centers, distance = jax.lax.while_loop(
        lambda state: (state[0] <= max_iter) & state[2], iterate, start
    )
    exact = jnp.sum(jnp.square(X - centers[labels]))
    return labels, centers + middle, exact, jnp.minimum(number, max_iter)


def nearest_centers(
    X: Float[Array, "n z"], centers: Float[Array, "k z"]
) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """The nearest centre of each row, and its squared distance.

    ``||x||^2 - 2 x.c + ||c||^2``, in pieces of `ROWS_AT_ONCE` rows.

    Args:
        X: rows.
        centers: centres.

    Returns:
        Labels, the first of equally near centres, and squared distances.

    Example:
        >>> import jax.numpy as jnp
        >>> nearest_centers(jnp.array([[1.0], [8.0]]), jnp.array([[0.0], [9.0]]))[0].tolist()
        [0, 1]
    """
    norms = jnp.sum(jnp.square(centers), axis=1)
    index = jnp.arange(len(centers), dtype=jnp.int32)

    def of_rows(rows: Array) -> tuple[Array, Array]:
        distance = norms - 2 * jnp.matmul(rows, centers.T, precision="highest")
        least = jnp.min(distance, axis=1)
        # argmin would compare number by number on a CPU, and take longer than the product.
        labels = jnp.min(jnp.where(distance > least[:, None], len(centers), index), axis=1)
        return labels, least + jnp.sum(jnp.square(rows), axis=1)

    n, width = X.shape
    if n <= ROWS_AT_ONCE:
        return of_rows(X)
    pieces = jnp.pad(X, ((0, -n % ROWS_AT_ONCE), (0, 0))).reshape(-1, ROWS_AT_ONCE, width)
    labels, distance = jax.lax.map(of_rows, pieces)
    return labels.reshape(-1)[:n], distance.reshape(-1)[:n]


def elbow(counts: list[int], inertias: list[float]) -> int:
    """The number of clusters at the bend of the inertia curve: farthest from the chord between its ends.

    Args:
        counts: numbers of clusters, rising.
        inertias: inertia with each.

    Returns:
        One of ``counts``.

    Raises:
        ValueError: fewer than three points, or lists of different length.

    Example:
        >>> elbow([1, 2, 3, 4], [100.0, 20.0, 10.0, 0.0])
        2
    """
    if len(counts) < 3 or len(counts) != len(inertias):
        raise ValueError(
            f"inertias: expected one for each of at least three counts, got {len(inertias)} for {len(counts)}"
        )
    x, y = (np.asarray(values, np.float64) for values in (counts, inertias))
    x, y = ((values - values[0]) / ((values[-1] - values[0]) or 1) for values in (x, y))
    return counts[int(np.argmax(np.abs(y - x)))]


def _checked(X: Array, K: int) -> Array:
    X = jnp.asarray(X)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X: expected shape [n, z] with at least one of each, got {X.shape}")
    if not 1 <= K <= X.shape[0]:
        raise ValueError(f"K: expected from 1 to the number of rows, {X.shape[0]}, got {K}")
    if not isinstance(X, Tracer) and not bool(jnp.all(jnp.isfinite(X))):
        row = int(jnp.argmin(jnp.all(jnp.isfinite(X), axis=1)))
        raise ValueError(f"X: expected finite numbers, row {row} holds others")
    return X.astype(jnp.promote_types(X.dtype, jnp.float32))
