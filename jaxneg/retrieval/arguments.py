"""What the functions of this room check before they compute; every message says name, expected, came."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array, Bool, Float

# bfloat16 has eight bits of mantissa: a row that was normalised in it is off by up to about 0.4 %.
UNIT_TOLERANCE = 1e-2


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = sorted(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def boolean_mask(name: str, mask: Array | None, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The mask, or all true where there is none; raises unless it is boolean and of this shape."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected a boolean array, got dtype {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {mask.shape}")
    return mask


def unit_rows(name: str, rows: Float[Array, "*batch dim"], valid: Array | None = None) -> None:
    """Raises ValueError if a concrete array has a row that is neither of length one nor all zero.

    A row of zeros is an empty text or padding; its cosine with everything is 0. Under ``jit`` the values
    are not known, so nothing is checked there.
    """
    if isinstance(rows, Tracer) or rows.size == 0:
        return
    if isinstance(rows, jax.Array) and not rows.is_fully_addressable:
        return
    norms = np.linalg.norm(np.asarray(rows, np.float64 if rows.dtype == np.float64 else np.float32), axis=-1)
    wrong = ~(np.abs(norms - 1.0) <= UNIT_TOLERANCE) & (norms != 0.0)
    if valid is not None and not isinstance(valid, Tracer):
        wrong &= np.asarray(valid)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}: expected rows of length 1 (or all zero); row {first} has length {norms[first]:.4g}, "
            f"and {int(wrong.sum())} of {wrong.size} rows are wrong: divide each row by its norm"
        )


def explicit_sharding(like: Array, spec: jax.sharding.PartitionSpec | None = None) -> NamedSharding | None:
    """The output sharding to ask for under explicit mesh axes: that of ``like``, or ``spec`` on its mesh.

    None under automatic axes, where the compiler chooses.
    """
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding if spec is None else NamedSharding(sharding.mesh, spec)
