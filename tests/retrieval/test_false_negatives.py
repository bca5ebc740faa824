"""Filters of false negatives, alone and in mining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.retrieval import above_teacher, mine_negatives, near_positive, same_text


def unit(seed, *shape):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_in_mining():
    q, d = unit(0, 6, 4), unit(1, 40, 4)
    positive = np.array([[0, 1], [2, -1], [3, 3], [-1, -1], [4, 5], [6, -1]])
    teacher = np.random.default_rng(2).random((6, 40)).astype(np.float32)
    d[20] = d[0]
    text = np.arange(40)
    text[20] = 0
    median = np.full(6, 0.5, np.float32)
    table = jnp.asarray(teacher)

    def score(queries, documents):
        return table[queries[:, None], documents]

    def is_near(query, document):
        return max([d[document] @ d[p] for p in positive[query] if p >= 0], default=-1) > 0.6

    filters = {
        "teacher": (above_teacher(score, 0.5), lambda i, j: teacher[i, j] > 0.5),
        "teacher, by query": (above_teacher(score, median), lambda i, j: teacher[i, j] > 0.5),
        "near": (near_positive(d, positive, 0.6, block_rows=4), is_near),
        "twin": (same_text(text, positive), lambda i, j: i == 0 and j == 20),
    }
    similarity = q @ d.T
    for name, (drop, dropped) in filters.items():
        mine = jax.jit(
            lambda q, d, drop=drop: mine_negatives(
                (q, d), positive_ids=positive, num_negatives=5, range_max=40, drop=drop
            )
        )
        found = np.asarray(mine(q, d).index)
        for i in range(6):
            order = np.argsort(-similarity[i], kind="stable")
            expected = [j for j in order if j not in positive[i] and not dropped(i, j)][:5]
            assert found[i].tolist() == expected + [-1] * (5 - len(expected)), name


def test_embeddings_of_another_length():
    with pytest.raises(ValueError, match="d: expected rows of length 1"):
        near_positive(2 * np.eye(3), np.array([[0]]), 0.9)
