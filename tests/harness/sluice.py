"""The built programs, run for real: `Daemon` is one sluiced, `ctl` runs sluicectl.

The build directory is that of the environment variable SLUICE_BUILD (default: build/ in the
checkout).
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import tempfile

from .processes import KILL_WAIT_S, Process, run, wait_until

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Start covers allocating and collapsing the segments; a sanitizer build is 10 times slower.
START_DEADLINE_S = 20.0
ADMIN_TIMEOUT_S = 5.0
# A stop ends with a last reconcile, which has a bound of its own.
STOP_DEADLINE_S = 15.0
CTL_DEADLINE_S = 20.0


def build_dir():
    return os.path.abspath(os.environ.get("SLUICE_BUILD", os.path.join(ROOT, "build")))


def binary(name):
    """The path of a built program; an AssertionError says how to build it."""
    folders = {"sluiced": "daemon", "sluicectl": "ctl"}
    path = os.path.join(build_dir(), folders.get(name, ""), name)
    assert os.access(path, os.X_OK), f"no {name} at {path}: build it, or set SLUICE_BUILD"
    return path


class _UnixHttp(http.client.HTTPConnection):
    def __init__(self, path, timeout_s):
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def http_get(socket_path, target, timeout_s=ADMIN_TIMEOUT_S):
    """GET over a Unix socket: (status code, body as text). Raises OSError where nobody listens."""
    connection = _UnixHttp(socket_path, timeout_s)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except http.client.HTTPException as error:
        raise ConnectionError(f"{target}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()


_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,\s*|$)')
_ESCAPES = {"n": "\n", "\\": "\\", '"': '"'}


def _labels(text):
    labels, at = {}, 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if not match:
            raise AssertionError(f"not Prometheus labels: {text!r}")
        labels[match[1]] = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), match[2])
        at = match.end()
    return frozenset(labels.items())


class Metrics(dict):
    """{(name, frozenset of label pairs): value} of one page of Prometheus text.

    A line that is not of the format is an AssertionError, and so is a sample given twice.
    """

    @classmethod
    def parse(cls, text):
        metrics = cls()
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            match = _SAMPLE.match(line)
            assert match, f"not a Prometheus sample: {line!r}"
            key = (match[1], _labels(match[2] or ""))
            assert key not in metrics, f"given twice: {line!r}"
            metrics[key] = float(match[3])
        return metrics

    def matching(self, name, **labels):
        """{frozenset of label pairs: value} of the samples with this name and these labels."""
        wanted = set(labels.items())
        return {pairs: value for (sample, pairs), value in self.items()
                if sample == name and wanted <= pairs}

    def sum(self, name, **labels):
        """The sum over all samples that match; 0 when there is none."""
        return sum(self.matching(name, **labels).values())

    def value(self, name, **labels):
        """The one sample that matches; none or several are an AssertionError."""
        found = self.matching(name, **labels)
        assert len(found) == 1, f"{len(found)} samples match {name}{labels}"
        return next(iter(found.values()))

    def names(self):
        return {name for name, _ in self}


class Daemon:
    """One sluiced in a runtime folder of its own; two of them stand for two hosts.

    `config` is the YAML text. Unless it has a `daemon:` section, one with the runtime folder is
    put before it; a text "{runtime_dir}" in it is replaced. The constructor returns when the admin
    socket answers; with `wait=False` at once, for tests of a daemon that refuses to start.
    `wrapper` is put before the command; where it changes the user, `owner` is that user. It
    inherits `pass_fds`. Its folder is made under `under`; left out: where temporary files go.
    """

    def __init__(self, config, *, wait=True, args=(), env=None, user=None, group=None,
                 extra_groups=None, name="sluiced", wrapper=(), owner=None, pass_fds=(),
                 under=None):
        program = binary("sluiced")
        self.directory = tempfile.mkdtemp(prefix="sluice-daemon-", dir=under)
        # Clients run as other users and must be able to pass through.
        os.chmod(self.directory, 0o755)
        self.runtime_dir = os.path.join(self.directory, "run")
        os.mkdir(self.runtime_dir, 0o755)
        self.config_path = os.path.join(self.directory, "sluice.yaml")
        self.attach_socket = os.path.join(self.runtime_dir, "attach.sock")
        self.admin_socket = os.path.join(self.runtime_dir, "admin.sock")
        self.process = None
        self._argv = [*wrapper, program, "--config", self.config_path, *args]
        self._options = {"env": env, "user": user, "group": group, "extra_groups": extra_groups,
                         "name": name, "pass_fds": pass_fds}
        try:
            if owner is None:
                owner = user
            if owner is not None and os.geteuid() == 0:
                shutil.chown(self.runtime_dir, owner, group)
            self.write_config(config)
            self.start(wait=wait)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write_config(self, config):
        """Replaces the file whole, as an editor or a package manager does."""
        if not re.search(r"^daemon\s*:", config, re.MULTILINE):
            config = "daemon:\n  runtime_dir: {runtime_dir}\n" + config
        fresh = self.config_path + ".new"
        with open(fresh, "w", encoding="utf-8") as file:
            file.write(config.replace("{runtime_dir}", self.runtime_dir))
        os.chmod(fresh, 0o644)
        os.replace(fresh, self.config_path)

    def start(self, *, wait=True):
        """Starts it; also again after stop or kill, in the same folder."""
        log = os.path.join(self.directory, "log")
        self.process = Process(self._argv, log, **self._options)
        if wait:
            self.process.wait_for(lambda: self.status() is not None, START_DEADLINE_S,
                                  "GET /status answers")

    @property
    def pid(self):
        return self.process.pid

    def worker_pid(self):
        """The pid of the keeper's worker; the daemon's own where it has no child."""
        children = self.process.children()
        return children[0] if children else self.pid

    def get(self, target):
        """(status code, body) of one admin request."""
        return http_get(self.admin_socket, target)

    def _ok(self, target):
        code, body = self.get(target)
        assert code == 200, f"GET {target}: {code} {body}"
        return body

    def status(self):
        return json.loads(self._ok("/status"))

    def rules(self):
        return json.loads(self._ok("/rules"))

    def metrics(self):
        return Metrics.parse(self._ok("/metrics"))

    def reload(self, config=None):
        """SIGHUP, after replacing the file where a text is given. Does not wait for the effect."""
        if config is not None:
            self.write_config(config)
        self.process.send(signal.SIGHUP)

    def stop(self, deadline_s=STOP_DEADLINE_S):
        """SIGTERM, and the exit code."""
        return self.process.terminate(deadline_s)

    def kill(self):
        """SIGKILL to the keeper; see kill_worker for the process that reconciles."""
        return self.process.kill()

    def kill_worker(self):
        """SIGKILLs the worker and waits until it is another one; returns the new pid."""
        old = self.worker_pid()
        assert old != self.pid, "the daemon runs without a worker of its own"
        os.kill(old, signal.SIGKILL)
        return self.process.wait_for(
            lambda: next((pid for pid in self.process.children() if pid != old), None),
            KILL_WAIT_S + START_DEADLINE_S, "the keeper starts a new worker")

    def wait_for(self, predicate, deadline_s, what="condition"):
        """Waits until predicate() is true while the daemon runs."""
        return self.process.wait_for(predicate, deadline_s, what)

    def log(self):
        return self.process.log() if self.process else ""

    def close(self):
        """Ends it and its children, and removes its folder; may be called any number of times."""
        if self.process:
            self.process.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def ctl(*args, daemon=None, check=True, stdin_text=None, env=None):
    """Runs sluicectl to its end; with a Daemon, against that one."""
    full_env = dict(env or {})
    if daemon is not None:
        full_env["SLUICE_RUNTIME_DIR"] = daemon.runtime_dir
    return run([binary("sluicectl"), *args], CTL_DEADLINE_S, check=check, env=full_env,
               stdin_text=stdin_text)


def ctl_json(*args, daemon=None):
    """The parsed output of `sluicectl ARGS --json`."""
    return json.loads(ctl(*args, "--json", daemon=daemon).stdout)


@contextlib.contextmanager
def two_hosts(config):
    """Two daemons with the same configuration, as two hosts of one fleet."""
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(Daemon(config, name=f"host-{n}")) for n in (1, 2))


__all__ = ["Daemon", "Metrics", "binary", "build_dir", "ctl", "ctl_json", "http_get", "two_hosts",
           "wait_until"]
