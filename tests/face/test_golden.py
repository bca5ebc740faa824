"""Golden vectors of UNPG: official code and float64. Settings that only the README states are below."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxneg.face import (
    MagFace,
    all_pairs_scores,
    best_threshold_accuracy,
    box_whisker_mask,
    ijb_template_features,
    margin_logits,
    pair_similarities,
    shard_class_ranges,
    sharded_margin_softmax,
    tar_at_far,
    tenfold_accuracy,
    unpg_loss,
    wdfs_stats,
)

RTOL = {
    "pairs": 1e-6,
    "box": 1e-7,
    "heads": 1e-5,
    "loss": 1e-5,
    "gradient": 1e-4,
    "verification": 1e-6,
    "templates": 1e-6,
    "wdfs": 1e-6,
}

pytestmark = pytest.mark.usefixtures("x64")


def mag_of(golden):
    names = {"l_m": "l_margin", "u_m": "u_margin"}
    return MagFace(**{f: float(golden[f"mag_{names.get(f, f)}"]) for f in MagFace._fields})


def close(actual, expected, rtol):
    scale = np.abs(expected).max() if np.size(expected) else 1.0
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * scale)


@pytest.mark.golden("unpg", "pairs*.npz")
def test_pairs(golden):
    sim, same, other = (np.asarray(x) for x in pair_similarities(golden["features"], golden["labels"]))
    close(sim[same], golden["sp"], RTOL["pairs"])
    close(sim[other], golden["sn"], RTOL["pairs"])
    scores, flags = all_pairs_scores(golden["features"], golden["labels"])
    close(scores[flags], golden["sp"], RTOL["pairs"])
    close(scores[~flags], golden["sn"], RTOL["pairs"])


@pytest.mark.golden("unpg", "box_whisker*.npz")
def test_box_whisker(golden):
    kept_name = "_kept_sorted"
    cases = [name.removesuffix(kept_name) for name in golden if name.endswith(kept_name)]
    assert cases
    for case in cases:
        name, r = case.rsplit("_r", 1)
        x = golden[f"{name}_x"]
        kept, bounds = box_whisker_mask(x, r=float(r))
        np.testing.assert_allclose(np.sort(x[np.asarray(kept)]), golden[case + kept_name], rtol=RTOL["box"])
        np.testing.assert_allclose(np.stack(bounds), golden[f"{case}_bounds"], rtol=RTOL["box"], atol=1e-12)


@pytest.mark.golden("unpg", "heads*.npz")
def test_heads(golden):
    x, w, y = golden["features"], golden["W"], golden["labels"]
    s, m, mag = float(golden["s"]), float(golden["m"]), mag_of(golden)
    cases = [name.removesuffix("_cos") for name in golden if name.endswith("_cos")]
    assert len(cases) >= 5
    for case in cases:
        kind, options = case, {"m": m}
        if kind == "arcface_monotone":
            kind, options = "arcface", {"m": m, "monotone": True}
        elif kind == "sphereface":
            options = {"m": int(golden["sphereface_m"])}
        logits, aux = margin_logits(x, w, y, kind=kind, s=s, mag=mag, **options)
        close(aux["cosine"], golden[f"{case}_cos"], RTOL["heads"])
        close(logits, s * golden[f"{case}_cos"], RTOL["heads"])
        if kind == "magface":
            close(aux["regulariser"].mean(), golden["magface_lambda_g_times_g"], RTOL["heads"])
            close(aux["norm"], golden["magface_norm"], RTOL["heads"])


@pytest.mark.golden("unpg", "unpg_[!n]*.npz")
def test_unpg(golden):
    x, w, y, mag = golden["features"], golden["W"], golden["labels"], mag_of(golden)
    s, m, r = (float(golden[name]) for name in ("s", "m", "r"))
    cases = [name.removesuffix("_loss").split("_") for name in golden if name.endswith("_loss")]
    assert cases
    for head, kind in cases:

        def mean(x, w, head=head, kind=kind):
            whiskers = r if kind == "unpg" else None
            losses, aux = unpg_loss(x, w, y, head=head, s=s, m=m, r=whiskers, mag=mag)
            return losses.mean(), aux

        (loss, aux), gradients = jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))(x, w)
        name = f"{head}_{kind}"
        close(loss, golden[f"{name}_loss"], RTOL["loss"])
        close(aux["cross_entropy"].mean(), golden[f"{name}_ce"], RTOL["loss"])
        close(aux["regulariser"].mean(), golden[f"{name}_reg"], RTOL["loss"])
        assert int(aux["n_neg"]) == golden[f"{name}_n_neg"]
        assert int(aux["n_kept"]) == golden[f"{name}_n_kept"]
        close(gradients[0], golden[f"{name}_g_features"], RTOL["gradient"])
        close(gradients[1], golden[f"{name}_g_W"], RTOL["gradient"])


@pytest.mark.golden("unpg", "unpg_no_negatives*.npz")
def test_no_negatives(golden):
    s, m = float(golden["s"]), float(golden["m"])

    def mean(x, w):
        return unpg_loss(x, w, golden["labels"], s=s, m=m, r=1.5)[0].mean()

    loss, gradients = jax.value_and_grad(mean, (0, 1))(golden["features"], golden["W"])
    close(loss, golden["loss_cosface"], RTOL["loss"])
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.golden("unpg", "partial_fc_*.npz")
def test_partial_fc(golden):
    world, w, y = int(golden["world"]), golden["W"], golden["labels"]
    mesh = Mesh(np.array(jax.devices()[:world]), ("classes",), axis_types=(AxisType.Auto,))
    starts, sizes = shard_class_ranges(len(w), world)
    np.testing.assert_array_equal(starts, golden["class_start"])
    np.testing.assert_array_equal(sizes, golden["num_local"])

    def mean(x, w):
        losses, sampled = sharded_margin_softmax(
            x,
            w,
            y,
            mesh=mesh,
            sample_rate=float(golden["rate"]),
            head=str(golden["margin"]),
            s=float(golden["s"]),
            m=float(golden["m"]),
            uniform=golden["uniform"],
            return_sampled=True,
        )
        return losses.mean(), sampled

    (loss, sampled), gradients = jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))(
        golden["embeddings"], w
    )
    close(loss, golden["loss"], RTOL["loss"])
    close(gradients[0], golden["g_embeddings"], RTOL["gradient"])
    close(gradients[1], golden["g_W"], RTOL["gradient"])
    for start, size, rows, expected in zip(
        starts, sizes, np.asarray(sampled).reshape(world, -1), golden["sampled"], strict=True
    ):
        assert not rows[size:].any()
        np.testing.assert_array_equal(start + np.flatnonzero(rows), expected[expected >= 0])


@pytest.mark.golden("unpg", "verification*.npz")
def test_verification(golden):
    sim, same = golden["sim"], golden["same"]
    found = best_threshold_accuracy(sim, same)
    np.testing.assert_allclose(
        found, (golden["best_threshold_acc"], golden["best_threshold"]), rtol=RTOL["verification"]
    )
    accuracies, thresholds = tenfold_accuracy(sim, same)
    np.testing.assert_allclose(accuracies, golden["tenfold_acc"], rtol=RTOL["verification"])
    np.testing.assert_allclose(thresholds, golden["tenfold_threshold"], rtol=RTOL["verification"])
    for mode in ("nearest", "conservative"):
        rates = tar_at_far(golden["big_sim"], golden["big_same"], golden["fars"], mode)
        np.testing.assert_allclose(rates, golden[f"tar_{mode}"], rtol=RTOL["verification"])


@pytest.mark.golden("unpg", "ijb_templates*.npz")
def test_templates(golden):
    found, features = ijb_template_features(golden["features"], golden["templates"], golden["medias"])
    np.testing.assert_array_equal(found, golden["unique_templates"])
    close(features, golden["template_features"], RTOL["templates"])


@pytest.mark.golden("unpg", "wdfs*.npz")
def test_wdfs(golden):
    stats = wdfs_stats(golden["sp"], golden["sn"])
    for name, key in (
        ("inf_sp", "inf_sp"),
        ("sup_sn", "sup_sn"),
        ("gap", "wdfs_gap"),
        ("overlap", "overlap_50bins"),
    ):
        np.testing.assert_allclose(getattr(stats, name), golden[key], rtol=RTOL["wdfs"])
