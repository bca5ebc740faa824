"""BM25: goldens, bm25s beside ours on text, both layouts, sharding, bad input."""

import bm25s
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.retrieval import bm25_index, bm25_scores, token_ids, tokenize
from jaxneg.retrieval.bm25 import VARIANTS

# The specification: float32 tolerance 2e-6; a score of 32 has no nearer float32 neighbour than 4e-6.
TOLERANCE = 2e-6
jitted_scores = jax.jit(bm25_scores)  # one compilation for all variants of a shape
INPUTS = {"docs", "queries", "vocab_size", "k1", "b", "delta"}


def golden_scores(golden, name, table):
    variant = "okapi" if name.endswith("okapi") else name.split("_")[1]
    options = {option: float(golden[option]) for option in ("k1", "b", "delta")}
    index = bm25_index(golden["docs"], int(golden["vocab_size"]), variant=variant, table=table, **options)
    return jitted_scores(index, golden["queries"])


@pytest.mark.golden("eci", "bm25_*.npz")
@pytest.mark.parametrize("table", [True, False])
def test_golden_float32(golden, table):
    for name in set(golden) - INPUTS:
        ours = golden_scores(golden, name, table)
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, golden[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


@pytest.mark.golden("eci", "bm25_*.npz")
@pytest.mark.parametrize("table", [True, False])
def test_golden_float64(golden, table, x64):
    for name in set(golden) - INPUTS:
        if not name.startswith("bm25s"):
            ours = golden_scores(golden, name, table)
            np.testing.assert_allclose(ours, golden[name], atol=1e-12, rtol=0, err_msg=name)


def collection(seed=0, documents=24, vocabulary=30):
    rng = np.random.default_rng(seed)
    docs = rng.zipf(1.5, (documents, 20)).clip(max=vocabulary).astype(np.int32) - 1
    docs[:, 10:][rng.random((documents, 10)) < 0.5] = -1
    queries = rng.integers(-1, vocabulary + 3, (16, 5)).astype(np.int32)  # some outside of the vocabulary
    return docs, queries, vocabulary


@pytest.mark.parametrize("variant", VARIANTS)
def test_layouts_agree(variant):
    docs, queries, vocabulary = collection()
    scores = [
        bm25_scores(bm25_index(docs, vocabulary, variant=variant, table=table), queries)
        for table in (True, False)
    ]
    np.testing.assert_allclose(*scores, atol=5e-6)


TEXTS = [
    "the wing of a plane carries the plane",
    "a plane lands at the airport near the river",
    "rivers carry water to the sea",
    "the sea and the airport",
    "bread is baked from flour and water",
]
QUERIES = ["plane at the airport", "water of rivers", "plane plane wing", "unknown words only"]


@pytest.mark.parametrize(
    ("variant", "method"),
    [
        ("robertson", "robertson"),
        ("lucene", "lucene"),
        ("atire", "atire"),
        ("bm25l", "bm25l"),
        ("bm25plus", "bm25+"),
    ],
)
def test_equal_to_bm25s_on_text(variant, method):
    docs, queries = tokenize(TEXTS), tokenize(QUERIES)
    peer = bm25s.BM25(method=method, k1=1.5, b=0.75, delta=0.5)
    peer.index(docs, show_progress=False)
    expected = [peer.get_scores(query) if query else np.zeros(len(docs)) for query in queries[:3]]
    ids = token_ids(docs)
    index = bm25_index(ids.ids, len(ids.vocabulary), variant=variant)
    ours = bm25_scores(index, token_ids(queries, ids.vocabulary).ids)
    np.testing.assert_allclose(ours[:3], expected, atol=TOLERANCE)
    assert np.all(np.asarray(ours[3]) == 0)


def test_multiplicity_and_padding():
    docs, _, vocabulary = collection()
    index = bm25_index(docs, vocabulary, variant="bm25plus")
    once, twice, padded = (bm25_scores(index, jnp.array([q])) for q in ([3, -1], [3, 3], [-1, 3]))
    np.testing.assert_allclose(2 * once, twice, rtol=1e-6)
    np.testing.assert_array_equal(once, padded)
    assert bool(jnp.all(once > 0))  # the lift reaches documents without the term
    assert bool(jnp.all(bm25_scores(index, jnp.full((2, 3), -1)) == 0))


def test_jit_and_vmap():
    docs, queries, vocabulary = collection()
    for table in (True, False):
        index = bm25_index(docs, vocabulary, table=table)
        plain = bm25_scores(index, queries)
        np.testing.assert_allclose(jax.jit(bm25_scores)(index, queries), plain, rtol=1e-6)
        split = jax.vmap(bm25_scores, in_axes=(None, 0))(index, queries.reshape(4, 4, 5))
        np.testing.assert_allclose(split.reshape(plain.shape), plain, rtol=1e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("table", [True, False])
def test_sharded_equals_unsharded(axis_type, table):
    docs, queries, vocabulary = collection()
    index = bm25_index(docs, vocabulary, variant="bm25l", table=table)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    plain = bm25_scores(index, queries)
    placed = jax.device_put(queries, NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        sharded = jax.jit(bm25_scores)(jax.device_put(index, NamedSharding(mesh, PartitionSpec())), placed)
    np.testing.assert_allclose(sharded, plain, rtol=1e-6)
    assert sharded.sharding.spec[0] == "data"


def test_a_collection_of_empty_texts():
    index = bm25_index(np.full((3, 2), -1), 5)
    assert bool(jnp.all(bm25_scores(index, jnp.array([[1, 2]])) == 0))
    assert bool(
        jnp.all(bm25_scores(bm25_index(np.full((3, 2), -1), 5, table=False), jnp.array([[1, 2]])) == 0)
    )


def test_bad_input():
    docs = np.array([[0, 1], [5, -1]])
    cases = [
        (
            ValueError,
            "variant: expected one of atire, bm25l, .*, got 'bm26'",
            lambda: bm25_index(docs, 6, variant="bm26"),
        ),
        (ValueError, "docs: .*vocab_size = 4; document 1 has 5", lambda: bm25_index(docs, 4)),
        (ValueError, "docs: expected shape .* at least one document", lambda: bm25_index(docs[:0], 6)),
        (TypeError, "docs: expected integer", lambda: bm25_index(docs * 1.0, 6)),
        (ValueError, r"b: expected a number in \[0, 1\], got 2", lambda: bm25_index(docs, 6, b=2)),
        (ValueError, "k1: expected a number in .*, got -1", lambda: bm25_index(docs, 6, k1=-1)),
        (ValueError, "delta: expected a number in .*, got nan", lambda: bm25_index(docs, 6, delta=np.nan)),
        (TypeError, "queries: expected integer", lambda: bm25_scores(bm25_index(docs, 6), jnp.ones((1, 2)))),
        (
            ValueError,
            r"queries: expected shape \[queries, length\], got \(2,\)",
            lambda: bm25_scores(bm25_index(docs, 6), docs[0]),
        ),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_tokens():
    assert tokenize(["The Wing, of 2 planes!", ""]) == [["wing", "2", "planes"], []]
    assert tokenize(["two planes"], stemmer=lambda word: word.rstrip("s")) == [["two", "plane"]]
    assert tokenize(["the wing"], stop_words=()) == [["the", "wing"]]
    assert len(tokenize([" ".join(sorted(tokenize.__kwdefaults__["stop_words"]))])[0]) == 0
    ids, vocabulary = token_ids([["b", "a"], ["a"], []])
    assert ids.tolist() == [[0, 1], [1, -1], [-1, -1]]
    assert vocabulary == {"b": 0, "a": 1}
    assert token_ids([["a", "new"]], vocabulary).ids.tolist() == [[1]]
