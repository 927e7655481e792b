"""What `meson install` puts where, and what the client library asks of its users."""

import json
import os
import re
import shlex

import pytest

from harness.processes import run
from harness.sluice import build_dir

DEADLINE_S = 120.0
# libc, libstdc++ and their own parts; the loader and the kernel's page are no libraries.
ALLOWED_LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6"}


def options():
    out = run(["meson", "introspect", "--buildoptions", build_dir()], DEADLINE_S).stdout
    return {option["name"]: option["value"] for option in json.loads(out)}


@pytest.fixture(name="root", scope="module")
def fixture_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    run(["meson", "install", "-C", build_dir(), "--no-rebuild", "--destdir", root], DEADLINE_S)
    return root


@pytest.fixture(name="prefix", scope="module")
def fixture_prefix(root):
    """The installed prefix under the root, as pkg-config and the tests below need it."""
    return str(root) + options()["prefix"]


@pytest.fixture(name="libdir", scope="module")
def fixture_libdir(prefix):
    return os.path.join(prefix, options()["libdir"])


@pytest.fixture(name="library", scope="module")
def fixture_library(libdir):
    return os.path.join(libdir, "libsluice.so.0")


def test_every_file_is_where_debian_expects_it(root, prefix, libdir):
    version = re.search(r'"version": "([0-9.]+)"', run(
        ["meson", "introspect", "--projectinfo", build_dir()], DEADLINE_S).stdout)[1]
    expected = [
        f"{prefix}/sbin/sluiced",
        f"{prefix}/bin/sluicectl",
        f"{prefix}/include/sluice.h",
        f"{prefix}/include/sluice.hpp",
        f"{libdir}/libsluice.so",
        f"{libdir}/libsluice.so.0",
        f"{libdir}/libsluice.so.{version}",
        f"{libdir}/pkgconfig/sluice.pc",
        f"{root}/lib/systemd/system/sluiced.service",
        f"{root}/usr/lib/sysusers.d/sluice.conf",
        f"{root}/usr/lib/tmpfiles.d/sluice.conf",
        f"{root}/etc/sluice/sluice.yaml",
        f"{prefix}/share/bash-completion/completions/sluicectl",
    ]
    missing = [path.removeprefix(str(root)) for path in expected if not os.path.exists(path)]
    assert not missing


def test_nothing_else_is_installed(root):
    # Static libraries, tests and benchmarks are for the build only.
    allowed = re.compile(
        r"(sluiced|_?sluicectl|sluicectl\.fish|sluice\.(h|hpp|pc|conf|yaml)|libsluice\.so[.0-9]*|sluiced\.service"
        r"|[\w.-]+\.(md|lua|[1-8]))$")
    found = [os.path.join(folder, file) for folder, _, files in os.walk(root) for file in files]
    assert found
    assert not [path for path in found if not allowed.search(path)]


def test_the_installed_unit_starts_the_installed_daemon_with_the_installed_file(root, prefix):
    unit = (root / "lib/systemd/system/sluiced.service").read_text()
    program, flag, config = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1].split()
    assert str(root) + program == f"{prefix}/sbin/sluiced"
    assert flag == "--config"
    assert os.path.exists(str(root) + config)
    assert not re.search(r"@[a-z]+@", unit)


def test_the_installed_configuration_is_accepted_by_the_installed_daemon(root, prefix):
    run([f"{prefix}/sbin/sluiced", "--check-config", "--config", f"{root}/etc/sluice/sluice.yaml"],
        DEADLINE_S)


def test_the_client_library_needs_libc_and_libstdcxx_alone(library):
    needed = set()
    for line in run(["ldd", library], DEADLINE_S).stdout.splitlines():
        name = os.path.basename(line.split()[0])
        if not name.startswith(("ld-linux", "linux-vdso")):
            needed.add(name)
    assert "libc.so.6" in needed
    assert needed <= ALLOWED_LIBRARIES, needed - ALLOWED_LIBRARIES


def test_the_client_library_shows_its_own_symbols_alone(library):
    lines = run(["nm", "-D", "--defined-only", library], DEADLINE_S).stdout.splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines}
    assert names, "nothing is exported"
    assert not [name for name in names if not name.startswith("sluice_")]


def test_every_function_of_the_header_is_exported_and_no_other(library, prefix):
    lines = run(["nm", "-D", "--defined-only", library], DEADLINE_S).stdout.splitlines()
    exported = {line.split()[-1].split("@")[0] for line in lines}
    with open(f"{prefix}/include/sluice.h", encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", file.read(), flags=re.DOTALL)
    declared = set(re.findall(r"\b(sluice_[a-z0-9_]+)\s*\([^;{]*\)\s*(?:SLUICE_\w+\s*)*;", text))
    assert exported == declared


def test_the_client_library_has_a_soname_and_no_writable_code(library):
    dynamic = run(["readelf", "-dW", library], DEADLINE_S).stdout
    assert "Library soname: [libsluice.so.0]" in dynamic
    assert "TEXTREL" not in dynamic and "RUNPATH" not in dynamic and "RPATH" not in dynamic
    headers = run(["readelf", "-lW", library], DEADLINE_S).stdout
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack
    assert "GNU_RELRO" in headers


PROGRAM = {
    "c": """
#include <sluice.h>
int main(void) { return 0; }
""",
    "cc": """
#include <sluice.hpp>
int main() { return 0; }
""",
}


@pytest.mark.parametrize("language, compiler", [("c", ["gcc", "-std=c11", "-pedantic"]),
                                                ("cc", ["g++", "-std=c++20"])])
def test_a_program_builds_with_pkg_config_alone(language, compiler, root, libdir, tmp_path):
    source = tmp_path / f"main.{language}"
    source.write_text(PROGRAM[language])
    flags = shlex.split(run(
        ["pkg-config", "--cflags", "--libs", "sluice"], DEADLINE_S,
        env={"PKG_CONFIG_PATH": f"{libdir}/pkgconfig", "PKG_CONFIG_SYSROOT_DIR": str(root),
             "PKG_CONFIG_ALLOW_SYSTEM_CFLAGS": "1", "PKG_CONFIG_ALLOW_SYSTEM_LIBS": "1"}).stdout)
    assert "-lsluice" in flags
    run([*compiler, "-Wall", "-Wextra", "-Werror", source, "-Wl,--no-as-needed", *flags,
         "-o", tmp_path / "main"], DEADLINE_S)
    run([tmp_path / "main"], DEADLINE_S, env={"LD_LIBRARY_PATH": libdir})
