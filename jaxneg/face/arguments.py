"""What the functions of this room check before they compute, and the types in which they compute."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Int


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def check_range(name: str, value: Any, low: float, high: float, unit: str = "") -> None:
    """Raises ValueError for a number that is NaN or outside low..high, ends included; traced values pass."""
    if isinstance(value, Real | np.ndarray) and not low <= float(value) <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}{unit}, got {value}")


def check_positive(**values: Any) -> None:
    """Raises ValueError for a number that is not positive and finite; traced values pass."""
    for name, value in values.items():
        if isinstance(value, Real | np.ndarray) and not 0 < float(value) < math.inf:
            raise ValueError(f"{name}: expected a positive finite number, got {value}")


def wide(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """The array in float32, or float64 where it has that; raises TypeError unless it is floating."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def unit_rows(rows: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
    """Rows of length one: ``x / max(|x|, 1e-12)``, with a gradient of zero where a row is zero."""
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    return rows * jax.lax.rsqrt(jnp.maximum(squares, jnp.asarray(1e-24, rows.dtype)))


def batch_features(features: ArrayLike) -> Float[Array, "batch dim"]:
    """Features ``[batch, dim]`` in float32 or wider."""
    wide_features = wide("features", features)
    if wide_features.ndim != 2 or 0 in wide_features.shape:
        raise ValueError(f"features: expected [batch, dim], neither of them 0, got {wide_features.shape}")
    return wide_features


def batch_labels(labels: ArrayLike, batch: int, classes: int | None = None) -> Int[Array, " batch"]:
    """Labels, one for each example; concrete ones are also checked to lie in 0..classes-1.

    Raises:
        TypeError: labels that are not integers.
        ValueError: another shape, or a label of no class.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels: expected integers, got dtype {labels.dtype}")
    if labels.shape != (batch,):
        raise ValueError(f"labels: expected one for each example, shape {(batch,)}, got {labels.shape}")
    if classes is None or isinstance(labels, Tracer) or not labels.is_fully_addressable:
        return labels
    values = np.asarray(labels)
    if (outside := (values < 0) | (values >= classes)).any():
        i = int(outside.argmax())
        raise ValueError(f"labels: expected classes in 0..{classes - 1}, got labels[{i}] = {values[i]}")
    return labels


def class_weights(weights: ArrayLike, dim: int, name: str = "weights") -> Float[Array, "classes dim"]:
    """Class centres ``[classes, dim]`` in float32 or wider."""
    centres = wide(name, weights)
    if centres.ndim != 2 or centres.shape[0] == 0 or centres.shape[1] != dim:
        raise ValueError(
            f"{name}: expected one row of {dim} numbers for each class, [classes, {dim}], got {centres.shape}"
        )
    return centres


def explicit_spec(like: Array) -> P | None:
    """How an array is sharded under explicit mesh axes; None under automatic ones."""
    sharding = jax.typeof(like).sharding
    return sharding.spec if AxisType.Explicit in sharding.mesh.axis_types else None


def rows_by_rows(a: Float[Array, "n dim"], b: Float[Array, "m dim"]) -> Float[Array, "n m"]:
    """``a b^T``; under explicit axes sharded as the rows of ``a`` are, so that it is never ambiguous."""
    spec = explicit_spec(a)
    if spec is None:
        return a @ b.T
    mesh = jax.typeof(a).sharding.mesh
    columns = jax.typeof(b).sharding.spec[0]
    out = NamedSharding(mesh, P(spec[0], None if columns == spec[0] else columns))
    return jnp.einsum("nd,md->nm", a, b, out_sharding=out)


def everywhere(x: Array) -> Array:
    """The array on every device, under explicit axes; under automatic ones the compiler decides."""
    return x if explicit_spec(x) is None else jax.reshard(x, P())
