"""The order of batches, their position, their split over processes, and global arrays."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.train import global_batch, make_mesh, pipeline, process_shard

ARRAYS = {"x": np.arange(20).reshape(10, 2), "y": np.arange(10)}


def draw(data, count):
    return [data[i]["y"].tolist() for i in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 30), batch=st.integers(1, 30), epochs=st.integers(1, 4), seed=st.integers(0, 2**40)
)
def test_each_epoch_is_a_permutation_and_batches_run_across_epochs(size, batch, epochs, seed):
    batch = min(batch, size)
    data = pipeline({"y": np.arange(size)}, batch, seed=seed, epochs=epochs)
    assert len(data) == size * epochs // batch
    drawn = np.concatenate([data[i]["y"] for i in range(len(data))])
    for epoch in range(len(drawn) // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_depends_on_seed_and_epoch_and_rows_stay_together():
    data = pipeline(ARRAYS, 5, seed=1)
    assert draw(data, 4) == draw(pipeline(ARRAYS, 5, seed=1), 4)
    assert draw(data, 4) != draw(pipeline(ARRAYS, 5, seed=2), 4)
    assert draw(data, 2) != [data[i]["y"].tolist() for i in (2, 3)]
    assert data[3]["x"].tolist() == [[2 * y, 2 * y + 1] for y in data[3]["y"]]
    assert draw(pipeline(ARRAYS, 4, shuffle=False), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(12, 40), seed=st.integers(0, 99), count=st.sampled_from([1, 2, 3, 4]))
def test_processes_draw_parts_of_the_same_batches(size, seed, count):
    arrays = {"y": np.arange(size)}
    whole = pipeline(arrays, 12, seed=seed, shard=(0, 1))
    parts = [pipeline(arrays, 12, seed=seed, shard=(i, count)) for i in range(count)]
    for number in range(8):
        assert np.concatenate([part[number]["y"] for part in parts]).tolist() == whole[number]["y"].tolist()


def test_position_is_json_and_restores():
    iterator = iter(pipeline(ARRAYS, 3, seed=4).to_iter_dataset())
    for _ in range(7):
        next(iterator)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator)["y"].tolist() for _ in range(5)]
    other = iter(pipeline(ARRAYS, 3, seed=4).to_iter_dataset())
    other.set_state(position)
    assert [next(other)["y"].tolist() for _ in range(5)] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrays": {}}, "arrays: expected at least one"),
        ({"arrays": {"x": np.zeros(4), "y": np.zeros(3)}}, "arrays: 'y' has 3 examples, but 'x' has 4"),
        ({"arrays": {"x": np.zeros((0, 2))}}, "arrays: 'x' holds no examples"),
        ({"arrays": {"x": np.float32(1)}}, "arrays: 'x' is a scalar"),
        ({"batch_size": 11}, "batch_size: expected 1 to 10, the number of examples, got 11"),
        ({"batch_size": 0}, "batch_size: expected 1 to 10, the number of examples, got 0"),
        ({"batch_size": 3, "shard": (0, 2)}, "batch_size: 3 does not divide by the number of shards, 2"),
        ({"shard": (2, 2)}, r"shard: expected \(index, count\) with 0 <= index < count, got \(2, 2\)"),
        ({"epochs": 0}, "epochs: expected at least 1 or None, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"arrays": ARRAYS, "batch_size": 4, **arguments})


@pytest.mark.parametrize("explicit", [False, True])
def test_global_batch_lies_on_the_mesh(explicit):
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    batch = {"x": np.arange(24.0).reshape(8, 3), "y": np.arange(8)}
    sharding = NamedSharding(mesh, P("data"))
    for placed in (global_batch(batch, sharding), global_batch(batch, {"x": sharding, "y": sharding})):
        assert {name: array.sharding for name, array in placed.items()} == {"x": sharding, "y": sharding}
        np.testing.assert_array_equal(placed["x"], batch["x"])
        assert placed["y"].addressable_shards[0].data.shape == (2,)
        assert global_batch(placed, sharding)["x"] is placed["x"]


def test_global_batch_that_does_not_divide():
    sharding = NamedSharding(make_mesh({"data": 8}), P("data"))
    with pytest.raises(ValueError, match=r"batch: x: .*partitioned 8 times, but the dimension size is 6"):
        global_batch({"x": np.zeros((6, 2))}, sharding)


def test_one_process_holds_the_whole_batch():
    mesh = make_mesh({"data": 4, "model": 2})
    for spec in (P("data"), P(("data", "model")), P(None, "model"), P()):
        assert process_shard(NamedSharding(mesh, spec)) == (0, 1)


def hold(monkeypatch, parts):
    """As if the devices of this process held only these parts of a batch."""
    held = {device: (slice(part, part + 1),) for device, part in zip(jax.devices(), parts, strict=False)}
    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", lambda self, shape: held)


@pytest.mark.parametrize(("parts", "shard"), [((4, 5, 6, 7), (1, 2)), ((2, 3), (1, 4)), ((6,), (6, 8))])
def test_the_share_of_one_process_of_several(monkeypatch, parts, shard):
    hold(monkeypatch, parts)
    assert process_shard(NamedSharding(make_mesh({"data": 8}), P("data"))) == shard


@pytest.mark.parametrize("parts", [(0, 2), (1, 2)])
def test_a_process_without_one_share(monkeypatch, parts):
    hold(monkeypatch, parts)
    with pytest.raises(ValueError, match="sharding: expected one share of the batch, got the parts"):
        process_shard(NamedSharding(make_mesh({"data": 8}), P("data")))
