"""The model in a checkpoint: G, or its average, as the finished run's model file would hold it.

A checkpoint's header describes the model (`model`) and says how far the training is (`images` of `target`). Its tensors
are those of G or of the average, `G.NAME` or `average.NAME`, and `model.NAME` where the model file has another tensor:
the normalised weight in place of what `apply_spectral_norm` added.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from p2pzoo.models.safetensors_io import load_tensors, strip_prefix
from p2pzoo.models.spectral_norm import ADDED_TENSORS, plain_state_dict
from p2pzoo.utils.errors import DamagedFile, UserError
from p2pzoo.utils.files import parse_toml

_OPTIMIZERS = ("G_adam.", "D_adam.")  # the state of any optimizer
_PARTS = ("average", "G")  # the average is what is evaluated and saved, where there is one


class CheckpointAt(NamedTuple):
    """How far the training of a checkpoint is.

    images  seen so far
    of      images at the end of the training

    >>> str(CheckpointAt(400, 1000))
    'a checkpoint at 400 of 1000 images'
    """

    images: int
    of: int

    def __str__(self) -> str:
        return f"a checkpoint at {self.images} of {self.of} images"


def replaced_tensors(final: nn.Module) -> dict[str, Tensor]:
    """`model.NAME`: the tensors of the model file that the state dict of the network does not have."""
    own = final.state_dict().keys()
    return {f"model.{name}": tensor for name, tensor in plain_state_dict(final).items() if name not in own}


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("images-*.safetensors"))


def images_of(checkpoint: Path) -> int:
    """The images after which a checkpoint was written, by its name.

    >>> images_of(Path("checkpoints/images-0000000020.safetensors"))
    20
    """
    return int(checkpoint.stem.removeprefix("images-"))


def load_model_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a model file, or of the model in a checkpoint; then the header has "checkpoint".

    All tensors are checked, but those of D and of the optimizers are not kept. Raises UserError as `load_tensors` does,
    and for a checkpoint without a description of its model.
    """
    tensors, header = load_tensors(path, _belongs_to_model)
    if "window" not in header:  # a model file
        return tensors, header
    if "model" not in header:
        raise UserError(
            f"{path}: this checkpoint of an older p2pzoo does not describe its generator: resume the run, and its next "
            "checkpoint does"
        )
    part = next(part for part in _PARTS if any(name.startswith(f"{part}.") for name in tensors))
    replaced = strip_prefix("model", tensors)
    layers = tuple(name.removesuffix("weight") + ADDED_TENSORS for name in replaced)
    own = {name: t for name, t in strip_prefix(part, tensors).items() if not name.startswith(layers)}
    at = {"images": header["images"], "of": header["target"]}
    return own | replaced, {**header["model"], "checkpoint": at}


def _belongs_to_model(header: Mapping[str, Any], name: str) -> bool:
    return "window" not in header or name.startswith(("G.", "average.", "model."))


def load_newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """The model of the newest intact checkpoint of an unfinished run, as `load_model_tensors`, and its file.

    Warns that the run is not finished, and of each damaged checkpoint. Raises UserError if there is no intact one.
    """
    files = list_checkpoints(folder)
    if not files:
        raise UserError(f"{folder}: this run has not saved a checkpoint yet: there is no model in it so far")
    for file in reversed(files):
        try:
            tensors, header = load_model_tensors(file)
        except DamagedFile as error:
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
        else:
            warnings.warn(f"{folder}: not finished: this is {CheckpointAt(**header['checkpoint'])}", stacklevel=2)
            return tensors, header, file
    raise DamagedFile(f"{folder}: not finished, and none of its checkpoints is intact; run it again")


def load_continued(
    checkpoint: Path, recipe: Path, note: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of another run's checkpoint, from which a run with this resolved recipe goes on.

    Without the state of the other run's optimizers, if those of the recipe keep another one; `note` gets a line that
    says so. Raises UserError as `load_tensors` does.
    """
    tensors, header = load_tensors(checkpoint)
    run = checkpoint.parents[1]
    before, now = (_state_of_optimizer(each) for each in (run / "recipe.toml", recipe))
    if before != now:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OPTIMIZERS)}
        names = f"{' with '.join(now)}, that of {run} was {' with '.join(before)}"
        note(f"the optimizer is {names}: it begins without moments")
    return tensors, header


def _state_of_optimizer(recipe: Path) -> list[str]:
    """The class of torch.optim of a resolved recipe, and the options that decide which tensors it keeps of a weight."""
    table = parse_toml(recipe.read_text("utf-8")).get("optimizer", {})
    return [table.get("use", "Adam"), *(name for name in ("amsgrad", "centered", "momentum") if table.get(name))]
