"""Loaders of collections: our folders, BEIR, MS MARCO; what they refuse."""

import gzip
import json
import shutil

import numpy as np
import pytest

from experiments.collections import (
    TINY,
    find_collections,
    load_collection,
    ms_marco_triples,
    read_beir,
    read_folder,
    read_ms_marco,
    triple_numbers,
)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(TINY, tmp_path / "mine")


# Folders of ours


def test_tiny_collection():
    collection = load_collection(TINY)
    assert collection.relevant.shape == (30, 60)
    assert len(set(collection.texts)) == 60
    assert collection.relevant.sum(axis=1).min() >= 1
    assert collection.teacher is None


def test_compressed_files_and_teacher(folder):
    plain = load_collection(folder)
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    np.savez(folder / "minilm_l6.npz", queries=2 * np.ones((30, 4), np.float16), docs=np.eye(60, 4))
    compressed = load_collection(folder)
    assert compressed.texts == plain.texts
    np.testing.assert_array_equal(compressed.relevant, plain.relevant)
    queries, docs = compressed.teacher
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-6)
    assert queries.dtype == docs.dtype == np.float32


def test_a_query_without_relevant_documents_is_left_out(folder):
    with (folder / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"query_id": "31", "text": "nothing about this"}) + "\n\n")
    with (folder / "qrels.tsv").open("a") as file:
        file.write("31\tbees-1\t0\n")
    assert len(load_collection(folder).queries) == 30


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("docs.jsonl", '{"doc_id": "x", "text": ', r"docs.jsonl, line 61: not valid JSON .*write one object"),
        ("docs.jsonl", '["x"]', r"docs.jsonl, line 61: expected a JSON object with doc_id and text"),
        (
            "docs.jsonl",
            '{"doc_id": "x"}',
            r"docs.jsonl, line 61: field 'text' is missing.*needs doc_id and text",
        ),
        (
            "docs.jsonl",
            '{"doc_id": "bees-1", "text": "x"}',
            r"line 61: doc_id 'bees-1' occurs twice: give each",
        ),
        ("queries.jsonl", '{"text": "x"}', r"queries.jsonl, line 31: field 'query_id' is missing"),
        (
            "queries.jsonl",
            '{"query_id": "31", "text": 5}',
            r"line 31: field 'text' is missing or not a string",
        ),
        (
            "qrels.tsv",
            "1\tbees-9\t1",
            r"qrels.tsv, line \d+: document 'bees-9' is not in docs.jsonl: add it or",
        ),
        ("qrels.tsv", "99\tbees-1\t1", r"qrels.tsv, line \d+: query '99' is not in queries.jsonl: add it or"),
        ("qrels.tsv", "1\tbees-1\tyes", r"qrels.tsv, line \d+: relevance 'yes' is not a number: write 1"),
        ("qrels.tsv", "1 bees-1 1", r"qrels.tsv, line \d+: got 1 columns: write query_id, doc_id and rel"),
    ],
)
def test_bad_lines(folder, file, line, message):
    with (folder / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_collection(folder)


def test_bad_files(folder):
    def fails(message, error=ValueError):
        with pytest.raises(error, match=message):
            load_collection(folder)

    np.savez(folder / "minilm_l6.npz", queries=np.ones((30, 4)), docs=np.ones((7, 4)))
    fails(r"minilm_l6.npz: array 'docs': expected 60 rows, got shape \(7, 4\): embed the texts again")
    np.savez(folder / "minilm_l6.npz", queries=np.ones((30, 4)))
    fails("minilm_l6.npz: expected arrays queries and docs .*: embed the texts again")
    (folder / "minilm_l6.npz").write_bytes(b"not a zip")
    fails("minilm_l6.npz: expected arrays queries and docs")
    (folder / "qrels.tsv").write_text("1\tbees-1\t0\n")
    fails("no query has a relevant document: the judgments need one above 0")
    (folder / "docs.jsonl").write_bytes(b'{"doc_id": "1", "text": "caf\xe9"}\n')
    fails("docs.jsonl, after line 0: not readable as UTF-8 text .*: get the file again")
    (folder / "docs.jsonl.gz").write_bytes(gzip.compress(b"x" * 5000)[:20])
    fails("docs.jsonl.gz, after line 0: not readable")
    (folder / "docs.jsonl.gz").unlink()
    (folder / "docs.jsonl").write_text("\n")
    fails("docs.jsonl: no line: expected one JSON object a line")
    (folder / "docs.jsonl").unlink()
    fails("expected a file docs.jsonl or docs.jsonl.gz, found neither", FileNotFoundError)


def test_find_collections(tmp_path, monkeypatch, folder):
    (tmp_path / "cet" / "cranfield").mkdir(parents=True)
    monkeypatch.setenv("JAXNEG_DATA", str(tmp_path))
    found, note = find_collections(("cranfield", "tiny", str(folder)))
    assert found == {"cranfield": tmp_path / "cet" / "cranfield", "tiny": TINY, "mine": folder}
    assert note is None
    with pytest.raises(
        FileNotFoundError, match=r"no collection 'cisi': .*JAXNEG_DATA/cet/cisi.* cranfield, tiny"
    ):
        find_collections(("cranfield", "cisi"))
    monkeypatch.delenv("JAXNEG_DATA")
    monkeypatch.setattr("experiments.collections.collection.data_folder", lambda: tmp_path / "absent")
    found, note = find_collections(("cranfield", "cisi"))
    assert found == {"tiny": TINY}
    assert "cranfield, cisi were not found" in note
    assert "JAXNEG_DATA" in note


def test_a_repeated_judgment_counts_once_and_a_contradiction_is_refused(folder):
    first = (folder / "qrels.tsv").read_text().splitlines()[0]
    with (folder / "qrels.tsv").open("a") as file:
        file.write(first + "\n")
    assert len(read_folder(folder).judgments.grade) == len(read_folder(TINY).judgments.grade)
    with (folder / "qrels.tsv").open("a") as file:
        file.write(first.rsplit("\t", 1)[0] + "\t0\n")
    with pytest.raises(ValueError, match=r"qrels.tsv, line \d+: .* were judged before, with another grade"):
        read_folder(folder)


def test_positives_and_grades(folder):
    with (folder / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"query_id": "31", "text": "nothing about this"}) + "\n")
    judged = read_folder(folder)
    grades = judged.grades()
    for row, listed in zip(grades, judged.positives(), strict=True):
        assert set(listed[listed >= 0]) == set(np.flatnonzero(row > 0))
    assert np.all(judged.positives()[-1] == -1)
    large = type(judged)("large", [""] * 2**20, [""] * 2**20, [""] * 2**11, [""] * 2**11, judged.judgments)
    with pytest.raises(ValueError, match="large: a matrix of 2048 queries and 1048576 documents needs more"):
        large.grades()


# BEIR


@pytest.fixture
def beir(tmp_path):
    root = tmp_path / "scifact"
    (root / "qrels").mkdir(parents=True)
    docs = [("d1", "Wings", "make lift"), ("d2", "", "engines make thrust"), ("d3", None, "a piano")]
    lines = [json.dumps({"_id": i, "title": t, "text": x, "metadata": {}}) for i, t, x in docs]
    (root / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    queries = [("q1", "lift"), ("q2", "thrust"), ("q3", "of another split")]
    (root / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": x}) for i, x in queries))
    (root / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq2\td2\t2\nq1\td1\t1\r\nq1\td3\t0\n"
    )
    return root


def test_beir(beir):
    judged = read_beir(beir)
    assert judged.texts == ["Wings make lift", "engines make thrust", "a piano"]
    assert judged.queries == ["lift", "thrust"]
    assert judged.grades().tolist() == [[1, 0, 0], [0, 2, 0]]
    assert judged.positives().tolist() == [[0], [1]]
    collection = load_collection(beir)
    assert collection.name == "scifact"
    np.testing.assert_array_equal(collection.relevant, judged.grades() > 0)


def test_beir_refuses(beir):
    with pytest.raises(FileNotFoundError, match=r"there is no split 'dev': .* one of test"):
        read_beir(beir, "dev")
    qrels = beir / "qrels" / "test.tsv"
    good = qrels.read_text()
    cases = [
        ("q1\td9\t1", r"test.tsv, line 5: document 'd9' is not in corpus.jsonl.gz: add it or remove"),
        ("q9\td1\t1", r"test.tsv, line 5: query 'q9' is not in queries.jsonl: add it or remove"),
        ("q1 0 d1 1", r"test.tsv, line 5: got 1 columns: write query-id, corpus-id, score between tabs"),
        ("q1\td2\tnan", r"test.tsv, line 5: relevance 'nan' is not a number"),
    ]
    for line, message in cases:
        qrels.write_text(good + line + "\n")
        with pytest.raises(ValueError, match=message):
            read_beir(beir)
    qrels.write_text(good + "q1\td9\t1\nq9\td1\t1\n")
    assert len(read_beir(beir, unknown="drop").judgments.grade) == 3
    with (beir / "queries.jsonl").open("a") as file:
        file.write('\n{"_id": "q1", "text": "again"}')
    with pytest.raises(ValueError, match=r"queries.jsonl, line 4: _id 'q1' occurs twice"):
        read_beir(beir)


# MS MARCO


@pytest.fixture
def ms_marco(tmp_path):
    root = tmp_path / "msmarco"
    root.mkdir()
    (root / "collection.tsv").write_text("0\tWings make lift.\n1\tEngines\tmake thrust.\n7\tA piano.\n")
    (root / "queries.dev.small.tsv").write_text("20\tlift\n30\tthrust\n40\tnot judged\n")
    (root / "qrels.dev.small.tsv").write_text("20\t0\t0\t1\n30\t0\t1\t1\n")
    (root / "triples.tsv").write_text("20\t0\t7\n30\t1\t0\n30\t1\t7\n")
    return root


def test_ms_marco(ms_marco):
    judged = read_ms_marco(ms_marco)
    assert judged.doc_ids == ["0", "1", "7"]
    assert judged.texts[1] == "Engines\tmake thrust."
    assert judged.positives().tolist() == [[0], [1], [-1]]
    assert load_collection(ms_marco).queries == ["lift", "thrust"]
    triples = list(ms_marco_triples(ms_marco / "triples.tsv"))
    assert triples[0][1:] == ("20", "0", "7")
    numbers = triple_numbers(iter(triples), judged.query_ids, judged.doc_ids)
    assert numbers.tolist() == [[0, 0, 2], [1, 1, 0], [1, 1, 2]]
    assert triple_numbers(triples, judged.query_ids, judged.doc_ids, limit=1).shape == (1, 3)
    (ms_marco / "texts.tsv.gz").write_bytes(gzip.compress(b"why lift\tWings make lift.\tA piano.\n"))
    (texts,) = ms_marco_triples(ms_marco / "texts.tsv.gz", texts=True)
    assert (texts.query, texts.negative) == ("why lift", "A piano.")


def test_ms_marco_refuses(ms_marco):
    judged = read_ms_marco(ms_marco)
    cases = [
        ("20\t0", r"triples.tsv, line 1: expected query, positive and negative between tabs, got '20"),
        ("20\t\t7", r"triples.tsv, line 1: expected query, positive and negative"),
        ("why lift\t0\t7", r"triples.tsv, line 1: .* holds texts .* read it with texts=True"),
        ("20\t7\t7", r"triples.tsv, line 1: the positive '7' is also the negative: remove the line"),
        ("99\t0\t7", r"triples.tsv, line 1: there is no query '99': add it or remove the line"),
        ("20\t0\t9", r"triples.tsv, line 1: there is no document '9': add it or remove the line"),
    ]
    for line, message in cases:
        (ms_marco / "triples.tsv").write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            triple_numbers(ms_marco_triples(ms_marco / "triples.tsv"), judged.query_ids, judged.doc_ids)
    files = [
        ("collection.tsv", "no tab\n", r"collection.tsv, line 1: expected an identifier, a tab and the pass"),
        ("collection.tsv", "0\ta\n0\tb\n", r"collection.tsv, line 2: identifier '0' occurs twice"),
        ("collection.tsv", "", r"collection.tsv: no line: expected an identifier"),
        ("qrels.dev.small.tsv", "20\t0\t1\n", r"qrels.dev.small.tsv, line 1: got 3 columns: write query, 0"),
    ]
    for name, text, message in files:
        good = (ms_marco / name).read_text()
        (ms_marco / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ms_marco(ms_marco)
        (ms_marco / name).write_text(good)
    with pytest.raises(FileNotFoundError, match=r"expected a file queries.train.tsv or queries.train.tsv.gz"):
        read_ms_marco(ms_marco, "train")
