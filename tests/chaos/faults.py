"""The faults of scripts/chaos. Each is a context: inside it the fault is on."""

import contextlib
import json
import mmap
import os
import resource
import signal
import threading
import time

from harness import resp
from harness.redis_cluster import PASSWORD, USER, RedisServer, shipped_acl
from harness.sluice import ctl, wait_until

from chaos.proxy import Fault
from chaos.worlds import ip

FAULTS = {}  # name -> Row
# Until an alarm stands, or a daemon is well after a first half of a fault.
ALARM_S = 30


class Row:
    """A fault, and what it may cost."""

    def __init__(self, act, world, hold_s, lost_s, forgets, why):
        self.act, self.world, self.hold_s = act, world, hold_s
        self.lost_s = lost_s  # so many seconds of use at most
        self.forgets = forgets  # Redis is told to forget all
        self.why = why


def fault(name, world="cluster", hold_s=3.0, lost_s=0.0, forgets=False, why=""):
    def register(act):
        FAULTS[name] = Row(contextlib.contextmanager(act), world, hold_s, lost_s, forgets, why)
        return act
    return register


class Repeated:
    """Calls something again and again until the end of its scope; errors of dead nodes are fine."""

    def __init__(self, call, every_s):
        self._call, self._every_s = call, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(OSError, resp.RespError):
                self._call()

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def on_each(world, *command):
    for node in world.redis.nodes:
        with contextlib.suppress(OSError, resp.RespError):
            node.call(*command)


# --- a node dies or stands still -----------------------------------------------------------------

@fault("primary-killed")
def primary_killed(world):
    node = world.redis.kill_primary()
    world.redis.wait_failover(node)
    yield
    node.restart()
    world.redis.wait_healthy()


@fault("primary-paused-5s", hold_s=5.0)
def primary_paused(world):
    node = world.redis.pause_primary()
    yield
    node.resume()
    world.redis.wait_healthy()


@fault("all-primaries-paused")
def all_primaries_paused(world):
    nodes = world.redis.primaries()
    for node in nodes:
        node.pause()
    yield
    for node in nodes:
        node.resume()
    world.redis.wait_healthy()


@fault("replica-promoted-without-the-last-second", hold_s=2.0,
       why="acknowledged writes of the last second are gone; the journal holds two")
def lost_writes(world):
    primary = world.redis.primaries()[0]
    with primary.connect() as connection:
        port = int(resp.info(connection, "replication")["slave0"].split("port=")[1].split(",")[0])
    replica = world.redis.node(port)
    replica.pause()
    time.sleep(1.0)
    primary.kill()
    replica.resume()
    world.redis.wait_failover(primary)
    yield
    primary.restart()
    world.redis.wait_healthy()


def failover(*how):
    def act(world):
        primary = world.redis.primaries()[0]
        with primary.connect() as connection:
            port = int(resp.info(connection, "replication")["slave0"]
                       .split("port=")[1].split(",")[0])
        world.redis.node(port).call("CLUSTER", "FAILOVER", *how)
        world.redis.wait_failover(primary)
        yield
        world.redis.wait_healthy()
    return act


fault("failover")(failover())
fault("failover-force")(failover("FORCE"))


# --- the map changes -----------------------------------------------------------------------------

def move_slot(source, target, slot, nodes):
    """Moves one slot with its keys, as redis-cli does."""
    ids = {node: node.call("CLUSTER", "MYID") for node in (source, target)}
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    for _ in range(1000):
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, 10)
        if not keys:
            break
        source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        time.sleep(0.05)
    for node in (target, source, *nodes):
        with contextlib.suppress(resp.RespError):  # replicas refuse
            node.call("CLUSTER", "SETSLOT", slot, "NODE", ids[target])


@fault("slots-migrated-and-back", hold_s=1.0)
def migrated(world):
    first, second = world.redis.primaries()[:2]
    mine = [key for key in world.redis.keys("rl:") if world.redis.primary_for(key) is first][:4]
    slots = [int(first.call("CLUSTER", "KEYSLOT", key)) for key in mine]
    for slot in slots:
        move_slot(first, second, slot, world.redis.primaries())
    yield
    for slot in slots:
        move_slot(second, first, slot, world.redis.primaries())


@fault("node-added-and-removed", hold_s=1.0)
def node_added(world):
    cluster = world.redis
    with RedisServer(cluster=True, directory=cluster.directory) as extra:
        cluster.cli("--cluster", "add-node", extra.address, cluster.primaries()[0].address,
                    deadline_s=60)
        yield
        cluster.cli("--cluster", "del-node", cluster.primaries()[0].address,
                    extra.call("CLUSTER", "MYID"), deadline_s=60)


# --- Redis refuses, forgets or is slow -----------------------------------------------------------

@fault("scripts-flushed-in-a-loop")
def scripts_flushed(world):
    with Repeated(lambda: on_each(world, "SCRIPT", "FLUSH"), 0.1):
        yield


@fault("flushall", forgets=True, why="Redis forgets all; the journal tells it the last 2 s again")
def flushall(world):
    on_each(world, "FLUSHALL")
    yield


@fault("connections-killed-in-a-loop")
def connections_killed(world):
    with Repeated(lambda: on_each(world, "CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES"), 0.1):
        yield


@fault("debug-sleep")
def debug_sleep(world):
    node = world.redis.primaries()[0]

    def sleep():
        with node.connect(timeout_s=20) as connection:
            connection.call("DEBUG", "SLEEP", 2)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    yield
    thread.join()


@fault("out-of-memory")
def out_of_memory(world):
    on_each(world, "CONFIG", "SET", "maxmemory", 1)
    yield
    on_each(world, "CONFIG", "SET", "maxmemory", 0)


@fault("script-that-runs-long", hold_s=3.0)
def script_runs_long(world):
    node = world.redis.primaries()[0]
    node.call("CONFIG", "SET", "lua-time-limit", 100)

    def run():
        with contextlib.suppress(OSError, resp.RespError), node.connect(timeout_s=20) as connection:
            connection.call("EVAL", "while true do end", 0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    wait_until(lambda: node.call("SCRIPT", "KILL") == "OK", 10, "the script is killed")
    thread.join()


@fault("rights-taken-away")
def rights_taken(world):
    on_each(world, "ACL", "SETUSER", "sluice", "-evalsha", "-eval")
    yield
    on_each(world, "ACL", "SETUSER", "sluice", "+evalsha", "+eval")


@fault("user-deleted")
def user_deleted(world):
    on_each(world, "ACL", "DELUSER", "sluice")
    yield
    on_each(world, "ACL", "SETUSER", *shipped_acl().split()[1:])


@fault("password-changed", hold_s=1.0)
def password_changed(world):
    """First on the servers, two seconds later in the daemons' file: the worst order."""
    def change(old, new):
        for node in world.redis.nodes:
            node.call("ACL", "SETUSER", USER, f"<{old}", f">{new}")
            node.call("CLIENT", "KILL", "USER", USER)
        wait_until(lambda: world.has_alarm("redis-wrong_password"), ALARM_S, "the alarm")
        time.sleep(2.0)
        world.write_password(new)

    change(PASSWORD, "another")
    wait_until(world.is_healthy, ALARM_S, "the new password is taken")
    yield
    change("another", PASSWORD)


@fault("too-few-replicas", hold_s=2.0)
def too_few_replicas(world):
    for node in world.redis.nodes:
        node.call("CONFIG", "SET", "min-replicas-to-write", 3)
    yield
    on_each(world, "CONFIG", "SET", "min-replicas-to-write", 0)


# --- the host ------------------------------------------------------------------------------------

@fault("daemon-killed-in-a-loop", hold_s=0.5, lost_s=1.0,
       why="a kill loses what was harvested and not acknowledged")
def daemon_killed(world):
    for _ in range(3):
        world.daemons[0].kill_worker()
        time.sleep(0.5)
    yield


@fault("daemon-upgraded", hold_s=1.0)
def daemon_upgraded(world):
    daemon = world.daemons[0]
    old = daemon.worker_pid()
    daemon.process.send(signal.SIGUSR2)
    daemon.wait_for(lambda: daemon.worker_pid() not in (old, daemon.pid), 20, "another worker")
    yield


@fault("daemon-paused", hold_s=4.0)
def daemon_paused(world):
    pid = world.daemons[0].worker_pid()
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@fault("client-paused", hold_s=4.0)
def client_paused(world):
    world.loads[0].process.pause()
    yield
    world.loads[0].process.resume()


@fault("no-descriptors-left")
def no_descriptors(world):
    pid = world.daemons[0].worker_pid()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE,
                     (len(os.listdir(f"/proc/{pid}/fd")), before[1]))
    with Repeated(lambda: on_each(world, "CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES"), 0.5):
        yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@fault("memory-limit-reached", world="memory", hold_s=1.0, lost_s=0.5,
       why="without memory the worker ends, and its keeper starts another: a kill")
def memory_limit(world):
    """No more memory for the worker, while tens of thousands of buckets are new."""
    daemon = world.daemons[0]
    pid = daemon.worker_pid()
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    world.rate_besides = 20000
    done = ctl("replay", "--generate", f"keys=100000,skew=0.1,rate={world.rate_besides}",
               "--seconds", 5, "--json", daemon=daemon)
    world.admitted_besides = json.loads(done.stdout.splitlines()[-1])["allowed"]
    assert daemon.worker_pid() != pid, "the limit was not reached"
    yield


# --- what is under the daemon ----------------------------------------------------------------------

@fault("certificate-expired-and-renewed", world="tls")
def certificate_expired(world):
    def take(days):
        world.authority.issue("server", days=days)
        world.redis.call("CONFIG", "SET", "tls-cert-file", world.authority.path("server.pem"),
                         "tls-key-file", world.authority.path("server.key"))
        world.redis.call("CLIENT", "KILL", "USER", USER)

    take(-1)
    wait_until(lambda: world.has_alarm("redis-tls", mend="renew it"), ALARM_S, "the alarm")
    yield
    take(2)


fault("no-io-uring-primary-killed", world="epoll")(primary_killed)
fault("no-io-uring-connections-killed-in-a-loop", world="epoll")(connections_killed)


@fault("wall-clock-of-the-daemons-back-an-hour", world="clock")
def daemons_clock(world):
    asked = [world.set_back(daemon.worker_pid()) for daemon in world.daemons]
    # So that they have something to log.
    with Repeated(lambda: on_each(world, "CLIENT", "KILL", "USER", USER), 0.5):
        wait_until(lambda: all(look() for look in asked), ALARM_S, "they ask for the time")
        yield


@fault("wall-clock-of-redis-back-an-hour", world="clock")
def redis_clock(world):
    for node in world.redis.nodes:
        world.set_back(node.pid)
        assert int(node.call("TIME")[0]) < time.time() - 3000, "the clock stands"
    yield


@fault("links-down-5s", world="links", hold_s=5.0)
def links_down(world):
    del world
    for link in ("h1", "h2"):
        ip("link", "set", link, "down")
    yield
    for link in ("h1", "h2"):
        ip("link", "set", link, "up")


@fault("link-of-one-host-down-5s", world="links", hold_s=5.0)
def one_link_down(world):
    del world
    ip("link", "set", "h1", "down")
    yield
    ip("link", "set", "h1", "up")


@contextlib.contextmanager
def full(disk):
    """No byte of that disk is free."""
    path = os.path.join(disk, "filler")
    with open(path, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            for _ in range(1 << 16):
                file.write(bytes(4096))
        left = os.statvfs(disk).f_bavail
        assert left == 0, f"{left} blocks are free"
        yield
    os.unlink(path)


@fault("disk-full-connections-killed-in-a-loop", world="disk")
def disk_full(world):
    def log_sizes():
        return [os.path.getsize(daemon.process.log_path) for daemon in world.daemons]

    with full(world.disk):
        most = [size + mmap.PAGESIZE for size in log_sizes()]
        with contextlib.contextmanager(connections_killed)(world):
            yield
        assert all(size < bound for size, bound in zip(log_sizes(), most)), "there was room"


@fault("disk-full-daemon-killed-in-a-loop", world="disk", hold_s=0.5, lost_s=1.0,
       why="a kill loses what was harvested and not acknowledged")
def disk_full_daemon_killed(world):
    # What it has there is taken by the filler, too.
    os.truncate(os.path.join(world.daemons[0].runtime_dir, "sluiced.lock"), 0)
    with full(world.disk):
        for _ in range(3):
            world.daemons[0].kill_worker()
            time.sleep(0.5)
        wait_until(world.is_healthy, ALARM_S, "healthy on the full disk")
        yield


# --- the network, by a proxy before one server ---------------------------------------------------

def by_proxy(name, hold_s=3.0, **how):
    def act(world):
        world.proxy.fault = Fault(**how)
        yield
        world.proxy.fault = None
    fault(name, world="proxy", hold_s=hold_s)(act)


by_proxy("latency-20ms", delay_s=0.02)
by_proxy("latency-2s", delay_s=2.0)
by_proxy("jitter-100ms", jitter_s=0.1)
by_proxy("bandwidth-4kB-per-s", bytes_per_s=4000)
by_proxy("black-hole", drop=True)
by_proxy("black-hole-up-only", drop=True, down=False)
by_proxy("black-hole-down-only", drop=True, up=False)
by_proxy("reset", reset=True)
by_proxy("half-closed", half_close=True)
by_proxy("cut-in-mid-reply", cut_after=2000, up=False)
by_proxy("garbage-down", garbage=True, up=False)
by_proxy("garbage-up", garbage=True, down=False)
by_proxy("slow-drip", drip=True, up=False)
