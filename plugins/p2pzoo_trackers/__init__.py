"""Runs shown elsewhere: callbacks that hand their losses, pictures and numbers to a tracker.

Imports p2pzoo only: trackers are loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_callbacks(register):
    register(
        "tensorboard",
        "p2pzoo_trackers.trackers:TensorBoard",
        summary="Losses, pictures and numbers in TensorBoard's files, in the run's folder (p2pzoo[tensorboard])",
        paper="https://www.tensorflow.org/tensorboard",
    )
    register(
        "wandb",
        "p2pzoo_trackers.trackers:WandB",
        summary="Losses, pictures and numbers in Weights & Biases (p2pzoo[wandb])",
        paper="https://docs.wandb.ai",
    )
