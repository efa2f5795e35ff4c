"""What a tuning would have served at other floors, so that its last session can say when fewer layers win."""

from contextlib import suppress

import numpy as np

from benchmarks.floors import FLOORS, lowest_allowed
from benchmarks.strategies import Space
from benchmarks.suite import RunSpec
from benchmarks.tuner import Bench, Candidate, Outcome, replay_all
from benchmarks.worker import WorkerError
from models.config import UserError


def at_other_floors(space: Space, bench: Bench, labels: np.ndarray, outcome: Outcome) -> list[RunSpec]:
    """The best of fewer layers and the best early exit at each of `FLOORS`, in the winner's recipe on its engine.

    Replayed on `tune`, whose labels [N] are given: all networks without exits, and the exits that were tried so; a
    network that cannot be recorded so is no rival. The best is what leaves earliest, and of those with fewest exits;
    nothing where none keeps a floor.
    """
    winner = outcome.best
    same = [
        trial
        for trial in outcome.trials
        if trial.error is None and (trial.recipe, trial.engine) == (winner.recipe, winner.engine)
    ]
    tried = {trial.choice[0] for trial in same if trial.with_exits}
    kept = [i for i, network in enumerate(space.networks) if i in tried or not network.policies]
    candidates: list[Candidate] = []
    for i in kept:
        with suppress(WorkerError, UserError):  # the search is over and has its winner; its recipe need not suit all
            candidates += replay_all(space.tuning, bench, space.candidates((i, *winner.choice[1:])), labels)
    rivals = [
        [candidate for candidate in candidates if candidate.run.with_exits],
        [
            candidate
            for candidate in candidates
            if not candidate.run.with_exits and candidate.run.exits[-1] < space.deepest
        ],
    ]
    bests = [
        _earliest(some, lowest_allowed(outcome.baseline.score or 0.0, share)) for share in FLOORS for some in rivals
    ]
    return [best.run for best in bests if best is not None]


def _earliest(candidates: list[Candidate], floor: float) -> Candidate | None:
    within = [candidate for candidate in candidates if candidate.score >= floor]
    return min(within, key=lambda found: (found.mean_layer, len(found.run.exits), -found.score), default=None)
