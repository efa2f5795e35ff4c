"""The lines above a table: what was measured, on what, against what, and every caveat."""

from collections import defaultdict
from typing import Any

from benchmarks.records import MAY_KNOW_TUNE, CheckpointInfo, RunRecord
from models.cpu import has_int8_dot_products
from reports.baselines import is_int8
from reports.runs import Row, Runs

BASELINE_NAMES = {
    "best_int8": "fastest INT8 without exits",
    "best_float32": "fastest float32 without exits",
    "float32_same_engine": "float32 without exits on its engine",
    "best_truncated": "best truncated network within the floor",
}


def heading(runs: Runs) -> str:
    """What a folder is headed by: the suites whose runs it holds."""
    return f"ExitBench: {', '.join(sorted({record.suite for record in runs.records.values()}))}"


def header_notes(runs: Runs, rows: list[Row]) -> list[str]:
    """Lines for one table; `runs` has gone through `apply_floor`."""
    records = [runs.records[row["run_id"]] for row in rows]
    return [*machine(records), *caveats(runs, rows)]


def caveats(runs: Runs, rows: list[Row]) -> list[str]:
    """The header notes but for the machine."""
    records = [runs.records[row["run_id"]] for row in rows]
    return [
        *_scores(rows),
        *_changes(rows),
        *_checkpoints(records),
        *_calibration(records),
        *_coverage(runs, rows),
        *_kernels(records),
        *_baselines(runs, rows),
        *_grades(rows),
        *_parity(rows),
        *_timing(records, rows),
        *_timing_only(rows),
    ]


def failures(rows: list[Row]) -> list[str]:
    """One line for each failed run."""
    return [f"{describe(row)}: {_one_line(row['error'])}" for row in rows if row["status"] == "error"]


def invalid(rows: list[Row]) -> list[str]:
    """One line for each run whose score is INVALID, and for each reason why seconds are; such runs are never chosen."""
    scores = [
        f"{describe(row)}: {row['parity_differing'] - row['parity_below_epsilon']} of {row['parity_rows']}"
        " timed rows differ by more than epsilon; never chosen."
        for row in rows
        if row["validity"] == "INVALID"
    ]
    return scores + [f"{line}; never chosen." for line in _doubted(rows, "INVALID")]


def _doubted(rows: list[Row], state: str) -> list[str]:
    """The doubts about seconds of one state, each with the run it is about, or how many; warnings by their kind."""
    about: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    for row in rows:
        for doubt in (row["timing_doubts"] or "").split("; "):
            found, _, reason = doubt.partition(": ")
            if found == state:
                about[reason.partition(": ")[0] if state == "warning" else reason].append((reason, row))
    lines = []
    for doubted in about.values():
        reason, row = doubted[0]
        alike = "" if len({reason for reason, _ in doubted}) == 1 else ", and the like"
        runs = describe(row) if len(doubted) == 1 else f"{len(doubted)} of {len(rows)} runs"
        lines.append(f"{reason}{alike} ({runs})")
    return lines


def describe(row: Row) -> str:
    """A run in one phrase: `pabee minilm, int8_static(kl) on openvino, entropy 0.2`."""
    model = [row["model"]] if row["model"] else []
    return ", ".join([*model, f"{row['recipe']} on {row['engine']}", row["configuration"]])


def machine(records: list[RunRecord]) -> list[str]:
    """What all records' environments agree on; what differs between them is a line of its own."""
    environments = [_flat(record.environment) for record in records]
    names = list(dict.fromkeys(name for environment in environments for name in environment))
    same, varying = [], []
    for name in names:
        values = list(dict.fromkeys(environment[name] for environment in environments if name in environment))
        if len(values) == 1:
            same.append(f"{name} {values[0]}")
        else:
            varying.append(f"{name} {_range(values)}")
    lines = [f"Machine: {'; '.join(same)}."] if same else []
    lines += [f"Differs between runs: {'; '.join(varying)}."] if varying else []
    begun = sorted(record.started_at[:16].replace("T", " ") for record in records)
    return [*lines, f"Sessions began from {begun[0]} to {begun[-1]} (UTC)."]


def _flat(environment: dict[str, Any]) -> dict[str, str]:
    """Nested names and lists as words: {"versions": {"torch": "2.13"}} -> {"torch": "2.13"}."""
    flat = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            flat |= _flat(value)
        elif isinstance(value, list):
            flat[name.replace("_", " ")] = " ".join(map(str, value))
        elif name.endswith("_bytes"):
            flat[name.removesuffix("_bytes")] = f"{value / 1e9:.1f} GB"
        elif value is not None:
            flat[name.replace("_", " ")] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return flat


def _range(values: list[str]) -> str:
    try:
        numbers = sorted(values, key=float)
    except ValueError:
        return " / ".join(sorted(values))
    return f"{numbers[0]} to {numbers[-1]}"


def _scores(rows: list[Row]) -> list[str]:
    scored = [row for row in rows if row["dev_score"] is not None]
    if not scored:
        return []
    row = scored[0]
    line = f"Score: {row['metric']}, in percent"
    kind = "Wilson" if row["metric"] == "accuracy" else "bootstrap"
    line += f", with its 95 % {kind} interval" if row["dev_score_low"] is not None else ""
    if row["dev_rows"]:
        line += f"; {row['dev_rows']} dev rows, so 1 example = {row['one_example_points']:.2f} points"
    if row["majority_score"] is not None:
        line += f"; the majority class alone scores {row['majority_score'] * 100:.1f}"
    return [f"{line}. Nothing was chosen by it: choices are made on tune."]


def _changes(rows: list[Row]) -> list[str]:
    """How many runs differ from their float32 network by more than noise, and whether choosing exits pays."""
    changed = [row for row in rows if row["float32_change"] is not None]
    beyond = [row["float32_change"] > 0 for row in changed if not row["float32_change_noise"]]
    chosen = [row for row in rows if row["choice_worth"] is not None]
    better = sum(row["choice_worth"] > 0 and not row["choice_worth_noise"] for row in chosen)
    lines = []
    if changed:
        lines.append(
            f"Against the same checkpoint's whole float32 network: {len(changed) - len(beyond)} of {len(changed)} runs"
            f" differ inside their noise, {beyond.count(True)} score above it and {beyond.count(False)} below. Each is"
            " tested by itself at 5 %, so that of equally good runs up to 1 in 20 stands out."
        )
    if chosen:
        lines.append(
            f"Choosing which rows leave early: {better} of {len(chosen)} early-exit runs score more than as many rows"
            " at each exit do when chosen at random."
        )
    return lines


def _checkpoints(records: list[RunRecord]) -> list[str]:
    known = {record.checkpoint.name: record.checkpoint for record in records if record.checkpoint is not None}
    return [
        f"Checkpoint {info.name}: {info.method}{_options(info.method_options)} on {info.family} ({info.backbone}), "
        f"{_layers(info)}, {_origin(info)}."
        for info in known.values()
    ]


def _origin(info: CheckpointInfo) -> str:
    if info.imported is not None:
        return f"imported (layout {info.imported}): {MAY_KNOW_TUNE}"
    told = f"fine-tuned in {info.trained_seconds:.0f} s (seed {info.seed})"
    return f"{told}: {MAY_KNOW_TUNE}" if info.may_know_tune else told


def _layers(info: CheckpointInfo) -> str:
    whole = info.truncates
    return f"{info.num_layers} layers" if whole is None else f"the first {info.num_layers} of {whole} layers alone"


def _options(options: dict[str, Any]) -> str:
    """What a method was told beyond its name; stages' own settings stay in the record."""
    told = [f"{name} {value}" for name, value in options.items() if isinstance(value, str)]
    told += ["self-distillation"] if options.get("distillation") else []
    return f" ({', '.join(told)})" if told else ""


def _calibration(records: list[RunRecord]) -> list[str]:
    found = {
        (given.rows, given.split, given.seed): None for record in records if (given := record.calibration) is not None
    }
    return [f"INT8 calibrated on {rows} rows of {split} (seed {seed})." for rows, split, seed in found]


def _coverage(runs: Runs, rows: list[Row]) -> list[str]:
    """What each INT8 recipe came to, as compiled; ops that run in other numbers are named."""
    lines = []
    for row in rows:
        if (found := runs.records[row["run_id"]].coverage) is not None:
            others = "; ".join(f"{name} in {what}" for name, what in found.others.items())
            line = f"{row['recipe']} on {row['engine']}: {found.int8_ops} of {found.linear_ops} linear ops run in INT8"
            lines.append(f"{line} ({others})." if others else f"{line}.")
    return list(dict.fromkeys(lines))


def _kernels(records: list[RunRecord]) -> list[str]:
    """A warning where INT8 ran without instructions for it."""
    flags = [record.environment["kernel_flags"] for record in records if "kernel_flags" in record.environment]
    if not any(map(is_int8, records)) or all(map(has_int8_dot_products, flags)):
        return []
    instead = "INT8 gains less speed, weights take 7 bits, and int8_dynamic on openvino leaves activations in float32"
    return [f"Warning: a CPU here has neither VNNI nor AMX: {instead}."]


def _baselines(runs: Runs, rows: list[Row]) -> list[str]:
    """One line for each set of runs that were timed together."""
    by_id = {row["run_id"]: row for row in runs.rows}
    lines: dict[str, list[str]] = {}
    for key, name in BASELINE_NAMES.items():
        for row in rows:
            if (baseline := row[f"speedup_{key}_over"]) is not None:
                run = by_id[baseline]
                depth = f", {run['configuration']}" if run["role"] == "truncated" else ""
                what = (
                    f"{name} {run['latency_s_per_example'] * 1000:.4g} ms ({run['recipe']} on {run['engine']}{depth})"
                )
                group = f"{row['model'] or row['task']}, session {row['session']}"
                lines.setdefault(group, []).append(what)
    return [f"Baselines of {group}, per example: {'; '.join(dict.fromkeys(named))}." for group, named in lines.items()]


def _grades(rows: list[Row]) -> list[str]:
    """Where rows carry a difficulty grade: whether harder ones stay longer."""
    graded = [row for row in rows if row["grade_exit_correlation"] is not None]
    if not graded:
        return []
    lowest = min(graded, key=lambda row: row["grade_exit_correlation_low"])
    above = sum(row["grade_exit_correlation_low"] > 0 for row in graded)
    values = sorted(row["grade_exit_correlation"] for row in graded)
    return [
        f"Difficulty grade and exit layer, Spearman within equal lengths: {values[0]:.2f} to {values[-1]:.2f}, with "
        f"the 95 % interval above 0 in {above} of {len(graded)} early-exit runs (lowest end "
        f"{lowest['grade_exit_correlation_low']:.2f}: {describe(lowest)})."
    ]


def _parity(rows: list[Row]) -> list[str]:
    checked = [row for row in rows if row["parity_rows"] is not None]
    loose = sum(row["status"] == "ok" and row["parity_rows"] is None for row in rows)
    unheld = [f"Parity: runs held to no replay, since their numbers depend on which rows share a batch: {loose}."]
    if not checked:
        return unheld[:loose]
    differing = [row for row in checked if row["parity_differing"]]
    lines = [f"Parity: live and replayed exits and labels agree on every timed row of {len(checked)} runs."]
    if differing:
        near = sum(row["parity_below_epsilon"] for row in differing)
        total = sum(row["parity_differing"] for row in differing)
        lines = [
            f"Parity: in {len(differing)} of {len(checked)} runs {total} live exits or labels differ from the replayed"
            f" ones, {near} of them closer than epsilon to turning."
        ]
    return lines + unheld[:loose]


def _timing(records: list[RunRecord], rows: list[Row]) -> list[str]:
    """What else the machine did meanwhile, and every reason not to trust a number."""
    seen = [record.conditions for record in records if record.conditions is not None]
    others = [given.other_share for given in seen if given.other_share is not None]
    told = [f"other processes took up to {100 * max(others):.1f} %"] if others else []
    told += [f"the hypervisor kept up to {100 * max(given.stolen_share for given in seen):.1f} %"] if seen else []
    lines = [f"Of the processors' time while runs were timed, {' and '.join(told)}."] if told else []
    lines += [f"INVALID: {line}" for line in invalid(rows)]
    return lines + [f"Warning: {line}." for line in _doubted(rows, "warning")]


def _timing_only(rows: list[Row]) -> list[str]:
    imposed = any(row["role"] == "timing only" for row in rows)
    return ["Timing only: exits of `imposed` rows are told, not decided, so they have no score."] if imposed else []


def _one_line(text: str | None) -> str:
    return " ".join((text or "no reason was recorded").split())
