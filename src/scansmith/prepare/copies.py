"""Near copies: the same picture stored twice with other compression, size, brightness or side, found and confirmed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from ..preprocess import resampling_matrix
from .split import join

# Two hashes that differ in more bits are of different pictures.
FARTHEST = 8
# Of each picture so many of the nearest hashes are looked at.
MOST_CANDIDATES = 16
# Above it there are too many pairs (100,000 pictures take 15 s on one core, four times that for twice as many): only
# equal hashes are looked at.
MOST_COMPARED = 200_000
# Pixels a side of what is compared.
SIDE = 48
# Standard deviations in pixels of the two Gaussians whose difference is compared.
FINE, COARSE = 0.7, 2.5
# Measured on 64-pixel hands, CT and MR, 28-pixel chest X-rays and larger brains and CT. Planted copies reach it: JPEG of
# quality 50 to 90, resizing by 0.9, brightness, contrast, gamma, 32 grey levels, noise of 3 and mirroring in 99 to 100 %;
# noise of 8 grey levels in 57 to 100 %, a crop by one pixel in 96 % of larger pictures and a third to nine tenths at 64,
# by two pixels at 64 or one at 28 hardly ever. Of 5,030 X-rays, 1,000 hands and 150 brains one pair reaches it that is not the same
# picture; slices of one CT or MR scan under different names do, and belong together.
SAME = 0.92
# What all pictures share is learned from so many of them.
MOST_FOR_MEAN = 1000
# Hashes compared at a time, rows and columns, and details.
TILE = (512, 1024)
CHUNK = 256
MOST_WAITING = 2**18
# One cluster with more of the patients, and at least so many, is no copy but a likeness of all.
MOST_IN_ONE, LEAST_IN_ONE = 0.3, 5

# The 64 lowest frequencies (rows, columns) of the cosine transform but the mean, by their sum.
FREQUENCIES = np.array(
    sorted(((u, v) for u in range(9) for v in range(9) if u + v), key=lambda pair: (sum(pair), pair))[:64]
)
# Turning a picture's left side right changes the sign of these.
ODD = FREQUENCIES[:, 1] % 2 == 1
BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


# ------------------------------------------------------------------------------------------------ hash


@lru_cache(maxsize=64)
def _cosines(size: int) -> np.ndarray:
    """(9, size) rows that take a line of pixels to the lowest cosine coefficients of its 32-pixel thumbnail."""
    place = np.pi * (2 * np.arange(32) + 1) / 64
    return (np.cos(np.arange(9)[:, None] * place) @ resampling_matrix(size, 32)).astype(np.float32)


def fingerprint(image: np.ndarray, low: float, high: float) -> np.uint64:
    """Perceptual hash: one bit for the sign of each of 64 low frequencies of the picture, its mean left out.

    Brightness and contrast change no sign. Of a mirrored picture the odd column frequencies have the other sign, so
    that its hash is known without looking at it. The cosine transform of a 32 x 32 anti-aliased grey thumbnail is one
    small matrix on either side of the picture.

    Args:
        image: (C, H, W), or (C, D, H, W) of which the middle slice is taken; any dtype.
        low: values below are set to it, as its intensity map does.
        high: values above are set to it.
    """
    picture = np.clip(_grey(image), low, high)
    # Columns first: nine rows times a large picture takes BLAS seven times as long.
    coefficients = _cosines(picture.shape[0]) @ (picture @ _cosines(picture.shape[1]).T)
    signs = coefficients[FREQUENCIES[:, 0], FREQUENCIES[:, 1]] > 0
    return np.uint64(BITS[signs].sum())


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) float32: the middle slice of a volume, the mean of the channels."""
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    return image[0].astype(np.float32) if len(image) == 1 else image.mean(axis=0, dtype=np.float32)


# ------------------------------------------------------------------------------------------------ pairs


def near_copies(
    hashes: np.ndarray, owners: np.ndarray, image: Callable[[int], np.ndarray]
) -> list[tuple[int, int, float]]:
    """Pairs of different owners' pictures that are one picture, also mirrored, with their correlation, sorted.

    Candidates have hashes that differ in at most `FARTHEST` of 64 bits. They are confirmed by the correlation of what
    lies between fine and coarse in both (difference of two Gaussians at `SIDE` pixels), less what all pictures share
    (borders, tables, frames): anatomy in the large is alike in all patients, its detail is not.

    Args:
        hashes: (N,) uint64, one `fingerprint` a row.
        owners: (N,) whole numbers; pictures of one owner are not compared with each other.
        image: row -> (C, H, W) or (C, D, H, W), best clipped to its window.
    """
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *_candidates(np.asarray(hashes, np.uint64), owners)])
    if not len(pairs):
        return []
    rows, place = np.unique(pairs, return_inverse=True)
    details = np.stack([_pack(detail(image(int(row)))) for row in rows])
    drawn = np.unique(np.linspace(0, len(hashes) - 1, MOST_FOR_MEAN).astype(int))
    # Of few pictures the mean would be the copies themselves.
    common = np.sum([detail(image(int(row))) for row in drawn], axis=0) / (len(drawn) + 20.0)
    value = _correlation(details, place.reshape(-1, 2), common)
    return sorted((int(i), int(j), float(r)) for (i, j), r in zip(pairs[value >= SAME], value[value >= SAME]))


def _candidates(hashes: np.ndarray, owners: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of (n, 2) pairs of rows, the first number lower, whose hashes are near, at most `MOST_CANDIDATES` a row."""
    if len(hashes) > MOST_COMPARED:
        yield _equal(hashes, owners)
        return
    signs = np.where((hashes[:, None] & BITS) > 0, np.float32(1), np.float32(-1))
    even, odd = np.ascontiguousarray(signs[:, ~ODD]), np.ascontiguousarray(signs[:, ODD])
    # Small enough to stay in the cache; written over and over.
    sums, differences = np.empty((2, *TILE), np.float32)
    for top in range(0, len(hashes), TILE[0]):
        found: list[np.ndarray] = []
        for left in range(top, len(hashes), TILE[1]):
            rows, columns = slice(top, top + TILE[0]), slice(left, left + TILE[1])
            shape = len(even[rows]), len(even[columns])
            agreement, other = sums[: shape[0], : shape[1]], differences[: shape[0], : shape[1]]
            np.matmul(even[rows], even[columns].T, out=agreement)
            np.matmul(odd[rows], odd[columns].T, out=other)
            # Agreeing bits less differing ones, in the better of both orientations.
            agreement += np.abs(other, out=other)
            near = agreement >= 64 - 2 * FARTHEST
            if near.any():
                found.append(_keys(near, agreement, top, left, owners))
            if sum(map(len, found)) > MOST_WAITING:
                found = [_nearest(np.concatenate(found))]
        keys = _nearest(np.concatenate([np.zeros(0, np.int64), *found]))
        yield np.stack([keys >> 40, keys & 0xFFFFFFFF], axis=1)


def _keys(near: np.ndarray, agreement: np.ndarray, top: int, left: int, owners: np.ndarray) -> np.ndarray:
    """(n,) one number of row (upper bits), distance (8 bits) and other row (32 bits) for each pair of a tile that is
    near, of different owners, and above the diagonal: sorted, the nearest of each row come first."""
    rows, columns = np.nonzero(near)
    distance = (64 - agreement[rows, columns]).astype(np.int64) // 2
    one, other = rows + top, columns + left
    return ((one << 40) | (distance << 32) | other)[(one < other) & (owners[one] != owners[other])]


def _nearest(keys: np.ndarray) -> np.ndarray:
    """The first `MOST_CANDIDATES` of each row."""
    keys = np.sort(keys)
    _, start, size = np.unique(keys >> 40, return_index=True, return_counts=True)
    return keys[np.arange(len(keys)) - np.repeat(start, size) < MOST_CANDIDATES]


def _equal(hashes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(n, 2) pairs of rows with equal hashes, also mirrored, at most `MOST_CANDIDATES` a row."""
    mirror = BITS[ODD].sum()
    upright = np.where(hashes & BITS[ODD][0], hashes ^ mirror, hashes)
    order = np.argsort(upright, kind="stable")
    found = []
    for step in range(1, MOST_CANDIDATES + 1):
        one, other = order[:-step], order[step:]
        found.append(np.stack([one, other], axis=1)[(upright[one] == upright[other]) & (owners[one] != owners[other])])
    return np.sort(np.concatenate(found), axis=1)


def too_alike(found: Sequence[tuple[int, int, float]], owners: Sequence[str]) -> bool:
    """Whether the pairs chain so many patients together that they tell likeness, not copies, and must tie nobody.

    Args:
        found: pairs of rows as `near_copies` gives them.
        owners: row -> patient.
    """
    cluster = join(owners, [(owners[i], owners[j]) for i, j, _ in found])
    largest = max(Counter(cluster.values()).values(), default=0)
    return largest >= LEAST_IN_ONE and largest > MOST_IN_ONE * len(cluster)


def words(found: Sequence[tuple[int, int, float]], owners: Sequence[str]) -> str:
    """One sentence for the report; arguments as for `too_alike`."""
    if not found:
        return "near copies: none"
    images = len({row for pair in found for row in pair[:2]})
    patients = len({owners[row] for pair in found for row in pair[:2]})
    if too_alike(found, owners):
        return (
            f"near copies: the images are too alike to tell ({len(found)} pairs of {images} images of {patients} patients would tie "
            f"more than {MOST_IN_ONE:.0%} of the patients together): the split does not heed them"
        )
    return (
        f"near copies: {len(found)} pairs of {images} images of {patients} patients (correlation of detail from "
        f"{min(pair[2] for pair in found):.2f}): these patients stay in one split"
    )


# ------------------------------------------------------------------------------------------------ confirmation


@lru_cache(maxsize=64)
def _gaussian(size: int, sigma: float) -> np.ndarray:
    """(side, size) rows that shrink a line of pixels to at most `SIDE` and smooth it; each sums to 1."""
    side = min(size, SIDE)
    place = np.arange(side)
    weight = np.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
    return (weight / weight.sum(axis=1, keepdims=True) @ resampling_matrix(size, side)).astype(np.float32)


def detail(image: np.ndarray) -> np.ndarray:
    """(side, side) what lies between fine and coarse in a picture, mean 0, norm 1; zeros where nothing does."""
    picture = _grey(image)
    height, width = picture.shape
    fine = _gaussian(height, FINE) @ (picture @ _gaussian(width, FINE).T)
    result = fine - _gaussian(height, COARSE) @ (picture @ _gaussian(width, COARSE).T)
    result -= result.mean()
    norm = float(np.sqrt((result * result).sum()))
    # Rounding leaves a trace of a constant picture.
    return result / norm if norm > 1e-5 * float(np.abs(picture).max() or 1) else np.zeros_like(result)


def _pack(values: np.ndarray) -> np.ndarray:
    """In a quarter of the memory: int8, the largest value as 127."""
    return np.rint(values * (127 / max(float(np.abs(values).max()), 1e-12))).astype(np.int8)


def _correlation(details: np.ndarray, pairs: np.ndarray, common: np.ndarray) -> np.ndarray:
    """(n,) of pairs of pictures, the second also mirrored: the higher correlation of what is not common.

    With a, b of norm 1 and mean 0 and m in common it is (a - m)(b - m) / (|a - m| |b - m|), multiplied out.

    Args:
        details: (N, side, side) packed.
        pairs: (n, 2) numbers of details.
        common: (side, side) mean detail of all pictures.
    """
    flat = details.reshape(len(details), -1)
    upright, mirrored = common.astype(np.float32).ravel(), common[:, ::-1].astype(np.float32).ravel()
    both = np.stack([upright, mirrored], axis=1)
    norm, shared = np.empty(len(flat), np.float32), np.empty((len(flat), 2), np.float32)
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK].astype(np.float32)
        norm[start : start + CHUNK] = np.maximum(np.sqrt(np.einsum("nk,nk->n", part, part)), 1e-9)
        shared[start : start + CHUNK] = part @ both / norm[start : start + CHUNK, None]
    square = float(upright @ upright)
    rest = np.sqrt(np.maximum(1 - 2 * shared + square, 1e-6))
    for start in range(0, len(pairs), CHUNK):
        i, j = pairs[start : start + CHUNK].T
        first, second = details[i].astype(np.float32), details[j].astype(np.float32)
        products = [np.einsum("nhw,nhw->n", first, turned) for turned in (second, second[..., ::-1])]
        result[start : start + CHUNK] = np.max(
            [
                (product / (norm[i] * norm[j]) - shared[i, 0] - shared[j, side] + square) / (rest[i, 0] * rest[j, side])
                for side, product in enumerate(products)
            ],
            axis=0,
        )
    return result
