"""The linear probe: a linear classifier of frozen features, as self-supervised encoders are judged.

The recipe of AMCL's code, arXiv:2310.05615, Section 4: SGD at 0.1 with momentum 0.9 and without decay, cosine
over 100 epochs, batches of 512.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.contrastive.arguments import check_positive, floating


class LinearProbe(NamedTuple):
    """A linear classifier.

    Attributes:
        kernel: ``[dim, classes]``.
        bias: ``[classes]``.
    """

    kernel: Float[Array, "dim classes"]
    bias: Float[Array, " classes"]

    def logits(self, features: Float[Array, "batch dim"]) -> Float[Array, "batch classes"]:
        """The logits of features."""
        return features @ self.kernel + self.bias

    def accuracy(self, features: Float[Array, "batch dim"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
        """The share of features whose largest logit is their label's."""
        return jnp.mean(jnp.argmax(self.logits(features), -1) == labels)


def linear_probe(
    key: PRNGKeyArray,
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    *,
    classes: int,
    epochs: int = 100,
    batch_size: int = 512,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
) -> LinearProbe:
    """Fits a linear classifier to the features of a frozen encoder.

    ``min mean cross_entropy(features W + b, labels)`` by SGD with momentum, cosine to 0, no weight decay

    Args:
        key: random key, of the weights and of the order.
        features: of the training images, as the encoder gives them.
        labels: their classes, from 0.
        classes: their number.
        epochs: passes over the features.
        batch_size: features in a step, clipped to their number; what is left over in an epoch is dropped.
        learning_rate: at the start.
        momentum: of SGD.

    Returns:
        The classifier.

    Raises:
        ValueError: shapes that do not fit, or numbers below 1.
        TypeError: features that are not floating.

    Source:
        arXiv:2310.05615, Section 4; weights and biases from ``U(-1, 1) / sqrt(dim)``, as PyTorch's.

    Example:
        >>> features = jnp.repeat(jnp.eye(2), 8, axis=0)
        >>> labels = jnp.repeat(jnp.arange(2), 8)
        >>> float(linear_probe(jax.random.key(0), features, labels, classes=2).accuracy(features, labels))
        1.0
    """
    features, labels = floating("features", features), jnp.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"labels: expected one for each row of features [batch, dim] {features.shape}, got {labels.shape}"
        )
    if min(classes, epochs, batch_size) < 1:
        raise ValueError(
            f"classes, epochs, batch_size: expected at least 1, got {classes}, {epochs}, {batch_size}"
        )
    check_positive(learning_rate=learning_rate)
    count, dim = features.shape
    batch_size = min(batch_size, count)
    batches = count // batch_size
    tx = optax.sgd(optax.cosine_decay_schedule(learning_rate, epochs * batches), momentum)
    of_kernel, of_bias, of_order = jax.random.split(key, 3)
    bound = dim**-0.5
    probe = LinearProbe(
        jax.random.uniform(of_kernel, (dim, classes), features.dtype, -bound, bound),
        jax.random.uniform(of_bias, (classes,), features.dtype, -bound, bound),
    )

    def loss(probe: LinearProbe, rows: Array) -> Array:
        logits = probe.logits(features[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(state: Any, rows: Array) -> tuple[Any, None]:
        probe, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(probe, rows), opt_state)
        return (optax.apply_updates(probe, updates), opt_state), None

    def epoch(state: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
        order = jax.random.permutation(key, count)[: batches * batch_size]
        return jax.lax.scan(step, state, order.reshape(batches, batch_size))

    (probe, _), _ = jax.lax.scan(epoch, (probe, tx.init(probe)), jax.random.split(of_order, epochs))
    return probe
