"""Which checks each kind has, and how pytest is given them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from p2pzoo.testing import augmentations, callbacks, data, losses, metrics, models, networks
from p2pzoo.testing.kit import Check, Trial, trials
from p2pzoo.testing.training import check_training

BOTH = (
    networks.check_gradients, networks.check_seed, networks.check_modes, networks.check_file, networks.check_meta,
    networks.check_bf16, networks.check_compile, networks.check_export, networks.check_rewrites, check_training,
)  # fmt: skip
TERMS = (losses.check_scalar, losses.check_gradients, losses.check_other_side, losses.check_minimum, check_training)

CHECKS: dict[str, tuple[Check, ...]] = {
    "generator": (networks.check_shapes, networks.check_range, *BOTH),
    "discriminator": (networks.check_shapes, networks.check_logits, networks.check_gradients_reach_y, *BOTH),
    "gan_loss": TERMS,
    "loss": TERMS,
    "dataset": (
        data.check_pairs, data.check_range, data.check_repeats, data.check_ids, data.check_splits, data.check_pickle,
        data.check_aligned, check_training,
    ),
    "metric": (metrics.check_batches, metrics.check_order, metrics.check_perfect),
    "callback": (callbacks.check_changes_nothing,),
    "model": (models.check_translates, models.check_card),
    "augmentation": (
        augmentations.check_shapes, augmentations.check_repeats, augmentations.check_batches,
        augmentations.check_aligned, augmentations.check_gradients, check_training,
    ),
}  # fmt: skip


def trials_of(
    plugin: str,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Trial]:
    """See `kit.trials`."""
    return trials(plugin, CHECKS, parameters, expected_failures)


def conformance(
    plugin: str,
    *,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[Trial], None]:
    """Tests for pytest, one per component and check: `test_mine = conformance("my-plugin")`.

    parameters         {component: {parameter: value}} of those that are not to have their defaults; a `width` that is
                       not given is small
    expected_failures  {check: reason}, {"component.check": reason} or {"kind.component.check": reason}. One that
                       passes all the same is a failure

    A component is named as recipes name it, or "kind.name" where two kinds share a name. What cannot be checked here,
    for want of weights, say, is skipped with the reason. Raises UserError for a plugin that is not installed, and for
    names that are nobody's.
    """
    import pytest

    @pytest.mark.parametrize("trial", trials_of(plugin, parameters, expected_failures), ids=str)
    def test(trial: Trial) -> None:
        finding = trial.run()
        if finding.status == "does not apply":
            pytest.skip(finding.told)
        if finding.status == "expected failure":
            pytest.xfail(finding.told)
        if finding.error:
            raise finding.error
        if finding.status == "fail":
            pytest.fail(finding.told, pytrace=False)

    return test
