"""The image benchmarks' files: what is read, what is refused and how, and the augmentation's geometry."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.vision.cityscapes import cityscapes
from experiments.vision.nyuv2 import augment, nyuv2
from experiments.vision.office import MEAN, SPLITS, OfficeImages, read_split_list, split_entries

SHAPE = (32, 48)


def write_npy(root: Path, kinds: dict[str, str], examples: int = 3, classes: int = 13) -> dict:
    """A folder as MTAN's, and what is in it."""
    rng = np.random.default_rng(0)
    written = {}
    for split in ("train", "val"):
        for number in range(examples):
            normal = rng.normal(size=(*SHAPE, 3))
            arrays = {
                "image": rng.random((*SHAPE, 3)),
                "segmentation": rng.integers(-1, classes, SHAPE).astype(np.float64),
                "depth": rng.random((*SHAPE, 1)) * 8,
                "normal": normal / np.linalg.norm(normal, axis=-1, keepdims=True),
            }
            for kind, name in kinds.items():
                (root / split / name).mkdir(parents=True, exist_ok=True)
                np.save(root / split / name / f"{number}.npy", arrays[kind])
            written[split, number] = arrays
    return written


NYU = {"image": "image", "segmentation": "label", "depth": "depth", "normal": "normal"}


@pytest.fixture
def nyu_root(tmp_path: Path) -> Path:
    write_npy(tmp_path, NYU)
    return tmp_path


def test_nyuv2_reads_what_is_written(tmp_path):
    written = write_npy(tmp_path, NYU, examples=11)
    source = nyuv2(tmp_path, "val", SHAPE)
    assert len(source) == 11
    example, expected = source[10], written["val", 10]
    assert {kind: (array.shape, array.dtype.name) for kind, array in example.items()} == {
        "image": ((*SHAPE, 3), "float32"),
        "segmentation": (SHAPE, "int32"),
        "depth": (SHAPE, "float32"),
        "normal": ((*SHAPE, 3), "float32"),
    }
    assert (example["segmentation"] == expected["segmentation"]).all()
    np.testing.assert_allclose(example["depth"], expected["depth"][..., 0], rtol=1e-6)
    for kind in ("image", "normal"):
        np.testing.assert_allclose(example[kind], expected[kind], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("folder", "classes"), [("label", 7), ("label_7", 7), ("label_19", 19)])
def test_cityscapes_reads_both_layouts(tmp_path, folder, classes):
    kinds = {"image": "image", "segmentation": folder, "depth": "depth"}
    written = write_npy(tmp_path, kinds, classes=classes)
    source = cityscapes(tmp_path, "train", classes, SHAPE)
    assert len(source) == 3
    assert set(source[0]) == {"image", "segmentation", "depth"}
    assert (source[2]["segmentation"] == written["train", 2]["segmentation"]).all()


def test_a_missing_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*train/image of image files: point to the folder"
    ):
        nyuv2(tmp_path, "train", SHAPE)


def test_a_missing_file(nyu_root):
    (nyu_root / "train" / "depth" / "1.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"depth/1.npy is missing: .* expected 0.npy to 2.npy"):
        nyuv2(nyu_root, "train", SHAPE)


def test_a_gap_in_the_numbers(nyu_root):
    (nyu_root / "train" / "image" / "1.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"image/1.npy is missing"):
        nyuv2(nyu_root, "train", SHAPE)


def test_an_empty_folder(nyu_root):
    for file in (nyu_root / "train" / "image").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"train/image holds no npy file: unpack"):
        nyuv2(nyu_root, "train", SHAPE)


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        (
            "image",
            np.zeros((8, 8, 3)),
            r"0.npy: expected shape \(32, 48, 3\), got \(8, 8, 3\): take the version",
        ),
        ("image", np.zeros((*SHAPE, 3), np.uint8), r"expected floating-point numbers, got uint8"),
        (
            "image",
            np.full((*SHAPE, 3), 255.0),
            r"expected colours in \[0, 1\], got 255 to 255: divide by 255",
        ),
        ("depth", np.full((*SHAPE, 1), np.nan), r"depth/0.npy holds NaN or infinity: write 0 where depth"),
        ("depth", np.zeros(SHAPE), r"expected shape \(32, 48, 1\)"),
        (
            "label",
            np.full(SHAPE, 13),
            r"row 0, column 0 holds the label 13: expected whole numbers from 0 to 12",
        ),
        ("label", np.full(SHAPE, 255, np.uint8), r"holds the label 255"),
        ("label", np.full(SHAPE, 0.5), r"holds the label 0.5"),
        ("label", np.full(SHAPE, -2), r"holds the label -2"),
        ("label", np.full(SHAPE, "a"), r"expected class numbers, got <U1"),
        ("normal", np.array([{}], object), r"normal/0.npy is no npy file of numbers \(.*pickle"),
    ],
)
def test_wrong_contents(nyu_root, kind, array, message):
    np.save(nyu_root / "train" / kind / "0.npy", array, allow_pickle=True)
    source = nyuv2(nyu_root, "train", SHAPE)
    with pytest.raises(ValueError, match=message):
        source[0]
    assert source[1]["image"].shape == (*SHAPE, 3)


@pytest.mark.parametrize("content", [b"", b"not npy", None])
def test_a_damaged_file(nyu_root, content):
    file = nyu_root / "train" / "image" / "0.npy"
    file.write_bytes(file.read_bytes()[:300] if content is None else content)
    with pytest.raises(
        ValueError, match=r"image/0.npy is no npy file of numbers .*: unpack the download again"
    ):
        nyuv2(nyu_root, "train", SHAPE)[0]


class Chosen:
    """Stands for a random generator whose answers are known."""

    def __init__(self, scale, top, left, mirrored):
        self.scale, self.corner, self.mirrored = scale, iter((top, left)), mirrored

    def choice(self, values):
        assert self.scale in values
        return self.scale

    def integers(self, end):
        value = next(self.corner)
        assert value < end
        return value

    def random(self):
        return 0.0 if self.mirrored else 0.9


def test_no_augmentation_changes_nothing(nyu_root):
    example = nyuv2(nyu_root, "train", SHAPE)[0]
    same = augment(example, Chosen(1.0, 0, 0, False))
    for kind, array in example.items():
        np.testing.assert_allclose(same[kind], array, atol=1e-6, err_msg=kind)
        assert same[kind].dtype == array.dtype


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("scale", "top", "left"), [(1.0, 0, 0), (1.2, 3, 5), (1.5, 9, 2)])
def test_a_mark_moves_together_in_all_arrays(scale, top, left, mirrored):
    # A block of 4 x 4 pixels, large enough to survive the interpolation at its centre.
    row, column = top + 8, left + 12
    inside = (slice(row, row + 4), slice(column, column + 4))
    example = {
        "image": np.zeros((*SHAPE, 3), np.float32),
        "segmentation": np.full(SHAPE, -1, np.int32),
        "depth": np.full(SHAPE, 6, np.float32),
        "normal": np.zeros((*SHAPE, 3), np.float32),
    }
    example["image"][inside] = 1
    example["segmentation"][inside] = 5
    example["depth"][inside] = 3
    example["normal"][inside] = (0.6, 0.0, 0.8)
    result = augment(example, Chosen(scale, top, left, mirrored))
    assert all(result[kind].shape == example[kind].shape for kind in example)

    height, width = SHAPE
    h, w = int(height / scale), int(width / scale)
    y = (row + 1.5 - top) * (height - 1) / (h - 1)
    x = (column + 1.5 - left) * (width - 1) / (w - 1)
    if mirrored:
        x = width - 1 - x
    at = round(y), round(x)
    np.testing.assert_allclose(result["image"][at], 1, atol=1e-5)
    assert result["segmentation"][at] == 5
    np.testing.assert_allclose(result["depth"][at], 3 / scale, rtol=1e-6)
    np.testing.assert_allclose(result["normal"][at], ((-0.6 if mirrored else 0.6), 0, 0.8), atol=1e-5)

    # The same pixels, up to the border that interpolation blurs.
    marked = result["segmentation"] == 5
    assert (marked == (result["depth"] < 4)).all()
    assert abs(marked.sum() - 16 * scale**2) <= 4 * 4 * scale
    assert (result["image"][~marked, 0] < 0.99).all()
    np.testing.assert_allclose(result["depth"][~marked], 6 / scale, rtol=1e-6)


def test_bilinear_zoom_against_a_formula():
    # A plane stays a plane: interpolation of a linear function is exact, corner onto corner.
    height, width = SHAPE
    plane = np.add.outer(np.arange(height) / height, np.arange(width) / width).astype(np.float32) / 2
    example = {
        "image": np.stack([plane] * 3, -1),
        "segmentation": np.zeros(SHAPE, np.int32),
        "depth": plane,
        "normal": np.zeros((*SHAPE, 3), np.float32),
    }
    result = augment(example, Chosen(1.5, 4, 7, False))
    h, w = int(height / 1.5), int(width / 1.5)
    rows = 4 + np.linspace(0, h - 1, height)
    columns = 7 + np.linspace(0, w - 1, width)
    expected = np.add.outer(rows / height, columns / width) / 2
    np.testing.assert_allclose(result["image"][..., 0], expected, atol=1e-6)
    nearest = plane[4 + np.arange(height) * h // height][:, 7 + np.arange(width) * w // width] / 1.5
    np.testing.assert_allclose(result["depth"], nearest, rtol=1e-6)


def test_augmentation_is_drawn_from_the_generator(nyu_root):
    example = nyuv2(nyu_root, "train", SHAPE)[0]
    scales, mirrored = set(), set()
    for seed in range(40):
        first, second = (augment(example, np.random.default_rng(seed)) for _ in range(2))
        assert all((first[kind] == second[kind]).all() for kind in example)
        drawn = np.random.default_rng(seed)
        scales.add(float(drawn.choice((1.0, 1.2, 1.5))))
        mirrored.add(bool(np.sign(first["normal"][..., 0].sum()) != np.sign(example["normal"][..., 0].sum())))
    assert scales == {1.0, 1.2, 1.5}
    assert mirrored == {True, False}


def write_office(root: Path, domains=("amazon", "dslr", "webcam"), per_class: int = 2) -> Path:
    """Images and split lists as LibMTL's; returns the lists' folder."""
    lists = root / "lists"
    (lists / "office-31").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for domain in domains:
        lines = []
        for label, name in enumerate(("back_pack", "bike")):
            folder = root / domain / "images" / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                colours = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(colours).save(folder / f"frame_{number:04d}.jpg")
                lines.append(f"{domain}/images/{name}/frame_{number:04d}.jpg {label}\n")
        for split in ("train", "val", "test"):
            (lists / "office-31" / f"{domain}_{split}.txt").write_text("".join(lines))
    return lists


def test_office_reads_what_is_written(tmp_path):
    lists = write_office(tmp_path)
    entries = split_entries("office-31", "dslr", "val", lists)
    assert [entry.label for entry in entries] == [0, 0, 1, 1]
    flat = tmp_path / entries[2].path
    Image.new("L", (50, 10), 128).save(flat)
    source = OfficeImages(tmp_path, entries, 16)
    assert len(source) == 4
    example = source[2]
    assert example["image"].shape == (16, 16, 3)
    assert example["image"].dtype == np.float32
    assert example["label"].dtype == np.int32
    assert example["label"] == 1
    expected = (128 / 255 - np.array(MEAN)) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(example["image"].mean((0, 1)), expected, atol=0.01)


def test_split_table_and_lists_agree(tmp_path):
    table = tmp_path / "splits.csv.gz"
    rows = ["office-31,amazon,train,amazon/a.jpg,3", "office-31,amazon,test,amazon/b.jpg,4"]
    table.write_bytes(gzip.compress("\n".join(["dataset,domain,split,path,label", *rows]).encode()))
    (tmp_path / "data_txt" / "office-31").mkdir(parents=True)
    (tmp_path / "data_txt" / "office-31" / "amazon_train.txt").write_text("amazon/a.jpg 3\n")
    from_table = split_entries("office-31", "amazon", "train", table)
    from_list = split_entries("office-31", "amazon", "train", tmp_path / "data_txt")
    assert [entry[:2] for entry in from_table] == [entry[:2] for entry in from_list] == [("amazon/a.jpg", 3)]
    with pytest.raises(ValueError, match=r"splits.csv.gz holds no val images of office-31's amazon"):
        split_entries("office-31", "amazon", "val", table)


@pytest.mark.skipif(not SPLITS.is_file(), reason=f"there is no {SPLITS}: set JAXNEG_DATA")
def test_the_published_splits():
    sizes = {
        domain: [len(split_entries(name, domain, split)) for split in ("train", "val", "test")]
        for name, domain in (("office-31", "webcam"), ("office-home", "Real_World"))
    }
    assert sizes == {"webcam": [466, 149, 180], "Real_World": [2586, 846, 925]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a.jpg 0\nb.jpg\n",
            r"amazon_train.txt, line 2: expected 'path label', got 'b.jpg': correct or remove",
        ),
        ("a.jpg 0\nb.jpg x\n", r"line 2: expected 'path label'"),
        ("a.jpg 0\n\nb.jpg 1\n", r"line 2: expected 'path label', got ''"),
        ("a.jpg 31\n", r"line 1: label 31 is none of the 31 classes, 0 to 30"),
        ("", r"amazon_train.txt is empty"),
    ],
)
def test_a_bad_split_list(tmp_path, content, message):
    path = tmp_path / "amazon_train.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_split_list(path, 31)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is no table of split lists"),
        (
            b"a,b\n1,2\n",
            r"expected the columns \['dataset', 'domain', 'split', 'path', 'label'\], got \['a', 'b'\]",
        ),
        (
            b"dataset,domain,split,path,label\noffice-31,amazon,train,a.jpg,\n",
            r"line 2: expected a class number, got ''",
        ),
        (
            b"dataset,domain,split,path,label\noffice-31,amazon,train,a.jpg,40\n",
            r"line 2: label 40 is none of the 31 classes",
        ),
    ],
)
def test_a_bad_split_table(tmp_path, content, message):
    path = tmp_path / "splits.csv.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        split_entries("office-31", "amazon", "train", path)


def test_a_damaged_split_table(tmp_path):
    path = tmp_path / "splits.csv.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"splits.csv.gz is no table of split lists"):
        split_entries("office-31", "amazon", "train", path)


def test_missing_split_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no split lists at .*none: set JAXNEG_DATA"):
        split_entries("office-31", "amazon", "train", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no split list .*amazon_train.txt: copy the folder"):
        split_entries("office-31", "amazon", "train", tmp_path)


def test_unknown_domain_and_split():
    with pytest.raises(ValueError, match=r"domain: office-31 has amazon, dslr, webcam, got 'Art'"):
        split_entries("office-31", "Art", "train")
    with pytest.raises(ValueError, match=r"split: expected 'train', 'val' or 'test', got 'validation'"):
        split_entries("office-31", "amazon", "validation")  # pyright: ignore[reportArgumentType]


def test_missing_and_damaged_images(tmp_path):
    entries = split_entries("office-31", "amazon", "train", write_office(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere/amazon of images: unpack the download"):
        OfficeImages(tmp_path / "nowhere", entries)
    source = OfficeImages(tmp_path, entries, 8)
    (tmp_path / entries[0].path).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no image .*frame_0000.jpg, named in .*amazon_train.txt, line 1"
    ):
        source[0]
    damaged = tmp_path / entries[1].path
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"frame_0001.jpg is no whole image .*: unpack the download again"):
        source[1]
    damaged.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"is no whole image"):
        source[1]
