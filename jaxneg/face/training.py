"""A training step with UNPG: a backbone, class centres on one device or many, and the batch's own pairs.

The backbone is a function of the user's; nothing here knows a framework. `make_unpg_loss` fits
`jaxneg.train.make_step`; `make_unpg_train_step` is a whole step of its own, for two optimisers and for class
centres of which only the sampled ones move.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.face.magface import MagFace
from jaxneg.face.partial_fc import sharded_margin_softmax
from jaxneg.face.sampled_updates import update_sampled_rows
from jaxneg.face.unpg import unpg_log_partition, unpg_loss

Params = dict[str, Any]


@dataclass(frozen=True)
class UNPGConfig:
    """What is trained, and how."""

    apply: Callable[..., Array]
    """``(backbone params, x, key) -> features [batch, dim]``."""
    backbone_tx: optax.GradientTransformation
    """Optimiser of the backbone; clip its gradients here, as Partial FC does at norm 5."""
    head_tx: optax.GradientTransformation
    """Optimiser of the class centres."""
    head: str = "cosface"
    s: float = 64.0
    m: Any = 0.5
    r: float | None = 1.5
    """Whiskers of the filter; None leaves the pairs out."""
    mag: MagFace | Mapping[str, float] | None = None
    axis: tuple[str, ...] = ()
    """Mesh axes over which the classes lie; () has them all on each device."""
    batch_axis: tuple[str, ...] = ()
    """Mesh axes over which the rows of the matrix of pairs are computed, with classes on ``axis``; () leaves
    that to the compiler."""
    sample_rate: float = 1.0
    interclass_threshold: float = 0.0
    num_classes: int | None = None
    """Where the class centres are padded, see `pad_class_shards`."""
    sparse_update: bool = False
    """Whether class centres that were not sampled keep value and momentum."""


class UNPGState(NamedTuple):
    """What a step passes on. The random key of step n is ``fold_in(key, n)``."""

    step: Int[Array, ""]
    params: Params
    """``{"backbone", "head"}``; the head's are the class centres."""
    opt_state: dict[str, Any]
    key: PRNGKeyArray


def make_unpg_loss(
    config: UNPGConfig, mesh: Mesh | None = None
) -> Callable[[Params, dict[str, Array], PRNGKeyArray], tuple[Array, dict[str, Array]]]:
    """The mean loss of a batch.

    Args:
        config: backbone and settings.
        mesh: needed where the config names axes.

    Returns:
        ``(params {"backbone", "head"}, batch {"x", "labels"}, key) -> (loss, aux)``: the loss function of
        `jaxneg.train.make_step`. aux holds the mean cosine at the true class, the share of the pairs that
        the filter keeps, and with sampling ``sampled``, which class centres took part.

    Raises:
        ValueError: axes without a mesh, or sampling without an axis of classes.

    Example:
        >>> tx = optax.sgd(0.1)
        >>> loss = make_unpg_loss(UNPGConfig(lambda w, x, key: x @ w, tx, tx, s=16.0))
        >>> params = {"backbone": jnp.eye(2), "head": jnp.eye(2)}
        >>> batch = {"x": jnp.eye(2), "labels": jnp.array([0, 1])}
        >>> float(loss(params, batch, jax.random.key(0))[1]["kept"])
        1.0
    """
    if (config.axis or config.batch_axis) and mesh is None:
        raise ValueError("mesh: expected a mesh for the axes of the config, got None")
    needing = config.sample_rate < 1 or config.interclass_threshold > 0 or config.batch_axis
    if needing and not config.axis:
        raise ValueError(
            "axis: sample_rate, interclass_threshold and batch_axis need a mesh axis of the classes, got ()"
        )

    def pairs(features: Array, labels: Array) -> tuple[Array, Array, Array]:
        options = {"s": config.s, "r": config.r}

        def counted(features: Array, labels: Array, **more: Any) -> tuple[Array, Array, Array]:
            log_partition, stats = unpg_log_partition(features, labels, **options, **more)
            return log_partition, stats["n_kept"], stats["n_neg"]

        if not config.batch_axis:
            return counted(features, labels)
        split = P(config.batch_axis)
        return jax.shard_map(
            lambda x, y: counted(x, y, axis_name=config.batch_axis),
            mesh=mesh,
            in_specs=(split, split),
            out_specs=P(),
        )(features, labels)

    def loss_fn(params: Params, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        backbone_key, sample_key = jax.random.split(key)
        features = config.apply(params["backbone"], batch["x"], backbone_key)
        labels = batch["labels"]
        options = {"head": config.head, "s": config.s, "m": config.m, "mag": config.mag}
        if not config.axis:
            losses, stats = unpg_loss(features, params["head"], labels, r=config.r, **options)
            return losses.mean(), {"kept": _share(stats["n_kept"], stats["n_neg"])}
        log_partition, kept, found = None, jnp.zeros((), int), jnp.zeros((), int)
        if config.r is not None:
            log_partition, kept, found = pairs(features, labels)
        losses, sampled = sharded_margin_softmax(
            features,
            params["head"],
            labels,
            mesh=mesh,  # pyright: ignore[reportArgumentType]
            axis=config.axis,
            sample_rate=config.sample_rate,
            key=sample_key,
            extra_log_partition=log_partition,
            interclass_threshold=config.interclass_threshold,
            num_classes=config.num_classes,
            return_sampled=True,
            **options,
        )
        return losses.mean(), {"kept": _share(kept, found), "sampled": sampled}

    return loss_fn


def make_unpg_train_step(
    config: UNPGConfig, mesh: Mesh | None = None
) -> Callable[[UNPGState, dict[str, Array]], tuple[UNPGState, dict[str, Array]]]:
    """A pure training step.

    Args:
        config: backbone, optimisers and settings.
        mesh: needed where the config names axes.

    Returns:
        ``(state, batch {"x", "labels"}) -> (state, metrics)``, to be jitted, with ``loss``, ``grad_norm`` and
        ``kept``; `init_unpg_state` makes the first state.

    Raises:
        ValueError: as in `make_unpg_loss`.

    Example:
        >>> tx = optax.sgd(0.1)
        >>> config = UNPGConfig(lambda w, x, key: x @ w, tx, tx, s=16.0)
        >>> state = init_unpg_state(config, {"backbone": jnp.eye(2), "head": jnp.eye(2)}, jax.random.key(0))
        >>> batch = {"x": jnp.eye(2), "labels": jnp.array([0, 1])}
        >>> state, metrics = make_unpg_train_step(config)(state, batch)
        >>> int(state.step), sorted(metrics)
        (1, ['grad_norm', 'kept', 'loss'])
    """
    loss_fn = make_unpg_loss(config, mesh)
    backbone_tx, head_tx = _optimisers(config)

    def step(state: UNPGState, batch: dict[str, Array]) -> tuple[UNPGState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
        extra = {"sampled": aux["sampled"]} if config.sparse_update else {}
        params, opt_state = {}, {}
        for name, tx, more in (("backbone", backbone_tx, {}), ("head", head_tx, extra)):
            # Under its name, so that the state of each parameter lies where the parameter lies.
            updates, opt_state[name] = tx.update(
                {name: grads[name]}, state.opt_state[name], {name: state.params[name]}, **more
            )
            params |= optax.apply_updates({name: state.params[name]}, updates)  # pyright: ignore
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "kept": aux["kept"]}
        return UNPGState(state.step + 1, params, opt_state, state.key), metrics

    return step


def init_unpg_state(config: UNPGConfig, params: Params, key: PRNGKeyArray) -> UNPGState:
    """The state before the first step.

    Args:
        config: that of the step.
        params: ``{"backbone", "head"}``.
        key: random key of the whole run.

    Returns:
        The state at step 0.

    Example:
        >>> tx = optax.sgd(0.1)
        >>> config = UNPGConfig(lambda w, x, key: x @ w, tx, tx)
        >>> params = {"backbone": jnp.eye(2), "head": jnp.eye(2)}
        >>> int(init_unpg_state(config, params, jax.random.key(0)).step)
        0
    """
    backbone_tx, head_tx = _optimisers(config)
    txs = {"backbone": backbone_tx, "head": head_tx}
    opt_state = {name: tx.init({name: params[name]}) for name, tx in txs.items()}
    return UNPGState(jnp.zeros((), jnp.int32), params, opt_state, key)


def _optimisers(config: UNPGConfig) -> tuple[optax.GradientTransformationExtraArgs, ...]:
    if config.sparse_update and not config.axis:
        raise ValueError("sparse_update: needs a mesh axis of the classes in axis, got ()")
    head_tx = update_sampled_rows(config.head_tx) if config.sparse_update else config.head_tx
    return optax.with_extra_args_support(config.backbone_tx), optax.with_extra_args_support(head_tx)


def _share(kept: Array, found: Array) -> Array:
    """Of the pairs that are kept; 1 where there are none."""
    return jnp.where(found > 0, kept / jnp.maximum(found, 1), 1.0)
