"""Graphons, the Gromov-Wasserstein discrepancy, and the feasibility of graph pre-training (W2PGNN)."""

from jaxneg.graphs.alignment import align_graphs
from jaxneg.graphs.baselines import GraphStatistics, baseline_scores, egi_gap, graph_statistics
from jaxneg.graphs.bases import graphon_basis, graphon_of, merge_graphs, topology_clusters
from jaxneg.graphs.feasibility import FeasibilityResult, feasibility, feasibility_grid
from jaxneg.graphs.graph_batch import GraphBatch, graphs_from_edges, stack_graphs
from jaxneg.graphs.graphon import block_means, estimate_graphon, largest_gap, mean_adjacency, resize_graphon
from jaxneg.graphs.gromov_wasserstein import (
    GWResult,
    entropic_gw,
    gw_distance,
    gw_objective,
    round_to_marginals,
)
from jaxneg.graphs.gw_barycenter import gw_barycenter, target_distribution
from jaxneg.graphs.linear_assignment import assignment
from jaxneg.graphs.selection import (
    TopologicalSelection,
    W2PGNNResult,
    select_pretraining,
    topological_selection,
    w2pgnn_feasibility,
)
from jaxneg.graphs.synthetic_graphons import graphon_at, synthesize_graphon
from jaxneg.graphs.topology import (
    betweenness,
    laplacian_histogram,
    laplacian_spectrum,
    mean_betweenness,
    topology_features,
)
from jaxneg.graphs.total_variation import tv_chambolle

__all__ = [
    "FeasibilityResult",
    "GWResult",
    "GraphBatch",
    "GraphStatistics",
    "TopologicalSelection",
    "W2PGNNResult",
    "align_graphs",
    "assignment",
    "baseline_scores",
    "betweenness",
    "block_means",
    "egi_gap",
    "entropic_gw",
    "estimate_graphon",
    "feasibility",
    "feasibility_grid",
    "graph_statistics",
    "graphon_at",
    "graphon_basis",
    "graphon_of",
    "graphs_from_edges",
    "gw_barycenter",
    "gw_distance",
    "gw_objective",
    "laplacian_histogram",
    "laplacian_spectrum",
    "largest_gap",
    "mean_adjacency",
    "mean_betweenness",
    "merge_graphs",
    "resize_graphon",
    "round_to_marginals",
    "select_pretraining",
    "stack_graphs",
    "synthesize_graphon",
    "target_distribution",
    "topological_selection",
    "topology_clusters",
    "topology_features",
    "tv_chambolle",
    "w2pgnn_feasibility",
]
