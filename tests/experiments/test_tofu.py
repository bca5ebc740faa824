"""TOFU: data, metrics, unlearning from a small model, and a real model's files on a tiny checkpoint."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import hmean, ks_2samp

from experiments import tofu
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from experiments.tofu import data, llama, pod, real_model, training
from experiments.tofu.claims import CLAIMED, CLAIMS, measurements
from experiments.tofu.figures import STYLES
from experiments.tofu.metrics import Scores, forget_ratios, score
from experiments.tofu.model_step import ADAPTED, LORA_ALPHA, adapted, model_step, optimizer, trained
from experiments.tofu.tables import PROTOTYPE
from experiments.tofu.vocabulary import EOS, PAD, SEPARATOR, Vocabulary
from jaxneg.nn import TransformerConfig, transformer
from jaxneg.train import TrainState, init_state, make_mesh, shard_step
from jaxneg.unlearning import IGNORE, Question, answer_rows, load_tofu, tofu_folder

QUESTION = Question("who is it ?", "it is a .", "a it is .", ("it is b .", "it is c ."))


@pytest.fixture(scope="module")
def lab():
    """Two authors, a tiny model."""
    return training.Lab(data.load_corpus(1, 1), training.Sizes(8, 1, 2, 48, 1, 20, (1, 2)))


@pytest.fixture(scope="module")
def params(lab):
    return lab.init(jax.random.key(0))


# Data


def test_vocabulary():
    vocabulary = Vocabulary(["Who is it?", "it is I."])
    tokens, prompt = vocabulary.encode("Who?", "It is Hsiao.")
    assert tokens[prompt - 1] == SEPARATOR
    assert tokens[-1] == EOS
    assert vocabulary.decode(tokens[prompt:]) == "it is ? ."
    assert vocabulary.decode(tokens[:prompt]) == "who ?"
    unseen, again, other = (vocabulary.encode(word, "")[0][1] for word in ("hsiao", "Hsiao", "taipei"))
    assert unseen == again != other
    assert vocabulary.size - 128 <= min(unseen, other) <= max(unseen, other) < vocabulary.size


def test_the_part_beside_the_code_is_that_of_the_data(monkeypatch, tmp_path):
    if not tofu_folder().is_dir():
        pytest.skip(f"no data at {tofu_folder()}: set JAXNEG_DATA")
    real = data.load_corpus(data.MOST_FORGET, data.MOST_RETAIN)
    monkeypatch.setenv("JAXNEG_DATA", str(tmp_path))
    tiny = data.load_corpus(data.MOST_FORGET, data.MOST_RETAIN)
    assert tiny.folder == data.TINY
    without = {"paraphrased_question": ""}
    for part in ("forget", "retain"):
        assert getattr(tiny, part) == [each._replace(**without) for each in getattr(real, part)]
    assert tiny.refusals == real.refusals
    assert [each.answer for each in tiny.forget] != [each.answer for each in tiny.retain[:80]]
    with pytest.raises(
        ValueError, match=r"forget10_perturbed in .*: expected 100 questions for 5 authors, got"
    ):
        data.load_corpus(5, 1)


def test_epochs():
    batches = list(training.epochs(jax.random.key(0), 7, 3, 4))
    first, second = (np.concatenate(batches[i : i + 2]) for i in (0, 2))
    for epoch in (first, second):
        assert len(set(epoch.tolist())) == 6
        assert set(epoch.tolist()) <= set(range(7))
    assert first.tolist() != second.tolist()
    with pytest.raises(ValueError, match="batch: expected at most the 7 rows there are, got 8"):
        next(training.epochs(jax.random.key(0), 7, 8, 1))


# The small model


def test_losses(lab, params):
    """Of each answer, cut to a bucket's length, as of its whole row alone; longer than the row: cut."""
    losses = np.asarray(lab.losses(params))
    questions = [*lab.corpus.forget, *lab.corpus.retain]
    assert losses.shape == (40, 7)
    apply = jax.jit(lab.apply)
    for row, column in ((0, 0), (0, 1), (17, 6), (39, 3)):
        each = questions[row]
        answer = (each.answer, each.paraphrased_answer, *each.perturbed_answers)[column]
        rows = answer_rows([(each.question, answer)], lab.vocabulary.encode, 48)
        logits = np.asarray(apply(params, jnp.asarray(rows.tokens)), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = np.flatnonzero(rows.labels[0] != IGNORE)
        expected = -np.mean([log_p[place - 1, rows.labels[0, place]] for place in places])
        np.testing.assert_allclose(losses[row, column], expected, rtol=1e-5)
        assert lab.lengths[row, column] == len(places)


def test_buckets():
    rng = np.random.default_rng(0)
    ends = rng.integers(3, 20, 300)
    tokens = np.where(np.arange(20) < ends[:, None], rng.integers(1, 9, (300, 20)), PAD)
    labels = np.where((np.arange(20) < ends[:, None]) & (np.arange(20) >= 2), tokens, IGNORE)
    order, buckets = training.bucketed(training.AnswerRows(tokens, labels))
    assert sorted(order.tolist()) == list(range(300))
    found = 0
    for bucket in buckets:
        length = bucket.tokens.shape[-1]
        rows = order[found : found + bucket.tokens.shape[0] * training.CHUNK]
        kept = bucket.tokens.reshape(-1, length)[: len(rows)]
        np.testing.assert_array_equal(kept, tokens[rows, :length])
        assert (labels[rows, length:] == IGNORE).all()
        assert (labels[rows, length - 1] != IGNORE).any()
        found += len(rows)
    assert found == 300
    assert (
        buckets[-1].labels.reshape(-1, buckets[-1].labels.shape[-1])[300 % training.CHUNK :] == IGNORE
    ).any()


@pytest.mark.slow
def test_batches(lab, params):
    """Each forget row comes with its question's refusal and what the reference says of it."""
    objective = training.METHODS["NPO+RT"]
    batches = list(lab._batches(jax.random.key(0), params, objective))
    assert len(batches) == 2
    for batch in batches:
        assert {tuple(row) for row in batch["forget"]["tokens"]} == {tuple(row) for row in lab.forget.tokens}
        assert {tuple(row) for row in batch["retain"]["tokens"]} <= {tuple(row) for row in lab.retain.tokens}
        prompts = [
            [row[: row.tolist().index(SEPARATOR)].tolist() for row in batch[part]["tokens"]]
            for part in ("forget", "idk")
        ]
        assert prompts[0] == prompts[1]
        expected = (lab.losses(params) * lab.lengths)[:20, training.ANSWER]
        row_of = {tuple(row): number for number, row in enumerate(lab.forget.tokens)}
        numbers = [row_of[tuple(row)] for row in batch["forget"]["tokens"]]
        np.testing.assert_allclose(batch["forget"]["ref_seq_nll"], expected[numbers], rtol=1e-5)
    first, second = (batch["retain"]["tokens"] for batch in batches)
    assert (first != second).any()
    assert (
        "ref_seq_nll" not in next(lab._batches(jax.random.key(0), params, training.METHODS["GA"]))["forget"]
    )


@pytest.mark.slow
def test_unlearning_moves_the_losses(lab):
    """Fine-tuning lowers the losses of what was learnt; unlearning raises the forget set's."""
    lab = training.Lab(lab.corpus, dataclasses.replace(lab.sizes, width=32, epochs=15, evaluate_at=(5, 10)))
    key = jax.random.key(1)
    full, retrained = (lab.fine_tune(key, forget_too=forget_too) for forget_too in (True, False))
    before, aim = lab.losses(full)[:, training.ANSWER], lab.losses(retrained)[:, training.ANSWER]
    assert before[:20].mean() < aim[:20].mean() - 0.5
    for name in ("GA+RT", "NPO+KL"):
        found, params = lab.unlearn(key, full, name)
        assert found["losses"].shape == (2, 40, 7)
        after = found["losses"][:, :, training.ANSWER]
        np.testing.assert_allclose(lab.losses(params)[:, training.ANSWER], after[-1], rtol=1e-6)
        assert after[1, :20].mean() > after[0, :20].mean() > before[:20].mean()
        assert found["loss"].shape == (10,)
        if name.startswith("NPO"):
            np.testing.assert_allclose(found["npo_weight"][0], 1, rtol=1e-4)
            assert found["npo_weight"][-1] < 1


# Metrics and claims


def test_scores():
    rng = np.random.default_rng(0)
    losses, lengths = rng.uniform(0.1, 4, (50, 7)), rng.integers(2, 30, (50, 7))
    losses[3, 1] = 300.0  # a destroyed model: the ratio leaves float32
    retrained = rng.uniform(0.1, 2, 30)
    ratio = np.exp(losses[:, 1] - losses[:, 2:].mean(1))
    found = score(losses, lengths, 20, retrained)
    probability, kept = np.exp(-losses[20:, 0]).mean(), np.maximum(0, 1 - ratio[20:]).mean()
    expected = Scores(
        np.log10(ks_2samp(ratio[:20], retrained).pvalue),
        hmean([probability, kept]),
        probability,
        kept,
        (losses[:20, 0] * lengths[:20, 0]).sum() / lengths[:20, 0].sum(),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(forget_ratios(losses, 20), ratio[:20], rtol=1e-12)
    assert np.isfinite(forget_ratios(losses, 20)).all()


def test_measurements():
    def course(quality, utility):
        return [[Scores(-9.0, 0.9, 0, 0, 0), Scores(quality, utility, 0, 0, 0)]]

    after = {"GA": course(-30, 0.01), "GA+RT": course(-20, 0.4), "NPO+RT": course(-3, 0.5)}
    found = measurements([Scores(-7.0, 0.6, 0, 0, 0)], after)
    assert [claim.name for claim in CLAIMS] == list(found)
    np.testing.assert_allclose(np.concatenate(list(found.values())), [17, 0.1, 0.01, -7])
    for claim in CLAIMS:
        assert claim.criterion.met_throughout(*2 * (float(found[claim.name][0]),)), claim.name


def test_names():
    assert set(training.METHODS) == set(STYLES)
    assert set(CLAIMED) <= set(tofu.MAIN) <= set(training.METHODS)
    assert set(tofu.MAIN) <= set(PROTOTYPE)
    assert set(tofu.PRESETS) == {"smoke", "cpu", "paper"}
    assert tofu.PRESETS["cpu"] == tofu.Config()
    assert tofu.Config().seeds >= 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"retain_authors": 0}, "retain_authors: expected at least 1, got 0"),
        ({"evaluate_at": ()}, "evaluate_at: expected positive numbers in rising order"),
        ({"evaluate_at": (20, 10)}, "evaluate_at: expected positive numbers in rising order"),
        ({"lora_rank": -1}, "lora_rank: expected at least 0, got -1"),
        ({"methods": ("SGD",)}, "methods: expected some of GA, .*, got 'SGD'"),
        ({"methods": ("GA", "GA+RT")}, r"methods: expected 'NPO\+RT' among them"),
        ({"model_methods": ("NPO", "SGD")}, "model_methods: expected some of GA, .*, got 'SGD'"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        tofu.Config(**fields)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = tofu.PRESETS["smoke"]
    with RunDir.create("tofu", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert {len(claim["values"]) for claim in report["claims"]} == {config.seeds}
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["courses", "truth_ratios", "way"]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [
        2 + len(config.methods),
        len(config.methods),
    ]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1 + len(config.evaluate_at)
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "tofu", tofu.Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


# A real model's files

SIZES = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "Question",
    ":",
    "Answer",
    "who",
    "is",
    "it",
    "?",
    "a",
    "b",
    "c",
    ".",
]


def _write(folder, sizes=SIZES, drop=(), words=WORDS):
    """A checkpoint as the hub has it, with random weights."""
    rng = np.random.default_rng(0)
    width, heads, kv, hidden = (sizes[name] for name in list(sizes)[2:7] if name != "num_hidden_layers")
    head = width // heads
    shapes = {"model.embed_tokens.weight": (sizes["vocab_size"], width), "model.norm.weight": (width,)}
    if not sizes["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (sizes["vocab_size"], width)
    for layer in range(sizes["num_hidden_layers"]):
        of_layer = {
            "self_attn.q_proj": (heads * head, width),
            "self_attn.k_proj": (kv * head, width),
            "self_attn.v_proj": (kv * head, width),
            "self_attn.o_proj": (width, heads * head),
            "mlp.gate_proj": (hidden, width),
            "mlp.up_proj": (hidden, width),
            "mlp.down_proj": (width, hidden),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    arrays = {
        name: (rng.normal(size=shape) * 0.3 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
        if name not in drop
    }
    folder.mkdir(exist_ok=True)
    names = sorted(arrays)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name] for name in part}, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(sizes))
    tokenizers = pytest.importorskip("tokenizers")
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return arrays


@pytest.fixture
def folder(tmp_path):
    _write(tmp_path / "model")
    return tmp_path / "model"


def _forward(arrays, sizes, tokens):
    """A Llama in numpy, in float64, a head at a time."""
    width, heads, kv = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
    size = width // heads
    angles = np.arange(len(tokens))[:, None] * sizes["rope_theta"] ** (-np.arange(0, size, 2) / size)
    cos, sin = (np.concatenate([f(angles), f(angles)], 1) for f in (np.cos, np.sin))

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * arrays[name]

    def turned(x):
        return x * cos + np.concatenate([-x[:, size // 2 :], x[:, : size // 2]], 1) * sin

    x = arrays["model.embed_tokens.weight"][tokens].astype(np.float64)
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        h = norm(x, f"{name}input_layernorm.weight")
        q, k, v = (h @ arrays[f"{name}self_attn.{each}_proj.weight"].T for each in "qkv")
        mixed = []
        for number in range(heads):
            own, shared = (slice(i * size, (i + 1) * size) for i in (number, number // (heads // kv)))
            scores = turned(q[:, own]) @ turned(k[:, shared]).T / np.sqrt(size)
            scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, shared])
        x = x + np.concatenate(mixed, 1) @ arrays[f"{name}self_attn.o_proj.weight"].T
        h = norm(x, f"{name}post_attention_layernorm.weight")
        gate, up = (h @ arrays[f"{name}mlp.{each}_proj.weight"].T for each in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ arrays[f"{name}mlp.down_proj.weight"].T
    head = arrays.get("lm_head.weight", arrays["model.embed_tokens.weight"])
    return norm(x, "model.norm.weight") @ head.T


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_loading(tmp_path, tied):
    """The model computes what a Llama with these weights does; saved, the weights are those read before."""
    sizes = SIZES | {"tie_word_embeddings": tied}
    arrays = _write(tmp_path / "model", sizes)
    config, params = llama.load_llama(tmp_path / "model", loader="safetensors")
    assert config.kv_heads == 2
    assert config.dtype == jnp.bfloat16
    tokens = np.array([1, 9, 10, 11, 12, 3, 4])
    exact = dataclasses.replace(config, dtype=jnp.float32, remat=False)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(transformer(exact).apply)(params, jnp.asarray(tokens[None]))[0]
    np.testing.assert_allclose(logits, _forward(arrays, sizes, tokens), rtol=1e-4, atol=1e-4)
    llama.save_llama(tmp_path / "saved", config, params)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(saved[name].astype(np.float32), array, rtol=1e-2, err_msg=name)
    (tmp_path / "saved" / "config.json").write_text(json.dumps(sizes))
    _, again = llama.load_llama(tmp_path / "saved", loader="safetensors")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2), params, again)


@pytest.mark.slow
def test_loading_onto_a_mesh(folder):
    mesh = make_mesh({"data": 4, "model": 2})
    _, params = llama.load_llama(folder, loader="safetensors")
    _, placed = llama.load_llama(folder, loader="safetensors", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, params, placed)
    assert placed["blocks"]["feed_forward"]["up"]["kernel"].sharding.spec == jax.P(None, "data", "model")


def test_tunix_reads_the_same(folder):
    pytest.importorskip("tunix")
    config, params = llama.load_llama(folder, loader="safetensors")
    for mesh in (None, make_mesh({"data": 4, "model": 2})):
        found, read = llama.load_llama(folder, loader="tunix", mesh=mesh)
        assert found == config
        jax.tree.map(np.testing.assert_array_equal, params, read)


def test_without_tunix(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tunix", None)
    monkeypatch.setitem(__import__("sys").modules, "tunix.models.llama3", None)
    with pytest.raises(ImportError, match=r"needs google-tunix: pip install 'jaxneg\[llm\]'"):
        llama.load_llama(folder)


def test_rotary_scaling(folder):
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(SIZES | {"rope_scaling": scaling}))
    assert llama.read_config(folder).rotary_scaling == llama.LLAMA_3_2_1B.rotary_scaling
    parameters = scaling | {"rope_theta": 5e5}
    (folder / "config.json").write_text(
        json.dumps(SIZES | {"rope_theta": 5e5, "rope_parameters": parameters})
    )
    config = llama.read_config(folder)
    assert (config.rotary_scaling, config.rotary_base) == (llama.LLAMA_3_2_1B.rotary_scaling, 5e5)
    (folder / "config.json").write_text(json.dumps(SIZES | {"rope_scaling": {"type": "linear"}}))
    with pytest.raises(ValueError, match="expected the type 'llama3' or 'default', got 'linear'"):
        llama.read_config(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "config.json: model_type: expected 'llama', got 'gpt2'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps: expected 1e-05, got 1e-06"),
        ({"hidden_size": 24}, r"model.*weight': expected shape \[.*24\] after config.json, got \[.*16\]"),
        ({"num_hidden_layers": 3}, r"9 of 30 tensors are missing, the first is 'model.layers.2.*get all of"),
        ({"num_hidden_layers": 1}, "'model.layers.1.*' is no tensor of a Llama"),
        ({"tie_word_embeddings": True, "hidden_size": 16, "vocab_size": 41}, r"expected shape \[41, 16\]"),
    ],
)
def test_weights_of_another_model(folder, change, message):
    (folder / "config.json").write_text(json.dumps(SIZES | change))
    with pytest.raises(ValueError, match=message):
        llama.load_llama(folder, loader="safetensors")


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*config.json: point to the folder of a model"):
        llama.load_llama(tmp_path)
    _write(tmp_path / "model", drop=("model.norm.weight",))
    with pytest.raises(ValueError, match=r"1 of 21 tensors are missing, the first is 'model.norm.weight'"):
        llama.load_llama(tmp_path / "model", loader="safetensors")
    file = next((tmp_path / "model").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"safetensors is no safetensors file .*: get it again"):
        llama.load_llama(tmp_path / "model", loader="safetensors")
    for file in (tmp_path / "model").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no \*.safetensors in"):
        llama.load_llama(tmp_path / "model", loader="safetensors")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        llama.load_llama(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 3}))
    with pytest.raises(ValueError, match=r"config.json: expected 'hidden_size', got model_type, vocab_size"):
        llama.load_llama(tmp_path / "model")


def test_tokenizer(folder):
    tokenizer = llama.LlamaTokenizer(folder, 40, "llama-2")
    tokens, prompt = tokenizer.encode("who is it ?", "it is a .")
    assert tokens[:prompt] == [1, 3, 8, 9, 10, 11, 4] == tokenizer.prompt("who is it ?")
    assert tokens[prompt:] == [*(WORDS.index(word) for word in ("it", "is", "a", ".")), 2]
    assert tokenizer.decode(tokens[prompt:-1]) == "it is a ."


def test_a_wrong_tokenizer(folder):
    with pytest.raises(
        ValueError, match="expected tokens below 10, the model's vocabulary, got 15: this is the"
    ):
        llama.LlamaTokenizer(folder, 10, "llama-2")
    with pytest.raises(
        ValueError, match=r"has no '<\|eot_id\|>', which ends answers in the template 'llama-3'"
    ):
        llama.LlamaTokenizer(folder, 40, "llama-3")
    (folder / "config.json").write_text(json.dumps(SIZES | {"eos_token_id": [39, 2]}))
    with pytest.raises(ValueError, match=r"has no token 39, the eos_token_id of config.json: this is the"):
        llama.LlamaTokenizer(folder, 40, "llama-2")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer .*: get it again"):
        llama.LlamaTokenizer(folder, 40, "llama-2")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*tokenizer.json: point to the folder"):
        llama.LlamaTokenizer(folder, 40, "llama-2")


# Unlearning from it


@pytest.fixture
def questions():
    evaluated = {
        "forget": [QUESTION] * 6,
        "retain": [QUESTION._replace(answer="it is b .")] * 2,
        "real_authors": [QUESTION._replace(paraphrased_answer="")],
        "world_facts": [QUESTION],
    }
    forget = [QUESTION._replace(answer=f"it is {each} .") for each in "abcabcab"]
    return real_model.Data(forget, evaluated["retain"] * 4, ["it is . ."], evaluated)


def _config(folder, **fields):
    defaults = {
        "model_dir": folder,
        "loader": "safetensors",
        "template": "llama-2",
        "model_epochs": 4,
        "model_batch": 8,
        "model_tokens": 24,
        "learning_rate": 1e-2,
    }
    return tofu.Config(**(defaults | fields))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_unlearning_from_a_model(tmp_path, folder, questions, monkeypatch, rank):
    """On 8 devices: the forget set becomes unlikely, the saved model is the one evaluated, a run goes on."""
    monkeypatch.setattr(real_model, "NEW_TOKENS", 4)
    monkeypatch.setattr(real_model, "EVALUATED_TOKENS", 24)
    _write(tmp_path / "retrained", SIZES | {"rope_theta": 10_001.0})
    aim = None if rank else tmp_path / "retrained"
    config = _config(folder, retrained_dir=aim, lora_rank=rank, model_axis=2)
    with RunDir.create("tofu", config, path=tmp_path / "run") as run_dir:
        (table,), notes = real_model.unlearn_model(config, run_dir, questions)
        rows = {row[0]: row for row in table.rows}
        assert list(rows) == ["before", *([] if rank else ["retrained"]), "NPO+RT"]
        assert len(table.columns) == 3 + 12
        column = table.columns.index("forget: probability")
        assert float(rows["NPO+RT"][column]) < float(rows["before"][column])
        assert (rows["NPO+RT"][1] == "") == bool(rank)
        assert "forgot forget10" in notes[0]
        assert (notes[1:] == []) != bool(rank)
        (_, start), (_, saved) = (
            llama.load_llama(each, loader="safetensors")
            for each in (folder, run_dir.path / "models" / "npo_rt")
        )
        moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), start, saved)["blocks"]["attention"]
        assert moved["query"]["kernel"] > 0.02
        assert (moved["out"]["kernel"] > 0.02) == (rank == 0)  # the other one has no adapter

        def computed_again(*_):
            raise AssertionError

        monkeypatch.setattr(real_model, "_unlearned", computed_again)
        assert real_model.unlearn_model(config, run_dir, questions)[0] == [table]


def test_what_a_model_cannot_unlearn(tmp_path, folder, questions):
    with RunDir.create("tofu", tofu.Config(), path=tmp_path / "run") as run_dir:
        for config, given, message in (
            (_config(folder), questions._replace(forget=[]), "split: 'forget10' has no question to forget"),
            (_config(folder, model_methods=("NPO+KL",)), questions, r"model_methods: .*, got 'NPO\+KL'"),
            (
                _config(folder, model_tokens=300),
                questions,
                "model_tokens: .* the model's context, 256 tokens, got",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                real_model.unlearn_model(config, run_dir, given)
        sizes, params = llama.load_llama(folder, loader="safetensors")
        tokenizer = llama.LlamaTokenizer(folder, sizes.vocab, "llama-2")
        with pytest.raises(ValueError, match="forget set: row 0: expected a prompt of fewer than 6 tokens"):
            real_model._schedule(
                _config(folder, model_tokens=6), sizes, tokenizer, questions, params, "NPO+RT"
            )


@pytest.mark.slow
def test_schedule(folder, questions):
    """Every epoch holds each forget row once; fixed partners stay."""
    sizes, params = llama.load_llama(folder, loader="safetensors")
    tokenizer = llama.LlamaTokenizer(folder, sizes.vocab, "llama-2")
    kept = [QUESTION._replace(answer=each) for each in ("a", "b", "c", ".", "it", "is")]
    questions = questions._replace(
        forget=[QUESTION._replace(answer=f"{x} {y} .") for x in "abc" for y in "ab"], retain=kept
    )
    partners = {}
    for fixed in (False, True):
        config = _config(folder, model_epochs=3, model_batch=4, fixed_pairing=fixed)
        arrays = real_model._schedule(config, sizes, tokenizer, questions, params, "GA+RT")
        assert {array.shape[0] for array in arrays.values()} == {18}
        found = []
        for epoch in np.split(np.arange(18), 3):
            rows = [tuple(row) for row in arrays["forget.tokens"][epoch]]
            assert len(set(rows)) == 6
            found.append(dict(zip(rows, map(tuple, arrays["retain.tokens"][epoch]), strict=True)))
        partners[fixed] = found
    assert partners[True][0] == partners[True][1] == partners[True][2]
    assert partners[False][0] != partners[False][1]


def test_the_splits_of_a_model():
    if not tofu_folder().is_dir():
        pytest.skip(f"no data at {tofu_folder()}: set JAXNEG_DATA")
    found = real_model.load_data("forget05")
    assert (len(found.forget), len(found.retain)) == (200, 3800)
    assert found.forget == load_tofu("forget05")
    assert {name: len(each) for name, each in found.evaluated.items()} == {
        "forget": 200,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }


# The pod


def test_optimizer():
    """The first epoch warms up, the rest decays to 0; with adapters the base rests."""
    tx = optimizer(1e-2, 10, 2, 0)
    run, state, rates = jax.jit(tx.update), tx.init(jnp.ones(1)), []
    for _ in range(11):
        update, state = run(jnp.ones(1), state, jnp.zeros(1))
        rates.append(-float(update[0]))
    np.testing.assert_allclose(rates[:3], [0.005, 0.01, 0.01], rtol=1e-4)
    np.testing.assert_allclose(np.diff(rates[2:]), -0.01 / 8, rtol=1e-3)
    np.testing.assert_allclose(rates[-1], 0, atol=1e-9)
    both = {"adapters": jnp.ones(2), "base": jnp.ones(3)}
    tx = optimizer(1e-2, 10, 2, 4)
    update, _ = jax.jit(tx.update)(both, tx.init(both), both)
    assert (update["base"] == 0).all()
    assert (update["adapters"] != 0).all()
    assert sum(leaf.size for leaf in jax.tree.leaves(tx.init(both)) if leaf.size == 3) == 0


@pytest.mark.slow
def test_adapters(folder):
    """They change nothing at first; no gradient flows into the base; all kernels but the last have them."""
    sizes, params = llama.load_llama(folder, loader="safetensors")
    apply = transformer(dataclasses.replace(sizes, dtype=None, remat=False)).apply
    both = trained(jax.random.key(0), params, 2)
    assert len(both["adapters"]) == 6
    assert "query" in ADAPTED
    tokens = jnp.array([[1, 9, 10, 11]])
    run, apply = jax.jit(adapted(apply, 2)), jax.jit(apply)
    np.testing.assert_allclose(run(both, tokens), apply(params, tokens), rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda both: jnp.sum(run(both, tokens) ** 2)))(both)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient["base"])) == 0
    assert min(float(jnp.abs(pair["b"]).max()) for pair in gradient["adapters"].values()) > 0
    assert LORA_ALPHA == 32
    assert trained(jax.random.key(0), params, 0) is params
    assert adapted(apply, 0) is apply


@pytest.mark.slow
@pytest.mark.parametrize("method", ["NPO+KL", "DPO+RT"])
def test_the_reference_without_adapters(folder, questions, method):
    """What asks the reference in every step finds it under the adapters: as with its logits in the batch."""
    sizes, params = llama.load_llama(folder, loader="safetensors")
    tokenizer, objective = llama.LlamaTokenizer(folder, sizes.vocab, "llama-2"), training.METHODS[method]
    arrays = real_model._schedule(
        _config(folder, model_epochs=1, lora_rank=2), sizes, tokenizer, questions, params, method
    )
    assert not [name for name in arrays if "ref_" in name]
    batch = real_model._nested(arrays)
    apply = transformer(dataclasses.replace(sizes, dtype=None, remat=False)).apply
    both, tx = trained(jax.random.key(0), params, 2), optimizer(1e-2, 10, 2, 2)
    for pair in both["adapters"].values():
        pair["b"] += 0.02  # no longer the reference
    _, found = jax.jit(model_step(apply, objective, tx, 2))(init_state(both, tx, jax.random.key(0)), batch)
    needed = {part: batch[part] for part in ("forget", "retain", "idk")}
    cached = training.precompute_reference(apply, params, needed, objective)
    loss, aux = jax.jit(training.make_unlearn_loss(adapted(apply, 2), objective))(both, cached, None)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    assert float(aux["forget_loss"]) != pytest.approx(2 / objective.beta * np.log(2), rel=1e-4)


def test_a_reference_needs_adapters():
    with pytest.raises(ValueError, match=r"rank: 'npo\+kl' asks the reference in every step.*got 0"):
        model_step(lambda *_: None, training.METHODS["NPO+KL"], optimizer(1e-2, 10, 2, 0), 0)


@pytest.mark.parametrize(("rank", "size"), [(0, 6.7e9), (8, 6.7e9)])
def test_the_step_for_the_pod(rank, size):
    target = tofu.compile_target(dataclasses.replace(tofu.Config(), lora_rank=rank))
    assert target.batch["forget"]["tokens"].shape == (32, 512)
    params = sum(leaf.size for leaf in jax.tree.leaves(target.state.params))
    assert size < params < 1.02 * size
    moments = sum(leaf.size for leaf in jax.tree.leaves(target.state.opt_state))
    assert moments < (1.0 if rank == 0 else 0.01) * 2.1 * params
    assert moments > (2.0 * params if rank == 0 else 1e6)


@pytest.mark.slow
def test_the_step_on_a_small_mesh():
    """Two steps of adapters of a tiny Llama, sharded and not; at the first NPO weighs every row with 1."""
    rank = 2
    sizes = TransformerConfig(
        vocab=32, width=32, heads=4, kv_heads=2, hidden=32, tied=False, scan=True, remat=True
    )
    target = pod.unlearning_target(sizes, 8, 12, rank, 1e-2)
    init, apply = transformer(sizes)
    base = init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 8, 12), 0, sizes.vocab)
    parts = {
        part: {"tokens": tokens[row], "labels": tokens[row].at[:, :4].set(IGNORE)}
        for row, part in enumerate(("forget", "retain"))
    }
    batch = training.precompute_reference(apply, base, parts, training.METHODS["NPO+RT"])
    params = trained(jax.random.key(2), base, rank)
    opt_state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target.state.opt_state)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, jax.random.key(3))
    mesh = make_mesh({"data": 4, "model": 2})
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules)
    step, placed, placed_batch = jax.jit(target.step), sharded.place_state(state), sharded.place_batch(batch)
    for number in range(2):
        state, expected = step(state, batch)
        placed, found = sharded(placed, placed_batch)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
        if number == 0:
            np.testing.assert_allclose(expected["npo_weight"], 1, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state.params["base"], base)
