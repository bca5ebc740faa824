"""The parts of a network that is trained across domains: an extractor of features, and heads upon it.

The networks of FedKA's published code (Sun, Chong and Ochiai 2022, arXiv:2203.11635): a convolutional
extractor for digits, a perceptron for texts, and heads for classes and for domains, each normalised by the
batch and initialised as PyTorch does.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel
from jaxneg.nn.bridge import bridge_normalised
from jaxneg.nn.contraction import contract
from jaxneg.nn.convolution import convolve

Norm = Literal["batch", "group"]


class FeatureMLP(nnx.Module):
    """The module behind :func:`feature_mlp`."""

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float, norm: Norm, rngs: nnx.Rngs):
        sizes = [inputs, *hidden]
        self.layers = nnx.List([_linear(n, m, rngs) for n, m in zip(sizes, hidden, strict=False)])
        self.norms = nnx.List([_norm(norm, size, rngs) for size in hidden])
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "batch inputs"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch features"]:
        """Features; dropout only with a key."""
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):  # pyright: ignore
            x = norm(layer(x))
            if key is not None:
                x = _dropped(x, self.dropout, x.shape, jax.random.fold_in(key, i))
            x = jax.nn.relu(x)
        return x


class FeatureCNN(nnx.Module):
    """The module behind :func:`feature_cnn`."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int],
        kernels: tuple[int, int],
        dropout: float,
        norm: Norm,
        rngs: nnx.Rngs,
    ):
        first, second = widths
        self.first = _Convolution(channels, first, kernels[0], rngs)
        self.second = _Convolution(first, second, kernels[1], rngs)
        self.first_norm, self.second_norm = _norm(norm, first, rngs), _norm(norm, second, rngs)
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch features"]:
        """Flat features; whole channels are dropped, and only with a key."""
        x = jax.nn.relu(_pooled(self.first_norm(self.first(x))))
        x = self.second_norm(self.second(x))
        if key is not None:
            x = _dropped(x, self.dropout, (x.shape[0], 1, 1, x.shape[3]), key)
        x = jax.nn.relu(_pooled(x))
        return x.reshape(len(x), -1)


class LogProbabilities(nnx.Module):
    """The module behind :func:`log_probability_head`."""

    def __init__(self, features: int, hidden: int, outputs: int, norm: Norm, rngs: nnx.Rngs):
        self.first, self.second = _linear(features, hidden, rngs), _linear(hidden, outputs, rngs)
        self.norm = _norm(norm, hidden, rngs)

    def __call__(
        self, h: Float[Array, "batch features"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch outputs"]:
        """Log-probabilities; nothing in here is random."""
        del key
        return jax.nn.log_softmax(self.second(jax.nn.relu(self.norm(self.first(h)))))


def feature_mlp(
    inputs: int, hidden: Sequence[int] = (128,), *, dropout: float = 0.5, norm: Norm = "batch"
) -> NormalisedModel:
    """A perceptron that extracts features: linear, normalisation, dropout and ReLU in each layer.

    Args:
      inputs: Numbers of an example.
      hidden: Width of each layer.
      dropout: Share that is dropped, where ``apply`` gets ``key=``.
      norm: ``"batch"``, or ``"group"``, which has no statistics to average across domains.

    Returns:
      The model: ``apply(params, x [batch, inputs], key=None)`` gives ``[batch, hidden[-1]]``.

    Raises:
      ValueError: If a size is not positive, or the dropout is not between 0 and 1.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import feature_mlp
      >>> model = feature_mlp(4, (8,))
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 4))).shape
      (5, 8)
    """
    _check(dropout, norm, inputs=inputs, **{f"hidden[{i}]": size for i, size in enumerate(hidden)})
    if not hidden:
        raise ValueError("hidden: expected at least one layer, got none")
    return bridge_normalised(lambda rngs: FeatureMLP(inputs, hidden, dropout, norm, rngs))


def feature_cnn(
    channels: int = 3,
    widths: tuple[int, int] = (64, 50),
    kernels: tuple[int, int] = (5, 5),
    *,
    dropout: float = 0.5,
    norm: Norm = "batch",
) -> NormalisedModel:
    """A small convolutional extractor of features; the defaults are those for Digit-Five.

    Convolution without padding, normalisation, pooling by 2, ReLU; the same again, with dropout of whole
    channels before the pooling; flat.

    Args:
      channels: Of an image.
      widths: Channels of both convolutions.
      kernels: Sizes of their kernels.
      dropout: Share of the channels that is dropped, where ``apply`` gets ``key=``.
      norm: As in :func:`feature_mlp`.

    Returns:
      The model: ``apply(params, x [batch, height, width, channels], key=None)`` gives ``[batch, features]``.

    Raises:
      ValueError: If a size is not positive, or the dropout is not between 0 and 1.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import feature_cnn
      >>> model = feature_cnn()
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 28, 28, 3))).shape
      (2, 800)
    """
    sizes = dict(
        zip(("widths[0]", "widths[1]", "kernels[0]", "kernels[1]"), (*widths, *kernels), strict=True)
    )
    _check(dropout, norm, channels=channels, **sizes)
    return bridge_normalised(lambda rngs: FeatureCNN(channels, widths, kernels, dropout, norm, rngs))


def log_probability_head(
    features: int, hidden: int, outputs: int, *, norm: Norm = "batch"
) -> NormalisedModel:
    """A head with one hidden layer: linear, normalisation, ReLU, linear, log-softmax.

    Args:
      features: Numbers of an example.
      hidden: Width of the hidden layer.
      outputs: Number of classes.
      norm: As in :func:`feature_mlp`.

    Returns:
      The model: ``apply(params, h [batch, features])`` gives log-probabilities ``[batch, outputs]``.

    Raises:
      ValueError: If a size is not positive.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import log_probability_head
      >>> model = log_probability_head(8, 4, 2)
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 8))).shape
      (5, 2)
    """
    _check(0.0, norm, features=features, hidden=hidden, outputs=outputs)
    return bridge_normalised(lambda rngs: LogProbabilities(features, hidden, outputs, norm, rngs))


class _Convolution(nnx.Module):
    """A convolution without padding."""

    def __init__(self, inputs: int, outputs: int, size: int, rngs: nnx.Rngs):
        init = _uniform(inputs * size * size)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs)))
        self.bias = nnx.Param(init(rngs.params(), (outputs,)))

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w outputs"]:
        dtype = jnp.promote_types(x.dtype, self.kernel.dtype)  # XLA's convolution wants one type
        x, kernel, size = x.astype(dtype), self.kernel[...].astype(dtype), self.kernel.shape[0]
        height, width = (side - size + 1 for side in x.shape[1:3])

        def patches(x: Array, kernel: Array) -> Array:
            # Of several models, mapped, XLA's convolution on a CPU is half as fast as this product or less.
            # Columns first, then rows: 2 size pieces in place of size^2, and fewer in the gradient, too.
            x = jnp.concatenate([x[:, :, j : j + width] for j in range(size)], axis=-1)
            x = jnp.concatenate([x[:, i : i + height] for i in range(size)], axis=-1)
            return x @ kernel.reshape(-1, kernel.shape[-1])

        def convolution(x: Array, kernel: Array) -> Array:
            return convolve(x, kernel, (1, 1), "VALID", None, None, ("NHWC", "HWIO", "NHWC"))

        y = jax.lax.platform_dependent(x, kernel, cpu=patches, default=convolution)
        return y + self.bias[...]


class _GroupNorm(nnx.Module):
    """Normalises each example over all positions and the features of a group."""

    def __init__(self, features: int, groups: int):
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.groups = groups

    def __call__(self, x: Float[Array, "batch *axes features"]) -> Float[Array, "batch *axes features"]:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y.reshape(*x.shape[:-1], self.groups, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean, variance = y.mean(axes, keepdims=True), y.var(axes, keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def _norm(norm: Norm, features: int, rngs: nnx.Rngs) -> nnx.Module:
    del rngs
    if norm == "batch":
        return BatchNorm(features)
    return _GroupNorm(features, next(n for n in (8, 4, 2, 1) if features % n == 0))


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = _uniform(inputs)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, dot_general=contract, rngs=rngs)


def _uniform(fan_in: int) -> nnx.Initializer:
    """PyTorch's default: uniform between plus and minus ``fan_in ** -1/2``."""
    bound = fan_in**-0.5

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype=jnp.float32, **_: object) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _pooled(x: Array) -> Array:
    """The largest of each two by two; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _dropped(x: Array, rate: float, shape: tuple[int, ...], key: PRNGKeyArray) -> Array:
    if rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, shape), x / (1 - rate), 0)


def _check(dropout: float, norm: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a share from 0 to below 1, got {dropout}")
    if norm not in ("batch", "group"):
        raise ValueError(f"norm: expected 'batch' or 'group', got {norm!r}")
