"""insightface's files: training records (``.rec`` with ``.idx``) and verification pairs (``.bin``).

A record file is MXNet's RecordIO: a magic number, three bits that say whether a record goes on in the next
part and 29 bits of length, the content, and padding to four bytes; the content is a header (flag, label,
two ids) and a JPEG image. Record 0 of insightface's files says in its label where the images end.

A ``.bin`` file is a pickle of ``(encoded images, whether each pair is the same)``. A pickle can run any
program, so that this one is read by an unpickler that knows bytes, lists, booleans, numbers and plain numpy
arrays and refuses everything else: nothing that a file names is ever looked up or called.
"""

import io
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

MAGIC = 0xCED7230A
_HEADER = struct.Struct("<IfQQ")
_MAGIC_BYTES = struct.pack("<I", MAGIC)

Example = dict[str, np.ndarray]


class FaceRecords:
    """Faces of a record file, read when they are asked for: a random-access source.

    Args:
        rec: the file, ``train.rec``; its index, ``train.idx``, lies beside it.
        size: side of the images in pixels; others are refused.

    Attributes:
        keys: numbers of the records that hold images.

    Raises:
        FileNotFoundError: the file or its index is missing. The message names it, and the remedy.
        ValueError: an index that is none, and when an example is read, a damaged record. Likewise.
    """

    def __init__(self, rec: Path | str, size: int = 112) -> None:
        self.rec, self.size = Path(rec), size
        index = self.rec.with_suffix(".idx")
        for path in (self.rec, index):
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}: put train.rec and train.idx side by side")
        self._positions: dict[int, int] = {}
        length = self.rec.stat().st_size
        for number, line in enumerate(index.read_text(encoding="ascii", errors="replace").splitlines(), 1):
            parts = line.split("\t")
            if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
                raise ValueError(
                    f"{index}, line {number}: expected 'key<TAB>position', got {line!r}: copy it again"
                )
            if int(parts[1]) >= length:
                raise ValueError(
                    f"{index}, line {number}: position {int(parts[1])} is beyond the {length} bytes of"
                    f" {self.rec}: copy both files again"
                )
            self._positions[int(parts[0])] = int(parts[1])
        if not self._positions:
            raise ValueError(f"{index} is empty: copy it again")
        self.keys = self._image_keys()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Example:
        """``x uint8 [size, size, 3]`` and ``labels``, the number of the person."""
        key = self.keys[index]
        label, image = self._record(key)
        where = f"{self.rec}, record {key}"
        return {"x": _decoded(image, self.size, where), "labels": np.array(int(label[0]), np.int32)}

    def _image_keys(self) -> list[int]:
        keys = sorted(self._positions)
        label, image = self._record(keys[0])
        if keys[0] == 0 and not image and len(label) >= 1:
            keys = [key for key in keys[1:] if key < int(label[0])]
        if not keys:
            raise ValueError(f"{self.rec} holds no image: copy it again")
        return keys

    def _record(self, key: int) -> tuple[np.ndarray, bytes]:
        """Label (one number or more) and encoded image."""
        where = f"{self.rec}, record {key}"
        parts = []
        with self.rec.open("rb") as file:
            file.seek(self._positions[key])
            while True:
                head = file.read(8)
                if len(head) < 8 or head[:4] != _MAGIC_BYTES:
                    raise ValueError(f"{where}: no record begins where the index says: copy both files again")
                word = struct.unpack("<I", head[4:])[0]
                going_on, size = word >> 29, word & (1 << 29) - 1
                content = file.read(size)
                if len(content) < size:
                    raise ValueError(f"{where}: the file ends within it: copy it again")
                parts.append(content)
                if going_on in (0, 3):
                    break
                file.seek(-size % 4, 1)
        # A record that contains the magic number is cut there, without it.
        content = _MAGIC_BYTES.join(parts)
        if len(content) < _HEADER.size:
            raise ValueError(f"{where}: {len(content)} bytes are too few for a header: copy the file again")
        flag, label, _, _ = _HEADER.unpack_from(content)
        labels, rest = np.array([label], np.float32), content[_HEADER.size :]
        if flag:
            if len(rest) < 4 * flag:
                raise ValueError(f"{where}: its header promises {flag} labels: copy the file again")
            labels, rest = np.frombuffer(rest, "<f4", flag), rest[4 * flag :]
        if not np.isfinite(labels).all():
            raise ValueError(f"{where}: its label is no number: copy the file again")
        return labels, rest


class VerificationPairs(NamedTuple):
    """The pairs of a ``.bin`` file, images 2 i and 2 i + 1 a pair."""

    images: list[bytes]
    """Encoded."""
    same: Bool[np.ndarray, " pairs"]
    path: Path

    def decoded(self, index: int, size: int = 112) -> UInt8[np.ndarray, "size size 3"]:
        """An image; raises ValueError that names file and number if it is none."""
        return _decoded(self.images[index], size, f"{self.path}, image {index}")


def load_verification_pairs(path: Path | str) -> VerificationPairs:
    """Reads lfw.bin, cfp_fp.bin, agedb_30.bin and the like.

    Args:
        path: the file.

    Returns:
        Encoded images and whether each pair shows one person.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything else than such pairs, or what could run a program. The message
            names the file, and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: unpack insightface's data set there")
    with path.open("rb") as file:
        try:
            content = _plain(_PlainUnpickler(file, encoding="bytes").load())
        except _Refused as refusal:
            raise ValueError(
                f"{path} asks for {refusal}, which images and flags do not need and which could run a"
                " program: do not trust this file, take it from its authors"
            ) from None
        except Exception as error:  # a damaged pickle raises errors of many kinds
            raise ValueError(f"{path} is damaged ({error!r}): copy it again") from error
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise ValueError(
            f"{path}: expected a pair (images, flags), got {type(content).__name__}: not such a file"
        )
    given, flags = content
    images = [image.tobytes() if isinstance(image, np.ndarray) else image for image in _items(given)]
    flags = [
        flag.item() if isinstance(flag, np.ndarray) and flag.size == 1 else flag for flag in _items(flags)
    ]
    for index, image in enumerate(images):
        if not isinstance(image, bytes):
            raise ValueError(
                f"{path}, image {index}: expected bytes, got {type(image).__name__}: copy it again"
            )
    for index, flag in enumerate(flags):
        if not isinstance(flag, bool | int) or flag not in (0, 1):
            raise ValueError(f"{path}, pair {index}: expected a flag, got {flag!r}: copy it again")
    if not flags or len(images) != 2 * len(flags):
        raise ValueError(
            f"{path}: expected two images for each of {len(flags)} flags, got {len(images)}: copy it again"
        )
    return VerificationPairs(images, np.array(flags, bool), path)


class _Refused(Exception):
    """What a pickle asked for."""


class _Dtype:
    """Stands in for numpy's dtype: a code, checked, and a byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        del align, copy
        code = code.decode("latin-1") if isinstance(code, bytes) else code
        if code not in ("b1", "u1", "i1", "i4", "i8", "f4", "f8", "?"):
            raise _Refused(f"a numpy array of type {code!r}")
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else b"|"
        order = order.decode("latin-1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise _Refused(f"a numpy array of byte order {order!r}")
        self.order = order

    @property
    def numpy(self) -> np.dtype:
        """The true dtype."""
        return np.dtype(self.code).newbyteorder(self.order)  # pyright: ignore[reportArgumentType]


class _Array:
    """Stands in for numpy's ndarray until its bytes have come."""

    value: np.ndarray | None = None

    def __init__(self, *given: Any) -> None:
        del given

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise _Refused("a numpy array of objects")
        flat = np.frombuffer(data, dtype.numpy)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: Any, data: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise _Refused("a numpy scalar of objects")
    return np.frombuffer(data, dtype.numpy).reshape(())


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes into a pickle of protocol 2 or below."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _Refused(f"an encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes(*given: Any) -> bytes:
    """How Python 3 writes bytes of length 0 there."""
    if given:
        raise _Refused("bytes made by a call")
    return b""


_KNOWN = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _empty_bytes,
    ("__builtin__", "bytes"): _empty_bytes,
}
"""What files name, and what of ours stands in for it."""


class _PlainUnpickler(pickle.Unpickler):
    """Looks nothing up: a name is one of a few, or the file is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise _Refused(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused(f"an object from elsewhere, {pid!r}")


def _plain(value: Any) -> Any:
    """The content with arrays in place of those that stand in for them; anything unknown is refused."""
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refused("a numpy array without content")
        return value.value
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if value is None or isinstance(value, bytes | bool | int | float | np.ndarray):
        return value
    raise _Refused(f"an object of type {type(value).__name__}")


def _items(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return list(value.tolist()) if value.ndim == 1 else [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _decoded(image: bytes, size: int, where: str) -> UInt8[np.ndarray, "size size 3"]:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: no whole image ({error}): copy the file again") from error
    if pixels.shape != (size, size, 3):
        raise ValueError(
            f"{where}: {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {size} x {size}: align it first"
        )
    return pixels
