"""Merging recipes, and the faults of wrong ones."""

import re

import pytest

from p2pzoo.config import pick_profile
from p2pzoo.config.recipe import iter_leaves, read_recipe
from p2pzoo.utils.errors import UserError


@pytest.fixture
def cuda(monkeypatch):
    """A machine with CUDA."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """recipes(name=text, ...) writes recipe files into an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / f"{name}.toml").write_text(text)

    return write


BASE = """\
title = "base"
[generator]
use = "unet"
width = 64
[losses.l1]
use = "l1"
weight = 100
[train]
images = 10
[profiles.laptop.generator]
width = 32
[profiles.laptop.train]
images = 4
"""


def test_tables_merge_deeply_and_the_extending_file_wins(recipes):
    recipes(base=BASE, child='extends = "base.toml"\n[train]\nbatch_size = 2\n[losses.l2]\nuse = "l2"\n')
    values = read_recipe("child.toml").values
    assert values["train"] == {"images": 10, "batch_size": 2}
    assert set(values["losses"]) == {"l1", "l2"}


def test_a_title_belongs_to_the_file_that_has_it(recipes):
    recipes(
        base=BASE,
        child='extends = "base.toml"\n[train]\nimages = 3\n',
        named='extends = "child.toml"\ntitle = "mine"\n',
        grandchild='extends = ["base.toml", "named.toml"]\n[profiles.laptop.train]\nimages = 3\n',
    )
    titles = {
        name: read_recipe(f"{name}.toml").values.get("title") for name in ("base", "child", "named", "grandchild")
    }
    assert titles == {"base": "base", "child": None, "named": "mine", "grandchild": None}
    assert read_recipe("child.toml", None, ["title=today's"]).values["title"] == "today's"


def test_a_profile_overrides_its_own_file_and_is_overridden_by_an_extending_one(recipes):
    recipes(base=BASE, child='extends = "base.toml"\n[generator]\nwidth = 48\n')
    assert read_recipe("base.toml", "laptop").values["generator"]["width"] == 32
    assert read_recipe("child.toml", "laptop").values["generator"]["width"] == 48
    assert read_recipe("child.toml", "laptop").values["train"]["images"] == 4


def test_a_new_use_drops_the_parameters_of_the_old_component_and_keeps_the_weight(recipes):
    recipes(base=BASE, child='extends = "base.toml"\n[generator]\nuse = "resnet9"\n[losses.l1]\nuse = "charbonnier"\n')
    values = read_recipe("child.toml").values
    assert values["generator"] == {"use": "resnet9"}
    assert values["losses"]["l1"] == {"use": "charbonnier", "weight": 100}


def test_naming_the_same_component_again_keeps_its_parameters(recipes):
    recipes(base=BASE, child='extends = "base.toml"\n[generator]\nuse = "unet"\n')
    assert read_recipe("child.toml").values["generator"] == {"use": "unet", "width": 64}


def test_drop_removes_inherited_tables(recipes):
    recipes(base=BASE, child='extends = "base.toml"\ndrop = ["losses.l1"]\n[losses.l2]\nuse = "l2"\n')
    assert read_recipe("child.toml").values["losses"] == {"l2": {"use": "l2"}}


def test_arrays_replace(recipes):
    child = 'extends = "base.toml"\n[optimizer]\nbetas = [0.9, 0.9]\n'
    recipes(base="[optimizer]\nbetas = [0.5, 0.999]\n", child=child)
    assert read_recipe("child.toml").values["optimizer"]["betas"] == [0.9, 0.9]


def test_several_bases_are_merged_in_order_and_a_shared_one_only_once(recipes):
    recipes(
        base=BASE,
        wide='extends = "base.toml"\n[generator]\nwidth = 128\n',
        deep='extends = "base.toml"\n[train]\nimages = 99\n',
        child='extends = ["wide.toml", "deep.toml"]\n',
    )
    values = read_recipe("child.toml").values
    assert (values["generator"]["width"], values["train"]["images"]) == (128, 99)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("50", 50),
        ("0.5", 0.5),
        ("true", True),
        ('"50"', "50"),
        ("[1, 2]", [1, 2]),
        ("patch", "patch"),
        ("a = b", "a = b"),
        (" patch ", "patch"),
        ("1\nb = 2", "1\nb = 2"),
        ("", ""),
    ],
)
def test_an_override_is_toml_or_a_string(recipes, override, expected):
    recipes(base=BASE)
    values = read_recipe("base.toml", overrides=[f"losses.l1.weight={override}"]).values
    assert values["losses"]["l1"]["weight"] == expected


def test_overrides_win_over_everything_and_can_drop(recipes):
    recipes(base=BASE)
    values = read_recipe("base.toml", "laptop", ["generator.width=7", 'drop=["losses.l1"]']).values
    assert values["generator"]["width"] == 7
    assert values["losses"] == {}


def test_every_value_has_the_file_and_line_that_set_it(recipes):
    recipes(base=BASE, child='extends = "base.toml"\n\n[train]\nbatch_size = 2\n')
    recipe = read_recipe("child.toml", "laptop", ["losses.l1.weight=1"])
    where = {".".join(key): recipe.where(key) for key, _ in iter_leaves(recipe.values)}
    assert where["generator.use"] == "base.toml:3"
    assert where["generator.width"] == "base.toml:11"
    assert where["train.images"] == "base.toml:13"
    assert where["train.batch_size"] == "child.toml:4"
    assert where["losses.l1.weight"] == "-s losses.l1.weight=1"
    assert where["profile"] == "--profile laptop"
    assert recipe.where(("train", "missing")) == "child.toml:3", "a missing key has the line of its table"


def test_pick_chooses_the_profile_only_if_none_is_given(recipes):
    recipes(base=BASE)
    assert read_recipe("base.toml", pick=lambda: "laptop").profile == "laptop"
    assert read_recipe("base.toml", pick=lambda: "gpu").profile == "plain", "the recipe has no such profile"


def faults(*args, **kwargs) -> list[str]:
    try:
        return read_recipe(*args, **kwargs).faults
    except UserError as error:
        return list(error.faults)


def test_faults_say_what_is_wrong_where_and_what_to_do(recipes):
    recipes(
        base=BASE,
        broken="[generator]\nuse = \n",
        unclosed='[generator]\nuse = """\n',
        cycle='extends = "circle.toml"\n',
        circle='\nextends = "cycle.toml"\n',
        orphan='extends = "bse.toml"\n',
        unknown='[generater]\nuse = "unet"\n[profiles.laptop.trane]\nimages = 3\n',
        drops='extends = "base.toml"\ndrop = ["losses.l2"]\n',
        shapes='extends = 3\ndrop = "x"\nprofiles = 1\n',
    )
    assert faults("broken.toml") == ["broken.toml:2  broken TOML: Invalid value"]
    assert faults("unclosed.toml")[0].startswith("unclosed.toml:3  broken TOML:")
    assert faults("cycle.toml") == [
        "circle.toml:2  cycle in `extends`: cycle.toml extends circle.toml extends cycle.toml"
    ]
    assert faults("orphan.toml") == ["orphan.toml:1  extends bse.toml: no such recipe: did you mean 'base.toml'?"]
    assert faults("unknown.toml") == [
        "unknown.toml:1  no table or key 'generater': did you mean 'generator'?",
        "unknown.toml:3  no table or key 'trane': did you mean 'train'?",
    ]
    assert faults("drops.toml") == ["drops.toml:2  drop: there is no 'losses.l2': did you mean 'losses.l1'?"]
    assert {fault.split("  ")[0] for fault in faults("shapes.toml")} == {
        "shapes.toml:1",
        "shapes.toml:2",
        "shapes.toml:3",
    }
    assert faults("base.toml", "lapdog") == ["base.toml: no profile 'lapdog': did you mean 'laptop'?"]
    assert faults("base.toml", overrides=["generator.width"]) == [
        "-s generator.width: write -s table.key=value, as in -s losses.l1.weight=50"
    ]
    assert faults("base.toml", overrides=["lozzes.l1.weight=1"]) == [
        "-s lozzes.l1.weight=1: no table or key 'lozzes': did you mean 'losses'?"
    ]


def test_names_of_profiles_and_recipes_are_safe_as_folder_names(recipes, tmp_path):
    recipes(label='profile = "../../evil"\n', table='[profiles."../x".train]\nimages = 1\n', base=BASE)
    assert faults("label.toml") == ['label.toml:1  profile "../../evil": use letters, digits, - and _']
    assert faults("table.toml") == ['table.toml:1  profile "../x": use letters, digits, - and _']
    (tmp_path / "...toml").write_text(BASE)
    (tmp_path / "recipe.toml").write_text(BASE)
    assert read_recipe("...toml").name == "recipe"
    assert read_recipe("recipe.toml").name == "recipe"


def test_keys_that_options_set_cannot_be_overridden(recipes):
    recipes(base=BASE, inside='[profiles.laptop]\nprofile = "gpu"\n')
    assert faults("base.toml", overrides=["profile=laptop"]) == ["-s profile=laptop: use --profile instead"]
    assert faults("base.toml", overrides=["continued_from=7"]) == ["-s continued_from=7: use --continue-from instead"]
    [fault] = faults("inside.toml")
    assert fault.startswith("inside.toml:2  no table or key 'profile'")


def test_a_folder_or_a_binary_file_is_not_a_recipe(recipes, tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.toml").mkdir()
    assert faults("binary.toml") == ["binary.toml: not UTF-8 text: give a recipe, a .toml file"]
    assert faults("folder.toml") == ["folder.toml: is a folder: give a recipe, a .toml file (of a run: recipe.toml)"]


def test_keys_of_profiles_that_are_not_chosen_are_checked_too(recipes):
    recipes(base=BASE, child='extends = "base.toml"\n[profiles.laptop.train]\nimagse = 5\nimages = 5\n')
    expected = "child.toml:3  [profiles.laptop.train] has no parameter 'imagse': did you mean 'images'?"
    assert faults("child.toml") == [expected]
    assert faults("child.toml", "laptop") == []  # the check of the merged recipe reports it


@pytest.mark.parametrize(
    "overrides",
    [
        ["compute.device=cpu"],
        ['compute.device="cpu"'],
        ["compute.device = cpu"],
        ["compute = {device = 'cpu'}"],
        ["compute.device=cuda", "compute.device=cpu"],
        ["compute.device=cpu", "compute.threads=1", "train.images=8"],
    ],
)
def test_an_override_to_the_cpu_picks_the_laptop_profile(recipes, overrides, cuda):
    assert pick_profile(overrides) == "laptop"
    recipe = read_recipe("zoo:base.toml", None, overrides, pick=lambda: pick_profile(overrides))
    assert (recipe.profile, recipe.values["compute"]["device"]) == ("laptop", "cpu")


@pytest.mark.parametrize(
    "overrides",
    [[], ["compute.device=cpu", "compute.device=cuda"], ["compute.threads=1"], ["train.images=8", "compute=cpu"]],
)
def test_otherwise_cuda_picks_the_gpu_profile(overrides, cuda):
    assert pick_profile(overrides) == "gpu"
    assert pick_profile(overrides, executor_profile="laptop") == "laptop"


def test_a_broken_override_is_reported_with_the_other_faults(recipes, cuda):
    overrides = ["compute.device", "trane.images=3", "compute.device=cpu"]
    found = read_recipe("zoo:base.toml", None, overrides, pick=lambda: pick_profile(overrides))
    assert len(found.faults) == 2
    assert found.profile == "laptop"


def test_a_profile_that_a_recipe_chooses_must_exist(recipes):
    recipes(base=BASE, child='extends = "base.toml"\nprofile = "lapdog"\n')
    assert faults("child.toml") == ["child.toml:2  no profile 'lapdog': did you mean 'laptop'?"]


def test_a_recipe_that_extends_a_missing_one_is_not_suggested_in_its_place(recipes):
    recipes(mine_gone='extends = "gone_mine.toml"\n', gone_min=BASE)
    assert faults("mine_gone.toml")[0].endswith("no such recipe: did you mean 'gone_min.toml'?")
    recipes(extgone='extends = "gone.toml"\n')
    assert "did you mean 'extgone.toml'" not in faults("extgone.toml")[0]


def test_shipped_recipes_are_found_from_any_folder(recipes):
    recipes(child='extends = "zoo:base.toml"\n')
    recipe = read_recipe("child.toml", "smoke")
    assert recipe.values["generator"]["use"] == "unet"
    assert recipe.where(("generator", "use")).startswith("zoo:base.toml:")


@pytest.mark.parametrize("name", ["zoo:resnet9", "zoo:resnet9.toml", "zoo:modern/resnet9.toml"])
def test_a_shipped_recipe_is_found_by_its_unique_name(name):
    recipe = read_recipe(name, "smoke")
    assert (recipe.name, recipe.values["generator"]["use"]) == ("resnet9", "resnet9")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet9", "did you mean 'zoo:modern/resnet9.toml'?"),
        ("ablation_patch70", "did you mean 'zoo:ablation_patch70.toml'?"),
        ("zoo:resnt9.toml", "did you mean 'zoo:resnet"),
        ("zoo:nothing_like_it.toml", "(`p2pzoo list recipes` shows those that ship with p2pzoo)"),
        ("mine.toml", "(`p2pzoo list recipes` shows those that ship with p2pzoo)"),
    ],
)
def test_a_missing_recipe_gets_the_name_of_a_shipped_one(name, suggestion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(suggestion)):
        read_recipe(name)
    (tmp_path / "extending_it.toml").write_text(f'extends = "{name}"\n')
    with pytest.raises(UserError, match=re.escape(suggestion)):
        read_recipe("extending_it.toml")


def test_a_recipe_without_profiles_or_tables_says_so(tmp_path):
    file = tmp_path / "bare.toml"
    file.write_text('drop = ["losses.l1"]\n')
    with pytest.raises(UserError, match=r"bare\.toml: no profile 'smoke': this recipe has none; leave it out, add "):
        read_recipe(str(file), "smoke")
    [fault] = read_recipe(str(file)).faults
    assert fault.endswith("drop: there is no 'losses.l1': no file before this one sets a table")
