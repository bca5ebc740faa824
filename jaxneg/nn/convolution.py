"""Convolution whose result's sharding is never ambiguous, and which a CPU computes fast.

XLA has fast convolutions on a CPU, but brings a program's own into their form in the program's outermost
computation only, and none where the image or the result is smaller than the kernel. So gradients of a 3 x 3
convolution take 30 times as long or more in the body of a loop, and around 2 x 2 pixels everything 20 times
as long. Plain convolutions of images are written here in the form that is fast, gradients included.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """How a kernel moves over images, along rows and columns; options are ``jax.lax``'s."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


def convolve(
    images: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    *,
    out_sharding: Any = None,
    **options: Any,
) -> Array:
    """``jax.lax.conv_general_dilated`` of a batch under auto and explicit mesh axes alike.

    Under explicit axes the result is sharded over its leading axis as the images are, and the compiler shards
    what is inside: JAX has no rule for the gradient of several losses, mapped over them.

    Beware of ``jax.vmap`` over kernels (one model for each seed) on a mesh that has an axis besides the
    batch's: up to JAX 0.12 at least, XLA may sum the gradients of such kernels over that axis too, which
    multiplies them by its size. Loop over the seeds with ``jax.lax.map``, or give the mesh no other axis.

    Args:
      images: The batch, on the leading axis of operand and result.
      kernel: The kernel.
      window_strides: As in ``jax.lax.conv_general_dilated``, as all that follow.
      padding: Likewise.
      lhs_dilation: Likewise.
      rhs_dilation: Likewise.
      dimension_numbers: Likewise. ``("NHWC", "HWIO", "NHWC")`` is the fast one on a CPU.
      feature_group_count: Likewise.
      batch_group_count: Likewise.
      out_sharding: Of the result under explicit axes; it is found if it is not given.
      **options: ``precision`` and ``preferred_element_type``.

    Returns:
      The convolved images.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn import convolve
      >>> layout = ("NHWC", "HWIO", "NHWC")
      >>> convolve(jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4)), (2, 2), "VALID", None, None, layout).shape
      (2, 2, 2, 4)
    """

    def convolved(images: Array, kernel: Array) -> Array:
        numbers = jax.lax.conv_dimension_numbers(images.shape, kernel.shape, dimension_numbers)
        plain = images.ndim == 4 and numbers == jax.lax.conv_dimension_numbers(
            images.shape, kernel.shape, _LAYOUT
        )
        dilated = any(d not in (None, 1) for d in lhs_dilation or ())
        if not plain or dilated or feature_group_count != 1 or batch_group_count != 1:
            return jax.lax.conv_general_dilated(
                images,
                kernel,
                window_strides,
                padding,
                lhs_dilation,
                rhs_dilation,
                numbers,
                feature_group_count,
                batch_group_count,
                **options,
            )
        strides, dilation = tuple(window_strides), tuple(rhs_dilation or (1, 1))
        sides, taps = images.shape[1:3], kernel.shape[:2]
        spans = tuple((tap - 1) * d + 1 for tap, d in zip(taps, dilation, strict=True))
        pads = (
            jax.lax.padtype_to_pads(sides, spans, strides, padding) if isinstance(padding, str) else padding
        )
        window = _Window(strides, tuple((low, high) for low, high in pads), dilation, tuple(options.items()))
        outputs = tuple(
            (side + sum(pad) - span) // stride + 1
            for side, pad, span, stride in zip(sides, window.pads, spans, strides, strict=True)
        )
        small = any(min(side, output) < tap for side, output, tap in zip(sides, outputs, taps, strict=True))
        if small and spans == taps and 0 < math.prod(outputs) <= math.prod(taps):
            return _by_pixel(images, kernel, window, outputs)
        return _plain(images, kernel, window)

    sharding = jax.typeof(images).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return convolved(images, kernel)
    out_sharding = out_sharding or P(sharding.spec[0])
    return jax.sharding.auto_axes(convolved, out_sharding=out_sharding)(images, kernel)  # pyright: ignore


def _by_pixel(images: Array, kernel: Array, window: _Window, outputs: tuple[int, ...]) -> Array:
    """A product for each pixel of the result, of what the kernel sees there with the part that sees it."""

    def seen(output: int, axis: int) -> tuple[slice, slice]:
        start = output * window.strides[axis] - window.pads[axis][0]
        low, high = max(start, 0), min(start + kernel.shape[axis], images.shape[1 + axis])
        return slice(low, max(low, high)), slice(low - start, max(low, high) - start)

    pixels = []
    for row, column in itertools.product(*map(range, outputs)):
        (rows, row_taps), (columns, column_taps) = seen(row, 0), seen(column, 1)
        part = images[:, rows, columns].reshape(len(images), -1)
        weights = kernel[row_taps, column_taps].reshape(-1, kernel.shape[3])
        pixels.append(jax.lax.dot_general(part, weights, (((1,), (0,)), ((), ())), **dict(window.options)))
    return jnp.stack(pixels, 1).reshape(len(images), *outputs, kernel.shape[3])


def _laid_out(images: Array, kernel: Array, window: _Window, layout: tuple[str, str, str]) -> Array:
    strides, pads, dilation, options = window
    return jax.lax.conv_general_dilated(
        images, kernel, strides, pads, None, dilation, layout, **dict(options)
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _plain(images: Array, kernel: Array, window: _Window) -> Array:
    return _laid_out(images, kernel, window, _LAYOUT)


def _plain_jvp(
    window: _Window, primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Array, Array]:
    """Both tangents, laid out so that their transposes, which the gradients are, have the fast form."""
    (images, kernel), (of_images, of_kernel) = primals, tangents
    parts = []
    if not isinstance(of_images, SymbolicZero):
        parts.append(_laid_out(of_images, kernel.transpose(0, 1, 3, 2), window, ("NHWC", "HWOI", "NHWC")))
    if not isinstance(of_kernel, SymbolicZero):
        turned = images.transpose(3, 1, 2, 0), of_kernel.transpose(2, 0, 1, 3)
        parts.append(_laid_out(*turned, window, ("CHWN", "IHWO", "HWNC")).transpose(2, 0, 1, 3))
    return _plain(images, kernel, window), sum(parts[1:], parts[0])


_plain.defjvp(_plain_jvp, symbolic_zeros=True)
