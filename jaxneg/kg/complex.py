"""ComplEx: a relation is a diagonal complex form, which need not be symmetric.

Paper: Trouillon et al., "Complex embeddings for simple link prediction", arXiv:1606.06357. The first half of
an embedding is its real part, the second its imaginary part, as in RotatE's code.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def complex_product(a: Float[Array, "*b two_d"], b: Float[Array, "*b two_d"]) -> Float[Array, "*b two_d"]:
    """Product of complex vectors that are stored as real half and imaginary half."""
    (a_re, a_im), (b_re, b_im) = (jnp.split(x, 2, axis=-1) for x in (a, b))
    return jnp.concatenate([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], axis=-1)


def complex_conjugate(a: Float[Array, "*b two_d"]) -> Float[Array, "*b two_d"]:
    """The vector with the imaginary half negated."""
    real, imaginary = jnp.split(a, 2, axis=-1)
    return jnp.concatenate([real, -imaginary], axis=-1)


def complex_query(
    known: Float[Array, "*b two_d"], r: Float[Array, "*b two_d"], side: str
) -> Float[Array, "*b two_d"]:
    """The direction that the missing entity should lie in: ``h r``, or ``conj(r) t``."""
    return complex_product(known, r if side == "tail" else complex_conjugate(r))


def complex_score(
    h: Float[Array, "*b two_d"], r: Float[Array, "*b two_d"], t: Float[Array, "*b two_d"]
) -> Float[Array, "*b"]:
    """Plausibility of triples as a complex product, one value a triple.

    s = Re sum_k h_k r_k conj(t_k)

    Args:
        h: embeddings of heads, real half and imaginary half.
        r: embeddings of relations, likewise.
        t: embeddings of tails, likewise; leading axes broadcast.

    Returns:
        Scores; the higher the more plausible.

    Source:
        arXiv:1606.06357, equation 9; RotatE's ``model.py``.

    Example:
        >>> import jax.numpy as jnp
        >>> i, one = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
        >>> float(complex_score(one, i, i)), float(complex_score(i, i, one))
        (1.0, -1.0)
    """
    return jnp.sum(complex_query(h, r, "tail") * t, axis=-1)
