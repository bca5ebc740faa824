"""Fine-tunes an adapter on a source of negatives, and measures how well it retrieves.

The frozen embeddings x pass through one square matrix W, which starts at the identity: u = x W / |x W|. The
loss is InfoNCE over the labelled positive, the other positives of the batch that are not relevant for the
query, and the row's explicit negatives. Each fold of queries is tested by the adapter that was trained on the
others.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from experiments.eci.sources import Frozen
from jaxneg.retrieval import infonce_loss, ndcg_at_k
from jaxneg.train import init_state, make_step

CUTOFF = 10
"""Rank at which nDCG is cut off."""


class Examples(NamedTuple):
    """A batch of rows: a query, its positive, its explicit negatives."""

    query: Float[Array, "batch dim"]
    positive: Float[Array, "batch dim"]
    negatives: Float[Array, "batch negatives dim"]
    valid: Bool[Array, "batch negatives"]
    others: Bool[Array, "batch batch"]
    """True where the column's positive may serve as a negative of the row's query."""


class Arrays(NamedTuple):
    """A frozen collection on the device."""

    queries: Float[Array, "queries dim"]
    docs: Float[Array, "documents dim"]
    relevant: Bool[Array, "queries documents"]
    excluded: Bool[Array, "queries documents"]
    row_query: Int[Array, "rows"]
    row_positive: Int[Array, "rows"]


class Schedule(NamedTuple):
    """The random parts of training, the same for all sources."""

    rows: Int[Array, "seeds folds steps batch"]
    held_out: Bool[Array, "seeds folds queries"]


def adapt(adapter: Float[Array, "dim dim"], rows: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """Unit rows behind the adapter; a row of zeros stays.

    Args:
        adapter: W.
        rows: frozen embeddings.

    Returns:
        u = x W / |x W|, in float32.
    """
    moved = jnp.matmul(rows, adapter, preferred_element_type=jnp.float32)
    return moved * jax.lax.rsqrt(jnp.maximum(jnp.sum(moved**2, axis=-1, keepdims=True), 1e-12))


def contrastive_loss(
    adapter: Float[Array, "dim dim"], examples: Examples, temperature: float
) -> Float[Array, "batch"]:
    """InfoNCE over the positive, the batch's other positives and the explicit negatives.

    Args:
        adapter: W.
        examples: the batch.
        temperature: of the softmax.

    Returns:
        One loss a row.
    """
    query, positive, negatives = (adapt(adapter, rows) for rows in examples[:3])
    in_batch = query @ positive.T
    explicit = jnp.einsum("bd,bkd->bk", query, negatives)
    return infonce_loss(
        jnp.sum(query * positive, axis=-1),
        jnp.concatenate([in_batch, explicit], axis=1),
        jnp.concatenate([examples.others, examples.valid], axis=1),
        temperature=temperature,
    )


def on_device(frozen: Frozen) -> Arrays:
    """The arrays that training needs.

    Args:
        frozen: the collection.
    """
    return Arrays(*(jnp.asarray(getattr(frozen, name)) for name in Arrays._fields))


def schedule(frozen: Frozen, *, seeds: int, folds: int, steps: int, batch_size: int) -> Schedule:
    """Folds of queries and orders of rows.

    Args:
        frozen: the collection.
        seeds: each splits the queries and orders the rows anew.
        folds: parts of the queries, each tested once.
        steps: batches.
        batch_size: rows in a batch; all training rows of the smallest fold where those are fewer.

    Returns:
        The rows of every batch and the queries that are tested.
    """
    fold_of = np.stack(
        [np.random.default_rng([seed, 2]).permutation(len(frozen.queries)) % folds for seed in range(seeds)]
    )
    held_out = fold_of[:, None, :] == np.arange(folds)[:, None]
    train_rows = [[np.flatnonzero(~tested[frozen.row_query]) for tested in of_seed] for of_seed in held_out]
    batch = min([batch_size, *(len(rows) for of_seed in train_rows for rows in of_seed)])
    order = np.empty((seeds, folds, steps, batch), np.int32)
    for seed, of_seed in enumerate(train_rows):
        rng = np.random.default_rng([seed, 3])
        for fold, rows in enumerate(of_seed):
            whole = len(rows) // batch * batch
            epochs = [rng.permutation(rows)[:whole] for _ in range(-(-steps * batch // whole))]
            order[seed, fold] = np.concatenate(epochs)[: steps * batch].reshape(steps, batch)
    return Schedule(jnp.asarray(order), jnp.asarray(held_out))


@jax.jit
def fine_tuned_ndcg(
    arrays: Arrays,
    plan: Schedule,
    index: Int[Array, "seeds rows negatives"],
    valid: Bool[Array, "seeds rows negatives"],
    *,
    learning_rate: float,
    temperature: float,
) -> Float[Array, "seeds"]:
    """NDCG@10 of every query under the adapter that was trained on the other folds, averaged over the
    queries.

    Args:
        arrays: the collection.
        plan: of `schedule`.
        index: documents of the explicit negatives.
        valid: true where the slot holds one.
        learning_rate: of Adam.
        temperature: of the loss.

    Returns:
        One nDCG@10 a seed.
    """
    optimizer = optax.adam(learning_rate)

    def loss(adapter: Array, examples: Examples, key: PRNGKeyArray) -> tuple[Array, dict]:
        del key
        return jnp.mean(contrastive_loss(adapter, examples, temperature)), {}

    step = make_step(loss, optimizer)

    def of_fold(index: Array, valid: Array, batches: Array) -> Float[Array, "queries"]:
        def update(state, rows: Int[Array, "batch"]):
            query, positive = arrays.row_query[rows], arrays.row_positive[rows]
            examples = Examples(
                query=arrays.queries[query],
                positive=arrays.docs[positive],
                negatives=arrays.docs[index[rows]],
                valid=valid[rows],
                others=~arrays.excluded[query][:, positive],
            )
            return step(state, examples)[0], None

        start = init_state(jnp.eye(arrays.docs.shape[1]), optimizer, jax.random.key(0))
        state, _ = jax.lax.scan(update, start, batches)
        return query_ndcg(arrays, state.params)

    def of_seed(index: Array, valid: Array, rows: Array, held_out: Array) -> Float[Array, ""]:
        by_fold = jax.vmap(of_fold, in_axes=(None, None, 0))(index, valid, rows)
        return jnp.sum(by_fold, where=held_out) / jnp.sum(held_out)

    return jax.vmap(of_seed)(index, valid, *plan)


@jax.jit
def zero_shot_ndcg(arrays: Arrays) -> Float[Array, ""]:
    """Mean nDCG@10 of the frozen encoder.

    Args:
        arrays: the collection.
    """
    return jnp.mean(query_ndcg(arrays, jnp.eye(arrays.docs.shape[1])))


def query_ndcg(arrays: Arrays, adapter: Float[Array, "dim dim"]) -> Float[Array, "queries"]:
    """NDCG@10 of each query over all documents, against all judgments.

    Args:
        arrays: the collection.
        adapter: W.

    Returns:
        One value a query.
    """
    scores = adapt(adapter, arrays.queries) @ adapt(adapter, arrays.docs).T
    return ndcg_at_k(scores, arrays.relevant, CUTOFF)
