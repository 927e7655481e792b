"""The proxy itself: what it does to connections is the rows' business, that it goes on is here."""

import socket

from chaos.proxy import Proxy

DEADLINE_S = 10
CONNECTIONS = 100


def test_it_goes_on_when_both_ends_of_connections_close_at_once():
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as server, \
            Proxy(server.getsockname()[1]) as proxy:
        server.settimeout(DEADLINE_S)

        def pair():
            near = socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S)
            return near, server.accept()[0]

        for near, far in [pair() for _ in range(CONNECTIONS)]:
            near.close()
            far.close()
        near, far = pair()
        with near, far:
            near.sendall(b"still there?")
            far.settimeout(DEADLINE_S)
            assert far.recv(64) == b"still there?"
