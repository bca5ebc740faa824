"""The W2PGNN experiment: graphons, training, scores, correlations, claims from made-up results, a run, the
pod."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import w2pgnn
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from experiments.w2pgnn import networks, real, scores, tables, transfer
from experiments.w2pgnn.claims import CLAIMS, Study, benefit_by_rank, measurements, negative_share
from experiments.w2pgnn.correlation import fisher_interval, jackknife, pearson, split_half
from experiments.w2pgnn.pod import PodScale, pod_target
from experiments.w2pgnn.pretraining import (
    GCC_MOCO,
    Encoder,
    ViewBatch,
    init_pretraining,
    inputs,
    make_pretraining_step,
    model_of,
)
from experiments.w2pgnn.transfer import Transfer
from jaxneg.train import compile_for, make_mesh, shard_step

TINY = Encoder(layers=1, width=4, batch=4, steps=3, queue=8)


def test_graphs_follow_their_graphon():
    rng = np.random.default_rng(0)
    mixture = {0: 0.5, 9: 0.5}
    adj = transfer.draw_graphs(rng, mixture, 400, 10)
    np.testing.assert_array_equal(adj, np.swapaxes(adj, 1, 2))
    assert not adj[:, range(10), range(10)].any()
    points = (np.arange(200) + 0.5) / 200
    expected = transfer.probability(mixture, points[:, None], points[None]).mean()
    assert abs(adj.sum((1, 2)).mean() / 90 - expected) < 0.02
    assert (transfer.probability(mixture, points[:, None], points[None]) <= 1).all()
    sizes = Transfer(nodes=8, graphs=3, estimated=2, tuning=2, evaluation=3, unused=1)
    first, again = transfer.draw_world(1, sizes), transfer.draw_world(1, sizes)
    assert first.pretraining.shape == (6, 3, 8, 8)
    assert first.downstream.shape == (5, 6, 8, 8)
    np.testing.assert_array_equal(first.downstream, again.downstream)


def test_hidden_pairs():
    """As many of each graph, all different; hidden in both directions; the answers are the graph's."""
    adj = jnp.asarray(transfer.draw_graphs(np.random.default_rng(0), {10: 1.0}, 3, 9))
    keys = jax.random.split(jax.random.key(0), 300)
    hide = jax.jit(jax.vmap(lambda key: transfer.hide_pairs(key, adj, 7)))
    draws = hide(keys)
    visible, pairs, joined = (part[0] for part in draws)
    for graph in range(3):
        chosen = {tuple(pair) for pair in np.asarray(pairs[graph]).tolist()}
        assert len(chosen) == 7
        expected = np.array(adj[graph])
        for (i, j), answer in zip(np.asarray(pairs[graph]), joined[graph], strict=True):
            assert i < j
            assert answer == adj[graph, i, j]
            expected[i, j] = expected[j, i] = 0
        np.testing.assert_array_equal(visible[graph], expected)
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(np.asarray(draws[1])[:, 0].reshape(-1, 2).T), 1)
    np.testing.assert_allclose(counts[np.triu_indices(9, 1)] / 300, 7 / 36, atol=0.12)


@pytest.mark.slow
def test_transfer_learns():
    """Training on a mechanism helps on its own graphs; without any set nothing is pre-trained."""
    sizes = w2pgnn.PRESETS["smoke"].transfer
    world = transfer.draw_world(0, sizes)
    rng = np.random.default_rng(0)
    own = transfer.draw_graphs(rng, {11: 1.0}, world.downstream.shape[1], sizes.nodes)
    selections = np.zeros((15, 6), bool)
    selections[:, 5] = (
        True  # type 11 alone, as often as there are pairs: the program is that of the smoke run
    )
    found = transfer.transfer_losses(
        0, world._replace(downstream=np.stack([own, *world.downstream[1:]])), sizes, selections
    )
    assert found["zero_shot"].shape == found["tuned"].shape == (1, 17, 5)
    np.testing.assert_array_equal(found["zero_shot"][0, 0], found["zero_shot"][0, 14])  # a seed's draws
    curve = found["curve"][0]
    assert curve[-10:].mean() < curve[:5].mean() - 0.05
    assert found["zero_shot"][0, 0, 0] < found["zero_shot"][0, 16, 0] - 0.05
    assert (np.abs(found["tuned"] - found["zero_shot"]) > 0).all()
    np.testing.assert_allclose(found["zero_shot"][0, 16], np.log(2), atol=0.15)  # a start near 0


def test_selections():
    found = transfer.selections_of(6, 2)
    assert found.shape == (15, 6)
    assert (found.sum(1) == 2).all()
    assert len({tuple(row) for row in found.tolist()}) == 15


def batch_of(rng, count, features, nodes=5):
    upper = np.triu(rng.random((count, nodes, nodes)) < 0.6, 1)
    adj = (upper | np.swapaxes(upper, 1, 2)).astype(np.uint8)
    sizes = np.full(count, nodes, np.int32)
    sizes[0] = nodes - 2
    adj[0, nodes - 2 :] = adj[0, :, nodes - 2 :] = 0
    x = rng.standard_normal((count, nodes, features)).astype(np.float32)
    return ViewBatch(*map(jnp.asarray, (x, adj, sizes)))


@pytest.mark.parametrize("objective", ["e2e", "moco"])
def test_pretraining_step(objective):
    """The loss by hand; the queue takes the keys; one device and eight agree."""
    encoder = dataclasses.replace(TINY, objective=objective, batch=8, norm=objective == "moco", clip=1.0)
    rng = np.random.default_rng(0)
    batch = {name: batch_of(rng, 8, encoder.features) for name in ("first", "second")}
    state, step = init_pretraining(encoder, jax.random.key(0)), make_pretraining_step(encoder)
    after, metrics = jax.jit(step)(state, batch)
    model = model_of(encoder)
    q, k = (np.asarray(model.apply(state.encoder, *inputs(batch[name]))) for name in ("first", "second"))
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1, rtol=1e-5)
    positive = (q * k).sum(1)
    others = k @ q.T if objective == "e2e" else q @ np.asarray(state.queue.queue)
    if objective == "moco":
        others = np.concatenate([positive[:, None], others], 1)
    losses = np.log(np.exp(others / encoder.temperature).sum(1)) - positive / encoder.temperature
    np.testing.assert_allclose(metrics["loss"], losses.mean(), rtol=1e-4)
    if objective == "e2e":
        return
    np.testing.assert_allclose(after.queue.queue, k.T, atol=1e-5)
    expected = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, state.target, after.encoder)
    for moved, other in zip(jax.tree.leaves(after.target), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(moved, other, atol=1e-6)
    sharded = shard_step(step, make_mesh({"data": -1}), state, batch, fsdp=None)
    again, on_devices = sharded(sharded.place_state(state), batch)
    np.testing.assert_allclose(on_devices["loss"], metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(on_devices["grad_norm"], metrics["grad_norm"], rtol=1e-3)
    np.testing.assert_allclose(again.queue.queue, after.queue.queue, atol=1e-5)


def test_gccs_schedule():
    """The learning rate rises to its value and falls to nothing, as GCC's does."""
    from experiments.w2pgnn.pretraining import optimizer_of

    encoder = dataclasses.replace(TINY, steps=10, warmup=4, learning_rate=1.0)
    tx = optimizer_of(encoder)
    params = jnp.zeros(1)
    state, moved = tx.init(params), []
    for _ in range(10):
        updates, state = tx.update(jnp.ones(1), state, params)
        moved.append(-float(updates[0]))
    np.testing.assert_allclose(moved, [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], atol=1e-4)


def test_correlations():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 15, 3))
    for column in range(3):
        np.testing.assert_allclose(pearson(x, y)[column], np.corrcoef(x[:, column], y[:, column])[0, 1])
    assert pearson(np.ones(4), np.arange(4.0)) == 0
    low, high = fisher_interval(0.0, 15)
    np.testing.assert_allclose([low, high], [-0.5121, 0.5121], atol=1e-3)
    assert fisher_interval(0.9, 3) == (-1.0, 1.0)
    values = rng.standard_normal((5, 4))
    np.testing.assert_allclose(jackknife(values, lambda mean: float(mean.sum())), values.sum(1))
    assert jackknife(values[:1], lambda mean: float(mean.max())) == [values[0].max()]
    signal = np.linspace(0, 1, 15)
    noisy = signal + 0.01 * rng.standard_normal((6, 15))
    assert split_half(noisy) > 0.99
    assert abs(split_half(rng.standard_normal((6, 2000)))) < 0.1
    assert np.isnan(split_half(noisy[:1]))


def made_study(rng, repetitions, targets, slope):
    """15 pairs whose performance follows zeta, and density only a little."""
    selections = transfer.selections_of(6, 2)
    zeta = rng.uniform(-0.5, 0, (repetitions, 15, targets))
    quality = slope * zeta + 0.02 * rng.standard_normal(zeta.shape)
    found = {name: rng.uniform(-1, 0, zeta.shape) for name in tables.ORDER}
    found[scores.ZETA] = zeta
    found[scores.UNIFORM] = zeta + 0.1 * rng.standard_normal(zeta.shape)
    found[scores.TV_H] = -found[scores.DENSITY]
    performance = np.concatenate(
        [quality, np.full((repetitions, 1, targets), -0.1), np.full((repetitions, 1, targets), -0.05)], 1
    )
    names = [f"target {t}" for t in range(targets)]
    return Study([f"set {s}" for s in range(6)], names, selections, found, performance)


def test_measurements_have_the_right_sign():
    """Made-up results: what is better must come out as such."""
    rng = np.random.default_rng(0)
    zero_shot, tuned = made_study(rng, 3, 5, 0.6), made_study(rng, 3, 5, 0.6)
    on_networks = made_study(rng, 4, 4, 0.6)
    single = {name: values[:1] for name, values in on_networks.scores.items()}
    on_networks = on_networks._replace(
        scores=single, performance=np.repeat(on_networks.performance[:1], 4, 0)
    )
    found = measurements(zero_shot, tuned, on_networks)
    assert set(found) == {claim.name for claim in CLAIMS}
    r = zero_shot.correlations(scores.ZETA)
    assert r.min() > 0.9
    np.testing.assert_allclose(found["feasibility-foretells-transfer"], r.min(1))
    assert (found["above-density"] > 0.5).all()
    best = max(scores.BASELINES, key=lambda name: zero_shot.correlations(name).mean())
    expected = r.mean(1) - zero_shot.correlations(best).mean(1)
    np.testing.assert_allclose(found["above-every-baseline"], expected)
    assert (found["learned-weights-help"] > 0).all()
    assert (found["feasible-sets-benefit"] > 0.15).all()
    assert (found["selection-beats-all-data"] > 0).all()
    assert (found["real-correlations-all-positive"] > 0.9).all()
    best = on_networks.of_selections[0][on_networks.scores[scores.ZETA][0].argmax(0), range(4)]
    np.testing.assert_allclose(found["real-selection-beats-all-data"], 100 * (best + 0.1).mean())
    share = (tuned.of_selections[1, :, transfer.NEGATIVE] < -0.05).mean()
    np.testing.assert_allclose(found["transfer-can-be-negative"][1], 100 * share)
    high, low = benefit_by_rank(tuned, 15)
    np.testing.assert_allclose(high, low)
    assert negative_share(tuned).shape == (3, 5)
    assert re.search(r"^\d\.\d\d \[", tables.transfer_table(zero_shot, tuned).rows[0][1])


def test_scores_know_the_right_mechanism():
    """A downstream set that is like one of the sets is near to the selections that hold it."""
    sizes = w2pgnn.PRESETS["smoke"].transfer
    world = transfer.draw_world(0, sizes)
    many = world.downstream.shape[1]
    sets = [scores.whole(adj[: sizes.estimated]) for adj in world.pretraining]
    targets = [scores.whole(adj) for adj in (*world.downstream[:4], world.pretraining[3, :many])]
    selections = transfer.selections_of(6, 2)
    found = scores.score_selections(
        sets, targets, selections, resolution=4, steps=20, clusters=2, denoised=True
    )
    assert set(found.scores) == set(tables.ORDER)
    assert all(values.shape == (15, 5) and (values <= 1e-6).all() for values in found.scores.values())
    zeta = found.scores[scores.ZETA]
    # The last target is a part of set 3: pairs with it come near, and give it the weight.
    own = selections[:, 3]
    assert zeta[own, 4].mean() > zeta[~own, 4].mean() + 0.03
    assert zeta[own, 4].min() > -0.08
    assert found.alpha[own][:, 4, 3].mean() > 0.6
    np.testing.assert_allclose(found.alpha.sum(-1), 1, rtol=1e-5)
    assert (found.alpha.swapaxes(1, 2)[~selections] == 0).all()
    assert (found.scores[scores.BEST] >= zeta).all()
    assert (zeta >= found.scores[scores.UNIFORM] - 1e-6).all()
    assert found.graphons.shape == (11, 4, 4)
    assert np.ptp(found.graphons[-1]) > 0.1


def test_networks_that_are_missing(monkeypatch, tmp_path):
    """Without the data file four embedded networks stand in, unless a file was asked for."""
    monkeypatch.setattr(networks, "FILE", tmp_path / "none.npz")
    monkeypatch.setattr(real, "FILE", tmp_path / "none.npz")
    found = real.load_networks(real.Real())
    assert found.stand_in
    assert [network.name for network in found.downstream] == ["brazil_airport"]
    assert found.selected == (1, 2)
    embedded = real.load_networks(w2pgnn.PRESETS["smoke"].real)
    assert not embedded.stand_in
    with pytest.raises(FileNotFoundError, match=r"there is no edge list gcc/imdb\.edgelist"):
        real.load_networks(
            real.Real(
                pretraining=("edges:gcc/imdb.edgelist", "usa_airport"),
                downstream=("brazil_airport",),
                selected=(1,),
            )
        )
    with pytest.raises(ValueError, match="facebook_ego348: a downstream network needs labels"):
        real.load_networks(
            real.Real(
                pretraining=("usa_airport", "brazil_airport"), downstream=("facebook_ego348",), selected=(1,)
            )
        )
    path = tmp_path / "two.edgelist"
    path.write_text("1 2\n2 3\n")
    (tmp_path / "two.nodelabel").write_text("1 0\n2 0\n3 1\n")
    with pytest.raises(ValueError, match=r"two: expected at least two classes with 5 members each"):
        real.load_networks(
            real.Real(
                pretraining=("usa_airport", "brazil_airport"), downstream=(f"edges:{path}",), selected=(1,)
            )
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transfer(worlds=0), "transfer.worlds: expected at least 1, got 0"),
        (lambda: Transfer(nodes=4), "transfer.nodes: expected at least 8, got 4"),
        (lambda: Transfer(estimated=300), "transfer.estimated: expected 1 to 200 graphs, got 300"),
        (lambda: Transfer(hidden=1.0), "transfer.hidden: expected a share between 0 and 1, got 1.0"),
        (lambda: real.Real(selected=(6,)), "real.selected: expected numbers from 1 to 5, got (6,)"),
        (lambda: real.Real(downstream=("pubmed",)), "real.downstream: expected other networks than"),
        (lambda: real.Real(pretraining=("pubmed",)), "expected at least two networks and one, got 1 and 4"),
        (lambda: real.Real(restart=1.0), "real.restart: expected at least 0 and below 1, got 1.0"),
        (lambda: real.Real(ego_most=2), "real.ego_most: expected at least 8, got 2"),
        (lambda: Encoder(batch=1), "encoder.batch: expected at least 2 pairs, each other's negatives, got 1"),
        (lambda: Encoder(warmup=150), "encoder.warmup: expected 0 to 149 steps, got 150"),
        (lambda: Encoder(dropout=1.0), "encoder.dropout: expected at least 0 and below 1, got 1.0"),
        (lambda: PodScale(runs=0), "pod.runs: expected at least 1, got 0"),
    ],
)
def test_wrong_configs(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_presets():
    assert set(w2pgnn.PRESETS) == {"smoke", "cpu", "paper"}
    pod = w2pgnn.PRESETS["paper"].pod
    assert (pod.encoder.layers, pod.encoder.width, pod.encoder.queue) == (5, 64, 16_384)
    assert (pod.encoder.temperature, pod.encoder.learning_rate) == (0.07, 5e-3)
    assert w2pgnn.PRESETS["cpu"].transfer.worlds >= 3


def made_scores(pretraining, downstream, selections, *, resolution, denoised=False, **_):
    rng = np.random.default_rng(len(selections))
    names = [name for name in tables.ORDER if denoised or "TV" not in name]
    found = {name: -rng.random((len(selections), len(downstream))) for name in names}
    alpha = np.zeros((len(selections), len(downstream), len(pretraining)))
    graphons = rng.random((len(pretraining) + len(downstream), resolution, resolution))
    return scores.Scored(found, alpha, graphons)


def made_losses(seed, world, sizes, selections):
    rng, runs = np.random.default_rng(seed), len(selections) + 2
    shape = (sizes.seeds, runs, len(world.downstream))
    return {
        "zero_shot": rng.random(shape),
        "tuned": rng.random(shape),
        "curve": rng.random((runs, sizes.steps)),
    }


def made_accuracies(seed, of_run, settings, selections):
    rng, runs = np.random.default_rng(seed), len(selections) + 2
    return {
        "accuracy": rng.random((runs, len(of_run.downstream))),
        "curve": rng.random((runs, settings.encoder.steps)),
    }


def check_report(report, run):
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    kinds = ("correlations", "correlations-real", "curves", "feasibility", "feasibility-real", "graphons")
    figures = list((run / "figures").glob("*.png"))
    assert sorted(figure.stem for figure in figures) == [*kinds, "graphons-real"]
    assert all(figure.stat().st_size > 8_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]][:5] == [13, 16, 5, 18, 18]
    assert any("split-half reliability" in note for note in report["notes"])


def test_report_of_made_up_results(tmp_path, monkeypatch):
    """Every claim, table, note and figure, without training, on the networks that stand in."""
    for module in (networks, real):
        monkeypatch.setattr(module, "FILE", tmp_path / "none.npz")
    monkeypatch.setattr(w2pgnn, "score_selections", made_scores)
    monkeypatch.setattr(w2pgnn, "transfer_losses", made_losses)
    monkeypatch.setattr(w2pgnn, "accuracies", made_accuracies)
    config = dataclasses.replace(w2pgnn.PRESETS["smoke"], real=real.Real(seeds=3, ego_graphs=4))
    with RunDir.create("w2pgnn", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    check_report(report, tmp_path / "run")
    assert [len(table["rows"]) for table in report["tables"]][5:] == [12, 14, 1, 9]
    assert "Set JAXNEG_DATA to the folder that holds w2pgnn/graphs.npz" in report["notes"][0]
    assert report["tables"][2]["rows"][0][1].startswith("0.00 ")  # weights of made-up scores
    paper = next(row for row in report["tables"][1]["rows"] if row[0] == scores.ZETA)
    assert paper[1:5] == ["73.54", "65.46", "64.21", "67.74"]


@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    """A whole run on the data that are always there; one that is resumed finds the same."""
    for module in (networks, real):
        monkeypatch.setattr(module, "FILE", tmp_path / "none.npz")
    with RunDir.create("w2pgnn", w2pgnn.PRESETS["smoke"], preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
        again = run_experiment(run_dir)
    check_report(report, tmp_path / "run")
    assert [claim["values"] for claim in again["claims"]] == [claim["values"] for claim in report["claims"]]


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.parametrize("part", ["pretraining", "feasibility"])
def test_the_pod_compiles(part):
    """Every run and every cell is on its chip: nothing but means of metrics crosses the links."""
    pytest.importorskip("libtpu")
    pod = PodScale(
        part=part, runs=4, view_nodes=16, cells=8, bases=2, resolution=8, steps=2,
        encoder=dataclasses.replace(GCC_MOCO, layers=2, width=16, queue=64, batch=8),
    )  # fmt: skip
    report = compile_for(pod_target(pod), "v5e:2x2")
    assert report.fits
    assert sum(report.collectives.values()) < 1024


def test_runs_of_a_pod_are_independent():
    """Which runs go beside a run does not matter to it."""
    encoder = dataclasses.replace(TINY, objective="moco")
    pod = PodScale(runs=2, view_nodes=5, encoder=encoder)
    target = pod_target(pod)
    rng = np.random.default_rng(0)
    views = [batch_of(rng, 8, encoder.features) for _ in range(2)]
    batch = {
        name: jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), each)
        for name, each in zip(("first", "second"), views, strict=True)
    }
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(lambda key: init_pretraining(encoder, key))(keys)
    assert jax.tree.map(lambda a: a.shape, target.state) == jax.tree.map(lambda a: a.shape, state)
    step = jax.jit(target.step)
    after, metrics = step(state, batch)
    turned, again = step(*jax.tree.map(lambda leaf: leaf[::-1], (state, batch)))
    np.testing.assert_allclose(again["loss"], metrics["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(after.encoder), jax.tree.leaves(turned.encoder), strict=True):
        np.testing.assert_allclose(a, b[::-1], atol=1e-5)
    assert max(np.abs(leaf[0] - leaf[1]).max() for leaf in jax.tree.leaves(after.encoder)) > 1e-3
