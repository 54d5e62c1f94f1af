"""A run that was stopped or cut off and then resumed gives the same bits as one that was not.

"Cut off" here is an exception that no part of a run catches: what a process that is killed between two writes leaves on
disk, without the price of a process. `test_kills.py` does the same with processes and SIGKILL.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from disturbed import STEP, CutOff, after, cut_off, images, only, outcome

from p2pzoo.cli.time_limit import Duration
from p2pzoo.models.safetensors_io import load_tensors

VARIANTS = {
    "the paper's game": (),
    "batches of two, EMA, image pool": ("train.batch_size=2", "train.ema=0.9", "train.pool_size=4"),
    "batches of three, gaussian noise, linear decay": (
        "train.batch_size=3",  # 14 steps, 42 images: it divides nothing
        "generator.noise=gaussian",
        "optimizer.schedule=linear",
    ),
    "the Lua code's game": (
        "train.order=lua",
        "train.zero_biases=true",
        "train.replacement=true",
        "generator.bias=lua",
        "discriminator.bias=lua",
        "optimizer.eps_before_correction=true",
    ),
    "augmented pairs, and all that D sees": (
        "train.batch_size=3",
        "train.pool_size=4",
        'augmentations.turn={use="flip-rotate"}',
        'augmentations.warp={use="affine"}',
        'augmentations.light={use="photometric"}',
        'augmentations.seen={use="diffaugment"}',
    ),
    "spectral norm, several moves of D, batches in parts, clipping": (
        "train.batch_size=2",
        "train.spectral_norm=both",
        "train.d_steps=2",
        "train.accumulate=2",
        "train.ema=0.9",
        "train.pool_size=4",
        "optimizer.clip_norm=0.5",
        "optimizer.lr_discriminator=4e-4",
        "optimizer.schedule=one-cycle",
    ),
    **{
        f"{use}": (f"optimizer.use={use}", "optimizer.schedule=cosine")
        for use in ("AdamW", "RMSprop", "SGD", "NAdam", "Rprop")
    },
    "a penalty at random places, and one in each seventh step": (
        "gan_loss.use=wgan-gp",
        "losses.r1.use=r1",
        "losses.r1.every=7",
    ),
    "a network with a spectral norm of its own": ("generator.use=spade", "generator.width=2"),
    "no discriminator": ('drop=["discriminator", "gan_loss"]',),
}
pytestmark = pytest.mark.usefixtures("no_reports")

DISPLAY = "p2pzoo.runs.progress:PlainProgress.step"
TRANSLATE = "p2pzoo.runs.evaluate:translate"  # one test image


def status(runs: Path) -> dict:
    return json.loads((only(runs) / "status.json").read_text())


def checkpoints(runs: Path) -> list[Path]:
    return sorted((only(runs) / "checkpoints").glob("*.safetensors"))


def written(runs: Path) -> dict:
    """Every file's contents and the time it was written."""
    files = [file for file in runs.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def finish(run):
    """finish(runs, "train.ema=0.9", …): the same as `run`, and it has to reach its end."""

    def finish(runs, *overrides, flags=()):
        answer = run(runs, *overrides, flags=flags)
        assert answer.exit_code == 0, answer.output
        assert status(runs)["state"] == "complete"
        return answer

    return finish


@pytest.fixture(scope="module")
def uninterrupted(finish, complete_once, tmp_path_factory):
    """uninterrupted("train.ema=0.9", …): the outcome of a run that nothing disturbed."""
    known = {(): outcome(complete_once)}

    def uninterrupted(*overrides):
        if overrides not in known:
            runs = tmp_path_factory.mktemp("uninterrupted")
            finish(runs, *overrides)
            known[overrides] = outcome(runs)
        return known[overrides]

    return uninterrupted


class TestCutOff:
    @pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
    def test_a_run_that_was_cut_off_ends_with_the_same_bits(self, overrides, run, finish, uninterrupted, tmp_path):
        asked = dict(override.split("=") for override in overrides if override.startswith("train."))
        batch = int(asked.get("train.batch_size", 1)) * int(asked.get("train.d_steps", 1))
        with after(STEP, cut_off, call=33 // batch), pytest.raises(CutOff):
            run(tmp_path, *overrides)
        left = checkpoints(tmp_path)[-1]
        assert 33 - 10 - batch <= images(left) < 33, "a checkpoint every 10 images, at the end of a step"
        answer = finish(tmp_path, *overrides)
        assert "going on with tiny" in answer.output
        assert answer.began == images(left) // batch
        assert outcome(tmp_path) == uninterrupted(*overrides)

    def test_before_its_first_checkpoint_it_begins_again(self, run, finish, uninterrupted, tmp_path):
        with after(STEP, cut_off, call=9), pytest.raises(CutOff):
            run(tmp_path)
        assert checkpoints(tmp_path) == []
        finish(tmp_path)
        assert outcome(tmp_path) == uninterrupted()

    def test_in_its_evaluation_it_is_evaluated_without_training_again(self, run, finish, uninterrupted, tmp_path):
        with after(TRANSLATE, cut_off, call=3), pytest.raises(CutOff):
            run(tmp_path)
        assert finish(tmp_path).began is None
        assert outcome(tmp_path) == uninterrupted()


class TestDamage:
    @pytest.mark.parametrize("damage", ["a flipped bit", "a flipped bit of the header", "cut short", "empty"])
    def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
        self, damage, halfway, finish, uninterrupted
    ):
        newest = checkpoints(halfway)[-1]
        contents = bytearray(newest.read_bytes())
        if damage == "a flipped bit":
            contents[len(contents) * 2 // 3] ^= 1
        elif damage == "a flipped bit of the header":
            contents[100] ^= 1
        else:
            del contents[len(contents) // 2 if damage == "cut short" else 0 :]
        newest.write_bytes(contents)
        answer = finish(halfway)
        assert re.search(rf"{newest.name}: .*trying the checkpoint before it", answer.output)
        assert answer.began == 20
        assert outcome(halfway) == uninterrupted()

    def test_where_no_checkpoint_is_whole_the_run_begins_again(self, halfway, finish, uninterrupted):
        for file in checkpoints(halfway):
            file.write_bytes(file.read_bytes()[:-1])
        assert finish(halfway).began == 0
        assert outcome(halfway) == uninterrupted()

    def test_a_last_line_of_the_log_that_was_cut_off_is_written_anew(self, halfway, finish, uninterrupted):
        log = only(halfway) / "metrics.jsonl"
        log.write_text(log.read_text()[:-20])
        finish(halfway)
        assert outcome(halfway) == uninterrupted()

    def test_what_a_killed_process_left_half_written_is_removed(self, halfway, finish, uninterrupted):
        half = only(halfway) / "checkpoints/.images-0000000027.safetensors.tmp"  # it had been told to stop there
        half.write_bytes(b"half")
        finish(halfway)
        assert not half.exists()
        assert outcome(halfway) == uninterrupted()


class TestRunAgain:
    def test_a_complete_run_is_shown_and_left_as_it_is(self, complete, finish):
        before = written(complete)
        answer = finish(complete)
        assert answer.began is None
        assert "already complete" in answer.output
        assert re.search(r"^l1 +0\.\d{4}$", answer.output, re.MULTILINE)
        assert written(complete) == before

    def test_a_metric_that_was_added_is_measured_without_training(self, complete, finish, uninterrupted):
        numbers = uninterrupted()["numbers"]
        assert finish(complete, "metrics.again.use=l1").began is None
        found = outcome(complete)["numbers"]
        assert found["again"]["value"] == found["l1"]["value"]
        assert {name: found[name] for name in numbers} == numbers

    def test_fresh_starts_a_complete_run_over_and_keeps_what_is_not_its_own(self, complete, finish, uninterrupted):
        note = only(complete) / "notes.txt"
        note.write_text("mine")
        answer = finish(complete, flags=["--fresh"])
        assert "training tiny" in answer.output
        assert answer.began == 0
        assert len((only(complete) / "timings.jsonl").read_text().splitlines()) == 10
        assert outcome(complete) == uninterrupted()
        assert note.read_text() == "mine"

    def test_fresh_starts_a_run_over_that_was_cut_off(self, halfway, finish, uninterrupted):
        assert finish(halfway, flags=["--fresh"]).began == 0
        assert outcome(halfway) == uninterrupted()

    @pytest.mark.parametrize("call", [2, 5, 8])
    def test_a_fresh_start_that_was_cut_off_while_it_cleared_loses_nothing(
        self, call, halfway, run, finish, uninterrupted
    ):
        with after("pathlib:Path.unlink", cut_off, call=call), pytest.raises(CutOff):
            run(halfway, flags=["--fresh"])
        finish(halfway)
        assert outcome(halfway) == uninterrupted()


class TestOtherCode:
    @pytest.fixture
    def change(self):
        def change(runs, *names):
            file = only(runs) / "status.json"
            told = json.loads(file.read_text())
            for name in names:
                told["sources"][name] = "0.0.1 0123456789ab"
            file.write_text(json.dumps(told))

        return change

    def test_a_run_is_not_resumed_with_other_code(self, halfway, change, run):
        change(halfway, "core", "generator pix2pix:unet")
        before = written(halfway)
        answer = run(halfway)
        assert (answer.exit_code, answer.began) == (2, None)
        line = answer.output.splitlines()[-1]
        assert "(core, generator pix2pix:unet changed since)" in line
        assert "--fresh" in line
        assert "--accept-stale" in line
        assert written(halfway) == before

    def test_unless_it_is_accepted(self, halfway, change, finish, run, uninterrupted):
        change(halfway, "core")
        finish(halfway, flags=["--accept-stale"])
        assert outcome(halfway) == uninterrupted()

    def test_finished_results_are_shown_and_marked(self, complete, change, finish):
        change(complete, "core")
        before = written(complete)
        answer = finish(complete)
        assert "made with other code or data (core changed since)" in answer.output
        assert re.search(r"^l1 +0\.\d{4}$", answer.output, re.MULTILINE)
        assert written(complete) == before


@pytest.fixture(scope="module")
def half(finish, tmp_path_factory):
    """The folder of a complete run of 20 images."""
    runs = tmp_path_factory.mktemp("half")
    finish(runs, "train.images=20")
    return only(runs)


class TestContinueFrom:
    @pytest.fixture
    def continued(self, half, uninterrupted):
        """Holds a continued run's folder to a run that was as long from the start (its model names another run)."""

        def continued(runs):
            same, straight = outcome(runs), uninterrupted()
            assert same["metrics.jsonl"] == straight["metrics.jsonl"]
            assert same["numbers"] == straight["numbers"]
            assert same["stats.safetensors"] == straight["stats.safetensors"]
            assert same["images-00000040.png"] == straight["images-00000040.png"]

        return continued

    def test_it_equals_training_longer_at_once(self, half, finish, complete_once, continued, tmp_path):
        before = written(half)
        assert finish(tmp_path, flags=["--continue-from", half]).began == 20
        assert written(half) == before
        continued(tmp_path)
        own, straight = (load_tensors(only(runs) / "model.safetensors")[0] for runs in (tmp_path, complete_once))
        assert own.keys() == straight.keys()
        assert all(own[name].equal(straight[name]) for name in own)
        assert finish(tmp_path, flags=["--continue-from", half]).began is None

    @pytest.mark.parametrize(
        ("call", "began"), [(6, 20), (13, 30)], ids=["before its own first checkpoint", "after it"]
    )
    def test_it_resumes_as_any_run_does(self, call, began, half, run, finish, continued, tmp_path):
        with after(STEP, cut_off, call=call), pytest.raises(CutOff):
            run(tmp_path, flags=["--continue-from", half])
        assert finish(tmp_path, flags=["--continue-from", half]).began == began
        continued(tmp_path)

    def test_it_resumes_where_the_other_runs_log_was_copied_in_part(self, half, run, finish, continued, tmp_path):
        with after(STEP, cut_off, call=1), pytest.raises(CutOff):
            run(tmp_path, flags=["--continue-from", half])
        log = only(tmp_path) / "metrics.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
        finish(tmp_path, flags=["--continue-from", half])
        continued(tmp_path)

    def test_its_recipe_is_the_same_experiment(self, half, finish, zoo, tmp_path):
        finish(tmp_path, flags=["--continue-from", half])
        assert zoo("run", only(tmp_path) / "recipe.toml", "--runs", tmp_path).began is None

    @pytest.mark.parametrize(
        ("other", "images", "told"),
        [
            ("complete", 40, "has seen 40 images and the recipe asks for 40"),
            ("halfway", 80, "--continue-from takes a complete run; this one is training"),
            (None, 80, "not a run folder"),
        ],
    )
    def test_what_cannot_be_continued_is_refused(self, other, images, told, request, run, tmp_path):
        folder = only(request.getfixturevalue(other)) if other else tmp_path
        answer = run(tmp_path / "runs", f"train.images={images}", flags=["--continue-from", folder])
        assert answer.exit_code == 2
        assert told in answer.output.splitlines()[-1]


class TestSignals:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
    def test_a_process_that_is_told_to_stop_saves_and_says_how_to_go_on(
        self, signum, start, wait_for, arguments, finish, uninterrupted, tmp_path
    ):
        process = start("-m", "p2pzoo", *arguments(tmp_path, "train.images=60"))
        wait_for(lambda: any(len(log.read_text()) for log in tmp_path.glob("*/*/metrics.jsonl")), process)
        process.send_signal(signum)
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + signum
        seen = int(re.search(r"stopped at (\d+) images and saved; the same command goes on from there$", told)[1])
        assert images(checkpoints(tmp_path)[-1]) == seen == status(tmp_path)["images"]
        assert status(tmp_path)["state"] == "interrupted"
        assert finish(tmp_path, "train.images=60").began == seen
        assert outcome(tmp_path) == uninterrupted("train.images=60")

    @pytest.mark.parametrize(
        "place",
        [
            (STEP, 23),
            (DISPLAY, 26),
            ("p2pzoo.training.checkpoint:State.save", 2),  # the checkpoint of image 20
        ],
        ids=["step", "display", "checkpoint"],
    )
    def test_wherever_in_a_step_it_arrives_what_it_says_is_saved(self, place, run, finish, uninterrupted, tmp_path):
        with after(place[0], partial(signal.raise_signal, signal.SIGTERM), call=place[1]):
            answer = run(tmp_path)
        assert answer.exit_code == 128 + signal.SIGTERM
        seen = int(re.search(r"stopped at (\d+) images and saved", answer.output)[1])
        assert images(checkpoints(tmp_path)[-1]) == seen
        finish(tmp_path)
        assert outcome(tmp_path) == uninterrupted()

    @pytest.mark.parametrize(
        "place", [(STEP, 40), (DISPLAY, 40), (TRANSLATE, 3)], ids=["step", "display", "evaluation"]
    )
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_after_the_last_step_it_stops_too(self, signum, place, run, finish, uninterrupted, tmp_path):
        with after(place[0], partial(signal.raise_signal, signum), call=place[1]):
            answer = run(tmp_path)
        assert answer.exit_code == 128 + signum
        assert "the same command goes on" in answer.output
        assert finish(tmp_path).began is None
        assert outcome(tmp_path) == uninterrupted()


class TestMaxTime:
    @pytest.mark.slow
    def test_a_run_stops_itself_in_time_and_saves(self, start, arguments, tmp_path):
        began = time.monotonic()
        process = start("-m", "p2pzoo", *arguments(tmp_path, "train.images=1000000"), "--max-time", "20s")
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM, told
        assert time.monotonic() - began < 40, "told to after 18 s; how long it takes then is the machine's"
        seen = int(re.search(r"stopped at (\d+) images and saved", told)[1])
        assert images(checkpoints(tmp_path)[-1]) == seen > 0

    @pytest.mark.parametrize(("limit", "told_after"), [("20s", 18), ("3h50m", 3 * 3600 + 50 * 60 - 30)])
    def test_it_is_told_to_stop_a_little_before_the_limit(self, limit, told_after, run, tmp_path, monkeypatch):
        timers = []
        monkeypatch.setattr(
            "p2pzoo.cli.time_limit.threading.Timer", lambda *args: timers.append(args) or mock.MagicMock()
        )
        run(tmp_path, "train.images=4", flags=("--max-time", limit))
        assert timers == [(told_after, os.kill, (os.getpid(), signal.SIGTERM))]

    def test_a_command_that_is_done_before_is_left_alone(self, run, tmp_path):
        assert run(tmp_path, "train.images=4", flags=("--max-time", "1h")).exit_code == 0
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        assert all(timer.finished.is_set() for timer in timers), "it would stop whatever this process does in an hour"

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("3h50m", 13800), ("90m", 5400), ("45s", 45), ("1d", 86400), ("1:30:00", 5400), ("2-00:00:01", 172801)],
    )
    def test_times_are_read_as_people_and_slurm_write_them(self, text, seconds):
        assert Duration().convert(text, None, None) == seconds

    @pytest.mark.parametrize("text", ["90", "1:30", "-5m", "0s", "", "5 m", "1h60", "1:75:00", "9" * 40 + "h", "٣m3"])
    def test_what_is_no_time_is_refused_in_one_line(self, text, zoo):
        told = zoo("run", "zoo:base.toml", "--max-time", text)
        assert told.exit_code == 2
        assert f"'{text}' is no time: write 3h50m, 90m, or 3:50:00" in told.output


class TestSlurm:
    """recipes/slurm.sh where srun only starts what it is given, and scontrol only writes down what it was asked."""

    def job(self, folder, *arguments):
        tools = folder / "tools"
        tools.mkdir(exist_ok=True)
        for name, text in (
            ("srun", 'exec "$@"'),
            ("scontrol", f'echo "$@" >> {folder}/asked'),
            ("p2pzoo", f'exec {sys.executable} -m p2pzoo "$@"'),
        ):
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "OMP_NUM_THREADS": "1",
        }
        script = Path(__file__).parents[2] / "recipes" / "slurm.sh"
        return subprocess.Popen(["bash", script, *map(str, arguments)], env=environment, start_new_session=True)

    @pytest.mark.slow
    def test_a_job_that_loses_its_node_is_queued_again_and_ends_with_the_same_bits(
        self, wait_for, arguments, uninterrupted, tmp_path
    ):
        options = arguments(tmp_path / "runs", "train.images=60")[1:]
        job = self.job(tmp_path, *options)
        wait_for(lambda: any(len(log.read_text()) for log in tmp_path.glob("runs/*/*/metrics.jsonl")), job)
        [step] = [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
        os.kill(step, signal.SIGTERM)
        assert job.wait(60) == 143
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        assert self.job(tmp_path, *options).wait(60) == 0
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        assert outcome(tmp_path / "runs") == uninterrupted("train.images=60")


class TestTwoProcesses:
    HOLD = """
import sys
from pathlib import Path
from p2pzoo.runs.run_folder import Run
with Run(Path(sys.argv[1])).lock():
    print("working", flush=True)
    sys.stdin.read()
"""

    def test_the_second_one_is_refused_in_one_line(self, halfway, start, run, finish, uninterrupted):
        process = start("-c", self.HOLD, only(halfway))
        assert process.stdout.readline() == "working\n"
        before = written(halfway)
        answer = run(halfway)
        assert answer.exit_code == 2
        told = f"{only(halfway)}: another process is working on this run; wait for it or stop it"
        assert answer.output.splitlines()[1:] == [told]
        assert written(halfway) == before
        process.kill()
        process.wait()
        finish(halfway)
        assert outcome(halfway) == uninterrupted()
