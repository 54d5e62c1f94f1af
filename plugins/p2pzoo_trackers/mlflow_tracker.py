"""MLflow as a callback, through its client: no global state of MLflow changes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import write_json
from p2pzoo_trackers.tracker import LoggedValues, Tracker, first_line, flatten_recipe, without_password

RUN_TAG = "p2pzoo.run"  # its value is the name of the run's folder, by which a resumed run is found again
MAX_BATCH = 100  # parameters in one request, a limit of MLflow
MAX_RETRIES = "3"  # with MLflow's own 7, a wrong address is an error after four minutes; 3 take a quarter of one


class MLflow(Tracker):
    """A run of MLflow: the recipe as parameters, losses and results as metrics, sample grids as artifacts.

    MLflow's run has the tag "p2pzoo.run" with the name of the run's folder. A resumed run finds it by that, and logs
    each value once. A run with `--fresh` is a new run in MLflow. `mlflow/run.json` in the run's folder has MLflow's id
    and address of the run.

    experiment    experiment in MLflow
    tracking_uri  address of a server, "http://HOST:5000", or of a database, "sqlite:///FILE.db"; unset:
                  $MLFLOW_TRACKING_URI, else a database in the run's folder, under `mlflow/`

    Raises UserError if MLflow, or for a database SQLAlchemy and Alembic, is not installed, if tracking_uri has a
    password, or if the store does not answer before training. MLflow's usage statistics are off unless
    $MLFLOW_DISABLE_TELEMETRY is false.
    """

    package = "mlflow"

    def __init__(
        self,
        *,
        experiment: Annotated[str, Field(min_length=1)] = "p2pzoo",
        tracking_uri: Annotated[str, Field(min_length=1)] | None = None,
    ) -> None:
        super().__init__()
        if tracking_uri and without_password(tracking_uri) != tracking_uri:
            raise UserError(
                "tracking_uri has a password, which every copy of the recipe would have: remove it, and put the "
                "address into $MLFLOW_TRACKING_URI"
            )
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        super().start(folder, recipe)
        self.get_tracker(0)  # here, so that an error of the store comes before training

    def open_tracker(self, images: int | None) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MAX_RETRIES)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # else each table of a new database has a line
        own = self.folder.absolute() / "mlflow"
        own.mkdir(exist_ok=True)
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own / 'mlflow.db'}"
        try:
            from mlflow.tracking import MlflowClient

            client = MlflowClient(tracking_uri=uri)
            experiment = self._find_experiment(client, artifact_location(uri))
            self.run_id = self._find_run(client, experiment) or self._create_run(client, experiment)
            self._log_recipe(client)
            self.logged = LoggedValues(self._read_values(client))
        except ImportError as error:
            raise UserError(f"mlflow does not start: {error}: pip install 'p2pzoo[mlflow]'") from error
        except Exception as error:  # its own, and those of requests and SQLAlchemy
            raise UserError(
                f"mlflow does not start: {without_password(uri)}: {first_line(error)} (check tracking_uri, or remove "
                "it to log into the run's folder)"
            ) from error
        write_json(own / "run.json", {"run_id": self.run_id, "address": _address(uri, experiment, self.run_id)})
        return client

    def log_values(self, values: dict[str, float], images: int) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        new = self.logged.select_new({metric_name(name): value for name, value in values.items()}, images)
        self.tracker.log_batch(self.run_id, metrics=[Metric(name, value, now, images) for name, value in new.items()])

    def log_picture(self, path: Path, images: int) -> None:
        self.tracker.log_artifact(self.run_id, str(path), "samples")  # a repeated one replaces the file of its name

    def close(self) -> None:
        self.tracker.set_terminated(self.run_id)

    def _find_experiment(self, client: Any, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        if found := client.get_experiment_by_name(self.experiment):
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(self.experiment, artifact_location=artifacts))
        except MlflowException:  # another run has made it by now
            if found := client.get_experiment_by_name(self.experiment):
                return str(found.experiment_id)
            raise

    def _find_run(self, client: Any, experiment: str) -> str | None:
        """The id of MLflow's run for this folder, which runs again; None if there is none, or with --fresh."""
        if not self.is_resumed:
            return None
        wanted = f"tags.`{RUN_TAG}` = '{self.folder.name}'"
        found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
        if not found:
            return None
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)

    def _create_run(self, client: Any, experiment: str) -> str:
        name = f"{self.folder.parent.name} {self.folder.name}"
        return str(client.create_run(experiment, run_name=name, tags={RUN_TAG: self.folder.name}).info.run_id)

    def _log_recipe(self, client: Any) -> None:
        """The values of the recipe that MLflow's run does not have. MLflow refuses to change one that it has."""
        from mlflow.entities import Param

        known = client.get_run(self.run_id).data.params
        params = [Param(name, str(value)) for name, value in flatten_recipe(self.recipe).items() if name not in known]
        for begin in range(0, len(params), MAX_BATCH):
            client.log_batch(self.run_id, params=params[begin : begin + MAX_BATCH])

    def _read_values(self, client: Any) -> dict[tuple[str, int], float]:
        return {
            (name, point.step): point.value
            for name in client.get_run(self.run_id).data.metrics
            for point in client.get_metric_history(self.run_id, name)
        }


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its artifacts: beside a SQLite file. None: where a server says.

    >>> artifact_location("sqlite:////data/mlflow.db")
    'file:///data/artifacts'
    """
    if not uri.startswith("sqlite:///"):
        return None  # MLflow's default for a file would be ./mlruns, wherever the command is called
    return (Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute().parent / "artifacts").as_uri()


def metric_name(name: str) -> str:
    """The name of a metric in MLflow, which takes letters, digits and _ - . : / and spaces.

    >>> metric_name("final/l1@3500")
    'final/l1:3500'
    """
    return re.sub(r"[^\w\-. :/]", ":", name, flags=re.ASCII)


def _address(uri: str, experiment: str, run_id: str) -> str:
    """The page of a run on a server; of a database its own address."""
    own = without_password(uri)
    is_server = uri.startswith(("http://", "https://"))
    return f"{own.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}" if is_server else own
