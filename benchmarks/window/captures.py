"""A step that cannot be recorded as a CUDA graph, noticed only during the recording.

Training has to go on without a graph: with one warning, with the results of an eager run, and in a process that can
still record other steps.
"""

from __future__ import annotations

from typing import Any

import torch

from p2pzoo.plugin.step_outputs import StepOutputs
from p2pzoo.training.gan_step import Term
from window.build import difference
from window.context import Context, Record
from window.graphs import RUNS, train

DETERMINISTIC = "compute.deterministic=true"


class WaitsWhileRecorded:
    """A loss of 0 that waits for the device, but only during a recording. CUDA forbids that there."""

    side = "generator"

    def __init__(self) -> None:
        self.times = torch.zeros((), dtype=torch.long)  # on the CPU: a number here would forbid the recording before

    def __call__(self, out: StepOutputs) -> Any:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            self.times += 1
            torch.cuda.synchronize()
        return 0.0 * out.y_hat.mean()


def run(context: Context, record: Record) -> None:
    loss = WaitsWhileRecorded()
    terms = (Term("waits", loss, 1.0),)  # type: ignore[arg-type]
    broken, facts = train(context, (DETERMINISTIC, *RUNS["graph"]), False, terms)
    eager, _ = train(context, (DETERMINISTIC, *RUNS["eager"]), False, terms)
    against = difference(broken, eager)
    record.set("broken recording", facts | {"recordings": int(loss.times), "against eager": against})
    record.compare("a broken recording leaves the results of an eager run", against["different"] == 0, **against)
    if context.device == "cuda":
        graph_warnings = [text for text in facts["warnings"] if "CUDA graph" in text]
        record.check("the recording was tried", int(loss.times) == 1, times=int(loss.times))
        record.check("one warning gives the reason", len(graph_warnings) == 1, warnings=facts["warnings"])
        record.check("training goes on without a graph", "cuda_graphs" not in facts["on"], on=facts["on"])
    later, facts = train(context, (DETERMINISTIC, *RUNS["graph"]), False)
    plain, _ = train(context, (DETERMINISTIC, *RUNS["eager"]), False)
    against = difference(later, plain)
    record.set("later recording", facts | {"against eager": against})
    record.compare("a later recording in this process gives the results of an eager run", against["different"] == 0)
    if context.device == "cuda":
        record.check("a later recording works", "cuda_graphs" in facts["on"], warnings=facts["warnings"])
