"""What the functions of this room check before they compute, and how a noise level meets an array."""

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, Int

# A network: ``denoise(x, t, cond)`` predicts an array of the shape of x; t is int [B].
Denoise = Callable[[Array, Array, Any], Array]


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError for numbers outside low..high, ends included; traced values pass."""
    if isinstance(value, Real | np.ndarray):
        numbers = np.asarray(value, float)
        if not np.all((numbers >= low) & (numbers <= high)):
            raise ValueError(f"{name}: expected a number between {low} and {high}, got {value}")


def check_positive(**values: Any) -> None:
    """Raises ValueError for numbers that are not positive and finite; traced values pass."""
    for name, value in values.items():
        if isinstance(value, Real | np.ndarray):
            numbers = np.asarray(value, float)
            if not np.all((numbers > 0) & (numbers < np.inf)):
                raise ValueError(f"{name}: expected a positive finite number, got {value}")


def at_least_float32(name: str, value: ArrayLike) -> Float[Array, "..."]:
    """The array in float32, or float64 where it has that; raises TypeError unless it is floating."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def wide(values: Array) -> Array:
    """The array in float32 or wider."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def wide_norm(tree: Any) -> Float[Array, ""]:
    """The norm of all arrays together, summed in float32 or wider."""
    return optax.tree.norm(jax.tree.map(wide, tree))


def same_shape(name: str, array: Array, other: str, like: Array) -> None:
    """Raises ValueError unless both arrays have one shape."""
    if array.shape != like.shape:
        raise ValueError(f"{name}: expected the shape of {other}, {like.shape}, got {array.shape}")


def alpha_bar(
    alphas_cumprod: ArrayLike, *, name: str = "alphas_cumprod"
) -> np.ndarray | Float[Array, " timesteps"]:
    """The table of alpha-bar in float64 on the host, checked; a traced one as it is.

    The host's float64 keeps the digits of 1 - alpha-bar near t = 0, of which float32 has lost three.

    Raises:
        TypeError: a table that is not floating.
        ValueError: a table that is not [T], that leaves (0, 1], or that does not fall strictly.
    """
    values = alphas_cumprod if isinstance(alphas_cumprod, Tracer) else np.asarray(alphas_cumprod)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {values.dtype}")
    if values.ndim != 1 or values.shape[0] == 0:
        raise ValueError(f"{name}: expected one number for each timestep, [T], got shape {values.shape}")
    if isinstance(values, Tracer):
        return values
    values = values.astype(np.float64)
    outside = ~((values > 0) & (values <= 1))
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(f"{name}: expected numbers above 0 and at most 1, got {name}[{i}] = {values[i]}")
    risen = np.diff(values) >= 0
    if risen.any():
        i = int(risen.argmax()) + 1
        raise ValueError(
            f"{name}: expected numbers that fall strictly; {name}[{i}] = {values[i]} is not below "
            f"{name}[{i - 1}] = {values[i - 1]}"
        )
    return values


def marginals(alphas_cumprod: ArrayLike) -> tuple[Any, Any]:
    """``alpha = sqrt(abar)`` and ``sigma = sqrt(1 - abar)``, [T] each, of a checked table."""
    values = alpha_bar(alphas_cumprod)
    xp = np if isinstance(values, np.ndarray) else jnp
    return xp.sqrt(values), xp.sqrt(1 - values)


def falling_timesteps(timesteps: ArrayLike, T: int) -> np.ndarray | Int[Array, " steps"]:
    """The sampling grid as integers; a concrete one is checked: falling strictly, within 0..T-1.

    Raises:
        TypeError: timesteps that are not integers.
        ValueError: a grid that is not [S] with S >= 1, that leaves the table, or that does not fall.
    """
    values = timesteps if isinstance(timesteps, Tracer) else np.asarray(timesteps)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"timesteps: expected integers, got dtype {values.dtype}")
    if values.ndim != 1 or values.shape[0] == 0:
        raise ValueError(f"timesteps: expected a grid of at least one step, [S], got shape {values.shape}")
    if isinstance(values, Tracer):
        return values
    outside = (values < 0) | (values >= T)
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(f"timesteps: expected steps in 0..{T - 1}, got timesteps[{i}] = {values[i]}")
    risen = np.diff(values) >= 0
    if risen.any():
        i = int(risen.argmax()) + 1
        raise ValueError(
            f"timesteps: expected steps that fall strictly; timesteps[{i}] = {values[i]} comes after "
            f"{values[i - 1]}"
        )
    return values


def check_timesteps(t: Array, batch: int, T: int) -> None:
    """Raises unless ``t`` holds one integer for each example, and, where concrete, within 0..T-1."""
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(f"t: expected integers, got dtype {t.dtype}")
    if t.shape != (batch,):
        raise ValueError(f"t: expected one timestep for each example, shape {(batch,)}, got {t.shape}")
    if isinstance(t, Tracer) or not t.is_fully_addressable:
        return
    values = np.asarray(t)
    outside = (values < 0) | (values >= T)
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(f"t: expected timesteps in 0..{T - 1}, got t[{i}] = {values[i]}")


def explicit_sharding(like: Array, axes: int | None = None) -> NamedSharding | None:
    """The output sharding to ask for under explicit mesh axes: that of the first ``axes`` axes of ``like``.

    None under automatic axes, where the compiler chooses.
    """
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*tuple(sharding.spec)[:axes]))


def beside(values: Array, x: Array) -> Array:
    """Values with the examples of x on their leading axis, under explicit axes on the devices of these."""
    sharding = explicit_sharding(x, 1)
    return values if sharding is None else jax.reshard(values, sharding)


def at_timesteps(table: Any, t: Int[Array, " batch"], dtype: Any) -> Float[Array, " batch"]:
    """The entries of a table for each example's timestep."""
    return jnp.asarray(table, dtype).at[t].get(out_sharding=explicit_sharding(t))


def over_trailing(name: str, value: ArrayLike, x: Array) -> Array:
    """A scalar or an array over the leading axes of ``x``, shaped so that it broadcasts over the rest."""
    value = jnp.asarray(value, x.dtype)
    if value.shape != x.shape[: value.ndim]:
        raise ValueError(
            f"{name}: expected a number, or one for each example, {x.shape[:1]}, got shape {value.shape}"
        )
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def checked_output(output: Array, x: Array, name: str = "denoise") -> Array:
    """What a network returned, in float32 or wider, once it has the shape of its input."""
    if jnp.shape(output) != x.shape:
        raise ValueError(f"{name}: expected an output of the shape of x, {x.shape}, got {jnp.shape(output)}")
    return at_least_float32(name, output)
