"""The servers that peers.py asks for decisions: each on a free port of loopback, ended with its folder.

All of them have one thread or event loop where they can, and a limit that is never reached.
"""

import contextlib
import dataclasses
import http.client
import os
import socket

from harness.processes import Process, wait_until
from harness.redis_cluster import RedisServer, free_port

START_DEADLINE_S = 20.0

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  limit_req_zone $http_x_user zone=users:1m rate=1000000r/s;
  server {{
    listen 127.0.0.1:{port};
    location /limited {{ limit_req zone=users burst=1000000 nodelay; empty_gif; }}
    location /free {{ empty_gif; }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
frontend requests
  bind 127.0.0.1:{port}
  stick-table type string len 64 size 10k expire 60s store http_req_rate(1s)
  http-request track-sc0 req.hdr(x-user) if {{ path /limited }}
  http-request deny deny_status 429 if {{ path /limited }} {{ sc_http_req_rate(0) gt 1000000000 }}
  http-request return status 200 content-type text/plain string "ok"
"""

RATELIMIT = """
domain: bench
descriptors:
  - key: user
    rate_limit: {unit: second, requests_per_unit: 1000000000}
"""


@dataclasses.dataclass(frozen=True)
class Server:
    """Listens on `port`; what it does is done by `pids`."""
    port: int
    pids: tuple


@contextlib.contextmanager
def _listening(argv, folder, port, env=None):
    """A process, once it listens on `port`."""
    def listens():
        with socket.create_connection(("127.0.0.1", port), 1.0):
            return True

    with Process(argv, os.path.join(folder, f"server-{port}.log"), env=env) as process:
        process.wait_for(listens, START_DEADLINE_S, "it listens")
        yield Server(port, (process.pid,))


def _config(folder, name, text):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def nginx(place, folder):
    port = free_port()
    config = _config(folder, f"nginx-{port}.conf", NGINX.format(folder=folder, port=port))
    return _listening([place.tool("nginx"), "-c", config, "-p", folder,
                       "-e", folder + "/nginx.log"], folder, port)


def haproxy(place, folder):
    port = free_port()
    config = _config(folder, f"haproxy-{port}.conf", HAPROXY.format(port=port))
    return _listening([place.tool("haproxy"), "-db", "-f", config], folder, port)


def memcached(place, folder):
    port = free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    return _listening([place.tool("memcached"), "-l", "127.0.0.1", "-p", str(port), "-t", "1",
                       *user], folder, port)


@contextlib.contextmanager
def redis(_place, _folder):
    with RedisServer() as server:
        yield Server(server.port, (server.pid,))


@contextlib.contextmanager
def ratelimit(place, folder):
    """envoyproxy/ratelimit, and the Redis where it counts."""
    program = place.go("ratelimit", "ratelimit-server",
                       "github.com/envoyproxy/ratelimit/src/service_cmd")
    port, http_port, debug_port = free_port(), free_port(), free_port()
    root = os.path.join(folder, f"ratelimit-{port}")
    _config(root, "bench/config/bench.yaml", RATELIMIT)
    with RedisServer() as counters, _listening([program], folder, port, env={
            "USE_STATSD": "false", "LOG_LEVEL": "error", "BACKEND_TYPE": "redis",
            "REDIS_SOCKET_TYPE": "tcp", "REDIS_URL": counters.address,
            "RUNTIME_ROOT": root, "RUNTIME_SUBDIRECTORY": "bench",
            "RUNTIME_WATCH_ROOT": "false", "HOST": "127.0.0.1", "PORT": str(http_port),
            "GRPC_HOST": "127.0.0.1", "GRPC_PORT": str(port),
            "DEBUG_HOST": "127.0.0.1", "DEBUG_PORT": str(debug_port)}) as server:
        wait_until(lambda: _is_healthy(http_port), START_DEADLINE_S, "ratelimit is healthy")
        yield Server(port, (*server.pids, counters.pid))


def _is_healthy(port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)) as asked:
        asked.request("GET", "/healthcheck")
        return asked.getresponse().status == 200
