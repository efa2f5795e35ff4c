"""Suites: what they accept, what they expand to, and how they name a mistake."""

import json
import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from benchmarks.expansion import estimate, expand, expand_all, foreseen, nothing_to_run, selected, unmatched
from benchmarks.session import planned_folders
from benchmarks.suite import SHIPPED, CheckpointSpec, RunSpec, Shape, layers_of, read_suite
from models.config import UserError
from models.families import Fresh, Pretrained
from models.policies import Entropy, Fixed, Imposed, Patience
from tests.suites import parse, write

REGRESSION = {"kind": "table", "name": "score", "train": "a.tsv", "dev": "b.tsv", "text": ["t"], "label": "s"}
REGRESSION |= {"metric": "pearson"}
ALL_POLICIES: list[Any] = [
    "full_depth",
    {"kind": "fixed", "layer": [1, 2]},
    {"kind": "patience", "patience": [1, 2]},
    {"kind": "entropy", "threshold": [0.1, 0.2]},
]


def runs(folder: Path, num_layers: int = 4, **changes: Any) -> list[RunSpec]:
    suite = parse(folder, **changes)
    return expand(suite, suite.tasks[0], "ck", num_layers)


def which(found: list[RunSpec]) -> list[str]:
    """The exits and policy of each run, as in its case."""
    return ["/".join(run.case.split("/")[4:6]) for run in found]


def mistake(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_suite(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# Parsing


def test_words_are_shorthand(tmp_path: Path):
    suite = parse(
        tmp_path,
        tasks=["sst2"],
        checkpoints=[{"method": "deebert", "backbone": "minilm"}],
        recipes=["float32", "bfloat16", "int8_static"],
        engines=["eager", "inductor", "openvino"],
    )
    assert suite.tasks[0].name == "sst2"
    assert suite.checkpoints[0].method is not None
    assert suite.checkpoints[0].method.kind == "deebert"
    assert suite.checkpoints[0].backbone == Pretrained(name="minilm")
    assert [recipe.kind for recipe in suite.recipes] == ["float32", "bfloat16", "int8_static"]
    assert [engine.kind for engine in suite.engines] == ["eager", "inductor", "openvino"]
    assert suite.policies == [Fixed(layer=None)]
    assert suite.exits == ["all", "none"]


def test_lists_in_a_case_are_a_grid(tmp_path: Path):
    suite = parse(
        tmp_path,
        policies=[
            {"kind": "patience", "patience": [1, 2], "regression_threshold": [0.1, 0.5]},
            {"kind": "entropy", "threshold": 0.25},
        ],
        shapes=[{"batch_size": [1, 8], "padding": ["longest", "max_length"]}],
        recipes=[{"kind": "int8_static", "observer": ["minmax", "kl"]}],
        engines=[{"kind": "openvino", "program": ["graph", "stepped"]}],
    )
    assert suite.policies == [
        *(Patience(patience=p, regression_threshold=t) for p in (1, 2) for t in (0.1, 0.5)),
        Entropy(threshold=0.25),
    ]
    assert [shape.label for shape in suite.shapes] == [
        "b1-longest-allt",
        "b1-max_length-allt",
        "b8-longest-allt",
        "b8-max_length-allt",
    ]
    assert Shape(threads=2, instances=3).label == "b1-longest-2t-3i"
    assert [recipe.model_dump()["observer"] for recipe in suite.recipes] == ["minmax", "kl"]
    assert [engine.model_dump()["program"] for engine in suite.engines] == ["graph", "stepped"]


def test_all_shapes_have_a_length_or_none_has(tmp_path: Path):
    with pytest.raises(UserError, match="shapes: give all of them a length, or none"):
        parse(tmp_path, shapes=[{"padding": "max_length"}, {"length": 24}])


def test_instances_need_processors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.suite.processors", lambda: [0, 1, 2, 3])
    shapes = [{"instances": [1, 2, 4], "threads": ["all", 2]}]
    with pytest.raises(UserError, match="4 instances of 2 threads need 8 processors; here are 4; remove it, or set"):
        runs(tmp_path, shapes=shapes)
    found = runs(tmp_path, shapes=shapes, on_unsupported="skip")
    assert {run.shape.label: run.shape.thread_count for run in found} == {
        "b1-longest-allt": 4,
        "b1-longest-2t": 2,
        "b1-longest-allt-2i": 2,
        "b1-longest-2t-2i": 2,
        "b1-longest-allt-4i": 1,
    }


def test_a_list_of_lists_is_the_grid_where_a_key_holds_a_list(tmp_path: Path):
    suite = parse(
        tmp_path,
        policies=[
            {"kind": "imposed", "exit_layers": [1, 3]},
            {"kind": "imposed", "exit_layers": [[1], [2, 4]]},
        ],
    )
    assert suite.policies == [Imposed(exit_layers=layers) for layers in ([1, 3], [1], [2, 4])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": ["float32"]}, "top level: unknown key 'recipe'; allowed: schema, name,"),
        ({"recipe": ["float32"]}, "did you mean 'recipes'?"),
        ({"name": None}, "name: is required; add it"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"schema": "exitbench/suite/9"}, "schema: input should be 'exitbench/suite/1', found 'exitbench/suite/9'"),
        ({"seed": "x"}, "seed: input should be a valid integer, found 'x'"),
        ({"tasks": ["sst3"]}, "tasks.0: unknown kind 'sst3'; allowed: cola, sst2, mrpc"),
        ({"tasks": ["sst3"]}, "did you mean 'sst2'?"),
        ({"tasks": [{"kind": "synthetic", "fit_row": 9}]}, "tasks.0: unknown key 'fit_row'; allowed: kind, fit_rows"),
        ({"tasks": "synthetic"}, "tasks: input should be a valid list, found 'synthetic'"),
        (
            {"checkpoints": [{"method": "pabe", "backbone": "minilm"}]},
            "checkpoints.0.method: unknown kind 'pabe'; allowed: classifier, pabee, deebert, fastbert, romebert; "
            "did you mean 'pabee'?",
        ),
        (
            {"checkpoints": [{"method": {"kind": "pabee", "poling": "mean"}, "backbone": "minilm"}]},
            "checkpoints.0.method: unknown key 'poling'; allowed: kind, pooling",
        ),
        (
            {"checkpoints": [{"method": "pabee", "backbone": {"kind": "fresh", "family": "brt"}}]},
            "checkpoints.0.backbone.family: input should be 'bert', 'roberta' or 'albert', found 'brt'; did you mean",
        ),
        (
            {"checkpoints": [{"method": {"pooling": "mean"}, "backbone": "minilm"}]},
            "checkpoints.0.method: kind: is required; add it to {'pooling': 'mean'}",
        ),
        (
            {"checkpoints": [{"method": "pabee", "backbone": "minilm", "classifier": "x"}]},
            "checkpoints.0: a checkpoint is folder: alone, or method: with one of backbone: and classifier:, found",
        ),
        ({"checkpoints": [{"method": "pabee"}]}, "checkpoints.0: a checkpoint is folder: alone"),
        ({"checkpoints": [{"folder": "x", "method": "pabee"}]}, "checkpoints.0: a checkpoint is folder: alone"),
        (
            {"recipes": ["int8"]},
            "recipes.0: unknown kind 'int8'; allowed: float32, bfloat16, float16, int8_static, int8_native",
        ),
        (
            {"recipes": ["float32", {"kind": "int8_static", "observer": "kll"}]},
            "recipes.1.observer: input should be 'minmax' or 'kl', found 'kll'; did you mean 'kl'?",
        ),
        ({"engines": ["openvin"]}, "engines.0: unknown kind 'openvin'; allowed: eager, inductor, openvino"),
        ({"exits": ["al"]}, "exits.0: input should be 'all' or 'none', found 'al'; did you mean 'all'?"),
        ({"exits": ["all", [1, "x"]]}, "exits.1.1: input should be a valid integer, found 'x'"),
        (
            {"policies": ["full_dept"]},
            "policies.0: unknown policy 'full_dept'; allowed: full_depth, {kind: fixed, ...},",
        ),
        ({"policies": ["confidence"]}, "{kind: confidence, ...}"),
        ({"policies": ["full_dept"]}, "did you mean 'full_depth'?"),
        ({"policies": []}, "policies: list should have at least 1 item"),
        (
            {"policies": ["full_depth", {"kind": "patience", "patience": [1, 2]}, {"kind": "entropy", "treshold": 1}]},
            "policies.2: unknown key 'treshold'; allowed: kind, threshold; did you mean 'threshold'?",
        ),
        (
            {"policies": [{"kind": "patience", "patience": [1, 2]}, {"kind": "entropy", "threshold": [0.1, "x"]}]},
            "policies.1.threshold: input should be a valid number, found 'x'",
        ),
        (
            {"policies": [{"kind": "entropy", "threshold": []}]},
            "policies.0.threshold: input should be a valid number, found []",
        ),
        ({"policies": [{"kind": "patience"}]}, "policies.0.patience: is required; add it"),
        ({"shapes": [{"batch_size": [1, 0]}]}, "shapes.0.batch_size: input should be greater than or equal to 1"),
        ({"shapes": [{"padding": "long"}]}, "shapes.0.padding: input should be 'longest' or 'max_length', found"),
        ({"timing": {"rows": 0}}, "timing.rows: input should be greater than or equal to 1, found 0"),
        ({"on_unsupported": "ignore"}, "on_unsupported: input should be 'error' or 'skip', found 'ignore'"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str):
    assert message in mistake(write(tmp_path, **changes))


def test_more_mistakes_are_counted(tmp_path: Path):
    assert mistake(write(tmp_path, name="a/b", seed=-1)).endswith("(1 more)")


@pytest.mark.parametrize("text", ["a: [", "tasks: *nothing", "a: b: c", "\t- x", "%"])
def test_broken_yaml(tmp_path: Path, text: str):
    (tmp_path / "suite.yaml").write_text(text)
    assert mistake(tmp_path / "suite.yaml").startswith("not YAML: ")


@pytest.mark.parametrize("text", ["", "- a", "just words", "3"])
def test_yaml_that_is_no_mapping(tmp_path: Path, text: str):
    (tmp_path / "suite.yaml").write_text(text)
    assert mistake(tmp_path / "suite.yaml").startswith("a suite is a mapping of keys")


def test_missing_suite_names_the_nearest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    with pytest.raises(UserError, match=r"suite .*sst2_minlm\.yaml' does not exist; did you mean .*sst2_minilm\.yaml"):
        read_suite(Path("yaml_configs/suites/sst2_minlm.yaml"))


def test_a_suite_that_is_not_text(tmp_path: Path):
    (tmp_path / "suite.yaml").write_bytes(b"\xff\xfe\x00name")
    assert "not YAML" in mistake(tmp_path / "suite.yaml")


# Expansion


def test_products_with_and_without_exits(tmp_path: Path):
    found = which(runs(tmp_path, policies=ALL_POLICIES))
    early = ["fixed-last", "patience-1-0.1", "patience-2-0.1", "entropy-0.1", "entropy-0.2"]
    assert found[:5] == [f"exits-1.2.3.4/{policy}" for policy in early]
    # Truncated networks have no exits, and the other policies need some.
    assert found[5:] == [f"no-exits/{policy}" for policy in ("fixed-last", "fixed-1", "fixed-2")]


def test_what_each_network_keeps(tmp_path: Path):
    found = runs(tmp_path, exits=["all", "none", [2, 4]], policies=["full_depth", {"kind": "fixed", "layer": 3}])
    kept = {(run.with_exits, run.policy.model_dump()["layer"]): run.exits for run in found[:3]}
    assert kept == {(True, None): (1, 2, 3, 4), (False, None): (4,), (False, 3): (3,)}
    assert (found[3].exits, found[3].with_exits) == ((2, 4), True)


@pytest.mark.parametrize("exits", [[], [0, 2], [2, 1], [2, 2], [3, 5]])
def test_kept_exits_must_ascend_within_the_network(tmp_path: Path, exits: list[int]):
    with pytest.raises(UserError, match=r"exits .* must ascend within 1\.\.4; remove it, or set on_unsupported: skip"):
        runs(tmp_path, exits=[exits])


def test_every_axis_multiplies(tmp_path: Path):
    found = runs(
        tmp_path,
        recipes=["float32", "bfloat16", "int8_static"],
        engines=["eager", {"kind": "openvino", "program": ["graph", "stepped"]}],
        exits=["all", [2, 4], "none"],
        policies=ALL_POLICIES,
        shapes=[{"batch_size": [1, 8]}],
    )
    assert len(found) == 3 * 3 * 2 * (5 + 5 + 3)
    assert len({run.case for run in found}) == len(found)


def test_cases_are_readable_and_stable(tmp_path: Path):
    """A case is what records are compared by, between machines and versions: this text must not drift."""
    (run,) = runs(
        tmp_path,
        recipes=[{"kind": "int8_static", "observer": "kl", "calibration_rows": 64, "rest": "bfloat16"}],
        engines=[{"kind": "openvino", "program": "stepped"}],
        exits=[[2, 4]],
        policies=[{"kind": "entropy", "threshold": 0.05}],
        shapes=[{"batch_size": 8, "padding": "max_length", "length": 32, "threads": 2}],
    )
    assert run.case == (
        "synthetic/ck/int8_static-kl-64-s42-bfloat16/openvino-stepped/exits-2.4/entropy-0.05/b8-max_length-32-2t"
    )


def test_int8_options_are_in_the_case_where_they_are_not_the_default(tmp_path: Path):
    options: dict[str, Any] = {"activations": ["asymmetric", "symmetric"], "weights": ["per_channel", "per_tensor"]}
    options["fallback"] = [[], ["layer_4", "exit_*"]]
    found = {run.case.split("/")[2] for run in runs(tmp_path, recipes=[{"kind": "int8_static", **options}])}
    names = ["", "-symmetric", "-per_tensor", "-symmetric-per_tensor"]
    expected = {f"int8_static-minmax-128-s42-float32{name}" for name in names}
    assert found == expected | {f"{name}-fallback-layer_4,exit_*" for name in expected}


def test_a_fallback_is_one_list_and_not_a_grid(tmp_path: Path):
    suite = parse(tmp_path, recipes=[{"kind": "int8_static", "fallback": ["layer_2", "exit_*"]}])
    assert [recipe.model_dump()["fallback"] for recipe in suite.recipes] == [["layer_2", "exit_*"]]
    # Layers that a pattern names by number may be cut off at toy size.
    assert [recipe.model_dump()["fallback"] for recipe in suite.smoke().recipes] == [["exit_*"]]


def test_near_dials_are_different_cases(tmp_path: Path):
    found = runs(tmp_path, policies=[{"kind": "entropy", "threshold": [0.1234567, 0.1234568, 1e-9, 2e-9]}])
    assert len(found) == 4


def test_what_is_named_twice_is_measured_once(tmp_path: Path):
    found = runs(tmp_path, exits=["all", [1, 2, 3, 4], "all"], policies=["full_depth", {"kind": "fixed"}])
    assert which(found) == ["exits-1.2.3.4/fixed-last"]


def test_exclude_leaves_cases_out(tmp_path: Path):
    found = which(runs(tmp_path, policies=ALL_POLICIES, exclude=["*/no-exits/fixed-[12]/*", "*/patience-*"]))
    assert found == ["exits-1.2.3.4/" + p for p in ("fixed-last", "entropy-0.1", "entropy-0.2")] + [
        "no-exits/fixed-last"
    ]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pattern_of_a_shipped_suite_leaves_something_out(path: Path):
    suite = read_suite(path)
    assert unmatched(suite) == []
    cases = [run.case for run in foreseen(suite)]
    assert not any(fnmatch(case, pattern) for case in cases for pattern in suite.exclude)


def test_foreseen_cases_are_those_of_the_run_but_for_the_hash(tmp_path: Path):
    suite = parse(tmp_path, exclude=["*-pabee-*/no-exits/*", "*/nothing/*"])
    task, spec = suite.tasks[0], suite.checkpoints[0]
    folders = planned_folders(spec, task, suite.seed, "a hash of data", tmp_path)
    real = expand_all(suite, task, spec, layers_of(spec), [folder.name for folder, _ in folders])
    assert real
    assert [re.sub(r"(?<=-)[0-9a-f]{8}(?=/)", "", run.case) for run in real] == [run.case for run in foreseen(suite)]
    assert unmatched(suite) == ["*/nothing/*"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": [REGRESSION]}, "policy entropy needs class probabilities, task score is a regression"),
        ({"tasks": ["stsb"]}, "policy entropy needs class probabilities, task stsb is a regression"),
        ({"policies": [{"kind": "fixed", "layer": 5}]}, "policy fixed: layer 5 is beyond the network's 4 layers"),
        ({"exits": [[2, 6]]}, r"exits \[2, 6\] must ascend within 1..4"),
    ],
)
def test_products_that_cannot_run(tmp_path: Path, changes: dict[str, Any], message: str):
    given = {"policies": ["full_depth", {"kind": "entropy", "threshold": 0.5}]} | changes
    with pytest.raises(UserError, match=message):
        runs(tmp_path, **given)
    skipped = runs(tmp_path, **given, on_unsupported="skip")
    unskipped = runs(tmp_path, policies=["full_depth"])
    assert {which([run])[0] for run in skipped} <= {which([run])[0] for run in unskipped}


def test_regression_takes_patience(tmp_path: Path):
    assert which(runs(tmp_path, tasks=["stsb"], policies=[{"kind": "patience", "patience": 1}])) == [
        "exits-1.2.3.4/patience-1-0.1"
    ]


def test_selection(tmp_path: Path):
    suite = parse(tmp_path, policies=ALL_POLICIES)
    found = expand(suite, suite.tasks[0], "ck", 4)
    assert selected(found, None) == found
    assert which(selected(found, "entropy")) == ["exits-1.2.3.4/entropy-0.1", "exits-1.2.3.4/entropy-0.2"]
    assert selected(found, "nothing such") == []
    assert "'nothing such'" in str(nothing_to_run(suite, "nothing such"))
    assert "no run left" in str(nothing_to_run(suite, None))


def test_estimate_grows_with_the_runs(tmp_path: Path):
    suite = parse(tmp_path, policies=ALL_POLICIES)
    found = foreseen(suite)
    few, many = (estimate(suite, part) for part in (found[:2], found))
    assert 0 < few.minutes < many.minutes
    assert 0 < few.disk_mb < many.disk_mb


def test_estimate_grows_with_the_network_and_the_length(tmp_path: Path):
    fresh = {"kind": "fresh", "family": "bert", "num_layers": 2, "num_heads": 2, "hidden_size": 64}
    whole = {"padding": "max_length", "length": 512}

    def minutes(shape: dict[str, Any], **sizes: int) -> float:
        suite = parse(tmp_path, checkpoints=[{"method": "pabee", "backbone": fresh | sizes}], shapes=[shape])
        return estimate(suite, foreseen(suite)).minutes

    assert minutes({}) < minutes({}, hidden_size=1024) < minutes(whole, hidden_size=1024)
    assert minutes(whole) < minutes(whole, intermediate_size=8192)


# Smoke


def test_smoke_keeps_every_case_of_every_axis(tmp_path: Path):
    full = parse(
        tmp_path,
        tasks=["synthetic", "sst2"],
        checkpoints=[
            {"method": "pabee", "backbone": {"kind": "fresh", "family": "albert", "num_layers": 12}},
            {"method": "deebert", "backbone": "minilm"},
        ],
        recipes=["float32", "bfloat16", {"kind": "int8_static", "observer": ["kl", "minmax"]}],
        engines=["eager", "openvino"],
        policies=["full_depth", {"kind": "fixed", "layer": [3, 2]}, *ALL_POLICIES[2:]],
    )
    smoke = full.smoke()
    assert smoke.name == "tiny-smoke"
    assert (smoke.tasks, smoke.engines, smoke.exits, smoke.shapes) == (
        full.tasks,
        full.engines,
        full.exits,
        full.shapes,
    )
    assert [recipe.model_dump(exclude={"calibration_rows"}) for recipe in smoke.recipes] == [
        recipe.model_dump(exclude={"calibration_rows"}) for recipe in full.recipes
    ]
    assert [spec.method for spec in smoke.checkpoints] == [spec.method for spec in full.checkpoints]
    assert [policy for policy in smoke.policies if isinstance(policy, Fixed)] == [Fixed(layer=None), Fixed(layer=2)]
    assert [policy.kind for policy in smoke.policies if not isinstance(policy, Fixed)] == ["patience", "entropy"]
    small, real = (spec.backbone for spec in smoke.checkpoints)
    assert isinstance(small, Fresh)
    assert (small.family, small.hidden_size) == ("albert", 32)
    assert small.num_layers < 12
    assert real == Pretrained(name="minilm", num_layers=3)
    assert all(spec.train.max_rows for spec in smoke.checkpoints)
    assert (smoke.timing.rows, smoke.timing.repeats) < (full.timing.rows, full.timing.repeats)


def test_smoke_spares_later_engines_all_recipes_but_one(tmp_path: Path):
    suite = parse(tmp_path, recipes=["float32", "bfloat16", "int8_static"], engines=["openvino", "inductor"]).smoke()
    found = expand(suite, suite.tasks[0], "ck", 2)
    assert Counter((run.engine.kind, run.recipe.kind) for run in found) == {
        **{("openvino", recipe): 2 for recipe in ("float32", "bfloat16", "int8_static")},
        ("inductor", "int8_static"): 2,
    }


@pytest.mark.parametrize("exits", [[2, 5], [8]])
def test_smoke_leaves_layers_for_the_exits_it_keeps(tmp_path: Path, exits: list[int]):
    backbone = {"kind": "fresh", "family": "bert", "num_layers": 12}
    suite = parse(tmp_path, checkpoints=[{"method": "pabee", "backbone": backbone}], exits=[exits, "none"]).smoke()
    layers = layers_of(suite.checkpoints[0])
    assert layers >= exits[-1]
    assert expand(suite, suite.tasks[0], "ck", layers)


# Products that cannot run


@pytest.mark.parametrize(
    ("recipe", "engine", "exits", "message"),
    [
        (
            "int8_static",
            "onnxruntime",
            "none",
            "recipe int8_static runs on eager and inductor and openvino, not on onnx",
        ),
        ("bfloat16", "onnxruntime", "none", "recipe bfloat16 runs on .*, not on onnxruntime; remove it, or set"),
        ("int8_dynamic", "inductor", "all", "recipe int8_dynamic runs on openvino and onnxruntime, not on inductor"),
        ("int8_native", "openvino", "all", "recipe int8_native quantizes whole networks, without exits"),
    ],
)
def test_products_of_recipe_engine_and_exits_that_cannot_run(
    tmp_path: Path, recipe: str, engine: str, exits: str, message: str
):
    given: dict[str, Any] = {"recipes": [recipe], "engines": [engine], "exits": [exits]}
    with pytest.raises(UserError, match=message):
        runs(tmp_path, **given)
    assert runs(tmp_path, **given, on_unsupported="skip") == []


def test_peers_run_beside_early_exit(tmp_path: Path):
    recipes = ["float32", "int8_static", {"kind": "int8_native", "calibration_rows": 16}, "int8_dynamic"]
    found = runs(
        tmp_path,
        recipes=recipes,
        engines=["openvino", "onnxruntime"],
        policies=["full_depth", {"kind": "patience", "patience": 1}],
        on_unsupported="skip",
    )
    by_engine = {
        engine: {run.recipe.kind for run in found if run.engine.kind == engine}
        for engine in ("openvino", "onnxruntime")
    }
    assert by_engine["openvino"] == {"float32", "int8_static", "int8_native", "int8_dynamic"}
    assert by_engine["onnxruntime"] == {"float32", "int8_native", "int8_dynamic"}
    assert {run.recipe.kind for run in found if run.with_exits} == {"float32", "int8_static", "int8_dynamic"}
    assert "int8_native-16-s42" in {run.case.split("/")[2] for run in found}


# Layers


def test_layers_of_every_start(tmp_path: Path):
    def layers(**given: Any) -> int:
        return layers_of(CheckpointSpec.model_validate(given))

    assert layers(method="pabee", backbone={"kind": "fresh", "family": "bert", "num_layers": 3}) == 3
    sizes = {"num_hidden_layers": 5, "hidden_size": 8, "intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps({"backbone": sizes}))
    assert layers(folder=str(tmp_path)) == 5
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 7}))
    assert layers(method="pabee", backbone={"kind": "pretrained", "name": str(tmp_path), "num_layers": 2}) == 2
    assert layers(method="pabee", backbone=str(tmp_path)) == 7
    assert layers(method="deebert", classifier=str(tmp_path)) == 7


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"backbone": {}}', '{"backbone": 3}'])
def test_layers_of_an_unreadable_checkpoint(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"checkpoint folder .* has no readable config\.json"):
        layers_of(CheckpointSpec(folder=str(tmp_path)))


@pytest.mark.parametrize("name", ["no/such-backbone", "nothing", "/no/such/folder"])
def test_unknown_backbone(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="is neither a readable local folder, a reachable hub model nor a known"):
        layers_of(CheckpointSpec.model_validate({"method": "pabee", "backbone": name}))
