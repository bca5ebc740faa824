"""Exact search by inner product, blocked on a device and sharded over documents; exact top-k of a matrix.

No [queries, documents] matrix is ever held: a block of queries meets a block of documents, and only the best
k so far are kept. Over a mesh, every device searches its own documents, the local lists of a query meet on
one device (an all-to-all), and their best k are the best of all. Equal scores keep the order of the
documents everywhere, so that any blocking and any mesh give the same lists.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxneg.retrieval.arguments import explicit_sharding
from jaxneg.retrieval.masked import one_zero

# 32 MiB of scores; long blocks of documents leave less to sort.
BLOCK_QUERIES = 256
BLOCK_DOCUMENTS = 32_768
CHUNKS = 256


class Retrieved(NamedTuple):
    """Ranked documents of each query, the best first.

    Attributes:
        index: document numbers, -1 for a missing slot.
        score: their scores, minus infinity for a missing slot.
    """

    index: Int[Array, "queries k"]
    score: Float[Array, "queries k"]


def top_documents(scores: Float[Array, "queries documents"], k: int) -> Retrieved:
    """The k best documents of each query, exactly; equal scores keep the order of the documents.

    The k best lie in the k chunks of documents whose maxima are highest, so that only these are sorted:
    about 2 sqrt(documents k) numbers of a row, after one pass over all for the maxima.

    Args:
        scores: any finite numbers, minus infinity for a document that is not to be found.
        k: length of the lists; what exceeds the number of documents is missing.

    Returns:
        A `Retrieved`, equal to ``jax.lax.top_k`` where no score is minus infinity.

    Raises:
        ValueError: a k below 1, or scores of another rank.

    Source:
        Exact top-k by pruning with maxima of chunks.

    Example:
        >>> top_documents(jnp.array([[0.1, 0.9, 0.5]]), 2).index.tolist()
        [[1, 2]]
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"scores: expected shape [queries, documents] with at least one of each, got {scores.shape}"
        )
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    score, index = _top(one_zero(scores), min(k, scores.shape[1]))
    missing = ((0, 0), (0, k - score.shape[1]))
    score = jnp.pad(score, missing, constant_values=-jnp.inf)
    return Retrieved(jnp.where(score > -jnp.inf, jnp.pad(index, missing), -1), score)


def _top(scores: Array, k: int) -> tuple[Array, Array]:
    """As ``jax.lax.top_k``."""
    queries, documents = scores.shape
    width = 2 ** round(math.log2(math.sqrt(documents / k)))
    if width < 4 or documents < 8 * k:
        return jax.lax.top_k(scores, k)
    chunks = -(-documents // width)
    if chunks * width != documents:
        scores = jnp.pad(scores, ((0, 0), (0, chunks * width - documents)), constant_values=-jnp.inf)
    chunked = scores.reshape(queries, chunks, width)
    _, best = jax.lax.top_k(jnp.max(chunked, axis=-1), k)
    best = jnp.sort(best, axis=-1)  # equal scores keep the order of the documents
    kept = jnp.take_along_axis(chunked, best[:, :, None], axis=1).reshape(queries, k * width)
    score, place = jax.lax.top_k(kept, k)
    return score, jnp.take_along_axis(best, place // width, axis=1) * width + place % width


def dense_search(
    q: Float[Array, "queries dim"],
    d: Float[Array, "documents dim"],
    k: int,
    *,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    block_queries: int = BLOCK_QUERIES,
    block_documents: int = BLOCK_DOCUMENTS,
) -> Retrieved:
    """The k documents with the highest inner product for each query, exactly.

    score = <q_i, d_j>, accumulated in float32

    Peak memory beside inputs and results is about 8 block_queries block_documents bytes, whatever the number
    of documents. A row of zeros is an empty text: such a document is never found, and such a query finds
    nothing.

    Args:
        q: embeddings of the queries; on a mesh every device gets all of them.
        d: embeddings of the documents; on a mesh sharded over ``axis_name``.
        k: length of the lists; what exceeds the number of documents is missing.
        mesh: search with every device of its axis; None: on one.
        axis_name: the mesh axis over which documents are sharded.
        block_queries: queries that are scored at once; all of a device's where explicit mesh axes split them.
        block_documents: documents that are scored at once, up to the next multiple of 256.

    Returns:
        A `Retrieved`; on a mesh sharded by query where the devices divide the queries, else replicated.

    Raises:
        ValueError: shapes that do not fit, an empty array, a k or block below 1, or a mesh without the axis.

    Source:
        Exact maximum inner product search.

    Example:
        >>> dense_search(jnp.eye(2), jnp.eye(2), 1).index.tolist()
        [[0], [1]]
    """
    q, d = jnp.asarray(q), jnp.asarray(d)
    check_embeddings(q, d)
    for name, value in (("k", k), ("block_queries", block_queries), ("block_documents", block_documents)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    search = partial(_search, k=k, block_queries=block_queries, block_documents=block_documents)
    if mesh is None:
        return search(q, d)
    devices = _axis_size(mesh, axis_name)
    queries = q.shape[0]
    q = jnp.pad(q, ((0, -queries % devices), (0, 0)))

    def local(q: Array, d: Array) -> Retrieved:
        found = search(q, d)
        index = jnp.where(found.index >= 0, found.index + jax.lax.axis_index(axis_name) * d.shape[0], -1)

        def meet(lists: Array) -> Array:
            """``[queries of this device, devices k]``, the lists in the order of the devices."""
            of_device = lists.reshape(devices, -1, k)
            met = jax.lax.all_to_all(of_device, axis_name, split_axis=0, concat_axis=0)
            return jnp.moveaxis(met, 0, 1).reshape(-1, devices * k)

        score, place = jax.lax.top_k(meet(found.score), k)
        merged = Retrieved(jnp.take_along_axis(meet(index), place, axis=1), score)
        if q.shape[0] == queries:
            return merged
        return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), merged)

    whole = PartitionSpec()
    by_query = PartitionSpec(axis_name) if q.shape[0] == queries else whole
    found = over_documents(local, mesh, axis_name, (whole, PartitionSpec(axis_name)), by_query)(q, d)
    return found if q.shape[0] == queries else jax.tree.map(lambda x: x[:queries], found)


def _search(q: Array, d: Array, *, k: int, block_queries: int, block_documents: int) -> Retrieved:
    queries, documents = q.shape[0], d.shape[0]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    shared = _explicit_rows(q) is not None  # the devices share the queries already
    query_blocks = 1 if shared else -(-queries // block_queries)
    document_blocks = -(-documents // block_documents)
    # Equal blocks; whole chunks of documents, which `_top` need not pad.
    block = min(documents, -(-documents // document_blocks // CHUNKS) * CHUNKS)

    def of_block(q: Array, best: Retrieved, rows: Array, new: Array, start: Array) -> Retrieved:
        scores = jnp.matmul(q, rows.T, precision="highest", preferred_element_type=dtype)
        score, index = _top(jnp.where(new, one_zero(scores), -jnp.inf), min(k, block))
        score = jnp.concatenate([best.score, score], axis=1)
        index = jnp.concatenate([best.index, index + start], axis=1)
        score, place = jax.lax.top_k(score, k)
        return Retrieved(jnp.take_along_axis(index, place, axis=1), score)

    def add_documents(best: Retrieved, number: Array) -> tuple[Retrieved, None]:
        # The last block reaches back where documents do not divide: what was seen is left out.
        start = jnp.minimum(number * block, documents - block)
        rows = jax.lax.dynamic_slice_in_dim(d, start, block)
        new = (start + jnp.arange(block) >= number * block) & jnp.any(rows != 0, axis=1)
        if query_blocks == 1:
            return of_block(q, best, rows, new, start), None
        return jax.lax.map(lambda x: of_block(x[0], x[1], rows, new, start), (blocks, best)), None

    size = -(-queries // query_blocks)
    none = Retrieved(
        _like_rows(q, jnp.full((size, k), -1, jnp.int32)), _like_rows(q, jnp.full((size, k), -jnp.inf, dtype))
    )
    if query_blocks > 1:
        blocks = jnp.pad(q, ((0, -queries % size), (0, 0))).reshape(-1, size, q.shape[1])
        none = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(blocks), *x.shape)), none)
    best, _ = jax.lax.scan(add_documents, none, jnp.arange(-(-documents // block)))
    if query_blocks > 1:
        best = jax.tree.map(lambda x: x.reshape(-1, k)[:queries], best)
    score = jnp.where(jnp.any(q != 0, axis=1, keepdims=True), best.score, -jnp.inf)
    return Retrieved(jnp.where(score > -jnp.inf, best.index, -1), score)


def pair_similarities(
    q: Float[Array, "rows dim"],
    d: Float[Array, "documents dim"],
    ids: Int[Array, "rows columns"],
    *,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    block_rows: int = BLOCK_QUERIES,
) -> Float[Array, "rows columns"]:
    """Inner product of each query with the documents that are listed for it.

    s_ik = <q_i, d_(ids_ik)>, accumulated in float32

    Args:
        q: embeddings of the queries.
        d: embeddings of the documents; on a mesh sharded over ``axis_name``.
        ids: document numbers; below 0 for an empty slot.
        mesh: where the documents are sharded; None: on one device.
        axis_name: the mesh axis over which documents are sharded.
        block_rows: rows whose documents are gathered at once.

    Returns:
        The products, minus infinity for an empty slot and for a number that no document has.

    Raises:
        ValueError: shapes that do not fit, an empty array, a block below 1, or a mesh without the axis.

    Source:
        Cosines of a frozen encoder, where embeddings have length 1.

    Example:
        >>> pair_similarities(jnp.eye(2), jnp.eye(2), jnp.array([[0], [0]])).tolist()
        [[1.0], [0.0]]
    """
    q, d, ids = jnp.asarray(q), jnp.asarray(d), jnp.asarray(ids)
    check_embeddings(q, d)
    if ids.ndim != 2 or ids.shape[0] != q.shape[0]:
        raise ValueError(f"ids: expected shape [{q.shape[0]}, columns], got {ids.shape}")
    if block_rows < 1:
        raise ValueError(f"block_rows: expected at least 1, got {block_rows}")
    if mesh is None:
        return _pairs(q, d, ids, block_rows)
    _axis_size(mesh, axis_name)

    def local(q: Array, d: Array, ids: Array) -> Array:
        own = ids - jax.lax.axis_index(axis_name) * d.shape[0]
        return jax.lax.pmax(_pairs(q, d, jnp.where(ids >= 0, own, -1), block_rows), axis_name)

    whole = PartitionSpec()
    return over_documents(local, mesh, axis_name, (whole, PartitionSpec(axis_name), whole), whole)(q, d, ids)


def _pairs(q: Array, d: Array, ids: Array, block_rows: int) -> Array:
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    exists = (ids >= 0) & (ids < d.shape[0])
    if (rows := _explicit_rows(q)) is not None:  # the devices share the rows already
        at = NamedSharding(rows.mesh, PartitionSpec(rows.spec[0], None, None))
        documents = d.at[jnp.where(exists, ids, 0)].get(out_sharding=at)
        return jnp.where(exists, jnp.sum(documents.astype(dtype) * q[:, None, :], axis=-1), -jnp.inf)

    def of_row(row: tuple[Array, Array]) -> Array:
        q, ids = row
        return jnp.matmul(d[ids], q, precision="highest", preferred_element_type=dtype)

    product = jax.lax.map(of_row, (q, jnp.where(exists, ids, 0)), batch_size=block_rows)
    return jnp.where(exists, product, -jnp.inf)


def _explicit_rows(q: Array) -> NamedSharding | None:
    """The sharding of the queries where explicit mesh axes split their rows."""
    sharding = explicit_sharding(q)
    return None if sharding is None or sharding.spec[0] is None else sharding


def _like_rows(q: Array, values: Array) -> Array:
    """The values with their rows where explicit mesh axes have those of the queries."""
    sharding = _explicit_rows(q)
    if sharding is None:
        return values
    return jax.sharding.reshard(values, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], None)))


def check_embeddings(q: Array, d: Array) -> None:
    """Raises ValueError unless both are matrices of the same width with at least one row."""
    if q.ndim != 2 or d.ndim != 2 or q.shape[1] != d.shape[1] or 0 in (*q.shape, *d.shape):
        raise ValueError(
            f"sim: expected embeddings of shapes [queries, dim] and [documents, dim] with at least one of "
            f"each, got {q.shape} and {d.shape}"
        )


def over_documents(local, mesh: Mesh, axis_name: str, in_specs: tuple, out_specs):
    """``shard_map`` whose documents (the second argument) are padded with rows of zeros to whole shards."""
    sharded = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def call(*arrays: Array):
        q, d, *rest = arrays
        d = jnp.pad(d, ((0, -d.shape[0] % mesh.shape[axis_name]), (0, 0)))
        placed = [q, d, *rest]
        if AxisType.Explicit in mesh.axis_types:
            placed = [
                jax.sharding.reshard(x, NamedSharding(mesh, spec))
                for x, spec in zip(placed, in_specs, strict=True)
            ]
        return sharded(*placed)

    return call


def _axis_size(mesh: Mesh, axis_name: str) -> int:
    if axis_name not in mesh.shape:
        raise ValueError(f"axis_name: expected one of {', '.join(mesh.axis_names)}, got {axis_name!r}")
    return mesh.shape[axis_name]
