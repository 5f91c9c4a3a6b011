"""Crop, grid and resampling as every stage applies them: one place, so that what was learned is what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np

from .intensity import background_level

# Smallest side of a grid's base, by the number of axes.
SMALLEST_BASE = {2: 4, 3: 3}
# Rows of a resampling matrix that are multiplied at once.
BLOCK = 32
# A CT voxel above it is tissue; air and most of the lung lie below. Above the other only bone, metal and contrast agent.
BODY_HU = -500.0
BONE_HU = 300.0
# Boxes are found on a grid of at most so many voxels a side and in all: tissue is far larger than that.
COARSE_SIDE = 128
COARSE_VOXELS = 2**18
# Parts of the body (arms, hands) are at least so large a share of the largest part; cables and specks are smaller.
SMALLEST_PART = 0.01
# Vertex to foramen magnum, mm, of large heads, with some of the neck.
HEAD_HEIGHT = 170.0
# Whose images show much air around the patient; other films and pictures are collimated or cropped already.
FRAMED_BY_AIR = ("CT", "MR", "MG")
# A crop is made when the boxes of half the scans are smaller than that part of the image.
WORTH_CROPPING = 0.7
# Voxels so much longer in one direction make 3-D filters see two different scales.
MOST_ANISOTROPY = 3.0
FEWEST_SLICES = 16
# Fewer volumes than that teach a 3-D network less than their slices teach a 2-D one.
FEWEST_VOLUMES = 300
NEIGHBOURS = 2
# The bias field is fitted on so many voxels, in so many steps for each halving of its knots' distance.
BIAS_VOXELS = 2**15
FEWEST_BIAS_VOXELS = 200
BIAS_STEPS = (15, 15, 20, 15)
# Percentiles of the foreground whose values are matched.
LANDMARKS = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


# (first slice, first row, first column, slices, rows, columns) of a part of a scan, in its displayed voxels.
Box = tuple[int, int, int, int, int, int]


def band(size: int, positions: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The anti-aliased linear filter that reads an axis of `size` voxels at (n,) fractional positions.

    The triangle is as wide as the downsampling factor (old voxels a new one), so that no structure finer than the new
    grid aliases; upsampling (factor below 1) is plain linear interpolation; at whole positions with factor 1 it copies.

    Returns:
        (n, taps) voxel numbers and their float32 weights, each row summing to 1; beyond the ends the last voxel counts.
    """
    width = max(factor, 1.0)
    inside = np.clip(np.asarray(positions, np.float64), 0.0, size - 1.0)
    first = np.floor(inside - width).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2.0 * width))
    weight = np.clip(1.0 - np.abs(taps - inside[:, None]) / width, 0.0, None)
    weight[(taps < 0) | (taps >= size)] = 0.0
    return np.clip(taps, 0, size - 1), (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=256)
def resampling_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) float32: the rows of `band` that bring an axis to another number of voxels."""
    factor = size_in / size_out
    taps, weight = band(size_in, (np.arange(size_out) + 0.5) * factor - 0.5, factor)
    result = np.zeros((size_out, size_in), np.float32)
    np.add.at(result, (np.arange(size_out)[:, None], taps), weight)
    return result


@lru_cache(maxsize=256)
def _blocks(size_in: int, size_out: int, start: int, stop: int) -> tuple[tuple[slice, slice, np.ndarray], ...]:
    """Rows start to stop of `resampling_matrix` as small blocks: (rows from start, columns, their part of the matrix)."""
    matrix = resampling_matrix(size_in, size_out)[start:stop]
    blocks = []
    for first in range(0, len(matrix), BLOCK):
        rows = matrix[first : first + BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((slice(first, first + len(rows)), columns, np.ascontiguousarray(rows[:, columns])))
    return tuple(blocks)


def resize(image: np.ndarray, height: int, width: int, part: tuple[slice, slice] | None = None) -> np.ndarray:
    """(..., H, W) -> (..., height, width), anti-aliased, in the input's dtype (integers are rounded).

    `part` is the part of the result that is wanted, rows and columns; None is all of it. The filter's matrix is nearly
    empty: in blocks along its diagonal the product takes a quarter of the time at 512 pixels.
    """
    (top, below), (left, beside) = (
        own.indices(size)[:2] for own, size in zip(part or (slice(None), slice(None)), (height, width))
    )
    if image.shape[-2:] == (height, width):
        return image[..., top:below, left:beside]
    lead, before = image.shape[:-2], image.shape[-1]
    result = np.empty((*lead, below - top, beside - left), image.dtype)
    down = np.empty((below - top, before), np.float32)
    across = np.empty((below - top, beside - left), np.float32)
    for index in np.ndindex(*lead):
        # Contiguous, or the product of a transposed view takes twenty times as long.
        plane = np.ascontiguousarray(image[index], np.float32)
        for out, used, weight in _blocks(image.shape[-2], height, top, below):
            np.matmul(weight, plane[used], out=down[out])
        for out, used, weight in _blocks(before, width, left, beside):
            np.matmul(down[:, used], weight.T, out=across[:, out])
        result[index] = to_dtype(across, image.dtype)
    return result


def to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float32 -> dtype; integers are rounded and kept in range, in place."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        np.rint(values, out=values)
        np.clip(values, limits.min, limits.max, out=values)
    return values.astype(dtype, copy=False)


def resize_volume(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(..., D, H, W) -> (..., *size), the filter of `resize` along all three axes, in the input's dtype (rounded once)."""
    depth, height, width = size
    if image.shape[-3:] == tuple(size):
        return image
    across = resize(np.asarray(image, np.float32), height, width)
    if across.shape[-3] != depth:
        lead = across.shape[:-3]
        planes = np.ascontiguousarray(across).reshape(*lead, across.shape[-3], height * width)
        across = np.empty((*lead, depth, height * width), np.float32)
        for index in np.ndindex(*lead):
            for out, used, weight in _blocks(planes.shape[-2], depth, 0, depth):
                np.matmul(weight, planes[index][used], out=across[index][out])
        across = across.reshape(*lead, *size)
    return to_dtype(across, image.dtype)


@dataclass(frozen=True, slots=True)
class Grid:
    """A training grid: a small base doubled `doublings` times along every axis, and the image's box centred in it.

    The base of a picture is 4 to 7 pixels a side, of a volume 3 to 7 voxels, so that nearly every aspect ratio is met
    without squashing and with little padding.

    Attributes:
        base: the networks' smallest grid, (rows, columns) or (slices, rows, columns).
        doublings: how often it is doubled.
        box: size of the image proper, at most the grid; the rest is padding.
    """

    base: tuple[int, ...]
    doublings: int
    box: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width) or (depth, height, width)."""
        return tuple(side << self.doublings for side in self.base)

    @property
    def dimensions(self) -> int:
        return len(self.base)

    @property
    def side(self) -> int:
        """The longest side."""
        return max(self.shape)

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def height(self) -> int:
        return self.shape[-2]

    @property
    def width(self) -> int:
        return self.shape[-1]

    @property
    def box_height(self) -> int:
        return self.box[-2]

    @property
    def box_width(self) -> int:
        return self.box[-1]

    @classmethod
    def choose(cls, size: Sequence[int], target: int) -> Grid:
        """The grid for images of `size` (2 or 3 axes) whose longest side is near `target`, with little padding."""
        best: tuple[float, Grid] | None = None
        for base in product(range(SMALLEST_BASE[len(size)], 8), repeat=len(size)):
            for doublings in range(1, 12):
                grid = cls.holding(size, base, doublings)
                padding = 1.0 - math.prod(grid.box) / grid.pixels
                # An octave off the wished size weighs as much as half the grid being padding.
                cost = padding + 0.5 * abs(math.log2(grid.side / target))
                if best is None or cost < best[0] - 1e-9:
                    best = cost, grid
        assert best is not None
        return best[1]

    @classmethod
    def holding(cls, size: Sequence[int], base: Sequence[int], doublings: int) -> Grid:
        """The grid of that base, with images of `size` as large as they go."""
        whole = [side << doublings for side in base]
        scale = min(have / want for have, want in zip(whole, size, strict=True))
        box = tuple(min(most, max(1, round(side * scale))) for most, side in zip(whole, size))
        return cls(tuple(base), doublings, box)

    def apply(self, image: np.ndarray, fill: float) -> np.ndarray:
        """(C, *size) -> (C, *shape): resized into the box, `fill` around it, same dtype."""
        resized = (
            resize(image, self.box_height, self.box_width) if self.dimensions == 2 else resize_volume(image, self.box)
        )
        if self.box == self.shape:
            return np.ascontiguousarray(resized)
        result = np.full((*image.shape[: -self.dimensions], *self.shape), fill, image.dtype)
        self.crop(result)[...] = resized
        return result

    def crop(self, image: np.ndarray) -> np.ndarray:
        """(..., *shape) -> (..., *box), a view: the image without its padding."""
        corners = [(whole - part) // 2 for whole, part in zip(self.shape, self.box)]
        inside = tuple(slice(corner, corner + part) for corner, part in zip(corners, self.box))
        return image[(slice(None),) * (image.ndim - len(inside)) + inside]

    def to_json(self) -> dict[str, Any]:
        return {"base": list(self.base), "doublings": self.doublings, "box": list(self.box)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Grid:
        """The inverse of `to_json`."""
        return cls(tuple(stored["base"]), stored["doublings"], tuple(stored["box"]))


# ------------------------------------------------------------------------------------------------ crop


def foreground_box(
    array: np.ndarray,
    modality: str,
    kind: Literal["body", "brain", "foreground"] = "foreground",
    affine: np.ndarray | None = None,
) -> Box:
    """The smallest box around the body, the head or whatever is not background, with a small margin.

    Found on a coarse grid. "body" in CT: what is denser than -500 HU, without the table; "foreground", and "body"
    elsewhere: what lies above Otsu's threshold, or all of a scan without background; "brain": the skull in CT, the
    foreground elsewhere, both down to 170 mm below the vertex when `affine` tells where that is.

    Args:
        array: (K, H, W) or (K, C, H, W), displayed slices in physical units.
        modality: DICOM modality term.
        kind: what to look for.
        affine: (4, 4) of `slices.Slices`, (column, row, slice, 1) -> mm in RAS+; None when not known.

    Returns:
        (first slice, row, column, slices, rows, columns); the whole scan where nothing stands out.
    """
    size = (array.shape[0], *array.shape[-2:])
    steps = _coarse_steps(size)
    coarse = array[:: steps[0], ..., :: steps[1], :: steps[2]]
    if coarse.ndim == 4:
        coarse = coarse[:, 0] if coarse.shape[1] == 1 else coarse.mean(axis=1, dtype=np.float32)
    hounsfield = modality == "CT" and coarse.min() < 0  # a CT exported as a picture holds grey levels
    mask = _hounsfield_mask(coarse, kind) if hounsfield else _bright_mask(coarse)
    if mask is None or not mask.any():
        return (0, 0, 0, *size)
    if kind == "brain" and affine is not None:
        mask = _upper_part(mask, affine, steps)
    return _bounds(mask, steps, size)


def _coarse_steps(size: tuple[int, int, int]) -> list[int]:
    """Every how many voxels one is looked at, along each axis."""
    steps = [-(-count // COARSE_SIDE) for count in size]
    while math.prod(counts := [-(-count // step) for count, step in zip(size, steps)]) > COARSE_VOXELS:
        steps[counts.index(max(counts))] += 1
    return steps


def _hounsfield_mask(coarse: np.ndarray, kind: str) -> np.ndarray | None:
    """The body without the table, or the skull."""
    if kind == "brain":
        skull = _large_parts(coarse > BONE_HU)
        if skull.mean() > 0.002:
            return skull
    tissue = coarse > BODY_HU
    opened = _grown(_grown(tissue, -1), 1)  # thin things go: the table's shell, cables, the edge of a blanket
    if not opened.any():
        return tissue
    near = _large_parts(opened)
    for _ in range(2):  # and what is thin but sticks out of the body comes back: a nose, an ear, fingers
        near = _grown(near, 1) & tissue
    return near


def _bright_mask(coarse: np.ndarray) -> np.ndarray | None:
    """What lies above background, speckle left out; None for a scan without background."""
    from scipy.ndimage import uniform_filter

    level = background_level(coarse.ravel()[:: (coarse.size // 2**15) | 1])
    if level is None:
        return None
    across = 3 if min(coarse.shape[1:]) >= 32 else 1
    return _large_parts(uniform_filter(coarse.astype(np.float32), (1, across, across)) > level[1])


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A (K, H, W) mask grown (1) or shrunk (-1) by one pixel within its slices; beyond the image it goes on."""
    result = mask.copy()
    for axis in (1, 2):
        ahead = (slice(None),) * axis + (slice(1, None),)
        behind = (slice(None),) * axis + (slice(None, -1),)
        if by > 0:
            result[ahead] |= mask[behind]
            result[behind] |= mask[ahead]
        else:
            result[ahead] &= mask[behind]
            result[behind] &= mask[ahead]
    return result


def _large_parts(mask: np.ndarray) -> np.ndarray:
    """The connected parts that are not much smaller than the largest."""
    from scipy.ndimage import label

    parts, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= SMALLEST_PART * sizes.max())[parts]


def _upper_part(mask: np.ndarray, affine: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The mask down to `HEAD_HEIGHT` below its top, along the axis that runs nearest to the patient's."""
    upwards = affine[2, [2, 1, 0]] * steps  # mm to the head per coarse voxel along slices, rows, columns
    axis = int(np.abs(upwards).argmax())
    height = np.arange(mask.shape[axis]) * upwards[axis]
    filled = mask.any(axis=tuple(other for other in range(3) if other != axis))
    below = height < height[filled].max() - HEAD_HEIGHT
    result = mask.copy()
    np.moveaxis(result, axis, 0)[below] = False
    return result


def _bounds(mask: np.ndarray, steps: Sequence[int], size: Sequence[int]) -> Box:
    """The box of a coarse mask in voxels, one coarse voxel larger on each side: something may end between two."""
    first, count = [], []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        begin = max((int(filled[0]) - 1) * steps[axis], 0)
        end = min((int(filled[-1]) + 1) * steps[axis] + 1, size[axis])
        first.append(begin)
        count.append(end - begin)
    return (*first, *count)  # type: ignore[return-value]


def choose_crop(
    boxes: Sequence[Box], sizes: Sequence[tuple[int, int, int]], modality: str
) -> tuple[Literal["none", "body", "foreground"], str]:
    """Whether cropping saves enough, and the reason in words.

    Args:
        boxes: of `foreground_box`, one a scan.
        sizes: (K, H, W) of the same scans.
        modality: DICOM modality term.
    """
    kind: Literal["body", "foreground"] = "body" if modality == "CT" else "foreground"
    if modality not in FRAMED_BY_AIR and all(depth == 1 for depth, _, _ in sizes):
        return "none", "crop: none, films and pictures stay as their maker framed them"
    shares = [rows * columns / (height * width) for (*_, rows, columns), (_, height, width) in zip(boxes, sizes)]
    share = float(np.median(shares)) if shares else 1.0
    if share < WORTH_CROPPING:
        return kind, f"crop: to the {kind}, whose box fills {share:.0%} of an image (median)"
    return (
        "none",
        f"crop: none, the {kind}'s box fills {share:.0%} of an image (median), a crop below {WORTH_CROPPING:.0%}",
    )


def crop_extent(extents: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The size that holds 19 of 20 boxes along each axis, in their unit (mm, or pixels where no size is known)."""
    return tuple(
        float(value) for value in np.percentile(np.array(list(extents), np.float64), 95.0, axis=0, method="higher")
    )


# ------------------------------------------------------------------------------------------------ dimensions


def choose_dimensions(
    source_dimensions: int,
    sizes: Sequence[tuple[int, int, int]],
    spacings: Sequence[tuple[float, float, float] | None],
    paired: bool = False,
) -> tuple[int, int, str]:
    """Whether to store slices or volumes: (2 or 3, neighbouring slices each side, the reason in words).

    Args:
        source_dimensions: 2 for pictures and films, 3 for volumes.
        sizes: (K, H, W) of the scans looked at, upright, K slices; all scans of the set count, so repeat where sampled.
        spacings: their (slice, row, column) voxel sizes in mm, None where not known.
        paired: pairs are prepared, for translation: slices then see their neighbours.
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
    if len(sizes) < FEWEST_VOLUMES:
        total = sum(size[0] for size in sizes)
        return (
            2,
            neighbours,
            f"2-D slices{beside}: {len(sizes)} volumes give {total} slices, more to learn from; 3-D from {FEWEST_VOLUMES} volumes",
        )
    return 3, 0, f"3-D: {len(sizes)} volumes of nearly equal-sided voxels ({anisotropy:.1f} to 1)"


# ------------------------------------------------------------------------------------------------ MR intensity


def bias_corrected(volume: np.ndarray, spacing: Sequence[float] | None, mask: np.ndarray | None = None) -> np.ndarray:
    """(K, H, W) float32 without the smooth gain of the receive coils: N4, Tustison et al., IEEE TMI 29, 2010.

    The field is fitted on about 2^15 voxels (6 to 8 mm in a head) in a bounded number of steps, which takes some seconds
    whatever the scan's size, and read back linearly: it varies over centimetres. Its geometric mean within the mask is
    1, so that the scan keeps its units. One thread: the same bits every time.

    Args:
        volume: MR; voxels at or below 0 are not fitted.
        spacing: (slice, row, column) voxel size in mm; None takes 1 mm.
        mask: (K, H, W), true where tissue is; None: the foreground.
    """
    import SimpleITK as sitk

    own = np.array(spacing if spacing is not None else (1.0, 1.0, 1.0), np.float64)
    side = (math.prod(own * volume.shape) / BIAS_VOXELS) ** (1 / 3)
    size = np.ceil(np.array(volume.shape) / np.maximum(side / own, 1.0)).astype(int)
    volume = np.asarray(volume, np.float32)
    small = resize_volume(volume, size)
    if mask is None:
        level = background_level(small)
        inside = small > (level[1] if level is not None else small.min())
    else:
        inside = resize_volume(np.asarray(mask, np.float32), size) >= 0.5
    inside &= small > 0
    if inside.sum() < FEWEST_BIAS_VOXELS or min(size) < 4:  # too little to see a field in
        return volume
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(BIAS_STEPS)
    images = [sitk.GetImageFromArray(part) for part in (small, inside.astype(np.uint8))]
    for image in images:
        image.SetSpacing([float(value) for value in (own * volume.shape / size)[::-1]])
    n4.Execute(*images)
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(images[0])).astype(np.float32)
    field -= field[inside].mean()
    return volume * np.exp(-resize_volume(field, volume.shape))


def landmarks(volumes: Iterable[np.ndarray]) -> dict[str, list[float]]:
    """A standard scale learned from training scans: Nyul and Udupa, Magn. Reson. Med. 42, 1999.

    Each scan's landmarks (its background, and percentiles of its foreground) are brought to a range of 0 to 100 between
    background and 99th percentile, and averaged.

    Returns:
        {"percentiles": ..., "values": ...}, plain numbers for `match_histogram`.
    """
    scales = []
    for volume in volumes:
        own = _own_landmarks(volume)
        scales.append((own - own[0]) / max(own[-1] - own[0], 1e-12) * 100.0)
    return {"percentiles": list(LANDMARKS), "values": np.mean(scales, axis=0).tolist()}


def _own_landmarks(volume: np.ndarray) -> np.ndarray:
    """The background, or the lowest value without one, and `LANDMARKS` per cent of the foreground; never falling."""
    values = np.asarray(volume, np.float32).ravel()
    level = background_level(values)
    dark, foreground = (level[0], values[values > level[1]]) if level is not None else (float(values.min()), values)
    return np.maximum.accumulate(np.array([dark, *np.percentile(foreground, LANDMARKS)]))


def histogram_knots(volume: np.ndarray, learned: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """(own values, standard values) between which `match_histogram` interpolates; both rise, so it can be inverted."""
    own, standard = _own_landmarks(volume), np.array(learned["values"])
    apart = np.concatenate([[True], (np.diff(own) > 0) & (np.diff(standard) > 0)])
    if apart.sum() < 2:
        raise ValueError("expected a scan with contrast, found one constant value: its histogram cannot be matched")
    return own[apart], standard[apart]


def match_histogram(volume: np.ndarray, learned: dict[str, list[float]]) -> np.ndarray:
    """A scan on the standard scale of `landmarks`, float32: one tissue has about one value in all scans.

    Piecewise linear between the landmarks and beyond them, and rising: `piecewise(matched, standard, own)` with
    `own, standard = histogram_knots(volume, learned)` brings the scan's values back.
    """
    return piecewise(volume, *histogram_knots(volume, learned))


def piecewise(values: np.ndarray, knots: np.ndarray, becomes: np.ndarray) -> np.ndarray:
    """Linear between the knots and on beyond the first and the last; float32."""
    values = np.asarray(values, np.float64)
    slope = np.diff(becomes) / np.diff(knots)
    result = np.interp(values, knots, becomes)
    result += np.minimum(values - knots[0], 0.0) * slope[0] + np.maximum(values - knots[-1], 0.0) * slope[-1]
    return result.astype(np.float32)
