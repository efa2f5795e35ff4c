"""What a tuning would have served at other floors, so that its last session can say when fewer layers win."""

import numpy as np

from benchmarks.floors import FLOORS, lowest_allowed
from benchmarks.strategies import Space
from benchmarks.suite import RunSpec
from benchmarks.tuner import Bench, Candidate, Outcome, replayed


def at_other_floors(space: Space, bench: Bench, labels: np.ndarray, outcome: Outcome) -> list[RunSpec]:
    """The best of fewer layers and the best early exit at each of `FLOORS`, in the winner's recipe on its engine.

    Replayed on `tune`, whose labels [N] are given: all networks without exits, and the exits that were tried so. The
    best is what leaves earliest, and of those with fewest exits; nothing where none keeps a floor.

    Raises:
        WorkerError: a network without exits that was not tried in the winner's recipe cannot be recorded.
    """
    tuning, winner = space.tuning, outcome.best
    same = [
        trial
        for trial in outcome.trials
        if trial.error is None and (trial.recipe, trial.engine) == (winner.recipe, winner.engine)
    ]
    tried = {trial.choice[0] for trial in same if trial.with_exits}
    kept = [i for i, network in enumerate(space.networks) if i in tried or not network.policies]
    runs = [run for i in kept for run in space.candidates((i, *winner.choice[1:]))]
    candidates = [replayed(tuning, run, bench.record(run), labels) for run in runs]
    deepest = max(space.layers.values())
    rivals = [
        [candidate for candidate in candidates if candidate.run.with_exits],
        [candidate for candidate in candidates if not candidate.run.with_exits and candidate.run.exits[-1] < deepest],
    ]
    bests = [
        _earliest(some, lowest_allowed(outcome.baseline.score or 0.0, share)) for share in FLOORS for some in rivals
    ]
    return [best.run for best in bests if best is not None]


def _earliest(candidates: list[Candidate], floor: float) -> Candidate | None:
    within = [candidate for candidate in candidates if candidate.score >= floor]
    return min(within, key=lambda found: (found.mean_layer, len(found.run.exits), -found.score), default=None)
