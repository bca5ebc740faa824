"""What a client of FedKA minimises: its classes and domains, and its features' distance to the target's.

Sun, Chong and Ochiai 2022, arXiv:2203.11635, as its published code has it (cells 6, 8 and 10).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from jaxneg.federated.arguments import one_of, wide
from jaxneg.federated.gradient_reversal import grl
from jaxneg.federated.mk_mmd import mk_mmd

Mode = Literal["train", "batch", "running"]
Part = Callable[[Any, Any, Array, Mode, PRNGKeyArray | None], tuple[Array, Any]]

SOURCE, TARGET = 0, 1
"""The domains, as the domain classifier numbers them."""


class FedKANetwork(NamedTuple):
    """The three parts of a network, as functions ``(params, stats, inputs, mode, key) -> (outputs, stats)``.

    ``mode`` is ``"train"`` (batch statistics, which enter the running ones; dropout if there is a key),
    ``"batch"`` (batch statistics, no dropout) or ``"running"`` (running statistics, no dropout). A part
    without statistics passes an empty tree on.

    Attributes:
      init: ``(key) -> (params, stats)``, dicts with the keys ``features``, ``classifier``, ``discriminator``.
      features: From examples ``[batch, ...]`` to features ``[batch, ...]``.
      classifier: From features to log-probabilities of the classes ``[batch, classes]``.
      discriminator: From features to log-probabilities of source and target ``[batch, 2]``.
    """

    init: Callable[[PRNGKeyArray], tuple[dict[str, Any], dict[str, Any]]]
    features: Part
    classifier: Part
    discriminator: Part


def client_objective(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    apply_fns: FedKANetwork,
    source: tuple[Array, Int[Array, " batch"]],
    target: Array,
    lam: ArrayLike,
    *,
    disentangle: bool,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """A client's loss in phase A: its classes, and the domains behind a gradient reversal.

    ``L = mean NLL(c(f(x_s)), y_s) + mean NLL(d(R(f(x_s))), source) + mean NLL(d(R(f(x_t))), target)``

    with the last two terms, in which R reverses the gradient with strength ``lam``, if ``disentangle``.

    Args:
      params: Parameters of the three parts.
      batch_stats: Running statistics of the three parts.
      apply_fns: The network.
      source: Examples and classes of the client.
      target: Examples of the target domain; a forward pass of its own, with batch statistics of its own.
      lam: Strength of the reversal.
      disentangle: Whether domains are told apart.
      key: For dropout; None for none.

    Returns:
      The loss; and ``class_loss``, ``source_loss``, ``target_loss`` (0 unless ``disentangle``) and the new
      ``batch_stats``.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code, cell 10.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import FedKANetwork, client_objective
      >>> part = lambda w, s, x, mode, key: (jnp.log(jnp.full((len(x), 2), 0.5)), s)
      >>> network = FedKANetwork(None, lambda w, s, x, mode, key: (x, s), part, part)
      >>> nothing = {"features": {}, "classifier": {}, "discriminator": {}}
      >>> x, y = jnp.ones((3, 4)), jnp.zeros(3, int)
      >>> round(float(client_objective(nothing, nothing, network, (x, y), x, 1.0, disentangle=True)[0]), 3)
      2.079
    """
    stats = dict(batch_stats)
    keys = [None] * 5 if key is None else jax.random.split(key, 5)

    def run(part: str, inputs: Array, key: PRNGKeyArray | None) -> Array:
        outputs, stats[part] = getattr(apply_fns, part)(params[part], stats[part], inputs, "train", key)
        return outputs

    x, y = source
    h = run("features", x, keys[0])
    class_loss = negative_log_likelihood(run("classifier", h, keys[1]), y)
    zero = jnp.zeros_like(class_loss)
    source_loss, target_loss = zero, zero
    if disentangle:
        target_h = run("features", target, keys[2])
        source_loss = negative_log_likelihood(run("discriminator", grl(h, lam), keys[3]), SOURCE)
        target_loss = negative_log_likelihood(run("discriminator", grl(target_h, lam), keys[4]), TARGET)
    aux = {"class_loss": class_loss, "source_loss": source_loss, "target_loss": target_loss}
    return class_loss + source_loss + target_loss, aux | {"batch_stats": stats}


def matching_objective(
    client_feats: Float[Array, "accum batch features"],
    global_feats: Float[Array, "accum other features"],
    lams: Float[Array, " accum"],
    *,
    accumulate: Literal["mean", "last"] = "mean",
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
) -> Float[Array, ""]:
    """A client's loss in phase B: its features' distance to the global model's on the target domain.

    ``mean_i lam_i MMD^2(h_i, stop_gradient(g_i))``; with ``accumulate="last"`` the last term alone, divided
    by the number of all, as the published code computes it.

    Args:
      client_feats: Features of the client on its own examples, for each batch.
      global_feats: Features of the global model on the target's; constants.
      lams: Strength for each batch.
      accumulate: Which batches count.
      kernel_mul: As in :func:`kernel_bandwidths`.
      kernel_num: Likewise.

    Returns:
      A scalar.

    Raises:
      ValueError: If the numbers of batches differ, or ``accumulate`` is unknown.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code, cells 6 and 10.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import matching_objective
      >>> float(matching_objective(jnp.zeros((2, 3, 1)), jnp.zeros((2, 3, 1)), jnp.ones(2)))
      0.0
    """
    one_of("accumulate", accumulate, ("mean", "last"))
    count = len(client_feats)
    lams = jnp.asarray(lams)
    if len(global_feats) != count or lams.shape != (count,):
        raise ValueError(
            f"global_feats, lams: expected {count} batches as client_feats has, got {len(global_feats)} and "
            f"shape {lams.shape}"
        )
    global_feats = jax.lax.stop_gradient(global_feats)
    distance = functools.partial(mk_mmd, kernel_mul=kernel_mul, kernel_num=kernel_num)
    if accumulate == "last":
        return lams[-1] * distance(client_feats[-1], global_feats[-1]) / count
    return jnp.mean(lams * jax.vmap(distance)(client_feats, global_feats))


def negative_log_likelihood(logp: Array, y: Array | int, counts: Array | None = None) -> Float[Array, ""]:
    """The mean over the examples that count; 0 if none does."""
    classes = jnp.broadcast_to(jnp.asarray(y), logp.shape[:1])
    each = -jnp.take_along_axis(wide(logp), classes[:, None], axis=1)[:, 0]
    if counts is None:
        return each.mean()
    return jnp.where(counts, each, 0).sum() / jnp.maximum(counts.sum(), 1)
