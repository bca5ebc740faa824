"""Losses and metrics of the image tasks, as LibMTL defines them (examples/nyu/utils.py).

A loss is one value for each pixel, or image, with a mask of those that are labelled; `masked_mean` reduces
it as LibMTL does, over all labelled pixels of the batch at once: an image with more labels weighs more. A
`Task` joins loss and metrics: `tally` runs on the device, one batch at a time, and `scores` on the host turns
the tallies of all batches into the metrics of the whole data set, exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

Masked = tuple[Float[Array, "..."], Bool[Array, "..."]]
"""Values, and which of them count."""


class Task(NamedTuple):
    """What a task predicts, how that is trained, and how it is judged."""

    name: str
    outputs: int
    """Channels that its head predicts."""
    loss: Callable[[Array, Array], Masked]
    """``(outputs, target) -> (values, mask)``."""
    tally: Callable[[Array, Array], Any]
    """``(outputs, target) ->`` what `scores` needs of this batch, arrays."""
    scores: Callable[[Sequence[Any]], list[float]]
    """``(tallies of all batches) ->`` one number for each metric."""
    metrics: tuple[str, ...]
    higher_is_better: tuple[bool, ...]


def masked_mean(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """The mean of the values that count; 0 if none does.

    Args:
        values: of the examples or pixels.
        mask: which count.

    Returns:
        A scalar.
    """
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def cross_entropy(logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]) -> Masked:
    """``-log softmax(logits)[label]`` where the label is not negative.

    Args:
        logits: of the classes.
        labels: -1 where there is none.

    Returns:
        Values in float32, and the mask, ``[*shape]``.
    """
    labelled = labels >= 0
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(labelled, labels, 0))
    return values, labelled


def depth_error(depth: Float[Array, "*shape 1"], target: Float[Array, "*shape"]) -> Masked:
    """``|depth - target|`` where the target is not 0.

    Args:
        depth: predicted.
        target: 0 where it is unknown.

    Returns:
        Values in float32, and the mask, ``[*shape]``.
    """
    depth = depth[..., 0].astype(jnp.promote_types(depth.dtype, jnp.float32))
    return jnp.abs(depth - target), target != 0


def normal_error(normal: Float[Array, "*shape 3"], target: Float[Array, "*shape 3"]) -> Masked:
    """``1 - cos(angle)`` between predicted and true normal where the true one is not 0.

    LibMTL's mask is a sum of the three components that is not 0, and so is this one.

    Args:
        normal: predicted, of any length.
        target: of length 1, or 0 where it is unknown.

    Returns:
        Values in float32, and the mask, ``[*shape]``.
    """
    return 1 - _cosine(normal, target), _known(target)


def _cosine(normal: Array, target: Array) -> Array:
    normal = normal.astype(jnp.promote_types(normal.dtype, jnp.float32))
    # The least length keeps value and gradient finite where all three outputs are 0.
    length = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(normal), -1), 1e-24))
    return jnp.sum(normal * target, -1) / length


def _known(target: Array) -> Array:
    return jnp.sum(target, -1) != 0


def confusion(
    logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]
) -> Int[Array, "classes classes"]:
    """How many labelled pixels of each class (row) are taken for each class (column).

    Args:
        logits: of the classes.
        labels: -1 where there is none.

    Returns:
        Counts.
    """
    classes = logits.shape[-1]
    # A row of zeros where there is no label. Sums of int8 products in int32 are exact on every device.
    true = jax.nn.one_hot(labels, classes, dtype=jnp.int8)
    taken = jax.nn.one_hot(jnp.argmax(logits, -1), classes, dtype=jnp.int8)
    dims = tuple(range(labels.ndim))
    return jax.lax.dot_general(true, taken, ((dims, dims), ((), ())), preferred_element_type=jnp.int32)


def segmentation_scores(tallies: Sequence[Int[np.ndarray, "classes classes"]]) -> list[float]:
    """Mean intersection over union of the classes, and share of right pixels, in percent.

    A class that is neither in the labels nor predicted is left out of the mean; LibMTL gives NaN then.

    Args:
        tallies: from `confusion`.

    Returns:
        mIoU and pixel accuracy.
    """
    counts = np.sum([np.asarray(tally, np.int64) for tally in tallies], axis=0)
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    present = union > 0
    return [100 * float(np.mean(right[present] / union[present])), 100 * float(right.sum() / counts.sum())]


def depth_sums(depth: Float[Array, "batch *shape 1"], target: Float[Array, "batch *shape"]) -> Array:
    """For each image the sums of absolute and relative errors, and the number of known pixels.

    Args:
        depth: predicted.
        target: 0 where it is unknown.

    Returns:
        ``[batch, 3]``.
    """
    error, known = depth_error(depth, target)
    relative = error / jnp.where(known, target, 1)
    parts = (jnp.where(known, error, 0), jnp.where(known, relative, 0), known.astype(error.dtype))
    return jnp.stack([jnp.sum(part, axis=range(1, part.ndim)) for part in parts], axis=-1)


def depth_scores(tallies: Sequence[Float[np.ndarray, "batch 3"]]) -> list[float]:
    """Mean absolute and mean relative error over all known pixels.

    Args:
        tallies: from `depth_sums`.

    Returns:
        Both means.
    """
    absolute, relative, known = np.concatenate(tallies).astype(np.float64).sum(0)
    return [float(absolute / known), float(relative / known)]


def angles(normal: Float[Array, "*shape 3"], target: Float[Array, "*shape 3"]) -> Float[Array, "*shape"]:
    """The angle between predicted and true normal in degrees; NaN where the true one is unknown.

    Args:
        normal: predicted, of any length.
        target: of length 1, or 0 where it is unknown.

    Returns:
        Angles in float32.
    """
    degrees = jnp.degrees(jnp.arccos(jnp.clip(_cosine(normal, target), -1, 1)))
    return jnp.where(_known(target), degrees, jnp.nan)


def normal_scores(tallies: Sequence[Float[np.ndarray, "..."]]) -> list[float]:
    """Mean and median angle, and the shares below 11.25, 22.5 and 30 degrees in percent.

    The median needs all angles at once: 289 MB for NYUv2's validation images.

    Args:
        tallies: from `angles`.

    Returns:
        Five numbers.
    """
    found = np.concatenate([np.ravel(tally) for tally in tallies])
    found = found[~np.isnan(found)]
    below = [100 * float(np.mean(found < limit)) for limit in (11.25, 22.5, 30)]
    return [float(np.mean(found, dtype=np.float64)), float(np.median(found)), *below]


def accuracy(tallies: Sequence[Int[np.ndarray, "classes classes"]]) -> list[float]:
    """Share of right examples in percent.

    Args:
        tallies: from `confusion`.

    Returns:
        One number.
    """
    return segmentation_scores(tallies)[1:]


def segmentation(classes: int) -> Task:
    """Each pixel's class.

    Args:
        classes: how many.

    Returns:
        The task.
    """
    metrics = ("mIoU", "pixAcc")
    return Task("segmentation", classes, cross_entropy, confusion, segmentation_scores, metrics, (True, True))


DEPTH = Task("depth", 1, depth_error, depth_sums, depth_scores, ("abs_err", "rel_err"), (False, False))
NORMAL = Task(
    "normal",
    3,
    normal_error,
    angles,
    normal_scores,
    ("mean", "median", "11.25", "22.5", "30"),
    (False, False, True, True, True),
)


def classification(name: str, classes: int) -> Task:
    """Each image's class.

    Args:
        name: of the domain.
        classes: how many.

    Returns:
        The task.
    """
    return Task(name, classes, cross_entropy, confusion, accuracy, ("accuracy",), (True,))


def interpolation(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix that interpolates ``old`` points linearly at ``new`` ones, ends onto ends.

    Args:
        old: number of points.
        new: number of points.

    Returns:
        Weights in float32; each row sums to 1.
    """
    position = np.linspace(0, old - 1, new)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(old))).astype(np.float32)


def upsample(x: Float[Array, "batch h w channels"], shape: tuple[int, int]) -> Array:
    """Bilinear interpolation, corner pixels onto corner pixels, in float32.

    Args:
        x: small maps.
        shape: height and width of the result.

    Returns:
        ``[batch, *shape, channels]``.
    """
    rows, columns = (interpolation(old, new) for old, new in zip(x.shape[1:3], shape, strict=True))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
