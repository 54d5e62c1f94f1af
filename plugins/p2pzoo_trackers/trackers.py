"""TensorBoard and Weights & Biases through Accelerate's trackers, as callbacks. They watch a run and change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from p2pzoo.utils.errors import UserError
from p2pzoo_trackers.tracker import AccelerateTracker


class TensorBoard(AccelerateTracker):
    """Event files in the run's folder, under `tensorboard/`: `tensorboard --logdir runs` shows all runs.

    A resumed run adds to these files from its checkpoint on. TensorBoard hides the values that the interrupted run had
    logged after that checkpoint. The recipe is the text "recipe".

    Raises UserError if tensorboard is not installed.
    """

    package = "tensorboard"

    def __init__(self) -> None:
        super().__init__()

    def log_picture(self, path: Path, images: int) -> None:
        import numpy as np
        from PIL import Image

        tracker = self.get_tracker(images)
        tracker.log_images({"samples": np.asarray(Image.open(path))[None]}, step=images, dataformats="NHWC")
        tracker.tracker.flush()

    def open_tracker(self, images: int | None) -> Any:
        from accelerate.tracking import TensorBoardTracker

        is_resumed = any((self.folder / "tensorboard").glob("events.*"))
        tracker = _start_if_needed(TensorBoardTracker("tensorboard", self.folder, purge_step=images))
        if not is_resumed:
            recipe = json.dumps(self.recipe, indent=2)
            tracker.log({"recipe": f"```\n{recipe}\n```"}, step=0)
        return tracker


class WandB(AccelerateTracker):
    """A run of Weights & Biases. Its id is the name of the run's folder, so a resumed run stays one run there.

    W&B ignores a second value for the same step; a resumed run repeats the same values. A run with `--fresh` starts
    again under the same id, and overwrites the old values one by one.

    project  project in W&B
    entity   user or team in W&B; unset: your default
    mode     "online", "offline" or "disabled". "offline" keeps the run in the run's folder, under `wandb/`, for
             `wandb sync`. Unset: the value of $WANDB_MODE

    Raises UserError if wandb is not installed or does not start.
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
        self.get_tracker(0)  # here, so that an error of wandb comes before training

    def log_picture(self, path: Path, images: int) -> None:
        from PIL import Image

        self.tracker.log_images({"samples": [Image.open(path)]}, step=images)

    def open_tracker(self, images: int | None) -> Any:
        import wandb
        from accelerate.tracking import WandBTracker

        try:
            tracker = _start_if_needed(
                WandBTracker(
                    self.project, id=self.folder.name, name=f"{self.folder.parent.name} {self.folder.name}",
                    resume="allow" if self.is_resumed else None, dir=str(self.folder), entity=self.entity,
                    mode=self.mode,
                )
            )  # fmt: skip
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f'wandb does not start: {reason} (run `wandb login`, or set mode = "offline")') from error
        tracker.store_init_configuration(dict(self.recipe))
        return tracker


def _start_if_needed(tracker: Any) -> Any:
    if hasattr(tracker, "start"):  # older versions of Accelerate start it in the constructor
        tracker.start()
    return tracker
