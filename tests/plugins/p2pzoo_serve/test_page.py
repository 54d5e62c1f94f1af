"""The page in a browser: choose, drop or paste images, compare, draw samples, read refusals."""

import base64
import io
import json
import re

import numpy as np
import pytest
from p2pzoo_serve.app import FOLDER
from PIL import Image
from served_images import encode, make_image
from serving import running

SECONDS = 150_000  # ms: a loaded machine must fail no test
BOTH_WIDTHS = (390, 1200)


def test_the_page_loads_nothing_from_elsewhere():
    texts = [(FOLDER / name).read_text("utf-8") for name in ("page.html", "page.js", "page.css")]
    assert not [text for text in texts if re.search(r"https?://|//cdn|@import", text)]
    assert "<script>" not in texts[0], "the Content-Security-Policy forbids it"
    assert "style=" not in texts[0]
    assert "innerHTML" not in texts[1]


def test_every_element_that_the_script_names_exists():
    html, script = ((FOLDER / name).read_text("utf-8") for name in ("page.html", "page.js"))
    ids = set(re.findall(r'id="([\w-]+)"', html))
    used = set(re.findall(r"element\.([a-z]+)\b", script)) | set(re.findall(r'element\["([\w-]+)"\]', script))
    assert used <= ids, used - ids


@pytest.fixture
def open_page(browser):
    """open_page(port, width): (the page, a list of its errors and of its requests to elsewhere)."""
    pages = []

    def open_page(port, width=1200, fragment="", scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(SECONDS)
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if "Policy" in message.text else None)
        address = f"http://127.0.0.1:{port}/"
        page.on(
            "request",
            lambda each: None if each.url.startswith((address, "blob:", "data:")) else faults.append(each.url),
        )
        page.goto(address + fragment)
        pages.append(page)
        return page, faults

    yield open_page
    for page in pages:
        page.close()


def choose(page, *images):
    files = [{"name": f"{name}.png", "mimeType": "image/png", "buffer": content} for name, content in images]
    page.set_input_files("#files", files)


def wait_until(page, state):
    page.wait_for_selector(f'body[data-state="{state}"]')


def shown(page):
    """The pixels of the result that the page shows."""
    url = page.evaluate(
        """element.result.decode().then(() => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [element.result.naturalWidth, element.result.naturalHeight];
            canvas.getContext("2d").drawImage(element.result, 0, 0);
            return canvas.toDataURL();
        })"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


@pytest.mark.slow
@pytest.mark.usefixtures("restore_signal_handlers")
class TestInABrowser:
    def test_an_image_is_translated_compared_and_saved_at_both_widths(self, serve, open_page, models, tmp_path):
        content = photo()
        with running(serve("calibrated").service) as port:
            for width, scheme in zip(BOTH_WIDTHS, ("dark", "light"), strict=True):
                page, faults = open_page(port, width, scheme=scheme)
                wait_until(page, "ready")
                assert page.title() == "Photos </script><b>of & earth · p2pzoo"
                page.screenshot(path=tmp_path / f"empty-{width}.png", full_page=True)
                choose(page, ("photo", content))
                wait_until(page, "done")
                expected = models["calibrated"][1].translate(Image.open(io.BytesIO(content)))
                assert np.array_equal(shown(page), np.asarray(expected))
                assert page.get_attribute("#save", "download") == "photo.png"
                page.focus("#slider")
                page.keyboard.press("Home")
                assert page.evaluate("element.stage.style.getPropertyValue('--at')") == "0%"
                page.keyboard.press("End")
                assert page.evaluate("element.stage.style.getPropertyValue('--at')") == "100%"
                page.evaluate("element.slider.value = 50; element.slider.dispatchEvent(new Event('input'))")
                page.screenshot(path=tmp_path / f"done-{width}.png", full_page=True)
                page.check("#interval")
                page.click("#again")
                page.get_by_role("button", name="width").click()
                assert "expected uncovered share is at most 0.2" in page.inner_text("#promise")
                page.screenshot(path=tmp_path / f"interval-{width}.png", full_page=True)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert faults == []

    def test_samples_batches_and_refusals(self, serve, open_page, tmp_path):
        with running(serve(megabytes=0.1).service) as port:
            page, faults = open_page(port, 390)
            wait_until(page, "ready")
            page.fill("#samples", "3")
            choose(page, ("photo", make_image()))
            page.get_by_role("button", name="spread").click()
            buttons = page.locator("#results button").all_inner_texts()
            assert buttons == ["sample 1", "sample 2", "sample 3", "mean", "spread"]
            page.fill("#samples", "1")
            choose(page, ("a", make_image()), ("bad", b"<img src=x>"), ("b", make_image(seed=1)))
            page.get_by_role("button", name="003-b").click()
            assert page.inner_text("#skipped").startswith("bad: cannot be read as an image")
            assert page.get_attribute("#save-all", "download") == "translations.zip"
            page.screenshot(path=tmp_path / "batch-390.png", full_page=True)
            choose(page, ("large", make_image(400, 400)))
            page.get_by_text("choose smaller or fewer images, at most 0.1 MB").wait_for()
            choose(page, ("bad", b"nonsense"))
            page.get_by_text("bad: cannot be read as an image (unknown format").wait_for()
            page.screenshot(path=tmp_path / "error-390.png", full_page=True)
            assert page.locator("#comparison").is_hidden()
            for event in ("DragEvent('drop', {dataTransfer", "ClipboardEvent('paste', {clipboardData"):
                pixels = list(make_image())
                page.evaluate(
                    f"""(pixels) => {{
                        const held = new DataTransfer();
                        held.items.add(new File([new Uint8Array(pixels)], "held.png", {{ type: "image/png" }}));
                        document.dispatchEvent(new {event}: held}}));
                    }}""",
                    pixels,
                )
                wait_until(page, "done")
                assert page.get_attribute("#save", "download") == "held.png"
                choose(page, ("bad", b"nonsense"))
                wait_until(page, "failed")
            assert faults == []

    @pytest.mark.parametrize("name", ["random", "calibrated"])
    def test_an_upload_may_have_the_name_of_a_width(self, serve, open_page, name):
        """Without an interval there is no promise, whatever the files are called, also in a batch."""
        with running(serve(name).service) as port:
            page, faults = open_page(port)
            wait_until(page, "ready")
            for uploads in ([("street-width", make_image())], [("a", make_image()), ("b-width", make_image(seed=1))]):
                choose(page, *uploads)
                wait_until(page, "done")
                assert page.locator("#promise").is_hidden()
                assert page.locator("#comparison").is_visible()
                page.evaluate("document.body.dataset.state = 'waiting'")
            assert faults == []

    def test_the_token_of_the_address_is_sent(self, serve, open_page):
        from p2pzoo_serve.guard import Access

        with running(serve().service, Access(None, token="0123456789abcdef")) as port:
            page, _ = open_page(port)
            page.get_by_text("no valid token: open the address with #token=").wait_for()
            page.evaluate("location.hash = 'token=0123456789abcdef'")
            wait_until(page, "ready")
            choose(page, ("photo", make_image()))
            wait_until(page, "done")
            assert json.loads(page.evaluate("JSON.stringify(facts.limits)"))["files"] == 100


def photo():
    """A picture of 160 × 240 px with areas that one sees."""
    rows, columns = np.mgrid[:160, :240]
    pixels = np.stack([rows, columns, 255 - rows], axis=2).astype(np.uint8)
    pixels[40:90, 60:140] = (226, 200, 170)
    return encode(Image.fromarray(pixels))
