"""`p2pzoo gallery`: a static page over all runs that filters, sorts within a protocol, and escapes all texts."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from p2pzoo_bench.gallery import write_gallery
from PIL import Image

from p2pzoo.images.grid import NUM_TEST_IMAGES, make_grid
from p2pzoo.models import safetensors_io
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.files import write_json

NASTY = '<img src=x onerror="document.title=1">&"\'</script>'
IDS = [f"tile-{i}" for i in range(12)]  # every second one is in a grid
SIZE = 32


def colour(r, g, b):
    """(3, SIZE, SIZE) of one colour, 0 to 255."""
    return torch.tensor([r, g, b]).view(3, 1, 1).expand(3, SIZE, SIZE) / 127.5 - 1


def protocol(metric, images=12):
    return {"metric": {"use": f"metrics:{metric}", "version": "1"}, "dataset": {"use": "earth:earth", "size": SIZE},
            "split": "test", "images": images, "size": [SIZE, SIZE], "test_mode": "eval"}  # fmt: skip


def make_run(
    runs, number, *, generator="unet", psnr=20.0, digest="aaa", title="", images=12, committed=False, grids=True
):
    """The files of a finished run that a gallery reads. The colour of its ŷ is (number, 0, row)."""
    name = f"laptop-seed{number}-{number:010x}"
    folder = runs / (f"mine-{name}" if committed else f"mine/{name}")
    (folder / "samples").mkdir(parents=True)
    facts = {"id": f"{number:010x}", "recipe": "mine", "profile": "laptop", "seed": number, "images": 100}
    write_json(folder / "results.json", {
        **facts,
        "metrics": {"psnr": {"value": psnr, "protocol": digest}, "l1": {"value": 1 / psnr, "protocol": "bbb"}},
        "measured": {"psnr": digest, "l1": "bbb"},
        "protocols": {digest: protocol("psnr", images), "bbb": protocol("l1")},
    })  # fmt: skip
    (folder / "recipe.toml").write_text(
        f"title = {json.dumps(title or f'Run {number}')}\n[generator]\nuse = 'pix2pix:{generator}'\nwidth = {number}\n"
        f"[losses.l1]\nuse = 'pix2pix:l1'\nweight = 100.0\n[dataset]\nuse = 'earth:earth'\nsize = {SIZE}\n"
    )
    stats = {"psnr.value": torch.zeros(len(IDS))}
    safetensors_io.save_tensors(folder / "stats.safetensors", stats, {"ids": IDS, "blocks": [None] * len(IDS)})
    if grids:
        picture = make_grid(
            [[colour(200, 0, row), colour(number, 0, row), colour(0, 200, row)] for row in range(0, 120, 20)]
        )
        picture.save(folder / ("samples.webp" if committed else "samples/test.png"), lossless=committed)
    if not committed:
        write_json(folder / "status.json", {"state": "complete", **facts})
        lines = [{"images": images, "lr": 1, "G.l1": number + 1 / images, "D.gan": 0.5} for images in range(1, 301)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "report.html").write_text("a report")
    return folder


def refuse_constant(name):
    raise ValueError(f"a browser reads no {name}")


def read_document(out):
    page = (out / "index.html").read_text("utf-8")
    text = page.partition('id="data">')[2].partition("</script>")[0]
    return json.loads(text, parse_constant=refuse_constant)


@pytest.fixture
def gallery(run_cli, tmp_path):
    """gallery(runs, …) -> the page's data and its folder."""

    def gallery(*runs):
        result = run_cli("gallery", *runs, "-o", tmp_path / "out")
        assert result.exit_code == 0, result.output
        return read_document(tmp_path / "out"), tmp_path / "out"

    return gallery


def test_runs_share_their_test_images_by_id_and_each_has_its_own_translations(gallery, tmp_path):
    make_run(tmp_path / "runs", 10)
    make_run(tmp_path / "runs", 250)
    document, out = gallery(tmp_path / "runs")
    [images] = document["sets"]
    assert images["ids"] == IDS[::2]
    assert len(images["ids"]) == NUM_TEST_IMAGES
    assert images["size"] == [SIZE, SIZE], "the stored size, not enlarged as in the grid"
    for index, row in ((0, 0), (5, 100)):
        for address, expected in (
            (images["x"][index], (200, 0, row)),
            (images["y"][index], (0, 200, row)),
            (document["runs"][0]["y_hat"][index], (10, 0, row)),
            (document["runs"][1]["y_hat"][index], (250, 0, row)),
        ):
            with Image.open(out / address) as image:
                assert image.size == (SIZE, SIZE)
                assert np.abs(np.asarray(image.convert("RGB"), int) - expected).max() <= 4, "except for WebP"
    assert len(list((out / "images").iterdir())) == 4 * NUM_TEST_IMAGES


def test_runs_on_different_data_have_separate_image_sets(gallery, tmp_path):
    make_run(tmp_path / "runs", 1)
    other = make_run(tmp_path / "runs", 2)
    recipe = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(recipe.replace(f"size = {SIZE}", f"size = {SIZE}\ntask = 'photo-to-labels'"))
    document, _ = gallery(tmp_path / "runs")
    assert [images["label"] for images in document["sets"]] == ["earth 32", "earth 32 photo-to-labels"]
    assert [run["set"] for run in document["runs"]] == [0, 1]


def test_numbers_of_different_protocols_have_separate_columns_that_name_the_difference(gallery, tmp_path):
    make_run(tmp_path / "runs", 1, psnr=20.0)
    make_run(tmp_path / "runs", 2, psnr=30.0, digest="ccc", images=5)
    document, _ = gallery(tmp_path / "runs")
    assert [(c["metric"], c["protocol"], c["differs"]) for c in document["columns"]] == [
        ("psnr", "aaa", "images 12"),
        ("l1", "bbb", ""),
        ("psnr", "ccc", "images 5"),
    ]
    assert [c["better"] for c in document["columns"]] == ["higher", "lower", "higher"]
    assert [run["values"].get("psnr aaa") for run in document["runs"]] == [20.0, None]


def test_committed_copies_are_shown_and_a_run_that_occurs_twice_once(gallery, tmp_path):
    make_run(tmp_path / "runs", 1)
    make_run(tmp_path / "results", 1, committed=True)
    make_run(tmp_path / "results", 2, committed=True)
    document, _ = gallery(tmp_path / "runs", tmp_path / "results")
    assert [run["name"] for run in document["runs"]] == ["mine/laptop-seed1-0000000001", "mine-laptop-seed2-0000000002"]
    assert [bool(run["report"]) for run in document["runs"]] == [True, False]
    assert [run["set"] for run in document["runs"]] == [0, 0]


def test_links_to_reports_are_relative_to_the_page(gallery, tmp_path):
    make_run(tmp_path / "my runs & more", 1)
    document, out = gallery(tmp_path / "my runs & more")
    address = document["runs"][0]["report"]
    assert "my%20runs%20%26%20more" in address
    assert str(tmp_path) not in (out / "index.html").read_text("utf-8")


def test_curves_are_thinned_and_keep_their_last_point(gallery, tmp_path):
    make_run(tmp_path / "runs", 3)
    curve = gallery(tmp_path / "runs")[0]["runs"][0]["curves"]
    assert curve.keys() == {"G.l1", "D.gan"}
    images, values = curve["G.l1"]
    assert 100 <= len(images) == len(values) <= 120
    assert (images[-1], values[-1]) == (300, pytest.approx(3 + 1 / 300, abs=1e-4))


def test_numbers_that_are_not_finite_have_no_value_and_no_point(gallery, tmp_path):
    folder = make_run(tmp_path / "runs", 3, psnr=float("nan"))
    logged = [1.0, float("nan"), float("inf"), 2.0]
    lines = [{"images": images, "G.l1": value} for images, value in enumerate(logged)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [run] = gallery(tmp_path / "runs")[0]["runs"]
    assert run["values"]["psnr aaa"] is None
    assert run["curves"]["G.l1"] == [[0, 3], [1.0, 2.0]]


def test_an_unfinished_run_is_shown_with_its_state(gallery, tmp_path):
    folder = tmp_path / "runs/mine/laptop-seed0-ab"
    folder.mkdir(parents=True)
    write_json(folder / "status.json", {"state": "training", "images": 40, "recipe": "mine", "id": "ab"})
    [run] = gallery(tmp_path / "runs")[0]["runs"]
    assert (run["state"], run["images"], run["values"], run["set"]) == ("training", 40, {}, None)
    write_json(make_run(tmp_path / "half", 1) / "status.json", {"state": "trained", "recipe": "mine"})
    [run] = gallery(tmp_path / "half")[0]["runs"]
    assert run["state"] == "trained", "a part of its metrics is measured"


def test_damaged_files_are_named_and_the_rest_is_shown(run_cli, tmp_path):
    truncated, no_tensors, bad_picture, good = (make_run(tmp_path / "runs", number) for number in (1, 2, 3, 4))
    (truncated / "results.json").write_text('{"id": ')
    (no_tensors / "stats.safetensors").write_bytes(b"no tensors")
    picture = bad_picture / "samples" / "test.png"
    picture.write_bytes(picture.read_bytes().replace(b"IDAT", b"\0IDA"))
    result = run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert f"{truncated / 'results.json'}: not the results of a run" in result.output
    assert f"{no_tensors}: its test images cannot be shown" in result.output
    assert f"{bad_picture}: its test images cannot be shown" in result.output
    assert str(good) not in result.output
    assert [run["set"] for run in read_document(tmp_path / "out")["runs"]] == [None, None, None, 0]


def test_other_files_are_not_overwritten_and_an_older_gallery_is_replaced(run_cli, tmp_path):
    make_run(tmp_path / "runs", 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    result = run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "contains other files" in result.output
    assert (tmp_path / "mine/index.html").read_text() == "mine"

    assert run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "out").exit_code == 0
    before = {path.name for path in (tmp_path / "out/images").iterdir()}
    shutil.rmtree(tmp_path / "runs")
    make_run(tmp_path / "runs", 99)
    assert run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "out").exit_code == 0
    after = {path.name for path in (tmp_path / "out/images").iterdir()}
    assert len(after) == len(before) == 3 * NUM_TEST_IMAGES, "images of the older page are deleted"
    assert after != before


def test_a_folder_without_runs_is_refused(run_cli, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run_cli("gallery", tmp_path / "empty", "-o", tmp_path / "out")
    assert (result.exit_code, "no runs in this folder" in result.output) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_page_escapes_titles_and_loads_nothing(run_cli, tmp_path):
    make_run(tmp_path / "runs", 1, title=NASTY)
    assert run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "out", "--title", NASTY).exit_code == 0
    page = (tmp_path / "out/index.html").read_text("utf-8")
    assert "<img src=x" not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "") + (tmp_path / "out/gallery.js").read_text().replace(
        "http://www.w3.org/2000/svg", ""
    )


@pytest.fixture
def opened(browser):
    """opened(folder, width) -> its page. It must print nothing on the console and load only its own files."""
    pages, errors, urls = [], [], []

    def opened(folder, width=1200):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(120_000)
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        pages.append((page, folder))
        page.goto((folder / "index.html").as_uri())
        page.locator("html[data-ready]").wait_for()
        return page

    yield opened
    for page, folder in pages:
        assert all(url.startswith(folder.as_uri()) for url in urls)
        page.close()
    assert errors == []


def titles(page):
    return page.locator("#pictures .card h2").all_text_contents()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200], ids=["phone", "desk"])
def test_the_page_filters_sorts_and_compares_in_a_browser(run_cli, opened, tmp_path, width):
    make_run(tmp_path / "runs", 1, psnr=20, title=NASTY)
    make_run(tmp_path / "runs", 2, psnr=25, generator="resnet")
    make_run(tmp_path / "runs", 3, psnr=22)
    make_run(tmp_path / "runs", 4, psnr=99, digest="ccc", images=5)
    assert run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "out").exit_code == 0
    page = opened(tmp_path / "out", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no horizontal scrolling"
    assert page.title() == "Gallery of runs · p2pzoo", "the script in a run's title did not run"

    page.select_option("#sort", "psnr aaa")
    assert titles(page) == ["Run 2", "Run 3", NASTY, "Run 4"], "best first, then the run with another protocol"
    assert "1 measured under another protocol follows" in page.locator("#description").inner_text()
    assert "under another protocol (images 5)" in page.locator(".card").last.text_content()
    page.locator("#reverse").click()
    assert titles(page) == [NASTY, "Run 3", "Run 2", "Run 4"]

    if width < 600:
        page.locator("#more").click()
    page.select_option("[data-kind=generator]", "resnet")
    assert titles(page) == ["Run 2"]
    assert page.locator("#count").inner_text() == "1 of 4 runs"
    page.locator("#clear").click()
    page.locator("#search").fill("generator.width=3")
    assert titles(page) == ["Run 3"]
    page.locator("#search").fill("")

    first = page.locator(".card").nth(1)
    page.locator("#next").click()
    sources = first.locator("img").evaluate_all("images => images.map(image => image.getAttribute('src'))")
    document = read_document(tmp_path / "out")
    assert sources == [document["runs"][2]["y_hat"][1], document["sets"][0]["x"][1]]
    page.select_option("#pair", "y")
    assert first.locator("img").nth(1).get_attribute("src") == document["sets"][0]["y"][1]
    page.locator("#at").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    clip = "image => getComputedStyle(image).clipPath"
    assert "99%" in first.locator("img").nth(1).evaluate(clip), "1 % of y, left of the line, with the keyboard"
    first.locator(".slide").scroll_into_view_if_needed()
    box = first.locator(".slide").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 9)
    assert page.locator("#at").input_value() == "75"

    page.locator("label:has([value=numbers])").click()
    page.get_by_role("button", name="l1 ↓").click()
    rows = page.locator("#numbers tbody tr th").all_inner_texts()
    assert [row.split("\n")[0] for row in rows] == ["Run 4", "Run 2", "Run 3", NASTY], "smallest first"
    assert page.locator("th[aria-sort=ascending]").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.locator("label:has([value=curves])").click()
    assert page.locator("#plot polyline").count() == 4
    page.locator("#legend input").first.uncheck()
    assert page.locator("#plot polyline").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_eighty_runs_load_and_filter_quickly(run_cli, opened, tmp_path):
    for number in range(80):
        make_run(tmp_path / "runs", number, generator=("unet", "resnet")[number % 2], psnr=20 + number % 17)
    start = time.monotonic()
    assert run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "out").exit_code == 0
    written = time.monotonic() - start
    page = opened(tmp_path / "out")
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].duration")
    timed = """([id, value]) => {
        const start = performance.now(), select = document.querySelector(id);
        select.value = value;
        select.dispatchEvent(new Event("change"));
        document.body.offsetHeight;
        return performance.now() - start;
    }"""
    filtered = page.evaluate(timed, ["[data-kind=generator]", "resnet"])
    assert len(titles(page)) == 40
    ordered = page.evaluate(timed, ["#sort", "psnr aaa"])
    bytes_ = (tmp_path / "out/index.html").stat().st_size
    print(f"\nwritten {written:.1f} s, {bytes_ / 1e6:.1f} MB, loaded {loaded:.0f} ms, "
          f"filtered {filtered:.0f} ms, sorted {ordered:.0f} ms")  # fmt: skip
    assert loaded < 30_000, "far above what it takes, for a busy machine"
    assert filtered < 10_000
    assert ordered < 10_000


def test_the_page_says_what_x_y_hat_and_y_are(tmp_path):
    write_gallery(tmp_path / "page", "Gallery", [], registry())
    assert "x: input, ŷ: translation by the run, y: target." in (tmp_path / "page" / "index.html").read_text("utf-8")
