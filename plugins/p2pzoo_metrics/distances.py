"""Distances between two sets of feature vectors: the kernel distance (KID) and the Fréchet distance (FID).

Pure functions of features, (N, d) each, computed in float64. Imports torch.
"""

import torch
from torch import Tensor

from p2pzoo.utils.plurals import format_count

ROWS = 1024  # whose distances to all others are in memory at a time


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate of MMD² with k(u, v) = (u·v / d + 1)³, Bińkowski et al. 2018 (arXiv:1801.01401), Eq. 4.

    One estimate from all rows, not a mean over subsets. It can be negative. NaN if either set has fewer than two rows.
    Unbiased for independent samples; for pairs see `paired_kernel_distance`.

    >>> kernel_distance(torch.zeros(2, 1), torch.ones(2, 1))  # within zeros 1, within ones 8, across 1
    7.0
    """
    return _unpaired(*_kernels(a, b))


def paired_kernel_distance(a: Tensor, b: Tensor) -> float:
    """The same for rows that form pairs: the i-th rows of a and b are never compared with each other.

    The U-statistic of Gretton et al. 2012 (JMLR 13), Eq. 4. Unbiased however much the rows of a pair have in common,
    and exactly 0 if a = b. Raises ValueError if the numbers of rows differ.
    """
    _check_pairs(a, b)
    return _paired(*_kernels(a, b))


def kernel_distances(a: Tensor, b: Tensor) -> tuple[float, float]:
    """`kernel_distance` and `paired_kernel_distance`, in half the time that the two take.

    >>> kernel_distances(torch.zeros(2, 1), torch.ones(2, 1))
    (7.0, 7.0)
    """
    _check_pairs(a, b)
    kernels = _kernels(a, b)
    return _unpaired(*kernels), _paired(*kernels)


def block_kernel_distance(a: Tensor, b: Tensor, blocks: Tensor) -> float:
    """`paired_kernel_distance` without comparisons of two rows of the same block, in all of its terms.

    blocks  (N,) integers: images of one region or scene resemble each other, and may overlap

    NaN with a single block. With a block for each row it is `paired_kernel_distance`.

    >>> block_kernel_distance(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0, 1]))
    7.0
    """
    _check_pairs(a, b)
    within_a, within_b, across = _kernels(a, b)
    differ = blocks[:, None] != blocks[None, :]
    across = (across + across.T) / 2  # the mean over (i, j) and (j, i), so that the mask takes both
    return (within_a + within_b - 2 * across)[differ].mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), Heusel et al. 2017 (arXiv:1706.08500).

    NaN if either set has fewer than two rows or a value that is not finite.

    With Σ = XᵀX of centred rows X / √(N − 1), the eigenvalues of Σa Σb are the squared singular values of Xa Xbᵀ. So no
    matrix root is computed, and no covariance needs full rank.
    """
    a, b = a.double(), b.double()
    if min(len(a), len(b)) < 2 or not (a.isfinite().all() and b.isfinite().all()):
        return float("nan")
    roots = [_covariance_root(rows) for rows in (a, b)]
    traces = sum(root.square().sum() for root in roots)
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return (shift + traces - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()).item()


def rbf_distance(a: Tensor, b: Tensor, sigma: float) -> float:
    """MMD² with the kernel exp(−‖u − v‖² / (2 σ²)) of rows scaled to length 1, each compared with itself too.

    So it is biased upwards (Gretton et al. 2012, JMLR 13, Eq. 5): for two sets of N rows of one distribution, its
    expectation is 2 (1 − E k(u, u')) / N.

    >>> rbf_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), 10.0)
    0.0
    """
    a, b = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (a, b))

    def mean_kernel(u: Tensor, v: Tensor) -> Tensor:
        sums = [torch.exp((rows @ v.T - 1) / sigma**2).sum() for rows in u.split(ROWS)]  # ‖u − v‖² = 2 − 2 u·v
        return torch.stack(sums).sum() / (len(u) * len(v))

    return (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)).item()


def precision_recall_density_coverage(fake: Tensor, real: Tensor, nearest: int) -> dict[str, float]:
    """The four numbers of Naeem et al. 2020 (arXiv:2002.09797), section 3, by Euclidean distances.

    A ball around a row reaches to its `nearest`-th neighbour in its own set, itself not counted; to the farthest if
    there are fewer. All four are NaN with fewer than two rows, or with a value that is not finite.

    >>> points = torch.arange(6.0)[:, None]
    >>> precision_recall_density_coverage(points, points, nearest=1)
    {'precision': 1.0, 'recall': 1.0, 'density': 1.0, 'coverage': 1.0}
    """
    names = ("precision", "recall", "density", "coverage")
    if min(len(fake), len(real)) < 2 or not (fake.isfinite().all() and real.isfinite().all()):
        return dict.fromkeys(names, float("nan"))
    fake, real = fake.double(), real.double()
    radius_real, radius_fake = (_ball_radii(rows, nearest) for rows in (real, fake))
    balls = torch.zeros(len(fake), dtype=torch.int64)  # of real rows, that hold each fake one
    recalled = covered = 0
    for rows, radii in zip(real.split(ROWS), radius_real.split(ROWS), strict=True):
        across = _distances(rows, fake)  # [i, j]: from the i-th real row to the j-th fake one
        balls += (across < radii[:, None]).sum(0)
        recalled += int((across < radius_fake[None, :]).any(1).sum())
        covered += int((across.min(1).values < radii).sum())
    numbers = (
        (balls > 0).double().mean().item(), recalled / len(real), balls.double().mean().item() / nearest,
        covered / len(real),
    )  # fmt: skip
    return dict(zip(names, numbers, strict=True))


def _ball_radii(rows: Tensor, nearest: int) -> Tensor:
    kth = min(nearest + 1, len(rows))
    return torch.cat([_distances(part, rows).kthvalue(kth, dim=1).values for part in rows.split(ROWS)])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, without the faster way by a product, whose last digits depend on the order of the rows."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _check_pairs(a: Tensor, b: Tensor) -> None:
    if len(a) != len(b):
        raise ValueError(f"a has {format_count(len(a), 'row')} and b has {len(b)}: pairs need equal numbers of rows")


def _kernels(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of all rows of a with a, of b with b, and of a with b."""
    a, b = a.double(), b.double()
    return _kernel(a, a), _kernel(b, b), _kernel(a, b)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _unpaired(within_a: Tensor, within_b: Tensor, across: Tensor) -> float:
    return (_mean_off_diagonal(within_a) + _mean_off_diagonal(within_b) - 2 * across.mean()).item()


def _paired(within_a: Tensor, within_b: Tensor, across: Tensor) -> float:
    return _mean_off_diagonal(within_a + within_b - 2 * across).item()


def _mean_off_diagonal(square: Tensor) -> Tensor:
    count = len(square)
    return (square.sum() - square.trace()) / square.new_tensor(count * (count - 1))


def _covariance_root(rows: Tensor) -> Tensor:
    """X with XᵀX = the covariance of the rows, and at most as many rows as columns."""
    centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred
