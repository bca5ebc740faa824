"""The 13 graphons on which estimators are compared, as functions and on a grid.

Xu et al. 2021 (SGWB, arXiv:2012.05644), Table 1 as published in code; used by Cao et al. 2023 (W2PGNN).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxneg.graphs.arguments import at_least, wide

KINDS = 13
RISING = (1, 6, 7, 9, 10)
"""Kinds that the published code takes at 1/R, 2/R, ..., 1, and the others, falling ones, at 1, ..., 1/R."""


def graphon_at(
    kind: int, u: Float[Array, "*batch"] | np.ndarray, v: Float[Array, "*batch"] | np.ndarray | float
) -> Float[Array, "*batch"]:
    """The probability of an edge between nodes at these places.

    With ``a = 1 - u, b = 1 - v``: 0: ``ab``; 1: ``exp(-(u^.7 + v^.7))``;
    2: ``(a^2 + b^2 + a^.5 + b^.5) / 4``;
    3: ``(a + b) / 2``; 4: ``sigmoid(2 (a^2 + b^2))``; 5: ``sigmoid(max(a, b)^2 + min(a, b)^4)``;
    6: ``exp(-max(u, v)^.75)``; 7: ``exp(-(min(u, v) + u^.5 + v^.5) / 2)``; 8: ``log(1 + max(a, b) / 2)``;
    9: ``|u - v|``; 10: ``1 - |u - v|``; 11: 0.8 within the halves, else 0; 12: 0.8 across the halves, else 0.

    Args:
      kind: From 0 to 12.
      u: Places of one end in [0, 1].
      v: Of the other; broadcast.

    Returns:
      Probabilities, in float32 or wider.

    Raises:
      ValueError: Another kind.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import graphon_at
      >>> graphon_at(10, jnp.array([0.0, 0.25]), 0.5).tolist()
      [0.5, 0.75]
    """
    if not 0 <= kind < KINDS:
        raise ValueError(f"kind: expected from 0 to {KINDS - 1}, got {kind}")
    u, v = jnp.broadcast_arrays(wide(u), wide(jnp.asarray(v)))
    a, b = 1 - u, 1 - v
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    across = (u < 0.5) != (v < 0.5)
    formulas = (
        lambda: a * b,
        lambda: jnp.exp(-(u**0.7 + v**0.7)),
        lambda: (a**2 + b**2 + a**0.5 + b**0.5) / 4,
        lambda: (a + b) / 2,
        lambda: 1 / (1 + jnp.exp(-2 * (a**2 + b**2))),
        lambda: 1 / (1 + jnp.exp(-(high**2 + low**4))),
        lambda: jnp.exp(-(jnp.maximum(u, v) ** 0.75)),
        lambda: jnp.exp(-(jnp.minimum(u, v) + u**0.5 + v**0.5) / 2),
        lambda: jnp.log1p(high / 2),
        lambda: jnp.abs(u - v),
        lambda: 1 - jnp.abs(u - v),
        lambda: jnp.where(across, 0, jnp.asarray(0.8, u.dtype)),
        lambda: jnp.where(across, jnp.asarray(0.8, u.dtype), 0),
    )
    return formulas[kind]()


def synthesize_graphon(kind: int, r: int) -> Float[Array, "r r"]:
    """A graphon of :func:`graphon_at` on the grid of the published code.

    Args:
      kind: From 0 to 12.
      r: Resolution, even for the kinds of two halves (11, 12).

    Returns:
      Probabilities.

    Raises:
      ValueError: Another kind, ``r`` below 1, or odd where it must be even.

    Source:
      Xu et al. 2021, published code.

    Example:
      >>> from jaxneg.graphs import synthesize_graphon
      >>> synthesize_graphon(3, 2).tolist()
      [[1.0, 0.75], [0.75, 0.5]]
    """
    at_least("r", r, 1)
    if kind in (11, 12) and r % 2:
        raise ValueError(f"r: expected an even resolution for kind {kind}, got {r}")
    u = jnp.asarray((np.arange(r) + (kind in RISING)) / r)
    return graphon_at(kind, u[:, None], u)
