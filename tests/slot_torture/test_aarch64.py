"""The slot protocol's torture compiled for aarch64 and run under qemu: its code as GCC makes it for
that processor, with and without its atomic instructions.

qemu carries each of them out on this machine's memory. Where that is an x86 this shows that the code
compiles to working atomics and that nothing depends on x86's instructions; it does not show weak
ordering: loads and stores that an aarch64 may reorder come in x86's order. tests/weak is for that.
"""

import os
import shutil

import pytest

from harness.processes import run
from harness.sluice import ROOT

KILLS = int(os.environ.get("SLOT_TORTURE_KILLS", "500"))
SEED = int(os.environ.get("SLOT_TORTURE_SEED", "1"))
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
BUILD_DEADLINE_S = 60.0
# Seconds where the machine is free.
RUN_DEADLINE_S = 100.0

FLAGS = {"load_exclusive": ["-march=armv8-a", "-mno-outline-atomics"],
         "atomic_instructions": ["-march=armv8.1-a"]}


@pytest.mark.timeout_s(400)
@pytest.mark.parametrize("machine", FLAGS)
def test_kills_leave_no_harm_on_aarch64(tmp_path, machine):
    for tool, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: install {package}")
    program = tmp_path / "slot_torture"
    run([COMPILER, "-std=c++20", "-O2", "-static", "-Wall", "-Wextra", "-Werror", *FLAGS[machine],
         f"-I{ROOT}", os.path.join(ROOT, "tests", "slot_torture", "slot_torture.cc"),
         "-o", program], BUILD_DEADLINE_S)
    for kind in (0, 1, 2):  # token buckets, fixed windows, sliding windows
        done = run([EMULATOR, program, "--kills", KILLS, "--seed", SEED, "--kind", kind],
                   RUN_DEADLINE_S, check=False)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "64 of 64 slots usable" in done.stdout
