"""Batch normalisation without running averages.

Ioffe and Szegedy 2015 (arXiv:1502.03167, Algorithm 1). In training a batch is normalised by its own mean and
variance. The population's, for evaluation, are not a running average that every step must carry, but are
taken from a few batches when training is over ("precise BatchNorm": Wu and Johnson 2021, arXiv:2105.07576,
Section 3), so that parameters are the only state of a model.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Params = dict[str, Any]
Stats = dict[str, Any]


class NormalisedModel(NamedTuple):
    """A model with batch normalisation, as pure functions.

    Attributes:
      init: ``(key) -> params``, a nested dict of arrays with string keys, without statistics.
      apply: ``(params, *inputs) -> outputs``; each batch is normalised by its own statistics: training. Under
        jit on a mesh the batch is the global one.
      statistics: ``(params, *inputs) -> stats``, those that ``apply`` normalises by: a nested dict that has
        ``{"mean": [features], "variance": [features]}`` in place of each normalisation's parameters. The
        variance is the biased one, the mean of squared deviations.
      evaluate: ``(params, stats, *inputs) -> outputs``; normalised by given statistics, each example alone.

    The last three pass keyword arguments on to the module.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Any]
    statistics: Callable[..., Stats]
    evaluate: Callable[..., Any]


class BatchNorm(nnx.Module):
    """Normalises each feature over all other axes, in float32 or better.

    ``y = scale (x - mean) / sqrt(variance + epsilon) + bias``

    Args:
      features: Size of the last axis.
      epsilon: Added to the variance.
      scale: Initial scale.
      affine: Whether there are a scale and a bias.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, scale: float = 1.0, affine: bool = True):
        self.affine = affine
        if affine:
            self.scale = nnx.Param(jnp.full(features, scale))
            self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.variance = nnx.BatchStat(jnp.ones(features))
        self.epsilon = epsilon
        self.use_running_average = False  # flax's name: ``module.eval()`` sets it

    def __call__(
        self, x: Float[Array, "*axes features"], mask: Bool[Array, "*axes"] | None = None
    ) -> Float[Array, "*axes features"]:
        """The normalised features, in the type of ``x``; where a mask is false they do not count."""
        y = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
        if not self.use_running_average:
            axes = tuple(range(x.ndim - 1))
            where = None if mask is None else mask[..., None]
            self.mean.set_value(y.mean(axes, where=where))
            self.variance.set_value(y.var(axes, where=where))
        factor = jax.lax.rsqrt(self.variance[...] + self.epsilon)
        if not self.affine:
            return ((y - self.mean[...]) * factor).astype(x.dtype)
        return ((y - self.mean[...]) * (self.scale[...] * factor) + self.bias[...]).astype(x.dtype)


def mean_statistics(statistics: Sequence[Stats]) -> Stats:
    """The statistics of several batches of equal size taken together.

    ``mean = E[mean_b],  variance = E[variance_b + mean_b^2] - mean^2``

    Args:
      statistics: What ``NormalisedModel.statistics`` gave for each batch.

    Returns:
      Statistics of the same structure. Where the layers below see the same inputs they are those of all
      batches at once, with the biased variance.

    Raises:
      ValueError: If there are none.

    Source:
      Wu and Johnson 2021, arXiv:2105.07576, Section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn import mean_statistics
      >>> batches = [{"mean": jnp.array([m]), "variance": jnp.array([1.0])} for m in (0.0, 2.0)]
      >>> {name: float(x[0]) for name, x in mean_statistics(batches).items()}
      {'mean': 1.0, 'variance': 2.0}
    """
    if not statistics:
        raise ValueError("statistics: expected those of at least one batch, got none")

    def pooled(*batches: Stats) -> Stats:
        means = jnp.stack([batch["mean"] for batch in batches])
        variances = jnp.stack([batch["variance"] for batch in batches])
        return {"mean": means.mean(0), "variance": variances.mean(0) + means.var(0)}

    return jax.tree.map(pooled, *statistics, is_leaf=lambda x: x.keys() == {"mean", "variance"})
