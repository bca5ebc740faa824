"""Self-supervised contrastive losses, adaptive temperatures with several heads (AMCL), augmentations."""

from jaxneg.contrastive.adaptive_negatives import Negatives
from jaxneg.contrastive.amcl_barlow_twins import amcl_barlow_twins_loss
from jaxneg.contrastive.amcl_moco import amcl_moco_loss
from jaxneg.contrastive.amcl_nt_xent import amcl_nt_xent_loss
from jaxneg.contrastive.amcl_simsiam import amcl_simsiam_loss
from jaxneg.contrastive.augment import augment_batch, normalise
from jaxneg.contrastive.barlow_twins import barlow_twins_loss
from jaxneg.contrastive.byol import byol_loss
from jaxneg.contrastive.cosine import cosine_similarity
from jaxneg.contrastive.knn import KNNResult, knn_classify
from jaxneg.contrastive.linear_probe import LinearProbe, linear_probe
from jaxneg.contrastive.macl import macl_loss
from jaxneg.contrastive.moco import (
    KeyQueue,
    cosine_momentum,
    ema_update,
    info_nce_queue_loss,
    init_queue,
    moco_v3_loss,
    queue_enqueue,
)
from jaxneg.contrastive.nt_xent import nt_xent_loss
from jaxneg.contrastive.separation import Separation, separation_metrics
from jaxneg.contrastive.simsiam import simsiam_loss
from jaxneg.contrastive.temperature import (
    TemperatureNet,
    best_temperature,
    init_temperature_net,
    omega,
    score_to_temperature,
    temperature_features,
    temperature_scores,
)
from jaxneg.contrastive.vicreg import vicreg_loss

__all__ = [
    "KNNResult",
    "KeyQueue",
    "LinearProbe",
    "Negatives",
    "Separation",
    "TemperatureNet",
    "amcl_barlow_twins_loss",
    "amcl_moco_loss",
    "amcl_nt_xent_loss",
    "amcl_simsiam_loss",
    "augment_batch",
    "barlow_twins_loss",
    "best_temperature",
    "byol_loss",
    "cosine_momentum",
    "cosine_similarity",
    "ema_update",
    "info_nce_queue_loss",
    "init_queue",
    "init_temperature_net",
    "knn_classify",
    "linear_probe",
    "macl_loss",
    "moco_v3_loss",
    "normalise",
    "nt_xent_loss",
    "omega",
    "queue_enqueue",
    "score_to_temperature",
    "separation_metrics",
    "simsiam_loss",
    "temperature_features",
    "temperature_scores",
    "vicreg_loss",
]
