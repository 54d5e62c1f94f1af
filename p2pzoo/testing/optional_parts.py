"""Checks of what a network may offer or ask for besides G(x) and D(x, y), where a component declares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from p2pzoo.models.external_weights import digest_external
from p2pzoo.testing.component_case import ComponentCase, DoesNotApply, output_maps
from p2pzoo.testing.networks import build_trained_network, call_with_target, compute_training_output
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError


def check_generator_features(case: ComponentCase) -> None:
    """`features(x)`, where G has it, is a list of tensors (B, C, h, w) through which gradients reach x.

    With `takes_time` also `features(x, t)`.
    """
    network: Any = case.copy_network()
    if not callable(getattr(network, "features", None)):
        raise DoesNotApply("has no `features`")
    x, *t = case.example_inputs()
    x.requires_grad_()
    for inputs in ((x,), (x, *t)) if t else ((x,),):
        features = network.features(*inputs)
        is_list = isinstance(features, list) and features and all(isinstance(each, Tensor) for each in features)
        assert is_list, "`features` does not return a list of tensors"
        for each in features:
            is_map = each.ndim == 4 and len(each) == len(x)
            assert is_map, f"`features` has a tensor of the shape {tuple(each.shape)}, not (B, C, h, w)"
        x.grad = None
        torch.stack([each.square().mean() for each in features]).sum().backward()
        assert x.grad is not None, "no gradient of `features` reaches x"
        assert x.grad.isfinite().all(), "the gradient of `features` at x is nan or inf"


def check_generator_z(case: ComponentCase) -> None:
    """With `takes_z`, `draw_z(x)` samples a z per image, and in eval mode ŷ of G(x, z=z) depends on x and z alone."""
    network: Any = build_trained_network(case).eval()
    if not getattr(network, "takes_z", False):
        raise DoesNotApply("takes no z")
    assert not case.takes_time, "has `takes_z` and `takes_time`: it can have one of the two"
    x = case.example_inputs()[0]
    with torch.no_grad(), rng.torch_seed(0):
        z, other = network.draw_z(x), network.draw_z(x)
        assert isinstance(z, Tensor), f"`draw_z` returns a {type(z).__name__}, not a tensor"
        assert len(z) == len(x), f"`draw_z` returns a z of the shape {tuple(z.shape)} for {len(x)} images"
        assert not torch.equal(z, other), "`draw_z` returns the same z twice"
        first, again, second = (network(x, z=each) for each in (z, z, other))
    assert torch.equal(first, again), "gives two results for the same z"
    assert not torch.equal(first, second), "ŷ does not depend on z"


def check_discriminator_labels(case: ComponentCase) -> None:
    """A D that is registered with `needs=("labels",)` gives other logits for other labels."""
    if "labels" not in case.component.entry.needs:
        raise DoesNotApply("needs no labels")
    network, (x, y, labels) = build_trained_network(case).eval(), case.example_inputs()
    with torch.no_grad():
        outputs = [output_maps(network(x, y, given)) for given in (labels, labels.flip(0))]
    depends = not all(map(torch.equal, *outputs))
    assert depends, 'its logits do not depend on labels: register it without needs=("labels",)'


def check_generator_sees_target(case: ComponentCase) -> None:
    """With `sees_target`, G(x, y) gives ŷ and a finite scalar for each name in `loss_weights`, and G(x) gives ŷ."""
    network: Any = case.copy_network()
    if not getattr(network, "sees_target", False):
        raise DoesNotApply("does not see the target")
    assert not case.takes_time, "has `sees_target` and `takes_time`: it can have one of the two"
    weights = getattr(network, "loss_weights", None)
    is_mapping = isinstance(weights, Mapping) and all(isinstance(each, int | float) for each in weights.values())
    assert is_mapping, f"`loss_weights` is {weights!r}: it must be {{name of a loss: weight}}"
    y_hat, losses = call_with_target(case, network)
    assert y_hat.shape == case.example_inputs()[0].shape, f"ŷ of G(x, y) has the shape {tuple(y_hat.shape)}"
    for name, loss in losses.items():
        is_scalar = isinstance(loss, Tensor) and loss.shape == ()
        assert is_scalar, f"its loss '{name}' is no scalar tensor"
        assert loss.isfinite(), f"its loss '{name}' is {loss.item()}"
    with torch.no_grad(), rng.torch_seed(0):
        assert isinstance(network(*case.example_inputs()), Tensor), "G(x) does not return ŷ alone"


def check_generator_interval(case: ComponentCase) -> None:
    """`interval(x)`, where G has it, is a finite lower and upper bound in the shape of ŷ, which never cross."""
    network: Any = build_trained_network(case)
    if not callable(getattr(network, "interval", None)):
        raise DoesNotApply("has no `interval`")
    x = case.example_inputs()[0]
    for training in (True, False):
        with torch.no_grad(), rng.torch_seed(0):
            bounds = network.train(training).interval(x)
        is_pair = isinstance(bounds, tuple) and len(bounds) == 2 and all(isinstance(each, Tensor) for each in bounds)
        assert is_pair, "`interval` does not return a tuple of two tensors"
        for name, bound in zip(("lower", "upper"), bounds, strict=True):
            assert bound.shape == x.shape, f"its {name} bound has the shape {tuple(bound.shape)}, not {tuple(x.shape)}"
            assert bound.isfinite().all(), f"its {name} bound is nan or inf"
        assert (bounds[0] <= bounds[1]).all(), "its lower bound is above its upper one"


def check_external_weights(case: ComponentCase) -> None:
    """Weights that `external_weights` names are the same in each build, and do not change in training."""
    try:
        network = case.copy_network()
        digest = digest_external(network)
    except (ValueError, UserError) as error:
        raise AssertionError(str(error)) from None
    if digest is None:
        raise DoesNotApply("has no `external_weights`")
    other = digest_external(case.build_network(seed=1))
    assert digest == other, "its external weights differ from build to build, so that no model file finds them again"
    with torch.no_grad(), rng.torch_seed(0):
        compute_training_output(case, network.train())
    after = digest_external(network)
    assert digest == after, "training changes its external weights: keep their norms in eval mode"
