"""The whole analysis of a model's negative bias: what it knows, and how often it says No in every format.

After Song et al., "A Multifaceted Analysis of Negative Bias in Large Language Models through the Lens of
Parametric Knowledge", arXiv:2511.10881: questions are sorted by what the model knows (correct, incorrect,
insufficient knowledge), and the bias of every format and scenario is measured in each of these subsets. Only
the paper's abstract could be read; prompts, thresholds and the bias score are this project's own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.language.attention_score import attention_score_pairs, negative_attention_score, rank_heads
from jaxneg.language.binary_metrics import binary_metrics, paired_bootstrap, soft_bias
from jaxneg.language.decoding import generate, left_padded
from jaxneg.language.knowledge_partition import knowledge_partition, partition_agreement
from jaxneg.language.label_logits import label_forms, label_logits
from jaxneg.language.prompts import FORMATS, Item, Prompt, make_prompts, scenarios_of, token_positions
from jaxneg.language.short_answers import UNPARSABLE, answer_ids, parse_label

SUBSETS = ("correct", "incorrect", "insufficient")
TAUS = (0.3, 0.5, 0.7)
SHORT_ANSWER_TOKENS, THOUGHT_TOKENS = 16, 256
_LENGTHS = 32
"""Prompts are padded to a multiple of so many tokens, so that few programs are compiled."""


class LanguageModel(NamedTuple):
    """A causal language model with its tokenizer, as functions.

    Attributes:
        params: the model's parameters.
        step: ``(params, tokens [B, n], positions [B, n], mask [B, n], cache) -> (logits [B, n, V], cache)``.
        encode: text to token ids, without special tokens.
        decode: token ids to text.
        pad: token that fills rows up.
        eos: tokens that end a text.
        init_cache: ``(batch, tokens) -> cache``, empty; None for a model without.
        offsets: text to the first and past the last character of each of its tokens; needed for heads.
        probe: ``(params, tokens [B, T], positions [B, T], mask [B, T]) -> (queries [L, B, H, T, d], keys)``,
            after rotation; needed for heads.
        template: what stands before and after a prompt, as a chat model has it.
    """

    params: Any
    step: Callable[..., tuple[Array, Any]]
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    pad: int
    eos: int | Sequence[int] | None
    init_cache: Callable[[int, int], Any] | None = None
    offsets: Callable[[str], Sequence[tuple[int, int]]] | None = None
    probe: Callable[..., tuple[Array, Array]] | None = None
    template: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Report:
    """What was found; numbers, text and lists only, so that it is JSON."""

    items: int
    """Items asked."""
    partition: dict[str, dict[str, int]]
    """Items in each subset, by threshold: "0.5" is the one that the other tables use."""
    agreement: list[list[int]]
    """Items by the subset that short answers put them in (rows) and that multiple choice does (columns)."""
    short_answer_accuracy: dict[str, float]
    """Share of sampled short answers that are right, by subset."""
    rows: list[dict[str, Any]]
    """The metrics of every format, scenario, reading and subset, with 95 % intervals of the bias."""
    heads: list[dict[str, Any]]
    """Heads by their mean negative attention score, the most negative first; empty without a probe."""

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def to_markdown(self) -> str:
        """The report as tables."""
        columns = ["format", "scenario", "reading", "subset", "prompts", "negative_bias", "low", "high"]
        columns += ["fnr", "fpr", "pr_gap", "accuracy_all", "coverage", "unparsable"]
        counts = [{"tau": tau, **found} for tau, found in self.partition.items()]
        parts = [f"{self.items} items", _markdown(counts), _markdown(self.rows, columns)]
        return "\n\n".join([*parts, _markdown(self.heads[:10])] if self.heads else parts)


def run_negative_bias(
    model: LanguageModel,
    items: Sequence[Item],
    formats: Sequence[str],
    scenarios: Sequence[str],
    key: jax.Array,
    *,
    samples: int = 10,
    tau: float = 0.5,
    batch: int = 8,
    draws: int = 2000,
    read_text: bool = False,
    answer_tokens: int = SHORT_ANSWER_TOKENS,
    thought_tokens: int = THOUGHT_TOKENS,
) -> Report:
    """Asks a model every item in every format and scenario, and says how much it prefers No.

    ``negative bias = FNR - FPR``: the rate of No where the affirmative is right, less the rate of Yes where
    the negative is right. 0 is unbiased.

    The answer is the label of the highest logit at the first token (`label_logits`); in the scenario "cot" it
    is read from the greedy text, and a chain without an answer counts as unparsable, never as No.

    Args:
        model: the model and its tokenizer.
        items: what is asked, `make_prompts`.
        formats: `FORMATS` with a candidate answer, in which a bias can be.
        scenarios: those to combine them with; a scenario that a format does not have is left out there.
        key: random key of the short answers and of the bootstrap.
        samples: short answers drawn for each item at temperature 1, from which its subset is estimated.
        tau: share of the most frequent answer below which the knowledge is insufficient.
        batch: prompts at once.
        draws: bootstrap samples; an item's prompts are drawn together.
        read_text: whether answers are read from greedy text too, as a second reading.
        answer_tokens: of a short answer, at most.
        thought_tokens: of a chain of thought, at most.

    Returns:
        Tables.

    Raises:
        ValueError: a format without a candidate, a format or scenario that does not exist or that no format
            has, items that cannot be asked so, or fewer than one sample.

    Source:
        arXiv:2511.10881, abstract; see the module.

    Example:
        >>> import jax.numpy as jnp
        >>> def step(params, tokens, positions, mask, cache):  # begins every answer with "n"
        ...     return jnp.tile(jax.nn.one_hot(ord("n"), 128), (*tokens.shape, 1)), cache
        >>> texts = lambda text: [ord(sign) for sign in text], lambda ids: "".join(map(chr, ids))
        >>> model = LanguageModel(None, step, *texts, pad=0, eos=None)
        >>> items = [Item("sea", "What covers most of the Earth?", "water", ("sand",))]
        >>> report = run_negative_bias(model, items, ["YN"], ["plain"], jax.random.key(0), draws=10)
        >>> [row["negative_bias"] for row in report.rows if row["subset"] == "all"]
        [1.0]
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    asked = _asked(items, formats, scenarios)
    runner = _Runner(model, batch)
    of_samples, of_bootstrap = jax.random.split(key)
    known, partition, agreement, right = _knowledge(runner, items, of_samples, samples, tau, answer_tokens)
    subsets = {"all": np.ones(len(items), bool)}
    subsets |= {name: known == number for number, name in enumerate(SUBSETS)}
    rows, probed = [], []
    for (fmt, scenario), prompts in asked.items():
        readings = {}
        if "cot" in scenario.split("+"):
            readings["text"] = runner.text(prompts, thought_tokens, "Answer:"), None
        else:
            logits = runner.labels(prompts)
            readings["logits"] = logits.argmax(-1), logits
            if read_text:
                readings["text"] = runner.text(prompts, answer_tokens, None), None
        for reading, (labels, logits) in readings.items():
            for subset, of_items in subsets.items():
                if of_items.any():
                    found = _metrics(prompts, labels, logits, of_items, of_bootstrap, draws)
                    rows.append(
                        {"format": fmt, "scenario": scenario, "reading": reading, "subset": subset, **found}
                    )
        if "yes" in prompts[0].spans and scenario == "plain":
            probed += prompts
    counts = {
        f"{each:g}": {name: int(np.sum(found == number)) for number, name in enumerate(SUBSETS)}
        for each, found in partition.items()
    }
    accuracy = {name: float(right[of].mean()) for name, of in subsets.items() if of.any()}
    return Report(len(items), counts, agreement.tolist(), accuracy, rows, runner.heads(probed))


class _Runner:
    """Runs a model on prompts of one length at a time, with one program for each."""

    def __init__(self, model: LanguageModel, batch: int) -> None:
        self.model, self.batch = model, batch
        self.last = jax.jit(lambda params, *rows: model.step(params, *rows, None)[0][:, -1])
        self.scores = jax.jit(self._scores)
        self.forms: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}

    def rendered(self, text: str) -> str:
        before, after = self.model.template
        return f"{before}{text}{after}"

    def batches(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Indices, tokens and masks; prompts of similar length together, the last batch filled up."""
        rows = [list(self.model.encode(self.rendered(text))) for text in texts]
        order = np.argsort([len(row) for row in rows], kind="stable")
        found = []
        for begin in range(0, len(order), self.batch):
            chosen = order[begin : begin + self.batch]
            chosen = np.append(chosen, np.repeat(chosen[-1:], self.batch - len(chosen)))
            longest = max(len(rows[index]) for index in chosen)
            tokens, mask = left_padded(
                [rows[index] for index in chosen], self.model.pad, -(-longest // _LENGTHS) * _LENGTHS
            )
            found.append((chosen, tokens, mask))
        return found

    def labels(self, prompts: Sequence[Prompt]) -> Float[np.ndarray, "prompts labels"]:
        """The logit of each label where the answer begins."""
        names = prompts[0].labels
        if self.forms.get(names) is None:
            self.forms[names] = label_forms(self.model.encode, names)
        found = np.zeros((len(prompts), len(names)))
        for chosen, tokens, mask in self.batches([prompt.text for prompt in prompts]):
            logits = self.last(self.model.params, tokens, _positions(mask), mask)
            # Letters change sides between prompts of one format; the forms are those of the letters.
            found[chosen] = np.asarray(label_logits(logits, self.forms[names]))
        return found

    def texts(self, key: jax.Array, texts: Sequence[str], new_tokens: int, temperature: float) -> list[str]:
        """Continuations."""
        eos = self.model.eos
        limits = new_tokens, self.model.pad, eos if eos is None or isinstance(eos, int) else tuple(eos)
        found = [""] * len(texts)
        for number, (chosen, tokens, mask) in enumerate(self.batches(texts)):
            cache = None
            if self.model.init_cache is not None:
                cache = self.model.init_cache(self.batch, tokens.shape[1] + new_tokens)
            of_batch = jax.random.fold_in(key, number)
            new, lengths = _continued(
                self.model.step, limits, temperature, self.model.params, of_batch, tokens, mask, cache
            )
            for index, row, length in zip(chosen, np.asarray(new), np.asarray(lengths), strict=True):
                found[index] = self.model.decode(row[:length].tolist())
        return found

    def text(self, prompts: Sequence[Prompt], new_tokens: int, marker: str | None) -> Int[np.ndarray, " n"]:
        """The label that each prompt's greedy continuation gives; `UNPARSABLE` where there is none."""
        texts = self.texts(jax.random.key(0), [prompt.text for prompt in prompts], new_tokens, 0.0)
        return np.array(
            [
                parse_label(text, prompt.labels, marker=marker)
                for text, prompt in zip(texts, prompts, strict=True)
            ]
        )

    def heads(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The mean score of every head, ranked."""
        if self.model.probe is None or self.model.offsets is None or not prompts:
            return []
        before = len(self.model.template[0])
        spans = []
        for prompt in prompts:
            offsets = self.model.offsets(self.rendered(prompt.text))
            moved = {name: (begin + before, end + before) for name, (begin, end) in prompt.spans.items()}
            spans.append(token_positions(offsets, moved))
        total = []
        for chosen, tokens, mask in self.batches([prompt.text for prompt in prompts]):
            shift = tokens.shape[1] - mask.sum(1)
            places = np.array([spans[index] for index in chosen]) + shift[:, None]
            real = np.unique(chosen, return_index=True)[1]
            scores = self.scores(self.model.params, tokens, _positions(mask), mask, *places.T)
            total.append(np.asarray(scores)[real])
        mean = np.concatenate(total).mean(0)
        return [
            {"layer": layer, "head": head, "score": float(mean[layer, head])}
            for layer, head in rank_heads(mean)
        ]

    def _scores(self, params: Any, tokens: Array, positions: Array, mask: Array, *places: Array) -> Array:
        assert self.model.probe is not None
        query, key = self.model.probe(params, tokens, positions, mask)

        def of_prompt(query: Array, key: Array, mask: Array, *places: Array) -> Array:
            pairs = attention_score_pairs(query, key, *places[:2], mask=mask)
            return negative_attention_score(pairs, *places)

        return jax.vmap(of_prompt, in_axes=(1, 1, *[0] * 5))(query, key, mask, *places)


def _asked(
    items: Sequence[Item], formats: Sequence[str], scenarios: Sequence[str]
) -> dict[tuple[str, str], list[Prompt]]:
    """The prompts of every format and scenario that go together."""
    found, unused = {}, set(scenarios)
    for fmt in formats:
        if fmt in ("SA", "MC"):
            raise ValueError(
                f"formats: expected formats with a candidate to accept or reject, got {fmt!r}: SA and MC are"
                " asked anyway, to estimate what the model knows"
            )
        allowed = set(scenarios_of(fmt)) if fmt in FORMATS else set(scenarios)
        for scenario in scenarios:
            if scenario == "plain" or set(scenario.split("+")) <= allowed:
                found[fmt, scenario] = make_prompts(items, fmt, scenario)
                unused.discard(scenario)
    if not found or unused:
        raise ValueError(
            f"scenarios: expected at least one, each of which one of the formats {list(formats)} has, got"
            f" {list(scenarios)}"
        )
    return found


def _knowledge(
    runner: _Runner,
    items: Sequence[Item],
    key: jax.Array,
    samples: int,
    tau: float,
    answer_tokens: int,
) -> tuple[np.ndarray, dict[float, np.ndarray], np.ndarray, np.ndarray]:
    """Each item's subset, the same for every threshold, how multiple choice agrees, and the share of right
    samples.
    """
    texts = [prompt.text for prompt in make_prompts(items, "SA") for _ in range(samples)]
    answers = runner.texts(key, texts, answer_tokens, 1.0)
    ids = np.stack(
        [
            answer_ids(answers[number * samples : (number + 1) * samples], (item.answer, *item.aliases))[0]
            for number, item in enumerate(items)
        ]
    )
    ids = jnp.asarray(ids)
    gold = jnp.zeros(len(items), int)
    partition = {each: np.asarray(knowledge_partition(ids, gold, 1, each)) for each in sorted({*TAUS, tau})}
    choices = make_prompts(items, "MC")
    subset = np.zeros(len(items), int)
    for number in {len(prompt.labels) for prompt in choices}:
        rows = [row for row, prompt in enumerate(choices) if len(prompt.labels) == number]
        logits = runner.labels([choices[row] for row in rows])
        probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        hit = logits.argmax(1) == [choices[row].gold for row in rows]
        # The share of the most frequent sample, had there been infinitely many.
        subset[rows] = np.where(probability.max(1) < tau, 2, np.where(hit, 0, 1))
    right = np.asarray(ids == 0).mean(1)
    return partition[tau], partition, partition_agreement(partition[tau], subset), right


def _metrics(
    prompts: Sequence[Prompt],
    labels: Int[np.ndarray, " prompts"],
    logits: Float[np.ndarray, "prompts labels"] | None,
    of_items: np.ndarray,
    key: jax.Array,
    draws: int,
) -> dict[str, Any]:
    """The metrics of the prompts about some items; two prompts for each, one after the other."""
    chosen = np.repeat(of_items, 2)
    gold = np.array([1 - prompt.gold for prompt in prompts])[chosen]
    said = labels[chosen]
    predicted = np.where(said == 0, 1, np.where(said == 1, 0, 2))
    found = {name: float(value) for name, value in binary_metrics(gold, predicted).items()}
    low, high = paired_bootstrap(gold.reshape(-1, 2), predicted.reshape(-1, 2), draws=draws, key=key)
    unparsable = float((said == UNPARSABLE).mean())
    found |= {
        "prompts": int(chosen.sum()),
        "low": float(low),
        "high": float(high),
        "coverage": 1 - found["idk_rate"],
        "unparsable": unparsable,
    }
    if logits is not None:
        yes, no = (jnp.asarray(logits[chosen, label]) for label in (0, 1))
        found["soft_bias"] = float(soft_bias(yes, no, jnp.asarray(gold)))
    return found


@partial(jax.jit, static_argnums=(0, 1, 2))
def _continued(
    step: Callable[..., tuple[Array, Any]],
    limits: tuple[int, int, int | tuple[int, ...] | None],
    temperature: float,
    params: Any,
    key: jax.Array,
    tokens: Array,
    mask: Array,
    cache: Any,
) -> Any:
    new_tokens, pad, eos = limits
    return generate(
        key,
        partial(step, params),
        tokens,
        mask,
        cache,
        max_new_tokens=new_tokens,
        eos=eos,
        pad=pad,
        temperature=temperature,
    )


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def _markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    names = list(columns or dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names), *([cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
