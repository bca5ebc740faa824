"""The methods that are compared, and their training: all rounds of all seeds in one program.

Where clients start the next round from the average and nothing is matched with the tuned model, votes change
nothing but the tuned model: FedAvg, FedProx and f-DANN with and without voting are one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.fedka.sources import Domains
from experiments.parallel import over_seeds
from jaxneg.federated import (
    FedKAConfig,
    FedKAData,
    FedKANetwork,
    ModelState,
    federated_data,
    init_fedka,
    make_fedka_step,
    predict,
)

LAST = 5
"""Rounds at the end over which results are averaged."""


@dataclass(frozen=True)
class Method:
    """What is trained."""

    name: str
    """In tables."""
    disentangle: bool = False
    match: bool = False
    vote: bool = False
    min_agreement: float = 0.0
    proximal: float = 0.0

    @property
    def stage(self) -> str:
        """The name as a file may have it."""
        return self.name.lower().replace(" + ", "-").replace(", ", "-").replace(" ", "-")

    @property
    def averaged(self) -> bool:
        """Whether the averaged model of a run with voting is that of the same run without."""
        return self.vote and not self.match

    def config(self, sizes: FedKAConfig) -> FedKAConfig:
        """The round of this method at these sizes."""
        return replace(
            sizes,
            disentangle=self.disentangle,
            match=self.match,
            vote=self.vote,
            min_agreement=self.min_agreement,
            proximal=self.proximal,
        )


FED_AVG = Method("FedAvg", vote=True)
FED_PROX = Method("FedProx", vote=True, proximal=0.1)
F_DANN = Method("f-DANN", disentangle=True, vote=True)
F_DAN = Method("f-DAN", match=True)
F_DAN_VOTE = Method("f-DAN + voting", match=True, vote=True)
ALIGNED = Method("FedKA without voting", disentangle=True, match=True)
FED_KA = Method("FedKA", disentangle=True, match=True, vote=True)
UNANIMOUS = Method("FedKA, unanimous votes", disentangle=True, match=True, vote=True, min_agreement=1.0)

NEEDED = (FED_AVG, ALIGNED, FED_KA)
"""What the claims are about."""
METHODS = (FED_AVG, FED_PROX, F_DANN, F_DAN, F_DAN_VOTE, ALIGNED, FED_KA, UNANIMOUS)
SETS: dict[str, tuple[Method, ...]] = {
    "needed": NEEDED,
    "ablation": (FED_AVG, F_DANN, F_DAN, ALIGNED, FED_KA),
    "all": METHODS,
}
"""What can be trained."""

SHARES = {
    "accuracy": "accuracy",
    "average": "average_accuracy",
    "effect": "group_effect",
    "votes": "vote_accuracy",
    "clients": "client_accuracy",
}
"""What is kept of a round's metrics, in percent or points."""
LOSSES = ("class_loss", "domain_loss", "matching_loss")


def federated_domains(domains: Domains, target: int) -> FedKAData:
    """One domain as the target, the others as clients.

    Args:
        domains: all of them.
        target: the place of the target; its labels are for evaluation alone.

    Returns:
        The data of a training.

    Raises:
        ValueError: as `jaxneg.federated.federated_data`, with the domains' names: a client without data, a
            class of the target that no client has, and so on.
    """
    others = [domain for place, domain in enumerate(domains.parts) if place != target]
    own = domains.parts[target]
    return federated_data(
        [(domain.x, domain.y) for domain in others],
        own.x,
        num_classes=domains.classes,
        evaluation=(own.x, own.y),
        names=[domain.name for domain in others],
    )


def train(
    domains: Domains, target: int, method: Method, sizes: FedKAConfig, network: FedKANetwork, seeds: int
) -> dict[str, Float[np.ndarray, "seeds ..."]]:
    """Trains a method with one domain as the target, once for each seed.

    Args:
        domains: all of them.
        target: the place of the target.
        method: the method.
        sizes: of rounds and batches.
        network: the network.
        seeds: how many; each has parameters, batches and dropout of its own.

    Returns:
        Percent: ``accuracy`` of the tuned model, ``average`` of the averaged one, ``effect``, the group
        effect in points, ``votes``, the accuracy of the votes, each ``[seeds, rounds]``, ``clients [seeds,
        rounds, clients]``; the losses ``class_loss``, ``domain_loss`` and ``matching_loss``, means over the
        clients; and where the target has test examples, ``test`` and ``average_test`` after the last round
        ``[seeds]``.

    Raises:
        FloatingPointError: a client's parameters were not finite.
    """
    data, own, cfg = federated_domains(domains, target), domains.parts[target], method.config(sizes)
    models, history = _trained(network, cfg, data, jnp.arange(seeds, dtype=jnp.uint32))
    found = kept(jax.device_get(history), f"{method.name} on {own.name}")
    if own.test_x is not None:
        x, y = jnp.asarray(own.test_x), jnp.asarray(own.test_y)
        tests = jax.device_get(_tested(network, cfg, models, x, y))
        found |= {"test": tests[0], "average_test": tests[1]}
    return found


def kept(history: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """What is kept of the metrics of all rounds.

    Args:
        history: each metric of `jaxneg.federated.fedka_round`, with the rounds on an axis.
        where: for the message.

    Returns:
        As `train` names it.

    Raises:
        FloatingPointError: a client was left out, which here means that its numbers were not finite.
    """
    left_out = np.asarray(history["left_out"])
    if left_out.any():
        place = np.argwhere(left_out)[0]
        raise FloatingPointError(f"{where}: round {place[-2]}: client {place[-1]} is not finite")
    found = {name: 100 * np.asarray(history[key]) for name, key in SHARES.items()}
    return found | {name: np.asarray(history[name]).mean(-1) for name in LOSSES}


@partial(jax.jit, static_argnums=(0, 1))
def _trained(
    network: FedKANetwork, cfg: FedKAConfig, data: FedKAData, seeds: Array
) -> tuple[tuple[ModelState, ModelState], dict[str, Array]]:
    step = make_fedka_step(cfg, network=network)
    clients = data.source_x.shape[0]

    def of_seed(seed: Array) -> tuple[tuple[ModelState, ModelState], dict[str, Array]]:
        state = init_fedka(network, clients, cfg, jax.random.key(seed))
        state, history = jax.lax.scan(lambda state, _: step(state, data), state, length=cfg.rounds)
        average: Any = jax.tree.map(lambda leaf: leaf[0], state.clients)  # every client has it
        return (state.cloud, average), history

    return over_seeds(of_seed)(seeds)


@partial(jax.jit, static_argnums=(0, 1))
def _tested(
    network: FedKANetwork, cfg: FedKAConfig, models: tuple[ModelState, ModelState], x: Array, y: Array
) -> list[Array]:
    def accuracy(model: ModelState) -> Array:
        logp = predict(model, x, cfg.eval_bn, cfg.eval_batch, network)
        return 100 * jnp.mean(jnp.argmax(logp, -1) == y)

    return [jax.lax.map(accuracy, model) for model in models]
