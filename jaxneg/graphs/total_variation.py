"""Total-variation denoising of an image by Chambolle's projection.

Chambolle 2004 (J. Math. Imaging Vision 20); steps and stopping rule of scikit-image, which the published code
of sorting and smoothing (Chan and Airoldi 2014) calls.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.graphs.arguments import at_least, wide


def tv_chambolle(
    img: Float[Array, "rows columns"], weight: float | Array, eps: float = 2e-4, max_iter: int = 200
) -> Float[Array, "rows columns"]:
    """The image with less total variation.

    ``min_u sum |grad u| + |u - img|^2 / (2 weight)``, by its dual with steps of 1/4

    Args:
      img: Image.
      weight: The larger, the smoother; 0 or less returns the image.
      eps: Stops when the energy changes by less than this part of the first energy.
      max_iter: Most iterations.

    Returns:
      The denoised image, in float32 or wider.

    Raises:
      ValueError: No matrix, or ``max_iter`` below 1.

    Source:
      Chambolle 2004, Section 3; scikit-image's ``denoise_tv_chambolle``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import tv_chambolle
      >>> tv_chambolle(jnp.array([[0.0, 1.0], [0.0, 1.0]]), 100.0).round(3).tolist()
      [[0.5, 0.5], [0.5, 0.5]]
    """
    img = wide(img)
    if img.ndim != 2 or 0 in img.shape:
        raise ValueError(f"img: expected [rows, columns], none empty, got shape {img.shape}")
    at_least("max_iter", max_iter, 1)
    return _denoise(img, jnp.asarray(weight, img.dtype), jnp.asarray(eps, img.dtype), jnp.int32(max_iter))


@jax.jit
def _denoise(img: Array, weight: Array, eps: Array, max_iter: Array) -> Array:
    safe = jnp.where(weight > 0, weight, 1)

    def divergence(p: Array) -> Array:
        first = jnp.pad(p[0, :-1], ((1, 0), (0, 0)))
        second = jnp.pad(p[1, :, :-1], ((0, 0), (1, 0)))
        return first + second - p[0] - p[1]

    def gradient(u: Array) -> Array:
        return jnp.stack(
            [jnp.pad(jnp.diff(u, axis=0), ((0, 1), (0, 0))), jnp.pad(jnp.diff(u, axis=1), ((0, 0), (0, 1)))]
        )

    def iterate(state: tuple[Array, ...]) -> tuple[Array, ...]:
        number, p, _, first, before, _ = state
        d = divergence(p)
        out = img + d
        g = gradient(out)
        norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=0))
        energy = (jnp.sum(jnp.square(d)) + safe * jnp.sum(norm)) / img.size
        p = (p - g / 4) / (1 + norm / (4 * safe))
        first = jnp.where(number == 0, energy, first)
        done = (number > 0) & (jnp.abs(before - energy) < eps * first)
        return number + 1, p, out, first, energy, done

    def goes_on(state: tuple[Array, ...]) -> Array:
        return (state[0] < max_iter) & ~state[5] & (weight > 0)

    zero = jnp.zeros((), img.dtype)
    start = (jnp.int32(0), jnp.zeros((2, *img.shape), img.dtype), img, zero, zero, jnp.bool_(False))
    return jax.lax.while_loop(goes_on, iterate, start)[2]
