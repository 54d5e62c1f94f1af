"""The checks of each kind, and their tests for pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from p2pzoo.testing import (
    augmentations,
    callbacks,
    data,
    losses,
    metrics,
    models,
    networks,
    optional_parts,
    processes,
    side_effects,
)
from p2pzoo.testing.component_check import CheckFunction, ComponentCheck, build_component_checks
from p2pzoo.testing.plugin_module import PLUGIN, check_plugin_imports
from p2pzoo.testing.training import check_resume, check_training

# Plugins write these names in `known_failures` and `expected_failures`: a name never changes, even if its function is
# renamed.
_NETWORK_CHECKS: dict[str, CheckFunction] = {
    "size_divisor": networks.check_network_size_divisor,
    "external_weights": optional_parts.check_external_weights,
    "inputs": side_effects.check_keeps_inputs,
    "random_numbers": side_effects.check_own_random_numbers,
    "device": side_effects.check_computes_on_device,
    "gradients": networks.check_network_gradients,
    "seed": networks.check_network_seed,
    "modes": networks.check_network_modes,
    "file": networks.check_network_file,
    "meta": networks.check_network_meta,
    "bf16": networks.check_network_bf16,
    "compile": networks.check_network_compile,
    "export": networks.check_network_export,
    "rewrites": networks.check_network_rewrites,
    "training": check_training,
    "resume": check_resume,
}
_LOSS_CHECKS: dict[str, CheckFunction] = {
    "scalar": losses.check_loss_scalar,
    "gradients": losses.check_loss_gradients,
    "other_side": losses.check_loss_other_side,
    "minimum": losses.check_loss_minimum,
    "needs": side_effects.check_declared_needs,
    "inputs": side_effects.check_keeps_inputs,
    "random_numbers": side_effects.check_own_random_numbers,
    "device": side_effects.check_computes_on_device,
    "training": check_training,
    "resume": check_resume,
}

CHECKS: dict[str, dict[str, CheckFunction]] = {
    PLUGIN: {"imports": check_plugin_imports},
    "generator": {
        "shapes": networks.check_network_shapes,
        "range": networks.check_generator_range,
        "time": networks.check_generator_time,
        "features": optional_parts.check_generator_features,
        "sees_target": optional_parts.check_generator_sees_target,
        "z": optional_parts.check_generator_z,
        "interval": optional_parts.check_generator_interval,
        **_NETWORK_CHECKS,
    },
    "discriminator": {
        "shapes": networks.check_network_shapes,
        "logits": networks.check_discriminator_logits,
        "gradients_reach_y": networks.check_discriminator_gradients_reach_y,
        "labels": optional_parts.check_discriminator_labels,
        **_NETWORK_CHECKS,
    },
    "process": {
        "shapes": processes.check_process_shapes,
        "times": processes.check_process_times,
        "time_is_seen": processes.check_process_time_is_seen,
        "repeats": processes.check_process_repeats,
        "batches": processes.check_process_batches,
        "sampler": processes.check_process_sampler,
        "modes": processes.check_process_modes,
        "never_waits": processes.check_process_never_waits,
        "inputs": side_effects.check_keeps_inputs,
        "random_numbers": side_effects.check_own_random_numbers,
        "device": side_effects.check_computes_on_device,
        "training": check_training,
        "resume": check_resume,
    },
    "gan_loss": _LOSS_CHECKS,
    "loss": {**_LOSS_CHECKS, "sample_weight": losses.check_loss_sample_weight},
    "dataset": {
        "pairs": data.check_dataset_pairs,
        "range": data.check_dataset_range,
        "repeats": data.check_dataset_repeats,
        "rebuilt": data.check_dataset_rebuilt,
        "ids": data.check_dataset_ids,
        "splits": data.check_dataset_splits,
        "pickle": data.check_dataset_pickle,
        "aligned": data.check_dataset_alignment,
        "training": check_training,
    },
    "metric": {
        "batches": metrics.check_metric_batches,
        "order": metrics.check_metric_order,
        "samples": metrics.check_metric_samples,
        "perfect": metrics.check_metric_perfect,
        "needs": side_effects.check_declared_needs,
        "inputs": side_effects.check_keeps_inputs,
        "random_numbers": side_effects.check_own_random_numbers,
    },
    "callback": {"changes_nothing": callbacks.check_callback_changes_nothing},
    "model": {"translates": models.check_model_translates, "card": models.check_model_card},
    "augmentation": {
        "shapes": augmentations.check_augmentation_shapes,
        "repeats": augmentations.check_augmentation_repeats,
        "batches": augmentations.check_augmentation_batches,
        "aligned": augmentations.check_augmentation_alignment,
        "gradients": augmentations.check_augmentation_gradients,
        "observe": augmentations.check_augmentation_observe,
        "needs": side_effects.check_declared_needs,
        "inputs": side_effects.check_keeps_inputs,
        "device": side_effects.check_computes_on_device,
        "training": check_training,
        "resume": check_resume,
    },
}


def list_component_checks(
    plugin: str,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[ComponentCheck]:
    """Every component of a plugin with every check of its kind, for code that runs the checks without pytest.

    The arguments and errors are those of `conformance`. `run()` of each item returns a CheckResult:

    >>> checks = list_component_checks("pix2pix")
    >>> result = next(check for check in checks if str(check) == "loss.l1-scalar").run()
    >>> result.status
    'pass'
    """
    return build_component_checks(plugin, CHECKS, parameters, expected_failures)


def conformance(
    plugin: str,
    *,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[ComponentCheck], None]:
    """Tests for pytest, one per component and check: `test_mine = conformance("my-plugin")`.

    parameters         {component: {parameter: value}}: values in place of the defaults. A `width` that is not given is
                       small
    expected_failures  {check: reason}, {"component.check": reason} or {"kind.component.check": reason}. An expected
                       failure that passes fails the test

    A component is named as in recipes, or as "kind.name" if two kinds share a name. A check that cannot run here, for
    example because weights are missing, is skipped with the reason. Raises UserError if the plugin is not installed or
    does not load, for names that match nothing, and for an expected failure without a reason.

    >>> test_pix2pix = conformance("pix2pix", expected_failures={"unet.bf16": "why it cannot pass"})
    """
    import pytest

    @pytest.mark.parametrize("check", list_component_checks(plugin, parameters, expected_failures), ids=str)
    def test(check: ComponentCheck) -> None:
        result = check.run()
        if result.status == "does not apply":
            pytest.skip(result.message)
        if result.status == "expected failure":
            pytest.xfail(result.message)
        if result.error:
            raise result.error
        if result.status == "fail":
            pytest.fail(result.message, pytrace=False)

    return test
