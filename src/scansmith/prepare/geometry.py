"""Geometry: which scans of a patient show the same region, from their headers alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..formats import Source

Pairs = list[tuple[int, int]]
# Boxes that share less of the smaller one show different regions.
LEAST_OVERLAP = 0.2
# Candidates that differ by less cannot be told apart by geometry.
SAME_OVERLAP = 0.02
MOST_CANDIDATES = 8


def within(own: list[int], wished: list[int], sources: Sequence[Source]) -> tuple[Pairs, int]:
    """One patient's (source, target) pairs, the best fit first, and how many targets had a second source that fits as well."""
    if not own or not wished:
        return [], 0
    boxes = np.array([_box(sources[number]) for number in own])
    volumes = np.array([_voxel(sources[number]) for number in own])
    fits = {target: _fits(target, own, boxes, volumes, sources)[:MOST_CANDIDATES] for target in wished}
    order = [(fit, target, source) for target, some in fits.items() for fit, source in some]
    order.sort(key=lambda entry: (tuple(-value for value in entry[0]), entry[1], entry[2]))
    pairs: dict[int, int] = {}
    used: set[int] = set()
    unclear = 0
    for fit, target, source in order:
        if target not in pairs and source not in used:
            unclear += any(
                other != source and other not in used and _close(fit, other_fit) for other_fit, other in fits[target]
            )
            pairs[target] = source
            used.add(source)
    return [(source, target) for target, source in pairs.items()], unclear


def _fits(
    target: int, own: list[int], boxes: np.ndarray, volumes: np.ndarray, sources: Sequence[Source]
) -> list[tuple[tuple[float, ...], int]]:
    """(same frame, same study, overlap, likeness of the voxels) of the sources that can belong to a target, best first."""
    wished, box = sources[target], np.array(_box(sources[target]))
    edges = np.minimum(boxes[:, 1], box[1]) - np.maximum(boxes[:, 0], box[0])
    shared = np.clip(edges, 0.0, None).prod(axis=1)
    sizes, size = (boxes[:, 1] - boxes[:, 0]).prod(axis=1), (box[1] - box[0]).prod()
    placed = np.isfinite(sizes) & np.isfinite(size)
    with np.errstate(invalid="ignore"):
        least, union = shared / np.minimum(sizes, size), shared / (sizes + size - shared)
    likeness = -np.abs(np.log(volumes / _voxel(wished)))
    result = []
    for at in np.flatnonzero(~placed | (least >= LEAST_OVERLAP)):
        number = own[at]
        study = wished.study is not None and sources[number].study == wished.study
        fit = (
            float(same_frame(sources[number], wished)),
            float(study),
            float(union[at]) if placed[at] else 0.0,
            float(likeness[at]) if placed[at] else 0.0,
        )
        result.append((fit, number))
    return sorted(result, key=lambda entry: (tuple(-value for value in entry[0]), entry[1]))


def _close(fit: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return fit[:2] == other[:2] and abs(fit[2] - other[2]) < SAME_OVERLAP and abs(fit[3] - other[3]) < 0.1


def same_frame(one: Source, other: Source) -> bool:
    """Whether both name one Frame of Reference UID (0020,0052)."""
    return one.frame_of_reference is not None and one.frame_of_reference == other.frame_of_reference


def _box(source: Source) -> list[list[float]]:
    """[lowest, highest] RAS+ coordinates in mm of the box around a scan; NaN where its header does not place it."""
    if source.affine is None:
        return [[np.nan] * 3, [np.nan] * 3]
    affine = np.array(source.affine).reshape(4, 4)
    middle = affine @ np.array([*((size - 1) / 2 for size in source.shape), 1.0])
    half = np.abs(affine[:3, :3]) @ np.array(source.shape) / 2
    return [(middle[:3] - half).tolist(), (middle[:3] + half).tolist()]


def _voxel(source: Source) -> float:
    """Volume of a voxel in mm^3; 1 where unknown."""
    if source.affine is None:
        return 1.0
    return max(1e-9, abs(float(np.linalg.det(np.array(source.affine).reshape(4, 4)[:3, :3]))))
