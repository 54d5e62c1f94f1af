"""Model cards: front matter as hubs read it, numbers as results.json has them, text of recipes that stays text."""

import json
import re

import pytest
import yaml
from p2pzoo_export.model_card import FILES, UNKNOWN_LICENCE, code, escaped, scalar

import p2pzoo

NASTY = 'a: "b" # <script>alert(1)</script> [x](javascript:1) | `c` \n---\nlicense: mit'


@pytest.fixture(scope="module")
def finished(zoo, arguments, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    result = zoo(*arguments(runs, "train.images=4", f"title={json.dumps(NASTY)}"))
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    return folder


@pytest.fixture(scope="module")
def made(zoo, finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("cards") / "card"
    result = zoo("card", finished, "-o", out)
    assert result.exit_code == 0, result.output
    return out


def parts(folder):
    _, front, body = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_folder_holds_what_a_hub_needs_and_its_model_loads(made):
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)
    assert p2pzoo.load(made / "model.safetensors").in_channels == 3


def test_the_front_matter_is_that_of_the_hub(made):
    front, _ = parts(made)
    assert front["license"] == "other"
    assert (front["library_name"], front["pipeline_tag"]) == ("p2pzoo", "image-to-image")
    assert front["datasets"] == ["earth"]
    [index] = front["model-index"]
    for result in index["results"]:
        assert result["task"] == {"type": "image-to-image"}
        assert {"type", "name", "split", "args"} == set(result["dataset"])
        assert {metric["type"] for metric in result["metrics"]} <= set(front["metrics"])


def test_numbers_are_those_of_the_results(made, finished):
    front, body = parts(made)
    expected = {k: v["value"] for k, v in json.loads((finished / "results.json").read_text())["metrics"].items()}
    assert expected
    listed = [metric for result in front["model-index"][0]["results"] for metric in result["metrics"]]
    assert {metric["name"]: metric["value"] for metric in listed} == expected
    rows = re.findall(r"^\| `([\w.]+)` \| ([\d.e-]+) \| 1 \| test ", body, re.M)
    assert dict(rows) == {name: f"{value:.4g}" for name, value in expected.items()}


def test_a_hostile_title_is_only_a_title(made):
    front, body = parts(made)
    assert front["model-index"][0]["name"] == NASTY
    assert front["license"] == "other"
    [heading] = re.findall("^# (.*)$", body, re.M)
    assert heading == escaped(NASTY)
    assert "<script" not in heading
    assert "[x](" not in heading
    [row] = re.findall(r"^\| `title` \| (.*) \|$", body, re.M)
    assert row == code(NASTY)


@pytest.mark.parametrize("text", [NASTY, "null", "1e3", "- a", "x\u2028y", "é", ""])
def test_scalars_are_read_back_as_they_were(text):
    assert yaml.safe_load(f"a: {scalar(text)}") == {"a": text}


def test_text_is_escaped():
    assert escaped("a_b <i> [x](y)\n# z") == r"a\_b &lt;i&gt; \[x\](y) \# z"
    assert code("a`b|c") == r"`` a`b\|c ``"


def test_a_run_without_metrics_says_so(zoo, arguments, tmp_path):
    drop = 'drop=["metrics.l1", "metrics.psnr"]'
    result = zoo(*arguments(tmp_path / "runs", "train.images=4", drop))
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    assert zoo("card", folder, "-o", tmp_path / "card", "--licence", "mit").exit_code == 0
    front, body = parts(tmp_path / "card")
    assert front["license"] == "mit"
    assert not {"metrics", "model-index"} & set(front)
    assert "Nothing was measured." in body


def test_nothing_is_overwritten_and_a_model_file_alone_is_refused(zoo, made, finished, tmp_path):
    again = zoo("card", finished, "-o", made)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert zoo("card", finished, "-o", made, "--force").exit_code == 0
    alone = zoo("card", finished / "model.safetensors", "-o", tmp_path / "card")
    assert alone.exit_code == 2
    assert "its training is not known" in alone.output
    assert not (tmp_path / "card").exists()


def test_a_licence_that_is_not_told_is_left_to_whoever_trained():
    from types import SimpleNamespace

    from p2pzoo_export.model_card import licence_of

    assert licence_of(SimpleNamespace(factory=object)) == UNKNOWN_LICENCE
