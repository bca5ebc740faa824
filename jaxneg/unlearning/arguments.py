"""What the losses ask of their arguments: floating arrays of one shape, positive hyperparameters."""

from numbers import Real

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def floating(**arrays: ArrayLike) -> list[Array]:
    """The arrays in float32 or wider, once they are known to be floating, not empty, and of one shape.

    Args:
        **arrays: the arguments by name; each is compared with the first.

    Returns:
        The arrays in the order given.

    Raises:
        TypeError: an array that is not floating.
        ValueError: an empty array, or shapes that differ.

    Example:
        >>> (nll,) = floating(nll=jnp.ones(3, jnp.bfloat16))
        >>> nll.dtype.name
        'float32'
    """
    checked = {name: jnp.asarray(array) for name, array in arrays.items()}
    first = next(iter(checked))
    for name, array in checked.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
        if array.size == 0:
            raise ValueError(
                f"{name}: expected at least one example, got an empty batch of shape {array.shape}"
            )
        if array.shape != checked[first].shape:
            raise ValueError(
                f"{name}: expected the shape of {first}, {checked[first].shape}, got {array.shape}"
            )
    return [array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in checked.values()]


def check_positive(**values: float | Array) -> None:
    """Refuses a hyperparameter that is not above zero; traced values cannot be looked at and pass.

    Args:
        **values: hyperparameters by name.

    Raises:
        ValueError: a number that is zero, negative or not finite.

    Example:
        >>> check_positive(beta=0.1)
    """
    for name, value in values.items():
        if isinstance(value, Real | np.ndarray) and not 0 < float(value) < float("inf"):
            raise ValueError(f"{name}: expected a positive finite number, got {value}")
