"""Answers of the endpoint: the bytes of `p2pzoo translate`, and a reason for every refusal."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from served_images import encode, make_image, unzip

PNG = {"Content-Type": "image/png"}


def post(client, content, query="", headers=PNG, path="/translate"):
    return client.post(f"{path}{query}", content=content, headers=headers)


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


def is_empty(service):
    return not any(service.folder.iterdir())


class TestTranslate:
    @pytest.mark.parametrize(("name", "size"), [("random", (64, 64)), ("random", (50, 71)), ("calibrated", (50, 71))])
    def test_the_answer_is_the_file_that_translate_writes(self, serve, models, translated, name, size):
        content, client = make_image(*size), serve(name)
        expected = translated(models[name][0], content)["photo.png"]
        answer = post(client, content)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert answer.content == expected
        as_form = client.post("/translate", files={"image": ("photo.png", content)})
        assert as_form.content == expected
        assert "photo.png" in as_form.headers["content-disposition"]
        assert is_empty(client.service)

    def test_another_seed_gives_another_translation_as_translate_does(self, serve, models, translated):
        content, client = make_image(), serve()
        answer = post(client, content, "?seed=3")
        assert answer.content == translated(models["random"][0], content, "--seed", "3")["photo.png"]
        assert answer.content != post(client, content).content

    def test_samples_are_the_files_that_translate_writes(self, serve, models, translated):
        content, client = make_image(), serve()
        answer = client.post("/translate?samples=3", files={"image": ("photo.png", content)})
        assert answer.headers["content-type"] == "application/zip", answer.text
        members = unzip(answer.content)
        assert members == translated(models["random"][0], content, "--samples", "3")
        assert list(members) == [f"photo-{part}.png" for part in (0, 1, 2, "mean", "spread")]
        assert is_empty(client.service)

    def test_an_interval_is_the_files_that_translate_writes(self, serve, models, translated):
        content, client = make_image(), serve("calibrated")
        answer = client.post("/translate?interval=0.8", files={"image": ("photo.png", content)})
        assert unzip(answer.content) == translated(models["calibrated"][0], content, "--interval", "0.8")

    def test_tiles_are_those_of_translate(self, serve, models, translated):
        content, client = make_image(80, 160), serve("calibrated", tile=64)
        expected = translated(models["calibrated"][0], content, "--tile", "64")["photo.png"]
        assert post(client, content).content == expected

    @pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "TIFF"])
    def test_the_content_decides_the_format(self, serve, form):
        content = encode(Image.new("RGB", (64, 64), (9, 99, 9)), form)
        assert post(serve(), content).status_code == 200

    def test_arrays_are_images_too(self, serve):
        out = io.BytesIO()
        np.save(out, np.zeros((64, 64, 3), np.uint8))
        answer = post(serve(), out.getvalue(), headers={"Content-Type": "application/octet-stream"})
        assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


class TestBatch:
    def test_each_translation_is_that_of_its_image_alone(self, serve):
        client = serve()
        images = [make_image(seed=seed) for seed in range(3)]
        answer = client.post("/batch", files=[("image", ("a.png", each)) for each in images])
        members = unzip(answer.content)
        assert list(members) == ["001-a.png", "002-a.png", "003-a.png"]
        assert list(members.values()) == [post(client, each).content for each in images]
        assert "x-p2pzoo-skipped" not in answer.headers
        assert is_empty(client.service)

    def test_an_image_that_cannot_be_read_is_named_and_the_others_are_translated(self, serve):
        client = serve()
        files = [("image", ("good.png", make_image())), ("image", ("bad.png", b"nonsense"))]
        answer = client.post("/batch?seed=2", files=files)
        members = unzip(answer.content)
        assert (list(members), answer.headers["x-p2pzoo-skipped"]) == (["001-good.png", "errors.txt"], "1")
        assert members["errors.txt"].decode().startswith("bad: cannot be read as an image (unknown format;")
        assert str(client.service.folder) not in members["errors.txt"].decode()

    def test_a_batch_without_any_readable_image_is_refused(self, serve):
        files = [("image", ("a.png", b"nonsense")), ("image", ("b.png", make_image()[:200]))]
        assert "a: cannot be read" in error(serve().post("/batch", files=files), 422)

    @pytest.mark.parametrize(
        ("name", "member"),
        [("../../etc/passwd", "001-passwd.png"), ("C:\\Windows\\x.png", "001-x.png"), ("/abs/a.png", "001-a.png"),
         ("..", "001-image.png"), ("a\0b\nc.png", "001-a_b_c.png"), ("Ä ö.png", "001-Ä ö.png"),
         ("n" * 400 + ".png", f"001-{'n' * 60}.png"), ("", "001-image.png")],
    )  # fmt: skip
    def test_names_in_the_zip_are_no_paths(self, serve, name, member):
        head = f'--B\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        answer = post(
            serve(), head + make_image() + b"\r\n--B--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=B"}, path="/batch",
        )  # fmt: skip
        if "\0" in name or "\n" in name:  # no header can hold them
            assert answer.status_code in (200, 400)
        else:
            assert list(unzip(answer.content)) == [member]


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "message"),
        [("?seed=-1", "seed is a whole number from 0 to"), ("?seed=x", "not 'x'"), ("?samples=1", "from 2 to 8"),
         ("?samples=9", "from 2 to 8"), ("?interval=2", "a level between 0 and 1"), ("?interval=nan", "not 'nan'"),
         ("?sed=1", "unknown option 'sed'"), ("?seed=1&seed=2", "twice"), ("?seed=²", "whole number"),
         ("?interval=0.8", "this model has no calibration"), ("?samples=2&interval=.5", "ask for one of them")],
    )  # fmt: skip
    def test_options_that_are_impossible(self, serve, query, message):
        assert message in error(post(serve(), make_image(), query), 400)

    def test_options_that_this_model_cannot_give(self, serve):
        client = serve("calibrated")
        assert "no random numbers" in error(post(client, make_image(), "?samples=2"), 400)
        assert "calibrated for the level 0.8, not 0.9" in error(post(client, make_image(), "?interval=0.9"), 400)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "the file is empty"), (b"GIF89a" + bytes(9), "its content is GIF"), (make_image()[:3000], "image"),
         (b"%!PS-Adobe-3.0", "EPS"), (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'", "NumPy"), (b"PK\x03\x04", "ZIP")],
        ids=range(6),
    )  # fmt: skip
    def test_what_is_no_image(self, serve, content, message):
        client = serve()
        found = error(post(client, content), 422)
        assert message in found
        assert str(client.service.folder) not in found
        assert is_empty(client.service)

    def test_a_bomb_is_refused_by_its_header(self, serve, monkeypatch):
        monkeypatch.setattr("p2pzoo_serve.service.translate_files", lambda *_, **__: pytest.fail("it was decoded"))
        bomb = encode(Image.new("1", (20_000, 20_000)))
        assert len(bomb) < 100_000
        assert "image: 20000 × 20000 px, are 400.0 megapixels, of at most 16" in error(post(serve(), bomb), 413)

    def test_padding_counts_as_pixels(self, serve):
        """One row of 600,000 px is padded to eight or more."""
        line = encode(Image.new("RGB", (600_000, 1)))
        assert "seen by the network at 600000 ×" in error(post(serve(megapixels=1), line), 413)

    def test_samples_and_batches_have_a_limit_of_pixels_together(self, serve):
        client = serve(megapixels=0.005)
        content = make_image()
        assert post(client, content, "?samples=4").status_code == 200
        assert "drawn 5 times, are more than the 0.02" in error(post(client, content, "?samples=5"), 413)
        files = [("image", ("a.png", content))] * 5
        assert "drawn 1 time, are more than the 0.02 of one request" in error(client.post("/batch", files=files), 413)

    def test_bodies_that_are_too_large(self, serve):
        client = serve(megabytes=0.01)
        assert "larger than 0.01 MB" in error(post(client, bytes(10_001)), 413)
        chunks = (bytes(1000) for _ in range(1000))
        assert "larger than 0.01 MB" in error(post(client, chunks), 413)
        assert is_empty(client.service)

    def test_too_many_files(self, serve):
        files = [("image", ("a.png", make_image()))] * 3
        assert "at most 2 images" in error(serve(files=2).post("/batch", files=files), 413)
        assert "POST /batch takes several" in error(serve().post("/translate", files=files), 413)

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/html; charset=x"])
    def test_other_kinds_of_bodies(self, serve, kind):
        assert "send the image as" in error(post(serve(), make_image(), headers={"Content-Type": kind}), 415)
        assert "with a Content-Type" in error(post(serve(), make_image(), headers={}), 415)

    def test_a_raw_batch_and_a_compressed_body(self, serve):
        assert "multipart" in error(post(serve(), make_image(), path="/batch"), 415)
        assert "compressed" in error(post(serve(), b"", headers={**PNG, "Content-Encoding": "gzip"}), 415)

    @pytest.mark.parametrize(
        ("body", "message"),
        [(b"--B\r\n", "ends in the middle"), (b"--B--\r\n", "has no file"), (b"nonsense", "damaged"),
         (b'--B\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n--B--\r\n', "belong into the query")],
    )  # fmt: skip
    def test_damaged_forms(self, serve, body, message):
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        assert message in error(post(serve(), body, headers=headers), 400)
        assert "no boundary" in error(post(serve(), body, headers={"Content-Type": "multipart/form-data"}), 400)

    def test_channels_that_the_model_does_not_take(self, serve):
        out = io.BytesIO()
        np.save(out, np.zeros((64, 64, 50), np.uint8))
        assert "50 channels, and this model takes 3" in error(post(serve(), out.getvalue()), 422)
        out = io.BytesIO()
        np.save(out, np.zeros((64, 64, 3), np.uint16))
        assert "expected (H, W) or (H, W, C) of uint8" in error(post(serve(), out.getvalue()), 422)

    def test_other_paths_and_methods(self, serve):
        client = serve()
        assert "no such page" in error(client.get("/../../etc/passwd"), 404)
        assert "GET is not for /translate" in error(client.get("/translate"), 405)
        assert "DELETE is not for /model" in error(client.delete("/model"), 405)

    def test_a_failure_of_the_server_is_no_traceback(self, serve, monkeypatch):
        client = serve()

        def fail(*_):
            raise RuntimeError("secret")

        monkeypatch.setattr(client.service, "translate_one", fail)
        assert error(post(client, make_image()), 500) == "the server failed; its output says why"
        monkeypatch.undo()
        assert post(client, make_image()).status_code == 200
        assert is_empty(client.service)


class TestFacts:
    def test_they_say_what_the_model_is(self, serve, models):
        facts = serve().get("/model").json()
        assert facts["title"] == "Photos </script><b>of & earth"
        assert facts["run"] == models["random"][1].run
        assert facts["dataset"]["name"] == "earth"
        assert (facts["size"], facts["is_random"], facts["interval"]) == ([64, 64], True, None)
        assert facts["limits"] == {"megabytes": 20, "megapixels": 16, "files": 100, "samples": 8}
        assert str(models["random"][0]) not in json.dumps(facts)

    def test_of_a_calibrated_model_they_have_the_level(self, serve):
        facts = serve("calibrated").get("/model").json()
        assert (facts["interval"]["level"], facts["is_random"], facts["limits"]["samples"]) == (0.8, False, None)
        assert "expected uncovered share is at most 0.2" in facts["interval"]["promise"]

    def test_health(self, serve):
        client = serve()
        assert client.get("/health").json() == {"status": "ok"}
        client.service.worker.stop()
        assert client.service.worker.join(10)
        assert client.get("/health").status_code == 503
        assert "the server stops" in error(post(client, make_image()), 503)
