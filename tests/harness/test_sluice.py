"""The harness' own reading of what a daemon says."""

import http.server
import os
import socketserver
import threading

import pytest

from harness.sluice import Metrics, http_get

PAGE = """\
# HELP sluice_checks_total Checks, by rule and result.
# TYPE sluice_checks_total counter
sluice_checks_total{rule="per-user",result="allowed"} 12
sluice_checks_total{rule="per-user",result="denied"} 3
sluice_checks_total{rule="a \\"b\\", {c}\\\\",result="denied"} 1e3
sluice_up 1
sluice_age_seconds +Inf
"""


def test_metrics_are_read_with_their_labels():
    metrics = Metrics.parse(PAGE)
    assert metrics.value("sluice_checks_total", rule="per-user", result="denied") == 3
    assert metrics.sum("sluice_checks_total", result="denied") == 1003
    assert metrics.value("sluice_checks_total", rule='a "b", {c}\\') == 1000
    assert metrics.value("sluice_up") == 1
    assert metrics.value("sluice_age_seconds") == float("inf")
    assert metrics.names() == {"sluice_checks_total", "sluice_up", "sluice_age_seconds"}


@pytest.mark.parametrize("page", ["sluice_up", "sluice_up{a=b} 1", "1up 1", "sluice_up one two",
                                  "sluice_up 1\nsluice_up 1", 'x{a="1" b="2"} 1'])
def test_a_page_that_is_not_prometheus_text_is_refused(page):
    with pytest.raises((AssertionError, ValueError)):
        Metrics.parse(page)


def test_an_ambiguous_or_missing_metric_is_an_error():
    metrics = Metrics.parse(PAGE)
    with pytest.raises(AssertionError, match="2 samples"):
        metrics.value("sluice_checks_total", rule="per-user")
    with pytest.raises(AssertionError, match="0 samples"):
        metrics.value("sluice_down")
    assert metrics.sum("sluice_down") == 0


class UnixHttpServer(socketserver.UnixStreamServer):
    def get_request(self):
        request, _ = super().get_request()
        return request, ("unix", 0)


class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"you asked for {self.path}".encode()
        self.send_response(200 if self.path == "/status" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_http_over_a_unix_socket_gives_code_and_body(tmp_path):
    path = os.path.join(tmp_path, "admin.sock")
    with UnixHttpServer(path, Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert http_get(path, "/status") == (200, "you asked for /status")
            assert http_get(path, "/nothing")[0] == 404
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(OSError):
        http_get(path, "/status")
