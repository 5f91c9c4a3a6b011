"""Burned-in text: planted lines are found where they stand, anatomy is not text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from scansmith.prepare import text


def font(size, name="DejaVuSans.ttf"):
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def scan(side=256, seed=0):
    """A bright ellipse with smooth texture on a dark ground, float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = (x**2 / 0.5 + y**2 / 0.4 < 1) * (500 + 3000 * gaussian_filter(rng.normal(0, 1, (side, side)), 4))
    return (body + rng.normal(0, 8, (side, side))).astype(np.float32)


def written(picture, words, size, at=(8, 8), value=None, name="DejaVuSans.ttf"):
    """(picture with the words, (top, left, bottom, right) of them)."""
    layer = Image.new("L", picture.shape[::-1])
    ImageDraw.Draw(layer).text(at, words, fill=255, font=font(size, name))
    ink = np.asarray(layer, np.float32) / 255
    rows, columns = np.nonzero(ink)
    value = float(picture.max()) if value is None else value
    return picture * (1 - ink) + value * ink, (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


@pytest.mark.parametrize("name", ["DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf"])
@pytest.mark.parametrize("size", [11, 14, 18, 28])
def test_a_name_in_the_corner_is_found_where_it_stands(name, size):
    picture, (top, left, bottom, right) = written(scan(), "DOE JANE 1961", size, name=name)
    result = text.burned_in(picture)
    assert result.found
    assert result.confidence > 0.5
    row, column, height, width = result.boxes[0]
    assert top - 4 <= row and row + height <= bottom + 4
    assert left - 4 <= column and column + width <= right + 4
    assert width >= 0.15 * (right - left)


@pytest.mark.parametrize("value", [400.0, 900.0, 3000.0])
def test_grey_and_white_letters_are_found(value):
    assert text.burned_in(written(scan(), "PATIENT 4711", 14, value=value)[0]).found


def test_black_letters_on_white_are_found():
    assert text.burned_in(1000 - written(scan(), "PATIENT 4711", 14)[0]).found


def test_large_letters_are_found_at_a_coarser_level():
    assert text.burned_in(written(scan(512), "SMITH", 70)[0]).found


@pytest.mark.parametrize("seed", range(8))
def test_a_scan_without_letters_holds_none(seed):
    assert text.burned_in(scan(seed=seed)) == text.Text(False, [], 0.0)


@pytest.mark.parametrize("sigma", [0, 1, 2])
def test_noise_is_no_text(sigma):
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0, 100, (200, 200))
        assert not text.burned_in(gaussian_filter(noise, sigma)).found


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_scale_offset_and_dtype_do_not_matter(dtype):
    picture = np.clip(written(scan(), "DOE JANE", 14)[0] / 8, 0, 255).astype(np.uint8)
    expected = text.burned_in(picture)
    assert expected.found
    assert text.burned_in(picture.astype(dtype)).boxes == expected.boxes
    if dtype != np.uint8:
        assert text.burned_in((picture.astype(np.int16) * 10 + 100).astype(dtype)).boxes == expected.boxes


def test_a_page_with_nothing_but_text_is_found():
    page = np.zeros((300, 300), np.uint8)
    assert text.burned_in(written(page, "REPORT", 14, value=255.0)[0]).found


@pytest.mark.parametrize("picture", [np.zeros((128, 128)), np.full((96, 400), 7, np.int16), np.eye(128)])
def test_constant_and_odd_pictures_hold_none(picture):
    assert not text.burned_in(picture).found


def test_small_pictures_are_not_looked_at():
    assert not text.burned_in(written(np.zeros((64, 300)), "DOE JANE", 14, value=255.0)[0]).found


def test_bars_and_circles_in_a_row_of_different_brightness_are_no_text():
    picture = np.zeros((128, 128), np.float32)
    picture[100:] = 800
    for place, value in enumerate((200, 500, 800)):
        y, x = np.mgrid[:128, :128]
        blob = np.exp(-((y - 60) ** 2 + (x - 40 - 12 * place) ** 2) / 8)
        picture += value * blob.astype(np.float32)
    assert not text.burned_in(picture).found


def test_the_words_say_how_many_and_what_to_do():
    assert "none found" in text.words(0)
    assert text.words(1, ["case 1"]).startswith("burned-in text: 1 image seems to hold")
    assert "3 images seem" in text.words(3) and "look at them" in text.words(3)


# ------------------------------------------------------------------------------------------------ real scans

WITH_TEXT = (
    "pydicom/examples_jpeg2k.dcm", "pydicom/examples_palette.dcm", "pydicom/examples_rgb_color.dcm", "pydicom/examples_ybr_color.dcm",
    "pydicom_data/gdcm-US-ALOKA-16.dcm", "pydicom_data/vlut_04.dcm", "pydicom_data/JLSL_RGB_ILV0.dcm", "pydicom/GDCMJ2K_TextGBR.dcm",
)  # fmt: skip


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_in_real_ultrasound_and_test_pictures_is_found(shared_data, name):
    import pydicom

    from scansmith.formats.source import quiet

    with quiet():
        pixels = pydicom.dcmread(shared_data / "dicom_varied" / name, force=True).pixel_array
    frame = pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
    assert text.burned_in(frame.mean(axis=-1) if frame.ndim == 3 else frame).found


def test_hardly_any_real_brain_or_retina_is_taken_for_text(shared_data):
    files = sorted((shared_data / "anomaly_brain_mr_2d").rglob("*.jpg"))[::3]
    files += sorted((shared_data / "paired_mr_ct_2d_harvard").rglob("*.png"))[::5]
    files += sorted((shared_data / "image_to_mask_2d_retina_chase").rglob("*.jpg"))[::6]
    found = [file.name for file in files if text.burned_in(np.array(Image.open(file).convert("L"))).found]
    assert len(files) > 90
    assert len(found) <= 1, found
