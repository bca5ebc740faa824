"""Knowledge-graph embeddings: scores, losses, negative samplers, filtered evaluation, LEMON."""

from jaxneg.kg.ans import affinity_neighbourhoods
from jaxneg.kg.bernoulli import RelationCardinality, relation_cardinality, sample_bernoulli
from jaxneg.kg.candidate_sets import CandidateSets, candidate_sets, sample_candidates
from jaxneg.kg.complex import complex_score
from jaxneg.kg.distmult import distmult_score
from jaxneg.kg.eans import sample_eans
from jaxneg.kg.hashing_tfidf import hashing_tfidf_svd
from jaxneg.kg.kbgan import KBGANState, kbgan_init, kbgan_step
from jaxneg.kg.kmeans import elbow, kmeans, kmeans_plus_plus, lloyd, nearest_centers
from jaxneg.kg.known_triples import KnownTriples, filter_known, is_known, known_triples
from jaxneg.kg.lemon import (
    EntityNeighbourhoods,
    Neighbourhoods,
    center_distances,
    default_clusters,
    lemon_probabilities,
    nearest_cluster_neighbourhoods,
    sample_lemon,
    text_neighbourhoods,
)
from jaxneg.kg.losses import (
    kge_loss,
    l3_regularization,
    margin_loss,
    negative_loss,
    positive_loss,
    subsampling_weights,
)
from jaxneg.kg.nscaching import nscaching_refresh, sample_cache
from jaxneg.kg.pca import PCA, pca_fit, pca_transform
from jaxneg.kg.protate import protate_score
from jaxneg.kg.ranking import FilteredRanks, filtered_ranks, ranking_metrics
from jaxneg.kg.restarting_adam import restarting_adam
from jaxneg.kg.rotate import rotate_score
from jaxneg.kg.sans import khop_neighbourhoods, random_walk_neighbourhoods, sample_sans
from jaxneg.kg.scores import MODELS, kge_init, kge_score, make_query, score_all
from jaxneg.kg.step import KGEState, init_kge_state, make_kge_step, update_rows
from jaxneg.kg.transe import transe_score
from jaxneg.kg.uniform import sample_uniform

__all__ = [
    "MODELS",
    "PCA",
    "CandidateSets",
    "EntityNeighbourhoods",
    "FilteredRanks",
    "KBGANState",
    "KGEState",
    "KnownTriples",
    "Neighbourhoods",
    "RelationCardinality",
    "affinity_neighbourhoods",
    "candidate_sets",
    "center_distances",
    "complex_score",
    "default_clusters",
    "distmult_score",
    "elbow",
    "filter_known",
    "filtered_ranks",
    "hashing_tfidf_svd",
    "init_kge_state",
    "is_known",
    "kbgan_init",
    "kbgan_step",
    "kge_init",
    "kge_loss",
    "kge_score",
    "khop_neighbourhoods",
    "kmeans",
    "kmeans_plus_plus",
    "known_triples",
    "l3_regularization",
    "lemon_probabilities",
    "lloyd",
    "make_kge_step",
    "make_query",
    "margin_loss",
    "nearest_centers",
    "nearest_cluster_neighbourhoods",
    "negative_loss",
    "nscaching_refresh",
    "pca_fit",
    "pca_transform",
    "positive_loss",
    "protate_score",
    "random_walk_neighbourhoods",
    "ranking_metrics",
    "relation_cardinality",
    "restarting_adam",
    "rotate_score",
    "sample_bernoulli",
    "sample_cache",
    "sample_candidates",
    "sample_eans",
    "sample_lemon",
    "sample_sans",
    "sample_uniform",
    "score_all",
    "subsampling_weights",
    "text_neighbourhoods",
    "transe_score",
    "update_rows",
]
