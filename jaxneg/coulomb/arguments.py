"""What the functions of this room ask of their arguments; every message says name, expected, came."""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike


def real_array(name: str, values: ArrayLike) -> Array:
    """Real numbers in float32, or in float64 where they have that; raises TypeError for others."""
    array = jnp.asarray(values)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jnp.result_type(float))
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def known(value: Any) -> bool:
    """Whether a number is there to be looked at: not traced, and not a placeholder of jax's."""
    return isinstance(value, Real | np.ndarray | jax.Array) and not isinstance(value, Tracer)


def require(name: str, value: Any, low: float, high: float = np.inf, *, open_low: bool = False) -> None:
    """Raises ValueError for a known number that is outside low..high or not finite."""
    if known(value):
        numbers = np.asarray(value, float)
        above = numbers > low if open_low else numbers >= low
        inside = above & (numbers <= high) & np.isfinite(numbers)
        if not inside.all():
            bound = f"above {low:g}" if open_low else f"of {low:g} or more"
            most = "" if np.isinf(high) else f", at most {high:g}"
            raise ValueError(f"{name}: expected a finite number {bound}{most}, got {value}")


def dimension(d: Any, allowed: tuple[int, ...]) -> int:
    """The number of space dimensions; raises ValueError unless a formula holds for it."""
    if not isinstance(d, int | np.integer) or int(d) not in allowed:
        raise ValueError(f"d: expected one of {', '.join(map(str, allowed))} space dimensions, got {d!r}")
    return int(d)


def whole(name: str, value: Any, low: int = 1) -> int:
    """A count; raises ValueError unless it is a whole number of ``low`` or more."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name}: expected a whole number of {low} or more, got {value!r}")
    return int(value)
