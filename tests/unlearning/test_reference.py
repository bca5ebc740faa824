"""The cached reference: what it holds, and batches that it was not computed for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.unlearning import (
    IGNORE,
    UnlearnConfig,
    check_reference,
    make_unlearn_loss,
    precompute_reference,
    sequence_nll,
)
from jaxneg.unlearning.reference import row_fingerprints

VOCAB = 8
CFG = UnlearnConfig("npo+kl")


def _apply(params, tokens):
    return params[tokens]


def _batch(seed=0, rows=6, tokens=5):
    random = np.random.default_rng(seed)
    ids = jnp.asarray(random.integers(0, VOCAB, (2, rows, tokens)).astype(np.int32))
    return {part: {"tokens": x, "labels": x} for part, x in zip(("forget", "retain"), ids, strict=True)}


def _params(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32))


@pytest.fixture(scope="module")
def cached():
    return precompute_reference(_apply, _params(1), _batch(), CFG)


def test_what_is_kept(cached):
    batch = _batch()
    expected = sequence_nll(_apply(_params(1), batch["forget"]["tokens"]), batch["forget"]["labels"])[0]
    np.testing.assert_allclose(cached["forget"]["ref_seq_nll"], expected, rtol=1e-6)
    assert cached["retain"]["ref_logits"].shape == (6, 5, VOCAB)
    assert "ref_logits" not in cached["forget"]
    check_reference(cached, CFG)


def test_a_reference_of_another_batch(cached):
    """The loss is not a number under jit, which stops a training loop; outside of jit the check says why."""
    other = _batch(seed=5)
    mixed = {part: cached[part] | other[part] for part in other}
    loss_fn = jax.jit(make_unlearn_loss(_apply, CFG))
    assert bool(jnp.isfinite(loss_fn(_params(), cached, None)[0]))
    assert bool(jnp.isnan(loss_fn(_params(), mixed, None)[0]))
    message = (
        r"batch\['forget'\]: 'ref_seq_nll' was computed for other rows: row 0 and 5 more .* run"
        " precompute_reference on this batch"
    )
    with pytest.raises(ValueError, match=message):
        check_reference(mixed, CFG)
    shuffled = jax.tree.map(lambda x: x, cached)
    shuffled["forget"]["ref_seq_nll"] = cached["forget"]["ref_seq_nll"][::-1]
    shuffled["forget"]["ref_rows"] = cached["forget"]["ref_rows"][::-1]
    with pytest.raises(ValueError, match="'ref_seq_nll' was computed for other rows"):
        check_reference(shuffled, CFG)
    fewer = {part: dict(content) for part, content in cached.items()}
    fewer["retain"]["ref_logits"] = cached["retain"]["ref_logits"][:4]
    with pytest.raises(ValueError, match=r"batch\['retain'\]: expected 'ref_logits' of these 6 rows, got 4"):
        check_reference(fewer, CFG)


def test_rows_may_be_reordered_together(cached):
    order = jnp.array([3, 1, 0, 2, 5, 4])
    check_reference(jax.tree.map(lambda x: x[order], cached), CFG)


def test_what_is_missing(cached):
    with pytest.raises(ValueError, match=r"batch: expected the part 'retain' for 'npo.kl'"):
        check_reference({"forget": cached["forget"]}, CFG)
    with pytest.raises(
        ValueError, match=r"batch\['forget'\]: expected 'ref_seq_nll' .* precompute_reference"
    ):
        check_reference(_batch(), CFG)


def test_fingerprints():
    """Of every label and its place; not of the padding behind."""
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 50_000, (1, 12)).astype(np.int32))
    changed = [labels.at[0, t].add(1) for t in range(12)] + [labels.at[0, t].set(IGNORE) for t in range(12)]
    changed += [labels[:, jnp.array(order)] for order in ([*range(1, 12), 0], [*range(11, -1, -1)])]
    found = row_fingerprints(jnp.concatenate([labels, *changed]))
    assert len(set(found.tolist())) == 1 + len(changed)
    padded = jnp.pad(labels, ((0, 0), (0, 7)), constant_values=IGNORE)
    assert row_fingerprints(padded).tolist() == found[:1].tolist()
    with jax.enable_x64(True):
        assert row_fingerprints(jnp.asarray(np.int64(labels))).tolist() == found[:1].tolist()
