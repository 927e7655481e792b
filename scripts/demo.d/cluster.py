"""A private Redis Cluster on free loopback ports, with all its files in one folder."""

import os
import random
import socket
import subprocess
import time

from children import Child, DemoError

# A node's port and its bus port (+ 10000) lie below the range that outgoing connections use.
PORTS = range(10100, 22000)
BUS_OFFSET = 10000
START_TRIES = 8
START_S = 10.0
CREATE_S = 60.0
HEALTHY_S = 40.0
NODE_TIMEOUT_MS = 2000
SLOTS = 16384


def _is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port(taken):
    chooser = random.SystemRandom()
    for _ in range(1000):
        port = chooser.choice(PORTS)
        if port not in taken and _is_free(port) and _is_free(port + BUS_OFFSET):
            return port
    raise DemoError(f"no free port between {PORTS.start} and {PORTS.stop}")


def call(port, *args, timeout_s=2.0):
    """One Redis command, its reply as str, int or list. Raises OSError or DemoError."""
    request = b"*%d\r\n" % len(args)
    for arg in args:
        data = str(arg).encode()
        request += b"$%d\r\n%s\r\n" % (len(data), data)
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            return _read_reply(stream)


def _read_reply(stream):
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the connection was closed")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"+":
        return rest
    if kind == b"-":
        raise DemoError(f"Redis: {rest}")
    if kind == b":":
        return int(rest)
    if kind == b"$":
        if int(rest) < 0:
            return None
        return stream.read(int(rest) + 2)[:-2].decode(errors="replace")
    return [_read_reply(stream) for _ in range(int(rest))]


def _fields(text):
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


class Node:
    """One redis-server; `more`: settings beside the usual ones."""

    def __init__(self, folder, taken, more=None):
        self._more = more or {}
        for attempt in range(START_TRIES):
            self.port = _free_port(taken)
            taken.add(self.port)
            self._start(folder)
            end = time.monotonic() + START_S
            while self.child.running() and time.monotonic() < end:
                try:
                    if int(_fields(call(self.port, "INFO", "server"))["process_id"]) == self.child.pid:
                        return
                except (OSError, KeyError, DemoError):
                    pass
                time.sleep(0.02)
            # Another program may have taken the port meanwhile.
            if "Address already in use" not in self.child.log_tail(40) or attempt == START_TRIES - 1:
                self.child.kill()
                raise DemoError(f"redis-server does not start:\n{self.child.log_tail()}")

    def _start(self, folder):
        settings = {
            "port": self.port, "bind": "127.0.0.1", "dir": folder, "save": '""',
            "appendonly": "no", "daemonize": "no", "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": 0, "cluster-enabled": "yes",
            "cluster-config-file": f"nodes-{self.port}.conf",
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            # Primaries that live go on while another is away: only its shards are cut off.
            "cluster-require-full-coverage": "no",
            **self._more,
        }
        path = os.path.join(folder, f"redis-{self.port}.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{key} {value}\n" for key, value in settings.items())
        self.child = Child(f"redis-server :{self.port}", ["redis-server", path],
                           os.path.join(folder, f"redis-{self.port}.log"))

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


class Cluster:
    """Three primaries and three replicas, whole when the constructor returns."""

    def __init__(self, folder):
        taken = set()
        self.nodes = [Node(folder, taken) for _ in range(6)]
        argv = ["redis-cli", "--cluster", "create", *(node.address for node in self.nodes),
                "--cluster-replicas", "1", "--cluster-yes"]
        # redis-cli ends by itself; the timeout is for a machine that stands still.
        done = subprocess.run(argv, timeout=CREATE_S, capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise DemoError(f"redis-cli --cluster create failed:\n{done.stdout}{done.stderr}")
        self._wait_whole()

    def _wait_whole(self):
        end = time.monotonic() + HEALTHY_S
        while True:
            why = self._why_not_whole()
            if not why:
                return
            if time.monotonic() > end:
                raise DemoError(f"the Redis Cluster is not whole after {HEALTHY_S:.0f} s: {why}")
            time.sleep(0.1)

    def _why_not_whole(self):
        for node in self.nodes:
            node.child.require_running()
            try:
                state = _fields(call(node.port, "CLUSTER", "INFO"))
                role = _fields(call(node.port, "INFO", "replication"))
            except (OSError, DemoError) as error:
                return f"{node.address}: {error}"
            if state.get("cluster_state") != "ok" or state.get("cluster_slots_ok") != str(SLOTS):
                return f"{node.address}: cluster_state {state.get('cluster_state')}"
            if state.get("cluster_known_nodes") != str(len(self.nodes)):
                return f"{node.address} does not know all nodes"
            if role.get("role") == "slave" and role.get("master_link_status") != "up":
                return f"{node.address}: the replica is not in step"
        return ""

    def owners(self):
        """[(first slot, last slot, Node)] of all primaries, as a living node says."""
        for node in self.nodes:
            if not node.child.running():
                continue
            try:
                ranges = call(node.port, "CLUSTER", "SLOTS")
            except (OSError, DemoError):
                continue
            by_port = {n.port: n for n in self.nodes}
            return [(first, last, by_port[primary[1]]) for first, last, primary, *_ in ranges]
        raise DemoError("no node of the Redis Cluster answers")

    def addresses(self):
        return [node.address for node in self.nodes]
