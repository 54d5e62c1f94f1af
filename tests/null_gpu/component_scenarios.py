"""Is a training step with this component or setting recorded? A scenario for each of the first-party plugins."""

import functools
import tempfile
from pathlib import Path

from null_gpu.training import Training, print_results
from small_networks import SMALL_NETWORKS
from vgg_weights import VGG_WEIGHTS, write_vgg_weights

from p2pzoo.compute.cuda_graphs import WARMUP_STEPS
from p2pzoo.plugin.loader import registry
from p2pzoo.testing.component_case import ComponentCase, DoesNotApply

SCRIPT = "component_scenarios.py"
KINDS = ("generator", "discriminator", "process", "gan_loss", "loss", "augmentation")
OPTIMIZERS = ("optimizer Adam", "optimizer AdamW", "optimizer SGD", "optimizer RMSprop")
SETTINGS = {  # name: tables
    "batch_size 4": {"train": {"batch_size": 4}},
    "d_steps 2": {"train": {"d_steps": 2}},
    "accumulate 2": {"train": {"accumulate": 2}},
    "order lua": {"train": {"order": "lua"}},
    "zero_biases": {"train": {"zero_biases": True}},
    "spectral_norm both": {"train": {"spectral_norm": "both"}},
    "pool_size 4": {"train": {"pool_size": 4}},
    "clip_norm": {"optimizer": {"clip_norm": 1.0}},
    "clip_norm in fp16": {"optimizer": {"clip_norm": 1.0}, "compute": {"precision": "fp16"}},
    "eps_before_correction": {"optimizer": {"eps_before_correction": True}},
    "fp32": {"compute": {"precision": "fp32"}},
    "fp16": {"compute": {"precision": "fp16"}},
    "fused_adam off": {"compute": {"fused_adam": False}},
    "channels_last off": {"compute": {"channels_last": False}},
    "one_pass off": {"compute": {"one_pass": False}},
    "checkpointing": {"compute": {"checkpointing": True}},
}
PARAMETERS = {
    **SMALL_NETWORKS,
    "losses": {"ms-ssim": {"scales": 2}},
    "process": {"bridge": {"loss_weight": "snr"}},
}


def first_party_components():
    """{"kind name": entry} of all components that take part in a training step."""
    entries = [entry for kind in KINDS for entry in registry().of(kind) if entry.distribution.startswith("p2pzoo ")]
    return {f"{entry.kind} {entry.name}": entry for entry in entries}


def count_steps(case=None, **settings):
    """Train until after the step that is recorded. Return the reason if it is not."""
    try:
        training = Training(case, **settings)
    except DoesNotApply as reason:
        return {"skipped": str(reason)}
    training.step(WARMUP_STEPS - 1)
    eager = training.count_step()
    training.step(2)
    counted = training.count_step()
    return {"is_recorded": training.is_recorded, "warnings": training.warnings, "eager": eager, "later": counted}


def train_component(entry):
    of_plugin = PARAMETERS.get(entry.plugin, {})
    parameters = of_plugin.get(f"{entry.kind}.{entry.name}", of_plugin.get(entry.name))
    with tempfile.TemporaryDirectory() as folder:
        if entry.kind == "loss" and entry.name in VGG_WEIGHTS:
            parameters = write_vgg_weights(Path(folder))[entry.name]
        return count_steps(ComponentCase.from_entry(entry, parameters))


def _scenarios():
    for name, entry in first_party_components().items():
        yield name, functools.partial(train_component, entry)
    for name, tables in SETTINGS.items():
        yield name, functools.partial(count_steps, **tables)
    for name in OPTIMIZERS:
        yield name, functools.partial(count_steps, optimizer={"use": name.removeprefix("optimizer ")})


if __name__ == "__main__":
    print_results(dict(_scenarios()))
