"""The partition by knowledge: golden, a loop with a counter, several hops, agreement, wrong arguments."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.language import knowledge_partition, multi_hop_partition, partition_agreement

REFUSAL = 5
_partition = jax.jit(knowledge_partition, static_argnums=(2, 3))


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
def test_golden_partition(golden):
    found = knowledge_partition(
        golden["samples"], golden["sample_gold"], int(golden["idk_id"]), float(golden["tau"])
    )
    np.testing.assert_array_equal(found, golden["partition"])


def _case(seed, questions=16, samples=10, answers=6):
    random = np.random.default_rng(seed)
    return random.integers(-1, answers, (questions, samples)), random.integers(0, answers - 1, questions)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([3, 6]), st.sampled_from([0.3, 0.5, 0.7]))
def test_equals_a_counter(seed, answers, tau):
    samples, gold = _case(seed, answers=answers)
    expected = []
    for row, right in zip(samples.tolist(), gold, strict=True):
        # most_common keeps the order in which equal counts were seen.
        majority, count = Counter(row).most_common(1)[0]
        if count / len(row) < tau or majority in (-1, REFUSAL):
            expected.append(2)
        else:
            expected.append(0 if majority == right else 1)
    np.testing.assert_array_equal(_partition(samples, gold, REFUSAL, tau), expected)


def test_ties_go_to_the_answer_seen_first():
    samples = jnp.array([[3, 4, 4, 3], [4, 3, 3, 4]])
    assert knowledge_partition(samples, jnp.array([3, 3]), REFUSAL).tolist() == [0, 1]


def test_a_share_of_exactly_tau_suffices():
    samples = jnp.array([[1] * 3 + [2, 2, 3, 3, 4, 4, 6]])
    assert [int(knowledge_partition(samples, jnp.array([1]), REFUSAL, tau)[0]) for tau in (0.3, 0.31)] == [
        0,
        2,
    ]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(kind):
    samples, gold = _case(0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, P("data"))) for array in (samples, gold)]
        found = _partition(*placed, REFUSAL, 0.4)
    np.testing.assert_array_equal(found, _partition(samples, gold, REFUSAL, 0.4))


def test_vmap():
    samples, gold = _case(1)
    stacked = jax.vmap(lambda s, g: knowledge_partition(s, g, REFUSAL, 0.4))(
        jnp.stack([samples, samples[::-1]]), jnp.stack([gold, gold[::-1]])
    )
    np.testing.assert_array_equal(stacked[0], _partition(samples, gold, REFUSAL, 0.4))
    np.testing.assert_array_equal(stacked[1], stacked[0][::-1])


def test_several_hops():
    hops = jnp.array([[0, 0, 0], [0, 1, 0], [1, 2, 0], [0, 0, 2]])
    assert multi_hop_partition(hops).tolist() == [0, 1, 2, 2]
    mask = jnp.array([[True] * 3, [True, False, True], [True, False, True], [False] * 3])
    assert multi_hop_partition(hops, mask).tolist() == [0, 0, 1, 0]


def test_agreement():
    random = np.random.default_rng(0)
    one, other = random.integers(0, 3, (2, 50))
    found = partition_agreement(one, other)
    assert found.sum() == 50
    assert np.trace(found) == np.sum(one == other)
    assert found[0, 2] == np.sum((one == 0) & (other == 2))
    np.testing.assert_array_equal(partition_agreement(other, one), found.T)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: knowledge_partition(jnp.ones((2, 3)), jnp.ones(2, int), 5),
            TypeError,
            "samples: .* integer",
        ),
        (lambda: knowledge_partition(jnp.ones((2, 3), int), jnp.ones(2), 5), TypeError, "gold: .* integer"),
        (
            lambda: knowledge_partition(jnp.ones((2, 0), int), jnp.ones(2, int), 5),
            ValueError,
            r"samples: expected the shape \[questions, samples\] with at least one, got \(2, 0\)",
        ),
        (
            lambda: knowledge_partition(jnp.ones((2, 3), int), jnp.ones(3, int), 5),
            ValueError,
            r"gold: expected one answer for each of 2 questions, got \(3,\)",
        ),
        (
            lambda: knowledge_partition(jnp.ones((2, 3), int), jnp.ones(2, int), 5, 1.5),
            ValueError,
            "tau: expected a share from 0 to 1, got 1.5",
        ),
        (
            lambda: multi_hop_partition(jnp.ones(2, int)),
            ValueError,
            r"hops: expected the shape \[questions, hops\]",
        ),
        (
            lambda: multi_hop_partition(jnp.ones((2, 3), int), jnp.ones((2, 2), bool)),
            ValueError,
            "mask: expected the shape of hops",
        ),
        (lambda: partition_agreement([0], [0, 1]), ValueError, "other: expected the shape of one"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
