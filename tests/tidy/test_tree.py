"""Keeps the tree's rules. What each rule is for stands in its message or above it."""

import os
import re
import stat
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINES_MAX = 500
README_LINES_MAX = 15
CXX = (".h", ".hpp", ".cc")
TEXT = CXX + (".py", ".lua", ".sh", ".build", ".yaml", ".in", ".md", ".txt")

TOP_NAMES = {
    ".ci", ".clang-format", ".clang-tidy", ".editorconfig", ".gitignore", "CHANGELOG.md",
    "LICENSE", "README.md", "bench", "client", "ctl", "daemon", "docs", "lua", "meson.build",
    "meson_options.txt", "scripts", "shm", "systemd", "tests",
}
# What each folder may include of ours (beside itself); bench and tests may see everything.
MAY_INCLUDE = {
    "shm": ("shm/",),
    "client": ("client/", "shm/", "sluice.h"),
    "daemon": ("daemon/", "shm/"),
    "ctl": ("ctl/", "shm/", "sluice.h", "client/include/"),
}
OURS = ("bench/", "client/", "ctl/", "daemon/", "lua/", "shm/", "tests/", "sluice.h")
# Put together here, so that this file does not find itself.
MACHINE_PATHS = re.compile("/" + r"(work|home|root|Users|usr/local/google)/[A-Za-z0-9_.]")


def tree_files():
    done = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    if done.returncode == 0:
        names = done.stdout.split("\0")
    else:
        names = [os.path.relpath(os.path.join(folder, file), ROOT)
                 for folder, _, files in os.walk(ROOT) for file in files]
        names = [name for name in names if not name.startswith("build")]
    return sorted(name for name in set(names) if os.path.isfile(os.path.join(ROOT, name)))


FILES = tree_files()


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8", errors="replace") as file:
        return file.read()


def sources(suffixes=CXX, under=""):
    return [name for name in FILES if name.endswith(suffixes) and name.startswith(under)]


def is_script(name):
    return read(name)[:2] == "#!"


def included(name):
    """The quoted and angled includes of a file, with their lines."""
    for number, line in enumerate(read(name).splitlines(), 1):
        found = re.match(r'\s*#\s*include\s*["<]([^">]+)[">]', line)
        if found:
            yield number, found[1]


def none(problems, why):
    assert not problems, why + ":\n" + "\n".join(problems)


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_a_folder_includes_only_what_it_may(folder):
    problems = [f"{name}:{number}: {path}" for name in sources(under=folder + "/")
                for number, path in included(name)
                if path.startswith(OURS) and not path.startswith(MAY_INCLUDE[folder])]
    none(problems, f"{folder}/ may include only {', '.join(MAY_INCLUDE[folder])}")


def test_a_part_of_the_daemon_includes_only_parts_above_it():
    # daemon/meson.build names the parts in the order of the data's way.
    order = re.findall(r"subdir\('(\w+)'\)", read("daemon/meson.build"))
    problems = []
    for at, part in enumerate(order):
        allowed = order[:at + 1]
        for name in sources(under=f"daemon/{part}/"):
            for number, path in included(name):
                # Headers right in daemon/ (its log, its engine's face) are for all.
                found = re.match(r"daemon/(\w+)/", path)
                if found and found[1] not in allowed:
                    problems.append(f"{name}:{number}: {path}")
    none(problems, "a part includes what stands below it in daemon/meson.build")


def test_what_clients_load_includes_no_library_but_the_languages_and_boosts_headers():
    shut = ("absl/", "hiredis", "yaml-cpp", "httplib", "nlohmann", "CLI/", "liburing", "systemd/")
    problems = [f"{name}:{number}: {path}" for name in sources(under=("client/", "shm/"))
                for number, path in included(name) if path.startswith(shut)]
    none(problems, "the client library needs libc and libstdc++ at run time and nothing else")


# A reader must find within a screen what an order weaker than seq_cst is for.
ORDER = re.compile(r"memory_order_(relaxed|consume|acquire|release|acq_rel)\b")
ORDER_IS_TOLD = re.compile(r"//.*\b([Mm]emory orders|[Pp]airs? with|[Oo]rders? nothing)\b")
SCREEN_LINES = 40


def test_every_weaker_memory_order_says_what_it_pairs_with():
    problems = []
    for name in sources(under=("shm/", "client/", "daemon/")):
        told_at = -SCREEN_LINES
        for number, line in enumerate(read(name).splitlines(), 1):
            told_at = number if ORDER_IS_TOLD.search(line) else told_at
            if ORDER.search(line) and number - told_at >= SCREEN_LINES:
                problems.append(f"{name}:{number}: {line.strip()}")
    none(problems, "name the pair, or say that it orders nothing, in the lines above")


def test_nobody_uses_abseils_locks():
    problems = [f"{name}:{number}: {path}" for name in sources() for number, path in included(name)
                if path.startswith("absl/synchronization/")]
    none(problems, "ThreadSanitizer does not see into Debian's Abseil: use the standard's locks")


def test_no_file_is_too_long():
    problems = [f"{name}: {lines} lines" for name in FILES
                if (name.endswith(CXX + (".py", ".lua", ".build")) or is_script(name))
                and (lines := read(name).count("\n")) > LINES_MAX]
    none(problems, f"a file holds one idea: at most {LINES_MAX} lines")


def test_the_documentation_shows_the_rights_that_ship():
    shown = read("docs/redis.md")
    for name in ("user.acl", "sentinel.acl"):
        line = "ACL SETUSER " + read(f"daemon/redis/{name}").strip().replace("PREFIX", "rl")
        assert line in shown, f"docs/redis.md lacks daemon/redis/{name}: {line}"


def test_the_top_of_the_tree_holds_only_known_names():
    names = {name.split("/")[0] for name in FILES}
    none(sorted(names - TOP_NAMES), "unknown at the top of the tree")


@pytest.mark.parametrize("folder", sorted(
    {name.split("/")[0] for name in FILES if "/" in name} - {".ci"}))
def test_a_top_folder_says_what_lives_there(folder):
    name = f"{folder}/README.md"
    assert name in FILES, f"{name} is missing"
    lines = read(name).count("\n")
    assert lines <= README_LINES_MAX, f"{name} has {lines} lines, more than {README_LINES_MAX}"


def test_no_file_names_a_place_on_somebodys_machine():
    problems = [f"{name}:{number}: {line.strip()}" for name in FILES
                for number, line in enumerate(read(name).splitlines(), 1)
                if MACHINE_PATHS.search(line)]
    none(problems, "a path that exists on one machine only")


def test_text_has_no_trailing_space_and_ends_with_one_newline():
    problems = []
    for name in FILES:
        if not (name.endswith(TEXT) or is_script(name)):
            continue
        text = read(name)
        problems += [f"{name}:{number}: trailing space"
                     for number, line in enumerate(text.split("\n"), 1)
                     if line != line.rstrip(" \t\r")]
        if text and (not text.endswith("\n") or text.endswith("\n\n")):
            problems.append(f"{name}: must end with one newline")
    none(problems, "white space")


def test_every_header_is_included_once():
    # The C header is for C compilers too, and has guards of its own.
    problems = [name for name in sources((".h", ".hpp"))
                if "#pragma once" not in read(name) and not re.search(
                    r"^#ifndef (\w+)\n#define \1\b", read(name), re.MULTILINE)]
    none(problems, "a header without #pragma once")


def test_scripts_can_be_run():
    problems = [name for name in FILES if name.startswith(("scripts/", ".ci/"))
                and not name.endswith(".md") and is_script(name)
                and not os.stat(os.path.join(ROOT, name)).st_mode & stat.S_IXUSR]
    none(problems, "a script that is not executable")


def test_every_source_is_built():
    problems = []
    for name in sources((".cc",)):
        # The nearest meson.build may be a folder or two up.
        folder = os.path.dirname(name)
        while folder and f"{folder}/meson.build" not in FILES:
            folder = os.path.dirname(folder)
        text = read(f"{folder}/meson.build" if folder else "meson.build")
        stem = os.path.splitext(os.path.basename(name))[0]
        # A list of tests may leave out the suffix that all of them share.
        if not re.search(rf"\b({re.escape(stem)}|{re.escape(stem.removesuffix('_test'))})\b", text):
            problems.append(f"{name}: not named in {folder}/meson.build")
    none(problems, "a source that no meson.build names")


def test_every_folder_of_tests_is_wired():
    wired = set(re.findall(r"subdir\('([\w/]+)'\)", read("tests/meson.build")))
    wired |= set(re.findall(r"'(\w+)'", "".join(
        re.findall(r"foreach \w+ : \[(.*?)\]", read("tests/meson.build"), re.DOTALL))))
    problems = []
    for folder in sorted({name.split("/")[1] for name in FILES
                          if name.startswith("tests/") and name.count("/") >= 2}):
        inside = [name for name in FILES if name.startswith(f"tests/{folder}/")]
        if any(name.endswith(".cc") for name in inside) and folder not in wired:
            problems.append(f"tests/{folder}: has C++ sources, but tests/meson.build does not "
                            "enter it")
        # A file that pytest does not collect is a test that never ran.
        problems += [f"{name}: pytest collects test_*.py only" for name in inside
                     if name.endswith("_test.py")]
        if not any(name.endswith((".cc", ".py", "meson.build")) for name in inside):
            problems.append(f"tests/{folder}: nothing to run")
    none(problems, "tests that would not run")


def test_the_license_is_there():
    text = read("LICENSE")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply" in text, "the full text, not a summary"


def test_the_changelog_knows_the_version_that_is_built():
    version = re.search(r"version: '([0-9.]+)'", read("meson.build"))[1]
    assert re.search(rf"^## {re.escape(version)}\b", read("CHANGELOG.md"), re.MULTILINE)


def comment_above(lines, at):
    """The comment that stands right above line `at`, over decorators, as one line."""
    comment = []
    while at > 0 and re.match(r"\s*(//|#|@)", lines[at - 1]):
        at -= 1
        comment.insert(0, lines[at].lstrip(" /#"))
    return " ".join(comment)


def test_proofs_name_tests_that_exist_and_that_name_the_bug_classes_of_others():
    above = {}  # of each test of the tree
    for name in sources((".cc", ".py"), under="tests/"):
        lines = read(name).splitlines()
        for at, line in enumerate(lines):
            found = re.match(r"TEST(?:_F|_P)?\((\w+), (\w+)\)|TEST(?:_F|_P)?\((\w+),$|def (test_\w+)",
                             line)
            if found and found[3]:
                above[f"{found[3]}.{lines[at + 1].strip().split(')')[0]}"] = \
                    comment_above(lines, at)
            elif found:
                above[found[4] or f"{found[1]}.{found[2]}"] = comment_above(lines, at)
    proofs = read("docs/proofs.md")
    table = proofs.partition("## Bug classes of others")[2]
    problems = [f"{test}: there is no such test"
                for test in re.findall(r"`(\w+Test\.\w+|test_\w+)`", proofs) if test not in above]
    listed = set()
    for row in re.findall(r"^\| (.+) \|$", table, re.MULTILINE)[2:]:
        bugs, _, tests = row.split(" | ")
        bugs, tests = bugs.split(", "), re.findall(r"`([\w.]+)`", tests)
        listed |= set(bugs)
        problems += [f"{test}: the comment above it names none of {bugs}" for test in tests
                     if test in above and not any(bug in above[test] for bug in bugs)]
        problems += [f"{bug}: no comment above its tests names it" for bug in bugs
                     if not any(bug in above.get(test, "") for test in tests)]
    problems += [f"{bug}: above {test}, and not in docs/proofs.md" for test, text in above.items()
                 for bug in re.findall(r"[\w/-]+#\d+", text) if bug not in listed]
    assert listed, "docs/proofs.md has no such table"
    none(problems, "docs/proofs.md")
