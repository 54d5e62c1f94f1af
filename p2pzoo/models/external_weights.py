"""External weights when a network is built, and when a file is read: put in place, and found again by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from p2pzoo.config.experiment import Component
from p2pzoo.models.build import build_network
from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.utils import rng
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.external_weights import external_names, freeze_external

HEADER_KEY = "external_weights"  # of the digest, in the headers of model files and checkpoints


def call_init_own_weights(network: nn.Module, component: Component, seed: int) -> None:
    """Call `init_own_weights` of every submodule that has it (see plugin.networks.Generator). Raises UserError."""
    with rng.torch_seed(seed), component.locate_errors():
        for module in network.modules():
            if callable(init_own_weights := getattr(module, "init_own_weights", None)):
                init_own_weights()


def bring_external_weights(network: nn.Module, component: Component, seed: int = 0) -> bool:
    """Freeze the external weights of a new network, and call `init_own_weights`, which may put them in place.

    Returns whether it has any; without any, nothing is done. Raises UserError.
    """
    with component.locate_errors():
        if not external_names(network):
            return False
        freeze_external(network)
    call_init_own_weights(network, component, seed)
    return True


def build_with_external_weights(
    component: Component, channels: tuple[int, int], size: tuple[int, int], expected: str | None, path: Path
) -> nn.Module:
    """A network on the CPU for the tensors of a file; its external weights are in place, the others are arbitrary.

    expected: the digest of external weights in the file, at `path`. Raises UserError for other weights.
    """
    try:
        with rng.torch_seed(0):
            network = build_network(component, channels, size)
        bring_external_weights(network, component)
    except UserError as error:
        raise UserError(*(f"{path}: {fault}" for fault in error.faults)) from None
    check_digest(expected, digest_external(network), _describe(component), str(path))
    return network


def load_start(network: nn.Module, component: Component, path: Path) -> Mapping[str, Tensor]:
    """The tensors of the file that a new network starts from. Also puts its external weights in place.

    Raises UserError if the file was written with others.
    """
    tensors, header = load_tensors(path)
    if bring_external_weights(network, component):
        check_digest(header.get(HEADER_KEY), digest_external(network), _describe(component), str(path))
    return tensors


class ExternalDigests:
    """The digests of the external weights of the networks in training: {"G" or "D": digest}. Others are left out.

    networks  {"G" or "D": network}
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._networks, self._is_unchecked = networks, True
        self.by_name = self._compute()

    def _compute(self) -> dict[str, str]:
        digests = {name: digest_external(network) for name, network in self._networks.items()}
        return {name: digest for name, digest in digests.items() if digest}

    def check_unchanged(self) -> None:
        """Raises UserError if training has changed external weights. Only the first call looks: early steps show it."""
        if self._is_unchecked and self._compute() != self.by_name:
            raise UserError(
                "training has changed external weights, which no file has: the network must keep their norms in eval "
                "mode (see external_weights of p2pzoo.plugin.Generator)"
            )
        self._is_unchecked = False

    def check_stored(self, stored: Mapping[str, str], path: Path) -> None:
        """Raises UserError if the checkpoint at `path` was written with other external weights."""
        for name in self._networks:
            check_digest(stored.get(name), self.by_name.get(name), name, str(path))


@torch.no_grad()
def digest_external(network: nn.Module) -> str | None:
    """The SHA-256 of the external weights, with their names, dtypes and shapes; None if there are none.

    >>> network = nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(network.bias)
    >>> network.external_weights = ("bias",)
    >>> digest_external(network)[:12]
    '9498bb0df707'
    """
    if not (names := external_names(network)):
        return None
    state, digest = network.state_dict(), hashlib.sha256()
    for name in sorted(names):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_digest(expected: str | None, brought: str | None, which: str, where: str) -> None:
    """Raises UserError if a file was written with other external weights than the network has now.

    expected  digest in the file; None: it was written without any
    brought   digest of the network's
    which     the network, "generator 'mine:lora'"
    where     the file
    """
    if expected == brought:
        return
    before, now = (f"those of SHA-256 {digest[:12]}…" if digest else "none" for digest in (expected, brought))
    raise UserError(
        f"{where}: its {which} had other external weights when it was written: {before}, and brings {now} now: install "
        "the weights that it was trained with"
    )


def _describe(component: Component) -> str:
    return f"{component.entry.kind} '{component.entry.full_name}'"


def find_external_faults(component: Component, network: nn.Module) -> list[str]:
    """Why the external weights of a generator could not be found again; empty if they could, or there are none."""
    try:
        with component.locate_errors():
            names = external_names(network)
    except UserError as error:
        return [*error.faults]
    files = [name for name, value in component.values.items() if isinstance(value, Path)]
    if not names or not files:
        return []
    place = f"{component.where}  " if component.where else ""
    return [
        f"{place}generator '{component.entry.full_name}' has external weights, and its parameter {files[0]} is a path, "
        "which no model file has: leave it out"
    ]
