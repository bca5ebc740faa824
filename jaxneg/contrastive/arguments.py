"""What the losses of this room ask of their arguments; every message says name, expected, came."""

from numbers import Real

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def alike(axes: str, **arrays: ArrayLike) -> list[Array]:
    """Floating arrays of one shape, in float32 or wider.

    Args:
        axes: names of their axes, as ``"batch dim"``.
        **arrays: the arguments by name; each is compared with the first.

    Returns:
        The arrays in the order given.

    Raises:
        TypeError: an array that is not floating.
        ValueError: another number of axes, an empty array, or shapes that differ.

    Example:
        >>> alike("batch dim", z1=jnp.ones((2, 3), jnp.bfloat16))[0].dtype.name
        'float32'
    """
    checked = {name: floating(name, array) for name, array in arrays.items()}
    first, expected = next(iter(checked.items()))
    for name, array in checked.items():
        if array.ndim != len(axes.split()) or array.size == 0:
            raise ValueError(f"{name}: expected [{', '.join(axes.split())}], got shape {array.shape}")
        if array.shape != expected.shape:
            raise ValueError(f"{name}: expected the shape of {first}, {expected.shape}, got {array.shape}")
    return list(checked.values())


def floating(name: str, array: ArrayLike) -> Array:
    """The array in float32 or wider; raises TypeError unless it is floating."""
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def check_negatives(name: str, examples: int) -> None:
    """Raises ValueError for a batch in which no example has a negative."""
    if examples < 2:
        raise ValueError(
            f"{name}: expected at least 2 examples, whose views are each other's negatives, got {examples}"
        )


def check_positive(**values: object) -> None:
    """Raises ValueError for a hyperparameter that is not above zero; traced values pass."""
    for name, value in values.items():
        if isinstance(value, Real | np.ndarray) and not 0 < float(value) < float("inf"):
            raise ValueError(f"{name}: expected a positive finite number, got {value}")


def check_range(tau_min: object, tau_max: object) -> None:
    """Raises ValueError unless ``0 < tau_min < tau_max``; traced values pass."""
    check_positive(tau_min=tau_min, tau_max=tau_max)
    numbers = [float(tau) for tau in (tau_min, tau_max) if isinstance(tau, Real | np.ndarray)]
    if len(numbers) == 2 and not numbers[0] < numbers[1]:
        raise ValueError(f"tau_min: expected less than tau_max = {numbers[1]:g}, got {numbers[0]:g}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
