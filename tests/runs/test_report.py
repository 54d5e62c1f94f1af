"""report.html: a run on one page that loads no other file, escapes all names, and works in a browser."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from p2pzoo import config
from p2pzoo.runs.report import MAX_GRIDS, Comparison, SamplingPath, describe_environment, write_report
from p2pzoo.runs.run_folder import Run

pytestmark = pytest.mark.usefixtures("with_reports")

NASTY = '<img src=x onerror="document.title=1">&"\'.png'


@pytest.fixture(scope="module")
def finished(run_cli, arguments, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    result = run_cli(*arguments(runs, "train.images=12", "train.sample_every=4", "title=<b>bold</b>"))
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    return folder


def test_the_page_holds_recipe_environment_curves_samples_tests_and_metrics(finished):
    page = (finished / "report.html").read_text("utf-8")
    for part in ("metrics", "tests", "samples", "curves", "recipe", "environment"):
        assert f'id="{part}"' in page
    assert re.findall(r'data-images="(\d+)"', page) == ["4", "8", "12"]
    assert page.count("<figcaption>best, ") == page.count("<figcaption>worst, ") == 3
    assert re.search(r"base\.<wbr>toml:\d+<", page), "origins"
    assert "complete, 12 images" in page
    assert str(finished) not in page


PROCESS = ("generator.norm=group", "generator.noise=none", 'drop=["discriminator", "gan_loss"]', "train.images=2")


@pytest.mark.parametrize(
    ("process", "times"),
    [
        ("{use='bridge', steps=3}", ["1", "0.667", "0.333"]),
        ("{use='flow', steps=30}", ["1", "0.867", "0.733", "0.6", "0.433", "0.3", "0.167", "0.0333"]),
        ("{use='bridge', steps=1}", []),
    ],
)
def test_a_process_of_several_steps_shows_its_path(process, times, run_cli, arguments, tmp_path):
    result = run_cli(*arguments(tmp_path, *PROCESS, f"process={process}"))
    assert result.exit_code == 0, result.output
    [file] = tmp_path.rglob("report.html")
    page = file.read_text("utf-8")
    shown = re.findall(r"<span>ŷ at t = ([\d.]+)</span>", page)
    rows = page.count('<div class="path">')
    assert rows == (2 if times else 0)  # of its two validation images
    assert shown == times * rows
    assert ('id="paths"' in page) == bool(times)


def test_a_run_without_a_process_shows_no_path(finished):
    assert 'id="paths"' not in (finished / "report.html").read_text("utf-8")


def test_best_and_worst_are_ranked_by_the_metrics_own_direction(finished):
    page = (finished / "report.html").read_text("utf-8")
    best, worst = ([float(v) for v in re.findall(rf"<figcaption>{w}, l1 ([\d.]+)", page)] for w in ("best", "worst"))
    assert best == sorted(best)
    assert worst == sorted(worst, reverse=True)
    assert best[0] < worst[0], "lower is better for l1"


def test_the_page_loads_nothing_and_escapes_names(finished):
    page = (finished / "report.html").read_text("utf-8")
    outside = re.sub(r"data:image/webp;base64,[\w+/=]+", "", page)
    assert not re.findall(r"""(?:src|href)=["'](?!#|")[^"']*:""", outside)
    assert "url(" not in outside.replace("url(#", "")
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page


def test_markup_in_names_is_escaped(tmp_path):
    experiment = config.load("zoo:base.toml", "smoke", [f"title={NASTY}"])
    run = Run(tmp_path)
    run.begin(experiment, {"python": NASTY}, {})
    image = torch.zeros(3, 8, 8)
    path = SamplingPath(NASTY, [(NASTY, image)])
    write_report(run, experiment, [Comparison(NASTY, NASTY, image, image, image)], [path])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") >= 4


def test_a_run_that_just_began_has_a_page_too(tmp_path):
    experiment = config.load("zoo:base.toml", "smoke")
    run = Run(tmp_path)
    run.begin(experiment, {}, {})
    write_report(run, experiment)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "training, 0 of 20 images" in page
    assert "<svg" not in page


def test_one_line_says_whether_kernels_were_deterministic(finished):
    page = (finished / "report.html").read_text("utf-8")
    assert re.findall(r".*deterministic.*", page) == [
        '<tr><th scope="row">deterministic kernels</th><td>yes (always on a CPU)</td></tr>'
    ]


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"device": "cuda", "deterministic": True}, "yes"),
        ({"device": "cuda", "deterministic": False}, "no"),
        ({"device": "cpu", "deterministic": True}, "yes (always on a CPU)"),
    ],
)
def test_the_environment_is_described_in_words(env, text):
    assert describe_environment(env | {"components": {}, "training": {}}) == {
        "device": env["device"],
        "deterministic kernels": text,
    }


def test_the_columns_of_pictures_are_named(finished):
    page = (finished / "report.html").read_text("utf-8")
    for name in ("x, input", "ŷ, translation", "y, target"):
        assert f"<span>{name}</span>" in page
    assert page.count("<span>ŷ</span>") == page.count("<figcaption>best, ") + page.count("<figcaption>worst, ")


def test_values_of_the_recipe_come_before_defaults(finished):
    set_by_recipe, defaults = (finished / "report.html").read_text("utf-8").split("values by default</summary>")
    assert "losses.<wbr>l1.<wbr>weight" in set_by_recipe
    assert "optimizer.<wbr>eps</td>" in defaults
    assert '<td class="from">default' not in set_by_recipe


def test_the_page_of_a_run_in_training_says_how_far_it_is(run_cli, arguments, tmp_path, monkeypatch):
    pages = []

    def keep(run, *args):
        write_report(run, *args)
        page = (run.folder / "report.html").read_text("utf-8")
        samples = re.findall(r'data-images="(\d+)"', page)
        pages.append((re.search(r"\w+, \d+ of \d+ images", page), samples[-1:]))

    monkeypatch.setattr("p2pzoo.training.run_writer.REPORT_SHARE", float("inf"))
    for module in ("run_writer", "run_experiment"):
        monkeypatch.setattr(f"p2pzoo.training.{module}.write_report", keep)
    settings = ("train.images=12", "train.sample_every=4", "train.checkpoint_every=12", "train.log_every=12")
    assert run_cli(*arguments(tmp_path, *settings)).exit_code == 0
    lines = [(line and line[0], samples) for line, samples in pages]
    assert lines == [
        ("training, 0 of 12 images", []),
        ("training, 4 of 12 images", ["4"]),
        ("training, 8 of 12 images", ["8"]),
        ("training, 12 of 12 images", ["12"]),
        (None, ["12"]),  # complete
    ]


def test_a_dataset_says_what_its_pictures_show(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    experiment = config.load("zoo:base.toml", "smoke")
    image = torch.zeros(3, 8, 8)
    for note, count in (("Bands 1 to 3 as <red>, green and blue.", 2), ("", 0)):
        monkeypatch.setattr(experiment.dataset.factory, "picture_note", note, raising=False)
        write_report(Run(tmp_path / "run"), experiment, [Comparison("1", "best", image, image, image)])
        page = (tmp_path / "run/report.html").read_text("utf-8")
        assert page.count("Bands 1 to 3 as &lt;red&gt;, green and blue.") == count


def test_many_samples_are_thinned_to_limit_the_size_of_the_page(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for i in range(40):
        shutil.copy(finished / "samples/images-00000004.png", tmp_path / f"run/samples/images-{100 + i:08d}.png")
    experiment = config.load("zoo:base.toml", "smoke")
    write_report(Run(tmp_path / "run"), experiment)
    shown = re.findall(r'data-images="(\d+)"', (tmp_path / "run/report.html").read_text("utf-8"))
    assert (len(shown), shown[0], shown[-1]) == (MAX_GRIDS, "4", "139")


def test_a_damaged_sample_is_skipped(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    picture = (finished / "samples/images-00000004.png").read_bytes()
    for images, content in ((5, picture[:60]), (6, picture.replace(b"IDAT", b"\0IDA")), (7, b"")):
        (tmp_path / f"run/samples/images-{images:08d}.png").write_bytes(content)
    write_report(Run(tmp_path / "run"), config.load("zoo:base.toml", "smoke"))
    shown = re.findall(r'data-images="(\d+)"', (tmp_path / "run/report.html").read_text("utf-8"))
    assert "4" in shown
    assert not {"5", "6", "7"} & {*shown}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_the_page_works_in_a_browser(finished, browser, width, scheme, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    urls, errors = [], []
    page.on("request", lambda request: urls.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    address = Path(finished / "report.html").as_uri()
    page.goto(address)
    assert [url for url in urls if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing overflows the window"
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")

    lightness = "element => getComputedStyle(element)[{}].match(/[\\d.]+/g).slice(0, 3).map(Number)"
    ground = page.locator("body").evaluate(lightness.format("'backgroundColor'"))
    assert (max(ground) < 60) == (scheme == "dark")
    for selector, property in ((".curves text", "fill"), (".curves polyline", "stroke"), ("td.key", "color")):
        color = page.locator(selector).first.evaluate(lightness.format(f"'{property}'"))
        assert abs(sum(color) - sum(ground)) > 200, f"{selector} on the background"
    assert not page.locator("td.key").first.evaluate("cell => getComputedStyle(cell).overflowWrap === 'anywhere'")

    assert page.locator("img.grid:visible").count() == 1
    page.locator("#time").fill("0")
    assert page.locator("img.grid:visible").get_attribute("data-images") == "4"
    assert page.locator("#seen").inner_text() == "4"

    over = page.locator(".slide img + img").first
    page.locator(".tests input").first.fill("80")
    assert "80%" in over.evaluate("image => image.style.clipPath")
    page.screenshot(path=str(tmp_path / "report.png"), full_page=True)
    assert errors == []
