"""Unlearning by negative preference optimisation, and its rivals.

Every loss returns one value for each example; its mean over the batch is the paper's scalar. `sequence_nll`
turns logits into what most of them take, `unlearning_loss` puts a forget and a retain loss together, and
`make_unlearn_loss` makes of a model's ``apply`` the loss function of a training step.
"""

from jaxneg.unlearning.dpo import dpo_loss
from jaxneg.unlearning.gradient_ascent import ga_loss
from jaxneg.unlearning.idk import idk_loss
from jaxneg.unlearning.kto import kto_baseline, kto_loss
from jaxneg.unlearning.npo import npo_loss, npo_weights
from jaxneg.unlearning.objective import (
    METHODS,
    UnlearnConfig,
    make_unlearn_loss,
    precompute_reference,
    unlearning_loss,
    with_token_means,
)
from jaxneg.unlearning.retain import ce_loss, kl_retain_loss
from jaxneg.unlearning.sequence import (
    IGNORE,
    answer_lengths,
    check_labels,
    sequence_nll,
    token_mean_ce,
    token_nll,
)
from jaxneg.unlearning.simnpo import simnpo_loss
from jaxneg.unlearning.synthetic import GaussianLogistic, synthetic_gaussian_logistic

__all__ = [
    "IGNORE",
    "METHODS",
    "GaussianLogistic",
    "UnlearnConfig",
    "answer_lengths",
    "ce_loss",
    "check_labels",
    "dpo_loss",
    "ga_loss",
    "idk_loss",
    "kl_retain_loss",
    "kto_baseline",
    "kto_loss",
    "make_unlearn_loss",
    "npo_loss",
    "npo_weights",
    "precompute_reference",
    "sequence_nll",
    "simnpo_loss",
    "synthetic_gaussian_logistic",
    "token_mean_ce",
    "token_nll",
    "unlearning_loss",
    "with_token_means",
]
