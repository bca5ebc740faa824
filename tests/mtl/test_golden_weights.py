"""Weights of every method of the Gram matrix against the official codes' and exact solvers', case by case."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.mtl import (
    aligned_mtl,
    cagrad,
    config,
    dualproj,
    fairgrad,
    gram,
    imtl_g,
    mgda,
    nash,
    pcgrad,
    upgrad,
)

SYSTEM = "mtl_reweighting"

PRECISIONS = ["float64", pytest.param("float32", marks=pytest.mark.slow)]

# Names of arrays that only parametrise others.
NOT_COMPARED = {"torchjd_weights": {"pref"}, "pcgrad": {"perm"}}

# The official solvers did not converge there (README of the vectors).
NASH_UNSOLVED = {"scaled", "identical", "tiny", "opposite", "zero_row", "all_zero"}
FAIRGRAD_UNSOLVED = {"scaled", "tiny"}
# A singular Gram matrix: IMTL-G is compared in the form that the vectors follow, and elsewhere not at all.
PINV_OF_G = {"rand_T9_P4", "opposite"}


METHODS = {
    "mgda": mgda,
    "mgda_fw": partial(mgda, solver="frank_wolfe"),
    "mgda_pgd": partial(mgda, solver="pgd"),
    "mgda_l2": partial(mgda, normalizer="l2", solver="pgd"),
    "mgda_lossplus": lambda G, losses: mgda(G, normalizer="loss+", losses=losses, solver="pgd"),
    "upgrad": upgrad,
    "dualproj": dualproj,
    "cagrad_c0.5": partial(cagrad, c=0.5, rescale=0),
    "cagrad_c0.4": partial(cagrad, c=0.4, rescale=0),
    "cagrad_fast_c0.5": partial(cagrad, c=0.5, solver="fast"),
    "imtl_g": imtl_g,
    "config": config,
    "imtl_g_of_G": partial(imtl_g, form="G"),
    "aligned_min": aligned_mtl,
    "aligned_median": partial(aligned_mtl, scale_mode="median"),
    "aligned_rmse": partial(aligned_mtl, scale_mode="rmse"),
    "fair_alpha0.5": partial(fairgrad, alpha=0.5),
    "fair_alpha1.0": partial(fairgrad, alpha=1.0),
    "fair_alpha2.0": partial(fairgrad, alpha=2.0),
    "nash": nash,
    "nash_clipped": partial(nash, max_norm=1.0),
    "pcgrad": pcgrad,
    "pcgrad_libmtl": partial(pcgrad, include_self=True, eps=1e-8),
}


# Two hundred small programs run once each: the backend need not optimise them.
JITTED = {
    name: jax.jit(method, compiler_options={"xla_backend_optimization_level": 0})
    for name, method in METHODS.items()
}


@pytest.fixture
def vectors(golden_folder):
    return golden_folder(SYSTEM)


def _arrays(vectors, file, name):
    """``(case, J, losses, array)`` of every case that has the array and where the official code returned."""
    found = []
    for key, J in vectors["jacobians"].items():
        case, kind = key.split("__")
        array = vectors[file].get(f"{case}__{name}")
        if kind == "J" and array is not None and np.all(np.isfinite(array)):
            found.append((case, J, vectors["jacobians"][f"{case}__losses"], array))
    assert found, f"no array {name} in {file}"
    return found


def _weights(method, J, *args, dtype=None):
    G = gram(jnp.asarray(J, dtype or J.dtype))
    return np.asarray(JITTED[method](G, *(jnp.asarray(a) for a in args)), np.float64)


def _apart(a, b):
    """The distance in units of the second's length."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(np.float64).tiny)


def _direction_error(case, J, direction, expected):
    """Relative; where two opposite gradients leave rounding noise, whether ours is noise too."""
    noise = 1e-6 * np.linalg.norm(J)
    if case == "opposite" and np.linalg.norm(expected) <= noise:
        return 0.0 if np.linalg.norm(direction) <= noise else np.inf
    return _apart(direction, expected)


def _none_above(errors, tolerance):
    """``errors`` by case; tolerance a number, or one for each case."""
    bound = tolerance if callable(tolerance) else lambda case: tolerance
    wrong = {case: float(error) for case, error in errors.items() if not error <= bound(case)}
    assert not wrong


def test_every_array_is_compared_or_left_to_a_later_issue(vectors):
    compared = {
        "torchjd_weights": {
            "mgda_fw",
            *TORCHJD_EXACT,
            "cagrad",
            "imtl_g",
            "config_dir",
            "fairgrad",
            "nash",
            "nash_clipped",
        },
        "exact_weights": {"mgda", "mgda_sqnorm", "upgrad", "upgrad_pref", "dualproj", "cagrad_fast_c0.5_dir"}
        | {f"cagrad_c{c}_{part}" for c in (0.5, 0.4) for part in ("simplex", "obj", "weights")}
        | {f"fair_alpha{alpha}" for alpha in (0.5, 1.0, 2.0)},
        "libmtl_stateless": {
            f"{name}__{part}"
            for name in (
                "mgda",
                "mgda_l2",
                "mgda_lossplus",
                "cagrad",
                "cagrad_rescale0",
                "cagrad_rescale2",
                *LIBMTL,
            )
            for part in ("weights", "dir")
        },
        "pcgrad": {"torchjd_weights", "libmtl_weights", "libmtl_dir"},
    }
    for file, names in compared.items():
        present = {key.split("__", 1)[1] for key in vectors[file]}
        assert present - NOT_COMPARED.get(file, set()) <= names


# --- torchjd -----------------------------------------------------------------------------------------------


def test_frank_wolfe(vectors, x64):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", "mgda_fw"):
        errors[case] = _apart(_weights("mgda_fw", J) @ J, expected @ J)
    _none_above(errors, 1e-9)


TORCHJD_EXACT = (
    "upgrad",
    "upgrad_pref",
    "dualproj",
    "dualproj_pref",
    "aligned_min",
    "aligned_median",
    "aligned_rmse",
    "aligned_min_pref",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.endswith("_pref") else n for n in TORCHJD_EXACT]
)
def test_torchjd(vectors, x64, name):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", name):
        method = name.removesuffix("_pref")
        pref = (vectors["torchjd_weights"][f"{case}__pref"],) if method != name else ()
        errors[case] = _apart(_weights(method, J, *pref), expected)
    _none_above(errors, 1e-8)


def test_torchjd_cagrad(vectors, x64):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", "cagrad"):
        if case in ("scaled", "zero_row", "opposite"):
            continue
        if not expected.any():
            # Its rule for a trace below 1e-4, which is not the method's.
            assert np.sum(J**2) < 1e-4
            continue
        errors[case] = _apart(_weights("cagrad_c0.5", J) @ J, expected @ J)
    _none_above(errors, 1e-3)


def test_torchjd_imtl_g(vectors, x64):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", "imtl_g"):
        if case in PINV_OF_G:
            errors[case] = _apart(_weights("imtl_g_of_G", J), expected)
        elif np.linalg.matrix_rank(J) == J.shape[0]:
            errors[case] = _apart(_weights("imtl_g", J), expected)
    _none_above(errors, 1e-8)


def test_torchjd_config(vectors, x64):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", "config_dir"):
        errors[case] = _direction_error(case, J, _weights("config", J) @ J, expected)
    _none_above(errors, 1e-8)


def test_torchjd_fairgrad(vectors, x64):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", "fairgrad"):
        if case not in FAIRGRAD_UNSOLVED:
            direction = _weights("fair_alpha2.0", J) @ J
            errors[case] = _direction_error(case, J, direction, expected @ J)
    _none_above(errors, 1e-9)


@pytest.mark.parametrize("name", ["nash", "nash_clipped"])
def test_torchjd_nash(vectors, x64, name):
    errors = {}
    for case, J, _, expected in _arrays(vectors, "torchjd_weights", name):
        if case not in NASH_UNSOLVED:
            errors[case] = _apart(_weights(name, J) @ J, expected @ J)
    _none_above(errors, 1e-6)


# --- exact solvers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["upgrad", "upgrad_pref", "dualproj"])
def test_exact_dual_cone(vectors, precision, name):
    with jax.enable_x64(precision == "float64"):
        errors = {}
        for case, J, _, expected in _arrays(vectors, "exact_weights", name):
            method = name.removesuffix("_pref")
            pref = (vectors["torchjd_weights"][f"{case}__pref"],) if method != name else ()
            weights = _weights(method, J, *pref, dtype=precision)
            errors[case] = _direction_error(case, J, weights @ J, expected @ J)
    _none_above(errors, 1e-7 if precision == "float64" else 1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_exact_mgda(vectors, precision):
    """The direction, or the objective where the shortest combination is zero and the weights are many."""
    tolerance = 1e-7 if precision == "float64" else 1e-4
    with jax.enable_x64(precision == "float64"):
        errors = {}
        for case, J, _, expected in _arrays(vectors, "exact_weights", "mgda"):
            weights = _weights("mgda", J, dtype=precision)
            least = float(vectors["exact_weights"][f"{case}__mgda_sqnorm"])
            total = np.sum(J**2)
            if case == "opposite":
                errors[case] = _direction_error(case, J, weights @ J, expected @ J)
            elif least > 1e-12 * total:
                errors[case] = max(
                    _apart(weights @ J, expected @ J), abs(np.sum((weights @ J) ** 2) - least) / least
                )
            elif total > 0:
                errors[case] = np.sum((weights @ J) ** 2) / total
            else:
                errors[case] = np.abs(weights @ J).max()
    _none_above(errors, tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("c", [0.5, 0.4])
def test_exact_cagrad(vectors, precision, c):
    tolerance = 1e-7 if precision == "float64" else 1e-4
    directions, objectives = {}, {}
    with jax.enable_x64(precision == "float64"):
        for case, J, _, expected in _arrays(vectors, "exact_weights", f"cagrad_c{c}_weights"):
            weights = _weights(f"cagrad_c{c}", J, dtype=precision)
            directions[case] = _direction_error(case, J, weights @ J / (1 + c**2), expected @ J)
            lowest = float(vectors["exact_weights"][f"{case}__cagrad_c{c}_obj"])
            simplex = vectors["exact_weights"][f"{case}__cagrad_c{c}_simplex"]
            assert _cagrad_objective(J, simplex, c) == pytest.approx(lowest, rel=1e-7)
            found = _cagrad_objective(J, _cagrad_simplex(weights), c)
            objectives[case] = abs(found - lowest) / abs(lowest)
    _none_above(directions, tolerance)
    del objectives["opposite"]
    _none_above(objectives, tolerance)


def _cagrad_simplex(weights):
    """CAGrad's w* from its unscaled weights 1/T + lambda w*."""
    share = weights - 1 / len(weights)
    return share / np.sum(share)


def _cagrad_objective(J, share, c):
    G = J @ J.T
    radius = c * np.sqrt(G.mean() + 1e-8) + 1e-8
    return share @ G.mean(1) + radius * np.sqrt(share @ G @ share + 1e-8)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("alpha", [pytest.param(0.5, marks=pytest.mark.slow), 1.0, 2.0])
def test_exact_fair(vectors, precision, alpha):
    def tolerance(case):
        if precision == "float64":
            return 1e-7
        return 1e-3 if case in ("rand_T9_P4", "scaled") else 1e-4

    with jax.enable_x64(precision == "float64"):
        errors = {
            case: _direction_error(
                case, J, _weights(f"fair_alpha{alpha}", J, dtype=precision) @ J, expected @ J
            )
            for case, J, _, expected in _arrays(vectors, "exact_weights", f"fair_alpha{alpha}")
        }
    _none_above(errors, tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_exact_cagrad_fast(vectors, precision):
    errors = {}
    with jax.enable_x64(precision == "float64"):
        for case, J, _, expected in _arrays(vectors, "exact_weights", "cagrad_fast_c0.5_dir"):
            direction = _weights("cagrad_fast_c0.5", J, dtype=precision) @ J
            errors[case] = _direction_error(case, J, direction, expected)
    _none_above(errors, 1e-7 if precision == "float64" else 1e-4)


# --- LibMTL ------------------------------------------------------------------------------------------------


def _normalizer(name, J, losses):
    norms = np.linalg.norm(J, axis=1)
    return {"mgda": np.ones_like(norms), "mgda_l2": norms, "mgda_lossplus": losses * norms}[name]


@pytest.mark.parametrize("name", ["mgda", "mgda_pgd", "mgda_l2", "mgda_lossplus"])
@pytest.mark.slow
def test_libmtl_mgda(vectors, x64, name):
    """The objective, and then the direction, because |g - g*|^2 <= |g|^2 - |g*|^2 at the least g*.

    The exact solver is compared without a normaliser only: with one, LibMTL's 250 steps stop too early.
    """
    objectives, directions = {}, {}
    file = name.removesuffix("_pgd")
    for case, J, losses, expected in _arrays(vectors, "libmtl_stateless", f"{file}__weights"):
        if case in ("rand_T9_P4", "zero_row"):
            continue
        weights = _weights(name, J, *((losses,) if name == "mgda_lossplus" else ()))
        scale = _normalizer(file, J, losses)
        rows = J / np.where(scale > 0, scale, 1)[:, None]
        direction = vectors["libmtl_stateless"][f"{case}__{file}__dir"]
        ours, theirs = np.sum((weights @ J) ** 2), np.sum((expected @ rows) ** 2)
        if case == "opposite":
            # The official pair solver keeps its weights within [.001, .999].
            assert max(ours, theirs) <= 1e-6 * np.sum(rows**2)
        elif ours > 0:
            objectives[case] = abs(ours - theirs) / min(ours, theirs)
            directions[case] = _apart(weights @ J, direction)
        else:
            assert theirs == 0
            assert not direction.any()
    _none_above(objectives, 1e-3)
    _none_above(directions, np.sqrt(1e-3))


@pytest.mark.parametrize("rescale", [0, 1, 2])
def test_libmtl_cagrad(vectors, x64, rescale):
    name = "cagrad" if rescale == 1 else f"cagrad_rescale{rescale}"
    directions, objectives = {}, {}
    for case, J, _, expected in _arrays(vectors, "libmtl_stateless", f"{name}__dir"):
        weights = _weights("cagrad_c0.5", J)
        simplex = vectors["libmtl_stateless"][f"{case}__{name}__weights"]
        lowest = _cagrad_objective(J, _cagrad_simplex(weights), 0.5)
        objectives[case] = abs(_cagrad_objective(J, simplex, 0.5) - lowest) / abs(lowest)
        # Without an exact minimum in the vectors (`tiny`), eps rules and SLSQP stays at its start.
        if f"{case}__cagrad_c0.5_weights" in vectors["exact_weights"]:
            direction = weights @ J / (1, 1.25, 1.5)[rescale]
            directions[case] = _direction_error(case, J, direction, expected)
    _none_above(directions, 1e-3)
    _none_above(objectives, 1e-3)


LIBMTL = {
    "nash": ("nash_clipped", 1e-6, NASH_UNSOLVED),
    "fairgrad": ("fair_alpha2.0", 1e-9, FAIRGRAD_UNSOLVED),
    "upgrad": ("upgrad", 1e-8, ()),
    "aligned": ("aligned_min", 1e-8, ()),
    "imtl": ("imtl_g", 1e-8, PINV_OF_G),
}


@pytest.mark.parametrize("name", LIBMTL)
def test_libmtl(vectors, x64, name):
    """The direction, and the weights where the gradients are independent, so that it determines them."""
    method, tolerance, unsolved = LIBMTL[name]
    # LibMTL's Nash-MTL returns its weights from before the clip.
    unclipped = method.removesuffix("_clipped")
    directions, weights = {}, {}
    for case, J, _, expected in _arrays(vectors, "libmtl_stateless", f"{name}__dir"):
        independent = np.linalg.matrix_rank(J) == J.shape[0]
        if case not in unsolved and (independent or name != "imtl"):
            # LibMTL's Aligned-MTL prefers each task by 1, not by 1/T.
            pref = (np.ones(len(J)),) if name == "aligned" else ()
            directions[case] = _direction_error(case, J, _weights(method, J, *pref) @ J, expected)
            if independent:
                expected_weights = vectors["libmtl_stateless"][f"{case}__{name}__weights"]
                weights[case] = _apart(_weights(unclipped, J, *pref), expected_weights)
    assert weights
    _none_above(directions, tolerance)
    _none_above(weights, tolerance)


# --- PCGrad ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchjd", "libmtl"])
def test_pcgrad(vectors, x64, name):
    errors = {}
    method = "pcgrad" if name == "torchjd" else "pcgrad_libmtl"
    for case, J, _, expected in _arrays(vectors, "pcgrad", f"{name}_weights"):
        weights = _weights(method, J, vectors["pcgrad"][f"{case}__perm"])
        errors[case] = _apart(weights, expected)
        if name == "libmtl":
            direction = vectors["pcgrad"][f"{case}__libmtl_dir"]
            errors[f"{case} direction"] = _direction_error(case, J, weights @ J, direction)
    _none_above(errors, 1e-10)
