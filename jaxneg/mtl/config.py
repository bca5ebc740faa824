"""ConFIG: the direction that makes the same positive angle with every task gradient.

Liu, Chu & Thuerey, arXiv:2408.11104, Section 3. It is stated on the unit gradients, whose Gram matrix
are the cosines: G is enough.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.gram import checked_gram
from jaxneg.mtl.imtl_g import equal_projections


def config(G: Float[Array, "tasks tasks"]) -> Float[Array, " tasks"]:
    """Weights of the conflict-free inverse gradient.

    ``g = (sum_i J_i . u) u`` with the unit vector u along ``U^+ 1``, U the unit gradients. In G:
    ``v = D^-1 C^+ 1``, ``n = sqrt(v^T G v)``, ``w = (sum_i (G v)_i / n) v / n``. Weights may be negative. A
    task without a gradient gets weight 0; if none has one, all get 1/T; where unit gradients cancel, all are
    0.

    Args:
        G: ``[T, T]``.

    Returns:
        Weights ``[T]``.

    Raises:
        ValueError: G not square or T = 0.
        TypeError: G not floating point.

    Source:
        arXiv:2408.11104, Section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(w), 4) for w in config(jnp.diag(jnp.array([1.0, 4.0])))]
        [1.5, 0.75]
    """
    G = checked_gram(G)
    v = equal_projections(G)
    products = G @ v
    square = v @ products
    # What is left of gradients that cancel is rounding.
    rounding = 1e-6 if G.dtype == jnp.float32 else 1e-12
    cancels = square <= rounding**2 * (v**2 @ jnp.diagonal(G))
    weights = jnp.where(cancels, 0.0, jnp.sum(products) / jnp.where(cancels, 1.0, square) * v)
    return jnp.where(jnp.any(jnp.diagonal(G) > 0), weights, 1 / G.shape[0])
