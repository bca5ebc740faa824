"""What a denoising network is told besides its input: the timestep, and the class.

Sinusoids of the timestep (Vaswani et al. 2017, arXiv:1706.03762, Section 3.5) through two layers, plus a
row of a table of classes whose last row stands for no class (Ho and Salimans 2022, arXiv:2207.12598,
Section 3.2).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from jaxneg.nn.batch_sharding import rows_like
from jaxneg.nn.contraction import contract


def timestep_embedding(
    t: Num[Array, "batch"], features: int, *, longest: float = 10_000.0
) -> Float[Array, "batch features"]:
    """Sinusoids of the timestep, the cosines first.

    ``cos(t w_i), sin(t w_i),  w_i = longest^(-i / half),  half = features / 2``

    Args:
      t: Timesteps, integers or not.
      features: Size of the embedding, even.
      longest: Longest wavelength over 2 pi.

    Returns:
      The embeddings, at least in float32.

    Raises:
      ValueError: If ``features`` is not even and positive.

    Source:
      Vaswani et al. 2017, arXiv:1706.03762, Section 3.5, in the order that Peebles and Xie 2022,
      arXiv:2212.09748, use.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn import timestep_embedding
      >>> timestep_embedding(jnp.array([0, 3]), 4)[0].tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    if features < 2 or features % 2:
        raise ValueError(f"features: expected an even number of at least 2, got {features}")
    half = features // 2
    dtype = jnp.promote_types(t.dtype, jnp.float32)
    angles = t.astype(dtype)[:, None] * jnp.exp(-math.log(longest) / half * jnp.arange(half, dtype=dtype))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Conditioning(nnx.Module):
    """``Dense(silu(Dense(timestep_embedding(t)))) + table[label]``.

    Args:
      features: Size of the sinusoidal embedding.
      width: Size of the result.
      classes: Number of classes; None for a network that knows no classes.
      label_std: Standard deviation of the table's entries at the start.
      kernel_init: Initialiser of the two layers.
      dtype: Type of the computation.
      rngs: Random streams.
    """

    def __init__(
        self,
        features: int,
        width: int,
        classes: int | None,
        label_std: float,
        kernel_init: nnx.Initializer,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        def linear(n: int, m: int) -> nnx.Linear:
            return nnx.Linear(n, m, kernel_init=kernel_init, dtype=dtype, dot_general=contract, rngs=rngs)

        self.features = features
        self.classes = classes
        self.time = nnx.List([linear(features, width), linear(width, width)])
        if classes is not None:
            init = nnx.initializers.normal(label_std)
            self.label = nnx.Embed(classes + 1, width, embedding_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, t: Num[Array, "batch"], label: Int[Array, "batch"] | None
    ) -> Float[Array, "batch width"]:
        """The embedding of each example."""
        if t.ndim != 1:
            raise ValueError(f"t: expected one timestep for each example [batch], got shape {t.shape}")
        first, second = self.time
        kernel = first.kernel[...]
        t = t.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        e = second(jax.nn.silu(first(timestep_embedding(t, self.features))))
        if label is None:
            return e if self.classes is None else e + self.label.embedding[-1].astype(e.dtype)
        if self.classes is None:
            raise ValueError("label: expected None, since the network was made without classes")
        if label.shape != t.shape or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"label: expected integers of shape {t.shape}, got {label.dtype} {label.shape}")
        rows = (
            jnp.asarray(self.label.embedding[...]).at[label].get(mode="fill", out_sharding=rows_like(label))
        )
        return e + rows.astype(e.dtype)
