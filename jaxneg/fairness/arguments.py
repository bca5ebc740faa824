"""What the functions of this room check before they compute; every message says name, expected, came."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

Data = jax.Array | np.ndarray
"""What comes in: of the device or of the host. An array of the host is known while a program is traced."""


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def known(*arrays: Any) -> bool:
    """Whether all values can be looked at now, rather than in a compiled program."""
    return not any(isinstance(array, Tracer) for array in arrays)


def integer_codes(name: str, array: Any, rank: int) -> Array:
    """The array, after a check that it holds integers and has ``rank`` axes, none of them empty.

    An array of the host stays one, so that it is known while a program around it is traced.

    Raises:
      TypeError: If it holds anything but integers: text must be coded, missing values dropped or coded.
      ValueError: If the rank is another, or an axis is empty.
    """
    array = array if isinstance(array, jax.Array) else np.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{name}: expected integer codes, got {array.dtype}: give each value a code, and drop missing"
            " values or give them a code of their own"
        )
    if array.ndim != rank or 0 in array.shape:
        raise ValueError(f"{name}: expected {rank} axes, none of them empty, got shape {array.shape}")
    return array if array.dtype == jnp.int32 else array.astype(jnp.int32)  # pyright: ignore[reportReturnType]


def in_codes(name: str, codes: Any, size: int) -> None:
    """Raises ValueError for the first code outside ``0 .. size - 1``, if the codes are known."""
    if not known(codes):
        return
    wrong = np.argwhere((np.asarray(codes) < 0) | (np.asarray(codes) >= size))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{name}: expected codes from 0 to {size - 1}, got {int(np.asarray(codes)[place])} at {place}"
        )


def row_weight(name: str, weight: Any, n: int) -> Array:
    """The weights of ``n`` rows, 1 where none are given, in the default float type.

    Raises:
      ValueError: If the shape is another, or a known weight is negative or not finite.
    """
    if weight is None:
        return jnp.ones(n)
    weight = jnp.asarray(weight)
    if weight.shape != (n,):
        raise ValueError(f"{name}: expected one number for each of {n} rows, got shape {weight.shape}")
    if known(weight) and not (np.isfinite(np.asarray(weight)).all() and (np.asarray(weight) >= 0).all()):
        raise ValueError(f"{name}: expected finite numbers, none negative")
    return (
        weight.astype(jnp.promote_types(weight.dtype, jnp.float32)) if weight.dtype != bool else weight * 1.0
    )


def number_of_values(name: str, codes: Any, given: int | None) -> int:
    """How many values a code may have: ``given``, or one more than the largest known code.

    Raises:
      ValueError: If it is neither given nor known, or smaller than the codes need.
    """
    if given is not None:
        in_codes(name, codes, given)
        return given
    if not known(codes):
        raise ValueError(f"num_values: expected the number of values of {name}: its codes are not known here")
    largest = int(np.max(np.asarray(codes)))
    in_codes(name, codes, largest + 1)
    return largest + 1


def wide(values: Array) -> Array:
    """The array in float32 or wider; integers and booleans in the default float type."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values * 1.0
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
