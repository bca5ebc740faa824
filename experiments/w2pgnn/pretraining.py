"""Graph contrastive coding: an encoder learns to tell views of a node from views of others.

Qiu et al. 2020, "GCC: Graph contrastive coding for graph neural network pre-training", arXiv:2006.09963,
Section 3: InfoNCE, end to end with the negatives of the batch, or with a momentum encoder and a queue
(MoCo).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.w2pgnn.views import FEATURES
from jaxneg import contrastive
from jaxneg.nn import NormalisedModel, gin_encoder


@dataclass(frozen=True)
class Encoder:
    """A GIN and how it learns."""

    layers: int = 3
    """Rounds of messages."""
    width: int = 32
    """Of its layers and of an embedding."""
    aggregation: Literal["sum", "mean", "sqrt"] = "sqrt"
    """Sums over neighbours, or sums over (the root of) their number."""
    readout: Literal["sum", "mean"] = "mean"
    """Of a view's nodes."""
    ego: bool = True
    """Whether the ego is read out beside the nodes' pool."""
    norm: bool = False
    """Whether there is batch normalisation."""
    dropout: float = 0.0
    """Of the read-outs; 0.5 in GCC's code."""
    positions: int = 0
    """Eigenvectors among a node's features; 32 in GCC's code."""
    objective: Literal["e2e", "moco"] = "e2e"
    """Negatives of the batch, or of a queue."""
    queue: int = 16_384
    """Keys of MoCo."""
    momentum: float = 0.999
    """Of MoCo's key encoder."""
    temperature: float = 0.1
    """Of InfoNCE; 0.07 in GCC."""
    batch: int = 64
    """Pairs of views in a step."""
    steps: int = 150
    """Of pre-training."""
    learning_rate: float = 3e-3
    """Of Adam."""
    warmup: int = 0
    """Steps in which it rises; afterwards, if there are any, it falls to 0 linearly, as in GCC."""
    weight_decay: float = 0.0
    """Added to the gradient; 1e-4 in GCC."""
    clip: float = 0.0
    """Longest gradient; 1 in GCC, 0: any."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "queue", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"encoder.{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise ValueError(
                f"encoder.batch: expected at least 2 pairs, each other's negatives, got {self.batch}"
            )
        for name in ("positions", "weight_decay", "clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"encoder.{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"encoder.warmup: expected 0 to {self.steps - 1} steps, got {self.warmup}")
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"encoder.{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("dropout", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"encoder.{name}: expected at least 0 and below 1, got {getattr(self, name)}"
                )

    @property
    def features(self) -> int:
        """Of a node."""
        return FEATURES + self.positions


GCC_MOCO = Encoder(
    layers=5,
    width=64,
    aggregation="sum",
    readout="sum",
    ego=False,
    norm=True,
    dropout=0.5,
    positions=32,
    objective="moco",
    temperature=0.07,
    batch=32,
    steps=75_000,
    learning_rate=5e-3,
    warmup=7_500,
    weight_decay=1e-4,
    clip=1.0,
)
"""The paper's, Section 4.1: five layers of width 64, a queue of 16,384 keys, 75,000 steps of Adam at
0.005."""


class ViewBatch(NamedTuple):
    """Views on the device; padding follows a view's nodes."""

    x: Float[Array, "*views nodes features"]
    adj: Array
    sizes: Int[Array, "*views"]


class PretrainingState(NamedTuple):
    """What a step passes on."""

    step: Int[Array, ""]
    encoder: Any
    """Parameters that are trained."""
    optimizer: Any
    target: Any
    """Parameters of MoCo's key encoder; empty end to end."""
    queue: Any
    """Its keys; empty end to end."""
    key: PRNGKeyArray


def model_of(encoder: Encoder) -> NormalisedModel:
    """The network of an encoder.

    Args:
        encoder: its settings.

    Returns:
        The model.
    """
    return gin_encoder(
        encoder.features,
        layers=encoder.layers,
        width=encoder.width,
        outputs=encoder.width,
        aggregation=encoder.aggregation,
        readout=encoder.readout,
        ego=encoder.ego,
        norm=encoder.norm,
        dropout=encoder.dropout,
    )


def inputs(views: ViewBatch) -> tuple[Array, Array, Array]:
    """What the network reads of views.

    Args:
        views: features, adjacencies and sizes.

    Returns:
        Features, adjacencies in their type, and which nodes are real.
    """
    mask = jnp.arange(views.x.shape[-2]) < views.sizes[..., None]
    return views.x, views.adj.astype(views.x.dtype), mask


def optimizer_of(encoder: Encoder) -> optax.GradientTransformation:
    """Adam as the encoder has it.

    Args:
        encoder: its settings.

    Returns:
        The transformation.
    """
    rate: Any = encoder.learning_rate
    if encoder.warmup:
        rate = optax.join_schedules(
            [
                optax.linear_schedule(0.0, encoder.learning_rate, encoder.warmup),
                optax.linear_schedule(encoder.learning_rate, 0.0, encoder.steps - encoder.warmup),
            ],
            [encoder.warmup],
        )
    links = [optax.clip_by_global_norm(encoder.clip)] if encoder.clip else []
    links += [optax.add_decayed_weights(encoder.weight_decay)] if encoder.weight_decay else []
    return optax.chain(*links, optax.adam(rate))


def init_pretraining(encoder: Encoder, key: PRNGKeyArray) -> PretrainingState:
    """The state before the first step.

    Args:
        encoder: its settings.
        key: random key of the whole training.

    Returns:
        The state.
    """
    of_params, of_queue, of_run = jax.random.split(key, 3)
    params = model_of(encoder).init(of_params)
    target, queue = (), ()
    if encoder.objective == "moco":
        target = jax.tree.map(jnp.copy, params)
        queue = contrastive.init_queue(of_queue, encoder.queue, encoder.width)
    opt_state = optimizer_of(encoder).init(params)
    return PretrainingState(jnp.zeros((), jnp.int32), params, opt_state, target, queue, of_run)


def make_pretraining_step(
    encoder: Encoder,
) -> Callable[[PretrainingState, dict[str, ViewBatch]], tuple[PretrainingState, dict[str, Array]]]:
    """A pure train step.

    Args:
        encoder: what learns, and how.

    Returns:
        ``step(state, batch) -> (state, metrics)``; the batch holds ``first`` and ``second``, two views of
        each node. Metrics: ``loss``, the mean InfoNCE in nats, and ``grad_norm``.
    """
    model, tx = model_of(encoder), optimizer_of(encoder)

    def embed(params: Any, views: ViewBatch, key: Array) -> Array:
        return model.apply(params, *inputs(views), dropout_key=key)

    def loss_fn(params: Any, batch: dict[str, ViewBatch], target: Any, queue: Any, key: Array):
        of_query, of_key = jax.random.split(key)
        q = embed(params, batch["first"], of_query)
        if encoder.objective == "moco":
            k = embed(target, batch["second"], of_key)
            losses = contrastive.info_nce_queue_loss(q, k, queue.queue, encoder.temperature)
        else:
            k = embed(params, batch["second"], of_key)
            # As in GCC's code: from each key to the queries of the batch.
            logits = k @ q.T / encoder.temperature
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(q)))
        return losses.mean(), k

    def step(
        state: PretrainingState, batch: dict[str, ViewBatch]
    ) -> tuple[PretrainingState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, keys), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.encoder, batch, state.target, state.queue, key
        )
        updates, opt_state = tx.update(gradient, state.optimizer, state.encoder)
        params = optax.apply_updates(state.encoder, updates)
        target, queue = state.target, state.queue
        if encoder.objective == "moco":
            target = contrastive.ema_update(target, params, encoder.momentum)
            queue = contrastive.queue_enqueue(queue.queue, queue.ptr, keys)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
        return PretrainingState(state.step + 1, params, opt_state, target, queue, state.key), metrics

    return step
