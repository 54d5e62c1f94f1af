"""`p2pzoo tune` and the file it writes: what is measured, what is chosen, what a run does with it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imports import imported
from p2pzoo_tune import tune

import p2pzoo
from p2pzoo import config
from p2pzoo.compute.conv_as_gemm import Shape, Window, forms, shipped_rule
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.tuned_kernels import read_kernels, shape_of, write_kernels
from p2pzoo.config.settings import Compute
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.training.gan_step import Objective
from p2pzoo.utils.errors import UserError

DOWN = Window((4, 4), (2, 2), (1, 1), (1, 1))
ONE = Window((4, 4), (1, 1), (1, 1), (1, 1))
WIDE = Shape("convolve", 1, (32, 32), 8, 16, DOWN)  # shipped: library
KEY = WIDE.key()


@pytest.fixture(scope="module")
def experiment(tiny):
    return config.load(str(tiny), "smoke")


@pytest.fixture(scope="module")
def asked(experiment):
    threads = torch.get_num_threads()
    yield tune.asked_shapes(experiment)
    torch.set_num_threads(threads)


def other(shape):
    """A form that the shipped rule does not choose for this shape."""
    return next(form for form in reversed(forms(shape)) if form != shipped_rule(shape))


@pytest.fixture(scope="module")
def everything_else(asked, tmp_path_factory):
    """A file that gives every shape of the tiny recipe another form than the shipped one."""
    file = tmp_path_factory.mktemp("kernels") / "kernels.json"
    write_kernels(file, {shape.key(): other(shape) for shape in asked})
    return file


class TestTheFile:
    def test_what_is_written_is_read_and_sorted(self, tmp_path):
        kernels = {shape.key(): "columns" for shape in (replace(WIDE, batch=n) for n in (3, 1, 2))}
        write_kernels(tmp_path / "kernels.json", kernels)
        assert read_kernels(tmp_path / "kernels.json") == kernels
        assert list(json.loads((tmp_path / "kernels.json").read_text())) == sorted(kernels)

    @settings(max_examples=200, derandomize=True)
    @given(st.data())
    def test_a_key_names_its_shape(self, data):
        two = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
        window = Window(two(1, 7), two(1, 3), two(0, 3), two(1, 2), data.draw(st.booleans()))
        operation = data.draw(st.sampled_from(("convolve", "spread", "correlate")))
        shape = Shape(operation, *data.draw(st.tuples(st.integers(1, 64), st.just(two(16, 300)))), 3, 1024, window)
        assert shape_of(shape.key()) == shape

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "not a file of `p2pzoo tune` (Expecting value"),
            ("[]", "not a file of `p2pzoo tune` (it holds no table"),
            (f'["{KEY}"]', "not a file of `p2pzoo tune` (it holds no table"),
            ('{"conv": "columns"}', '"conv" names no convolution'),
            (f'{{"{KEY.replace("1x8", "01x8")}": "columns"}}', "names no convolution"),
            (f'{{"{KEY.replace("32x32", "1x1")}": "columns"}}', "names no convolution"),
            (f'{{"{KEY.replace("stride 2x2", "stride 0x2")}": "columns"}}', "names no convolution"),
            (f'{{"{KEY.replace("convolve", "convolute")}": "columns"}}', "names no convolution"),
            (f'{{"{KEY}": "colums"}}', 'no form "colums" of \'' + KEY + "': did you mean 'columns'?"),
            (f'{{"{KEY}": 3}}', f"no form 3 of '{KEY}'"),
            (f'{{"{KEY}": {{}}}}', f"no form [] of '{KEY}'"),
            (f'{{"{KEY}": "taps", "{KEY}": "columns"}}', "stands there twice"),
            (
                f'{{"{KEY.replace("convolve", "spread")}": "taps"}}',
                f"'{KEY.replace('convolve', 'spread')}' has no form 'taps': its forms are library, columns",
            ),
        ],
    )
    def test_what_is_wrong_is_told_in_one_line_before_anything_begins(self, text, told, tmp_path, zoo, tiny):
        file = tmp_path / "mine.json"
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            read_kernels(file)
        [fault] = caught.value.faults
        assert fault.startswith(f"{file}: ")
        assert told in fault
        answer = zoo("run", tiny, "--profile", "smoke", "--runs", tmp_path / "runs", "-s", f"compute.kernels={file}")
        assert answer.exit_code == 2
        assert answer.output.splitlines() == [f"-s compute.kernels={file}  [compute] kernels: {fault}"]
        assert not (tmp_path / "runs").exists()

    def test_a_file_that_is_not_there_is_told_with_the_line_that_asks_for_it(self, zoo, tmp_path):
        recipe = tmp_path / "mine.toml"
        recipe.write_text('extends = "zoo:base.toml"\n[compute]\nkernels = "nowhere.json"\n')
        answer = zoo("recipe", recipe, "--profile", "smoke")
        assert answer.exit_code == 2
        assert answer.output.splitlines() == [f"{recipe}:3  [compute] kernels: nowhere.json: No such file or directory"]

    def test_kernels_without_lowering_would_be_ignored_and_are_refused(self, zoo, tiny, everything_else):
        answer = zoo("recipe", tiny, "-s", f"compute.kernels={everything_else}", "-s", "compute.lowering=false")
        assert answer.exit_code == 2
        assert "lowering = false has none" in answer.output

    def test_they_are_how_not_what(self, experiment, tiny, everything_else):
        tuned = config.load(str(tiny), "smoke", [f"compute.kernels={everything_else}"])
        assert tuned.id == experiment.id
        assert tuned.resolved()["compute"]["kernels"] == str(everything_else)


class TestWhatIsMeasured:
    def test_a_step_asks_for_every_convolution_and_every_gradient_it_takes(self, asked):
        """G has 6 + 6 layers at 64 px, D 5, called twice; none goes to images or to the frozen D."""
        calls = dict.fromkeys(("convolve", "spread", "correlate"), 0)
        for shape, number in asked.items():
            calls[shape.operation] += number
        assert calls == {
            "convolve": 6 + 6 + 2 * 5,
            "spread": 5 + 6 + 4 + 5,
            "correlate": 6 + 6 + 5,
        }

    def test_each_form_of_a_shape_is_timed(self):
        buffer = torch.empty(1000, dtype=torch.uint8)
        for operation in ("convolve", "spread", "correlate"):
            for window in (DOWN, ONE):
                shape = Shape(operation, 2, (16, 16), 3, 4, window)
                seconds = tune.measure(shape, 3, buffer)
                assert seconds.keys() == set(forms(shape))
                assert all(0 < each < 1 for each in seconds.values())

    def test_the_caches_are_flushed_before_each_timing_and_forms_take_turns(self, monkeypatch):
        happened = []

        class Buffer:
            def fill_(self, _):
                happened.append("flush")

        def call(_shape, form):
            return lambda *_: happened.append(form)

        monkeypatch.setattr(tune, "_call", call)
        tune.measure(WIDE, 2, Buffer())
        first = ["library", "columns", "taps"]
        turns = [word for form in (*first, *reversed(first)) for word in ("flush", form)]
        assert happened == [*first, *turns]

    def test_more_is_written_than_the_last_cache_holds(self, tmp_path, monkeypatch):
        for size, expected in (("131072K\n", 256 << 20), ("1024K\n", 64 << 20)):
            (tmp_path / "size").write_text(size)
            monkeypatch.setattr(tune, "LAST_CACHE", tmp_path / "size")
            assert tune._bytes_to_write() == expected
        monkeypatch.setattr(tune, "LAST_CACHE", tmp_path / "nowhere")
        assert tune._bytes_to_write() == 64 << 20

    @pytest.mark.parametrize(
        ("seconds", "chosen", "saved"),
        [
            ({"library": 1.0, "columns": 0.94, "taps": 2.0}, "columns", 3 * 0.06),
            ({"library": 1.0, "columns": 0.96, "taps": 2.0}, "library", 0.0),
            ({"library": 1.0, "columns": 0.9, "taps": 0.5}, "taps", 3 * 0.5),
            ({"library": 1.0, "columns": 2.0, "taps": 3.0}, "library", 0.0),
        ],
    )
    def test_another_form_is_chosen_where_it_is_faster_by_more_than_the_margin(self, seconds, chosen, saved):
        finding = tune.Finding(WIDE, 3, seconds)
        assert (finding.shipped, finding.chosen) == ("library", chosen)
        assert finding.saved == pytest.approx(saved)
        assert tune.overrides([finding]) == ({} if chosen == "library" else {KEY: chosen})

    @pytest.mark.parametrize(
        ("override", "told"),
        [("lowering=false", "there are no kernels to choose"), ("precision=bf16", "no convolution of this recipe")],
    )
    def test_where_there_is_nothing_to_choose_it_says_so(self, override, told, zoo, tiny, tmp_path):
        answer = zoo("tune", tiny, "--profile", "smoke", "-s", f"compute.{override}", "-o", tmp_path / "kernels.json")
        assert answer.exit_code == 2
        assert told in answer.output
        assert list(tmp_path.iterdir()) == []


class TestTheCommand:
    @pytest.fixture
    def measured(self, monkeypatch):
        """Every form that p2pzoo does not choose takes a millisecond, the one it does choose two."""

        def measure(shape, _repeats, _buffer):
            return {form: 0.002 if form == shipped_rule(shape) else 0.001 for form in forms(shape)}

        monkeypatch.setattr(tune, "measure", measure)

    def test_it_writes_what_it_found_and_says_how_to_use_it(self, measured, asked, zoo, tiny, tmp_path):
        out = tmp_path / "mine.json"
        answer = zoo("tune", tiny, "--profile", "smoke", "-o", out)
        assert answer.exit_code == 0, answer.output
        assert read_kernels(out).keys() == {shape.key() for shape in asked}
        for key, form in read_kernels(out).items():
            assert form != shipped_rule(shape_of(key))
        for shape in asked:
            images, window = shape.key().split(" kernel ")
            kernel = re.escape(window.split()[0])
            assert re.search(rf"^{images} +{kernel}, .* {asked[shape]} +[12]\.00 ", answer.output, re.MULTILINE)
        steps = sum(asked.values())
        assert f"saves about      {steps:.1f} ms of {2 * steps:.1f} ms" in answer.output
        used = f"p2pzoo run {tiny} --profile smoke -s compute.kernels={out}"
        assert answer.output.splitlines()[-1].split(maxsplit=1) == ["next", used]
        before = out.read_bytes()
        assert zoo("tune", tiny, "--profile", "smoke", "-o", out).exit_code == 2
        assert zoo("tune", tiny, "--profile", "smoke", "-o", out, "--force").exit_code == 0
        assert out.read_bytes() == before

    def test_json_has_every_time(self, measured, asked, zoo, tiny, tmp_path):
        answer = zoo("tune", tiny, "--profile", "smoke", "-o", tmp_path / "k.json", "--json")
        told = json.loads(answer.output)
        assert told["saved"] == pytest.approx(sum(asked.values()))
        assert [row["key"] for row in told["shapes"]] == sorted(shape.key() for shape in asked)
        assert {row["key"]: row["calls"] for row in told["shapes"]} == {s.key(): n for s, n in asked.items()}
        for row in told["shapes"]:
            assert row["milliseconds"].keys() == set(forms(shape_of(row["key"])))
            assert (row["milliseconds"][row["shipped"]], row["milliseconds"][row["chosen"]]) == (2.0, 1.0)

    def test_for_real_it_writes_a_file_that_a_run_takes(self, zoo, run, tiny, tmp_path):
        out = tmp_path / "kernels.json"
        answer = zoo("tune", tiny, "--profile", "smoke", "--repeats", 1, "-o", out)
        assert answer.exit_code == 0, answer.output
        kernels = read_kernels(out)
        assert run(tmp_path / "runs", "train.images=2", f"compute.kernels={out}").exit_code == 0
        stored = list(tmp_path.glob("runs/*/*/kernels.json"))
        assert [read_kernels(file) for file in stored] == ([kernels] if kernels else [])

    def test_nothing_but_the_command_measures(self):
        for file in Path(p2pzoo.__file__).parent.rglob("*.py"):
            if file.name != "tune.py":
                assert not [name for name in imported(file) if f"{name}.".startswith("p2pzoo_tune.tune.")], file


class CutOff(BaseException):
    """The end of a process as the run sees it."""


@pytest.fixture
def cut_off(monkeypatch):
    """cut_off(call): the run ends after that step, as if its process had been killed."""
    step, taken = Objective.step, []

    def cut_off(call):
        def cutting(self, batch, number):
            told = step(self, batch, number)
            taken.append(number)
            if len(taken) == call:
                raise CutOff
            return told

        monkeypatch.setattr(Objective, "step", cutting)

    return cut_off


def only(runs):
    [file] = runs.glob("*/*/recipe.toml")
    return file.parent


def outcome(runs):
    return {name: (only(runs) / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}


@pytest.fixture(scope="module")
def tuned(run, no_reports, everything_else, tmp_path_factory):
    runs = tmp_path_factory.mktemp("tuned")
    assert run(runs, f"compute.kernels={everything_else}").exit_code == 0
    return runs


@pytest.fixture(scope="module")
def plain(run, no_reports, tmp_path_factory):
    runs = tmp_path_factory.mktemp("plain")
    assert run(runs).exit_code == 0
    return runs


@pytest.mark.usefixtures("no_reports")
class TestARun:
    def test_it_uses_them_keeps_them_and_agrees_to_rounding(self, tuned, plain, everything_else):
        assert read_kernels(only(tuned) / "kernels.json") == read_kernels(everything_else)
        assert not (only(plain) / "kernels.json").exists()
        assert only(tuned).name == only(plain).name
        assert outcome(tuned) != outcome(plain)
        first, its = (json.loads((only(runs) / "metrics.jsonl").read_text().splitlines()[0]) for runs in (tuned, plain))
        assert first == pytest.approx(its, rel=1e-3, abs=1e-4)

    def test_its_own_recipe_is_the_same_run_and_needs_no_other_file(self, tuned, zoo):
        recipe = only(tuned) / "recipe.toml"
        assert "kernels" not in recipe.read_text()
        answer = zoo("run", recipe, "--runs", tuned)
        assert (answer.exit_code, answer.began) == (0, None)

    @pytest.mark.parametrize("again", ["the same", "none"])
    def test_it_resumes_with_its_own_to_the_same_bits(self, again, run, tuned, everything_else, cut_off, tmp_path):
        mine = tmp_path / "mine.json"
        shutil.copy(everything_else, mine)
        cut_off(33)
        with pytest.raises(CutOff):
            run(tmp_path / "runs", f"compute.kernels={mine}")
        if again == "none":
            mine.unlink()
        answer = run(tmp_path / "runs", *([f"compute.kernels={mine}"] if again == "the same" else []))
        assert (answer.exit_code, answer.began) == (0, 30)
        assert outcome(tmp_path / "runs") == outcome(tuned)

    @pytest.mark.parametrize("begun", ["with others", "without"])
    def test_it_is_not_resumed_with_others(self, begun, run, everything_else, cut_off, tmp_path):
        others = tmp_path / "others.json"
        key, form = next(iter(read_kernels(everything_else).items()))
        write_kernels(others, {key: form})
        cut_off(33)
        with pytest.raises(CutOff):
            run(tmp_path / "runs", *([f"compute.kernels={everything_else}"] if begun == "with others" else []))
        before = {file: file.read_bytes() for file in only(tmp_path / "runs").rglob("*") if file.is_file()}
        answer = run(tmp_path / "runs", f"compute.kernels={others}")
        assert (answer.exit_code, answer.began) == (2, None)
        told = answer.output.splitlines()[-1]
        assert told.startswith(f"{only(tmp_path / 'runs')}: begun with other kernels than {others} says. ")
        assert told.endswith("Leave compute.kernels out to go on with its own, or start over with --fresh")
        assert {file: file.read_bytes() for file in only(tmp_path / "runs").rglob("*") if file.is_file()} == before

    def test_started_over_it_takes_what_it_is_given_then(self, tuned, plain, run, tmp_path):
        runs = Path(shutil.copytree(tuned, tmp_path / "runs"))
        assert run(runs, flags=["--fresh"]).exit_code == 0
        assert not (only(runs) / "kernels.json").exists()
        assert outcome(runs) == outcome(plain)

    def test_before_its_first_checkpoint_it_begins_again_with_what_it_is_given_then(
        self, plain, run, everything_else, cut_off, tmp_path
    ):
        cut_off(5)
        with pytest.raises(CutOff):
            run(tmp_path, f"compute.kernels={everything_else}")
        assert (only(tmp_path) / "kernels.json").exists()
        assert run(tmp_path).exit_code == 0
        assert not (only(tmp_path) / "kernels.json").exists()
        assert outcome(tmp_path) == outcome(plain)

    def test_the_model_is_the_one_that_the_checkpoint_holds(self, tuned):
        [checkpoint] = (only(tuned) / "checkpoints").iterdir()
        trained, model = load_tensors(checkpoint)[0], load_tensors(only(tuned) / "model.safetensors")[0]
        assert all(torch.equal(trained[f"G.{name}"], tensor) for name, tensor in model.items())


def test_an_engine_by_itself_reads_the_file_of_its_settings(everything_else):
    engine = Engine(Compute(device="cpu", kernels=everything_else))
    assert engine.chooser.overrides == read_kernels(everything_else)
    assert Engine(Compute(device="cpu")).chooser.overrides == {}
