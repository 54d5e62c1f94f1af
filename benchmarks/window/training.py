"""Training runs of the paper's losses and discriminators, several processes at once on one device.

The rate that all processes together reach, measured first, fixes the number of images N of every run. Each run is
evaluated after N/8, N/4, N/2 and N images, with the last weights and with their moving average (runs.py).
"""

from __future__ import annotations

import json
import math
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from window.context import Context, Record, say
from window.plan import ROWS

WORKER = Path(__file__).with_name("runs.py")
SHARE = 0.9  # of the time left that the measured rate may fill
RATED = "L1 + cGAN"  # the run whose rate fixes the number of images: no other has more work in a step
MILESTONES = (1 / 8, 1 / 4, 1 / 2, 1)


class Worker:
    """A process that trains one run after the other. It takes a line of JSON for each, and answers with lines."""

    def __init__(self, context: Context) -> None:
        command = [sys.executable, str(WORKER), "--context", context.dump()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> Any:
        """Yield the answers to a request; the last one has "done"."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"a worker ended with code {self.process.wait()}: {request}")
            answer = json.loads(line)
            yield answer
            if "done" in answer:
                return

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()


def run(context: Context, record: Record) -> None:
    sizes = context.sizes
    workers = [Worker(context) for _ in range(sizes.workers)]
    _ask_all(workers, {"do": "wait"})  # all have started
    rates = measure_rates(workers, context)
    record.set("rates", rates)
    working = [worker for worker, rate in zip(workers, rates["together"], strict=True) if "error" not in rate]
    jobs = [(row, seed) for seed in range(sizes.seeds) for row in sizes.rows]
    images = choose_images(rates, math.ceil(len(jobs) / max(1, len(working))), context)
    record.set("images", images)
    record.set("rows", {row: {"recipe": ROWS[row][0], "overrides": list(ROWS[row][1])} for row in sizes.rows})
    runs = train_all(working, jobs, images, context, record)
    complete = sum(each["status"] == "complete" for each in runs.values())
    record.check("every run is complete", complete == len(jobs), complete=complete, runs=len(jobs))
    for worker in workers:
        worker.end()


def measure_rates(workers: list[Worker], context: Context) -> dict[str, Any]:
    """Images per second of one process alone, and of each while all of them train."""
    request = {"do": "rate", "row": RATED, "seconds": context.sizes.rate_seconds}
    alone = _ask_all(workers[:1], request)
    return {"alone": alone[0], "together": _ask_all(workers, request)}


def _ask_all(workers: list[Worker], request: dict[str, Any]) -> list[dict[str, Any]]:
    """The last answers of the workers to the same request, asked at the same time."""
    answers: list[dict[str, Any]] = [{} for _ in workers]

    def ask(number: int) -> None:
        try:
            *_, answers[number] = workers[number].ask(**request)
        except (RuntimeError, OSError) as error:  # it ended
            answers[number] = {"error": str(error)}

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def choose_images(rates: dict[str, Any], turns: int, context: Context) -> int:
    """The largest number of images of a run for which all of them fit into the time left: a multiple of 8."""
    measured = [rate for rate in rates["together"] if "error" not in rate]
    if not measured:
        return 0
    rate = min(each["images_per_second"] for each in measured)
    fixed = max(each["build_seconds"] + 2 * len(MILESTONES) * each["evaluation_seconds"] for each in measured)
    seconds = SHARE * context.left() / turns - fixed
    return max(8, min(context.sizes.images, int(rate * seconds)) // 8 * 8)


def train_all(
    workers: list[Worker], jobs: list[tuple[str, int]], images: int, context: Context, record: Record
) -> dict[str, Any]:
    """Train all runs. Their results are stored at each milestone."""
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    runs: dict[str, Any] = {}
    lock = threading.Lock()

    def work(worker: Worker) -> None:
        while True:
            try:
                row, seed = waiting.get_nowait()
            except queue.Empty:
                return
            name = f"{row}, seed {seed}"
            began = time.time()
            with lock:
                runs[name] = entry = {"row": row, "seed": seed, "status": "running", "milestones": []}
            try:
                for answer in worker.ask(do="train", row=row, seed=seed, images=images, milestones=MILESTONES):
                    with lock:
                        if "done" in answer:
                            entry |= {"status": answer["done"], "seconds": round(time.time() - began, 2)}
                            entry |= {"facts": answer.get("facts", {})}
                        else:
                            entry["milestones"].append(answer)
                        record.set("runs", runs)
            except (RuntimeError, OSError) as error:  # the worker ended
                say(str(error))
                with lock:
                    entry["status"] = str(error)
                    record.set("runs", runs)
                return

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return runs
