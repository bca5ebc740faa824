"""The tables that are audited: COMPAS, Adult and ACSIncome from their original files, with their hierarchies.

A folder holds ``compas.csv.gz`` or ProPublica's ``compas-scores-two-years.csv``, ``adult.csv.gz`` or UCI's
``adult.data``, ``acsincome.csv`` (or ``.csv.gz``), and ``hierarchies/<table>/<column>.csv`` without header: a
base value and its label at each level, the last ``*``. Where there is no such folder, COMPAS and a part of
Adult are taken from this package.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.text_lines import numbered_lines
from jaxneg.fairness import Dataset, compose_hierarchy, interval_hierarchy, label_ranks

_FOLDER = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
DATA = _FOLDER / "anonymity_fairness"
"""Where the files are looked for."""
SMALL = Path(__file__).parent / "small"
"""What is always there."""
MISSING = ("", "?", "nan", "NA")
ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
    "salary-class",
)  # fmt: skip
"""UCI's files have no header."""


@dataclass(frozen=True)
class Table:
    """A table with its labels for any threshold and all its protected attributes."""

    name: str
    dataset: Dataset
    """With the default threshold and the first protected attribute."""
    score: np.ndarray
    """What is compared with the threshold; the label is 1 above it."""
    threshold: float
    protected: dict[str, tuple[int, np.ndarray]]
    """Column and values, 0 or 1, of each protected attribute."""
    columns: tuple[str, ...]
    """Names, in the order in which equally many labels are generalised."""

    def rows(self, chosen: np.ndarray) -> "Table":
        """The table of some rows.

        Args:
            chosen: row numbers.
        """
        own = self.dataset
        return Table(
            self.name,
            own._replace(X=own.X[chosen], y=own.y[chosen], a=own.a[chosen]),
            self.score[chosen],
            self.threshold,
            {name: (column, values[chosen]) for name, (column, values) in self.protected.items()},
            self.columns,
        )

    def reordered(self, columns: Sequence[str]) -> "Table":
        """The table with its columns in another order.

        Args:
            columns: all names.

        Raises:
            ValueError: they are not the table's.
        """
        if sorted(columns) != sorted(self.columns):
            raise ValueError(
                f"{self.name}: expected the columns {self.columns} in any order, got {tuple(columns)}"
            )
        order = [self.columns.index(name) for name in columns]
        own = self.dataset
        return Table(
            self.name,
            own._replace(
                X=own.X[:, order],
                maps=own.maps[order],
                n_levels=own.n_levels[order],
                ranks={name: ranks[order] for name, ranks in own.ranks.items()},
                protected=order.index(own.protected),
            ),
            self.score,
            self.threshold,
            {name: (order.index(column), values) for name, (column, values) in self.protected.items()},
            tuple(columns),
        )

    def with_threshold(self, threshold: float) -> "Table":
        """The table with labels of another threshold.

        Args:
            threshold: labels are 1 above it.

        Raises:
            ValueError: all labels would be the same.
        """
        y = (self.score > threshold).astype(np.int32)
        if y.min() == y.max():
            raise ValueError(f"{self.name}: with the threshold {threshold:g} all labels are {y[0]}")
        return Table(
            self.name, self.dataset._replace(y=y), self.score, threshold, self.protected, self.columns
        )


def load_table(name: str, folder: Path | None = None) -> tuple[Table, str | None]:
    """A table by name.

    Args:
        name: "compas"; "adult", "adult_balanced" (all rows above 50K and as many others); or "acsincome".
        folder: where the files are; None: where they are looked for, or else in this package.

    Returns:
        The table, and a sentence if it is a small part of what was asked for.

    Raises:
        ValueError: the name is unknown, or a file is not as it should be. The message names file, line and
          remedy.
        FileNotFoundError: a folder was given that lacks a file, or there is no small part of this table.
    """
    if name not in LOADERS:
        raise ValueError(f"tables: expected names among {', '.join(LOADERS)}, got {name!r}")
    file_names, load = LOADERS[name]
    places = [DATA, SMALL] if folder is None else [folder]
    for place in places:
        for file_name in file_names:
            if (place / file_name).is_file():
                whole = place != SMALL or name == "compas"
                note = None if whole else f"{name}: {SMALL_NOTE}"
                return load(name, place / file_name, place / "hierarchies"), note
    raise FileNotFoundError(
        f"{name}: none of {', '.join(file_names)} is in {' or in '.join(map(str, places))}: put the"
        " original file there, and set JAXNEG_DATA or --originals"
    )


SMALL_NOTE = (
    "its file is not there: 4,000 of its rows, which come with this package, are used; set JAXNEG_DATA"
)


def _compas(name: str, path: Path, hierarchies: Path) -> Table:
    """ProPublica's two-year file, as the official code cleans it."""
    columns = ("sex", "age", "race", "priors_count", "days_b_screening_arrest")
    read = [*columns, "v_decile_score"]
    rows, scores = [], []
    for where, values in _records(path, read):
        score = _number(where, "v_decile_score", values["v_decile_score"])
        scores.append(score)
        days, race = values["days_b_screening_arrest"], values["race"]
        if days in MISSING or race not in ("African-American", "Caucasian"):
            continue
        if abs(_number(where, "days_b_screening_arrest", days)) > 30:
            continue
        known = [values[column] for column in columns]
        known[2] = "Black" if race == "African-American" else "White"
        for at in (1, 3, 4):
            known[at] = str(int(_number(where, columns[at], known[at])))
        rows.append((where, known, score))
    if not rows:
        raise ValueError(
            f"{path}: no row is left of races African-American and Caucasian: get the file again"
        )
    files = {
        "sex": [["Male", "*"], ["Female", "*"]],
        "age": read_hierarchy(hierarchies / "compas" / "age.csv"),
        "race": read_hierarchy(hierarchies / "compas" / "race.csv"),
        "priors_count": interval_hierarchy(0, 39, (5, 10, 15)),
        "days_b_screening_arrest": interval_hierarchy(-30, 30, (5, 10, 15)),
    }
    # The median of the whole file, as the official code has it.
    threshold = float(int(np.median(scores)))
    return _table(name, columns, files, rows, threshold, {"race": "White", "sex": "Male"})


def _adult(name: str, path: Path, hierarchies: Path) -> Table:
    """UCI's training part without rows that lack a value; balanced if the name says so."""
    columns = {
        "age": "age", "workclass": "workclass", "education": "education", "marital-status": "marital",
        "occupation": "occupation", "relationship": "", "race": "race", "sex": "sex", "hours-per-week": "",
        "native-country": "country",
    }  # fmt: skip
    rows = []
    header = ADULT_COLUMNS if path.name == "adult.data" else None
    for where, values in _records(path, [*columns, "salary-class"], header):
        known = [values[column] for column in columns]
        if any(value in MISSING for value in known):
            continue
        salary = values["salary-class"].rstrip(".")
        if salary not in (">50K", "<=50K"):
            raise ValueError(
                f"{where}: salary-class: expected >50K or <=50K, got {salary!r}: get the file again"
            )
        rows.append((where, known, float(salary == ">50K")))
    if name == "adult_balanced":
        rich = np.flatnonzero([score > 0 for _, _, score in rows])
        poor = np.flatnonzero([score == 0 for _, _, score in rows])
        poor = np.random.default_rng(0).permutation(poor)[: len(rich)]
        rows = [rows[i] for i in np.sort(np.concatenate([rich, poor]))]
    relationships = list(dict.fromkeys(known[5] for _, known, _ in rows))
    files: dict[str, list[list[str]]] = {
        "relationship": [[label, "*"] for label in relationships],
        "hours-per-week": interval_hierarchy(0, 100, (5, 25, 50)),
    }
    for column, file in columns.items():
        if file:
            files[column] = read_hierarchy(hierarchies / "adult" / f"{file}.csv")
    table = _table(name, tuple(columns), files, rows, 0.5, {"sex": "Male", "race": "White"})
    groups = {"gender": table.protected["sex"], "race": table.protected["race"]}
    return Table(name, table.dataset, table.score, 0.5, groups, table.columns)


def _acsincome(name: str, path: Path, hierarchies: Path) -> Table:
    """The ACSIncome of folktables of 2018 as a file: its ten features and PINCP."""
    columns = ("AGEP", "COW", "SCHL", "MAR", "OCCP", "POBP", "RELP", "WKHP", "SEX", "RAC1P")
    rows = []
    for where, values in _records(path, [*columns, "PINCP"]):
        if any(values[column] in MISSING for column in columns):
            continue
        known = [f"{_number(where, column, values[column]):g}" for column in columns]
        rows.append((where, known, _number(where, "PINCP", values["PINCP"])))
    files = {
        column: [
            [f"{float(row[0]):g}", *row[1:]]
            for row in read_hierarchy(hierarchies / "acsincome" / f"{column}.csv")
        ]
        for column in columns
        if column not in ("WKHP", "SEX")
    }
    files["WKHP"] = interval_hierarchy(0, 100, (5, 25, 50))
    files["SEX"] = [["1", "*"], ["2", "*"]]
    threshold = float(int(np.median([score for *_, score in rows])))
    return _table(name, columns, files, rows, threshold, {"SEX": "1", "RAC1P": "1"})


LOADERS: dict[str, tuple[tuple[str, ...], Callable[[str, Path, Path], Table]]] = {
    "compas": (("compas.csv.gz", "compas-scores-two-years.csv"), _compas),
    "adult": (("adult.csv.gz", "adult.csv", "adult.data"), _adult),
    "adult_balanced": (("adult.csv.gz", "adult.csv", "adult.data"), _adult),
    "acsincome": (("acsincome.csv.gz", "acsincome.csv"), _acsincome),
}


def read_hierarchy(path: Path) -> list[list[str]]:
    """A hierarchy file: in each line a base value and its label at each level.

    Args:
        path: of a CSV file without header.

    Returns:
        Labels of each base value, finest first.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: a line has another number of labels than the first, a base value occurs twice, or the last
            label is not ``*``. The message names file, line and remedy.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "age.csv"
        >>> _ = path.write_text('17,"[15, 20[",*')
        >>> read_hierarchy(path)
        [['17', '[15, 20[', '*']]
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: write a line for each value of the column, with its label at each level,"
            " the last *"
        )
    rows: list[list[str]] = []
    seen: set[str] = set()
    for where, line in numbered_lines(path):
        row = [label.strip() for label in next(csv.reader([line]))]
        if len(row) != len(rows[0] if rows else row):
            raise ValueError(
                f"{where}: expected {len(rows[0])} labels as in line 1, got {len(row)}: {line!r}"
            )
        if row[-1] != "*" or row[0] in seen:
            problem = (
                "the last label is not *" if row[-1] != "*" else f"the value {row[0]!r} has a line already"
            )
            raise ValueError(f"{where}: {problem}: correct the line")
        seen.add(row[0])
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: write a line for each value of the column")
    return rows


def _table(
    name: str,
    columns: Sequence[str],
    files: dict[str, list[list[str]]],
    rows: Sequence[tuple[str, Sequence[str], float]],
    threshold: float,
    protected: dict[str, str],
) -> Table:
    """Codes for values. Rows are where they stand, values, and score."""
    codes = [{row[0]: code for code, row in enumerate(files[column])} for column in columns]
    X = np.empty((len(rows), len(columns)), np.int32)
    for i, (where, values, _) in enumerate(rows):
        for j, value in enumerate(values):
            if value not in codes[j]:
                raise ValueError(
                    f"{where}: {columns[j]}: {value!r} is not in the hierarchy of {name}: add a line for"
                    " it, or drop the row"
                )
            X[i, j] = codes[j][value]
    hierarchies = [files[column] for column in columns]
    score = np.array([score for *_, score in rows])
    groups = {
        column: (
            columns.index(column),
            np.array([values[columns.index(column)] == one for _, values, _ in rows], np.int32),
        )
        for column, one in protected.items()
    }
    first, a = next(iter(groups.values()))
    dataset = Dataset(
        X=X,
        y=(score > threshold).astype(np.int32),
        a=a,
        maps=(composed := compose_hierarchy(hierarchies)).maps,
        n_levels=composed.n_levels,
        ranks={order: label_ranks(hierarchies, order=order) for order in ("lexicographic", "rank")},
        protected=first,
    )
    return Table(name, dataset, score, threshold, groups, tuple(columns))


def _records(
    path: Path, columns: Sequence[str], header: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each line stands, and its values of some columns."""
    places: list[int] | None = None
    width = 0
    for where, line in numbered_lines(path):
        cells = [cell.strip() for cell in (next(csv.reader([line])) if '"' in line else line.split(","))]
        if places is None:
            names = list(header or cells)
            if absent := [column for column in columns if column not in names]:
                raise ValueError(
                    f"{where}: the header lacks {', '.join(map(repr, absent))}: get the original file, or"
                    " name the columns so"
                )
            # A name that occurs twice means its first column, as in ProPublica's file.
            places, width = [names.index(column) for column in columns], len(names)
            if header is None:
                continue
        if len(cells) != width:
            raise ValueError(
                f"{where}: expected {width} cells as in the header, got {len(cells)}: correct the line"
            )
        yield where, dict(zip(columns, (cells[place] for place in places), strict=True))


def _number(where: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{where}: {column}: expected a number, got {text!r}: correct the line or drop it"
        ) from None
