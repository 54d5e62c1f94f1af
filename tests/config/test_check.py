"""A recipe held against the registry: all faults at once; what enters a run's identity and what does not."""

import pytest

from p2pzoo import config
from p2pzoo.utils.errors import UserError


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """experiment(text, profile, overrides): what a recipe file of this text is checked to."""
    monkeypatch.chdir(tmp_path)

    def make(text='extends = "zoo:base.toml"', profile="smoke", overrides=(), name="mine"):
        (tmp_path / f"{name}.toml").write_text(text)
        return config.load(f"{name}.toml", profile, overrides)

    return make


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


def test_every_fault_is_told_at_once_with_its_line_and_the_nearest_name(experiment):
    with pytest.raises(UserError) as caught:
        experiment(WRONG)
    assert sorted(caught.value.faults, key=lambda fault: int(fault.split(":")[1].split()[0])) == [
        "mine.toml:3  [generator] has no parameter 'widht': did you mean 'width'?",
        "mine.toml:4  [generator] norm = \"layer\": input should be 'batch', 'instance' or 'none'",
        "mine.toml:6  [discriminator] use = \"pach\": no discriminator 'pach': did you mean 'patch'?",
        "mine.toml:8  [losses.l1] weight = -3: give a number from 0 on",
        'mine.toml:9  [losses.extra] names no component: add `use = "NAME"` (`p2pzoo list` shows them)',
        "mine.toml:12  [optimizer] lr = 0: input should be greater than 0",
        'mine.toml:14  [train] images = "many": input should be a valid integer',
        "mine.toml:16  [metrics.l1] has no weight: only losses have one",
        "mine.toml:18  [dataset] size = 100: input should be 64, 128 or 256",
        'mine.toml:20  [init] generator = "nowhere.safetensors": no such file',
        "mine.toml:22  [evaluate] test_mode = \"train\": input should be 'paper' or 'eval'",
    ]


def test_faults_of_folding_and_of_components_are_told_together(experiment):
    with pytest.raises(UserError) as caught:
        experiment(
            'extends = "zoo:base.toml"\ndrop = ["losses.l9"]\n[generator]\nuse = "vnet"\n[profiles.smoke.traim]\n',
            overrides=["lozzes.l1.weight=1", "optimizer.lr=-1"],
        )
    lines = "\n".join(caught.value.faults)
    unknown = ["no table or key 'traim'", "there is no 'losses.l9'", "no table or key 'lozzes'"]
    for part in [*unknown, "no generator 'vnet'", "lr = -1"]:
        assert part in lines


def test_what_a_constructor_refuses_is_told_with_its_line(experiment):
    made = experiment('extends = "zoo:base.toml"\n[generator]\nnoise = "none"\ndropout = "paper"\n')
    with pytest.raises(UserError, match=r"^mine.toml:2  generator 'unet': dropout = 'paper' needs noise = 'dropout'"):
        made.generator.build(in_channels=3, out_channels=3, size=(64, 64))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[init]\nweights = "kaiming"\ngain = 0.5', '[init] gain = 0.5: weights = "kaiming" has none'),
        ('drop = ["gan_loss"]', "[discriminator] has no [gan_loss] to play by"),
        ('drop = ["discriminator"]', "[gan_loss] has no [discriminator] to play with"),
        ('drop = ["discriminator", "gan_loss", "losses.l1"]', "nothing to minimise"),
        ('drop = ["generator"]', "a recipe needs a [generator]"),
        ("seed = -1", "seed = -1: give an integer from 0 on"),
        ("seed = true", "seed = true: give an integer from 0 on"),
        ('generator = "unet"', "must be a table with `use = \"...\"`, not \"unet\""),
        ("losses = 3", "[losses] must hold tables"),
        ("train = []", "[train] must be a table"),
        ("[losses.l1]\nweight = nan", "weight = nan: give a number from 0 on"),
        ("[losses.l1]\nweight = inf", "weight = inf: give a number from 0 on"),
        ("[optimizer]\nlr = nan", "[optimizer] lr = nan"),
        ("[discriminator]\nreceptive_field = 64", "receptive_field = 64: input should be 16, 34, 70 or 142"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(experiment, text, fault):
    with pytest.raises(UserError) as caught:
        experiment(f'extends = "zoo:base.toml"\n{text}\n')
    assert any(fault in line for line in caught.value.faults), caught.value.faults


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
def test_what_training_does_not_depend_on_is_not_part_of_the_identity(experiment, same):
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
def test_what_training_depends_on_is(experiment, other):
    assert experiment(f'extends = "zoo:base.toml"\n{other}\n').id != experiment().id


@pytest.mark.parametrize("default", ["train.order=pytorch", "train.crop_from=0", "gan_loss.log_eps=0.0"])
def test_a_parameter_that_came_later_is_not_part_of_it_at_its_default(experiment, default):
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
def test_at_another_value_it_is(experiment, other):
    assert experiment(overrides=[other]).id != experiment().id


@pytest.mark.parametrize(
    ("name", "id"),
    [("ablation_patch70", "bdf0268cdb"), ("ablation_l1", "b9986852d1"), ("ablation_encdec_l1_cgan", "d980880f1a")],
)
def test_runs_of_earlier_versions_are_still_found(name, id):
    """Their ids are in people's folders: what comes later has to keep them (see contracts.Later)."""
    assert config.load(f"zoo:{name}.toml", "laptop").id == id


def test_the_weights_a_run_starts_from_count_by_content_not_by_name(experiment, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "c").write_bytes(b"2")
    ids = [experiment(overrides=[f"init.generator={name}"]).id for name in "abc"]
    assert ids[0] == ids[1] != ids[2]


def test_two_rows_of_the_paper_that_are_one_experiment_share_their_identity():
    names = ("ablation_l1_cgan", "ablation_patch70")
    assert len({config.load(f"zoo:{name}.toml", "laptop").id for name in names}) == 1


def test_a_resolved_recipe_is_a_recipe_for_the_same_run(experiment):
    import tomli_w

    made = experiment(overrides=["losses.l1.weight=3", "seed=5"])
    again = experiment(tomli_w.dumps(made.resolved()), profile=None)
    assert again.id == made.id
    assert again.recipe.profile == "smoke"
    assert again.resolved() == made.resolved()


def faults(experiment, *overrides):
    with pytest.raises(UserError) as caught:
        experiment(overrides=overrides)
    return list(caught.value.faults)


NONE = 'drop=["discriminator", "gan_loss"]'


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([NONE, "train.d_steps=2"], "d_steps = 2: this recipe has no discriminator"),
        ([NONE, "train.spectral_norm=both"], 'spectral_norm = "both": this recipe has no discriminator'),
        ([NONE, "optimizer.lr_discriminator=1e-4"], "lr_discriminator = 0.0001: this recipe has no discriminator"),
        (["train.batch_size=4", "train.accumulate=3"], "accumulate = 3: batch_size = 4 has no such number of equal"),
        (["train.order=lua", "train.d_steps=2"], 'd_steps = 2: order = "lua" is one move of each side'),
        (["train.order=lua", "train.batch_size=2", "train.accumulate=2"], 'accumulate = 2: order = "lua" is one move'),
        (["train.zero_biases=true", "train.batch_size=2", "train.accumulate=2"], "zero_biases = true changes G"),
        (["optimizer.schedule_power=2.0"], 'schedule_power = 2.0: schedule = "constant" has none'),
        (["optimizer.use=Adan"], "no optimizer of torch.optim: did you mean 'Adam'?"),
        (["optimizer.use=SGD", "optimizer.betas=[0.5, 0.9]"], "has no parameter 'betas'"),
        (["optimizer.use=SGD", "optimizer.eps_before_correction=true"], "has no parameter 'eps_before_correction'"),
        (["optimizer.use=SGD", "optimizer.momentum=-1"], "Invalid momentum value: -1"),
        (["optimizer.use=LBFGS"], "closure"),
        (["optimizer.options=[]"], "has no parameter 'options'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_combined_are_refused_in_one_line_at_their_place(experiment, overrides, told):
    [fault] = faults(experiment, *overrides)
    assert told in fault
    assert fault.startswith((f"-s {overrides[-1]}", f"-s {overrides[0]}"))


LATER = (
    "train.spectral_norm=none", "train.d_steps=1", "train.accumulate=1", "optimizer.use=Adam",
    "optimizer.schedule_gamma=0.1", "optimizer.schedule_power=1.0",
)  # fmt: skip
CHANGED = (
    "train.spectral_norm=both", "train.d_steps=2", "train.accumulate=2", "optimizer.use=AdamW",
    "optimizer.lr_discriminator=2e-4", "optimizer.clip_norm=1.0", "optimizer.weight_decay=0.1",
    "optimizer.schedule=cosine",
)  # fmt: skip


def test_later_options_are_of_a_runs_identity_only_where_they_say_something(experiment):
    base = experiment(overrides=["train.batch_size=2"]).id
    assert experiment(overrides=["train.batch_size=2", *LATER]).id == base
    ids = [experiment(overrides=["train.batch_size=2", override]).id for override in CHANGED]
    assert len({base, *ids}) == 1 + len(CHANGED)


@pytest.mark.parametrize("use", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_a_resolved_recipe_with_another_optimizer_is_the_same_experiment_again(experiment, use):
    import tomli_w

    made = experiment(overrides=[f"optimizer.use={use}", "optimizer.weight_decay=0.1", "optimizer.clip_norm=2.0"])
    resolved = made.resolved()
    assert resolved["optimizer"]["weight_decay"] == 0.1
    assert ("betas" in resolved["optimizer"]) is (use in ("Adam", "AdamW"))
    again = experiment(tomli_w.dumps(resolved), None, name="again")
    assert (again.id, again.optimizer) == (made.id, made.optimizer)


def test_where_the_optimizer_changes_its_own_parameters_go_and_the_rates_stay(experiment):
    made = experiment(
        'extends = "zoo:base.toml"\n[optimizer]\nlr = 1e-3\neps = 1e-4\nlr_discriminator = 2e-3\n', name="a"
    )
    text = 'extends = "a.toml"\n[optimizer]\nuse = "RMSprop"\nalpha = 0.9\n'
    other = experiment(text, name="b").optimizer
    assert (made.optimizer.eps, other.lr, other.lr_discriminator) == (1e-4, 1e-3, 2e-3)
    assert other.arguments == {"alpha": 0.9}
    assert experiment(overrides=["optimizer.use=NAdam"]).optimizer.arguments == {"betas": (0.5, 0.999)}
    same = experiment('extends = "a.toml"\n[optimizer]\nuse = "Adam"\n', name="c").optimizer
    assert same == made.optimizer


def test_the_keys_that_stay_are_all_that_are_not_of_a_class():
    from p2pzoo.config.recipe import OPTIMIZERS_OWN
    from p2pzoo.config.settings import ADAMS_OWN, Optimizer
    from p2pzoo.plugin.schema import params_of

    assert {*OPTIMIZERS_OWN} == params_of(Optimizer).keys() - {"options", *ADAMS_OWN}
