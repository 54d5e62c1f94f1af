"""How the bad-input campaign tries what strangers may hand us: many cases of a kind, each within a time and memory.

A case is taken, or refused as the user's mistake: UserError, or a command's exit code 2 with lines that a terminal can
show. Everything else, a traceback, a hang, memory without bounds, fails the test with the smallest such input.
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

FEW = 20  # cases of which no share is taken
SECONDS = 20  # that a case may take: the slowest takes a second
MEMORY = 2 * 2**30  # bytes that it may add


class Hang(BaseException):
    """A case took too long."""


@pytest.fixture
def each(request, record_property):
    """each(inputs, act): `act` on so many draws of a strategy, or on a `shard` of that where each is a whole page. It
    calls what is tested, which may raise UserError, or returns what a command answered (`zoo`)."""

    def each(inputs, act, share=1.0):
        cases = request.config.getoption("--cases")
        counts, slowest = {"taken": 0, "refused": 0}, 0.0

        @seed(request.config.getoption("--seed"))
        @settings(
            max_examples=max(round(share * cases), min(cases, FEW)), deadline=None, database=None, print_blob=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(inputs)
        def case(drawn):
            nonlocal slowest
            began = time.perf_counter()
            with within(SECONDS, MEMORY):
                counts["refused" if refused(act, drawn) else "taken"] += 1
            slowest = max(slowest, time.perf_counter() - began)

        try:
            case()
        finally:
            for name, value in {**counts, "slowest": round(slowest, 3)}.items():
                record_property(name, value)

    return each


def refused(act, drawn) -> bool:
    try:
        answer = act(drawn)
    except UserError as error:
        return all(fault.strip() for fault in error.faults)
    if not hasattr(answer, "exit_code"):
        return False
    lines = answer.output.removesuffix("\n").split("\n")
    assert "Traceback" not in answer.output
    assert answer.exit_code in (0, 2), lines[-1]
    if answer.exit_code == 0:
        return False
    assert all(line.strip() for line in lines)
    said = {unicodedata.category(character) for line in lines for character in line}
    assert not said & {"Cc", "Zl", "Zp"}, "what a stranger says steers no terminal"
    return True


@contextlib.contextmanager
def within(seconds, memory):
    """Inside, an alarm rings after so long, and no more memory than so much can be added."""

    def ring(*_):
        raise Hang(f"a case took more than {seconds} s")

    before, limits = signal.signal(signal.SIGALRM, ring), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


# --- what many inputs are made of ------------------------------------------------------------------------------

HOSTILE = (
    "", " ", ".", "..", "../../x", "/", "/dev/zero", "~", "\0", "\n", "\r\n", "\x1b[2J", "\u202e", "a" * 5000, "é",
    "<zzz onzzz=1>", '"><zzz onzzz=1>', "</script><zzz>", "{{7*7}}", "{% zzz %}", "javascript:zzz", "$x_{1}$",
    "%s%n", "\ud800", "CON", "-o", "--help", "[red]zzz[/]", "[/]", "e\u0301",
)  # fmt: skip


@pytest.fixture(scope="session")
def hostile():
    """Texts that mean something to whoever forgets to quote them."""
    return st.sampled_from(HOSTILE) | st.text(max_size=20)


@pytest.fixture(scope="session")
def damaged():
    """damaged(data): a strategy of what may become of so many bytes."""

    def damaged(data: bytes):
        place = st.integers(0, max(0, len(data) - 1))

        def flip(places):
            out = bytearray(data)
            for at, bit in places:
                out[at] ^= 1 << bit
            return bytes(out)

        return st.one_of(
            place.map(lambda end: data[:end]),
            st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=8).map(flip),
            st.tuples(place, st.binary(min_size=1, max_size=8)).map(lambda at: data[: at[0]] + at[1] + data[at[0] :]),
            st.tuples(place, st.binary(min_size=1, max_size=8)).map(
                lambda at: data[: at[0]] + at[1] + data[at[0] + len(at[1]) :]
            ),
            st.tuples(place, place).map(lambda ends: data[: min(ends)] + data[max(ends) :]),
            st.binary(max_size=64),
            st.binary(max_size=64).map(lambda tail: data + tail),
        )

    return damaged


@pytest.fixture(scope="session")
def altered():
    """altered(tree, values): the tree of dicts and lists with one to three of its parts replaced, removed, added."""

    def altered(tree, values):
        def paths(part, path=()):
            yield path
            inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
            for key, value in inner:
                yield from paths(value, (*path, key))

        places = [path for path in paths(tree) if path]
        change = st.tuples(
            st.sampled_from(places), st.sampled_from(["replace", "replace", "remove", "add"]),
            values, st.sampled_from(HOSTILE),
        )  # fmt: skip

        def changed(changes):
            out = copy.deepcopy(tree)
            for path, how, value, name in changes:
                part = out
                with contextlib.suppress(KeyError, IndexError, TypeError):  # gone by an earlier change
                    for key in path[:-1]:
                        part = part[key]
                    if how == "replace":
                        part[path[-1]] = value
                    elif how == "remove":
                        del part[path[-1]]
                    elif isinstance(part[path[-1]], dict):
                        part[path[-1]][name] = value
            return out

        return st.lists(change, min_size=1, max_size=3).map(changed)

    return altered


@pytest.fixture(scope="session")
def values(hostile):
    """Plain values of every kind, as JSON and TOML have them."""
    scalars = st.one_of(
        st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**30, 1e308, float("nan"), float("inf"), True, False]),
        st.integers(-3, 300), st.floats(), hostile,
    )  # fmt: skip
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3), max_leaves=4
    )
