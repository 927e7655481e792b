"""A blocking Redis connection (RESP2), as much of it as tests need."""

import socket

# One reply of a test is far below this; more means that the stream is out of step.
REPLY_BYTES_MAX = 64 << 20
TIMEOUT_S = 5.0


class RespError(Exception):
    """An error reply; its text is Redis' own."""


class Connection:
    """One connection to one server. Not thread-safe."""

    def __init__(self, port, host="127.0.0.1", *, user=None, password=None, timeout_s=TIMEOUT_S):
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._file = self._socket.makefile("rb")
        if password is not None:
            self.call("AUTH", *([user] if user else []), password)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()
        self._socket.close()

    def call(self, *args):
        """Sends one command. Text replies come as str where they are UTF-8, else as bytes."""
        parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        request = b"*%d\r\n" % len(parts)
        for part in parts:
            request += b"$%d\r\n%s\r\n" % (len(part), part)
        self._socket.sendall(request)
        reply = self._read()
        if isinstance(reply, RespError):
            raise reply
        return reply

    def _line(self):
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        return line[:-2]

    def _read(self):
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return RespError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self._bulk(int(rest))
        if kind == b"*":
            return None if rest == b"-1" else [self._read() for _ in range(int(rest))]
        raise ConnectionError(f"not a RESP2 reply: {line[:80]!r}")

    def _bulk(self, length):
        if length < 0:
            return None
        if length > REPLY_BYTES_MAX:
            raise ConnectionError(f"a reply of {length} bytes is too large")
        data = self._file.read(length + 2)
        if len(data) != length + 2:
            raise ConnectionError("the server closed the connection")
        try:
            return data[:-2].decode()
        except UnicodeDecodeError:
            return data[:-2]


def pairs(reply):
    """A flat reply (HGETALL, CONFIG GET) as a dict."""
    return dict(zip(reply[0::2], reply[1::2]))


def info(connection, section):
    """The fields of one section of INFO, or of CLUSTER INFO, as a dict of strings."""
    text = connection.call("CLUSTER", "INFO") if section == "cluster" else connection.call(
        "INFO", section)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
