"""Every fuzzer builds, runs some seconds from its seeds, and finds nothing; see scripts/fuzz."""

import glob
import os
import re

import pytest

from harness.processes import run
from harness.sluice import ROOT, build_dir

# From nothing the build takes a minute and a half on two cores, the run half a minute.
SUITE_TIMEOUT_S = 900
SECONDS_EACH = 5
NOT_HERE = 77
BUILD_DIR = build_dir() + "-fuzz"
SOURCES = {os.path.basename(path)[:-len("_fuzz.cc")]: path
           for folder in ("shm", "client", "daemon", "ctl")
           for path in glob.glob(f"{ROOT}/{folder}/**/*_fuzz.cc", recursive=True)}


def seeds_of(name):
    return glob.glob(os.path.join(os.path.dirname(SOURCES[name]), "corpus", name, "*"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_fuzzer_has_a_handful_of_small_seeds(name):
    seeds = seeds_of(name)
    assert 5 <= len(seeds) <= 15
    assert all(os.path.getsize(seed) <= 1024 for seed in seeds)


@pytest.mark.timeout_s(SUITE_TIMEOUT_S - 60)
def test_no_fuzzer_finds_anything_within_some_seconds():
    done = run([f"{ROOT}/scripts/fuzz", "--seconds", SECONDS_EACH, "--build", BUILD_DIR],
               SUITE_TIMEOUT_S - 90, check=False)
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {found["name"]: found for found in re.finditer(
        r"^ok   (?P<name>\w+): (?P<runs>[\d,]+) executions, (?P<edges>[\d,]+) edges, 0 crashes$",
        done.stdout, re.MULTILINE)}
    assert set(lines) == set(SOURCES), done.stdout
    for name, line in lines.items():
        assert int(line["runs"].replace(",", "")) > len(seeds_of(name)), done.stdout
        assert int(line["edges"].replace(",", "")) > 0, done.stdout
