"""Several projection heads on one encoder, and their predictors: every layer is one product for all heads.

Wang et al. 2024, arXiv:2310.05615, Section 3; the heads of SimCLR (arXiv:2002.05709), SimSiam
(arXiv:2011.10566) and Barlow Twins (arXiv:2103.03230).
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel
from jaxneg.nn.bridge import bridge_normalised


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    bound = inputs**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))


class HeadLinear(nnx.Module):
    """A linear layer of each head, initialised as PyTorch's.

    Args:
      inputs: Features that come in.
      outputs: Features that go out.
      heads: Number of heads.
      dtype: Type of the computation.
      rngs: Random streams.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.kernel = _uniform(rngs, (heads, inputs, outputs), inputs)
        self.bias = _uniform(rngs, (heads, outputs), inputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch *heads inputs"]) -> Float[Array, "batch heads outputs"]:
        """The next features: of inputs that all heads share, or of each head's own."""
        dtype = self.dtype or jnp.result_type(x, self.kernel[...])
        x, kernel, bias = (y.astype(dtype) for y in (x, self.kernel[...], self.bias[...]))
        return jnp.einsum("bi,cio->bco" if x.ndim == 2 else "bci,cio->bco", x, kernel) + bias


class HeadStack(nnx.Module):
    """The module behind :func:`multi_head_projector` and :func:`multi_head_predictor`."""

    def __init__(
        self,
        sizes: Sequence[int],
        heads: int,
        norms: Sequence[bool],
        last_affine: bool,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        pairs = list(pairwise(sizes))
        self.layers = nnx.List([HeadLinear(n, m, heads, dtype, rngs) for n, m in pairs])
        last = len(pairs) - 1
        self.norms = nnx.List(
            [
                BatchNorm(heads * m, affine=last_affine or i < last) if norm else nnx.Module()
                for i, ((_, m), norm) in enumerate(zip(pairs, norms, strict=True))
            ]
        )

    def __call__(self, x: Float[Array, "batch *heads inputs"]) -> Float[Array, "batch heads outputs"]:
        """What each head makes of the features."""
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = layer(x)
            if isinstance(norm, BatchNorm):
                x = norm(x.reshape(len(x), -1)).reshape(x.shape)
            if i < len(self.layers) - 1:
                x = jax.nn.relu(x)
        return x


def multi_head_projector(
    features: int,
    *,
    heads: int = 3,
    hidden: int = 512,
    outputs: int = 128,
    norm: bool = False,
    dtype: DTypeLike | None = None,
) -> NormalisedModel:
    """Projection heads with weights of their own, all fed the encoder's features.

    ``z_c = relu(h A_c + a_c) B_c + b_c``; with ``norm`` three layers, batch normalisation after each, the
    last without scale and bias

    Args:
      features: Features of the encoder.
      heads: Number of heads.
      hidden: Units of a hidden layer: 512 for SimCLR and MoCo, 2048 for SimSiam and Barlow Twins.
      outputs: Numbers that a head gives: 128 for SimCLR and MoCo, 2048 for SimSiam and Barlow Twins.
      norm: Whether the heads are those of SimSiam and Barlow Twins.
      dtype: Type of the computation; by default that of features and parameters.

    Returns:
      ``apply(params, h [batch, features])`` gives ``[batch, heads, outputs]``.

    Raises:
      ValueError: If a size is not positive.

    Source:
      Wang et al. 2024, arXiv:2310.05615, Section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import multi_head_projector
      >>> model = multi_head_projector(4, heads=3, hidden=8, outputs=2)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 4))).shape
      (5, 3, 2)
    """
    _check_positive(features=features, heads=heads, hidden=hidden, outputs=outputs)
    sizes = (features, hidden, hidden, outputs) if norm else (features, hidden, outputs)
    norms = (norm,) * (len(sizes) - 1)
    return bridge_normalised(lambda rngs: HeadStack(sizes, heads, norms, False, dtype, rngs))


def multi_head_predictor(
    outputs: int, *, heads: int = 3, hidden: int = 512, dtype: DTypeLike | None = None
) -> NormalisedModel:
    """SimSiam's predictor for each head: a bottleneck with batch normalisation in its middle.

    ``p_c = relu(norm(z_c A_c + a_c)) B_c + b_c``

    Args:
      outputs: Numbers that a head gives, and its predictor.
      heads: Number of heads.
      hidden: Units of the bottleneck.
      dtype: Type of the computation; by default that of inputs and parameters.

    Returns:
      ``apply(params, z [batch, heads, outputs])`` gives the same shape.

    Raises:
      ValueError: If a size is not positive.

    Source:
      Chen and He 2021, arXiv:2011.10566, Section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import multi_head_predictor
      >>> model = multi_head_predictor(4, heads=3, hidden=2)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3, 4))).shape
      (5, 3, 4)
    """
    _check_positive(outputs=outputs, heads=heads, hidden=hidden)
    sizes, norms = (outputs, hidden, outputs), (True, False)
    return bridge_normalised(lambda rngs: HeadStack(sizes, heads, norms, True, dtype, rngs))


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
