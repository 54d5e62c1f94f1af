"""Checking recipes: all faults at once; what changes a run id and what does not."""

import tomllib

import pytest
from PIL import Image

from p2pzoo import config
from p2pzoo.plugin import loader
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import shipped_dir


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """experiment(text, profile, overrides): the checked experiment of a recipe file with this text."""
    monkeypatch.chdir(tmp_path)

    def load(text='extends = "zoo:base.toml"', profile="smoke", overrides=(), name="mine"):
        (tmp_path / f"{name}.toml").write_text(text)
        return config.load(f"{name}.toml", profile, overrides)

    return load


WRONG = """\
extends = "zoo:base.toml"
[generator]
widht = 64
norm = "layer"
[discriminator]
use = "pach"
[losses.l1]
weight = -3
[losses.extra]
weight = 1
[optimizer]
lr = 0
[train]
images = "many"
[metrics.l1]
weight = 3
[dataset]
size = 100
[init]
generator = "nowhere.safetensors"
[evaluate]
test_mode = "train"
"""


def test_every_fault_is_reported_at_once_with_its_line_and_a_suggestion(experiment):
    with pytest.raises(UserError) as caught:
        experiment(WRONG)
    assert sorted(caught.value.faults, key=lambda fault: int(fault.split(":")[1].split()[0])) == [
        "mine.toml:3  [generator] has no parameter 'widht': did you mean 'width'?",
        "mine.toml:4  [generator] norm = \"layer\": input should be 'batch', 'instance', 'none' or 'group'",
        "mine.toml:6  [discriminator] use = \"pach\": no discriminator 'pach': did you mean 'patch'?",
        "mine.toml:8  [losses.l1] weight = -3: give a number of at least 0",
        'mine.toml:9  [losses.extra] names no component: add `use = "NAME"` (`p2pzoo list` shows them)',
        "mine.toml:12  [optimizer] lr = 0: input should be greater than 0",
        'mine.toml:14  [train] images = "many": input should be a valid integer',
        "mine.toml:16  [metrics.l1] has no weight: only losses have one",
        "mine.toml:18  [dataset] size = 100: input should be 64, 128 or 256",
        'mine.toml:20  [init] generator = "nowhere.safetensors": no such file',
        "mine.toml:22  [evaluate] test_mode = \"train\": input should be 'paper' or 'eval'",
    ]


def test_faults_of_merging_and_of_components_are_reported_together(experiment):
    with pytest.raises(UserError) as caught:
        experiment(
            'extends = "zoo:base.toml"\ndrop = ["losses.l9"]\n[generator]\nuse = "vnet"\n[profiles.smoke.traim]\n',
            overrides=["lozzes.l1.weight=1", "optimizer.lr=-1"],
        )
    lines = "\n".join(caught.value.faults)
    unknown = ["no table or key 'traim'", "there is no 'losses.l9'", "no table or key 'lozzes'"]
    for part in [*unknown, "no generator 'vnet'", "lr = -1"]:
        assert part in lines


def test_an_error_of_a_constructor_names_the_line_of_its_table(experiment):
    noisy = experiment('extends = "zoo:base.toml"\n[generator]\nnoise = "none"\ndropout = "paper"\n')
    with pytest.raises(UserError, match=r"^mine.toml:2  generator 'unet': dropout = 'paper' needs noise = 'dropout'"):
        noisy.generator.build(in_channels=3, out_channels=3, size=(64, 64))


TABLE = {
    "use": 'use = "folders"\n',
    "files": 'inputs = "photos"\ntargets = "maps"\n',
    "size": 'size = [64, 64]\nresize = "none"\n',
}


@pytest.mark.parametrize(
    ("top_level", "profile", "line"),
    [
        (["use", "files"], ["size"], 2),
        (["use", "size"], ["files"], 6),
        (["size", "use"], ["files"], 6),
        ([], ["use", "files", "size"], 3),
        (["use", "files", "size"], [], 2),
    ],
)
def test_a_fault_of_a_component_names_the_table_that_it_is_about(experiment, tmp_path, top_level, profile, line):
    for name in ("photos/1", "photos/2", "maps/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    top, of_profile = ("".join(TABLE[key] for key in keys) for keys in (top_level, profile))
    loaded = experiment(f'extends = "zoo:base.toml"\n[dataset]\n{top}[profiles.smoke.dataset]\n{of_profile}')
    with pytest.raises(UserError) as caught:
        loaded.dataset.build(split="train")
    [fault] = caught.value.faults
    assert fault.startswith(f"mine.toml:{line}  photos: 1 of 2 images without a partner")


@pytest.mark.parametrize(
    ("top_level", "profile", "line"),
    [('noise = "none"\ndropout = "paper"', "width = 8", 2), ("width = 8", 'noise = "none"\ndropout = "paper"', 4)],
)
def test_a_fault_that_names_a_parameter_has_the_line_of_the_table_that_set_it(experiment, top_level, profile, line):
    tables = f"[generator]\n{top_level}\n[profiles.smoke.generator]\n{profile}\n"
    loaded = experiment('extends = "zoo:base.toml"\n' + tables)
    with pytest.raises(UserError, match=rf"^mine.toml:{line}  generator 'unet': dropout = 'paper' needs noise"):
        loaded.generator.build(in_channels=3, out_channels=3, size=(64, 64))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[init]\nweights = "kaiming"\ngain = 0.5', '[init] gain = 0.5: weights = "kaiming" has no gain'),
        ('drop = ["gan_loss"]', "[discriminator] needs a [gan_loss]"),
        ('drop = ["discriminator"]', "[gan_loss] needs a [discriminator]"),
        ('drop = ["discriminator", "gan_loss", "losses.l1"]', "nothing to minimise"),
        ('drop = ["generator"]', "a recipe needs a [generator]"),
        ("seed = -1", "seed = -1: give an integer from 0 to 2**63 - 1"),
        ("seed = true", "seed = true: give an integer from 0 to 2**63 - 1"),
        ('generator = "unet"', "must be a table with `use = \"...\"`, not \"unet\""),
        ("losses = 3", "[losses] must hold tables"),
        ("train = []", "[train] must be a table"),
        ("[losses.l1]\nweight = nan", "weight = nan: give a number of at least 0"),
        ("[losses.l1]\nweight = inf", "weight = inf: give a number of at least 0"),
        ("[optimizer]\nlr = nan", "[optimizer] lr = nan"),
        ("[discriminator]\nreceptive_field = 64", "receptive_field = 64: input should be 16, 34, 70 or 142"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_trained_is_refused(experiment, text, fault):
    with pytest.raises(UserError) as caught:
        experiment(f'extends = "zoo:base.toml"\n{text}\n')
    assert any(fault in line for line in caught.value.faults), caught.value.faults


def test_a_recipe_without_a_title_is_called_by_its_file(experiment):
    mine = experiment('extends = "zoo:base.toml"\n[train]\nimages = 3\n', name="mine")
    assert (mine.title, mine.resolved()["title"]) == ("mine", "mine")
    assert experiment('extends = "zoo:base.toml"\ntitle = "My data"\n').title == "My data"


@pytest.mark.parametrize(
    "same",
    [
        'title = "another title"',
        '[metrics.again]\nuse = "psnr"',
        'drop = ["metrics.ssim"]',
        '[compute]\ndevice = "cpu"\nthreads = 1',
        '[evaluate]\ntest_mode = "eval"',
        '[generator]\nuse = "pix2pix:unet"',
        '[generator]\nnorm = "batch"',
    ],
)
def test_values_that_training_does_not_use_keep_the_run_id(experiment, same):
    changed = experiment(f'extends = "zoo:base.toml"\n{same}\n', name="other")
    assert changed.id == experiment().id


@pytest.mark.parametrize(
    "other",
    [
        "seed = 1",
        "[generator]\nwidth = 9",
        "[losses.l1]\nweight = 99",
        "[train]\nmirror = false",
        "[optimizer]\nlr = 1e-4",
        "[dataset]\nsize = 64",
        '[init]\nweights = "xavier"',
        '[gan_loss]\nuse = "lsgan"',
        '[compute]\nprecision = "bf16"',
    ],
)
def test_values_that_training_uses_change_the_run_id(experiment, other):
    assert experiment(f'extends = "zoo:base.toml"\n{other}\n').id != experiment().id


@pytest.mark.parametrize("default", ["train.order=pytorch", "train.crop_from=0", "gan_loss.log_eps=0.0"])
def test_a_parameter_that_was_added_later_keeps_the_run_id_at_its_default(experiment, default):
    assert experiment(overrides=[default]).id == experiment().id
    assert default.partition(".")[2].partition("=")[0] not in str(experiment().identity())


@pytest.mark.parametrize(
    "other",
    [
        "train.order=lua", "train.crop_from=1", "train.replacement=true", "train.zero_biases=true",
        "train.jitter_kernel=area", "optimizer.eps_before_correction=true", "optimizer.schedule=linear-epochs",
        "gan_loss.log_eps=1e-12",
    ],
)  # fmt: skip
def test_a_parameter_that_was_added_later_changes_the_run_id_at_another_value(experiment, other):
    assert experiment(overrides=[other]).id != experiment().id


@pytest.mark.parametrize(
    ("name", "id"),
    [("ablation_patch70", "bdf0268cdb"), ("ablation_l1", "b9986852d1"), ("ablation_encdec_l1_cgan", "d980880f1a")],
)
def test_run_ids_of_earlier_versions_stay_the_same(name, id):
    """The run folders of users have these ids: new parameters must keep them (see AddedLater)."""
    assert config.load(f"zoo:{name}.toml", "laptop").id == id


def test_initial_weights_change_the_run_id_by_content_not_by_file_name(experiment, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "c").write_bytes(b"2")
    ids = [experiment(overrides=[f"init.generator={name}"]).id for name in "abc"]
    assert ids[0] == ids[1] != ids[2]


def test_an_experiment_keeps_the_id_of_the_weights_that_it_began_with(experiment, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"1")
    begun = experiment(overrides=["init.generator=a"])
    before = begun.id
    file.write_bytes(b"2")
    assert begun.id == before != experiment(overrides=["init.generator=a"]).id


def test_two_rows_of_the_paper_with_the_same_experiment_have_the_same_run_id():
    names = ("ablation_l1_cgan", "ablation_patch70")
    assert len({config.load(f"zoo:{name}.toml", "laptop").id for name in names}) == 1


def test_a_resolved_recipe_gives_the_same_run_id(experiment):
    import tomli_w

    original = experiment(overrides=["losses.l1.weight=3", "seed=5"])
    again = experiment(tomli_w.dumps(original.resolved()), profile=None)
    assert again.id == original.id
    assert again.recipe.profile == "smoke"
    assert again.resolved() == original.resolved()


def faults(experiment, *overrides):
    with pytest.raises(UserError) as caught:
        experiment(overrides=overrides)
    return list(caught.value.faults)


NO_DISCRIMINATOR = 'drop=["discriminator", "gan_loss"]'


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([NO_DISCRIMINATOR, "train.d_steps=2"], "d_steps = 2: this recipe has no discriminator; remove d_steps"),
        ([NO_DISCRIMINATOR, "train.spectral_norm=both"], 'spectral_norm = "both": this recipe has no discriminator'),
        (
            [NO_DISCRIMINATOR, "optimizer.lr_discriminator=1e-4"],
            "lr_discriminator = 0.0001: this recipe has no discriminator",
        ),
        (
            [NO_DISCRIMINATOR, "train.pool_size=50"],
            "pool_size = 50: this recipe has no discriminator; remove pool_size",
        ),
        (["train.batch_size=4", "train.accumulate=3"], "accumulate = 3: batch_size = 4 is not a multiple of it"),
        (["train.order=lua", "train.d_steps=2"], 'd_steps = 2: order = "lua" takes one step of D and one of G'),
        (["train.order=lua", "train.batch_size=2", "train.accumulate=2"], 'accumulate = 2: order = "lua" takes one'),
        (["train.zero_biases=true", "train.batch_size=2", "train.accumulate=2"], "zero_biases = true changes G"),
        (["optimizer.schedule_power=2.0"], 'schedule_power = 2.0: schedule = "constant" does not use it'),
        (["train.order=lua", "compute.checkpointing=true"], 'checkpointing = true: [train] order = "lua" changes'),
        (["train.order=lua", "train.spectral_norm=both"], 'spectral_norm = "both": order = "lua" needs'),
        (["compute.kernels=none.json"], '[compute] kernels = "none.json": no such file'),
        (["optimizer.use=Adan"], "no optimizer of torch.optim: did you mean 'Adam'?"),
        (["optimizer.use=SGD", "optimizer.betas=[0.5, 0.9]"], "has no parameter 'betas'"),
        (["optimizer.use=SGD", "optimizer.eps_before_correction=true"], "has no parameter 'eps_before_correction'"),
        (["optimizer.use=SGD", "optimizer.momentum=-1"], "Invalid momentum value: -1"),
        (["optimizer.use=LBFGS"], "closure"),
        (["optimizer.options=[]"], "has no parameter 'options'"),
        (["evaluate.at=5"], "at = 5: give an array, [int ≥ 1, ...], such as [5]"),
        (['losses={""={use="l1"}}'], 'losses."": give a name, without @'),
        (['metrics={"l1@4"={use="ssim"}}'], 'metrics."l1@4": give a name, without @'),
        (['metrics={"a\\nb"={use="l1"}}'], 'metrics."a\\nb": give a name'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_exclude_each_other_give_one_fault_with_its_place(experiment, overrides, message):
    [fault] = faults(experiment, *overrides)
    assert message in fault
    assert fault.startswith((f"-s {overrides[-1]}", f"-s {overrides[0]}"))


def test_initial_weights_of_a_discriminator_need_one(experiment, tmp_path):
    (tmp_path / "d.safetensors").write_bytes(b"")
    [fault] = faults(experiment, NO_DISCRIMINATOR, "init.discriminator=d.safetensors")
    assert fault.startswith("-s init.discriminator=d.safetensors  [init] discriminator = ")
    assert fault.endswith('"d.safetensors": this recipe has no discriminator; remove discriminator')


AT_DEFAULT = (
    "train.spectral_norm=none", "train.d_steps=1", "train.accumulate=1", "optimizer.use=Adam",
    "optimizer.schedule_gamma=0.1", "optimizer.schedule_power=1.0",
)  # fmt: skip
CHANGED = (
    "train.spectral_norm=both", "train.d_steps=2", "train.accumulate=2", "optimizer.use=AdamW",
    "optimizer.lr_discriminator=2e-4", "optimizer.clip_norm=1.0", "optimizer.weight_decay=0.1",
    "optimizer.schedule=cosine",
)  # fmt: skip


def test_settings_that_were_added_later_change_the_run_id_only_at_other_values(experiment):
    base = experiment(overrides=["train.batch_size=2"]).id
    assert experiment(overrides=["train.batch_size=2", *AT_DEFAULT]).id == base
    ids = [experiment(overrides=["train.batch_size=2", override]).id for override in CHANGED]
    assert len({base, *ids}) == 1 + len(CHANGED)


@pytest.mark.parametrize("use", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_a_resolved_recipe_with_another_optimizer_gives_the_same_experiment(experiment, use):
    import tomli_w

    original = experiment(overrides=[f"optimizer.use={use}", "optimizer.weight_decay=0.1", "optimizer.clip_norm=2.0"])
    resolved = original.resolved()
    assert resolved["optimizer"]["weight_decay"] == 0.1
    assert ("betas" in resolved["optimizer"]) is (use in ("Adam", "AdamW"))
    again = experiment(tomli_w.dumps(resolved), None, name="again")
    assert (again.id, again.optimizer) == (original.id, original.optimizer)


def test_a_new_optimizer_drops_the_parameters_of_the_old_one_and_keeps_the_learning_rates(experiment):
    base = experiment(
        'extends = "zoo:base.toml"\n[optimizer]\nlr = 1e-3\neps = 1e-4\nlr_discriminator = 2e-3\n', name="a"
    )
    text = 'extends = "a.toml"\n[optimizer]\nuse = "RMSprop"\nalpha = 0.9\n'
    other = experiment(text, name="b").optimizer
    assert (base.optimizer.eps, other.lr, other.lr_discriminator) == (1e-4, 1e-3, 2e-3)
    assert other.arguments == {"alpha": 0.9}
    assert experiment(overrides=["optimizer.use=NAdam"]).optimizer.arguments == {"betas": (0.5, 0.999)}
    same = experiment('extends = "a.toml"\n[optimizer]\nuse = "Adam"\n', name="c").optimizer
    assert same == base.optimizer


def test_the_optimizer_keys_are_all_that_no_class_has():
    from p2pzoo.config.recipe import OPTIMIZER_KEYS
    from p2pzoo.config.settings import ADAM_KEYS, Optimizer
    from p2pzoo.plugin.schema import get_params

    assert {*OPTIMIZER_KEYS} == get_params(Optimizer).keys() - {"options", *ADAM_KEYS}


# --- a name that another plugin registers too ---

CLASH = """
import p2pzoo

@p2pzoo.hookimpl
def register_generators(register):
    register("unet", dict)

@p2pzoo.hookimpl
def register_discriminators(register):
    register("patch", dict)

@p2pzoo.hookimpl
def register_losses(register):
    register("l1", dict)

@p2pzoo.hookimpl
def register_gan_losses(register):
    register("vanilla", dict)

@p2pzoo.hookimpl
def register_datasets(register):
    register("earth", dict)

@p2pzoo.hookimpl
def register_metrics(register):
    for name in ("l1", "psnr", "ssim", "fcn_score", "kid_efficientnet_lite0"):
        register(name, dict)
"""


def test_another_plugin_with_the_same_names_changes_no_shipped_recipe(install):
    before = {path.name: config.load(str(path), "smoke").id for path in shipped_dir("recipes").glob("*.toml")}
    install("clash", CLASH)
    assert {path.name: config.load(str(path), "smoke").id for path in shipped_dir("recipes").glob("*.toml")} == before
    assert config.load("zoo:base.toml", "smoke").generator.entry.full_name == "pix2pix:unet"


def test_what_a_shipped_recipe_names_stays_its_own_in_a_recipe_that_extends_it(install, experiment):
    install("clash", CLASH)
    made = experiment('extends = "zoo:base.toml"\n[generator]\nwidth = 8\n')
    assert made.generator.entry.full_name == "pix2pix:unet"
    with pytest.raises(UserError, match=r"mine.toml:3  .*registered by several plugins, 'clash:unet'"):
        experiment('extends = "zoo:base.toml"\n[generator]\nuse = "unet"\n')
    with pytest.raises(UserError, match="registered by several plugins"):
        experiment(overrides=["losses.l1.use=l1"])


def test_the_tables_that_ship_name_their_metrics_with_the_plugin():
    for file in shipped_dir("benchmarks").glob("*.toml"):
        for name, metric in tomllib.loads(file.read_text("utf-8")).get("metrics", {}).items():
            assert ":" in metric["use"], f"{file.name}: {name}"


def test_a_recipe_in_the_package_of_a_plugin_means_its_own_components(install, tmp_path):
    install("clash", CLASH)
    package = tmp_path / "site" / "clashing"
    package.mkdir()
    source = CLASH.replace("dict", '"clashing.networks:Net"')
    (package / "networks.py").write_text("from p2pzoo_pix2pix.generators import UNet as Net\n")
    (package / "__init__.py").write_text(source)
    info = tmp_path / "site" / "clashing-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clashing\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[p2pzoo]\nclashing = clashing\n")
    (package / "mine.toml").write_text('extends = "zoo:base.toml"\n[generator]\nuse = "unet"\n')
    loader.plugins.cache_clear()
    loader.registry.cache_clear()
    assert config.load(str(package / "mine.toml"), "smoke").generator.entry.full_name == "clashing:unet"


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("losses.l1.wieght=50", "[losses.l1] has no parameter 'wieght': did you mean 'weight'?"),
        ("batch_size=4", "no table or key 'batch_size': did you mean 'train.batch_size'?"),
        ("lr=1e-4", "no table or key 'lr': did you mean 'optimizer.lr'?"),
        ("train.n_epochs=10", "[train] has no parameter 'n_epochs': set epochs"),
        ("train.lr=1", "[train] has no parameter 'lr': set optimizer.lr"),
        ("generator.usee=unet", "[generator] has no parameter 'usee': did you mean 'use'?"),
        ("metrics.psnr.wieght=5", "[metrics.psnr] has no parameter 'wieght': it takes none"),
    ],
)
def test_other_words_for_a_setting_get_its_name(override, advice):
    with pytest.raises(UserError) as caught:
        config.load("zoo:base.toml", "smoke", [override])
    assert any(advice in fault for fault in caught.value.faults), caught.value.faults
