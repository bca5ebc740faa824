"""Search: brute force with ties, any blocking, sharded documents, no [queries, documents] matrix."""

import importlib.util

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.retrieval import dense_search, mine_negatives, pair_similarities, top_documents

MEGABYTE = 2**20


def embeddings(queries=16, documents=203, dim=8, seed=0):
    """Small integers: products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    q, d = (rng.integers(-2, 3, (n, dim)).astype(np.float32) for n in (queries, documents))
    d[7] = 0  # an empty text
    q[3] = 0
    return q, d


def brute_force(q, d, k):
    scores = np.where((d != 0).any(1) & (q != 0).any(1)[:, None], q @ d.T, -np.inf)
    index = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    score = np.take_along_axis(scores, index, axis=1)
    return np.where(np.isfinite(score), index, -1), score


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([1, 5, 40]), st.sampled_from([2, 60]))
def test_top_documents_equals_a_stable_sort(seed, k, values):
    scores = np.random.default_rng(seed).integers(0, values, (4, 900)).astype(np.float32)
    scores[0, 5:] = -np.inf
    found = top_documents(scores, k)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(found.score, expected)
    np.testing.assert_array_equal(found.index, np.where(np.isfinite(expected), order, -1))


@pytest.mark.parametrize(("block_queries", "block_documents"), [(64, 2000), (5, 256), (16, 300)])
def test_any_blocking_finds_the_same(block_queries, block_documents):
    q, d = embeddings(documents=1003)
    found = dense_search(q, d, 6, block_queries=block_queries, block_documents=block_documents)
    index, score = brute_force(q, d, 6)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.score, score)
    assert np.all(found.index[3] == -1)  # an empty query finds nothing


def test_more_asked_for_than_there_is():
    q, d = embeddings(documents=9)
    found = dense_search(q, d, 12)
    assert found.index.shape == (16, 12)
    np.testing.assert_array_equal(found.index[:, :9], brute_force(q, d, 9)[0])
    assert np.all(np.asarray(found.index[:, 9:]) == -1)
    assert np.all(np.asarray(found.score[:, 9:]) == -np.inf)
    assert top_documents(jnp.ones((2, 3)), 5).index.tolist() == [[0, 1, 2, -1, -1]] * 2


def test_low_precision_is_accumulated_in_float32():
    q, d = embeddings()
    found = dense_search(jnp.asarray(q, jnp.bfloat16), jnp.asarray(d, jnp.bfloat16), 6)
    assert found.score.dtype == jnp.float32
    np.testing.assert_array_equal(found.index, brute_force(q, d, 6)[0])


@pytest.mark.parametrize("queries", [16, 13])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_documents(axis_type, queries):
    """203 documents on 8 devices: the last shard is padded; 13 queries are not divided."""
    q, d = embeddings(queries)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    ids = np.random.default_rng(0).integers(-1, 203, (queries, 3))
    with jax.set_mesh(mesh):
        found, pairs = jax.jit(
            lambda q, d: (
                dense_search(q, d, 30, mesh=mesh),
                pair_similarities(q, d, jnp.asarray(ids), mesh=mesh, block_rows=4),
            )
        )(jnp.asarray(q), jnp.asarray(d))
    index, score = brute_force(q, d, 30)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_array_equal(found.score, score)
    np.testing.assert_array_equal(
        pairs, np.where(ids >= 0, (q @ d.T)[np.arange(queries)[:, None], ids], -np.inf)
    )
    np.testing.assert_array_equal(pairs, pair_similarities(q, d, ids))


def test_a_million_documents_need_no_matrix():
    """Read from the compiled program: what it holds beside arguments and results."""
    queries, documents, dim, k = 4096, 2**20, 64, 100
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((queries, dim), (documents, dim))]
    positive = jax.ShapeDtypeStruct((queries, 2), jnp.int32)
    mine = jax.jit(
        lambda q, d, p: mine_negatives((q, d), positive_ids=p, num_negatives=k // 10, relative_margin=0.05)
    )
    held = mine.lower(*shapes, positive).compile().memory_analysis().temp_size_in_bytes
    matrix = 4 * queries * documents
    assert matrix == 16 * 1024 * MEGABYTE
    assert held < 300 * MEGABYTE


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_million_documents_on_a_pod():
    from jax.experimental import topologies

    topology = topologies.get_topology_desc("v5e:4x4", platform="tpu")
    mesh = topologies.make_mesh(topology, (16,), ("data",))
    whole, sharded = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    q = jax.ShapeDtypeStruct((4096, 768), jnp.bfloat16, sharding=whole)
    d = jax.ShapeDtypeStruct((2**20, 768), jnp.bfloat16, sharding=sharded)
    positive = jax.ShapeDtypeStruct((4096, 2), jnp.int32, sharding=whole)
    mine = jax.jit(
        lambda q, d, p: mine_negatives(
            (q, d), positive_ids=p, num_negatives=8, relative_margin=0.05, mesh=mesh
        )
    )
    memory = mine.lower(q, d, positive).compile().memory_analysis()
    assert memory.argument_size_in_bytes < 120 * MEGABYTE  # a sixteenth of the documents, all queries
    assert memory.temp_size_in_bytes < 400 * MEGABYTE


def test_bad_input():
    q, d = embeddings()
    mesh = jax.make_mesh((8,), ("data",))
    cases = [
        (r"expected embeddings of shapes .*\(16, 8\) and \(203, 3\)", lambda: dense_search(q, d[:, :3], 2)),
        (r"at least one of each, got \(0, 8\)", lambda: dense_search(q[:0], d, 2)),
        ("k: expected at least 1, got 0", lambda: dense_search(q, d, 0)),
        ("block_documents: expected at least 1, got 0", lambda: dense_search(q, d, 1, block_documents=0)),
        ("axis_name: expected one of data, got 'x'", lambda: dense_search(q, d, 1, mesh=mesh, axis_name="x")),
        ("k: expected at least 1, got 0", lambda: top_documents(q, 0)),
        (r"scores: expected shape \[queries, documents\]", lambda: top_documents(q[0], 1)),
        (
            r"ids: expected shape \[16, columns\], got \(2, 2\)",
            lambda: pair_similarities(q, d, np.eye(2, dtype=int)),
        ),
        (
            "block_rows: expected at least 1, got 0",
            lambda: pair_similarities(q, d, np.zeros((16, 1), int), block_rows=0),
        ),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
