"""The experiment: triples, generator, simulated pools, the whole run on the embedded collection, the pod."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cet import (
    CLAIMS,
    PRESETS,
    Config,
    Generated,
    Pod,
    Real,
    compile_target,
    generator,
    pod,
    pooled,
)
from experiments.cet.pooled import Pooling
from experiments.cet.training import Arm, Listed, Recipe, Run, draw_triples, scorer, train
from experiments.collections import TINY, Triple, data_folder, load_collection
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.nn import CrossEncoderConfig, cross_encoder
from jaxneg.retrieval import init_cet
from jaxneg.train import compile_for, make_mesh, shard_step

SMOKE = PRESETS["smoke"]
SMALL = CrossEncoderConfig(vocab=13, width=8, layers=1, heads=2, max_length=16)


@pytest.fixture(scope="module")
def tiny():
    return pooled.score(load_collection(TINY))


# Triples


def test_triples_are_labelled_and_not():
    rng = np.random.default_rng(0)
    label = rng.random((6, 9)) < 0.3
    label[2] = False
    negatives = np.array([[d for d in range(9) if not row[d]][:3] for row in label])
    negatives[3, 1:], negatives[4] = -1, -1
    triples = draw_triples(rng, label, negatives, np.arange(5), 40, 8)
    assert triples.shape == (40, 8, 3)
    query, positive, negative = triples.reshape(-1, 3).T
    assert set(query) == {0, 1, 3}  # 2 has no label, 4 no negative, 5 was not asked for
    assert label[query, positive].all()
    assert all(n in negatives[q] and n >= 0 for q, n in zip(query, negative, strict=True))
    for q in (0, 1, 3):  # all of them are drawn
        assert set(positive[query == q]) == set(np.flatnonzero(label[q]))
        assert set(negative[query == q]) == set(negatives[q][negatives[q] >= 0])


def test_a_pool_without_positives_is_named():
    with pytest.raises(
        ValueError, match="none of 4 queries has both a labelled document and a negative: make"
    ):
        draw_triples(
            np.random.default_rng(0), np.zeros((4, 3), bool), np.ones((4, 1), int), np.arange(4), 1, 1
        )


# The generator


def test_the_generator_is_what_it_says():
    world = generator.World(queries=60)
    drawn = generator.sample(world, 0)
    assert (drawn.relevant.sum(axis=1) == 10).all()
    z_s = drawn.retrievers[generator.WEAK]
    np.testing.assert_allclose(drawn.data["pooling"][..., -1], z_s, rtol=1e-5)
    pool = np.argsort(np.argsort(-z_s, axis=1), axis=1) < 20
    np.testing.assert_array_equal(drawn.label, drawn.relevant & pool)
    false = {
        name: np.take_along_axis(drawn.relevant, lists, axis=1).mean()
        for name, lists in drawn.negatives.items()
        if name != generator.UNIFORM
    }
    assert false[generator.WEAK] < 0.06  # all 20 that were pooled come first, but for the labelled ones
    assert 0.2 < false[generator.STRONG] < 0.4


def test_weights_of_arms_reach_the_training():
    recipe, seeds = Recipe(hidden=4), 2
    sizes = {"seeds": seeds, "steps": 5, "batch": 8}
    world = generator.World(queries=12, documents=30)
    arms = (generator.NAIVE_STRONG, generator.ORACLE, Arm("all weighted", "strong", filter="perc-pos"))
    found = generator.compare(world, recipe, **sizes, arms=arms)
    assert {name: values.shape for name, values in found.items()} == {
        **dict.fromkeys(("ndcg", "mrr", "false_weight", "false_share"), (3, seeds)),
        "retrievers": (2, seeds),
    }
    assert np.isnan(found["false_weight"][0]).all()
    assert (found["false_weight"][1] == 0).all()
    np.testing.assert_array_equal(found["false_share"][0], found["false_share"][1])
    again = generator.compare(world, recipe, **sizes, arms=arms[:1])
    np.testing.assert_array_equal(again["ndcg"][0], found["ndcg"][0])


def test_training_ranks_what_it_was_taught():
    data = {"x": jax.random.normal(jax.random.key(0), (4, 12, 3))}
    relevant = np.asarray(data["x"][..., 0] > 0.3)

    def see(data, queries, documents):
        x = data["x"][queries, documents]
        return x, x

    rng = np.random.default_rng(0)
    negatives = np.argsort(relevant, axis=1, kind="stable")[:, :3]
    triples = np.stack([draw_triples(rng, relevant, negatives, np.arange(4), 150, 16)] * 2)
    listed = Listed(jnp.broadcast_to(jnp.arange(12), (4, 12)), jnp.asarray(relevant))
    keys = jax.random.split(jax.random.key(0), 2)
    weight = np.stack([np.ones(triples.shape[1:3]), np.zeros(triples.shape[1:3])]).astype(np.float32)
    runs = Run(keys, *(jnp.asarray(x) for x in (triples, weight, np.zeros(weight.shape, bool))))
    recipe = Recipe(hidden=8, learning_rate=0.02, weight_decay=0.0)
    found = train(see, data, listed, runs, Arm("naive", ""), recipe)
    assert found["ndcg"][0].mean() > 0.9  # the second run's pairs have no weight: it has learnt nothing
    assert found["ndcg"][0].mean() > found["ndcg"][1].mean() + 0.1


def test_scorer_drops_hidden_units():
    model, rows = scorer(3, Recipe(hidden=200, dropout=0.5)), jnp.ones((1, 3))
    params = model.init(jax.random.key(0))
    scores = np.array([model.apply(params, rows, jax.random.key(i))[0] for i in range(30)])
    assert len(set(scores.tolist())) == 30
    assert abs(scores.mean() - float(model.apply(params, rows)[0])) < 4 * scores.std() / 30**0.5


# Collections


def test_features_and_labels(tiny):
    data = tiny.data
    assert np.isfinite(np.concatenate([array.ravel() for array in data.values()])).all()
    best = tiny.retrievers[pooled.BM25].argmax(axis=1)
    rows = np.arange(len(best))
    np.testing.assert_allclose(data["pooling"][rows, best, 0], 1, rtol=1e-6)
    np.testing.assert_allclose(data["pooling"][rows, best, 1], np.log(2) / 7, rtol=1e-6)
    assert (data["pooling"][..., 2] <= 1).all()
    retrieved = tiny.retrievers[pooled.BM25] > -np.inf
    np.testing.assert_array_equal(retrieved, data["pooling"][..., 2] > 0)  # a term of the query occurs
    by_bm25 = pooled.labels(tiny, Pooling(pooled.BM25, 5, 5))
    at_random = pooled.labels(tiny, Pooling(pooled.RANDOM, 5, 5), seed=1)
    assert not by_bm25[~tiny.relevant].any()
    assert not at_random[~tiny.relevant].any()
    np.testing.assert_array_equal(by_bm25.sum(axis=1), at_random.sum(axis=1))


def test_every_query_is_tested_by_a_model_of_other_queries(tiny):
    sizes = {"seeds": 2, "folds": 2, "steps": 3, "batch": 8, "candidates": 20}
    arms = (pooled.NAIVE_DENSE, Arm("oracle", pooled.DENSE, filter="oracle"))
    found = pooled.compare(
        tiny, Pooling(pooled.BM25, 5, 10), Recipe(hidden=4, dropout=0.2), **sizes, arms=arms
    )
    assert {values.shape for values in found.values()} == {(2, 2)}
    assert ((found["ndcg"] > 0) & (found["ndcg"] <= 1)).all()
    np.testing.assert_array_equal(found["false_share"][0], found["false_share"][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cranfield", "cisi", "vaswani"])
def test_facts_of_real_collections(name):
    if not (data_folder() / name).is_dir():
        pytest.skip("needs the collections: set JAXNEG_DATA")
    scored = pooled.score(load_collection(data_folder() / name))
    quality = pooled.retriever_quality(scored)
    np.testing.assert_allclose(quality[pooled.BM25], pooled.BM25_REFERENCE[name], atol=1e-3)
    if name in pooled.DENSE_REFERENCE:
        np.testing.assert_allclose(quality[pooled.DENSE], pooled.DENSE_REFERENCE[name], atol=1e-3)
        shares = pooled.false_negative_shares(scored)
        expected = {
            "cranfield": ([7.6, 4.5, 0.9, 0.0], [10.9, 8.4, 5.7, 3.3]),
            "cisi": ([16.7, 12.6, 4.9, 0.0], [28.8, 26.6, 24.1, 18.6]),
        }[name]
        for retriever, values in zip((pooled.BM25, pooled.DENSE), expected, strict=True):
            np.testing.assert_allclose(100 * shares[retriever], values, atol=0.15)


# The whole


def test_smoke_run(tmp_path):
    run_dir = RunDir.create("cet", SMOKE, preset="smoke", path=tmp_path / "run")
    report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    seeds = [len(claim["values"]) for claim in report["claims"]]
    assert seeds == [2] * 5 + [len(pooled.DEPTHS)] + [2] * 3
    names = {"generator", "temperature", "false_negatives", "collections"}
    assert {figure["file"] for figure in report["figures"]} == {f"figures/{name}.png" for name in names}
    assert all((run_dir.path / figure["file"]).stat().st_size > 10_000 for figure in report["figures"])
    assert any("favourable by construction" in note for note in report["notes"])
    assert [len(table["rows"]) for table in report["tables"]] == [len(generator.DECISIVE) + 2, 4, 2, 3]
    # A resumed run finds its stages and says the same.
    (run_dir.path / "report.json").unlink()
    again = run_experiment(RunDir.resume(run_dir.path, "cet", Config))
    assert [claim["values"] for claim in again["claims"]] == [claim["values"] for claim in report["claims"]]


def test_bad_settings():
    cases = [
        ({"generated": Generated(seeds=0)}, "seeds: expected at least 1, got 0"),
        ({"generated": Generated(queries=2)}, "queries: expected at least 3, got 2"),
        ({"real": Real(folds=1)}, "folds: expected at least 2, got 1"),
        ({"real": Real(collections=())}, "collections: expected at least one"),
        ({"real": Real(depths=(5,), listed=(1, 2))}, "depths, listed: expected positive numbers, as many"),
        ({"real": Real(depths=(0,), listed=(1,))}, "depths, listed: expected positive numbers"),
        ({"real": Real(dropout=1.0)}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"pod": Pod(pairs=0)}, "pairs: expected at least 1, got 0"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMOKE, **change)


# The paper's models


def rows_of(rng, pairs, tokens=6):
    side = {
        "tokens": rng.integers(0, SMALL.vocab, (pairs, tokens)),
        "segments": rng.integers(0, 2, (pairs, tokens)),
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), side | {"mask": np.ones((pairs, tokens))})


@pytest.mark.parametrize("explicit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pod_step_sharded_equals_unsharded(explicit):
    rng = np.random.default_rng(0)
    target = pod.cross_encoder_target(8, 6, config=SMALL, data=8)
    batch = {"pos": rows_of(rng, 8), "neg": rows_of(rng, 8)}
    params = cross_encoder(SMALL).init(jax.random.key(0))
    tx = pod.optimizer()
    state = init_cet(jax.random.key(1), params, params, tx, tx)
    assert jax.tree.structure(state) == jax.tree.structure(target.state)
    _, metrics = jax.jit(target.step)(state, batch)
    step = shard_step(target.step, make_mesh(target.mesh, explicit=explicit), state, batch, fsdp=None)
    after, found = step(step.place_state(state), step.place_batch(batch))
    np.testing.assert_allclose(found["loss_R"], metrics["loss_R"], rtol=1e-2)
    np.testing.assert_allclose(after.params["R"]["pooler"]["kernel"], params["pooler"]["kernel"], rtol=1e-6)
    assert float(metrics["grad_norm_R"]) > 0  # but the first update of a warm-up has the rate 0


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "wings", "make", "lift", "of", "birds"]
    model = tokenizers.models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    found = tokenizers.Tokenizer(model)
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return found


def test_texts_become_rows(tokenizer):
    triples = [Triple("line 1", "wings", "wings make lift", "birds " * 300)] * 5
    batches = list(pod.triple_batches(triples, tokenizer, 2))
    assert len(batches) == 2  # the fifth makes no batch
    pos, neg = (batches[0][side] for side in ("pos", "neg"))
    assert pos["tokens"].shape == (2, pod.QUERY + pod.DOCUMENT + 3)
    assert pos["tokens"][0, :8].tolist() == [2, 4, 3, 4, 5, 6, 3, 0]
    assert pos["segments"][0, :8].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert pos["mask"][0].sum() == 7
    assert neg["mask"][0].sum() == 1 + 3 + pod.DOCUMENT
    assert neg["tokens"][0, neg["mask"][0].sum() - 1] == 3
    with pytest.raises(ValueError, match=r"tokenizer: expected one with \[CLS\] and \[SEP\]"):
        pod.encoded(SimpleNamespace(token_to_id=lambda name: None), [], [])


def test_a_checkpoint_becomes_both_models(tmp_path):
    from safetensors.numpy import save_file

    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    told = transformers.BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    arrays = transformers.BertModel(told).state_dict()
    save_file(
        {f"bert.{name}": array.numpy() for name, array in arrays.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(FileNotFoundError, match=r"expected a file config.json: download a BERT checkpoint"):
        pod.from_checkpoint(tmp_path, jax.random.key(0))
    (tmp_path / "config.json").write_text(json.dumps(told.to_dict()))
    config, state = pod.from_checkpoint(tmp_path, jax.random.key(0))
    assert (config.width, config.layers, config.hidden) == (8, 2, 16)
    both = state.params["R"], state.params["S"]
    np.testing.assert_array_equal(both[0]["words"]["embedding"], both[1]["words"]["embedding"])
    assert np.any(np.asarray(both[0]["head"]["kernel"]) != np.asarray(both[1]["head"]["kernel"]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"config.json: expected model_type 'bert', got 't5'"):
        pod.from_checkpoint(tmp_path, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_pod_step_fits_a_pod():
    report = compile_for(compile_target(PRESETS["paper"]), "v5e:16x16")
    assert report.fits
