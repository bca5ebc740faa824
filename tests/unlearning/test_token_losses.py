"""The losses that read logits token by token: brute force, gradients, memory, dtypes, meshes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.unlearning import IGNORE, ceu_loss, pdu_forget_loss, satimp_loss, undial_loss, wga_loss

# Each as a function of the policy's logits, the reference's and the labels.
LOSSES = {
    "wga": lambda z, r, y: wga_loss(z, y, 0.7),
    "satimp": lambda z, r, y: satimp_loss(z, y, 2.0, 0.5),
    "undial": lambda z, r, y: undial_loss(z, r, y, 3.0),
    "undial, all positions": lambda z, r, y: undial_loss(z, r, y, 3.0, masked=False),
    "ceu": lambda z, r, y: ceu_loss(z, y, 1),
    "ceu, all labels": lambda z, r, y: ceu_loss(z, y, 0),
    "pdu": lambda z, r, y: pdu_forget_loss(z, y),
}
VOCAB = 104


def _case(seed=0, batch=8, tokens=5, vocab=VOCAB, scale=2.0):
    """The second row starts with a label, the third has none."""
    random = np.random.default_rng(seed)
    logits, ref_logits = scale * random.standard_normal((2, batch, tokens, vocab)).astype(np.float32)
    labels = random.integers(0, vocab, (batch, tokens)).astype(np.int32)
    labels[random.random((batch, tokens)) < 0.3] = IGNORE
    labels[0], labels[1, :2], labels[2] = np.arange(tokens), 1, IGNORE
    return jnp.asarray(logits), jnp.asarray(ref_logits), jnp.asarray(labels)


def _brute_force(name, logits, ref_logits, labels):
    """Sum over everything and number of what counts, position by position; and the same for each row."""
    sums, counts = np.zeros(len(labels)), np.zeros(len(labels))
    for b, row in enumerate(np.asarray(labels)):
        labels_so_far = 0
        for t, label in enumerate(row):
            labels_so_far += label != IGNORE
            z = np.float64(logits[b, t])
            if name == "pdu":
                if label != IGNORE:
                    sums[b], counts[b] = sums[b] + (z.max() - z.mean()) ** 2, counts[b] + 1
                continue
            if t == 0:
                continue
            log_q = np.float64(logits[b, t - 1]) - np.log(np.exp(np.float64(logits[b, t - 1])).sum())
            everywhere = name == "undial, all positions"
            if label == IGNORE and not everywhere:
                continue
            if name == "ceu" and labels_so_far < 2:
                continue
            counts[b] += 1
            if name in ("wga", "satimp"):
                p = np.exp(log_q[label])
                weight = p**0.7 if name == "wga" else p**2 * (1 - p) ** 0.5
                sums[b] += weight * log_q[label]
                continue
            target = np.float64((ref_logits if name.startswith("undial") else logits)[b, t - 1])
            target[label] -= 3.0 if name.startswith("undial") else np.inf
            target = np.exp(target) / np.exp(target).sum()
            sums[b] -= target @ log_q
    return sums / counts.mean()


def _naive(name, logits, ref_logits, labels):
    """The mean loss through log_softmax, for its gradient."""
    if name == "pdu":
        mask = labels != IGNORE
        above = logits.max(-1) - logits.mean(-1)
        return jnp.sum(mask * above**2) / mask.sum()
    log_q, y = jax.nn.log_softmax(logits[:, :-1]), labels[:, 1:]
    mask = y != IGNORE
    one_hot = jax.nn.one_hot(jnp.where(mask, y, y + VOCAB), logits.shape[-1])
    log_p = jnp.sum(log_q * one_hot, -1)
    if name in ("wga", "satimp"):
        p = jax.lax.stop_gradient(jnp.exp(log_p))
        weight = p**0.7 if name == "wga" else p**2 * (1 - p) ** 0.5
        return jnp.sum(mask * weight * log_p) / mask.sum()
    if name.startswith("undial"):
        target = ref_logits[:, :-1] - 3.0 * one_hot
        mask = mask if name == "undial" else jnp.ones_like(mask)
    else:
        target = jnp.where(one_hot > 0, -jnp.inf, logits[:, :-1])
        if name == "ceu":
            mask = mask & (jnp.cumsum(labels != IGNORE, -1)[:, 1:] > 1)
    ce = -jnp.sum(jax.nn.softmax(jax.lax.stop_gradient(target)) * log_q, -1)
    return jnp.sum(mask * ce) / mask.sum()


def _rows(logits, ref_logits, labels):
    return {name: loss(logits, ref_logits, labels) for name, loss in LOSSES.items()}


@jax.jit
def _all(logits, ref_logits, labels):
    """Rows of every loss, and the gradients of their means."""
    gradients = {
        name: jax.grad(lambda z, loss=loss: loss(z, ref_logits, labels).mean())(logits)
        for name, loss in LOSSES.items()
    }
    return _rows(logits, ref_logits, labels), gradients


@pytest.fixture(scope="module")
def case():
    return _case()


@pytest.fixture(scope="module")
def found(case):
    return _all(*case)


def test_rows_are_what_the_formula_says(case, found):
    for name, rows in found[0].items():
        expected = _brute_force(name, *map(np.asarray, case))
        np.testing.assert_allclose(rows, expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_gradients(case, found):
    expected = jax.jit(
        lambda *given: {
            name: jax.grad(lambda z, n=name: _naive(n, z, *given[1:]))(given[0]) for name in LOSSES
        }
    )(*case)
    for name, gradient in found[1].items():
        assert gradient.any(), name
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_jit_is_eager_and_vmap_maps(case, found):
    for name, rows in _rows(*case).items():
        np.testing.assert_allclose(found[0][name], rows, rtol=1e-5, atol=1e-6, err_msg=name)
    logits, ref_logits, labels = case
    stacked = jax.jit(jax.vmap(_rows, (0, None, None)))(jnp.stack([ref_logits, logits]), ref_logits, labels)
    for name, rows in stacked.items():
        np.testing.assert_allclose(rows[1], found[0][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_bfloat16_is_summed_in_float32(case):
    narrow = [x.astype(jnp.bfloat16) for x in case[:2]]
    rows, gradients = _all(*narrow, case[2])
    expected, _ = _all(*(x.astype(jnp.float32) for x in narrow), case[2])
    for name, found in rows.items():
        assert found.dtype == jnp.float32, name
        assert gradients[name].dtype == jnp.bfloat16, name
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_float64_is_kept(x64, case):
    wide = [x.astype(float) for x in case[:2]]
    rows = jax.eval_shape(_rows, *wide, case[2])
    assert {x.dtype.name for x in rows.values()} == {"float64"}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_the_backward_pass_keeps_the_logits_alone(name, case):
    logits, ref_logits, labels = case
    _, pullback = jax.vjp(lambda z: LOSSES[name](z, ref_logits, labels), logits)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if getattr(leaf, "size", 0) >= logits.size]
    given = [logits, ref_logits] if name.startswith("undial") else [logits]
    assert all(any(leaf is each or bool((leaf == each).all()) for each in given) for leaf in kept)


@pytest.mark.parametrize("kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)])
def test_sharded_equals_unsharded(kind, case, found):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        placed = jax.device_put(case[:2], NamedSharding(mesh, P("data", None, "model")))
        rows, gradients = _all(*placed, jax.device_put(case[2], NamedSharding(mesh, P("data"))))
    for name in LOSSES:
        np.testing.assert_allclose(rows[name], found[0][name], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(gradients[name], found[1][name], rtol=1e-4, atol=1e-7, err_msg=name)
        assert gradients[name].sharding.is_equivalent_to(placed[0].sharding, 3), name


def test_limits():
    """UNDIAL with an infinite beta is CE-U; what is forgotten already has no gradient and no weight."""
    logits, _, labels = _case()

    @jax.jit
    def limits(logits, labels):
        everywhere = jnp.where(labels == IGNORE, 3, labels)
        undial, ceu = undial_loss(logits, logits, everywhere, 1e4), ceu_loss(logits, everywhere, 0)
        forgotten, only = logits.at[..., :6].add(-50.0), jnp.where(labels == IGNORE, IGNORE, labels % 6)
        gradient = jax.grad(lambda z: ceu_loss(z, only, 0).sum())(forgotten)
        known = satimp_loss(jnp.zeros((1, 2, 3)).at[..., 1].set(60.0), jnp.array([[0, 1]]))
        flat = pdu_forget_loss(jnp.ones((1, 2, 3)), jnp.array([[0, 1]]))
        return undial, ceu, wga_loss(forgotten, only), gradient, known, flat

    undial, ceu, wga, gradient, known, flat = limits(logits, labels)
    np.testing.assert_allclose(undial, ceu, rtol=1e-5)
    assert float(jnp.abs(wga).max()) < 1e-12
    assert float(jnp.abs(gradient).max()) < 1e-12
    assert (known.tolist(), flat.tolist()) == ([0.0], [0.0])


def test_pdu_shares_its_gradient_among_equal_maxima():
    logits = jnp.array([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    gradient = jax.grad(lambda z: pdu_forget_loss(z, jnp.array([[1, 1]])).sum())(logits)
    np.testing.assert_allclose(gradient[0, 0], [0.125, 0.125, -0.125, -0.125], rtol=1e-6)


def test_labels_outside_the_vocabulary_and_batches_without_labels():
    logits, ref_logits, labels = _case()
    rows = jax.jit(_rows)
    wrong, empty = (
        rows(logits, ref_logits, labels.at[4].set(VOCAB)),
        rows(logits, ref_logits, jnp.full_like(labels, IGNORE)),
    )
    for name in LOSSES:
        assert bool(jnp.isnan(wrong[name][4])) == (name != "pdu"), "which does not read the ids"
        assert bool(jnp.isnan(empty[name]).all()) == (name != "undial, all positions"), name


def test_no_gradient_flows_into_the_reference(case):
    logits, ref_logits, labels = case
    gradient = jax.jit(jax.grad(lambda r: undial_loss(logits, r, labels).sum()))
    assert not gradient(ref_logits).any()


def test_static_mistakes(case):
    logits, ref_logits, labels = case
    with pytest.raises(ValueError, match="ref_logits: expected the policy's vocabulary of 104, got 103"):
        undial_loss(logits, ref_logits[..., 1:], labels)
    with pytest.raises(ValueError, match=r"a vocabulary of at least 100 for masked=False.* got 99"):
        undial_loss(logits[..., :99], ref_logits[..., :99], labels, masked=False)
    with pytest.raises(ValueError, match="ignore_first_n: expected at least 0, got -1"):
        ceu_loss(logits, labels, -1)
    with pytest.raises(ValueError, match="beta: expected a positive finite number, got 0"):
        wga_loss(logits, labels, 0)
    with pytest.raises(ValueError, match="beta: expected a positive finite number, got -1"):
        undial_loss(logits, ref_logits, labels, -1)
    with pytest.raises(ValueError, match="beta2: expected a positive finite number, got 0"):
        satimp_loss(logits, labels, beta2=0)
    for loss in (wga_loss, satimp_loss, ceu_loss, pdu_forget_loss):
        with pytest.raises(TypeError, match="labels: expected an integer dtype, got float32"):
            loss(logits, labels.astype(float))
        with pytest.raises(ValueError, match=r"labels: expected the shape .* got \(8, 4\)"):
            loss(logits, labels[:, 1:])
        with pytest.raises(ValueError, match="logits: expected at least one row"):
            loss(logits[:0], labels[:0])
