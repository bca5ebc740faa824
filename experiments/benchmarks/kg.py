"""Training steps and filtered evaluation of knowledge-graph embeddings beside PyKEEN, on the same CPU.

The graph is WN18RR (its 3-core for the evaluation), or a random one of the same size where it is not found.
Both sides have the same tables, positives, negatives and optimizer (dense Adam). A step is measured with the
negatives given, and with each side's own drawing and filtering of them: ours exact, PyKEEN's with its Bloom
filter. PyKEEN's RotatE always takes the L2 norm, whatever ``p`` it is made with; it is given the paper's
sum of
moduli here, turned on the cheaper side as its own is.

Before anything is timed both sides give the same scores, loss and gradient of the entity table, and the same
metrics of all three kinds of ranks, or the benchmark stops.

PyKEEN is in the extra ``bench`` and imported here alone. If its pins clash with something else, give it an
environment of its own::

    python3 -m venv --without-pip kg-bench
    python3 -m pip --python kg-bench/bin/python install torch pykeen -e '.[experiments]'
    kg-bench/bin/python -m experiments bench kg
"""

import importlib
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process
from experiments.lemon.graphs import Graph, load_graph
from experiments.peers import distance, require_same, torch_for
from jaxneg import kg

GAMMA, ALPHA, LEARNING_RATE = 6.0, 0.5, 5e-5
RANKS = ("optimistic", "pessimistic", "realistic")


class Sizes(NamedTuple):
    """Of a step: dimensions, positives, negatives of each; of the evaluation: triples and queries at once."""

    dimensions: int = 100
    batch: int = 512
    negatives: int = 64
    test: int = 669
    chunk: int = 64


def run(repeats: int = 21) -> dict[str, Any]:
    """Times steps, evaluation and k-means on one core and on all.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``, each with a row for every model and program:
        ``ratio_median`` is the peer's time over ours, ``triples_per_second`` counts positives.

    Raises:
        ImportError: torch or pykeen is not installed.
        RuntimeError: two sides compute different numbers.
    """
    pykeen = pykeen_for("kg")
    cores, sizes = available_cores(), Sizes()
    whole, core = benchmark_graph("wn18rr", 86_835), benchmark_graph("wn18rr-core3", 26_028)
    return {
        "settings": {
            "pykeen": pykeen.version,
            "step": f"{whole.name}: {len(whole.entities)} entities, d = {sizes.dimensions}, batch "
            f"{sizes.batch}, "
            f"{sizes.negatives} negatives, self-adversarial, Adam",
            "evaluation": f"{core.name}: {min(sizes.test, len(core.test))} triples against "
            f"{len(core.entities)} "
            "entities, both sides, filtered",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], times, whole, core, sizes, repeats),
        "all_cores": in_a_process(cores, times, whole, core, sizes, repeats) if len(cores) > 1 else {},
    }


def pykeen_for(benchmark: str) -> SimpleNamespace:
    """PyKEEN's parts that are measured; benchmarks alone need it.

    Args:
        benchmark: its name, for the message.

    Returns:
        ``models``, ``losses``, ``triples``, ``sampling``, ``evaluation`` and ``version``.

    Raises:
        ImportError: it is not installed.
    """
    torch_for(benchmark)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = {
                name: importlib.import_module(f"pykeen.{name}")
                for name in ("models", "losses", "triples", "sampling", "evaluation", "version")
            }
    except ImportError as error:
        raise ImportError(
            f"the benchmark {benchmark!r} measures against PyKEEN ({error}); pip install "
            f"'jaxneg[bench]', or give "
            "it an environment of its own, as the benchmark's docstring says"
        ) from error
    return SimpleNamespace(**parts | {"version": parts["version"].get_version()})


def benchmark_graph(name: str, triples: int) -> Graph:
    """The named graph, or a random one of its size where nobody has it.

    Args:
        name: "wn18rr" or "wn18rr-core3".
        triples: of the random one's training part.

    Returns:
        The graph.
    """
    return load_graph(name) or random_graph(triples)


def random_graph(triples: int) -> Graph:
    """Triples between entities of which some are much more frequent than others, as in real graphs.

    Example:
        >>> random_graph(1000).train.shape[1]
        3
    """
    rng = np.random.default_rng(0)
    entities = max(triples * 40_943 // 86_835, 8)
    popular = (entities * rng.random((triples + triples // 15, 2)) ** 2).astype(np.int32)
    rows = np.stack([popular[:, 0], rng.integers(0, 11, len(popular)), popular[:, 1]], axis=1).astype(
        np.int32
    )
    valid, test, train = np.split(rows, [triples // 30, triples // 15])
    names = [str(i) for i in range(entities)]
    return Graph(f"random, {triples} triples", names, names[:11], train, valid, test, [""] * entities)


def our_tables(model: str, graph: Graph, sizes: Sizes) -> dict[str, jax.Array]:
    """Tables from which both sides start."""
    key = jax.random.key(0)
    return kg.kge_init(key, model, len(graph.entities), len(graph.relations), sizes.dimensions, GAMMA)


def peer_model(pykeen: SimpleNamespace, model: str, graph: Graph, tables: dict[str, jax.Array]) -> Any:
    """PyKEEN's model with our tables.

    Args:
        pykeen: of `pykeen_for`.
        model: TransE, DistMult, ComplEx or RotatE.
        graph: the graph.
        tables: of `our_tables`.

    Returns:
        The model, with the self-adversarial loss.
    """
    torch = torch_for("kg")
    factory = pykeen.triples.CoreTriplesFactory(
        torch.from_numpy(graph.train).long(), len(graph.entities), len(graph.relations)
    )
    kind = kg.MODELS[model]
    width = tables["relation"].shape[1] // kind.relation_width
    # DistMult and ComplEx have no margin in our score.
    margin = GAMMA if kind.distance else 0.0
    loss = pykeen.losses.NSSALoss(margin=margin, adversarial_temperature=ALPHA)
    options: dict[str, Any] = {
        "triples_factory": factory,
        "embedding_dim": width,
        "loss": loss,
        "random_seed": 0,
    }
    if model == "TransE":
        options |= {"scoring_fct_norm": 1, "entity_constrainer": None}
    if model == "DistMult":
        options |= {"entity_constrainer": None}
    if model != "RotatE":
        options |= {"regularizer": None}
    peer = getattr(pykeen.models, model)(**options)
    if model == "RotatE":
        peer.interaction.forward = _rotate_l1
    entity, relation = (np.array(tables[name]) for name in ("entity", "relation"))
    if model == "RotatE":
        angle = relation * np.pi / ((GAMMA + 2) / width)
        relation = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    for representation, table in (
        (peer.entity_representations[0], entity),
        (peer.relation_representations[0], relation),
    ):
        weight = representation._embeddings.weight
        if table.shape[1] == 2 * width:  # stored as pairs (real, imaginary) of floats
            table = np.stack(np.split(table, 2, axis=1), axis=-1).reshape(len(table), -1)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(np.ascontiguousarray(table)).view(weight.shape))
    return peer


def _rotate_l1(h: Any, r: Any, t: Any) -> Any:
    """PyKEEN's RotatE with the paper's norm."""
    difference = h * r - t if h.numel() <= t.numel() else h - t * r.conj()
    return -difference.norm(p=1, dim=-1)


def negatives_of(graph: Graph, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Positives of a step and entities that replace their tails."""
    rng = np.random.default_rng(1)
    positives = graph.train[rng.choice(len(graph.train), sizes.batch)]
    return positives, rng.integers(0, len(graph.entities), (sizes.batch, sizes.negatives)).astype(np.int32)


class PeerStep:
    """PyKEEN's step as its sLCWA loop takes it, with given negatives or with its own.

    Args:
        pykeen: of `pykeen_for`.
        model: its model.
        train: triples that its sampler leaves out.
        positives: of a batch.
        negatives: entities in place of tails; None: of its basic sampler with the Bloom filter.
        count: negatives of its own sampler.
    """

    def __init__(
        self,
        pykeen: SimpleNamespace,
        model: Any,
        train: np.ndarray,
        positives: np.ndarray,
        negatives: np.ndarray | None,
        count: int,
    ) -> None:
        self.torch, self.model, self.sampler = torch_for("kg"), model, None
        self.positives = self.torch.from_numpy(positives).long()
        self.optimizer = self.torch.optim.Adam(model.parameters(), LEARNING_RATE)
        if negatives is None:
            self.sampler = pykeen.sampling.BasicNegativeSampler(
                mapped_triples=self.torch.from_numpy(train).long(),
                num_entities=model.num_entities,
                num_relations=model.num_relations,
                num_negs_per_pos=count,
                filtered=True,
                filterer="bloom",
            )
        else:
            corrupted = np.repeat(positives[:, None], negatives.shape[1], axis=1)
            corrupted[..., 2] = negatives
            self.negatives = self.torch.from_numpy(corrupted).long()

    def scores(self) -> tuple[Any, Any, Any]:
        """Scores of positives and negatives, and which negatives count."""
        if self.sampler is None:
            negatives, mask = self.negatives, None
        else:
            negatives, mask = self.sampler.sample(self.positives)
        positive = self.model.score_hrt(self.positives)
        flat = negatives.view(-1, 3) if mask is None else negatives[mask]
        negative = self.model.score_hrt(flat)
        return positive, negative.view(negatives.shape[:-1] if mask is None else flat.shape[:-1]), mask

    def loss(self) -> Any:
        """The loss of the batch."""
        positive, negative, mask = self.scores()
        return self.model.loss.process_slcwa_scores(
            positive_scores=positive,
            negative_scores=negative,
            batch_filter=mask,
            num_entities=self.model.num_entities,
        )

    def __call__(self) -> Any:
        """One step; its loss."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.model.post_parameter_update()
        return loss.detach()


def our_step(
    model: str, graph: Graph, sizes: Sizes, negatives: np.ndarray | None, update: str
) -> tuple[Callable[..., Any], Any]:
    """Our step and its first state; the negatives given, or uniform with the exact filter.

    Args:
        model: one of `kg.MODELS`.
        graph: the graph.
        sizes: of the step.
        negatives: entities in place of tails, or None.
        update: "all" or "touched".

    Returns:
        ``step(state, batch)`` for the positives ``batch``, to be jitted, and the state.
    """
    known = None
    if negatives is None:
        known = kg.known_triples(graph.train, len(graph.entities))

        def sample(key: Any, triples: Any, side: str) -> Any:
            del side
            return kg.sample_uniform(key, triples[:, 0], sizes.negatives, len(graph.entities))

    else:
        given = jnp.asarray(negatives)

        def sample(key: Any, triples: Any, side: str) -> Any:
            del key, triples, side
            return given

    tx = optax.adam(LEARNING_RATE)
    step = kg.make_kge_step(model, tx, sample, alpha=ALPHA, known=known, update=update)
    return step, kg.init_kge_state(our_tables(model, graph, sizes), tx, jax.random.key(1))


def times(whole: Graph, core: Graph, sizes: Sizes, repeats: int) -> dict[str, dict[str, float]]:
    """All comparisons, in this process.

    Args:
        whole: graph of the steps.
        core: graph of the evaluation.
        sizes: of both.
        repeats: pairs of samples.

    Returns:
        A row for each comparison.
    """
    peaks, measured = machine_peaks(), {}
    for model in ("TransE", "RotatE"):
        measured |= steps_compared(model, whole, sizes, repeats, peaks)
    for model in ("TransE", "ComplEx", "RotatE"):
        measured[f"{model}, evaluation"] = evaluation_compared(model, core, sizes, repeats)
    return measured | {"k-means": kmeans_compared(repeats)}


def steps_compared(
    model: str, graph: Graph, sizes: Sizes, repeats: int, peaks: dict[str, float]
) -> dict[str, dict[str, float]]:
    """A model's step with given negatives, with drawn ones, and with the update of touched rows alone."""
    pykeen, (positives, negatives) = pykeen_for("kg"), negatives_of(graph, sizes)
    tables = our_tables(model, graph, sizes)
    apart = require_same_start(model, graph, sizes)
    measured = {}
    for name, given, update in (
        ("given negatives", negatives, "all"),
        ("own negatives", None, "all"),
        ("own negatives, touched rows", None, "touched"),
    ):
        step, state = our_step(model, graph, sizes, given, update)
        # Every second step replaces heads, so that a sample is two steps.
        batch, kept = {"triples": jnp.asarray(positives)}, [state]
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

        def ours(compiled: Any = compiled, kept: list[Any] = kept, batch: Any = batch) -> Any:
            for _ in range(2):
                kept[0], metrics = compiled(kept[0], batch)
            return metrics["loss"]

        peer = PeerStep(
            pykeen, peer_model(pykeen, model, graph, tables), graph.train, positives, given, sizes.negatives
        )
        timing = paired_ratio(ours, lambda peer=peer: (peer(), peer()), repeats)
        # Adam reads gradient, moments and table, and writes all but the gradient.
        moved = 7 * tables["entity"].nbytes
        measured[f"{model}, step, {name}"] = {
            **timing,
            "triples_per_second": 2 * sizes.batch / timing["ours_seconds"],
            "peer_triples_per_second": 2 * sizes.batch / timing["peer_seconds"],
            **apart,
            "roofline_seconds": 2 * roofline_seconds(0, moved, peaks),
        }
    return measured


def require_same_start(model: str, graph: Graph, sizes: Sizes) -> dict[str, float]:
    """Refuses to go on unless both sides give the same scores, loss and gradient of the entity table."""
    pykeen, (positives, negatives) = pykeen_for("kg"), negatives_of(graph, sizes)
    tables = our_tables(model, graph, sizes)
    h, r, t = jnp.asarray(positives).T

    def loss(tables: Any) -> Any:
        positive = kg.kge_score(model, tables, h, r, t)
        negative = kg.kge_score(model, tables, h, r, jnp.asarray(negatives))
        return kg.kge_loss(positive, negative, alpha=ALPHA), (positive, negative)

    (value, (positive, negative)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(tables)
    peer = PeerStep(pykeen, peer_model(pykeen, model, graph, tables), graph.train, positives, negatives, 0)
    theirs = [x.detach().numpy() for x in peer.scores()[:2]]
    margin = GAMMA if kg.MODELS[model].distance else 0.0  # PyKEEN keeps it in the loss
    apart = {
        "scores_apart": max(
            require_same(f"{model}, scores", np.asarray(ours), other.reshape(ours.shape) + margin)
            for ours, other in zip((positive, negative), theirs, strict=True)
        )
    }
    peer_loss = peer.loss()
    peer_loss.backward()
    weight = peer.model.entity_representations[0]._embeddings.weight
    their_gradient = weight.grad.numpy().reshape(gradient["entity"].shape)
    if kg.MODELS[model].entity_width == 2:
        pairs = their_gradient.reshape(len(their_gradient), -1, 2)
        their_gradient = np.concatenate([pairs[..., 0], pairs[..., 1]], axis=1)
    apart["loss_apart"] = require_same(f"{model}, loss", np.asarray(value), peer_loss.detach().numpy())
    apart["gradient_apart"] = distance(gradient["entity"], their_gradient)
    if not apart["gradient_apart"] <= 1e-3:
        raise RuntimeError(
            f"{model}: the two sides' gradients are {apart['gradient_apart']:.1e} apart: they are "
            f"different steps, "
            "and not timed"
        )
    return apart


def evaluation_compared(model: str, graph: Graph, sizes: Sizes, repeats: int) -> dict[str, float]:
    """Filtered evaluation of both sides, after checking that all metrics are the same."""
    pykeen, torch = pykeen_for("kg"), torch_for("kg")
    tables = our_tables(model, graph, sizes)
    peer = peer_model(pykeen, model, graph, tables)
    test = graph.test[: sizes.test]
    known = kg.known_triples(graph.known, len(graph.entities))

    def ours() -> Any:
        return kg.filtered_ranks(tables, jnp.asarray(test), known, sizes.chunk, model=model)

    mapped = torch.from_numpy(test).long()
    others = [torch.from_numpy(part).long() for part in (graph.train, graph.valid, graph.test)]

    def theirs() -> Any:
        evaluator = pykeen.evaluation.RankBasedEvaluator(filtered=True)
        return evaluator.evaluate(
            peer, mapped, batch_size=sizes.chunk, additional_filter_triples=others, use_tqdm=False
        )

    ranks, results = ours(), theirs()
    apart = 0.0
    for kind in RANKS:
        values = np.asarray(getattr(ranks, kind), np.float64)
        for name, value in (
            ("inverse_harmonic_mean_rank", np.mean(1 / values)),
            ("arithmetic_mean_rank", values.mean()),
        ):
            their_value = np.asarray(results.get_metric(f"both.{kind}.{name}"))
            apart = max(apart, require_same(f"{model}, {kind} {name}", np.asarray(value), their_value))
    timing = paired_ratio(ours, theirs, repeats)
    rate = {"triples_per_second": len(test) / timing["ours_seconds"]}
    return {
        **timing,
        **rate,
        "peer_triples_per_second": len(test) / timing["peer_seconds"],
        "metrics_apart": apart,
    }


def kmeans_compared(repeats: int, rows: int = 8632, width: int = 64, clusters: int = 100) -> dict[str, float]:
    """Lloyd's k-means from the same first centres beside scikit-learn's."""
    from sklearn.cluster import KMeans

    X = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    start, device_rows = X[:clusters], jnp.asarray(X)
    program = (
        jax.jit(lambda X, start: kg.lloyd(X, start, 100)[1:3])
        .lower(device_rows, jnp.asarray(start))
        .compile()
    )

    def ours() -> Any:
        return program(device_rows, start)

    def theirs() -> Any:
        settings: dict[str, Any] = {
            "init": start,
            "n_init": 1,
            "max_iter": 100,
            "tol": 0,
            "algorithm": "lloyd",
        }
        return KMeans(clusters, **settings).fit(X)

    (_, inertia), fitted = ours(), theirs()
    # Rounding decides ties, after which the paths part: close, not equal.
    apart = abs(float(inertia) / fitted.inertia_ - 1)
    if not apart < 0.01:
        raise RuntimeError(f"k-means: the two sides' inertias are {apart:.1e} apart, and not timed")
    return {**paired_ratio(ours, theirs, repeats), "inertia_apart": apart}
