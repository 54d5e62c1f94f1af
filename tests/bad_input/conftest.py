"""Tools of the bad-input tests: many generated files and options of each kind, with limits on time and memory.

Input is accepted, or refused as the user's mistake: with a UserError, or exit code 2 and printable lines. Everything
else (a traceback, a hang, too much memory) fails the test, and hypothesis reports the smallest such input.
"""

import contextlib
import copy
import resource
import signal
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from p2pzoo.utils.errors import UserError

MIN_CASES = 10  # also for tests that run a fraction of --cases
SECONDS = 60  # limit for a case: the slowest takes a second, on a loaded machine many
MEMORY = 2 * 2**30  # bytes that a case may allocate


class Hang(BaseException):
    """A case exceeded the time limit."""


@pytest.fixture
def try_each(request, record_property):
    """try_each(inputs, act, fraction=1.0, least_taken=0) calls `act` with --cases draws, or with a fraction of them.

    `act` may raise UserError, or return the result of a command (`run_cli`). At least `least_taken` of the inputs must
    be accepted: a test that is about accepted ones shows nothing if a wrong option refuses them all.
    """

    def try_each(inputs, act, fraction=1.0, least_taken=0):
        cases = request.config.getoption("--cases")
        counts, slowest = {"taken": 0, "refused": 0}, 0.0

        @seed(request.config.getoption("--seed"))
        @settings(
            max_examples=max(round(fraction * cases), min(cases, MIN_CASES)),
            deadline=None, database=None, print_blob=False, phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(inputs)
        def case(value):
            nonlocal slowest
            start = time.perf_counter()
            try:
                with limits(SECONDS, MEMORY):
                    counts["refused" if is_refused(act, value) else "taken"] += 1
            except Hang as hang:  # hypothesis does not print the input of a BaseException
                pytest.fail(f"{hang}: {value!r}")
            slowest = max(slowest, time.perf_counter() - start)

        try:
            case()
            assert counts["taken"] >= least_taken, counts
        finally:
            for name, value in {**counts, "slowest": round(slowest, 3)}.items():
                record_property(name, value)

    return try_each


def is_refused(act, value) -> bool:
    """Whether the case ends with a proper refusal. Fails on everything that is neither that nor success."""
    try:
        result = act(value)
    except UserError as error:
        return all(fault.strip() for fault in error.faults)
    if not hasattr(result, "exit_code"):
        return False
    lines = result.output.removesuffix("\n").split("\n")
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 2), lines[-1]
    categories = {unicodedata.category(character) for line in lines for character in line}
    assert not categories & {"Cc", "Zl", "Zp"}, "text from a file must not control the terminal"
    if result.exit_code == 0:
        return False
    is_report = lines[-1].endswith("p2pzoo run refuses this data")  # of `data check`: blank lines part its findings
    assert is_report or all(line.strip() for line in lines)
    return True


@contextlib.contextmanager
def limits(seconds, memory):
    """Raise Hang after so many seconds, and refuse allocations of more bytes than `memory`."""

    def raise_hang(*_):
        raise Hang(f"a case took more than {seconds} s")

    old_handler, old_limits = signal.signal(signal.SIGALRM, raise_hang), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, old_limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, old_limits)
        signal.signal(signal.SIGALRM, old_handler)


# --- strategies that several tests use -------------------------------------------------------------------------

HOSTILE = (
    "", " ", ".", "..", "../../x", "/", "/dev/zero", "~", "\0", "\n", "\r\n", "\x1b[2J", "\u202e", "a" * 5000, "é",
    "<zzz onzzz=1>", '"><zzz onzzz=1>', "</script><zzz>", "{{7*7}}", "{% zzz %}", "javascript:zzz", "$x_{1}$",
    "%s%n", "\ud800", "CON", "-o", "--help", "[red]zzz[/]", "[/]", "e\u0301",
)  # fmt: skip


@pytest.fixture(scope="session")
def hostile():
    """Texts that have a special meaning for a program that does not quote them."""
    return st.sampled_from(HOSTILE) | st.text(max_size=20)


@pytest.fixture(scope="session")
def damaged():
    """damaged(data): a strategy of truncated, altered and extended versions of these bytes."""

    def damaged(data: bytes):
        position = st.integers(0, max(0, len(data) - 1))

        def flip_bits(bits):
            out = bytearray(data)
            for index, bit in bits:
                out[index] ^= 1 << bit
            return bytes(out)

        def insert(change):
            index, content = change
            return data[:index] + content + data[index:]

        def overwrite(change):
            index, content = change
            return data[:index] + content + data[index + len(content) :]

        return st.one_of(
            position.map(lambda end: data[:end]),
            st.lists(st.tuples(position, st.integers(0, 7)), min_size=1, max_size=8).map(flip_bits),
            st.tuples(position, st.binary(min_size=1, max_size=8)).map(insert),
            st.tuples(position, st.binary(min_size=1, max_size=8)).map(overwrite),
            st.tuples(position, position).map(lambda ends: data[: min(ends)] + data[max(ends) :]),
            st.binary(max_size=64),
            st.binary(max_size=64).map(lambda tail: data + tail),
        )

    return damaged


@pytest.fixture(scope="session")
def altered():
    """altered(tree, values): the tree of dicts and lists with one to three parts replaced, removed or added."""

    def altered(tree, values):
        def paths(part, path=()):
            yield path
            inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
            for key, value in inner:
                yield from paths(value, (*path, key))

        all_paths = [path for path in paths(tree) if path]
        change = st.tuples(
            st.sampled_from(all_paths), st.sampled_from(["replace", "replace", "remove", "add"]),
            values, st.sampled_from(HOSTILE),
        )  # fmt: skip

        def apply_changes(changes):
            out = copy.deepcopy(tree)
            for path, action, value, name in changes:
                part = out
                with contextlib.suppress(KeyError, IndexError, TypeError):  # removed by an earlier change
                    for key in path[:-1]:
                        part = part[key]
                    if action == "replace":
                        part[path[-1]] = value
                    elif action == "remove":
                        del part[path[-1]]
                    elif isinstance(part[path[-1]], dict):
                        part[path[-1]][name] = value
            return out

        return st.lists(change, min_size=1, max_size=3).map(apply_changes)

    return altered


@pytest.fixture(scope="session")
def values(hostile):
    """Values of every type of JSON and TOML."""
    scalars = st.one_of(
        st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**30, 1e308, float("nan"), float("inf"), True, False]),
        st.integers(-3, 300), st.floats(), hostile,
    )  # fmt: skip
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3), max_leaves=4
    )
