"""What the functions of this room check before they compute; every message says name, expected, came."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of the allowed names."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")


def wide(values: Array) -> Array:
    """The array in float32 or wider."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as ``"a/b/c"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def per_client(name: str, tree: Any) -> int:
    """The number of clients of a tree that has them on every leading axis.

    Raises:
      ValueError: If there is no array, or the leading axes differ. The message names the path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: expected arrays with a leading axis of clients, got an empty tree")
    sizes = {path_name(path): jnp.shape(leaf)[:1] for path, leaf in leaves}
    (first, size), *others = sizes.items()
    for path, other in [(first, size), *others]:
        if other != size or not other or other[0] < 1:
            raise ValueError(
                f"{name}: {path!r} has leading axis {other}, expected {size or 'one of clients'} as {first!r}"
            )
    return size[0]


def masked(mask: Array, leaf: Array) -> Array:
    """``leaf [clients, ...]`` with zeros where a client is masked, so that its NaN does not spread."""
    return jnp.where(jnp.reshape(mask, (-1,) + (1,) * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))
