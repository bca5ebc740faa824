"""The analysis of a model: a made-up one whose knowledge and bias are known, and a transformer's heads."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.language import (
    Item,
    LanguageModel,
    make_prompts,
    negative_attention_score,
    run_negative_bias,
    token_positions,
)
from jaxneg.nn import TransformerConfig, transformer

N = 12
ITEMS = [Item(f"q{n}", f"What is Q{n}", f"a{n}", (f"b{n}",), passage=f"It is a{n}") for n in range(N)]
KNOWS, BELIEVES_WRONGLY, IGNORES = range(5), range(5, 8), range(8, 12)
CUT = 4
"""The item whose chain of thought comes to no end."""
WORDS = re.compile(r"Answer:|Thoughts:|\w+|[^\w\s]")


def texts_of_everything():
    for fmt in ("SA", "MC", "YN", "negated-YN", "MC-yn", "MC-ny", "TF"):
        for scenario in ("plain", "context", "cot", "idk", "no-first"):
            if scenario in ("plain", "context") or fmt in ("YN", "negated-YN", "TF"):
                yield from (prompt.text for prompt in make_prompts(ITEMS, fmt, scenario))


VOCABULARY = ["<pad>", "<eos>", "hm", "yes", "no", "YES", "NO", "true", "false", "TRUE", "FALSE", *"abcd"]
VOCABULARY += sorted(
    {word for text in texts_of_everything() for word in WORDS.findall(text)} - set(VOCABULARY)
)
IDS = {word: number for number, word in enumerate(VOCABULARY)}


QUESTIONS, TRUTHS = (jnp.array([IDS[f"{letter}{n}"] for n in range(N)]) for letter in "Qa")
BELIEFS = jnp.array([IDS[f"{'a' if n in KNOWS else 'b'}{n}"] for n in range(N)])


def encode(text):
    return [IDS.get(word, IDS["hm"]) for word in WORDS.findall(text)]


def decode(ids):
    return " ".join(VOCABULARY[i] for i in ids)


def step(params, tokens, positions, mask, cache):
    """Accepts what it believes in or reads, and nothing else; what it ignores it says No to.

    Every judgement is of the candidate; the word "false" in the question turns the answer round.
    """
    seen = jnp.where(mask, tokens, 0)

    def has(word):
        return jnp.any(seen == IDS.get(word, -1), axis=1)

    last = jnp.take_along_axis(seen, jnp.argmax(jnp.where(mask, positions, -1), 1)[:, None], 1)[:, 0]
    asked = jnp.argmax(jnp.any(seen[:, :, None] == QUESTIONS, axis=1), axis=1)
    believed, truth, ignored = BELIEFS[asked], TRUTHS[asked], asked >= IGNORES[0]
    in_context = jnp.sum(seen == truth[:, None], axis=1) > 1
    accepts = jnp.where(has("Context"), in_context, jnp.any(seen == believed[:, None], axis=1) & ~ignored)
    row = jnp.arange(len(VOCABULARY))
    said = 9.0 * (row == believed[:, None]) * ~ignored[:, None]
    reversed_ = has("that") & has("false")
    affirms = accepts != reversed_
    true_false, letters, idk = has("True"), has("letter"), has("know")
    yes_first = jnp.argmax(seen == IDS["Yes"], 1) < jnp.argmax(seen == IDS["No"], 1)
    yes = jnp.where(letters, jnp.where(yes_first, IDS["A"], IDS["B"]), IDS["Yes"])
    no = jnp.where(letters, jnp.where(yes_first, IDS["B"], IDS["A"]), IDS["No"])
    label = jnp.where(
        affirms, jnp.where(true_false, IDS["True"], yes), jnp.where(true_false, IDS["False"], no)
    )
    label = jnp.where(idk & ignored, IDS["I"], label)
    label = jnp.where(last == IDS["Thoughts:"], IDS["Answer:"], label)
    label = jnp.where(has("Thoughts:") & (asked == CUT), IDS["hm"], label)
    label = jnp.where((last == IDS["Yes"]) | (last == IDS["No"]), IDS["<eos>"], label)
    logits = jnp.where(has("phrase")[:, None], said, 9.0 * (row == label[:, None]))
    return jnp.broadcast_to(logits[:, None], (*tokens.shape, len(VOCABULARY))), cache


MODEL = LanguageModel(None, step, encode, decode, pad=0, eos=1)
FORMATS, SCENARIOS = (
    ("YN", "negated-YN", "MC-yn", "MC-ny", "TF"),
    ("plain", "context", "idk", "cot", "no-first"),
)


@pytest.fixture(scope="module")
def report():
    return run_negative_bias(
        MODEL,
        ITEMS,
        FORMATS,
        SCENARIOS,
        jax.random.key(0),
        draws=200,
        read_text=True,
        answer_tokens=3,
        thought_tokens=4,
    )


def rows(report, **wanted):
    return [row for row in report.rows if all(row[name] == value for name, value in wanted.items())]


def test_the_partition_is_what_it_knows(report):
    assert report.items == N
    assert report.partition["0.5"] == {"correct": 5, "incorrect": 3, "insufficient": 4}
    assert list(report.partition) == ["0.3", "0.5", "0.7"]
    assert np.sum(report.agreement) == N
    assert np.sum(report.agreement, axis=1).tolist() == [5, 3, 4]
    assert report.short_answer_accuracy["correct"] == 1
    assert report.short_answer_accuracy["incorrect"] == 0


def test_the_bias_is_what_it_says(report):
    """Known: none. Wrongly believed: it rejects the truth and accepts its belief. Ignored: always No."""
    for fmt in FORMATS:
        (known,) = rows(report, format=fmt, scenario="plain", reading="logits", subset="correct")
        (wrong,) = rows(report, format=fmt, scenario="plain", reading="logits", subset="incorrect")
        (ignored,) = rows(report, format=fmt, scenario="plain", reading="logits", subset="insufficient")
        assert (known["fnr"], known["fpr"], known["negative_bias"]) == (0, 0, 0), fmt
        assert (wrong["fnr"], wrong["fpr"], wrong["negative_bias"]) == (1, 1, 0), fmt
        sign = -1 if fmt == "negated-YN" else 1
        assert (ignored["negative_bias"], ignored["low"], ignored["high"]) == (sign,) * 3, fmt
        assert (known["prompts"], wrong["prompts"], ignored["prompts"]) == (10, 6, 8)
        assert np.sign(ignored["soft_bias"]) == sign
        (everything,) = rows(report, format=fmt, scenario="plain", reading="logits", subset="all")
        assert everything["low"] < everything["high"] or everything["negative_bias"] in (0, 1)


def test_the_order_of_the_options_changes_nothing(report):
    for subset in ("correct", "insufficient"):
        one, other = (
            rows(report, format=fmt, scenario="plain", reading="logits", subset=subset)[0]
            for fmt in ("MC-yn", "MC-ny")
        )
        assert one | {"format": ""} == other | {"format": ""}


def test_scenarios(report):
    for subset in ("correct", "incorrect", "insufficient"):
        (row,) = rows(report, format="YN", scenario="context", reading="logits", subset=subset)
        assert row["accuracy_all"] == 1
    (row,) = rows(report, format="YN", scenario="idk", reading="logits", subset="insufficient")
    assert (row["coverage"], row["negative_bias"], row["unparsable"]) == (0, 0, 0)
    (row,) = rows(report, format="YN", scenario="cot", reading="text", subset="correct")
    assert row["unparsable"] == pytest.approx(2 / 10)
    assert (row["fnr"], row["fpr"]) == (0, 0)  # a chain that was cut is no No
    assert not rows(report, scenario="cot", reading="logits")
    assert not rows(report, format="MC-yn", scenario="idk")


def test_text_is_a_second_reading(report):
    for subset in ("correct", "insufficient"):
        first, second = (
            rows(report, format="YN", scenario="plain", reading=reading, subset=subset)[0]
            for reading in ("logits", "text")
        )
        assert first["negative_bias"] == second["negative_bias"]
        assert "soft_bias" not in second


def test_the_report_is_json_and_markdown(report):
    content = json.loads(report.to_json())
    assert content["rows"] == report.rows
    text = report.to_markdown()
    assert "| YN | plain | logits | insufficient | 8 | 1.000 | 1.000 | 1.000 |" in text
    assert text.count("\n") > len(report.rows)


@pytest.mark.slow
def test_heads_of_a_transformer():
    """With a cache, a template, padded batches: the scores of each prompt alone."""
    config = TransformerConfig(vocab=len(VOCABULARY), width=16, layers=2, heads=4, kv_heads=2, hidden=16)
    network = transformer(config)
    params = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape),
        network.init(jax.random.key(0)),
    )

    def run(params, tokens, positions, mask, cache):
        found = network.apply(params, tokens, positions=positions, mask=mask, cache=cache)
        return found if cache is not None else (found, None)

    def probe(params, tokens, positions, mask):
        return network.apply(params, tokens, positions=positions, mask=mask, probe=range(2))[1]

    from jaxneg.nn import init_cache

    model = LanguageModel(
        params,
        run,
        encode,
        decode,
        pad=0,
        eos=1,
        init_cache=partial(init_cache, config),
        offsets=lambda text: [match.span() for match in WORDS.finditer(text)],
        probe=probe,
        template=("hm hm ", " hm"),
    )
    found = run_negative_bias(
        model, ITEMS[:3], ["YN"], ["plain"], jax.random.key(0), samples=2, batch=4, draws=10, answer_tokens=2
    )
    total = []
    for prompt in make_prompts(ITEMS[:3], "YN"):
        text = f"hm hm {prompt.text} hm"
        spans = {name: (begin + 6, end + 6) for name, (begin, end) in prompt.spans.items()}
        places = token_positions([match.span() for match in WORDS.finditer(text)], spans)
        tokens = jnp.array([encode(text)])
        query, key = (x[:, 0] for x in network.apply(params, tokens, probe=range(2))[1])
        scores = jnp.einsum("lhtd,lhsd->lhts", query, jnp.repeat(key, 2, axis=1)) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(np.tri(tokens.shape[1], dtype=bool), scores, -jnp.inf))
        total.append(negative_attention_score(weights, *places))
    expected = np.mean(total, axis=0)
    assert len(found.heads) == 8
    for each in found.heads:
        np.testing.assert_allclose(each["score"], expected[each["layer"], each["head"]], rtol=1e-3, atol=1e-4)
    assert found.heads[0]["score"] == max(each["score"] for each in found.heads)
    assert "| layer | head | score |" in found.to_markdown()


def test_bad_input():
    run = partial(run_negative_bias, MODEL, ITEMS)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"formats: expected formats with a candidate .* got 'MC'"):
        run(["YN", "MC"], ["plain"], key)
    with pytest.raises(ValueError, match=r"fmt: expected one of SA, YN, .* got 'yesno'"):
        run(["yesno"], ["plain"], key)
    with pytest.raises(ValueError, match=r"scenarios: expected at least one, each of which .* got \['idk'\]"):
        run(["MC-yn"], ["idk"], key)
    with pytest.raises(ValueError, match=r"scenarios: .* got \['plain', 'thinking'\]"):
        run(["YN"], ["plain", "thinking"], key)
    with pytest.raises(ValueError, match=r"samples: expected at least 1, got 0"):
        run(["YN"], ["plain"], key, samples=0)
