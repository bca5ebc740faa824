"""CET's coupled step, nDCG and BM25 beside what a user would take instead.

The step is that of two perceptrons on the same batch: PyTorch with the official code's arithmetic (two
forward passes for the weights, 1 / (1 - sigmoid), two backward passes, clipping, AdamW), and with the two
extra forward passes left out, since without dropout they repeat the training's. Both sides have the same
weights and pairs, and before anything is timed both take the step: losses and directions (Adam's first
moment) must agree. nDCG is compared with scikit-learn and, where it is installed, rax; BM25 with bm25s and
rank_bm25.
"""

import importlib
import importlib.util
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same, require_same_step, torch_for
from jaxneg.nn import mlp
from jaxneg.retrieval import CETState, bm25_index, bm25_scores, init_cet, make_cet_step, ndcg_at_k

TAU, LEARNING_RATE, DECAY, CLIP = 2.0, 1e-3, 0.01, 1.0
TX = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=DECAY))


class Setting(NamedTuple):
    """Sizes."""

    pairs: int = 4096
    features: int = 64
    width: int = 128
    layers: int = 2
    queries: int = 2000
    documents: int = 1000
    bm25_queries: int = 225
    bm25_documents: int = 1400
    bm25_vocab: int = 7000


def run(repeats: int = 21) -> dict[str, Any]:
    """Times the step, nDCG and BM25.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``, each with ``official_step``, ``reused_forward_step``,
        ``ndcg_sklearn``, ``bm25_bm25s``, ``bm25_rank_bm25`` and, where rax is installed, ``ndcg_rax``:
        ``ratio_median`` is the peer's time over ours.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: the two sides do not compute the same.
    """
    torch = torch_for("cet")
    setting, cores = Setting(), available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "step": f"2 perceptrons of {setting.layers} x {setting.width}, {setting.features} features, "
            f"{setting.pairs} pairs, AdamW, clipped to {CLIP}, tau {TAU}",
            "ndcg": f"[{setting.queries}, {setting.documents}], k 10",
            "bm25": f"{setting.bm25_queries} queries, {setting.bm25_documents} documents of random words, "
            "k1 0.9, b 0.4; rank_bm25 on a tenth of the queries",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], _times, setting, repeats),
        "all_cores": in_a_process(cores, _times, setting, repeats) if len(cores) > 1 else {},
    }


def batch_of(setting: Setting) -> dict[str, np.ndarray]:
    """What each model sees of random pairs, positive and negative in turn.

    Example:
        >>> batch_of(Setting(pairs=2, features=3))["R"].shape
        (4, 3)
    """
    rng = np.random.default_rng(0)
    shape = 2 * setting.pairs, setting.features
    return {model: rng.normal(size=shape).astype(np.float32) for model in "RS"}


def our_step(setting: Setting) -> tuple[Callable[..., Any], CETState]:
    """Our step, to be jitted, and its first state."""
    model = mlp(setting.features, (setting.width,) * setting.layers, (1,))

    def score(params: Any, rows: jax.Array) -> jax.Array:
        (scores,) = model.apply(params, rows)
        return scores[:, 0]

    R, S = (model.init(jax.random.key(seed)) for seed in range(2))
    return make_cet_step(score, score, TX, TX, TAU), init_cet(jax.random.key(2), R, S, TX, TX)


class PeerStep:
    """The official loop's arithmetic in PyTorch, on the same weights.

    Args:
        setting: sizes.
        params: of ``"R"`` and ``"S"``.
        reuse: whether the weights come from the training's forward pass.
    """

    def __init__(self, setting: Setting, params: dict[str, Any], *, reuse: bool) -> None:
        self.torch = torch = torch_for("cet")
        self.reuse, self.models, self.optimizers = reuse, {}, {}
        self.batch = {m: torch.from_numpy(rows) for m, rows in batch_of(setting).items()}
        for m, of in params.items():
            layers = [*of["trunk"].values(), of["heads"]["0"]]
            modules = []
            for layer in layers:
                linear = torch.nn.Linear(*layer["kernel"].shape)
                linear.weight.data = torch.from_numpy(np.array(layer["kernel"].T))
                linear.bias.data = torch.from_numpy(np.array(layer["bias"]))
                modules += [linear, torch.nn.ReLU()]
            self.models[m] = torch.nn.Sequential(*modules[:-1])
            self.optimizers[m] = torch.optim.AdamW(
                self.models[m].parameters(), LEARNING_RATE, weight_decay=DECAY, eps=1e-8
            )

    def __call__(self) -> Any:
        """One step; returns both losses before it."""
        torch = self.torch
        if self.reuse:
            scores = {m: self.models[m](self.batch[m]).view(-1, 2) for m in "RS"}
            negative = {m: scores[m][:, 1].detach() for m in "RS"}
        else:
            with torch.no_grad():
                negative = {m: self.models[m](self.batch[m]).view(-1, 2)[:, 1] for m in "SR"}
            scores = {}
        losses = []
        for m, other in ("RS", "SR"):
            weight = 1 / (1 - torch.sigmoid(negative[other] / TAU))
            found = scores[m] if self.reuse else self.models[m](self.batch[m]).view(-1, 2)
            classes = torch.zeros(len(found), dtype=torch.long)
            loss = torch.nn.functional.cross_entropy(found, classes, reduction="none")
            loss = torch.dot(weight, loss) / len(found)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.models[m].parameters(), CLIP)
            losses.append(loss.detach())
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        return torch.stack(losses)

    def direction(self, model: str) -> list[np.ndarray]:
        """Adam's first moment, weight and bias of each layer."""
        state = self.optimizers[model].state
        return [state[weight]["exp_avg"].numpy() for weight in self.models[model].parameters()]


def direction(state: CETState, model: str) -> list[np.ndarray]:
    """Ours, in the peer's order."""
    mu = state.opt_state[model][1][0].mu
    layers = [*mu["trunk"].values(), mu["heads"]["0"]]
    return [np.asarray(array) for layer in layers for array in (layer["kernel"].T, layer["bias"])]


def _times(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    peaks = machine_peaks()
    return {
        **_step_times(setting, repeats, peaks),
        **_ndcg_times(setting, repeats),
        **_bm25_times(setting, repeats),
    }


def _step_times(setting: Setting, repeats: int, peaks: dict[str, float]) -> dict[str, dict[str, float]]:
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    step, first = our_step(setting)
    compiled = jax.jit(step, donate_argnums=0)
    sizes = [setting.features, *[setting.width] * setting.layers, 1]
    products = sum(a * b for a, b in pairwise(sizes))
    # Forward, and backward but for the gradient of the inputs; two models, two rows a pair.
    flops = 2 * 2 * setting.pairs * 2 * (3 * products - sizes[0] * sizes[1])
    roofline = roofline_seconds(flops, sum(leaf.nbytes for leaf in jax.tree.leaves(batch)), peaks)
    measured, kept = {}, [first]

    def ours() -> Any:
        kept[0], metrics = compiled(kept[0], batch)
        return kept[0], metrics

    for name, reuse in (("official_step", False), ("reused_forward_step", True)):
        peer = PeerStep(setting, first.params, reuse=reuse)
        kept[0] = jax.tree.map(jnp.copy, first)
        state, metrics = ours()
        losses = np.array([metrics["loss_R"], metrics["loss_S"]]), peer().numpy()
        directions = [direction(state, m) for m in "RS"], [peer.direction(m) for m in "RS"]
        apart = require_same_step(name, losses, directions, 1e-3)
        timing = paired_ratio(ours, peer, repeats)
        measured[name] = {
            **timing,
            **apart,
            "roofline_seconds": roofline,
            "ours_over_roofline": timing["ours_seconds"] / roofline,
        }
    return measured


def _ndcg_times(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    shape = setting.queries, setting.documents
    scores = rng.normal(size=shape).astype(np.float32)
    relevance = rng.integers(0, 4, shape) * (rng.random(shape) < 0.05).astype(np.float32)
    relevance[:, 0] = 1
    ours = jax.jit(lambda s, r: ndcg_at_k(s, r, 10))
    on_device = jnp.asarray(scores), jnp.asarray(relevance)
    peers: dict[str, Callable[[], Any]] = {
        "ndcg_sklearn": lambda: ndcg_score(relevance, scores, k=10, ignore_ties=True)
    }
    if importlib.util.find_spec("rax"):
        rax = importlib.import_module("rax")
        gain = {"gain_fn": lambda labels: labels, "topn": 10}
        theirs = jax.jit(lambda s, r: rax.ndcg_metric(s, r, **gain))
        peers["ndcg_rax"] = lambda: theirs(*on_device)
    measured = {}
    for name, peer in peers.items():
        apart = require_same(name, np.mean(ours(*on_device), keepdims=True), np.atleast_1d(peer()))
        measured[name] = {**paired_ratio(lambda: ours(*on_device), peer, repeats), "values_apart": apart}
    return measured


def _bm25_times(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    import bm25s

    rank_bm25 = importlib.import_module("rank_bm25")
    rng = np.random.default_rng(0)

    def words(rows: int, length: int) -> np.ndarray:
        return np.minimum(rng.zipf(1.3, (rows, length)) - 1, setting.bm25_vocab - 1)

    docs, queries = words(setting.bm25_documents, 90), words(setting.bm25_queries, 9)
    queries = np.where(np.isin(queries, docs), queries, docs[0, 0])
    texts, asked = ([[f"w{word}" for word in row] for row in rows] for rows in (docs, queries))
    theirs = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    theirs.index(texts, show_progress=False)
    okapi = rank_bm25.BM25Okapi(texts, k1=0.9, b=0.4)
    some = slice(max(1, setting.bm25_queries // 10))
    cases = {
        "bm25_bm25s": ("lucene", slice(None), lambda row: theirs.get_scores(row)),
        "bm25_rank_bm25": ("okapi", some, lambda row: okapi.get_scores(row)),
    }
    scorer, measured = jax.jit(bm25_scores), {}
    for name, (variant, which, score) in cases.items():
        index = bm25_index(docs, setting.bm25_vocab, variant=variant, k1=0.9, b=0.4)
        rows, of_rows = jnp.asarray(queries[which]), asked[which]

        def ours(index: Any = index, rows: Any = rows) -> Any:
            return scorer(index, rows)

        def peer(score: Any = score, of_rows: Any = of_rows) -> np.ndarray:
            return np.stack([score(row) for row in of_rows])

        apart = require_same(name, np.asarray(ours()), peer())
        measured[name] = {**paired_ratio(ours, peer, repeats), "values_apart": apart}
    return measured
