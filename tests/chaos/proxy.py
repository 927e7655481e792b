"""A TCP proxy on loopback that does to its connections what bad networks do."""

import random
import select
import socket
import struct
import threading
import time

PIECE = 4096
LOOK_S = 0.01


class Fault:
    """What happens to bytes on their way. `up` and `down`: which ways it concerns."""

    def __init__(self, *, delay_s=0.0, jitter_s=0.0, bytes_per_s=0, drop=False, reset=False,
                 half_close=False, cut_after=0, garbage=False, drip=False, up=True, down=True):
        self.delay_s, self.jitter_s, self.bytes_per_s = delay_s, jitter_s, bytes_per_s
        self.drop, self.reset, self.half_close = drop, reset, half_close
        self.cut_after, self.garbage, self.drip = cut_after, garbage, drip
        self.up, self.down = up, down


class _Way:
    """One direction of one connection: bytes wait here until they are due."""

    def __init__(self, source, target, is_up):
        self.source, self.target, self.is_up = source, target, is_up
        self.waiting = []  # (due, bytes)
        self.passed = 0
        self.ended = False

    def concerns(self, fault):
        return fault is not None and (fault.up if self.is_up else fault.down)


class Proxy:
    """Listens on a port of its own and passes all on to `port`; `fault` may be set at any time.

    `at`: the address and port to listen on, for a cluster that names its port."""

    def __init__(self, port, seed=1, at=("127.0.0.1", 0)):
        self._target = port
        self._random = random.Random(seed)
        self._host = at[0]
        self._listener = socket.create_server(at)
        self.port = self._listener.getsockname()[1]
        self.fault = None
        self._ways = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self):
        return f"{self._host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        for way in self._ways:
            way.source.close()
        self._listener.close()

    def _run(self):
        while not self._stop.is_set():
            fault = self.fault
            readable, _, _ = select.select([self._listener, *(w.source for w in self._ways
                                                              if not w.ended)], [], [], LOOK_S)
            if self._listener in readable:
                self._accept()
            for way in [w for w in self._ways if w.source in readable]:
                if way in self._ways:  # else its other direction has just ended both
                    self._read(way, fault)
            for way in list(self._ways):
                self._pass_on(way, fault)

    def _accept(self):
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=1)
        except OSError:
            near.close()
            return
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways += [_Way(near, far, True), _Way(far, near, False)]

    def _read(self, way, fault):
        try:
            data = way.source.recv(PIECE)
        except OSError:
            data = b""
        if not data:
            self._close(way)
            return
        due = time.monotonic()
        if way.concerns(fault):
            if fault.reset:
                self._close(way, reset=True)
                return
            if fault.drop:
                return
            if fault.garbage:
                data = bytes(self._random.randrange(256) for _ in data)
            due += fault.delay_s + fault.jitter_s * self._random.random()
            if way.waiting:
                due = max(due, way.waiting[-1][0])
        way.waiting.append((due, data))

    def _pass_on(self, way, fault):
        now = time.monotonic()
        concerned = way.concerns(fault)
        budget = 1 << 30
        if concerned and fault.drip:
            budget = 1
        elif concerned and fault.bytes_per_s:
            budget = max(1, int(fault.bytes_per_s * LOOK_S))
        if concerned and fault.half_close and not way.ended:
            way.ended = True
            self._quietly(lambda: way.target.shutdown(socket.SHUT_WR))
        while way.waiting and way.waiting[0][0] <= now and budget > 0:
            due, data = way.waiting.pop(0)
            piece, rest = data[:budget], data[budget:]
            if rest:
                way.waiting.insert(0, (due, rest))
            budget -= len(piece)
            if concerned and fault.cut_after and way.passed + len(piece) > fault.cut_after:
                piece = piece[:max(0, fault.cut_after - way.passed)]
                self._quietly(lambda p=piece: way.target.sendall(p))
                self._close(way)
                return
            way.passed += len(piece)
            if not self._quietly(lambda p=piece: way.target.sendall(p)):
                self._close(way)
                return

    def _close(self, way, reset=False):
        for one in [w for w in self._ways if way.source in (w.source, w.target)]:
            self._ways.remove(one)
        for end in (way.source, way.target):
            if reset:
                self._quietly(lambda e=end: e.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                                         struct.pack("ii", 1, 0)))
            end.close()

    @staticmethod
    def _quietly(call):
        try:
            call()
        except OSError:
            return False
        return True
