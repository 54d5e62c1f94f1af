"""Write the paper's perceptual study (§4.1, Tables 4 and 5) as a static page: which of two images is fake?

Real and fake are shown for 1 s each, then people answer without a time limit; 10 practice trials with feedback, then 40
without; one algorithm per session. `analysis.py` reads the sessions that participants save.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from p2pzoo import config
from p2pzoo.config.experiment import Experiment
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import to_uint8_rgb
from p2pzoo.models.load import load_model
from p2pzoo.models.translator import Translator
from p2pzoo.plugin import Batch
from p2pzoo.plugin.registry import Registry
from p2pzoo.runs.pages import render_page
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import check_page_folder, copy_file, page_folder, write_text

PRACTICE, TRIALS, DISPLAY_MS = 10, 40, 1000  # as in the paper (§4.1)
SIDE = 256  # pixels on the screen of an image's longer side (§4.1)
MAX_TEST_IMAGES = 200  # twice what a session shows; more would only make the page larger


def write_study(
    out: Path,
    title: str,
    runs: Mapping[str, Path],
    registry: Registry,
    *,
    same_input: bool = False,
    display_ms: int = DISPLAY_MS,
) -> int:
    """Write the page for these runs, {label: folder}. Returns how many test images each has (the smallest number).

    The fakes are the translations that [evaluate] of each run names: those that its numbers measure.

    same_input  show real and fake of the same x, as the paper does for colorization; else of two, as for maps

    Raises UserError for an unfinished run, for too few test images, and if `out` contains other files.
    """
    check_page_folder(out, "study.js")
    experiments = {label: _load_experiment(folder, registry) for label, folder in runs.items()}
    with page_folder(out) as unfinished:
        pairs = _write_files(unfinished, title, runs, experiments, same_input, display_ms)
    used = {Path(pair[kind]).name for own in pairs.values() for pair in own for kind in ("real", "fake")}
    for file in (out / "images").glob("*.png"):
        if file.name not in used:  # of an older study
            file.unlink()
    return min(map(len, pairs.values()))


def _write_files(
    out: Path,
    title: str,
    runs: Mapping[str, Path],
    experiments: Mapping[str, Experiment],
    same_input: bool,
    display_ms: int,
) -> dict[str, list[dict[str, str]]]:
    """Write the page to an empty folder. Returns its pairs of images by label."""
    (out / "images").mkdir()
    pairs = {label: _write_pairs(out, runs[label], experiment) for label, experiment in experiments.items()}
    protocol = {"display_ms": display_ms, "practice": PRACTICE, "trials": TRIALS, "side": SIDE,
                "pairing": "same input" if same_input else "different inputs"}  # fmt: skip
    seen = {label: experiment.translations.protocol() for label, experiment in experiments.items()}
    images = [[label, seen[label], [[pair["real"], pair["fake"]] for pair in own]] for label, own in pairs.items()]
    study = hashlib.sha256(json.dumps([protocol, images]).encode()).hexdigest()[:12]
    algorithms = [{"label": label, "translations": seen[label], "pairs": own} for label, own in pairs.items()]
    document = {"study": study, "protocol": protocol, "algorithms": algorithms}
    page = render_page(Path(__file__).with_name("study.html"), title=title, document=document, protocol=protocol)
    copy_file(Path(__file__).with_name("study.js"), out / "study.js")
    write_text(out / "index.html", page)
    return pairs


def _write_pairs(out: Path, folder: Path, experiment: Experiment) -> list[dict[str, str]]:
    """Translate the test images of a run and write real and fake. Returns their ids and addresses."""
    store = Store(experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute)
    if len(store) < PRACTICE + TRIALS:
        raise UserError(
            f"{folder}: a session needs {PRACTICE + TRIALS} test images, and its data has {len(store)}: use a run "
            "with more test images"
        )
    pairs = []
    for batch, y_hat in _translate(folder, store, experiment.translations):
        _, real, fake = Encodings.of(store.dataset).to_rgb(batch.x, batch.y, y_hat)
        pairs.append({"id": batch.ids[0], "real": _write_image(out, real[0]), "fake": _write_image(out, fake[0])})
    return pairs


def _translate(folder: Path, store: Store, translations: Translations) -> Iterator[tuple[Batch, Tensor]]:
    """The test images that are shown, one to a batch, and their ŷ, as the evaluation of the run made them."""
    model = load_model(folder, device="cpu", weights=translations.weights, at_use=translations.at_use)
    translate_x = Translator(model.G, translations, model.size_divisor)
    every, together = -(-len(store) // MAX_TEST_IMAGES), translations.test_batch
    for start in range(0, len(store), together):
        indices = range(start, min(start + together, len(store)))  # those that the evaluation translates together
        if any(index % every == 0 for index in indices):
            batches = [*single_batches(store, indices)]
            [y_hats] = translate_x(torch.cat([batch.x for batch in batches]))
            yield from (
                (batch, y_hat)
                for index, batch, y_hat in zip(indices, batches, y_hats.split(1), strict=True)
                if index % every == 0
            )


def parse_runs(arguments: Sequence[str]) -> dict[str, Path]:
    """{label: folder} of RUN or LABEL=RUN; without a label, it is the recipe's name.

    Raises UserError if two runs have the same label.

    >>> parse_runs(["l1=runs/ablation_l1/gpu-seed0-0123456789"])
    {'l1': PosixPath('runs/ablation_l1/gpu-seed0-0123456789')}
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        label, equals, path = argument.rpartition("=")
        folder = Path(argument) if Path(argument).is_dir() or not equals else Path(path)
        if not equals or folder == Path(argument):
            label = folder.resolve().parent.name
        if not label or label in folders:
            raise UserError(f"{argument}: two algorithms have the label '{label}': write LABEL=RUN")
        folders[label] = folder
    return folders


def _load_experiment(folder: Path, registry: Registry) -> Experiment:
    missing = [name for name in ("recipe.toml", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: not a finished run (it lacks {' and '.join(missing)})")
    return config.load(str(folder / "recipe.toml"), registry=registry)


def _write_image(out: Path, image: Tensor) -> str:
    """Write a PNG, at most SIDE px large. Its name is a hash of its content: it does not reveal which image is fake."""
    picture = Image.fromarray(to_uint8_rgb(image))
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    name = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16] + ".png"
    picture.save(out / "images" / name)
    return f"images/{name}"
