"""What the trackers have in common: errors that stop no training, resumed runs, and the recipe as flat names.

A tracker's step is the number of training images so far. Logged are the losses under their names in metrics.jsonl,
sample grids as "samples", results as "final/NAME", and the resolved recipe. The tracker's package is imported when a
run starts.
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from p2pzoo.plugin import Callback
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.plurals import format_count


class Tracker(Callback):
    """The base class. A subclass opens its tracker in `open_tracker`, when the first value is logged, or in `start`.

    An error of the tracker is a warning, once: the training goes on, and the tracker logs no more of it. An error in
    `start` is a UserError before training.

    Raises UserError if the package is not installed.
    """

    package = ""  # the package that must be installed; the extra of p2pzoo has its name

    def __init__(self) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f"this callback needs the package {self.package}: pip install 'p2pzoo[{self.package}]'")
        self.tracker: Any = None
        self.has_failed = False

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        self.folder, self.recipe = Path(folder), recipe
        batch = recipe["train"]["batch_size"]
        self.images = (
            -(-recipe["train"]["images"] // batch) * batch
        )  # at the end of training: the last batch is complete
        log = self.folder / "metrics.jsonl"
        self.is_resumed = log.exists() and log.stat().st_size > 0

    def log(self, images: int, losses: Mapping[str, float]) -> None:
        self._attempt(images, lambda: self.log_values(dict(losses), images))

    def samples(self, images: int, path: str) -> None:
        self._attempt(images, lambda: self.log_picture(Path(path), images))

    def finish(self, metrics: Mapping[str, float]) -> None:
        def log_and_close() -> None:
            self.get_tracker(None)
            self.log_values({f"final/{name}": value for name, value in metrics.items()}, self.images)
            self.close()

        self._attempt(self.images, log_and_close)
        self.tracker = None

    def get_tracker(self, images: int | None) -> Any:
        """The tracker, opened at the first call. `images`: the progress of the run so far; None: it is complete."""
        if self.tracker is None:
            self.tracker = self.open_tracker(images)
        return self.tracker

    def _attempt(self, images: int, act: Callable[[], None]) -> None:
        if self.has_failed:
            return
        try:
            act()
        except Exception as error:  # a server or a full disk of the tracker must not cost a training
            self.has_failed = True
            warnings.warn(
                f"{self.package} failed at {format_count(images, 'image')} and logs no more of this run: "
                f"{first_line(error)}. The training goes on; metrics.jsonl has all values",
                stacklevel=2,
            )

    # --- what a subclass implements ---

    def open_tracker(self, images: int | None) -> Any:
        raise NotImplementedError

    def log_values(self, values: dict[str, float], images: int) -> None:
        raise NotImplementedError

    def log_picture(self, path: Path, images: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class AccelerateTracker(Tracker):
    """`self.tracker` is one of Accelerate's trackers."""

    def log_values(self, values: dict[str, float], images: int) -> None:
        self.get_tracker(images).log(values, step=images)

    def close(self) -> None:
        self.tracker.finish()


class LoggedValues:
    """The values that a tracker has, so that a resumed run logs each once: it repeats those after its checkpoint.

    >>> logged = LoggedValues({("G.l1", 4): 0.5})
    >>> logged.select_new({"G.l1": 0.5, "D.real": 0.1}, 4)
    {'D.real': 0.1}
    >>> logged.select_new({"D.real": 0.1}, 4)
    {}
    """

    def __init__(self, values: Mapping[tuple[str, int], float]) -> None:
        self._values = dict(values)

    def select_new(self, values: Mapping[str, float], images: int) -> dict[str, float]:
        """Those that are new or have changed at this number of images. They count as logged from then on."""
        new = {name: value for name, value in values.items() if not self._has(name, images, value)}
        self._values |= {(name, images): value for name, value in new.items()}
        return new

    def _has(self, name: str, images: int, value: float) -> bool:
        before = self._values.get((name, images))
        return before is not None and (before == value or (math.isnan(before) and math.isnan(value)))


def flatten_recipe(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a resolved recipe by dotted name, as -s takes them.

    >>> flatten_recipe({"seed": 0, "losses": {"l1": {"use": "l1", "weight": 100.0}}})
    {'seed': 0, 'losses.l1.use': 'l1', 'losses.l1.weight': 100.0}
    """
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        flat |= flatten_recipe(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def first_line(error: Exception) -> str:
    """
    >>> first_line(ValueError("no such run\\nmore"))
    'ValueError: no such run'
    """
    return without_password(f"{type(error).__name__}: {error}".strip(": ").partition("\n")[0])


def without_password(text: str) -> str:
    """The text, its addresses without the name and the password of a user, for messages and files.

    >>> without_password("https://me:secret@mlflow.example:5000/x does not answer")
    'https://mlflow.example:5000/x does not answer'
    >>> without_password("sqlite:///runs/a@b.db")
    'sqlite:///runs/a@b.db'
    """
    return re.sub(r"(?<=:)//[^/\s@]+@", "//", text)
