"""Private Redis servers and clusters on free loopback ports, for tests and demo.

Nothing is kept on disk but each node's own nodes.conf, and that in a temporary folder which goes
with `close`. Servers die with the process that started them, also when it is killed.
"""

import os
import random
import shutil
import socket
import tempfile

from . import resp
from .processes import Process, Timeout, run, wait_until

# Client ports lie so that they and their bus ports (+ 10000) stay below Linux' ephemeral range
# (from 32768): no outgoing connection can sit on one.
PORT_FIRST = 10100
PORT_LAST = 22000
BUS_OFFSET = 10000
# Two runs at once may choose the same port between test and bind: try again, not for ever.
START_ATTEMPTS = 8
START_DEADLINE_S = 10.0
# `redis-cli --cluster create` takes 2 to 5 s for six nodes on a busy two-core machine.
CREATE_DEADLINE_S = 60.0
HEALTHY_DEADLINE_S = 40.0
NODE_TIMEOUT_MS = 2000


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The user that every server has: with the rights that ship and no more, for the prefix "rl".
USER, PASSWORD = "sluice", "of-the-tests"


def shipped_acl():
    """The line of redis.conf for that user, from the one file of the rights."""
    path = os.path.join(ROOT, "daemon", "redis", "user.acl")
    with open(path, encoding="ascii") as file:
        line = file.read().strip()
    return "user " + line.replace(">PASSWORD", f">{PASSWORD}").replace("~PREFIX:*", "~rl:*")


def _is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port():
    """A loopback port that is free now, and whose cluster bus port is free too."""
    chooser = random.SystemRandom()
    for _ in range(1000):
        port = chooser.randrange(PORT_FIRST, PORT_LAST)
        if _is_free(port) and _is_free(port + BUS_OFFSET):
            return port
    raise AssertionError(f"no free port pair between {PORT_FIRST} and {PORT_LAST}")


class RedisServer:
    """One redis-server process.

    `password` is that of the default user. `acl` is a list of ACL lines as in redis.conf, such as
    "user sluice on >secret ~rl:* +@all", in place of USER's. `config` is a dict of further
    redis.conf settings, `env` of the environment. After `kill` or `stop`, `restart` starts it again
    on its port, empty.
    """

    def __init__(self, *, password=None, acl=(), config=None, cluster=False, directory=None,
                 server="redis-server", env=None):
        self.password = password
        self._env = env
        self._acl = tuple(acl)
        self._config = dict(config or {})
        self._cluster = cluster
        self._server = server
        self._own_directory = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix="sluice-redis-")
        self.port = None
        self.process = None
        try:
            self._start_somewhere()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"<redis 127.0.0.1:{self.port} pid {self.pid}>"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self):
        return self.process.pid if self.process else None

    def running(self):
        return self.process is not None and self.process.running()

    def _start_somewhere(self):
        for attempt in range(START_ATTEMPTS):
            self.port = free_port()
            try:
                self._start()
                return
            except AssertionError:
                # Only a port that another took meanwhile is worth another try.
                last = attempt == START_ATTEMPTS - 1
                if last or "Address already in use" not in self.process.log():
                    raise

    def _write_config(self):
        settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.directory,
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
            "loglevel": "notice",
            "enable-debug-command": "local",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": 0,
        }
        if self._cluster:
            settings.update({
                "cluster-enabled": "yes",
                "cluster-config-file": f"nodes-{self.port}.conf",
                "cluster-node-timeout": NODE_TIMEOUT_MS,
            })
        if self.password:
            settings.update({"requirepass": self.password, "masterauth": self.password})
        settings.update(self._config)
        path = os.path.join(self.directory, f"redis-{self.port}.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{key} {value}\n" for key, value in settings.items())
            file.writelines(f"{line}\n" for line in self._acl or (shipped_acl(),))
        return path

    def _start(self):
        config = self._write_config()
        log = os.path.join(self.directory, f"redis-{self.port}.log")
        self.process = Process([self._server, config], log, name=f"redis-server :{self.port}",
                               env=self._env)
        try:
            self.process.wait_for(self._answers, START_DEADLINE_S, "it answers")
        except BaseException:
            self.process.close()
            raise

    def _answers(self):
        with self.connect(timeout_s=1.0) as connection:
            # Another server may hold the port: the pid tells.
            return int(resp.info(connection, "server")["process_id"]) == self.process.pid

    def connect(self, *, user=None, password=None, timeout_s=resp.TIMEOUT_S):
        """A resp.Connection to it; by default as the default user."""
        return resp.Connection(self.port, user=user, timeout_s=timeout_s,
                               password=self.password if password is None else password)

    def call(self, *args):
        """One command over a connection of its own."""
        with self.connect() as connection:
            return connection.call(*args)

    def kill(self):
        """SIGKILL; it is gone when this returns."""
        self.process.kill()

    def pause(self):
        """SIGSTOP: its sockets stay open, and nothing answers."""
        self.process.pause()

    def resume(self):
        self.process.resume()

    def restart(self):
        """Starts it again on the same port; its keys are gone, its place in a cluster is not."""
        if self.running():
            self.process.kill()
        self._start()

    def close(self):
        if self.process:
            self.process.close()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


class RedisCluster:
    """A real Redis Cluster of `primaries` primaries and `replicas` replicas in all.

    Up, with every slot served and every replica in step, when the constructor returns. `config`
    goes into every node's redis.conf (for instance {"cluster-require-full-coverage": "no"}), `env`
    into its environment.
    """

    def __init__(self, primaries=3, replicas=3, *, password=None, acl=(), config=None,
                 env=None):
        if primaries < 3:
            raise ValueError("a cluster that can fail over needs 3 primaries")
        if replicas % primaries:
            raise ValueError("replicas must be a multiple of primaries")
        self.password = password
        self._primary_count = primaries
        self.directory = tempfile.mkdtemp(prefix="sluice-cluster-")
        self.nodes = []
        try:
            for _ in range(primaries + replicas):
                self.nodes.append(RedisServer(password=password, acl=acl, config=config, env=env,
                                              cluster=True, directory=self.directory))
            self._create(replicas // primaries)
            self.wait_healthy()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends every server and removes the folder; may be called any number of times."""
        for node in self.nodes:
            node.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _create(self, replicas_each):
        self.cli("--cluster", "create", *self.addresses(), "--cluster-replicas", replicas_each,
                 "--cluster-yes", port=self.nodes[0].port, deadline_s=CREATE_DEADLINE_S)

    def addresses(self):
        """host:port of every node, dead ones too."""
        return [node.address for node in self.nodes]

    def cli(self, *args, port=None, deadline_s=20.0, check=True):
        """Runs redis-cli against one node (default: the first that runs); returns its output."""
        if port is None:
            port = self._live()[0].port
        env = {"REDISCLI_AUTH": self.password} if self.password else {}
        return run(["redis-cli", "-p", port, *args], deadline_s, env=env, check=check).stdout

    def _live(self):
        live = [node for node in self.nodes if node.running()]
        if not live:
            raise AssertionError("no node of the cluster runs")
        return live

    def node(self, port):
        """The node that listens on `port`."""
        return next(node for node in self.nodes if node.port == port)

    # Who serves what. The view is that of the nodes which answer; a paused one does not.

    def _roles(self):
        """{node: its own line of CLUSTER NODES, split} for every node that answers."""
        roles = {}
        for node in self._live():
            try:
                with node.connect(timeout_s=0.5) as connection:
                    lines = connection.call("CLUSTER", "NODES").splitlines()
            except (OSError, resp.RespError):
                continue
            roles[node] = next(line.split() for line in lines if "myself" in line)
        return roles

    def primaries(self):
        """The nodes that answer as primaries of some slots, in the order of their slots."""
        found = []
        for node, fields in self._roles().items():
            slots = [part for part in fields[8:] if not part.startswith("[")]
            if "master" in fields[2] and slots:
                found.append((int(slots[0].split("-")[0]), node))
        return [node for _, node in sorted(found, key=lambda pair: pair[0])]

    def replicas(self):
        """The nodes that answer as replicas."""
        return [node for node, fields in self._roles().items() if "slave" in fields[2]]

    def primary_for(self, key):
        """The node that now serves `key`."""
        slot = int(self._live_call("CLUSTER", "KEYSLOT", key))
        for first, last, primary, *_ in self._live_call("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.node(int(primary[1]))
        raise AssertionError(f"nobody serves slot {slot}")

    def _live_call(self, *args):
        problem = None
        for node in self._live():
            try:
                with node.connect(timeout_s=0.5) as connection:
                    return connection.call(*args)
            except OSError as error:
                problem = error
        raise AssertionError(f"no node answers: {problem}")

    # Faults.

    def kill_primary(self, index=0):
        """SIGKILLs the index-th primary (in the order of slots) and returns it."""
        node = self.primaries()[index]
        node.kill()
        return node

    def pause_primary(self, index=0):
        """SIGSTOPs the index-th primary and returns it; `node.resume()` undoes it."""
        node = self.primaries()[index]
        node.pause()
        return node

    def wait_failover(self, lost, deadline_s=HEALTHY_DEADLINE_S):
        """Waits until every slot is served again, by others than `lost`; returns the primaries."""
        def served():
            primaries = self.primaries()
            if lost in primaries or len(primaries) < self._primary_count:
                return None
            for node in primaries:
                with node.connect() as connection:
                    state = resp.info(connection, "cluster")
                if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != "16384":
                    return None
            return primaries

        return wait_until(served, deadline_s, f"failover from {lost}")

    # Health.

    def unhealthy(self):
        """Why the cluster is not whole, as a text; "" when it is."""
        for node in self.nodes:
            if not node.running():
                return f"{node} is dead"
            try:
                with node.connect() as connection:
                    state = resp.info(connection, "cluster")
                    replication = resp.info(connection, "replication")
            except (OSError, resp.RespError) as error:
                return f"{node}: {error}"
            if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != "16384":
                return f"{node}: cluster_state {state['cluster_state']}"
            if int(state["cluster_known_nodes"]) != len(self.nodes):
                return f"{node} knows {state['cluster_known_nodes']} nodes"
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return f"{node}: replica not in step"
            # A replica that has its copy gets no writes before its primary calls it online.
            late = [value for key, value in replication.items()
                    if key.startswith("slave") and "state=" in value
                    and "state=online" not in value]
            if late:
                return f"{node}: its replica is not online: {late[0]}"
        return ""

    def wait_healthy(self, deadline_s=HEALTHY_DEADLINE_S):
        """Waits until every node runs, serves, and every replica is in step."""
        why = [""]

        def whole():
            why[0] = self.unhealthy()
            return not why[0]

        try:
            wait_until(whole, deadline_s, "the cluster is whole", interval_s=0.1)
        except Timeout as error:
            raise Timeout(f"{error}: {why[0]}") from error

    # Data.

    def keys(self, prefix=""):
        """All keys with this prefix, over all primaries."""
        return [key for node in self.primaries() for key in self._scan(node, prefix)]

    @staticmethod
    def _scan(node, prefix):
        with node.connect() as connection:
            found, cursor = set(), "0"
            while True:
                cursor, keys = connection.call("SCAN", cursor, "MATCH", prefix + "*",
                                               "COUNT", 1000)
                found.update(keys)
                if cursor == "0":
                    return sorted(found)

    def hgetall_all(self, prefix="rl:"):
        """{key: {field: value}} of every hash whose key has this prefix, over all primaries.

        An AssertionError when a primary does not answer: part of the keys would be wrong.
        """
        hashes = {}
        primaries = self.primaries()
        assert len(primaries) >= self._primary_count, f"only {primaries} answer as primaries"
        for node in primaries:
            keys = self._scan(node, prefix)
            with node.connect() as connection:
                for key in keys:
                    if connection.call("TYPE", key) == "hash":
                        hashes[key] = resp.pairs(connection.call("HGETALL", key))
        return hashes
