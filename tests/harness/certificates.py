"""Certificates of an authority of the tests' own, made by the openssl tool."""

import os
import tempfile

from .processes import run

DEADLINE_S = 20.0
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """An authority (ca.pem) in a folder that goes with it."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-certificates-")
        run(["openssl", "req", "-x509", *_NEW_KEY, "-keyout", self.path("ca.key"), "-out",
             self.path("ca.pem"), "-days", "2", "-subj", "/CN=sluice test authority"], DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._folder.cleanup()

    def path(self, name):
        return os.path.join(self._folder.name, name)

    def issue(self, name, days=2):
        """Makes NAME.pem and NAME.key for 127.0.0.1; with a negative `days` it has expired."""
        with open(self.path("names"), "w", encoding="ascii") as file:
            file.write("subjectAltName=IP:127.0.0.1\n")
        run(["openssl", "req", "-new", *_NEW_KEY, "-keyout", self.path(name + ".key"), "-out",
             self.path("csr"), "-subj", f"/CN={name}"], DEADLINE_S)
        run(["openssl", "x509", "-req", "-in", self.path("csr"), "-CA", self.path("ca.pem"),
             "-CAkey", self.path("ca.key"), "-CAcreateserial", "-days", days, "-extfile",
             self.path("names"), "-out", self.path(name + ".pem")], DEADLINE_S)
