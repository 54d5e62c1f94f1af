"""p2pzoo: a zoo of architectures for paired image-to-image translation (pix2pix, Isola et al. 2017).

    list_components  the names that recipes can use
    create           build a component by name
    load             load a trained model
    train            train and evaluate a recipe
    evaluate         measure a trained model
    hookimpl         mark a plugin's hooks; `p2pzoo.plugin` has the other names that plugin authors import

Errors:

    Error        base class of all errors that p2pzoo raises on purpose
    UserError    raised by all five functions, and by methods of a loaded model: a name, an argument, a recipe, a file
                 or the installation must be fixed. `faults` has one line for each thing that is wrong
    DamagedFile  a UserError, raised by `load` and `evaluate` for a damaged model file, and by `train` for a damaged
                 checkpoint
    OutOfMemory  a UserError, raised by `train` and `evaluate`, and by a loaded model when it translates an image
    ComponentError  raised by `train` and `evaluate`: the code of a plugin failed. The message names the component

`load` raises ValueError for an unknown precision. `train` raises KeyboardInterrupt after it has saved a checkpoint.

This module imports no torch, so that plugins register in milliseconds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pzoo.plugin.hookspecs import hookimpl
from p2pzoo.utils.errors import ComponentError, DamagedFile, Error, OutOfMemory, UserError
from p2pzoo.utils.version import __version__

if TYPE_CHECKING:
    from p2pzoo.api import Evaluated, Trained
    from p2pzoo.models.model import Model

__all__ = [
    "ComponentError",
    "DamagedFile",
    "Error",
    "OutOfMemory",
    "UserError",
    "__version__",
    "create",
    "evaluate",
    "hookimpl",
    "list_components",
    "load",
    "train",
]


def __dir__() -> list[str]:
    return __all__


def list_components(kind: str | None = None) -> list[str]:
    """List the names that recipes can write after `use =`, sorted by name within a kind.

    kind  "generator", "discriminator", "process", "gan_loss", "loss", "augmentation", "dataset", "metric", "callback"
          or "model". None lists all kinds, as "kind.name"

    If two plugins register the same name, both are listed as "plugin:name". Raises UserError for an unknown kind.

    >>> import p2pzoo
    >>> "unet" in p2pzoo.list_components("generator")
    True
    >>> "generator.unet" in p2pzoo.list_components()
    True
    """
    from p2pzoo.api import list_components

    return list_components(kind)


def create(kind: str, name: str, **arguments: Any) -> Any:
    """Build a component by name.

    arguments  what p2pzoo passes in a run (to networks in_channels, out_channels and size, which is (256, 256) by
               default; to datasets split; to metrics dataset), and the parameters that a recipe can set, which are
               checked as in a recipe

    The weights of a network are those that its constructor draws; `[init]` of a recipe is not applied. Raises UserError
    with everything that is wrong.

    >>> import p2pzoo, torch
    >>> G = p2pzoo.create("generator", "unet", in_channels=3, out_channels=1, size=(64, 64), width=4)
    >>> G(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1, 64, 64])
    """
    from p2pzoo.api import create

    return create(kind, name, arguments)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "fp32",
    weights: str | None = None,
    process: Mapping[str, Any] | None = None,
    generator: Mapping[str, Any] | None = None,
) -> "Model":
    """Load a trained model; `p2pzoo.models.model.Model.translate` applies it to an image.

    path       a run folder or a folder with one run, a model.safetensors file, "zoo:NAME" for a model that a plugin
               ships, or "hf:OWNER/NAME" for one on the Hugging Face hub
    device     "auto", "cpu", "cuda" or "mps"
    precision  "fp32", or "bf16" (eval mode only)
    weights    of a run: "last", those after the last step, or "average", their average over the training. None: those
               that its numbers measured
    process    parameters of the model's process that differ from the training, such as {"steps": 4}
    generator  the same of its generator. Both take only parameters that training does not depend on

    Raises UserError if there is no such model or device or a parameter does not fit, DamagedFile if its file is
    damaged, and ValueError for another precision or other weights.

    >>> import numpy as np
    >>> import p2pzoo
    >>> model = p2pzoo.load("zoo:earth-small", device="cpu")
    >>> photo = model.translate(np.zeros((64, 64, 3), np.uint8))
    >>> photo.shape, photo.dtype
    ((64, 64, 3), dtype('uint8'))
    """
    from p2pzoo.models.load import load_model

    at_use = {"process": process or {}, "generator": generator or {}}
    return load_model(path, device=device, precision=precision, weights=weights, at_use=at_use)


def train(
    recipe: str | Path,
    *,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    runs: str | Path = "runs",
) -> "Trained":
    """Train and evaluate a recipe, as `p2pzoo run` does, and keep everything in a run folder.

    An interrupted run is resumed. A complete run is not trained again; its results are returned.

    recipe     a file, or "zoo:NAME.toml" for a recipe that ships with p2pzoo
    profile    profile of the recipe; None chooses by hardware
    overrides  changes, written as after -s of `p2pzoo run`: "losses.l1.weight=50"
    seed       seed of all random numbers, 0 or more; None: the recipe's, else 0
    runs       parent folder of run folders

    Raises UserError if the recipe, the data or the machine must be fixed, OutOfMemory if memory is too small,
    DamagedFile if the checkpoint to resume from is damaged, and KeyboardInterrupt after saving on Ctrl-C or SIGTERM.

    >>> import p2pzoo
    >>> trained = p2pzoo.train("zoo:base.toml", profile="smoke")  # doctest: +SKIP
    >>> sorted(trained.metrics)  # doctest: +SKIP
    ['l1', 'psnr', 'psnr.pooled', 'ssim']
    >>> model = trained.load()  # doctest: +SKIP
    """
    from p2pzoo.api import train

    return train(recipe, profile, overrides, seed, Path(runs))


def evaluate(
    model: str | Path,
    inputs: str | Path | None = None,
    targets: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    split: str | None = None,
    metrics: str | Sequence[str] = (),
    test_mode: str | None = None,
    scale: float | str | None = None,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    process: Mapping[str, Any] | None = None,
    generator: Mapping[str, Any] | None = None,
) -> "Evaluated":
    """Measure a trained model, as `p2pzoo evaluate` does: on a split of a recipe's data, or on two folders of images.

    model            a run folder, a model.safetensors file (imported weights too), "zoo:NAME" or "hf:OWNER/NAME"
    inputs, targets  two folders of images, matched by file name, whose pairs have one size. The model sees the inputs
                     as `Model.translate` shows them to it; ŷ and target are compared in the size of the files
    recipe           without folders: a recipe with the data and the metrics; None: that of the model's run, and the
                     numbers are those of the run, to the bit
    profile          profile of the recipe
    overrides        changes of the recipe: "metrics.kid.use=kid"
    split            "train", "val" or "test"; None: the recipe's, and of folders with such sub-folders "test"
    metrics          names: of the recipe's metrics, or of any metric, with its defaults; (): all of the recipe
    test_mode        "paper" or "eval"; None: the recipe's, and for folders the model's
    scale, size      for folders, as for `Model.translate`
    device           "auto", "cpu", "cuda" or "mps"; None: the recipe's, and for folders "auto"
    process          parameters of the model's process that differ from the training, such as {"steps": 4}
    generator        the same of its generator. Both take only parameters that training does not depend on

    Raises UserError if the model, the recipe, a metric or the data must be fixed, or if they do not fit together,
    DamagedFile for a damaged model file, OutOfMemory if memory is too small, and ValueError for another split or test
    mode.

    >>> import p2pzoo
    >>> measured = p2pzoo.evaluate("zoo:earth-small", "inputs", "targets", metrics="l1")  # doctest: +SKIP
    >>> measured.metrics  # doctest: +SKIP
    {'l1': 0.1065}
    """
    from p2pzoo.api import evaluate

    if (inputs is None) != (targets is None):
        raise UserError("give two folders, inputs and targets, or none of them")
    folders = () if inputs is None or targets is None else (inputs, targets)
    arguments = {
        "recipe": None if recipe is None else str(recipe), "profile": profile, "overrides": overrides, "split": split,
        "test_mode": test_mode, "scale": scale, "size": size, "device": device,
        "process": process or {}, "generator": generator or {},
    }  # fmt: skip
    return evaluate(model, folders, metrics, arguments)
