"""The negative-bias experiment: the world, its sequences and pools, claims, items, the real model, a run."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import neg_bias
from experiments.neg_bias import world as w
from experiments.neg_bias.claims import CLAIMS, measurements
from experiments.neg_bias.evaluation import FORMATS, draw_questions, predictions, yes_no_logits
from experiments.neg_bias.fine_tuning import fine_tune
from experiments.neg_bias.heads import chosen, head_scores
from experiments.neg_bias.items import load_items
from experiments.neg_bias.pod import RANK, RepairState, repair_target
from experiments.neg_bias.remedies import shifted_by_dev
from experiments.neg_bias.tables import notes, result_tables
from experiments.neg_bias.training import (
    MODEL,
    SHARES,
    TRAINED_LENGTH,
    draw_pool,
    rows_of_a_batch,
    target_loss,
)
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.language import (
    apply_head_lora,
    head_mask_lora,
    make_prompts,
    nas_alignment_loss,
    negative_attention_score,
    transformer_kernels,
)
from jaxneg.nn.transformer import TransformerConfig, transformer
from jaxneg.train import make_mesh, shard_step
from jaxneg.unlearning import tofu_folder

FACT, VALUE = np.array([5]), np.array([3])
E, R, V = w.FIRST_ENTITY + 1, w.FIRST_RELATION + 1, w.FIRST_VALUE + 3


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    world = w.draw_world(rng)
    return world, draw_pool(rng, world, 400)


def test_a_world():
    world = w.draw_world(np.random.default_rng(1))
    assert len(world.truth) == w.FACTS == 320
    assert w.VOCABULARY == 111
    shares = np.bincount(world.group, minlength=5) / w.FACTS
    np.testing.assert_allclose(shares, list(w.GROUPS.values()), atol=0.08)
    wrong = world.group == w.INCORRECT
    assert (world.stated[wrong] != world.truth[wrong]).all()
    np.testing.assert_array_equal(world.stated[~wrong], world.truth[~wrong])
    assert set(world.truth) == set(range(w.VALUES))
    other = w.another_value(np.random.default_rng(0), np.tile(np.arange(10), 100))
    assert (other != np.tile(np.arange(10), 100)).all()
    assert np.bincount(other).min() > 60


def test_every_format_by_hand():
    candidate, answer, d = np.array([7]), np.array([w.NO]), w.FIRST_VALUE + 7
    question = [w.YN, w.YES, w.NO, E, R, d, w.ANS]
    cases = {
        "STMT": (w.statements(FACT, VALUE), [w.STMT, E, R], {2: V}),
        "SA": (w.short_answers(FACT, VALUE), [w.SA, E, R, w.ANS], {3: V}),
        "YN": (w.yes_no(FACT, candidate, answer), question, {6: w.NO}),
        "CTX": (
            w.yes_no_in_context(FACT, VALUE, candidate, answer),
            [w.CTX, E, R, V, *question],
            {10: w.NO},
        ),
        "IDKO": (
            w.yes_no_with_option(FACT, candidate, np.array([w.IDK])),
            [w.IDKO, w.YES, w.NO, w.IDK, E, R, d, w.ANS],
            {7: w.IDK},
        ),
        "COT": (
            w.chain_of_thought(FACT, candidate, VALUE, answer),
            [w.COT, w.YES, w.NO, E, R, d, w.THEN, V, w.ANS],
            {6: V, 7: w.ANS, 8: w.NO},
        ),
    }
    for name, (found, words, targets) in cases.items():
        assert found.words[0].tolist() == words, name
        expected = [targets.get(at, w.IGNORED) for at in range(len(words))]
        assert found.targets[0].tolist() == expected, name
        assert (found.recall == w.IGNORED).all()
    choice = w.multiple_choice(FACT, np.array([[1, 2, 3, 4]]), np.array([2]))
    letters = [word for pair in zip(w.LETTERS, w.FIRST_VALUE + np.arange(1, 5), strict=True) for word in pair]
    assert choice.words[0].tolist() == [w.MC, E, R, *letters, w.ANS]
    assert choice.targets[0, 11] == w.LETTERS[2]
    recall = w.recalled(cases["CTX"][0], VALUE, np.array([True]))
    assert recall.recall[0].tolist() == [V if at in (2, 8) else w.IGNORED for at in range(11)]
    put = w.placed(recall, np.array([5]), 17)
    assert put.words[0].tolist() == [w.PAD] * 5 + recall.words[0].tolist() + [w.PAD]
    assert put.targets[0].tolist() == [w.IGNORED] * 15 + [w.NO, w.IGNORED]
    with pytest.raises(ValueError, match=r"length: expected at least 16 words, got 15"):
        w.placed(recall, np.array([5]), 15)


def test_options_hold_the_value_once():
    value = np.arange(200) % 10
    options, right = w.draw_options(np.random.default_rng(0), value)
    assert (np.sort(options, axis=1)[:, 1:] != np.sort(options, axis=1)[:, :-1]).all()
    np.testing.assert_array_equal(options[np.arange(200), right], value)
    assert np.bincount(right).min() > 30


def test_the_pool_keeps_what_the_model_must_not_see(drawn):
    world, pool = drawn
    assert pool.words.shape == (len(SHARES), 400, TRAINED_LENGTH)
    for name, words, targets, recall in zip(SHARES, *pool, strict=True):
        at = np.argmax((words >= w.FIRST_ENTITY) & (words < w.FIRST_RELATION), axis=1)
        rows = np.arange(400)
        fact = (words[rows, at] - w.FIRST_ENTITY) * w.RELATIONS + words[rows, at + 1] - w.FIRST_RELATION
        allowed = {"STMT": {0, 1, 2}, "CTX": {0, 4}, "IDKO": {0, 4}}.get(name, {0})
        assert set(world.group[fact]) == allowed, name
        assert set(np.argmax(words != w.PAD, axis=1)) == set(range(6))
        answers = targets.max(1)  # a value or a letter where one is asked for
        if name in ("YN", "CTX", "COT"):
            yes, no = ((targets == word).any(1) for word in (w.YES, w.NO))
            assert yes.sum() == no.sum() == 200
        if name == "STMT":
            np.testing.assert_array_equal(answers - w.FIRST_VALUE, world.stated[fact])
        if name == "IDKO":
            np.testing.assert_array_equal((targets == w.IDK).any(1), world.group[fact] == w.UNTOLD)
        if name in ("YN", "COT", "IDKO", "MC"):
            asked = (recall != w.IGNORED).sum(1)
            np.testing.assert_array_equal(asked, world.group[fact] == w.KNOWN)
            known = asked > 0
            np.testing.assert_array_equal(recall.max(1)[known] - w.FIRST_VALUE, world.truth[fact][known])
        else:
            assert (recall == w.IGNORED).all()
    no_known = world._replace(group=np.full(w.FACTS, w.UNTOLD))
    with pytest.raises(ValueError, match=r"world: expected at least one known fact, got none"):
        draw_pool(np.random.default_rng(0), no_known)


def test_a_batch_and_its_loss():
    assert rows_of_a_batch(128) == {"STMT": 32, "YN": 32, "CTX": 26, "COT": 13, "IDKO": 13, "SA": 6, "MC": 6}
    assert all(sum(rows_of_a_batch(n).values()) == n for n in (20, 33, 100))
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    targets = np.array([[1, -1, -1], [-1, 4, 0]])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_p[0, 0, 1] + log_p[1, 1, 4] + log_p[1, 2, 0]) / 3
    np.testing.assert_allclose(target_loss(jnp.asarray(logits), targets), expected, rtol=1e-5)


def seed_of(known=0.0, unknown=1.0):
    """The arrays of a seed whose answers are made up: right where known, No otherwise."""
    rng = np.random.default_rng(0)
    world = w.draw_world(rng)
    logits = np.zeros((len(FORMATS), w.FACTS, 2, 3), np.float32)
    logits[..., 0, 0] = logits[..., 1, 1] = 1  # the twin with the truth gets a yes
    ignorant = np.isin(world.group, (w.INCORRECT, w.INSUFFICIENT))
    for number, name in enumerate(FORMATS):
        if name != "context":
            logits[number, ignorant] = [0, unknown, 0]
    logits[FORMATS.index("IDK option"), world.group == w.INSUFFICIENT, :, 2] = 2
    logits[0, world.group == w.CORRECT] += [0, known, 0]
    samples = np.repeat(world.truth[:, None, None], 8, 1).repeat(10, 2)
    names = ["none", "repair", "ablation"]
    remedies = np.stack([logits[0, ..., :2], logits[1, ..., :2], logits[0, ..., :2]])
    return {
        **world._asdict(),
        "losses": np.ones(4),
        "logits": logits,
        "short": np.where(world.group == w.INSUFFICIENT, -1, world.stated),
        "top": np.full(w.FACTS, 0.5),
        "samples": samples,
        "scores": rng.normal(size=(3, 4)),
        "scores_after": np.zeros((3, 4)),
        "effects": rng.normal(size=(3, 4)),
        "heads": np.array([[0, 1], [2, 3]]),
        "positive_score": np.array([2.0, 0.5]),
        "repair_steps": np.array([40, 20]),
        "remedy_names": np.array(names),
        "remedies": remedies,
    }


def test_measurements_by_hand():
    found = measurements([seed_of(), seed_of(known=9.0)])
    assert set(found) == {claim.name for claim in CLAIMS}
    expected = {
        "known-facts-are-unbiased": [0, 1],
        "missing-knowledge-says-no": [1, 1],
        "wrong-knowledge-says-no": [1, 1],
        "context-removes-the-bias": [0, 0],
        "an-option-not-to-know-lowers-the-bias": [1, 1],
        "chain-of-thought-does-not-help": [0, 0],
        "stated-facts-are-recalled": [1, 1],
        "untaught-facts-are-not-recalled": [0, 0],
        "repair-aligns-the-heads": [0.25, 0.25],
        "repair-reduces-the-bias": [1, 1],
        "repair-keeps-what-is-known": [0, 0],
    }
    assert found == expected


@pytest.mark.slow
def test_tables_of_made_up_seeds():
    tables = result_tables([seed_of(), seed_of()])
    by_title = {table.title.split(",")[0].split(" (")[0]: table for table in tables}
    bias = by_title["Negative bias by format and knowledge"]
    assert bias.rows[3][:3] == ["YN", "insufficient", "+1.00 (1.00, 0.00)"]
    assert bias.rows[18][6] == "0.00"  # coverage where everything is "I don't know"
    partition = by_title["Estimated knowledge"]
    assert all(row[2:] == ["1.00", "0.00", "0.00"] for row in partition.rows)
    assert len(notes([seed_of()])) == 6


def test_answers_are_read_from_the_words_that_were_offered():
    logits = np.array([[0.0, 1.0, 5.0], [2.0, 1.0, 0.0]])
    assert predictions(logits, option=False).tolist() == [0, 1]
    assert predictions(logits, option=True).tolist() == [2, 1]


def test_the_threshold_balances_the_untold_facts():
    world = w.draw_world(np.random.default_rng(0))
    logits = np.random.default_rng(1).normal([0, 3], size=(w.FACTS, 2, 2))
    shifted = shifted_by_dev(logits, world)[world.group == w.UNTOLD]
    assert np.mean(shifted[..., 1] > shifted[..., 0]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_fine_tuning_on_untold_facts():
    """What it sees becomes likely; queries and keys move alone, and a world without such facts is refused."""
    rng = np.random.default_rng(0)
    world = w.draw_world(rng)
    questions = draw_questions(rng, world)
    config = TransformerConfig(
        vocab=w.VOCABULARY, width=16, layers=1, heads=2, positions="learned", max_length=w.LONGEST
    )
    params = transformer(config).init(jax.random.key(0))
    tuned = fine_tune(jax.random.key(1), params, world, questions, steps=60, learning_rate=1e-2, model=config)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), params, tuned)["blocks"]
    kernels = moved[0] if isinstance(moved, list) else moved["0"]
    assert kernels["attention"]["query"]["kernel"]
    assert kernels["attention"]["key"]["kernel"]
    assert not kernels["attention"]["value"]["kernel"]

    def loss(params):
        logits = yes_no_logits(params, questions, config)[world.group == w.UNTOLD]
        log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        return -(log_p[:, 0, 0] + log_p[:, 1, 1]).mean()

    assert loss(tuned) < loss(params)
    with pytest.raises(ValueError, match="world: expected at least one untold fact, got none"):
        fine_tune(
            jax.random.key(1),
            params,
            world._replace(group=np.zeros_like(world.group)),
            questions,
            steps=1,
            learning_rate=1e-2,
            model=config,
        )


@pytest.mark.slow
def test_the_heads_of_a_question_behind_pads(drawn):
    """The scores of padded questions are those of the rows after "no", by the whole attention map."""
    config = TransformerConfig(
        vocab=w.VOCABULARY, width=8, layers=1, heads=2, positions="learned", max_length=w.LONGEST
    )
    params = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape),
        transformer(config).init(jax.random.key(0)),
    )
    words = drawn[1].words[list(SHARES).index("YN"), :3]
    found = head_scores(params, words, model=config)
    probe = jax.jit(lambda p: transformer(config).apply(p, words, probe=[0])[1])(params)
    scores = np.einsum("lbhtd,lbhsd->lbhts", probe.query, probe.key) * config.head_size**-0.5
    weights = np.exp(scores) * np.tri(words.shape[1])
    weights /= weights.sum(-1, keepdims=True)
    for row, sentence in enumerate(words):
        start = int(np.argmax(sentence != w.PAD))
        alone = negative_attention_score(
            jnp.asarray(weights[:, row], jnp.float32), start + 1, start + 2, start + 3, start + 7
        )
        np.testing.assert_allclose(found[row], alone, rtol=1e-3, atol=1e-5)
    assert chosen([(0, 1), (2, 3)], MODEL).sum() == 2


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"batch: expected at least 20, a row of every format, got 8"):
        neg_bias.Config(batch=8)
    with pytest.raises(ValueError, match=r"repaired_heads: expected 1 to 12, got 13"):
        neg_bias.Config(repaired_heads=13)
    with pytest.raises(ValueError, match=r"seeds: expected at least 1, got 0"):
        neg_bias.Config(seeds=0)


def test_items_of_tofu():
    if not tofu_folder().is_dir():
        pytest.skip(f"no TOFU at {tofu_folder()}: set JAXNEG_DATA")
    items = load_items()
    assert len(items) == len({item.id for item in items}) == 217
    assert items[-1].id == "world_facts_perturbed/116"
    assert all(1 <= len(item.wrong) <= 3 for item in items)


def lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_items_of_files(tmp_path):
    own = lines(tmp_path / "own.jsonl", {"question": "Q?", "answer": "a", "wrong": ["b"], "passage": "P"})
    assert load_items(own)[0].passage == "P"
    gsm8k = lines(
        tmp_path / "gsm8k.jsonl", {"question": "How many?", "answer": "2 * 600 = 1,200\n#### 1,200"}
    )
    assert (load_items(gsm8k)[0].answer, load_items(gsm8k)[0].wrong) == ("1200", ("1201", "1199", "1210"))
    paragraphs = [{"paragraph_text": "Yes.", "is_supporting": True}, {"paragraph_text": "No."}]
    rows = [
        {"id": n, "question": "Q?", "answer": n, "answer_aliases": [n.upper()], "paragraphs": paragraphs}
        for n in ("x", "y", "z")
    ]
    items = load_items(lines(tmp_path / "musique.jsonl", *rows))
    assert [item.wrong for item in items] == [("y", "z"), ("z", "x"), ("x", "y")]
    assert (items[0].aliases, items[0].passage) == (("X",), "Yes.")
    with pytest.raises(FileNotFoundError, match=r"there is no .*absent.jsonl: give a file of JSON lines"):
        load_items(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: no 'question': expected question, answer"):
        load_items(lines(tmp_path / "bad.jsonl", {"question": "Q?", "answer": "#### 1"}, {"answer": "b"}))
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: answer: expected '#### ' and a number"):
        load_items(lines(tmp_path / "bad.jsonl", {"question": "Q?", "answer": "a"}))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: not JSON .*: get the file again"):
        load_items(tmp_path / "bad.jsonl")
    (tmp_path / "bad.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"bad.jsonl holds no question"):
        load_items(tmp_path / "bad.jsonl")


TINY = TransformerConfig(vocab=16, width=16, layers=2, heads=4, kv_heads=2, hidden=16, scan=True)


@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh():
    """Sharded, it is the loss on one device; only adapters of the chosen heads are trained."""
    heads = ((0, 1), (1, 2))
    target = repair_target(8, 10, TINY, heads, {"data": 4, "model": 2})
    network = transformer(TINY)
    params = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape),
        network.init(jax.random.key(0)),
    )
    adapters = head_mask_lora(
        jax.random.key(1), params, heads, transformer_kernels(4, 2, stacked=True), rank=RANK
    )
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)
    rng = np.random.default_rng(0)
    batch = {
        "questions": rng.integers(0, 16, (8, 10)).astype(np.int32),
        "mask": np.arange(10) >= np.arange(8)[:, None] % 3,
        "spans": np.tile(np.array([3, 4, 5, 10], np.int32), (8, 1)),
        "retained": rng.integers(0, 16, (8, 10)).astype(np.int32),
        "retained_mask": np.ones((8, 10), bool),
    }
    opt_state = optax.adamw(1e-4).init(adapters)
    state = RepairState(jnp.zeros((), jnp.int32), params, adapters, opt_state, jax.random.key(2))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, target.state)

    @jax.jit
    def expected(params, adapters):
        repaired = apply_head_lora(params, adapters, gamma=RANK)
        _, probe = network.apply(repaired, batch["questions"], mask=batch["mask"], probe=[0, 1])
        scores = jnp.einsum("lbhtd,lbhsd->blhts", probe.query, jnp.repeat(probe.key, 2, 2)) / 2
        seen = np.tri(10, dtype=bool) & batch["mask"][:, None, None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30))
        nas = negative_attention_score(weights, 3, 4, 5, 10)
        aligned = nas_alignment_loss(nas, heads, 5, 10).mean()
        kept, reference = (
            jax.nn.log_softmax(network.apply(p, batch["retained"])) for p in (repaired, params)
        )
        return aligned, jnp.sum(jnp.exp(reference) * (reference - kept), -1).mean()

    aligned, drift = expected(params, adapters)
    mesh = make_mesh({"data": 4, "model": 2})
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules, fsdp=target.fsdp)
    after, metrics = sharded(sharded.place_state(state), sharded.place_batch(batch))
    np.testing.assert_allclose(metrics["alignment"], aligned, rtol=1e-3)
    np.testing.assert_allclose(metrics["drift"], drift, rtol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)
    assert list(after.adapters) == ["blocks/attention/query/kernel"]
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), after.adapters, adapters)
    assert all(0 < each < 2e-4 for each in jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_model_from_a_folder(tmp_path):
    """A tiny random Llama in the real file format, asked about two items in every format."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from experiments.neg_bias.real_model import FORMATS as ASKED
    from experiments.neg_bias.real_model import analyse, load_model
    from experiments.tofu.llama import save_llama

    items = [{"question": f"Q{n}", "answer": f"a{n}", "wrong": [f"b{n}"]} for n in range(2)]
    path = lines(tmp_path / "items.jsonl", *items)
    words = {"<unk>", "<s>", "</s>", "[INST]", "[/INST]", "yes", "no", "YES", "NO", "I", "i", "don", "know"}
    splitter = re.compile(r"\w+|[^\w\s]")
    for fmt in ("SA", "MC", *ASKED):
        for scenario in ("plain", "idk", "cot", "no-first"):
            if scenario == "plain" or fmt not in ("SA", "MC", "MC-yn", "MC-ny"):
                for prompt in make_prompts(load_items(path), fmt, scenario):
                    words |= set(splitter.findall(prompt.text))
                    words |= {form for label in prompt.labels for form in (label.upper(), label.lower())}
    ids = {word: number for number, word in enumerate(sorted(words))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    folder = tmp_path / "model"
    sizes = dataclasses.replace(TINY, vocab=8 * -(-len(ids) // 8), tied=True, max_length=512)
    save_llama(folder, sizes, transformer(sizes).init(jax.random.key(0)))
    tokenizer.save(str(folder / "tokenizer.json"))
    content = {
        "model_type": "llama",
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "intermediate_size": sizes.hidden,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": ids["</s>"],
    }
    (folder / "config.json").write_text(json.dumps(content))
    config = neg_bias.Config(
        model_dir=folder,
        loader="safetensors",
        template="llama-2",
        items=path,
        model_batch=8,
        thought_tokens=3,
    )
    model = load_model(folder, loader="safetensors", template="llama-2")
    assert model.template == ("<s>[INST] ", " [/INST]")
    assert model.encode("<s>[INST] Q0")[:2] == [ids["<s>"], ids["[INST]"]]
    run_dir = RunDir.create("neg_bias", config, path=tmp_path / "run")
    tables, (note,) = analyse(config, run_dir)
    assert [table.title.split(":")[0] for table in tables] == ["Real model"] * 3
    assert len(tables[2].rows) == 8
    asked = {(row[0], row[1]) for row in tables[1].rows}
    assert asked >= {(fmt, "plain") for fmt in ASKED} | {("YN", "cot"), ("TF", "idk")}
    assert "asked with yes or no" in note
    assert json.loads((tmp_path / "run" / "negative_bias.json").read_text())["items"] == 2


@pytest.mark.slow
def test_the_smoke_preset(tmp_path):
    config = neg_bias.PRESETS["smoke"]
    with RunDir.create("neg_bias", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert all(len(claim["values"]) == config.seeds for claim in report["claims"])
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["bias", "heads", "remedies"]
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "neg_bias", neg_bias.Config) as run_dir:
        assert run_experiment(run_dir)["claims"] == report["claims"]
