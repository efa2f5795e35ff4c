"""The columns of `results.csv`: one description each, in order. Empty means: the record does not hold it."""

from typing import Any

# One run: a value, or None, for each of the columns below.
Row = dict[str, Any]

_SPEEDUPS = {
    "float32_same_engine": "the whole network without exits, float32, on the same engine",
    "best_float32": "the fastest whole network without exits in float32, of any engine",
    "best_int8": "the fastest whole network without exits in INT8, of any engine",
    "no_exit": "the whole network without exits, with the same recipe on the same engine",
    "best_truncated": "the fastest truncated network whose tune score keeps the floor",
}

IDENTITY = {
    "run_id": "hash of case, data, checkpoint and toolchain versions",
    "case": "the readable, resolved specification of the run, the same on any machine",
    "status": "ok, or error",
    "error": "why the run failed",
    "session": "runs timed turn by turn share it; speed-ups are formed only within one",
    "task": "the task",
    "checkpoint": "name of the trained checkpoint",
    "model": "the shortest name that tells it apart: method, method and backbone, or the checkpoint's name",
    "setting": "the shortest name of all that decided it but the seed",
    "method": "how the exits were trained",
    "family": "architecture of the backbone",
    "backbone": "what fine-tuning started from",
    "num_layers": "L: layers of the whole network",
    "recipe": "the numbers it ran in, such as float32 or int8_static(kl)",
    "precision": "what the compiled program says it runs in",
    "engine": "whose kernels",
    "program": "graph (exits inside one compiled graph), stepped, or single (no exits)",
    "exits": "none (whole network), truncated@k (the first k layers), or the kept exits",
    "policy": "when to leave: full depth, fixed@k, exits never fire, or a policy's kind with its dials",
    "configuration": "exits and policy in one phrase",
    "role": "no exits, truncated, exits never fire, fixed exit, early exit, or timing only",
    "shape": "batch size, padding and the like, in one phrase",
    "batch_size": "rows in a batch",
    "padding": "how batches are padded",
    "threads": "threads that each instance was given",
    "instances": "copies of the program that ran at once, each on processors of its own",
}

SCORES = {
    "metric": "the task's headline metric: what the scores are",
    "dev_rows": "dev rows that were scored",
    "one_example_points": "what one dev row is worth, in points of a percentage: 100 / dev_rows",
    "dev_score": "headline metric on dev, in [-1, 1]",
    "dev_score_low": "lower end of its 95 % interval: Wilson's for accuracy, of the bootstrap over rows for others",
    "dev_score_high": "upper end of it",
    "float32_change": "dev_score less that of this checkpoint's whole float32 network without exits, on the same rows",
    "float32_change_low": "lower end of its 95 % interval, paired by row: Bonett and Price's, or of the bootstrap",
    "float32_change_high": "upper end of it",
    "float32_change_p": "of McNemar's exact test that the two are equally good (accuracy only)",
    "float32_change_noise": "whether the change is inside its noise: p of 0.05 or more, or 0 inside the interval",
    "float32_change_over": "run_id of that network; of fewer layers trained alone, the one of their session",
    "tune_score": "headline metric on tune, which configurations are chosen by",
    "majority_score": "what always answering the most frequent class scores on dev",
}

EXITS = {
    "exit_counts": "dev rows that left at layers 1..L",
    "mean_exit_layer": "mean layer at which dev rows leave, counted from 1",
    "layer_saving": "1 - mean_exit_layer / L",
    "random_exits_score": "what as many rows at each exit score when chosen at random (the mean of such deals)",
    "random_exits_low": "lower end of where 95 % of such deals lie",
    "random_exits_high": "upper end of it",
    "choice_worth": "dev_score - random_exits_score: what the policy's choice of rows is worth",
    "choice_worth_noise": "whether dev_score lies where such deals do",
    "grade_exit_correlation": "Spearman correlation of difficulty grade and exit layer within equal lengths",
    "grade_exit_correlation_low": "lower end of its 95 % bootstrap interval",
    "grade_exit_correlation_high": "upper end of it",
}

SPEED = {
    "timed_rows": "dev rows that were timed",
    "latency_s_per_example": "wall-clock seconds per example: total seconds / total rows of all repeats and instances",
    "p50_ms": "median milliseconds of a batch",
    "p90_ms": "90th percentile of the milliseconds of a batch",
    "p95_ms": "95th percentile of the milliseconds of a batch",
    "p99_ms": "99th percentile of the milliseconds of a batch, where at least 100 were timed",
    "p99_over_no_exit": "p99_ms over that of the network without exits, with the same recipe on the same engine",
    "throughput_per_s": "examples per second, of all instances together",
    "size_mb": "weights and graph on disk, in millions of bytes",
    "peak_memory_mb": "the most that the programs of one worker held on the GPU, in millions of bytes",
    "int8_share": "share of the linear ops that run in INT8, as the compiled network with all its exits says",
    "build_seconds": "to quantize, convert and compile",
    "exit_efficiency": "speedup_no_exit / (L / mean_exit_layer): 1 where skipped layers turn fully into time",
    "exit_overhead": "exits that never fire: seconds over those of the same network without exits, less 1",
}

SPEEDUPS = {
    name: text
    for key, baseline in _SPEEDUPS.items()
    for name, text in {
        f"speedup_{key}": f"total seconds of {baseline} / total seconds of this run (same session, checkpoint, shape)",
        f"speedup_{key}_low": "lower end of its 95 % bootstrap interval over repeats and batches",
        f"speedup_{key}_high": "upper end of it",
        f"speedup_{key}_over": "run_id of that baseline",
    }.items()
}

PARITY = {
    "parity_rows": "timed rows whose live exit and label were compared with the replayed ones",
    "parity_differing": "of these, rows whose exit or label differed",
    "parity_below_epsilon": "of these, rows that were closer than epsilon to turning",
    "parity_epsilon": "that epsilon, in the unit of the policy's decision",
    "validity": "valid, or INVALID: a row differed by more than epsilon, so the score is not that of the timed program",
}

TIMING = {
    "timing_validity": "valid, warning, or INVALID: whether its seconds and speed-ups can be trusted",
    "timing_doubts": "why not: clock, load, steal, spread, drift, too few samples, or the machine's own pace",
}

FLOOR = {
    "tune_floor": "the lowest tune score that may be chosen in this task and shape",
    "within_floor": "whether tune_score reaches it",
}

COLUMNS = {**IDENTITY, **SCORES, **EXITS, **SPEED, **SPEEDUPS, **PARITY, **TIMING, **FLOOR}
METRIC_PREFIX = "score_"
METRIC_TEXT = "`score_<split>_<metric>`: every metric of every split, in [-1, 1]"


def markdown() -> str:
    """A page that describes every column of `results.csv`."""
    lines = [f"| `{name}` | {text} |" for name, text in COLUMNS.items()]
    head = ["# Columns of results.csv", "", "One row for each run. A field is empty where its record does not hold it."]
    return "\n".join([*head, "", "| column | meaning |", "| --- | --- |", *lines, "", f"Then {METRIC_TEXT}.", ""])
