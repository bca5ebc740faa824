"""Unlearning by negative preference optimisation, and its rivals.

Every loss returns one value for each example; its mean over the batch is the paper's scalar. `sequence_nll`
turns logits into what most of them take, `unlearning_loss` puts a forget and a retain loss together, and
`make_unlearn_loss` makes of a model's ``apply`` the loss function of a training step, `make_unlearn_step` a
whole one. `load_tofu` reads the TOFU benchmark, `make_tofu_evaluation` and `tofu_report` say how a model does
on it; the measures of MUSE and WMDP and the membership attacks stand beside them.
"""

from jaxneg.unlearning.ceu import ceu_loss
from jaxneg.unlearning.dpo import dpo_loss
from jaxneg.unlearning.forget_quality import ForgetQuality, forget_quality
from jaxneg.unlearning.gradient_ascent import ga_loss
from jaxneg.unlearning.idk import idk_loss
from jaxneg.unlearning.kto import kto_baseline, kto_loss
from jaxneg.unlearning.membership import (
    auc,
    gradient_norm_score,
    min_k,
    min_k_pp,
    privleak,
    reference_score,
    zlib_score,
)
from jaxneg.unlearning.memorization import exact_memorization, extraction_strength
from jaxneg.unlearning.methods import METHODS, UnlearnConfig
from jaxneg.unlearning.model_utility import model_utility
from jaxneg.unlearning.multiple_choice import multiple_choice_correct, multiple_choice_prompt, option_scores
from jaxneg.unlearning.muse import first_answer, knowmem, knowmem_prompt, verbmem
from jaxneg.unlearning.npo import npo_loss, npo_weights
from jaxneg.unlearning.objective import (
    make_unlearn_loss,
    make_unlearn_losses,
    unlearning_loss,
    with_token_means,
)
from jaxneg.unlearning.pairing import draw_partners
from jaxneg.unlearning.pdu import DualAscentState, dual_ascent_retain, pdu_forget_loss
from jaxneg.unlearning.reference import check_reference, precompute_reference
from jaxneg.unlearning.retain import ce_loss, kl_retain_loss
from jaxneg.unlearning.rmu import rmu_control_vector, rmu_loss
from jaxneg.unlearning.rouge import Rouge, rouge, rouge_l_recall
from jaxneg.unlearning.satimp import satimp_loss
from jaxneg.unlearning.sequence import (
    IGNORE,
    answer_lengths,
    check_labels,
    sequence_nll,
    token_mean_ce,
    token_nll,
)
from jaxneg.unlearning.simnpo import simnpo_loss
from jaxneg.unlearning.step import UnlearnStep, make_unlearn_step
from jaxneg.unlearning.synthetic import GaussianLogistic, synthetic_gaussian_logistic
from jaxneg.unlearning.tofu import (
    Question,
    evaluation_split,
    load_refusals,
    load_tofu,
    tofu_folder,
    tofu_split,
)
from jaxneg.unlearning.tofu_evaluation import (
    TofuLog,
    TofuReport,
    answer_rows,
    make_tofu_evaluation,
    prompt_rows,
    tofu_report,
)
from jaxneg.unlearning.truth_ratio import (
    answer_probability,
    average_loss,
    probability_with_options,
    truth_ratio,
    truth_ratio_score,
)
from jaxneg.unlearning.undial import undial_loss
from jaxneg.unlearning.wga import wga_loss

__all__ = [
    "IGNORE",
    "METHODS",
    "DualAscentState",
    "ForgetQuality",
    "GaussianLogistic",
    "Question",
    "Rouge",
    "TofuLog",
    "TofuReport",
    "UnlearnConfig",
    "UnlearnStep",
    "answer_lengths",
    "answer_probability",
    "answer_rows",
    "auc",
    "average_loss",
    "ce_loss",
    "ceu_loss",
    "check_labels",
    "check_reference",
    "dpo_loss",
    "draw_partners",
    "dual_ascent_retain",
    "evaluation_split",
    "exact_memorization",
    "extraction_strength",
    "first_answer",
    "forget_quality",
    "ga_loss",
    "gradient_norm_score",
    "idk_loss",
    "kl_retain_loss",
    "knowmem",
    "knowmem_prompt",
    "kto_baseline",
    "kto_loss",
    "load_refusals",
    "load_tofu",
    "make_tofu_evaluation",
    "make_unlearn_loss",
    "make_unlearn_losses",
    "make_unlearn_step",
    "min_k",
    "min_k_pp",
    "model_utility",
    "multiple_choice_correct",
    "multiple_choice_prompt",
    "npo_loss",
    "npo_weights",
    "option_scores",
    "pdu_forget_loss",
    "precompute_reference",
    "privleak",
    "probability_with_options",
    "prompt_rows",
    "reference_score",
    "rmu_control_vector",
    "rmu_loss",
    "rouge",
    "rouge_l_recall",
    "satimp_loss",
    "sequence_nll",
    "simnpo_loss",
    "synthetic_gaussian_logistic",
    "tofu_folder",
    "tofu_report",
    "tofu_split",
    "token_mean_ce",
    "token_nll",
    "truth_ratio",
    "truth_ratio_score",
    "undial_loss",
    "unlearning_loss",
    "verbmem",
    "wga_loss",
    "with_token_means",
    "zlib_score",
]
