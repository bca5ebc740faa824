"""Negative transfer between tasks: task gradients, their Gram matrix, weightings, and optax links.

`task_grads` gives the Jacobian of a multi-task loss, `gram` its Gram matrix, each method task weights,
`combine` the gradient; `multitask` is all of that as the first link of an ``optax.chain``. Rep-MTL
regularises the representation that the tasks share instead, with whatever weights.
"""

from jaxneg.mtl import losses, metrics
from jaxneg.mtl.aligned_mtl import aligned_mtl
from jaxneg.mtl.cagrad import cagrad
from jaxneg.mtl.config import config
from jaxneg.mtl.conflict import ConflictStatistics, conflict_statistics
from jaxneg.mtl.dbmtl import dbmtl_buffer, dbmtl_head_weights, dbmtl_weights
from jaxneg.mtl.dualproj import dualproj
from jaxneg.mtl.excess_mtl import excess_risks, excess_weights
from jaxneg.mtl.fairgrad import fairgrad
from jaxneg.mtl.graddrop import graddrop_draws, graddrop_masked, graddrop_representation
from jaxneg.mtl.gradnorm import gradnorm_loss, gradnorm_weights
from jaxneg.mtl.gradvac import gradvac
from jaxneg.mtl.gram import combine, cross_gram, gram, gram_sharded
from jaxneg.mtl.imtl_g import imtl_g
from jaxneg.mtl.jacobian import Representation, task_grads, task_grads_rep
from jaxneg.mtl.losses import (
    dwa_weights,
    equal_weights,
    famo_init,
    famo_loss,
    famo_update,
    gls,
    imtl_l,
    rlw_weights,
    si,
    stch,
    stch_log,
    uw,
)
from jaxneg.mtl.metrics import delta_m, delta_p_metric, delta_p_task, mean_rank
from jaxneg.mtl.mgda import mgda
from jaxneg.mtl.moco import moco_tracker, moco_weights
from jaxneg.mtl.multitask import MultitaskState, famo_observe, multitask, nash_mtl
from jaxneg.mtl.nash import nash
from jaxneg.mtl.pcd import pcd
from jaxneg.mtl.pcgrad import pcgrad
from jaxneg.mtl.power_law import PowerLaw, pl_alpha, pl_alpha_matrix, pl_alpha_tree
from jaxneg.mtl.rep_mtl import (
    csa_loss,
    csa_loss_sharded,
    csa_terms,
    make_rep_mtl_loss,
    rep_mtl_loss,
    saliency_distribution,
    task_saliency,
    tsr_entropy,
)
from jaxneg.mtl.rules import METHODS_OF_LOSSES, FamoState
from jaxneg.mtl.sdmgrad import modo, sdmgrad
from jaxneg.mtl.solvers import SolverInfo
from jaxneg.mtl.upgrad import upgrad

__all__ = [
    "METHODS_OF_LOSSES",
    "ConflictStatistics",
    "FamoState",
    "MultitaskState",
    "PowerLaw",
    "Representation",
    "SolverInfo",
    "aligned_mtl",
    "cagrad",
    "combine",
    "config",
    "conflict_statistics",
    "cross_gram",
    "csa_loss",
    "csa_loss_sharded",
    "csa_terms",
    "dbmtl_buffer",
    "dbmtl_head_weights",
    "dbmtl_weights",
    "delta_m",
    "delta_p_metric",
    "delta_p_task",
    "dualproj",
    "dwa_weights",
    "equal_weights",
    "excess_risks",
    "excess_weights",
    "fairgrad",
    "famo_init",
    "famo_loss",
    "famo_observe",
    "famo_update",
    "gls",
    "graddrop_draws",
    "graddrop_masked",
    "graddrop_representation",
    "gradnorm_loss",
    "gradnorm_weights",
    "gradvac",
    "gram",
    "gram_sharded",
    "imtl_g",
    "imtl_l",
    "losses",
    "make_rep_mtl_loss",
    "mean_rank",
    "metrics",
    "mgda",
    "moco_tracker",
    "moco_weights",
    "modo",
    "multitask",
    "nash",
    "nash_mtl",
    "pcd",
    "pcgrad",
    "pl_alpha",
    "pl_alpha_matrix",
    "pl_alpha_tree",
    "rep_mtl_loss",
    "rlw_weights",
    "saliency_distribution",
    "sdmgrad",
    "si",
    "stch",
    "stch_log",
    "task_grads",
    "task_grads_rep",
    "task_saliency",
    "tsr_entropy",
    "upgrad",
    "uw",
]
