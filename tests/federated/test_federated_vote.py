"""Votes: official counts, ties, abstention, devices, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.federated import federated_vote


@pytest.mark.golden("fedka", "federated_vote*.npz")
def test_official_counts(golden):
    for i in range(int(golden["n_cases"])):
        votes = federated_vote(jnp.asarray(golden[f"case{i}_preds"]), int(golden[f"case{i}_num_classes"]))
        np.testing.assert_array_equal(votes.counts, golden[f"case{i}_counts"])
        np.testing.assert_array_equal(votes.labels, golden[f"case{i}_label"])
        np.testing.assert_allclose(votes.agreement, golden[f"case{i}_agreement"], rtol=1e-6)
        most = np.asarray(votes.counts) == np.asarray(votes.counts).max(1, keepdims=True)
        np.testing.assert_array_equal(most.sum(1) > 1, golden[f"case{i}_is_tie"])


def test_ties_by_likelihood_among_the_tied_alone():
    preds = jnp.array([[0], [1]])
    logp = jnp.log(jnp.array([[[0.5, 0.1, 0.4]], [[0.1, 0.45, 0.45]]]))
    assert federated_vote(preds, 3).labels.tolist() == [0]
    assert federated_vote(preds, 3, logp=logp, tie="likelihood").labels.tolist() == [0]
    swapped = jnp.log(jnp.array([[[0.4, 0.3, 0.3]], [[0.1, 0.45, 0.45]]]))
    assert federated_vote(preds, 3, logp=swapped, tie="likelihood").labels.tolist() == [1]


def test_who_does_not_vote_does_not_count():
    preds = jnp.array([[2], [2], [1]])
    logp = jnp.full((3, 1, 3), jnp.nan).at[2].set(-1.0)
    voters = jnp.array([False, False, True])
    votes = federated_vote(preds, 3, logp=logp, tie="likelihood", voters=voters)
    assert votes.labels.tolist() == [1]
    assert votes.agreement.tolist() == [1.0]
    nobody = federated_vote(preds, 3, voters=jnp.zeros(3, bool))
    assert nobody.agreement.tolist() == [0.0]
    assert nobody.counts.sum() == 0


def test_a_class_that_does_not_exist_is_no_vote():
    votes = federated_vote(jnp.array([[-1], [7], [1]]), 2)
    assert votes.counts.tolist() == [[0, 1]]


def test_devices_add_up():
    rng = np.random.default_rng(0)
    preds = jnp.asarray(rng.integers(0, 3, (8, 20)))
    logp = jnp.asarray(rng.normal(size=(8, 20, 3)), jnp.float32)
    spread = jax.jit(
        jax.shard_map(
            lambda p, l: federated_vote(p, 3, logp=l, tie="likelihood", axis_name="client"),
            mesh=jax.make_mesh(
                (4,), ("client",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4]
            ),
            in_specs=jax.P("client"),
            out_specs=jax.P(),
        )
    )
    for ours, theirs in zip(
        spread(preds, logp), federated_vote(preds, 3, logp=logp, tie="likelihood"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("preds", "options", "error", "message"),
    [
        (jnp.ones((2, 3)), {}, TypeError, "preds: expected integers"),
        (jnp.ones(3, int), {}, ValueError, r"preds: expected \[clients, examples\]"),
        (jnp.ones((2, 3), int), {"num_classes": 0}, ValueError, "num_classes: expected at least 1"),
        (jnp.ones((2, 3), int), {"tie": "coin"}, ValueError, "tie: expected one of lowest, likelihood"),
        (jnp.ones((2, 3), int), {"tie": "likelihood"}, ValueError, r"logp: expected shape \(2, 3, 4\)"),
        (
            jnp.ones((2, 3), int),
            {"voters": jnp.ones(3, bool)},
            ValueError,
            "voters: expected one for each of 2",
        ),
    ],
)
def test_bad_input(preds, options, error, message):
    with pytest.raises(error, match=message):
        federated_vote(preds, **({"num_classes": 4} | options))
