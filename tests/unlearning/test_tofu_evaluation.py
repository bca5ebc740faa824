"""A whole model on TOFU: every loss against a loop, generations, what is compiled, wrong sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxneg.language import generate
from jaxneg.nn import TransformerConfig, init_cache, transformer
from jaxneg.unlearning import (
    Question,
    TofuLog,
    answer_rows,
    forget_quality,
    make_tofu_evaluation,
    model_utility,
    prompt_rows,
    tofu_report,
    truth_ratio,
)

END, LENGTH, NEW = 1, 12, 5
LETTERS = "abcdefghij"
QUESTIONS = [
    Question("ab", "cde", "ced", ("gd", "hijd")),
    Question("b", "aa", "bb", ("cc", "dd")),
    Question("fgh", "a", "j", ("b", "c")),
]
FACTS = [
    Question("abc", "d", perturbed_answers=("e", "f", "g")),
    Question("i", "jj", perturbed_answers=("a", "b", "c")),
]


def _encode(question, answer):
    return [2 + LETTERS.index(letter) for letter in question + answer] + [END], len(question)


def _decode(tokens):
    tokens = tokens[: tokens.index(END)] if END in tokens else tokens
    return " ".join(LETTERS[token - 2] for token in tokens if token >= 2)


def _params(seed=0):
    """Logits of the next token given the last one and how many there are: no bigram table alone."""
    random, size = np.random.default_rng(seed), 2 + len(LETTERS)
    shapes = {"table": (size, size), "place": (LENGTH, size)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _apply(params, tokens):
    return params["table"][tokens] + params["place"][: tokens.shape[1]]


def _generate(params, tokens, mask):
    """Greedy, in a loop; prompts end in the last column and begin where the mask does."""
    rows = []
    for row, keep in zip(np.asarray(tokens), np.asarray(mask), strict=True):
        seen = row[keep].tolist()
        for _ in range(NEW):
            seen.append(int(np.argmax(_apply(params, np.array([seen]))[0, -1])))
        rows.append(seen[-NEW:])
    return np.array(rows)


def _loss(params, question, answer):
    ids, prompt = _encode(question, answer)
    log_p = log_softmax(_apply(params, np.array([ids]))[0], axis=-1)
    return -np.mean([log_p[t - 1, ids[t]] for t in range(prompt, len(ids))])


@pytest.mark.parametrize("batch", [4, 64])
def test_equals_a_loop_over_questions_and_answers(batch):
    params, sets = _params(), {"forget": QUESTIONS, "world_facts": FACTS}
    evaluate = make_tofu_evaluation(_apply, _generate, _encode, _decode, sets, length=LENGTH, batch=batch)
    logs = evaluate(params)
    assert list(logs) == ["forget", "world_facts"]
    for name, questions in sets.items():
        log = logs[name]
        for n, each in enumerate(questions):
            np.testing.assert_allclose(
                log.answer_loss[n], _loss(params, each.question, each.answer), rtol=1e-5
            )
            np.testing.assert_allclose(log.right_loss[n], _loss(params, each.question, each.right), rtol=1e-5)
            wrong = [_loss(params, each.question, answer) for answer in each.perturbed_answers]
            np.testing.assert_allclose(log.wrong_loss[n], wrong, rtol=1e-5)
    assert (logs["world_facts"].answer_loss == logs["world_facts"].right_loss).all()
    assert (logs["forget"].answer_loss != logs["forget"].right_loss).all()


def test_generations_are_compared_with_the_answers():
    """A model that has learnt the first answer alone: its words are single letters with spaces between."""
    questions = [Question("ab", "cd", "x", ("e",)), Question("b", "e", "x", ("f",))]
    questions = [each._replace(paraphrased_answer="g") for each in questions]
    path = {2: 3, 3: 4, 4: 5, 5: END, END: END}
    table = np.zeros((12, 12), np.float32)
    for here, after in path.items():
        table[here, after] = 9
    params = {"table": table, "place": np.zeros((LENGTH, 12), np.float32)}
    spaced = [each._replace(answer=" ".join(each.answer)) for each in questions]

    def encode(question, answer):
        return _encode(question, answer.replace(" ", ""))

    evaluate = make_tofu_evaluation(_apply, _generate, encode, _decode, {"retain": spaced}, length=LENGTH)
    assert evaluate(params)["retain"].rouge.tolist() == [1, 0]


def test_one_program_for_all_parameters_and_batches():
    traces = []

    def apply(params, tokens):
        traces.append(tokens.shape)
        return _apply(params, tokens)

    evaluate = make_tofu_evaluation(
        apply, None, _encode, _decode, {"retain": QUESTIONS}, length=LENGTH, batch=4
    )
    first, second = evaluate(_params()), evaluate(_params(5))
    assert traces == [(4, LENGTH)]
    assert first["retain"].rouge is None
    assert not np.allclose(first["retain"].answer_loss, second["retain"].answer_loss)


def test_the_first_questions_are_used():
    evaluate = make_tofu_evaluation(
        _apply, None, _encode, _decode, {"retain": QUESTIONS}, length=LENGTH, limit=2
    )
    assert evaluate(_params())["retain"].wrong_loss.shape == (2, 2)


def _log(seed, wrong, rouge=True):
    random = np.random.default_rng(seed)
    losses = random.gamma(2, 1, 7), random.gamma(2, 1, 7), random.gamma(2, 1, (7, wrong))
    return TofuLog(*losses, random.random(7) if rouge else None)


def test_utility_leaves_out_the_forget_set():
    logs = {"forget": _log(0, 5), "retain": _log(1, 5), "real_authors": _log(2, 3), "world_facts": _log(3, 3)}
    report = tofu_report(logs)
    assert all(len(scores) == 3 for scores in report.scores.values())
    nine = [score for name in list(logs)[1:] for score in report.scores[name].values()]
    np.testing.assert_allclose(report.model_utility, model_utility(dict(enumerate(nine))), rtol=1e-12)
    assert tofu_report({"forget": _log(0, 5)}).model_utility is None
    assert tofu_report({"retain": _log(0, 5, rouge=False)}).scores["retain"].keys() == {
        "probability",
        "truth_ratio",
    }


def test_quality_against_the_retrained_model():
    logs, retrained = {"forget": _log(0, 5)}, tofu_report({"forget": _log(1, 5)}).forget_truth_ratio
    assert tofu_report(logs).forget_quality is None
    with jax.enable_x64(True):
        ratios = truth_ratio(logs["forget"].right_loss, logs["forget"].wrong_loss)
    np.testing.assert_allclose(
        tofu_report(logs, retrained).forget_quality, forget_quality(ratios, retrained), rtol=1e-10
    )
    assert tofu_report({"retain": _log(0, 5)}, retrained).forget_quality is None


def test_rows_of_tokens():
    rows = answer_rows([("ab", "c"), ("a", "bcdef")], _encode, 5, pad=0)
    assert rows.tokens.tolist() == [[2, 3, 4, 1, 0], [2, 3, 4, 5, 6]]
    assert rows.labels.tolist() == [[-100, -100, 4, 1, -100], [-100, 3, 4, 5, 6]]
    prompts = prompt_rows(["ab", "a"], _encode, pad=0)
    assert prompts.tokens.tolist() == [[2, 3], [0, 2]]
    assert prompts.mask.tolist() == [[True, True], [False, True]]
    assert rows.tokens.dtype == prompts.tokens.dtype == np.int32


def _evaluation(sets, length=LENGTH):
    return make_tofu_evaluation(_apply, None, _encode, _decode, sets, length=length)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _evaluation({"train": QUESTIONS}), "sets: expected sets of forget, retain, .*, got 'train'"),
        (lambda: _evaluation({"forget": []}), r"sets\['forget'\]: expected at least one question, got none"),
        (
            lambda: _evaluation({"forget": [Question("a", "b")]}),
            r"sets\['forget'\]: expected some wrong answers .* got 0 in row 0; load_tofu reads",
        ),
        (
            lambda: _evaluation({"forget": [*QUESTIONS, *FACTS]}),
            r"sets\['forget'\]: expected 2 wrong answers to each question, got 3 in row 3",
        ),
        (
            lambda: _evaluation({"forget": QUESTIONS}, length=3),
            r"sets\['forget'\]: row \d+: expected a prompt of fewer than 3 tokens, .* got 3: .fgh.",
        ),
        (lambda: answer_rows([], _encode, 5), "pairs: expected at least one question, got none"),
        (lambda: prompt_rows([], _encode), "questions: expected at least one, got none"),
        (lambda: tofu_report({}), "logs: expected at least one set, got none"),
        (lambda: tofu_report({"train": _log(0, 5)}), "logs: expected sets of forget, .*, got 'train'"),
    ],
)
def test_wrong_sets(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_a_transformer_with_cached_decoding():
    """Prompts padded on the left and a cache generate what one prompt at a time without a cache does."""
    config = TransformerConfig(vocab=2 + len(LETTERS), width=16, layers=2, heads=2)
    model = transformer(config)
    params = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, model.init(jax.random.key(0)))

    @jax.jit
    def continued(params, tokens, mask):
        def step(tokens, positions, mask, cache):
            return model.apply(params, tokens, positions=positions, mask=mask, cache=cache)

        cache = init_cache(config, len(tokens), tokens.shape[1] + NEW)
        key = jax.random.key(0)
        return generate(key, step, tokens, mask, cache, max_new_tokens=NEW, eos=END, pad=END).tokens

    apply = jax.jit(model.apply)
    alone = []
    for each in QUESTIONS:
        seen, prompt = _encode(each.question, "")
        seen = seen[:prompt]
        while len(seen) < prompt + NEW and END not in seen:
            seen.append(int(apply(params, np.array([seen]))[0, -1].argmax()))
        alone.append(_decode(seen[prompt:]))
    assert len(set(alone)) > 1
    # A question whose right answer is what the model says has full recall.
    questions = [
        each._replace(answer=text if n else "z y")
        for n, (each, text) in enumerate(zip(QUESTIONS, alone, strict=True))
    ]

    def encode(question, answer):
        return _encode(question, "".join(letter for letter in answer if letter in LETTERS))

    evaluate = make_tofu_evaluation(
        model.apply, continued, encode, _decode, {"retain": questions}, length=LENGTH, batch=4
    )
    log = evaluate(params)["retain"]
    assert log.rouge.tolist() == [0, *(float(text != "") for text in alone[1:])]
    ids, prompt = _encode("ab", "hijd")
    log_p = log_softmax(np.asarray(apply(params, np.array([ids]))[0]), axis=-1)
    expected = -np.mean([log_p[t - 1, ids[t]] for t in range(prompt, len(ids))])
    np.testing.assert_allclose(log.wrong_loss[0, 1], expected, rtol=1e-4)


def test_sharded_parameters_give_the_same_losses():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = _params()
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, place), params)
    evaluate = _evaluation({"retain": QUESTIONS})
    found, expected = evaluate(placed)["retain"], evaluate(params)["retain"]
    np.testing.assert_allclose(found.wrong_loss, expected.wrong_loss, rtol=1e-6)
    assert jnp.isfinite(found.wrong_loss).all()
