"""FedKA: federated knowledge alignment, a round of training across clients of different domains.

Sun, Chong and Ochiai 2022, arXiv:2203.11635, "Feature Distribution Matching for Federated Domain
Generalization". Every client trains on its labelled domain against a domain classifier with gradient
reversal (phase A), matches its features to the global model's on the unlabelled target domain (phase B); the
clients are averaged, vote on labels of the target, and the average is tuned on them. The paper's body could
not be read: the formulas are those of its published code, and where that code plainly departs from what it
means, a flag of `FedKAConfig` chooses.

Clients are the leading axis of every array of `FedKAState`: mapped on one device, spread over a mesh by
`make_sharded_round`, where parameters cross it as sums and votes as counts.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Int, Num, PRNGKeyArray

from jaxneg.federated.arguments import masked, one_of, per_client
from jaxneg.federated.averaging import federated_average, finite_clients, proximal_penalty
from jaxneg.federated.data import FedKAData, federated_data
from jaxneg.federated.federated_vote import Votes, federated_vote
from jaxneg.federated.gradient_reversal import adaptation_schedule
from jaxneg.federated.group_effect import group_effect
from jaxneg.federated.objectives import (
    FedKANetwork,
    Mode,
    client_objective,
    matching_objective,
    negative_log_likelihood,
)


@dataclasses.dataclass(frozen=True)
class FedKAConfig:
    """What a round does; the defaults are the published code's. Hashable, so that it can be static in jit."""

    disentangle: bool = True
    """Whether phase A trains against the domain classifier."""
    match: bool = True
    """Whether there is a phase B."""
    vote: bool = True
    """Whether the average is tuned on the clients' votes."""
    rounds: int = 200
    """Rounds of the whole training, which the schedule is stretched over."""
    steps: int = 32
    """Batches of each phase, a client and round."""
    batch: int = 16
    """Examples of a batch."""
    accum: int = 8
    """Batches of phase B for one update."""
    vote_steps: int = 128
    """Batches of the target on which the average is tuned."""
    gamma: float = 5.0
    """Of the schedule."""
    learning_rate: float = 3e-4
    """Of Adam, for clients and the global model."""
    accumulate: Literal["mean", "last"] = "mean"
    """Phase B's gradient: the mean over ``accum`` batches, or as in the published code a part of the last."""
    broadcast: Literal["average", "tuned"] = "average"
    """What clients start the next round from."""
    eval_bn: Literal["batch", "running"] = "batch"
    """Statistics of the normalisations wherever nothing is trained."""
    weights: Literal["equal", "size"] = "equal"
    """Weights of the average: the published code's, or FedAvg's."""
    tie: Literal["lowest", "likelihood"] = "lowest"
    """Who wins among classes with equally many votes."""
    min_agreement: float = 0.0
    """Share of the votes below which an example is not tuned on."""
    proximal: float = 0.0
    """Strength of FedProx's term in phase A."""
    kernel_mul: float = 2.0
    """Ratio of the kernels' widths."""
    kernel_num: int = 5
    """Kernels."""
    independent_init: bool = False
    """Whether clients begin from different parameters."""
    clients: Literal["vmap", "map"] = "vmap"
    """How the clients of one device run: at once, or one after the other in the memory of one."""
    eval_batch: int = 256
    """Examples that are evaluated at once, and normalised together with ``eval_bn="batch"``."""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "batch", "accum", "vote_steps", "kernel_num", "eval_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("gamma", "learning_rate", "kernel_mul"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.match and self.steps % self.accum:
            raise ValueError(f"accum: expected a divisor of steps = {self.steps}, got {self.accum}")
        if self.proximal < 0:
            raise ValueError(f"proximal: expected a number that is not negative, got {self.proximal}")
        if not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement: expected a share from 0 to 1, got {self.min_agreement}")
        one_of("accumulate", self.accumulate, ("mean", "last"))
        one_of("broadcast", self.broadcast, ("average", "tuned"))
        one_of("eval_bn", self.eval_bn, ("batch", "running"))
        one_of("weights", self.weights, ("equal", "size"))
        one_of("tie", self.tie, ("lowest", "likelihood"))
        one_of("clients", self.clients, ("vmap", "map"))


class ModelState(NamedTuple):
    """A model that is being trained, of a client or of the cloud.

    Attributes:
      params: Parameters of the three parts.
      stats: Their running statistics.
      opt_state: States of their optimizers, one for each part.
    """

    params: Any
    stats: Any
    opt_state: Any


class FedKAState(NamedTuple):
    """What a round passes on: enough to resume exactly.

    Attributes:
      step: Number of rounds made so far.
      clients: The clients' models, ``[clients, ...]``.
      cloud: The global model: the tuned average.
      key: Random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    clients: ModelState
    cloud: ModelState
    key: PRNGKeyArray


class ClientBatches(NamedTuple):
    """The batches of one client in one round, ``[steps, batch, ...]``."""

    source_x: Array
    source_y: Array
    target_x: Array
    match_source: Array
    match_target: Array


def init_fedka(network: FedKANetwork, clients: int, cfg: FedKAConfig, key: PRNGKeyArray) -> FedKAState:
    """The state before the first round.

    Args:
      network: The network.
      clients: Number of clients.
      cfg: Whether they begin alike.
      key: Random key of the whole run.

    Returns:
      The state.

    Raises:
      ValueError: If there is no client.
    """
    if clients < 1:
        raise ValueError(f"clients: expected at least 1, got {clients}")
    own, common = jax.random.split(jax.random.fold_in(key, 0))
    params, stats = network.init(common)
    if cfg.independent_init:
        many_params, many_stats = jax.vmap(network.init)(jax.random.split(own, clients))
    else:
        repeated = functools.partial(jax.tree.map, lambda x: jnp.broadcast_to(x, (clients, *x.shape)))
        many_params, many_stats = repeated(params), repeated(stats)
    tx = _optimizer(cfg)
    start = {part: tx.init(params[part]) for part in params}
    opt_state = {part: jax.vmap(tx.init)(many_params[part]) for part in params}
    own_models = ModelState(many_params, many_stats, opt_state)
    return FedKAState(jnp.zeros((), jnp.int32), own_models, ModelState(params, stats, start), key)


def fedka_round(
    state: FedKAState, data: FedKAData, rng: PRNGKeyArray, cfg: FedKAConfig, *, network: FedKANetwork
) -> tuple[FedKAState, dict[str, Array]]:
    """One round: local training, average, votes, tuning, and what it is worth on the target.

    Pure and jittable with ``cfg`` and ``network`` static. A client takes part if ``data.participating`` says
    so and its parameters are finite after training; the others keep no vote and no weight. If nobody is
    left, the global model stays as it was.

    Args:
      state: The state.
      data: The data.
      rng: Random key of this round.
      cfg: What a round does.
      network: The network.

    Returns:
      The next state, and metrics: ``class_loss``, ``domain_loss``, ``matching_loss`` and ``left_out`` for
      each client, ``agreement``, and with data to evaluate on ``client_accuracy`` of each client after local
      training, ``average_accuracy``, ``group_effect``, ``vote_accuracy``, ``accuracy`` of the global model at
      the round's end. Losses of clients that take no part are 0.

    Raises:
      ValueError: If state and data have different numbers of clients.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, published code, cells 10 and 12.
    """
    return _round(state, data, rng, cfg, network, None, "client")


def make_sharded_round(
    mesh: Mesh, cfg: FedKAConfig, *, network: FedKANetwork, axis: str = "client"
) -> Callable[[FedKAState, FedKAData, PRNGKeyArray], tuple[FedKAState, dict[str, Array]]]:
    """:func:`fedka_round` with the clients spread over a mesh: each device trains its own.

    Sums of parameters and counts of votes cross the mesh, never an example and never a feature. The tuning
    splits each batch of the target over the same axis, if that divides it.

    Args:
      mesh: A mesh, its axes automatic or explicit.
      cfg: What a round does.
      network: The network.
      axis: The mesh axis over which clients are spread; it must divide their number.

    Returns:
      ``round(state, data, rng) -> (state, metrics)``, compiled at its first call. Same numbers as
      :func:`fedka_round`.

    Raises:
      ValueError: If the mesh lacks the axis; from the round, if the axis does not divide the clients.
    """
    if axis not in mesh.shape:
        raise ValueError(f"axis: the mesh has axes {tuple(mesh.axis_names)}, not {axis!r}")
    compiled = jax.jit(lambda state, data, rng: _on_mesh(state, data, rng, cfg, network, mesh, axis))
    if AxisType.Explicit not in mesh.axis_types:
        return compiled

    def sharded(state: FedKAState, data: FedKAData, rng: PRNGKeyArray) -> tuple[FedKAState, dict[str, Array]]:
        with jax.set_mesh(mesh):  # what lies on one device goes onto the mesh
            return compiled(state, data, rng)

    return sharded


def make_fedka_step(
    cfg: FedKAConfig,
    *,
    network: FedKANetwork,
    mesh: Mesh | AbstractMesh | None = None,
    axis: str = "client",
) -> Callable[[FedKAState, FedKAData], tuple[FedKAState, dict[str, Array]]]:
    """A round as a step ``(state, data) -> (state, metrics)``, for a training loop with checkpoints.

    Round n takes the key ``fold_in(state.key, n)``, so that a resumed run repeats the one that never stopped.

    Args:
      cfg: What a round does.
      network: The network.
      mesh: If given, clients are spread over it; its devices need not be known yet.
      axis: Over which of its axes.

    Returns:
      The step, to be jitted.

    Raises:
      ValueError: If the mesh lacks the axis.
    """
    if mesh is not None and axis not in mesh.shape:
        raise ValueError(f"axis: the mesh has axes {tuple(mesh.axis_names)}, not {axis!r}")

    def step(state: FedKAState, data: FedKAData) -> tuple[FedKAState, dict[str, Array]]:
        rng = jax.random.fold_in(state.key, state.step)
        if mesh is None:
            return _round(state, data, rng, cfg, network, None, axis)
        return _on_mesh(state, data, rng, cfg, network, mesh, axis)

    return step


class FedKAResult(NamedTuple):
    """What :func:`fit` returns.

    Attributes:
      state: The state after the last round.
      history: Each metric of :func:`fedka_round`, ``[rounds, ...]``.
    """

    state: FedKAState
    history: dict[str, np.ndarray]


def fit(
    cfg: FedKAConfig,
    clients: Sequence[tuple[ArrayLike, ArrayLike]],
    target: ArrayLike,
    rounds: int,
    seed: int,
    *,
    network: FedKANetwork,
    num_classes: int,
    evaluation: tuple[ArrayLike, ArrayLike] | None = None,
) -> FedKAResult:
    """Trains for some rounds on one device.

    Where a run must survive its process, give :func:`make_fedka_step` to a training loop that keeps
    checkpoints: `FedKAState` is all that it needs.

    Args:
      cfg: What a round does; ``cfg.rounds`` is what the schedule is stretched over.
      clients: As in :func:`federated_data`.
      target: Likewise.
      rounds: Number of rounds, at most ``cfg.rounds``.
      seed: Number that everything random is drawn from.
      network: The network.
      num_classes: As in :func:`federated_data`.
      evaluation: Likewise.

    Returns:
      The last state and the metrics of each round.

    Raises:
      ValueError: As :func:`federated_data`, or if ``rounds`` is not between 1 and ``cfg.rounds``.
      FloatingPointError: If every client of a round was left out.
    """
    if not 1 <= rounds <= cfg.rounds:
        raise ValueError(f"rounds: expected 1 to cfg.rounds = {cfg.rounds}, got {rounds}")
    data = federated_data(clients, target, num_classes=num_classes, evaluation=evaluation)
    state = init_fedka(network, len(clients), cfg, jax.random.key(seed))
    step = jax.jit(make_fedka_step(cfg, network=network), donate_argnums=0)
    history = []
    for number in range(rounds):
        state, metrics = step(state, data)
        history.append(jax.device_get(metrics))
        if history[-1]["left_out"].all():
            raise FloatingPointError(f"every client was left out in round {number}: none is finite")
    return FedKAResult(state, {name: np.stack([m[name] for m in history]) for name in history[0]})


def train_client(
    client: ModelState,
    batches: ClientBatches,
    cloud: ModelState,
    step: ArrayLike,
    key: PRNGKeyArray,
    cfg: FedKAConfig,
    network: FedKANetwork,
) -> tuple[ModelState, dict[str, Array]]:
    """Phases A and B of one client.

    Args:
      client: Its model.
      batches: What it trains on.
      cloud: The global model.
      step: The round's number.
      key: For dropout.
      cfg: What a round does.
      network: The network.

    Returns:
      The client's model, and the means of ``class_loss``, ``domain_loss``, ``matching_loss``.
    """
    tx = _optimizer(cfg)
    anchor = client.params
    progress = (jnp.arange(cfg.steps) + jnp.asarray(step) * cfg.steps) / (cfg.rounds * cfg.steps)
    lams = adaptation_schedule(progress, cfg.gamma)
    key_a, key_b = jax.random.split(key)
    trained = ("features", "classifier", "discriminator") if cfg.disentangle else ("features", "classifier")

    def adversarial(client: ModelState, inputs: Any) -> tuple[ModelState, dict[str, Array]]:
        params, stats, opt_state = client
        x, y, target, lam, key = inputs

        def loss(params: Any) -> tuple[Array, dict[str, Any]]:
            value, aux = client_objective(
                params, stats, network, (x, y), target, lam, disentangle=cfg.disentangle, key=key
            )
            if cfg.proximal:
                value = value + proximal_penalty(params, anchor, cfg.proximal)
            return value, aux

        grads, aux = jax.grad(loss, has_aux=True)(params)
        params, opt_state = _updated(tx, trained, grads, params, opt_state)
        losses = {
            "class_loss": aux["class_loss"],
            "domain_loss": aux["source_loss"] + aux["target_loss"],
        }
        return ModelState(params, aux["batch_stats"], opt_state), losses

    keys = jax.random.split(key_a, cfg.steps)
    inputs = (batches.source_x, batches.source_y, batches.target_x, lams, keys)
    client, losses = jax.lax.scan(adversarial, client, inputs)
    losses = jax.tree.map(jnp.mean, losses) | {"matching_loss": jnp.zeros(())}
    if not cfg.match:
        return client, losses

    def global_features(batch: tuple[Array, PRNGKeyArray]) -> Array:
        """With dropout as the client's have it: else matching would mostly see that these have gaps."""
        x, key = batch
        h, _ = network.features(cloud.params["features"], cloud.stats["features"], x, "train", key)
        return h.reshape(len(h), -1)

    def matching(client: ModelState, inputs: Any) -> tuple[ModelState, Array]:
        params, stats, opt_state = client
        source, target, lams, keys, target_keys = inputs
        others = jax.lax.map(global_features, (target, target_keys))

        def loss(features: Any) -> tuple[Array, Any]:
            def forward(running: Any, batch: tuple[Array, PRNGKeyArray]) -> tuple[Any, Array]:
                h, running = network.features(features, running, batch[0], "train", batch[1])
                return running, h.reshape(len(h), -1)

            running, own = jax.lax.scan(forward, stats["features"], (source, keys))
            value = matching_objective(
                own,
                others,
                lams,
                accumulate=cfg.accumulate,
                kernel_mul=cfg.kernel_mul,
                kernel_num=cfg.kernel_num,
            )
            return value, running

        (value, running), grads = jax.value_and_grad(loss, has_aux=True)(params["features"])
        params, opt_state = _updated(tx, ("features",), {"features": grads}, params, opt_state)
        return ModelState(params, {**stats, "features": running}, opt_state), value

    def grouped(x: Array) -> Array:
        return x.reshape(-1, cfg.accum, *x.shape[1:])

    keys, target_keys = (jax.random.split(key, cfg.steps) for key in jax.random.split(key_b))
    inputs = (batches.match_source, batches.match_target, lams, keys, target_keys)
    client, values = jax.lax.scan(matching, client, jax.tree.map(grouped, inputs))
    return client, losses | {"matching_loss": values.mean()}


def tune(
    cloud: ModelState,
    x: Num[Array, "steps batch ..."],
    labels: Int[Array, "steps batch"],
    agreement: Float[Array, "steps batch"],
    step: ArrayLike,
    key: PRNGKeyArray,
    cfg: FedKAConfig,
    network: FedKANetwork,
    constrain: Callable[[Array], Array] = lambda x: x,
) -> ModelState:
    """Fine-tunes the averaged model on the labels that the clients voted for.

    ``lam(p) mean NLL(c(f(x)), label)``, one update a batch of the features and of the classifier.

    Args:
      cloud: The average, with the global model's optimizers.
      x: Batches of the target.
      labels: What the clients voted for.
      agreement: Share of the votes for it; below ``cfg.min_agreement`` an example does not count.
      step: The round's number.
      key: For dropout.
      cfg: What a round does.
      network: The network.
      constrain: Puts a batch on the mesh.

    Returns:
      The tuned model.
    """
    tx = _optimizer(cfg)
    count = len(x)
    lams = adaptation_schedule(
        (jnp.arange(count) + jnp.asarray(step) * count) / (cfg.rounds * count), cfg.gamma
    )

    def body(cloud: ModelState, inputs: Any) -> tuple[ModelState, None]:
        params, stats, opt_state = cloud
        x, labels, counts, lam, key = inputs
        x, labels, counts = constrain(x), constrain(labels), constrain(counts)
        of_features, of_classes = jax.random.split(key)

        def loss(params: Any) -> tuple[Array, Any]:
            h, features = network.features(params["features"], stats["features"], x, "train", of_features)
            logp, classifier = network.classifier(
                params["classifier"], stats["classifier"], h, "train", of_classes
            )
            return lam * negative_log_likelihood(logp, labels, counts), {
                "features": features,
                "classifier": classifier,
            }

        tuned = {part: params[part] for part in ("features", "classifier")}
        grads, new = jax.grad(loss, has_aux=True)(tuned)
        params, opt_state = _updated(tx, tuple(tuned), grads, params, opt_state)
        return ModelState(params, {**stats, **new}, opt_state), None

    inputs = (x, labels, agreement >= cfg.min_agreement, lams, jax.random.split(key, count))
    return jax.lax.scan(body, cloud, inputs)[0]


def predict(
    model: ModelState, x: Num[Array, "examples ..."], mode: Mode, batch: int, network: FedKANetwork
) -> Float[Array, "examples classes"]:
    """Log-probabilities of the classes, some examples at a time.

    Args:
      model: A model.
      x: Examples.
      mode: ``"batch"`` or ``"running"``.
      batch: Examples at a time; the last batch is filled with the examples before it.
      network: The network.

    Returns:
      One row for each example.
    """
    count = len(x)
    size = min(batch, count)
    starts = np.minimum(np.arange(0, count, size), count - size)

    def rows(start: Array) -> Array:
        def part(name: str, inputs: Array) -> Array:
            return getattr(network, name)(model.params[name], model.stats[name], inputs, mode, None)[0]

        return part("classifier", part("features", jax.lax.dynamic_slice_in_dim(x, start, size)))

    logp = jax.lax.map(rows, jnp.asarray(starts))
    last = count - (len(starts) - 1) * size  # without the rows that the last batch repeats
    return jnp.concatenate([logp[:-1].reshape(-1, logp.shape[-1]), logp[-1, -last:]])


def _on_mesh(
    state: FedKAState,
    data: FedKAData,
    rng: PRNGKeyArray,
    cfg: FedKAConfig,
    network: FedKANetwork,
    mesh: Mesh | AbstractMesh,
    axis: str,
) -> tuple[FedKAState, dict[str, Array]]:
    """The round on a mesh; explicit axes are automatic inside, where the compiler shards the cloud's part."""
    if AxisType.Explicit not in mesh.axis_types:
        return _round(state, data, rng, cfg, network, mesh, axis)
    one_round = functools.partial(_round, cfg=cfg, network=network, axis=axis)
    outputs = jax.eval_shape(functools.partial(one_round, mesh=None), *_unsharded((state, data, rng)))
    clients = per_client("state.clients", state.clients)
    whole = jax.tree.map(lambda _: P(), outputs)
    of_clients = jax.tree.map(lambda _: P(axis), outputs[0].clients)
    measured = {name: P(axis) if value.shape == (clients,) else P() for name, value in outputs[1].items()}
    specs = whole[0]._replace(clients=of_clients), measured

    def automatic(
        state: FedKAState, data: FedKAData, rng: PRNGKeyArray
    ) -> tuple[FedKAState, dict[str, Array]]:
        return one_round(state, data, rng, mesh=jax.sharding.get_abstract_mesh())

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        on_mesh: Any = jax.sharding.auto_axes(automatic, axes=mesh.axis_names, out_sharding=specs)
        return on_mesh(state, data, rng)


def _unsharded(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def _round(
    state: FedKAState,
    data: FedKAData,
    rng: PRNGKeyArray,
    cfg: FedKAConfig,
    network: FedKANetwork,
    mesh: Mesh | AbstractMesh | None,
    axis: str,
) -> tuple[FedKAState, dict[str, Array]]:
    clients = per_client("state.clients", state.clients)
    if data.source_x.shape[0] != clients:
        raise ValueError(f"data: expected {clients} clients as the state has, got {data.source_x.shape[0]}")
    client_key, vote_key, tune_key = jax.random.split(rng, 3)
    others = len(data.target_x)
    vote_x = data.target_x[_rows(others, others, (cfg.vote_steps, cfg.batch), vote_key)]

    local = functools.partial(_local, cfg, network, None if mesh is None else axis)
    split = P()
    if mesh is not None:
        if clients % mesh.shape[axis]:
            raise ValueError(
                f"clients: expected a multiple of the mesh axis {axis!r} of size {mesh.shape[axis]}, "
                f"got {clients}"
            )
        split = P(axis) if cfg.batch % mesh.shape[axis] == 0 else P()
        local = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(axis), P(axis), P(axis), P(), P(), P(), P()),
            out_specs=(P(axis), P(), P(axis)),
            check_vma=False,  # the loops begin with constants, which then differ from client to client
        )

    opt_state, common, measured = local(
        state.clients,
        (data.source_x, data.source_y, data.sizes, data.participating),
        jax.random.split(client_key, clients),
        state.cloud,
        state.step,
        data.target_x,
        (vote_x, data.eval_x, data.eval_y),
    )
    anyone = common["takers"] > 0

    def kept(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(anyone, a, b), new, old)

    params, stats = common["average"]
    average = kept(ModelState(params, stats, state.cloud.opt_state), state.cloud)
    tuned = average
    metrics = {name: measured[name] for name in ("class_loss", "domain_loss", "matching_loss", "left_out")}
    if cfg.vote:
        votes, shape = common["votes"], vote_x.shape[:2]

        def constrain(x: Array) -> Array:
            return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, split))

        labels, agreement = votes.labels.reshape(shape), votes.agreement.reshape(shape)
        tuned = tune(average, vote_x, labels, agreement, state.step, tune_key, cfg, network, constrain)
        tuned = kept(tuned, average)
        metrics["agreement"] = agreement.mean()
    if data.eval_x is not None and data.eval_y is not None:
        eval_x, eval_y = data.eval_x, data.eval_y

        def accuracy(model: ModelState) -> Array:
            return jnp.mean(jnp.argmax(_classified(model, eval_x, cfg, network), -1) == eval_y)

        averaged = accuracy(average)
        counted = ~measured["left_out"] | ~anyone
        effect = group_effect(averaged, measured["accuracy"], where=counted)
        metrics |= {
            "client_accuracy": measured["accuracy"],
            "average_accuracy": averaged,
            "group_effect": jnp.where(anyone, effect, 0),
            "vote_accuracy": common["vote_accuracy"],
            "accuracy": accuracy(tuned),
        }
    sent = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (clients, *x.shape)), tuned if cfg.broadcast == "tuned" else average
    )
    return FedKAState(state.step + 1, sent._replace(opt_state=opt_state), tuned, state.key), metrics


def _local(
    cfg: FedKAConfig,
    network: FedKANetwork,
    axis: str | None,
    models: ModelState,
    data: tuple[Array, Array, Array, Array],
    keys: PRNGKeyArray,
    cloud: ModelState,
    step: Array,
    target_x: Array,
    public: tuple[Array, Array | None, Array | None],
) -> tuple[Any, dict[str, Any], dict[str, Array]]:
    """What happens on the device of some clients: training, their part of the average, and their votes."""
    vote_x, eval_x, eval_y = public
    source_x, source_y, sizes, participating = data

    def train(
        client: ModelState, x: Array, y: Array, size: Array, key: PRNGKeyArray
    ) -> tuple[ModelState, dict[str, Array]]:
        of_data, of_dropout = jax.random.split(key)
        batches = _client_batches(x, y, size, target_x, of_data, cfg)
        return train_client(client, batches, cloud, step, of_dropout, cfg, network)

    mapped = jax.vmap if cfg.clients == "vmap" else _mapped
    trained, losses = mapped(train)(models, source_x, source_y, sizes, keys)
    sound = finite_clients((trained.params, trained.stats))
    takes_part = participating & sound
    weights = takes_part * (sizes if cfg.weights == "size" else 1.0)

    def optimizer(new: Array, old: Array) -> Array:
        """Who sat out keeps it; whose numbers are not finite begins anew, which for Adam is at zero."""
        return _select(participating, _select(sound, new, jnp.zeros_like(new)), old)

    opt_state = jax.tree.map(optimizer, trained.opt_state, models.opt_state)
    takers = takes_part.sum()
    common: dict[str, Any] = {
        "average": federated_average((trained.params, trained.stats), weights, axis_name=axis),
        "takers": takers if axis is None else jax.lax.psum(takers, axis),
    }
    measured = {name: masked(takes_part, value) for name, value in losses.items()}
    measured["left_out"] = ~takes_part
    sane = jax.tree.map(lambda leaf: masked(takes_part, leaf), trained)

    def voted(logp: Array) -> Votes:
        preds = jnp.argmax(logp, -1).astype(jnp.int32)
        return federated_vote(
            preds, logp.shape[-1], logp=logp, tie=cfg.tie, voters=takes_part, axis_name=axis
        )

    if cfg.vote:
        flat = vote_x.reshape(-1, *vote_x.shape[2:])
        predictions = mapped(lambda model: predict(model, flat, cfg.eval_bn, cfg.batch, network))
        common["votes"] = voted(predictions(sane))
    if eval_x is not None and eval_y is not None:
        logp = mapped(lambda model: _classified(model, eval_x, cfg, network))(sane)
        measured["accuracy"] = masked(takes_part, (jnp.argmax(logp, -1) == eval_y).mean(1))
        common["vote_accuracy"] = (voted(logp).labels == eval_y).mean()
    return opt_state, common, measured


def _classified(model: ModelState, x: Array, cfg: FedKAConfig, network: FedKANetwork) -> Array:
    return predict(model, x, cfg.eval_bn, cfg.eval_batch, network)


def _client_batches(
    x: Array, y: Array, size: Array, target_x: Array, key: PRNGKeyArray, cfg: FedKAConfig
) -> ClientBatches:
    shape = (cfg.steps, cfg.batch)
    first, second, third, fourth = jax.random.split(key, 4)
    own, others = len(x), len(target_x)
    rows = _rows(own, size, shape, first)
    return ClientBatches(
        x[rows],
        y[rows],
        target_x[_rows(others, others, shape, second)],
        x[_rows(own, size, shape, third)],
        target_x[_rows(others, others, shape, fourth)],
    )


def _rows(length: int, size: ArrayLike, shape: tuple[int, int], key: PRNGKeyArray) -> Array:
    """Indices below ``size``, without repetition until all were drawn; rows from there on are padding."""
    order = jax.random.uniform(key, (length,))
    order = jnp.argsort(jnp.where(jnp.arange(length) < size, order, 2.0))
    return order[jnp.arange(shape[0] * shape[1]) % size].reshape(shape)


def _updated(
    tx: optax.GradientTransformation, parts: Sequence[str], grads: Any, params: Any, opt_state: Any
) -> tuple[Any, Any]:
    """Updates some parts of the network; a part without a gradient keeps its moments, as PyTorch's do."""
    params, opt_state = dict(params), dict(opt_state)
    for part in parts:
        updates, opt_state[part] = tx.update(grads[part], opt_state[part], params[part])
        params[part] = optax.apply_updates(params[part], updates)
    return params, opt_state


def _optimizer(cfg: FedKAConfig) -> optax.GradientTransformation:
    return optax.adam(cfg.learning_rate)


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arrays: jax.lax.map(lambda of_one: function(*of_one), arrays)


def _select(mask: Array, yes: Array, no: Array) -> Array:
    return jnp.where(jnp.reshape(mask, (-1,) + (1,) * (yes.ndim - 1)), yes, no)
