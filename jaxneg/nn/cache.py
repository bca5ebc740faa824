"""Where a decoder keeps the keys and values of the tokens that it has read."""

import jax
from jax.sharding import AxisType
from jaxtyping import Array, Float, Int


def append(
    kept: Float[Array, "layers batch heads slots size"],
    new: Float[Array, "batch tokens heads size"],
    layer: Int[Array, ""] | int,
    first: Int[Array, ""] | int,
) -> Float[Array, "layers batch heads slots size"]:
    """Writes the tokens of a layer into its slots from ``first`` on.

    Args:
      kept: Keys or values of all layers.
      new: Those of a layer's tokens.
      layer: Which layer.
      first: The first slot.

    Returns:
      What is kept then; under explicit mesh axes it stays sharded as it was.

    Raises:
      ValueError: If there are more tokens than slots.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn.cache import append
      >>> append(jnp.zeros((2, 1, 1, 3, 1)), jnp.ones((1, 2, 1, 1)), 1, 1)[:, 0, 0, :, 0].tolist()
      [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """
    if new.shape[1] > kept.shape[3]:
        raise ValueError(f"cache: has room for {kept.shape[3]} tokens, got {new.shape[1]}")
    new, sharding = new.swapaxes(1, 2)[None].astype(kept.dtype), jax.typeof(kept).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        new = jax.sharding.reshard(new, sharding.spec)
    return jax.lax.dynamic_update_slice(kept, new, (layer, 0, 0, first, 0))
