"""The experiment: loaders and their errors, cells, baselines, the smoke run, the pod's step."""

import dataclasses
import gzip
import math
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.anonymity_fairness as experiment
from experiments.anonymity_fairness import CLAIMS, PRESETS, Config, PodScale, compile_target
from experiments.anonymity_fairness.claims import OFFICIAL, measurements
from experiments.anonymity_fairness.grid import (
    BASELINES,
    Options,
    anonymised,
    baseline,
    classify,
    make_classifier,
    measured,
    samples,
)
from experiments.anonymity_fairness.studies import Key, method_of, short_name
from experiments.anonymity_fairness.tables import DATA, SMALL, load_table, read_hierarchy
from experiments.command_line import main
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.fairness import Setting, equivalence_classes, generalise
from jaxneg.train import compile_for, make_mesh, shard_step

SMOKE = PRESETS["smoke"]
OPTIONS = Options("rank", "generalised", steps=20, neighbours=20)


@pytest.fixture(scope="module")
def compas():
    return load_table("compas", SMALL)[0]


@pytest.fixture(scope="module")
def part(compas):
    """600 rows, so that every study is quick."""
    return compas.rows(np.arange(600))


# Tables


def test_compas_is_the_papers(compas):
    assert compas.dataset.X.shape == (5278, 5)
    assert compas.threshold == 3
    assert np.mean(compas.dataset.y) == pytest.approx(0.464, abs=5e-4)
    assert {name: round(float(np.mean(a)), 3) for name, (_, a) in compas.protected.items()} == {
        "race": 0.398,
        "sex": 0.805,
    }
    assert compas.dataset.n_levels.tolist() == [2, 7, 2, 5, 5]
    assert compas.dataset.protected == 2
    lower = compas.with_threshold(1)
    assert lower.dataset.y.sum() > compas.dataset.y.sum()
    turned = compas.reordered(compas.columns[::-1])
    assert turned.dataset.n_levels.tolist() == [5, 5, 2, 7, 2]
    np.testing.assert_array_equal(turned.dataset.X[:, 4], compas.dataset.X[:, 0])
    assert (turned.dataset.protected, turned.protected["sex"][0]) == (2, 4)
    with pytest.raises(ValueError, match=r"compas: expected the columns .* in any order, got"):
        compas.reordered(("sex", "age"))
    with pytest.raises(ValueError, match="compas: with the threshold 10 all labels are 0"):
        compas.with_threshold(10)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no original files at {DATA}: set JAXNEG_DATA")
def test_original_files(compas):
    """The whole Adult, and COMPAS as it comes with the package."""
    table, note = load_table("compas", DATA)
    assert note is None
    np.testing.assert_array_equal(table.dataset.X, compas.dataset.X)
    adult, _ = load_table("adult", DATA)
    assert adult.dataset.X.shape == (30_162, 10)
    balanced, _ = load_table("adult_balanced", DATA)
    assert balanced.dataset.X.shape == (15_016, 10)
    assert np.mean(balanced.dataset.y) == 0.5
    assert list(balanced.protected) == ["gender", "race"]


def test_the_small_adult_says_so(monkeypatch):
    monkeypatch.setattr(experiment.tables, "DATA", SMALL / "nowhere")
    table, note = load_table("adult_balanced")
    assert len(table.score) == 4000
    assert note is not None
    assert "4,000" in note
    assert load_table("compas")[1] is None
    with pytest.raises(FileNotFoundError, match=r"acsincome: none of acsincome.csv.gz, acsincome.csv is in "):
        load_table("acsincome")
    with pytest.raises(ValueError, match="tables: expected names among compas, adult"):
        load_table("bank")


@pytest.fixture
def folder(tmp_path):
    """The package's files, to be spoilt."""
    own = tmp_path / "files"
    shutil.copytree(SMALL, own)
    text = gzip.decompress((own / "compas.csv.gz").read_bytes()).decode()
    (own / "compas.csv.gz").unlink()
    (own / "compas-scores-two-years.csv").write_text(text)
    return own


def spoil(path, line, old, new):
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines) + "\n")


def test_errors_name_file_line_and_remedy(folder):
    path, ages = folder / "compas-scores-two-years.csv", folder / "hierarchies" / "compas" / "age.csv"
    lines = path.read_text().splitlines()
    white = next(n for n, line in enumerate(lines, 1) if "Caucasian" in line and ",," not in line)
    known = path.read_text()

    def fails(message, error=ValueError):
        with pytest.raises(error, match=message):
            load_table("compas", folder)
        path.write_text(known)

    sex, age, *_ = lines[white - 1].split(",")
    where = re.escape(f"{path}, line {white}")
    spoil(path, white, f"{sex},{age},", f"{sex},130,")
    fails(f"{where}: age: '130' is not in the hierarchy of compas: add a line for it, or drop the row")
    spoil(path, white, f"{sex},{age},", f"{sex},old,")
    fails(f"{where}: age: expected a number, got 'old': correct the line or drop it")
    spoil(path, white, "Caucasian,", "Caucasian,1,")
    fails(f"{where}: expected 6 cells as in the header, got 7: correct the line")
    spoil(path, 1, "priors_count", "priors")
    fails(f"{re.escape(str(path))}, line 1: the header lacks 'priors_count': get the original file")
    # A missing value leaves its row out, as the official code does.
    spoil(path, white, lines[white - 1], lines[white - 1].rsplit(",", 2)[0] + ",,3")
    assert len(load_table("compas", folder)[0].score) == 5277
    path.write_text("\n".join([lines[0], *(line for line in lines if ",Other," in line)]))
    fails("no row is left of races African-American and Caucasian")
    ages.unlink()
    fails("age.csv is not there: write a line for each value of the column", FileNotFoundError)


def test_hierarchy_files(tmp_path):
    path = tmp_path / "h.csv"
    for text, message in (
        ("a,*\nb,x,*\n", r"h.csv, line 2: expected 2 labels as in line 1, got 3"),
        ("a,x\n", r"h.csv, line 1: the last label is not \*: correct the line"),
        ("a,*\na,*\n", r"h.csv, line 2: the value 'a' has a line already"),
        ("\n", r"h.csv is empty: write a line for each value"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_hierarchy(path)


def test_acsincome_and_uci_files(tmp_path):
    """As their users have them: folktables' columns with a header, UCI's lines without."""
    columns = ["AGEP", "COW", "SCHL", "MAR", "OCCP", "POBP", "RELP", "WKHP", "SEX", "RAC1P", "PINCP"]
    folder = tmp_path / "hierarchies" / "acsincome"
    folder.mkdir(parents=True)
    for column in columns[:-1]:
        (folder / f"{column}.csv").write_text("1.0,low,*\n2.0,low,*\n")
    rows = ["1.0,1.0,2.0,1,1.0,1.0,1.0,40.0,1.0,1.0,100", "2.0,1.0,2.0,1,1.0,1.0,1.0,20.0,2.0,2.0,300.0"]
    (tmp_path / "acsincome.csv").write_text("\n".join([",".join(columns), *rows, "2.0,,,1,1,1,1,1,1,1,5"]))
    table, _ = load_table("acsincome", tmp_path)
    assert table.dataset.y.tolist() == [0, 1]
    assert table.protected["SEX"][1].tolist() == [1, 0]
    shutil.copytree(SMALL / "hierarchies" / "adult", tmp_path / "hierarchies" / "adult")
    line = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    line += "2174, 0, 40, "
    (tmp_path / "adult.data").write_text(
        f"{line}United-States, <=50K\n{line}?, >50K\n{line}United-States, >50K.\n"
    )
    assert load_table("adult", tmp_path)[0].dataset.y.tolist() == [0, 1]
    (tmp_path / "adult.data").write_text(f"{line}United-States, rich\n")
    with pytest.raises(
        ValueError, match=r"adult.data, line 1: salary-class: expected >50K or <=50K, got 'rich'"
    ):
        load_table("adult", tmp_path)


# Arms


@pytest.fixture(scope="module")
def chosen(part):
    return samples(lambda seed: part, [0, 1], OPTIONS)


def test_every_baseline_does_what_its_name_says(chosen):
    sample, setting = chosen[1], Setting(k=5)
    data, split = sample.table.dataset, sample.split
    greedy = anonymised(sample, [setting], OPTIONS, "race")
    arms = {name: baseline(name, sample, setting, OPTIONS, "race") for name in BASELINES}
    dropped = {name: float(arm.levels["dropped"][0]) for name, arm in arms.items()}
    assert dropped["random rows"] == pytest.approx(float(greedy.levels["dropped"][0]))
    assert dropped["one column"] == dropped["Mondrian"] == 0
    assert len(np.unique(np.asarray(arms["one column"].encoded.train[0])[:, 1])) == 1  # age has most values
    for name in ("optimal lattice", "Mondrian"):
        train = np.asarray(arms[name].encoded.train[0])[np.asarray(arms[name].encoded.keep[0])]
        assert np.unique(train, axis=0, return_counts=True)[1].min() >= 5
    # Test rows of Mondrian take the values of training rows.
    mondrian = arms["Mondrian"].encoded
    seen = {tuple(row) for row in np.asarray(mondrian.train[0])}
    assert {tuple(row) for row in np.asarray(mondrian.test[0])} <= seen
    assert float(arms["Mondrian"].levels["k"][0]) >= 5
    # And the greedy arm is k-anonymous on its released rows.
    keep = np.asarray(greedy.encoded.keep[0])
    codes = np.asarray(greedy.encoded.train[0])
    gid, count = equivalence_classes(codes, codes.max(axis=0) + 1, keep.astype(float))
    assert float(np.min(np.asarray(count)[np.asarray(gid)[keep]])) >= 5
    assert generalise(data.X[split.train], data.maps, np.zeros(5, int)).shape == (480, 5)


@pytest.mark.parametrize(
    "classifier",
    ["logistic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("knn", "random_forest"))],
)
def test_classifiers_and_measures(chosen, tmp_path, classifier):
    """Probabilities of every seed and setting, one that cannot be reached among them."""
    arms = [anonymised(sample, [Setting(), Setting(k=10_000)], OPTIONS, "race") for sample in chosen]
    with RunDir.create("anonymity_fairness", SMOKE, path=tmp_path / "run") as run_dir:
        p = classify(classifier, chosen, arms, OPTIONS, run_dir, "classifier")
    assert p.shape == (2, 2, 120)
    assert np.all((p >= 0) & (p <= 1))
    found = measured(chosen, arms, p, ["race", "sex"], OPTIONS)
    assert np.all(found["ACC"][:, 0] > (0.4 if classifier == "logistic" else 0.6))
    assert np.isnan(found["ACC"][:, 1]).all()
    assert np.isnan(found["race/SPD"][:, 1]).all()
    assert found["ok"].tolist() == [[1, 0]] * 2
    assert (found["race/SPD"][:, 0] != found["sex/SPD"][:, 0]).all()


def test_absent_libraries_are_named(monkeypatch):
    for name in ("xgboost", "lightgbm"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            ImportError, match=rf"'{name}' needs its own library .* pip install 'jaxneg\[trees\]'"
        ):
            make_classifier(name, 0)
    with pytest.raises(ValueError, match="classifiers: expected names among mlp, logistic, xgboost"):
        make_classifier("svm", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_trees_of_their_own_libraries(name):
    pytest.importorskip(name)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (200, 3))
    y = (x[:, 0] > 2).astype(int)
    assert np.mean(make_classifier(name, 0).fit(x, y).predict(x) == y) > 0.95


# The whole


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The smoke preset on a tenth of the rows of its tables."""
    patch = pytest.MonkeyPatch()
    small = {name: load_table(name, SMALL)[0] for name in SMOKE.tables}
    cut = {name: table.rows(np.arange(1600)) for name, table in small.items()}
    patch.setattr(experiment, "load_table", lambda name, folder: (cut[name], None))
    config = dataclasses.replace(SMOKE, steps=30)
    path = tmp_path_factory.mktemp("fairness") / "run"
    with RunDir.create("anonymity_fairness", config, preset="smoke", path=path) as run_dir:
        report = run_experiment(run_dir)
    yield path, report
    patch.undo()


@pytest.mark.slow
def test_a_verdict_for_each_claim(run):
    path, report = run
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert all(len(claim["values"]) == SMOKE.seeds for claim in report["claims"])
    figures = {figure["file"].removeprefix("figures/").removesuffix(".png") for figure in report["figures"]}
    assert figures == {
        "privacy_compas_race",
        "privacy_compas_sex",
        "privacy_adult_balanced_gender",
        "privacy_adult_balanced_race",
        "suppression",
        "fraction",
        "classifier",
    }
    assert all((path / "figures" / f"{name}.png").stat().st_size > 10_000 for name in figures)
    assert len(report["tables"]) == 5
    assert any("UCI's" in note for note in report["notes"])


@pytest.mark.slow
def test_a_resumed_run_says_the_same(run):
    path, report = run
    (path / "report.json").rename(path / "first.json")
    with RunDir.resume(path, "anonymity_fairness", Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


def test_measurements_by_hand():
    """Two seeds, numbers that name their setting."""
    settings = [Setting(k=k) for k in (1, 2, 10, 100)]
    settings += [Setting(k=10, l=2), Setting(k=10, t=0.45), Setting(k=10, supp=10.0)]
    size = {setting: np.array([-1.0, 2.0]) * (i + 1) for i, setting in enumerate(settings)}

    def found(setting):
        names = ("race/SPD", "race/EOD", "sex/SPD", "gender/SPD", "ACC", "ASF", "ALF", "NCF")
        return dict.fromkeys(names, size[setting])

    results = {
        Key("privacy", table, "mlp", "", setting): found(setting)
        for table in ("compas", "adult_balanced")
        for setting in settings
    }
    results[Key("fraction", "compas", "mlp", "0.1", Setting(k=10))] = found(Setting(k=10, l=2))
    for setting in (Setting(), Setting(k=10, t=0.45)):
        results[Key("classifier", "compas", "logistic", "", setting)] = found(setting)
    values = measurements(results)
    assert set(values) == {claim.name for claim in CLAIMS}
    assert values["t-closeness-widens-parity-gap"].tolist() == [6 - 2.5, 12 - 5]
    assert values["t-closeness-widens-opportunity-gap"].tolist() == [1, 2]
    assert values["large-k-costs-accuracy"].tolist() == [-3, -6]
    assert values["similarity-fairness-improves-with-k"].tolist() == [-1, -2]
    assert values["suppression-softens-harm"].tolist() == [7 - 3, 14 - 6]
    assert values["more-data-softens-harm"].tolist() == [5 - 3, 10 - 6]
    assert values["harm-in-another-classifier"].tolist() == [3.5, 7]


def test_names_of_settings():
    assert [short_name(s) for s in (Setting(k=3), Setting(k=3, l=2), Setting(k=3, t=0.5))] == [
        "k=3",
        "l=2, k=3",
        "t=0.5, k=3",
    ]
    assert {method_of(setting) for _, _, setting in OFFICIAL} == {"k-anonymity", "l-diversity", "t-closeness"}


def test_presets():
    paper = PRESETS["paper"]
    assert paper.seeds == 40
    assert len(paper.ks) == 14
    # Every cell has a stage of its own, and none trains a setting twice.
    tables = {name: load_table(name, SMALL)[0] for name in paper.tables}
    cells = experiment.cells(paper, tables)
    assert len({cell.stage for cell in cells}) == len(cells)
    assert all(len(set(cell.settings)) == len(cell.settings) for cell in cells)
    assert len(cells[0].settings) == 14 + 13 * 4 + 4 * 3
    assert not math.isinf(paper.pod.configs)


def test_every_setting_has_an_option(capsys):
    """No name is taken by the command line's own options."""
    assert main(["run", "anonymity_fairness", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}{'.chips' if field.name == 'pod' else ''}" in shown


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"ks": (1, 2, 10)}, r"ks: expected numbers from 1 to inf with (1, 2, 10, 100) among them"),
        ({"variant_ks": (1, 10)}, "variant_ks: expected numbers from 2"),
        ({"ts": (0.5,)}, "ts: expected numbers from 0 to 1 with (0.45,) among them"),
        ({"supp": (10.0, 120.0)}, "supp: expected numbers from 0 to 100"),
        ({"tables": ("compas",)}, "tables: expected names of compas, adult, adult_balanced, acsincome with"),
        ({"classifiers": ("logistic", "svm")}, "classifiers: expected names of logistic, xgboost"),
        ({"encoding": "text"}, "encoding: expected one of lexicographic, rank, onehot, got 'text'"),
        ({"protected_in_test": "none"}, "protected_in_test: expected one of generalised, raw, got 'none'"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**fields)


@pytest.mark.slow
def test_raw_protected_column_and_lexicographic_codes(part, tmp_path):
    """The official options: each attribute has classifiers of its own."""
    options = dataclasses.replace(OPTIONS, encoding="lexicographic", protected_in_test="raw", steps=300)
    cell = experiment.Cell("privacy", "compas", "logistic", "", (Setting(), Setting(k=5)), lambda seed: part)
    with RunDir.create("anonymity_fairness", SMOKE, path=tmp_path / "run") as run_dir:
        results = experiment.run_cell(cell, [0, 1], options, run_dir)
    for found in results.values():
        assert {"race/SPD", "sex/SPD", "ACC"} <= set(found)
        assert np.all(found["ACC"] > 0.5)


# The pod


@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh():
    pod = PodScale(configs=16, rows=30, columns=3, updates=2, chips=8)
    target = compile_target(Config(pod=pod))
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.normal(size=(16, 30, 3)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 2, (16, 30)), jnp.int32),
        "weight": jnp.ones((16, 30), jnp.float32),
    }

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape[0])
        if leaf.dtype == jnp.int32:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.1 * rng.normal(size=leaf.shape) ** 2, leaf.dtype)

    state = jax.tree.map(fill, target.state)
    expected, metrics = jax.jit(target.step)(state, batch)
    mesh = make_mesh(target.mesh)
    step = shard_step(
        target.step, mesh, state, batch, rules=target.rules, fsdp=target.fsdp, batch_spec=target.batch_spec
    )
    sharded, sharded_metrics = step(step.place_state(state), step.place_batch(batch))
    for one, other in zip(
        jax.tree.leaves(sharded.configs.params), jax.tree.leaves(expected.configs.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sharded_metrics["loss"], metrics["loss"], rtol=1e-4)
    with pytest.raises(ValueError, match=r"pod\.configs: expected a multiple of the 8 chips, got 12"):
        compile_target(Config(pod=dataclasses.replace(pod, configs=12)))


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_pods_step_compiles_for_a_tpu():
    pytest.importorskip("libtpu")
    pod = PodScale(configs=8, rows=256, columns=10, updates=4, chips=4)
    report = compile_for(compile_target(Config(pod=pod)), "v5e:2x2")
    assert report.fits
    assert report.flops > 0
