"""A small denoising network for vectors: residual blocks that see the timestep and the class.

The network of the small experiments with diffusion models: what a DiT is to images, without attention. The
timestep enters as in Ho et al. 2020 (arXiv:2006.11239, Appendix B), the class as in Ho and Salimans 2022
(arXiv:2207.12598, Section 3.2).
"""

import math

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.conditioning import Conditioning
from jaxneg.nn.contraction import contract

_SINUSOIDS = 64


def _fan_in(scale: float) -> nnx.Initializer:
    """Normal entries of standard deviation ``scale / sqrt(fan_in)``."""
    return nnx.initializers.variance_scaling(scale**2, "fan_in", "normal")


class Block(nnx.Module):
    """``h + Dense'(silu(Dense(silu(h + e))))``."""

    def __init__(self, hidden: int, dtype: DTypeLike | None, rngs: nnx.Rngs):
        def linear(scale: float) -> nnx.Linear:
            return nnx.Linear(
                hidden, hidden, kernel_init=_fan_in(scale), dtype=dtype, dot_general=contract, rngs=rngs
            )

        self.first = linear(1.0)
        self.second = linear(0.1)

    def __call__(
        self, h: Float[Array, "batch hidden"], e: Float[Array, "batch hidden"]
    ) -> Float[Array, "batch hidden"]:
        """The next hidden features."""
        return h + self.second(jax.nn.silu(self.first(jax.nn.silu(h + e))))


class DenoisingMLP(nnx.Module):
    """The module behind :func:`denoising_mlp`."""

    def __init__(
        self,
        features: int,
        hidden: int,
        blocks: int,
        classes: int | None,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        def linear(n: int, m: int, scale: float) -> nnx.Linear:
            return nnx.Linear(n, m, kernel_init=_fan_in(scale), dtype=dtype, dot_general=contract, rngs=rngs)

        self.features = features
        self.conditioning = Conditioning(
            _SINUSOIDS, hidden, classes, math.sqrt(0.25), _fan_in(1.0), dtype, rngs
        )
        self.inputs = linear(features, hidden, 1.0)
        self.blocks = nnx.List([Block(hidden, dtype, rngs) for _ in range(blocks)])
        self.outputs = linear(hidden, features, 0.1)

    def __call__(
        self,
        x: Float[Array, "batch features"],
        t: Num[Array, "batch"],
        label: Int[Array, "batch"] | None = None,
    ) -> Float[Array, "batch features"]:
        """What the network predicts of each example, for one the noise."""
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x: expected vectors [batch, {self.features}], got shape {x.shape}")
        e = self.conditioning(t, label)
        h = self.inputs(x)
        for block in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            h = block(h, e)
        return self.outputs(jax.nn.silu(h))


def denoising_mlp(
    features: int,
    *,
    hidden: int = 64,
    blocks: int = 2,
    classes: int | None = None,
    dtype: DTypeLike | None = None,
) -> Model:
    """A denoising network for vectors.

    ``e = W silu(V sinusoids(t)) + E[label];  h = A x;  h += C silu(B silu(h + e)) (a block);  D silu(h)``

    with biases that start at 0, weights at N(0, 1 / fan_in), those of C and D a tenth of it, and E at
    N(0, 1/4). The timestep has 64 sinusoids.

    Args:
      features: Size of a vector.
      hidden: Size of the hidden features and of the embedding.
      blocks: Number of residual blocks.
      classes: Number of classes; None for a network that knows no classes.
      dtype: Type of the computation; by default that of inputs and parameters.

    Returns:
      ``init(key) -> params``; ``apply(params, x [batch, features], t [batch], label=None)`` gives
      ``[batch, features]``. Labels are integers below ``classes``; ``classes`` itself, or None for all, means
      no class. A label beyond that gives NaN.

    Raises:
      ValueError: If a size is not positive. From ``apply``, if an input has another shape, or there are
        labels and no classes.

    Source:
      Ho et al. 2020, arXiv:2006.11239, Appendix B; Ho and Salimans 2022, arXiv:2207.12598, Section 3.2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import denoising_mlp
      >>> model = denoising_mlp(3, classes=2)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3)), jnp.arange(5), jnp.zeros(5, int)).shape
      (5, 3)
    """
    if blocks < 0 or any(size < 1 for size in (features, hidden, 1 if classes is None else classes)):
        raise ValueError(
            "features, hidden, blocks, classes: expected positive sizes, got "
            f"{features}, {hidden}, {blocks}, {classes}"
        )
    return bridge(lambda rngs: DenoisingMLP(features, hidden, blocks, classes, dtype, rngs))
