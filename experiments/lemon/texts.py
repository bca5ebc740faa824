"""From entities' texts to neighbourhoods: encode, reduce, cluster."""

import importlib
import time
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lemon.graphs import Graph
from jaxneg.kg import (
    EntityNeighbourhoods,
    Neighbourhoods,
    hashing_tfidf_svd,
    kmeans,
    nearest_cluster_neighbourhoods,
    pca_fit,
    pca_transform,
    text_neighbourhoods,
)

Encoder = Literal["stored", "tfidf", "sentence-transformers"]
TFIDF_DIMENSIONS = 256
PUBLISHED_COMPONENTS, PUBLISHED_CLUSTERS, PUBLISHED_NEAREST = 2, 15, 3


def embed(graph: Graph, encoder: Encoder, model: str) -> tuple[np.ndarray, str]:
    """Embeddings of a graph's texts.

    Args:
        graph: the graph.
        encoder: "stored": what lies beside the graph, and TF-IDF where nothing does; "tfidf": hashed
            TF-IDF with a truncated SVD, which needs no download; "sentence-transformers": any of its models.
        model: of sentence-transformers.

    Returns:
        ``[entities, dim]``, a row of zeros for an entity without text, and what the encoder was.

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    if encoder == "stored" and graph.embeddings is not None and np.any(graph.embeddings, axis=1).all():
        return graph.embeddings, "MiniLM-L6, stored beside the graph"
    if encoder == "sentence-transformers":
        try:
            library = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise ImportError(
                f"encoder 'sentence-transformers' is not installed ({error}): "
                "pip install sentence-transformers, or take --encoder tfidf"
            ) from error
        rows = np.asarray(library.SentenceTransformer(model).encode(graph.texts, normalize_embeddings=True))
        has_text = np.array([bool(text.strip()) for text in graph.texts])
        return np.where(has_text[:, None], rows, 0).astype(np.float32), model
    return hashing_tfidf_svd(graph.texts, TFIDF_DIMENSIONS), f"hashed TF-IDF, SVD to {TFIDF_DIMENSIONS}"


@dataclass(frozen=True)
class Clustering:
    """Clusters of the entities' texts."""

    points: np.ndarray
    """Embeddings after PCA, ``[entities, components]``; zeros for an entity without text."""
    labels: np.ndarray
    """Cluster of each entity; -1 for an entity without text."""
    centers: np.ndarray
    """Of the clusters."""
    seconds: float
    """CPU time of PCA and k-means, without compiling."""


def cluster(embeddings: np.ndarray, components: int, clusters: int, seed: int) -> Clustering:
    """Reduces and clusters. Entities whose embedding is zero have no text and are in no cluster.

    Args:
        embeddings: of all entities.
        components: of the PCA, at most what the rows span.
        clusters: number of clusters, at most the number of texts.
        seed: of k-means++.

    Returns:
        The clusters.

    Raises:
        ValueError: fewer than two entities have a text.
    """
    with_text = np.flatnonzero(np.any(embeddings, axis=1))
    if len(with_text) < 2:
        raise ValueError(
            f"texts: expected at least two entities with a text, got {len(with_text)}: add entities.tsv or "
            "entity2text.txt to the graph's folder"
        )
    rows = jnp.asarray(embeddings[with_text])
    components, clusters = min(components, *rows.shape), min(clusters, len(with_text))

    def clustered(rows: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reduced = pca_transform(pca_fit(rows, components), rows)
        labels, centers, _ = kmeans(key, reduced, clusters)
        return reduced, labels, centers

    program = jax.jit(clustered).lower(rows, jax.random.key(seed)).compile()
    jax.block_until_ready(program(rows, jax.random.key(seed)))  # threads are there, and memory
    began = time.process_time()
    reduced, of_text, centers = (np.asarray(x) for x in program(rows, jax.random.key(seed)))
    seconds = time.process_time() - began
    labels = np.full(len(embeddings), -1)
    labels[with_text] = of_text
    points = np.zeros((len(embeddings), components), np.float32)
    points[with_text] = reduced
    return Clustering(points, labels, centers, seconds)


def neighbourhoods(
    embeddings: np.ndarray, components: int, clusters: int, n_min: int, seed: int
) -> tuple[Neighbourhoods, Clustering, float]:
    """LEMON's neighbourhoods: the nearest clusters of the entity's own.

    Args:
        embeddings: of all entities.
        components: of the PCA.
        clusters: number of clusters.
        n_min: least number of candidates.
        seed: of k-means++.

    Returns:
        The neighbourhoods, the clusters, and the CPU seconds that PCA, k-means and neighbourhoods took.

    Raises:
        ValueError: fewer than two entities have a text.
    """
    found = cluster(embeddings, components, clusters, seed)
    began = time.process_time()
    nb = text_neighbourhoods(found.labels, found.centers, n_min)
    return nb, found, found.seconds + time.process_time() - began


def published_neighbourhoods(embeddings: np.ndarray, seed: int) -> EntityNeighbourhoods:
    """LEMON's neighbourhoods in the authors' code: the 3 of 15 clusters that are nearest to the entity.

    Args:
        embeddings: of all entities.
        seed: of k-means++.

    Returns:
        The neighbourhoods.

    Raises:
        ValueError: fewer than two entities have a text.

    Source:
        ``ColdMist/LEMON``, ``readme.md`` and the defaults of ``codes/run.py``.
    """
    found = cluster(embeddings, PUBLISHED_COMPONENTS, PUBLISHED_CLUSTERS, seed)
    nearest = min(PUBLISHED_NEAREST, len(found.centers))
    return nearest_cluster_neighbourhoods(found.points, found.labels, found.centers, nearest)
