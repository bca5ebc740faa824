"""insightface's files: what is read, what is refused, and what the errors say."""

import io
import os
import pickle
import re
import struct

import numpy as np
import pytest
from PIL import Image

from experiments.unpg.insightface_files import MAGIC, FaceRecords, load_verification_pairs

SIZE = 8


def jpeg(level, size=SIZE):
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def record(content):
    """As MXNet writes it: cut where the magic number lies on four bytes."""
    magic, parts, start = struct.pack("<I", MAGIC), [], 0
    for at in range(0, len(content) - 3, 4):
        if content[at : at + 4] == magic:
            parts.append(content[start:at])
            start = at + 4
    parts.append(content[start:])
    out = b""
    for index, part in enumerate(parts):
        going_on = 0 if len(parts) == 1 else 1 if index == 0 else 3 if index == len(parts) - 1 else 2
        out += magic + struct.pack("<I", going_on << 29 | len(part)) + part + b"\0" * (-len(part) % 4)
    return out


def write_records(folder, contents):
    rec, positions = b"", []
    for content in contents:
        positions.append(len(rec))
        rec += record(content)
    (folder / "train.rec").write_bytes(rec)
    (folder / "train.idx").write_text("".join(f"{i}\t{at}\n" for i, at in enumerate(positions)))
    return folder / "train.rec"


def head(label, flag=0):
    return struct.pack("<IfQQ", flag, label, 0, 0)


def faces(labels):
    first = struct.pack("<IfQQ", 2, 0.0, 0, 0) + np.array([len(labels) + 1, 99], "<f4").tobytes()
    images = [head(label) + jpeg(10 * i) for i, label in enumerate(labels)]
    identities = [struct.pack("<IfQQ", 2, 0.0, 0, 0) + np.array([1, 2], "<f4").tobytes()]
    return [first, *images, *identities]


def test_records_are_read(tmp_path):
    records = FaceRecords(write_records(tmp_path, faces([3, 7, 3])), size=SIZE)
    assert len(records) == 3
    assert records.keys == [1, 2, 3]
    assert [int(records[i]["labels"]) for i in range(3)] == [3, 7, 3]
    np.testing.assert_array_equal(records[2]["x"], np.full((SIZE, SIZE, 3), 20))


def test_a_record_that_holds_the_magic_number(tmp_path):
    content = head(5) + struct.pack("<I", MAGIC) + b"abc" + b"\0" + struct.pack("<I", MAGIC)
    rec = write_records(tmp_path, [content])
    records = FaceRecords(rec, size=SIZE)
    _, image = records._record(0)
    assert image == content[24:]


def test_damaged_records_are_named(tmp_path):
    rec = write_records(tmp_path, [*faces([1]), head(2) + b"no image", head(float("nan")) + b"x", b"short"])
    records = FaceRecords(rec, size=SIZE)
    for key, message in ((3, "no whole image"), (4, "its label is no number"), (5, "too few for a header")):
        records.keys = [key]
        with pytest.raises(ValueError, match=rf"train.rec, record {key}: .*{message}.*copy"):
            records[0]
    data = rec.read_bytes()
    rec.write_bytes(data[:-5])
    with pytest.raises(ValueError, match="record 5: the file ends within it: copy it again"):
        FaceRecords(rec, size=SIZE)._record(5)
    (tmp_path / "train.idx").write_text("0\t4\n")
    with pytest.raises(ValueError, match="record 0: no record begins where the index says"):
        FaceRecords(rec, size=SIZE)
    for text, message in (
        ("0 4\n", "line 1: expected 'key<TAB>position'"),
        ("0\t99999999\n", "beyond the"),
        ("", "is empty"),
    ):
        (tmp_path / "train.idx").write_text(text)
        with pytest.raises(ValueError, match=message):
            FaceRecords(rec, size=SIZE)
    (tmp_path / "train.idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*train.idx: put train.rec and train.idx side by"):
        FaceRecords(rec)


def test_a_face_of_another_size(tmp_path):
    records = FaceRecords(write_records(tmp_path, faces([1])), size=16)
    with pytest.raises(ValueError, match="record 1: 8 x 8 pixels, expected 16 x 16: align it first"):
        records[0]


IMAGES, FLAGS = [jpeg(10 * i) for i in range(4)], [True, False]


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "content",
    [
        (IMAGES, FLAGS),
        [IMAGES, [np.bool_(flag) for flag in FLAGS]],
        ([np.frombuffer(image, np.uint8) for image in IMAGES], np.array(FLAGS)),
        (IMAGES, np.array([1, 0])),
    ],
    ids=["bytes", "numpy flags", "arrays", "integers"],
)
def test_pairs_are_read(tmp_path, protocol, content):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    pairs = load_verification_pairs(path)
    assert pairs.images == IMAGES
    assert pairs.same.tolist() == FLAGS
    np.testing.assert_array_equal(pairs.decoded(3, SIZE), np.full((SIZE, SIZE, 3), 30))


class Runs:
    """A pickle of it runs what it was made with."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), "system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (getattr, (pickle, "loads"), "getattr"),
        (np.load, ("{}",), "load"),
    ],
    ids=["system", "eval", "getattr", "np.load"],
)
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, protocol, function, arguments, named):
    mark, path = tmp_path / "it_ran", tmp_path / "lfw.bin"
    arguments = tuple(a.format(mark) if isinstance(a, str) else "pickle" for a in arguments)
    path.write_bytes(pickle.dumps(([*IMAGES, Runs(function, *arguments)], FLAGS), protocol=protocol))
    with pytest.raises(ValueError, match=rf"lfw.bin asks for .*{named}.*do not trust this file"):
        load_verification_pairs(path)
    assert not mark.exists()


def test_objects_inside_arrays_are_refused(tmp_path):
    path = tmp_path / "lfw.bin"
    mark = tmp_path / "it_ran"
    path.write_bytes(pickle.dumps((np.array([Runs(os.system, f"touch {mark}")], object), FLAGS)))
    with pytest.raises(ValueError, match="asks for"):
        load_verification_pairs(path)
    assert not mark.exists()
    for content in (np.array([b"a", 1], object), {"images": IMAGES}, {1, 2}, "text", 1 + 2j):
        path.write_bytes(pickle.dumps((content, FLAGS)))
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_verification_pairs(path)


def test_the_names_that_files_need_do_nothing_else(tmp_path):
    """A file that calls them with other arguments than images need."""
    path = tmp_path / "lfw.bin"
    for stream, named in (
        (b"c_codecs\nencode\n(X\x03\x00\x00\x00abcX\x03\x00\x00\x00rottR.", "an encoding"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "a numpy array of type 'O'"),
        (b"cbuiltins\nbytes\n(I1000000000\ntR.", "bytes made by a call"),
        (b"Phere\n.", "an object from elsewhere"),
    ):
        path.write_bytes(stream)
        with pytest.raises(ValueError, match=named):
            load_verification_pairs(path)


def test_what_is_no_pair_file(tmp_path):
    path = tmp_path / "lfw.bin"
    with pytest.raises(FileNotFoundError, match=r"no file .*lfw.bin: unpack insightface's data set there"):
        load_verification_pairs(path)
    for content, message in (
        ((IMAGES, FLAGS, 3), r"expected a pair \(images, flags\)"),
        ((IMAGES[:3], FLAGS), "expected two images for each of 2 flags, got 3"),
        (([1, 2, 3, 4], FLAGS), "image 0: expected bytes, got int"),
        ((IMAGES, [True, 2]), "pair 1: expected a flag, got 2"),
        (([], []), "expected two images for each of 0 flags"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_verification_pairs(path)
    path.write_bytes(pickle.dumps((IMAGES, FLAGS))[:-20])
    with pytest.raises(ValueError, match=r"lfw.bin is damaged .*copy it again"):
        load_verification_pairs(path)
    path.write_bytes(pickle.dumps(([b"no image"] * 4, FLAGS)))
    with pytest.raises(ValueError, match=r"lfw.bin, image 2: no whole image"):
        load_verification_pairs(path).decoded(2)
