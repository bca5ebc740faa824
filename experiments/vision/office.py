"""Office-31 and Office-Home: each domain is a task with images of its own.

The data sets: K. Saenko et al., ECCV 2010, and H. Venkateswara et al., arXiv:1706.07522. The splits into
60, 20 and 20 % and the preparation of an image are LibMTL's (examples/office).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

DOMAINS = {
    "office-31": ("amazon", "dslr", "webcam"),
    "office-home": ("Art", "Clipart", "Product", "Real_World"),
}
CLASSES = {"office-31": 31, "office-home": 65}
SIZE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, in [0, 1]."""
SPLITS = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
SPLITS = SPLITS / "rep_mtl" / "office_splits.csv.gz"
"""LibMTL's split lists in one table."""

Split = Literal["train", "val", "test"]


class Entry(NamedTuple):
    """A line of a split list."""

    path: str
    """Relative to the folder of the images."""
    label: int
    source: str
    """The list and the line, for messages."""


def read_split_list(path: Path, classes: int) -> list[Entry]:
    """Reads a list of LibMTL, one ``path label`` a line.

    Args:
        path: such as ``data_txt/office-31/amazon_train.txt``.
        classes: how many there are.

    Returns:
        The entries.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no entry. The message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no split list {path}: copy the folder examples/office/data_txt of LibMTL, or take "
            f"the table {SPLITS.name}"
        )
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        source = f"{path}, line {number}"
        image, _, label = line.rpartition(" ")
        if not image or not label.isdecimal():
            raise ValueError(f"{source}: expected 'path label', got {line!r}: correct or remove the line")
        entries.append(_checked(Entry(image, int(label), source), classes))
    if not entries:
        raise ValueError(f"{path} is empty: copy it again")
    return entries


def split_entries(name: str, domain: str, split: Split, lists: Path = SPLITS) -> list[Entry]:
    """Which images of a domain belong to a split.

    Args:
        name: "office-31" or "office-home".
        domain: one of `DOMAINS`.
        split: "train", "val" or "test".
        lists: LibMTL's folder ``data_txt``, or the table with columns dataset, domain, split, path, label.

    Returns:
        The entries.

    Raises:
        FileNotFoundError: there is neither folder nor table.
        ValueError: an unknown domain or split, or a line that is no entry.
    """
    if domain not in DOMAINS[name]:
        raise ValueError(f"domain: {name} has {', '.join(DOMAINS[name])}, got {domain!r}")
    if split not in ("train", "val", "test"):
        raise ValueError(f"split: expected 'train', 'val' or 'test', got {split!r}")
    if Path(lists).is_dir():
        return read_split_list(Path(lists) / name / f"{domain}_{split}.txt", CLASSES[name])
    return _read_table(Path(lists), name, domain, split)


def _read_table(path: Path, name: str, domain: str, split: str) -> list[Entry]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no split lists at {path}: set JAXNEG_DATA to the folder that holds rep_mtl/"
            f"{SPLITS.name}, or point to the folder examples/office/data_txt of LibMTL"
        )
    columns = ["dataset", "domain", "split", "path", "label"]
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no table of split lists ({error}): copy it again") from error
    if list(table.columns) != columns:
        raise ValueError(f"{path}: expected the columns {columns}, got {list(table.columns)}: copy it again")
    rows = table[(table.dataset == name) & (table.domain == domain) & (table.split == split)]
    if rows.empty:
        raise ValueError(f"{path} holds no {split} images of {name}'s {domain}: copy it again")
    entries = []
    for index, image, label in zip(rows.index, rows.path, rows.label, strict=True):
        source = f"{path}, line {index + 2}"
        if not label.isdecimal():
            raise ValueError(f"{source}: expected a class number, got {label!r}: correct or remove the line")
        entries.append(_checked(Entry(image, int(label), source), CLASSES[name]))
    return entries


def _checked(entry: Entry, classes: int) -> Entry:
    if entry.label >= classes:
        raise ValueError(
            f"{entry.source}: label {entry.label} is none of the {classes} classes, 0 to {classes - 1}: take "
            "the list of the right data set"
        )
    return entry


class OfficeImages:
    """Labelled images in files, read when they are asked for: a random-access source.

    ``source[i]`` is ``{"image": [size, size, 3], "label": []}``: the image is squeezed to a square by a
    triangle filter, and its colours are standardised by ImageNet's; float32, the label int32.

    Args:
        root: the folder to which the entries' paths are relative.
        entries: from `split_entries`.
        size: of the square in pixels.

    Raises:
        FileNotFoundError: there is no such folder, or, when an example is read, no such image.
        ValueError: when an example is read, a file that is no image.
    """

    def __init__(self, root: Path, entries: Sequence[Entry], size: int = SIZE) -> None:
        self.root, self.entries, self.size = Path(root), entries, size
        folder = self.root / Path(entries[0].path).parts[0]
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {folder} of images: unpack the download so that {self.root} holds "
                f"{entries[0].path}; a folder 'Real World' is named Real_World in the lists"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        entry = self.entries[index]
        path = self.root / entry.path
        try:
            with Image.open(path) as image:
                square = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no image {path}, named in {entry.source}: unpack the download again"
            ) from None
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no whole image ({error}): unpack the download again") from error
        colours = np.asarray(square, np.float32) / 255
        standard = (colours - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
        return {"image": standard, "label": np.array(entry.label, np.int32)}
