"""The training step: what it launches, what it waits for, and what happens if it cannot be recorded."""

import random
import threading
import time

import numpy as np
import torch
from null_gpu.run import memory_in_use, set_memory_limit
from null_gpu.training import Training, print_results
from torch.optim.optimizer import register_optimizer_step_pre_hook

from p2pzoo.compute.cuda_graphs import WARMUP_STEPS

GIGABYTE = 1 << 30


def counts():
    return _count_steps()


def counts_deterministic():
    return _count_steps(deterministic=True)


def _count_steps(**compute):
    """Count an eager step and a replayed one."""
    training = Training(compute=compute)
    training.step()
    eager = training.count_step()
    training.step(WARMUP_STEPS)
    return {"eager": eager, "replayed": training.count_step(), **_outcome(training)}


def samples_in_the_prefetch_thread():
    def sample():
        for _ in range(100):
            random.random(), np.random.rand(), torch.rand(1)
            time.sleep(1e-4)

    training = Training(in_prefetch=sample)
    training.step(WARMUP_STEPS + 1)
    return _outcome(training)


def pins_memory_in_another_thread_while_recorded():
    """As the prefetch threads may, by functions of CUDA that the thread of a capture must not call."""
    pinned = []

    def pin():
        for size in range(20, 25):
            pinned.append(torch.empty(1 << size, dtype=torch.uint8, pin_memory=True))
            pinned.append(torch.empty(8, pin_memory=True).to("cuda", non_blocking=True))

    def run_in_thread():
        thread = threading.Thread(target=pin)
        thread.start()
        thread.join()

    return {**_train_with(_while_recorded(run_in_thread)), "num_pinned": len(pinned)}


def samples_in_a_loss():
    return _train_with(lambda out: random.random() * out.y_hat.mean())


def waits_in_a_loss():
    return _train_with(lambda out: out.y_hat.mean() * out.y_hat.mean().item())


def waits_while_recorded():
    return _train_with(_while_recorded(lambda: torch.cuda.current_stream().synchronize()))


def raises_while_recorded():
    return _train_with(_while_recorded(_fail))


def raises_in_an_optimizer_while_recorded_in_fp16():
    """The loss scaler is between two of its calls then, and gradients and scale have been handed to the optimizer."""

    def before_step(optimizer, *_):
        if torch.cuda.is_current_stream_capturing():
            _fail()

    hook = register_optimizer_step_pre_hook(before_step)
    try:
        return _train_with(lambda out: out.y_hat.mean(), compute={"precision": "fp16"})
    finally:
        hook.remove()


def _fail():
    raise ValueError("not now")


def needs_too_much_memory_while_recorded():
    """The recording asks for 1 GB where 64 MB are left."""
    try:
        return _train_with(
            _while_recorded(lambda: torch.empty(GIGABYTE, dtype=torch.uint8, device="cuda")), spare=64 << 20
        )
    finally:
        set_memory_limit(0)


class Loss:
    side = "generator"

    def __init__(self, function):
        self.function = function

    def __call__(self, out):
        return self.function(out)


def _while_recorded(function):
    def loss(out):
        if torch.cuda.is_current_stream_capturing():
            function()
        return out.y_hat.mean()

    return loss


def _train_with(loss, *, spare=0, **settings):
    """Train until after the step that would be recorded, with a bound on the memory if `spare` bytes are given."""
    training = Training(extra=[Loss(loss)], **settings)
    training.step(WARMUP_STEPS)
    torch.cuda.empty_cache()
    used = memory_in_use()
    set_memory_limit(spare and used + spare)
    training.step(WARMUP_STEPS)
    torch.cuda.empty_cache()
    return {**_outcome(training), "more_memory": memory_in_use() - used, "later": training.count_step()}


def _outcome(training):
    optimizers = [trainable.optimizer for trainable in training.objective.trainables]
    networks = [trainable.network for trainable in training.objective.trainables]
    return {
        "precision": training.engine.precision,
        "is_recorded": training.is_recorded,
        "warnings": training.warnings,
        "is_default_stream": torch.cuda.current_stream() == torch.cuda.default_stream(),
        "num_gradients": sum(p.grad is not None for network in networks for p in network.parameters()),
        "is_scaled": any(hasattr(optimizer, "grad_scale") for optimizer in optimizers),
    }


if __name__ == "__main__":
    scenarios = [
        counts,
        counts_deterministic,
        samples_in_the_prefetch_thread,
        pins_memory_in_another_thread_while_recorded,
        samples_in_a_loss,
        waits_in_a_loss,
        waits_while_recorded,
        raises_while_recorded,
        raises_in_an_optimizer_while_recorded_in_fp16,
        needs_too_much_memory_while_recorded,
    ]
    print_results({function.__name__: function for function in scenarios})
