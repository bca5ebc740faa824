"""The experiment: loaders, texts, training, mechanism, the whole on the embedded graph, the pod's step."""

import dataclasses
import gzip
import importlib.util
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lemon import CLAIMS, PRESETS, Config, GraphPlan, PodScale, compile_target
from experiments.lemon import graphs as graph_files
from experiments.lemon.graphs import TINY, find_graph, k_core, load_graph, read_graph
from experiments.lemon.mechanism import drawing_seconds, hardness, plausible_and_false
from experiments.lemon.results import GraphResult
from experiments.lemon.tables import PAPER_WN18RR, paper_table
from experiments.lemon.texts import embed, neighbourhoods, published_neighbourhoods
from experiments.lemon.training import Arm, arms_of, draws, evaluate, on_device, schedule, train
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg import kg
from jaxneg.train import compile_for, make_mesh, shard_step

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def umls():
    return read_graph(TINY)


@pytest.fixture
def folder(tmp_path):
    """A graph as WN18RR and KG-BERT distribute it: plain files, texts for some of the entities."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "train.txt").write_text("a\tlikes\tb\nb\tlikes\tc\nc\tknows\ta\n")
    (path / "valid.txt").write_text("a\tlikes\tc\n")
    (path / "test.txt").write_text("b\tknows\ta\n")
    (path / "entity2text.txt").write_text("a\tan apple\nb\ta banana\n")
    return path


# The loaders


def test_embedded_graph(umls):
    assert (len(umls.entities), len(umls.relations)) == (135, 46)
    assert [len(part) for part in (umls.train, umls.valid, umls.test)] == [5216, 652, 661]
    assert umls.texts[1] == "virus"
    assert umls.embeddings is None
    assert not umls.notes


def test_public_format(folder):
    graph = read_graph(folder)
    assert graph.entities == ["a", "b", "c"]
    assert graph.train.tolist() == [[0, 0, 1], [1, 0, 2], [2, 1, 0]]
    assert graph.test.tolist() == [[1, 1, 0]]
    assert graph.texts == ["an apple", "a banana", ""]
    assert any("1 of 3 entities have no text; their negatives are uniform" in note for note in graph.notes)
    for file in list(folder.iterdir()):
        (folder / f"{file.stem}.tsv.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    np.testing.assert_array_equal(read_graph(folder).train, graph.train)


def test_duplicates_and_unseen_entities(folder):
    with (folder / "train.txt").open("a") as file:
        file.write("a\tlikes\tb\n\n")
    (folder / "test.txt").write_text("b\tknows\ta\nz\tlikes\ta\n")
    graph = read_graph(folder)
    assert len(graph.train) == 3
    assert any("1 duplicate triples of train" in note for note in graph.notes)
    assert any("1 of 2 test triples have an entity that training lacks" in note for note in graph.notes)
    params = kg.kge_init(jax.random.key(0), "TransE", len(graph.entities), 2, 4, gamma=6.0)
    metrics = evaluate("TransE", params, graph.test, kg.known_triples(graph.known, len(graph.entities)))
    assert 0 < metrics["MRR"] <= 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "train.txt",
            "a\tlikes\n",
            r"train.txt, line 1: expected head, relation and tail between tabs, got 'a",
        ),
        ("train.txt", "a\tlikes\tb\na likes c\n", "train.txt, line 2: expected head, relation and tail"),
        ("valid.txt", "a\t\tb\n", "valid.txt, line 1: expected head"),
        ("test.txt", "\n", "test.txt: no triple: expected head"),
        ("entity2text.txt", "a\tx\na\ty\n", "entity2text.txt, line 2: 'a' occurs twice: remove one"),
        ("entity2text.txt", "\tx\n", "entity2text.txt, line 1: expected an identifier, a tab and a text"),
        (
            "entities.tsv",
            "a\tx\nb\ty\n",
            r"train.txt, line 2: entity 'c' is not in entities.tsv: add it there",
        ),
        ("relations.tsv", "likes\tlikes\n", "train.txt, line 3: relation 'knows' is not in relations.tsv"),
    ],
)
def test_bad_lines(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_graph(folder)


def test_bad_files(folder):
    (folder / "train.txt").write_bytes(b"a\tlikes\tb\nb\tlikes\tcaf\xe9\n")
    with pytest.raises(
        ValueError, match=r"train.txt, after line \d: not readable as UTF-8 .* get the file again"
    ):
        read_graph(folder)
    (folder / "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a file train with one of the suffixes .txt"):
        read_graph(folder)
    shutil.copy(TINY / "train.tsv.gz", folder)
    (folder / "train.tsv.gz").write_bytes((folder / "train.tsv.gz").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"train.tsv.gz, after line"):
        read_graph(folder)


def test_stored_embeddings(folder):
    np.savez(folder / "minilm_l6.npz", name=np.ones((2, 4)))
    with pytest.raises(
        ValueError, match=r"array 'name': expected a row for each of 3 entities, got \(2, 4\)"
    ):
        read_graph(folder)
    np.savez(folder / "minilm_l6.npz", other=np.ones((3, 4)))
    with pytest.raises(
        ValueError, match="expected an array name, emb or long64, got other: embed the texts again"
    ):
        read_graph(folder)
    np.savez(folder / "minilm_l6.npz", emb=2 * np.ones((2, 4), np.float16), entity_index=np.array([0, 2]))
    graph = read_graph(folder)
    np.testing.assert_allclose(graph.embeddings, [[0.5] * 4, [0] * 4, [0.5] * 4])
    _, encoder = embed(graph, "stored", "")
    assert "TF-IDF" in encoder  # not all entities are stored


def test_find_graph(tmp_path, monkeypatch, folder):
    (tmp_path / "lemon" / "wn18rr").mkdir(parents=True)
    monkeypatch.setenv("JAXNEG_DATA", str(tmp_path))
    assert find_graph("wn18rr-core3") == tmp_path / "lemon" / "wn18rr"
    assert find_graph("umls") == TINY
    assert find_graph(str(folder)) == folder
    with pytest.raises(
        FileNotFoundError, match=r"there is no graph 'codex-s': .*lemon/codex-s\).* wn18rr, umls"
    ):
        find_graph("codex-s")
    monkeypatch.delenv("JAXNEG_DATA")
    monkeypatch.setattr(graph_files, "data_folder", lambda: tmp_path / "absent")
    assert find_graph("wn18rr-core3") is None
    assert load_graph("wn18rr-core3") is None


def test_core(folder):
    ring = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 3)]
    triples = np.array([(a, 0, b) for a, b in ring], np.int32)
    graph = dataclasses.replace(
        read_graph(folder),
        entities=list("abcd"),
        train=triples,
        valid=triples[:1],
        test=triples[:1],
        texts=list("wxyz"),
    )
    core = k_core(graph, 2)
    assert core.entities == ["a", "b", "c"]
    assert core.train.tolist() == [[0, 0, 1], [1, 0, 2], [2, 0, 0]]
    assert core.texts == ["w", "x", "y"]
    with pytest.raises(ValueError, match="core3: no triple of train is left: choose a lower core number"):
        k_core(graph, 3)


def test_core_of_wn18rr():
    folder = graph_files.data_folder() / "wn18rr"
    if not folder.is_dir():
        pytest.skip(f"no word net at {folder}: set JAXNEG_DATA")
    graph = load_graph("wn18rr-core3")
    assert len(graph.entities) == 8632
    assert [len(part) for part in (graph.train, graph.valid, graph.test)] == [26_028, 655, 669]
    np.testing.assert_allclose(np.linalg.norm(graph.embeddings, axis=1), 1, rtol=1e-5)


# Texts


def test_an_entity_without_text_is_in_no_cluster(umls):
    texts = ["" if i == 4 else text for i, text in enumerate(umls.texts)]
    rows, encoder = embed(dataclasses.replace(umls, texts=texts), "stored", "")
    assert "TF-IDF" in encoder
    assert not rows[4].any()
    nb, found, _ = neighbourhoods(rows, 32, 12, 12, seed=0)
    assert nb.labels[4] == -1
    assert 4 not in nb.members.tolist()
    assert np.flatnonzero(~found.points.any(axis=1)).tolist() == [4]
    published = published_neighbourhoods(rows, seed=0)
    assert published.row[4] == -1
    assert 4 not in published.sets.members.tolist()
    with pytest.raises(
        ValueError, match=r"expected at least two entities with a text, got 0: add entities.tsv"
    ):
        neighbourhoods(np.zeros((3, 4), np.float32), 2, 2, 2, 0)


def test_absent_encoder(umls, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install sentence-transformers, or take --encoder tfidf"):
        embed(umls, "sentence-transformers", "any")

    class Module:
        class SentenceTransformer:
            def __init__(self, name):
                assert name == "mine"

            def encode(self, texts, normalize_embeddings):
                assert normalize_embeddings
                return np.ones((len(texts), 3))

    monkeypatch.setitem(sys.modules, "sentence_transformers", Module)
    rows, encoder = embed(
        dataclasses.replace(umls, texts=["", *umls.texts[1:]]), "sentence-transformers", "mine"
    )
    assert encoder == "mine"
    assert rows[0].tolist() == [0, 0, 0]
    assert rows[1].tolist() == [1, 1, 1]


# Training and mechanism


@pytest.fixture(scope="module")
def prepared(umls):
    plan = SMOKE.word_net
    rows, _ = embed(umls, "tfidf", "")
    nb = {12: neighbourhoods(rows, 32, 12, 12, seed=0)[0]}
    arms = arms_of(plan, (0.0,), rivals=True)
    return plan, on_device(umls), draws(umls, nb, published_neighbourhoods(rows, seed=0), arms, 0.5), nb


def test_batches():
    rows = schedule(10, 4, 5, seed=1)
    assert rows.shape == (5, 4)
    assert len(set(rows[:2].ravel())) == 8
    assert len(set(rows[2:4].ravel())) == 8
    assert schedule(3, 8, 2, seed=0).shape == (2, 3)


def test_draws_are_the_librarys(umls, prepared):
    """The one program of all arms draws as `sample_lemon` and `sample_sans` do."""
    _, arrays, ways, nb = prepared
    triples = arrays.train[:50]
    key = jax.random.key(0)
    lemon = ways[Arm("lemon", 0.0, 12)].sample(key, triples, "tail", 8)
    np.testing.assert_array_equal(lemon, kg.sample_lemon(key, nb[12], triples[:, 2], 8, mix=0.0))
    sans = kg.khop_neighbourhoods(umls.train, 135, 2, "reach")
    np.testing.assert_array_equal(
        ways[Arm("sans")].sample(key, triples, "head", 8), kg.sample_sans(key, sans, triples[:, 2], 8, 135)
    )
    rows, _ = embed(umls, "tfidf", "")
    code = published_neighbourhoods(rows, seed=0)
    np.testing.assert_array_equal(
        ways[Arm("lemon_code")].sample(key, triples, "tail", 8),
        kg.sample_candidates(key, code.sets, code.row[triples[:, 0]], 8, 135),
    )
    uniform = ways[Arm("uniform")].sample(key, triples, "tail", 8)
    np.testing.assert_array_equal(uniform, kg.sample_uniform(jax.random.split(key)[0], triples[:, 2], 8, 135))
    assert float(ways[Arm("uniform", adversarial=True)].alpha) == 0.5
    assert float(ways[Arm("uniform")].alpha) == 0.0


@pytest.mark.slow
def test_every_arm_learns(umls, prepared):
    plan, arrays, ways, _ = prepared
    known = kg.known_triples(umls.known, 135)
    untrained = kg.kge_init(jax.random.key(0), plan.model, 135, 46, plan.dimensions, plan.gamma)
    start, steps = evaluate(plan.model, untrained, umls.test, known)["MRR"], 600
    for arm, way in ways.items():
        params, losses, _ = train(plan, umls, arrays, arm, way, steps, seed=0)
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10]), arm.name
        assert evaluate(plan.model, params, umls.test, known)["MRR"] > start + 0.05, arm.name
    again, _, _ = train(plan, umls, arrays, Arm("uniform"), ways[Arm("uniform")], 60, seed=0)
    other, _, _ = train(plan, umls, arrays, Arm("uniform"), ways[Arm("uniform")], 60, seed=1)
    assert not np.allclose(again["entity"], other["entity"])


def test_mechanism(umls, prepared):
    _, arrays, ways, _ = prepared
    uniform, lemon = ways[Arm("uniform")], ways[Arm("lemon", 0.0, 12)]
    (plain, plain_false), (near, _) = (plausible_and_false(umls, arrays, way, 0) for way in (uniform, lemon))
    # 2000 positives x 16 draws a side of the specification's prototype: 0.173 and 4.3 %.
    assert plain == pytest.approx(0.173, abs=0.01)
    assert plain_false == pytest.approx(0.043, abs=0.004)
    assert near > 1.05 * plain  # TF-IDF of two words; the criterion of 1.2 is for a sentence encoder
    flat = {"entity": jnp.zeros((135, 4)), "relation": jnp.zeros((46, 4)), "gamma": jnp.float32(2.0)}
    assert hardness("TransE", flat, umls, arrays, lemon, 0) == pytest.approx(1 / (1 + np.exp(-2)), rel=1e-5)
    first, second, ratio = drawing_seconds(arrays, uniform, lemon, 64, 4, pairs=3)
    assert min(first, second, ratio) > 0


def test_sentence_embeddings_give_plausible_negatives():
    graph = load_graph("umls")
    if graph.embeddings is None:
        pytest.skip("no embeddings beside umls: set JAXNEG_DATA")
    nb = {12: neighbourhoods(graph.embeddings, 32, 12, 12, seed=0)[0]}
    arms = [Arm("uniform"), Arm("lemon", 0.0, 12)]
    published = published_neighbourhoods(graph.embeddings, seed=0)
    ways, arrays = draws(graph, nb, published, arms, 0.5), on_device(graph)
    (plain, plain_false), (near, near_false) = (plausible_and_false(graph, arrays, ways[a], 0) for a in arms)
    assert near >= 1.2 * plain
    assert near_false > 2 * plain_false  # why the graph is the documented failure


# The whole


def test_paper_table_has_no_invented_number():
    arms = arms_of(SMOKE.word_net, (0.0,), rivals=False)
    metrics = {name: {arm: np.array([0.25, 0.25]) for arm in arms} for name in ("MRR", "HITS@10")}
    table = paper_table(GraphResult(SMOKE.word_net, arms, metrics, metrics, {}, {}, {}))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Bernoulli"] == ["n/a"] * 4
    assert rows["RW-SANS"] == [".2317", "53.41", "n/a", "n/a"]
    assert rows["LEMON"] == [".2145", "51.22", "0.2500", "25.00"]
    assert rows["LEMON, replaced entity's"] == ["n/a", "n/a", "0.2500", "25.00"]
    assert set(rows) == set(PAPER_WN18RR)


def test_smoke_run(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_files, "data_folder", lambda: tmp_path / "absent")
    run_dir = RunDir.create("lemon", SMOKE, preset="smoke", path=tmp_path / "run")
    report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert all(len(claim["values"]) == SMOKE.seeds for claim in report["claims"])
    names = {figure["file"] for figure in report["figures"]}
    assert names == {"figures/quality.png", "figures/draws.png", "figures/clusters.png"}
    assert all((run_dir.path / name).stat().st_size > 10_000 for name in names)
    assert any("proposed reading" in note for note in report["notes"])
    assert any("Both roles are played by one graph, umls" in note for note in report["notes"])


def test_bad_settings():
    for change, message in (
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"mixes": ()}, "mixes: expected at least one share from 0 to 1"),
        ({"mixes": (1.5,)}, "mixes: expected at least one share"),
        ({"alpha": 0.0}, "alpha: expected a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMOKE, **change)
    with pytest.raises(ValueError, match="clusters: expected at least one positive number"):
        GraphPlan("umls", clusters=())
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        GraphPlan("umls", batch_size=0)
    with pytest.raises(ValueError, match=r"pod.model: expected one of TransE"):
        PodScale(model="none")
    with pytest.raises(ValueError, match=r"pod.batch_size: expected a multiple of pod.data = 16, got 100"):
        PodScale(batch_size=100)


@pytest.mark.slow
def test_pod_step_sharded_equals_unsharded():
    """At a size where the neighbourhoods and the known triples are real ones."""
    pod = PodScale(
        entities=21, relations=2, triples=30, dimensions=4, batch_size=8, negatives=4, data=2, model_axis=4
    )
    target = compile_target(Config(pod=pod))
    rng = np.random.default_rng(0)
    triples = rng.integers(0, (21, 2, 21), (30, 3)).astype(np.int32)
    params = kg.kge_init(jax.random.key(0), pod.model, 21, 2, 4, gamma=9.0, row_multiple=4)
    state = target.state._replace(
        step=jnp.int32(0),
        params=params,
        opt_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), target.state.opt_state),
        key=jax.random.key(1),
        neighbourhoods=kg.text_neighbourhoods(rng.integers(0, 8, 21), rng.normal(size=(8, 2)), 4),
        known=kg.known_triples(triples, 21, 2),
    )
    batch = {"triples": jnp.asarray(triples[:8]), "weight": jnp.ones(8)}
    expected, metrics = jax.jit(target.step)(state, batch)
    step = shard_step(target.step, make_mesh(target.mesh), state, batch, rules=target.rules, fsdp=None)
    found, sharded_metrics = step(step.place_state(state), step.place_batch(batch))
    assert found.params["entity"].sharding.spec == jax.P("model", None)
    np.testing.assert_allclose(found.params["entity"], expected.params["entity"], atol=1e-5)
    np.testing.assert_allclose(sharded_metrics["loss"], metrics["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_pod_step_fits_a_pod():
    report = compile_for(compile_target(PRESETS["paper"]), "v5e:16x16")
    assert report.fits
