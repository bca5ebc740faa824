"""The published code's round on many chips: a client on each, and its data with it.

A client's examples, its parameters and its optimiser stay on its chip; sums of parameters and counts of votes
cross the mesh, and the cloud's examples and the global model are on every chip.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray

from experiments.fedka.network import convolutional
from experiments.fedka.training import FED_KA
from jaxneg.federated import FedKAConfig, FedKAData, FedKAState, init_fedka, make_fedka_step
from jaxneg.train import Target

CHIPS = 256
SIZE, CLASSES = 28, 10
TARGET, EVALUATED = 25_000, 5_008
"""Images of the cloud, as many as a domain of Digit-Five has; those that accuracy is measured on."""
RULES = ((r"(^|/)clients/|source_|sizes$|participating$", P("client")),)
"""What lies with its client; all else is on every chip."""


class Resident(NamedTuple):
    """What stays on the chips from round to round."""

    training: FedKAState
    data: FedKAData


def round_target(
    clients: int,
    examples: int,
    cfg: FedKAConfig,
    *,
    chips: int = CHIPS,
    target: int = TARGET,
    evaluated: int = EVALUATED,
) -> Target:
    """A round of FedKA with the published network, and its abstract arguments.

    The batch of a step says which clients take part in the round.

    Args:
        clients: how many, a multiple of the chips.
        examples: images of each.
        cfg: sizes of rounds and batches.
        chips: of the mesh.
        target: images of the cloud.
        evaluated: labelled images of the target domain.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    network, cfg = convolutional(SIZE), FED_KA.config(cfg)

    def images(*axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*axes, SIZE, SIZE, 3), jnp.uint8)

    def whole(*axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, jnp.int32)

    data = FedKAData(
        source_x=images(clients, examples),  # pyright: ignore[reportArgumentType]
        source_y=whole(clients, examples),  # pyright: ignore[reportArgumentType]
        sizes=whole(clients),  # pyright: ignore[reportArgumentType]
        participating=jax.ShapeDtypeStruct((clients,), jnp.bool_),  # pyright: ignore[reportArgumentType]
        target_x=images(target),  # pyright: ignore[reportArgumentType]
        eval_x=images(evaluated),  # pyright: ignore[reportArgumentType]
        eval_y=whole(evaluated),  # pyright: ignore[reportArgumentType]
    )

    def start(key: PRNGKeyArray) -> FedKAState:
        return init_fedka(network, clients, cfg, key)

    def step(state: Resident, batch: dict[str, Array]) -> tuple[Resident, dict[str, Array]]:
        # The mesh of the chips is known when the step is compiled, not before.
        mesh = jax.sharding.get_abstract_mesh()
        one_round = make_fedka_step(cfg, network=network, mesh=mesh)
        data = state.data._replace(participating=batch["participating"])
        training, metrics = one_round(state.training, data)
        return Resident(training, data), metrics

    return Target(
        step=step,
        state=Resident(jax.eval_shape(start, jax.random.key(0)), data),  # pyright: ignore[reportArgumentType]
        batch={"participating": data.participating},
        mesh={"client": chips},
        rules=RULES,
        fsdp=None,
        batch_spec=P("client"),
    )


def published(rounds: int = 200) -> FedKAConfig:
    """The published code's sizes, which are `jaxneg.federated.FedKAConfig`'s defaults.

    Example:
        >>> cfg = published()
        >>> cfg.rounds, cfg.steps, cfg.batch, cfg.vote_steps, cfg.learning_rate
        (200, 32, 16, 128, 0.0003)
    """
    return dataclasses.replace(FedKAConfig(), rounds=rounds)
