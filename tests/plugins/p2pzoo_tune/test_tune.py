"""`p2pzoo tune`: measurements, choices, the kernels file, and runs that use it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pzoo_tune import tune

from p2pzoo import config
from p2pzoo.compute.conv_algorithms import ConvShape, ConvWindow
from p2pzoo.compute.conv_as_gemm import default_algorithm, supported_algorithms
from p2pzoo.compute.engine import Engine
from p2pzoo.compute.tuned_kernels import parse_shape, read_kernels, write_kernels
from p2pzoo.config.settings import Compute
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.training.gan_step import Objective
from p2pzoo.utils.errors import UserError

DOWN = ConvWindow((4, 4), (2, 2), (1, 1), (1, 1))
ONE = ConvWindow((4, 4), (1, 1), (1, 1), (1, 1))
WIDE = ConvShape("convolve", 1, (32, 32), 8, 16, DOWN)  # default: library
KEY = WIDE.key()


@pytest.fixture(scope="session")
def run(run):
    """The tiny recipe with eight images: checkpoints at 3, 6 and 8."""
    short = ("train.images=8", "train.log_every=2", "train.checkpoint_every=3")
    return lambda runs, *overrides, flags=(): run(runs, *short, *overrides, flags=flags)


@pytest.fixture(scope="module")
def experiment(tiny):
    return config.load(str(tiny), "smoke")


@pytest.fixture(scope="module")
def shapes(experiment):
    threads = torch.get_num_threads()
    yield tune.record_shapes(experiment)
    torch.set_num_threads(threads)


def other_algorithm(shape):
    """Return an algorithm that is not the default of this shape."""
    return next(name for name in reversed(supported_algorithms(shape)) if name != default_algorithm(shape))


@pytest.fixture(scope="module")
def other_kernels(shapes, tmp_path_factory):
    """A kernels file that gives every shape of the tiny recipe another algorithm than the default."""
    file = tmp_path_factory.mktemp("kernels") / "kernels.json"
    write_kernels(file, {shape.key(): other_algorithm(shape) for shape in shapes})
    return file


class TestKernelsFile:
    def test_a_file_is_sorted_and_read_back(self, tmp_path):
        kernels = {shape.key(): "columns" for shape in (replace(WIDE, batch=n) for n in (3, 1, 2))}
        write_kernels(tmp_path / "kernels.json", kernels)
        assert read_kernels(tmp_path / "kernels.json") == kernels
        assert list(json.loads((tmp_path / "kernels.json").read_text())) == sorted(kernels)

    @settings(max_examples=200, derandomize=True)
    @given(st.data())
    def test_a_key_names_its_shape(self, data):
        two = lambda low, high: data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
        window = ConvWindow(two(1, 7), two(1, 3), two(0, 3), two(1, 2), data.draw(st.booleans()))
        operation = data.draw(st.sampled_from(("convolve", "spread", "correlate")))
        shape = ConvShape(
            operation,
            *data.draw(st.tuples(st.integers(1, 64), st.just(two(16, 300)))),
            3,
            1024,
            window,
            data.draw(st.booleans()),
        )
        assert parse_shape(shape.key()) == shape

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "not a file of `p2pzoo tune` (Expecting value"),
            ("[]", "not a file of `p2pzoo tune` (it is not a JSON object"),
            (f'["{KEY}"]', "not a file of `p2pzoo tune` (it is not a JSON object"),
            ('{"conv": "columns"}', '"conv" is not the key of a convolution'),
            (f'{{"{KEY.replace("1x8", "01x8")}": "columns"}}', "is not the key of a convolution"),
            (f'{{"{KEY.replace("32x32", "1x1")}": "columns"}}', "is not the key of a convolution"),
            (f'{{"{KEY.replace("stride 2x2", "stride 0x2")}": "columns"}}', "is not the key of a convolution"),
            (f'{{"{KEY.replace("convolve", "convolute")}": "columns"}}', "is not the key of a convolution"),
            (f'{{"{KEY}": "colums"}}', f"'{KEY}': no algorithm \"colums\": did you mean 'columns'?"),
            (f'{{"{KEY}": 3}}', f"'{KEY}': no algorithm 3"),
            (f'{{"{KEY}": {{}}}}', f"'{KEY}': no algorithm []"),
            (f'{{"{KEY}": "taps", "{KEY}": "columns"}}', "occurs twice"),
            (
                f'{{"{KEY.replace("convolve", "spread")}": "taps"}}',
                f"'{KEY.replace('convolve', 'spread')}': algorithm 'taps' cannot compute it; use library, columns",
            ),
        ],
    )
    def test_a_mistake_is_reported_in_one_line_before_the_run_starts(self, text, message, tmp_path, run_cli, tiny):
        file = tmp_path / "mine.json"
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            read_kernels(file)
        [fault] = caught.value.faults
        assert fault.startswith(f"{file}: ")
        assert message in fault
        result = run_cli(
            "run", tiny, "--profile", "smoke", "--runs", tmp_path / "runs", "-s", f"compute.kernels={file}"
        )
        assert result.exit_code == 2
        assert result.output.splitlines()[-1] == f"[compute] kernels: {fault}"
        assert not (tmp_path / "runs").exists()

    def test_a_missing_file_is_reported_with_the_line_of_the_recipe(self, run_cli, tmp_path):
        recipe = tmp_path / "mine.toml"
        recipe.write_text('extends = "zoo:base.toml"\n[compute]\nkernels = "nowhere.json"\n')
        result = run_cli("recipe", recipe, "--profile", "smoke")
        assert result.exit_code == 2
        assert result.output.splitlines() == [
            f'{recipe}:3  [compute] kernels = "{tmp_path / "nowhere.json"}": no such file'
        ]

    def test_kernels_without_lowering_are_refused(self, run_cli, tiny, other_kernels):
        result = run_cli("recipe", tiny, "-s", f"compute.kernels={other_kernels}", "-s", "compute.lowering=false")
        assert result.exit_code == 2
        assert "lowering = false does not use it; remove one" in result.output

    def test_kernels_do_not_change_the_run_id(self, experiment, tiny, other_kernels):
        tuned = config.load(str(tiny), "smoke", [f"compute.kernels={other_kernels}"])
        assert tuned.id == experiment.id
        assert tuned.resolved()["compute"]["kernels"] == str(other_kernels)


class TestMeasurements:
    def test_a_training_step_records_every_convolution_and_every_gradient(self, shapes):
        """G has 3 + 3 layers; D has 3 and is called twice. Images and the frozen D get no gradients."""
        calls = dict.fromkeys(("convolve", "spread", "correlate"), 0)
        for shape, number in shapes.items():
            calls[shape.operation] += number
        assert calls == {
            "convolve": 3 + 3 + 2 * 3,
            "spread": 2 + 3 + 2 + 3,
            "correlate": 3 + 3 + 3,
        }

    def test_each_algorithm_of_a_shape_is_timed(self):
        buffer = torch.empty(1000, dtype=torch.uint8)
        for operation in ("convolve", "spread", "correlate"):
            for window, bf16 in ((DOWN, False), (ONE, False), (ONE, True)):
                shape = ConvShape(operation, 2, (16, 16), 3, 4, window, bf16)
                seconds = tune.measure(shape, 3, buffer)
                assert seconds.keys() == set(supported_algorithms(shape))
                assert all(0 < each < 1 for each in seconds.values())

    def test_caches_are_flushed_before_each_timing_and_algorithms_take_turns(self, monkeypatch):
        events = []

        class Buffer:
            def fill_(self, _):
                events.append("flush")

        def make_call(_shape, algorithm):
            return lambda *_: events.append(algorithm)

        monkeypatch.setattr(tune, "_make_call", make_call)
        tune.measure(WIDE, 2, Buffer())
        order = ["library", "columns", "taps"]
        turns = [event for algorithm in (*order, *reversed(order)) for event in ("flush", algorithm)]
        assert events == [*order, *turns]

    def test_the_flush_buffer_is_larger_than_the_last_level_cache(self, tmp_path, monkeypatch):
        for size, expected in (("131072K\n", 256 << 20), ("1024K\n", 64 << 20)):
            (tmp_path / "size").write_text(size)
            monkeypatch.setattr(tune, "CACHE_SIZE_FILE", tmp_path / "size")
            assert tune._flush_bytes() == expected
        monkeypatch.setattr(tune, "CACHE_SIZE_FILE", tmp_path / "nowhere")
        assert tune._flush_bytes() == 64 << 20

    @pytest.mark.parametrize(
        ("seconds", "chosen", "saved"),
        [
            ({"library": 1.0, "columns": 0.94, "taps": 2.0}, "columns", 3 * 0.06),
            ({"library": 1.0, "columns": 0.96, "taps": 2.0}, "library", 0.0),
            ({"library": 1.0, "columns": 0.9, "taps": 0.5}, "taps", 3 * 0.5),
            ({"library": 1.0, "columns": 2.0, "taps": 3.0}, "library", 0.0),
        ],
    )
    def test_another_algorithm_is_chosen_if_it_is_faster_by_more_than_the_margin(self, seconds, chosen, saved):
        measurement = tune.Measurement(WIDE, 3, seconds)
        assert (measurement.default, measurement.chosen) == ("library", chosen)
        assert measurement.saved == pytest.approx(saved)
        assert tune.select_overrides([measurement]) == ({} if chosen == "library" else {KEY: chosen})

    def test_a_recipe_with_a_process_records_the_shapes_of_what_g_sees(self, tiny):
        overrides = ["process.use=flow", "generator.norm=group", "generator.width=32"]
        threads = torch.get_num_threads()
        recorded = tune.record_shapes(config.load(str(tiny), "smoke", overrides))
        torch.set_num_threads(threads)
        assert recorded

    @pytest.mark.parametrize("has_products", [True, False])
    def test_a_recipe_in_bf16_records_shapes_as_this_cpu_computes_them(self, shapes, tiny, has_products, monkeypatch):
        monkeypatch.setattr("p2pzoo.compute.conv_as_gemm.has_bf16_products", lambda: has_products)
        in_bf16 = tune.record_shapes(config.load(str(tiny), "smoke", ["compute.precision=bf16"]))
        assert in_bf16 == {replace(shape, bf16=has_products): number for shape, number in shapes.items()}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("lowering=false", "there are no kernels to choose"),
            ("lowering=true", "no convolution of this recipe has a choice"),
        ],
    )
    def test_a_recipe_without_a_choice_is_refused(self, override, message, run_cli, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr("p2pzoo.compute.conv_as_gemm._why_unsupported", lambda part: "for this test")
        result = run_cli(
            "tune", tiny, "--profile", "smoke", "-s", f"compute.{override}", "-o", tmp_path / "kernels.json"
        )
        assert result.exit_code == 2
        assert message in result.output
        assert list(tmp_path.iterdir()) == []


class TestCommand:
    @pytest.fixture
    def fixed_timings(self, monkeypatch):
        """Measurements in which the default takes two milliseconds, every other algorithm one."""

        def measure(shape, _repeats, _buffer):
            default = default_algorithm(shape)
            return {name: 0.002 if name == default else 0.001 for name in supported_algorithms(shape)}

        monkeypatch.setattr(tune, "measure", measure)

    def test_it_writes_the_file_and_prints_how_to_use_it(self, fixed_timings, shapes, run_cli, tiny, tmp_path):
        out = tmp_path / "mine.json"
        result = run_cli("tune", tiny, "--profile", "smoke", "-o", out)
        assert result.exit_code == 0, result.output
        assert read_kernels(out).keys() == {shape.key() for shape in shapes}
        for key, algorithm in read_kernels(out).items():
            assert algorithm != default_algorithm(parse_shape(key))
        for shape in shapes:
            images, window = shape.key().split(" kernel ")
            kernel = re.escape(window.split()[0])
            assert re.search(rf"^{images} +{kernel}, .* {shapes[shape]} +[12]\.00 ", result.output, re.MULTILINE)
        steps = sum(shapes.values())
        assert f"saves about      {steps:.1f} ms of {2 * steps:.1f} ms" in result.output
        command = f"p2pzoo run {tiny} --profile smoke -s compute.kernels={out}"
        assert result.output.splitlines()[-1].split(maxsplit=1) == ["next", command]
        before = out.read_bytes()
        assert run_cli("tune", tiny, "--profile", "smoke", "-o", out).exit_code == 2
        assert run_cli("tune", tiny, "--profile", "smoke", "-o", out, "--force").exit_code == 0
        assert out.read_bytes() == before

    def test_json_has_every_time(self, fixed_timings, shapes, run_cli, tiny, tmp_path):
        result = run_cli("tune", tiny, "--profile", "smoke", "-o", tmp_path / "k.json", "--json")
        report = json.loads(result.output)
        assert report["saved"] == pytest.approx(sum(shapes.values()))
        assert [row["key"] for row in report["shapes"]] == sorted(shape.key() for shape in shapes)
        assert {row["key"]: row["calls"] for row in report["shapes"]} == {s.key(): n for s, n in shapes.items()}
        for row in report["shapes"]:
            assert row["milliseconds"].keys() == set(supported_algorithms(parse_shape(row["key"])))
            assert (row["milliseconds"][row["shipped"]], row["milliseconds"][row["chosen"]]) == (2.0, 1.0)

    def test_a_real_measurement_gives_a_file_that_a_run_accepts(self, run_cli, run, tiny, tmp_path):
        out = tmp_path / "kernels.json"
        result = run_cli("tune", tiny, "--profile", "smoke", "--repeats", 1, "-o", out)
        assert result.exit_code == 0, result.output
        kernels = read_kernels(out)
        assert run(tmp_path / "runs", "train.images=2", f"compute.kernels={out}").exit_code == 0
        stored = list(tmp_path.glob("runs/*/*/kernels.json"))
        assert [read_kernels(file) for file in stored] == ([kernels] if kernels else [])


class Killed(BaseException):
    """Ends a run like a killed process."""


@pytest.fixture
def kill_at_step(monkeypatch):
    """kill_at_step(n): the run ends after its n-th training step, as if its process had been killed."""
    step, steps = Objective.step, []

    def kill_at_step(number_of_steps):
        def step_or_kill(self, batch, number):
            logs = step(self, batch, number)
            steps.append(number)
            if len(steps) == number_of_steps:
                raise Killed
            return logs

        monkeypatch.setattr(Objective, "step", step_or_kill)

    return kill_at_step


def find_run_folder(runs):
    [file] = runs.glob("*/*/recipe.toml")
    return file.parent


def read_outcome(runs):
    return {name: (find_run_folder(runs) / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")}


@pytest.fixture(scope="module")
def tuned(run, other_kernels, tmp_path_factory):
    runs = tmp_path_factory.mktemp("tuned")
    assert run(runs, f"compute.kernels={other_kernels}").exit_code == 0
    return runs


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    runs = tmp_path_factory.mktemp("plain")
    assert run(runs).exit_code == 0
    return runs


class TestRun:
    def test_a_run_uses_and_stores_its_kernels_and_agrees_up_to_rounding(self, tuned, plain, other_kernels):
        assert read_kernels(find_run_folder(tuned) / "kernels.json") == read_kernels(other_kernels)
        assert not (find_run_folder(plain) / "kernels.json").exists()
        assert find_run_folder(tuned).name == find_run_folder(plain).name
        assert read_outcome(tuned) != read_outcome(plain)
        with_kernels, without = (
            json.loads((find_run_folder(runs) / "metrics.jsonl").read_text().splitlines()[0]) for runs in (tuned, plain)
        )
        assert with_kernels == pytest.approx(without, rel=1e-3, abs=1e-4)

    def test_the_stored_recipe_is_the_same_run_without_the_kernels_file(self, tuned, run_cli):
        recipe = find_run_folder(tuned) / "recipe.toml"
        assert "kernels" not in recipe.read_text()
        result = run_cli("run", recipe, "--runs", tuned)
        assert (result.exit_code, result.first_step) == (0, None)

    @pytest.mark.parametrize("kernels", ["the same", "none"])
    def test_it_resumes_with_its_own_kernels_and_bit_identical_results(
        self, kernels, run, tuned, other_kernels, kill_at_step, tmp_path
    ):
        mine = tmp_path / "mine.json"
        shutil.copy(other_kernels, mine)
        kill_at_step(5)
        with pytest.raises(Killed):
            run(tmp_path / "runs", f"compute.kernels={mine}")
        if kernels == "none":
            mine.unlink()
        result = run(tmp_path / "runs", *([f"compute.kernels={mine}"] if kernels == "the same" else []))
        assert (result.exit_code, result.first_step) == (0, 3)
        assert read_outcome(tmp_path / "runs") == read_outcome(tuned)

    @pytest.mark.parametrize("start", ["with other kernels", "without kernels"])
    def test_it_is_not_resumed_with_other_kernels(self, start, run, other_kernels, kill_at_step, tmp_path):
        others = tmp_path / "others.json"
        key, algorithm = next(iter(read_kernels(other_kernels).items()))
        write_kernels(others, {key: algorithm})
        kill_at_step(5)
        with pytest.raises(Killed):
            run(tmp_path / "runs", *([f"compute.kernels={other_kernels}"] if start == "with other kernels" else []))
        before = {file: file.read_bytes() for file in find_run_folder(tmp_path / "runs").rglob("*") if file.is_file()}
        result = run(tmp_path / "runs", f"compute.kernels={others}")
        assert (result.exit_code, result.first_step) == (2, None)
        message = result.output.splitlines()[-1]
        assert message.startswith(
            f"{find_run_folder(tmp_path / 'runs')}: this run began with other kernels than {others} has: "
        )
        assert message.endswith("remove compute.kernels to resume with the run's own, or start over with --fresh")
        assert {
            file: file.read_bytes() for file in find_run_folder(tmp_path / "runs").rglob("*") if file.is_file()
        } == before

    def test_fresh_uses_the_kernels_given_then(self, tuned, plain, run, tmp_path):
        runs = Path(shutil.copytree(tuned, tmp_path / "runs"))
        assert run(runs, flags=["--fresh"]).exit_code == 0
        assert not (find_run_folder(runs) / "kernels.json").exists()
        assert read_outcome(runs) == read_outcome(plain)

    def test_without_a_checkpoint_it_starts_over_with_the_kernels_given_then(
        self, plain, run, other_kernels, kill_at_step, tmp_path
    ):
        kill_at_step(2)
        with pytest.raises(Killed):
            run(tmp_path, f"compute.kernels={other_kernels}")
        assert (find_run_folder(tmp_path) / "kernels.json").exists()
        assert run(tmp_path).exit_code == 0
        assert not (find_run_folder(tmp_path) / "kernels.json").exists()
        assert read_outcome(tmp_path) == read_outcome(plain)

    def test_the_model_has_the_weights_of_the_checkpoint(self, tuned):
        [checkpoint] = (find_run_folder(tuned) / "checkpoints").iterdir()
        trained, model = load_tensors(checkpoint)[0], load_tensors(find_run_folder(tuned) / "model.safetensors")[0]
        assert all(torch.equal(trained[f"G.{name}"], tensor) for name, tensor in model.items())


def test_an_engine_reads_the_kernels_file_of_its_settings(other_kernels):
    engine = Engine(Compute(device="cpu", kernels=other_kernels))
    assert engine.chooser.overrides == read_kernels(other_kernels)
    assert Engine(Compute(device="cpu")).chooser.overrides == {}
