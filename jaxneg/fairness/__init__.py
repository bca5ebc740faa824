"""Anonymisation and fairness: k-anonymity, l-diversity, t-closeness; group and individual metrics."""

from jaxneg.fairness.audit import (
    Dataset,
    Encoded,
    Released,
    Setting,
    audit_grid,
    audit_row,
    config_keys,
    encode_released,
    fit_predict,
    measure,
    release,
)
from jaxneg.fairness.earth_mover import emd_equal, emd_hierarchical, emd_ordered
from jaxneg.fairness.encoding import Split, encode, one_hot, standardise, train_test_split
from jaxneg.fairness.equivalence_classes import equivalence_classes
from jaxneg.fairness.greedy import AnonResult, anonymise, k_anonymise, l_diversify, t_close
from jaxneg.fairness.group_metrics import group_metrics, group_table, soft_group_gap
from jaxneg.fairness.hierarchies import (
    Hierarchies,
    compose_hierarchy,
    generalise,
    interval_hierarchy,
    is_nested,
    label_ranks,
)
from jaxneg.fairness.individual_metrics import IndividualMetrics, consistency, individual_metrics
from jaxneg.fairness.lattice import LatticeResult, optimal_lattice
from jaxneg.fairness.mondrian import mondrian
from jaxneg.fairness.privacy_levels import PrivacyLevels, privacy_levels
from jaxneg.fairness.training import Network, dense_network, predict_grid, train_grid

__all__ = [
    "AnonResult",
    "Dataset",
    "Encoded",
    "Hierarchies",
    "IndividualMetrics",
    "LatticeResult",
    "Network",
    "PrivacyLevels",
    "Released",
    "Setting",
    "Split",
    "anonymise",
    "audit_grid",
    "audit_row",
    "compose_hierarchy",
    "config_keys",
    "consistency",
    "dense_network",
    "emd_equal",
    "emd_hierarchical",
    "emd_ordered",
    "encode",
    "encode_released",
    "equivalence_classes",
    "fit_predict",
    "generalise",
    "group_metrics",
    "group_table",
    "individual_metrics",
    "interval_hierarchy",
    "is_nested",
    "k_anonymise",
    "l_diversify",
    "label_ranks",
    "measure",
    "mondrian",
    "one_hot",
    "optimal_lattice",
    "predict_grid",
    "privacy_levels",
    "release",
    "soft_group_gap",
    "standardise",
    "t_close",
    "train_grid",
    "train_test_split",
]
