"""The servers that peers.py asks for decisions: each on a free port of loopback, ended with its folder.

All of them have one thread or event loop where they can, and a limit that is never reached.
"""

import http.client
import os
import socket

from harness.processes import Process
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


class Server:
    """One process that listens on `port` once this is made."""

    def __init__(self, argv, folder, port, env=None):
        self.port = port
        self._process = Process(argv, os.path.join(folder, f"server-{port}.log"), env=env)
        try:
            self._process.wait_for(self._listens, START_DEADLINE_S, "it listens")
        except BaseException:
            self._process.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.close()

    def pids(self):
        return (self._process.pid,)

    def _listens(self):
        with socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True


def _config(folder, name, text):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def nginx(place, folder):
    port = free_port()
    config = _config(folder, f"nginx-{port}.conf", NGINX.format(folder=folder, port=port))
    return Server([place.tool("nginx"), "-c", config, "-p", folder, "-e", folder + "/nginx.log"],
                  folder, port)


def haproxy(place, folder):
    port = free_port()
    config = _config(folder, f"haproxy-{port}.conf", HAPROXY.format(port=port))
    return Server([place.tool("haproxy"), "-db", "-f", config], folder, port)


def memcached(place, folder):
    port = free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    return Server([place.tool("memcached"), "-l", "127.0.0.1", "-p", str(port), "-t", "1", *user],
                  folder, port)


class ratelimit:  # pylint: disable=invalid-name  # as the functions above
    """envoyproxy/ratelimit, and the Redis where it counts."""

    def __init__(self, place, folder):
        server = place.go("ratelimit", "ratelimit-server",
                          "github.com/envoyproxy/ratelimit/src/service_cmd")
        root = os.path.join(folder, f"ratelimit-{free_port()}")
        _config(root, "bench/config/bench.yaml", RATELIMIT)
        self.port, http_port = free_port(), free_port()
        self._redis = RedisServer()
        try:
            self._server = Server([server], folder, self.port, env={
                "USE_STATSD": "false", "LOG_LEVEL": "error", "BACKEND_TYPE": "redis",
                "REDIS_SOCKET_TYPE": "tcp", "REDIS_URL": self._redis.address,
                "RUNTIME_ROOT": root, "RUNTIME_SUBDIRECTORY": "bench",
                "RUNTIME_WATCH_ROOT": "false", "HOST": "127.0.0.1", "PORT": str(http_port),
                "GRPC_HOST": "127.0.0.1", "GRPC_PORT": str(self.port),
                "DEBUG_HOST": "127.0.0.1", "DEBUG_PORT": str(free_port())})
            self._server._process.wait_for(lambda: self._is_healthy(http_port), START_DEADLINE_S,
                                           "it is healthy")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if hasattr(self, "_server"):
            self._server.__exit__()
        self._redis.close()

    def pids(self):
        return (*self._server.pids(), self._redis.pid)

    @staticmethod
    def _is_healthy(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == 200
        finally:
            connection.close()
