"""The experiment: loader, sources, training, the whole run on the embedded collection, the pod's step."""

import dataclasses
import importlib.util
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.collections import TINY, load_collection
from experiments.eci import CLAIMS, PRESETS, Config, PodScale, compile_target
from experiments.eci.fine_tuning import (
    Examples,
    adapt,
    contrastive_loss,
    fine_tuned_ndcg,
    on_device,
    schedule,
    zero_shot_ndcg,
)
from experiments.eci.predictors import PREDICTORS, predictions
from experiments.eci.sources import BM25, HYBRID, RERANKED, contaminate, freeze, negative_sources
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.train import compile_for, make_mesh, shard_step

SMOKE = PRESETS["smoke"]
SEEDS, COUNT = 2, 4


@pytest.fixture(scope="module")
def frozen():
    return freeze(load_collection(TINY), 32)


@pytest.fixture(scope="module")
def sources(frozen):
    return negative_sources(
        frozen,
        count=COUNT,
        seeds=SEEDS,
        skip=20,
        rerank_depth=10,
        relative_margin=0.05,
        contamination=(0.2, 0.5),
    )


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "mine")


# Sources


def test_negatives_are_not_relevant_and_not_repeated(frozen, sources):
    for name, negatives in sources.items():
        assert negatives.index.shape == negatives.valid.shape == (SEEDS, len(frozen.row_query), COUNT)
        excluded = frozen.excluded[frozen.row_query[:, None], negatives.index] & negatives.valid
        assert excluded.any() == name.endswith("false"), name
        for index, valid in zip(negatives.index[0], negatives.valid[0], strict=True):
            assert len(set(index[valid])) == valid.sum(), name


def test_sources_do_what_their_names_say(frozen, sources):
    rows = frozen.row_query[:, None]
    bm25 = sources[BM25]
    scores = frozen.bm25[rows, bm25.index[0]]
    assert np.all(np.diff(np.where(bm25.valid[0], scores, -1), axis=1) <= 0)
    assert np.all(scores[bm25.valid[0]] > 0)
    teacher = np.where(sources[RERANKED].valid[0], frozen.teacher[rows, sources[RERANKED].index[0]], -1)
    assert np.all(np.diff(teacher, axis=1) <= 0)
    np.testing.assert_array_equal(sources[HYBRID].index[..., 0], bm25.index[..., 0])
    below = sources["dense, below 95%"]
    similarity = frozen.queries @ frozen.docs.T
    least = np.where(frozen.relevant, similarity, np.inf).min(axis=1)[rows]
    assert np.all((similarity[rows, below.index[0]] <= least)[below.valid[0]])
    assert (sources["random"].index[0] != sources["random"].index[1]).any()
    with_skip = sources["dense, skip 20"].index[0, :, 0]
    better = (
        similarity
        > similarity[frozen.row_query, with_skip][np.unique(frozen.row_query, return_index=True)[1]][:, None]
    )
    assert np.all((better & ~frozen.excluded).sum(axis=1) == 20)


def test_contamination_adds_other_relevant_documents(frozen, sources):
    clean = sources[BM25]
    shares = []
    for fraction in (0.2, 0.5, 1.0):
        dirty = contaminate(frozen, clean, fraction)
        changed = dirty.index != clean.index
        assert np.all(frozen.relevant[frozen.row_query[:, None], dirty.index][changed])
        assert not (dirty.index == frozen.row_positive[:, None])[dirty.valid].any()
        shares.append(changed.mean())
    assert 0 < shares[0] < shares[1] < shares[2]
    last = contaminate(frozen, clean, 0.5, last=True)
    np.testing.assert_array_equal(last.index[..., :2], clean.index[..., :2])
    assert (last.index[..., 2:] != clean.index[..., 2:]).any()


def test_a_document_without_text_is_neither_positive_nor_negative(folder):
    with (folder / "docs.jsonl").open("a") as file:
        file.write('{"doc_id": "empty", "text": ""}\n')
    with (folder / "qrels.tsv").open("a") as file:
        file.write("1\tempty\t1\n")
    frozen = freeze(load_collection(folder), 32)
    assert 60 not in frozen.row_positive
    options = {"skip": 3, "rerank_depth": 10, "relative_margin": 0.05, "contamination": (1.0,)}
    sources = negative_sources(frozen, count=2, seeds=1, **options)
    for name, negatives in sources.items():
        assert not np.any(negatives.index[negatives.valid] == 60), name
    # The margin is measured from the positives with text, not from the empty one's similarity 0.
    first = sources["dense, below 95%"].index[0, frozen.row_query == 0, 0]
    assert np.all((frozen.queries @ frozen.docs.T)[0, first] > 0)


# Training


def test_loss_by_hand():
    rng = np.random.default_rng(0)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(3, 3, 4))]
    query, positive, negative = unit
    others = np.array([[False, True, False], [True, False, True], [True, True, False]])
    valid = np.array([[True], [False], [True]])
    examples = Examples(*(jnp.asarray(x) for x in (query, positive, negative[:, None], valid, others)))
    losses = contrastive_loss(jnp.eye(4), examples, 0.5)
    for i in range(3):
        terms = [query[i] @ positive[j] for j in range(3) if others[i, j]]
        terms += [query[i] @ negative[i]] if valid[i, 0] else []
        own = np.exp(query[i] @ positive[i] / 0.5)
        expected = -np.log(own / (own + sum(np.exp(t / 0.5) for t in terms)))
        assert float(losses[i]) == pytest.approx(expected, rel=1e-5)
    empty = jax.grad(lambda w: adapt(w, jnp.zeros((1, 4))).sum())(jnp.eye(4))
    assert bool(jnp.all(empty == 0))


def test_training(frozen, sources):
    arrays = on_device(frozen)
    plan = schedule(frozen, seeds=SEEDS, folds=2, steps=6, batch_size=16)
    assert plan.rows.shape == (SEEDS, 2, 6, 16)
    for seed in range(SEEDS):
        assert np.all(np.sum(plan.held_out[seed], axis=0) == 1)  # each query is tested once
        for fold in range(2):
            trained = np.unique(frozen.row_query[np.asarray(plan.rows[seed, fold]).ravel()])
            assert not np.any(plan.held_out[seed, fold][trained])
            assert len(set(np.asarray(plan.rows[seed, fold, 0]))) == 16
    index, valid = (jnp.asarray(x) for x in (sources["random"].index, sources["random"].valid))

    def train(rate):
        return np.asarray(fine_tuned_ndcg(arrays, plan, index, valid, learning_rate=rate, temperature=0.05))

    zero_shot = float(zero_shot_ndcg(arrays))
    np.testing.assert_allclose(train(0.0), zero_shot, rtol=1e-6)
    trained = train(0.01)
    assert np.all(np.abs(trained - zero_shot) > 1e-4)
    assert len(set(trained.tolist())) == SEEDS


def test_predictors_know_invalid_slots(frozen, sources):
    arrays = on_device(frozen)
    index, valid = sources[BM25].index, sources[BM25].valid.copy()
    valid[..., 2:] = False
    values = [
        predictions(
            arrays,
            jnp.asarray(frozen.overlap),
            jnp.asarray(index if same else np.where(valid, index, 0)),
            jnp.asarray(valid),
            triples=64,
            temperature=0.05,
        )
        for same in (True, False)
    ]
    assert set(values[0]) == set(PREDICTORS)
    for name in PREDICTORS:
        np.testing.assert_allclose(values[0][name], values[1][name], rtol=1e-5, err_msg=name)
        assert np.all(np.isfinite(values[0][name]))


# The whole


def test_smoke_run(tmp_path):
    run_dir = RunDir.create("eci", SMOKE, preset="smoke", path=tmp_path / "run")
    report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert all(len(claim["values"]) == SMOKE.seeds for claim in report["claims"])
    assert {figure["file"] for figure in report["figures"]} == {
        "figures/scatter.png",
        "figures/correlations.png",
        "figures/eci.png",
    }
    assert all((run_dir.path / figure["file"]).stat().st_size > 10_000 for figure in report["figures"])
    assert any("proposed reading" in note for note in report["notes"])
    assert [len(table["rows"]) for table in report["tables"]] == [len(PREDICTORS), 9, 18, 3]
    # A resumed run finds its stages and says the same.
    (run_dir.path / "report.json").unlink()
    again = run_experiment(RunDir.resume(run_dir.path, "eci", Config))
    assert [claim["values"] for claim in again["claims"]] == [claim["values"] for claim in report["claims"]]


def test_bad_settings():
    cases = [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"folds": 1}, "folds: expected at least 2, got 1"),
        ({"collections": ()}, "collections: expected at least one"),
        ({"negatives": (4, 4)}, "negatives: expected at least two different positive numbers"),
        ({"negatives": (0, 4)}, "negatives: expected at least two different positive numbers"),
        ({"contamination": ()}, "contamination: expected rising shares"),
        ({"contamination": (0.5, 0.2)}, "contamination: expected rising shares"),
        ({"contamination": (0.5, 1.2)}, "contamination: expected rising shares"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMOKE, **change)
    with pytest.raises(
        ValueError, match=r"pod.queries: expected a multiple of in_batch x chips = 524288, got 100"
    ):
        compile_target(Config(pod=PodScale(queries=100)))


@pytest.mark.parametrize("explicit", [False, True])
def test_pod_step_sharded_equals_unsharded(explicit):
    target = compile_target(Config(pod=PodScale(queries=32, negatives=3, dimensions=8, in_batch=2, chips=8)))
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == jnp.bool_:
            return jnp.asarray(rng.random(leaf.shape) < 0.8)
        rows = rng.normal(size=leaf.shape)
        return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), leaf.dtype)

    batch = jax.tree.map(fill, target.batch)
    params = jnp.eye(8)
    state = target.state._replace(step=jnp.int32(0), params=params, key=jax.random.key(0))
    state = state._replace(
        opt_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), target.state.opt_state)
    )
    expected, metrics = jax.jit(target.step)(state, batch)
    mesh = make_mesh(target.mesh, explicit=explicit)
    step = shard_step(target.step, mesh, state, batch, fsdp=target.fsdp, batch_spec=target.batch_spec)
    sharded, sharded_metrics = step(step.place_state(state), step.place_batch(batch))
    np.testing.assert_allclose(sharded.params, expected.params, atol=1e-5)
    for name in ("loss", "eci", "unsafe_rate"):
        np.testing.assert_allclose(sharded_metrics[name], metrics[name], rtol=1e-4)
    assert float(metrics["eci"]) > 0
    assert not np.allclose(expected.params, params)


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_pod_step_fits_a_pod():
    report = compile_for(compile_target(PRESETS["paper"]), "v5e:16x16")
    assert report.fits
    # Only the adapter's gradient and a few scalars cross the mesh.
    assert sum(report.collectives.values()) < 1.01 * 4 * 768**2
