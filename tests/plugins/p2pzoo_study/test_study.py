"""The perceptual study: a page with the paper's protocol, and what its sessions say."""

import json
import re

import numpy as np
import pytest
from p2pzoo_bench.intervals import between_groups
from p2pzoo_study.analysis import analysed, read_sessions
from PIL import Image

PROTOCOL = {"display_ms": 1000, "practice": 10, "trials": 40, "side": 256, "pairing": "different inputs"}


@pytest.fixture(scope="module")
def unsynced():
    """Many small files, which a busy disk would take long to sync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory, no_reports, unsynced):
    """A finished run of 64 px, whose data has more than the 50 test images that a session takes."""
    runs = tmp_path_factory.mktemp("runs")
    result = run(runs, "train.images=2", "dataset.stride=64")
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    return folder


@pytest.fixture(scope="module")
def study(zoo, trained, tmp_path_factory):
    """A study of it that shows images for 50 ms, so that tests end."""
    out = tmp_path_factory.mktemp("study") / "page"
    told = zoo("study", f"mine={trained}", "-o", out, "--title", "<b>Real?</b>", "--display-ms", 50)
    assert told.exit_code == 0, told.output
    return out


def config(out):
    page = (out / "index.html").read_text("utf-8")
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_the_protocol_is_the_papers_and_real_and_fake_have_one_size(zoo, trained, tmp_path):
    told = zoo("study", trained, "-o", tmp_path / "out")
    assert told.exit_code == 0, told.output
    made = config(tmp_path / "out")
    assert made["protocol"] == PROTOCOL
    assert "for 1 second each" in (tmp_path / "out/index.html").read_text("utf-8")
    [algorithm] = made["algorithms"]
    assert algorithm["label"] == trained.parent.name
    assert len({pair["id"] for pair in algorithm["pairs"]}) == len(algorithm["pairs"]) >= 50
    for pair in algorithm["pairs"][:3]:
        sizes = {Image.open(tmp_path / "out" / pair[kind]).size for kind in ("real", "fake")}
        assert sizes == {(64, 64)}
        assert re.fullmatch(r"images/[0-9a-f]{16}\.png", pair["fake"]), "its name does not tell"


def test_a_page_asks_for_nothing_and_escapes_its_title(study):
    page = (study / "index.html").read_text("utf-8")
    assert "default-src 'none'" in page
    assert "<b>Real" not in page
    assert "http" not in page.replace("http-equiv", "") + (study / "study.js").read_text()


def test_too_few_test_images_are_refused(run, zoo, tmp_path, no_reports, unsynced):
    assert run(tmp_path / "runs", "train.images=1").exit_code == 0
    [folder] = (tmp_path / "runs").glob("*/*")
    told = zoo("study", folder, "-o", tmp_path / "out")
    assert told.exit_code == 2
    assert "a session takes 50 test images, and its data has" in told.output


def test_what_is_no_finished_run_and_equal_labels_are_refused(zoo, trained, tmp_path):
    told = zoo("study", tmp_path, "-o", tmp_path / "out")
    assert (told.exit_code, "it lacks recipe.toml and model.safetensors" in told.output) == (2, True)
    told = zoo("study", trained, trained, "-o", tmp_path / "out")
    assert (told.exit_code, "write LABEL=RUN" in told.output) == (2, True)


# --- sessions ---


def session(name, fooled, algorithm="a", *, shown=1000.0, study="s", **protocol):
    """A session in which so many of the 40 fakes were taken for real."""
    trials = [
        {"practice": i < 10, "real": "r", "fake": "f", "fake_side": "first",
         "answer": "second" if i < 10 or i - 10 < fooled else "first",
         "shown_ms": [shown, 1000.0], "answer_ms": 500.0, "left_page": False}
        for i in range(50)
    ]  # fmt: skip
    return {"format": "p2pzoo-study-1", "study": study, "session": name, "algorithm": algorithm,
            "protocol": PROTOCOL | protocol, "pixel_ratio": 1, "trials": trials}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    def saved(*sessions):
        files = [tmp_path / f"{i}.json" for i in range(len(sessions))]
        for file, each in zip(files, sessions, strict=True):
            file.write_text(json.dumps(each))
        return files

    return saved


def test_the_fooling_rate_is_over_the_trials_after_practice(saved):
    found = analysed(read_sessions(saved(*(session(str(i), fooled) for i, fooled in enumerate((4, 8, 12, 8))))))
    row = found["algorithms"]["a"]
    assert (row["participants"], row["trials"], row["left_out"]) == (4, 160, 0)
    assert row["fooled"] == pytest.approx(20), "32 of 160, although all were fooled in practice"
    assert row["low"] < 20 < row["high"]


def test_algorithms_that_differ_are_told_from_those_that_do_not(saved):
    draw = np.random.default_rng(0)
    rates = {"good": 0.3, "same": 0.3, "bad": 0.05}
    sessions = [session(f"{name}{i}", draw.binomial(40, rate), name) for name, rate in rates.items() for i in range(20)]
    found = {(d["a"], d["b"]): d for d in analysed(read_sessions(saved(*sessions)))["differences"]}
    assert found["bad", "good"]["p"] < 0.01
    assert found["bad", "good"]["high"] < 0
    assert found["good", "same"]["p"] > 0.05


def test_trials_that_were_shown_too_long_do_not_count_and_are_told(saved, zoo):
    files = saved(session("1", 10), session("2", 40, shown=1300.0))
    told = zoo("study-analyze", *files)
    assert told.exit_code == 0
    assert "a: fooled 25.0 % (1 participants, 40 trials; 40 left out" in told.output


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (session("1", 3), "is also in"),
        (session("2", 3, display_ms=500), "another protocol than in"),
        (session("2", 3) | {"trials": session("2", 3)["trials"][:30]}, "no whole session"),
        (session("2", 3) | {"format": "other"}, "no session of a study (format"),
        ([1, 2], "no session of a study"),
    ],
    ids=["twice", "protocol", "cut", "format", "strange"],
)
def test_files_that_cannot_be_put_together_are_named(saved, zoo, second, why):
    files = saved(session("1", 3), second)
    told = zoo("study-analyze", *files)
    assert told.exit_code == 2
    assert told.output.startswith(str(files[1]))
    assert why in told.output


def test_rates_stand_beside_the_papers(saved, zoo):
    files = saved(*(session(str(i), 8, "map_to_aerial") for i in range(5)))
    told = zoo("study-analyze", *files, "--table", "zoo:table4_maps.toml")
    assert told.exit_code == 0, told.output
    assert "| L1 + cGAN, map → photo | 20.0 | 5 | 18.9 ± 2.5 |" in told.output
    assert "| L1, map → photo | – | – | 0.8 ± 0.3 |" in told.output


def test_an_algorithm_that_the_table_lacks_is_named(saved, zoo):
    told = zoo("study-analyze", *saved(session("1", 8, "map_to_arial")), "--table", "zoo:table4_maps.toml")
    assert told.exit_code == 2
    assert "no row 'map_to_arial': did you mean 'map_to_aerial'?" in told.output


def test_a_table_of_a_study_and_one_of_runs_are_not_mixed_up(saved, zoo):
    told = zoo("study-analyze", *saved(session("1", 8)), "--table", "zoo:table3_receptive_field.toml")
    assert (told.exit_code, "p2pzoo bench makes it" in told.output) == (2, True)
    told = zoo("bench", "zoo:table5_color.toml")
    assert (told.exit_code, "p2pzoo study asks them" in told.output) == (2, True)


def test_the_p_of_two_equal_groups_is_seldom_small():
    draw = np.random.default_rng(1)
    found = [between_groups(draw.binomial(40, 0.2, 12), draw.binomial(40, 0.2, 12), seed=i)[1] for i in range(300)]
    assert 0.02 < np.mean([p < 0.05 for p in found]) < 0.09, "one in twenty"


def test_groups_that_cannot_tell_give_no_interval():
    interval, p = between_groups([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (interval.value, interval.low, p) == (-3.0, None, None)
    assert between_groups([1.0] * 5, [2.0] * 5)[1] is None


# --- in a browser ---


def take_part(page, session, *, shots=None):
    """Fifty trials, answered by keys and by clicks in turn: always the first. Returns what was saved."""
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
            assert page.locator("#say").inner_text().split("\n")[0] in ("Right.", "Wrong.")
            page.locator("#next").press("Enter")
        if i == 9:
            page.locator("#say", has_text="That was the practice").wait_for()
            page.locator("#next").click()
        if i >= 10 and i < 49:
            assert page.locator("#say b").inner_text() not in ("Right.", "Wrong.")
    with page.expect_download() as download:
        page.locator("#save").click()
    return json.loads(download.value.path().read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_a_session_of_fifty_trials_is_completed_saved_and_analysed(study, browser, zoo, tmp_path, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((study / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    record = take_part(page, "abc-1")
    assert errors == []
    assert all(url.startswith((study.as_uri(), "blob:")) for url in asked)

    trials = record["trials"]
    assert [trial["practice"] for trial in trials] == [True] * 10 + [False] * 40
    assert all(trial["real"] != trial["fake"] for trial in trials), "of different inputs"
    assert len({trial["fake"] for trial in trials}) == 50
    assert {trial["fake_side"] for trial in trials} == {"first", "second"}
    assert all(shown >= 45 for trial in trials for shown in trial["shown_ms"]), "never shorter than asked for"

    file = tmp_path / "abc.json"
    file.write_text(json.dumps(record))
    for trial in trials:
        trial["shown_ms"] = [50.0, 50.0]  # a busy machine may have dropped frames
    file.write_text(json.dumps(record))
    told = zoo("study-analyze", file, "--json")
    assert told.exit_code == 0, told.output
    row = json.loads(told.output)["algorithms"]["mine"]
    fooled = sum(trial["fake_side"] == "second" for trial in trials[10:])
    assert (row["participants"], row["trials"], row["fooled"]) == (1, 40, pytest.approx(100 * fooled / 40))


@pytest.mark.slow
def test_the_order_of_images_follows_from_the_sessions_id_alone(study, browser):
    page = browser.new_page()
    page.goto((study / "index.html").as_uri())
    plans = [page.evaluate("id => JSON.stringify(plan(id))", name) for name in ("one", "one", "two")]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.slow
def test_an_image_is_shown_for_the_second_that_the_protocol_says(zoo, trained, browser, tmp_path):
    assert zoo("study", trained, "-o", tmp_path / "out").exit_code == 0
    page = browser.new_page()
    page.goto((tmp_path / "out/index.html").as_uri())
    page.evaluate("document.getElementById('trial').hidden = false")
    shown = page.evaluate(
        """async () => {
            const image = await loaded(algorithms[0].pairs[0].real);
            document.getElementById("first").append(image);
            return flash(image);
        }"""
    )
    assert 996 <= shown < 1250, "a frame of a busy machine more at most"
