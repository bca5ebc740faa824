"""What a method needs of the reference, computed once for the data and kept beside it.

Zhang et al., arXiv:2404.05868, Section 2: the reference is the model before unlearning, frozen. NPO, DPO and
KTO need one number of it for each row.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from jaxneg.unlearning.methods import Batch, UnlearnConfig, parts_of, reference_needs, require_part
from jaxneg.unlearning.sequence import IGNORE, sequence_nll


def precompute_reference(
    apply: Callable[[Any, Any], Array], ref_params: Any, batch: Batch, cfg: UnlearnConfig
) -> dict[str, dict[str, Any]]:
    """What a method needs of the reference, added to a batch: once for the data, not in every step.

    ``ref_seq_nll[b] = S_ref[b]``, a scalar for each row; KL and UNDIAL need ``ref_logits``, RMU's retain loss
    ``ref_hidden``.

    Args:
        apply: ``apply(params, tokens) -> logits [B, T, V]``, for "rmu+ed" hidden states ``[B, T, D]``; with
            LoRA, the model with its adapters off.
        ref_params: the parameters before unlearning.
        batch: parts by name with ``tokens`` and ``labels``.
        cfg: the method and its coefficients.

    Returns:
        The batch with ``ref_seq_nll`` ``[B]`` in the parts of the forget loss (NPO, DPO, KTO), ``ref_logits``
        ``[B, T, V]`` in "retain" (KL) or "forget" (UNDIAL), ``ref_hidden`` ``[B, T, D]`` in "retain", and in
        the same parts ``ref_rows`` ``[B]``, the fingerprints of the rows that the reference has seen. No
        gradient flows into them.

    Raises:
        ValueError: a part that the method needs and the batch lacks.

    Source:
        arXiv:2404.05868, Section 2: the reference is the model before unlearning, frozen.

    Example:
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> apply = lambda params, tokens: params[tokens]
        >>> batch = precompute_reference(apply, jnp.zeros((8, 8)), {"forget": part}, UnlearnConfig("npo"))
        >>> batch["forget"]["ref_seq_nll"].shape
        (2,)
    """
    extended = {part: dict(content) for part, content in batch.items()}
    for part, entry in reference_needs(cfg.method).items():
        require_part(batch, part, "batch", cfg.method)
        labels = batch[part]["labels"]
        output = jax.lax.stop_gradient(apply(ref_params, batch[part]["tokens"]))
        extended[part][entry] = sequence_nll(output, labels)[0] if entry == "ref_seq_nll" else output
        extended[part]["ref_rows"] = row_fingerprints(labels)
    return extended


def row_fingerprints(labels: Int[Array, "batch tokens"]) -> UInt32[Array, " batch"]:
    """A number for each row that changes with its labels, and not with the padding behind them.

    Args:
        labels: token ids, -100 where a token does not count.

    Returns:
        ``[B]``.

    Example:
        >>> a, b = row_fingerprints(jnp.array([[1, 2, -100], [2, 1, -100]]))
        >>> bool(a == b), bool(a == row_fingerprints(jnp.array([[1, 2]]))[0])
        (False, True)
    """
    positions = jnp.arange(labels.shape[-1], dtype=jnp.uint32)
    mixed = (labels.astype(jnp.uint32) ^ (positions * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(jnp.where(labels != IGNORE, mixed, 0), -1, dtype=jnp.uint32)


def check_reference(batch: Batch, cfg: UnlearnConfig) -> None:
    """Refuses what a reference said of other rows. For the data pipeline: it reads values, so it does not run
    under jit, where such a batch gives a loss that is not a number.

    Args:
        batch: parts by name, with what `precompute_reference` added.
        cfg: the method and its coefficients.

    Raises:
        ValueError: a part or an entry that the method needs and the batch lacks, an entry without a row for
            each of the labels', or rows other than those that the reference has seen (the first is named).

    Example:
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> apply = lambda params, tokens: params[tokens]
        >>> cfg = UnlearnConfig("npo")
        >>> check_reference(precompute_reference(apply, jnp.zeros((8, 8)), {"forget": part}, cfg), cfg)
    """
    for part in parts_of(cfg.method):
        require_part(batch, part, "batch", cfg.method)
    for part, entry in reference_needs(cfg.method).items():
        require_entry(batch, part, entry, cfg.method)
        rows = len(batch[part]["labels"])
        for name in {entry, "ref_rows"} & batch[part].keys():
            if len(batch[part][name]) != rows:
                raise ValueError(
                    f"batch[{part!r}]: expected {name!r} of these {rows} rows, got {len(batch[part][name])}"
                )
        if "ref_rows" in batch[part]:
            seen = np.asarray(batch[part]["ref_rows"])
            other = np.flatnonzero(np.asarray(row_fingerprints(jnp.asarray(batch[part]["labels"]))) != seen)
            if len(other):
                raise ValueError(
                    f"batch[{part!r}]: {entry!r} was computed for other rows: row {other[0]} and"
                    f" {len(other) - 1} more have other labels than the reference saw; run"
                    " precompute_reference on this batch"
                )


def require_entry(batch: Batch, part: str, entry: str, name: str) -> None:
    """Refuses a part without what the reference says of it.

    Args:
        batch: parts by name.
        part: its name.
        entry: "ref_seq_nll", for which "ref_logits" does as well, "ref_logits" or "ref_hidden".
        name: the method.

    Raises:
        ValueError: the entry is not there.

    Example:
        >>> require_entry({"forget": {"ref_logits": 1}}, "forget", "ref_seq_nll", "npo")
    """
    if entry not in batch[part] and not (entry == "ref_seq_nll" and "ref_logits" in batch[part]):
        raise ValueError(
            f"batch[{part!r}]: expected {entry!r} for {name!r}, got {sorted(batch[part])};"
            " precompute_reference adds it"
        )
