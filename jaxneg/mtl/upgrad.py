"""UPGrad: every task's gradient projected onto the cone of directions that hurt no task, then averaged.

Quinton & Rey, arXiv:2406.16232, Equations 5 to 8.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import SolverInfo, nonnegative_minima


def upgrad(
    G: Float[Array, "tasks tasks"],
    pref: Float[Array, " tasks"] | None = None,
    norm_eps: float = 1e-4,
    reg_eps: float = 1e-4,
    *,
    return_info: bool = False,
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Weights of the averaged projections onto the dual cone.

    ``w = sum_i v_i`` with ``v_i = argmin v^T (G / tr G + reg_eps I) v  s.t.  v >= p_i e_i``. The T problems
    share one matrix and are solved together.

    Args:
        G: ``[T, T]``.
        pref: preference p ``[T]``, not negative; 1/T each where None.
        norm_eps: below this trace G counts as 0 and w = p; 0 for very small gradients.
        reg_eps: makes the matrix positive definite.
        return_info: whether to return a `SolverInfo` too; its residual is ``max |min(y, slope)|`` of the
            problems with ``v_i = p_i (e_i + y_i)``.

    Returns:
        Weights ``[T]``, at least p.

    Raises:
        ValueError: G not square or T = 0, pref of another shape, a negative norm_eps, or reg_eps <= 0.
        TypeError: G not floating point.

    Source:
        arXiv:2406.16232, Equations 5 to 8.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in upgrad(jnp.eye(2))]
        [0.5, 0.5]
    """
    G = checked_gram(G)
    pref = checked_preference(G, pref)
    matrix = regularized_gram(G, norm_eps, reg_eps)
    y, residual, iterations = nonnegative_minima(matrix, matrix)
    weights = pref + jnp.maximum(pref, 0) @ y
    return (weights, SolverInfo(residual, iterations)) if return_info else weights


def regularized_gram(
    G: Float[Array, "tasks tasks"], norm_eps: float, reg_eps: float
) -> Float[Array, "tasks tasks"]:
    """The Gram matrix scaled to trace one and made positive definite.

    ``G / tr G + reg_eps I``, or ``reg_eps I`` where ``tr G < norm_eps``.

    Args:
        G: ``[T, T]``.
        norm_eps: not negative.
        reg_eps: positive.

    Returns:
        ``[T, T]``.

    Raises:
        ValueError: a negative norm_eps, or reg_eps <= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> regularized_gram(jnp.eye(2), 0.0, 0.5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if norm_eps < 0:
        raise ValueError(f"norm_eps: expected at least 0, got {norm_eps}")
    if reg_eps <= 0:
        raise ValueError(f"reg_eps: expected a positive number, got {reg_eps}")
    trace = jnp.trace(G)
    counts = (trace >= norm_eps) & (trace > 0)
    scaled = jnp.where(counts, G / jnp.where(counts, trace, 1.0), 0.0)
    return scaled + reg_eps * jnp.eye(G.shape[0], dtype=G.dtype)


def checked_preference(
    G: Float[Array, "tasks tasks"], pref: Float[Array, " tasks"] | None
) -> Float[Array, " tasks"]:
    """A preference vector of the right length; 1/T each where None.

    Args:
        G: ``[T, T]``.
        pref: ``[T]`` or None.

    Returns:
        ``[T]``, in G's dtype.

    Raises:
        ValueError: another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> checked_preference(jnp.eye(2), None).tolist()
        [0.5, 0.5]
    """
    tasks = G.shape[0]
    if pref is None:
        return jnp.full(tasks, 1 / tasks, G.dtype)
    if jnp.shape(pref) != (tasks,):
        raise ValueError(f"pref: expected shape ({tasks},), one for each task, got {jnp.shape(pref)}")
    return jnp.asarray(pref, G.dtype)
