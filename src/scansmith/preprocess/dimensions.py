"""Whether slices or volumes are learned from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Voxels so much longer in one direction make 3-D filters see two different scales.
MOST_ANISOTROPY = 3.0
FEWEST_SLICES = 16
# Fewer volumes than that teach a 3-D network less than their slices teach a 2-D one.
FEWEST_VOLUMES = 300
NEIGHBOURS = 2


def choose_dimensions(
    source_dimensions: int,
    sizes: Sequence[tuple[int, int, int]],
    spacings: Sequence[tuple[float, float, float] | None],
    paired: bool = False,
    fewest: int = FEWEST_VOLUMES,
) -> tuple[int, int, str]:
    """Whether to store slices or volumes: (2 or 3, neighbouring slices each side, the reason in words).

    Args:
        source_dimensions: 2 for pictures and films, 3 for volumes.
        sizes: (K, H, W) of the scans looked at, upright, K slices; all scans of the set count, so repeat where sampled.
        spacings: their (slice, row, column) voxel sizes in mm, None where not known.
        paired: pairs are prepared, for translation: slices then see their neighbours.
        fewest: volumes that are learned from as such, where they have slices enough and nearly equal sides.
    """
    neighbours = NEIGHBOURS if paired else 0
    beside = f", with {NEIGHBOURS} neighbours on each side (2.5-D)" if paired else ""
    if source_dimensions == 2:
        return 2, 0, "2-D: the scans are pictures"
    slices = float(np.median([size[0] for size in sizes]))
    if slices < FEWEST_SLICES:
        neighbours = min(neighbours, int(slices) // 2)
        return (
            2,
            neighbours,
            f"2-D slices{beside if neighbours else ''}: {slices:g} slices a volume (median), 3-D from {FEWEST_SLICES}",
        )
    known = [max(spacing) / min(spacing) for spacing in spacings if spacing is not None]
    if not known:
        return 2, neighbours, f"2-D slices{beside}: the voxel size is not known, so 3-D filters would see unequal axes"
    anisotropy = float(np.median(known))
    if anisotropy > MOST_ANISOTROPY:
        return (
            2,
            neighbours,
            f"2-D slices{beside}: voxels are {anisotropy:.1f} times as long as wide, 3-D up to {MOST_ANISOTROPY:g}",
        )
    if len(sizes) < fewest:
        total = sum(size[0] for size in sizes)
        return (
            2,
            neighbours,
            f"2-D slices{beside}: {len(sizes)} volumes give {total} slices, more to learn from; 3-D from {fewest} volumes",
        )
    return 3, 0, f"3-D: {len(sizes)} volumes of nearly equal-sided voxels ({anisotropy:.1f} to 1)"
