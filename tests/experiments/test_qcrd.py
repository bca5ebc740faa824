"""QCRD's experiment: word problems, the teacher, arms, earlier students, SVAMP, files, the pod, a run."""

import dataclasses
import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from experiments import qcrd
from experiments.qcrd import svamp
from experiments.qcrd.claims import FURTHER, NEEDED, auc, judge_auc, measurements, rise
from experiments.qcrd.comparison import World, corpus_of, draw_questions, right_labels, right_rationales
from experiments.qcrd.distillation import CheckpointHistory, batches, train_arm
from experiments.qcrd.pod import t5_target
from experiments.qcrd.rationale_files import END, load_rationales, parse_output
from experiments.qcrd.word_problems import (
    ADDING,
    EOS,
    EXPLAIN,
    FACTORS,
    IDS,
    NAMES,
    PAD,
    PREDICT,
    SUBTRACTING,
    WORDS,
    Event,
    ask_teacher,
    draw_problem,
    parse_rationale,
    rationale_of,
    token_row,
    words_of,
)
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.language import SnapshotBuffer
from jaxneg.nn import EncoderDecoderConfig
from jaxneg.train import make_mesh, shard_step


def solved(words):
    """The operation list, from the text alone."""
    main, answer = words[-3], []
    for sentence in " ".join(words[:-7]).split(" . "):
        name, verb, what, *_ = sentence.split()
        if name != main:
            continue
        if verb == "has":
            answer.append(what)
        else:
            answer += ["*", FACTORS[verb]] if verb in FACTORS else ["+" if verb in ADDING else "-", what]
    return tuple(answer)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_problems_can_be_solved_from_their_text(seed):
    problem = draw_problem(np.random.default_rng(seed))
    assert solved(problem.words) == problem.answer
    slots = [word for word in problem.words if word.startswith("N") and word[1:].isdigit()]
    assert slots == [f"N{number}" for number in range(problem.slots)]
    assert 2 <= len(problem.events) <= 4
    world = World()
    assert len(token_row(problem.words, world.question_length, PREDICT)) == world.question_length
    for style in (0, 1):
        told = rationale_of(problem.first, problem.events, style)
        assert parse_rationale(told) == problem.answer
        assert words_of(token_row(told, world.rationale_length)) == told
    assert words_of(token_row(problem.answer, world.label_length)) == problem.answer


def test_the_numbers_of_the_world():
    """Those that the design of the task was measured with: events, the teacher, the majority."""
    questions = draw_questions(np.random.default_rng(0), 1000, World())
    truth = [problem.answer for problem in questions.problems]
    one = np.mean([s.answer == t for said, t in zip(questions.said, truth, strict=True) for s in said])
    np.testing.assert_allclose(one, 0.73, atol=0.04)
    majority = np.mean([found == t for found, t in zip(questions.majority, truth, strict=True)])
    np.testing.assert_allclose(majority, 0.95, atol=0.02)
    verbs = [event.verb for problem in questions.problems for event in problem.events]
    for group, share in ((ADDING, 0.42), (SUBTRACTING, 0.42), (FACTORS, 0.16)):
        np.testing.assert_allclose(np.mean([verb in group for verb in verbs]), share, atol=0.03)
    assert len(set(WORDS)) == len(WORDS) == 68
    assert len(NAMES) == 8


def test_the_teacher():
    """It tells what it answers, in both styles, and errs by operator or operand."""
    rng = np.random.default_rng(1)
    problem = draw_problem(rng, (4,), (2,))
    samples = [ask_teacher(rng, problem, error=1.0) for _ in range(200)]
    assert all(parse_rationale(sample.rationale) == sample.answer for sample in samples)
    assert 0.3 < np.mean([sample.rationale[2] == "then" for sample in samples]) < 0.7
    swapped = {sample.answer[1] for sample in samples}
    assert len(swapped) == 2
    assert all(sample.answer[0] == problem.first for sample in samples)


@pytest.mark.parametrize(
    "text",
    [
        *("", "start", "N0 then + N1", "start N0 then + N1 then", "start N0 ; finds N1 so + ; loses"),
        *("start + N0", "start N0 then N1 +", "start N0 ; finds N1 then + ;", "start N0 ; N3 N1 so + ;"),
    ],
)
def test_what_is_no_rationale(text):
    assert parse_rationale(text.split()) is None


def test_corpora():
    """Which labels and rationales an arm has; positives agree with the majority and are different."""
    world = World(questions=60, positives=3)
    questions = draw_questions(np.random.default_rng(3), 60, world)
    truth = np.stack([token_row(problem.answer, world.label_length) for problem in questions.problems])
    first = corpus_of(questions, "dss", "teacher", world)
    agreed = corpus_of(questions, "qcrd", "teacher", world)
    np.testing.assert_array_equal(corpus_of(questions, "qcrd", "true", world).label, truth)
    right = [(corpus.label == truth).all(1).mean() for corpus in (first, agreed)]
    assert right[0] < right[1] < 1.01
    assert first.pos.shape[1] == 1
    assert first.pos_valid.all()
    assert (first.predict[:, 0] == PREDICT).all()
    assert (first.explain[:, 0] == EXPLAIN).all()
    np.testing.assert_array_equal(first.predict[:, 1:-1], first.question[:, :-2])
    for row, (said, answer) in enumerate(zip(questions.said, questions.majority, strict=True)):
        assert words_of(first.pos[row, 0]) == said[0].rationale
        sets = [
            words_of(tokens)
            for tokens, there in zip(agreed.pos[row], agreed.pos_valid[row], strict=True)
            if there
        ]
        assert len(set(sets)) == len(sets) >= 1
        assert all(parse_rationale(words) == answer for words in sets)
        assert set(sets) <= {sample.rationale for sample in said}
    tokens = np.stack([token_row(rationale_of(p.first, p.events, 1), 24) for p in questions.problems])
    assert right_rationales(tokens, questions.problems).all()
    assert right_labels(truth, questions.problems).all()
    tokens[:, 1] = IDS["N6"]
    assert not right_rationales(tokens, questions.problems).any()


def test_a_row_that_is_too_long():
    with pytest.raises(ValueError, match="words: expected at most 2 tokens, got 3: N0 N1"):
        token_row(("N0", "N1"), 2)


SMOKE = qcrd.PRESETS["smoke"]


def test_order_of_the_questions():
    """Every question as often, the same in every arm, another in every seed."""
    recipe = dataclasses.replace(SMOKE.recipe, steps=16, batch=8)
    found = batches(0, 64, recipe)
    np.testing.assert_array_equal(np.bincount(found.ravel()), 2)
    np.testing.assert_array_equal(found, batches(0, 64, recipe))
    assert (found != batches(1, 64, recipe)).any()


def test_earlier_students_through_checkpoints(tmp_path):
    """As the buffer in memory, but exact."""
    buffer = SnapshotBuffer(2, None)
    with CheckpointHistory(tmp_path, 2) as history:
        for number in range(5):
            params = {"w": jnp.full(3, 0.1 * number)}
            for each in (buffer, history):
                each.push(params)
            np.testing.assert_array_equal(history.earlier()["w"], buffer.earlier()["w"])


@pytest.mark.slow
def test_an_arm_in_both_histories():
    """The same negatives, up to what bfloat16 rounds; without a judge, one iteration back."""
    world, questions = SMOKE.world, draw_questions(np.random.default_rng(0), 64, SMOKE.world)
    corpus = corpus_of(questions, "nk", "true", world)
    found = {
        kind: train_arm(dataclasses.replace(SMOKE.recipe, history=kind), 0, "nk", corpus)
        for kind in ("memory", "checkpoints")
    }
    assert found["memory"].metrics["neg_ce"].shape == (SMOKE.steps,)
    same = found["memory"].negatives == found["checkpoints"].negatives
    assert same.mean() > 0.9
    again = train_arm(dataclasses.replace(SMOKE.recipe, history="checkpoints"), 0, "nk", corpus)
    for ours, theirs in zip(
        jax.tree.leaves(again.student), jax.tree.leaves(found["checkpoints"].student), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    with RunDir.create("qcrd", SMOKE, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in qcrd.CLAIMS]
    assert all(len(claim["values"]) == SMOKE.seeds for claim in report["claims"])
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["arms", "judge", "mechanism"]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [5, 6, 3, 5]
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "qcrd", qcrd.Config) as run_dir:
        assert run_experiment(run_dir)["claims"] == report["claims"]


def test_measurements():
    """Differences of the right arms, in points."""
    neg_ce = np.stack([np.linspace(1, 2, 5)] * 4)

    def found(accuracy):
        return {
            "accuracy": accuracy,
            "validity": accuracy / 2,
            "neg_ce": neg_ce,
            "pos_ce": -neg_ce * np.arange(4)[:, None],
            "of_teacher": np.array([[0.9, 0.1]]),
            "of_teacher_right": np.array([[True, False]]),
            "of_student": np.array([0.5]),
            "of_student_right": np.array([False]),
        }

    shares = {arm: 0.1 * number for number, arm in enumerate(NEEDED)}
    got = measurements({arm: [found(share)] * 2 for arm, share in shares.items()})
    assert set(got) == {claim.name for claim in qcrd.CLAIMS}
    np.testing.assert_allclose(got["qcrd-beats-step-by-step-with-teacher-labels"], 10)
    np.testing.assert_allclose(got["step-by-step-beats-finetuning"], 10)
    np.testing.assert_allclose(got["agreeing-rationales-teach-valid-ones"], 5)
    np.testing.assert_allclose(got["judge-knows-good-rationales"], 1)
    np.testing.assert_allclose(got["negatives-become-unlikely"], 1)
    np.testing.assert_allclose(got["positives-become-likely"], -4.5)
    np.testing.assert_allclose(got["negatives-help"], 10)
    assert rise(neg_ce) == 1
    assert auc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert auc(np.array([0.5]), np.array([True])) == 0.5
    assert judge_auc(found(0.0), "student") == 0.5
    assert not {*NEEDED} & {*FURTHER}


def test_presets():
    assert set(qcrd.PRESETS) == {"smoke", "cpu", "full", "paper"}
    full, paper = qcrd.PRESETS["full"], qcrd.PRESETS["paper"]
    assert dataclasses.replace(full, seeds=20, history="checkpoints", svamp_seeds=20) == paper
    assert (full.width, full.batch, full.steps, full.refresh, full.seeds) == (128, 64, 3000, 150, 8)
    assert full.world.question_length == 44


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"questions": 0}, "questions: expected at least 1, got 0"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"back": -1}, "back: expected at least 0, got -1"),
        ({"refresh": 3, "steps": 30}, "refresh: expected at least 5 steps, got 3"),
        ({"steps": 50}, "steps: expected whole iterations of 40, at least two, got 50"),
        ({"most_events": 5}, "most_events: expected 2 to 4, got 5"),
        ({"most_distractors": 3}, "most_distractors: expected 0 to 2, got 3"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        qcrd.Config(**fields)


QUESTION = {
    "input": "Ann had 3 figs, Ben 3.5.\nHow many more did Ben have?",
    "equation": "( 3.5 - 3.0 )",
    "palm_rationale": "Ben had 3.5 and Ann 3. 3.5 - 3 = 0.5.",
    "palm_equation": "(3.5 - 3)",
}


def write_svamp(folder, rows=(QUESTION,) * 4):
    for split in ("train", "test"):
        with gzip.open(folder / f"svamp_{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def test_svamp_in_slots(tmp_path):
    write_svamp(tmp_path)
    rows = svamp.load_svamp("train", tmp_path)
    row = rows[0]
    assert " ".join(row.words) == "ann had N0 figs , ben N1 . how many more did ben have ?"
    assert " ".join(row.rationale) == "ben had N1 and ann N0 . N1 - N0 = <number> ."
    assert svamp.in_slots(row.equation, row.numbers) == ("(", "N1", "-", "N0", ")")
    assert svamp.in_numbers(("N1", "-", "N7"), row.numbers) == "3.5 - N7"
    words = svamp.vocabulary(rows)
    ids = {word: number for number, word in enumerate(words)}
    wrong = row._replace(told="(3 + 3.5)")
    none = row._replace(told="", rationale=())
    true = svamp.corpus_of([row, wrong, none], "true", ids)
    assert true.pos_valid[:, 0].tolist() == [True, False, False]
    teacher = svamp.corpus_of([row, wrong, none], "teacher", ids)
    assert teacher.pos_valid[:, 0].tolist() == [True, True, False]
    assert (teacher.label[1] != true.label[1]).any()
    np.testing.assert_array_equal(teacher.label[2], true.label[2])
    assert svamp.tokens_of([("unheard",)], ids, 3).tolist() == [[svamp.UNKNOWN, svamp.EOS, svamp.PAD]]
    assert svamp.tokens_of([("ann",) * 9], ids, 3)[0, -1] == svamp.EOS


def test_svamp_files(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNEG_DATA", str(tmp_path))
    assert svamp.svamp_folder() == tmp_path / "qcrd"
    with pytest.raises(FileNotFoundError, match=r"there is no .*svamp_train\.jsonl\.gz: put SVAMP"):
        svamp.load_svamp("train")
    (tmp_path / "qcrd").mkdir()
    write_svamp(tmp_path / "qcrd", [QUESTION, {"input": "?"}])
    with pytest.raises(ValueError, match=r"svamp_test\.jsonl\.gz, line 2: expected a question with input"):
        svamp.load_svamp("test")


@pytest.mark.slow
def test_svamp_run(tmp_path, monkeypatch):
    """Every arm, both kinds of labels, on four questions; and the line that says why not."""
    config = dataclasses.replace(SMOKE, svamp_seeds=1, svamp_steps=10)
    monkeypatch.setenv("JAXNEG_DATA", str(tmp_path))
    with RunDir.create("qcrd", config, path=tmp_path / "run") as run_dir:
        (absent,) = svamp.svamp_tables(config.recipe, 10, range(1), run_dir)
        assert "there is no" in str(absent.rows[0][0])
        (tmp_path / "qcrd").mkdir()
        write_svamp(tmp_path / "qcrd")
        (table,) = svamp.svamp_tables(config.recipe, 10, range(2), run_dir)
    assert [row[:2] for row in table.rows] == [
        [name, labels]
        for labels in ("true", "PaLM's")
        for name in ("finetune", "DSS", "QCRD", "QCRD minus DSS")
    ]


def write(path, content, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))


def test_files_of_distilling_step_by_step(tmp_path):
    """Questions as lines or as a list, outputs in several files, or samples of our own form."""
    write(
        tmp_path / "svamp/svamp_train.json", [{"input": f"q{i}", "label": "( 1.0 )"} for i in range(3)], True
    )
    write(tmp_path / "svamp/llm/train_CoT_0.json", ["One. The answer is (1).\n\nQ: more", "Nothing."])
    with pytest.raises(ValueError, match=r"llm: expected samples for the 3 questions of .*, got 2"):
        load_rationales(tmp_path, "svamp")
    write(tmp_path / "svamp/llm/train_CoT_1.json", ["Two. The answer is (1 + 1)."])
    found = load_rationales(tmp_path, "svamp")
    assert [(one.text, one.rationales, one.answers) for one in found] == [
        ("q0", ("One.",), ("(1)",)),
        ("q1", ("Nothing.",), ("",)),
        ("q2", ("Two.",), ("(1 + 1)",)),
    ]
    samples = [{"rationales": ["a", "b"], "answers": ["1", "2"]}] * 3
    write(tmp_path / "svamp/samples/train.json", samples)
    assert load_rationales(tmp_path, "svamp")[0].rationales == ("a", "b")
    write(tmp_path / "svamp/samples/train.json", [{"rationales": ["a"], "answers": []}] * 3)
    with pytest.raises(ValueError, match="question 1: expected an answer for each of 1 rationales, got 0"):
        load_rationales(tmp_path, "svamp")
    write(tmp_path / "svamp/samples/train.json", [{"rationales": ["a"]}] * 3)
    with pytest.raises(ValueError, match="question 1: expected rationales and answers, two lists"):
        load_rationales(tmp_path, "svamp")


def test_questions_of_every_set(tmp_path):
    question = {"question": "What flies?", "choices": ["a", "b", "c", "d", "e"], "answer": "b"}
    write(tmp_path / "cqa/cqa_test.json", [question])
    write(tmp_path / "cqa/llm/test_CoT_0.json", ["Birds fly. So the answer is (b) bird.\n\nQ: next"])
    (cqa,) = load_rationales(tmp_path, "cqa", "test")
    assert cqa.text == "What flies?\nAnswer Choices:\n(a) a\n(b) b\n(c) c\n(d) d\n(e) e"
    assert (cqa.label, cqa.rationales, cqa.answers) == ("b", ("Birds fly.",), ("bird",))
    for name, output in (
        ("anli1", "So. So the answer is neutral.\n\nPremise: next"),
        ("esnli", "So. Answer: neutral\n\nPremise: next"),
    ):
        write(tmp_path / f"{name}/{name}_valid.json", [{"premise": "P", "hypothesis": "H", "label": 2}])
        write(tmp_path / f"{name}/llm/valid_CoT_0.json", [output])
        (nli,) = load_rationales(tmp_path, name, "valid")
        assert (nli.text, nli.label) == (f"P{END}H", "contradiction")
        assert (nli.rationales, nli.answers) == (("So.",), ("neutral",))
    assert parse_output("svamp", "no answer") == ("no answer", "")


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="name: expected one of svamp, cqa, anli1, esnli, got 'gsm'"):
        load_rationales(tmp_path, "gsm")
    with pytest.raises(FileNotFoundError, match=r"there is no .*svamp_train\.json: unpack the data sets"):
        load_rationales(tmp_path, "svamp")
    write(tmp_path / "svamp/svamp_train.json", [{"input": "q"}])
    with pytest.raises(FileNotFoundError, match=r"there is neither .*train\.json nor .*train_CoT_0\.json"):
        load_rationales(tmp_path, "svamp")
    write(tmp_path / "svamp/llm/train_CoT_0.json", ["x"])
    with pytest.raises(ValueError, match=r"question 1: expected the fields of svamp, got input \(KeyError"):
        load_rationales(tmp_path, "svamp")
    (tmp_path / "svamp/svamp_train.json").write_text('{"input": 1}\n{broken')
    with pytest.raises(ValueError, match=r"svamp_train\.json, line 2: expected JSON"):
        load_rationales(tmp_path, "svamp")


@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh():
    """A tiny T5 takes a step on a mesh, split as the large one is."""
    tiny = EncoderDecoderConfig(
        vocab=16, width=8, encoder_layers=1, decoder_layers=1, heads=2, hidden=8, tied=False
    )
    target = t5_target(tiny, 4, (6, 4), model_axis=2)
    mesh = make_mesh({"data": 4, "model": 2})
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules)
    rng = np.random.default_rng(0)

    def filled(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if leaf.dtype == jnp.float32:
            return jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) * 0.1
        return jnp.zeros(leaf.shape, leaf.dtype)

    state = jax.tree.map(filled, target.state)
    state = state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    batch = {
        name: jnp.ones(leaf.shape, leaf.dtype)
        if leaf.dtype == jnp.bool_
        else jnp.asarray(rng.integers(1, 15, leaf.shape), jnp.int32)
        for name, leaf in target.batch.items()
    }
    before = np.asarray(state.params["student"]["unembed"]["kernel"])
    state, metrics = sharded(sharded.place_state(state), sharded.place_batch(batch))
    assert np.isfinite(float(metrics["loss"]))
    assert np.isfinite(float(metrics["judge_loss"]))
    assert (np.asarray(state.params["student"]["unembed"]["kernel"]) != before).any()
    assert state.params["student"]["unembed"]["kernel"].sharding.spec == P("data", "model")


def test_an_event_is_told():
    event = Event("triples", "+", "N3")
    told = rationale_of("N0", [event], 0)
    assert parse_rationale(told) == ("N0", "+", "N3")
    assert token_row(told, 9)[-1] == EOS
    assert token_row(told, 10)[-1] == PAD
