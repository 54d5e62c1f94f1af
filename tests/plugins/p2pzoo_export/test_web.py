"""The page that runs a generator in the browser: its pixels are those of `translate`, and nothing is fetched."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from p2pzoo_export import web
from p2pzoo_export.graphs import Data
from PIL import Image

import p2pzoo
from p2pzoo.data import Store
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError

ROOT = Path(__file__).parents[3]
TITLE = "Photos </script><b>of & earth"


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory, no_reports):
    """A run of 64 px with a title that has to be escaped."""
    runs = tmp_path_factory.mktemp("runs")
    told = run(runs, "generator.depth=3", "generator.noise=none", f"title={TITLE}")
    assert told.exit_code == 0, told.output
    return next(runs.glob("*/*"))


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Two small files in place of the runtime's, in a folder."""
    folder = tmp_path / "runtime"
    (folder / "dist").mkdir(parents=True)
    for name in web.RUNTIME:
        (folder / "dist" / name).write_text(f"// {name}")
    digests = {name: hashlib.sha256(f"// {name}".encode()).hexdigest() for name in web.RUNTIME}
    monkeypatch.setattr(web, "RUNTIME", digests)
    return folder


def facts(page):
    return json.loads(page.partition('id="facts">')[2].partition("</script>")[0])


@pytest.fixture
def page(trained, zoo, stub, tmp_path):
    """What `p2pzoo export --to web` writes, as one text, and all that it said."""
    told = zoo("export", trained, "--to", "web", "-o", tmp_path / "page.html", "--ort-dir", stub)
    assert told.exit_code == 0, told.output
    return (tmp_path / "page.html").read_text("utf-8"), told.output


def test_the_page_embeds_everything_and_escapes_what_it_is_told(page, trained):
    text, told = page
    known = facts(text)
    assert known["title"] == TITLE
    assert "<b>of" not in text
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "").replace(known["examples"][0]["picture"], "")
    embedded = text.partition('embedded ??= {}).runtime = "')[2].partition('"')[0]
    assert base64.b64decode(embedded) == b"// ort.wasm.bundle.min.mjs"
    assert known["run"] == p2pzoo.load(trained).run
    assert "checked  on" in told


def test_it_draws_with_the_classes_that_the_labels_have(page):
    known = facts(page[0])
    assert {"name": "forest", "colour": [18, 94, 32]} in known["colours"]
    assert known["classes"] is None, "the network sees colours"
    assert 1 < len(known["examples"]) <= 8
    shown = Image.open(io.BytesIO(base64.b64decode(known["examples"][0]["picture"].partition(",")[2])))
    assert shown.size == tuple(known["sides"][::-1]) == (64, 64)


class Pictures:
    """x as given, and no labels."""

    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Pair(str(index), self.x, self.x)


def colours(x):
    store = Store(Pictures(x))
    data = Data(store, "test")
    return web._colours(data, [*web._shown(data).values()])


def test_drawings_are_drawn_black_on_white_and_photos_not_at_all():
    drawing = np.full((8, 8, 3), 255, np.uint8)
    drawing[2:5, 3] = 0
    assert [each["name"] for each in colours(drawing)] == ["line", "paper"]
    assert colours(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)) is None


def test_the_runtime_is_taken_from_an_archive_of_npm_too(stub, tmp_path):
    archive = tmp_path / "runtime.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(stub, "package")
    assert web.runtime(archive) == tuple(f"// {name}".encode() for name in web.RUNTIME)


@pytest.fixture
def asked(trained, zoo, tmp_path, monkeypatch):
    """asked("--ort-dir", …): exit code and last line of `p2pzoo export --to web`, with an empty cache."""
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "export", lambda *_, **__: pytest.fail("this should be refused before it takes long"))

    def asked(*options, out="page.html"):
        told = zoo("export", trained, "--to", "web", "-o", tmp_path / out, *options)
        return told.exit_code, told.output.strip().splitlines()[-1]

    return asked


def test_another_runtime_is_refused(asked, stub):
    (stub / "dist" / "ort-wasm-simd-threaded.wasm").write_text("another")
    code, told = asked("--ort-dir", stub)
    assert code == 2
    assert f"not that of onnxruntime-web {web.VERSION}, by its SHA-256" in told


def test_without_npm_it_says_how_to_do_without(asked, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    code, told = asked()
    assert code == 2
    assert f"`npm pack onnxruntime-web@{web.VERSION}`, and name the file with --ort-dir" in told


def test_a_folder_of_something_else_is_left_alone(asked, stub, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all")
    code, told = asked("--ort-dir", stub, out="mine")
    assert code == 2
    assert "has other files in it" in told
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_images_that_no_canvas_holds_are_refused(trained):
    model = p2pzoo.load(trained)
    model.in_channels = 4
    with pytest.raises(UserError, match="shows 1 or 3 channels of 8 bits; this model takes 4 of uint8"):
        web._check(model)


# --- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime():
    """The real one, in the cache from now on."""
    try:
        web.runtime()
    except UserError as error:  # no network, for one
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pages(trained, zoo, runtime, tmp_path_factory):
    """{"folder" or "file": (the page's address, its test mode)}, with the real runtime."""
    out = tmp_path_factory.mktemp("web")
    found = {}
    for name, path, mode in (("folder", out / "page", "eval"), ("file", out / "page.html", "paper")):
        told = zoo("export", trained, "--to", "web", "-o", path, "--test-mode", mode)
        assert told.exit_code == 0, told.output
        found[name] = (path / "index.html" if path.is_dir() else path).as_uri(), mode
    return found


def canvas(page, name):
    url = page.evaluate(f"document.getElementById('{name}').toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def settled(page):
    page.wait_for_selector('body[data-state="idle"]')


def opened(browser, address):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
    page.goto(address)
    settled(page)
    return page, faults


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.usefixtures("signals_as_they_were")
class TestInABrowser:
    pytestmark = pytest.mark.slow

    def test_a_stroke_is_translated_as_translate_does(self, browser, pages, trained, kind):
        address, mode = pages[kind]
        page, faults = opened(browser, address)
        before = np.asarray(canvas(page, "x"))
        box = page.locator("#x").bounding_box()
        page.get_by_role("button", name="shelf sea").click()
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.6 * box["height"], steps=5)
        page.mouse.up()
        settled(page)
        drawn = canvas(page, "x")
        changed = (np.asarray(drawn) != before).any(axis=2)
        assert changed.sum() > 100
        assert set(map(tuple, np.asarray(drawn)[changed].tolist())) == {(66, 133, 214)}
        expected = np.asarray(p2pzoo.load(trained).translate(drawn, test_mode=mode)).astype(int)
        assert np.abs(np.asarray(canvas(page, "y")).astype(int) - expected).max() <= 1
        assert faults == []
        page.get_by_role("button", name="undo").click()
        settled(page)
        assert np.array_equal(np.asarray(canvas(page, "x")), before)
        page.close()

    def test_an_image_that_is_opened_is_cut_to_the_middle_and_translated(self, browser, pages, trained, kind, tmp_path):
        address, mode = pages[kind]
        page, faults = opened(browser, address)
        picture = np.full((64, 128, 3), (12, 32, 96), np.uint8)
        picture[:, 32:96] = (226, 200, 170)
        picture[10:20, 40:60] = (18, 94, 32)
        Image.fromarray(picture).save(tmp_path / "<b>mine.png")
        page.set_input_files("#file", tmp_path / "<b>mine.png")
        page.get_by_text("Opened: <b>mine.png, 128 × 64 px").wait_for()
        settled(page)
        shown = canvas(page, "x")
        assert np.array_equal(np.asarray(shown), picture[:, 32:96])
        expected = np.asarray(p2pzoo.load(trained).translate(shown, test_mode=mode)).astype(int)
        assert np.abs(np.asarray(canvas(page, "y")).astype(int) - expected).max() <= 1
        assert faults == []
        page.close()

    def test_the_bucket_fills_what_is_of_one_colour(self, browser, pages, trained, kind):
        page, _ = opened(browser, pages[kind][0])
        page.get_by_role("button", name="barren").click()
        page.get_by_role("button", name="clear").click()
        page.get_by_role("button", name="forest").click()
        page.get_by_role("button", name="fill", exact=True).click()
        page.locator("#x").click(position={"x": 30, "y": 30})
        settled(page)
        assert {tuple(pixel) for pixel in np.asarray(canvas(page, "x")).reshape(-1, 3)} == {(18, 94, 32)}
        page.close()


@pytest.mark.slow
def test_the_readmes_way_to_a_web_page_works_as_written(browser, runtime, tmp_path):
    section = (ROOT / "README.md").read_text("utf-8").partition("## I want it on a web page")[2].partition("\n## ")[0]
    commands = re.findall("```sh\n(.*?)```", section, re.DOTALL)[0].splitlines()
    [export] = [line for line in commands if not line.startswith("pip install 'p2pzoo[onnx]'")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = subprocess.run(export, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True)
    assert told.returncode == 0, told.stderr.decode()
    page, faults = opened(browser, (tmp_path / "page.html").as_uri())
    assert "photos of the earth" in page.locator("h1").inner_text()
    expected = np.asarray(p2pzoo.load("zoo:earth-small", device="cpu").translate(canvas(page, "x"))).astype(int)
    assert np.abs(np.asarray(canvas(page, "y")).astype(int) - expected).max() <= 1
    assert faults == []
    page.close()
