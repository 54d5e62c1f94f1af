"""Build the null GPU, and run scripts on it in child processes. pytest's workers share both."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest
from null_gpu import build

HERE = Path(__file__).parent
TIMEOUT = 900  # seconds of a script


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of all workers of this pytest session."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "null_gpu"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def built(shared_folder):
    """The folder of the built null GPU."""
    if obstacle := build.find_obstacle():
        pytest.skip(obstacle)
    with filelock.FileLock(shared_folder / "build.lock"):
        folder = shared_folder / "build"
        if not (folder / build.DRIVER).exists():  # it is built last
            build.build(folder)
    return folder


@pytest.fixture(scope="session")
def start_on_null_gpu(built):
    """start_on_null_gpu(*arguments, NULL_CC="75", …): a process of run.py with these arguments and variables."""

    processes = []

    def start(*arguments, **variables):
        process = subprocess.Popen(
            [sys.executable, HERE / "run.py", *map(str, arguments)],
            env={**os.environ, "NULL_GPU_BUILD": str(built), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()  # those that a failed test has left


@pytest.fixture(scope="session")
def scenarios(start_on_null_gpu, shared_folder):
    """scenarios(script, name, NULL_CC="75", …): the result of this scenario of a script.

    A script runs once for all workers and tests; `alone`, and with variables, only this scenario of it.
    """

    def scenarios(script, name, *, alone=False, **variables):
        only = [name] if alone or variables else []
        key = "-".join([script, *only, *map("=".join, sorted(variables.items()))])
        file = shared_folder / f"{key}.json"
        with filelock.FileLock(shared_folder / f"{key}.lock"):
            if not file.exists():
                process = start_on_null_gpu(HERE / script, *only, **variables)
                timer = threading.Timer(TIMEOUT, process.kill)
                timer.start()
                stdout, stderr = process.communicate()
                timer.cancel()
                lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
                results = {name: result for line in lines for name, result in line.items()}
                file.write_text(json.dumps({"results": results, "stderr": stderr}))
        output = json.loads(file.read_text())
        assert name in output["results"], output["stderr"]
        result = output["results"][name]
        assert "error" not in result, result["error"]
        return result

    return scenarios
