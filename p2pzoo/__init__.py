"""p2pzoo: a zoo of architectures for paired image-to-image translation (pix2pix, Isola et al. 2017).

This module stays light: importing it imports no torch, so that plugins can register in milliseconds.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pzoo.plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from p2pzoo.api import Trained
    from p2pzoo.models.model import Model

__version__ = version("p2pzoo")

__all__ = ["__version__", "create", "hookimpl", "list_components", "load", "train"]


def list_components(kind: str | None = None) -> list[str]:
    """The names that recipes can write after `use =`: of one kind, or "kind.name" of all.

    kind: "generator", "discriminator", "gan_loss", "loss", "dataset", "metric", "callback" or
    "augmentation"; UserError for another.
    A name that two plugins claim is listed once for each, as "plugin:name".
    """
    from p2pzoo.api import list_components

    return list_components(kind)


def create(kind: str, name: str, **arguments: Any) -> Any:
    """A component, made: `create("generator", "unet", in_channels=3, out_channels=3, width=32)`.

    arguments: what the zoo fills in a run (networks: in_channels, out_channels, and size, which is (256, 256) if it is
    not given; datasets: split; metrics: dataset), and the component's parameters, checked as a recipe's are. Networks
    have the weights that their constructors draw. Raises UserError with all that is wrong.
    """
    from p2pzoo.api import create

    return create(kind, name, arguments)


def load(path: str | Path, *, device: str = "auto", precision: str = "fp32") -> "Model":
    """A trained model from a run folder or a model.safetensors; see `p2pzoo.models.model.Model.translate`.

    precision: "fp32" or "bf16" (eval mode only).
    """
    from p2pzoo.models.model import load

    return load(path, device=device, precision=precision)


def train(
    recipe: str | Path, *, profile: str | None = None, overrides: Sequence[str] = (), runs: str | Path = "runs"
) -> "Trained":
    """What `p2pzoo run` does: train a recipe, evaluate it, keep all in a run folder. A complete run is not done again.

    recipe: a file, or "zoo:NAME.toml". profile: None is by hardware. overrides: as -s takes them,
    "losses.l1.weight=50". runs: where run folders are. Raises UserError, and KeyboardInterrupt after saving.
    """
    from p2pzoo.api import train

    return train(recipe, profile, overrides, Path(runs))
