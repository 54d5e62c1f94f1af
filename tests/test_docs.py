"""What the READMEs say is what the code does."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from p2pzoo import config, plugin
from p2pzoo.cli import main
from p2pzoo.config.recipe import read_recipe
from p2pzoo.plugin.loader import plugins, registry
from p2pzoo.plugin.registry import KINDS
from p2pzoo.testing import CHECKS
from p2pzoo.utils.paths import shipped_dir

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


PAGES = [
    page
    for page in (*ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md"))
    if not page.parent.name.startswith(".")  # pytest's cache
]


FOLDERS = ("p2pzoo", "plugins", "recipes", "benchmarks", "tests")
ALL_PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]


def test_the_two_commands_are_the_whole_set_up():
    assert "pip install -e . && p2pzoo run recipes/ablation_patch70.toml" in README.splitlines()
    assert "pip install -e '.[dev]' && pytest -n auto" in README.splitlines()


def test_the_front_page_is_short_enough_to_finish():
    assert len(README.splitlines()) < 220


LISTED = re.findall(r"^\| `p2pzoo ([^`]*)` \|", README, re.MULTILINE)
PLACEHOLDER = re.compile(r"[A-Z_]{3,}")


@pytest.mark.parametrize("command", LISTED)
def test_every_command_in_the_readmes_table_works(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)
    assert main.get_command(None, name)
    if any(PLACEHOLDER.search(argument) for argument in arguments[:1]):
        arguments = ["--help"]  # it needs runs, or files of the reader's
    arguments = [str(tmp_path / argument) if PLACEHOLDER.fullmatch(argument) else argument for argument in arguments]
    if name == "run":
        few = ["train.images=2", "train.sample_every=2", "train.checkpoint_every=2", "dataset.stride=256"]
        arguments += ["--profile", "smoke", "--runs", str(tmp_path), *(a for override in few for a in ("-s", override))]
    if name == "evaluate":
        arguments += ["--metric", "l1", "-s", "dataset.stride=256"]  # few images, and no network that scores them
    if name == "new-plugin":
        arguments += ["-o", str(tmp_path / "plugin")]
    if name == "export":
        arguments = ["--help"]  # fetches a runtime; tests/plugins/p2pzoo_export has it
    if name == "check-plugin":  # tests/plugins/test_conformance.py runs all checks
        few = ("imports", "range", "logits", "gradients", "scalar")
        for kind, checks in CHECKS.items():
            monkeypatch.setitem(CHECKS, kind, {check: checks[check] for check in few if check in checks})
    result = CliRunner().invoke(main, [name, *arguments])
    assert result.exit_code == 0, result.output


def test_the_readme_lists_every_command():
    assert {command.split()[0] for command in LISTED} == set(main.list_commands(None))


def is_written(value, unit, prose):
    """Whether a text has this number with its unit, as in "72 or 57 ms", rounded to as many digits as it shows."""
    found = re.findall(rf"((?:\d[\d.]* or )?\d[\d.]*) {unit}\b", prose)
    numbers = [number for group in found for number in group.split(" or ")]
    return any(f"{value:.{len(number.partition('.')[2])}f}" == number for number in numbers)


def test_the_numbers_of_the_front_pages_sentences_are_those_of_the_results():
    prose = " ".join(re.sub(r"<!-- table.*?<!-- end -->", "", README, flags=re.DOTALL).split())
    results = ROOT / "benchmarks" / "results"
    numbers = []
    for precision in ("fp32", "bf16"):
        laptop, full = (
            json.loads((results / "speed" / f"train_step-{step}-1-{precision}.json").read_text("utf-8"))["milliseconds"]
            for step in ("128-32", "256-64")
        )
        numbers += [(laptop["ours"], "ms"), (7_000 * laptop["ours"] / 60_000, "minutes"),
                    (full["ours"] / 1000, "s"), (80_000 * full["ours"] / 3_600_000, "hours")]  # fmt: skip
    without_a_place = [f"{value:.3g} {unit}" for value, unit in numbers if not is_written(value, unit, prose)]
    [best] = [
        row for row in json.loads((results / "best-laptop.json").read_text("utf-8"))["rows"] if row["name"] == "best"
    ]
    kid = best["cells"]["kid_efficientnet_lite0.paired"]["difference"]["blocks"]
    intervals = [{*found} for found in re.findall(r"(\d\.\d+) \[[+−]?(\d\.\d+), [+−]?(\d\.\d+)\]", prose)]
    if (interval := {f"{abs(kid[end]):.3f}" for end in ("value", "low", "high")}) not in intervals:
        without_a_place.append(f"KID of modern/best: {sorted(interval)}")
    assert without_a_place == [], "README.md does not say these: correct it, or drop them here if it no longer should"


def test_what_the_page_says_of_the_encoder_decoder_is_in_the_claims():
    prose = " ".join((ROOT / "benchmarks" / "README.md").read_text("utf-8").split())
    words = "the encoder-decoder gains by the cGAN in all four numbers of [P6](#the-paper-on-trial); three of the four"
    assert f"{words} intervals leave out 0" in prose
    claims = json.loads((ROOT / "benchmarks" / "results" / "claims.json").read_text("utf-8"))
    [p6] = [claim for claim in claims if claim["id"] == "P6"]
    parts = [part for part in p6["parts"] if part["better"] == "encdec_l1"]
    assert [part["effect"] < 0 for part in parts] == [True] * 4
    assert sum(part["interval"][1] < 0 for part in parts) == 3


def test_a_number_that_was_measured_again_has_no_place():
    text = "a step takes 72 or 57 ms, and 0.58 s"
    assert all(is_written(*number, text) for number in ((71.8, "ms"), (57.3, "ms"), (0.582, "s")))
    assert not any(is_written(*number, text) for number in ((73, "ms"), (0.592, "s"), (57.3, "minutes")))


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    [source] = [code for code in re.findall("```python\n(.*?)```", README, re.DOTALL) if "p2pzoo.load" in code]
    example = "plugins/p2pzoo_earth/earth_small/example.png"
    (tmp_path / example).parent.mkdir(parents=True)
    shutil.copy(ROOT / example, tmp_path / example)
    monkeypatch.chdir(tmp_path)
    small = source.replace('profile="smoke"', 'profile="smoke", overrides=["train.images=2", "dataset.stride=256"]')
    assert small != source
    exec(compile(small, "README.md", "exec"), {})
    assert (tmp_path / "photo.png").exists()


def test_the_cores_map_names_each_room_once():
    page = (ROOT / "p2pzoo" / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(\w+)/\]\(", page, re.MULTILINE)
    assert sorted(listed) == sorted(file.parent.name for file in (ROOT / "p2pzoo").glob("*/__init__.py"))


def test_every_file_named_in_the_cores_map_exists():
    page = (ROOT / "p2pzoo" / "README.md").read_text("utf-8")
    for name in re.findall(r"`(\w+/\w+\.py)`", page):
        assert (ROOT / "p2pzoo" / name).exists(), name


@pytest.mark.parametrize("page", sorted(PAGES), ids=str)
def test_each_folders_readme_has_a_command_to_try(page):
    assert "```sh\n" in page.read_text("utf-8")


def test_texts_use_plain_words():
    """`told` stood for "distinguished", "reported" and "named" in 0.1.0: each has a word of its own."""
    files = [
        file
        for folder in ("p2pzoo", "plugins")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".md", ".html", ".js", ".toml")
    ]
    assert not [str(file) for file in files if re.search(r"\btold\b", file.read_text("utf-8"), re.IGNORECASE)]


def find_commands(text):
    """The words of each `p2pzoo …` in a page, in blocks of shell commands and in code within sentences."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(p2pzoo\s[^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in lines:
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for _, command in itertools.groupby(words, lambda word: {*word} <= {*"();<>|&"}):
            if called := [*itertools.dropwhile(lambda word: word != "p2pzoo", command)]:
                yield [word for word in called if word not in ("…", "...")]


def find_fault(words):
    """What is wrong with the names of subcommands and options in a command, or None. Values are not checked."""
    command, words = main, words[1:]
    while isinstance(command, click.Group):
        words = [*itertools.dropwhile(lambda word: word.startswith("-"), words)]
        if not words or PLACEHOLDER.fullmatch(words[0]):
            return None
        name, *words = words
        command = command.get_command(click.Context(command), name)
        if command is None:
            return f"no command {name}"
    parser = command.make_parser(click.Context(command))
    try:
        parser.parse_args([*words])
    except click.NoSuchOption as error:
        return error.format_message()
    except click.BadOptionUsage:  # a sentence about an option, such as `p2pzoo bench --data`
        parser.parse_args([*words, "VALUE"])
    return None


def test_the_commands_of_all_pages_have_these_names_and_options():
    commands = [(page, words) for page in ALL_PAGES for words in find_commands(page.read_text("utf-8"))]
    assert len(commands) > 200
    faults = [(str(page.relative_to(ROOT)), shlex.join(words), find_fault(words)) for page, words in commands]
    assert [fault for fault in faults if fault[-1]] == []


def test_a_misspelt_command_of_a_page_is_found():
    page = "`p2pzoo calibrate RUN\n--levle 0.8`, `p2pzoo bench --data`\n```sh\ncd x && p2pzoo serch RECIPE\n```\n"
    command, option, fragment = (find_fault(words) for words in find_commands(page))
    assert command == "no command serch"
    assert "--levle" in option
    assert fragment is None


def find_anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w -]", "", text).replace(" ", "-") for text in texts}


def find_dead_links(page):
    """The links of a page whose file does not exist, or has no such heading."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if ":" not in name and not (target.exists() and (not anchor or anchor in find_anchors(target))):
            yield link


def test_links_lead_somewhere():
    pages = [page for page in (*ALL_PAGES, ROOT / "CHANGELOG.md") if page.name != "card.md"]  # a template
    assert not {str(page.relative_to(ROOT)): dead for page in pages if (dead := [*find_dead_links(page)])}


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("## Its `name` (of 2)\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](there.md#its-name-of-2) [b](#top) [c](http://x#y) [d](gone.md#top) [e](there.md#gone)\n"
    )
    assert [*find_dead_links(page)] == ["gone.md#top", "there.md#gone"]


def test_the_recipes_table_lists_every_row_with_its_title():
    page = (shipped_dir("recipes") / "README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| \[`(\w+)`\]\(\1\.toml\) \| (.*) \|$", page, re.MULTILINE))
    files = sorted(path.stem for path in shipped_dir("recipes").glob("ablation_*.toml"))
    assert listed == {name: read_recipe(f"zoo:{name}.toml", "smoke").values["title"] for name in files}


@pytest.mark.parametrize("folder", ["modern", "tasks", "reference"])
def test_the_other_tables_list_every_recipe_of_a_folder_with_its_title(folder):
    page = (shipped_dir("recipes") / "README.md").read_text("utf-8")
    listed = dict(re.findall(rf"^\| \[`{folder}/(\w+)`\]\({folder}/\1\.toml\) \| (.*) \|$", page, re.MULTILINE))
    files = sorted(path.stem for path in shipped_dir("recipes").glob(f"{folder}/*.toml"))
    assert listed == {name: read_recipe(f"zoo:{folder}/{name}.toml", "smoke").values["title"] for name in files}


def test_the_table_of_other_fields_lists_every_folder_of_tasks():
    page = (shipped_dir("recipes") / "README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| \[`(tasks/\w+/\w+)`\]\(tasks/\w+/README\.md\) \| (.*) \|$", page, re.MULTILINE))
    files = [path.relative_to(shipped_dir("recipes")) for path in shipped_dir("recipes").glob("tasks/*/*.toml")]
    names = sorted(path.with_suffix("").as_posix() for path in files)
    assert listed == {name: read_recipe(f"zoo:{name}.toml", "smoke").values["title"] for name in names}


def test_the_profiles_table_says_what_the_profiles_do():
    page = (shipped_dir("recipes") / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+), (\d+) px \| (\d+) \| ([\d,]+):", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["smoke", "laptop", "gpu", "paper"]
    for profile, data, size, width, images in rows:
        experiment = config.load("zoo:base.toml", profile)
        assert experiment.dataset.entry.name == data.lower()
        assert experiment.dataset.values["size"] == int(size)
        assert experiment.generator.values["width"] == int(width)
        assert experiment.train.images == int(images.replace(",", ""))


def test_the_plugins_table_lists_every_component():
    page = (ROOT / "plugins" / "README.md").read_text("utf-8")
    for each in plugins():
        [row] = [line for line in page.splitlines() if line.startswith(f"| [{each.module}]")]
        assert set(re.findall("`([^`]+)`", row)) == {entry.name for entry in each.entries}


def test_the_readmes_example_plugin_works(tmp_path, install, monkeypatch):
    page = (ROOT / "plugins" / "README.md").read_text("utf-8")
    hook, model, *_ = re.findall("```python\n(.*?)```", page, re.DOTALL)
    install("my_zoo", hook.replace("my_zoo.model", "my_zoo_model"))
    (tmp_path / "site" / "my_zoo_model.py").write_text(model)
    (tmp_path / "mine.toml").write_text('extends = "zoo:base.toml"\n[generator]\nuse = "shallow"\nwidth = 4\n')
    monkeypatch.chdir(tmp_path)
    small = ["-s", "dataset.stride=256", "-s", "train.images=2", "-s", "discriminator.width=4"]
    result = CliRunner().invoke(main, ["run", "mine.toml", "--profile", "smoke", "--json", *small])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recipe"] == "mine"


def test_every_kind_of_component_has_an_interface_for_plugin_authors():
    for kind in KINDS:
        name = "PretrainedModel" if kind == "model" else kind.title().replace("_", "")
        assert hasattr(plugin, name), kind


def results_in_the_readme():
    return [ROOT / folder for folder in re.findall(r"benchmarks/results/[\w.-]+", README)]


def test_the_numbers_in_the_readme_come_from_a_committed_run():
    [folder] = set(results_in_the_readme())
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert (folder / "env.json").exists()
    [heading] = re.findall(r"^\| test split \| (.*) \|$", README, re.MULTILINE)
    [numbers] = re.findall(r"^\| \| ([-\d. |]+) \|$", README, re.MULTILINE)
    listed = dict(zip(heading.split(" | "), numbers.split(" | "), strict=True))
    experiment = config.load("zoo:ablation_patch70.toml", "laptop")
    own = {n: number for n, number in results["metrics"].items() if n.partition(".")[0] in experiment.metrics}
    assert listed == {name: f"{number['value']:.4f}" for name, number in own.items()}
    assert results["id"] == experiment.id, "the recipe has changed since: run it again"


def test_the_readmes_table_of_ones_own_data_can_be_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "plugins" / "p2pzoo_bench" / "README.md").read_text("utf-8")
    blocks = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    [method] = [block for block in blocks if block.startswith("# mine_best.toml")]
    [table] = [block for block in blocks if block.startswith("# table.toml;")]
    (tmp_path / "data.toml").write_text('[dataset]\nuse = "earth"\nstride = 256\n')
    (tmp_path / "mine_best.toml").write_text(method)
    (tmp_path / "mine_l1_cgan.toml").write_text(method.replace("modern/best.toml", "ablation_l1_cgan.toml"))
    (tmp_path / "table.toml").write_text(table)
    result = CliRunner().invoke(main, ["bench", "table.toml", "--seeds", "3", "--profile", "smoke", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "6 of 6 runs" in result.output


def test_recipes_in_the_readmes_name_components_that_exist():
    known = {name for entry in registry() for name in (entry.name, entry.full_name)}
    used = {
        (page.relative_to(ROOT).as_posix(), name)
        for page in ALL_PAGES
        for block in re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
        for name in re.findall(r'\buse = "([^"]+)"', block)
    }
    assert len(used) > 20
    assert sorted((page, name) for page, name in used if name not in known) == []
