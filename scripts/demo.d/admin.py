"""The daemon's admin socket: HTTP over a Unix socket."""

import http.client
import json
import re
import socket

TIMEOUT_S = 2.0


class _UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get(socket_path, target):
    """The body of a GET; raises OSError where nothing useful answers."""
    connection = _UnixHttp(socket_path)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        if answer.status != 200:
            raise ConnectionError(f"GET {target}: {answer.status} {body[:200]}")
        return body
    except http.client.HTTPException as error:
        raise ConnectionError(f"GET {target}: {error!r}") from error
    finally:
        connection.close()


def get_json(socket_path, target):
    try:
        return json.loads(get(socket_path, target))
    except ValueError as error:
        raise ConnectionError(f"GET {target}: not JSON") from error


_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def metrics(socket_path):
    """{name: [({label: value}, number)]} of GET /metrics."""
    found = {}
    for name, labels, value in _SAMPLE.findall(get(socket_path, "/metrics")):
        found.setdefault(name, []).append((dict(_LABEL.findall(labels)), float(value)))
    return found
