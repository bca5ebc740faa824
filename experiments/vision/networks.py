"""The networks of the image benchmarks, as LibMTL builds them: one encoder for all tasks, a head for each.

NYUv2 and Cityscapes: a ResNet-50 whose last two stages are dilated (one place of features for 8 x 8 pixels),
and DeepLabV3's head for each task. Office: a ResNet-18, the mean over its places, a hidden layer of the same
size, and a linear head for each domain.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.vision.dense import Task, masked_mean, upsample
from jaxneg.nn import BatchNorm, bridge, bridge_normalised, deeplab_head, resnet, resnet_from_torch
from jaxneg.train import SplitLoss

Params = Any
Stats = Any
Batch = Mapping[str, Array]


class Network(NamedTuple):
    """A network and what is asked of it, as pure functions of ``{"encoder": ..., "heads": {task: ...}}``."""

    tasks: tuple[Task, ...]
    init: Callable[[PRNGKeyArray], Params]
    loss: SplitLoss
    """One loss for each task, from encoder and heads."""
    statistics: Callable[[Params, Batch], Stats]
    """``(params, batch) ->`` means and variances of this batch, for evaluation."""
    tallies: Callable[[Params, Stats, Batch], dict[str, Any]]
    """``(params, statistics, batch) ->`` for each task what `Task.scores` needs of this batch."""


def dense_network(
    tasks: tuple[Task, ...], shape: tuple[int, int], depth: int = 50, width: int = 64
) -> Network:
    """Predicts something at each pixel of an image, for all tasks of the same image.

    Args:
        tasks: what.
        shape: height and width of the images.
        depth: of the ResNet; the papers' 50.
        width: features of the first stage; the papers' 64.

    Returns:
        The network for batches ``{"image": [B, H, W, 3], <task>: its target}``.
    """
    encoder = resnet(depth, output_stride=8, width=width)
    features = (32 if depth >= 50 else 8) * width
    heads = {task.name: deeplab_head(features, task.outputs, channels=4 * width) for task in tasks}

    def init(key: PRNGKeyArray) -> Params:
        first, *others = jax.random.split(key, 1 + len(tasks))
        found = {name: head.init(k) for (name, head), k in zip(heads.items(), others, strict=True)}
        return {"encoder": encoder.init(first), "heads": found}

    def head_losses(params: Params, Z: Array, batch: Batch, key: PRNGKeyArray) -> tuple[Array, dict]:
        losses = []
        for task, k in zip(tasks, jax.random.split(key, len(tasks)), strict=True):
            outputs = upsample(heads[task.name].apply(params[task.name], Z, k), shape)
            losses.append(masked_mean(*task.loss(outputs, batch[task.name])))
        return jnp.stack(losses), {}

    def statistics(params: Params, batch: Batch) -> Stats:
        Z = encoder.apply(params["encoder"], batch["image"])
        found = {name: head.statistics(params["heads"][name], Z) for name, head in heads.items()}
        return {"encoder": encoder.statistics(params["encoder"], batch["image"]), "heads": found}

    def tallies(params: Params, stats: Stats, batch: Batch) -> dict[str, Any]:
        Z = encoder.evaluate(params["encoder"], stats["encoder"], batch["image"])
        found = {}
        for task in tasks:
            own = params["heads"][task.name], stats["heads"][task.name]
            outputs = upsample(heads[task.name].evaluate(*own, Z), shape)
            found[task.name] = task.tally(outputs, batch[task.name])
        return found

    loss = SplitLoss(lambda params, batch, _: encoder.apply(params, batch["image"]), head_losses)
    return Network(tasks, init, loss, statistics, tallies)


class Hidden(nnx.Module):
    """``drop(relu(norm(linear(x))))`` with LibMTL's first values."""

    def __init__(self, features: int, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(
            features,
            features,
            kernel_init=nnx.initializers.normal(0.005),
            bias_init=nnx.initializers.constant(0.1),
            rngs=rngs,
        )
        self.norm = BatchNorm(features)
        self.dropout = nnx.Dropout(0.5)

    def __call__(
        self, x: Float[Array, "batch features"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch features"]:
        """Drops features where there is a key."""
        x = jax.nn.relu(self.norm(self.linear(x)))
        return x if key is None else self.dropout(x, rngs=key)


def office_network(tasks: tuple[Task, ...], depth: int = 18, width: int = 64) -> Network:
    """Predicts the class of an image; each task has images of its own.

    In training the images of a domain are normalised by their own statistics; in evaluation by the mean over
    the domains of their means and variances, as the running averages of LibMTL's networks tend to.

    Args:
        tasks: one for each domain.
        depth: of the ResNet; the papers' 18.
        width: features of the first stage; the papers' 64.

    Returns:
        The network for batches ``{"image": [T, B, H, W, 3], "label": [T, B]}``.
    """
    features = (32 if depth >= 50 else 8) * width
    backbone = resnet(depth, width=width)
    hidden = bridge_normalised(lambda rngs: Hidden(features, rngs))
    # torch's first values of a linear layer.
    uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    heads = {
        task.name: bridge(
            lambda rngs, task=task: nnx.Linear(features, task.outputs, kernel_init=uniform, rngs=rngs)
        )
        for task in tasks
    }

    def init(key: PRNGKeyArray) -> Params:
        first, second, *others = jax.random.split(key, 2 + len(tasks))
        found = {name: head.init(k) for (name, head), k in zip(heads.items(), others, strict=True)}
        return {"encoder": {"backbone": backbone.init(first), "hidden": hidden.init(second)}, "heads": found}

    def pooled(x: Float[Array, "batch h w features"]) -> Float[Array, "batch features"]:
        return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)

    def encode(params: Params, batch: Batch, key: PRNGKeyArray) -> Float[Array, "tasks batch features"]:
        def one(own: tuple[Array, PRNGKeyArray]) -> Array:
            x, k = own
            return hidden.apply(params["hidden"], pooled(backbone.apply(params["backbone"], x)), k)

        return jax.lax.map(one, (batch["image"], jax.random.split(key, len(tasks))))

    def head_losses(params: Params, Z: Array, batch: Batch, key: PRNGKeyArray) -> tuple[Array, dict]:
        del key
        losses = [
            masked_mean(*task.loss(heads[task.name].apply(params[task.name], z), label))
            for task, z, label in zip(tasks, Z, batch["label"], strict=True)
        ]
        return jnp.stack(losses), {}

    def statistics(params: Params, batch: Batch) -> Stats:
        encoder = params["encoder"]

        def one(x: Array) -> Stats:
            z = pooled(backbone.apply(encoder["backbone"], x))
            return {
                "backbone": backbone.statistics(encoder["backbone"], x),
                "hidden": hidden.statistics(encoder["hidden"], z),
            }

        return jax.tree.map(lambda x: x.mean(0), jax.lax.map(one, batch["image"]))

    def tallies(params: Params, stats: Stats, batch: Batch) -> dict[str, Any]:
        encoder = params["encoder"]

        def one(x: Array) -> Array:
            z = pooled(backbone.evaluate(encoder["backbone"], stats["backbone"], x))
            return hidden.evaluate(encoder["hidden"], stats["hidden"], z)

        Z = jax.lax.map(one, batch["image"])
        return {
            task.name: task.tally(heads[task.name].apply(params["heads"][task.name], z), label)
            for task, z, label in zip(tasks, Z, batch["label"], strict=True)
        }

    loss = SplitLoss(encode, head_losses, own_inputs=True)
    return Network(tasks, init, loss, statistics, tallies)


def with_imagenet(params: Params, depth: int, path: Path) -> Params:
    """The parameters with the ResNet's read from a file.

    Args:
        params: of one of these networks.
        depth: of its ResNet.
        path: a safetensors file of torchvision's ResNet, with torchvision's names.

    Returns:
        Parameters; heads and hidden layer stay.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another network. The message names what differs.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} of ImageNet weights: save torchvision's state_dict of a ResNet-{depth} "
            "by safetensors.torch.save_file, or leave weights empty to begin at random"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}): save it again") from error
    try:
        found, _ = resnet_from_torch(state, depth)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    encoder = params["encoder"]
    return {**params, "encoder": {**encoder, "backbone": found} if "backbone" in encoder else found}
