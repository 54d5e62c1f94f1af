"""Processes killed by SIGKILL anywhere, and resumed: metrics.jsonl, the model and the numbers are bit-identical.

Every kill needs its own process, forked from one that has imported everything. The resumed run is in this process, on
one thread too.
"""

import functools
import itertools
import json
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import fault_injection
import pytest

KILLS = {"starting": 0.2, "training": 0.5, "evaluating": 0.3}  # shares of them, by what the process is doing
CHECKPOINT = "images-*.safetensors"
IMAGES, WINDOW = 20, 2  # of the tiny recipe: all images, and those between two lines of its log

# The process ends itself as a file whose name matches `pattern` is about to be replaced for the n-th time: the
# temporary file is written, whole or ("half") as far as its middle, and the file itself is what it was.
KILL = """
import fnmatch, os, signal
from pathlib import Path
replace, matches = os.replace, 0

def replace_or_die(source, target):
    global matches
    if fnmatch.fnmatch(Path(target).name, {pattern!r}):
        matches += 1
        if matches == {n}:
            if {written!r} == "half":
                os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_reports")]


def only(runs: Path) -> Path:
    [folder] = {file.parent for file in runs.glob("*/*/.lock")}
    return folder


def outcome(runs: Path) -> dict:
    """What may not depend on whether a run was killed."""
    folder = only(runs)
    results = json.loads((folder / "results.json").read_text())
    names = ("metrics.jsonl", "model.safetensors", "stats.safetensors", "report.html")
    files = [*(folder / name for name in names), *sorted(folder.glob("samples/*"))]
    return {"metrics": results["metrics"], **{file.name: file.read_bytes() for file in files}}


def differs(runs: Path, whole: dict) -> list[str]:
    """The names of what is not as it is in an uninterrupted run."""
    found = outcome(runs)
    return [name for name in {**whole, **found} if found.get(name) != whole.get(name)]


def left_over(runs: Path) -> list[str]:
    return [file.name for file in runs.rglob("*.tmp")]


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    """uninterrupted(*overrides): the outcome of a run without a fault."""

    @functools.cache
    def uninterrupted(*overrides):
        runs = tmp_path_factory.mktemp("uninterrupted")
        assert run(runs, *overrides).exit_code == 0
        return outcome(runs)

    return uninterrupted


class Watch:
    """What a process that trains is doing, as far as its folder shows it."""

    def __init__(self, runs: Path, process) -> None:
        self.runs, self.process, self._folder = runs, process, None

    def file(self, name: str) -> Path | None:
        self._folder = self._folder or next(self.runs.glob("*/*"), None)
        return self._folder / name if self._folder and (self._folder / name).exists() else None

    def reached(self, phase: str, share: float = 0) -> bool:
        """Whether it is in this phase, and as far as its log can show this share of its training."""
        images = max(1, share * IMAGES // WINDOW * WINDOW)
        match phase:
            case "training":
                return self.images() >= images
            case "evaluating":
                return self.trained()
            case "complete":
                return self.trained() and json.loads(self.file("status.json").read_text())["state"] == "complete"
        return True

    def trained(self) -> bool:
        return self.file("model.safetensors") is not None

    def images(self) -> int:
        log = self.file("metrics.jsonl")
        lines = log.read_text().splitlines() if log else []
        return json.loads(lines[-1])["images"] if lines else 0


@dataclass(frozen=True)
class Killed:
    """A process killed after `share` of the time that it spends in `phase`."""

    phase: str
    share: float
    watch: Watch
    images: int  # in its log
    trained: bool


@pytest.mark.promise("bit-identical log, model, numbers, images and page")
def test_a_run_killed_at_any_moment_resumes_with_bit_identical_results(
    start, fork, wait_for, arguments, run, uninterrupted, tmp_path_factory, capsys, request, record_property
):
    def begin(phase: str) -> Watch:
        """Start a process. Only one that is to be killed before it trains imports everything itself."""
        runs = tmp_path_factory.mktemp("killed")
        command = arguments(runs)
        return Watch(runs, start("-m", "p2pzoo", *command) if phase == "starting" else fork(*command))

    def measure(phase: str) -> dict[str, float]:
        """The seconds of each phase of a process that is not killed, which `begin` starts for this phase."""
        watch, moments = begin(phase), []
        for each in (*KILLS, "complete"):
            wait_for(functools.partial(watch.reached, each), watch.process)
            moments.append(time.monotonic())
        assert watch.process.wait(timeout=600) == 0
        assert differs(watch.runs, uninterrupted()) == [], "a process of its own gives the bits of this one"
        return {each: end - begun for each, (begun, end) in zip(KILLS, itertools.pairwise(moments), strict=True)}

    def kill(phase: str, share: float) -> Killed:
        while True:
            watch, seconds = begin(phase), share * lasts[phase]
            wait_for(functools.partial(watch.reached, phase, share), watch.process)
            if phase == "training":  # its log is the clock, except between two lines
                seconds %= lasts[phase] * WINDOW / IMAGES
            time.sleep(seconds)
            watch.process.kill()
            if watch.process.wait(timeout=120) == -signal.SIGKILL:
                return Killed(phase, share, watch, watch.images(), watch.trained())
            share *= 0.8  # it came to its end first: a little earlier, then

    lasts = {**measure("training"), "starting": measure("starting")["starting"]}
    chance = random.Random(20170726 + request.config.getoption("--seed"))
    count = request.config.getoption("--kills")
    drawn = [(phase, chance.random()) for phase, share in KILLS.items() for _ in range(round(share * count))]
    killed = [kill(phase, share) for phase, share in drawn]

    rows, faults, lost = [], [], 0
    for number, one in enumerate(killed):
        before = fault_injection.on_disk(one.watch.runs)
        result = run(one.watch.runs)
        found = [result.output] if result.exit_code else differs(one.watch.runs, uninterrupted())
        faults += [(number, one.phase, one.images, fault) for fault in found + left_over(one.watch.runs)]
        rows.append(f"{one.phase:<12}{one.share:>12.0%}{one.images:>15}{one.trained!s:>9}{result.first_step!s:>14}")
        lost += fault_injection.bytes_lost(before)
        shutil.rmtree(one.watch.runs)
    with capsys.disabled():
        print("\nkilled while  share of it  images logged  trained  resumed from", *rows, sep="\n")
    record_property("tried", len(killed))
    record_property("survived", len(killed) - len({number for number, *_ in faults}) + bool(faults))
    record_property("bytes_lost", lost)
    assert faults == []
    assert lost == 0
    training = [one.images for one in killed if one.images and not one.trained]
    assert len(training) >= 5
    assert max(training) - min(training) >= 6
    assert sum(one.trained for one in killed) >= 3
    assert sum(not one.images for one in killed) >= 3


@pytest.mark.promise("bit-identical log, model, numbers, images and page")
@pytest.mark.parametrize(
    ("file", "n", "written"),
    [
        ("recipe.toml", 1, "whole"),
        ("env.json", 1, "whole"),
        ("status.json", 1, "whole"),  # the run begins
        ("status.json", 3, "whole"),  # 10 images are saved
        ("status.json", 6, "whole"),  # trained
        ("status.json", 7, "whole"),  # complete
        ("images-*.png", 1, "whole"),
        ("report.html", 1, "whole"),
        (CHECKPOINT, 1, "half"),
        (CHECKPOINT, 3, "whole"),
        ("model.safetensors", 1, "whole"),
        ("stats.safetensors", 1, "whole"),
        ("results.json", 1, "whole"),
        ("test.png", 1, "half"),
        ("report.html", 2, "half"),  # after the evaluation
    ],
)
def test_a_run_killed_as_it_replaces_a_file_resumes_with_bit_identical_results(
    file, n, written, fork, arguments, run, uninterrupted, tmp_path
):
    process = fork(*arguments(tmp_path), before=KILL.format(pattern=file, n=n, written=written))
    assert process.wait(timeout=120) == -signal.SIGKILL, process.stdout.read()
    assert len(left_over(tmp_path)) == 1, "killed with the temporary file written"
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    assert differs(tmp_path, uninterrupted()) == []
    assert left_over(tmp_path) == []


@pytest.mark.promise("bit-identical log, model, numbers, images and page")
@pytest.mark.parametrize("written", ["whole", "half"])
def test_a_resumed_run_killed_as_it_shortens_its_log_resumes_with_bit_identical_results(
    written, fork, arguments, run, uninterrupted, tmp_path
):
    for file, n, how in ((CHECKPOINT, 3, "whole"), ("metrics.jsonl", 1, written)):
        process = fork(*arguments(tmp_path), before=KILL.format(pattern=file, n=n, written=how))
        assert process.wait(timeout=120) == -signal.SIGKILL, process.stdout.read()
        lines = (only(tmp_path) / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["images"] == 14, "the log is ahead of the checkpoint at 10"
    result = run(tmp_path)
    assert (result.exit_code, result.first_step) == (0, 10), result.output
    assert differs(tmp_path, uninterrupted()) == []
    assert left_over(tmp_path) == []
