"""AMCL's train step on every base method, and without its temperatures the base method's own.

L. Wang et al. 2024, arXiv:2310.05615, Section 4. A step takes images and makes both views itself, on the
device. On a mesh the losses compare across all devices, each its own anchors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg import contrastive
from jaxneg.contrastive import Negatives
from jaxneg.nn import mlp_mixer, multi_head_predictor, multi_head_projector, resnet, resnet_cifar

Base = Literal["simclr", "moco", "simsiam", "barlow_twins"]
Encoder = Literal["mixer", "resnet18-cifar", "resnet50-cifar", "resnet50"]
DEPTHS = {"resnet18-cifar": 18, "resnet50-cifar": 50, "resnet50": 50}


@dataclass(frozen=True)
class StepConfig:
    """What a step does."""

    base: Base = "simclr"
    """The method that the heads and temperatures are put on."""
    adaptive: bool = True
    """Whether each pair has a temperature of its own; else the base method's loss in each head, summed."""
    heads: int = 3
    """Projection heads."""
    hidden: int = 512
    """Units of a head's hidden layer."""
    outputs: int = 128
    """Numbers that a head gives."""
    temperature: float = 0.5
    """Where it is not adaptive: 0.5 for SimCLR, 0.1 for MoCo in the paper."""
    beta: float = 1e-4
    """Weight of the regulariser: 1e-4, or 1e-6 for Barlow Twins."""
    tau_min: float = 0.1
    """Lower bound of the temperatures; the paper's 1e-5 is not stable."""
    tau_max: float = 2.0
    """Upper bound of the temperatures."""
    negatives: Negatives = "lse"
    """How negatives enter; "topk" is the official code's."""
    topk: int = 100
    """Negatives of "topk"."""
    lambd: float = 5e-3
    """Weight of Barlow Twins' off-diagonal."""
    queue: int = 4096
    """Keys in MoCo's queue."""
    momentum: float = 0.99
    """Of MoCo's key encoder."""
    letters: str = "acde"
    """Augmentations, as `jaxneg.contrastive.augment_batch` takes them."""
    encoder: Encoder = "mixer"
    """A small MLP-Mixer, a ResNet for small images, or one for large ones."""
    width: int = 64
    """Of the encoder's first features."""
    size: int = 16
    """Side of the views in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' computation; losses are always in float32."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with momentum 0.9 and weight decay 5e-4 as in the paper."""
    learning_rate: float = 2e-3
    """At the beginning; it falls to 0 along half a cosine."""
    steps: int = 1000
    """Of the schedule."""
    batch: int = 256
    """Images of a step; Barlow Twins' temperatures depend on it."""

    def __post_init__(self) -> None:
        for name in ("heads", "hidden", "outputs", "queue", "topk", "width", "size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise ValueError(f"batch: expected at least 2 images, each other's negatives, got {self.batch}")
        if not 0 < self.tau_min < self.tau_max:
            raise ValueError(
                f"tau_min: expected above 0 and below tau_max = {self.tau_max:g}, got {self.tau_min:g}"
            )


class AMCLState(NamedTuple):
    """What a step passes on; the last two are empty but for MoCo."""

    step: Int[Array, ""]
    params: Any
    """``encoder``, ``heads``, ``phi`` for temperatures, ``predictor`` for SimSiam."""
    opt_state: Any
    key: PRNGKeyArray
    """Of the whole run."""
    target: Any
    """MoCo's key encoder and its heads."""
    queue: Any
    """MoCo's keys."""


class Network(NamedTuple):
    """An encoder and its heads, as functions of their parameters."""

    init: Callable[[PRNGKeyArray], Any]
    encode: Callable[[Any, Array], Array]
    """``(params["encoder"], views) -> features``, in training."""
    project: Callable[[Any, Array], Array]
    """``(params["heads"], features) -> [batch, heads, outputs]``."""
    predict: Callable[[Any, Array], Array] | None
    """SimSiam's."""
    model: Any
    """The encoder's model: `jaxneg.nn.Model`, or `jaxneg.nn.NormalisedModel`."""
    features: int
    """Of the encoder."""


def network_of(config: StepConfig) -> Network:
    """The network that a config describes.

    Args:
        config: of the step.

    Returns:
        Its functions.
    """
    dtype, pooled = jnp.dtype(config.dtype), False
    if config.encoder == "mixer":
        model, features = mlp_mixer(config.size, width=config.width, dtype=dtype), config.width
    else:
        depth = DEPTHS[config.encoder]
        features = config.width * (32 if depth >= 50 else 8)
        pooled = config.encoder == "resnet50"
        make = resnet if pooled else resnet_cifar
        model = make(depth, width=config.width, dtype=dtype)
    norm = config.base in ("simsiam", "barlow_twins")
    sizes = {"heads": config.heads, "hidden": config.hidden}
    projector = multi_head_projector(features, outputs=config.outputs, norm=norm, dtype=dtype, **sizes)
    predictor = None
    if config.base == "simsiam":
        predictor = multi_head_predictor(
            config.outputs, heads=config.heads, hidden=max(1, config.outputs // 4), dtype=dtype
        )

    def init(key: PRNGKeyArray) -> dict[str, Any]:
        of_encoder, of_heads, of_phi, of_predictor = jax.random.split(key, 4)
        params = {"encoder": model.init(of_encoder), "heads": projector.init(of_heads)}
        if predictor is not None:
            params["predictor"] = predictor.init(of_predictor)
        if config.adaptive:
            seen = config.batch if config.base == "barlow_twins" else config.outputs
            params["phi"] = contrastive.init_temperature_net(of_phi, seen)
        return params

    def encode(params: Any, views: Array) -> Array:
        found = model.apply(params, views)
        return found.mean((1, 2)) if pooled else found

    predict = None if predictor is None else predictor.apply
    return Network(init, encode, projector.apply, predict, model, features)


def optimizer_of(config: StepConfig) -> optax.GradientTransformation:
    """The optimizer of a config, with gradients clipped to length 1.

    Args:
        config: of the step.

    Returns:
        The transformation.
    """
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    if config.optimizer == "adam":
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(5e-4), optax.sgd(schedule, 0.9)
    )


def init_amcl_state(config: StepConfig, key: PRNGKeyArray) -> AMCLState:
    """The state before the first step.

    Args:
        config: of the step.
        key: random key of the whole run.

    Returns:
        The state.
    """
    of_params, of_queue, of_run = jax.random.split(key, 3)
    params = network_of(config).init(of_params)
    target, queue = (), ()
    if config.base == "moco":
        target = {name: jax.tree.map(jnp.copy, params[name]) for name in ("encoder", "heads")}
        queue = contrastive.init_queue(of_queue, config.queue, config.outputs, config.heads)
    opt_state = optimizer_of(config).init(params)
    return AMCLState(jnp.zeros((), jnp.int32), params, opt_state, of_run, target, queue)


def make_amcl_train_step(
    config: StepConfig, mesh: Mesh | None = None
) -> Callable[[AMCLState, dict[str, Array]], tuple[AMCLState, dict[str, Array]]]:
    """A pure train step: views, loss across all devices, optimizer, and for MoCo key encoder and queue.

    Args:
        config: what it does.
        mesh: with an axis "data" over which the batch lies; by default that of `jax.set_mesh`, which
            `jaxneg.train.shard_step` sets, and without one a single device.

    Returns:
        ``step(state, batch) -> (state, metrics)``. The batch holds ``images`` as `augment_batch` takes them,
        or ``first`` and ``second``, views that are made already; and may hold scalars ``temperature`` and
        ``tau_min`` in place of the config's. Metrics: ``loss``, ``grad_norm``, and for adaptive temperatures
        what the losses say of them.
    """
    network, tx = network_of(config), optimizer_of(config)

    def loss_fn(params: Any, batch: dict[str, Array], target: Any, queue: Any):
        views = batch["first"], batch["second"]
        if config.encoder == "mixer":  # no statistics of a batch: both views at once
            features = jnp.split(network.encode(params["encoder"], jnp.concatenate(views)), 2)
        else:
            features = [network.encode(params["encoder"], view) for view in views]
        z = [network.project(params["heads"], h) for h in features]
        p = [] if network.predict is None else [network.predict(params["predictor"], x) for x in z]
        keys = None
        if config.base == "moco":
            keys = network.project(target["heads"], network.encode(target["encoder"], batch["second"]))
            keys = jax.lax.stop_gradient(keys)
        loss, aux = _compared(config, mesh or _context_mesh(), params.get("phi"), z, p, keys, queue, batch)
        return jnp.mean(loss), (aux, keys)

    def step(state: AMCLState, batch: dict[str, Array]) -> tuple[AMCLState, dict[str, Array]]:
        if "images" in batch:
            keys = jax.random.split(jax.random.fold_in(state.key, state.step))
            views = (
                contrastive.augment_batch(k, batch["images"], config.letters, size=config.size) for k in keys
            )
            batch = dict(zip(("first", "second"), views, strict=True)) | {
                name: value for name, value in batch.items() if name != "images"
            }
        target, queue = state.target, state.queue
        if config.base == "moco":
            online = {name: state.params[name] for name in target}
            target = contrastive.ema_update(target, online, config.momentum)
        (loss, (aux, keys)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch, target, queue
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        if keys is not None:
            queue = contrastive.queue_enqueue(queue.queue, queue.ptr, keys)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient), **aux}
        params = optax.apply_updates(state.params, updates)
        return AMCLState(state.step + 1, params, opt_state, state.key, target, queue), metrics

    return step


def _context_mesh() -> AbstractMesh | None:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if "data" in mesh.axis_names else None


def _compared(
    config: StepConfig,
    mesh: Mesh | AbstractMesh | None,
    phi: Any,
    z: list[Array],
    p: list[Array],
    keys: Array | None,
    queue: Any,
    batch: dict[str, Array],
) -> tuple[Array, dict[str, Array]]:
    """The loss of projections that lie over the mesh axis "data", and what it says of temperatures."""
    given = {"beta": config.beta, "tau_max": config.tau_max}
    low = batch.get("tau_min", jnp.asarray(config.tau_min))
    fixed = batch.get("temperature", jnp.asarray(config.temperature))
    choice = {"negatives": config.negatives, "topk": config.topk}

    def heads(loss: Callable[..., Array], *arrays: Array) -> Array:
        """A base method's loss, summed over the heads."""
        return jax.vmap(loss, in_axes=1)(*arrays).sum(0)

    def own(z: Any, p: Any, keys: Any, queue: Any, phi: Any, low: Array, fixed: Array, axis_name: Any = None):
        on = {"axis_name": axis_name}
        bounds = {**given, "tau_min": low, **on}
        if config.base == "simclr":
            if config.adaptive:
                return contrastive.amcl_nt_xent_loss(z[0], z[1], phi, **bounds, **choice)
            return heads(partial(contrastive.nt_xent_loss, temperature=fixed, **on), *z), {}
        if config.base == "moco":
            if config.adaptive:
                return contrastive.amcl_moco_loss(z[0], keys, queue, phi, **bounds, **choice)
            one = partial(contrastive.info_nce_queue_loss, temperature=fixed, **on)
            losses = jax.vmap(one, in_axes=(1, 1, 0))(z[0], keys, queue)
            return losses.sum(0), {}
        if config.base == "simsiam":
            if config.adaptive:
                return contrastive.amcl_simsiam_loss(p[0], z[1], p[1], z[0], phi, **bounds)
            return heads(contrastive.simsiam_loss, p[0], z[1], p[1], z[0]), {}
        if config.adaptive:
            return contrastive.amcl_barlow_twins_loss(z[0], z[1], phi, lambd=config.lambd, **bounds)
        return heads(partial(contrastive.barlow_twins_loss, lambd=config.lambd, **on), *z), {}

    columns = queue.queue if config.base == "moco" else ()
    arguments = (z, p, keys, columns, phi, low, fixed)
    if mesh is None:
        return own(*arguments)
    if config.base == "moco" and config.queue % mesh.shape["data"]:
        raise ValueError(
            f"queue: expected a multiple of the {mesh.shape['data']} devices of the axis 'data', got"
            f" {config.queue}"
        )
    of_losses = {"simclr": P(None, "data"), "barlow_twins": P()}
    return jax.shard_map(
        partial(own, axis_name="data"),
        mesh=mesh,
        in_specs=(P("data"), P("data"), P("data"), P(None, None, "data"), P(), P(), P()),
        out_specs=(of_losses.get(config.base, P("data")), P()),
    )(*arguments)
