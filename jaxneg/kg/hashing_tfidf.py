"""Text embeddings without a model: hashed words and character n-grams, TF-IDF, truncated SVD.

Weinberger et al., "Feature hashing for large scale multitask learning", arXiv:0902.2206; Deerwester et al.,
"Indexing by latent semantic analysis", 1990.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from jaxneg.kg.arguments import at_least

BUCKETS = 2**18
NGRAMS = (3, 4, 5)
_WORD = re.compile(r"\w+")


def hashing_tfidf(texts: Sequence[str]) -> sparse.csr_matrix:
    """Unit rows of TF-IDF over 2^18 buckets of words and of their character 3- to 5-grams.

    A count c weighs 1 + ln c, times ln((1 + n) / (1 + df)) + 1 of its bucket. N-grams are taken within
    words, with a space before and behind. A text without a word is a row of zeros.

    Args:
        texts: one for each row.

    Returns:
        ``[texts, 2^18]``, float32.

    Example:
        >>> matrix = hashing_tfidf(["red wine", "white wine", ""])
        >>> (matrix @ matrix.T).toarray()[2].tolist()
        [0.0, 0.0, 0.0]
    """
    bucket_of: dict[str, int] = {}
    indices, counts, start = [], [], [0]
    for text in texts:
        terms: Counter[int] = Counter()
        for word in _WORD.findall(text.lower()):
            padded = f" {word} "
            grams = [padded[i : i + n] for n in NGRAMS for i in range(len(padded) - n + 1)]
            for term in (f"w:{word}", *grams):
                if term not in bucket_of:
                    bucket_of[term] = zlib.crc32(term.encode()) % BUCKETS
                terms[bucket_of[term]] += 1
        indices += terms.keys()
        counts += terms.values()
        start.append(len(indices))
    weights = 1 + np.log(np.asarray(counts, np.float32))
    matrix = sparse.csr_matrix((weights, indices, start), shape=(len(texts), BUCKETS), dtype=np.float32)
    df = np.bincount(matrix.indices, minlength=BUCKETS)
    matrix.data *= (np.log((1 + len(texts)) / (1 + df)) + 1).astype(np.float32)[matrix.indices]
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(norm > 0, norm, 1), dtype=np.float32) @ matrix


def hashing_tfidf_svd(texts: Sequence[str], dim: int = 256) -> np.ndarray:
    """Unit embeddings of texts: `hashing_tfidf`, then the leading singular directions.

    On the host, once before training. A text without a word is a row of zeros.

    Args:
        texts: one for each row.
        dim: numbers of an embedding; what the texts do not span is filled with zeros.

    Returns:
        ``[texts, dim]``, float32.

    Raises:
        ValueError: no text, or dim below 1.

    Example:
        >>> x = hashing_tfidf_svd(["red wine", "white wine", "diesel engine"], 2)
        >>> bool(x[0] @ x[1] > x[0] @ x[2])
        True
    """
    at_least("dim", dim, 1)
    at_least("number of texts", len(texts), 1)
    matrix = hashing_tfidf(texts)
    rank = min(dim, len(texts))
    if rank < min(len(texts), BUCKETS):
        found: Any = svds(matrix, k=rank, v0=np.ones(min(len(texts), BUCKETS)), solver="arpack")
        left, singular, _ = found
    else:  # ARPACK finds fewer directions than there are rows
        values, left = np.linalg.eigh((matrix @ matrix.T).toarray())
        singular = np.sqrt(np.maximum(values, 0))
    order = np.argsort(-singular)
    embedded = np.zeros((len(texts), dim), np.float32)
    embedded[:, :rank] = left[:, order] * singular[order]
    norm = np.linalg.norm(embedded, axis=1, keepdims=True)
    return np.where(norm > 1e-6, embedded / np.where(norm > 1e-6, norm, 1), 0)
