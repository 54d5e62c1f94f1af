"""Which file a model is in, and loading it: a run folder, a model file, a checkpoint or an address (zoo:NAME)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from p2pzoo.compute.engine import pick_device
from p2pzoo.models.at_use import AtUse, with_parameters
from p2pzoo.models.checkpoint_model import list_checkpoints, load_model_tensors, load_newest_checkpoint
from p2pzoo.models.intervals import Calibration
from p2pzoo.models.model import Model
from p2pzoo.models.model_file import ModelHeader, restore_network
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.plugin.loader import registry
from p2pzoo.plugin.model_source import SHIPPED, find_model, is_address, list_schemes
from p2pzoo.plugin.registry import MODEL_SOURCE
from p2pzoo.utils.errors import DamagedFile, UserError
from p2pzoo.utils.files import parse_toml
from p2pzoo.utils.find_runs import find_only_run


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    weights: str | None = None,
    at_use: AtUse | None = None,
) -> Model:
    """Load a trained model. `p2pzoo.load` calls this function.

    path: a run folder or a folder with one run, a model.safetensors, a checkpoint, or an address: "zoo:NAME" for a
        model that a plugin ships, "hf:OWNER/NAME" for one on the hub. Of a run that is not finished, its newest intact
        checkpoint is taken, with a warning that says how far the training was.
    device: "auto", "cpu", "cuda" or "mps".
    precision: "fp32", or "bf16" for eval mode only.
    weights: of a run: "last", those after the last step, or "average", their average over the training. None: those
        that its numbers measured.
    at_use: parameters that may differ from the training, {"process": {"steps": 4}}. A calibration does not hold then.

    Raises UserError if there is no such model, the device is not available or a parameter does not fit, DamagedFile
    if the file is damaged, ValueError for another precision or other weights.

    >>> load_model("zoo:earth-small", device="cpu").size
    (128, 128)
    """
    if weights not in (None, "last", "average"):
        raise ValueError(f"weights must be 'last' or 'average', not {weights!r}")
    address = found.address if (found := find_model(path)) else None
    path = Path(address or path)  # the version that was found, also if the name means another one a second later
    tensors, json_header, file = read_model(path, weights)
    header = with_parameters(ModelHeader.parse(json_header, file), at_use, registry())
    G = restore_network(tensors, header, file, registry())
    for key in ("run", "test_mode", "size_divisor"):
        if getattr(header, key) is None:
            raise DamagedFile(f"{file}: its header is damaged: it has no {key}")
    if broken := [name for name, tensor in G.state_dict().items() if not tensor.isfinite().all()]:
        raise DamagedFile(
            f"{file}: {len(broken)} of its weights hold NaN or infinite values, such as '{broken[0]}': its training "
            "diverged; use an earlier checkpoint, or train it again"
        )
    is_as_calibrated = not any((at_use or {}).values())
    calibration = Calibration.parse(json_header, file) if is_as_calibrated else None
    return Model(G, header, torch.device(pick_device(device)), precision, calibration, address)


def resolve_model_path(path: Path) -> Path:
    """The folder of the model that an address names, the only run in a folder, or `path` itself.

    Raises UserError for an unknown address, and for a folder of several runs.
    """
    return found.folder if (found := find_model(path)) else find_only_run(path)


def read_model(path: Path, weights: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """The tensors and the header of the model that `path` names, as `load_model` takes it, and their file.

    Raises UserError if there is no such model, DamagedFile if it is damaged.
    """
    if (weights or find_measured_weights(path)) == "average":
        path = find_average(path)
    folder = resolve_model_path(path)
    if is_unfinished(folder):
        return load_newest_checkpoint(folder)
    file = find_model_file(path)
    return *load_model_tensors(file), file


def find_average(path: Path) -> Path:
    """The average.safetensors of a run folder, or a file that is one. Raises UserError if there is none."""
    folder = resolve_model_path(path)
    file = folder / "average.safetensors" if folder.is_dir() else folder
    if folder.is_dir() and not file.is_file():
        if is_unfinished(folder):
            raise UserError(f"{path}: this run is not finished: take its last weights (--weights last)")
        last = folder / "model.safetensors"
        raise UserError(f"{path}: this run keeps no average of its weights: give {last}, or --weights last")
    if load_tensors(file, lambda *_: False)[1].get("weights") != "average":
        raise UserError(f"{path}: holds no average of weights: give the folder of a run")
    return file


def find_measured_weights(path: Path) -> Literal["last", "average"]:
    """Which weights of G the numbers and the pictures of a run show: those that its [evaluate] names.

    "last" for a run that is not finished, and for all that is no folder of a run: a model file has one kind.

    >>> find_measured_weights(Path("zoo:earth-small"))
    'last'
    """
    folder = resolve_model_path(path)
    files = [folder / name for name in ("status.json", "model.safetensors", "recipe.toml")]
    if not all(file.is_file() for file in files):
        return "last"
    try:
        evaluate = parse_toml(files[-1].read_text("utf-8")).get("evaluate", {})
        if not isinstance(evaluate, dict):
            raise ValueError("its [evaluate] is no table")
    except ValueError as error:
        raise DamagedFile(f"{files[-1]}: is damaged ({error}): give a model file of the run") from None
    return "average" if evaluate.get("weights") == "average" else "last"


def is_unfinished(folder: Path) -> bool:
    """Whether this is the folder of a run that has not written its model yet."""
    return (folder / "status.json").is_file() and not (folder / "model.safetensors").is_file()


def find_model_file(path: Path) -> Path:
    """The model.safetensors of a run folder or of an address, or `path` itself if it is no folder.

    For a run that is not finished, its newest checkpoint, which may be damaged. Raises UserError if there is no model.
    """
    given, path = path, resolve_model_path(path)
    if path.suffix == ".toml":
        raise UserError(f"{path}: is a recipe, not a model: `p2pzoo run {path}` trains one")
    if not path.exists():
        raise UserError(_describe_missing(given, path))
    if not path.is_dir():
        return path
    if is_unfinished(path) and (checkpoints := list_checkpoints(path)):
        return checkpoints[-1]
    if not (path / "model.safetensors").is_file():
        problem = "this run has not saved a checkpoint yet" if is_unfinished(path) else "not a run folder"
        raise UserError(f"{path}: {problem}; give a run folder or a model.safetensors")
    return path / "model.safetensors"


def _describe_missing(given: Path, path: Path) -> str:
    """Why there is no model. path: what was looked for, which is another one if an address was given."""
    if not is_address(given):
        others = "".join(f", or {scheme}:…" for scheme in list_schemes())
        return f"{path}: no such model: give a run folder, a .safetensors file, zoo:NAME (`p2pzoo list model`){others}"
    scheme, _, name = given.as_posix().partition(":")
    plugin = registry().get("model", name) if scheme == SHIPPED else registry().get(MODEL_SOURCE, scheme)
    return (
        f"{given}: plugin '{plugin.plugin}' ({plugin.distribution}) names a folder that does not exist, {path}: its "
        "package was built without the model; install another version of it"
    )


def find_run_folder(file: Path) -> Path:
    """The folder of the run whose model file or checkpoint this is."""
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent
