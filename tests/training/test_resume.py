"""A run that was stopped or killed and then resumed gives results that are bit-identical to an undisturbed run.

A kill is simulated by an exception that no part of a run catches. It leaves the same files on disk as a process that is
killed between two writes, and takes less time. `test_kills.py` does the same with processes and SIGKILL.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from fault_injection import STEP, SimulatedKill, after, images, only, outcome, simulate_kill
from fork_server import RUN

from p2pzoo.cli.time_limit import Duration
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.training.checkpoint import State
from p2pzoo.utils.signals import stop_this_process

# test_checkpoint.py does the same with more recipes, without a run
VARIANTS = {
    "the paper's game": (),
    "bf16": ("compute.precision=bf16", "train.batch_size=2"),
    "batches of three, gaussian noise, linear decay": (
        "train.batch_size=3",  # 7 steps, 21 images: it divides nothing
        "generator.noise=gaussian",
        "optimizer.schedule=linear",
    ),
    "spectral norm, two updates of D, accumulation, clipping": (
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
    "augmented pairs and an augmented input of D": (
        "train.batch_size=3",
        "train.pool_size=4",
        'augmentations.turn={use="flip-rotate"}',
        'augmentations.warp={use="affine"}',
        'augmentations.light={use="photometric"}',
        'augmentations.seen={use="diffaugment"}',
    ),
    "a bridge with a D": ('process={use="bridge", steps=2, eta=1.0}', "generator.norm=group"),
    "a flow with augmented pairs, two updates of D, accumulation, EMA": (
        'process={use="flow", steps=2}',
        "generator.norm=group",
        "train.batch_size=2",
        "train.d_steps=2",
        "train.accumulate=2",
        "train.ema=0.9",
        'augmentations.turn={use="flip-rotate"}',
    ),
}

DISPLAY = "p2pzoo.runs.progress:PlainProgress.step"
TRANSLATE = "p2pzoo.models.translator:translate_watched"  # one test image


def status(runs: Path) -> dict:
    return json.loads((only(runs) / "status.json").read_text())


def checkpoints(runs: Path) -> list[Path]:
    return sorted((only(runs) / "checkpoints").glob("*.safetensors"))


def written(runs: Path) -> dict:
    """{file: (time of its last change, content)}."""
    files = [file for file in runs.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def finish(run):
    """finish(runs, "train.ema=0.9", …): the same as `run`; fails if the run does not complete."""

    def finish(runs, *overrides, flags=()):
        result = run(runs, *overrides, flags=flags)
        assert result.exit_code == 0, result.output
        assert status(runs)["state"] == "complete"
        return result

    return finish


@pytest.fixture(scope="module")
def uninterrupted(finish, shared_complete, tmp_path_factory):
    """uninterrupted("train.ema=0.9", …): the outcome of a run that nothing stopped."""
    known = {(): outcome(shared_complete)}

    def uninterrupted(*overrides):
        if overrides not in known:
            runs = tmp_path_factory.mktemp("uninterrupted")
            finish(runs, *overrides)
            known[overrides] = outcome(runs)
        return known[overrides]

    return uninterrupted


class TestKilled:
    @pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
    def test_a_killed_run_resumes_with_bit_identical_results(self, overrides, run, finish, uninterrupted, tmp_path):
        settings = dict(override.split("=") for override in overrides if override.startswith("train."))
        batch = int(settings.get("train.batch_size", 1)) * int(settings.get("train.d_steps", 1))
        with after(STEP, simulate_kill, call=17 // batch), pytest.raises(SimulatedKill):
            run(tmp_path, *overrides)
        newest = checkpoints(tmp_path)[-1]
        assert 17 - 5 - batch <= images(newest) < 17, "a checkpoint every 5 images, at the end of a step"
        result = finish(tmp_path, *overrides)
        assert "resuming tiny" in result.output
        assert result.first_step == images(newest) // batch
        assert outcome(tmp_path) == uninterrupted(*overrides)

    def test_before_its_first_checkpoint_it_starts_over(self, run, finish, uninterrupted, tmp_path):
        with after(STEP, simulate_kill, call=4), pytest.raises(SimulatedKill):
            run(tmp_path)
        assert checkpoints(tmp_path) == []
        finish(tmp_path)
        assert outcome(tmp_path) == uninterrupted()

    def test_during_the_evaluation_it_does_not_train_again(self, run, finish, uninterrupted, tmp_path):
        with after(TRANSLATE, simulate_kill, call=3), pytest.raises(SimulatedKill):
            run(tmp_path)
        assert finish(tmp_path).first_step is None
        assert outcome(tmp_path) == uninterrupted()


class TestDamage:
    @pytest.mark.parametrize("damage", ["a flipped bit", "cut short"])
    def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
        self, damage, halfway, finish, uninterrupted
    ):
        newest = checkpoints(halfway)[-1]
        contents = bytearray(newest.read_bytes())
        if damage == "a flipped bit":
            contents[len(contents) * 2 // 3] ^= 1
        else:
            del contents[len(contents) // 2 :]
        newest.write_bytes(contents)
        result = finish(halfway)
        assert re.search(rf"{newest.name}: .*trying the checkpoint before it", result.output)
        assert result.first_step == 10
        assert outcome(halfway) == uninterrupted()

    def test_without_an_intact_checkpoint_the_run_starts_over(self, halfway, finish, uninterrupted):
        for file in checkpoints(halfway):
            file.write_bytes(file.read_bytes()[:-1])
        assert finish(halfway).first_step == 0
        assert outcome(halfway) == uninterrupted()

    def test_a_last_line_of_the_log_that_was_cut_off_is_written_again(self, halfway, finish, uninterrupted):
        log = only(halfway) / "metrics.jsonl"
        log.write_text(log.read_text()[:-20])
        finish(halfway)
        assert outcome(halfway) == uninterrupted()

    def test_half_written_files_of_a_killed_process_are_removed(self, halfway, finish, uninterrupted):
        half = only(halfway) / "checkpoints/.images-0000000014.safetensors.1a2b0c9d8e7f.tmp"  # it was stopped there
        half.write_bytes(b"half")
        mine = only(halfway) / ".notes.tmp"
        mine.write_text("mine")
        (only(halfway) / ".page.tmp").mkdir()  # of `page_folder`
        finish(halfway)
        assert not half.exists()
        assert mine.exists()
        assert outcome(halfway) == uninterrupted()


class TestRunAgain:
    def test_a_complete_run_is_printed_and_not_changed(self, complete, finish):
        before = written(complete)
        result = finish(complete)
        assert result.first_step is None
        assert "already complete" in result.output
        assert re.search(r"^l1 +0\.\d{4}$", result.output, re.MULTILINE)
        assert written(complete) == before

    def test_a_metric_that_was_added_is_measured_without_training(self, complete, finish, uninterrupted):
        numbers = uninterrupted()["numbers"]
        assert finish(complete, "metrics.again.use=l1").first_step is None
        measured = outcome(complete)["numbers"]
        assert measured["again"]["value"] == measured["l1"]["value"]
        assert {name: measured[name] for name in numbers} == numbers

    def test_fresh_starts_a_complete_run_over_and_keeps_other_files(self, complete, finish, uninterrupted):
        note = only(complete) / "notes.txt"
        note.write_text("mine")
        result = finish(complete, flags=["--fresh"])
        assert "training tiny" in result.output
        assert result.first_step == 0
        assert len((only(complete) / "timings.jsonl").read_text().splitlines()) == 10
        assert outcome(complete) == uninterrupted()
        assert note.read_text() == "mine"

    def test_fresh_starts_a_killed_run_over(self, halfway, finish, uninterrupted):
        assert finish(halfway, flags=["--fresh"]).first_step == 0
        assert outcome(halfway) == uninterrupted()

    @pytest.mark.parametrize("call", [2, 8])
    def test_a_fresh_start_killed_while_it_deletes_files_loses_nothing(self, call, halfway, run, finish, uninterrupted):
        with after("pathlib:Path.unlink", simulate_kill, call=call), pytest.raises(SimulatedKill):
            run(halfway, flags=["--fresh"])
        finish(halfway)
        assert outcome(halfway) == uninterrupted()


class TestOtherCode:
    @pytest.fixture
    def change(self):
        def change(runs, *names):
            file = only(runs) / "status.json"
            status = json.loads(file.read_text())
            for name in names:
                status["sources"][name] = "0.0.1 0123456789ab"
            file.write_text(json.dumps(status))

        return change

    def test_a_run_is_not_resumed_with_other_code(self, halfway, change, run):
        change(halfway, "core", "generator pix2pix:unet")
        before = written(halfway)
        result = run(halfway)
        assert (result.exit_code, result.first_step) == (2, None)
        line = result.output.splitlines()[-1]
        assert "(core, generator pix2pix:unet changed since)" in line
        assert "--fresh" in line
        assert "--accept-stale" in line
        assert written(halfway) == before

    def test_unless_it_is_accepted(self, halfway, change, finish, run, uninterrupted):
        change(halfway, "core")
        finish(halfway, flags=["--accept-stale"])
        assert outcome(halfway) == uninterrupted()

    def test_finished_results_are_printed_and_marked(self, complete, change, finish):
        change(complete, "core")
        before = written(complete)
        result = finish(complete)
        assert "the code or data changed after this run (core): --fresh trains it again" in result.output
        assert re.search(r"^l1 +0\.\d{4}$", result.output, re.MULTILINE)
        assert written(complete) == before


@pytest.fixture(scope="module")
def half(finish, tmp_path_factory):
    """The folder of a complete run of 10 images."""
    runs = tmp_path_factory.mktemp("half")
    finish(runs, "train.images=10")
    return only(runs)


@pytest.fixture(scope="module")
def second_half(half, finish, tmp_path_factory):
    """(runs folder, result) of a run that continues it. Tests must not change the folder."""
    runs, before = tmp_path_factory.mktemp("second_half"), written(half)
    result = finish(runs, flags=["--continue-from", half])
    assert written(half) == before
    return runs, result


class TestContinueFrom:
    @pytest.fixture
    def continued(self, half, uninterrupted):
        """Compare a continued run with one that was as long from the start (its model file names another run)."""

        def continued(runs):
            continued, straight = outcome(runs), uninterrupted()
            assert continued["metrics.jsonl"] == straight["metrics.jsonl"]
            assert continued["numbers"] == straight["numbers"]
            assert continued["stats.safetensors"] == straight["stats.safetensors"]
            assert continued["images-00000020.png"] == straight["images-00000020.png"]

        return continued

    def test_it_equals_one_longer_training(self, half, second_half, finish, shared_complete, continued):
        runs, result = second_half
        assert result.first_step == 10
        continued(runs)
        own, straight = (load_tensors(only(each) / "model.safetensors")[0] for each in (runs, shared_complete))
        assert own.keys() == straight.keys()
        assert all(own[name].equal(straight[name]) for name in own)
        assert finish(runs, flags=["--continue-from", half]).first_step is None

    def test_a_learning_rate_that_goes_up_is_reported(self, second_half, finish, tmp_path):
        assert "learning rate goes up" not in second_half[1].output
        linear = ("optimizer.schedule=linear", "train.images=10")
        finish(tmp_path / "half", *linear)
        flags = ["--continue-from", only(tmp_path / "half")]
        result = finish(tmp_path / "longer", "optimizer.schedule=linear", flags=flags)
        [line] = [line for line in result.output.splitlines() if "learning rate goes up" in line]
        assert "from 4e-05, where" in line
        assert "ended, to 0.0002: the schedule 'linear' now spans 20 images" in line

    @pytest.mark.parametrize(("call", "began"), [(3, 10), (7, 15)], ids=["before its first checkpoint", "after it"])
    def test_it_resumes_like_any_run(self, call, began, half, run, finish, continued, tmp_path):
        with after(STEP, simulate_kill, call=call), pytest.raises(SimulatedKill):
            run(tmp_path, flags=["--continue-from", half])
        assert finish(tmp_path, flags=["--continue-from", half]).first_step == began
        continued(tmp_path)

    def test_it_resumes_where_the_other_runs_log_was_copied_in_part(self, half, run, finish, continued, tmp_path):
        with after(STEP, simulate_kill, call=1), pytest.raises(SimulatedKill):
            run(tmp_path, flags=["--continue-from", half])
        log = only(tmp_path) / "metrics.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
        finish(tmp_path, flags=["--continue-from", half])
        continued(tmp_path)

    def test_its_recipe_is_the_same_experiment(self, second_half, run_cli):
        runs, _ = second_half
        assert run_cli("run", only(runs) / "recipe.toml", "--runs", runs).first_step is None

    @pytest.mark.parametrize(
        ("other", "images", "message"),
        [
            ("complete", 20, "has seen 20 images and the recipe asks for 20"),
            ("halfway", 40, "--continue-from takes a complete run; this one is training"),
            (None, 40, "not a run folder"),
        ],
    )
    def test_other_runs_cannot_be_continued(self, other, images, message, request, run, tmp_path):
        folder = only(request.getfixturevalue(other)) if other else tmp_path
        result = run(tmp_path / "runs", f"train.images={images}", flags=["--continue-from", folder])
        assert result.exit_code == 2
        assert message in result.output.splitlines()[-1]

    def test_fresh_deletes_nothing_where_the_other_run_cannot_be_continued(self, second_half, half, run, tmp_path):
        runs, other = tmp_path / "runs", tmp_path / "other"
        shutil.copytree(second_half[0], runs)
        shutil.copytree(half, other)
        shutil.rmtree(other / "checkpoints")
        before = written(runs)
        result = run(runs, flags=["--continue-from", other, "--fresh"])
        assert (result.exit_code, result.first_step) == (2, None)
        assert f"{other}: its checkpoints are gone" in result.output.splitlines()[-1]
        assert f"-s init.generator={other}/model.safetensors" in result.output.splitlines()[-1]
        assert written(runs) == before

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("optimizer.use=RMSprop", "the optimizer is RMSprop, that of {half} was Adam: it begins without moments"),
            ("optimizer.use=SGD", "the optimizer is SGD, that of {half} was Adam: it begins without moments"),
            ("optimizer.amsgrad=true", "the optimizer is Adam with amsgrad, that of {half} was Adam: it begins"),
            ("optimizer.lr=1e-4", None),
        ],
    )
    def test_another_optimizer_begins_without_moments(self, override, line, half, finish, tmp_path):
        result = finish(tmp_path, override, flags=["--continue-from", half])
        lines = [each for each in result.output.splitlines() if "moments" in each]
        assert [each.find(line.format(half=half)) >= 0 for each in lines] == [True] if line else not lines
        tensors = load_tensors(checkpoints(tmp_path)[-1])[0]
        state = {name.split(".")[-1] for name in tensors if name.startswith("G_adam.")}
        adam = {"step", "exp_avg", "exp_avg_sq"}
        states = {"RMSprop": {"step", "square_avg"}, "SGD": set(), "true": adam | {"max_exp_avg_sq"}}
        assert state == states.get(override.split("=")[-1], adam)
        if state:
            assert tensors["G_adam.0.step"] == (20 if line is None else 10)

    def test_a_new_average_begins_with_the_weights_of_the_other_run(self, half, run, tmp_path):
        with after(STEP, simulate_kill, call=1), pytest.raises(SimulatedKill):
            run(tmp_path / "killed", "train.ema=0.9", flags=["--continue-from", half])
        averages, restore = [], State.restore

        def record(state, *args):
            images = restore(state, *args)
            G = state.engine.unwrap(state.G.network)
            averages.append((images, dict(state.final.named_parameters()), dict(G.named_parameters())))
            averages.append(
                all(a.equal(b) for a, b in zip(averages[-1][1].values(), averages[-1][2].values(), strict=True))
            )
            return images

        with mock.patch.object(State, "restore", record):
            assert run(tmp_path / "new", "train.ema=0.9", flags=["--continue-from", half]).exit_code == 0
        assert (averages[0][0], averages[1]) == (10, True)


class TestSnapshotsThatAreLost:
    """`[evaluate] at` of a training that has gone on: refused before a step, and before anything is deleted."""

    def test_a_run_that_resumes_names_the_numbers_and_fresh(self, halfway, run, finish):
        before = written(halfway)
        result = run(halfway, "evaluate.at=[4, 16]")
        assert (result.exit_code, result.first_step) == (2, None)
        [line] = [line for line in result.output.splitlines() if "at = 4:" in line]
        assert "goes on after 15 images, and how G was before is lost: give larger numbers, or start over with" in line
        assert written(halfway) == before
        finish(halfway, "evaluate.at=[4, 16]", flags=["--fresh"])

    def test_snapshots_that_the_run_has_kept_are_measured(self, run, finish, tmp_path):
        with after(STEP, simulate_kill, call=12), pytest.raises(SimulatedKill):
            run(tmp_path, "evaluate.at=[4]")
        assert finish(tmp_path, "evaluate.at=[4, 18]").first_step == 10
        numbers = json.loads((only(tmp_path) / "results.json").read_text())["metrics"]
        assert {"l1", "l1@4", "l1@18"} <= numbers.keys()

    @pytest.mark.parametrize("flags", [[], ["--fresh"]])
    def test_for_a_run_that_continues_another_one_fresh_is_no_advice(self, flags, half, run, tmp_path):
        result = run(tmp_path / "new", "evaluate.at=[8, 12]", flags=["--continue-from", half, *flags])
        assert (result.exit_code, result.first_step) == (2, None)
        last = result.output.splitlines()[-1]
        assert "at = 8: this training goes on after 10 images" in last
        assert "--fresh" not in last
        assert not (tmp_path / "new").exists()

    def test_the_numbers_of_other_groups_are_stored(self, complete, run):
        results = only(complete) / "results.json"
        before = json.loads(results.read_text())["metrics"].keys()
        result = run(complete, "evaluate.at=[4]", 'metrics.mine={use="l1", evaluate={test_mode="eval"}}')
        assert result.exit_code == 2
        assert "without keeping its weights after 4 images: train it again with --fresh" in result.output
        assert json.loads(results.read_text())["metrics"].keys() == {*before, "mine"}


# a process waits in its twelfth step until the signal has arrived
WAIT = """
import signal, time
from p2pzoo.training import loop
train_step, steps = loop.train_step, 0

def waiting_step(*args):
    global steps
    steps += 1
    if steps == 12:
        handler = signal.getsignal({signum})
        print("waiting", flush=True)
        while signal.getsignal({signum}) is handler:
            time.sleep(0.005)
    return train_step(*args)

loop.train_step = waiting_step
"""


class TestSignals:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["INT", "TERM", "HUP"])
    def test_a_process_saves_on_a_signal_and_prints_how_to_resume(
        self, signum, start, fork, arguments, finish, uninterrupted, tmp_path
    ):
        wait = WAIT.format(signum=int(signum))
        if signum == signal.SIGTERM:  # once with a process of its own
            process = start("-c", wait + RUN, *arguments(tmp_path))
        else:
            process = fork(*arguments(tmp_path), before=wait)
        assert "waiting\n" in iter(process.stdout.readline, "")
        process.send_signal(signum)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 128 + signum
        assert re.search(r"stopped at 12 images and saved; the same command resumes from there$", output)
        assert images(checkpoints(tmp_path)[-1]) == status(tmp_path)["images"] == 12
        assert status(tmp_path)["state"] == "interrupted"
        assert finish(tmp_path).first_step == 12
        assert outcome(tmp_path) == uninterrupted()

    def test_a_run_whose_output_nobody_reads_any_more_is_saved(self, fork, arguments, tmp_path):
        often = "from p2pzoo.runs import progress; progress.PLAIN_LINE_SECONDS = 0"
        process = fork(*arguments(tmp_path, "train.images=100000"), before=often)
        for line in process.stdout:  # as `2>&1 | head` does
            if "images  " in line:
                break
        process.stdout.close()
        assert process.wait(timeout=600) == 128 + signal.SIGTERM
        assert status(tmp_path)["state"] == "interrupted"
        assert images(checkpoints(tmp_path)[-1]) == status(tmp_path)["images"] > 0

    @pytest.mark.parametrize(
        "place",
        [
            (STEP, 12),
            (DISPLAY, 13),
            ("p2pzoo.training.checkpoint:State.save", 2),  # the checkpoint of image 10
        ],
        ids=["step", "display", "checkpoint"],
    )
    def test_a_signal_at_any_point_of_a_step_saves_that_step(self, place, run, finish, uninterrupted, tmp_path):
        with after(place[0], partial(signal.raise_signal, signal.SIGTERM), call=place[1]):
            result = run(tmp_path)
        assert result.exit_code == 128 + signal.SIGTERM
        seen = int(re.search(r"stopped at (\d+) images and saved", result.output)[1])
        assert images(checkpoints(tmp_path)[-1]) == seen
        finish(tmp_path)
        assert outcome(tmp_path) == uninterrupted()

    @pytest.mark.parametrize(
        ("place", "signum"),
        [((STEP, 20), signal.SIGINT), ((DISPLAY, 20), signal.SIGTERM), ((TRANSLATE, 3), signal.SIGINT)],
        ids=["step", "display", "evaluation"],
    )
    def test_a_signal_after_the_last_step_stops_the_run_too(self, signum, place, run, finish, uninterrupted, tmp_path):
        with after(place[0], partial(signal.raise_signal, signum), call=place[1]):
            result = run(tmp_path)
        assert result.exit_code == 128 + signum
        assert "the same command resumes" in result.output
        assert finish(tmp_path).first_step is None
        assert outcome(tmp_path) == uninterrupted()


class TestMaxTime:
    def test_a_run_saves_and_stops_before_its_time_is_over(self, run, tmp_path, monkeypatch):
        timers = []
        monkeypatch.setattr(
            "p2pzoo.cli.time_limit.threading.Timer", lambda *args: timers.append(args) or mock.MagicMock()
        )
        with after(STEP, lambda: timers[0][1](), call=15):  # what the timer calls, at any speed of the machine
            result = run(tmp_path, flags=("--max-time", "20s"))
        assert result.exit_code == 128 + signal.SIGTERM, result.output
        assert "stopped at 15 images and saved" in result.output
        assert images(checkpoints(tmp_path)[-1]) == 15

    def test_a_limit_that_passes_before_the_training_ends_with_a_message(self, fork, arguments, tmp_path):
        process = fork(*arguments(tmp_path, "train.images=1000000"), "--max-time", "1s")
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 128 + signal.SIGTERM
        assert "the same command resumes from" in output.splitlines()[-1]
        assert "Traceback" not in output

    @pytest.mark.parametrize(("limit", "signal_after"), [("20s", 18), ("3h50m", 3 * 3600 + 50 * 60 - 30)])
    def test_the_signal_comes_a_little_before_the_limit(self, limit, signal_after, run, tmp_path, monkeypatch):
        timers = []
        monkeypatch.setattr(
            "p2pzoo.cli.time_limit.threading.Timer", lambda *args: timers.append(args) or mock.MagicMock()
        )
        run(tmp_path, "train.images=4", flags=("--max-time", limit))
        assert timers == [(signal_after, stop_this_process)]

    def test_the_timer_is_cancelled_when_the_command_ends(self, run, tmp_path):
        assert run(tmp_path, "train.images=4", flags=("--max-time", "1h")).exit_code == 0
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        assert all(timer.finished.is_set() for timer in timers), "it would stop this process in an hour"

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("3h50m", 13800), ("90m", 5400), ("45s", 45), ("1d", 86400), ("1:30:00", 5400), ("2-00:00:01", 172801)],
    )
    def test_times_are_parsed_as_people_and_slurm_write_them(self, text, seconds):
        assert Duration().convert(text, None, None) == seconds

    @pytest.mark.parametrize("text", ["90", "1:30", "-5m", "0s", "", "5 m", "1h60", "1:75:00", "9" * 40 + "h", "٣m3"])
    def test_a_wrong_time_is_an_error_of_one_line(self, text, run_cli):
        result = run_cli("run", "zoo:base.toml", "--max-time", text)
        assert result.exit_code == 2
        assert f"'{text}' is not a duration: write 3h50m, 90m, or 3:50:00" in result.output


class TestSlurm:
    """recipes/slurm.sh with a fake srun that runs its command, and a fake scontrol that records its arguments."""

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
    def test_a_preempted_job_is_queued_again_with_bit_identical_results(
        self, wait_for, arguments, uninterrupted, tmp_path
    ):
        options = arguments(tmp_path / "runs", "train.images=60")[1:]
        job = self.job(tmp_path, *options)
        wait_for(lambda: any(len(log.read_text()) for log in tmp_path.glob("runs/*/*/metrics.jsonl")), job)
        [step] = [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
        os.kill(step, signal.SIGTERM)
        assert job.wait(600) == 143
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        assert self.job(tmp_path, *options).wait(600) == 0
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

    def test_the_second_process_is_refused_in_one_line(self, halfway, fork, run, finish, uninterrupted):
        process = fork(only(halfway), code=self.HOLD)
        assert process.stdout.readline() == "working\n"
        before = written(halfway)
        result = run(halfway)
        assert result.exit_code == 2
        message = f"{only(halfway)}: another process is working on this run; wait for it or stop it"
        assert result.output.splitlines()[1:] == [message]
        assert written(halfway) == before
        process.kill()
        process.wait()
        finish(halfway)
        assert outcome(halfway) == uninterrupted()
