"""Tasks: every GLUE layout, users' tables, splits that do not leak, metrics, and one clear line for each mistake."""

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models.config import UserError
from models.glue import LAYOUTS
from models.splits import normalise, split_rows
from models.tasks import METRICS, BaseTask, GlueTask, Rows, SyntheticTask, TableTask, Task

TASKS: TypeAdapter[GlueTask | SyntheticTask | TableTask] = TypeAdapter(Task)
MNLI_HEADER = ["index", "promptID", "pairID", "genre", "sentence1", "sentence2", "label1", "gold_label"]

# A header (None: the file has none), how row i is written, and the label cells, in the order of the class ids.
FILES: dict[str, tuple[list[str] | None, Callable[[str, str], list[str]], list[str]]] = {
    "cola": (None, lambda text, label: ["gj04", label, "*", text], ["0", "1"]),
    "sst2": (["sentence", "label"], lambda text, label: [text + " ", label], ["0", "1"]),
    "mrpc": (
        ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        lambda text, label: [label, "7", "8", text, f"{text} again"],
        ["0", "1"],
    ),
    "qqp": (
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        lambda text, label: ["1", "2", "3", text, f"{text} again", label],
        ["0", "1"],
    ),
    "stsb": (
        ["index", "genre", "sentence1", "sentence2", "score"],
        lambda text, label: ["0", "news", text, f"{text} again", label],
        ["0.000", "2.500", "5.000"],
    ),
    "mnli": (
        MNLI_HEADER,
        lambda text, label: ["0", "1", "2", "fiction", text, f"{text} again", "neutral", label],
        ["contradiction", "entailment", "neutral"],
    ),
    "qnli": (
        ["index", "question", "sentence", "label"],
        lambda text, label: ["0", text, f"{text} again", label],
        ["entailment", "not_entailment"],
    ),
    "rte": (
        ["index", "sentence1", "sentence2", "label"],
        lambda text, label: ["0", text, f"{text} again", label],
        ["entailment", "not_entailment"],
    ),
}


def write_glue(kind: str, root: Path, train_rows: int = 40, dev_rows: int = 6) -> Path:
    """A made-up copy of one task in GLUE's layout; its texts hold what a careless reader stumbles over."""
    header, row, labels = FILES[kind]
    folder = root / LAYOUTS[kind].folder
    folder.mkdir(parents=True)
    for split, stem in (("train", "train"), *LAYOUTS[kind].dev_files):
        rows = train_rows if split == "train" else dev_rows
        lines = [row(f'{stem} {i} says "oh\u2028', labels[i % len(labels)]) for i in range(rows)]
        cells = lines if header is None else [header, *lines]
        (folder / f"{stem}.tsv").write_text("".join("\t".join(line) + "\n" for line in cells), encoding="utf-8")
    return folder


def rows(texts: Sequence[tuple[str, ...]], split: str = "train") -> Rows:
    return Rows([f"{split}-{i}" for i in range(len(texts))], list(texts), np.arange(len(texts), dtype=np.int64) % 2)


@pytest.mark.parametrize("kind", FILES)
def test_glue_layouts_load_from_the_root_and_from_the_task_folder(kind: str, tmp_path: Path) -> None:
    folder = write_glue(kind, tmp_path)
    task = GlueTask.model_validate({"kind": kind})
    data = task.load(tmp_path, seed=1)
    assert data.data_hash == task.load(folder, seed=1).data_hash
    assert {split: len(part) for split, part in data.splits.items()} == {
        "fit": 32,
        "select": 4,
        "tune": 4,
        **{split: 6 for split, _ in LAYOUTS[kind].dev_files},
    }
    dev = data.splits["dev"]
    assert dev.ids == [f"dev-{i}" for i in range(6)]
    assert dev.texts[1][0].endswith('1 says "oh')
    assert len(dev.texts[0]) == (1 if kind in ("cola", "sst2") else 2)
    expected = [0.0, 2.5, 5.0] * 2 if task.regression else [i % task.num_labels for i in range(6)]
    np.testing.assert_array_equal(dev.labels, expected)
    assert dev.labels.dtype == (np.float32 if task.regression else np.int64)


@pytest.mark.parametrize(
    ("kind", "train", "dev", "phrases", "duplicates", "dropped"),
    [
        ("sst2", 67349, 872, 1812, 371, 0),
        ("mrpc", 3667, 408, 0, 0, 0),
        ("rte", 2490, 277, 0, 2, 0),
        ("stsb", 5749, 1500, 0, 44, 6),
    ],
)
def test_real_glue_counts(
    glue_folder: Path, kind: str, train: int, dev: int, phrases: int, duplicates: int, dropped: int
) -> None:
    data = GlueTask.model_validate({"kind": kind}).load(glue_folder, seed=42)
    counts = data.counts
    assert counts["fit"] + counts["select"] + counts["tune"] + phrases + dropped == train
    assert counts["dev"] == dev
    assert (counts["phrases_dropped"], counts["duplicates_grouped"]) == (phrases, duplicates)
    assert counts["train_rows_dropped_in_dev"] == dropped
    held_out = {normalise(texts) for texts in data.splits["dev"].texts}
    assert not any(
        normalise(texts) in held_out for split in ("fit", "select", "tune") for texts in data.splits[split].texts
    )


def test_qqp_leaves_its_few_broken_lines_out_and_counts_them(tmp_path: Path) -> None:
    path = write_glue("qqp", tmp_path) / "train.tsv"
    with path.open("a", encoding="utf-8") as file:
        file.write('"\tWas this once the end of a question?\t0\n')
    data = GlueTask(kind="qqp").load(tmp_path, seed=1)
    assert data.counts["malformed_rows_dropped"] == 1
    assert data.counts["fit"] == 32


def hub_copy(kind: str) -> datasets.DatasetDict:
    """What the hub would answer: its own column and split names, and for MNLI its own order of the classes."""
    layout = LAYOUTS[kind]
    names = ["entailment", "neutral", "contradiction"] if kind == "mnli" else list(layout.names)
    parts = {}
    for split, stem in (("train", "train"), *layout.dev_files):
        n = 40 if split == "train" else 6
        if names:
            wanted = FILES[kind][2] if kind == "mnli" else layout.names
            labels = [names.index(wanted[i % len(wanted)]) for i in range(n)]
        else:
            labels = [float(FILES[kind][2][i % 3]) for i in range(n)]
        first = [f'{stem} {i} says "oh\u2028' for i in range(n)]
        columns = dict(zip(layout.hub_text, (first, [f"{text} again" for text in first]), strict=False))
        label_type = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
        features = datasets.Features({**{name: datasets.Value("string") for name in columns}, "label": label_type})
        part = datasets.Dataset.from_dict({**columns, "label": labels}, features=features)
        parts[stem.replace("dev", "validation")] = part
    return datasets.DatasetDict(parts)


@pytest.mark.parametrize("kind", FILES)
def test_hub_and_folder_give_the_same_rows(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def load_dataset(*names: str) -> datasets.DatasetDict:
        asked.append(names)
        return hub_copy(kind)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    write_glue(kind, tmp_path)
    task = GlueTask.model_validate({"kind": kind})
    assert task.load(None, seed=3).data_hash == task.load(tmp_path, seed=3).data_hash
    assert asked == [("nyu-mll/glue", kind)]


def test_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*names: str) -> None:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"rte.*nyu-mll/glue \(no route to host\).*--dataset_location"):
        GlueTask(kind="rte").load(None, seed=1)


def test_without_the_datasets_package_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the `datasets` package.*--dataset_location"):
        GlueTask(kind="rte").load(None, seed=1)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no folder": (
        "rte",
        lambda folder: folder.rename(folder.parent / "other"),
        r"no train.tsv in .*RTE.*; give the GLUE folder",
    ),
    "no dev file": ("mnli", lambda folder: (folder / "dev_mismatched.tsv").unlink(), r"not found.*dev_mismatched\.tsv"),
    "no column": (
        "sst2",
        lambda folder: edit(folder / "dev.tsv", "sentence", "text"),
        r"dev.tsv.*'sentence'.*text, label",
    ),
    "label out of range": (
        "sst2",
        lambda folder: edit(folder / "train.tsv", "\t1", "\t2"),
        r"train.tsv, line 3.*0, 1.*'2'",
    ),
    "label missing": (
        "rte",
        lambda folder: edit(folder / "train.tsv", "\tentailment", "\t"),
        r"train.tsv, line 2.*found ''",
    ),
    "score out of range": (
        "stsb",
        lambda folder: edit(folder / "dev.tsv", "5.000", "5.1"),
        r"dev.tsv, line 4.*\[0, 5\].*'5.1'",
    ),
    "score not a number": ("stsb", lambda folder: edit(folder / "dev.tsv", "5.000", "nan"), r"dev.tsv, line 4.*'nan'"),
    "a column too many": (
        "cola",
        lambda folder: edit(folder / "train.tsv", "\t", "\t\t"),
        r"line 1: .*4 columns.*has 5",
    ),
    "blank line": (
        "sst2",
        lambda folder: edit(folder / "train.tsv", "\n", "\n\n"),
        r"train.tsv, line 2: .*2 columns.*has 1",
    ),
    "no text": ("sst2", lambda folder: edit(folder / "dev.tsv", 'dev 0 says "oh\u2028', ""), r"dev.tsv, line 2.*text"),
    "header only": (
        "sst2",
        lambda folder: (folder / "dev.tsv").write_text("sentence\tlabel\n"),
        r"dev.tsv.*at least one row",
    ),
    "empty": ("cola", lambda folder: (folder / "dev.tsv").write_text(""), r"dev.tsv.*at least one row"),
    "not UTF-8": (
        "sst2",
        lambda folder: (folder / "dev.tsv").write_bytes(b"sentence\tlabel\n\xff\t0\n"),
        r"must be UTF-8, found the byte 0xff",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_glue_folders_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    kind, spoil, message = BROKEN[case]
    spoil(write_glue(kind, tmp_path))
    with pytest.raises(UserError, match=message) as refused:
        GlueTask.model_validate({"kind": kind}).load(tmp_path, seed=1)
    assert "\n" not in str(refused.value)


def test_qqp_with_many_broken_lines_is_refused(tmp_path: Path) -> None:
    path = write_glue("qqp", tmp_path) / "train.tsv"
    path.write_text(path.read_text(encoding="utf-8") + "half a row\n" * 65, encoding="utf-8")
    with pytest.raises(UserError, match=r"line 106: a row must have 6 columns.*has 1"):
        GlueTask(kind="qqp").load(tmp_path, seed=1)


WORDS = st.sampled_from(["good", "Good ", "GOOD", "bad", "bad  film", "Bad film", "so so", "\ufb01ne", "fine"])
TEXTS = st.lists(
    st.tuples(WORDS, st.integers(0, 30)).map(lambda pair: (f"{pair[0]} {pair[1]}",)), min_size=30, max_size=90
)


@settings(deadline=None, max_examples=50)
@given(train=TEXTS, dev=TEXTS, seed=st.integers(0, 5))
def test_splits_never_share_a_text(train: list[tuple[str]], dev: list[tuple[str]], seed: int) -> None:
    train += [(f"only here {i}",) for i in range(9)]
    data = split_rows(rows(train), {"dev": rows(dev, "dev")}, seed, overlap="drop")
    keys = {split: {normalise(texts) for texts in part.texts} for split, part in data.splits.items()}
    names = list(keys)
    assert not any(keys[a] & keys[b] for i, a in enumerate(names) for b in names[i + 1 :])
    kept = sum(len(data.splits[split]) for split in ("fit", "select", "tune"))
    assert kept + data.counts["train_rows_dropped_in_dev"] == len(train)
    assert data.counts["phrases_dropped"] == 0  # of two words
    assert kept - data.counts["duplicates_grouped"] == len(keys["fit"]) + len(keys["select"]) + len(keys["tune"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_slices_depend_on_texts_and_seed_not_on_the_order_of_the_file(seed: int, shuffler: random.Random) -> None:
    texts = [(f"row {i % 40}", "pair") for i in range(60)]
    dev = {"dev": rows([("dev", "pair")], "dev")}
    first = split_rows(rows(texts), dev, seed, overlap="drop")
    assert first.data_hash == split_rows(rows(texts), dev, seed, overlap="drop").data_hash
    shuffled = split_rows(rows(shuffler.sample(texts, len(texts))), dev, seed, overlap="drop")
    for split in ("fit", "select", "tune"):
        assert sorted(first.splits[split].texts) == sorted(shuffled.splits[split].texts)


def runs_of(texts: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every six words in a row, found the slow way."""
    return {
        tuple(words[i : i + 6]) for words in (text.lower().split() for text in texts) for i in range(len(words) - 5)
    }


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_a_sentence_and_its_phrases_stay_together(seed: int) -> None:
    """As in SST-2's train: sentences, cut into phrases, some of them too short to tell whose they are."""
    chance = random.Random(seed)
    texts = []
    for sentence in range(60):
        words = [f"{chance.choice('abc')}{chance.randrange(40)}" for _ in range(chance.randrange(6, 14))]
        cuts = [sorted(chance.sample(range(len(words) + 1), 2)) for _ in range(chance.randrange(5))]
        texts += [(f"{sentence} " + " ".join(words),), *((" ".join(words[first:last]),) for first, last in cuts)]
    data = split_rows(rows(texts), {"dev": rows([("dev",)], "dev")}, seed, overlap="drop")
    found = {name: set().union(*map(runs_of, data.splits[name].texts)) for name in ("fit", "select", "tune")}
    assert not found["fit"] & found["select"]
    assert not found["fit"] & found["tune"]
    assert not found["select"] & found["tune"]
    others = [text for name in ("select", "tune") for (text,) in data.splits[name].texts]
    longer = [f" {text} " for text in others if len(text.split()) >= 6]
    short = {text for (text,) in texts if 3 <= len(text.split()) < 6}
    phrases = {(text,) for text in short if any(f" {text} " in row for row in longer)}
    assert not phrases & set(data.splits["fit"].texts)
    assert data.counts["phrases_dropped"] == len(texts) - sum(map(len, data.splits.values())) + 1
    for name in ("select", "tune"):
        # Whole groups, the last of which may go beyond a tenth; each has a row that is long enough.
        assert round(0.1 * len(texts)) <= len(data.splits[name]) <= round(0.1 * len(texts)) + 5


def test_a_way_of_speaking_links_nothing() -> None:
    """What more rows share than a slice holds is no text: those rows are apart unless they are the same."""
    letters = [(f"thank you for writing to us about number {i // 2} .",) for i in range(100)]
    data = split_rows(rows(letters), {"dev": rows([("dev",)], "dev")}, 1, overlap="drop")
    assert (data.counts["fit"], data.counts["select"], data.counts["tune"]) == (80, 10, 10)
    assert data.counts["duplicates_grouped"] == 50


def test_slices_are_a_tenth_each_and_2000_rows_at_most() -> None:
    dev = {"dev": rows([("dev",)], "dev")}
    small = split_rows(rows([(f"row {i}",) for i in range(100)]), dev, 1, overlap="drop").counts
    large = split_rows(rows([(f"row {i}",) for i in range(30_000)]), dev, 1, overlap="drop").counts
    assert (small["fit"], small["select"], small["tune"]) == (80, 10, 10)
    assert (large["fit"], large["select"], large["tune"]) == (26_000, 2000, 2000)


def test_another_seed_or_another_label_gives_another_hash() -> None:
    train, dev = rows([(f"row {i}",) for i in range(100)]), {"dev": rows([("dev",)], "dev")}
    relabelled = Rows(train.ids, train.texts, 1 - train.labels)
    cases = ((train, 1), (train, 2), (relabelled, 1))
    assert len({split_rows(part, dev, seed, overlap="drop").data_hash for part, seed in cases}) == 3


def test_too_little_train_is_refused() -> None:
    with pytest.raises(UserError, match=r"at least 3 different texts.*found 2"):
        split_rows(rows([("a",), ("b",), ("A ",)]), {"dev": rows([("c",)], "dev")}, 1, overlap="drop")


def test_a_text_that_is_most_of_train_leaves_nothing_to_split() -> None:
    train = rows([("again",)] * 98 + [("one longer sentence than that",), ("and yet another longer sentence",)])
    with pytest.raises(UserError, match="rows of one text stay together, and none are left for fit"):
        split_rows(train, {"dev": rows([("c",)], "dev")}, 1, overlap="drop")


def table_task(**changes: object) -> TableTask:
    spec = {"kind": "table", "name": "reviews", "train": "train.csv", "dev": "dev.tsv", "text": ["title", "body"]}
    spec |= {"label": "stars", "labels": ["bad", "good"], "metric": "f1"}
    return TableTask.model_validate(spec | changes)


def write_table(folder: Path, dev_body: str = "elsewhere") -> None:
    lines = "".join(f'"title, {i % 25}","a ""body""\nover two lines",{("bad", "good")[i % 2]}\n' for i in range(50))
    (folder / "train.csv").write_text("title,body,stars\n" + lines, encoding="utf-8")
    (folder / "dev.tsv").write_text(f"title\tstars\tbody\ntitle, 3\tgood\t{dev_body}\n", encoding="utf-8")


def test_user_tables_load_by_column_name(tmp_path: Path) -> None:
    write_table(tmp_path)
    data = table_task().load(tmp_path, seed=1)
    assert data.counts["duplicates_grouped"] == 25
    assert data.splits["fit"].texts[0][1] == 'a "body"\nover two lines'
    assert data.splits["dev"].texts == [("title, 3", "elsewhere")]
    absolute = table_task(train=str(tmp_path / "train.csv"), dev=str(tmp_path / "dev.tsv")).load(None, seed=1)
    assert absolute.data_hash == data.data_hash


def test_a_planted_leak_in_user_tables_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, dev_body='A "BODY"  over two lines')
    with pytest.raises(UserError, match=r"2 train rows also stand in dev, the first is train-3 = dev-0"):
        table_task().load(tmp_path, seed=1)


def test_a_regression_table_reads_numbers(tmp_path: Path) -> None:
    for name, n in (("train.csv", 20), ("dev.csv", 4)):
        lines = "".join(f"{name} {i},{i / 4}\n" for i in range(n))
        (tmp_path / name).write_text("body,stars\n" + lines, encoding="utf-8")
    task = table_task(text=["body"], labels=None, metric="spearman", dev="dev.csv")
    assert (task.regression, task.num_labels, task.headline_metric) == (True, 1, "spearman")
    np.testing.assert_array_equal(task.load(tmp_path, 1).splits["dev"].labels, [0, 0.25, 0.5, 0.75])
    edit(tmp_path / "dev.csv", "0.75", "three")
    with pytest.raises(UserError, match=r"dev.csv, line 5: stars must be a number.*'three'"):
        task.load(tmp_path, 1)


def test_a_broken_csv_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path)
    edit(tmp_path / "train.csv", '"title, 0"', '"title" 0')
    with pytest.raises(UserError, match=r"train.csv must be a valid CSV file"):
        table_task().load(tmp_path, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "regression.*pearson, spearman.*'f1'"),
        ({"metric": "pearson"}, "classification.*accuracy, f1, matthews.*'pearson'"),
        ({"labels": ["a", "b", "c"]}, "f1 needs two labels"),
        ({"labels": ["a", "a"]}, "labels must differ"),
        ({"text": ["a", "b", "c"]}, "at most 2"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_table_task_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        table_task(**changes)


def test_a_bare_word_is_a_task_and_a_wrong_one_is_refused() -> None:
    assert TASKS.validate_python("sst2") == GlueTask(kind="sst2") == TASKS.validate_python({"kind": "sst2"})
    assert isinstance(TASKS.validate_python("synthetic"), SyntheticTask)
    with pytest.raises(ValidationError, match="sst3"):
        TASKS.validate_python("sst3")


@pytest.mark.parametrize("task", [*(GlueTask.model_validate({"kind": kind}) for kind in FILES), table_task()])
def test_perfect_predictions_score_one_and_constant_ones_score_a_number(task: BaseTask) -> None:
    labels = np.linspace(0, 5, 12, dtype=np.float32) if task.regression else np.arange(12) % task.num_labels
    perfect = task.metrics(labels, labels)
    assert next(iter(perfect)) == task.headline_metric
    assert all(score == pytest.approx(1.0) for score in perfect.values())
    assert all(-1 <= score <= 1 for score in task.metrics(labels, np.zeros_like(labels)).values())


def test_metrics_by_hand() -> None:
    labels, predictions = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])  # TP 2, FP 1, FN 1, TN 1
    assert METRICS["accuracy"](labels, predictions) == pytest.approx(3 / 5)
    assert METRICS["f1"](labels, predictions) == pytest.approx(2 / 3)
    assert METRICS["matthews"](labels, predictions) == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    targets, values = np.array([1.0, 2.0, 3.0]), np.array([1.0, 8.0, 27.0])
    assert METRICS["spearman"](targets, values) == pytest.approx(1.0)
    assert METRICS["pearson"](targets, values) == pytest.approx(
        26 / np.sqrt(2 * 361.999999 - 9.999998 * 0 - 0), rel=0.1
    )


@pytest.mark.parametrize(
    ("kind", "headline"), [("cola", "matthews"), ("qqp", "f1"), ("mrpc", "accuracy"), ("stsb", "pearson")]
)
def test_headlines(kind: str, headline: str) -> None:
    assert GlueTask.model_validate({"kind": kind}).headline_metric == headline


def test_importing_tasks_and_encoding_stays_light() -> None:
    code = "import sys, models.tasks, models.encoding; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "sklearn", "scipy", "pandas"} & set(loaded)
