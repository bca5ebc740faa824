"""A round of FedKA and MK-MMD beside the official arithmetic in PyTorch, on the same CPU.

The round is that of the reviews in the FedKA experiment: a perceptron, both phases of every client, average,
votes and tuning; batches are drawn in it on both sides. The peer is the published notebook's loop (cell 10)
written again: a client after the other, a batch after the other, one Adam for each client and one for the
cloud. Where the notebook wastes time it does not: the global model's features get no gradient, the votes of a
batch are counted at once and not sample by sample, and losses that a method does not use are not computed.

MK-MMD is the notebook's class (cell 6), which holds the differences of all pairs of points.

Before a round is timed both sides make a short one from the same start on clients with a single batch, whose
order does not matter, and without dropout: losses and the tuned model's log-probabilities must agree, or the
benchmark stops. Memory is the peak of the resident set over one call, less that before it, each in a process
of its own.
"""

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.fedka.network import DOMAINS, fedka_network
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.peers import require_same, require_same_step, torch_for
from jaxneg.federated import (
    FedKAConfig,
    FedKANetwork,
    FedKAState,
    adaptation_schedule,
    federated_data,
    fedka_round,
    init_fedka,
    mk_mmd,
    predict,
)
from jaxneg.nn import feature_mlp, log_probability_head
from jaxneg.train.compile import matmul_flops

CLASSES, ROUNDS = 2, 20
PAIR_SECONDS = 40.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""


class Points(NamedTuple):
    """Sizes of two samples of points each."""

    points: int
    features: int


class Round(NamedTuple):
    """Sizes of a round: those of the reviews in the FedKA experiment, but for the clients."""

    clients: int = 8
    examples: int = 2000
    """Of each client, and of the cloud."""
    inputs: int = 1000
    width: int = 128
    hidden: int = 64
    steps: int = 16
    batch: int = 32
    accum: int = 4
    vote_steps: int = 32
    dropout: float = 0.5

    @property
    def config(self) -> FedKAConfig:
        """The round."""
        return FedKAConfig(
            rounds=ROUNDS,
            steps=self.steps,
            batch=self.batch,
            accum=self.accum,
            vote_steps=self.vote_steps,
            learning_rate=1e-3,
        )


POINTS = {"published": Points(64, 800), "large": Points(512, 128)}
ROUND_SIZES = {
    "8 clients": Round(),
    "3 clients": Round(clients=3),
    "8 clients, no dropout": Round(dropout=0.0),
}


def run(repeats: int = 21) -> dict[str, Any]:
    """Times MK-MMD and the round on one core and on all.

    Args:
        repeats: pairs of samples for each comparison, fewer where a call takes long.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``, each with a row for each size: ``ratio_median`` is the
        peer's time over ours, ``losses_apart`` and ``direction_apart`` are relative distances (of gradients,
        or of the tuned model's log-probabilities), ``roofline_seconds`` the least time at the measured peaks;
        ``memory`` of MK-MMD: ``ours_bytes``, ``peer_bytes``, and their ratio.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: two sides compute different numbers.
    """
    torch, cores, first = torch_for("federated"), available_cores(), Round()
    return {
        "settings": {
            "torch": torch.__version__,
            "mk-mmd": "value and gradient of the first sample, 5 kernels; "
            + ", ".join(
                f"{each.points} + {each.points} points of {each.features}" for each in POINTS.values()
            ),
            "round": f"{first.inputs}-{first.width}-{first.hidden}, {first.steps} batches of {first.batch} in"
            f" both phases, {first.vote_steps} voted on, {first.examples} examples a client",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": f"{repeats}, as many as {PAIR_SECONDS:g} s hold, at least 3",
        },
        "one_core": in_a_process(cores[:1], _times, repeats),
        "all_cores": in_a_process(cores, _times, repeats) if len(cores) > 1 else {},
        "memory": {name: _memory(cores[:1], size) for name, size in POINTS.items()},
    }


def samples(size: Points) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of points, the second moved by a tenth.

    Example:
        >>> x, y = samples(Points(3, 2))
        >>> x.shape, y.dtype
        ((3, 2), dtype('float32'))
    """
    x, y = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    return x, y + np.float32(0.1)


def our_mmd(size: Points) -> Callable[[], Any]:
    """Our MK-MMD and its gradient, compiled."""
    x, y = map(jnp.asarray, samples(size))
    compiled = jax.jit(jax.value_and_grad(mk_mmd)).lower(x, y).compile()
    return lambda: compiled(x, y)


def peer_mmd(size: Points) -> Callable[[], Any]:
    """The published class and autograd's backward pass."""
    torch = torch_for("federated")
    x, y = map(torch.from_numpy, samples(size))
    x.requires_grad_()

    def program() -> Any:
        loss = peer_mk_mmd(torch, x, y)
        loss.backward()
        grad, x.grad = x.grad, None
        return loss.detach(), grad

    return program


def peer_mk_mmd(torch: ModuleType, source: Any, target: Any, mul: float = 2.0, num: int = 5) -> Any:
    """The published class ``MMD_loss``: the squared differences of all pairs of points, summed."""
    count, size = len(source) + len(target), len(source)
    total = torch.cat([source, target])
    distances = ((total.unsqueeze(0) - total.unsqueeze(1)) ** 2).sum(2)
    bandwidth = distances.detach().sum() / (count**2 - count) / mul ** (num // 2)
    kernels: Any = sum(torch.exp(-distances / (bandwidth * mul**i)) for i in range(num))
    own, others = kernels[:size, :size], kernels[size:, size:]
    return (own + others - kernels[:size, size:] - kernels[size:, :size]).mean()


def domains(size: Round) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Examples and classes of the clients, and the cloud's examples.

    Example:
        >>> clients, cloud = domains(Round(clients=2, examples=4, inputs=3))
        >>> len(clients), clients[0][0].shape, cloud.shape
        (2, (4, 3), (4, 3))
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=(size.clients + 1, size.examples, size.inputs)).astype(np.float32)
    y = rng.integers(0, CLASSES, (size.clients, size.examples)).astype(np.int32)
    return list(zip(x[:-1], y, strict=True)), x[-1]


def network_of(size: Round) -> FedKANetwork:
    """Our network."""
    heads = (log_probability_head(size.width, size.hidden, outputs) for outputs in (CLASSES, DOMAINS))
    example = jax.ShapeDtypeStruct((2, size.inputs), jnp.float32)
    features = feature_mlp(size.inputs, (size.width,), dropout=size.dropout)
    return fedka_network(features, next(heads), next(heads), example)


class OurRound:
    """Our round, compiled; a call goes on from the last one's state.

    Args:
        size: of the round.
    """

    def __init__(self, size: Round) -> None:
        clients, cloud = domains(size)
        self.network, self.key = network_of(size), jax.random.key(2)
        self.data = federated_data(clients, cloud, num_classes=CLASSES)
        state = init_fedka(self.network, size.clients, size.config, jax.random.key(0))
        # In the middle of the training, where features are matched in earnest.
        self.state: FedKAState = state._replace(step=jnp.int32(ROUNDS // 2))
        self.first = jax.device_get(state.cloud.params)
        one_round = partial(fedka_round, cfg=size.config, network=self.network)
        traced = jax.jit(one_round, donate_argnums=0).trace(self.state, self.data, self.key)
        self.flops = matmul_flops(traced.jaxpr)
        self.compiled = traced.lower().compile()

    def __call__(self) -> Any:
        """A round; its metrics."""
        self.state, metrics = self.compiled(self.state, self.data, self.key)
        return metrics


class PeerRound:
    """The same round in PyTorch; a call goes on from the last one's state.

    Args:
        size: of the round.
        params: our parameters, to start from.
    """

    def __init__(self, size: Round, params: Any) -> None:
        self.torch, self.size, self.cfg = torch_for("federated"), size, size.config
        clients, cloud = domains(size)
        self.data = [tuple(map(self.torch.from_numpy, pair)) for pair in clients]
        self.data = [(x, y.long()) for x, y in self.data]
        self.target = self.torch.from_numpy(cloud)
        self.cloud, *self.clients = (peer_network(self.torch, size, params) for _ in range(size.clients + 1))
        self.optimizers = [self.optimizer(network) for network in self.clients]
        self.cloud_optimizer, self.number = self.optimizer(self.cloud), ROUNDS // 2

    def optimizer(self, network: Any) -> Any:
        """Adam with the published code's settings."""
        return self.torch.optim.Adam(network.parameters(), self.cfg.learning_rate)

    def __call__(self) -> dict[str, list[float]]:
        """A round; the mean losses of each client."""
        losses = [self.local(k) for k in range(len(self.clients))]
        states = [network.state_dict() for network in self.clients]
        average = {
            key: self.torch.stack([state[key] for state in states]).sum(0) / len(states) for key in states[0]
        }
        self.cloud.load_state_dict(average)
        self.tune()
        for network in self.clients:
            network.load_state_dict(average)
        self.number += 1
        names = ("class_loss", "domain_loss", "matching_loss")
        return {name: [each[place] for each in losses] for place, name in enumerate(names)}

    def local(self, k: int) -> tuple[float, float, float]:
        """Phases A and B of a client."""
        torch, network, adam = self.torch, self.clients[k], self.optimizers[k]
        nll = torch.nn.functional.nll_loss
        steps, accum, batch = self.cfg.steps, self.cfg.accum, self.cfg.batch
        strengths = self.strengths(steps)
        (x, y), losses = self.data[k], torch.zeros(3)
        source, target = torch.zeros(batch, dtype=torch.long), torch.ones(batch, dtype=torch.long)
        for rows, others, lam in zip(
            self.draw(x, steps), self.draw(self.target, steps), strengths, strict=True
        ):
            adam.zero_grad()
            classes, own = network(x[rows], lam)
            of_classes = nll(classes, y[rows])
            of_domains = nll(own, source) + nll(network.domains(self.target[others], lam), target)
            (of_classes + of_domains).backward()
            adam.step()
            losses[0] += of_classes.detach()
            losses[1] += of_domains.detach()
        total: Any = 0.0
        drawn = zip(self.draw(x, steps), self.draw(self.target, steps), strengths, strict=True)
        for i, (rows, others, lam) in enumerate(drawn, 1):
            with torch.no_grad():
                global_features = self.cloud.features(self.target[others])
            total = total + lam * peer_mk_mmd(torch, network.features(x[rows]), global_features)
            if i % accum == 0:
                adam.zero_grad()
                mean = total / accum
                mean.backward()
                adam.step()
                losses[2] += mean.detach() * accum
                total = 0.0
        return tuple((losses / steps).tolist())  # pyright: ignore[reportReturnType]

    def tune(self) -> None:
        """The votes of the clients, and the cloud's steps on them."""
        torch, steps = self.torch, self.cfg.vote_steps
        for rows, lam in zip(self.draw(self.target, steps), self.strengths(steps), strict=True):
            x = self.target[rows]
            with torch.no_grad():
                votes = torch.stack([network.classes(x).argmax(1) for network in self.clients])
            labels = torch.nn.functional.one_hot(votes, CLASSES).sum(0).argmax(1)
            self.cloud_optimizer.zero_grad()
            (lam * torch.nn.functional.nll_loss(self.cloud.classes(x), labels)).backward()
            self.cloud_optimizer.step()

    def draw(self, x: Any, steps: int) -> Any:
        """Rows of batches, without repetition until all were drawn."""
        count = steps * self.cfg.batch
        order = self.torch.randperm(len(x))
        return order.repeat(math.ceil(count / len(x)))[:count].view(steps, -1)

    def strengths(self, steps: int) -> list[float]:
        """Of the reversal and of the matching, by the schedule."""
        progress = (np.arange(steps) + self.number * steps) / (self.cfg.rounds * steps)
        return np.asarray(adaptation_schedule(progress, self.cfg.gamma)).tolist()


def peer_network(torch: ModuleType, size: Round, params: Any) -> Any:
    """A torch module like our network, with its weights.

    Args:
        torch: the module.
        size: of the round.
        params: of our network.

    Returns:
        A module with the methods ``features``, ``classes`` and ``domains``.
    """
    nn = torch.nn

    class Reversal(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, lam: float) -> Any:
            ctx.lam = lam
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0].neg() * ctx.lam, None

    def head(outputs: int) -> Any:
        layers = (nn.Linear(size.width, size.hidden), nn.BatchNorm1d(size.hidden), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(size.hidden, outputs), nn.LogSoftmax(1))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first = nn.Linear(size.inputs, size.width)
            self.extractor = nn.Sequential(
                first, nn.BatchNorm1d(size.width), nn.Dropout(size.dropout), nn.ReLU()
            )
            self.classifier, self.discriminator = head(CLASSES), head(DOMAINS)

        def forward(self, x: Any, lam: float) -> tuple[Any, Any]:
            h = self.extractor(x)
            return self.classifier(h), self.discriminator(Reversal.apply(h, lam))

        def features(self, x: Any) -> Any:
            return self.extractor(x)

        def classes(self, x: Any) -> Any:
            return self.classifier(self.extractor(x))

        def domains(self, x: Any, lam: float) -> Any:
            return self.discriminator(Reversal.apply(self.extractor(x), lam))

    network = Network()
    features = params["features"]
    pairs = [
        (network.extractor[0], features["layers"]["0"]),
        (network.extractor[1], features["norms"]["0"]),
    ]
    for module, part in ((network.classifier, "classifier"), (network.discriminator, "discriminator")):
        pairs += [(module[0], params[part]["first"]), (module[1], params[part]["norm"])]
        pairs += [(module[3], params[part]["second"])]
    with torch.no_grad():
        for module, own in pairs:
            weight = own["kernel"].T if "kernel" in own else own["scale"]
            module.weight.copy_(torch.from_numpy(np.array(weight)))
            module.bias.copy_(torch.from_numpy(np.array(own["bias"])))
    return network


def require_same_round(size: Round) -> dict[str, float]:
    """Refuses to go on where the two sides' rounds differ.

    A client with a single batch of examples sees it in every step, and its order does not matter but for
    rounding, which a whole round of steps makes a thousand times larger: the round is as short as matching
    allows.

    Args:
        size: of the round; its examples, its dropout and its numbers of steps are left aside.

    Returns:
        ``losses_apart``, and ``direction_apart`` of the tuned models' log-probabilities on the cloud's
        examples.

    Raises:
        RuntimeError: they differ.
    """
    few = {"steps": size.accum, "vote_steps": size.accum}
    single = size._replace(examples=size.batch, dropout=0.0, **few)
    ours = OurRound(single)
    peer = PeerRound(single, ours.first)
    metrics, theirs = jax.device_get(ours()), peer()
    names = ("class_loss", "domain_loss", "matching_loss")
    x = np.asarray(domains(single)[1])
    logp = predict(ours.state.cloud, jnp.asarray(x), "batch", size.batch, ours.network)
    with peer.torch.no_grad():
        peer_logp = peer.cloud.classes(peer.torch.from_numpy(x)).numpy()
    losses = ([metrics[name] for name in names], [np.array(theirs[name]) for name in names])
    return require_same_step(f"{size.clients} clients", losses, (np.asarray(logp), peer_logp), 1e-3)


def _times(repeats: int) -> dict[str, dict[str, float]]:
    peaks = machine_peaks()
    measured = {f"mk-mmd, {name}": _mmd_compared(size, repeats, peaks) for name, size in POINTS.items()}
    rounds = {f"round, {name}": _round_compared(size, repeats, peaks) for name, size in ROUND_SIZES.items()}
    return measured | rounds


def _mmd_compared(size: Points, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    ours, peer = our_mmd(size), peer_mmd(size)
    (loss, grad), (peer_loss, peer_grad) = ours(), peer()
    apart = {
        "losses_apart": require_same("mk-mmd", np.asarray(loss), peer_loss.numpy()),
        "direction_apart": require_same("gradient of mk-mmd", np.asarray(grad), peer_grad.numpy()),
    }
    everything = 2 * size.points
    # Distances forward, and their gradient by the points backward.
    flops = 2 * 2.0 * everything**2 * size.features
    return {
        **paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS),
        **apart,
        "roofline_seconds": roofline_seconds(flops, 0, peaks),
    }


def _round_compared(size: Round, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    apart = require_same_round(size)
    ours = OurRound(size)
    peer = PeerRound(size, ours.first)
    return {
        **paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS),
        **apart,
        "roofline_seconds": roofline_seconds(ours.flops, 0, peaks),
    }


def _memory(cores: list[int], size: Points) -> dict[str, float | None]:
    ours, peer = (
        in_a_process(cores, _growth, program, size, keep_memory=False) for program in (our_mmd, peer_mmd)
    )
    ratio = None if not ours or peer is None else peer / ours
    return {"ours_bytes": ours, "peer_bytes": peer, "peer_over_ours": ratio}


def _growth(make: Callable[[Points], Callable[[], Any]], size: Points) -> int | None:
    """Of a program that has run before, so that what is made once is there; its results count."""
    program = make(size)
    jax.block_until_ready(program())
    return peak_growth(lambda: jax.block_until_ready(program()))
