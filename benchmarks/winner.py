"""From a tuning file to its winner: load, search, measure the best once on dev, and write what serves it."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from benchmarks.bench import WorkerBench
from benchmarks.other_floors import at_other_floors
from benchmarks.records import MAY_KNOW_TUNE, RunRecord, TrialRecord, read_columns, read_records, timings_path
from benchmarks.runner import measure
from benchmarks.session import Say, Session, sessions
from benchmarks.statistics import ratio_interval
from benchmarks.strategies import Space, space_of
from benchmarks.suite import CheckpointSpec, Exits, RunSpec, Suite
from benchmarks.tuner import Outcome, best_of, floor_of, spec_of, tune, tuning_id
from benchmarks.tuning import Tuning
from models.config import UserError
from models.policies import Fixed, Policy
from quant.engine import SERVING, Engine
from quant.export import check_free, export
from quant.recipes import Float32

SUITE, ARTEFACT, FINAL = "winner.yaml", "artefact", "winner"


def run_tuning(
    tuning: Tuning, location: Path | None, checkpoints: Path, output: Path, artefact: Path, smoke: bool, say: Say
) -> int:
    """Tune into `output`, resuming what is there; 0 if the best found meets the criterion and was measured, else 1.

    The winner is exported to `artefact`.

    Raises:
        UserError: whatever is wrong with the file, its data or its checkpoints.
    """
    check_free(artefact)
    if problem := tuning.shape.unfit():
        raise UserError(f"evaluation.performance.configs: {problem}; ask for fewer")
    for engine in (*_engines(tuning), *(peer.engine for peer in tuning.evaluation.peers)):
        engine.check()
    session, specs = _load(tuning, location, checkpoints, output, smoke)
    for member in session.members.values():
        if member.may_know_tune:
            say(f"Warning: {member.name}: {MAY_KNOW_TUNE}")
    space = space_of(tuning, list(session.members.values()))
    hashes = [member.checkpoint.hash for member in session.members.values()]
    identity = tuning_id(tuning, session.data.data_hash, hashes)
    with WorkerBench(
        session, space.anchor, tuning.evaluation.performance, "footprint" in tuning.tuning.weights()
    ) as bench:
        labels = session.data.splits["tune"].labels
        outcome = tune(space, bench, labels, identity, output, say)
        elsewhere = at_other_floors(space, bench, labels, outcome)
    winner, fewer = spec_of(tuning, outcome.best), best_truncated(outcome, session)
    suite = winning_suite(tuning, specs, [winner, *fewer[:1], space.anchor])
    write_suite(output / SUITE, suite)
    say(f"{'PASS' if outcome.passed else 'FAIL'}: {_criterion(outcome)}")
    say(f"{kind_of(winner, session)}: {winner.case}")
    runs = {run.case: run for run in [winner, *beside(space, outcome, winner, fewer), *elsewhere]}
    final = replace(session, suite=suite, runs=list(runs.values()), output=output / FINAL)
    failed = measure(final, say)
    for record in failed:
        say(f"failed: {record.case}: {record.error}")
    measured = [record for record in read_records(final.output) if record.case in runs and record.status == "ok"]
    for line in _on_dev(final.output, winner, measured):
        say(line)
    policy = Fixed(layer=winner.exits[-1]) if isinstance(winner.policy, Fixed) else winner.policy
    checkpoint = session.members[winner.checkpoint].checkpoint
    took = export(
        artefact,
        checkpoint,
        session.task,
        session.data,
        winner.recipe,
        policy,
        winner.exits,
        engine=SERVING[winner.engine.kind],
    )
    say(f"artefact: {artefact}: {took.served}")
    say(f"suite: {output / SUITE}, trials: {output / 'trials.jsonl'}, records on dev: {final.output}")
    return 0 if outcome.passed and not any(record.case == winner.case for record in failed) else 1


def best_truncated(outcome: Outcome, session: Session) -> list[RunSpec]:
    """The fastest network of fewer layers within the criterion, and the fastest of those that were trained alone."""
    timed = [trial for trial in outcome.trials if trial.timing is not None and _is_truncated(trial, session)]
    alone = [trial for trial in timed if session.members[trial.checkpoint].info.method == "classifier"]
    bests = [best_of(outcome.tuning, trials) for trials in (timed, alone)]
    return [spec_of(outcome.tuning, best) for best in bests if best is not None]


def best_of_each(outcome: Outcome) -> list[RunSpec]:
    """The best early exit of every checkpoint, and on every engine.

    That is the fastest within the criterion, or the one that scores best.
    """
    early: dict[str, list[TrialRecord]] = {}
    for trial in outcome.trials:
        if trial.with_exits:
            early.setdefault(trial.checkpoint, []).append(trial)
            early.setdefault(trial.engine["kind"], []).append(trial)
    bests = (best_of(outcome.tuning, trials) for trials in early.values())
    return [spec_of(outcome.tuning, best) for best in bests if best is not None]


def kind_of(winner: RunSpec, session: Session) -> str:
    """Whether early exit won, or fewer layers, or neither."""
    layers, whole = winner.exits[-1], session.member(winner).depth
    if winner.with_exits:
        return "Early exit won"
    if layers < whole:
        return f"A truncated network won, not early exit: the first {layers} of {whole} layers"
    return "The whole network without exits won"


def winning_suite(tuning: Tuning, specs: dict[str, CheckpointSpec], runs: list[RunSpec]) -> Suite:
    """A suite that holds the winner, the first of `runs`, and what it must beat, in its recipe on its engine.

    Args:
        tuning: what the winner was found by.
        specs: where each of its networks comes from.
        runs: the winner, the best truncated network where there is one, and a whole network.
    """
    winner = runs[0]
    exits: list[Exits] = [list(winner.exits), "none"] if winner.with_exits else ["none"]
    policies: list[Policy] = [Fixed(), *(run.policy for run in runs)]
    unique = [policy for i, policy in enumerate(policies) if policy not in policies[:i]]
    from_ = {specs[run.checkpoint].model_dump_json(): specs[run.checkpoint] for run in runs}
    suite = tuning.suite([*from_.values()], [Float32(), winner.recipe], [winner.engine], exits, unique)
    return suite.model_copy(update={"on_unsupported": "skip"})  # not every network has the layers of every policy


def write_suite(path: Path, suite: Suite) -> None:
    """As a file that `python -m benchmarks run` takes."""
    content = suite.model_dump(mode="json", by_alias=True, exclude_none=True)
    head = (
        "# The winner of a tuning beside what it must beat. Measure it again:\n#   python -m benchmarks run THIS_FILE\n"
    )
    path.write_text(head + yaml.safe_dump(content, sort_keys=False))


def _load(
    tuning: Tuning, location: Path | None, checkpoints: Path, output: Path, smoke: bool
) -> tuple[Session, dict[str, CheckpointSpec]]:
    """One session of all checkpoints (trained if missing), and where each of its networks comes from."""
    recipes = [Float32(), *map(tuning.quantization.most_fallbacks, tuning.quantization.approach)]
    suite = tuning.suite(tuning.model.checkpoints, recipes, _engines(tuning), ["none"], [Fixed()])
    suite = suite.model_copy(update={"on_unsupported": "skip"})  # not every recipe runs on every engine
    found = list(sessions(suite, location, checkpoints, output, None, smoke, say=lambda line: None))
    specs = {}
    for session, spec in zip(found, tuning.model.checkpoints, strict=True):
        specs |= dict.fromkeys(session.members, spec)
        if _inputs(session) != _inputs(found[0]):
            raise UserError("model.checkpoints: all must share one tokenizer and max_seq_length; tune them apart")
    members = {name: member for session in found for name, member in session.members.items()}
    deepest = max(member.depth for member in members.values())
    for name, member in members.items():
        if member.depth < deepest:  # with exits, but on fewer layers than another checkpoint has
            members[name] = replace(member, truncates=deepest)
    return replace(found[0], members=members, runs=[]), specs


def _engines(tuning: Tuning) -> list[Engine]:
    return [SERVING[name] for name in tuning.model.framework]


def _inputs(session: Session) -> tuple[str, int]:
    """What turns texts into inputs."""
    return session.main.tokenizer.backend_tokenizer.to_str(), session.main.training["spec"]["train"]["max_seq_length"]


def _is_truncated(trial: TrialRecord, session: Session) -> bool:
    return not trial.with_exits and trial.exits[-1] < session.members[trial.checkpoint].depth


def beside(space: Space, outcome: Outcome, winner: RunSpec, fewer: list[RunSpec]) -> list[RunSpec]:
    """What the winner is measured beside.

    Fewer layers (as `best_truncated` gives them); the fastest of these and the whole network also by the peers; whole
    networks in the default recipe and in float32; what set the floor; and the best early exit of every checkpoint and
    on every engine.
    """
    tuning = outcome.tuning
    whole = winner.checkpoint if winner.checkpoint in space.whole else space.whole[0]
    without_exits = [space.without_exits(whole, winner.recipe, winner.engine), *fewer[:1]]
    float32 = space.without_exits(whole, Float32(), space.anchor.engine)
    peers = itertools.product(tuning.evaluation.peers, without_exits)
    return [
        *without_exits,
        *fewer[1:],
        *(replace(run, recipe=peer.recipe, engine=peer.engine) for peer, run in peers),
        space.anchor,
        float32,
        spec_of(tuning, outcome.baseline),
        *best_of_each(outcome),
    ]


def _criterion(outcome: Outcome) -> str:
    best, baseline = outcome.best, outcome.baseline
    sign, floor = ">=" if outcome.passed else "<", floor_of(outcome.tuning, baseline)
    return f"{best.metric} on tune {best.score:.4f} {sign} {floor:.4f}, the criterion ({baseline.score:.4f} in float32)"


def _on_dev(folder: Path, winner: RunSpec, measured: list[RunRecord]) -> list[str]:
    """The winner's score and its speed-up over all that was measured beside it."""
    own = next((record for record in measured if record.case == winner.case), None)
    if own is None:
        return ["dev: the winner was not measured"]
    lines = [f"dev: {_score(own)}, exits {own.exit_counts['dev']}"]
    for record in measured:
        if record is not own and record.session == own.session:
            ratio = ratio_interval(_seconds(folder, record), _seconds(folder, own))
            interval = f"{ratio.estimate:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
            lines.append(f"  {interval} as fast as {record.case} ({_score(record)})")
    return lines


def _score(record: RunRecord) -> str:
    return f"{record.headline_metric} {record.scores['dev'][record.headline_metric]:.4f}"


def _seconds(folder: Path, record: RunRecord) -> np.ndarray:
    columns = read_columns(timings_path(folder, record), ["repeat", "seconds"])
    return columns["seconds"].reshape(len(set(columns["repeat"].tolist())), -1)
