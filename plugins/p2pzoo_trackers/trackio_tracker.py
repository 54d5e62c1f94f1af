"""Trackio as a callback."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import Field

from p2pzoo.utils.errors import UserError
from p2pzoo_trackers.tracker import LoggedValues, Tracker, first_line, flatten_recipe

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # Trackio's own variables; with one it is not offline


class Trackio(Tracker):
    """A run of Trackio: the recipe as config, losses, results and sample grids over the number of training images.

    Its name is that of the run's folder. A resumed run stays this run, and logs each value once. A run with `--fresh`
    is a new run of the same name in Trackio.

    project  project in Trackio
    folder   where Trackio keeps its files; unset: $TRACKIO_DIR, else `trackio/` in the run's folder. Runs that are
             shown together need one folder: `TRACKIO_DIR=FOLDER trackio show`

    $TRACKIO_SPACE_ID and $TRACKIO_SERVER_URL send the run to a server, as Trackio does; without them nothing leaves
    this machine.

    Raises UserError if Trackio is not installed or does not start.
    """

    package = "trackio"

    def __init__(self, *, project: Annotated[str, Field(min_length=1)] = "p2pzoo", folder: Path | None = None) -> None:
        super().__init__()
        self.project, self.chosen_folder = project, folder

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        super().start(folder, recipe)
        self.get_tracker(0)  # here, so that an error of Trackio comes before training

    def open_tracker(self, images: int | None) -> Any:
        place = Path(self.chosen_folder or os.environ.get("TRACKIO_DIR") or self.folder / "trackio").absolute()
        try:
            place.mkdir(parents=True, exist_ok=True)
            self.trackio = import_trackio(place)
            with _quiet(), _offline():
                run = self.trackio.init(
                    project=self.project, name=self.folder.name, resume="allow" if self.is_resumed else "never",
                    config=flatten_recipe(self.recipe), embed=False, auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
            self.logged = LoggedValues(self._read_values(run) if self.is_resumed else {})
        except Exception as error:
            raise UserError(f"trackio does not start: {first_line(error)} (check its folder, {place})") from error
        atexit.register(self._finish_quietly)  # before Trackio's own, which prints
        return run

    def log_values(self, values: dict[str, float], images: int) -> None:
        if new := self.logged.select_new(values, images):
            self.tracker.log(new, step=images)

    def log_picture(self, path: Path, images: int) -> None:
        if self.logged.select_new({"samples": 1.0}, images):
            self.tracker.log({"samples": self.trackio.Image(str(path))}, step=images)

    def close(self) -> None:
        atexit.unregister(self._finish_quietly)
        self._finish_quietly()

    def _finish_quietly(self) -> None:
        with _quiet(), contextlib.suppress(RuntimeError):  # it is finished already
            self.trackio.finish()

    def _read_values(self, run: Any) -> dict[tuple[str, int], float]:
        """The numbers that this folder has of the run, and 1 for each sample grid."""
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        values = {}
        for line in storage.get_logs(self.project, run.name, run_id=run.id):
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "step":
                    values[name, line["step"]] = float(value)
                elif name == "samples":
                    values[name, line["step"]] = 1.0
        return values


def import_trackio(folder: Path) -> ModuleType:
    """The module trackio, which writes into this folder.

    It reads its folder from the environment when it is imported, and keeps it. So it is imported again for the next run
    in this process that has another folder.
    """
    before = os.environ.get("TRACKIO_DIR")
    os.environ["TRACKIO_DIR"] = str(folder)
    try:
        is_imported = "trackio" in sys.modules
        if is_imported and folder != importlib.import_module("trackio.utils").TRACKIO_DIR:
            for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
                del sys.modules[name]
        return importlib.import_module("trackio")
    finally:
        if before is None:
            del os.environ["TRACKIO_DIR"]
        else:
            os.environ["TRACKIO_DIR"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trackio prints how to show the run, without its folder, and on standard output, which is for results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Without a server, Trackio asks the Hugging Face Hub for the name of a user who is logged in. Here it does not."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not any(os.environ.get(name) for name in SERVERS)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
