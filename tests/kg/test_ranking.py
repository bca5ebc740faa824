"""Filtered ranks: the official evaluator's, brute force with ties, numbers that are none, other models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import kg


@pytest.mark.golden("lemon", "ranks_*.npz")
def test_official_ranks(golden, x64):
    model = str(golden["model"])
    params = {
        name: jnp.asarray(golden[name])
        for name in ("entity", "relation", "gamma", "modulus")
        if name in golden
    }
    width = params["relation"].shape[1] // kg.MODELS[model].relation_width
    np.testing.assert_allclose((golden["gamma"] + 2) / width, golden["embedding_range"])
    ranks = kg.filtered_ranks(
        params, jnp.asarray(golden["test_triples"]), golden["all_triples"], chunk=5, model=model
    )
    expected = np.stack([golden["rank_head"], golden["rank_tail"]], axis=1)
    np.testing.assert_array_equal(ranks.realistic, expected)
    metrics = kg.ranking_metrics(ranks.realistic)
    for name in golden:
        if name.startswith("official_"):
            ours = metrics[name.removeprefix("official_").replace("HITS_", "HITS@")]
            np.testing.assert_allclose(ours, golden[name], rtol=1e-10)


def brute(scores, known, test):
    """Optimistic and pessimistic ranks of ``scores(h, r, t)``, entity by entity."""
    known, found = {tuple(map(int, triple)) for triple in known}, []
    for h, r, t in np.asarray(test).tolist():
        row = []
        for true, replaced in ((h, lambda e: (e, r, t)), (t, lambda e: (h, r, e))):  # noqa: B023
            own = scores[(*replaced(true),)]
            others = [
                scores[replaced(e)] for e in range(scores.shape[0]) if e != true and replaced(e) not in known
            ]
            higher = sum(s > own for s in others)
            row.append((1 + higher, 1 + higher + sum(s == own for s in others)))
        found.append(row)
    return np.array(found)


@pytest.mark.parametrize("model", ["TransE", "ComplEx"])
def test_ties_against_brute_force(model):
    rng = np.random.default_rng(0)
    params = kg.kge_init(jax.random.key(0), model, 12, 2, 3, gamma=4.0)
    # Small integers: sums are exact, and many scores are equal.
    params["entity"] = jnp.asarray(rng.integers(-1, 2, params["entity"].shape), jnp.float32)
    params["relation"] = jnp.asarray(rng.integers(-1, 2, params["relation"].shape), jnp.float32)
    known, test = rng.integers(0, (12, 2, 12), (60, 3)), rng.integers(0, (12, 2, 12), (9, 3))
    ids = np.stack(np.meshgrid(np.arange(12), np.arange(2), np.arange(12), indexing="ij"), -1).reshape(-1, 3)
    scores = np.asarray(kg.kge_score(model, params, *jnp.asarray(ids).T)).reshape(12, 2, 12)
    expected = brute(scores, known, test)
    for chunk in (1, 4, 100):
        ranks = kg.filtered_ranks(params, jnp.asarray(test), known, chunk, model=model)
        np.testing.assert_array_equal(ranks.optimistic, expected[..., 0])
        np.testing.assert_array_equal(ranks.pessimistic, expected[..., 1])
        np.testing.assert_array_equal(ranks.realistic, expected.mean(-1))
    assert (ranks.optimistic < ranks.pessimistic).any()


def test_a_model_of_ones_own_and_one_program():
    """Scores come as a function; known triples as a set that may be traced."""
    table = jax.random.normal(jax.random.key(0), (2, 6, 2, 6))
    params = {"entity": jnp.zeros((6, 1)), "relation": jnp.zeros((2, 1))}

    def scores(params, entity, relation, side):
        del params
        return table[0, entity, relation, :] if side == "tail" else table[0, :, relation, entity]

    test, known = np.array([[0, 1, 2], [3, 0, 3]]), np.array([[0, 1, 4], [0, 1, 2], [5, 1, 2]])
    expected = brute(np.asarray(table[0]), known, test)
    sorted_triples = kg.known_triples(known, 6, 2)
    ranks = jax.jit(lambda x, k: kg.filtered_ranks(params, x, k, 2, model=scores))(test, sorted_triples)
    np.testing.assert_array_equal(ranks.optimistic, expected[..., 0])


def test_scores_that_are_no_numbers_rank_last():
    params = {"entity": jnp.array([[0.0], [1.0], [2.0], [3.0]]), "relation": jnp.zeros((1, 1)), "gamma": 1.0}
    test = jnp.array([[0, 0, 1]])
    other = params | {"entity": params["entity"].at[3].set(jnp.nan)}
    before = kg.filtered_ranks(params, test, test, model="TransE")
    after = kg.filtered_ranks(other, test, test, model="TransE")
    assert (before.realistic[0, 1], after.realistic[0, 1]) == (2, 3)
    own = params | {"entity": params["entity"].at[1].set(jnp.nan)}
    ranks = kg.filtered_ranks(own, test, test, model="TransE")
    assert ranks.optimistic[0, 1] == ranks.pessimistic[0, 1] == 4


def test_an_entity_that_training_has_not_seen_and_padding_rows():
    params = kg.kge_init(jax.random.key(0), "TransE", 5, 1, 4, gamma=6.0, row_multiple=8)
    test = jnp.array([[0, 0, 4]])
    ranks = kg.filtered_ranks(params, test, kg.known_triples([[0, 0, 1]], 5), model="TransE")
    assert 1 <= float(ranks.realistic[0, 1]) <= 4  # of five, one of which is filtered
    assert kg.filtered_ranks(params, test[:0], [[0, 0, 1]], model="TransE").optimistic.shape == (0, 2)


def test_bad_arguments():
    params = kg.kge_init(jax.random.key(0), "TransE", 5, 1, 4, gamma=6.0)
    test, known = jnp.array([[0, 0, 4]]), [[0, 0, 1]]
    with pytest.raises(ValueError, match="test: tail of triple 0: expected an id from 0 to 4, got 5"):
        kg.filtered_ranks(params, jnp.array([[0, 0, 5]]), known, model="TransE")
    with pytest.raises(ValueError, match="test: relation of triple 0: expected an id from 0 to 0, got 1"):
        kg.filtered_ranks(params, jnp.array([[0, 1, 4]]), known, model="TransE")
    with pytest.raises(ValueError, match="chunk: expected at least 1, got 0"):
        kg.filtered_ranks(params, test, known, 0, model="TransE")
    with pytest.raises(ValueError, match="model: expected one of TransE"):
        kg.filtered_ranks(params, test, known, model="nothing")
    with pytest.raises(ValueError, match="num_entities: expected from 1 to the table's 5 rows, got 6"):
        kg.filtered_ranks(params, test, kg.known_triples(known, 6), model="TransE")
    with pytest.raises(ValueError, match="ranks: expected at least one, got none"):
        kg.ranking_metrics(jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        kg.ranking_metrics(jnp.ones(2), (0,))
