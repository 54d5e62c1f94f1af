"""The null GPU's own rules: each call that CUDA forbids in a capture, and the error that PyTorch raises then."""

import contextlib
import threading

import torch
from null_gpu.run import counting
from null_gpu.training import print_results


def _capture(function, mode="global"):
    """Capture `function`. Return its own error, and the error at the end of the capture."""
    errors = {"inside": None, "end": None}
    weight = torch.zeros(8, device="cuda")
    side = torch.cuda.Stream()
    try:
        with counting() as counted, torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode=mode):
            weight.add_(1)
            try:
                function(weight, side)
            except RuntimeError as error:
                errors["inside"] = str(error).splitlines()[0]
    except RuntimeError as error:
        errors["end"] = str(error).splitlines()[0]
        torch.cuda.set_stream(torch.cuda.default_stream())
    return {**errors, "captured": counted.get("captured", 0)}


def launch(weight, side):
    weight.mul_(2)


def synchronize(weight, side):
    torch.cuda.current_stream().synchronize()


def synchronize_the_device(weight, side):
    torch.cuda.synchronize()


def read_a_value(weight, side):
    weight.sum().item()


def use_joined_stream(weight, side):
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        weight.mul_(2)
    torch.cuda.current_stream().wait_stream(side)


def use_unjoined_stream(weight, side):
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        weight.mul_(2)


def wait_for_work_outside(weight, side):
    with torch.cuda.stream(side):
        weight.mul_(2)
    torch.cuda.current_stream().wait_stream(side)


def allocate_for_a_stream_outside(weight, side):
    with torch.cuda.stream(side):
        torch.empty(8, device="cuda")


def query_an_event_in_another_thread(weight, side):
    event = torch.cuda.Event()
    event.record(side)

    def query():
        with contextlib.suppress(RuntimeError):
            event.query()

    thread = threading.Thread(target=query)
    thread.start()
    thread.join()


def read_numbers_that_are_not_finite():
    """Losses on the null GPU are what its memory held; a nan would end a training."""
    numbers = torch.tensor([float("nan"), float("inf"), 1.5]).cuda()
    return {"on_the_device": numbers.tolist(), "on_the_cpu": str(numbers.cpu().tolist()[0])}


RULES = [
    launch, synchronize, synchronize_the_device, read_a_value, use_joined_stream, use_unjoined_stream,
    wait_for_work_outside, allocate_for_a_stream_outside, query_an_event_in_another_thread,
]  # fmt: skip

if __name__ == "__main__":
    scenarios = {function.__name__: lambda function=function: _capture(function) for function in RULES}
    scenarios["in_thread_local_mode"] = lambda: _capture(query_an_event_in_another_thread, "thread_local")
    scenarios["read_numbers_that_are_not_finite"] = read_numbers_that_are_not_finite
    print_results(scenarios)
