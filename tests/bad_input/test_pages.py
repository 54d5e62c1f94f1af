"""Names from files appear as text in HTML pages: they load nothing and run nothing."""

import html.parser
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from p2pzoo_study import page as study_page

from p2pzoo import config
from p2pzoo.images.io import write_image
from p2pzoo.runs.report import Comparison, write_report
from p2pzoo.runs.run_folder import Run
from p2pzoo.utils.files import write_json

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # the font has no glyph for some characters

NAMES = st.sampled_from([
    "<zzz onzzz=1>", '"><zzz onzzz=1>', "'><zzz>", "</script><zzz>", "</title><zzz>", "<!--<zzz>", "-->", "]]><zzz>",
    "{{ 7 }}", "{% zzz %}", "javascript:zzz", "&lt;zzz&gt;", "<svg/onzzz=1>", "\\u003czzz>", "\u2028<zzz>",
    "<zzz", "zzz>",    '" onzzz="1', "' onzzz='1", "`onzzz=1",
    "https://zzz.example/zzz.js", "//zzz.example", "$<zzz>$", "\x1b[31m<zzz>",
])  # fmt: skip
URL_ATTRIBUTES = ("src", "href", "action", "data", "poster", "srcset", "formaction")


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and URLs that p2pzoo's pages do not have."""

    def __init__(self):
        super().__init__()
        self.odd = []

    def handle_starttag(self, tag, attributes):
        self.odd += [tag] if "zzz" in tag else []
        for name, value in attributes:
            is_url = name in URL_ATTRIBUTES and not (value or "").startswith(
                ("data:image/", "#", "images/", "gallery.js", "study.js")
            )
            if "zzz" in name or (is_url and (":" in value or value.startswith("//"))):
                self.odd.append((tag, name, value))


def assert_names_are_text(file):
    page = Page()
    page.feed(file.read_text("utf-8"))
    page.close()
    assert page.odd == []


@pytest.fixture
def names():
    pieces = NAMES | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    return st.lists(pieces, min_size=1, max_size=3).map("".join)


def test_galleries(try_each, run_cli, names, tmp_path):
    def act(texts):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        title, recipe, metric, logged, value = texts
        folder = tmp_path / "runs" / "a" / ("smoke " + title.replace("/", " ")[:40])
        folder.mkdir(parents=True)
        protocol = {"metric": {"use": metric}, "dataset": {"use": value}, "split": value, "size": [8, 8]}
        facts = {"id": value, "recipe": recipe, "profile": value, "seed": 0, "images": 1}
        measured = {"metrics": {metric: {"value": 1.0, "protocol": value}}, "measured": {metric: value}}
        write_json(folder / "results.json", {**facts, **measured, "protocols": {value: protocol}})
        write_json(folder / "status.json", {**facts, "state": "complete"})
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"images": i, logged: 0.5}) + "\n" for i in (1, 2)))
        result = run_cli("gallery", tmp_path / "runs", "-o", tmp_path / "page", "--title", title)
        if result.exit_code == 0:
            assert_names_are_text(tmp_path / "page" / "index.html")
        return result

    try_each(st.tuples(names, names, names, names, names), act, fraction=0.1, least_taken=1)


def test_reports(try_each, names, tmp_path):
    experiment = config.load("zoo:base.toml", "smoke")
    run, image = Run(tmp_path), torch.zeros(3, 8, 8)
    run.begin(experiment, {}, {})

    def act(texts):
        title, name, logged, value = texts
        experiment.recipe.values["title"] = title
        write_json(tmp_path / "env.json", {name: value, value: {name: name}})
        (tmp_path / "metrics.jsonl").write_text(
            "".join(json.dumps({"images": i, f"G.{logged}": 0.5}) + "\n" for i in (1, 2))
        )
        write_report(run, experiment, [Comparison(name, value, image, image, image)])
        assert_names_are_text(tmp_path / "report.html")

    try_each(st.tuples(names, names, names, names), act, fraction=0.1)


def test_pages_of_data_check(try_each, run_cli, names, tmp_path):
    folder, recipe, page = tmp_path / "data", tmp_path / "recipe.toml", tmp_path / "page.html"
    recipe.write_text(
        f'[dataset]\nuse = "side-by-side"\nroot = "{folder}"\n[generator]\nuse = "unet"\n[losses.l1]\nuse = "l1"\n'
        "[train]\nimages = 1\n"
    )

    def act(texts):
        shutil.rmtree(folder, ignore_errors=True)
        for split, name in zip(("train", "val", "test", "test"), texts, strict=True):
            name = name.replace("/", " ").encode()[:200].decode(errors="ignore")
            (folder / split).mkdir(parents=True, exist_ok=True)
            write_image(folder / split / f"{name}.png", np.full((8, 16, 3), len(name), np.uint8))
        page.unlink(missing_ok=True)
        result = run_cli("data", "check", recipe, "-o", page)
        assert result.exit_code in (0, 2)
        assert "Traceback" not in result.output
        if not page.exists():
            return result
        assert_names_are_text(page)

    try_each(st.tuples(names, names, names, names), act, fraction=0.1, least_taken=1)


def test_study_pages(try_each, run_cli, names, tmp_path, monkeypatch):
    """Title, label and the ids of the pairs are in the page's document; only images and the model are left out."""
    ids = []

    def pairs(*_):
        return [{"id": name, "real": "images/0.png", "fake": "images/1.png"} for name in ids]

    experiment = config.load("zoo:base.toml", "smoke")
    monkeypatch.setattr(study_page, "_load_experiment", lambda *_: experiment)
    monkeypatch.setattr(study_page, "_write_pairs", pairs)

    def act(texts):
        title, label, *ids[:] = texts
        result = run_cli("study", "-o", tmp_path / "page", f"--title={title}", "--", f"{label}={tmp_path}")
        if result.exit_code == 0:
            assert_names_are_text(tmp_path / "page" / "index.html")
        return result

    try_each(st.tuples(names, names, names, names), act, fraction=0.1, least_taken=1)


def test_sessions_of_a_study(try_each, run_cli, altered, damaged, hostile, values, tmp_path):
    """Participants send these files: `study-analyze` counts them, or refuses them by name."""
    trial = {"real": "r", "fake": "f", "fake_side": "first", "answer": "second", "shown_ms": [1000.0, 1000.0],
             "answer_ms": 500.0, "left_page": False}  # fmt: skip
    protocol = {"display_ms": 1000.0, "practice": 1, "trials": 2, "side": 256, "pairing": "same input"}
    tree = {"format": "p2pzoo-study-1", "study": "s", "session": "0", "algorithm": "a", "protocol": protocol,
            "pixel_ratio": 1.0, "trials": [{**trial, "practice": number == 0} for number in range(3)]}  # fmt: skip
    good = [tmp_path / f"{number}.json" for number in range(4)]
    for number, file in enumerate(good):
        write_json(file, {**tree, "session": f"good {number}", "algorithm": "ab"[number % 2]})
    named = st.tuples(st.sampled_from(["algorithm", "session"]), hostile).map(lambda change: tree | dict([change]))
    texts = [trees.map(json.dumps).map(str.encode) for trees in (altered(tree, values), named)]
    file = tmp_path / "odd.json"

    def act(case):
        content, options = case
        file.write_bytes(content)
        return run_cli("study-analyze", file, *good, *options)

    files = st.sampled_from([*texts, damaged(json.dumps(tree).encode())]).flatmap(lambda kind: kind)
    try_each(
        st.tuples(files, st.sampled_from([(), ("--json",), ("--table", "zoo:table4_maps.toml")])), act, fraction=0.1
    )
