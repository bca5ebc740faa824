"""Mining: goldens, a brute force of the steps, NV-Retriever's rules, ids and lists, formats, bad input."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.retrieval import (
    NV_RETRIEVER,
    MinedNegatives,
    bm25_index,
    bm25_scores,
    bm25_search,
    dense_search,
    hybrid,
    labelled_lists,
    labelled_pairs,
    mine_candidates,
    mine_negatives,
    n_tuples,
    pair_similarities,
    triplets,
)

NOT_OPTIONS = {
    "query_emb",
    "doc_emb",
    "positive_mask",
    "num_negatives",
    "range_max_effective",
    "neg_index",
    "neg_score",
    "st_version",
}

LISTS = np.array([[0, 1, 2], [2, 1, 0]])


@pytest.mark.golden("eci", "mine_*.npz")
def test_golden(golden):
    options = {name.removeprefix("opt_"): golden[name].item() for name in golden if name not in NOT_OPTIONS}
    assert all(f"opt_{name}" in golden for name in options), "an array of this file has no test"
    count = int(golden["num_negatives"])
    sim, positive = (golden["query_emb"], golden["doc_emb"]), golden["positive_mask"]
    mined = mine_negatives(sim, positive, num_negatives=count, **options)
    np.testing.assert_array_equal(mined.index, golden["neg_index"])
    np.testing.assert_allclose(mined.score, golden["neg_score"], atol=1e-6)
    np.testing.assert_array_equal(mined.valid, golden["neg_index"] >= 0)
    # The default range is the effective one that the file states.
    stated = {**options, "range_max": int(golden["range_max_effective"])}
    np.testing.assert_array_equal(
        mine_negatives(sim, positive, num_negatives=count, **stated).index, golden["neg_index"]
    )


def problem(seed=0, queries=8, documents=30):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (queries, documents)).astype(np.float32)
    positive = rng.random((queries, documents)) < 0.08
    positive[np.arange(queries - 1), rng.integers(0, documents, queries - 1)] = True
    positive[-1] = False  # a query without positives
    return scores, positive


def unit_rows(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(scores, positive, num_negatives, range_min=0, range_max=None, **options):
    most = int(positive.sum(1).max())
    if range_max is None:
        many = {"absolute_margin", "relative_margin", "max_score"} & set(options)
        range_max = range_min + (10 if many else 1) * num_negatives + most
    rows = []
    for row, is_positive in zip(scores, positive, strict=True):
        pos = row[is_positive].min() if is_positive.any() else np.inf
        kept = []
        for document in np.argsort(-row, kind="stable")[: range_max + most]:
            s = row[document]
            dropped = (
                is_positive[document]
                or ("absolute_margin" in options and s + np.float32(options["absolute_margin"]) > pos)
                or (
                    "relative_margin" in options
                    and np.isfinite(pos)
                    and s > pos - abs(pos) * np.float32(options["relative_margin"])
                )
                or ("max_score" in options and s > options["max_score"])
                or ("min_score" in options and s < options["min_score"])
            )
            if not dropped:
                kept.append(int(document))
        kept = kept[range_min:range_max][:num_negatives]
        rows.append(kept + [-1] * (num_negatives - len(kept)))
    return np.array(rows)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0, 3, 28]),
    st.sampled_from([None, 5, 200]),
    st.fixed_dictionaries(
        {},
        optional={
            "absolute_margin": st.sampled_from([0.0, 0.3]),
            "relative_margin": st.sampled_from([0.05, 0.5]),
            "max_score": st.just(0.6),
            "min_score": st.just(-0.2),
        },
    ),
)
@pytest.mark.slow
def test_equal_to_brute_force(seed, range_min, range_max, options):
    if range_max is not None and range_max <= range_min:
        range_max = range_min + 1
    scores, positive = problem(seed)
    mined = mine_negatives(
        scores, positive, num_negatives=4, range_min=range_min, range_max=range_max, **options
    )
    expected = brute_force(scores, positive, 4, range_min, range_max, **options)
    np.testing.assert_array_equal(mined.index, expected)
    np.testing.assert_array_equal(np.asarray(mined.score) == -np.inf, expected < 0)


def test_rules_of_nv_retriever():
    scores, positive = problem()
    mined = {
        rule: mine_negatives(scores, positive, num_negatives=3, **options)
        for rule, options in NV_RETRIEVER.items()
    }
    pos = np.where(positive, scores, np.inf).min(1)
    has = np.isfinite(pos)
    assert np.all(mined["abs"].score <= 0.7)
    assert np.all(np.asarray(mined["margin_pos"].score)[has] <= pos[has, None] - 0.05)
    limit = pos[has] - np.abs(pos[has]) * np.float32(0.05)  # the sign-safe form: also where pos < 0
    assert (pos[has] < 0).any()
    assert np.all(np.asarray(mined["perc_pos"].score)[has] <= limit[:, None])
    assert np.all(np.asarray(mined["shifted"].score)[:, 0] < np.asarray(mined["naive"].score)[:, 2])


def test_margins_without_positives_and_with_a_positive_that_has_no_score():
    scores = np.array([[0.9, 0.8, 0.7], [0.9, -np.inf, 0.7]], np.float32)
    positive = np.array([[False, False, False], [False, True, False]])
    for margin in ("absolute_margin", "relative_margin"):
        mined = mine_negatives(scores, positive, num_negatives=2, **{margin: 0.1})
        assert mined.index.tolist() == [[0, 1], [-1, -1]]


def test_random_draws_survivors_without_replacement():
    scores, positive = problem()
    window = mine_negatives(scores, positive, num_negatives=6, range_min=2, range_max=8).index
    draw = jax.jit(
        lambda key: (
            mine_negatives(
                scores, positive, num_negatives=4, range_min=2, range_max=8, strategy="random", key=key
            ).index
        )
    )
    counts = np.zeros(8)
    for seed in range(40):
        chosen = np.asarray(draw(jax.random.key(seed)))
        for row, allowed in zip(chosen, np.asarray(window), strict=True):
            assert len(set(row)) == 4
            assert set(row) <= set(allowed)
        counts[2:] += (chosen[0][:, None] == np.asarray(window)[0]).sum(0)
    assert counts[2:].min() > 10  # 40 draws of 4 among 6: 26.7 expected each
    np.testing.assert_array_equal(draw(jax.random.key(0)), draw(jax.random.key(0)))


def test_random_leaves_missing_slots():
    scores, positive = problem(documents=3)
    mined = mine_negatives(scores, positive, num_negatives=5, strategy="random", key=jax.random.key(0))
    expected = np.minimum((~positive).sum(1), 5)
    np.testing.assert_array_equal(np.asarray(mined.valid).sum(1), expected)
    assert np.all((np.asarray(mined.index) >= 0) == np.asarray(mined.valid))


def test_padding_documents_are_never_mined():
    scores, positive = problem()
    padded = np.pad(scores, ((0, 0), (0, 5)), constant_values=-np.inf)
    mined = mine_negatives(padded, np.pad(positive, ((0, 0), (0, 5))), num_negatives=32, range_max=60)
    assert int(mined.index.max()) < scores.shape[1]
    np.testing.assert_array_equal(np.asarray(mined.valid).sum(1), (~positive).sum(1))


def test_rescoring_replaces_scores_before_the_margin():
    scores, positive = problem()
    better = np.random.default_rng(9).uniform(-1, 1, scores.shape).astype(np.float32)
    table = jnp.asarray(better)
    mined = mine_negatives(
        scores,
        positive,
        num_negatives=4,
        range_max=200,  # all documents are candidates: as if mined with the better scores
        absolute_margin=0.1,
        rescore=lambda queries, documents: table[queries[:, None], documents],
    )
    expected = mine_negatives(better, positive, num_negatives=4, range_max=200, absolute_margin=0.1)
    np.testing.assert_array_equal(mined.index, expected.index)
    np.testing.assert_allclose(mined.score, expected.score)


def test_jit_vmap_bfloat16():
    scores, positive = problem()
    options = {"num_negatives": 3, "relative_margin": 0.05, "max_positives": int(positive.sum(1).max())}
    plain = mine_negatives(scores, positive, **options)
    mine = jax.jit(lambda s, m: mine_negatives(s, m, **options))
    np.testing.assert_array_equal(mine(scores, positive).index, plain.index)
    both = jax.vmap(mine)(jnp.stack([scores, scores]), jnp.stack([positive, positive]))
    np.testing.assert_array_equal(both.index[1], plain.index)
    low = mine(jnp.asarray(scores, jnp.bfloat16), positive)
    assert low.score.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(scores, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(low.index, mine(rounded, positive).index)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(axis_type):
    rng = np.random.default_rng(0)
    q, d = unit_rows(rng, 16, 8), unit_rows(rng, 30, 8)
    positive = rng.random((16, 30)) < 0.1
    options = {"num_negatives": 3, "relative_margin": 0.05, "max_positives": int(positive.sum(1).max())}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    placed = jax.device_put(q, rows), jax.device_put(d, whole), jax.device_put(positive, rows)
    key = jax.random.key(3)
    for extra in ({}, {"strategy": "random", "key": key}):
        with jax.set_mesh(mesh):
            ours = jax.jit(lambda q, d, m, extra=extra: mine_negatives((q, d), m, **options, **extra))(
                *placed
            )
            lists = jax.jit(lambda a: hybrid(a, a[:, ::-1], "rrf", 4))(ours.index)
        plain = mine_negatives((q, d), positive, **options, **extra)
        np.testing.assert_array_equal(ours.index, plain.index)
        np.testing.assert_array_equal(lists, hybrid(plain.index, plain.index[:, ::-1], "rrf", 4))


def test_ids_and_lists_give_what_the_mask_gives():
    """Embeddings with positives as a mask or as ids, and the candidates of a search."""
    rng = np.random.default_rng(4)
    q, d = unit_rows(rng, 8, 4), unit_rows(rng, 30, 4)
    _, positive = problem()
    most = int(positive.sum(1).max())
    ids = np.full((8, most), -1)
    for row, mask in zip(ids, positive, strict=True):
        row[: mask.sum()] = np.flatnonzero(mask)
    repeated = np.concatenate([ids, ids[:, :1]], axis=1)
    options = {"num_negatives": 4, "relative_margin": 0.05, "range_max": 12}
    by_mask = mine_negatives((q, d), positive, **options)
    assert 0 < np.mean(by_mask.valid) < 1
    for listed in (ids, repeated):
        by_ids = mine_negatives((q, d), positive_ids=listed, max_positives=most, **options)
        np.testing.assert_array_equal(by_ids.index, by_mask.index)
    blocked = mine_negatives((q, d), positive_ids=ids, block_queries=3, block_documents=7, **options)
    np.testing.assert_array_equal(blocked.index, by_mask.index)
    found = dense_search(q, d, 12 + most)
    shuffled = rng.permutation(12 + most)
    pairs = pair_similarities(q, d, ids)
    lists = mine_candidates(found.index[:, shuffled], found.score[:, shuffled], ids, pairs, **options)
    np.testing.assert_array_equal(lists.index, by_mask.index)
    everything = mine_negatives((q, d), positive_ids=ids, num_negatives=4, include_positives=True)
    np.testing.assert_array_equal(everything.index, dense_search(q, d, 4).index)
    nothing = mine_negatives((q, d), positive_ids=ids[:, :0], num_negatives=4)
    np.testing.assert_array_equal(nothing.index, everything.index)


def test_mining_over_bm25_finds_nothing_for_an_empty_query():
    docs = np.array([[0, 1, -1], [1, 2, -1], [2, 2, 3], [0, 0, 0]])
    queries = jnp.array([[0, 1], [2, -1], [9, -1], [-1, -1]])
    for variant in ("lucene", "bm25plus"):
        index = bm25_index(docs, 4, variant=variant)
        found = bm25_search(index, queries, 3, block_queries=3)
        scores = np.asarray(bm25_scores(index, queries))
        for row, query in enumerate([{0, 1}, {2}, set(), set()]):
            holds = [j for j in np.argsort(-scores[row], kind="stable") if query & set(docs[j].tolist())][:3]
            assert found.index[row].tolist() == holds + [-1] * (3 - len(holds))
        mined = mine_candidates(found.index, found.score, jnp.array([[0], [1], [2], [3]]), num_negatives=2)
        assert mined.index.tolist() == [[3, 1], [2, -1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_documents(axis_type):
    rng = np.random.default_rng(0)
    q, d = unit_rows(rng, 16, 8), unit_rows(rng, 48, 8)
    ids = rng.integers(-1, 48, (16, 2))
    options = {"num_negatives": 3, "relative_margin": 0.05}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    placed = (
        jax.device_put(q, NamedSharding(mesh, PartitionSpec())),
        jax.device_put(d, NamedSharding(mesh, PartitionSpec("data"))),
    )
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda q, d: mine_negatives((q, d), positive_ids=ids, mesh=mesh, **options))(*placed)
    np.testing.assert_array_equal(ours.index, mine_negatives((q, d), positive_ids=ids, **options).index)


def test_output_formats():
    mined = MinedNegatives(
        np.array([[5, 6], [7, -1]]),
        np.array([[0.4, 0.3], [0.2, -np.inf]]),
        np.array([[True, True], [True, False]]),
    )
    queries, positives = np.array([0, 0, 1]), np.array([1, 2, 3])
    assert triplets(queries, positives, mined).tolist() == [
        [0, 1, 5],
        [0, 1, 6],
        [0, 2, 5],
        [0, 2, 6],
        [1, 3, 7],
    ]
    assert n_tuples(queries, positives, mined).tolist() == [[0, 1, 5, 6], [0, 2, 5, 6]]
    ids, labels = labelled_lists(np.array([[1, 2], [3, -1]]), mined)
    assert ids.tolist() == [[1, 2, 5, 6], [3, -1, 7, -1]]
    assert labels.tolist() == [[1, 1, 0, 0], [1, -1, 0, -1]]
    pairs = labelled_pairs(np.array([[1, 2], [3, -1]]), mined)
    assert pairs.tolist() == [[0, 1, 1], [0, 2, 1], [0, 5, 0], [0, 6, 0], [1, 3, 1], [1, 7, 0]]


def test_bad_input():
    scores, positive = problem()
    q = np.eye(4, dtype=np.float32)

    def mine(sim=scores, mask=positive, **options):
        return mine_negatives(sim, mask, **{"num_negatives": 2, **options})

    cases = [
        (ValueError, "strategy: expected one of random, top, got 'best'", lambda: mine(strategy="best")),
        (ValueError, "key: expected a random key", lambda: mine(strategy="random")),
        (ValueError, "num_negatives: expected at least 1, got 0", lambda: mine(num_negatives=0)),
        (ValueError, "range_min: expected at least 0, got -1", lambda: mine(range_min=-1)),
        (
            ValueError,
            "range_max: expected more than range_min = 5, got 5",
            lambda: mine(range_min=5, range_max=5),
        ),
        (
            ValueError,
            r"positive_mask: expected shape \(8, 30\), got \(8, 2\)",
            lambda: mine(mask=positive[:, :2]),
        ),
        (TypeError, "positive_mask: expected a boolean", lambda: mine(mask=positive * 1)),
        (ValueError, "sim: expected .* at least one of each", lambda: mine(scores[:0], positive[:0])),
        (
            ValueError,
            "sim: expected embeddings of shapes",
            lambda: mine((q, q[:, :2]), np.zeros((4, 4), bool)),
        ),
        (ValueError, "sim: expected scores or .*, got 3 arrays", lambda: mine((q, q, q))),
        (ValueError, r"sim\[1\]: expected rows of length 1", lambda: mine((q, 2 * q), np.eye(4) > 0)),
        (ValueError, "max_positives: expected a number under jit", lambda: jax.jit(mine)(scores, positive)),
        (ValueError, "positive_ids: expected either", lambda: mine(positive_ids=np.zeros((8, 1), int))),
        (ValueError, "positive_ids: expected either", lambda: mine(mask=None)),
        (
            ValueError,
            "positive_ids: expected document numbers below 30; query 2 has 31",
            lambda: mine(mask=None, positive_ids=np.array([[0], [-1], [31], [0], [0], [0], [0], [0]])),
        ),
        (
            ValueError,
            r"positive_ids: expected shape \[8, positives\], got \(4, 1\)",
            lambda: mine(mask=None, positive_ids=np.zeros((4, 1), int)),
        ),
        (TypeError, "positive_ids: expected integer", lambda: mine(mask=None, positive_ids=np.zeros((8, 1)))),
        (ValueError, "mesh: expected None where scores", lambda: mine(mesh=jax.make_mesh((8,), ("data",)))),
        (
            ValueError,
            "positive_scores: expected the positives' scores",
            lambda: mine_candidates(LISTS, LISTS * 1.0, LISTS, num_negatives=1, relative_margin=0.1),
        ),
        (
            ValueError,
            r"positive_scores: expected the shape of positive_ids, \(2, 3\)",
            lambda: mine_candidates(
                LISTS, LISTS * 1.0, LISTS, LISTS[:1], num_negatives=1, relative_margin=0.1
            ),
        ),
        (
            ValueError,
            r"scores: expected the shape of candidates, \(2, 3\), got \(2, 2\)",
            lambda: mine_candidates(LISTS, LISTS[:, :2] * 1.0, LISTS, num_negatives=1),
        ),
        (
            ValueError,
            r"candidates: expected shape .* got \(0, 3\)",
            lambda: mine_candidates(LISTS[:0], LISTS[:0] * 1.0, LISTS[:0], num_negatives=1),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
