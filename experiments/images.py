"""Images and latents that the user has, one example at a time: for diffusion models at their papers' scale.

An example is ``{"x0": [H, W, C], "cond": []}``, as `jaxneg.diffusion`'s losses take it: float32, and the
class as int32. `experiments.vision.batches.training_batches` makes shuffled batches of them, which are
split over processes, augmented by `flipped`, and know their position.

Images lie in folders, one for each class, as ImageNet's do. They are shrunk until their shorter side fits and
cut to the square in their middle, as P. Dhariwal and A. Nichol, arXiv:2105.05233, prepare them. Latents are
those of an autoencoder, R. Rombach et al., arXiv:2112.10752, encoded once and kept in npy or safetensors
files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
LATENTS, LABELS = "latents", "labels"
"""How the names of npy files begin, and what tensors of a safetensors file are called."""

Example = dict[str, np.ndarray]


class ImageFolder:
    """Images in a folder for each class, read when they are asked for: a random-access source.

    Classes are the sub-folders in alphabetical order. Images that lie in no sub-folder are all of class 0.

    Args:
        root: the folder; its sub-folders hold png and jpeg files, at any depth.
        size: side of the square in pixels.

    Attributes:
        classes: names of the sub-folders.

    Raises:
        FileNotFoundError: there is no such folder, or a class without images. The message names it, and the
            remedy.
        ValueError: images beside sub-folders, and when an example is read, a file that is no image. Likewise.
    """

    def __init__(self, root: Path | str, size: int) -> None:
        if size < 1:
            raise ValueError(f"size: expected at least 1 pixel, got {size}")
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(
                f"there is no folder {root} of images: point to the folder that holds one sub-folder for each"
                " class"
            )
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        loose = _images(path for path in root.iterdir() if path.is_file())
        if folders and loose:
            raise ValueError(
                f"{loose[0]} lies beside the sub-folders of classes, such as {folders[0].name}: move it into"
                " that of its class, or remove it"
            )
        self.size, self.classes = size, tuple(folder.name for folder in folders) or (root.name,)
        self.files: list[tuple[Path, int]] = [(path, 0) for path in loose]
        for label, folder in enumerate(folders):
            files = _images(folder.rglob("*"))
            if not files:
                raise FileNotFoundError(
                    f"{folder} holds no image ({', '.join(SUFFIXES)}): unpack the class again, or remove the"
                    " folder"
                )
            self.files += [(path, label) for path in files]
        if not self.files:
            raise FileNotFoundError(
                f"{root} holds neither images ({', '.join(SUFFIXES)}) nor sub-folders of them: point to the"
                " folder that holds one sub-folder for each class"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                square = centre_square(image.convert("RGB"), self.size)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is gone since the run began: put it back") from None
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is no whole image ({error}): copy it again, or remove it") from error
        return {"x0": np.asarray(square, np.float32) / 127.5 - 1, "cond": np.array(label, np.int32)}


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The square in the middle of an image, shrunk to a size.

    Halved by boxes while it is twice too large, then resized by bicubic interpolation.

    Args:
        image: any.
        size: side of the square in pixels.

    Returns:
        The square.

    Example:
        >>> centre_square(Image.new("RGB", (90, 40)), 16).size
        (16, 16)
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def flipped(example: Example, rng: np.random.Generator) -> Example:
    """An image, mirrored left to right every other time; not for latents, which no mirror image has mirrored.

    Args:
        example: with ``x0 [H, W, C]``.
        rng: random numbers of the example.

    Returns:
        The example.
    """
    return example if rng.random() < 0.5 else {**example, "x0": example["x0"][:, ::-1]}


class _Shard(NamedTuple):
    """A file of latents, and where its labels are."""

    latents: Path
    labels: Path


class LatentArrays:
    """Latents in npy or safetensors files, read when they are asked for: a random-access source.

    A folder holds ``latents*.npy`` with ``labels*.npy`` beside them (``latents-003.npy``,
    ``labels-003.npy``), or ``*.safetensors`` with the tensors "latents" and "labels" each. Latents are
    ``[N, H, W, C]`` or ``[N, C, H, W]``, in any floating-point type that numpy has; labels are integers
    ``[N]``.

    Args:
        root: the folder.
        shape: ``(H, W, C)`` of a latent.
        classes: number of classes.
        scale: what latents are multiplied with; 0.18215 for those of Stable Diffusion's autoencoder that were
            not scaled when they were saved.

    Raises:
        FileNotFoundError: no folder, no latents in it, or no labels for some. The message names the file, and
            the remedy.
        ValueError: a file that does not hold what it should; when an example is read, a latent that is not
            finite. Likewise, with the record.
    """

    def __init__(
        self, root: Path | str, shape: tuple[int, int, int], classes: int, *, scale: float = 1.0
    ) -> None:
        root = Path(root)
        self.shape, self.classes, self.scale = shape, classes, scale
        if not root.is_dir():
            raise FileNotFoundError(
                f"there is no folder {root} of latents: point to the folder that holds {LATENTS}*.npy and"
                f" {LABELS}*.npy, or *.safetensors"
            )
        self.shards = _shards(root)
        self.labels: list[np.ndarray] = []
        for shard in self.shards:
            count = self._count(shard.latents)
            self.labels.append(self._checked_labels(shard.labels, count))
        self.ends = np.cumsum([len(labels) for labels in self.labels])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        number = int(np.searchsorted(self.ends, index, side="right"))
        record = index - (int(self.ends[number - 1]) if number else 0)
        path = self.shards[number].latents
        latent = np.asarray(_read(path, LATENTS, record), np.float32)
        if not np.isfinite(latent).all():
            raise ValueError(f"{path}: record {record} holds NaN or infinity: encode this image again")
        if latent.shape != self.shape:
            latent = latent.transpose(1, 2, 0)
        return {"x0": self.scale * latent, "cond": np.array(self.labels[number][record], np.int32)}

    def _count(self, path: Path) -> int:
        dtype, shape = _header(path, LATENTS)
        height, width, channels = self.shape
        if tuple(shape[1:]) not in (self.shape, (channels, height, width)) or shape[0] == 0:
            raise ValueError(
                f"{path}: expected {LATENTS} [N, {height}, {width}, {channels}] or [N, {channels}, {height},"
                f" {width}] with N of at least 1, got {list(shape)}: encode images of the right size"
            )
        if dtype not in ("F16", "F32", "F64"):
            raise ValueError(
                f"{path}: expected floating-point {LATENTS} that numpy can read, got {dtype}: save them as"
                " float16 or float32"
            )
        return shape[0]

    def _checked_labels(self, path: Path, count: int) -> np.ndarray:
        labels = np.asarray(_read(path, LABELS, slice(None)))
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: expected {count} integers, one for each of the {LATENTS}, got {labels.dtype}"
                f" {list(labels.shape)}: save the labels again"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if wrong.size:
            raise ValueError(
                f"{path}: record {wrong[0]} has the label {labels[wrong[0]]}: expected 0 to"
                f" {self.classes - 1}; correct it, or give the right number of classes"
            )
        return labels


def _images(paths: Any) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _shards(root: Path) -> Sequence[_Shard]:
    arrays, tensors = sorted(root.glob(f"{LATENTS}*.npy")), sorted(root.glob("*.safetensors"))
    if bool(arrays) == bool(tensors):
        both = "both npy and safetensors files" if arrays else "no latents"
        raise FileNotFoundError(
            f"{root} holds {both}: expected either {LATENTS}*.npy with {LABELS}*.npy beside them, or"
            " *.safetensors; save the latents so"
        )
    shards = [_Shard(path, path.with_name(LABELS + path.name[len(LATENTS) :])) for path in arrays]
    for shard in shards:
        if not shard.labels.is_file():
            raise FileNotFoundError(
                f"there is no {shard.labels} with the classes of {shard.latents.name}: save them beside it"
            )
    return shards or [_Shard(path, path) for path in tensors]


def _header(path: Path, name: str) -> tuple[str, Sequence[int]]:
    """Type, as safetensors names it, and shape."""
    if path.suffix == ".npy":
        array = _open_npy(path)
        names = {"f2": "F16", "f4": "F32", "f8": "F64"}
        return names.get(array.dtype.str[1:], str(array.dtype)), array.shape
    with _open_tensors(path, name) as file:
        part = file.get_slice(name)
        return part.get_dtype(), part.get_shape()


def _read(path: Path, name: str, part: int | slice) -> np.ndarray:
    if path.suffix == ".npy":
        return _open_npy(path)[part]
    with _open_tensors(path, name) as file:
        return file.get_slice(name)[part]


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no npy file of numbers ({error}): save it again") from error


def _open_tensors(path: Path, name: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "numpy")
        names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no safetensors file ({error}): save it again") from error
    if name not in names:
        raise ValueError(f"{path} holds no tensor {name!r}, only {', '.join(names) or 'none'}: save it again")
    return file
