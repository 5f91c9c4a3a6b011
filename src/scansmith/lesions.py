"""Lesions put into scans and taken out of them, and what a translation makes of them: does it keep them, does it invent any?

`insert` gives a scan lesions whose place and size are known, `remove` fills a lesion with what surrounds it. A translation is then
asked for the scan with and without them. `survival` says which lesions are still there in the difference of the two outputs, by a
test whose false alarms are held at 5 % at lesion-free places of equal size; `false_creation` says at how many places without a lesion
the translation of the untouched scan differs from the true image by as much.

Such lesions are simple: ellipsoids of one tissue with the texture around them. That one is kept does not show that every real one is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.linalg import cg
from scipy.stats import binomtest

from .runtime import derive_seed

Region = tuple[slice, slice, slice]

# How a lesion looks.
ELONGATION = 0.15  # most that the logarithm of a half axis differs from the radius'
LOBES = 0.06  # of the radius, how far its surface waves
EDGE = 0.3  # of the radius, over which it fades into the tissue around
UNEVEN = 0.15  # of the contrast, how much it varies inside
REACH = 1.5  # of the radius, beyond which no lesion reaches
PLACES = 64  # places that are looked at for each lesion; one of the most even
EVEN = 0.25  # of them is taken: lesions stand in one tissue, not across two
# How it is judged.
LEVEL = 0.05  # share of lesion-free places that may count as detected
NULL = 199  # lesion-free places that the threshold is taken from; 19 is the fewest that reach the level
SHELL = 0.6  # of the radius, how thick the tissue around is with which a lesion is compared
GAP = 0.3  # of the radius, between a lesion's edge and that tissue
TINY = 1e-12  # against division by zero
FAINTEST = 0.01  # of the body's spread of values: what is fainter is not seen, in whatever little noise


@dataclass(frozen=True)
class Share:
    """A share that was counted: value = hits / count, with its 95 % interval (Clopper and Pearson 1934) as if counts were independent."""

    value: float
    hits: int
    count: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Trace:
    """What is left of one lesion.

    Attributes:
        label: its number in the label map.
        diameter: of the ball of equal volume, in a picture of the circle of equal area, mm.
        contrast: of the difference of the outputs, mean in the lesion less the median around it, in the outputs' unit.
        threshold: the contrast from which on it counts as detected.
        ratio: contrast in the output for the contrast in the source, each as a part of the body's spread of values: 1 is kept, 0 is
            lost, below 0 dark has become bright; between modalities a lesion's true ratio need not be 1. None where a scan is even.
        detected: whether the contrast, bright or dark, exceeds the threshold.
    """

    label: int
    diameter: float
    contrast: float
    threshold: float
    ratio: float | None
    detected: bool


@dataclass(frozen=True)
class Survival:
    """What is left of the lesions.

    Attributes:
        rate: share of lesions that are detected in the output.
        ratio: median of the lesions' ratios; None where none has one.
        traces: of each lesion.
    """

    rate: Share
    ratio: float | None
    traces: tuple[Trace, ...]

    def words(self) -> str:
        """The result for people."""
        low, high = self.rate.interval
        kept = "" if self.ratio is None else f"; the median lesion keeps {self.ratio:.0%} of its contrast"
        return (
            f"{self.rate.hits} of {self.rate.count} inserted lesions are still seen in the output (95% interval of the share {low:.2f} to "
            f"{high:.2f}, false alarms held at {LEVEL:.0%}){kept}"
        )


# ------------------------------------------------------------------------------------------------ inserting


def insert(
    array: np.ndarray,
    spacing: Sequence[float],
    body: np.ndarray,
    seed: int,
    *,
    count: int = 8,
    radius: tuple[float, float] = (4.0, 10.0),
    contrast: float = 4.0,
    unit: Literal["deviations", "values"] = "deviations",
) -> tuple[np.ndarray, np.ndarray]:
    """Put lesions into even tissue: soft-edged, slightly lobed ellipsoids with the texture of what surrounds them.

    Args:
        array: (D, H, W) in physical units; D = 1 for a picture, in which lesions are sections of ellipsoids.
        spacing: voxel size in mm along D, H, W.
        body: true where tissue is, same shape; lesions lie inside it whole.
        seed: of places, shapes and texture.
        count: how many lesions.
        radius: least and greatest radius in mm, of the ball of equal volume (their lobes change it by up to 20 %).
        contrast: how much brighter (above 0) or darker than the tissue around, of which the median counts.
        unit: "values" in the array's own unit (HU); "deviations" in robust standard deviations of the tissue around.

    Returns:
        The array with lesions, float32, with no value beyond the array's own range, and the label map, uint8: 1 to count where
        lesions fill half the voxel at least.

    Raises:
        ValueError: options out of range, a body without room, or lesions smaller than the voxels.
    """
    _check_insertion(array, spacing, body, count, radius, contrast)
    rng = np.random.default_rng(derive_seed(seed, "lesions"))
    result, labels = np.array(array, np.float32), np.zeros(array.shape, np.uint8)
    free, least = _room(body, spacing), FAINTEST * spread(array, body)

    def step(deviation: float) -> float:
        return contrast * max(deviation, least) if unit == "deviations" else contrast

    for label, size in enumerate(np.sort(rng.uniform(*radius, count))[::-1], 1):
        place = _choose_place(result, free, spacing, size, step, rng)
        if place is None:
            raise ValueError(
                f"expected room in the body for lesion {label} of {size:.1f} mm radius, where its contrast stays in the scan's range of values, found none: ask for fewer, smaller or fainter ones"
            )
        centre, middle, deviation = place
        region = _around(centre, array.shape, spacing, 2.0 * REACH * size)
        own, inside = result[region], body[region] > 0
        filling = np.where(inside, _shape(region, centre, spacing, size, rng), 0.0)
        known = inside & (filling == 0) & (labels[region] == 0) & _alike(own, middle, deviation)
        uneven = 1.0 + UNEVEN * _unevenness(own.shape, spacing, size, rng)
        inner = middle + step(deviation) * uneven + _texture(own, known, spacing, rng)
        own[...] = np.clip(own + filling * (inner - own), np.nanmin(array), np.nanmax(array))
        labels[region][filling >= 0.5] = label
        free[region] = np.minimum(free[region], _distance_to(region, centre, spacing) - REACH * size)
    return result, labels


def _check_insertion(
    array: np.ndarray,
    spacing: Sequence[float],
    body: np.ndarray,
    count: int,
    radius: tuple[float, float],
    contrast: float,
) -> None:
    _check_grid(array, spacing, body)
    if not 1 <= count <= 255:
        raise ValueError(f"expected 1 to 255 lesions, found {count}: insert them in several scans")
    coarsest = max((step for step, side in zip(spacing, array.shape) if side > 1), default=math.inf)
    if not 0.0 < radius[0] <= radius[1] or 1.5 * radius[0] < coarsest:
        raise ValueError(
            f"expected radii from at least {coarsest / 1.5:.2g} mm, the least that voxels of {coarsest:g} mm show, found {radius[0]:g} to {radius[1]:g} mm: give larger ones"
        )
    if not contrast or not math.isfinite(contrast):
        raise ValueError(f"expected a contrast above or below 0, found {contrast}: 4 standard deviations are well seen")


def _check_grid(array: np.ndarray, spacing: Sequence[float], *masks: np.ndarray) -> None:
    """Raises ValueError unless all are on one grid of three axes with voxel sizes above 0."""
    shapes = [array.shape, *(mask.shape for mask in masks)]
    if array.ndim != 3 or len(set(shapes)) > 1:
        raise ValueError(
            f"expected images and masks of one shape (D, H, W), found {shapes}: bring them onto one grid, a picture with D = 1"
        )
    if len(spacing) != 3 or not all(step > 0 for step in spacing):
        raise ValueError(f"expected three voxel sizes above 0 mm, found {tuple(spacing)}: give that of each axis")


def _room(body: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(D, H, W) float32: mm from each voxel to the nearest one outside the body or the scan; a picture ends at no slice."""
    padded = np.pad(np.asarray(body) > 0, [(int(side > 1),) * 2 for side in body.shape])
    distance = ndimage.distance_transform_edt(padded, sampling=tuple(spacing)).astype(np.float32)
    inner: np.ndarray = distance[tuple(slice(1, -1) if side > 1 else slice(None) for side in body.shape)]
    return inner


def _around(centre: Sequence[int] | np.ndarray, shape: Sequence[int], spacing: Sequence[float], reach: float) -> Region:
    """The voxels within `reach` mm along each axis, cut at the array's border."""
    steps = [math.ceil(reach / step) for step in spacing]
    depth, height, width = (
        slice(max(int(middle) - step, 0), min(int(middle) + step + 1, side))
        for middle, step, side in zip(centre, steps, shape)
    )
    return depth, height, width


def _offsets(region: Region, centre: Sequence[int] | np.ndarray, spacing: Sequence[float]) -> list[np.ndarray]:
    """mm from the centre along each axis, three arrays that broadcast to the region."""
    axes = [(np.arange(own.start, own.stop) - middle) * step for own, middle, step in zip(region, centre, spacing)]
    return list(np.ix_(*axes))


def _distance_to(region: Region, centre: Sequence[int] | np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """mm of each voxel of a region from the centre."""
    depth, height, width = _offsets(region, centre, spacing)
    distance: np.ndarray = np.sqrt(depth**2 + height**2 + width**2)
    return distance


def _choose_place(
    array: np.ndarray,
    free: np.ndarray,
    spacing: Sequence[float],
    radius: float,
    step: Callable[[float], float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, float, float] | None:
    """A centre (voxel indices), with median and robust deviation of the tissue there; None where nothing has room.

    Of `PLACES` random ones with room, at which the contrast keeps within the array's range, one of the share `EVEN` whose values from
    the 2nd to the 98th percentile lie closest together. `step` gives the contrast for a deviation.
    """
    possible = np.flatnonzero(free > REACH * radius)
    low, high = np.nanmin(array), np.nanmax(array)
    found = []
    for place in rng.choice(possible, min(PLACES, len(possible)), replace=False) if len(possible) else ():
        centre = np.array(np.unravel_index(int(place), free.shape))
        region = _around(centre, array.shape, spacing, REACH * radius)
        near = array[region][_distance_to(region, centre, spacing) <= REACH * radius]
        middle, deviation = float(np.median(near)), robust_deviation(near)
        if low <= middle + step(deviation) <= high:
            found.append((float(np.ptp(np.percentile(near, (2.0, 98.0)))), centre, middle, deviation))
    if not found:
        return None
    found.sort(key=lambda one: one[0])
    _, centre, middle, deviation = found[int(rng.integers(math.ceil(EVEN * len(found))))]
    return centre, middle, deviation


def robust_deviation(values: np.ndarray) -> float:
    """1.4826 times the median distance from the median: a Gaussian's standard deviation, whatever a few outliers do."""
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if values.size else 0.0


def spread(array: np.ndarray, body: np.ndarray) -> float:
    """From the 5th to the 95th percentile of the values in the body, in the array's unit: a scale to compare modalities by."""
    inside = array[np.asarray(body) > 0]
    inside = inside[np.isfinite(inside)]
    if not inside.size:
        raise ValueError("expected a body with values, found an empty one: give the body's mask")
    low, high = np.percentile(inside, (5.0, 95.0))
    return float(high - low)


def _shape(
    region: Region, centre: np.ndarray, spacing: Sequence[float], radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Share of each voxel that the lesion fills, 0 to 1, half at its surface; averaged over voxels that are coarse for it.

    A picture is the section through the lesion's middle.
    """
    axes = np.exp(rng.uniform(-ELONGATION, ELONGATION, 3))
    axes *= radius / np.prod(axes) ** (1 / 3)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] / axes[:, None]
    waves, phases = rng.normal(0.0, 2.5, (5, 3)), rng.uniform(0.0, 2.0 * np.pi, 5)
    parts = [
        min(max(math.ceil(3.0 * step / radius), 1), 6) if own.stop - own.start > 1 else 1
        for step, own in zip(spacing, region)
    ]
    depth, height, width = _offsets(region, centre, spacing)
    total = np.zeros(np.broadcast_shapes(depth.shape, height.shape, width.shape))
    for part in product(*map(range, parts)):
        shift = [((one + 0.5) / all_ - 0.5) * step for one, all_, step in zip(part, parts, spacing)]
        points = (depth + shift[0], height + shift[1], width + shift[2])
        scaled = [sum(weight * axis for weight, axis in zip(row, points)) for row in turn]
        wave = sum(np.sin(sum(k * axis for k, axis in zip(wave, scaled)) + phase) for wave, phase in zip(waves, phases))
        lobes = LOBES * np.clip(wave / math.sqrt(2.5), -1.0, 1.0)
        inside = 1.0 + lobes - np.sqrt(sum(axis**2 for axis in scaled))
        rising = np.clip(0.5 + inside / EDGE, 0.0, 1.0)
        total += rising * rising * (3.0 - 2.0 * rising)
    return total / math.prod(parts)


def _unevenness(shape: Sequence[int], spacing: Sequence[float], radius: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of one standard deviation, whose blobs are half a radius wide."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), [0.25 * radius / step for step in spacing])
    return noise / max(float(noise.std()), TINY)


def _smoothed(patch: np.ndarray, known: np.ndarray, spacing: Sequence[float], width: float) -> np.ndarray:
    """Gaussian mean of the known voxels around each; `width` in voxels along the finest axis (Knutsson and Westin 1993)."""
    sigma = [width * min(spacing) / step for step in spacing]
    weight = ndimage.gaussian_filter(known.astype(np.float64), sigma)
    total = ndimage.gaussian_filter(np.where(known, patch, 0.0).astype(np.float64), sigma)
    mean: np.ndarray = total / np.maximum(weight, 1e-6)
    return mean


def _alike(patch: np.ndarray, middle: float, deviation: float) -> np.ndarray:
    """True where a value may belong to the tissue with that median and deviation."""
    alike: np.ndarray = np.abs(patch - middle) <= 4.0 * deviation
    return alike


def _texture(patch: np.ndarray, known: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Grain like that of the known voxels of a patch: their spectrum with random phases (random phase noise, Galerne 2011), same shape.

    What stands out by more than three deviations (vessels, edges) is cut; all zero where less than 27 voxels are known.
    """
    if known.sum() < 27:
        return np.zeros(patch.shape)
    residual = np.where(known, patch - _smoothed(patch, known, spacing, 1.5), 0.0)
    deviation = robust_deviation(residual[known])
    residual = np.clip(residual, -3.0 * deviation, 3.0 * deviation)
    white = np.fft.fftn(rng.standard_normal(patch.shape))
    grain = np.fft.ifftn(np.abs(np.fft.fftn(residual)) * white / np.maximum(np.abs(white), TINY)).real
    return grain * (deviation / max(float(grain.std()), TINY))


# ------------------------------------------------------------------------------------------------ removing


def remove(
    array: np.ndarray, spacing: Sequence[float], mask: np.ndarray, seed: int, *, margin: float = 2.0
) -> np.ndarray:
    """Fill what a mask marks with what surrounds it: values between those of its border, with the grain of the tissue around.

    The fill solves Laplace's equation with the smoothed border as boundary values, so it stays between their extremes. Where most of
    the border is one tissue, another one (a bone, air outside the body) does not flow in.

    Args:
        array: (D, H, W) in physical units.
        spacing: voxel size in mm along D, H, W.
        mask: above 0 where the lesions are, same shape; an empty one leaves the array as it is.
        seed: of the grain.
        margin: mm around the mask that are filled too, because lesions fade.

    Returns:
        float32, the same values outside mask and margin.

    Raises:
        ValueError: shapes that differ, or nothing left to fill from.
    """
    _check_grid(array, spacing, mask)
    result = np.array(array, np.float32)
    if not np.any(mask):
        return result
    hole = ndimage.distance_transform_edt(np.asarray(mask) == 0, sampling=tuple(spacing)) <= margin
    if hole.all():
        raise ValueError("expected tissue around the lesions to fill them from, found none: mark the lesions alone")
    parts, _ = ndimage.label(hole)
    for number, inner in enumerate(ndimage.find_objects(parts)):
        rng = np.random.default_rng(derive_seed(seed, "remove", number))
        region = _grown(inner, array.shape)
        own, outer = parts[region] == number + 1, hole[region]
        patch = result[region]
        border = ndimage.binary_dilation(own, iterations=2) & ~outer
        middle, deviation = float(np.median(patch[border])), robust_deviation(patch[border])
        known = ~outer & _alike(patch, middle, deviation)
        grain = _texture(patch, known, spacing, rng)
        patch[own] = (_harmonic(patch, own, known, spacing, middle) + grain)[own]
    return result


def _grown(inner: Region, shape: Sequence[int]) -> Region:
    """A box half as large again on each side, by 3 voxels at least, cut at the array's border."""
    depth, height, width = (
        slice(
            max(own.start - max((own.stop - own.start) // 2, 3), 0),
            min(own.stop + max((own.stop - own.start) // 2, 3), side),
        )
        for own, side in zip(inner, shape)
    )
    return depth, height, width


def _harmonic(
    patch: np.ndarray, hole: np.ndarray, known: np.ndarray, spacing: Sequence[float], start: float
) -> np.ndarray:
    """The patch with its hole filled by the solution of Laplace's equation; known voxels, smoothed, are its boundary values.

    Solved from `start` by conjugate gradients.
    """
    matrix, right = _laplace(hole, known, _smoothed(patch, known, spacing, 1.0), spacing)
    filled = np.array(patch, np.float64)
    filled[hole], _ = cg(matrix, right, x0=np.full(len(right), start), rtol=1e-6)
    return filled


def _laplace(
    hole: np.ndarray, known: np.ndarray, boundary: np.ndarray, spacing: Sequence[float]
) -> tuple[csr_array, np.ndarray]:
    """Matrix (n, n) and right side (n,) of the n voxels of a hole, by finite differences: neighbours count by 1 / spacing^2.

    What is neither hole nor known, and what lies beyond the patch, lets nothing flow across.
    """
    inside = np.argwhere(hole)
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(len(inside))
    diagonal, right = np.zeros(len(inside)), np.zeros(len(inside))
    rows, columns, values = [np.arange(len(inside))], [np.arange(len(inside))], [diagonal]
    for axis, step in enumerate(spacing):
        for way in (-1, 1):
            other = inside.copy()
            other[:, axis] += way
            here = np.flatnonzero((other[:, axis] >= 0) & (other[:, axis] < hole.shape[axis]))
            neighbour = tuple(other[here].T)
            unknown, given = here[hole[neighbour]], here[known[neighbour]]
            diagonal[unknown] += 1.0 / step**2
            diagonal[given] += 1.0 / step**2
            right[given] += boundary[tuple(other[given].T)] / step**2
            rows.append(unknown)
            columns.append(number[tuple(other[unknown].T)])
            values.append(np.full(len(unknown), -1.0 / step**2))
    where = np.concatenate(rows), np.concatenate(columns)
    return csr_array((np.concatenate(values), where), shape=(len(inside), len(inside))), right


# ------------------------------------------------------------------------------------------------ judging


def survival(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    spacing: Sequence[float],
    body: np.ndarray,
    seed: int,
    *,
    sources: tuple[np.ndarray, np.ndarray],
) -> Survival:
    """Which inserted lesions are still there after a translation; likewise of real ones, with a scan from which they are removed.

    A lesion is detected when its contrast in `after - before`, bright or dark, exceeds each of: the contrast that a share of 5 % of
    lesion-free places of its shape exceed in the same difference (a rank test, so it holds for any distribution); the robust
    deviation of the output around it, below which no reader sees it; and 1 % of the body's spread of values.

    Args:
        before, after: outputs for the scan without and with lesions, (D, H, W).
        labels: of `insert`.
        spacing: voxel size in mm along D, H, W.
        body: true where tissue is; where lesions were put may be a part of it.
        seed: of the lesion-free places.
        sources: the scan without and with lesions, same grid.

    Raises:
        ValueError: shapes that differ, no lesions, or a body without room for 19 lesion-free places.
    """
    _check_grid(before, spacing, after, *sources, labels, body)
    numbers = [int(label) for label in np.unique(labels) if label]
    if not numbers:
        raise ValueError("expected a label map with lesions, found an empty one: insert some first")
    usable = (np.asarray(body) > 0) & (labels == 0)
    free, scale = _room(usable, spacing), spread(before, body)
    change, source = _difference(before, after), _difference(*sources)
    unit = scale / spread(sources[0], body) if scale else 0.0
    traces = []
    for label in numbers:
        probe = _Probe.of(labels == label, spacing)
        places = probe.places(free, NULL, np.random.default_rng(derive_seed(seed, "places", label)))
        chance = _null_threshold([abs(probe.contrast(change, place, usable)) for place in places], label)
        threshold = max(chance, probe.noise(before, probe.centre, usable), FAINTEST * scale)
        found, given = (probe.contrast(one, probe.centre, usable) for one in (change, source))
        ratio = found / (given * unit) if given * unit else None
        traces.append(Trace(label, 2.0 * probe.radius, found, threshold, ratio, abs(found) > threshold))
    return together(traces)


def together(traces: Sequence[Trace]) -> Survival:
    """Lesions of one scan or of several as one result."""
    ratios = [trace.ratio for trace in traces if trace.ratio is not None]
    rate = share(sum(trace.detected for trace in traces), len(traces))
    return Survival(rate, float(np.median(ratios)) if ratios else None, tuple(traces))


def share(hits: int, count: int) -> Share:
    """The share with its interval; those of several scans are pooled by the sums of their hits and counts."""
    interval = binomtest(hits, count).proportion_ci(method="exact")
    return Share(hits / count, hits, count, (float(interval.low), float(interval.high)))


def false_creation(
    output: np.ndarray,
    reference: np.ndarray,
    labels: np.ndarray,
    spacing: Sequence[float],
    body: np.ndarray,
    survived: Survival,
    seed: int,
    *,
    places: int = 100,
) -> Share:
    """At which share of places without a lesion the output differs from the true image by what counts as a lesion.

    Each place takes the shape of one of the lesions and its threshold in `survived`; the robust deviation of the reference around it
    counts as well. Lesions that the output lacks count as those that it has too many. Places do not overlap. Where output and
    reference do not lie on each other, edges count as differences: register them first.

    Args:
        output: translation of the untouched scan, (D, H, W).
        reference: the true image in the output's unit, same grid.
        labels, spacing, body: as for `survival`; lesions were not in this scan, so places may lie where they would be.
        survived: of the same translation.
        seed: of the places.
        places: how many are looked for; fewer are counted where no more fit.

    Raises:
        ValueError: shapes that differ, or a body without room for any place.
    """
    _check_grid(output, spacing, reference, labels, body)
    inside = np.asarray(body) > 0
    change, free = _difference(reference, output), _room(inside, spacing)
    rng = np.random.default_rng(derive_seed(seed, "creation"))
    probes = [(_Probe.of(labels == trace.label, spacing), trace.threshold) for trace in survived.traces]
    found = []
    for number in range(places):
        probe, threshold = probes[number % len(probes)]
        for place in probe.places(free, 1, rng):
            least = max(threshold, probe.noise(reference, place, inside))
            found.append(abs(probe.contrast(change, place, inside)) > least)
            taken = _around(place, free.shape, spacing, 2.0 * probe.reach)
            free[taken] = np.minimum(free[taken], _distance_to(taken, place, spacing) - probe.reach)
    if not found:
        raise ValueError(
            "expected room in the body for places of the lesions' size, found none: insert smaller lesions"
        )
    return share(sum(found), len(found))


@dataclass(frozen=True, eq=False)
class _Probe:
    """A lesion's shape with the tissue around it, to be laid anywhere.

    Attributes:
        centre: voxel of the lesion's middle.
        core: (n, 3) voxels of the lesion, from the centre.
        shell: (m, 3) voxels around it, likewise.
        radius: of the ball of equal volume, in a picture of the circle of equal area, mm.
        reach: mm from the centre to the farthest voxel of the core.
    """

    centre: np.ndarray
    core: np.ndarray
    shell: np.ndarray
    radius: float
    reach: float

    @classmethod
    def of(cls, lesion: np.ndarray, spacing: Sequence[float]) -> _Probe:
        """The probe of a mask with one lesion."""
        voxels = np.argwhere(lesion)
        centre = np.rint(voxels.mean(axis=0)).astype(int)
        core = voxels - centre
        sides = [step for step, side in zip(spacing, lesion.shape) if side > 1]
        filled = len(core) * math.prod(sides) / math.pi
        radius = math.sqrt(filled) if len(sides) == 2 else (0.75 * filled) ** (1 / 3)
        reach = float(np.sqrt(((core * spacing) ** 2).sum(axis=1)).max())
        # The core in a box of its own, with room for the shell but not along the axis that a picture lacks.
        thick = [
            math.ceil((GAP + SHELL) * radius / step) + 1 if side > 1 else 0 for step, side in zip(spacing, lesion.shape)
        ]
        low = core.min(axis=0) - thick
        box = np.zeros(core.max(axis=0) + thick - low + 1, bool)
        box[tuple((core - low).T)] = True
        away = ndimage.distance_transform_edt(~box, sampling=tuple(spacing))
        near = max(GAP * radius, min(spacing))
        shell = np.argwhere((away > near) & (away <= near + max(SHELL * radius, max(spacing)))) + low
        return cls(centre, core, shell, radius, reach)

    def places(self, free: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """(n, 3) random centres at which the core lies in what is free, at most `count`; `free` as of `_room`."""
        possible = np.flatnonzero(free > self.reach)
        drawn = rng.choice(possible, min(count, len(possible)), replace=False)
        return np.stack(np.unravel_index(drawn, free.shape), axis=1)

    def contrast(self, change: np.ndarray, place: np.ndarray, usable: np.ndarray) -> float:
        """Mean of the core less the median of the shell, of what is usable of it; 0 of a shell of which nothing is."""
        around = self._around(change, place, usable)
        outside = float(np.median(around)) if around.size else 0.0
        return float(change[tuple((self.core + place).T)].mean()) - outside

    def noise(self, image: np.ndarray, place: np.ndarray, usable: np.ndarray) -> float:
        """Robust deviation of an image in the shell."""
        return robust_deviation(self._around(image, place, usable))

    def _around(self, image: np.ndarray, place: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Values of the shell's voxels that lie in the image and are usable."""
        voxels = self.shell + place
        voxels = voxels[((voxels >= 0) & (voxels < image.shape)).all(axis=1)]
        where = tuple(voxels.T)
        values: np.ndarray = image[where][usable[where]]
        return values


def _difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64, so that equal images differ by nothing."""
    return np.asarray(after, np.float64) - np.asarray(before, np.float64)


def _null_threshold(null: Sequence[float], label: int) -> float:
    """The contrast that a lesion-free place exceeds with probability `LEVEL` at most: the ceil((1 - level) (n + 1))-th smallest."""
    rank = math.ceil((1.0 - LEVEL) * (len(null) + 1) - 1e-9)
    if rank > len(null):
        raise ValueError(
            f"expected room in the body for {round(1 / LEVEL) - 1} lesion-free places of the size of lesion {label}, found {len(null)}: insert fewer or smaller lesions"
        )
    return sorted(null)[rank - 1]
