"""The networks of FedKA out of `jaxneg.nn`'s parts, as the functions that `jaxneg.federated` takes."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxneg.federated import FedKANetwork
from jaxneg.nn import NormalisedModel, feature_cnn, feature_mlp, log_probability_head

MOMENTUM = 0.1
"""Of the running statistics, as PyTorch's: the share that a batch has in them."""
DOMAINS = 2


def fedka_network(
    features: NormalisedModel,
    classifier: NormalisedModel,
    discriminator: NormalisedModel,
    example: jax.ShapeDtypeStruct,
    *,
    running: bool = False,
) -> FedKANetwork:
    """Three models with batch normalisation as one network.

    In training and with ``eval_bn="batch"`` a batch is normalised by its own statistics. Running ones, for
    ``eval_bn="running"``, are a moving average, ``s <- (1 - 0.1) s + 0.1 s_batch``, with the biased variance
    (PyTorch takes the unbiased one). Bytes are divided by 255.

    Args:
        features: from examples to features.
        classifier: from features to log-probabilities of the classes.
        discriminator: from features to log-probabilities of source and target.
        example: shape and type of a batch.
        running: whether there are running statistics; without them they are not computed at all.

    Returns:
        The network. Asked for running statistics that it has not, it raises ValueError.

    Example:
        >>> from jaxneg.nn import feature_mlp, log_probability_head
        >>> parts = (feature_mlp(4, (8,)), log_probability_head(8, 6, 3), log_probability_head(8, 6, 2))
        >>> network = fedka_network(*parts, jax.ShapeDtypeStruct((2, 4), jnp.float32))
        >>> params, stats = network.init(jax.random.key(0))
        >>> h, _ = network.features(params["features"], stats["features"], jnp.ones((5, 4)), "batch", None)
        >>> h.shape
        (5, 8)
    """
    models = {"features": features, "classifier": classifier, "discriminator": discriminator}

    def init(key: PRNGKeyArray) -> tuple[dict[str, Any], dict[str, Any]]:
        keys = jax.random.split(key, len(models))
        params = {name: models[name].init(k) for name, k in zip(models, keys, strict=True)}
        if not running:
            return params, {name: {} for name in models}
        hidden = jax.eval_shape(lambda x: features.apply(params["features"], unit(x)), example)
        inputs = {"features": jax.eval_shape(unit, example), "classifier": hidden, "discriminator": hidden}
        return params, {
            name: jax.tree_util.tree_map_with_path(
                _first_statistic, jax.eval_shape(models[name].statistics, params[name], inputs[name])
            )
            for name in models
        }

    def part(model: NormalisedModel) -> Callable[..., tuple[Array, Any]]:
        def call(
            params: Any, stats: Any, inputs: Array, mode: str, key: PRNGKeyArray | None
        ) -> tuple[Array, Any]:
            inputs = unit(inputs)
            if mode == "running":
                if not running:
                    raise ValueError("eval_bn: 'running' needs a network with running statistics")
                return model.evaluate(params, stats, inputs), stats
            if mode == "batch" or not running:
                return model.apply(params, inputs, key=key if mode == "train" else None), stats
            found = model.statistics(params, inputs, key=key)  # the same computation, which XLA does once
            moved = jax.tree.map(lambda old, new: old + MOMENTUM * (new - old), stats, found)
            return model.apply(params, inputs, key=key), jax.lax.stop_gradient(moved)

        return call

    return FedKANetwork(init, *(part(model) for model in models.values()))


def unit(x: Array) -> Array:
    """Bytes as numbers from 0 to 1; other numbers as they are.

    Example:
        >>> unit(jnp.array([0, 255], jnp.uint8)).tolist()
        [0.0, 1.0]
    """
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def _first_statistic(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
    """Mean 0 and variance 1, as PyTorch begins."""
    return (jnp.zeros if path[-1].key == "mean" else jnp.ones)(leaf.shape, leaf.dtype)


@lru_cache
def perceptron(
    inputs: int, classes: int, *, width: int = 128, hidden: int = 64, running: bool = False
) -> FedKANetwork:
    """One hidden layer of features with dropout, and heads with one each.

    The same network each time it is asked for, so that programs that hold it compile once.

    Args:
        inputs: numbers of an example.
        classes: how many.
        width: features.
        hidden: width of the heads.
        running: as in `fedka_network`.

    Returns:
        The network.
    """
    classifier, discriminator = _heads(width, hidden, classes)
    example = jax.ShapeDtypeStruct((2, inputs), jnp.float32)
    return fedka_network(feature_mlp(inputs, (width,)), classifier, discriminator, example, running=running)


@lru_cache
def convolutional(
    size: int,
    classes: int = 10,
    *,
    widths: tuple[int, int] = (64, 50),
    kernels: tuple[int, int] = (5, 5),
    hidden: int = 100,
    running: bool = False,
) -> FedKANetwork:
    """Two convolutions and heads with one hidden layer; the defaults are those of the published code.

    The same network each time it is asked for, so that programs that hold it compile once.

    Args:
        size: side of the images in pixels, of three colours.
        classes: how many.
        widths: channels of both convolutions.
        kernels: sizes of their kernels.
        hidden: width of the heads.
        running: as in `fedka_network`.

    Returns:
        The network, for images ``[batch, size, size, 3]`` as bytes.

    Raises:
        ValueError: the images are too small for the kernels.
    """
    side = ((size - kernels[0] + 1) // 2 - kernels[1] + 1) // 2
    if side < 1:
        raise ValueError(f"size: images of {size} pixels leave nothing behind kernels of {kernels}")
    flat = side * side * widths[1]
    classifier, discriminator = _heads(flat, hidden, classes)
    example = jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)
    features = feature_cnn(3, widths, kernels)
    return fedka_network(features, classifier, discriminator, example, running=running)


def _heads(features: int, hidden: int, classes: int) -> tuple[NormalisedModel, NormalisedModel]:
    return (
        log_probability_head(features, hidden, classes),
        log_probability_head(features, hidden, DOMAINS),
    )
