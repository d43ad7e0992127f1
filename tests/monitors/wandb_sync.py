"""Gives offline runs to the real `wandb sync`, with a server on this machine, and prints what that server was sent.

usage: wandb_sync.py SCRATCH_FOLDER RUN_FOLDER...
"""

import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Remembers the newest configuration, and history line by line as the real one does."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.run, self.config, self.history, self.summary, self.exit_code = {}, {}, {}, {}, None

    def upsert(self, variables):
        """A run is made, or changed."""
        given = {key: value for key, value in variables.items() if value is not None}
        self.config.update(json.loads(given.pop("config", "{}")))
        self.run.update(given)
        project = {"id": "P", "name": self.run["project"], "entity": {"id": "E", "name": "someone"}}
        bucket = {"id": "B", "name": self.run["name"], "displayName": self.run.get("displayName"), "project": project}
        bucket |= {"description": "", "config": "{}", "sweepName": "", "historyLineCount": None}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def stream(self, sent):
        """Lines of history and summary, each from an offset on."""
        files = sent.get("files", {})
        history = files.get("wandb-history.jsonl")
        if history:
            for i, line in enumerate(history["content"]):
                self.history[history["offset"] + i] = json.loads(line)
        if "wandb-summary.json" in files:
            self.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        if sent.get("complete"):
            self.exit_code = sent["exitcode"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.graphql(asked["query"], asked["variables"])}
        elif self.path.endswith("/file_stream"):
            self.server.stream(json.loads(body))
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def graphql(self, query, variables):
        if "upsertBucket" in query:
            return self.server.upsert(variables)
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": []}}
        return {"model": {"bucket": None}}

    def log_message(self, *_):
        pass


def main():
    scratch, runs = sys.argv[1], sys.argv[2:]
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = dict(os.environ, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}", WANDB_API_KEY="a" * 40)
    environment |= dict(WANDB_ERROR_REPORTING="false", HOME=scratch)
    environment |= {f"WANDB_{name}": scratch for name in ["DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"]}
    wandb = os.path.join(os.path.dirname(sys.executable), "wandb")
    sync = subprocess.run(
        [wandb, "sync", *runs], env=environment, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    names = ["run", "config", "summary", "exit_code"]
    sent = {name: getattr(server, name) for name in names}
    sent["history"] = [line for _, line in sorted(server.history.items())]
    print(json.dumps(sent | {"status": sync.returncode, "output": sync.stdout + sync.stderr}))


main()
