"""DualProj: the average gradient projected onto the cone of directions that hurt no task.

Lopez-Paz & Ranzato, arXiv:1706.08840, Equation 8 (GEM), as restated by Quinton & Rey, arXiv:2406.16232.
"""

from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import SolverInfo, nonnegative_minima
from jaxneg.mtl.upgrad import checked_preference, regularized_gram


def dualproj(
    G: Float[Array, "tasks tasks"],
    pref: Float[Array, " tasks"] | None = None,
    norm_eps: float = 1e-4,
    reg_eps: float = 1e-4,
    *,
    return_info: bool = False,
) -> Float[Array, " tasks"] | tuple[Float[Array, " tasks"], SolverInfo]:
    """Weights of the preferred combination's projection onto the dual cone.

    ``argmin v^T (G / tr G + reg_eps I) v  s.t.  v >= p``

    Args:
        G: ``[T, T]``.
        pref: preference p ``[T]``; 1/T each where None.
        norm_eps: below this trace G counts as 0 and w = p; 0 for very small gradients.
        reg_eps: makes the matrix positive definite.
        return_info: whether to return a `SolverInfo` too; its residual is ``max |min(y, slope)|`` with ``v =
            p + y``.

    Returns:
        Weights ``[T]``, at least p.

    Raises:
        ValueError: G not square or T = 0, pref of another shape, a negative norm_eps, or reg_eps <= 0.
        TypeError: G not floating point.

    Source:
        arXiv:1706.08840, Equation 8; arXiv:2406.16232, Section 5.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in dualproj(jnp.eye(2))]
        [0.5, 0.5]
    """
    G = checked_gram(G)
    pref = checked_preference(G, pref)
    matrix = regularized_gram(G, norm_eps, reg_eps)
    y, residual, iterations = nonnegative_minima(matrix, (matrix @ pref)[None])
    weights = pref + y[0]
    return (weights, SolverInfo(residual, iterations)) if return_info else weights
