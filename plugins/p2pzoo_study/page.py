"""The perceptual study of the paper (§4.1, Tables 4 and 5) as a static page: people say which of two images is fake.

Real against fake, 1 s each, then as much time as they like; 10 practice trials with feedback, then 40 without; one
algorithm per session. `fooled.py` reads the sessions that the page lets participants save.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from PIL import Image
from torch import Tensor

from p2pzoo import config
from p2pzoo.config.experiment import Experiment
from p2pzoo.data import Store, single_batches
from p2pzoo.images.color_spaces import Encodings
from p2pzoo.images.grid import to_rgb
from p2pzoo.models.model_file import load_model
from p2pzoo.models.test_modes import translate
from p2pzoo.plugin.registry import Registry
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import write_text

PRACTICE, TRIALS, DISPLAY_MS = 10, 40, 1000
SIDE = 256  # px at which images are shown, on their longer side (§4.1)
MOST = 200  # test images of a study


def write_study(
    out: Path,
    title: str,
    runs: Mapping[str, Path],
    registry: Registry,
    *,
    same_input: bool = False,
    display_ms: int = DISPLAY_MS,
) -> int:
    """Write the page for these runs, {label: folder}. Returns how many test images it has of each.

    same_input  real and fake belong to one x, as the paper has it for colorization; else to two, as for maps

    Raises UserError for a run that is not finished, for too few test images, and where `out` holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "study.js").exists())):
        raise UserError(f"{out}: has other files in it; give a new folder, or one with an older study")
    experiments = {label: _experiment(folder, registry) for label, folder in runs.items()}
    algorithms, hashes = [], []
    (out / "images").mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    for label, experiment in experiments.items():
        store = Store(experiment.dataset.build(split=experiment.evaluate.split), compute=experiment.compute)
        if len(store) < PRACTICE + TRIALS:
            told = f"a session takes {PRACTICE + TRIALS} test images, and its data has {len(store)}"
            raise UserError(f"{runs[label]}: {told}")
        G, _ = load_model(runs[label] / "model.safetensors", registry)
        chosen = range(0, len(store), -(-len(store) // MOST))
        pairs = []
        for batch in single_batches(store, chosen):
            y_hat = translate(G, batch.x, experiment.evaluate.test_mode)
            _, real, fake = Encodings.of(store.dataset).to_rgb(batch.x, batch.y, y_hat)
            pair = {"id": batch.ids[0], "real": _save(out, real[0]), "fake": _save(out, fake[0])}
            written |= {Path(pair["real"]).name, Path(pair["fake"]).name}
            pairs.append(pair)
        algorithms.append({"label": label, "pairs": pairs})
        hashes.append([label, [[pair["real"], pair["fake"]] for pair in pairs]])
    protocol = {"display_ms": display_ms, "practice": PRACTICE, "trials": TRIALS, "side": SIDE,
                "pairing": "same input" if same_input else "different inputs"}  # fmt: skip
    study = hashlib.sha256(json.dumps([protocol, hashes]).encode()).hexdigest()[:12]
    document = {"study": study, "protocol": protocol, "algorithms": algorithms}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("study.html").read_text("utf-8"))
    shutil.copyfile(Path(__file__).with_name("study.js"), out / "study.js")
    write_text(out / "index.html", template.render(title=title, document=document, protocol=protocol))
    for old in (out / "images").glob("*.png"):
        if old.name not in written:
            old.unlink()
    return min(len(each["pairs"]) for each in algorithms)


def labels(arguments: Sequence[str]) -> dict[str, Path]:
    """{label: folder} of RUN or LABEL=RUN; a run's own label is its recipe's. Raises UserError for equal ones."""
    found: dict[str, Path] = {}
    for argument in arguments:
        label, given, path = argument.rpartition("=")
        folder = Path(argument) if Path(argument).is_dir() or not given else Path(path)
        if not given or folder == Path(argument):
            label = folder.resolve().parent.name
        if not label or label in found:
            raise UserError(f"{argument}: two algorithms are called '{label}': write LABEL=RUN")
        found[label] = folder
    return found


def _experiment(folder: Path, registry: Registry) -> Experiment:
    missing = [name for name in ("recipe.toml", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no finished run (it lacks {' and '.join(missing)})")
    return config.load(str(folder / "recipe.toml"), registry=registry)


def _save(out: Path, image: Tensor) -> str:
    """A PNG named by its content, so that the name does not tell; larger images are shrunk to what is shown."""
    picture = Image.fromarray(to_rgb(image))
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    name = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16] + ".png"
    picture.save(out / "images" / name)
    return f"images/{name}"
