"""Hard negatives in retrieval: scores of a set of negatives, BM25, mining, ranking metrics."""

from jaxneg.retrieval.bm25 import BM25Index, bm25_index, bm25_scores
from jaxneg.retrieval.eci import (
    ECIResult,
    SourceScore,
    eci,
    eci_from_embeddings,
    efficiency,
    hardness,
    information_capacity,
    rank_sources,
    safety,
    similarities,
)
from jaxneg.retrieval.eci_sem import (
    ECISemResult,
    eci_sem,
    information_matrix,
    lexical_overlap,
    query_directions,
    triple_weights,
)
from jaxneg.retrieval.infonce import gradient_norm_proxy, infonce_loss, mean_margin
from jaxneg.retrieval.mining import (
    NV_RETRIEVER,
    MinedNegatives,
    hybrid,
    labelled_lists,
    mine_negatives,
    n_tuples,
    triplets,
)
from jaxneg.retrieval.ndcg import ndcg
from jaxneg.retrieval.rank_correlation import kendall_tau, spearman
from jaxneg.retrieval.tokens import LUCENE_STOP_WORDS, TokenIds, token_ids, tokenize

__all__ = [
    "LUCENE_STOP_WORDS",
    "NV_RETRIEVER",
    "BM25Index",
    "ECIResult",
    "ECISemResult",
    "MinedNegatives",
    "SourceScore",
    "TokenIds",
    "bm25_index",
    "bm25_scores",
    "eci",
    "eci_from_embeddings",
    "eci_sem",
    "efficiency",
    "gradient_norm_proxy",
    "hardness",
    "hybrid",
    "infonce_loss",
    "information_capacity",
    "information_matrix",
    "kendall_tau",
    "labelled_lists",
    "lexical_overlap",
    "mean_margin",
    "mine_negatives",
    "n_tuples",
    "ndcg",
    "query_directions",
    "rank_sources",
    "safety",
    "similarities",
    "spearman",
    "token_ids",
    "tokenize",
    "triple_weights",
    "triplets",
]
