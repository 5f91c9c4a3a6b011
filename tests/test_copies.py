"""Near copies: planted ones are found, different patients are not, hashes keep their promises."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from scansmith.prepare import copies
from scansmith.preprocess import resize


def textures(count, side=64, seed=0):
    """Different pictures of one kind: the same ellipse with other random detail, uint8 (count, 1, side, side)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = 120.0 * (x**2 / 0.7 + y**2 / 0.5 < 1)
    coarse = rng.normal(0, 60, (count, side // 8, side // 8)).astype(np.float32)
    fine = rng.normal(0, 40, (count, side // 3, side // 3)).astype(np.float32)
    detail = resize(coarse, side, side) + resize(fine, side, side)
    return np.clip(60 + body + detail, 0, 255).astype(np.uint8)[:, None]


def hashes_of(pictures):
    return np.array([copies.fingerprint(picture, 0, 255) for picture in pictures], np.uint64)


def distance(one, other):
    return int(one ^ other).bit_count()


def jpeg(picture, quality):
    stream = io.BytesIO()
    Image.fromarray(picture[0]).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))[None]


PLANTED = {
    "JPEG 90": lambda image: jpeg(image, 90),
    "JPEG 50": lambda image: jpeg(image, 50),
    "resized by 0.9 and back": lambda image: resize(resize(image, 58, 58), 64, 64),
    "darker, less contrast": lambda image: (image * 0.7 + 20).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255.0) ** 0.8).astype(np.uint8),
    "32 grey levels": lambda image: image // 8 * 8,
    "noise": lambda image: np.clip(
        image + np.random.default_rng(1).normal(0, 4, image.shape), 0, 255
    ).astype(np.uint8),
    "mirrored": lambda image: image[..., ::-1],
    "mirrored JPEG 70": lambda image: jpeg(image[..., ::-1], 70),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ hash


def test_the_hash_is_the_signs_of_the_lowest_cosine_coefficients():
    picture = textures(1, 32)[0]
    coefficients = dctn(picture[0].astype(float), type=2)
    signs = [coefficients[u, v] > 0 for u, v in copies.FREQUENCIES]
    assert copies.fingerprint(picture, 0, 255) == sum(1 << bit for bit, sign in enumerate(signs) if sign)


def test_brightness_and_contrast_and_dtype_change_no_bit():
    picture = textures(1)[0]
    first = copies.fingerprint(picture, 0, 255)
    assert copies.fingerprint(picture.astype(np.int16) * 4 - 1024, -1024, -4) == first
    assert copies.fingerprint(picture.astype(np.float32) / 255, 0, 1) == first


def test_values_outside_the_window_and_padding_do_not_matter():
    picture = textures(1)[0].astype(np.int16)
    wild = picture.copy()
    wild[:, :2] = -2000
    clean = picture.copy()
    clean[:, :2] = 0
    assert copies.fingerprint(wild, 0, 255) == copies.fingerprint(clean, 0, 255)


def test_the_hash_of_a_mirrored_picture_follows_from_its_hash():
    odd = np.uint64(copies.BITS[copies.ODD].sum())
    for picture in textures(10):
        mirrored = copies.fingerprint(picture[..., ::-1], 0, 255)
        assert distance(mirrored, copies.fingerprint(picture, 0, 255) ^ odd) <= 1


def test_colour_is_looked_at_as_grey_and_a_volume_in_its_middle():
    picture = textures(1)[0]
    first = copies.fingerprint(picture, 0, 255)
    assert copies.fingerprint(np.repeat(picture, 3, axis=0), 0, 255) == first
    volume = np.stack([np.zeros_like(picture), picture, np.zeros_like(picture)], axis=1)
    assert copies.fingerprint(volume, 0, 255) == first
    assert np.array_equal(copies.detail(volume), copies.detail(picture))


# ------------------------------------------------------------------------------------------------ pairs


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_copy_is_found_and_nothing_else(kind):
    pictures = list(textures(40))
    pictures += [PLANTED[kind](pictures[i]) for i in range(5)]
    found = copies.near_copies(hashes_of(pictures), np.arange(45), pictures.__getitem__)
    assert [pair[:2] for pair in found] == [(i, 40 + i) for i in range(5)]
    assert all(copies.SAME <= correlation <= 1.001 for _, _, correlation in found)


def test_what_all_pictures_share_makes_no_copies():
    pictures = textures(120)
    pictures[:, :, :10] = pictures[:, :, -10:] = 255  # bright borders
    pictures[:, :, 20:30, 5:25] = 0  # a frame of the user interface
    pictures[:, :, 22:28, 7:23] = 255
    everyone = np.zeros(len(pictures), np.uint64)  # as if all hashes were equal
    assert copies.near_copies(everyone, np.arange(len(pictures)), pictures.__getitem__) == []


def test_pictures_of_one_owner_are_not_compared():
    pictures = np.repeat(textures(1), 4, axis=0)
    found = copies.near_copies(hashes_of(pictures), np.array([7, 7, 8, 8]), pictures.__getitem__)
    assert [pair[:2] for pair in found] == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_constant_pictures_are_no_copies_of_each_other():
    pictures = np.full((6, 1, 64, 64), 37, np.uint8)
    assert copies.near_copies(hashes_of(pictures), np.arange(6), pictures.__getitem__) == []
    assert not copies.detail(pictures[0].astype(np.float32) * 1.7).any()


def test_few_rows_or_none_are_no_problem():
    assert copies.near_copies(np.zeros(0, np.uint64), np.zeros(0, int), lambda row: 1 / 0) == []
    assert copies.near_copies(np.zeros(1, np.uint64), np.zeros(1, int), lambda row: 1 / 0) == []


def test_candidates_are_those_of_a_plain_search_across_tiles(monkeypatch):
    monkeypatch.setattr(copies, "TILE", (8, 16))
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 60, dtype=np.uint64)
    hashes[30:45] = hashes[:15] ^ (np.uint64(1) << rng.integers(0, 64, 15).astype(np.uint64))
    hashes[45:] = hashes[15:30] ^ np.uint64(copies.BITS[copies.ODD].sum()) ^ np.uint64(0b1011)
    owners = rng.integers(0, 20, 60)
    odd = np.uint64(copies.BITS[copies.ODD].sum())
    expected = [
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if owners[i] != owners[j]
        and min(distance(hashes[i], hashes[j]), distance(hashes[i], hashes[j] ^ odd)) <= copies.FARTHEST
    ]
    found = np.concatenate(list(copies._candidates(hashes, owners)))
    assert sorted(map(tuple, found.tolist())) == expected
    assert len(expected) > 20


def test_of_a_crowd_each_row_keeps_its_nearest(monkeypatch):
    monkeypatch.setattr(copies, "MOST_CANDIDATES", 3)
    monkeypatch.setattr(copies, "MOST_WAITING", 10)
    monkeypatch.setattr(copies, "TILE", (4, 8))
    bits = [0, 1, 2, 4, 5, 5, 1, 8, 3, 2, 7, 6] * 2
    hashes = np.array([(1 << 2 * n) - 1 for n in bits], np.uint64)
    found = np.concatenate(list(copies._candidates(hashes, np.arange(len(hashes)))))
    odd = np.uint64(copies.BITS[copies.ODD].sum())
    for row in range(len(hashes)):
        near = sorted(
            (min(distance(hashes[row], hashes[j]), distance(hashes[row], hashes[j] ^ odd)), j)
            for j in range(row + 1, len(hashes))
        )
        assert found[found[:, 0] == row, 1].tolist() == [j for d, j in near[:3] if d <= copies.FARTHEST]


def test_of_too_many_pictures_equal_hashes_are_found_mirrored_too(monkeypatch):
    monkeypatch.setattr(copies, "MOST_COMPARED", 10)
    pictures = list(textures(20))
    pictures += [pictures[3].copy(), pictures[5][..., ::-1].copy()]
    found = copies.near_copies(hashes_of(pictures), np.arange(22), pictures.__getitem__)
    assert (3, 20) in [pair[:2] for pair in found]
    hashes = hashes_of(pictures)
    hashes[21] = hashes[5] ^ np.uint64(copies.BITS[copies.ODD].sum())
    assert (5, 21) in [pair[:2] for pair in copies.near_copies(hashes, np.arange(22), pictures.__getitem__)]


def test_the_result_does_not_depend_on_chance_or_on_the_order_of_rows():
    pictures = list(textures(30))
    pictures += [PLANTED["JPEG 50"](pictures[i]) for i in range(5)]
    first = copies.near_copies(hashes_of(pictures), np.arange(35), pictures.__getitem__)
    assert first == copies.near_copies(hashes_of(pictures), np.arange(35), pictures.__getitem__)
    turned = pictures[::-1]
    other = copies.near_copies(hashes_of(turned), np.arange(35), turned.__getitem__)
    assert sorted((34 - j, 34 - i) for i, j, _ in other) == [pair[:2] for pair in first]


# ------------------------------------------------------------------------------------------------ judgement


def test_a_chain_through_a_third_of_the_patients_is_likeness_and_copies_in_pairs_are_not():
    owners = [f"p{i}" for i in range(20)]
    chain = [(i, i + 1, 0.95) for i in range(8)]
    twins = [(i, i + 10, 0.99) for i in range(10)]
    assert copies.too_alike(chain, owners)
    assert "too alike" in copies.words(chain, owners)
    assert not copies.too_alike(twins, owners)
    assert copies.words(twins, owners).startswith("near copies: 10 pairs of 20 images of 20 patients")
    assert not copies.too_alike([(0, 1, 0.99)], ["a", "b", "c"])
    assert copies.words([], owners) == "near copies: none"


# ------------------------------------------------------------------------------------------------ real scans


def read(files):
    return [np.array(Image.open(file).convert("L"))[None] for file in files]


def test_hands_of_different_people_are_no_copies_and_their_jpegs_are(shared_data):
    pictures = read(sorted((shared_data / "mednist_64px_classes" / "Hand").iterdir())[:300])
    hashes = hashes_of(pictures)
    assert copies.near_copies(hashes, np.arange(300), pictures.__getitem__) == []
    pictures += [PLANTED["JPEG 50"](picture) for picture in pictures[:50]]
    found = copies.near_copies(hashes_of(pictures), np.arange(350), pictures.__getitem__)
    assert [pair[:2] for pair in found] == [(i, 300 + i) for i in range(50)]


def test_chest_x_rays_hold_known_duplicates_and_hardly_anything_else(shared_data):
    stored = np.load(shared_data / "pneumoniamnist_28px" / "pneumoniamnist.npz")
    pictures = np.concatenate([stored[f"{part}_images"] for part in ("train", "val", "test")])[:, None]
    found = copies.near_copies(hashes_of(pictures), np.arange(len(pictures)), pictures.__getitem__)
    same = {(i, j) for i, j, _ in found if np.array_equal(pictures[i], pictures[j])}
    assert len(same) == 30
    assert len(found) <= len(same) + 2
