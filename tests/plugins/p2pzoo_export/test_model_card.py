"""Model cards: metadata that a hub can read, the numbers of results.json, escaped text of recipes."""

import json
import re
import shutil
import tomllib

import pytest
import tomli_w
import yaml
from huggingface_hub import ModelCard, ModelCardData
from p2pzoo_export.model_card import FILES, UNKNOWN_LICENCE, describe_use, escape_markdown, format_code
from PIL import Image

import p2pzoo
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.models.model_file import ModelHeader
from p2pzoo.models.safetensors_io import load_tensors, save_model_tensors
from p2pzoo.plugin import FileLayout

HOSTILE_TITLE = 'a: "b" # <script>alert(1)</script> [x](javascript:1) | `c` \n---\nlicense: mit'


@pytest.fixture(scope="module")
def finished(run_cli, arguments, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    result = run_cli(*arguments(runs, "train.images=4", f"title={json.dumps(HOSTILE_TITLE)}"))
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    return folder


@pytest.fixture(scope="module")
def card_folder(run_cli, finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("cards") / "card"
    result = run_cli("card", finished, "-o", out)
    assert result.exit_code == 0, result.output
    return out


def read_card(folder):
    """Return (metadata, text) as the hub reads them."""
    card = ModelCard.load(folder / "README.md")
    [metadata] = re.findall("\\A---\n(.*?)\n---\n", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    return yaml.safe_load(metadata), card.text


def test_the_folder_holds_what_a_hub_needs_and_its_model_loads(card_folder):
    assert sorted(path.name for path in card_folder.iterdir()) == sorted(FILES)
    assert p2pzoo.load(card_folder / "model.safetensors").in_channels == 3


def test_a_card_of_a_process_names_it_as_the_method(run_cli, arguments, tmp_path):
    flow = ["drop=['discriminator', 'gan_loss']", "generator.norm=group", "generator.noise=none", "process.use=flow"]
    result = run_cli(*arguments(tmp_path / "runs", "train.images=2", *flow, "process.steps=2"))
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    assert run_cli("card", folder, "-o", tmp_path / "card").exit_code == 0
    _, text = read_card(tmp_path / "card")
    assert "translation, trained with p2pzoo" in text
    assert "one sample of the process `process:flow`, which asks the network 2 times." in text
    [method] = [line for line in text.splitlines() if "the method" in line]
    assert "2210.02747" in method


def header(channels=(3, 3), **changes):
    return ModelHeader("generator", "zoo:any", {}, *channels, (64, 64), **changes)


def test_the_example_of_the_card_translates(card_folder, monkeypatch, tmp_path):
    code = re.findall("```python\n(.*?)```", (card_folder / "README.md").read_text("utf-8"), re.DOTALL)[0]
    shutil.copy(card_folder / "model.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    name = re.search(r"translate\(\"(\w+\.png)\"\)", code)[1]
    Image.new("RGB", (64, 64)).save(name)
    exec(code)
    assert Image.open("translated.png").size == (64, 64)


@pytest.mark.parametrize(
    ("header", "file", "reads", "writes"),
    [
        (header(), "photo.png", 'translate("photo.png")', '.save("translated.png")'),
        (header((1, 2), encodings=Encodings("L", "ab")), "photo.png", 'translate("photo.png")', "translated.png"),
        (header((2, 3)), "image.npy", 'np.load("image.npy")  # (H, W, 2) uint8, values from 0 to 255', "np.save("),
        (header((3, 1), y_dtype="float32"), "photo.png", 'np.asarray(Image.open("photo.png"))', "np.save("),
        (header((4, 4), x_dtype="uint16", x_range=(0, 4095)), "image.npy", "uint16, values from 0 to 4095", "np.save("),
    ],
)  # fmt: skip
def test_the_example_fits_the_channels_and_values_of_the_model(header, file, reads, writes):
    shell, python = describe_use(header)
    assert shell == [f"p2pzoo translate model.safetensors {file} -o translated/"]
    assert reads in "\n".join(python)
    assert writes in "\n".join(python)


def test_the_example_of_a_model_of_pairs_names_the_half():
    shell, _ = describe_use(header(file_layout=FileLayout(x_half="right")))
    assert "pair.png --side right" in shell[1]


def test_the_metadata_has_the_fields_of_the_hub(card_folder):
    metadata, _ = read_card(card_folder)
    assert metadata["license"] == "other"
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("p2pzoo", "image-to-image")
    assert metadata["datasets"] == ["earth"]
    [index] = metadata["model-index"]
    for result in index["results"]:
        assert result["task"] == {"type": "image-to-image"}
        assert {"type", "name", "split", "args"} == set(result["dataset"])
        assert {metric["type"] for metric in result["metrics"]} <= set(metadata["metrics"])


def test_the_numbers_are_those_of_results_json(card_folder, finished):
    metadata, text = read_card(card_folder)
    expected = {k: v["value"] for k, v in json.loads((finished / "results.json").read_text())["metrics"].items()}
    assert expected
    metrics = [metric for result in metadata["model-index"][0]["results"] for metric in result["metrics"]]
    assert {metric["name"]: metric["value"] for metric in metrics} == expected
    rows = re.findall(r"^\| `([\w.]+)` \| ([\d.e-]+) \| 1 \| test ", text, re.MULTILINE)
    assert dict(rows) == {name: f"{value:.4g}" for name, value in expected.items()}


@pytest.fixture(scope="module")
def of_average(run_cli, arguments, tmp_path_factory):
    """A run whose numbers and pictures are those of its average; one metric measures the last weights besides."""
    runs = tmp_path_factory.mktemp("runs")
    settings = (
        "train.images=16",
        "evaluate.weights=average",
        "evaluate.at=[8]",
        "evaluate.also.last.weights=last",
    )
    result = run_cli(*arguments(runs, *settings))
    assert result.exit_code == 0, result.output
    [folder] = runs.glob("*/*")
    assert (folder / "average.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()
    return folder


def test_a_card_publishes_the_weights_that_its_numbers_measured(run_cli, of_average, tmp_path):
    assert run_cli("card", of_average, "-o", tmp_path / "card").exit_code == 0
    published = (tmp_path / "card/model.safetensors").read_bytes()
    assert published == (of_average / "average.safetensors").read_bytes()
    metadata, text = read_card(tmp_path / "card")
    results = metadata["model-index"][0]["results"]
    stated = {metric["name"]: metric["value"] for result in results for metric in result["metrics"]}
    assert stated.keys() == {"l1", "psnr", "psnr.pooled"}, "no file has the weights of the others"
    again = run_cli("evaluate", tmp_path / "card", "--json")
    assert again.exit_code == 0, again.output
    numbers = json.loads(again.output[again.output.index("{") :])["metrics"]
    assert {name: number["value"] for name, number in numbers.items()} == pytest.approx(stated)
    assert {result["dataset"]["args"]["weights"] for result in results} == {"average"}
    assert "average of the weights" in text
    assert "6 other numbers" in text


def test_numbers_of_one_metric_differ_in_their_args(run_cli, arguments, tmp_path):
    also = 'evaluate.also={eval={test_mode="eval"}}'
    result = run_cli(*arguments(tmp_path / "runs", "train.images=4", also))
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    assert run_cli("card", folder, "-o", tmp_path / "card").exit_code == 0
    results = read_card(tmp_path / "card")[0]["model-index"][0]["results"]
    keys = [
        (metric["name"].partition("@")[0] + metric["name"].partition(".")[2], json.dumps(result["dataset"]))
        for result in results
        for metric in result["metrics"]
    ]
    assert len(keys) == 6 == len(set(keys))


def with_private_paths(finished, tmp_path):
    """A copy of a run whose model file names folders of this machine, as files of older calibrations do."""
    folder = shutil.copytree(finished, tmp_path / "run")
    tensors, values = load_tensors(folder / "model.safetensors")
    data = {"dataset": {"use": "datasets:folders", "inputs": "/home/Dr_Secret/x", "files": ["/home/Dr_Secret/y", 3]}}
    calibration = {"level": 0.8, "factor": 1.5, "samples": 1, "test_mode": "eval", "blocks": 4, "images": [],
                   "data": data, "metric": ""}  # fmt: skip
    save_model_tensors(folder / "model.safetensors", tensors, values | {"calibration": calibration})
    return folder


def test_no_file_of_a_card_and_no_graph_has_a_path_of_this_machine(run_cli, finished, tmp_path):
    folder = with_private_paths(finished, tmp_path)
    assert b"Dr_Secret" in (folder / "model.safetensors").read_bytes()
    assert run_cli("card", folder, "-o", tmp_path / "card").exit_code == 0
    result = run_cli("export", folder, "--to", "torch-export", "-o", tmp_path / "model.pt2", "--test-mode", "eval")
    assert result.exit_code == 0, result.output
    for file in (*(tmp_path / "card").iterdir(), tmp_path / "model.pt2"):
        assert b"Dr_Secret" not in file.read_bytes()
    calibration = p2pzoo.load(tmp_path / "card", device="cpu").calibration
    assert (calibration.level, calibration.factor) == (0.8, 1.5)
    assert calibration.data == {"dataset": {"use": "datasets:folders", "files": [3]}}


def test_a_card_says_that_its_recipe_names_private_paths(run_cli, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    recipe["init"]["generator"] = str(finished / "model.safetensors")
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    result = run_cli("card", folder, "-o", tmp_path / "card")
    assert result.exit_code == 0, result.output
    assert "recipe.toml names absolute paths of this machine" in result.output
    assert "names absolute paths" not in run_cli("card", finished, "-o", tmp_path / "other").output


def test_a_run_without_its_average_gets_no_card_with_other_weights(run_cli, of_average, tmp_path):
    shutil.copytree(of_average, tmp_path / "run")
    (tmp_path / "run/average.safetensors").unlink()
    result = run_cli("card", tmp_path / "run", "-o", tmp_path / "card")
    assert (result.exit_code, "average" in result.output) == (2, True)
    assert not (tmp_path / "card").exists()


def test_an_export_of_a_run_has_the_weights_that_its_numbers_measured(run_cli, of_average, tmp_path):
    for name, options in (("measured.pth", ()), ("average.pth", ("--weights", "average")),
                          ("last.pth", ("--weights", "last"))):  # fmt: skip
        result = run_cli("export", of_average, "--to", "mmagic", "-o", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
    files = {name: (tmp_path / f"{name}.pth").read_bytes() for name in ("measured", "average", "last")}
    assert files["measured"] == files["average"] != files["last"]


def test_one_place_says_whether_kernels_were_deterministic(card_folder):
    _, text = read_card(card_folder)
    assert re.findall(r"[^,|\n]*deterministic[^,|\n]*", text) == [" deterministic kernels yes (always on a CPU)."]


def test_a_hostile_title_is_escaped(card_folder):
    metadata, text = read_card(card_folder)
    assert metadata["model-index"][0]["name"] == HOSTILE_TITLE
    assert metadata["license"] == "other"
    [heading] = re.findall("^# (.*)$", text, re.MULTILINE)
    assert heading == escape_markdown(HOSTILE_TITLE)
    assert "<script" not in heading
    assert "[x](" not in heading
    [row] = re.findall(r"^\| `title` \| (.*) \|$", text, re.MULTILINE)
    assert row == format_code(HOSTILE_TITLE)


@pytest.mark.parametrize("text", [HOSTILE_TITLE, "null", "1e3", "- a", "x\u2028y", "é", ""])
def test_text_in_the_metadata_is_read_back_unchanged(text):
    assert yaml.safe_load(ModelCardData(license=text).to_yaml()) == {"license": text}


def test_text_is_escaped():
    assert escape_markdown("a_b <i> [x](y)\n# z") == r"a\_b &lt;i&gt; \[x\](y) \# z"
    assert format_code("a`b|c") == r"`` a`b\|c ``"


def test_a_card_without_metrics_says_so(run_cli, arguments, tmp_path):
    drop = 'drop=["metrics.l1", "metrics.psnr"]'
    result = run_cli(*arguments(tmp_path / "runs", "train.images=4", drop))
    assert result.exit_code == 0, result.output
    [folder] = (tmp_path / "runs").glob("*/*")
    assert run_cli("card", folder, "-o", tmp_path / "card", "--licence", "mit").exit_code == 0
    metadata, text = read_card(tmp_path / "card")
    assert metadata["license"] == "mit"
    assert not {"metrics", "model-index"} & set(metadata)
    assert "No metric was measured." in text


def test_nothing_is_overwritten_and_a_model_file_alone_is_refused(run_cli, card_folder, finished, tmp_path):
    again = run_cli("card", finished, "-o", card_folder)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert run_cli("card", finished, "-o", card_folder, "--force").exit_code == 0
    alone = run_cli("card", finished / "model.safetensors", "-o", tmp_path / "card")
    assert alone.exit_code == 2
    assert "a model file does not contain how it was trained" in alone.output
    assert not (tmp_path / "card").exists()


def test_a_dataset_without_licence_gets_a_line_to_fill_in():
    from types import SimpleNamespace

    from p2pzoo_export.model_card import get_licence

    assert get_licence(SimpleNamespace(factory=object)) == UNKNOWN_LICENCE
