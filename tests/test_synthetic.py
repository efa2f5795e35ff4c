"""The generated task: balanced, equally long at every grade, deterministic, and hard where it says so."""

import re
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from models.data import Rows, TaskData
from models.synthetic import NEGATORS, POLARITY, SUBORDINATORS, SyntheticTask, vocabulary, write_text

GRADES = range(4)


@pytest.fixture(scope="module")
def data() -> TaskData:
    return SyntheticTask(kind="synthetic", fit_rows=6000, dev_rows=4000).load(None, seed=42)


def words(rows: Rows) -> list[str]:
    return [texts[0] for texts in rows.texts]


def read(text: str) -> int:
    """The label of a text by the rules of the module's docstring, told from the text alone."""
    core = text.split(" . ")[0].split()
    clauses = [clause.split() for clause in re.split(r" , ", " ".join(core))]
    colours = {word: label for label, group in enumerate(POLARITY) for word in group}

    def opinion(clause: list[str]) -> int | None:
        found = [colours[word] for word in clause if word in colours]
        return found[0] ^ any(word in NEGATORS for word in clause) if found else None

    opinions = [opinion(clause) for clause in clauses]
    main = [value for value, clause in zip(opinions, clauses, strict=True) if clause[0] not in SUBORDINATORS]
    told = [value for value in main if value is not None]
    return told[-1]


@settings(deadline=None)
@given(st.sampled_from(GRADES), st.integers(0, 1), st.sampled_from([26, 27, 31, 36, 50]), st.integers(0, 10**6))
def test_texts_have_the_asked_length_and_label(grade: int, label: int, length: int, seed: int) -> None:
    text = write_text(grade, label, length, Random(seed))
    assert len(text.split()) == length
    assert read(text) == label
    assert set(text.split()) <= set(vocabulary())


def test_vocabulary_is_small_and_used_up(data: TaskData) -> None:
    used = {word for rows in data.splits.values() for text in words(rows) for word in text.split()}
    assert vocabulary() == sorted(used)
    assert len(vocabulary()) <= 400


def test_labels_and_lengths_are_balanced_in_every_grade(data: TaskData) -> None:
    for split, rows in data.splits.items():
        assert rows.grade is not None
        for grade in GRADES:
            assert abs(rows.labels[rows.grade == grade].mean() - 0.5) < 0.01, (split, grade)
    rows = data.splits["fit"]
    lengths = np.array([len(text.split()) for text in words(rows)])
    means = [lengths[rows.grade == grade].mean() for grade in GRADES]
    assert max(means) - min(means) < 0.4  # of a standard deviation of 3.2: sampling noise
    assert (lengths.min(), lengths.max()) == (26, 36)


def test_no_text_stands_twice(data: TaskData) -> None:
    texts = [text for rows in data.splits.values() for text in words(rows)]
    assert len(set(texts)) == len(texts)


def test_a_run_seed_redraws_train_and_leaves_dev_alone() -> None:
    task = SyntheticTask(kind="synthetic", fit_rows=80, select_rows=8, tune_rows=8, dev_rows=40)
    first, again, other = task.load(None, 1), task.load(None, 1), task.load(None, 2)
    assert first.data_hash == again.data_hash != other.data_hash
    assert first.splits["dev"].texts == other.splits["dev"].texts
    assert first.splits["fit"].texts != other.splits["fit"].texts
    assert first.counts["fit"] == 80


def test_grade_weights_are_the_difficulty_knob() -> None:
    task = SyntheticTask(kind="synthetic", fit_rows=100, dev_rows=100, grade_weights=[2, 1, 0, 1])
    grades = task.load(None, 1).splits["fit"].grade
    assert grades is not None
    assert np.bincount(grades, minlength=4).tolist() == [50, 25, 0, 25]


def test_a_bag_of_words_reads_the_easiest_grade_and_guesses_the_hardest(data: TaskData) -> None:
    fit, dev = data.splits["fit"], data.splits["dev"]
    assert dev.grade is not None
    counts = CountVectorizer(token_pattern=r"\S+")
    model = LogisticRegression(max_iter=200).fit(counts.fit_transform(words(fit)), fit.labels)
    right = model.predict(counts.transform(words(dev))) == dev.labels
    accuracy = [right[dev.grade == grade].mean() for grade in GRADES]
    assert accuracy[0] > 0.85
    # A thousand rows: one standard error is 1.6 points.
    assert all(abs(accuracy[grade] - 0.5) < 0.06 for grade in (1, 2, 3)), accuracy


def test_a_bag_of_words_trained_on_the_hardest_grade_alone_still_guesses() -> None:
    task = SyntheticTask(kind="synthetic", fit_rows=4000, dev_rows=2000, grade_weights=[0, 0, 0, 1])
    data = task.load(None, seed=1)
    counts = CountVectorizer(token_pattern=r"\S+")
    model = LogisticRegression(max_iter=200).fit(
        counts.fit_transform(words(data.splits["fit"])), data.splits["fit"].labels
    )
    assert abs(model.score(counts.transform(words(data.splits["dev"])), data.splits["dev"].labels) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grade_weights": [0, 0, 0, 0]}, "must not all be 0"),
        ({"grade_weights": [1, 1, 1]}, "at least 4"),
        ({"grade_weights": [1, 1, 1, -1]}, "greater than or equal to 0"),
        ({"min_words": 10}, "greater than or equal to 26"),
        ({"max_words": 25}, "at least min_words"),
        ({"fit_rows": 0}, "greater than or equal to 8"),
    ],
)
def test_impossible_knobs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticTask.model_validate({"kind": "synthetic"} | changes)
