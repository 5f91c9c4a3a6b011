"""Procedural thoraces with known truth: drawn parameters -> tissue map -> CT, MR, radiograph and masks.

Three steps, each a function of the one before: `draw_patient` draws every random parameter of a patient's shape,
`render` turns the parameters into a `TissueMap` on any `Raster`, and `ct`, `mr` and `radiograph` are the physics. All
coordinates are in mm in DICOM's patient frame (x to the patient's left, y to posterior, z to the head; the carina near
the origin); arrays inside this module are (K, J, I) = (z, y, x), and images leave it as (1, I, J, K).

Shapes are signed distances in mm, negative inside. A coverage (0..1) rises over one voxel across each surface, which
gives the partial volume of a finite voxel without supersampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .image import Image
from .runtime import derive_seed

Region = tuple[slice, slice, slice]
FOV = 384.0  # mm, field of view across the patient, as chest protocols use
LATTICE = 236.0  # mm, noise lattices span -LATTICE..LATTICE on every axis, beyond any raster used here


# ------------------------------------------------------------------------------------------------ tissues


class Tissue(NamedTuple):
    """Physical properties. PD is relative to water; T1 and T2 in ms at 3 T; `grain` is texture (one sigma) in HU."""

    hu: float
    grain: float
    pd: float
    t1: float
    t2: float


# CT numbers: textbook ranges for 120 kVp without contrast medium. T1 and T2 of liver, spleen, muscle, marrow and fat:
# de Bazelaire et al., Radiology 230 (2004); of blood, myocardium, cartilage and cord: Stanisz et al., MRM 54 (2005). The
# rest is chosen to look right. Blood in spin echo leaves the slice before the echo (flow void): its PD is set low.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(-1000, 0, 0.0, 1000, 50),
    "couch": Tissue(-650, 0, 0.0, 1000, 50),
    "skin": Tissue(15, 6, 0.75, 850, 28),
    "fat": Tissue(-103, 7, 0.95, 382, 68),
    "gland": Tissue(20, 10, 0.85, 1000, 54),
    "muscle": Tissue(55, 6, 0.85, 898, 29),
    "lung": Tissue(-860, 16, 0.16, 1200, 40),
    "vessel": Tissue(40, 0, 0.35, 1932, 60),
    "airway": Tissue(-985, 0, 0.0, 1000, 50),
    "airway wall": Tissue(20, 4, 0.7, 1000, 40),
    "venous blood": Tissue(42, 3, 0.10, 1932, 275),
    "arterial blood": Tissue(44, 3, 0.10, 1932, 275),
    "vessel wall": Tissue(45, 3, 0.75, 1000, 45),
    "myocardium": Tissue(48, 4, 0.85, 1471, 47),
    "oesophagus": Tissue(38, 5, 0.85, 1000, 50),
    "diaphragm": Tissue(50, 4, 0.85, 898, 29),
    "liver": Tissue(60, 7, 0.85, 809, 34),
    "spleen": Tissue(48, 6, 0.90, 1328, 61),
    "stomach wall": Tissue(40, 5, 0.85, 1000, 50),
    "stomach content": Tissue(14, 8, 0.95, 2200, 220),
    "gas": Tissue(-960, 0, 0.0, 1000, 50),
    "cortical bone": Tissue(950, 40, 0.06, 500, 10),
    "marrow": Tissue(170, 36, 0.75, 586, 49),
    "cartilage": Tissue(105, 12, 0.70, 1168, 27),
    "disc": Tissue(75, 8, 0.75, 1100, 60),
    "cord": Tissue(38, 3, 0.85, 993, 78),
    "cerebrospinal fluid": Tissue(8, 3, 1.0, 4200, 1800),
    "lesion": Tissue(38, 8, 0.90, 1300, 82),
}
NAMES = tuple(TISSUES)
INDEX = {name: index for index, name in enumerate(NAMES)}


# ------------------------------------------------------------------------------------------------ rasters and noise


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """Voxel centres along the three axes, mm, float32: x (I,) to the left, y (J,) to posterior, z (K,) to the head."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z), len(self.y), len(self.x)

    @property
    def pixel(self) -> float:
        """In-plane voxel size along x in mm."""
        return float(self.x[1] - self.x[0])

    @property
    def soft(self) -> float:
        """Width in mm over which a surface's coverage rises: the pixel, or more where depth is sampled coarsely."""
        return max(self.pixel, 0.8 * float(self.y[1] - self.y[0]))

    def box(self, low: np.ndarray, high: np.ndarray) -> Region:
        """The voxels between two corners (x, y, z), as slices of a (K, J, I) array."""
        spans = [
            slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b)))
            for axis, a, b in zip((self.x, self.y, self.z), low, high)
        ]
        return spans[2], spans[1], spans[0]


def _centred(count: int, step: float, middle: float) -> np.ndarray:
    return ((np.arange(count) - (count - 1) / 2) * step + middle).astype(np.float32)


def axial_raster(size: int = 128, slices: int = 32, spacing: float | None = None, middle: float = -42.0) -> Raster:
    """size x size pixels over 384 mm, `slices` slices `spacing` mm apart around z = `middle`.

    None chooses the spacing that covers 192 mm (arch to liver dome), at most 10 mm: 10 mm for 16 slices, 6 mm for 32.
    """
    spacing = min(10.0, 192.0 / slices) if spacing is None else spacing
    across = _centred(size, FOV / size, 0.0)
    return Raster(across, across + np.float32(2.0), _centred(slices, spacing, middle))


def _spline_weights(positions: np.ndarray, step: float) -> np.ndarray:
    """(n,) mm -> (n, knots) cubic B-spline weights of a lattice over -LATTICE..LATTICE with knots `step` mm apart."""
    knots = np.arange(-LATTICE, LATTICE + step, step)
    distance = np.abs(np.asarray(positions, np.float64)[:, None] - knots) / step
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
    return np.where(distance < 1.0, near, far).astype(np.float32)


def smooth_noise(seed: int, raster: Raster, step: float, step_z: float | None = None) -> np.ndarray:
    """Twice differentiable noise, zero mean, unit variance, tied to the patient's millimetres: (K, J, I) float32.

    The same seed gives the same field on every raster, so that modalities of one patient agree. Knots are drawn only
    where the raster lies, but each layer from its own stream: an axial stack does not pay for the whole patient.

    Args:
        seed: of the field.
        raster: where it is wanted.
        step: lattice spacing in mm, about half the width of a blob.
        step_z: lattice spacing along z; None: `step`.
    """
    step_z = step if step_z is None else step_z
    wx, wy, wz = (_spline_weights(axis, s) for axis, s in zip((raster.x, raster.y, raster.z), (step, step, step_z)))
    used = np.flatnonzero(wz.any(axis=0))
    layers = [
        np.random.default_rng((seed, int(k))).standard_normal((wy.shape[1], wx.shape[1]), np.float32) for k in used
    ]
    levels = np.tensordot(wz[:, used], np.stack(layers), axes=1)
    # Mean over positions of the squared weights' sum is 151/315 per axis.
    return (wy @ levels @ wx.T) * np.float32((315 / 151) ** 1.5)


def _noise_at(coefficients: np.ndarray, points: np.ndarray, step: float) -> np.ndarray:
    """(F, m, m, m) float32 knots over z, y, x; points (n, 3) = x, y, z in mm -> (n, F) values."""
    place = ((points + LATTICE) / step).astype(np.float32)
    first = np.clip(np.floor(place).astype(int) - 1, 0, coefficients.shape[1] - 4)
    knots = first[:, :, None] + np.arange(4)
    distance = np.abs(place[:, :, None] - knots.astype(np.float32))
    weight = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)
    local = coefficients[:, knots[:, 2, :, None, None], knots[:, 1, None, :, None], knots[:, 0, None, None, :]]
    for axis in range(3):  # x, then y, then z: the last axis that is left
        local = (local * weight[:, axis].reshape(1, -1, *(1,) * (2 - axis), 4)).sum(axis=-1)
    return local.T


# ------------------------------------------------------------------------------------------------ the patient

WARP_STEP = 64.0  # mm between the knots of the deformation that makes one patient unlike the next


@dataclass(frozen=True, slots=True, eq=False)
class Tubes:
    """n straight tapering tubes in patient mm: ends (n, 3) as x, y, z and radii (n,)."""

    start: np.ndarray
    end: np.ndarray
    radius_start: np.ndarray
    radius_end: np.ndarray

    def joined(self, other: Tubes) -> Tubes:
        return Tubes(
            *(
                np.concatenate(pair)
                for pair in zip(
                    (self.start, self.end, self.radius_start, self.radius_end),
                    (other.start, other.end, other.radius_start, other.radius_end),
                )
            )
        )

    def grown(self, millimetres: float) -> Tubes:
        """The same tubes with every radius larger."""
        return replace(self, radius_start=self.radius_start + millimetres, radius_end=self.radius_end + millimetres)


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """A lobulated lung nodule.

    Attributes:
        centre: (3,) x, y, z in mm.
        diameter: mean diameter in mm.
        waves: (n, 3) directions and frequencies of the lobulation; phases: (n,).
    """

    centre: np.ndarray
    diameter: float
    waves: np.ndarray
    phases: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """Everything random about one patient's shape; `render` is a pure function of it.

    Attributes:
        seed: names the textures.
        scale: (3,) size along x, y, z relative to the average adult.
        warp: (3, m, m, m) B-spline knots in mm of a smooth deformation of the whole body along x, y, z.
        fat: thickness of the subcutaneous fat in mm; breast: radius of the breasts in mm, 0 for none; gland: their
            share of glandular tissue.
        muscle: bulk of the chest wall relative to the average.
        heart: size relative to the average; heart_turn: radians about the long body axis.
        domes: z of the right and left diaphragm dome in mm.
        scoliosis: (2,) sideways amplitude in mm and phase of the spine's curve.
        rib_phase: z offset of the vertebrae and ribs in mm; rib_drop: how steeply ribs descend, relative.
        contrast: HU that contrast medium adds to venous and arterial blood.
        density: HU offset of the lung parenchyma (depth of breath).
        gas: size of the stomach's gas bubble, 0..1.
        trunks: large vessels and airways by tissue; branches: vessels of the lung tissue; airways.
        lesion: the nodule, or None.
    """

    seed: int
    scale: np.ndarray
    warp: np.ndarray
    fat: float
    breast: float
    gland: float
    muscle: float
    heart: float
    heart_turn: float
    domes: tuple[float, float]
    scoliosis: tuple[float, float]
    rib_phase: float
    rib_drop: float
    contrast: tuple[float, float]
    density: float
    gas: float
    trunks: dict[str, Tubes]
    branches: Tubes
    lesion: Lesion | None


# fmt: off
# Centre lines of the average adult, x, y, z and radius in mm. The carina is at z = 0.
COURSES: dict[str, list[list[tuple[float, float, float, float]]]] = {
    "arterial blood": [
        [(8, -14, -58, 13), (-6, -20, -42, 16), (-13, -25, -18, 16), (-12, -23, 4, 15), (-5, -12, 20, 14), (7, 8, 26, 13),
         (18, 28, 21, 12.5), (24, 40, 4, 12.5), (26, 44, -30, 12), (24, 43, -70, 11.5), (14, 38, -115, 11), (5, 32, -160, 10.5), (4, 30, -240, 10)],
        [(-6, -12, 30, 7), (-14, -8, 55, 6.5), (-22, -2, 80, 6), (-32, -2, 130, 4)],
        [(5, 4, 32, 4.5), (12, 2, 62, 4), (20, 2, 95, 4), (26, 0, 150, 4)],
        [(14, 18, 30, 5), (22, 16, 62, 5), (34, 10, 88, 5), (70, -8, 98, 5), (120, -5, 90, 4.5)],
        [(-22, -2, 80, 5.5), (-42, 2, 94, 5), (-75, -8, 98, 5), (-120, -5, 90, 4.5)],
    ],
    "venous blood": [
        [(14, -38, -58, 13), (18, -32, -38, 13.5), (23, -20, -22, 13.5), (27, -6, -10, 12)],
        [(26, -8, -10, 12), (36, 8, -4, 10.5), (43, 17, -12, 9.5), (50, 22, -32, 7.5)],
        [(26, -8, -12, 11.5), (8, -3, -17, 10.5), (-14, 0, -18, 10), (-36, 3, -20, 9), (-48, 8, -34, 7.5)],
        [(-38, -22, 78, 7), (-28, -20, 46, 8), (-28, -17, 15, 9), (-27, -15, -20, 9.5), (-27, -12, -45, 10)],
        [(42, -22, 78, 6), (30, -34, 58, 6), (4, -40, 44, 6.5), (-26, -24, 32, 7)],
        [(-24, 4, -85, 11), (-24, 12, -120, 11), (-20, 22, -170, 11), (-20, 24, -240, 11)],
        [(-6, 42, -160, 3.5), (-7, 43, -60, 3.8), (-8, 42, -5, 4.2), (-20, 28, 4, 4.2), (-26, 6, 6, 4.2), (-27, -10, 4, 4.2)],
    ],
    "airway": [
        [(0, 6, 150, 8.5), (0, 12, 90, 8.5), (0, 17, 40, 8.5), (-1, 20, 4, 9)],
        [(-2, 20, 3, 8), (-16, 19, -14, 7.5), (-32, 20, -28, 6.5), (-42, 24, -50, 5), (-56, 34, -80, 3.2)],
        [(1, 20, 3, 7.5), (20, 22, -16, 6.5), (38, 24, -30, 6), (48, 30, -52, 4.8), (58, 38, -82, 3)],
        [(-24, 19, -20, 5), (-46, 10, -10, 3.4), (-62, 4, 16, 2.4)],
        [(36, 22, -28, 5), (52, 6, -24, 3.4), (64, -8, 0, 2.4)],
        [(-38, 22, -42, 4), (-55, 0, -56, 2.8), (-66, -26, -66, 2)],
    ],
    "oesophagus": [
        [(5, 26, 130, 7), (6, 31, 60, 7.5), (5, 36, 10, 8), (5, 37, -40, 8), (9, 30, -90, 8), (20, 18, -125, 9)],
    ],
}
# fmt: on


def _spline_path(points: np.ndarray, every: float = 7.0) -> np.ndarray:
    """Catmull-Rom curve through (n, 4) points x, y, z, radius, sampled about `every` mm."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:]):
        count = max(1, int(np.ceil(np.linalg.norm((p2 - p1)[:3]) / every)))
        t = (np.arange(count) / count)[:, None]
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, points[-1:]])


def _course_tubes(
    rng: np.random.Generator, courses: list[list[tuple[float, float, float, float]]], bulk: float
) -> Tubes:
    """Centre lines -> canonical tubes, each control point moved a little and each radius scaled."""
    starts, ends = [], []
    for course in courses:
        points = np.array(course, np.float64)
        points[:, :3] += rng.normal(0.0, 1.3, (len(points), 3))
        points[:, 3] *= bulk
        path = _spline_path(points)
        starts.append(path[:-1])
        ends.append(path[1:])
    start, end = np.concatenate(starts), np.concatenate(ends)
    return Tubes(start[:, :3], end[:, :3], start[:, 3], end[:, 3])


def _grow_tree(rng: np.random.Generator, hilum: np.ndarray, targets: np.ndarray, leaf: float) -> Tubes:
    """A vessel tree from the hilum (3,) that reaches every target (n, 3), near ones first.

    Each target joins the existing node with the least distance plus a part of the path to the hilum, in bent pieces of
    about 9 mm; radii follow Murray's law with exponent 2.7 from `leaf` mm at the ends.
    """
    room = 1 + sum(2 + int(distance / 9.0) for distance in np.linalg.norm(targets - hilum, axis=1))
    nodes, path, parents = np.zeros((room, 3), np.float32), np.zeros(room, np.float32), np.zeros(room, int)
    nodes[0], count = hilum, 1
    bends = rng.normal(0.0, 1.1, (room, 3)).astype(np.float32)
    for target in targets[np.argsort(np.linalg.norm(targets - hilum, axis=1))]:
        offset = nodes[:count] - target
        away = np.sqrt((offset * offset).sum(axis=1))
        last = joint = int(np.argmin(away + np.float32(0.45) * path[:count]))
        pieces = max(1, round(float(away[joint]) / 9.0))
        for piece in range(1, pieces + 1):
            bend = bends[count] if piece < pieces else 0.0
            nodes[count] = nodes[joint] + (target - nodes[joint]) * (piece / pieces) + bend
            path[count], parents[count] = path[last] + away[joint] / pieces, last
            last, count = count, count + 1
    nodes, parents = nodes[:count], parents[:count]
    ends = np.zeros(count)
    ends[np.setdiff1d(np.arange(count), parents)] = 1.0
    for node in range(count - 1, 0, -1):
        ends[parents[node]] += ends[node]
    radius = leaf * ends ** (1 / 2.7)
    parent = parents[1:]
    return Tubes(nodes[parent], nodes[1:], np.minimum(radius[parent], radius[1:] * 1.3), radius[1:])


def _to_patient(points: np.ndarray, scale: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Average adult's coordinates (n, 3) -> this patient's: inverts `_canonical` by fixed-point iteration."""
    real = points * scale
    for _ in range(3):  # contracts by about 0.15 a step
        real = points * scale - _noise_at(warp, real, WARP_STEP)
    return real


def _placed(tubes: Tubes, scale: np.ndarray, warp: np.ndarray) -> Tubes:
    both, where = np.unique(np.concatenate([tubes.start, tubes.end]), axis=0, return_inverse=True)
    start, end = np.split(_to_patient(both, scale, warp)[where.ravel()], 2)
    return replace(tubes, start=start, end=end)


def _lung_points(
    rng: np.random.Generator, count: int, side: int, domes: tuple[float, float], inset: float
) -> np.ndarray:
    """(count, 3) uniform points in one lung of the average adult, `inset` mm from its walls; side -1 right, +1 left."""
    found = np.empty((0, 3))
    while len(found) < count:
        tries = rng.uniform((20, -85, -170), (140, 105, 105), (4000, 3)) * (side, 1, 1)
        x, y, z = (tries[:, axis].astype(np.float32) for axis in range(3))
        heart = _ellipsoid(x, y, z, (14, -22, -72), (62, 46, 48))
        spine = np.hypot(x, (y - 54) * 0.9) - 24
        inside = np.maximum.reduce(
            [_cavity(x, y, z), _apex(x, y, z), _diaphragm(x, y, domes) - z, -heart, -spine, 32 - np.abs(x)]
        )
        found = np.concatenate([found, tries[inside < -inset]])
    return found[:count]


def _draw_branches(rng: np.random.Generator, domes: tuple[float, float]) -> Tubes:
    """Arteries and veins of both lungs, average adult's coordinates."""
    trees = []
    for side, artery, vein in ((-1, (-46, 6, -32), (-36, 6, -52)), (1, (49, 20, -28), (38, 8, -48))):
        for hilum, count, leaf in ((artery, 240, 0.75), (vein, 150, 0.75)):
            targets = _lung_points(rng, count, side, domes, 4.0)
            trees.append(_grow_tree(rng, np.array(hilum, np.float64), targets, leaf))
    joined = trees[0]
    for tree in trees[1:]:
        joined = joined.joined(tree)
    return joined


def _draw_lesion(
    rng: np.random.Generator,
    domes: tuple[float, float],
    scale: np.ndarray,
    warp: np.ndarray,
    diameter: tuple[float, float],
) -> Lesion:
    size = float(rng.uniform(*diameter))
    while True:
        side = int(rng.choice((-1, 1)))
        point = _lung_points(rng, 1, side, domes, size / 2 + 3.0)
        if -85.0 < point[0, 2] < 25.0:
            break
    return Lesion(
        _to_patient(point, scale, warp)[0], size, rng.normal(0.0, 1.6, (6, 3)), rng.uniform(0.0, 2 * np.pi, 7)
    )


def draw_patient(seed: int, lesion: bool = False, diameter: tuple[float, float] = (12.0, 32.0)) -> Patient:
    """Draw one patient; the same seed gives the same patient, and the same one with or without the lesion.

    Args:
        seed: any non-negative integer.
        lesion: whether the patient has a lung nodule.
        diameter: range in mm that the nodule's diameter is drawn from.
    """
    rng = np.random.default_rng(derive_seed(seed, "patient"))
    female = bool(rng.random() < 0.45)
    size = rng.normal(0.96 if female else 1.02, 0.035)
    scale = np.clip(size * rng.normal(1.0, 0.03, 3), 0.88, 1.1)
    knots = len(np.arange(-LATTICE, LATTICE + WARP_STEP, WARP_STEP))
    warp = rng.normal(0.0, 9.0, (3, knots, knots, knots)) * np.array([1.0, 0.9, 0.8])[:, None, None, None]
    warp = warp.astype(np.float32)
    fat = float(np.clip(rng.gamma(4.0, 3.4) + (3.0 if female else 0.0), 4.0, 27.0))
    inspired = rng.normal(0.0, 6.0)
    domes = (-98.0 - inspired + rng.normal(0.0, 4.0), -110.0 - inspired + rng.normal(0.0, 4.0))
    enhanced = bool(rng.random() < 0.6)
    bulk = float(rng.normal(1.0, 0.08))
    trunks = {name: _course_tubes(rng, courses, bulk if "blood" in name else 1.0) for name, courses in COURSES.items()}
    return Patient(
        seed=seed,
        scale=scale,
        warp=warp,
        fat=fat,
        breast=float(rng.uniform(30.0, 42.0) + 0.5 * fat) if female else 0.0,
        gland=float(rng.uniform(0.1, 0.9)),
        muscle=float(np.clip(rng.normal(0.92 if female else 1.08, 0.12), 0.7, 1.4)),
        heart=float(np.clip(rng.normal(1.0, 0.07), 0.85, 1.2)),
        heart_turn=float(rng.normal(0.0, 0.12)),
        domes=domes,
        scoliosis=(float(rng.normal(0.0, 3.5)), float(rng.uniform(0.0, 2 * np.pi))),
        rib_phase=float(rng.uniform(-11.5, 11.5)),
        rib_drop=float(rng.normal(1.0, 0.1)),
        contrast=(float(rng.uniform(70, 170)), float(rng.uniform(110, 240))) if enhanced else (0.0, 0.0),
        density=float(rng.normal(0.0, 18.0) - 1.5 * inspired),
        gas=float(rng.uniform(0.2, 1.0)),
        trunks={name: _placed(tubes, scale, warp) for name, tubes in trunks.items()},
        branches=_placed(_draw_branches(rng, domes), scale, warp),
        lesion=_draw_lesion(np.random.default_rng(derive_seed(seed, "lesion")), domes, scale, warp, diameter)
        if lesion
        else None,
    )


# ------------------------------------------------------------------------------------------------ shapes


def _blend(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Union of two distances whose crease is rounded over `width` mm."""
    crease = np.clip(width - np.abs(a - b), 0.0, None)
    return np.minimum(a, b) - crease * crease * np.float32(0.25 / width)


def _ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple[float, float, float], semi: tuple[float, float, float]
) -> np.ndarray:
    """Distance to an ellipsoid, exact on its surface and good nearby."""
    u, v, w = (np.float32(1 / s) * (q - np.float32(c)) for q, c, s in zip((x, y, z), centre, semi))
    near = np.sqrt(u * u + v * v + w * w) + np.float32(1e-6)
    u, v, w = (np.float32(1 / s) * q for q, s in zip((u, v, w), semi))
    return near * (near - 1) / np.sqrt(u * u + v * v + w * w + np.float32(1e-12))


@lru_cache(maxsize=8)
def _outline(knots: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Radius over the angle from posterior (0) to anterior (180 degrees), knots (degrees, mm) -> 2048 values in mm."""
    degrees, radius = np.array(knots).T
    # Even about both ends, so that left and right halves meet without a corner.
    angle = np.concatenate([-degrees[1:][::-1], degrees, 360.0 - degrees[:-1][::-1]])
    value = np.concatenate([radius[1:][::-1], radius, radius[:-1][::-1]])
    dense = np.interp(np.linspace(-180.0, 360.0, 6145), angle, value)
    return ndimage.gaussian_filter1d(dense, 40.0)[2048:4096].astype(np.float32)


def _polar(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radius in mm, and angle from posterior as an index into an `_outline` table."""
    return np.hypot(x, y), (np.arctan2(np.abs(x), y) * np.float32(2047 / np.pi)).astype(np.int32)


CAVITY = (
    (0, 82),
    (12, 91),
    (25, 102),
    (40, 113),
    (55, 121),
    (75, 129),
    (92, 132),
    (110, 128),
    (130, 115),
    (148, 99),
    (165, 86),
    (180, 82),
)
MUSCLE = (
    (0, 120),
    (10, 124),
    (25, 129),
    (40, 137),
    (55, 146),
    (75, 151),
    (92, 151),
    (110, 146),
    (130, 133),
    (148, 115),
    (165, 101),
    (180, 97),
)


@lru_cache(maxsize=64)
def _profile_table(knots: tuple[tuple[float, float], ...]) -> np.ndarray:
    height, value = np.array(knots).T
    return ndimage.gaussian_filter1d(np.interp(np.arange(-300.0, 300.0, 0.5), height, value), 8.0).astype(np.float32)


def _profile(z: np.ndarray, *knots: tuple[float, float]) -> np.ndarray:
    """A value along the body axis, knots (z in mm, value), smooth; by table, 0.5 mm fine."""
    return _profile_table(knots).take(((z + 300) * 2).astype(np.int32), mode="clip")


def _cavity(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the inner chest wall, lungs and mediastinum and upper abdomen inside."""
    width = _profile(
        z,
        (-230, 0.98),
        (-170, 1.02),
        (-100, 1.03),
        (-45, 1.01),
        (0, 0.97),
        (30, 0.9),
        (60, 0.77),
        (90, 0.58),
        (130, 0.4),
    )
    depth = _profile(
        z,
        (-230, 0.98),
        (-170, 1.02),
        (-100, 1.04),
        (-45, 1.0),
        (0, 0.92),
        (30, 0.83),
        (60, 0.7),
        (90, 0.58),
        (130, 0.5),
    )
    middle = _profile(z, (-230, 0), (-45, 0), (0, 4), (30, 9), (60, 16), (90, 22), (130, 24))
    radius, angle = _polar(x / width, (y - middle) / depth)
    return (radius - _outline(CAVITY).take(angle)) * np.minimum(width, depth)


def _apex(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance to the domes that close the lungs' tops."""
    dome = _ellipsoid(np.abs(x), y, np.maximum(z, np.float32(5)), (46, 18, 5), (80, 88, 98))
    return dome - 3.0 * np.clip(40.0 - z, 0.0, None)


def _diaphragm(x: np.ndarray, y: np.ndarray, domes: tuple[float, float]) -> np.ndarray:
    """z in mm of the diaphragm: two domes and the central tendon under the heart."""
    right = domes[0] - 55 * (((x + 70) / 72) ** 2 + ((y + 4) / 82) ** 2)
    left = domes[1] - 55 * (((x - 66) / 68) ** 2 + ((y + 4) / 82) ** 2)
    tendon = min(domes) + 10 - 40 * (((x - 14) / 56) ** 2 + ((y + 26) / 48) ** 2)
    return -_blend(_blend(-right, -left, 14.0), -tendon, 10.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """Coordinates on one raster: this patient's voxels in the average adult's mm, (K, J, I) float32, and noise fields.

    `fine`, `middle` and `coarse` are unit-variance noises of about 8, 16 and 40 mm that roughen surfaces and place fat;
    `cavity` is the distance to the inner chest wall, which most organs lean on.
    """

    raster: Raster
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    fine: np.ndarray
    middle: np.ndarray
    coarse: np.ndarray
    cavity: np.ndarray


def _canonical(patient: Patient, raster: Raster) -> _Frame:
    """Undo the patient's size and deformation: x_average = (x + warp(x)) / scale."""
    weights = [_spline_weights(axis, WARP_STEP) for axis in (raster.x, raster.y, raster.z)]
    moved = np.einsum("fzyx,kz,jy,ix->fkji", patient.warp, weights[2], weights[1], weights[0], optimize=True)
    fine, middle, coarse = (
        smooth_noise(derive_seed(patient.seed, "surface", i), raster, step) for i, step in enumerate((7.0, 14.0, 30.0))
    )
    # A little fine deformation beside the large one: no boundary is as smooth as a formula.
    x = (raster.x + moved[0] + 0.9 * middle) / np.float32(patient.scale[0])
    y = (raster.y[:, None] + moved[1] + 0.9 * coarse) / np.float32(patient.scale[1])
    z = (raster.z[:, None, None] + moved[2]) / np.float32(patient.scale[2])
    return _Frame(raster, x, y, z, fine, middle, coarse, _cavity(x, y, z))


def tube_distance(tubes: Tubes, raster: Raster, reach: float) -> np.ndarray:
    """Distance in mm to the nearest tube's surface, (K, J, I) float32; `reach` wherever it is further than that.

    Tubes are handled in batches of like bounding boxes, each batch as one array (n, k, j, i).
    """
    axes = (raster.z, raster.y, raster.x)
    order = [2, 1, 0]
    result = np.full(raster.shape, reach, np.float32)
    thick = np.maximum(tubes.radius_start, tubes.radius_end)[:, None] + reach
    low, high = np.minimum(tubes.start, tubes.end) - thick, np.maximum(tubes.start, tubes.end) + thick
    first = np.stack([np.searchsorted(axis, low[:, o]) for axis, o in zip(axes, order)], axis=1)
    extent = np.stack([np.searchsorted(axis, high[:, o]) for axis, o in zip(axes, order)], axis=1) - first
    used = np.flatnonzero((extent > 0).all(axis=1))
    # Extents rounded up to multiples of 4, so that there are few batches.
    rounded = np.ceil(extent / 4).astype(int) * 4
    for box in np.unique(rounded[used], axis=0):
        batch = used[(rounded[used] == box).all(axis=1)]
        per = max(1, 400_000 // int(box.prod()))
        for part in range(0, len(batch), per):
            _nearest_tube(result, tubes, batch[part : part + per], first, box, axes)
    return result


def _nearest_tube(
    result: np.ndarray, tubes: Tubes, rows: np.ndarray, first: np.ndarray, box: np.ndarray, axes: tuple[np.ndarray, ...]
) -> None:
    """Lower `result` in place by the distance to the tubes `rows`, all inside bounding boxes of one size."""
    index = [np.minimum(first[rows, a, None] + np.arange(box[a]), len(axes[a]) - 1) for a in range(3)]
    start, along = tubes.start[rows].astype(np.float32), (tubes.end - tubes.start)[rows].astype(np.float32)
    spread = [
        (slice(None), slice(None), None, None),
        (slice(None), None, slice(None), None),
        (slice(None), None, None, slice(None)),
    ]
    offset = [(axes[a][index[a]] - start[:, 2 - a, None])[spread[a]] for a in range(3)]
    step = [along[:, 2 - a, None, None, None] for a in range(3)]
    length = (along * along).sum(axis=1)[:, None, None, None] + np.float32(1e-9)
    t = np.clip((offset[0] * step[0] + offset[1] * step[1] + offset[2] * step[2]) / length, 0.0, 1.0)
    square = sum((o - t * s) ** 2 for o, s in zip(offset, step))
    r0 = tubes.radius_start[rows].astype(np.float32)[:, None, None, None]
    r1 = tubes.radius_end[rows].astype(np.float32)[:, None, None, None]
    distance = np.sqrt(square) - (r0 + t * (r1 - r0))
    flat = (index[0][spread[0]] * len(axes[1]) + index[1][spread[1]]) * len(axes[2]) + index[2][spread[2]]
    np.minimum.at(result.reshape(-1), flat.reshape(-1), distance.reshape(-1))


# ------------------------------------------------------------------------------------------------ painting


@dataclass(frozen=True, slots=True, eq=False)
class TissueMap:
    """What each voxel is made of: at most two tissues, which is what a voxel across one surface holds.

    Attributes:
        raster: where the voxels are.
        first, second: (K, J, I) uint8 indices into `NAMES`.
        fraction: (K, J, I) float32, share of `first`; the rest is `second`.
        grain: (K, J, I) float32 texture, about zero mean and unit variance, scaled by each tissue's `grain`.
        contrast: HU added to venous and arterial blood; density: HU offset of the lung.
    """

    raster: Raster
    first: np.ndarray
    second: np.ndarray
    fraction: np.ndarray
    grain: np.ndarray
    contrast: tuple[float, float]
    density: float

    def mix(self, values: np.ndarray) -> np.ndarray:
        """Per-tissue values, in the order of `NAMES` -> (K, J, I) float32, mixed by volume."""
        values = np.asarray(values, np.float32)
        other = values.take(self.second)
        return other + self.fraction * (values.take(self.first) - other)

    def share(self, tissue: str) -> np.ndarray:
        """(K, J, I) float32 volume fraction of one tissue."""
        index = INDEX[tissue]
        return np.where(self.first == index, self.fraction, 0) + np.where(
            (self.second == index) & (self.first != index), 1 - self.fraction, 0
        )

    def labels(self) -> np.ndarray:
        """(K, J, I) uint8 index into `NAMES` of the tissue that fills most of each voxel."""
        return np.where(self.fraction >= 0.5, self.first, self.second)


def _coverage(distance: np.ndarray, width: float) -> np.ndarray:
    """Volume share of a voxel `width` mm wide at `distance` from a surface, negative inside."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / width), 0.0, 1.0)


def paint(canvas: TissueMap, tissue: str, coverage: np.ndarray, region: Region | None = None) -> None:
    """Lay `tissue` over what is there with `coverage` 0..1, in place; of three tissues in one voxel the two largest stay."""
    region = region or (slice(None), slice(None), slice(None))
    first, second, fraction = canvas.first[region], canvas.second[region], canvas.fraction[region]
    index = np.uint8(INDEX[tissue])
    whole = coverage >= 1.0
    np.copyto(first, index, where=whole)
    np.copyto(fraction, np.float32(1.0), where=whole)
    part = (coverage > 0.0) & ~whole
    if not part.any():
        return
    share = coverage[part]
    a, b, share_a = first[part], second[part], fraction[part] * (1 - share)
    share_b = 1 - share - share_a
    share_a, share_b, share = (
        np.where(a == index, share_a + share, share_a),
        np.where(b == index, np.where(a == index, 0, share_b + share), share_b),
        np.where((a == index) | (b == index), 0, share),
    )
    smallest = np.argmin(np.stack([share_a, share_b, share]), axis=0)
    a, share_a = np.where(smallest == 0, index, a), np.where(smallest == 0, share, share_a)
    b, share_b = np.where(smallest == 1, index, b), np.where(smallest == 1, share, share_b)
    first[part], second[part], fraction[part] = a, b, share_a / (share_a + share_b)


def _crop(
    frame: _Frame, low: tuple[float, float, float], high: tuple[float, float, float], patient: Patient
) -> tuple[Region, tuple[np.ndarray, ...]]:
    """Region of the voxels around a box in the average adult's mm, and their x, y, z, fine, middle, coarse, cavity."""
    margin = 12.0
    region = frame.raster.box(np.array(low) * patient.scale - margin, np.array(high) * patient.scale + margin)
    return region, tuple(
        field[region] for field in (frame.x, frame.y, frame.z, frame.fine, frame.middle, frame.coarse, frame.cavity)
    )


def _paint_couch(canvas: TissueMap, patient: Patient, raster: Raster) -> None:
    """The scanner's table: two thin arcs under the back."""
    x, y = raster.x, raster.y[:, None]
    back = (124.0 + 0.8 * patient.fat) * float(patient.scale[1])
    for depth, curve in ((back + 9.0, 4e-4), (back + 31.0, 1e-3)):
        slab = np.maximum(np.abs(y - depth + curve * x * x) - 1.6, np.abs(x) - 185.0)
        paint(canvas, "couch", np.broadcast_to(_coverage(slab, raster.soft), raster.shape))


def _body(patient: Patient, frame: _Frame, standing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the skin and to the muscle under the fat."""
    x, y, z = frame.x, frame.y, frame.z
    width = _profile(
        z,
        (-230, 0.98),
        (-100, 1.0),
        (0, 1.0),
        (25, 1.03),
        (50, 1.1),
        (78, 1.22),
        (92, 1.12),
        (106, 0.72),
        (122, 0.5),
        (150, 0.42),
    )
    depth = _profile(
        z, (-230, 1.0), (-100, 1.02), (0, 1.0), (50, 0.97), (80, 0.92), (105, 0.78), (130, 0.6), (150, 0.56)
    )
    middle = _profile(z, (-230, 0), (0, 0), (50, 6), (90, 14), (130, 18))
    bulk = 1.0 + 0.10 * (patient.muscle - 1.0)
    radius, angle = _polar(x / (width * bulk), (y - middle) / depth)
    muscle = (radius - _outline(MUSCLE).take(angle)) * np.minimum(width, depth)
    muscle = np.minimum(muscle, frame.cavity - 13.0) - 0.8 * frame.coarse
    if standing:  # upper arms, held away from the chest
        muscle = _blend(muscle, np.hypot(_arm_axis(np.abs(x), y, z), np.clip(z - 62.0, 0.0, None)) - 38.0, 30.0)
    layer = _outline(
        ((0, 0.45), (15, 0.6), (40, 1.0), (75, 1.15), (100, 1.1), (130, 0.9), (155, 0.75), (180, 0.5))
    ).take(angle)
    low = _profile(z, (-230, 1.35), (-100, 1.15), (0, 0.9), (60, 0.7), (120, 0.5))
    skin = muscle - 2.0 - patient.fat * layer * low * (1.0 + 0.10 * frame.coarse)
    if patient.breast > 0:
        r = patient.breast
        skin = _blend(
            skin, _ellipsoid(np.abs(x), y, z, (74, -92 - 0.28 * r, -48), (1.15 * r, 0.85 * r, 1.15 * r)), 22.0
        )
    return skin, muscle


def _paint_wall(canvas: TissueMap, patient: Patient, frame: _Frame, standing: bool) -> None:
    """Skin, fat, glands, chest wall muscles with fat planes between them."""
    soft = frame.raster.soft
    x, y, z = frame.x, frame.y, frame.z
    skin, muscle = _body(patient, frame, standing)
    paint(canvas, "skin", _coverage(skin, soft))
    paint(canvas, "fat", _coverage(skin + 2.2, soft))
    strands = (
        _coverage((np.abs(frame.middle + 0.5 * frame.fine) - 0.06) * 9.0, soft)
        * _coverage(skin + 4.0, soft)
        * np.float32(0.22)
    )
    paint(canvas, "skin", strands)
    if patient.breast > 0:
        r = patient.breast
        cone = _ellipsoid(np.abs(x), y, z, (74, -96 - 0.3 * r, -48), (0.75 * r, 0.6 * r, 0.75 * r))
        lobes = np.clip((frame.fine + frame.middle) * 0.6 + 2.2 * patient.gland - 0.9, 0.0, 1.0)
        paint(canvas, "gland", _coverage(cone, 8.0) * lobes * (muscle > 2.0))
    paint(canvas, "muscle", _coverage(muscle, soft))
    _paint_fat_planes(canvas, patient, frame, muscle)


def _paint_fat_planes(canvas: TissueMap, patient: Patient, frame: _Frame, muscle: np.ndarray) -> None:
    """Fat between the layers of the chest wall, in the axilla, around the back muscles and under the scapula."""
    soft, x, y, z = frame.raster.soft, frame.x, frame.y, frame.z
    depth = frame.cavity + 1.1 * frame.coarse
    inside = _coverage(muscle + 1.0, soft)
    # Serratus on the ribs, then latissimus, pectoralis or trapezius: planes where the wall is thick enough to have them.
    for offset, half in ((15.0, 0.9), (25.0, 0.9 + 0.02 * patient.fat)):
        plane = np.abs(depth - offset + 1.5 * frame.middle) - half - 0.35 * frame.fine
        seen = np.clip(0.55 + 0.6 * frame.coarse + 0.3 * frame.middle, 0.0, 0.9)
        paint(canvas, "fat", _coverage(plane, soft) * inside * seen)
    spread = 8.0 + 0.5 * patient.fat
    axilla = _ellipsoid(np.abs(x), y, z, (128, 2, 58), (16 + 0.5 * spread, 20 + spread, 62)) + 2.5 * frame.middle
    paint(canvas, "fat", _coverage(np.maximum(axilla, 14.5 - depth), soft) * inside)
    nodes = np.maximum(axilla + 5.0, 4.0 - 3.2 * frame.fine)
    paint(canvas, "vessel wall", _coverage(np.maximum(nodes, 16.0 - depth), soft))
    erector = np.abs(_ellipsoid(np.abs(x), y, z, (31, 99, -60), (25, 17, 400)) + 0.6 * frame.fine) - 0.8
    paint(canvas, "fat", _coverage(erector, soft) * inside * _coverage(4.0 - depth, soft))
    # Septa inside the muscles: faint streaks of fat.
    streaks = _coverage((np.abs(frame.fine - 0.3 * frame.middle) - 0.07) * 6.0, soft) * inside * np.float32(0.3)
    paint(canvas, "fat", streaks * (depth > 9.0))


def _rib_distance(patient: Patient, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest rib or its cartilage, and which share of the voxel's rib is cartilage (0 or 1).

    Rib n descends from its vertebra as z = z0 - pitch n - (d0 + d1 n) g(angle), which is linear in n: the nearest rib
    of every voxel follows in closed form, all twelve pairs at once.
    """
    x, y, z = frame.x, frame.y, frame.z
    degrees = np.arctan2(np.abs(x), y - 8.0) * np.float32(180 / np.pi)
    table = np.array(
        [
            (0, -0.04),
            (14, 0.0),
            (40, 0.14),
            (70, 0.36),
            (100, 0.64),
            (125, 0.88),
            (142, 1.0),
            (155, 0.97),
            (168, 0.80),
            (180, 0.70),
        ]
    ).T
    fall = ndimage.gaussian_filter1d(np.interp(np.linspace(0, 180, 1024), *table), 20, mode="nearest").astype(
        np.float32
    )
    g = fall.take((degrees * np.float32(1023 / 180)).astype(np.int32))
    slope = np.gradient(fall, np.pi / 1024).astype(np.float32).take((degrees * np.float32(1023 / 180)).astype(np.int32))
    d0, d1, pitch, z0 = 42.0 * patient.rib_drop, 11.0 * patient.rib_drop, 23.0, 96.0 + patient.rib_phase
    number = (z0 - d0 * g - z) / (pitch + d1 * g)
    nearest = np.clip(np.rint(number), 0, 11)
    # Across the rib's course, not along z: scaled by the cosine of its slope on a chest wall about 115 mm away.
    drop = d0 + d1 * nearest
    across = (number - nearest) * (pitch + d1 * g) / np.sqrt(1 + (drop * slope / 115.0) ** 2)
    shell = frame.cavity - 6.6
    flat = degrees > 120
    distance = np.sqrt((across / np.where(flat, 1.9, 1.75)) ** 2 + shell * shell + 0.01) - 3.9 + 0.25 * frame.middle
    last = np.where(nearest >= 10, 95.0 - 35.0 * (nearest - 10), np.where(nearest >= 7, 152.0, 170.0))
    distance = np.maximum(distance, (degrees - last) * 1.8)
    joint = np.where(nearest < 1, 150.0, 143.0 - 2.2 * np.abs(nearest - 3))
    return np.maximum(distance, 12.0 - np.abs(x)), np.clip((degrees - joint) * 0.5, 0.0, 1.0)


def _paint_bones(canvas: TissueMap, patient: Patient, frame: _Frame, standing: bool) -> None:
    """Ribs, sternum, scapulae, clavicles and humeral heads: a cortex around marrow."""
    soft = frame.raster.soft
    ribs, cartilage = _rib_distance(patient, frame)
    near = _coverage(ribs, soft)
    paint(canvas, "cortical bone", near * (1 - cartilage))
    paint(canvas, "marrow", _coverage(ribs + 2.0, soft) * (1 - cartilage))
    paint(canvas, "cartilage", near * cartilage)
    region, (x, _, z, fine, _, _, cavity) = _crop(frame, (-48, -130, -95), (48, -25, 72), patient)
    if all(s.stop > s.start for s in region):
        shell = cavity - 8.0
        wide = _profile(z, (-95, 5), (-80, 12), (-20, 17), (20, 16), (32, 22), (58, 30), (70, 26))
        sternum = np.sqrt(np.clip(np.abs(x) - wide + 5, 0, None) ** 2 + (shell * 0.95) ** 2 + 0.01) - 5.4 + 0.3 * fine
        sternum = np.maximum(np.maximum(sternum, np.maximum(z - 68, -92 - z)), 1.2 - np.abs(z - 24))
        paint(canvas, "cortical bone", _coverage(sternum, soft), region)
        paint(canvas, "marrow", _coverage(sternum + 1.5, soft), region)
    _paint_shoulders(canvas, patient, frame, standing)


def _arm_axis(side: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance in mm to the axis of the upper arm, which runs outwards and down from the shoulder at z = 78."""
    return np.hypot((side - 178 - 0.7 * np.clip(78 - z, 0, None)) * 0.82, y - 14)


def _paint_shoulders(canvas: TissueMap, patient: Patient, frame: _Frame, standing: bool) -> None:
    soft = frame.raster.soft
    region, (x, y, z, fine, middle, _, cavity) = _crop(frame, (-200, -90, -55), (200, 140, 112), patient)
    if any(s.stop <= s.start for s in region):
        return
    side = np.abs(x)
    depth = cavity + 1.2 * middle
    degrees = np.arctan2(side, y) * np.float32(180 / np.pi)
    low = _profile(z, (-50, 44), (-20, 36), (30, 34), (85, 34))
    high = _profile(z, (-50, 47), (-20, 56), (30, 68), (60, 84), (85, 84))
    # Blade, 4 mm thick in its middle and thicker along the lateral border; its spine points backwards.
    border = np.clip(1.0 - np.abs(degrees - high + 5) / 9.0, 0.0, 1.0)
    blade = np.maximum(
        np.abs(depth - 22.5 - 3 * np.sin(degrees * 0.09)) - 1.7 - 3.0 * border,
        np.maximum(low - degrees, degrees - high) * 1.9,
    )
    blade = np.maximum(blade, np.maximum(z - 88, -48 - z))
    spine = np.maximum(
        np.maximum(np.abs(z - 52 - 0.35 * (side - 90)) - 1.8, np.abs(depth - 29) - 8),
        np.maximum(low + 3 - degrees, degrees - high),
    )
    scapula = np.minimum(blade, spine) + 0.25 * fine
    head = _ellipsoid(side, y, z, (174, 14, 69), (24, 23, 24))
    shaft = np.maximum(_arm_axis(side, y, z) - 13, z - 66)
    arm = np.minimum(np.minimum(head, shaft), _ellipsoid(side, y, z, (147, 20, 66), (8, 17, 19)))
    t = np.clip((side - 18) / 136, 0, 1)
    rod = np.sqrt((y - (-66 + 18 * t + 55 * t * t - 10 * np.sin(6.28 * t))) ** 2 + (z - (60 + 34 * t - 4 * t * t)) ** 2)
    clavicle = np.maximum(rod - 6.2 - 2.2 * np.abs(t - 0.5), np.maximum(16 - side, side - 154) * 0.9)
    for bone, cortex in ((scapula, 1.3), (clavicle, 3.0), (arm, 2.4))[: 3 if standing else 2]:
        paint(canvas, "cortical bone", _coverage(bone, soft), region)
        paint(canvas, "marrow", _coverage(bone + cortex, soft), region)


def _spine_centre(patient: Patient, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y in mm of the vertebral bodies' centre: a sideways curve and the thoracic kyphosis."""
    amplitude, phase = patient.scoliosis
    return amplitude * np.sin(z / 60.0 + phase), 60.0 - 0.0011 * (z + 25.0) ** 2


def _paint_spine(canvas: TissueMap, patient: Patient, frame: _Frame) -> None:
    """Vertebral bodies and discs, canal and cord, pedicles, laminae, transverse and spinous processes."""
    soft = frame.raster.soft
    region, (x, y, z, fine, _, _, _) = _crop(frame, (-56, 15, -240), (56, 135, 160), patient)
    centre_x, centre_y = _spine_centre(patient, z)
    u, v = x - centre_x, y - centre_y
    side = np.abs(u)
    # Height above the nearest vertebra's middle; ribs leave at the level of the disc above.
    level = (z - patient.rib_phase - 84.5) / 23.0
    h = (level - np.rint(level)) * 23.0
    grow = 1.0 + 0.0011 * (-z - 20)
    waist = 1.0 - 0.05 * np.cos(h * (np.pi / 11.5))
    oval = (np.sqrt((u / 1.16) ** 2 + v * v + 0.01) - 14.5 * grow * waist + 0.35 * fine) * 1.05
    body = np.maximum(oval, 3.0 - np.hypot(u, v - 22.0) + 5.5)
    paint(canvas, "disc", _coverage(body - 0.4, soft), region)
    bone = np.maximum(body, np.abs(h) - 9.8)
    canal = np.hypot(u / 1.1, v - 22.5) - 8.2
    arch = np.maximum(np.abs(canal - 3.0) - 3.2, np.maximum(np.abs(h + 1.5) - 8.5, -v + 6))
    arch = np.maximum(arch, np.where(v < 20, np.abs(h - 2) - 5.5, -99.0))
    tip = np.clip((v - 30) / 28.0, 0, 1)
    spinous = np.maximum(
        np.hypot(side * 1.0, np.clip(np.abs(h + 4 + 9 * tip) - 6, 0, None)) - 2.6 - 1.2 * tip * tip,
        np.maximum(29 - v, v - 56),
    )
    reach = np.clip((side - 10) / 26.0, 0, 1)
    transverse = np.maximum(np.hypot(v - 23 - 7 * reach, h - 2) - 5.2 + reach, np.maximum(9 - side, side - 36))
    hard = np.minimum(np.minimum(arch, spinous), transverse) + 0.3 * fine
    for shape, cortex in ((bone, 1.1), (hard, 1.6)):
        paint(canvas, "cortical bone", _coverage(shape, soft), region)
        paint(canvas, "marrow", _coverage(shape + cortex, soft), region)
    paint(canvas, "cerebrospinal fluid", _coverage(canal, soft), region)
    paint(canvas, "cord", _coverage(np.hypot(u / 1.25, v - 22.0) - 4.0, soft), region)


@dataclass(frozen=True, slots=True, eq=False)
class _Heart:
    """Distances of the heart's parts inside `region`."""

    region: Region
    whole: np.ndarray
    left_wall: np.ndarray
    left_ventricle: np.ndarray
    right_ventricle: np.ndarray
    left_atrium: np.ndarray
    right_atrium: np.ndarray


def _heart(patient: Patient, frame: _Frame) -> _Heart:
    region, (x, y, z, fine, middle, _, _) = _crop(frame, (-75, -85, -125), (105, 50, 5), patient)
    turn, size = patient.heart_turn, patient.heart
    c, s = np.cos(turn), np.sin(turn)
    x, y, z = x - 14, y + 20, z + 70
    x, y, z = (c * x - s * y) / size + 14, (s * x + c * y) / size - 20, z / size - 70
    # Left ventricle in its own axes: a to the apex (left, anterior, down), b to the septum's front, h upwards.
    px, py, pz = x - 36, y + 18, z + 74
    a = 0.74 * px - 0.52 * py - 0.43 * pz
    b = -0.58 * px - 0.815 * py
    h = 0.35 * px - 0.25 * py + 0.90 * pz
    ruffle = 0.8 * middle
    left_wall = _ellipsoid(a, b, h, (0, 0, 0), (46, 32, 33)) + ruffle
    left = np.maximum(_ellipsoid(a, b, h, (-8, 0, 0), (39, 20, 21)) + 1.1 * fine, -34 - a)
    right = _ellipsoid(x, y, z, (6, -40, -76), (43, 25, 32)) + ruffle + 0.7 * fine
    right = np.maximum(right, 1.5 - left_wall)
    left_atrium = _ellipsoid(x, y, z, (3, 13, -50), (33, 17, 24)) + ruffle
    right_atrium = _ellipsoid(x, y, z, (-33, -12, -66), (22, 25, 31)) + ruffle
    whole = (
        _blend(_blend(left_wall, right - 3.0, 12.0), _blend(left_atrium - 2.0, right_atrium - 2.5, 12.0), 12.0) * size
    )
    return _Heart(region, whole, left_wall, left, right, left_atrium, right_atrium)


def _mediastinum(patient: Patient, frame: _Frame, heart: _Heart, trunks: dict[str, np.ndarray]) -> np.ndarray:
    """Distance to what lies between the lungs: heart, great vessels, spine and the fat that joins them."""
    x, y, z = frame.x, frame.y, frame.z
    centre_x, centre_y = _spine_centre(patient, z)
    spine = np.hypot((x - centre_x) / 1.1, y - centre_y) - 20.0
    half = _profile(z, (-170, 14), (-60, 5), (5, 5), (30, 17), (60, 26), (90, 24), (130, 30))
    behind = np.clip(np.abs(y + 5) - 40, 0, None) * _profile(z, (-170, 0.1), (-20, 0.0), (30, 0.25), (90, 0.3))
    front = 0.55 * np.clip(-58 - y, 0, None)
    plate = np.abs(x - 2 - 1.5 * frame.coarse) - half + behind - front
    vessels = np.minimum(
        np.minimum(trunks["arterial blood"], trunks["venous blood"]),
        np.minimum(trunks["airway"] + 1.2, trunks["oesophagus"]),
    )
    result = _blend(_blend(spine, plate, 16.0), vessels - 2.5, 14.0)
    pericardium = np.full(frame.raster.shape, 60.0, np.float32)
    pericardium[heart.region] = heart.whole - 3.0 - 0.08 * patient.fat
    return _blend(result, pericardium, 18.0) - 0.5 * frame.middle


def _paint_heart(canvas: TissueMap, heart: _Heart, soft: float) -> None:
    region = heart.region
    paint(canvas, "fat", _coverage(heart.whole, soft), region)
    for chamber, wall, blood in (
        (heart.right_atrium, 2.0, "venous blood"),
        (heart.left_atrium, 2.0, "arterial blood"),
        (heart.right_ventricle, 3.2, "venous blood"),
    ):
        paint(canvas, "myocardium", _coverage(chamber - wall, soft), region)
        paint(canvas, blood, _coverage(chamber, soft), region)
    paint(canvas, "myocardium", _coverage(heart.left_wall, soft), region)
    paint(canvas, "arterial blood", _coverage(heart.left_ventricle, soft), region)


def _paint_abdomen(
    canvas: TissueMap, patient: Patient, frame: _Frame, cavity: np.ndarray, below: np.ndarray, standing: bool
) -> None:
    """What lies under the diaphragm: liver, spleen, stomach, fat; `below` is the distance to that space."""
    soft, raster = frame.raster.soft, frame.raster
    slices = slice(0, int(np.searchsorted(raster.z, -80.0)))
    if slices.stop == 0:
        return
    region = (slices, slice(None), slice(None))
    x, y, z, fine, coarse = (field[region] for field in (frame.x, frame.y, frame.z, frame.fine, frame.coarse))
    inside = np.maximum(cavity[region] + 2.0, below[region])
    paint(canvas, "diaphragm", _coverage(inside, soft), region)
    paint(canvas, "fat", _coverage(inside + 3.0, soft), region)
    hollow = _ellipsoid(x, y, z, (30, 62, -170), (62, 46, 200))
    liver = np.maximum(inside + 2.0, np.maximum(0.80 * (x - 34) + 0.6 * (y + 28) + 2.5 * coarse, 3.0 - hollow))
    spleen = np.maximum(inside + 2.5, _ellipsoid(x, y, z, (94, 44, -160), (34, 46, 50)) + 2 * coarse)
    stomach = np.maximum(
        inside + 2.5, np.maximum(_ellipsoid(x, y, z, (62, -14, -160), (46, 46, 52)) + 2 * coarse, 4.0 - liver)
    )
    paint(canvas, "spleen", _coverage(spleen, soft), region)
    paint(canvas, "liver", _coverage(liver, soft), region)
    ducts = np.maximum(np.abs(fine + 0.4 * coarse) - 0.12, np.abs(coarse - 0.4) - 0.35)
    paint(canvas, "venous blood", _coverage(ducts * 9.0, soft) * _coverage(liver + 9.0, soft) * np.float32(0.6), region)
    paint(canvas, "stomach wall", _coverage(stomach, soft), region)
    paint(canvas, "stomach content", _coverage(stomach + 3.0, soft), region)
    # Gas collects on top: under the dome of a standing patient, in front of one who lies.
    level = (-122 - 22 * patient.gas) - z if standing else y - (-32 + 34 * patient.gas)
    paint(canvas, "gas", _coverage(np.maximum(stomach + 3.0, level), soft), region)
    crus = np.abs(np.hypot((x - 6) * 0.9, y - 42) - 27) - 2.2
    paint(canvas, "diaphragm", _coverage(np.maximum(np.maximum(crus, inside), z + 118), soft) * (y < 62), region)


def _paint_trunks(canvas: TissueMap, trunks: dict[str, np.ndarray], soft: float) -> None:
    """Great vessels, oesophagus, trachea and bronchi with their walls."""
    paint(canvas, "oesophagus", _coverage(trunks["oesophagus"], soft))
    paint(canvas, "gas", _coverage(trunks["oesophagus"] + 5.6, soft) * np.float32(0.7))
    for name in ("venous blood", "arterial blood"):
        paint(canvas, "vessel wall", _coverage(trunks[name], soft))
        paint(canvas, name, _coverage(trunks[name] + 1.0, soft))
    paint(canvas, "airway wall", _coverage(trunks["airway"] - 1.3, soft))
    paint(canvas, "airway", _coverage(trunks["airway"], soft))


def _paint_lung_details(canvas: TissueMap, patient: Patient, frame: _Frame, lung: np.ndarray) -> None:
    """Vessels and fissures of the lung tissue; thin ones fill a voxel only in part."""
    soft = frame.raster.soft
    distance = tube_distance(patient.branches, frame.raster, 0.75 * soft)
    deep = _coverage(lung + 1.0, soft)
    x, y, z = frame.x, frame.y, frame.z
    oblique = (z + 28 - 0.85 * (y - 12) + 6 * frame.coarse) * 0.76  # from behind and above to the front and below
    level = np.where((x < 0) & (y < -5), np.abs(z + 18 + 0.06 * (x + 60) + 4 * frame.coarse), 99.0)
    fissure = np.minimum(np.abs(oblique), level) - 0.5
    paint(canvas, "vessel wall", _coverage(fissure, soft) * deep * np.float32(0.10))
    paint(canvas, "vessel", _coverage(distance, 1.5 * soft) * deep)


def _lesion_distance(lesion: Lesion, raster: Raster) -> tuple[Region, np.ndarray]:
    """Distance to the lobulated nodule, inside a region around it: r(direction) = r0 (1 + waves)."""
    half = 0.8 * lesion.diameter + 3.0
    region = raster.box(lesion.centre - half, lesion.centre + half)
    x, y, z = (
        raster.x[region[2]] - lesion.centre[0],
        raster.y[region[1], None] - lesion.centre[1],
        raster.z[region[0], None, None] - lesion.centre[2],
    )
    radius = np.sqrt(x * x + y * y + z * z) + 1e-3
    wave = sum(
        np.sin((kx * x + ky * y + kz * z) / radius + phase) for (kx, ky, kz), phase in zip(lesion.waves, lesion.phases)
    )
    return region, (radius - lesion.diameter / 2 * (1.0 + 0.075 * wave)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ the map


def render(patient: Patient, raster: Raster, standing: bool = False) -> TissueMap:
    """The patient's tissues on a raster, from the outside in; a pure function of both.

    Args:
        patient: from `draw_patient`.
        raster: any, for example `axial_raster()`.
        standing: arms down and gas on top as for a radiograph; else supine, arms up, on the scanner's table.
    """
    frame, soft, shape = _canonical(patient, raster), raster.soft, raster.shape
    grain = smooth_noise(derive_seed(patient.seed, "grain"), raster, 3.6, 6.0)
    canvas = TissueMap(
        raster,
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.uint8),
        np.ones(shape, np.float32),
        grain,
        patient.contrast,
        patient.density,
    )
    if not standing:
        _paint_couch(canvas, patient, raster)
    _paint_wall(canvas, patient, frame, standing)
    cavity = frame.cavity + 0.5 * frame.middle
    below = (frame.z - _diaphragm(frame.x, frame.y, patient.domes) - 1.5 * frame.coarse) * np.float32(0.72)
    trunks = {name: tube_distance(tubes, raster, 14.0) for name, tubes in patient.trunks.items()}
    heart = _heart(patient, frame)
    middle = _mediastinum(patient, frame, heart, trunks)
    lung = np.maximum(np.maximum(cavity + 1.0, -middle), np.maximum(0.6 - below, _apex(frame.x, frame.y, frame.z)))
    paint(canvas, "fat", _coverage(np.maximum(cavity, -below), soft))
    paint(canvas, "lung", _coverage(lung, soft))
    _paint_heart(canvas, heart, soft)
    _paint_abdomen(canvas, patient, frame, cavity, below, standing)
    _paint_lung_details(canvas, patient, frame, lung)
    _paint_trunks(canvas, trunks, soft)
    _paint_spine(canvas, patient, frame)
    _paint_bones(canvas, patient, frame, standing)
    if patient.lesion is not None:
        region, distance = _lesion_distance(patient.lesion, raster)
        paint(canvas, "lesion", _coverage(distance, soft), region)
    return canvas


# ------------------------------------------------------------------------------------------------ physics


def affine(raster: Raster) -> np.ndarray:
    """(4, 4) voxel (i, j, k) -> mm in RAS+: I to the patient's left, J to posterior, K to the head."""
    result = np.diag([-raster.pixel, -float(raster.y[1] - raster.y[0]), 1.0, 1.0])
    result[2, 2] = float(raster.z[1] - raster.z[0]) if len(raster.z) > 1 else 10.0
    result[:3, 3] = -float(raster.x[0]), -float(raster.y[0]), float(raster.z[0])
    return result


def _volume(array: np.ndarray) -> np.ndarray:
    """(K, J, I) -> (1, I, J, K), contiguous."""
    return np.ascontiguousarray(array.T)[None]


def hounsfield(tissues: TissueMap) -> np.ndarray:
    """(K, J, I) float32 noise-free CT numbers in HU."""
    hu = np.array([t.hu for t in TISSUES.values()])
    venous, arterial = tissues.contrast
    for name, share in (("venous blood", 1.0), ("liver", 0.25), ("spleen", 0.4), ("vessel", 0.5)):
        hu[INDEX[name]] += venous * share
    for name, share in (("arterial blood", 1.0), ("myocardium", 0.3)):
        hu[INDEX[name]] += arterial * share
    hu[INDEX["lung"]] += tissues.density
    values = tissues.mix(hu) + tissues.mix(np.array([t.grain for t in TISSUES.values()])) * tissues.grain
    # Lung lying lower is denser (supine), and its texture is skewed: small vessels on dark air.
    lung = tissues.share("lung")
    skew = 0.5 * (tissues.grain * tissues.grain - 1.0) * 9.0
    return values + lung * (skew + np.clip(tissues.raster.y, -90, 90)[:, None] * np.float32(0.38))


WATER = 0.0195  # 1/mm, linear attenuation of water near 68 keV, the mean energy of a filtered 120 kVp beam


def attenuation(hu: np.ndarray) -> np.ndarray:
    """HU -> linear attenuation in 1/mm, by the definition of the Hounsfield scale."""
    return np.clip(np.float32(WATER) * (1.0 + np.asarray(hu, np.float32) * np.float32(1e-3)), 0.0, None)


def project(mu: np.ndarray, step: float, axis: int) -> np.ndarray:
    """Line integral of attenuation (1/mm) along one axis sampled every `step` mm: Beer-Lambert's exponent, no unit."""
    return mu.sum(axis=axis, dtype=np.float32) * np.float32(step)


def noise_level(hu: np.ndarray, pixel: float, dose: float) -> np.ndarray:
    """(K, J, I) HU -> (K, J, I) standard deviation in HU of quantum noise at every voxel.

    A detector that counts N photons knows the line integral with variance 1/N (delta method on log of a Poisson count),
    N = N0 exp(-p). Filtered back projection averages the rays through a voxel; here the rows and the columns stand for
    them, which keeps the two directions that differ most (shoulders across, chest wall front to back). Variance scales
    as 1/dose; dose 1 gives about 10 HU in the middle of an average chest at 3 mm pixels.
    """
    mu = attenuation(hu)
    across, through = project(mu, pixel, 2), project(mu, pixel, 1)
    variance = 0.5 * (np.exp(across)[:, :, None] + np.exp(through)[:, None, :])
    return np.sqrt(variance * np.float32((3.0 / pixel) ** 2 * 1.3 / dose))


def kernel_noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """(K, J, I) unit-variance noise as a reconstruction kernel leaves it: power spectrum |f| times a Hann window."""
    white = np.random.default_rng(seed).standard_normal(shape, np.float32)
    fy, fx = np.fft.fftfreq(shape[1])[:, None], np.fft.rfftfreq(shape[2])
    radius = np.hypot(fy, fx)
    gain = np.sqrt(radius) * np.where(radius < 0.5, 0.5 + 0.5 * np.cos(2 * np.pi * radius), 0.0)
    full = np.hypot(fy, np.fft.fftfreq(shape[2]))
    power = np.mean(full * np.where(full < 0.5, 0.5 + 0.5 * np.cos(2 * np.pi * full), 0.0) ** 2)
    spectrum = np.fft.rfft2(white) * (gain / np.sqrt(power)).astype(np.float32)
    return np.fft.irfft2(spectrum, s=shape[1:]).astype(np.float32)


def ct(tissues: TissueMap, seed: int, dose: float | None = 1.0) -> Image:
    """CT of the map in whole HU, int16, -1024 to 3071.

    Args:
        tissues: from `render`.
        seed: of the noise.
        dose: relative tube output; noise variance is proportional to 1/dose. None: no noise.
    """
    hu = hounsfield(tissues)
    if dose is not None:
        hu = hu + noise_level(hu, tissues.raster.pixel, dose) * kernel_noise(derive_seed(seed, "ct"), hu.shape)
    return Image(_volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16)), affine(tissues.raster), "CT", "HU")


def spin_echo(pd: np.ndarray, t1: np.ndarray, t2: np.ndarray, tr: float, te: float) -> np.ndarray:
    """S = PD (1 - exp(-TR/T1)) exp(-TE/T2), all times in ms."""
    return pd * (1.0 - np.exp(-tr / t1)) * np.exp(-te / t2)


SEQUENCES = {"T1": (600.0, 12.0), "T2": (3500.0, 85.0)}  # TR and TE in ms


def bias_field(seed: int, raster: Raster, strength: float = 0.25) -> np.ndarray:
    """(K, J, I) smooth gain about 1 of the receive coils: exp of noise with 120 mm knots, one sigma `strength`."""
    return np.exp(np.float32(strength) * smooth_noise(derive_seed(seed, "bias"), raster, 120.0))


def rician(signal: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Magnitude of the signal with complex Gaussian noise of standard deviation `sigma` in each part."""
    rng = np.random.default_rng(seed)
    real = signal + sigma * rng.standard_normal(signal.shape, np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, np.float32)
    return np.sqrt(real * real + imaginary * imaginary)


def mr(tissues: TissueMap, weighting: str, seed: int, snr: float | None = 40.0) -> Image:
    """Spin-echo MR of the map, int16, arbitrary units (fat about 1000).

    Args:
        tissues: from `render`.
        weighting: "T1" or "T2", a row of `SEQUENCES`.
        seed: of bias field and noise.
        snr: of fat, without the bias field; None: no noise and no bias field.
    """
    table = list(TISSUES.values())
    pd, t1, t2 = (np.array([getattr(t, name) for t in table]) for name in ("pd", "t1", "t2"))
    echo = spin_echo(pd, t1, t2, *SEQUENCES[weighting])
    echo[INDEX["couch"]] = 0.0
    scale = 1000.0 / echo[INDEX["fat"]]
    grain = np.array([0.003 * t.grain for t in table]) * echo
    signal = (tissues.mix(echo) + tissues.mix(grain) * tissues.grain).astype(np.float32) * np.float32(scale)
    if snr is not None:
        signal = signal * bias_field(derive_seed(seed, weighting), tissues.raster)
        signal = rician(signal, 1000.0 / snr, derive_seed(seed, weighting, "noise"))
    return Image(_volume(np.clip(np.rint(signal), 0, 32767).astype(np.int16)), affine(tissues.raster), "MR")


DEPTH = 3.2  # mm between the samples along a radiograph's rays


def line_integrals(patient: Patient, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Frontal projection of the standing patient: (rows, columns) line integrals, and share of rays that cross the lesion.

    Rows run from the head down, columns to the patient's left; parallel rays from back to front. The volume is rendered
    16 rows at a time, so memory stays small.
    """
    across = _centred(size, FOV / size, 0.0)
    y, z = _centred(92, DEPTH, 0.0), _centred(size, FOV / size, -32.0)
    integrals, lesion = np.empty((size, size), np.float32), np.zeros((size, size), np.float32)
    bare = replace(patient, contrast=(0.0, 0.0))
    for low in range(0, size, 16):
        tissues = render(bare, Raster(across, y, z[low : low + 16]), standing=True)
        integrals[low : low + 16] = project(attenuation(hounsfield(tissues)), DEPTH, 1)
        lesion[low : low + 16] = tissues.share("lesion").max(axis=1)
    return integrals[::-1], lesion[::-1]


def film(integrals: np.ndarray, pixel: float, seed: int, dose: float | None = 1.0) -> np.ndarray:
    """Line integrals -> what a digital radiograph shows: Poisson counts, logarithm, display processing; 0..4095, bone white.

    Args:
        integrals: (rows, columns), no unit.
        pixel: in mm.
        seed: of the noise.
        dose: relative exposure, 1: 20 000 counts for each mm2 of the open beam. None: no noise.
    """
    primary = np.exp(-np.asarray(integrals, np.float64))
    beam = primary + 0.04 * ndimage.gaussian_filter(primary, 40.0 / pixel)  # scatter that passed the grid
    if dose is not None:
        open_counts = 20_000.0 * dose * pixel * pixel
        beam = np.maximum(np.random.default_rng(derive_seed(seed, "film")).poisson(beam * open_counts), 1) / open_counts
    density = -np.log(beam)
    # Multi-frequency processing in brief: large-scale contrast is compressed, edges are lifted.
    broad, fine = (ndimage.gaussian_filter(density, width / pixel) for width in (30.0, 8.0))
    shown = 0.66 * broad + 1.15 * (density - broad) + 1.3 * (density - fine)
    low, high = np.percentile(shown[density > min(0.3, 0.5 * density.max())], (1, 98))  # of the body, not the open beam
    return np.clip(np.rint(4095.0 / (1.0 + np.exp(-4.6 * ((shown - low) / (high - low) - 0.5)))), 0, 4095)


def radiograph(patient: Patient, size: int = 128, seed: int = 0, dose: float | None = 1.0) -> tuple[Image, np.ndarray]:
    """Frontal chest radiograph (MONOCHROME2: bone white, patient's right on the image's left) and its lesion mask.

    Returns:
        Image of shape (1, size, size, 1), uint16 0..4095, and the mask (size, size, 1) uint8 in the image's (I, J, K).
    """
    integrals, lesion = line_integrals(patient, size)
    pixel = FOV / size
    shown = film(integrals, pixel, seed, dose).astype(np.uint16)
    top = float(_centred(size, pixel, -32.0)[-1])
    place = np.array([[-pixel, 0, 0, FOV / 2 - pixel / 2], [0, 0, -1.0, 0], [0, -pixel, 0, top], [0, 0, 0, 1]])
    mask = np.ascontiguousarray((lesion > 0.5).astype(np.uint8).T)[:, :, None]
    return Image(_volume(shown[None]), place, "DX"), mask


def lesion_mask(tissues: TissueMap) -> np.ndarray:
    """(I, J, K) uint8, 1 where the lesion fills at least half the voxel."""
    return np.ascontiguousarray((tissues.share("lesion") >= 0.5).astype(np.uint8).T)


def label_map(tissues: TissueMap) -> np.ndarray:
    """(I, J, K) uint8, index into `NAMES` of each voxel's main tissue."""
    return np.ascontiguousarray(tissues.labels().T)
