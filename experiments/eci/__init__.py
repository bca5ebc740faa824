"""ECI: does a training-free score of hard negatives rank their sources as training does?

Paper: arXiv:2603.20990. Version 1, "ECI", says that its score (capacity times the harmonic balance of
hardness and max-margin safety) foretells which source of hard negatives trains the best retriever, and that
hybrids of BM25 and a cross-encoder come first. Versions 2 and 3 have another formula, ECI_sem, and other
winners. The equations are a proposed reading (`jaxneg.retrieval.eci`).

Here: each source gives K explicit negatives for every (query, relevant document) pair of a collection; an
adapter on a frozen encoder is fine-tuned with them and in-batch negatives; nDCG@10 on held-out queries,
against all judgments, is compared with ECI and with every simpler predictor, all computed on the frozen
encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim, mean_interval
from experiments.collections import find_collections, load_collection
from experiments.eci.figures import draw_correlations, draw_eci, draw_scatter
from experiments.eci.fine_tuning import (
    Arrays,
    Examples,
    Schedule,
    contrastive_loss,
    fine_tuned_ndcg,
    on_device,
    schedule,
    zero_shot_ndcg,
)
from experiments.eci.predictors import PREDICTORS, predictions
from experiments.eci.sources import (
    BM25,
    HYBRID,
    Frozen,
    Negatives,
    contaminate,
    contaminated,
    freeze,
    negative_sources,
)
from experiments.run_dir import Outcome, RunDir, Table
from jaxneg.retrieval import eci_from_embeddings, kendall_tau, spearman
from jaxneg.train import Target, init_state, make_step


@dataclass(frozen=True)
class PodScale:
    """The step that is compiled ahead of time: train the adapter and score the negatives, on a pod."""

    queries: int = 2**19
    """(query, positive) rows in one step."""
    negatives: int = 16
    """Explicit negatives of each row."""
    dimensions: int = 768
    """Of the encoder's embeddings: that of DistilBERT, E5-base and Contriever."""
    in_batch: int = 2048
    """Rows that serve as each other's in-batch negatives; such a group stays on one chip."""
    chips: int = 256
    """Size of the mesh axis "data"."""


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    collections: tuple[str, ...] = ("cranfield", "cisi", "vaswani")
    """Folders below JAXNEG_DATA/cet, paths of folders (ours, BEIR's or MS MARCO's), or "tiny" for the
    embedded one."""
    negatives: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers K of explicit negatives to compare, at least two."""
    seeds: int = 10
    """Repetitions; each splits the queries, draws random negatives and orders the batches anew."""
    folds: int = 2
    """Parts of the queries; each is tested by an adapter trained on the others."""
    steps: int = 80
    """Updates of the adapter."""
    batch_size: int = 128
    """Rows in a batch, which are each other's in-batch negatives."""
    learning_rate: float = 2e-3
    """Of Adam."""
    temperature: float = 0.05
    """Of the InfoNCE loss."""
    dimensions: int = 128
    """Of the target encoder, a latent semantic analysis."""
    skip: int = 20
    """Documents that the source "dense, skip" leaves out from the top."""
    rerank_depth: int = 50
    """BM25 candidates that the teacher re-ranks."""
    relative_margin: float = 0.05
    """Of the filtered dense source (TopK-PercPos): 0.05 keeps what scores below 95 % of the positive."""
    contamination: tuple[float, ...] = (0.2, 0.5)
    """Shares of BM25's negatives that are replaced by other relevant documents, rising."""
    triples: int = 2048
    """Triples that ECI_sem samples from a source."""
    pod: PodScale = field(default_factory=PodScale)
    """The step that `compile` compiles."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "batch_size", "dimensions", "rerank_depth", "triples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.folds < 2:
            raise ValueError(f"folds: expected at least 2, got {self.folds}")
        if not self.collections:
            raise ValueError("collections: expected at least one, got none")
        if len(set(self.negatives)) < 2 or min(self.negatives) < 1:
            raise ValueError(
                f"negatives: expected at least two different positive numbers, got {self.negatives}"
            )
        rising = all(a < b for a, b in pairwise((0.0, *self.contamination)))
        if not self.contamination or not rising or self.contamination[-1] > 1:
            raise ValueError(
                f"contamination: expected rising shares above 0 and at most 1, got {self.contamination}"
            )


PRESETS: dict[str, Config] = {
    "smoke": Config(collections=("tiny",), negatives=(1, 4), seeds=3, steps=20, dimensions=32, triples=256),
    "cpu": Config(),
    "paper": Config(
        negatives=(1, 4, 8, 15),
        seeds=20,
        folds=5,
        steps=120,
        dimensions=256,
    ),
}

PAPER = "arXiv:2603.20990v1, abstract"
QUALITATIVE = "qualitative only"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="eci-ranks-sources",
        sentence="ECI, computed without training, ranks hard-negative sources as training with them does.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="Spearman correlation of ECI and nDCG@10 over all sources and K; mean over collections",
        criterion=AtLeast(0.3),
    ),
    Claim(
        name="eci-beats-capacity",
        sentence="The balance of hardness and safety matters beyond the number of negatives.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="Spearman correlation of ECI minus that of ln(1 + K); mean over collections",
        criterion=AtLeast(0.2),
    ),
    Claim(
        name="eci-beats-hardness",
        sentence="Hardness alone misleads; it must be balanced with safety.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="Spearman correlation of ECI minus that of hardness; mean over collections",
        criterion=AtLeast(0.2),
    ),
    Claim(
        name="contamination-lowers-eci",
        sentence="Unsafe negatives, which are false negatives in truth, are strictly penalised.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="least fall of ECI at the largest K from one share of false negatives to the next, in nats; "
        "least over collections",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="eci-picks-a-best-source",
        sentence="The source with the highest ECI is the one to train with.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="best nDCG@10 of all sources and K minus that of the highest ECI; mean over collections",
        criterion=AtMost(0.01),
    ),
    Claim(
        name="hybrid-has-the-highest-eci",
        sentence="ECI ranks the hybrid of BM25 and cross-encoder first.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="ECI of the hybrid minus the best other uncontaminated source, means over K, in nats; mean "
        "over collections",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="hybrid-trains-best",
        sentence="The hybrid of BM25 and cross-encoder gives the best retrieval after training.",
        source=PAPER,
        paper=QUALITATIVE,
        measure="nDCG@10 of the hybrid minus the best other uncontaminated source, means over K; mean over "
        "collections",
        criterion=AtLeast(0.0),
    ),
)

NOTES = (
    "ECI's equations are a proposed reading of arXiv:2603.20990: the paper's exact ones were not "
    "available, and there is no number of it to compare with (qualitative only).",
    "On these small, fully judged collections hard negatives mostly hurt a weak encoder, so that safety "
    "carries most of the correlation and capacity adds little.",
    "The intervals are over seeds (folds, random negatives, order of batches) on fixed collections: they say "
    "nothing about other collections. Configurations that share a source are not independent.",
    "False negatives can lower ECI only where they are more dangerous to the frozen encoder than what they "
    "replace: the last table of a collection shows the same shares in random slots and in BM25's last slots.",
    "The best nDCG@10 is picked among all configurations of a seed, so that noise alone makes the distance "
    "to it larger than 0.",
)


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains with every source and K on every collection, and compares with every predictor.

    Args:
        config: the settings.
        run_dir: takes figures, metrics and finished configurations.

    Returns:
        Measurements of the claims, tables and notes.
    """
    folders, note = find_collections(config.collections)
    notes = [*NOTES] if note is None else [note, *NOTES]
    results = {}
    for name, folder in folders.items():
        frozen = freeze(load_collection(folder), config.dimensions)
        results[name] = _measure(config, run_dir, name, frozen)
        notes.append(f"{name}: the teacher that re-ranks BM25 is {frozen.teacher_name}.")
    run_dir.figure(
        "scatter",
        draw_scatter(
            {name: (r.sources, r.ks, r.predictors["ECI"], r.ndcg, r.zero_shot) for name, r in results.items()}
        ),
        "ECI of every source and number of negatives K, beside nDCG@10 after training with it. Bars: 95 % "
        "interval over seeds, without what a seed's folds and batches change for all sources alike. The "
        "dashed line is the frozen encoder.",
    )
    correlations = {name: _correlations(result) for name, result in results.items()}
    run_dir.figure(
        "correlations",
        draw_correlations({name: rho for name, (rho, _) in correlations.items()}),
        "Spearman correlation of every predictor with nDCG@10 over all sources and K. Bars: 95 % interval "
        "over seeds.",
    )
    run_dir.figure(
        "eci",
        draw_eci({name: (r.sources, r.ks, r.predictors["ECI"]) for name, r in results.items()}),
        "ECI by source and number of negatives K, mean over seeds.",
    )
    tables = [
        table
        for name, result in results.items()
        for table in (
            _correlation_table(name, *correlations[name]),
            _source_table(name, result),
            _term_table(name, result),
            _contamination_table(config, name, result),
        )
    ]
    return Outcome(_measurements(config, results, correlations), tables, notes)


@dataclass(frozen=True)
class Result:
    """What was measured on a collection."""

    sources: list[str]
    ks: list[int]
    ndcg: np.ndarray
    """``[sources, ks, seeds]``, after training."""
    predictors: dict[str, np.ndarray]
    """``[sources, ks, seeds]`` by predictor."""
    false: np.ndarray
    """``[sources, ks]``, share of the negatives that are relevant."""
    last_slots: np.ndarray
    """``[shares, seeds]``, ECI at the largest K with false negatives in BM25's last slots."""
    zero_shot: float
    """NDCG@10 of the frozen encoder."""


def _measure(config: Config, run_dir: RunDir, name: str, frozen: Frozen) -> Result:
    ks = sorted(set(config.negatives))
    sources = negative_sources(
        frozen,
        count=max(ks),
        seeds=config.seeds,
        skip=config.skip,
        rerank_depth=config.rerank_depth,
        relative_margin=config.relative_margin,
        contamination=config.contamination,
    )
    arrays = on_device(frozen)
    plan = schedule(
        frozen,
        seeds=config.seeds,
        folds=config.folds,
        steps=config.steps,
        batch_size=config.batch_size,
    )
    cells = [(k, source) for k in ks for source in sources]  # one compilation for each K
    found = {}
    for step, (k, source) in enumerate(run_dir.progress(cells, f"{name}: train with every source")):
        chosen = Negatives(sources[source].index[..., :k], sources[source].valid[..., :k])
        stage = f"{name}-k{k}-source{list(sources).index(source)}"
        found[source, k] = run_dir.stage(stage, lambda c=chosen: _cell(config, frozen, arrays, plan, c))
        run_dir.log(
            step,
            **{
                f"{name}/ndcg": float(found[source, k]["ndcg"].mean()),
                f"{name}/eci": float(found[source, k]["ECI"].mean()),
            },
        )

    def gathered(key: str) -> np.ndarray:
        return np.array([[found[source, k][key] for k in ks] for source in sources])

    return Result(
        sources=list(sources),
        ks=ks,
        ndcg=gathered("ndcg"),
        predictors={key: gathered(key) for key in PREDICTORS},
        false=gathered("false"),
        last_slots=np.array(
            [
                _predictions(config, frozen, arrays, contaminate(frozen, sources[BM25], share, last=True))[
                    "ECI"
                ]
                for share in config.contamination
            ]
        ),
        zero_shot=float(zero_shot_ndcg(arrays)),
    )


def _cell(
    config: Config, frozen: Frozen, arrays: Arrays, plan: Schedule, chosen: Negatives
) -> Mapping[str, ArrayLike]:
    relevant = frozen.relevant[frozen.row_query[:, None], chosen.index]
    return {
        "ndcg": fine_tuned_ndcg(
            arrays,
            plan,
            jnp.asarray(chosen.index),
            jnp.asarray(chosen.valid),
            learning_rate=config.learning_rate,
            temperature=config.temperature,
        ),
        "false": relevant[chosen.valid].mean(),
        **_predictions(config, frozen, arrays, chosen),
    }


def _predictions(
    config: Config, frozen: Frozen, arrays: Arrays, chosen: Negatives
) -> Mapping[str, Float[Array, "seeds"]]:
    return predictions(
        arrays,
        jnp.asarray(frozen.overlap),
        jnp.asarray(chosen.index),
        jnp.asarray(chosen.valid),
        triples=config.triples,
        temperature=config.temperature,
    )


Correlations = dict[str, np.ndarray]


def _correlations(result: Result) -> tuple[Correlations, Correlations]:
    """Spearman and Kendall correlation of each predictor with nDCG@10, one number a seed."""

    def by_seed(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1, values.shape[-1]).T

    values = np.stack([by_seed(result.predictors[key]) for key in PREDICTORS])
    target = np.broadcast_to(by_seed(result.ndcg), values.shape)
    rho, tau = (np.asarray(jax.jit(measure)(values, target)) for measure in (spearman, kendall_tau))
    return dict(zip(PREDICTORS, rho, strict=True)), dict(zip(PREDICTORS, tau, strict=True))


def _measurements(
    config: Config, results: dict[str, Result], correlations: dict[str, tuple[Correlations, Correlations]]
) -> dict[str, ArrayLike]:
    def over_collections(of_result, reduce=np.mean) -> np.ndarray:
        return reduce([of_result(name, result) for name, result in results.items()], axis=0)

    def rho(predictor: str) -> np.ndarray:
        return over_collections(lambda name, _: correlations[name][0][predictor])

    def fall(_: str, result: Result) -> np.ndarray:
        steps = [BM25, *(contaminated(share) for share in config.contamination)]
        eci = [result.predictors["ECI"][result.sources.index(source), -1] for source in steps]
        return np.min(-np.diff(eci, axis=0), axis=0)

    def regret(_: str, result: Result) -> np.ndarray:
        seeds = result.ndcg.shape[-1]
        ndcg, eci = (x.reshape(-1, seeds) for x in (result.ndcg, result.predictors["ECI"]))
        return ndcg.max(axis=0) - ndcg[eci.argmax(axis=0), np.arange(seeds)]

    def lead_of_hybrid(values: np.ndarray, result: Result) -> np.ndarray:
        impure = {contaminated(share) for share in config.contamination}
        others = [i for i, source in enumerate(result.sources) if source not in {HYBRID, *impure}]
        by_source = values.mean(axis=1)
        return by_source[result.sources.index(HYBRID)] - by_source[others].max(axis=0)

    return {
        "eci-ranks-sources": rho("ECI"),
        "eci-beats-capacity": rho("ECI") - rho("capacity"),
        "eci-beats-hardness": rho("ECI") - rho("hardness"),
        "contamination-lowers-eci": over_collections(fall, np.min),
        "eci-picks-a-best-source": over_collections(regret),
        "hybrid-has-the-highest-eci": over_collections(lambda _, r: lead_of_hybrid(r.predictors["ECI"], r)),
        "hybrid-trains-best": over_collections(lambda _, r: lead_of_hybrid(r.ndcg, r)),
    }


def _interval(values: np.ndarray, digits: int = 3) -> str:
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _correlation_table(name: str, rho: Correlations, tau: Correlations) -> Table:
    order = sorted(rho, key=lambda key: -rho[key].mean())
    return Table(
        title=f"{name}: correlation of each predictor with nDCG@10, mean and 95 % interval over seeds",
        columns=["predictor", "Spearman", "Kendall tau-b"],
        rows=[[key, _interval(rho[key]), _interval(tau[key])] for key in order],
    )


def _source_table(name: str, result: Result) -> Table:
    rows: list[list[str | float | int]] = [
        [
            source,
            *(
                f"{result.predictors['ECI'][i, j].mean():.3f} / {result.ndcg[i, j].mean():.4f}"
                for j in range(len(result.ks))
            ),
            f"{1 - result.predictors['safe rate'][i, -1].mean():.2f}",
            f"{result.false[i, -1]:.2f}",
        ]
        for i, source in enumerate(result.sources)
    ]
    last = f"K={result.ks[-1]}"
    return Table(
        title=f"{name}: ECI / nDCG@10 after training; before training {result.zero_shot:.4f}",
        columns=["source", *(f"K={k}" for k in result.ks), f"unsafe rate, {last}", f"false share, {last}"],
        rows=rows,
    )


TERMS = ("ECI", "capacity", "hardness", "safety", "efficiency", "safe rate")


def _term_table(name: str, result: Result) -> Table:
    return Table(
        title=f"{name}: ECI and its terms, means over rows and seeds; C and ECI in nats",
        columns=["source", "K", "ECI", "capacity C", "hardness H", "safety S", "efficiency E", "unsafe rate"],
        rows=[
            [
                source,
                k,
                *(f"{result.predictors[term][i, j].mean():.4f}" for term in TERMS[:-1]),
                f"{1 - result.predictors[TERMS[-1]][i, j].mean():.2f}",
            ]
            for i, source in enumerate(result.sources)
            for j, k in enumerate(result.ks)
        ],
    )


def _contamination_table(config: Config, name: str, result: Result) -> Table:
    def eci_of(source: str) -> np.ndarray:
        return result.predictors["ECI"][result.sources.index(source), -1]

    clean = _interval(eci_of(BM25), 4)
    return Table(
        title=f"{name}: ECI of BM25's negatives at K={result.ks[-1]} with false negatives among them",
        columns=["share of false negatives", "in random slots", "in the last slots, BM25's best stay"],
        rows=[
            ["0%", clean, clean],
            *(
                [f"{share:.0%}", _interval(eci_of(contaminated(share)), 4), _interval(last, 4)]
                for share, last in zip(config.contamination, result.last_slots, strict=True)
            ),
        ],
    )


def compile_target(config: Config) -> Target:
    """The step at a pod's scale: adapter training through the engine, with the batch's ECI among its metrics.

    Args:
        config: its ``pod`` field gives the sizes.

    Returns:
        What `jaxneg.train.compile_for` compiles.

    Raises:
        ValueError: rows that do not split into groups, or groups that do not split over the chips.
    """
    pod = config.pod
    groups, rest = divmod(pod.queries, pod.in_batch)
    if rest or groups % pod.chips:
        raise ValueError(
            f"pod.queries: expected a multiple of in_batch x chips = {pod.in_batch * pod.chips}, "
            f"got {pod.queries}"
        )
    optimizer = optax.adam(config.learning_rate)

    def loss(adapter: Array, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[Array, dict]:
        del key
        others = ~jnp.eye(pod.in_batch, dtype=bool)

        def of_group(query, positive, negatives, valid) -> tuple[Array, Array, Array]:
            scored = eci_from_embeddings(query, positive, negatives, valid)
            losses = contrastive_loss(
                adapter, Examples(query, positive, negatives, valid, others), config.temperature
            )
            return jnp.mean(losses), scored.score, scored.unsafe_rate

        losses, score, unsafe_rate = jax.vmap(of_group)(**batch)
        return jnp.mean(losses), {"eci": jnp.mean(score), "unsafe_rate": jnp.mean(unsafe_rate)}

    def embeddings(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((groups, pod.in_batch, *shape, pod.dimensions), jnp.bfloat16)

    batch = {
        "query": embeddings(),
        "positive": embeddings(),
        "negatives": embeddings(pod.negatives),
        "valid": jax.ShapeDtypeStruct((groups, pod.in_batch, pod.negatives), jnp.bool_),
    }
    state = jax.eval_shape(lambda: init_state(jnp.eye(pod.dimensions), optimizer, jax.random.key(0)))
    return Target(
        step=make_step(loss, optimizer), state=state, batch=batch, mesh={"data": pod.chips}, fsdp=None
    )
