"""A new policy is one class in `models/policies.py` and its place in the union: everything else takes it from there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

# A throw-away policy with a state and a dial.
POLICY = '''
class VotesState(NamedTuple):
    """Per row: the largest class probabilities so far, summed."""

    total: Array


class Votes(PolicyConfig):
    """Leave when the largest class probabilities of the exits so far add up to more than `enough`."""

    classification_only: ClassVar[bool] = True

    kind: Literal["votes"] = "votes"
    enough: float = Field(gt=0)

    def dials(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"enough": np.asarray(self.enough, np.float32)}

    @staticmethod
    def start(ops: Ops, rows: Array, dials: dict[str, Array]) -> VotesState:
        return VotesState(total=ops.full(rows, 0.0))

    @staticmethod
    def step(
        ops: Ops, layer: int, logits: Array, state: VotesState, dials: dict[str, Array]
    ) -> tuple[Array, VotesState]:
        total = ops.add(state.total, largest_probability(ops, logits))
        return ops.less(dials["enough"], total), VotesState(total)


'''

# Run in a copy of the repository that has it: `list`, a suite, and the three readings over a tiny network.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from benchmarks.__main__ import main
from benchmarks.expansion import expand
from models.policies import replay
from quant.engine import Eager, OpenVino
from quant.recipes import Float32, apply_recipe
from tests import suites, tiny

assert main(["list"]) == 0
suite = suites.parse(Path(sys.argv[1]), policies=["full_depth", {"kind": "votes", "enough": [0.5, 1.3, 2.1]}])
cases = [run.case for run in expand(suite, suite.tasks[0], "ck", 4)]

network, exits = tiny.network("bert"), [1, 2, 3, 4]
inputs = tiny.batch(tiny.encoded(32), range(32), "bert")
logits = tiny.all_logits(network, inputs)
found = {}
for engine in (OpenVino(), OpenVino(program="stepped"), Eager()):
    session = engine.open(apply_recipe(Float32(), network), 1)
    policies = suite.policies[1:]
    program = session.with_exits(policies[0], exits)  # one program, whatever the dial
    found[f"{engine.kind} {program.kind}"] = [
        program.run(inputs, policy.dials(np.arange(32))).exit_layer.tolist() for policy in policies
    ]
found["replay"] = [replay(policy, logits, exits).exit_layer.tolist() for policy in policies]
Path(sys.argv[1], "found.json").write_text(json.dumps({"cases": cases, "exit_layers": found}))
"""


def test_one_class_is_enough(tmp_path: Path):
    copy = tmp_path / "copy"
    for folder in ("models", "quant", "benchmarks", "reports", "yaml_configs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "models" / "policies.py"
    union, added = " | Imposed, Field(", " | Imposed | Votes, Field("
    text = path.read_text()
    assert text.count(union) == 1
    assert text.count("\nPolicy = ") == 1
    path.write_text(text.replace("\nPolicy = ", f"{POLICY}\nPolicy = ").replace(union, added))

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=copy,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "votes        Leave when the largest class probabilities of the exits so far add up" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert [case.split("/")[5] for case in found["cases"]] == [
        *["fixed-last", "votes-0.5", "votes-1.3", "votes-2.1"],
        "fixed-last",
    ]
    replayed = np.array(found["exit_layers"].pop("replay"))
    assert set(found["exit_layers"]) == {"openvino graph", "openvino stepped", "eager stepped"}
    for program, exit_layers in found["exit_layers"].items():
        assert np.array_equal(exit_layers, replayed), program
    assert set(replayed.ravel()) == {1, 2, 3, 4}
