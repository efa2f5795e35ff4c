"""An exported model behind HTTP, with the standard library alone: an example to begin from (`docs/serving.md`).

    PYTHONPATH=served python docs/serve.py served --port 8000
    curl http://127.0.0.1:8000 --data '{"texts": ["a film to remember ."], "dials": {"threshold": 0.1}}'

It answers one request at a time. Needs numpy, openvino and tokenizers; the loader is the folder's own.
"""

import argparse
import json
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from artefact import ArtefactError, EarlyExitModel


class Handler(BaseHTTPRequestHandler):
    """POST `{"texts": [...]}`, with `"dials": {...}` for other thresholds than those exported."""

    def __init__(self, model: EarlyExitModel, *connection: Any):
        self.model = model
        super().__init__(*connection)

    def do_POST(self) -> None:
        try:
            status, said = 200, self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        except (ArtefactError, AttributeError, KeyError, TypeError, ValueError) as error:
            status, said = 400, {"error": f'give {{"texts": [...], "dials": {{...}}}}: {error!r}'}
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Labels, scores and exit layers, text by text."""
        dials = {name: float(value) for name, value in asked.get("dials", {}).items()}
        found = self.model.predict(asked["texts"], **dials)
        return {"labels": found.labels, "scores": found.scores.tolist(), "exit_layer": found.exit_layer.tolist()}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve an exported model over HTTP.")
    parser.add_argument("folder", type=Path, help="what `python -m quant export` wrote")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free one (default: %(default)s)")
    options = parser.parse_args()
    model = EarlyExitModel.load(options.folder)
    server = HTTPServer(("127.0.0.1", options.port), partial(Handler, model))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
