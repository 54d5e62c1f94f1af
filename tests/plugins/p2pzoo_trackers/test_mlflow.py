"""MLflow, read back from its database with its own client."""

import json
from pathlib import Path

import pytest
from tracked_runs import losses_of, numbers_of, only

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")
pytestmark = pytest.mark.usefixtures("no_network")

IN_RUN = 'callbacks.tracker={use="mlflow"}'


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "mlruns").exists(), "nothing lies around in the current folder"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of a database for several runs: a new one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def on_store(store, tmp_path):
    return f'callbacks.tracker={{use="mlflow", experiment="{tmp_path.name}", tracking_uri="{store}"}}'


def runs_of(uri, experiment):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def history_of(client, run):
    """{images: losses}, and {name: value} of the results, each logged once."""
    losses, results = {}, {}
    for name in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, name)
        assert len({point.step for point in points}) == len(points), f"{name}: a value is there twice"
        for point in points:
            if name.startswith("final/"):
                results[name] = (point.step, point.value)
            else:
                losses.setdefault(point.step, {})[name] = point.value
    return losses, results


def results_of(folder):
    return {name: (8, value) for name, value in numbers_of(folder).items()}


def test_a_run_is_in_a_database_in_its_folder_and_nothing_else_changes(run, plain, tmp_path):
    answer = run(tmp_path / "runs", IN_RUN)
    assert answer.exit_code == 0, answer.output
    folder = only(tmp_path / "runs")
    uri = f"sqlite:///{folder / 'mlflow/mlflow.db'}"
    client, [logged] = runs_of(uri, "p2pzoo")
    assert history_of(client, logged) == (losses_of(folder), results_of(folder))
    assert logged.data.params["generator.use"] == "pix2pix:unet"
    assert logged.data.params["losses.l1.weight"] == "100.0"
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", f"tiny {folder.name}")
    for grid in sorted((folder / "samples").glob("images-*.png")):
        copied = client.download_artifacts(logged.info.run_id, f"samples/{grid.name}", str(tmp_path))
        assert Path(copied).read_bytes() == grid.read_bytes()
    address = json.loads((folder / "mlflow/run.json").read_text())
    assert address == {"run_id": logged.info.run_id, "address": uri}
    assert folder.name == plain.name
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_resumed_run_is_the_same_run_with_each_value_once(run, stop_at, store, on_store, tmp_path):
    stop_at(7, lambda: run(tmp_path, on_store))
    client, [before] = runs_of(store, tmp_path.name)
    assert before.info.status == "RUNNING"
    assert max(history_of(client, before)[0]) == 6
    assert run(tmp_path, on_store).first_step == 4
    _, [after] = runs_of(store, tmp_path.name)
    assert after.info.run_id == before.info.run_id
    assert history_of(client, after) == (losses_of(only(tmp_path)), results_of(only(tmp_path)))
    assert after.info.status == "FINISHED"


@pytest.mark.slow
def test_a_metric_that_is_added_later_joins_the_run_and_fresh_is_a_new_one(run, store, on_store, tmp_path):
    run(tmp_path, on_store)
    assert run(tmp_path, on_store, "metrics.again.use=l1").first_step is None
    client, [logged] = runs_of(store, tmp_path.name)
    assert history_of(client, logged)[1]["final/again"] == history_of(client, logged)[1]["final/l1"]
    assert run(tmp_path, on_store, flags=["--fresh"]).exit_code == 0
    assert len(runs_of(store, tmp_path.name)[1]) == 2


def test_a_store_that_does_not_answer_is_one_line_before_training(run, tmp_path, monkeypatch):
    monkeypatch.undo()  # the network: nothing listens at this address of the machine itself
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    answer = run(tmp_path, IN_RUN)
    assert (answer.exit_code, answer.first_step) == (2, None)
    line = answer.output.splitlines()[-1]
    assert line.startswith("mlflow does not start: http://127.0.0.1:9: ")
    assert line.endswith("(check tracking_uri, or remove it to log into the run's folder)")
    assert "secret" not in answer.output


def test_a_recipe_has_no_password(run, tmp_path):
    answer = run(tmp_path, 'callbacks.tracker={use="mlflow", tracking_uri="http://me:secret@127.0.0.1:9"}')
    assert (answer.exit_code, answer.first_step) == (2, None)
    assert "tracking_uri has a password" in answer.output.splitlines()[-1]
    assert answer.output.splitlines()[-1].endswith("put the address into $MLFLOW_TRACKING_URI")


def test_a_store_that_fails_later_stops_no_training(run, on_store, plain, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    log_batch, calls = MlflowClient.log_batch, []

    def fail(self, run_id, metrics=(), **others):
        if metrics:
            calls.append(metrics)
            raise ConnectionError("the server is gone")
        return log_batch(self, run_id, **others)

    monkeypatch.setattr(MlflowClient, "log_batch", fail)
    answer = run(tmp_path, on_store)
    assert answer.exit_code == 0, answer.output
    warning = (
        "warning: mlflow failed at 2 images and logs no more of this run: ConnectionError: the server is gone. The "
        "training goes on; metrics.jsonl has all values"
    )
    assert answer.output.count(warning) == 1
    assert len(calls) == 1
    assert (only(tmp_path) / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
