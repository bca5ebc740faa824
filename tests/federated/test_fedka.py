"""FedKA's objectives and its round: official numbers, who takes part, the mesh, bad input."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.federated import (
    ClientBatches,
    FedKAConfig,
    FedKANetwork,
    ModelState,
    client_objective,
    federated_average,
    federated_data,
    federated_vote,
    fedka_round,
    fit,
    init_fedka,
    make_fedka_step,
    make_sharded_round,
    matching_objective,
    predict,
    train_client,
    tune,
)

# The goldens' small network: one linear layer a part, without normalisation and without dropout.
PARTS = {"features": "feat", "classifier": "cls", "discriminator": "dom"}


def linear(weights, x):
    return jnp.matmul(x, weights["w"], precision="highest") + weights["b"]


def small_network(inputs=7, hidden=9, classes=4):
    def init(key):
        sizes = {"features": (inputs, hidden), "classifier": (hidden, classes), "discriminator": (hidden, 2)}
        keys = dict(zip(sizes, jax.random.split(key, 3), strict=True))
        params = {
            part: {"w": jax.random.normal(keys[part], size) / size[0] ** 0.5, "b": jnp.zeros(size[1])}
            for part, size in sizes.items()
        }
        return params, {part: {} for part in sizes}

    def features(weights, stats, x, mode, key):
        return jax.nn.relu(linear(weights, x)), stats

    def head(weights, stats, h, mode, key):
        return jax.nn.log_softmax(linear(weights, h)), stats

    return FedKANetwork(init, features, head, head)


def params_of(arrays, prefix):
    return {
        part: {name: jnp.asarray(arrays[f"{prefix}_{short}_{name}"]) for name in ("w", "b")}
        for part, short in PARTS.items()
    }


@pytest.fixture(scope="module")
def network():
    return small_network()


STATS = {part: {} for part in PARTS}
SMALL = FedKAConfig(
    rounds=4, steps=4, batch=4, accum=2, vote_steps=3, learning_rate=1e-2, eval_batch=5, clients="vmap"
)
CLASSES, INPUTS = 4, 7


def assert_params(params, arrays, prefix, **tolerance):
    for part, short in PARTS.items():
        for name in ("w", "b"):
            np.testing.assert_allclose(
                params[part][name], arrays[f"{prefix}_{short}_{name}"], err_msg=f"{part} {name}", **tolerance
            )


@pytest.mark.golden("fedka", "client_objectives*.npz")
def test_client_objectives(golden, x64, network):
    params, others = params_of(golden, "client"), params_of(golden, "global")
    source, target, lam = (golden["xs"], golden["ys"]), golden["xt"], golden["lam"]

    def objective(params, disentangle):
        return client_objective(params, STATS, network, source, target, lam, disentangle=disentangle)

    tolerance = {"rtol": 1e-9, "atol": 1e-11}
    for disentangle, prefix in ((False, "class_grad"), (True, "dann_grad")):
        grads, aux = jax.grad(objective, has_aux=True)(params, disentangle)
        assert_params(grads, golden, prefix, **tolerance)
        np.testing.assert_allclose(aux["class_loss"], golden["loss_class"], **tolerance)
    np.testing.assert_allclose(aux["source_loss"], golden["loss_dom_source"], **tolerance)
    np.testing.assert_allclose(aux["target_loss"], golden["loss_dom_target"], **tolerance)

    def matching(params):
        own = network.features(params["features"], {}, source[0], "train", None)[0]
        other = network.features(others["features"], {}, target, "batch", None)[0]
        return matching_objective(own[None], other[None], jnp.asarray(lam)[None])

    value, grads = jax.value_and_grad(matching)(params)
    np.testing.assert_allclose(value, golden["loss_mmd_scaled"], **tolerance)
    assert_params(grads, golden, "mmd_grad", **tolerance)


def test_dropout_of_both_features_that_are_matched():
    """The published code never leaves training mode; each side has masks of its own."""
    seen = []

    def features(weights, stats, x, mode, key):
        seen.append(mode)
        kept = jax.random.bernoulli(key, 0.5, (len(x), 9))
        return jnp.where(kept, 2 * jax.nn.relu(linear(weights, x)), 0), stats

    network = small_network()._replace(features=features)
    cfg = dataclasses.replace(SMALL, disentangle=False, steps=2, eval_bn="running")
    state = init_fedka(network, 1, cfg, jax.random.key(0))
    client = jax.tree.map(lambda x: x[0], state.clients)
    x, y = jnp.ones((2, 4, INPUTS)), jnp.zeros((2, 4), jnp.int32)
    _, losses = train_client(
        client, ClientBatches(x, y, x, x, x), state.cloud, 1, jax.random.key(1), cfg, network
    )
    assert set(seen) == {"train"}
    # Equal examples and nearly equal models: only different masks are apart.
    assert losses["matching_loss"] > 1e-3


@pytest.mark.golden("fedka", "fedka_round*.npz")
def test_one_round(golden, x64, network):
    K, S, accum = (int(golden[name]) for name in ("K", "S", "accum"))
    cfg = FedKAConfig(
        rounds=int(golden["rounds"]),
        steps=S,
        batch=golden["xsA"].shape[2],
        accum=accum,
        vote_steps=len(golden["xv"]),
        gamma=float(golden["gamma"]),
        learning_rate=float(golden["lr"]),
    )
    start = params_of(golden, "init")
    tx = optax.adam(cfg.learning_rate)
    opt_state = {part: tx.init(start[part]) for part in PARTS}
    begun = ModelState(start, STATS, opt_state)
    step = int(golden["round"])
    key = jax.random.key(0)  # nothing is random in this network
    trained = []
    for k in range(K):
        names = ("xsA", "ysA", "xtA", "xsB", "xtB")
        batches = ClientBatches(*(jnp.asarray(golden[name][k]) for name in names))
        client, _ = train_client(begun, batches, begun, step, key, cfg, network)
        params = client.params
        assert_params(params, golden, f"client{k}", rtol=1e-7, atol=1e-11)
        trained.append(params)
    average = federated_average(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained))
    assert_params(average, golden, "avg", rtol=1e-7, atol=1e-11)

    xv = jnp.asarray(golden["xv"])
    flat = xv.reshape(-1, xv.shape[-1])
    models = [ModelState(params, STATS, opt_state) for params in trained]
    preds = [jnp.argmax(predict(model, flat, "batch", xv.shape[1], network), -1) for model in models]
    classes = golden["init_cls_b"].shape[0]
    votes = federated_vote(jnp.stack(preds), classes)
    np.testing.assert_array_equal(votes.labels.reshape(xv.shape[:2]), golden["vote_labels"])
    labels = jnp.asarray(golden["vote_labels"])
    cloud = ModelState(average, STATS, opt_state)
    tuned = tune(cloud, xv, labels, jnp.ones(labels.shape), step, key, cfg, network)
    assert_params(tuned.params, golden, "tuned", rtol=1e-7, atol=1e-11)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    sizes = (20, 9, 30, 14, 11, 12, 10, 25)
    clients = [(rng.normal(size=(n, INPUTS)).astype("f4"), rng.integers(0, CLASSES, n)) for n in sizes]
    target = rng.normal(1, 1, size=(23, INPUTS)).astype("f4")
    labels = rng.choice(np.unique(np.concatenate([y for _, y in clients])), 23)
    return federated_data(clients, target, num_classes=CLASSES, evaluation=(target, labels))


@functools.cache
def compiled(cfg):
    return jax.jit(functools.partial(fedka_round, cfg=cfg, network=small_network()))


def begin(cfg, clients=8):
    return init_fedka(small_network(), clients, cfg, jax.random.key(3))


def test_clients_begin_alike_or_apart():
    alike = begin(SMALL)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x, k=k: x[k], alike.clients.params) for k in (0, 5)))
    apart = begin(dataclasses.replace(SMALL, independent_init=True)).clients.params["features"]["w"]
    assert float(jnp.abs(apart[0] - apart[1]).min()) > 0


def test_mapped_and_sharded_are_the_vectorised_round(data):
    """On 2 and 8 devices, whose axis is explicit and automatic, and one client after the other."""
    state, rng = begin(SMALL), jax.random.key(1)
    expected = compiled(SMALL)(state, data, rng)
    others = {"map": compiled(dataclasses.replace(SMALL, clients="map"))(state, data, rng)}
    for devices, kind in ((2, jax.sharding.AxisType.Explicit), (8, jax.sharding.AxisType.Auto)):
        mesh = jax.make_mesh((devices,), ("client",), axis_types=(kind,), devices=jax.devices()[:devices])
        others[f"{devices} devices"] = make_sharded_round(mesh, SMALL, network=small_network())(
            state, data, rng
        )
    for name, result in others.items():
        for ours, theirs in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
            if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
                continue
            np.testing.assert_allclose(
                np.asarray(theirs), np.asarray(ours), rtol=2e-5, atol=2e-5, err_msg=name
            )


@pytest.mark.slow
def test_only_sums_and_counts_cross_the_mesh(data):
    """No client's examples, features or parameters are gathered."""
    cfg = dataclasses.replace(SMALL, match=False)
    mesh = jax.make_mesh((8,), ("client",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.sharding.NamedSharding(mesh, jax.P("client"))
    state = begin(cfg)
    state = state._replace(clients=jax.device_put(state.clients, shard))
    local = {
        name: jax.device_put(getattr(data, name), shard)
        for name in ("source_x", "source_y", "sizes", "participating")
    }
    placed = data._replace(**local)
    program = make_sharded_round(mesh, cfg, network=small_network())
    text = program.lower(state, placed, jax.random.key(0)).compile().as_text()
    gathered = re.findall(r"= \S*\[([\d,]*)\]\S* all-gather", text)
    largest = max((np.prod([int(n) for n in shape.split(",") if n]) for shape in gathered), default=0)
    assert largest < data.source_x[0].size
    assert "all-reduce" in text


def test_a_client_with_nan_is_left_out_and_named(data):
    state, rng = begin(SMALL), jax.random.key(1)
    nan = jax.tree.map(lambda x: x.at[2].set(jnp.nan), state.clients.params)
    poisoned = state._replace(clients=state.clients._replace(params=nan))
    after, metrics = compiled(SMALL)(poisoned, data, rng)
    assert np.flatnonzero(metrics["left_out"]).tolist() == [2]
    for leaf in jax.tree.leaves((after._replace(key=None), metrics)):
        assert np.isfinite(np.asarray(leaf, float)).all()
    without, _ = compiled(SMALL)(state, data._replace(participating=data.participating.at[2].set(False)), rng)
    chex.assert_trees_all_close(after.cloud.params, without.cloud.params, rtol=1e-6)
    _, metrics = compiled(SMALL)(after, data, rng)
    assert not metrics["left_out"].any(), "the average has healed the client"


def test_who_sits_out_keeps_the_optimizer_and_gets_the_average(data):
    state = begin(SMALL)
    absent = data._replace(participating=jnp.arange(8) != 5)
    after, metrics = compiled(SMALL)(state, absent, jax.random.key(1))
    assert np.flatnonzero(metrics["left_out"]).tolist() == [5]
    old, new = (jax.tree.map(lambda x: x[5], s.clients.opt_state) for s in (state, after))
    chex.assert_trees_all_equal(old, new)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x, k=k: x[k], after.clients.params) for k in (0, 5)))


def test_with_nobody_left_the_global_model_stays(data):
    state = begin(SMALL)
    after, metrics = compiled(SMALL)(
        state, data._replace(participating=jnp.zeros(8, bool)), jax.random.key(1)
    )
    assert metrics["left_out"].all()
    chex.assert_trees_all_equal(after.cloud.params, state.cloud.params)


@pytest.mark.slow
def test_broadcast_tuned_sends_the_global_model(data):
    cfg = dataclasses.replace(SMALL, broadcast="tuned")
    after, _ = compiled(cfg)(begin(cfg), data, jax.random.key(1))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], after.clients.params), after.cloud.params)
    average, _ = compiled(SMALL)(begin(SMALL), data, jax.random.key(1))
    chex.assert_trees_all_close(average.cloud.params, after.cloud.params, rtol=1e-6)
    moved = jnp.abs(average.clients.params["features"]["w"][0] - average.cloud.params["features"]["w"]).max()
    assert float(moved) > 0


@pytest.mark.slow
def test_weights_by_size(data):
    cfg = dataclasses.replace(SMALL, weights="size", vote=False, match=False)
    equal = dataclasses.replace(cfg, weights="equal")
    by_size, _ = compiled(cfg)(begin(cfg), data, jax.random.key(1))
    plain, _ = compiled(equal)(begin(cfg), data, jax.random.key(1))
    # Equal sizes make both the same average.
    same = data._replace(sizes=jnp.full(8, 9))
    chex.assert_trees_all_close(
        compiled(cfg)(begin(cfg), same, jax.random.key(1))[0].cloud.params,
        compiled(equal)(begin(cfg), same, jax.random.key(1))[0].cloud.params,
        rtol=1e-5,
    )
    gap = jnp.abs(by_size.cloud.params["features"]["w"] - plain.cloud.params["features"]["w"]).max()
    assert float(gap) > 1e-5


@pytest.mark.slow
def test_without_the_discriminator_it_stays_as_it_was(data):
    cfg = dataclasses.replace(SMALL, disentangle=False)
    state = begin(cfg)
    after, metrics = compiled(cfg)(state, data, jax.random.key(1))
    chex.assert_trees_all_close(
        after.clients.params["discriminator"], state.clients.params["discriminator"], rtol=1e-6
    )
    np.testing.assert_array_equal(metrics["domain_loss"], 0)


@pytest.mark.slow
def test_proximal_holds_clients_near_the_average(data):
    loose = dataclasses.replace(SMALL, match=False, vote=False)
    state = begin(loose)

    def moved(cfg):
        after, _ = compiled(cfg)(state, data, jax.random.key(1))
        return float(
            jnp.linalg.norm(after.cloud.params["features"]["w"] - state.cloud.params["features"]["w"])
        )

    assert moved(dataclasses.replace(loose, proximal=100.0)) < moved(loose)


def test_min_agreement_above_every_vote_tunes_nothing(data):
    """Nobody agrees wholly where the clients differ, so that only unanimous examples count."""
    labels, agreement = jnp.zeros((2, 4), int), jnp.full((2, 4), 0.5)
    cfg = dataclasses.replace(SMALL, min_agreement=0.75)
    state = begin(cfg)
    x = jnp.ones((2, 4, INPUTS))
    args = (state.cloud, x, labels, agreement, 1, jax.random.key(0))
    tuned = tune(*args, cfg, small_network())
    chex.assert_trees_all_equal(tuned.params, state.cloud.params)
    tuned = tune(*args, SMALL, small_network())
    assert float(jnp.abs(tuned.params["features"]["w"] - state.cloud.params["features"]["w"]).max()) > 0


def test_accumulate_last_is_the_last_batch_over_all():
    rng = np.random.default_rng(0)
    own, other = (jnp.asarray(rng.normal(size=(3, 5, 2))) for _ in range(2))
    lams = jnp.array([0.1, 0.2, 0.3])
    last = matching_objective(own, other, lams, accumulate="last")
    np.testing.assert_allclose(last, matching_objective(own[2:], other[2:], lams[2:]) / 3, rtol=1e-6)


def test_prediction_counts_each_example_once():
    network = small_network()
    params, stats = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (11, INPUTS))
    model = ModelState(params, stats, {})
    whole = predict(model, x, "batch", 11, network)
    for batch in (1, 3, 4, 10, 11, 99):
        np.testing.assert_allclose(predict(model, x, "batch", batch, network), whole, rtol=1e-6)


def test_examples_are_drawn_without_repetition_and_never_from_padding():
    from jaxneg.federated.fedka import _rows

    rows = np.asarray(_rows(10, jnp.int32(6), (4, 3), jax.random.key(0))).ravel()
    assert sorted(rows[:6]) == list(range(6))
    assert sorted(rows[6:]) == list(range(6))


def test_fit_learns_and_repeats(data):
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 3, size=(CLASSES, INPUTS))

    def domain(n, shift):
        y = np.arange(n) % CLASSES
        return (centres[y] + rng.normal(size=(n, INPUTS)) + shift).astype("f4"), y

    clients = [domain(40, shift) for shift in (0.0, 0.5, -0.5)]
    x, y = domain(40, 1.0)
    cfg = dataclasses.replace(SMALL, rounds=6, steps=8)
    results = [
        fit(cfg, clients, x, 6, 0, network=small_network(), num_classes=CLASSES, evaluation=(x, y))
        for _ in range(2)
    ]
    for name, values in results[0].history.items():
        np.testing.assert_array_equal(values, results[1].history[name])
    accuracy = results[0].history["accuracy"]
    assert accuracy[-1] > max(0.8, accuracy[0])


@pytest.mark.slow
def test_a_step_resumes_exactly(data):
    step = jax.jit(make_fedka_step(SMALL, network=small_network()))
    through = begin(SMALL)
    for _ in range(2):
        through, _ = step(through, data)
    halfway, _ = step(begin(SMALL), data)
    resumed, _ = step(jax.tree.map(jnp.copy, halfway), data)
    chex.assert_trees_all_equal(through._replace(key=None), resumed._replace(key=None))


@pytest.mark.slow
def test_bfloat16_parameters_stay_so(data):
    state = begin(SMALL)
    low = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        state._replace(key=None),
    )
    after, metrics = compiled(SMALL)(
        low._replace(key=state.key),
        data._replace(
            source_x=data.source_x.astype(jnp.bfloat16), target_x=data.target_x.astype(jnp.bfloat16)
        ),
        jax.random.key(1),
    )
    assert after.cloud.params["features"]["w"].dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(metrics["class_loss"], float)).all()


X = np.zeros((3, INPUTS), "f4")
Y = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("clients", "target", "options", "message"),
    [
        ([], X, {}, "clients: expected at least one"),
        ([(X, Y), (X[:0], Y[:0])], X, {"names": ["a", "b"]}, "b: expected at least one example, got none"),
        (
            [(X[:, :3], Y)],
            X,
            {},
            r"client 0: expected examples of shape \(7,\) as the target has, got \(3,\)",
        ),
        ([(X, Y[:2])], X, {}, "client 0: expected an integer class for each of 3 examples"),
        ([(X, Y + 9)], X, {}, "client 0: expected classes 0 to 3, got 9"),
        ([(X * np.nan, Y)], X, {}, "client 0: expected finite examples, example 0 is not"),
        ([(X, Y)], X[:0], {}, r"target: expected examples \[n, ...\], at least one"),
        ([(X, Y)], X, {"evaluation": (X, Y + 1)}, "class 3 is in the target domain, but no client has"),
        ([(X, Y)], X, {"participating": [False]}, "participating: expected a truth value for each of 1"),
        ([(X, Y)], X, {"names": ["a", "b"]}, "names: expected one for each of 1 clients, got 2"),
    ],
)
def test_bad_data(clients, target, options, message):
    with pytest.raises(ValueError, match=message):
        federated_data(clients, target, num_classes=CLASSES, **options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps: expected at least 1, got 0"),
        ("accum", 5, "accum: expected a divisor of steps = 32, got 5"),
        ("gamma", 0.0, "gamma: expected a positive number"),
        ("min_agreement", 2.0, "min_agreement: expected a share from 0 to 1"),
        ("proximal", -1.0, "proximal: expected a number that is not negative"),
        ("broadcast", "none", "broadcast: expected one of average, tuned, got 'none'"),
    ],
)
def test_bad_config(field, value, message):
    with pytest.raises(ValueError, match=message):
        FedKAConfig(**{field: value})


def test_a_mesh_that_does_not_fit(data):
    mesh = jax.make_mesh((8,), ("data",))
    with pytest.raises(ValueError, match=r"axis: the mesh has axes \('data',\), not 'client'"):
        make_sharded_round(mesh, SMALL, network=small_network())
    mesh = jax.make_mesh(
        (3,), ("client",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:3]
    )
    with pytest.raises(ValueError, match="clients: expected a multiple of the mesh axis 'client' of size 3"):
        make_sharded_round(mesh, SMALL, network=small_network())(begin(SMALL), data, jax.random.key(0))


def test_other_numbers_of_clients(data):
    with pytest.raises(ValueError, match="data: expected 3 clients as the state has, got 8"):
        fedka_round(begin(SMALL, 3), data, jax.random.key(0), SMALL, network=small_network())
    with pytest.raises(ValueError, match=r"rounds: expected 1 to cfg\.rounds = 4, got 9"):
        fit(SMALL, [(X, Y)], X, 9, 0, network=small_network(), num_classes=CLASSES)
    with pytest.raises(ValueError, match="global_feats, lams: expected 2 batches"):
        matching_objective(jnp.ones((2, 3, 1)), jnp.ones((1, 3, 1)), jnp.ones(2))
