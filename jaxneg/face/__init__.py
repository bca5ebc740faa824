"""Margin losses for face recognition, UNPG, class-sharded softmax, verification metrics."""

from jaxneg.face.arcface import arcface_cosine
from jaxneg.face.box_whisker import box_whisker_mask
from jaxneg.face.class_shards import (
    class_rows,
    pad_class_shards,
    padded_classes,
    sample_class_centres,
    shard_class_ranges,
)
from jaxneg.face.combined_margin import combined_cosine
from jaxneg.face.cosface import cosface_cosine
from jaxneg.face.ijb import ijb_template_features
from jaxneg.face.magface import MagFace, magface_cosine, magface_regulariser
from jaxneg.face.margins import HEADS, margin_logits
from jaxneg.face.pairs import (
    circle_pair_loss,
    contrastive_pair_loss,
    nonzero_mean,
    pair_similarities,
    triplet_margin_loss,
    triplet_margin_mean,
)
from jaxneg.face.partial_fc import sharded_margin_softmax
from jaxneg.face.sampled_updates import update_sampled_rows
from jaxneg.face.sphereface import sphereface_cosine
from jaxneg.face.training import (
    UNPGConfig,
    UNPGState,
    init_unpg_state,
    make_unpg_loss,
    make_unpg_train_step,
)
from jaxneg.face.unpg import unpg_log_partition, unpg_loss
from jaxneg.face.verification import (
    all_pairs_scores,
    best_threshold_accuracy,
    tar_at_far,
    tenfold_accuracy,
)
from jaxneg.face.wdfs import WDFS, wdfs_stats

__all__ = [
    "HEADS",
    "WDFS",
    "MagFace",
    "UNPGConfig",
    "UNPGState",
    "all_pairs_scores",
    "arcface_cosine",
    "best_threshold_accuracy",
    "box_whisker_mask",
    "circle_pair_loss",
    "class_rows",
    "combined_cosine",
    "contrastive_pair_loss",
    "cosface_cosine",
    "ijb_template_features",
    "init_unpg_state",
    "magface_cosine",
    "magface_regulariser",
    "make_unpg_loss",
    "make_unpg_train_step",
    "margin_logits",
    "nonzero_mean",
    "pad_class_shards",
    "padded_classes",
    "pair_similarities",
    "sample_class_centres",
    "shard_class_ranges",
    "sharded_margin_softmax",
    "sphereface_cosine",
    "tar_at_far",
    "tenfold_accuracy",
    "triplet_margin_loss",
    "triplet_margin_mean",
    "unpg_log_partition",
    "unpg_loss",
    "update_sampled_rows",
    "wdfs_stats",
]
