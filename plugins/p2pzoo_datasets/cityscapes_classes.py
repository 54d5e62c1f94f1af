"""Cityscapes' classes for evaluation: 19 of its 34 labels, the others are ignored. Imports numpy only.

Cordts et al. 2016 (arXiv:1604.01685), labels.py of cityscapesScripts.
"""

from __future__ import annotations

import numpy as np

IGNORED = 255

# name, labelId, colour; the index is the trainId
SCORED_CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in SCORED_CLASSES)
PALETTE = tuple(colour for _, _, colour in SCORED_CLASSES)

TRAIN_ID = np.full(256, IGNORED, np.uint8)  # index: labelId
TRAIN_ID[[label for _, label, _ in SCORED_CLASSES]] = np.arange(len(SCORED_CLASSES))
