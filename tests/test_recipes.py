"""Every shipped recipe: valid in each profile, and run to its end in `smoke`."""

import importlib.util
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from phantoms import AFFINE, head, write_nifti
from PIL import Image

from p2pzoo import config
from p2pzoo.cli import main
from p2pzoo.cli.recipes import format_recipe
from p2pzoo.config.recipe import iter_leaves, read_recipe
from p2pzoo.data import Store
from p2pzoo.models.image_size import find_network_faults
from p2pzoo.plugin.loader import registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import shipped_dir

RECIPES = sorted(path.relative_to(shipped_dir("recipes")).as_posix() for path in shipped_dir("recipes").rglob("*.toml"))

ROWS = {  # the paper's tables: what each row says of G, D, the losses, the batch
    "ablation_l1": ("unet", None, None, ["l1"], 1),
    "ablation_gan": ("unet", 70, False, [], 1),
    "ablation_cgan": ("unet", 70, True, [], 1),
    "ablation_l1_gan": ("unet", 70, False, ["l1"], 1),
    "ablation_l1_cgan": ("unet", 70, True, ["l1"], 1),
    "ablation_encdec_l1": ("encoder-decoder", None, None, ["l1"], 10),
    "ablation_encdec_l1_cgan": ("encoder-decoder", 70, True, ["l1"], 10),
    "ablation_unet_l1": ("unet", None, None, ["l1"], 10),
    "ablation_unet_l1_cgan": ("unet", 70, True, ["l1"], 10),
    "ablation_pixel": ("unet", 1, True, ["l1"], 1),
    "ablation_patch16": ("unet", 16, True, ["l1"], 1),
    "ablation_patch34": ("unet", 34, True, ["l1"], 1),
    "ablation_patch70": ("unet", 70, True, ["l1"], 1),
    "ablation_image286": ("unet", 286, True, ["l1"], 1),
    "ablation_labels_l1": ("unet", None, None, ["l1"], 1),
    "ablation_labels_cgan": ("unet", 70, True, [], 1),
    "ablation_labels_l1_cgan": ("unet", 70, True, ["l1"], 1),
}

MODERN = {  # recipes/modern: G, D, the losses of G, and the widths of G and D on a laptop, where these cost the most
    "resnet6": ("resnet6", "patch", {"l1": 100.0}, (16, 32)),
    "resnet9": ("resnet9", "patch", {"l1": 100.0}, (16, 32)),
    "pix2pixhd": ("pix2pixhd-global", "multiscale", {"features": 10.0}, (16, 16)),
    "spade": ("spade", "patch", {"l1": 100.0}, (16, 32)),
}

TASKS = {  # paper_facts 3: dataset, its task, pairs, epochs, batch, whether there is jitter and mirror
    "facades": ("facades", "labels-to-photo", 400, 200, 1, True),
    "map_to_aerial": ("maps", "map-to-aerial", 1096, 200, 1, True),
    "aerial_to_map": ("maps", "aerial-to-map", 1096, 200, 1, True),
    "cityscapes": ("cityscapes", "labels-to-photo", 2975, 200, 1, True),
    "edges2shoes": ("edges2shoes", "edges-to-photo", 49_825, 15, 4, False),
    "edges2handbags": ("edges2handbags", "edges-to-photo", 138_567, 15, 4, False),
    "day2night": ("night2day", "day-to-night", 17_823, 17, 4, True),
    "night2day": ("night2day", "night-to-day", 17_823, 17, 4, True),
}


def load_module(file: Path):
    """The module of a script that ships with a recipe."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_recipe(name: str, profile: str):
    return config.load(f"zoo:{name}", profile)


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu", "paper"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_in_every_profile(name, profile):
    experiment = open_recipe(name, profile)
    assert experiment.recipe.profile == profile
    assert experiment.title
    tree = experiment.resolved()
    printed = "\n".join(format_recipe(tree, {key: experiment.origin(key) for key, _ in iter_leaves(tree)}))
    assert tomllib.loads(printed) == tree


@pytest.mark.parametrize(("name", "row"), ROWS.items())
@pytest.mark.parametrize("profile", ["laptop", "gpu", "paper"])
def test_every_row_is_what_the_papers_table_says(name, row, profile):
    experiment = open_recipe(f"{name}.toml", profile)
    generator, field, conditional, losses, batch = row
    assert experiment.generator.entry.name == generator
    if field is None:
        assert experiment.discriminator is None
        assert experiment.gan_loss is None
    else:
        D = experiment.discriminator.build(in_channels=3, out_channels=3, size=(256, 256))
        assert D.receptive_field == field
        assert experiment.discriminator.values["conditional"] is conditional
        assert experiment.gan_loss.entry.name == "vanilla"
    assert [experiment.losses[loss].weight for loss in losses] == [100.0] * len(losses)
    assert list(experiment.losses) == losses
    assert experiment.train.batch_size == batch


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu", "paper"])
def test_only_the_rows_of_table_6_read_labels_from_photos(name, profile):
    experiment = open_recipe(f"{name}.toml", profile)
    assert experiment.dataset.entry.name == ("cityscapes" if profile == "paper" else "earth")
    task = "photo-to-labels" if "(Table 6)" in experiment.title else "labels-to-photo"
    assert experiment.dataset.values["task"] == task


def test_the_rows_of_one_profile_see_the_same_number_of_images_at_the_same_width():
    for profile, width in {"smoke": 8, "laptop": 32, "gpu": 64, "paper": 64}.items():
        rows = [open_recipe(f"{name}.toml", profile) for name in ROWS]
        assert len({row.train.images for row in rows}) == 1
        assert {row.generator.values["width"] for row in rows} == {width}
        assert {row.discriminator.values["width"] for row in rows if row.discriminator} == {width}


@pytest.mark.parametrize(("name", "parts"), MODERN.items())
@pytest.mark.parametrize(("profile", "width"), [("smoke", 8), ("laptop", None), ("gpu", 64), ("paper", 64)])
def test_a_modern_recipe_is_base_with_other_networks_of_the_same_width(name, parts, profile, width):
    modern, base = open_recipe(f"modern/{name}.toml", profile), open_recipe("base.toml", profile)
    players = (modern.generator, modern.discriminator)
    assert tuple(player.entry.name for player in players) == parts[:2]
    assert tuple(player.values["width"] for player in players) == ((width, width) if width else parts[3])
    assert (modern.train, modern.optimizer, modern.init) == (base.train, base.optimizer, base.init)
    assert {name: loss.weight for name, loss in modern.losses.items()} == parts[2]
    assert modern.dataset.values == base.dataset.values


@pytest.mark.parametrize(("name", "row"), TASKS.items())
@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu", "paper"])
def test_every_task_is_what_the_paper_says_of_it(name, row, profile):
    experiment, base = open_recipe(f"tasks/{name}.toml", profile), open_recipe("base.toml", profile)
    dataset, task, pairs, epochs, batch, augmented = row
    assert experiment.dataset.entry.name == dataset
    assert experiment.dataset.values["task"] == task
    assert experiment.dataset.factory.archive.images["train"] == pairs
    assert experiment.train.batch_size == batch
    assert (experiment.train.jitter, experiment.train.mirror) == ((286 / 256, True) if augmented else (1, False))
    assert experiment.generator.values == base.generator.values
    assert experiment.discriminator.values == base.discriminator.values
    assert {name: loss.weight for name, loss in experiment.losses.items()} == {"l1": 100.0}
    full = profile in ("gpu", "paper")
    assert experiment.dataset.values["size"] == (256 if full else 128)
    assert experiment.train.images == (pairs * epochs if full else base.train.images)
    assert experiment.train.sample_every == (pairs * epochs // 20 if epochs == 200 else pairs) or not full


@pytest.mark.parametrize(
    ("name", "photos", "epochs", "mirror", "parameter"),
    [
        ("colorize", 1_281_167, 6, True, ("output", "ab")),
        ("inpaint", 14_900, 25, False, ("mask", "centre")),
    ],
)
def test_every_task_of_ones_own_photos_is_what_the_paper_says_of_it(name, photos, epochs, mirror, parameter):
    for profile in ("laptop", "gpu", "paper"):
        experiment = open_recipe(f"tasks/{name}.toml", profile)
        assert experiment.dataset.entry.name == name
        assert experiment.dataset.values[parameter[0]] == parameter[1]
        assert (experiment.train.batch_size, experiment.train.jitter, experiment.train.mirror) == (4, 1, mirror)
    assert experiment.train.images == photos * epochs
    assert tuple(experiment.dataset.values["size"]) == (256, 256)


def test_the_gpu_and_paper_profiles_train_for_200_epochs():
    gpu = open_recipe("base.toml", "gpu")
    assert gpu.train.images == 200 * len(gpu.dataset.build(split="train"))
    assert open_recipe("base.toml", "paper").train.images == 200 * 2975


REFERENCES = {  # paper_facts 2.6 where the codes differ: paper, Lua, PyTorch, TensorFlow
    "generator.bottleneck_norm": (True, False, False, True),
    "generator.dropout": ("paper", "paper", "pytorch", "paper"),
    "generator.bias": ("pytorch", "lua", "pytorch", "lua"),
    "discriminator.bias": ("pytorch", "lua", "pytorch", "lua"),
    "gan_loss.halved": (True, False, True, False),
    "gan_loss.log_eps": (0.0, 1e-12, 0.0, 1e-12),
    "train.jitter_kernel": ("bicubic", "bilinear-corners", "bicubic", "area"),
    "train.crop_from": (0, 1, 0, 0),
    "train.replacement": (False, True, False, False),
    "train.order": ("pytorch", "lua", "pytorch", "lua"),
    "train.zero_biases": (False, True, False, False),
    "optimizer.eps_before_correction": (False, True, False, True),
    "optimizer.schedule": ("constant", "constant", "linear-epochs", "constant"),
}
CODES = ("paper", "lua", "pytorch", "tensorflow")


@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", range(4))
def test_the_diff_of_two_references_is_the_table_of_their_differences(a, b):
    paths = [f"zoo:reference/{CODES[i]}.toml" for i in (a, b)]
    rows = json.loads(CliRunner().invoke(main, ["diff", *paths, "--profile", "paper", "--json"]).stdout)
    assert {row["key"]: (row["a"], row["b"]) for row in rows} == {
        key: (values[a], values[b]) for key, values in REFERENCES.items() if values[a] != values[b]
    }


def test_to_people_it_is_a_table_headed_by_their_names():
    paths = [f"zoo:reference/{name}.toml" for name in ("paper", "lua")]
    lines = CliRunner().invoke(main, ["diff", *paths, "--profile", "paper"]).stdout.splitlines()
    assert lines[0].split() == ["paper", "lua"]
    assert [line.split() for line in lines if line.startswith("optimizer")] == [
        ["optimizer.eps_before_correction", "false", "true"]
    ]


@pytest.mark.parametrize("code", CODES)
def test_a_row_run_as_another_code_is_a_line_of_extends(code, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(f'extends = ["zoo:ablation_pixel.toml", "zoo:reference/{code}.toml"]\n')
    pixel = config.load(str(mine), "paper")
    reference = open_recipe(f"reference/{code}.toml", "paper")
    assert pixel.discriminator.entry.name == "pixel"
    assert pixel.discriminator.values["bias"] == reference.discriminator.values["bias"]
    assert (pixel.train, pixel.optimizer) == (reference.train, reference.optimizer)


def test_and_where_a_row_has_no_discriminator_it_is_dropped_again(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'extends = ["zoo:ablation_encdec_l1.toml", "zoo:reference/lua.toml"]\ndrop = ["discriminator", "gan_loss"]\n'
    )
    made = config.load(str(mine), "paper")
    assert made.discriminator is made.gan_loss is None
    assert (made.generator.entry.name, made.generator.values["bias"]) == ("encoder-decoder", "lua")


@pytest.fixture(scope="session")
def fetched(tmp_path_factory):
    """A cache with a few drawn pairs of each published dataset, photos, scenes, stacks and volumes."""
    cache = tmp_path_factory.mktemp("cache")
    load_module(shipped_dir("recipes") / "tasks" / "stacks" / "make_stacks.py").make_stacks(
        cache / "stacks", wells=8, fields=1, planes=3, side=128
    )
    for split in ("train", "val"):
        (cache / "photos" / split).mkdir(parents=True)
        for number in range(2):
            small = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(small).resize((192, 128)).save(cache / "photos" / split / f"{number}.jpg")
    for entry in registry().of("dataset"):
        if archive := getattr(entry.load(), "archive", None):
            side = getattr(entry.load(), "half", 256)
            draw = np.random.default_rng(0)
            for folder in archive.images:
                (cache / "datasets" / archive.name / folder).mkdir(parents=True)
                for number in range(2):
                    small = draw.integers(0, 256, (4, 8, 3), dtype=np.uint8)
                    pair = Image.fromarray(small).resize((2 * side, side))
                    pair.save(cache / "datasets" / archive.name / folder / f"{number}.jpg")
    load_module(shipped_dir("recipes") / "tasks" / "scenes" / "make_scenes.py").make_scenes(cache / "scenes", count=2)
    for patient in range(1, 11):
        for folder, values in zip(("mr", "ct"), head(patient, (32, 32, 4)), strict=True):
            write_nifti(cache / "phantoms" / folder / f"sub-{patient:02d}_ses-1.nii.gz", values, AFFINE)
    return cache


# one recipe for each set of components; the others differ from one of these in parameters
RUN_BY_DEFAULT = (
    "ablation_cgan.toml", "ablation_encdec_l1.toml", "ablation_encdec_l1_cgan.toml", "ablation_image286.toml",
    "ablation_l1.toml", "ablation_l1_cgan.toml", "ablation_labels_l1.toml", "ablation_pixel.toml",
)  # fmt: skip
SMOKED = [*RUN_BY_DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if "/" in name)]


def test_a_recipe_with_each_set_of_components_is_run():
    def components(name):
        experiment = open_recipe(name, "smoke")
        metrics = experiment.metrics.values()
        return frozenset(part.entry.full_name for part in (*experiment.components(), *metrics))

    assert {components(name) for name in RECIPES if "/" not in name} == {components(name) for name in RUN_BY_DEFAULT}


@pytest.mark.parametrize("name", [name for name in RECIPES if "/" not in name])
def test_the_networks_of_every_recipe_take_its_images(name):
    experiment = open_recipe(name, "smoke")
    store = Store(experiment.dataset.build(split="test"))
    assert find_network_faults(experiment, store.channels, store.size) == []


@pytest.mark.parametrize("name", SMOKED)
def test_every_recipe_runs_to_its_end_in_smoke(name, run_cli, tmp_path, request, monkeypatch):
    """Two steps instead of twenty, on fewer tiles: evaluation, checkpoints and samples are the same."""
    if name.startswith("tasks/"):
        cache = request.getfixturevalue("fetched")
        monkeypatch.setenv("P2PZOO_CACHE", str(cache))
        monkeypatch.chdir(cache)
    experiment = open_recipe(name, "smoke")
    images = 2 * experiment.train.batch_size
    few = [f"train.{key}={images}" for key in ("images", "sample_every", "checkpoint_every")] + ["evaluate.samples=2"]
    few += ["dataset.stride=256"] if "stride" in experiment.dataset.values else []
    few_options = [part for override in few for part in ("-s", override)]
    result = run_cli("run", f"zoo:{name}", "--profile", "smoke", "--runs", tmp_path, *few_options)
    assert result.exit_code == 0, result.output
    [folder] = tmp_path.glob("*/*")
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"
    assert (folder / "model.safetensors").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert {"l1", "psnr", "ssim"} <= results["metrics"].keys()
    for number in results["metrics"].values():
        assert number["protocol"] in results["protocols"]
    pictures = list((folder / "samples").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        assert Image.open(picture).width >= 3 * 256, "x | ŷ | y, large enough to see"


def test_the_paper_profile_tells_how_to_get_its_data_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["run", "zoo:ablation_patch70.toml", "--profile", "paper"])
    assert result.exit_code == 2
    assert "cityscapes.tar.gz" in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_an_image_too_small_for_its_discriminator_is_refused_before_training(tmp_path):
    arguments = ["run", "zoo:ablation_image286.toml", "--profile", "smoke", "--runs", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "-s", "dataset.size=64"])
    assert result.exit_code == 2
    assert "96" in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_folder_can_be_missing_only_by_mistake():
    assert len(RECIPES) >= len(ROWS) + 1
    with pytest.raises(UserError, match="no such recipe"):
        read_recipe("zoo:nothing_like_it.toml")
