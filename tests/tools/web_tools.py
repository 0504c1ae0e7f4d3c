"""ttm-web as a process, and what it answers."""

import contextlib
import http.client
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("ttm-web"))
PATIENCE = 40.0


class Web:
    """A server of one mount."""

    def __init__(self, mount: str, *options: str) -> None:
        self.popen = subprocess.Popen(
            [PROGRAM, mount, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
        assert self.popen.stdout is not None
        if not select.select([self.popen.stdout], [], [], PATIENCE)[0]:
            self.end()
            raise AssertionError("ttm-web says no address")
        line = self.popen.stdout.readline()
        self.url = line.removeprefix("ttm-web: ").strip()
        assert self.url.startswith("http://127.0.0.1:"), self.popen.communicate(timeout=PATIENCE)
        self.port = int(self.url.split(":")[2].split("/")[0])
        self.token = self.url.partition("#token=")[2]

    def ask(self, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """A request; its status, and its JSON or text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request("GET" if data is None else "POST", path, data, names)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, json.loads(text) if answer.getheader("content-type") == "application/json" else text

    def command(self, file: str, words: str = "", token: str | None = None) -> tuple[int, Any]:
        """Have it write a command."""
        body = {"file": file, "words": words}
        return self.ask("/api/command", body, X_TTM_Token=self.token if token is None else token)

    @contextlib.contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """The stream: (event, value), `message` where it has no name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", "/events")
        answer = connection.getresponse()

        def parsed() -> Iterator[tuple[str, Any]]:
            kind = "message"
            while line := answer.readline().decode():
                field, _, value = line.rstrip("\n").partition(": ")
                if field == "event":
                    kind = value
                elif field == "data":
                    yield kind, json.loads(value)
                    kind = "message"

        try:
            yield parsed()
        finally:
            answer.close()
            connection.close()

    def end(self) -> int:
        """SIGTERM; its exit status."""
        self.popen.terminate()
        try:
            status = self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise AssertionError("ttm-web does not end") from None
        finally:
            for pipe in (self.popen.stdout, self.popen.stderr):
                assert pipe is not None
                pipe.close()
        return status


def until(stream: Iterator[tuple[str, Any]], wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Take messages until what they say together is as wanted: the parts, all `events`, how the stream `ended`."""
    end = time.monotonic() + PATIENCE
    parts: dict[str, Any] = {"events": []}
    for kind, value in stream:
        assert time.monotonic() < end, f"not as wanted: {parts}"
        if kind != "message":
            parts[kind] = value
        else:
            parts["events"] += value.pop("events", {"list": []})["list"]
            parts.update(value)
        if wanted(parts):
            return parts
    raise AssertionError(f"the stream ended without what is wanted: {parts}")
