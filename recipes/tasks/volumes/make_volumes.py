"""Make phantoms of heads, as NIfTI files: pairs that look like MR (x) and CT (y). Needs p2pzoo[medical].

    python make_volumes.py phantoms --patients 10

writes phantoms/mr/sub-01_ses-1.nii.gz and phantoms/ct/ with files of the same names. Every second patient came twice.
They are no real patients, and no substitute for them: numbers on them say that the recipe works.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

# tissue: (MR signal, Hounsfield units)
AIR, SCALP, BONE, FLUID, GREY, WHITE = range(6)
SIGNAL = np.array([5, 820, 60, 190, 470, 680])
HOUNSFIELD = np.array([-1000, 20, 900, 8, 38, 28])
SHAPE, SPACING = (112, 128, 28), (1.8, 1.8, 5.0)  # voxels and mm to the left, to the back, to the head


def make_head(seed: int, shape: tuple[int, int, int] = SHAPE, spacing=SPACING) -> tuple[np.ndarray, np.ndarray]:
    """(MR-like, CT-like), int16 of this shape, of one patient. Both show the same head; noise and artefacts differ.

    MR: Rician noise that is correlated within a slice, and a smooth bias of the coil. CT: correlated noise, and the
    table below the head, which MR does not show.
    """
    rng = np.random.default_rng(seed)
    centre = (np.array(shape) - 1) / 2
    left, back, head = (
        (np.arange(length) - middle) * side
        for length, middle, side in zip(shape, centre, spacing, strict=True)
    )  # fmt: skip
    left, back, head = (
        axis.reshape([-1 if i == n else 1 for i in range(3)]) for n, axis in enumerate((left, back, head))
    )
    radii = np.array([72, 90, 78]) * rng.uniform(0.9, 1.05, 3)
    radius = np.sqrt((left / radii[0]) ** 2 + (back / radii[1]) ** 2 + (head / radii[2]) ** 2)
    radius = radius + 0.03 * smooth_noise(rng, shape, spacing, 25)

    tissue = np.full(shape, AIR)
    for limit, kind in ((1.0, SCALP), (0.92, BONE), (0.84, FLUID), (0.81, GREY)):
        tissue[radius < limit] = kind
    folds = smooth_noise(rng, shape, spacing, 7)
    tissue[radius + 0.05 * folds < 0.68] = WHITE
    for side in (-1, 1):
        ventricle = ((left - side * 12) / 7) ** 2 + ((back - 5) / 28) ** 2 + ((head - 5) / 14) ** 2
        tissue[ventricle + 0.2 * folds < 1] = FLUID
    sinus = (left / 18) ** 2 + ((back + 0.85 * radii[1]) / 12) ** 2 + ((head + 35) / 16) ** 2
    tissue[(sinus < 1) & (radius < 0.95)] = AIR

    blur = [0.6 / side for side in spacing]
    signal = gaussian_filter(SIGNAL[tissue].astype(float), blur) * (1 + 0.15 * smooth_noise(rng, shape, spacing, 60))
    real, imaginary = (18 * smooth_noise(rng, shape, spacing, 1.2, in_slice=True) for _ in range(2))
    mr = np.hypot(signal + real, imaginary)
    hounsfield = gaussian_filter(HOUNSFIELD[tissue].astype(float), blur)
    table = (np.abs(back - radii[1] * 1.12) < 4) & (np.abs(left) < 90)
    hounsfield[np.broadcast_to(table, shape) & (radius > 1.06)] = -150
    ct = hounsfield + 14 * smooth_noise(rng, shape, spacing, 1.5, in_slice=True)
    return np.rint(mr).astype(np.int16), np.rint(np.clip(ct, -1024, 3071)).astype(np.int16)


def smooth_noise(rng, shape, spacing, millimetres: float, *, in_slice: bool = False) -> np.ndarray:
    """Gaussian noise of variance 1, correlated over this distance. in_slice: slices are independent."""
    sigmas = [millimetres / side for side in spacing]
    if in_slice:
        sigmas[2] = 0
    noise = gaussian_filter(rng.standard_normal(shape), sigmas, mode="wrap")
    return noise / noise.std()


def affine_of(shape=SHAPE, spacing=SPACING) -> np.ndarray:
    """Voxel indices -> mm to the right, to the front, to the head; 0 is the centre of the volume."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, *, units: str = "mm", code: int = 1) -> Path:
    """Write a volume whose qform and sform have this code."""
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units(units)
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=10)
    arguments = parser.parse_args()
    for patient in range(1, arguments.patients + 1):
        for session in range(1, 2 + (patient % 2 == 0)):
            mr, ct = make_head(100 * patient + session)
            for folder, values in (("mr", mr), ("ct", ct)):
                file = arguments.folder / folder / f"sub-{patient:02d}_ses-{session}.nii.gz"
                print(write_nifti(file, values, affine_of()))


if __name__ == "__main__":
    main()
