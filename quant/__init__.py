"""How a network runs: recipes, engines and programs."""

import sys

# OpenVINO's converter posts an event for every conversion and forks a process for each: a hundred forks a session, from
# a program that times things and was not asked to phone home. Absent, it uses its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
