"""The step of QCRD: what it descends, when the judge learns, sampling, corruption, snapshots, bad input."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.language import (
    QCRDConfig,
    SnapshotBuffer,
    contrastive_rationale_loss,
    corrupt_rationales,
    discriminator_loss,
    init_qcrd,
    make_qcrd_step,
    sample_rationales,
    sequence_ce,
    token_mean_ce,
)
from jaxneg.train import make_mesh, shard_step

VOCAB, WIDTH, START = 7, 5, 0
TX, JUDGE_TX = optax.sgd(0.3), optax.sgd(0.5)


def encode(params, tokens, mask):
    words = jnp.where(mask[..., None] != 0, params["embedding"][tokens], 0)
    return words.sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]


def decode(params, states, mask, tokens):
    del mask
    context = states[:, None] if tokens.ndim == 2 else states[:, None, None]
    return jnp.tanh(params["embedding"][tokens] + context) @ params["out"]


def judge(params, question, question_mask, rationales, mask):
    x = encode(params, question, question_mask)[:, None]
    words = jnp.where(mask[..., None] != 0, params["embedding"][rationales], 0).sum(2)
    return jax.nn.sigmoid((jnp.tanh(x + words) * params["out"][:, 0]).sum(-1))


def weights(seed):
    rng = np.random.default_rng(seed)
    return {
        "embedding": jnp.asarray(rng.standard_normal((VOCAB, WIDTH)), jnp.float32),
        "out": jnp.asarray(rng.standard_normal((WIDTH, VOCAB)), jnp.float32),
    }


def make_batch(rows=4, m=3, k=2, seed=0):
    rng = np.random.default_rng(seed)
    batch = {}
    for name, shape in {
        "question": (rows, 6),
        "predict": (rows, 6),
        "explain": (rows, 6),
        "label": (rows, 3),
        "pos": (rows, m, 4),
        "neg": (rows, k, 4),
    }.items():
        batch[name] = rng.integers(0, VOCAB, shape).astype(np.int32)
        lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
        batch[f"{name}_mask"] = np.arange(shape[-1]) < lengths[..., None]
    batch["pos_valid"], batch["neg_valid"] = rng.random((rows, m)) < 0.7, rng.random((rows, k)) < 0.7
    if k:
        batch["neg_valid"][0] = False
    batch["pos_valid"][-1] = False
    return batch


@cache
def step_of(scheme="minmax", judged=True, **options):
    cfg = QCRDConfig(scheme=scheme, refresh=4, judge_steps=2, delta=2.5, **options)
    extra = {"judge": judge, "judge_tx": JUDGE_TX} if judged else {}
    return jax.jit(make_qcrd_step(encode, decode, TX, cfg, **extra))


def state_of(judged=True, seed=0):
    extra = (weights(1), JUDGE_TX) if judged else ()
    return init_qcrd(jax.random.key(seed), weights(0), TX, *extra)


def shifted(tokens):
    return np.concatenate([np.full_like(tokens[..., :1], START), tokens[..., :-1]], -1)


def written_out(batch, key, scheme, judged):
    """The student's loss with every rationale differentiated, as the equations have it."""

    def loss(params):
        states = encode(params, batch["predict"], batch["predict_mask"])
        logits = decode(params, states, None, shifted(batch["label"]))
        pred = token_mean_ce(logits, batch["label"], batch["label_mask"])
        states = encode(params, batch["explain"], batch["explain_mask"])
        costs = {
            end: sequence_ce(
                decode(params, states, None, shifted(batch[end])), batch[end], batch[f"{end}_mask"]
            )
            for end in ("pos", "neg")
        }
        given = [
            judge(weights(1), batch["question"], batch["question_mask"], batch[end], batch[f"{end}_mask"])
            for end in ("pos", "neg")
        ]
        contrast, _ = contrastive_rationale_loss(
            costs["pos"],
            costs["neg"],
            batch["pos_valid"],
            batch["neg_valid"],
            *(given if judged else ()),
            delta=2.5,
            scheme=scheme,
            key=key,
        )
        return 0.5 * pred + 0.5 * contrast.mean()

    return loss


@pytest.mark.parametrize(
    ("scheme", "judged"),
    [
        ("minmax", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("minmax", False),
                ("maxmin", True),
                ("sampling", True),
                ("mean", True),
                ("wmean", True),
            )
        ),
    ],
)
def test_a_step_descends_the_written_out_loss(scheme, judged):
    """To select before differentiating changes nothing."""
    batch, state = make_batch(), state_of(judged)
    after, metrics = step_of(scheme, judged)(state, batch)
    loss = written_out(batch, jax.random.fold_in(state.key, 0), scheme, judged)
    value, grads = jax.jit(jax.value_and_grad(loss))(weights(0))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    for name, gradient in grads.items():
        expected = weights(0)[name] - 0.3 * gradient
        np.testing.assert_allclose(after.params["student"][name], expected, rtol=1e-4, atol=1e-5)
    assert int(after.step) == 1


def test_the_judge_learns_in_its_steps_only():
    """In the first two of four steps, by its own loss times alpha_3 decay^n."""
    batch, state, step = make_batch(), state_of(), step_of()
    tokens, mask = (np.concatenate([batch[f"pos{e}"], batch[f"neg{e}"]], 1) for e in ("", "_mask"))

    @jax.jit
    @jax.value_and_grad
    def judge_loss(params):
        found = judge(params, batch["question"], batch["question_mask"], tokens, mask)
        return discriminator_loss(found[:, :3], found[:, 3:], batch["pos_valid"], batch["neg_valid"])

    for number in range(6):
        before = state.params["judge"]
        state, metrics = step(state, batch)
        value, grads = judge_loss(before)
        learns = number % 4 < 2
        np.testing.assert_allclose(metrics["judge_loss"], value if learns else 0, rtol=1e-5)
        scale = 0.5 * 0.5 * 0.9 ** (number // 4) * learns
        for name, gradient in grads.items():
            expected = before[name] - scale * gradient
            np.testing.assert_allclose(state.params["judge"][name], expected, rtol=1e-5, atol=1e-6)
    assert {"pos_score", "neg_score", "pos_ce", "neg_ce", "grad_norm"} <= set(metrics)


@pytest.mark.slow
def test_options_of_the_judge():
    """Without a window it always learns; its updates decay too if asked for; without negatives it rests."""
    batch, state = make_batch(), state_of()._replace(step=jnp.asarray(11, jnp.int32))
    moved = {}
    for name, cfg in {
        "always": QCRDConfig(refresh=4, judge_steps=None),
        "decayed": QCRDConfig(refresh=4, judge_steps=None, decay_judge_rate=True),
        "never": QCRDConfig(refresh=4, judge_steps=0),
    }.items():
        step = jax.jit(make_qcrd_step(encode, decode, TX, cfg, judge=judge, judge_tx=JUDGE_TX))
        after, _ = step(state, batch)
        moved[name] = np.asarray(after.params["judge"]["out"] - weights(1)["out"])
    assert np.abs(moved["always"]).max() > 0
    np.testing.assert_allclose(moved["decayed"], 0.81 * moved["always"], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(moved["never"], 0)
    without = make_batch(k=0)
    after, _ = step_of()(state_of(), without)
    np.testing.assert_array_equal(after.params["judge"]["out"], weights(1)["out"])


def test_without_any_valid_rationale_only_the_label_is_learnt():
    batch = make_batch()
    batch |= {"pos_valid": batch["pos_valid"] & False, "neg_valid": batch["neg_valid"] & False}
    after, metrics = step_of()(state_of(), batch)
    assert float(metrics["cl_loss"]) == 0
    np.testing.assert_allclose(metrics["loss"], 0.5 * metrics["pred_loss"], rtol=1e-6)
    for leaf in jax.tree.leaves(after.params):
        assert np.isfinite(leaf).all()


@pytest.mark.slow
def test_seeds_are_mapped():
    """vmap over states is the steps of each, and eager is jit."""
    step = make_qcrd_step(encode, decode, TX, QCRDConfig(scheme="sampling"), judge=judge, judge_tx=JUDGE_TX)
    states = [state_of(seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, _ = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, make_batch())
    for row, state in enumerate(states):
        alone, _ = step(state, make_batch())
        np.testing.assert_allclose(
            together.params["student"]["out"][row], alone.params["student"]["out"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_bfloat16():
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state_of().params)
    after, metrics = step_of()(state_of()._replace(params=low), make_batch())
    assert after.params["student"]["out"].dtype == jnp.bfloat16
    _, expected = step_of()(state_of(), make_batch())
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_as_unsharded(explicit):
    batch, state = make_batch(8), state_of()
    expected, _ = step_of()(state, batch)
    mesh = make_mesh({"data": 8}, explicit=explicit)
    cfg = QCRDConfig(refresh=4, judge_steps=2, delta=2.5)
    reshared = partial(jax.sharding.reshard, out_shardings=jax.sharding.PartitionSpec())

    def gathered(function):
        """The toy's gathers are ambiguous on explicit axes, as only it is."""

        def call(params, *arrays):
            arrays = [x if x is None else reshared(x) for x in arrays] if explicit else arrays
            return function(params, *arrays)

        return call

    step = make_qcrd_step(
        gathered(encode), gathered(decode), TX, cfg, judge=gathered(judge), judge_tx=JUDGE_TX
    )
    sharded = shard_step(step, mesh, state, batch)
    found, metrics = sharded(sharded.place_state(state), sharded.place_batch(batch))
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.isfinite(float(metrics["loss"]))


def chain(params, states, mask, tokens, cache):
    """Logits from a table of what follows what; the cache counts."""
    del states, mask
    return params[tokens], cache + 1


def test_sampled_rationales():
    """Greedy ones follow the table; sampled ones have its frequencies; the end and padding are masked."""
    rows = [[1e-9, 0.3, 0.7, 1e-9], [1, 1, 1, 1], [1e-9, 0.2, 1e-9, 0.8], [1e-9, 1, 0, 0]]
    table = jnp.log(jnp.array(rows))
    enc = jnp.zeros((3000, 2)), jnp.ones((3000, 2), bool)

    @partial(jax.jit, static_argnames="temperature")
    def sample(key, temperature):
        return sample_rationales(key, chain, table, enc, temperature, 5, cache=jnp.zeros((), int))

    tokens, mask = sample(jax.random.key(0), 0.0)
    assert tokens[0].tolist() == [2, 3, 1, 0, 0]
    assert mask[0].tolist() == [True, True, True, False, False]
    tokens, mask = map(np.asarray, sample(jax.random.key(0), 2.0))
    expected = 0.7**0.5 / (0.3**0.5 + 0.7**0.5)
    np.testing.assert_allclose((tokens[:, 0] == 2).mean(), expected, atol=0.03)
    ended = tokens[:, 0] == 1
    assert mask[ended].sum() == ended.sum()
    again, _ = sample(jax.random.key(0), 2.0)
    np.testing.assert_array_equal(tokens, again)


def test_corruption():
    """The rate, what stands for a word, and whose words come in its place."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 11, 400)
    words = np.arange(12) < lengths[:, None]
    tokens = np.where(words, 100 + np.arange(400)[:, None], 1)
    corrupt = jax.jit(corrupt_rationales, static_argnames="rate")
    found = np.asarray(corrupt(jax.random.key(0), tokens, words, 7, rate=0.3))
    np.testing.assert_array_equal(found[~words], 1)
    masked, replaced = (found == 7)[words], ((found != 7) & (found != tokens))[words]
    np.testing.assert_allclose([masked.mean(), replaced.mean()], 0.15, atol=0.02)
    assert ((found[words] == 7) | (found[words] >= 100)).all()
    np.testing.assert_array_equal(corrupt(jax.random.key(0), tokens, words, 7, rate=0.0), tokens)


def test_snapshots():
    """Those of j iterations ago, rounded, and the same after a reload."""
    buffer = SnapshotBuffer(2)
    for number in range(5):
        params = {"w": jnp.full(3, 1.001 + number), "n": jnp.arange(2)}
        buffer.push(params)
        earlier = buffer.earlier()
        expected = np.asarray(jnp.asarray(1.001 + max(0, number - 2), jnp.bfloat16), np.float32)
        np.testing.assert_array_equal(np.asarray(earlier["w"], np.float32), np.full(3, expected))
        assert earlier["w"].dtype == jnp.bfloat16
        assert earlier["n"].dtype == np.int32
    other = SnapshotBuffer(2)
    other.load(buffer.state())
    for each in (buffer, other):
        each.push({"w": jnp.zeros(3), "n": jnp.arange(2)})
    np.testing.assert_array_equal(other.earlier()["w"], buffer.earlier()["w"])
    assert other.count == buffer.count == 6
    newest = SnapshotBuffer(0, None)
    newest.push({"w": jnp.ones(1)})
    newest.push({"w": jnp.zeros(1)})
    assert newest.earlier()["w"].tolist() == [0.0]
    with pytest.raises(ValueError, match="the buffer is empty"):
        SnapshotBuffer(1).earlier()
    with pytest.raises(ValueError, match="j: expected at least 0 iterations, got -1"):
        SnapshotBuffer(-1)
    with pytest.raises(ValueError, match="expected 2 versions after 6 iterations with j = 1, got 3"):
        SnapshotBuffer(1).load(buffer.state())


def without(name):
    return {key: array for key, array in make_batch().items() if key != name}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (without("explain_mask"), "batch: expected 'explain_mask', got"),
        (without("question"), "batch: expected 'question'"),
        (make_batch() | {"pos": np.ones((4, 3), int)}, "batch: pos: expected 3 axes, 4 rows and a mask"),
        (make_batch() | {"neg_valid": np.ones((4, 3))}, "batch: neg_valid: expected the shape (4, 2)"),
        (make_batch(m=0), "batch: expected at least one positive, and negatives of its length"),
    ],
)
def test_a_wrong_batch(batch, message):
    step = make_qcrd_step(encode, decode, TX, judge=judge, judge_tx=JUDGE_TX)
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(step, state_of(), batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QCRDConfig(alphas=(1.0, -1.0, 0.0)), "alphas: expected three finite weights"),
        (lambda: QCRDConfig(delta=-1.0), "delta: expected a finite number of at least 0, got -1.0"),
        (lambda: QCRDConfig(decay=0.0), "decay: expected a number above 0, 1 at most, got 0.0"),
        (lambda: QCRDConfig(refresh=0), "refresh: expected at least 1 step, got 0"),
        (lambda: QCRDConfig(judge_steps=-1), "judge_steps: expected at least 0, or None, got -1"),
        (lambda: QCRDConfig(scheme="max"), "scheme: expected one of minmax"),
        (lambda: QCRDConfig(denominator="pos"), "denominator: expected one of neg, all, got 'pos'"),
        (lambda: make_qcrd_step(encode, decode, TX, judge=judge), "judge, judge_tx: expected both or n"),
        (
            lambda: make_qcrd_step(encode, decode, TX, QCRDConfig(scheme="wmean")),
            "scheme: 'wmean' weighs by the judge's scores, got no judge",
        ),
        (lambda: init_qcrd(jax.random.key(0), {}, TX, {}), "judge_tx: a judge needs an optimizer"),
        (
            lambda: corrupt_rationales(jax.random.key(0), jnp.ones((1, 2), int), jnp.ones((1, 2), bool), 0),
            "tokens: expected the shape [rationales, tokens], two at least, got (1, 2)",
        ),
        (
            lambda: corrupt_rationales(jax.random.key(0), jnp.ones((2, 2), int), jnp.ones((2, 3), bool), 0),
            "words: expected the shape of tokens, (2, 2), got (2, 3)",
        ),
        (
            lambda: corrupt_rationales(
                jax.random.key(0), jnp.ones((2, 2), int), jnp.ones((2, 2), bool), 0, rate=2.0
            ),
            "rate: expected a number between 0 and 1, got 2.0",
        ),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
