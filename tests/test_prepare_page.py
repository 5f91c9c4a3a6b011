"""The prepared dataset's page: self-contained, escaped, the same bytes every time, a section for each thing known and no other."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from scansmith import dataset
from scansmith.prepare import page, page_figures

VOID = {"meta", "img", "br", "hr", "link", "input"}
COUNTS = [5, 0, 20, 75]


class Page(HTMLParser):
    """What a browser would load, follow and show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [
            named[key] for key in ("src", "href", "xlink:href", "action", "data", "srcset") if key in named
        ]
        assert not any(key.startswith("on") for key in named), f"a script in <{tag}>"
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "img":
            self.images.append((named["alt"], named["src"]))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def make(root: Path, *, count: int = 16, shape: tuple[int, ...] = (1, 20, 12), labels: tuple[str, ...] = (), masks: bool = False,
         targets: bool = False, columns: dict[str, Any] | None = None, **info: Any) -> dataset.Dataset:  # fmt: skip
    """A small prepared dataset: 8-bit pictures, every fourth row held out."""
    generator = np.random.default_rng(0)
    layers: dict[str, np.ndarray] = {
        "images": np.cumsum(generator.integers(0, 9, (count, *shape)), axis=-1).astype(np.uint8)
    }
    if masks:
        layers["masks"] = np.zeros((count, 1, *shape[1:]), np.uint8)
        layers["masks"][:, :, ..., 5:9, 3:7] = 1
    if targets:
        layers["targets"] = 255 - layers["images"]
    rows = {name: dataset.unknown(name, count) for name in dataset.COLUMNS} | {
        "case": np.array([f"{i:016x}" for i in range(count)]), "slice": np.zeros(count, np.int32),
        "patient": np.array([f"p{i // 2}" for i in range(count)]), "low": np.zeros(count), "high": np.full(count, 255.0),
        "split": np.array(["holdout" if i % 4 == 3 else "validation" if i % 4 == 2 else "train" for i in range(count)]),
        "label": np.array([labels[i % len(labels)] if labels else "" for i in range(count)]), "units": np.array(["a.u."] * count),
        "masked": np.full(count, masks), "target_low": np.zeros(count), "target_high": np.full(count, 255.0), **(columns or {}),
    }  # fmt: skip
    writer = dataset.Writer(root, {layer: (array.dtype, array.shape[1:]) for layer, array in layers.items()})
    writer.add(layers)
    about = {
        "modality": "MR",
        "labels": sorted(set(labels)),
        "split_level": "patient",
        "hash": "ab" * 32,
        "target": {"units": "a.u."},
    }
    return writer.finish({**about, **info}, rows)


def read(root: Path, made: dataset.Dataset) -> Page:
    page.write_page(root, made)
    return Page((root / "report.html").read_text())


def ids(found: Page) -> list[str]:
    return [name for name in found.ids if name in page.SECTIONS]


FULL: dict[str, Any] = {
    "plan": ["grid: 20 x 12 pixels (every image has this size)", "masks are left out"], "overrides": {"height": 20, "spacing": [1.0, 0.75]},
    "fingerprint": {"dtype": "uint8", "spacing": {"row": {"0": 0.5, "50": 0.75, "100": 1.0}}, "sizes": {"20x12": 15, "21x12": 1}, "foreground_box": 0.43, "formats": {"dicom": 15, "nifti": 1}, "slices": {"0": 1, "50": 30, "100": 41},
                    "intensity": {"percentiles": {"5": 2.0, "50": 100.0}, "histogram": {"low": 0.0, "high": 255.0, "counts": COUNTS}},
                    "intensity_by_label": {"a": {"low": 0.0, "high": 255.0, "counts": COUNTS[::-1]}}},
    "pairs": {"count": 16, "shift_mm": {"median": 0.4, "worst": 3.25}, "refused": [{"case": "00ff", "reason": "other patient"}]},
    "duplicates": [{"case": "c0ffee", "slice": 3, "copy_of_row": 2}],
    "near_duplicates": [{"case": f"{4:016x}", "slice": 0, "copy_of_row": 6, "row": 4, "correlation": 0.9987}],
    "burned_in": [{"case": "beef", "reason": "strokes of letter height"}],
    "skipped": [{"case": "dead", "reason": "the file ends too early"}], "skipped_by_reason": {"the file ends too early": 1},
    "altered": {"MONOCHROME1 inverted": 2}, "left_aside": [{"modality": "CT", "channels": 1, "dimensions": 3, "scans": 1, "images": 1}],
    "empty_slices": {"nearly all air": 7},
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ the whole page


def test_the_page_loads_nothing_runs_nothing_and_its_pictures_decode(tmp_path):
    found = read(tmp_path, make(tmp_path, labels=("a", "b"), masks=True, targets=True, **FULL))
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(found.tags)
    for address in found.addresses:
        assert address.startswith(("data:image/png;base64,", "#")) or address == "dataset.json", address[:80]
    assert found.open == []
    html = (tmp_path / "report.html").read_text()
    assert (
        "default-src 'none'" in html
        and "@import" not in html
        and "url(" not in html
        and "http" not in html.replace("http-equiv", "")
    )
    assert len(found.images) >= 24
    for alt, source in found.images:
        assert alt
        with Picture.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            picture.load()
            assert max(picture.size) == page_figures.TILE
    assert {address[1:] for address in found.addresses if address.startswith("#")} == set(ids(found))


def test_the_same_dataset_gives_the_same_bytes(tmp_path):
    made = make(tmp_path, labels=("a", "b"), masks=True, **FULL)
    page.write_page(tmp_path, made)
    first = (tmp_path / "report.html").read_bytes()
    page.write_page(tmp_path, dataset.Dataset.open(tmp_path))
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_minimal_dataset_has_only_the_sections_that_it_can_fill(tmp_path):
    found = read(tmp_path, make(tmp_path))
    assert ids(found) == ["images", "holds", "json"]


@pytest.mark.parametrize(
    ("keys", "section"),
    [
        (("plan",), "choices"), (("overrides",), "choices"), (("fingerprint",), "intensity"), (("pairs",), "pairs"),
        (("duplicates",), "copies"), (("near_duplicates",), "copies"), (("burned_in",), "text"),
        (("skipped",), "left"), (("altered",), "left"), (("left_aside",), "left"), (("empty_slices",), "left"),
    ],
)  # fmt: skip
def test_a_section_appears_when_its_key_is_there(tmp_path, keys, section):
    found = read(tmp_path, make(tmp_path, **{key: FULL[key] for key in keys}))
    assert sorted(set(ids(found)) - {"images", "holds", "json"}) == [section]


def test_everything_known_is_said(tmp_path):
    text = read(tmp_path, make(tmp_path, labels=("a", "b"), **FULL)).text
    for words in (
        "16 images from 16 scans of 8 patients.", "Grid 20 x 12 pixels (every image has this size)", "masks are left out", "Height 20", "Spacing 1, 0.75",
        "its box takes 43 % of a scan", "DICOM (15), NIfTI (1)", "30 (median; 1 to 41)", "20 × 12 15", "Between rows 0.5 0.75 1", "Stored size 20 × 12 pixels", "Shift (mm), median 0.4", "Shift (mm), worst 3.25", "00ff other patient",
        f"c0ffee 3 {2:016x} 0", "Correlation 0.9987", "beef strokes of letter height", "1 the file ends too early", "dead the file ends too early",
        "2 MONOCHROME1 inverted", "1 CT volumes, 1 image", "7 nearly all air", "1 image nearly repeats another one.", "1 scan may show text",
    ):  # fmt: skip
        assert words in text, words
    assert ids(Page((tmp_path / "report.html").read_text())) == list(page.SECTIONS)


def test_labels_and_reasons_with_special_characters_are_escaped(tmp_path):
    nasty = "<script>alert(\"x\")</script> & 'quoted'"
    info = {**FULL, "burned_in": [{"case": "beef", "reason": nasty}], "plan": [f"{nasty}: {nasty}"], "altered": {nasty: 1}, "mask_labels": {"1": nasty}}  # fmt: skip
    info["fingerprint"] = {
        **FULL["fingerprint"],
        "intensity_by_label": {nasty: FULL["fingerprint"]["intensity"]["histogram"]},
    }
    found = read(tmp_path, make(tmp_path, labels=(nasty, "b"), masks=True, **info))
    assert "script" not in found.tags and found.open == []
    assert found.text.count(nasty) >= 6


def test_long_tables_are_cut_and_say_how_much_is_left(tmp_path):
    copies = [{"case": f"copy{i:04d}", "slice": 0, "copy_of_row": 0} for i in range(page.MOST_LISTED + 1)]
    skipped = [{"case": f"gone{i:04d}", "reason": "broken"} for i in range(1000)]
    text = read(tmp_path, make(tmp_path, duplicates=copies, skipped=skipped)).text
    assert text.count("copy0") == page.MOST_LISTED and "1 further copy not listed here" in text
    assert text.count("gone0") == 50 and "950 further cases not listed here" in text
    assert "1 000 broken" in text.replace(page_figures.THIN, " ")


def test_a_dataset_without_patients_counts_none_and_says_so_first(tmp_path):
    found = read(tmp_path, make(tmp_path, split_level="image"))
    assert "Patients" not in found.text
    assert "The split is by scan" in found.text and "16 images from 16 scans." in found.text


def test_a_dataset_with_nothing_held_out_says_so(tmp_path):
    found = read(tmp_path, make(tmp_path, columns={"split": np.array(["train"] * 16)}))
    assert "Nothing is held out" in found.text


def test_counts_by_split_and_label_are_those_of_the_manifest(tmp_path):
    text = read(tmp_path, make(tmp_path, labels=("a", "b"))).text
    assert "Training 4 8 8 Validation 4 4 4 Calibration 0 0 0 Holdout 4 4 4 All 8 16 16" in text
    # Rows 0, 2, 4 ... are "a": of every four rows 0 trains and 2 validates.
    assert "a 8 8 8 4 4 0 0" in text and "b 8 8 8 4 0 0 4" in text


def test_a_near_copy_in_another_split_is_told_first_and_one_in_the_same_split_is_not(tmp_path):
    near = [{"case": f"{4:016x}", "slice": 0, "copy_of_row": 8, "correlation": 0.999}]
    same = read(tmp_path / "same", make(tmp_path / "same", near_duplicates=near)).text
    assert "different splits" not in same and "each in the split of its original" in same
    near[0]["copy_of_row"] = 7
    apart = read(tmp_path / "apart", make(tmp_path / "apart", near_duplicates=near)).text
    assert "1 near copy and the original are in different splits" in apart and "each in the split" not in apart


def test_rows_in_no_split_are_counted_and_not_drawn(tmp_path):
    split = np.array(["train"] * 14 + ["", ""])
    near = [{"case": f"{15:016x}", "slice": 0, "row": 15, "copy_of_row": 0, "correlation": 0.999, "left_out": True}]
    made = make(tmp_path, near_duplicates=near, left_out=2, columns={"split": split})
    found = read(tmp_path, made)
    assert "2 images in no split: they copy" in found.text and "In no split 1 2 2" in found.text
    assert "different splits" not in found.text
    assert not {14, 15} & set(page.draw(made, np.arange(16), 16, ""))


def test_pairs_that_lie_on_each_other_raise_no_notice(tmp_path):
    known = {"count": 3, "estimated": 3, "far": 0, "shift_mm": {"median": 0.1, "worst": 0.2}}
    text = read(tmp_path / "near", make(tmp_path / "near", pairs=known)).text
    assert "out of register" not in text and "Paired scans 3" in text and "worst 0.2" in text
    text = read(tmp_path / "unknown", make(tmp_path / "unknown", pairs={**known, "shift_mm": None})).text
    assert "could not be estimated" in text


def test_a_copy_whose_rows_are_not_stored_is_listed_without_a_picture(tmp_path):
    near = [{"case": "gone", "slice": 0, "copy_of_row": 99, "correlation": 0.999}]
    found = read(
        tmp_path, make(tmp_path, near_duplicates=near, duplicates=[{"case": "copy", "slice": 1, "copy_of_row": -1}])
    )
    assert (
        "gone 0 – 0.9990" in found.text
        and "copy 1 –" in found.text
        and not any("nearly" in alt for alt, _ in found.images)
    )


# ------------------------------------------------------------------------------------------------ which images


def test_the_contact_sheet_takes_every_split_and_label_and_other_scans_first(tmp_path):
    made = make(
        tmp_path, count=64, labels=("a", "b"), columns={"case": np.array([f"{i // 8:016x}" for i in range(64)])}
    )
    rows = page.draw(made, np.flatnonzero(made.columns["label"] == "a"), 6, "a")
    assert len(set(rows)) == 6 and set(made.columns["label"][rows]) == {"a"}
    assert set(made.columns["split"][rows]) == {"train", "validation"}
    assert len(set(made.columns["case"][rows])) == 6


def test_rows_with_a_mask_come_before_others(tmp_path):
    masked = np.zeros(64, bool)
    masked[[8, 9, 40]] = True
    made = make(tmp_path, count=64, masks=True, columns={"masked": masked, "split": np.array(["train"] * 64)})
    assert {8, 9, 40} <= set(page.draw(made, np.arange(64), 4, ""))


def test_rows_without_a_label_have_their_own_group(tmp_path):
    made = make(tmp_path, labels=("a", ""), columns=None)
    groups = dict(page.label_groups(dataset.Dataset(made.root, {**made.info, "labels": ["a"]}, made.columns)))
    assert list(groups) == ["a", "No label"] and len(groups["No label"]) == 8


# ------------------------------------------------------------------------------------------------ pictures


def decoded(source: str) -> np.ndarray:
    with Picture.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        return np.asarray(picture)


def test_proportions_follow_the_pixel_spacing(tmp_path):
    spacing = np.tile([np.nan, 3.0, 1.0], (16, 1))
    made = make(tmp_path, shape=(1, 20, 30), columns={"spacing": spacing})
    shown, widths = page_figures.views(made, 0)
    height, width = decoded(shown[0]["src"]).shape
    assert (height, width) == (page_figures.TILE, page_figures.TILE // 2) and widths == [width]


def test_the_window_maps_its_ends_to_black_and_white():
    plane = page_figures.Plane("", np.array([[[-1024.0, -160.0], [40.0, 240.0]]], np.float32), None, None, (1.0, 1.0))
    picture = decoded(page_figures.tile(plane, page_figures.SOFT_TISSUE, 1.0))
    assert picture.tolist() == [[0, 0], [128, 255]]


def test_ct_in_a_wide_window_is_shown_in_a_soft_tissue_window_too(tmp_path):
    columns = {"units": np.array(["HU"] * 16), "low": np.full(16, -1024.0), "high": np.full(16, 1500.0)}
    shown, _ = page_figures.views(make(tmp_path / "wide", modality="CT", columns=columns), 0)
    assert [view["words"] for view in shown] == ["−1\u202f024 to 1\u202f500 HU", "soft-tissue window"]
    columns["high"] = np.full(16, -500.0)
    assert len(page_figures.views(make(tmp_path / "narrow", modality="CT", columns=columns), 0)[0]) == 1


def test_the_outline_lies_on_the_labels_border_and_nowhere_else():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 2
    drawn = page_figures.outline(np.full((8, 8), 100, np.uint8), mask)
    border = (drawn != 100).any(axis=2)
    assert border.sum() == 12 and not border[3:5, 3:5].any() and not border[mask == 0].any()
    assert "#{:02x}{:02x}{:02x}".format(*drawn[2, 2]) == page_figures.OUTLINES[1]


def test_masks_and_paired_scans_stand_beside_the_image(tmp_path):
    masked = np.arange(16) != 1
    made = make(tmp_path, masks=True, targets=True, columns={"masked": masked})
    shown, widths = page_figures.views(made, 0)
    assert [view["words"] for view in shown] == ["0 to 255", "mask outline", "paired scan"] and len(widths) == 3
    source, target = decoded(shown[0]["src"]).astype(int), decoded(shown[2]["src"]).astype(int)
    assert np.abs(source + target - 255).max() <= 1
    assert page_figures.views(made, 1)[0][1]["words"] == "no mask"


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_planes_of_a_volume_are_shown_in_radiological_orientation_however_it_is_stored(order, flips):
    # A volume over RAS+ axes whose value grows towards right (x 1), anterior (x 10) and superior (x 100).
    world = np.add.outer(np.add.outer(np.arange(5) * 1.0, np.arange(6) * 10.0), np.arange(7) * 100.0)
    # Stored (W, H, D) = the RAS axes in `order`, each running along `flips`.
    stored = world.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
    volume = stored.transpose(2, 1, 0)[None]
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for column, (axis, flip) in enumerate(zip(order, flips)):
        affine[axis, column] = flip
    axes, signs = page_figures.orientation(affine)
    steps = {"axial": (-10, -1), "coronal": (-100, -1), "sagittal": (-100, -10)}
    for normal, (name, columns, rows) in page_figures.PLANES.items():
        cut = (axes[normal], axes[rows[0]], axes[columns[0]])
        plane = page_figures.middle(volume, cut, (signs[rows[0]] != rows[1], signs[columns[0]] != columns[1]))[0]
        assert (np.diff(plane, axis=0) == steps[name][0]).all() and (np.diff(plane, axis=1) == steps[name][1]).all(), (
            name
        )


def test_volumes_are_shown_by_three_planes_with_masks_cut_alike(tmp_path):
    spacing = np.tile([3.0, 1.0, 1.0], (16, 1))
    made = make(tmp_path, shape=(1, 9, 20, 12), masks=True, columns={"spacing": spacing})
    found = read(tmp_path, made)
    assert "axial, coronal, sagittal" in found.text and "16 volumes" in found.text
    shown, widths = page_figures.views(made, 0)
    assert [view["words"].split(",")[0] for view in shown] == ["axial", "coronal", "sagittal"] * 2 and len(widths) == 3
    axial, coronal, sagittal = (decoded(view["src"]).shape for view in shown[:3])
    scale = page_figures.TILE / 27  # nine slices of 3 mm
    assert axial == (round(20 * scale), round(12 * scale))
    assert coronal == (192, round(12 * scale)) and sagittal == (192, round(20 * scale))
    assert decoded(shown[3]["src"]).shape[2] == 3


def test_an_oblique_volume_without_main_axes_is_shown_as_it_is_stored():
    assert page_figures.orientation(np.full((4, 4), np.nan)) == ({0: 2, 1: 1, 2: 0}, {0: -1, 1: -1, 2: 1})


# ------------------------------------------------------------------------------------------------ charts and numbers


def draw_histogram(**options: Any) -> str:
    known = {"window": (-1024.0, 1000.0), "units": "HU", "marks": page.CT_MARKS, "floor": -1, "words": 'about "x" <y>'}
    return str(page_figures.histogram_svg({"low": -1024.0, "high": 976.0, "counts": COUNTS}, **{**known, **options}))


def test_a_histogram_places_shares_and_the_window_by_the_axes():
    drawn = draw_histogram()
    left, right, top, bottom = page_figures.LEFT, page_figures.RIGHT, page_figures.TOP, page_figures.BOTTOM
    points = re.search(r'class="area" d="([^"]*)"', drawn)[1]
    heights = [float(pair.split(",")[1]) for pair in re.findall(r"[\d.]+,[\d.]+", points)][1:-1]
    expected = [
        bottom - (bottom - top) * (np.log10(share) + 1) / 3 if share else bottom
        for share in (5, 5, 0, 0, 20, 20, 75, 75)
    ]
    assert heights == pytest.approx(expected, abs=0.06)
    ends = [float(x) for x in re.findall(r'path class="window" d="M([\d.]+),', drawn)]
    assert ends == pytest.approx([left, right], abs=0.06)
    assert (
        all(name in drawn for name in (">air<", ">water<", ">bone<"))
        and 'aria-label="about &#34;x&#34; &lt;y&gt;"' in drawn
    )


def test_marks_outside_the_axis_are_left_out_and_another_histogram_stands_behind():
    drawn = draw_histogram(
        window=(-1024.0, 976.0), marks=((5000.0, "lead", "start"),), behind={"low": 0.0, "high": 10.0, "counts": [1]}
    )
    assert "lead" not in drawn and 'class="behind"' in drawn


def test_an_empty_histogram_and_one_of_a_single_value_are_drawn():
    for counts in ([0, 0], [9]):
        one = {"low": 3.0, "high": 3.0, "counts": counts}
        drawn = page_figures.histogram_svg(
            one, window=None, units="a.u.", marks=(), floor=page_figures.floor_of([one]), words=""
        )
        assert "nan" not in drawn and "inf" not in drawn


def test_one_axis_serves_all_charts():
    assert (
        page_figures.floor_of([{"low": 0, "high": 1, "counts": [1, 99]}, {"low": 0, "high": 1, "counts": [1, 1999]}])
        == -2
    )
    assert page_figures.floor_of([]) == 0


@pytest.mark.parametrize(
    ("value", "written"),
    [(1234567, "1 234 567"), (-1024.0, "−1 024"), (0.703125, "0.703"), (1.0, "1"), (512.0, "512"), (0.0, "0"), (0.00012, "0.00012"), (1, "1"), (12.34, "12.3"), (float("nan"), "not known")],
)  # fmt: skip
def test_numbers_have_three_digits_thin_spaces_and_a_minus_sign(value, written):
    shown = page_figures.number(value) if isinstance(value, int) else page_figures.short(value)
    assert shown == written.replace(" ", page_figures.THIN) or shown == written


def test_singular_and_plural_are_right():
    assert (
        page.count(1, "scan") == "1 scan"
        and page.count(0, "scan") == "0 scans"
        and page.count(2, "copy", "copies") == "2 copies"
    )
    assert page.listing(["a", "b", "c"]) == "a, b and c" and page.listing(["a"]) == "a"
