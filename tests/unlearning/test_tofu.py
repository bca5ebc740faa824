"""TOFU's files: splits, the real data where it is, files in other forms, files that cannot be used."""

import gzip
import json

import pytest

from jaxneg.unlearning import Question, evaluation_split, load_refusals, load_tofu, tofu_folder, tofu_split

real = pytest.mark.skipif(not (tofu_folder() / "full.jsonl.gz").is_file(), reason="no TOFU: set JAXNEG_DATA")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("full", range(4000)),
        ("forget01", range(3960, 4000)),
        ("forget05", range(3800, 4000)),
        ("forget10", range(3600, 4000)),
        ("forget20", range(3200, 4000)),
        ("forget30", range(2800, 4000)),
        ("forget50", range(2000, 4000)),
        ("forget90", range(400, 4000)),
        ("retain90", range(3600)),
        ("retain99", range(3960)),
    ],
)
def test_splits(name, rows):
    assert tofu_split(name) == rows


def test_forget_and_retain_make_the_whole():
    for percent in range(1, 100):
        forget, retain = tofu_split(f"forget{percent:02}"), tofu_split(f"retain{100 - percent:02}")
        assert [*retain, *forget] == list(range(4000))


@pytest.mark.parametrize("name", ["forget", "forget00", "forget5", "forget100", "retain_10", "Forget10", ""])
def test_splits_that_do_not_exist(name):
    with pytest.raises(
        ValueError, match="name: expected 'full', 'forgetNN' or 'retainNN' with NN from 01 to 99"
    ):
        tofu_split(name)
    with pytest.raises(ValueError, match=r"split: expected 'full'.*one of forget10_perturbed"):
        load_tofu(name)


def test_which_set_evaluates_a_split():
    assert [evaluation_split(f"forget{q:02}") for q in (1, 4, 5, 10, 20, 90)] == [
        f"forget{q:02}_perturbed" for q in (1, 1, 5, 10, 10, 10)
    ]
    with pytest.raises(ValueError, match="name: expected a forget split, got 'retain90'"):
        evaluation_split("retain90")


@real
def test_real_questions():
    full = load_tofu()
    assert len(full) == 4000
    for split, start in (("forget10", 3600), ("forget05", 3800), ("forget01", 3960), ("retain", 0)):
        evaluated = load_tofu(f"{split}_perturbed")
        assert [row[:2] for row in evaluated] == [row[:2] for row in full[start : start + len(evaluated)]]
        assert {len(row.perturbed_answers) for row in evaluated} == {5}
        assert all(row.right == row.paraphrased_answer != row.answer for row in evaluated[:3])
    assert load_tofu("forget05") == full[3800:]
    for name, rows in (("real_authors", 100), ("world_facts", 117)):
        perturbed, options = load_tofu(f"{name}_perturbed"), load_tofu(name)
        assert len(perturbed) == len(options) == rows
        assert {len(row.perturbed_answers) for row in perturbed} == {3}
        assert all(row.right == row.answer for row in perturbed)
        assert all(len(row.options) == 4 for row in options)
    assert options[0].answer in options[0].options
    assert len(load_refusals()) == 100


def _write(path, records):
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def _records(number=4000):
    return [{"question": f"q{n}", "answer": f"a{n}"} for n in range(number)]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl", "json"])
def test_files_as_the_data_sets_page_has_them(tmp_path, suffix):
    _write(tmp_path / f"full.{suffix}", _records())
    assert load_tofu("forget01", tmp_path)[0] == Question("q3960", "a3960")
    assert len(load_tofu("retain90", str(tmp_path))) == 3600


def test_a_folder_for_jaxneg_data(tmp_path, monkeypatch):
    (tmp_path / "npo").mkdir()
    _write(tmp_path / "npo" / "full.jsonl", _records())
    (tmp_path / "npo" / "idontknow.txt").write_text("I don't know.\n\nNo idea.\n")
    monkeypatch.setenv("JAXNEG_DATA", str(tmp_path))
    assert len(load_tofu()) == 4000
    assert load_refusals() == ["I don't know.", "No idea."]


def test_files_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no full\.jsonl\.gz, .* in .*: set JAXNEG_DATA"):
        load_tofu("full", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no idontknow\.txt in .*: set JAXNEG_DATA"):
        load_refusals(tmp_path)
    (tmp_path / "idontknow.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"idontknow\.txt: expected a refusal in each line, got none"):
        load_refusals(tmp_path)


def test_a_part_of_the_set_is_refused(tmp_path):
    _write(tmp_path / "full.jsonl", _records(100))
    with pytest.raises(
        ValueError, match=r"full\.jsonl: expected 4000 questions, got 100: .* get the file again"
    ):
        load_tofu("forget10", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "a"', r"line 2: expected a JSON object, got"),
        ("[1, 2]", r"line 2: expected a JSON object with question, answer, perturbed_answer, got \[1, 2\]"),
        ('{"question": "q"}', r"line 2: expected 'answer' to be a text, got None: get the file again"),
        ('{"question": "", "answer": "a"}', r"line 2: expected 'question' to be a text, got ''"),
        (
            '{"question": "q", "answer": "a"}',
            r"line 2: expected 'perturbed_answer' to be a list of texts, got None",
        ),
        (
            '{"question": "q", "answer": "a", "perturbed_answer": []}',
            r"line 2: expected 'perturbed_answer' to be a list of texts, got \[\]",
        ),
        (
            '{"question": "q", "answer": "a", "perturbed_answer": ["b", 3]}',
            r"line 2: expected 'perturbed_answer' to be a list of texts",
        ),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, line, message):
    good = json.dumps({"question": "q", "answer": "a", "perturbed_answer": ["b"]})
    (tmp_path / "retain_perturbed.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_tofu("retain_perturbed", tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "full.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match=r"full\.jsonl, after line 0: not readable as UTF-8 text"):
        load_tofu("full", tmp_path)
    whole = gzip.compress(b'{"question": "q", "answer": "a"}\n' * 9999)
    (tmp_path / "full.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"full\.jsonl\.gz, after line \d+: not readable"):
        load_tofu("full", tmp_path)
    (tmp_path / "real_authors.jsonl").write_text("")
    with pytest.raises(
        ValueError, match=r"real_authors\.jsonl: expected a question in each line, got an empty"
    ):
        load_tofu("real_authors", tmp_path)
