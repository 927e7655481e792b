"""What README and docs say is so: examples compile and run, names exist in the tree."""

import functools
import glob
import os
import re

import pytest

from harness.processes import run
from harness.sluice import ROOT, binary, build_dir

DEADLINE_S = 120.0
EXAMPLE_LINES_MAX = 39  # "under 40 lines"
EXAMPLE = "<!-- example: compiled by tests/readme -->"    # a whole program
FRAGMENT = "<!-- fragment: compiled by tests/readme -->"  # the inside of a function
HEADERS = os.path.join(ROOT, "client", "include")
FLAGS = {
    "c": ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"],
    "cpp": ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror"],
}
# What a fragment finds around it.
AROUND = {
    "c": "#include <stdio.h>\n#include <string.h>\n#include \"sluice.h\"\n"
         "void fragment(sluice_t* client);\nvoid fragment(sluice_t* client) {\n%s}\n",
    "cpp": "#include <array>\n#include <cstdio>\n#include <string>\n#include <vector>\n"
           "#include \"sluice.hpp\"\nvoid Fragment(sluice::Client& client);\n"
           "void Fragment(sluice::Client& client) {\n%s}\n",
}
TOP_FOLDERS = "bench|client|ctl|daemon|docs|lua|scripts|shm|systemd|tests"


def pages():
    """README.md and docs, as paths from the root."""
    found = ["README.md"] + glob.glob("docs/**/*.md", root_dir=ROOT, recursive=True)
    found += glob.glob("*/README.md", root_dir=ROOT)
    return sorted(set(found))


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8", errors="replace") as file:
        return file.read()


def fences(name):
    """(mark, language, text, line) of each fenced block; the mark is the line before it."""
    lines = read(name).splitlines()
    inside = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if inside is None:
            inside = number
            continue
        text = "\n".join(lines[inside + 1:number]) + "\n"
        yield lines[inside - 1].strip(), lines[inside][3:].strip(), text, inside + 2
        inside = None
    assert inside is None, f"{name}: a fence without an end"


def programs(mark):
    return [(name, language, text, line) for name in pages()
            for found, language, text, line in fences(name) if found == mark]


def words(name):
    """Everything that a page sets as code: `inline` words and the lines of fenced blocks."""
    text = read(name)
    found = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text,
                                                         flags=re.DOTALL | re.MULTILINE))
    return found + [line for _, _, block, _ in fences(name) for line in block.splitlines()]


def name_of(case):
    # Pytest asks for the name of an empty list, too.
    return f"{case[0]}:{case[3]}" if isinstance(case, tuple) else "none"


@functools.lru_cache(maxsize=None)
def sources(*folders):
    """The text of all sources in the folders."""
    found = [path for folder in folders
             for path in glob.glob(f"{folder}/**/*", root_dir=ROOT, recursive=True)
             if path.endswith((".h", ".hpp", ".cc", ".lua", ".py", ".in"))]
    return "\n".join(read(path) for path in found)


def build(language, text, tmp_path):
    """The program, linked with the built library."""
    library = os.path.join(build_dir(), "client")
    assert os.path.exists(os.path.join(library, "libsluice.so")), \
        f"no libsluice.so in {library}: build it, or set SLUICE_BUILD"
    source, program = tmp_path / f"example.{language}", tmp_path / "example"
    source.write_text(text)
    run([*FLAGS[language], f"-I{HEADERS}", source, f"-L{library}", f"-Wl,-rpath,{library}",
         "-lsluice", "-o", program], DEADLINE_S)
    return program


def test_the_readme_has_one_example_of_under_40_lines():
    found = [case for case in programs(EXAMPLE) if case[0] == "README.md"]
    assert len(found) == 1
    assert found[0][1] == "cpp"
    assert found[0][2].count("\n") <= EXAMPLE_LINES_MAX


def test_the_first_screen_names_both_commands_and_shows_picture_and_example():
    # What comes before the second heading.
    first = read("README.md").split("\n## ")[0]
    for part in ("scripts/demo", "scripts/test", EXAMPLE, "io_uring", "fold.lua"):
        assert part in first, part


@pytest.mark.parametrize("case", programs(EXAMPLE), ids=name_of)
def test_an_example_compiles_and_answers_by_default_without_a_daemon(case, tmp_path):
    _, language, text, _ = case
    program = build(language, text, tmp_path)
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    done = run([program], DEADLINE_S, env={"SLUICE_RUNTIME_DIR": str(nobody)})
    assert "by default" in done.stdout and "no sluiced here" in done.stdout, done.stdout
    assert re.search(r"allowed (\d+) of \1$", done.stdout, re.MULTILINE), done.stdout


def test_docs_hold_an_example_in_c():
    assert [case for case in programs(EXAMPLE) if case[1] == "c" and case[0].startswith("docs/")]


@pytest.mark.parametrize("case", programs(FRAGMENT), ids=name_of)
def test_a_fragment_compiles(case, tmp_path):
    _, language, text, _ = case
    source = tmp_path / f"fragment.{language}"
    source.write_text(AROUND[language] % text)
    run([*FLAGS[language], "-Wno-unused", "-fsyntax-only", f"-I{HEADERS}", source], DEADLINE_S)


@pytest.mark.parametrize("case", [(name, language, text, line) for name in pages()
                                  for _, language, text, line in fences(name)
                                  if language == "yaml"], ids=name_of)
def test_a_configuration_is_accepted_by_the_daemon(case, tmp_path):
    keys = tmp_path / "private.keys"  # which must be there
    keys.write_text("1 000102030405060708090a0b0c0d0e0f\n")
    config = tmp_path / "sluice.yaml"
    config.write_text(case[2].replace("/etc/sluice/private.keys", str(keys)))
    done = run([binary("sluiced"), "--config", config, "--check-config"], DEADLINE_S)
    assert "warning" not in done.stdout, done.stdout


def test_every_block_of_c_or_cpp_is_compiled():
    problems = [f"{name}:{line}" for name in pages() for mark, language, _, line in fences(name)
                if language in FLAGS and mark not in (EXAMPLE, FRAGMENT)]
    assert not problems, "a block that no test compiles: " + ", ".join(problems)


@pytest.mark.parametrize("name", pages())
def test_a_link_leads_to_a_file(name):
    folder = os.path.dirname(name)
    problems = []
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(name)):
        if not os.path.exists(os.path.join(ROOT, folder, target)):
            problems.append(target)
    assert not problems


@pytest.mark.parametrize("name", pages())
def test_a_file_that_is_named_exists(name):
    problems = []
    for word in words(name):
        for path in re.findall(rf"(?<![\w/.-])((?:{TOP_FOLDERS})/[\w./*-]*[\w/*])", word):
            if re.search(r"/(\d+|X)$", path):  # a prefix length (client/24), a placeholder
                continue
            # A folder's README speaks of names within it too.
            places = [os.path.join(ROOT, path), os.path.join(ROOT, os.path.dirname(name), path)]
            if not any(glob.glob(place) for place in places):
                problems.append(path)
    assert not problems


@pytest.mark.parametrize("name", pages())
def test_a_command_that_is_named_exists(name):
    problems = []
    for word in words(name):
        if re.match(r"(\./)?scripts/[\w-]+", word):
            path = re.match(r"(?:\./)?(scripts/[\w-]+)", word)[1]
            if os.path.isfile(os.path.join(ROOT, path)) and \
                    not os.access(os.path.join(ROOT, path), os.X_OK):
                problems.append(f"{path} cannot be run")
        for verb in re.findall(r"(?:^|[\s/])sluicectl ([a-z]+)\b", word):
            if f'"{verb}"' not in sources("ctl"):
                problems.append(f"sluicectl {verb}")
        for flag in re.findall(r"sluicectl [^|#]*?(--[a-z-]+)", word):
            if flag not in sources("ctl") and flag not in ("--help", "--version"):
                problems.append(f"sluicectl {flag}")
        for flag in re.findall(r"(?:^|[\s/])sluiced (?:[^|#]*? )?(--[a-z-]+)", word):
            if flag not in sources("daemon"):
                problems.append(f"sluiced {flag}")
    assert not problems


@pytest.mark.parametrize("name", pages())
def test_a_name_of_the_code_that_is_named_exists(name):
    known = sources("bench", "client", "ctl", "daemon", "lua", "shm", "tests")
    problems = []
    for word in words(name):
        for symbol in re.findall(r"\b(?:k[A-Z]\w+|sluice_[a-z_]+|SLUICE_[A-Z_]+)\b", word):
            if not re.search(rf"\b{symbol}\b", known):
                problems.append(symbol)
    assert not problems


def test_no_page_names_an_address_of_the_web():
    problems = [f"{name}: {found}" for name in pages()
                for found in re.findall(r"\bhttps?://(?!localhost\b)[^\s)>`]+", read(name))]
    assert not problems
