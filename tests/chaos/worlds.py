"""The kinds of worlds in which rows of scripts/chaos happen; those of one kind share one."""

import contextlib
import os
import subprocess
import tempfile

from harness.certificates import Authority
from harness.processes import Process, die_with_parent, run
from harness.redis_cluster import RedisCluster, RedisServer, free_port
from harness.refuse_call import refusing
from harness.sluice import build_dir

from chaos.proxy import Proxy
from chaos.world import World

DEADLINE_S = 20.0
DISK_KIB = 256
# Where all hosts find the cluster: an address of no link.
HUB = "10.99.0.1"


class Refused(Exception):
    """This machine does not let us make such a world; the text says what it refuses."""


@contextlib.contextmanager
def cluster_world():
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster())
        yield World(stack, cluster, cluster.addresses(), "cluster")


@contextlib.contextmanager
def proxy_world():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        proxy = stack.enter_context(Proxy(server.port))
        yield World(stack, server, [proxy.address], "single", proxy=proxy)


@contextlib.contextmanager
def tls_world():
    """One server with a certificate of an authority of ours, `world.authority`."""
    with contextlib.ExitStack() as stack:
        authority = stack.enter_context(Authority())
        authority.issue("server", days=2)
        port = free_port()
        server = stack.enter_context(RedisServer(config={
            "tls-port": port, "tls-cert-file": authority.path("server.pem"),
            "tls-key-file": authority.path("server.key"),
            "tls-ca-cert-file": authority.path("ca.pem"), "tls-auth-clients": "no"}))
        world = World(stack, server, [f"127.0.0.1:{port}"], "single",
                      more=f"  tls: {{ca_file: {authority.path('ca.pem')}}}\n")
        world.authority = authority
        yield world


@contextlib.contextmanager
def memory_world():
    """A cluster, and a first host whose daemon takes memory from the one place that a limit of its
    address space closes at once: other arenas have reserved theirs."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster())
        yield World(stack, cluster, cluster.addresses(), "cluster",
                    hosts=({"env": {"MALLOC_ARENA_MAX": "1"}}, {}))


@contextlib.contextmanager
def epoll_world():
    """Hosts to whose daemons the kernel refuses io_uring, as many containers do."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster())
        host = {"wrapper": refusing("io_uring_setup", "EPERM")}
        world = World(stack, cluster, cluster.addresses(), "cluster", hosts=(host, host))
        for daemon in world.daemons:
            assert daemon.status()["redis"]["transport"] == "epoll", daemon.status()["redis"]
            assert "transport: epoll (epoll; io_uring; with" in daemon.log(), daemon.log()
        yield world


@contextlib.contextmanager
def clock_world():
    """`world.set_back(pid)` sets that process' wall clock back by an hour, for good."""
    with contextlib.ExitStack() as stack:
        prefix = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "pid")
        env = {"LD_PRELOAD": os.path.join(build_dir(), "tests", "support", "wall_clock_back.so"),
               "WALL_CLOCK_BACK": prefix}
        cluster = stack.enter_context(RedisCluster(env=env))
        world = World(stack, cluster, cluster.addresses(), "cluster",
                      hosts=({"env": env}, {"env": env}))

        def set_back(pid):
            with open(f"{prefix}.{pid}", "x", encoding="ascii"):
                pass
            return lambda: os.path.exists(f"{prefix}.{pid}.asked")

        world.set_back = set_back
        yield world


def ip(*words):
    run(["ip", *words], DEADLINE_S)


def cable(number, pid):
    """Connects the network namespace of that process to ours, as the host of that number."""
    ip("link", "add", f"h{number}", "type", "veth", "peer", "name", "eth0", "netns", pid)
    ip("addr", "add", f"10.99.{number}.1/24", "dev", f"h{number}")
    ip("link", "set", f"h{number}", "up")
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for words in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up"),
                  ("addr", "add", f"10.99.{number}.2/24", "dev", "eth0"),
                  ("route", "add", "default", "via", f"10.99.{number}.1")):
        run([*inside, *words], DEADLINE_S)


@contextlib.contextmanager
def links_world():
    """Each daemon in a network namespace of its own; links h1 and h2 lead from there to Redis."""
    with contextlib.ExitStack() as stack:
        ip("addr", "add", HUB, "dev", "lo")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        hosts = []
        for number in (1, 2):
            holder = stack.enter_context(Process(["unshare", "--net", "sleep", "infinity"],
                                                 os.path.join(folder, f"holder-{number}")))
            own = os.readlink("/proc/self/ns/net")
            holder.wait_for(lambda pid=holder.pid, own=own:
                            os.readlink(f"/proc/{pid}/ns/net") != own, DEADLINE_S, "a namespace")
            cable(number, holder.pid)
            hosts.append({"wrapper": ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]})
        cluster = stack.enter_context(RedisCluster(config={
            "bind": "0.0.0.0", "protected-mode": "no", "cluster-announce-ip": HUB}))
        addresses = [f"{HUB}:{node.port}" for node in cluster.nodes]
        yield World(stack, cluster, addresses, "cluster", hosts=hosts)


@contextlib.contextmanager
def disk_world():
    """Hosts whose log and runtime folder are on a small disk, `world.disk`."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(tempfile.TemporaryDirectory())
        run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "sluice-chaos", disk], DEADLINE_S)
        stack.callback(run, ["umount", "--lazy", disk], DEADLINE_S)
        cluster = stack.enter_context(RedisCluster())
        host = {"under": disk}
        world = World(stack, cluster, cluster.addresses(), "cluster", hosts=(host, host))
        world.disk = disk
        yield world


WORLDS = {"cluster": cluster_world, "proxy": proxy_world, "tls": tls_world, "memory": memory_world,
          "epoll": epoll_world, "clock": clock_world, "links": links_world, "disk": disk_world}

# These make links and mounts: for a process with namespaces of its own.
ISOLATED = ("links", "disk")
ISOLATE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
INSIDE = "SLUICE_CHAOS_ISOLATED"


def enter():
    """The first thing in such a process; without namespaces of its own, nothing."""
    if INSIDE in os.environ:
        die_with_parent()
        ip("link", "set", "lo", "up")


def may_isolate():
    """Raises Refused with the kernel's word where it does not let us."""
    done = subprocess.run([*ISOLATE, "ip", "link", "add", "h1", "type", "veth", "peer", "name",
                           "h2"], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode != 0:
        raise Refused(f"no namespaces of our own here: {done.stderr.strip()}")
