"""The perceptual study: a page with the paper's protocol, and the analysis of its sessions."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
from p2pzoo_bench.intervals import between_groups
from p2pzoo_study.analysis import analyse, rate_interval, read_sessions
from PIL import Image

from p2pzoo import config
from p2pzoo.data import Store, single_batches
from p2pzoo.images.grid import to_uint8_rgb
from p2pzoo.models.load import load_model
from p2pzoo.models.test_modes import translate

PROTOCOL = {"display_ms": 1000, "practice": 10, "trials": 40, "side": 256, "pairing": "different inputs"}


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A finished run at 64 px. Its data has more than the 50 test images that a session needs."""
    runs = tmp_path_factory.mktemp("runs")
    result = run(runs, "train.images=2", "dataset.stride=64")
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    return folder


@pytest.fixture(scope="module")
def study(run_cli, trained, tmp_path_factory):
    """A study of this run that shows images for 50 ms, so that tests end soon."""
    out = tmp_path_factory.mktemp("study") / "page"
    result = run_cli("study", f"mine={trained}", "-o", out, "--title", "<b>Real?</b>", "--display-ms", 50)
    assert result.exit_code == 0, result.output
    return out


def read_document(out):
    page = (out / "index.html").read_text("utf-8")
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_the_protocol_is_the_papers_and_real_and_fake_have_the_same_size(run_cli, trained, tmp_path):
    result = run_cli("study", trained, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = read_document(tmp_path / "out")
    assert document["protocol"] == PROTOCOL
    assert "for 1 second each" in (tmp_path / "out/index.html").read_text("utf-8")
    [algorithm] = document["algorithms"]
    assert algorithm["label"] == trained.parent.name
    assert len({pair["id"] for pair in algorithm["pairs"]}) == len(algorithm["pairs"]) >= 50
    for pair in algorithm["pairs"][:3]:
        sizes = {Image.open(tmp_path / "out" / pair[kind]).size for kind in ("real", "fake")}
        assert sizes == {(64, 64)}
        assert re.fullmatch(r"images/[0-9a-f]{16}\.png", pair["fake"]), "its name does not reveal that it is fake"


def test_the_fakes_are_those_that_the_numbers_of_the_run_measure(run, run_cli, tmp_path):
    """Another evaluation of the same run: its average, in test mode eval, with its own steps of the process."""
    settings = ("train.images=8", "dataset.stride=64", "evaluate.weights=average", "evaluate.test_mode=eval",
                "process.use=flow", "generator.norm=group", "generator.noise=none",
                'drop=["discriminator", "gan_loss"]', "losses.l1.weight=1", "evaluate.process={steps=3}")  # fmt: skip
    result = run(tmp_path / "runs", *settings)
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    assert run_cli("study", folder, "-o", tmp_path / "out").exit_code == 0
    document = read_document(tmp_path / "out")
    [algorithm] = document["algorithms"]
    assert algorithm["translations"] == {"test_mode": "eval", "weights": "average", "process": {"steps": 3}}
    experiment = config.load(str(folder / "recipe.toml"))
    x = next(single_batches(Store(experiment.dataset.build(split="test"), compute=experiment.compute), [0])).x
    fakes = {}
    for weights, steps in itertools.product(("last", "average"), (3, 4)):
        model = load_model(folder, device="cpu", weights=weights, at_use={"process": {"steps": steps}})
        fakes[weights, steps] = to_uint8_rgb(translate(model.G, x, "eval")[0])
    shown = np.asarray(Image.open(tmp_path / "out" / algorithm["pairs"][0]["fake"]))
    assert [key for key, fake in fakes.items() if np.array_equal(fake, shown)] == [("average", 3)]


def test_other_translations_are_another_study(run_cli, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    recipe = (tmp_path / "run/recipe.toml").read_text()
    (tmp_path / "run/recipe.toml").write_text(recipe.replace('weights = "last"', 'weights = "average"'))
    documents = []
    for number, folder in enumerate((trained, tmp_path / "run")):
        assert run_cli("study", f"a={folder}", "-o", tmp_path / f"{number}").exit_code == 0
        documents.append(read_document(tmp_path / f"{number}"))
    assert documents[0]["study"] != documents[1]["study"]


def test_a_page_loads_nothing_and_escapes_its_title(study):
    page = (study / "index.html").read_text("utf-8")
    assert "default-src 'none'" in page
    assert "<b>Real" not in page
    assert "http" not in page.replace("http-equiv", "") + (study / "study.js").read_text()


def test_too_few_test_images_are_refused(run, run_cli, tmp_path):
    assert run(tmp_path / "runs", "train.images=1").exit_code == 0
    [folder] = (tmp_path / "runs").glob("*/*")
    result = run_cli("study", folder, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "a session needs 50 test images, and its data has" in result.output


def test_unfinished_runs_and_equal_labels_are_refused(run_cli, trained, tmp_path):
    result = run_cli("study", tmp_path, "-o", tmp_path / "out")
    assert (result.exit_code, "it lacks recipe.toml and model.safetensors" in result.output) == (2, True)
    result = run_cli("study", trained, trained, "-o", tmp_path / "out")
    assert (result.exit_code, "write LABEL=RUN" in result.output) == (2, True)


# --- sessions ---


def session(name, fooled, algorithm="a", *, first_ms=1000.0, study="s", **protocol):
    """A session in which `fooled` of the 40 fakes were taken for real."""
    trials = [
        {"practice": i < 10, "real": "r", "fake": "f", "fake_side": "first",
         "answer": "second" if i < 10 or i - 10 < fooled else "first",
         "shown_ms": [first_ms, 1000.0], "answer_ms": 500.0, "left_page": False}
        for i in range(50)
    ]  # fmt: skip
    return {"format": "p2pzoo-study-1", "study": study, "session": name, "algorithm": algorithm,
            "protocol": PROTOCOL | protocol, "pixel_ratio": 1, "trials": trials}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    def saved(*sessions):
        files = [tmp_path / f"{i}.json" for i in range(len(sessions))]
        for file, content in zip(files, sessions, strict=True):
            file.write_text(json.dumps(content))
        return files

    return saved


def test_the_fooling_rate_is_over_the_trials_after_practice(saved):
    analysis = analyse(read_sessions(saved(*(session(str(i), fooled) for i, fooled in enumerate((4, 8, 12, 8))))))
    row = analysis["algorithms"]["a"]
    assert (row["participants"], row["trials"], row["left_out"]) == (4, 160, 0)
    assert row["fooled"] == pytest.approx(20), "32 of 160, although all were fooled in practice"
    assert row["low"] < 20 < row["high"]


def test_p_is_small_only_for_algorithms_that_differ(saved):
    rng = np.random.default_rng(0)
    rates = {"good": 0.3, "same": 0.3, "bad": 0.05}
    sessions = [session(f"{name}{i}", rng.binomial(40, rate), name) for name, rate in rates.items() for i in range(20)]
    differences = {(d["a"], d["b"]): d for d in analyse(read_sessions(saved(*sessions)))["differences"]}
    assert differences["bad", "good"]["p"] < 0.01
    assert differences["bad", "good"]["high"] < 0
    assert differences["good", "same"]["p"] > 0.05


def test_one_label_of_two_studies_is_refused(saved, run_cli):
    """A page of a retrained model has the recipe's name as label too: the mean of both would be the rate of neither."""
    files = saved(*(session(f"p{i}", 2, "l1", study="aaa") for i in range(5)),
                  *(session(f"p{i}", 20, "l1", study="bbb") for i in range(5)))  # fmt: skip
    result = run_cli("study-analyze", *files)
    assert result.exit_code == 2
    assert f"{files[5]}: 'l1' is another study's algorithm in {files[0]}" in result.output
    assert "analyse them separately" in result.output


def test_two_studies_with_different_labels_are_joined(saved):
    sessions = [session(f"{study}{i}", 2 + i, study, study=study) for study in ("to", "from") for i in range(5)]
    analysis = analyse(read_sessions(saved(*sessions)))
    assert analysis["differences"][0]["p"] is not None
    assert analysis["differences"][0]["same_people"] == 0


def test_people_of_two_studies_are_not_taken_for_different_people(saved, run_cli):
    sessions = [session(f"p{i}", 2 + 4 * j + i, f"a{j}", study=f"s{j}") for j in range(2) for i in range(5)]
    files = saved(*sessions)
    [pair] = analyse(read_sessions(files))["differences"]
    assert (pair["p"], pair["low"], pair["high"], pair["same_people"]) == (None, None, None, 5)
    output = run_cli("study-analyze", *files).output
    assert "no p: 5 participants are in both groups" in output


class TestIntervals:
    @pytest.mark.parametrize("counts", [[0] * 9 + [1], [0] * 19 + [1], [0, 0, 0, 1], [0] * 6, [40] * 6, [8] * 5])
    def test_an_interval_is_in_its_range_and_around_the_rate(self, saved, counts):
        row = analyse(read_sessions(saved(*(session(str(i), k) for i, k in enumerate(counts)))))["algorithms"]["a"]
        assert 0 <= row["low"] <= row["fooled"] <= row["high"] <= 100
        assert row["high"] - row["low"] > 0.5, "people who agree by chance are no proof"

    def test_fewer_than_four_participants_have_none(self):
        assert rate_interval([0.0, 2.5, 0.0], [40, 40, 40]).low is None

    @pytest.mark.parametrize("people", [5, 10, 30])
    @pytest.mark.parametrize("rate", [0.028, 0.061, 0.189, 0.4])
    @pytest.mark.parametrize("spread", [0.0, 0.03])
    def test_it_keeps_its_level(self, people, rate, spread):
        """spread: the correlation of the trials of a participant, by a beta distribution of their rates."""
        rng = np.random.default_rng([people, int(1e3 * rate), int(100 * spread)])
        strength = (1 - spread) / spread if spread else None
        size = (1500, people)
        rates = rng.beta(rate * strength, (1 - rate) * strength, size) if strength else np.full(size, rate)
        intervals = [rate_interval(100 * row / 40, [40] * people) for row in rng.binomial(40, rates)]
        covered = np.mean([each.low <= 100 * rate <= each.high for each in intervals])
        assert 0.93 - 0.013 < covered < (0.97 if people > 5 or rate > 0.05 else 0.985) + 0.013, "± 2 standard errors"

    def test_the_interval_of_a_difference_contains_none_of_two_equal_rates(self, saved):
        sessions = [session(f"{name}{i}", k, name) for name in "ab" for i, k in enumerate((0, 0, 0, 1, 0))]
        [pair] = analyse(read_sessions(saved(*sessions)))["differences"]
        assert -100 <= pair["low"] < 0 < pair["high"] <= 100


def test_trials_that_were_shown_too_long_do_not_count_and_are_reported(saved, run_cli):
    files = saved(session("1", 10), session("2", 40, first_ms=1300.0))
    result = run_cli("study-analyze", *files)
    assert result.exit_code == 0
    assert "a: fooled 25.0 % (1 participant, 40 trials; 40 not counted: an image was shown" in result.output


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (session("1", 3), "is also in"),
        (session("2", 3, display_ms=500), "has another protocol than"),
        (
            session("2", 3) | {"trials": session("2", 3)["trials"][:30]},
            "not a complete session: 10 practice trials and 20 others instead of 10 and 40",
        ),
        (session("2", 3) | {"format": "other"}, "give the files that the page of p2pzoo study saved"),
        ([1, 2], "not a session of a study"),
    ],
    ids=["twice", "protocol", "incomplete", "format", "not an object"],
)
def test_files_that_cannot_be_analysed_together_are_named(saved, run_cli, second, message):
    files = saved(session("1", 3), second)
    result = run_cli("study-analyze", *files)
    assert result.exit_code == 2
    assert result.output.startswith(str(files[1]))
    assert message in result.output


def test_a_table_has_our_rates_and_the_papers(saved, run_cli):
    files = saved(*(session(str(i), 8, "map_to_aerial") for i in range(5)))
    result = run_cli("study-analyze", *files, "--table", "zoo:table4_maps.toml")
    assert result.exit_code == 0, result.output
    assert "| L1 + cGAN, map → photo | 20.0 [15.8, 25.0] | 5 | 18.9 ± 2.5 |" in result.output
    assert "| L1, map → photo | – | – | 0.8 ± 0.3 |" in result.output


def test_the_papers_rates_are_in_the_json_too(saved, run_cli):
    files = saved(session("1", 8, "map_to_aerial"))
    document = json.loads(run_cli("study-analyze", *files, "--table", "zoo:table4_maps.toml", "--json").output)
    assert document.keys() == {"protocol", "algorithms", "differences", "published"}
    assert set(document["algorithms"]) <= document["published"].keys()
    refused = run_cli("study-analyze", *files, "--table", "zoo:table3_receptive_field.toml", "--json")
    assert (refused.exit_code, "not the table of a study" in json.loads(refused.output)["error"]) == (2, True)


def test_an_algorithm_that_the_table_lacks_is_named(saved, run_cli):
    result = run_cli("study-analyze", *saved(session("1", 8, "map_to_arial")), "--table", "zoo:table4_maps.toml")
    assert result.exit_code == 2
    assert "no row 'map_to_arial': did you mean 'map_to_aerial'?" in result.output


def test_tables_of_studies_and_tables_of_runs_are_refused_by_the_other_command(saved, run_cli):
    result = run_cli("study-analyze", *saved(session("1", 8)), "--table", "zoo:table3_receptive_field.toml")
    assert (result.exit_code, "p2pzoo bench prints it" in result.output) == (2, True)
    result = run_cli("bench", "zoo:table5_color.toml")
    assert (result.exit_code, "use p2pzoo study and p2pzoo study-analyze --table" in result.output) == (2, True)


def test_p_of_two_equal_groups_is_rarely_small():
    rng = np.random.default_rng(1)
    p_values = [between_groups(rng.binomial(40, 0.2, 12), rng.binomial(40, 0.2, 12), seed=i)[1] for i in range(300)]
    assert 0.02 < np.mean([p < 0.05 for p in p_values]) < 0.09, "one in twenty"


def test_too_few_or_constant_values_give_no_interval():
    interval, p = between_groups([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (interval.value, interval.low, p) == (-3.0, None, None)
    assert between_groups([1.0] * 5, [2.0] * 5)[1] is None


# --- in a browser ---


def take_part(page, session, *, shots=None):
    """Answer fifty trials, with keys and clicks in turn, always the first image. Returns the saved file's content."""
    page.set_default_timeout(120_000)
    page.locator("#session").fill(session)
    page.locator("#begin").click()
    for i in range(50):
        page.locator("#first:enabled").wait_for()
        if shots and i == 12:
            page.screenshot(path=shots / f"study_{session}.png")
        if i % 2:
            page.keyboard.press("1")
        else:
            page.locator("#first").click()
        if i < 10:
            assert page.locator("#message").inner_text().split("\n")[0] in ("Right.", "Wrong.")
            page.locator("#next").press("Enter")
        if i == 9:
            page.locator("#message", has_text="That was the practice").wait_for()
            page.locator("#next").click()
        if i >= 10 and i < 49:
            assert page.locator("#message b").inner_text() not in ("Right.", "Wrong.")
    with page.expect_download() as download:
        page.locator("#save").click()
    return json.loads(download.value.path().read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_a_session_of_fifty_trials_is_completed_saved_and_analyse(study, browser, run_cli, tmp_path, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors, urls = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.on("request", lambda request: urls.append(request.url))
    page.goto((study / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    record = take_part(page, "abc-1")
    assert errors == []
    assert all(url.startswith((study.as_uri(), "blob:")) for url in urls)

    trials = record["trials"]
    assert [trial["practice"] for trial in trials] == [True] * 10 + [False] * 40
    assert all(trial["real"] != trial["fake"] for trial in trials), "of different inputs"
    assert len({trial["fake"] for trial in trials}) == 50
    assert {trial["fake_side"] for trial in trials} == {"first", "second"}
    assert all(time >= 45 for trial in trials for time in trial["shown_ms"]), "never shorter than the protocol says"

    file = tmp_path / "abc.json"
    file.write_text(json.dumps(record))
    for trial in trials:
        trial["shown_ms"] = [50.0, 50.0]  # a busy machine may have dropped frames
    file.write_text(json.dumps(record))
    result = run_cli("study-analyze", file, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.output)["algorithms"]["mine"]
    fooled = sum(trial["fake_side"] == "second" for trial in trials[10:])
    assert (row["participants"], row["trials"], row["fooled"]) == (1, 40, pytest.approx(100 * fooled / 40))


@pytest.mark.slow
def test_the_order_of_images_depends_only_on_the_session_id(study, browser):
    page = browser.new_page()
    page.goto((study / "index.html").as_uri())
    plans = [page.evaluate("id => JSON.stringify(plan(id))", name) for name in ("one", "one", "two")]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.slow
def test_an_image_is_shown_for_one_second(run_cli, trained, browser, tmp_path):
    assert run_cli("study", trained, "-o", tmp_path / "out").exit_code == 0
    page = browser.new_page()
    page.goto((tmp_path / "out/index.html").as_uri())
    page.evaluate("document.getElementById('trial').hidden = false")
    shown_ms = page.evaluate(
        """async () => {
            const image = await loadImage(algorithms[0].pairs[0].real);
            document.getElementById("first").append(image);
            return flash(image);
        }"""
    )
    assert 996 <= shown_ms < 1250, "a busy machine may add a few frames"
