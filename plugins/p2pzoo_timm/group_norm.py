"""Group norm (Wu & He 2018, arXiv:1803.08494) in place of a backbone's batch norm. Imports torch and timm only."""

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from p2pzoo.utils.group_norm import count_groups


class ActivatedGroupNorm(nn.GroupNorm):
    """A group norm, and the dropout and activation that followed a BatchNormAct2d of timm."""

    def __init__(self, groups: int, channels: int, *, eps: float, affine: bool, drop: nn.Module, act: nn.Module):
        super().__init__(groups, channels, eps=eps, affine=affine)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(x)))
        return activated


def replace_batch_norms(net: nn.Module) -> int:
    """Replace all batch norms of a network by group norms with their weights. Returns how many there were.

    Raises ValueError for batch norms that are not those of images.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    >>> replace_batch_norms(net), type(net[1]).__name__
    (1, 'GroupNorm')
    """
    count = 0
    for parent in list(net.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                parent.register_module(name, _as_group_norm(norm))
                count += 1
    return count


def _as_group_norm(norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    groups, channels, affine = count_groups(norm.num_features), norm.num_features, norm.affine
    if isinstance(norm, BatchNormAct2d):
        parts = {"drop": norm.drop, "act": norm.act}
        group: nn.GroupNorm = ActivatedGroupNorm(groups, channels, eps=norm.eps, affine=affine, **parts)
    elif type(norm) is nn.BatchNorm2d:
        group = nn.GroupNorm(groups, channels, eps=norm.eps, affine=affine)
    else:
        raise ValueError(f"group norm cannot replace its {type(norm).__name__}: choose another backbone")
    if affine:  # timm sets some to 0, so that residual blocks begin as their skips
        group.weight, group.bias = norm.weight, norm.bias
    return group.train(norm.training)
