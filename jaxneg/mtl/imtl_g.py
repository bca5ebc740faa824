"""IMTL-G: the combination whose projections onto all task gradients are equal.

Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021), Equation 3, extended to dependent gradients
as in arXiv:2406.16232.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.solvers import ZERO_GRADIENT, gradient_norms


def imtl_g(G: Float[Array, "tasks tasks"], form: Literal["C", "G"] = "C") -> Float[Array, " tasks"]:
    """Weights of the impartial combination.

    ``w = v / sum v`` with ``v = D^-1 C^+ 1`` (form "C": cosines C, norms D) or ``v = G^+ d`` (form "G"). They
    agree where G is regular; the first keeps float32 exact where norms differ by factors of hundreds. Where G
    is singular they are different least-squares solutions. Weights may be negative. A task without a gradient
    gets weight 0; if none has one, all get 1/T; if sum v is zero to rounding, all weights are 0.

    Args:
        G: ``[T, T]``.
        form: "C" or "G".

    Returns:
        Weights ``[T]`` that sum to 1, or 0.

    Raises:
        ValueError: G not square or T = 0, or an unknown form.
        TypeError: G not floating point.

    Source:
        ICLR 2021, Equation 3; arXiv:2406.16232, Appendix B.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in imtl_g(jnp.diag(jnp.array([1.0, 4.0])))]
        [0.6667, 0.3333]
    """
    G = checked_gram(G)
    if form not in ("C", "G"):
        raise ValueError(f"form: expected 'C' or 'G', got {form!r}")
    v = equal_projections(G, form)
    total = jnp.sum(v)
    vanishes = jnp.abs(total) < (1e-6 if G.dtype == jnp.float32 else 1e-12)
    weights = jnp.where(vanishes, 0.0, v / jnp.where(vanishes, 1.0, total))
    return jnp.where(jnp.any(jnp.diagonal(G) > 0), weights, 1 / G.shape[0])


def equal_projections(
    G: Float[Array, "tasks tasks"], form: Literal["C", "G"] = "C"
) -> Float[Array, " tasks"]:
    """The direction in which all projections onto unit gradients are equal, or nearest to it.

    ``v = D^-1 C^+ 1`` (form "C") or ``v = G^+ d`` (form "G"), times the longest gradient's norm.

    Args:
        G: ``[T, T]``.
        form: "C" or "G".

    Returns:
        ``[T]``; 0 for tasks without a gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> equal_projections(jnp.diag(jnp.array([1.0, 4.0]))).tolist()
        [2.0, 1.0]
    """
    norms = gradient_norms(G)
    longest = jnp.max(norms)
    longest = jnp.where(longest > 0, longest, 1.0)
    norms = norms / longest
    present = norms > ZERO_GRADIENT
    safe = jnp.where(present, norms, 1.0)
    if form == "C":
        scale = safe * longest
        cosines = jnp.where(present[:, None] & present, G / (scale[:, None] * scale), 0.0)
        v = _pseudo_solve(cosines, present.astype(G.dtype)) / safe
    else:
        v = _pseudo_solve(G / longest**2, norms)
    return jnp.where(present, v, 0.0)


@jax.custom_jvp
def _pseudo_solve(matrix: Array, right: Array) -> Array:
    """``M^+ r`` for a symmetric M."""
    values, vectors = jnp.linalg.eigh(matrix)
    kept = jnp.abs(values) > jnp.max(jnp.abs(values)) * matrix.shape[0] * jnp.finfo(matrix.dtype).eps
    return vectors @ (jnp.where(kept, vectors.T @ right / jnp.where(kept, values, 1.0), 0.0))


@_pseudo_solve.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # At constant rank (Golub & Pereyra 1973, Equation 4.12); eigh's own fails where eigenvalues are equal.
    (matrix, right), (matrix_change, right_change) = primals, tangents
    solution = _pseudo_solve(matrix, right)
    change = matrix_change @ solution
    outside = matrix_change @ _pseudo_solve(matrix, solution)
    tangent = _pseudo_solve(matrix, right_change - change)
    tangent += _pseudo_solve(matrix, _pseudo_solve(matrix, matrix_change @ (right - matrix @ solution)))
    return solution, tangent + outside - matrix @ _pseudo_solve(matrix, outside)
