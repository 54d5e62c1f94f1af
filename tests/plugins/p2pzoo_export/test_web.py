"""The web page gives the pixels of `p2pzoo translate`, and makes no requests."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from p2pzoo_export import web
from p2pzoo_export.graph_check import EvaluationData
from PIL import Image

import p2pzoo
from p2pzoo.data import Store
from p2pzoo.models.safetensors_io import load_tensors, save_tensors
from p2pzoo.plugin.batch import Pair
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import cache_dir

README = Path(web.__file__).with_name("README.md")


def make_stub(folder, patch):
    """Write two small files instead of the runtime."""
    (folder / "dist").mkdir(parents=True)
    for name in web.RUNTIME:
        (folder / "dist" / name).write_text(f"// {name}")
    digests = {name: hashlib.sha256(f"// {name}".encode()).hexdigest() for name in web.RUNTIME}
    patch.setattr(web, "RUNTIME", digests)
    return folder


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A folder with two small files instead of the runtime."""
    return make_stub(tmp_path / "runtime", monkeypatch)


def read_facts(page):
    return json.loads(page.partition('id="facts">')[2].partition("</script>")[0])


@pytest.fixture(scope="module")
def page(trained, run_cli, tmp_path_factory):
    """(the page that `p2pzoo export --to web` writes, its output)."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        stub = make_stub(folder / "runtime", patch)
        result = run_cli("export", trained, "--to", "web", "-o", folder / "page.html", "--ort-dir", stub)
    assert result.exit_code == 0, result.output
    return (folder / "page.html").read_text("utf-8"), result.output


def test_the_page_is_self_contained_and_escapes_the_title(page, trained):
    text, output = page
    facts = read_facts(text)
    assert facts["title"] == "Photos </script><b>of & earth"
    assert "<b>of" not in text
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "").replace(facts["examples"][0]["picture"], "")
    embedded = text.partition('embedded ??= {}).runtime = "')[2].partition('"')[0]
    assert base64.b64decode(embedded) == b"// ort.wasm.bundle.min.mjs"
    assert facts["run"] == p2pzoo.load(trained).run
    assert "checked  on" in output


def test_users_draw_with_the_classes_of_the_labels(page):
    facts = read_facts(page[0])
    assert {"name": "forest", "colour": [18, 94, 32]} in facts["colours"]
    assert facts["classes"] is None, "x is RGB, not one-hot"
    assert 1 < len(facts["examples"]) <= 8
    example = Image.open(io.BytesIO(base64.b64decode(facts["examples"][0]["picture"].partition(",")[2])))
    assert example.size == tuple(facts["sides"][::-1]) == (64, 64)


class WithoutLabels:
    """A dataset of one image, without labels."""

    x_range = y_range = (0.0, 255.0)
    classes = palette = None

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Pair(str(index), self.x, self.x)


def choose_colours(x):
    store = Store(WithoutLabels(x))
    data = EvaluationData(store, "test")
    return web._choose_colours(data, [*web._load_examples(data).values()])


def test_drawings_get_black_and_white_and_photos_no_colours():
    drawing = np.full((8, 8, 3), 255, np.uint8)
    drawing[2:5, 3] = 0
    assert [each["name"] for each in choose_colours(drawing)] == ["line", "paper"]
    assert choose_colours(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)) is None


def test_a_photo_on_a_white_ground_is_no_drawing():
    """Shoes, handbags, scans: 69% of the pixels are white, and most of the others are coloured."""
    photo = np.full((256, 256, 3), 255, np.uint8)
    photo[70:190, 50:220] = np.random.default_rng(0).integers(0, 256, (120, 170, 3))
    assert choose_colours(photo) is None


def test_the_runtime_may_be_an_npm_archive(stub, tmp_path):
    archive = tmp_path / "runtime.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(stub, "package")
    assert web.load_runtime(archive) == tuple(f"// {name}".encode() for name in web.RUNTIME)


@pytest.fixture
def export_page(trained, run_cli, tmp_path, monkeypatch):
    """export_page("--ort-dir", …): (exit code, last line of the output), with no runtime in the cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "earth").symlink_to(cache_dir() / "earth")  # building its layers takes seconds
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "export_graph", lambda *_, **__: pytest.fail("it must be refused before the slow part"))

    def export_page(*options, out="page.html"):
        result = run_cli("export", trained, "--to", "web", "-o", tmp_path / out, *options)
        return result.exit_code, result.output.strip().splitlines()[-1]

    return export_page


def test_a_runtime_with_another_hash_is_refused(export_page, stub):
    (stub / "dist" / "ort-wasm-simd-threaded.wasm").write_text("another")
    code, message = export_page("--ort-dir", stub)
    assert code == 2
    assert f"the SHA-256 is not that of onnxruntime-web {web.VERSION}" in message


def test_a_damaged_runtime_in_the_cache_is_fetched_again(stub, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "_npm_pack", lambda _: stub)
    expected = web.load_runtime()
    [file] = (tmp_path / "cache").glob("*/*.wasm")
    file.write_bytes(b"damaged")
    capsys.readouterr()
    assert web.load_runtime() == expected
    assert capsys.readouterr().err == f"{file.parent}: damaged: it is fetched again\n"
    assert web.load_runtime() == expected
    assert capsys.readouterr().err == ""


def test_without_npm_the_message_says_what_to_do(export_page, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    code, message = export_page()
    assert code == 2
    assert f"`npm pack onnxruntime-web@{web.VERSION}` on another machine, and give its file with --ort-dir" in message


def test_a_folder_with_other_files_is_not_overwritten(export_page, stub, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all")
    code, message = export_page("--ort-dir", stub, out="mine")
    assert code == 2
    assert "contains other files" in message
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_images_that_a_canvas_cannot_hold_are_refused(trained):
    model = p2pzoo.load(trained)
    model.in_channels = 4
    with pytest.raises(UserError, match="shows 1 or 3 channels of 8 bits, the input of this model has 4 of uint8"):
        web._check_model(model)


# --- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime():
    """The real runtime, in the cache."""
    try:
        web.load_runtime()
    except UserError as error:
        if re.search("npm cannot fetch|is not installed", str(error)):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def pages(trained, run_cli, runtime, tmp_path_factory):
    """{"folder" or "file": (URL of the page, its test mode)}, with the real runtime."""
    out = tmp_path_factory.mktemp("web")
    pages = {}
    for name, path, mode in (("folder", out / "page", "eval"), ("file", out / "page.html", "paper")):
        result = run_cli("export", trained, "--to", "web", "-o", path, "--test-mode", mode)
        assert result.exit_code == 0, result.output
        pages[name] = (path / "index.html" if path.is_dir() else path).as_uri(), mode
    return pages


def canvas(page, name):
    url = page.evaluate(f"document.getElementById('{name}').toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def wait_until_idle(page):
    page.wait_for_selector('body[data-state="idle"]')


def open_page(browser, address):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    page.goto(address)
    wait_until_idle(page)
    return page, errors


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.usefixtures("restore_signal_handlers")
class TestInABrowser:
    pytestmark = pytest.mark.slow

    def test_a_stroke_gives_the_pixels_of_translate(self, browser, pages, trained, kind):
        address, mode = pages[kind]
        page, errors = open_page(browser, address)
        before = np.asarray(canvas(page, "x"))
        box = page.locator("#x").bounding_box()
        page.get_by_role("button", name="shelf sea").click()
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.6 * box["height"], steps=5)
        page.mouse.up()
        wait_until_idle(page)
        drawn = canvas(page, "x")
        changed = (np.asarray(drawn) != before).any(axis=2)
        assert changed.sum() > 100
        assert set(map(tuple, np.asarray(drawn)[changed].tolist())) == {(66, 133, 214)}
        expected = np.asarray(p2pzoo.load(trained).translate(drawn, test_mode=mode)).astype(int)
        assert np.abs(np.asarray(canvas(page, "y")).astype(int) - expected).max() <= 1
        assert errors == []
        page.get_by_role("button", name="undo").click()
        wait_until_idle(page)
        assert np.array_equal(np.asarray(canvas(page, "x")), before)
        page.close()

    def test_an_opened_image_is_center_cropped_and_translated(self, browser, pages, trained, kind, tmp_path):
        address, mode = pages[kind]
        page, errors = open_page(browser, address)
        picture = np.full((64, 128, 3), (12, 32, 96), np.uint8)
        picture[:, 32:96] = (226, 200, 170)
        picture[10:20, 40:60] = (18, 94, 32)
        Image.fromarray(picture).save(tmp_path / "<b>mine.png")
        page.set_input_files("#file", tmp_path / "<b>mine.png")
        page.get_by_text("Opened: <b>mine.png, 128 × 64 px").wait_for()
        wait_until_idle(page)
        shown = canvas(page, "x")
        assert np.array_equal(np.asarray(shown), picture[:, 32:96])
        expected = np.asarray(p2pzoo.load(trained).translate(shown, test_mode=mode)).astype(int)
        assert np.abs(np.asarray(canvas(page, "y")).astype(int) - expected).max() <= 1
        assert errors == []
        page.close()

    def test_the_colours_of_an_opened_image_change_only_with_the_switch(self, browser, pages, trained, kind, tmp_path):
        page, errors = open_page(browser, pages[kind][0])
        photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(photo).save(tmp_path / "photo.png")
        page.set_input_files("#file", tmp_path / "photo.png")
        page.get_by_text("Opened: photo.png, 64 × 64 px").wait_for()
        assert np.array_equal(np.asarray(canvas(page, "x")), photo)
        page.get_by_label("only these colours in opened images").check()
        palette = set(map(tuple, (each["colour"] for each in page.evaluate("facts.colours"))))
        assert {tuple(pixel) for pixel in np.asarray(canvas(page, "x")).reshape(-1, 3).tolist()} <= palette
        wait_until_idle(page)
        page.get_by_label("only these colours in opened images").uncheck()
        assert np.array_equal(np.asarray(canvas(page, "x")), photo)
        assert errors == []
        page.close()

    def test_fill_replaces_an_area_of_one_colour(self, browser, pages, trained, kind):
        page, _ = open_page(browser, pages[kind][0])
        page.get_by_role("button", name="barren").click()
        page.get_by_role("button", name="clear").click()
        page.get_by_role("button", name="forest").click()
        page.get_by_role("button", name="fill", exact=True).click()
        page.locator("#x").click(position={"x": 30, "y": 30})
        wait_until_idle(page)
        assert {tuple(pixel) for pixel in np.asarray(canvas(page, "x")).reshape(-1, 3)} == {(18, 94, 32)}
        page.close()


@pytest.mark.slow
@pytest.mark.usefixtures("restore_signal_handlers")
def test_a_page_of_a_process_draws_noise_and_gives_other_samples(browser, runtime, run, run_cli, tmp_path):
    network = ("generator.norm=group", "generator.noise=none", 'drop=["discriminator", "gan_loss"]')
    flow = ("process.use=flow", "process.steps=2")
    assert run(tmp_path / "runs", *network, *flow, "train.images=2").exit_code == 0
    [folder] = (tmp_path / "runs").glob("*/*")
    assert run_cli("export", folder, "--to", "web", "-o", tmp_path / "page.html").exit_code == 0
    page, errors = open_page(browser, (tmp_path / "page.html").as_uri())
    model = p2pzoo.load(folder, device="cpu")
    x = torch.from_numpy(np.asarray(canvas(page, "x")).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    noise = torch.tensor(page.evaluate("[...noise.data]")).reshape(1, 1, 3, *x.shape[2:])
    assert abs(noise.mean()) < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert noise.abs().max() < 6
    expected = (model.G(x, noise)[0].permute(1, 2, 0) + 1).mul(127.5).clamp(0, 255).detach().numpy()
    first = np.asarray(canvas(page, "y")).astype(float)
    assert np.abs(first - expected).max() <= 1
    page.get_by_role("button", name="another sample").click()
    page.wait_for_selector('body[data-state="idle"]')
    page.wait_for_function("done === requested")
    assert np.abs(np.asarray(canvas(page, "y")).astype(float) - first).max() > 1
    assert errors == []
    page.close()


@pytest.mark.slow
@pytest.mark.usefixtures("restore_signal_handlers")
def test_an_opened_image_is_brought_to_the_scale_of_the_training_images(browser, trained, runtime, run_cli, tmp_path):
    """The model saw images at half their size: of 160×160 px the page shows 64×64 px of 80×80."""
    reduced = tmp_path / "run"
    shutil.copytree(trained, reduced)
    tensors, header = load_tensors(reduced / "model.safetensors")
    header["file_layout"] = {"size": [128, 128], "scale": [0.5, 0.5], "x_half": None, "alpha": False}
    save_tensors(reduced / "model.safetensors", tensors, header)
    result = run_cli("export", reduced, "--to", "web", "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "resize them" not in result.output, "the page does it"
    page, errors = open_page(browser, (tmp_path / "page.html").as_uri())
    picture = np.full((160, 160, 3), (12, 32, 96), np.uint8)
    picture[48:112, 48:112] = (226, 200, 170)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    page.set_input_files("#file", tmp_path / "photo.png")
    page.get_by_text("Opened: photo.png, 160 × 160 px, at 50% of its size.").wait_for()
    wait_until_idle(page)
    shown = np.asarray(canvas(page, "x"))
    assert tuple(shown[32, 32]) == tuple(shown[17, 46]) == (226, 200, 170)
    assert tuple(shown[32, 13]) == tuple(shown[50, 32]) == (12, 32, 96)
    assert errors == []
    page.close()


@pytest.mark.slow
def test_the_commands_of_the_readme_work(browser, runtime, tmp_path):
    section = README.read_text("utf-8").partition("## A web page")[2].partition("\n## ")[0]
    commands = re.findall("```sh\n(.*?)```", section, re.DOTALL)[0].splitlines()
    [export] = [line for line in commands if not line.startswith("pip install 'p2pzoo[onnx]'")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(export, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True)
    assert process.returncode == 0, process.stderr.decode()
    page, errors = open_page(browser, (tmp_path / "page.html").as_uri())
    assert "photos of the earth" in page.locator("h1").inner_text()
    expected = np.asarray(p2pzoo.load("zoo:earth-small", device="cpu").translate(canvas(page, "x"))).astype(int)
    assert np.abs(np.asarray(canvas(page, "y")).astype(int) - expected).max() <= 1
    assert errors == []
    page.close()
