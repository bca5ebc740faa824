"""Folders of images and files of latents: what is read, in which order, and what is said of wrong files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from experiments.images import ImageFolder, LatentArrays, centre_square, flipped
from experiments.vision.batches import read_ahead, training_batches

RNG = np.random.default_rng(0)


def picture(width, height):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# Images


@pytest.fixture
def folder(tmp_path):
    """Two classes; files of several kinds, one of them in a folder of its own."""
    write(tmp_path / "dog" / "b.png", picture(8, 8))
    write(tmp_path / "dog" / "a" / "c.PNG", picture(8, 8))
    write(tmp_path / "cat" / "z.jpeg", picture(8, 8))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "dog" / ".hidden.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_images_and_their_classes(folder):
    source = ImageFolder(folder, 8)
    assert source.classes == ("cat", "dog")
    assert [path.name for path, _ in source.files] == ["z.jpeg", "c.PNG", "b.png"]
    assert [int(source[number]["cond"]) for number in range(len(source))] == [0, 1, 1]
    example = source[2]
    with Image.open(folder / "dog" / "b.png") as image:
        np.testing.assert_allclose(example["x0"], np.asarray(image) / 127.5 - 1, atol=1e-6)
    assert (example["x0"].dtype, example["cond"].dtype) == (np.float32, np.int32)


def test_images_without_classes(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.png", picture(5, 5))
    source = ImageFolder(str(tmp_path), 5)
    assert source.classes == (tmp_path.name,)
    assert [int(source[number]["cond"]) for number in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_colours_become_red_green_and_blue(tmp_path, mode):
    image = Image.fromarray(picture(6, 6)).convert(mode)
    image.save(tmp_path / "image.png")
    expected = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
    np.testing.assert_allclose(ImageFolder(tmp_path, 6)[0]["x0"], expected, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(40, 10), (10, 40)])
def test_the_square_is_in_the_middle(width, height):
    """A grey middle between black ends: nothing of the ends is left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    long = max(width, height)
    middle = slice(long // 2 - 8, long // 2 + 8)
    pixels[(slice(None), middle) if width > height else middle] = 77
    square = np.asarray(centre_square(Image.fromarray(pixels), 10))
    np.testing.assert_array_equal(square, np.full((10, 10, 3), 77))


def test_images_are_shrunk_and_enlarged():
    pixels = picture(20, 20)
    halved = np.asarray(centre_square(Image.fromarray(pixels), 10), float)
    boxes = pixels.reshape(10, 2, 10, 2, 3).mean((1, 3))
    np.testing.assert_allclose(halved, boxes, atol=1)
    assert centre_square(Image.fromarray(picture(33, 90)), 16).size == (16, 16)
    assert centre_square(Image.fromarray(picture(3, 2)), 16).size == (16, 16)
    same = picture(7, 7)
    np.testing.assert_array_equal(np.asarray(centre_square(Image.fromarray(same), 7)), same)


def test_flips():
    example = {"x0": RNG.normal(size=(4, 5, 3)), "cond": np.array(3)}
    seen = [flipped(example, np.random.default_rng(number)) for number in range(40)]
    mirrored = [np.array_equal(one["x0"], example["x0"][:, ::-1]) for one in seen]
    kept = [np.array_equal(one["x0"], example["x0"]) for one in seen]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 10 < sum(mirrored) < 30
    assert all(one["cond"] == 3 for one in seen)


def test_wrong_folders(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent of images: point to the folder"):
        ImageFolder(folder / "absent", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds neither images \(.png, .jpg, .jpeg\) nor sub"):
        ImageFolder(tmp_path / "empty", 8)
    with pytest.raises(FileNotFoundError, match=r"empty holds no image .*: unpack the class again"):
        ImageFolder(tmp_path, 8)
    (tmp_path / "empty").rmdir()
    write(folder / "loose.jpg", picture(8, 8))
    with pytest.raises(ValueError, match=r"loose.jpg lies beside the sub-folders of classes, such as cat:"):
        ImageFolder(folder, 8)
    with pytest.raises(ValueError, match="size: expected at least 1 pixel, got 0"):
        ImageFolder(folder, 0)


def test_wrong_images(folder):
    source = ImageFolder(folder, 8)
    whole = (folder / "dog" / "b.png").read_bytes()
    for damaged in (b"text", whole[: len(whole) // 2], b""):
        (folder / "dog" / "b.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dog/b.png is no whole image \(.*\): copy it again, or remove"):
            source[2]
    (folder / "dog" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"dog/b.png is gone since the run began: put it back"):
        source[2]


# Latents

SHAPE = (6, 6, 4)


def arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *SHAPE)).astype(np.float16), rng.integers(0, 10, count)


def write_npy(folder: Path, suffix, latents, labels):
    np.save(folder / f"latents{suffix}.npy", latents)
    np.save(folder / f"labels{suffix}.npy", labels)


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_latents_in_shards(tmp_path, kind, channels_first):
    parts = [arrays(count, seed) for seed, count in enumerate((5, 1, 3))]
    for number, (latents, labels) in enumerate(parts):
        stored = latents.transpose(0, 3, 1, 2) if channels_first else latents
        if kind == "npy":
            write_npy(tmp_path, f"-{number:03d}", stored, labels)
        else:
            tensors = {"latents": np.ascontiguousarray(stored), "labels": labels}
            save_file(tensors, tmp_path / f"part-{number:03d}.safetensors")
    source = LatentArrays(tmp_path, SHAPE, 10, scale=0.5)
    latents, labels = (np.concatenate(whole) for whole in zip(*parts, strict=True))
    assert len(source) == 9
    for number in range(9):
        example = source[number]
        np.testing.assert_array_equal(example["x0"], latents[number].astype(np.float32) / 2)
        assert example["cond"] == labels[number]
        assert (example["x0"].dtype, example["cond"].dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(source[-1]["x0"], source[8]["x0"])
    with pytest.raises(IndexError):
        source[9]


@pytest.mark.parametrize(
    ("latents", "labels", "message"),
    [
        (
            np.zeros((3, 6, 4, 4)),
            np.zeros(3, int),
            r"latents.npy: expected latents \[N, 6, 6, 4\] or",
        ),
        (np.zeros((0, *SHAPE)), np.zeros(0, int), r"with N of at least 1, got \[0, 6, 6, 4\]"),
        (np.zeros(SHAPE), np.zeros(3, int), r"got \[6, 6, 4\]: encode images of the right size"),
        (
            np.zeros((3, *SHAPE), int),
            np.zeros(3, int),
            "floating-point latents .* got int64: save them",
        ),
        (
            np.zeros((3, *SHAPE)),
            np.zeros(2, int),
            r"expected 3 integers, .* got int64 \[2\]: save the",
        ),
        (np.zeros((3, *SHAPE)), np.zeros(3), r"labels.npy: expected 3 integers, .* got float64 \[3\]"),
        (
            np.zeros((3, *SHAPE)),
            np.array([0, 10, 3]),
            "labels.npy: record 1 has the label 10: expected 0",
        ),
        (
            np.zeros((3, *SHAPE)),
            np.array([0, 1, -1]),
            "record 2 has the label -1: .* number of classes",
        ),
    ],
)
def test_wrong_latents(tmp_path, latents, labels, message):
    write_npy(tmp_path, "", latents, labels)
    with pytest.raises(ValueError, match=message):
        LatentArrays(tmp_path, SHAPE, 10)


def test_latents_that_are_not_finite(tmp_path):
    latents, labels = arrays(4)
    latents[2, 1, 1, 1] = np.inf
    write_npy(tmp_path, "", latents, labels)
    source = LatentArrays(tmp_path, SHAPE, 10)
    assert np.isfinite(source[1]["x0"]).all()
    with pytest.raises(ValueError, match=r"latents.npy: record 2 holds NaN or infinity: encode this"):
        source[2]


def test_wrong_folders_of_latents(tmp_path):
    latents, labels = arrays(2)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent of latents: point to"):
        LatentArrays(tmp_path / "absent", SHAPE, 10)
    with pytest.raises(FileNotFoundError, match=r"holds no latents: expected either latents\*.npy with"):
        LatentArrays(tmp_path, SHAPE, 10)
    np.save(tmp_path / "latents-7.npy", latents)
    with pytest.raises(FileNotFoundError, match=r"no .*labels-7.npy with the classes of latents-7.npy"):
        LatentArrays(tmp_path, SHAPE, 10)
    np.save(tmp_path / "labels-7.npy", labels)
    (tmp_path / "more.safetensors").write_bytes(b"text")
    with pytest.raises(FileNotFoundError, match=r"holds both npy and safetensors files: expected either"):
        LatentArrays(tmp_path, SHAPE, 10)
    (tmp_path / "more.safetensors").unlink()
    (tmp_path / "labels-7.npy").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"labels-7.npy is no npy file of numbers \(.*\): save it again"):
        LatentArrays(tmp_path, SHAPE, 10)
    np.save(tmp_path / "labels-7.npy", np.array([None, None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels-7.npy is no npy file of numbers"):
        LatentArrays(tmp_path, SHAPE, 10)


def test_wrong_safetensors(tmp_path):
    latents, labels = arrays(2)
    path = tmp_path / "part.safetensors"
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"part.safetensors is no safetensors file \(.*\): save it again"):
        LatentArrays(tmp_path, SHAPE, 10)
    save_file({"latents": latents}, path)
    with pytest.raises(ValueError, match=r"safetensors holds no tensor 'labels', only latents: save"):
        LatentArrays(tmp_path, SHAPE, 10)
    save_file({"latents": latents.astype(np.int8), "labels": labels}, path)
    with pytest.raises(ValueError, match=r"safetensors: expected floating-point latents .* got I8: save"):
        LatentArrays(tmp_path, SHAPE, 10)


# Batches


def test_batches_know_their_position_and_are_split_over_processes(tmp_path):
    latents, labels = arrays(11)
    write_npy(tmp_path, "", latents, labels)
    source = LatentArrays(tmp_path, SHAPE, 10)
    whole = training_batches(source, 4, 0, (0, 1), flipped)
    halves = [training_batches(source, 4, 0, (part, 2), flipped) for part in range(2)]
    for number in range(6):
        for name in ("x0", "cond"):
            both = np.concatenate([half[number][name] for half in halves])
            np.testing.assert_array_equal(whole[number][name], both)
    reader = iter(read_ahead(whole, 2))
    for _ in range(3):
        next(reader)
    position, expected = reader.get_state(), [next(reader)["x0"] for _ in range(3)]
    again = iter(read_ahead(whole, 2))
    again.set_state(position)
    np.testing.assert_array_equal([next(again)["x0"] for _ in range(3)], expected)
