"""A seeded sentiment task whose sentences come in four grades of difficulty, for runs without any data.

Every text is a handful of short sentences about a film. It opens with the *core*, which decides the label; the rest is
neutral filler that brings every text to a length drawn from the same distribution, whatever its grade:

* grade 0: a polarity word alone ("the acting was superb");
* grade 1: the same beside a negator, which flips it or sits in a neutral clause ("the story was never long , and ..");
* grade 2: two opposite clauses in contrast; the main one, B, wins ("A , but B", "although A , B", "B , though A");
* grade 3: contrast, a negator in one of its clauses, degree words, and a reported opinion that does not count.

Which words stand in a text of the hardest grade says nothing about its label: only their order does. The core comes
first so that a small transformer trained from scratch finds it within a few hundred steps and spends the rest on
composition; with cores anywhere in the text, a minute on two cores teaches it little beyond grade 0.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from models.data import BaseTask, MetricName, Rows, TaskData, hash_rows

POLARITY = (
    ("dreadful", "dull", "clumsy", "weak", "awful", "boring", "terrible", "poor"),
    ("superb", "charming", "brilliant", "strong", "lovely", "moving", "excellent", "fine"),
)
NEGATORS = ("not", "never", "hardly")
DEGREES = ("very", "really", "truly", "quite", "rather", "slightly", "somewhat")
ASPECTS = ("acting", "script", "plot", "music", "cast", "camera", "ending", "dialogue")
REPORTERS = ("critics", "reviewers", "friends", "posters", "rumours", "viewers")
REPORTING = ("said", "claimed", "wrote", "insisted")
COORDINATORS = ("but", "yet")
SUBORDINATORS = ("although", "though")
NEUTRAL_ADJECTIVES = ("long", "new", "local", "german", "wooden", "early", "second", "annual")
NOUNS = (
    "story",
    "director",
    "crew",
    "ticket",
    "theatre",
    "train",
    "screen",
    "guide",
    "poster",
    "garden",
    "ferry",
    "clerk",
)
VERBS = ("started", "stopped", "opened", "waited", "returned", "moved", "arrived", "stood", "changed", "passed")
SHORT_PHRASES = (("on", ("monday", "friday", "sunday", "time")), ("at", ("noon", "night", "home", "seven")))
PLACES = ("near", "behind", "beside", "outside", "inside")

LONGEST_CORE = 22  # tokens of grade 3 with every option taken
SHORTEST_FILLER = 4  # "the ferry waited ."


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SyntheticTask(BaseTask):
    """The generated task: nothing to download, equally long texts at every grade, balanced labels in every grade.

    `grade_weights` is the difficulty knob: the share of grades 0 to 3 in every split. `min_words` and `max_words`
    bound the tokens of a text, punctuation included. `seed` fixes dev; train is a fresh draw for every run seed.
    """

    kind: Literal["synthetic"]
    fit_rows: int = Field(default=10_000, ge=8)
    select_rows: int = Field(default=500, ge=8)
    tune_rows: int = Field(default=1_000, ge=8)
    dev_rows: int = Field(default=1_000, ge=8)
    grade_weights: Annotated[list[Weight], Field(min_length=4, max_length=4)] = Field(default=[1.0, 1.0, 1.0, 1.0])
    min_words: int = Field(default=LONGEST_CORE + SHORTEST_FILLER, ge=LONGEST_CORE + SHORTEST_FILLER)
    max_words: int = 36
    seed: int = 1

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if not sum(self.grade_weights) > 0:
            raise ValueError(f"grade_weights must not all be 0, found {self.grade_weights}")
        if self.max_words < self.min_words:
            raise ValueError(f"max_words must be at least min_words ({self.min_words}), found {self.max_words}")
        return self

    @property
    def name(self) -> str:
        """The task's name in tables and file names."""
        return self.kind

    @property
    def label_names(self) -> list[str]:
        """The classes by id."""
        return ["negative", "positive"]

    @property
    def metric_names(self) -> Sequence[MetricName]:
        """Accuracy: the labels are balanced."""
        return ("accuracy",)

    def load(self, location: Path | None, seed: int) -> TaskData:
        """Generate the splits; `location` is not read, and no text stands in two rows."""
        seen: set[str] = set()
        dev = self._rows("dev", self.dev_rows, Random(f"dev/{self.seed}"), seen)
        sizes = {"fit": self.fit_rows, "select": self.select_rows, "tune": self.tune_rows}
        splits = {
            split: self._rows(split, n, Random(f"{split}/{self.seed}/{seed}"), seen) for split, n in sizes.items()
        }
        splits["dev"] = dev
        counts = {split: len(rows) for split, rows in splits.items()}
        done = {
            "phrases_dropped": 0,
            "duplicates_grouped": 0,
            "train_rows_dropped_in_dev": 0,
            "malformed_rows_dropped": 0,
        }
        return TaskData(splits=splits, data_hash=hash_rows(splits), counts=counts | done, seed=seed)

    def _rows(self, split: str, n: int, random: Random, seen: set[str]) -> Rows:
        """`n` rows with texts not in `seen` (to which they are added), labels alternating within each grade."""
        plan = [(grade, i % 2) for grade, rows in enumerate(_shares(self.grade_weights, n)) for i in range(rows)]
        random.shuffle(plan)
        texts = [self._unseen_text(grade, label, random, seen) for grade, label in plan]
        return Rows(
            ids=[f"{split}-{i}" for i in range(n)],
            texts=[(text,) for text in texts],
            labels=np.array([label for _, label in plan], dtype=np.int64),
            grade=np.array([grade for grade, _ in plan], dtype=np.int64),
        )

    def _unseen_text(self, grade: int, label: int, random: Random, seen: set[str]) -> str:
        while (text := write_text(grade, label, random.randint(self.min_words, self.max_words), random)) in seen:
            pass
        seen.add(text)
        return text


def vocabulary() -> list[str]:
    """Every word and mark the generator can write, sorted."""
    fixed = ("the", "was", "and", "that", ".", ",")
    phrases = [word for preposition, nouns in SHORT_PHRASES for word in (preposition, *nouns)]
    groups = (*POLARITY, NEGATORS, DEGREES, ASPECTS, REPORTERS, REPORTING, COORDINATORS, SUBORDINATORS)
    groups = (*groups, NEUTRAL_ADJECTIVES, NOUNS, VERBS, PLACES, fixed, phrases)
    return sorted({word for group in groups for word in group})


def write_text(grade: int, label: int, words: int, random: Random) -> str:
    """A text of exactly `words` tokens (separated by spaces, 26 at least) whose core has the given grade and label."""
    if words < LONGEST_CORE + SHORTEST_FILLER:
        raise ValueError(f"a text needs at least {LONGEST_CORE + SHORTEST_FILLER} words, found {words}")
    core = CORES[grade](label, random)
    filler = _fillers(words - sum(map(len, core)), random)
    return " ".join(word for sentence in (*core, *filler) for word in sentence)


def _plain(label: int, random: Random) -> list[list[str]]:
    return [[*_clause(label, random), "."]]


def _negated(label: int, random: Random) -> list[list[str]]:
    """One negator, as often in front of the polarity word as in a neutral clause, where it changes nothing."""
    negator, flips = random.choice(NEGATORS), random.random() < 0.5
    opinion = _clause(label ^ flips, random, negator if flips else "")
    neutral = ["the", random.choice(NOUNS), "was", *([] if flips else [negator]), random.choice(NEUTRAL_ADJECTIVES)]
    first, second = _shuffled([opinion, neutral], random)
    return [[*first, ",", "and", *second, "."]]


def _contrast(label: int, random: Random) -> list[list[str]]:
    return [_joined(_clause(label, random), _clause(1 - label, random), random)]


def _combined(label: int, random: Random) -> list[list[str]]:
    """Contrast with a negator in either clause, and a reported opinion of any colour as a sentence of its own.

    A negated main clause needs two words of the other pole, a negated aside two of the label's own: seen as bags, both
    labels write the same texts.
    """
    negator, flips = random.choice(NEGATORS), random.random() < 0.5
    main = _clause(label ^ flips, random, negator if flips else "", degree=True)
    aside = _clause(1 - label ^ (not flips), random, "" if flips else negator, degree=True)
    reported = _clause(random.randrange(2), random)
    return [
        _joined(main, aside, random),
        [random.choice(REPORTERS), random.choice(REPORTING), "that", *reported, "."],
    ]


CORES: tuple[Callable[[int, Random], list[list[str]]], ...] = (_plain, _negated, _contrast, _combined)


def _clause(polarity: int, random: Random, negator: str = "", degree: bool = False) -> list[str]:
    """As in "the plot was [not] [very] dull": a negator stands within two words of what it flips."""
    degrees = [random.choice(DEGREES)] if degree and random.random() < 0.5 else []
    negators = [negator] if negator else []
    return ["the", random.choice(ASPECTS), "was", *negators, *degrees, random.choice(POLARITY[polarity])]


def _joined(main: list[str], aside: list[str], random: Random) -> list[str]:
    """Contrast: half of the time the main clause comes first, so that position alone does not tell it."""
    if random.random() < 0.5:
        return [*main, ",", random.choice(SUBORDINATORS), *aside, "."]
    if random.random() < 0.5:
        return [*aside, ",", random.choice(COORDINATORS), *main, "."]
    return [random.choice(SUBORDINATORS), *aside, ",", *main, "."]


def _fillers(words: int, random: Random) -> list[list[str]]:
    """Neutral sentences of `words` tokens in total (0, or at least 4)."""
    sentences: list[list[str]] = []
    while words:
        length = random.randint(SHORTEST_FILLER, 10)
        if words - length < SHORTEST_FILLER:
            length = words
        sentences.append(_filler(length, random))
        words -= length
    return sentences


def _filler(words: int, random: Random) -> list[str]:
    """As in "the [new] ferry waited [near the garden] [on monday] .": exactly `words` tokens."""
    rest = words - SHORTEST_FILLER
    phrases: list[list[str]] = []
    adjectives: list[str] = []
    while rest:
        if rest == 1:
            adjectives.append(random.choice(NEUTRAL_ADJECTIVES))
            rest = 0
        elif rest >= 3 and random.random() < 0.5:
            phrases.append([random.choice(PLACES), "the", random.choice(NOUNS)])
            rest -= 3
        else:
            preposition, nouns = random.choice(SHORT_PHRASES)
            phrases.append([preposition, random.choice(nouns)])
            rest -= 2
    middle = [word for phrase in phrases for word in phrase]
    return ["the", *adjectives, random.choice(NOUNS), random.choice(VERBS), *middle, "."]


def _shuffled(items: list[list[str]], random: Random) -> list[list[str]]:
    return random.sample(items, len(items))


def _shares(weights: Sequence[float], n: int) -> list[int]:
    """`n` divided in proportion to `weights`, by largest remainder."""
    exact = [weight * n / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return shares
