"""TensorBoard and Weights & Biases through Accelerate's trackers, as callbacks. They watch a run and change nothing.

Steps are images seen. What is logged: losses under the names of metrics.jsonl, sample grids as "samples", the final
numbers as "final/NAME", the resolved recipe. Imports the contracts; Accelerate and the tracker when a run begins.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from p2pzoo.plugin import Callback
from p2pzoo.utils.errors import UserError


class Tracking(Callback):
    """What both have in common: a tracker of Accelerate's, `self.tracker`, from the first thing that is told on."""

    package = ""

    def __init__(self) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f"this tracker needs the package {self.package}: pip install 'p2pzoo[{self.package}]'")
        self.tracker: Any = None

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        self.folder, self.recipe = Path(folder), recipe
        batch = recipe["train"]["batch_size"]
        self.images = -(-recipe["train"]["images"] // batch) * batch  # seen at the end, by whole batches

    def log(self, images: int, losses: Mapping[str, float]) -> None:
        self.opened(images).log(dict(losses), step=images)

    def finish(self, metrics: Mapping[str, float]) -> None:
        tracker = self.opened(None)
        tracker.log({f"final/{name}": value for name, value in metrics.items()}, step=self.images)
        tracker.finish()
        self.tracker = None

    def opened(self, images: int | None) -> Any:
        """The tracker, where the run stands at so many images; None: at its end."""
        if self.tracker is None:
            self.tracker = self.open(images)
        return self.tracker

    def open(self, images: int | None) -> Any:
        raise NotImplementedError


class TensorBoard(Tracking):
    """Event files in the run's folder, under `tensorboard/`: `tensorboard --logdir runs` shows all runs.

    A run that goes on adds to them from where it goes on; what an earlier part logged after that is hidden. The recipe
    is the text "recipe".

    Raises UserError where tensorboard is not installed.
    """

    package = "tensorboard"

    def __init__(self) -> None:
        super().__init__()

    def samples(self, images: int, path: str) -> None:
        import numpy as np
        from PIL import Image

        tracker = self.opened(images)
        tracker.log_images({"samples": np.asarray(Image.open(path))[None]}, step=images, dataformats="NHWC")
        tracker.tracker.flush()

    def open(self, images: int | None) -> Any:
        from accelerate.tracking import TensorBoardTracker

        begun = any((self.folder / "tensorboard").glob("events.*"))
        tracker = _started(TensorBoardTracker("tensorboard", self.folder, purge_step=images))
        if not begun:
            recipe = json.dumps(self.recipe, indent=2)
            tracker.log({"recipe": f"```\n{recipe}\n```"}, step=0)
        return tracker


class WandB(Tracking):
    """A run of Weights & Biases. Its id is the name of the run's folder, so a run that goes on stays one run there.

    What it has been told of an image count it does not take again; a run that goes on repeats the same values. A run
    that begins anew (`--fresh`) begins anew there under the same id, and the old values are overwritten one by one.

    Args:
        project, entity: where it appears; None is your own default.
        mode: "offline" keeps it in the run's folder, under `wandb/`, for `wandb sync`; None leaves it to $WANDB_MODE.

    Raises UserError where wandb is not installed, or refuses to begin.
    """

    package = "wandb"

    def __init__(
        self,
        *,
        project: Annotated[str, Field(min_length=1)] = "p2pzoo",
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        super().__init__()
        self.project, self.entity, self.mode = project, entity, mode

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        super().start(folder, recipe)
        log = self.folder / "metrics.jsonl"
        self.goes_on = log.exists() and log.stat().st_size > 0
        self.opened(0)  # now: what it refuses is told before training

    def samples(self, images: int, path: str) -> None:
        from PIL import Image

        self.tracker.log_images({"samples": [Image.open(path)]}, step=images)

    def open(self, images: int | None) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        try:
            tracker = _started(
                WandBTracker(
                    self.project, id=self.folder.name, name=f"{self.folder.parent.name} {self.folder.name}",
                    resume="allow" if self.goes_on else None, dir=str(self.folder), entity=self.entity, mode=self.mode,
                )
            )  # fmt: skip
        except wandb.Error as error:
            line = str(error).strip().splitlines()[0]
            raise UserError(f'wandb does not begin: {line} (`wandb login`, or mode = "offline")') from error
        tracker.store_init_configuration(dict(self.recipe))
        return tracker


def _started(tracker: Any) -> Any:
    if hasattr(tracker, "start"):  # older versions of Accelerate start it as they make it
        tracker.start()
    return tracker
