"""Negative samplers and the filter of known triples, against counting and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxneg import kg

E, R = 7, 3


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, E - 1), st.integers(0, R - 1), st.integers(0, E - 1)), max_size=25),
    st.sampled_from(["head", "tail"]),
)
def test_membership_against_a_set(triples, side):
    known = kg.known_triples(np.array(triples, int).reshape(-1, 3), E, R)
    asked = np.array([(e, r, e) for e in range(E) for r in range(R)])
    cand = np.broadcast_to(np.arange(E), (len(asked), E))
    found = kg.is_known(known, jnp.asarray(asked), jnp.asarray(cand), side)
    listed = set(triples)
    expected = [
        [((e, r, c) if side == "tail" else (c, r, e)) in listed for c in range(E)] for e, r, _ in asked
    ]
    np.testing.assert_array_equal(found, expected)


def test_ids_whose_product_overflows_32_bits():
    n = 3_000_000
    triples = np.array([[n - 1, 800, n - 2], [n - 1, 800, 5], [n - 1, 799, 6], [0, 800, 5]])
    known = kg.known_triples(triples, n, 900)
    asked = jnp.array([[n - 1, 800, 0], [n - 1, 799, 0], [0, 800, 0]])
    cand = jnp.broadcast_to(jnp.array([5, 6, n - 2]), (3, 3))
    expected = [[True, False, True], [False, True, False], [True, False, False]]
    assert kg.is_known(known, asked, cand, "tail").tolist() == expected


def test_the_filter_rejects_known_triples_only():
    triples = jnp.array([[0, 0, 1], [2, 1, 3]])
    known = kg.known_triples([[0, 0, 1], [0, 0, 1], [0, 0, 2], [2, 1, 3]], E, R)
    cand = jnp.broadcast_to(jnp.arange(E), (2, E))
    filtered = kg.filter_known(jax.random.key(0), cand, triples, known, "tail", rounds=20)
    assert not bool(kg.is_known(known, triples, filtered, "tail").any())
    kept = ~np.asarray(kg.is_known(known, triples, cand, "tail"))
    np.testing.assert_array_equal(np.asarray(filtered)[kept], np.asarray(cand)[kept])
    np.testing.assert_array_equal(kg.filter_known(jax.random.key(0), cand, triples, known, "tail", 0), cand)
    # Where everything is known the draws stay.
    full = kg.known_triples([[0, 0, e] for e in range(E)], E)
    stuck = kg.filter_known(jax.random.key(0), cand[:1], triples[:1], full, "tail")
    assert stuck.shape == (1, E)


def test_the_last_round_is_uniform():
    triples, known = jnp.array([[0, 0, 1]]), kg.known_triples([[0, 0, 1]], E)
    stubborn = lambda key: jnp.ones((1, 60), jnp.int32)  # noqa: E731
    drawn = kg.filter_known(
        jax.random.key(0), stubborn(None), triples, known, "tail", rounds=3, draw=stubborn
    )
    assert len(np.unique(drawn)) > 3


def test_uniform():
    draws = np.asarray(kg.sample_uniform(jax.random.key(0), jnp.zeros(40, int), 200, E))
    assert draws.shape == (40, 200)
    assert stats.chisquare(np.bincount(draws.ravel(), minlength=E)).pvalue > 1e-3
    with pytest.raises(ValueError, match="num_entities: expected at least 1, got 0"):
        kg.sample_uniform(jax.random.key(0), jnp.zeros(1, int), 1, 0)


@pytest.mark.golden("lemon", "sampling*.npz")
def test_cardinalities(golden, x64):
    found = kg.relation_cardinality(golden["triples"], len(golden["tph"]))
    np.testing.assert_allclose(found.tph, golden["tph"], rtol=1e-12)
    np.testing.assert_allclose(found.hpt, golden["hpt"], rtol=1e-12)
    np.testing.assert_allclose(found.head_probability, golden["bern_p_head"], rtol=1e-12)


def test_bernoulli():
    triples = np.array([[0, 0, t] for t in range(1, 5)] + [[0, 0, 1], [0, 1, 1]])
    found = kg.relation_cardinality(triples, 3)
    np.testing.assert_allclose(found.head_probability, [0.8, 0.5, 0.5], rtol=1e-6)
    entities, is_head = kg.sample_bernoulli(
        jax.random.key(0), jnp.array([[0, 0, 1], [0, 1, 1]]), found.head_probability, 4000, E
    )
    assert entities.shape == is_head.shape == (2, 4000)
    np.testing.assert_allclose(np.mean(is_head, axis=1), [0.8, 0.5], atol=0.03)


@pytest.mark.golden("lemon", "sampling*.npz")
def test_hops(golden):
    triples, n = golden["triples"], len(golden["adj"])
    adjacency = np.zeros((n, n))
    adjacency[triples[:, 0], triples[:, 2]] = adjacency[triples[:, 2], triples[:, 0]] = 1
    np.testing.assert_array_equal(adjacency, golden["adj"])
    for name in golden:
        for mode, prefix in (("walk", "sans_official_k"), ("reach", "reach_le_k")):
            if name.startswith(prefix):
                sets = kg.khop_neighbourhoods(triples, n, int(name.removeprefix(prefix)), mode)
                found = np.zeros((n, n), bool)
                found[np.repeat(np.arange(n), np.diff(sets.start)), sets.members] = True
                np.testing.assert_array_equal(found, golden[name])


def test_walks_and_entities_without_neighbours():
    triples = [[0, 0, 1], [1, 1, 2], [3, 0, 3]]
    sets = kg.random_walk_neighbourhoods(jax.random.key(0), triples, 5, k=2, walks=30)
    members = [set(sets.members[a:b].tolist()) for a, b in zip(sets.start, sets.start[1:], strict=False)]
    assert members[:4] == [{0, 2}, {1}, {0, 2}, {3}]
    assert len(members[4]) > 1  # random entities
    lonely = kg.khop_neighbourhoods([[0, 0, 1]], 3, k=2, mode="reach")
    assert lonely.members[lonely.start[2] : lonely.start[3]].tolist() == [2]
    nothing = kg.candidate_sets([[1], []])
    draws = kg.sample_sans(jax.random.key(0), nothing, jnp.array([0, 1]), 200, 4)
    assert set(draws[0].tolist()) == {1}
    assert set(draws[1].tolist()) == {0, 1, 2, 3}
    empty = kg.candidate_sets([[], []])
    assert set(kg.sample_candidates(jax.random.key(0), empty, jnp.array([1]), 99, 3)[0].tolist()) == {0, 1, 2}


def test_mix():
    sets = kg.candidate_sets([[2]])
    draw = jax.jit(
        lambda mix: kg.sample_candidates(jax.random.key(0), sets, jnp.zeros(1, int), 20_000, 5, mix)
    )
    assert np.mean(draw(0.0) == 2) == 1
    assert np.mean(draw(0.5) == 2) == pytest.approx(0.6, abs=0.02)
    assert np.mean(draw(1.0) == 2) == pytest.approx(0.2, abs=0.02)


def test_cache_keeps_with_the_probability_of_the_score():
    """Gumbel top-1 of distinct candidates is a softmax over them."""
    scores = jnp.array([0.0, 1.0, 2.0, 0.5])
    cache = jnp.zeros((20_000, 1), jnp.int32)
    new = np.asarray(kg.nscaching_refresh(jax.random.key(0), cache, lambda c: scores[c], 40, 4))
    expected = np.asarray(jax.nn.softmax(scores), np.float64)
    assert (
        stats.chisquare(np.bincount(new[:, 0], minlength=4), 20_000 * expected / expected.sum()).pvalue > 1e-3
    )
    few = kg.nscaching_refresh(jax.random.key(1), jnp.zeros((5, 6), jnp.int32), lambda c: scores[c], 60, 4)
    assert all(set(row) == {0, 1, 2, 3} for row in few.tolist())
    drawn = kg.sample_cache(jax.random.key(2), jnp.array([[1, 2], [3, 3]]), jnp.array([1, 0, 0]), 50)
    assert set(drawn[0].tolist()) == {3}
    assert set(np.asarray(drawn[1:]).ravel().tolist()) == {1, 2}


@pytest.mark.slow
def test_kbgan_learns_to_propose_what_the_discriminator_finds_hard():
    key = jax.random.key(0)
    generator = kg.kge_init(key, "DistMult", 6, 1, 8, gamma=4.0)
    discriminator = kg.kge_init(key, "TransE", 6, 1, 8, gamma=4.0)
    entity = jnp.zeros((6, 8)).at[1:].set(3.0).at[5].set(0.01)  # 5 is as good as the true tail
    discriminator |= {"entity": entity, "relation": jnp.zeros((1, 8))}
    fast, still = optax.adam(0.05), optax.set_to_zero()
    state = kg.kbgan_init(generator, discriminator, fast, still)
    triples = jnp.tile(jnp.array([[0, 0, 0]]), (32, 1))

    @jax.jit
    def train(state, keys):
        def body(state, key):
            return kg.kbgan_step(key, state, triples, "tail", fast, still, num_entities=6, margin=1.0)

        return jax.lax.scan(body, state, keys)

    state, metrics = train(state, jax.random.split(key, 150))
    share = np.mean(np.asarray(metrics["negatives"][-20:]) == 5)
    assert share > 2 * np.mean(np.asarray(metrics["negatives"][:5]) == 5)
    assert np.mean(metrics["reward"][-20:]) > np.mean(metrics["reward"][:20])
    np.testing.assert_array_equal(state.discriminator["entity"], entity)


def test_bad_arguments():
    cases = [
        (lambda: kg.known_triples([[0, 0]], 3), r"triples: expected shape \[triples, 3\]"),
        (lambda: kg.known_triples([[0, 0, 1], [0, 0, 3]], 3), "tail of triple 1: .* from 0 to 2, got 3"),
        (lambda: kg.known_triples([[-1, 0, 1]], 3), "head of triple 0: expected an id from 0 to 2, got -1"),
        (lambda: kg.known_triples([[0, 2, 1]], 3, 2), "relation of triple 0: .* from 0 to 1, got 2"),
        (lambda: kg.khop_neighbourhoods([[0, 0, 1]], 2, 1, "both"), "mode: expected one of walk, reach"),
        (lambda: kg.khop_neighbourhoods([[0, 0, 1]], 2, 0), "k: expected at least 1, got 0"),
        (lambda: kg.khop_neighbourhoods([[0, 0, 9]], 2, 1), "tail of triple 0"),
        (lambda: kg.relation_cardinality([[0, 4, 1]], 2), "relation of triple 0"),
        (
            lambda: kg.is_known(
                kg.known_triples([[0, 0, 1]], 2), jnp.zeros((1, 3), int), jnp.zeros((1, 1)), "both"
            ),
            "side: expected one of head, tail",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="triples: expected integer ids"):
        kg.known_triples([[0.0, 0.0, 1.0]], 3)
