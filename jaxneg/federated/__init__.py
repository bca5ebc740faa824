"""Federated learning across domains: averaging, FedKA's feature matching and voting, the group effect."""

from jaxneg.federated.averaging import (
    Stacked,
    federated_average,
    finite_clients,
    proximal_penalty,
    stack_clients,
)
from jaxneg.federated.data import FedKAData, federated_data
from jaxneg.federated.federated_vote import Votes, federated_vote
from jaxneg.federated.fedka import (
    ClientBatches,
    FedKAConfig,
    FedKAResult,
    FedKAState,
    ModelState,
    fedka_round,
    fit,
    init_fedka,
    make_fedka_step,
    make_sharded_round,
    predict,
    train_client,
    tune,
)
from jaxneg.federated.gradient_reversal import adaptation_schedule, grl
from jaxneg.federated.group_effect import group_effect
from jaxneg.federated.mk_mmd import kernel_bandwidths, mk_mmd
from jaxneg.federated.objectives import FedKANetwork, client_objective, matching_objective

__all__ = [
    "ClientBatches",
    "FedKAConfig",
    "FedKAData",
    "FedKANetwork",
    "FedKAResult",
    "FedKAState",
    "ModelState",
    "Stacked",
    "Votes",
    "adaptation_schedule",
    "client_objective",
    "federated_average",
    "federated_data",
    "federated_vote",
    "fedka_round",
    "finite_clients",
    "fit",
    "grl",
    "group_effect",
    "init_fedka",
    "kernel_bandwidths",
    "make_fedka_step",
    "make_sharded_round",
    "matching_objective",
    "mk_mmd",
    "predict",
    "proximal_penalty",
    "stack_clients",
    "train_client",
    "tune",
]
