"""The report: whole, self-contained, escaped, honest about what is missing, and the same page for the same folder."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from scansmith import dataset, formats, model
from scansmith.image import Image
from scansmith.report import figures, film, folder, page, report, words

MODEL = "0123456789abcdef"


# ------------------------------------------------------------------------------------------------ a run folder, made by hand


def blobs(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size) float in [0, 1]: one soft blob each."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    centre = generator.uniform(0.35, 0.65, (count, 2, 1, 1))
    width = generator.uniform(0.1, 0.2, (count, 1, 1))
    return np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / (2 * width**2))


def make_dataset(
    root: Path,
    images: np.ndarray,
    labels: list[str],
    label_of: list[str | None],
    modality: str = "OT",
    window: tuple[float, float, str] = (0.0, 255.0, "a.u."),
    **info: object,
) -> None:
    """A prepared dataset; every fourth image is holdout."""
    total = len(images)
    columns = {
        "case": [f"case{i:04d}" for i in range(total)], "slice": [0] * total, "patient": [f"p{i // 2:04d}" for i in range(total)],
        "split": ["holdout" if i % 4 == 3 else "validation" if i % 8 == 1 else "train" for i in range(total)], "label": [label or "" for label in label_of],
        "spacing": [[1.0, 0.8, 0.8]] * total, "low": [window[0]] * total, "high": [window[1]] * total, "units": [window[2]] * total,
        "sha256": ["0" * 64] * total, "affine": [np.eye(4)] * total,
    }  # fmt: skip
    about = {"modality": modality, "labels": labels, "split_level": "patient", "plan": ["The images are 8-bit: the whole range 0 to 255 is kept."],
             "skipped": [{"file": "Doe_Jane.dcm", "reason": "expected pixel data, found none"}] * 2, "left_aside": {"localizer": 3},
             "duplicates": 1, "dimensions": 2, "fingerprint": {"images": total, "median_intensity": 41.5}, **info}  # fmt: skip
    dataset.write(root, about, columns, list(images[:, None]), images.dtype, (1, *images.shape[1:]))


def make_images(out: Path, unit: np.ndarray, label_of: list[str | None], low: float, high: float, units: str) -> None:
    """16-bit PNGs and their manifest; `unit` in [0, 1]."""
    (out / "images").mkdir(parents=True)
    files = []
    for index, image in enumerate(unit):
        value = np.rint(low + image * (high - low)).astype(np.uint16)
        Picture.fromarray(value).save(out / "images" / f"{index:06d}.png")
        files.append(
            {
                "file": f"images/{index:06d}.png" if index % 2 else f"{index:06d}.png",
                "index": index,
                "label": label_of[index],
            }
        )
    manifest = {"kind": "scansmith images", "files": files, "intensity": {"low": low, "high": high, "units": units}, "model": MODEL,
                "seed": 7, "format": "png", "count": len(files)}  # fmt: skip
    (out / "images" / "manifest.json").write_text(json.dumps(manifest))


ACTS = [
    {"kind": "act", "images": 12000, "reason": "gradient_spike", "act": "skip", "words": "One update was skipped."},
    {"kind": "act", "images": 12032, "reason": "gradient_spike", "act": "skip", "words": "Another update was skipped."},
    {
        "kind": "act",
        "images": 30000,
        "reason": "collapse",
        "act": "roll_back",
        "words": "The samples repeated themselves.",
    },
]


def make_train(out: Path, sheets: list[np.ndarray]) -> None:
    """log.jsonl, recipe.json and sample sheets."""
    (out / "train" / "samples").mkdir(parents=True)
    rows: list[dict] = [{"kind": "start", "images": 0}]
    for i in range(1, 41):
        rows.append({"kind": "tick", "images": 2000 * i, "seconds": 9.0 * i, "images_per_s": 222.0, "loss_d": 0.7 - 0.3 * np.tanh(i / 9),
                     "loss_g": 0.75 + 0.02 * i, "gap": 0.1 + 0.02 * i, "r1": 0.02 + 0.001 * i, "r2": 0.03 + 0.001 * i, "lr": 2e-4, "gamma": 1.0,
                     "quality": 60.0 * np.exp(-i / 9) + 2.5 if i % 2 == 0 else None, "reference": "validation", "cut": False, "diversity": 0.9 - 0.5 * np.exp(-i / 4)})  # fmt: skip
    rows = sorted(rows + ACTS, key=lambda row: row["images"])
    (out / "train" / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"kind": "tick", "ima')
    recipe = {"name": "relativistic", "generator": "strided", "batch": 32, "learning_rate": 1e-3, "gamma": 1.0, "precision": "fp32", "channels_last": True,
              "request": {"minutes": 8}, "reasons": ["24 pixels: the largest that 8 minutes allow."], "seed": 7}  # fmt: skip
    (out / "train" / "recipe.json").write_text(json.dumps(recipe))
    for i, sheet in enumerate(sheets):
        Picture.fromarray(sheet).save(out / "train" / "samples" / f"{i * 20000:09d}.png")


METRICS = {
    "version": "0.1.0", "seed": 0, "created": "2026-11-22", "real": {"count": 150, "split": "holdout", "split_level": "patient", "source": "prepared dataset"},
    "train": {"count": 700}, "fake": {"count": 1000, "model": MODEL}, "size": [64, 64], "channels": 1, "compared_per_draw": 150, "draws": 20,
    "metrics": {
        "conv_frechet": {"title": "Random-conv Fréchet distance", "value": 1.237, "interval": [1.1, 1.4], "floor": 0.31, "floor_interval": [0.25, 0.36], "ratio": 3.99,
                         "better": "lower", "counts": {"real": 150, "fake": 150}, "extractor": "random conv, 512 features, seed 0",
                         "words": "Texture and shape differ four times as much from real images as two halves of your own images differ."},
        "radiomics_frechet": {"title": "Radiomics Fréchet distance", "value": 21.5, "interval": [18.2, 25.1], "floor": 2.02, "floor_interval": [1.6, 2.6], "ratio": 10.6,
                              "better": "lower", "counts": {"real": 150, "fake": 150}, "extractor": "27 radiomics", "words": "Sharpness and noise differ clearly from real images."},
        "recall": {"title": "Recall", "value": 0.71, "interval": [0.66, 0.76], "floor": 0.9, "floor_interval": [0.87, 0.93], "ratio": 0.79, "better": "higher",
                   "counts": {"real": 150, "fake": 150}, "extractor": "random conv, 512 features, seed 0", "words": "Seven in ten kinds of real image have a synthetic counterpart."},
        "two_sample": {"title": "Two-sample test (accuracy)", "value": 0.83, "interval": [0.79, 0.87], "floor": 0.5, "floor_interval": None, "ratio": None, "better": "chance",
                       "counts": {"real": 150, "fake": 150}, "extractor": "classifier", "words": "A small classifier tells real from synthetic in 83 of 100 cases; 50 would be guessing."},
    },
    "not_computed": {"ms_ssim": "needs images of at least 161 pixels"},
    "nearest": [{"fake": 17, "file": "images/000017.png", "train": 412, "similarity": 0.934}, {"fake": 3, "file": None, "train": 9, "similarity": 0.918}],
    "nearest_picture": "nearest.png",
    "verdict": ["The synthetic images resemble the real ones in shape, but a program can still tell them apart.", "No copies of training images were found by the measures used."],
    "not_checked": ["Whether radiologists can tell them apart was not asked.", "Lesions were not looked at."],
}  # fmt: skip
RUN = {"version": "0.1.0", "request": {"minutes": 10.0, "labels": "/data/radiology7/labels.csv", "modality": None, "count": None, "seed": 7},
       "plan": ["64 pixels, because 10 minutes on this machine allow no more."],
       "stages": {"prepare": {"planned_s": 20, "seconds": 14.2}, "train": {"planned_s": 480, "seconds": 471.0}, "synthesize": {"planned_s": 40, "seconds": 33.0},
                  "evaluate": {"planned_s": 60, "seconds": 71.5}}}  # fmt: skip


def make_run(out: Path, total: int = 32, made: int = 20, size: int = 24, labels: tuple[str, ...] = ()) -> Path:
    """A whole run folder of small pictures."""
    real = np.rint(blobs(total, size, 0) * 255).astype(np.uint8)
    classes = [labels[i % len(labels)] if labels else None for i in range(max(total, made))]
    make_dataset(out / "dataset", real, sorted(labels), classes[:total])
    make_images(out, blobs(made, size, 1), classes, 0.0, 255.0, "a.u.")
    make_train(out, [np.rint(np.hstack(list(blobs(4, size, seed))) * 255).astype(np.uint8) for seed in range(5)])
    Picture.fromarray(np.rint(np.hstack(list(blobs(3, size, 5))) * 255).astype(np.uint8)).save(out / "nearest.png")
    (out / "metrics.json").write_text(json.dumps(METRICS))
    (out / "run.json").write_text(json.dumps(RUN))
    return out


# ------------------------------------------------------------------------------------------------ reading the page


class Page(HTMLParser):
    """What a browser would load, follow and show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images: list[tuple[str, str]] = []  # (alt, src)
        self.words: list[str] = []
        self._silent = 0
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self._silent += tag == "style"
        self.ids += [named["id"]] if "id" in named else []
        self.addresses += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset")
        ]
        self.addresses += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attributes))
        if tag == "img":
            self.images.append((named["alt"], named["src"]))

    def handle_endtag(self, tag):
        self._silent -= tag == "style"

    def handle_data(self, data):
        if self._silent:
            self.addresses += re.findall(r"url\(([^)]*)\)|@import", data)
        else:
            self.words.append(data)


def read(out: Path) -> Page:
    return Page((out / "report.html").read_text())


def pixels(source: str) -> np.ndarray:
    """A data address -> the PNG's array."""
    return np.asarray(opened(source))


def opened(source: str) -> Picture.Image:
    """A data address -> the picture."""
    return Picture.open(io.BytesIO(base64.b64decode(source.partition(";base64,")[2])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = make_run(tmp_path_factory.mktemp("whole") / "out", labels=("Chest", "Hand"))
    report(out)
    return out


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_asks_for_nothing_outside_itself_and_runs_no_script(whole):
    html, seen = (whole / "report.html").read_text(), read(whole)
    assert seen.images and all(
        address.startswith(("data:image/png;base64,", "data:image/webp;base64,", "#")) for address in seen.addresses
    )
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(seen.tags)
    assert "http://" not in html and "https://" not in html
    assert not re.search(r"\son\w+=", re.sub(r'base64,[^"]*', "", html))


def test_every_anchor_leads_somewhere_and_no_identifier_is_used_twice(whole):
    seen = read(whole)
    assert len(seen.ids) == len(set(seen.ids))
    assert {address[1:] for address in seen.addresses if address.startswith("#")} <= set(seen.ids)
    assert set(page.SECTIONS) <= set(seen.ids)


def test_every_section_of_a_whole_folder_has_its_content(whole):
    seen = read(whole)
    for expected in [*page.SECTIONS.values(), "SYNTHETIC, not for diagnosis", "Synthetic scans from 32 scans", MODEL, "2026-11-22", "by patient: no patient is on two sides",
                  "Intensity (arbitrary units)", "Share of pixels (%, log.)", "Training images seen (thousands)", "R1 + R2 weight γ, start", "8.0 min", "24 pixels: the largest",
                  "expected pixel data, found none", "localizer", "scansmith run SCANS OUT --minutes 10 --labels TABLE.csv --seed 7", "(0008,001C)", "Synthetic Data", *RUN["plan"]]:  # fmt: skip
        assert expected in seen.text, expected


def test_the_values_of_metrics_json_stand_on_the_page(whole):
    text = read(whole).text
    for expected in ["1.24", "1.10 to 1.40", "0.310", "0.250 to 0.360", "3.99", "21.5", "10.6", "0.934", "412", "needs images of at least 161 pixels", "27 radiomics",
                  *METRICS["verdict"], *METRICS["not_checked"], *(metric["words"] for metric in METRICS["metrics"].values())]:  # fmt: skip
        assert expected in text, expected


def test_the_verdict_comes_before_everything_but_title_and_marking(whole):
    text = read(whole).text
    assert (
        text.index("SYNTHETIC, not for diagnosis")
        < text.index(METRICS["verdict"][0])
        < text.index("Software")
        < text.index("1. Synthetic beside real")
    )


def test_charts_take_their_colours_from_the_page(whole):
    charts = re.findall(r"<svg.*?</svg>", (whole / "report.html").read_text(), re.DOTALL)
    assert len(charts) == 8  # histogram, stages, five curves, ratios
    assert not any(colour in chart for chart in charts for colour in figures.COLOURS.values())
    assert all("var(--" in chart and 'aria-label="' in chart for chart in charts)


def test_the_same_folder_gives_the_same_bytes(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "elsewhere")
    report(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").read_bytes() == (whole / "report.html").read_bytes()


def test_another_seed_draws_other_images(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "other")
    report(tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "report.html").read_bytes() != (whole / "report.html").read_bytes()


def test_what_is_reported_back_is_json(whole):
    done = report(whole)
    assert json.loads(json.dumps(done)) == done
    assert done["bytes"] == (whole / "report.html").stat().st_size
    assert done["missing"] == ["model/"]


# ------------------------------------------------------------------------------------------------ hostile and private text


def test_markup_in_any_file_is_shown_and_not_obeyed(tmp_path):
    evil = "<script>alert(1)</script>"
    out = make_run(tmp_path / "out", labels=(evil, "Hand"))
    metrics = json.loads(json.dumps(METRICS))
    metrics["verdict"] = [evil]
    metrics["metrics"]["conv_frechet"]["title"] = evil
    metrics["not_computed"] = {evil: evil}
    (out / "metrics.json").write_text(json.dumps(metrics))
    (out / "run.json").write_text(
        json.dumps({"plan": [evil], "stages": {evil: {"planned_s": 1, "seconds": 2}}, "versions": {evil: evil}})
    )
    (out / "train" / "recipe.json").write_text(json.dumps({evil: evil}))
    report(out, title=evil)
    seen = read(out)
    assert "script" not in seen.tags
    assert seen.text.count(evil) >= 10


def test_no_file_path_and_no_file_name_of_a_scan_reaches_the_page(tmp_path):
    out = make_run(tmp_path / "out")
    metrics = dict(
        METRICS,
        verdict=[
            "Read from /data/radiology7/Doe_Jane/scan.dcm and C:\\radiology7\\Doe_Jane; 0.8 mm/px; DICOM/NIfTI.",
            "See Doe_Jane.nii.gz.",
        ],
    )
    (out / "metrics.json").write_text(json.dumps(metrics))
    report(out)
    html = (out / "report.html").read_text()
    assert "Doe" not in html and "radiology7" not in html and str(tmp_path) not in html
    assert "0.8 mm/px; DICOM/NIfTI." in html


def test_without_real_images_the_page_holds_none(tmp_path):
    out = make_run(tmp_path / "out")
    report(out, real_images=False)
    seen = read(out)
    assert seen.images and all("Real" not in alt and "pairs" not in alt for alt, _ in seen.images)
    assert "This page shows no real image." in seen.text and "left out of this page on request" in seen.text


# ------------------------------------------------------------------------------------------------ real and synthetic


def sheets(out: Path) -> dict[str, np.ndarray]:
    return {alt: pixels(source) for alt, source in read(out).images}


def test_real_and_synthetic_sheets_are_never_mixed_up(tmp_path):
    out = tmp_path / "out"
    dark = np.random.default_rng(0).integers(0, 100, (24, 16, 16), np.uint8)
    make_dataset(out / "dataset", dark, [], [None] * 24)
    make_images(out, np.random.default_rng(1).uniform(0.6, 1.0, (9, 16, 16)), [None] * 9, 0.0, 255.0, "a.u.")
    report(out)
    shown = sheets(out)
    assert (
        shown["Real images"].shape == shown["Synthetic images"].shape == (16, 6 * 16 + 5 * figures.GAP, 2)
    )  # 6 in the holdout
    assert shown["Real images"][..., 0].max() < 100
    synthetic = shown["Synthetic images"]
    assert synthetic[..., 0][synthetic[..., 1] == 255].min() >= 152


def test_real_images_come_from_the_holdout_and_each_class_has_its_row(tmp_path):
    out = tmp_path / "out"
    classes = ["A", "B"] * 16
    value = np.array([200 if i % 4 == 3 else 10 for i in range(32)], np.uint8)  # only holdout images are bright
    images = np.broadcast_to(value[:, None, None], (32, 16, 16)).copy()
    images[1::2, :8] //= 2  # class B: upper half darker
    make_dataset(out / "dataset", images, ["A", "B"], ["B" if i % 2 else "A" for i in range(32)])
    make_images(out, np.full((8, 16, 16), 0.5), classes[:8], 0.0, 255.0, "a.u.")
    report(out)
    shown = sheets(out)
    assert set(shown) == {"Synthetic images, class A", "Real images, class B", "Synthetic images, class B"}
    assert "No real image of this class among the holdout images." in read(out).text
    real = shown["Real images, class B"]
    assert set(np.unique(real[..., 0][real[..., 1] == 255])) == {100, 200}


def test_ct_is_read_back_in_hu_and_shown_in_one_window(tmp_path):
    out = tmp_path / "out"
    hu = np.rint(blobs(12, 20, 3) * 2000 - 1000).astype(np.int16)
    make_dataset(out / "dataset", hu, [], [None] * 12, "CT", (-1024.0, 1500.0, "HU"))
    holdout = hu[3::4]
    files = []
    for index, image in enumerate(holdout):
        scan = Image(image.T[None, :, :, None], np.eye(4), "CT", "HU")
        (written,) = formats.write(
            scan, out / "images" / f"{index:06d}", "png", formats.Marking("scansmith 0.1.0", MODEL, 7, index)
        )
        files.append({"file": written.name, "index": index, "label": None})
    manifest = {
        "kind": "scansmith images",
        "files": files,
        "intensity": {"low": -1024.0, "high": 1500.0, "units": "HU"},
        "model": MODEL,
        "seed": 7,
        "format": "png",
    }
    (out / "images" / "manifest.json").write_text(json.dumps(manifest))
    report(out)
    shown, text = sheets(out), read(out).text
    # The synthetic files hold the holdout's very images: written, read and windowed, they must look the same.
    assert np.abs(shown["Real images"].astype(int) - shown["Synthetic images"].astype(int)).max() <= 1
    assert (
        "Synthetic CT scans from 12 scans" in text
        and "Intensity (HU)" in text
        and "−1,024 (black) to 1,500 HU (white)" in text
    )


def test_a_contact_sheet_places_tiles_row_by_row_with_transparent_gaps():
    tiles = [np.full((4, 5), 10 * (i + 1), np.uint8) for i in range(3)]
    sheet = pixels(figures.contact_sheet(tiles, 2, synthetic=True))
    assert sheet.shape == (8 + figures.GAP, 10 + figures.GAP, 2)
    assert [sheet[0, 0, 0], sheet[0, -1, 0], sheet[-1, 0, 0]] == [10, 20, 30]
    assert (
        (sheet[:, 5 : 5 + figures.GAP, 1] == 0).all()
        and (sheet[-4:, -5:, 1] == 0).all()
        and (sheet[:4, :5, 1] == 255).all()
    )


def test_a_synthetic_sheet_says_so_in_its_file_and_a_real_one_does_not():
    tile = [np.zeros((4, 4, 3), np.uint8)]
    for synthetic in (True, False):
        source = figures.contact_sheet(tile, 1, synthetic)
        opened = Picture.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        assert opened.info.get("SyntheticData") == ("YES" if synthetic else None)


# ------------------------------------------------------------------------------------------------ what is missing


@pytest.mark.parametrize(
    "parts",
    [
        ["run.json", "train/recipe.json", "nearest.png"],
        ["dataset/"],
        ["train/log.jsonl", "train/samples/"],
        ["images/"],
        ["metrics.json"],
    ],
)
def test_missing_parts_are_named_and_the_rest_is_shown(tmp_path, whole, parts):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for part in parts:
        shutil.rmtree(out / part) if part.endswith("/") else (out / part).unlink()
    done = report(out)
    text = read(out).text
    assert done["missing"] == [part for part in folder.PARTS if part in (*parts, "model/")]
    assert f"Missing from this folder: {', '.join(done['missing'])}." in text
    assert all(folder.PARTS[part][0] in text for part in parts)
    assert all(title in text for title in page.SECTIONS.values())
    assert "metrics.json" in parts or METRICS["verdict"][0] in text


def test_images_and_metrics_alone_make_a_page(tmp_path, whole):
    (tmp_path / "out").mkdir()
    shutil.copytree(whole / "images", tmp_path / "out" / "images")
    shutil.copy(whole / "metrics.json", tmp_path / "out")
    report(tmp_path / "out")
    seen = read(tmp_path / "out")
    assert "No real images: the prepared dataset is missing." in seen.text and "Synthetic images, class Hand" in [
        alt for alt, _ in seen.images
    ]


def test_sample_sheets_stand_in_for_missing_images_and_the_page_says_so(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "images")
    report(tmp_path / "out")
    assert "the last sample sheet of the training stands in for them" in read(tmp_path / "out").text


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        '{"metrics": null, "verdict": null, "real": null}',
        '{"metrics": {"x": {}}, "fake": null, "nearest": [null]}',
    ],
)
def test_a_cut_off_or_strange_file_does_not_stop_the_page(tmp_path, whole, content):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "train" / "log.jsonl").write_text(content)
    for name in ("metrics.json", "run.json", "train/recipe.json", "images/manifest.json"):
        (tmp_path / "out" / name).write_text(content)
    report(tmp_path / "out")
    assert "No verdict" in read(tmp_path / "out").text


def test_a_manifest_cannot_pull_in_files_from_outside_the_run_folder(tmp_path):
    out = make_run(tmp_path / "out")
    Picture.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "outside.png")
    manifest = json.loads((out / "images" / "manifest.json").read_text())
    manifest["files"] = [
        {"file": "../../outside.png"},
        {"file": str(tmp_path / "outside.png")},
        {"file": "nothing.png"},
    ]
    (out / "images" / "manifest.json").write_text(json.dumps(manifest))
    assert folder.RunFolder(out).synthetic_files == []


def test_an_empty_folder_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"run\.json.*found none of them.*scansmith run"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_image_level_split_is_said_in_words_and_counts_no_patients(tmp_path):
    out = tmp_path / "out"
    make_dataset(
        out / "dataset",
        np.rint(blobs(8, 16, 0) * 255).astype(np.uint8),
        [],
        [None] * 8,
        split_level="image",
        dimensions=3,
    )
    report(out)
    text = read(out).text
    assert "image-level split: no patient is known" in text and "neighbouring slices do not fit together" in text
    assert page.split_rows(folder.RunFolder(out))[0]["patients"] is None


def test_a_study_level_split_is_said_in_words_and_counts_no_patients(tmp_path):
    make_dataset(
        tmp_path / "dataset", np.rint(blobs(8, 16, 0) * 255).astype(np.uint8), [], [None] * 8, split_level="study"
    )
    (tmp_path / "metrics.json").write_text(json.dumps({**METRICS, "real": {**METRICS["real"], "split_level": "study"}}))
    report(tmp_path)
    text = read(tmp_path).text
    assert "study-level split" in text and "no patient is on two sides" not in text
    assert "not kept apart by patient" in text
    assert page.split_rows(folder.RunFolder(tmp_path))[0]["patients"] is None


def test_the_model_hash_is_the_one_that_model_gives(tmp_path):
    assert folder.RunFolder(tmp_path).model_hash is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert folder.RunFolder(tmp_path).model_hash == model.digest(tmp_path / "model")


def test_the_page_stays_small_for_large_noisy_images(tmp_path):
    out = tmp_path / "out"
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 160), np.uint8)
    make_dataset(out / "dataset", noise, [], [None] * 160)
    make_images(out, noise[:40] / 255.0, [None] * 40, 0.0, 255.0, "a.u.")
    make_train(out, [noise[:64].reshape(8, 8, 160, 160).transpose(0, 2, 1, 3).reshape(1280, 1280)] * 3)
    Picture.fromarray(noise[:30].reshape(10, 3, 160, 160).transpose(0, 2, 1, 3).reshape(1600, 480)).save(
        out / "nearest.png"
    )
    assert report(out)["bytes"] < 5e6


# ------------------------------------------------------------------------------------------------ a training alone


def test_the_folder_of_a_training_alone_shows_the_same_curves_film_and_settings(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole / "train", run)
    done = report(run)
    assert done["missing"] == [part for part in folder.PARTS if not part.startswith("train/")]
    alone, seen = page.training(folder.RunFolder(run)), read(run)
    assert (
        alone == page.training(folder.RunFolder(whole)) and alone["film"]["frames"] == 5 and len(alone["charts"]) == 5
    )
    assert "24 pixels: the largest" in seen.text and "rolled back" in seen.text
    assert "Synthetic samples of the same latents as training went on, an animation" in [alt for alt, _ in seen.images]


def test_the_model_is_found_beside_the_log_of_either_layout(tmp_path):
    for run in (tmp_path / "alone", tmp_path / "out" / "train"):
        (run / "model").mkdir(parents=True)
        (run / "model" / "config.json").write_text('{"modality": "CT"}')
    for out in (tmp_path / "alone", tmp_path / "out"):
        assert folder.RunFolder(out).model == {"modality": "CT"} and "model/" not in folder.RunFolder(out).missing()


def test_reconstructions_are_real_images_and_stand_on_no_page_as_samples(tmp_path):
    """They once were the first frame of the film and the first sheet, named synthetic, also without real images."""
    out = make_run(tmp_path / "out")
    before = report(out, real_images=False)["bytes"]
    tile = np.full((24, 96), 255, np.uint8)
    Picture.fromarray(tile).save(out / "train" / "samples" / "reconstructions.png")
    assert [path.stem for path in folder.RunFolder(out).samples] == [f"{20000 * i:09d}" for i in range(5)]
    assert report(out, real_images=False)["bytes"] == before


# ------------------------------------------------------------------------------------------------ film and acts


def save_sheets(folder: Path, sheets: list[np.ndarray]) -> list[Path]:
    """One PNG for each, named by images seen: 1,000, 2,000, ..."""
    folder.mkdir(parents=True)
    paths = [folder / f"{1000 * (i + 1):09d}.png" for i in range(len(sheets))]
    for path, sheet in zip(paths, sheets, strict=True):
        Picture.fromarray(sheet).save(path)
    return paths


def test_the_film_shows_every_sheet_in_order_with_its_images_seen_and_is_marked(tmp_path):
    paths = save_sheets(tmp_path / "s", [np.full((528, 528), value, np.uint8) for value in (40, 120, 200)])
    made = film.film(paths)
    moving, still = opened(made["moving"]), opened(made["still"])
    assert (made["frames"], made["first"], made["last"]) == (3, 1000, 3000) and moving.n_frames == 3
    shown, strips = [], []
    for number in range(3):
        moving.seek(number)
        grey = np.asarray(moving.convert("L"), int)
        shown.append(round(grey[:528].mean()))
        strips.append(grey[528:, :260])
    assert np.abs(np.array(shown) - (40, 120, 200)).max() < 4
    assert all(strip.max() > 200 and strip.min() < 60 for strip in strips)  # letters
    assert np.abs(strips[0] - strips[1]).max() > 60  # which say other numbers
    assert abs(np.asarray(still.convert("L"), int)[:528].mean() - 200) < 4 and getattr(still, "n_frames", 1) == 1
    assert all("SyntheticData=YES" in picture.getexif()[0x010E] for picture in (moving, still))


def test_a_film_of_noise_is_made_smaller_until_it_fits(tmp_path):
    random = np.random.default_rng(0)
    paths = save_sheets(tmp_path / "s", list(random.integers(0, 256, (12, 528, 528), np.uint8)))
    made = film.film(paths)
    assert len(made["moving"]) <= film.MOST_BYTES and made["frames"] == 12


def test_large_images_are_shown_fewer_and_small_ones_larger(tmp_path):
    for size, columns in ((256, 4), (32, 8)):
        side = 8 * (size + 2)
        tiles = np.tile(np.repeat(np.arange(8, dtype=np.uint8) * 30, size + 2), (side, 1))
        (path,) = save_sheets(tmp_path / str(size), [tiles])
        picture = np.asarray(film.frame(path, 10, 20))
        assert picture.shape == (film.WIDEST + film.STRIP, film.WIDEST)
        assert picture[0].max() == 30 * (columns - 1)


def test_long_trainings_are_thinned_and_one_sheet_is_no_film(tmp_path):
    assert film.spaced(100, 36)[0] == 0 and film.spaced(100, 36)[-1] == 99 and len(film.spaced(100, 36)) == 36
    paths = save_sheets(tmp_path / "s", [np.zeros((16, 16), np.uint8)])
    (tmp_path / "s" / "broken.png").write_bytes(b"no picture")
    assert film.film(paths) is None and film.film([*paths, tmp_path / "s" / "broken.png"]) is None
    assert film.film([]) is None


def test_a_film_stands_still_for_print_and_for_readers_who_want_less_motion(whole):
    html = (whole / "report.html").read_text()
    reduced = re.search(r"@media \(prefers-reduced-motion: reduce\) \{(.*?)\n\}", html, re.DOTALL)[1]
    printed = re.search(r"@media print \{(.*?)\n\}", html, re.DOTALL)[1]
    for block in (reduced, printed):
        assert ".film .moving, .film label { display: none; }" in block and ".film .still { display: block; }" in block
    kinds = [
        source.partition(";")[0]
        for alt, source in read(whole).images
        if alt.endswith(("animation", "end of the training"))
    ]
    assert kinds == ["data:image/webp", "data:image/webp"]


def test_acts_of_the_watchman_are_listed_once_and_marked_in_every_training_chart(whole):
    seen = read(whole)
    assert "12,000 to 12,032 update skipped, 2 times gradient spike Another update was skipped." in seen.text
    assert "30,000 rolled back collapse The samples repeated themselves." in seen.text
    unmarked = page.curves(folder.RunFolder(whole).ticks, [])
    marked = page.curves(folder.RunFolder(whole).ticks, ACTS[::2])
    for plain, with_marks in zip(unmarked, marked, strict=True):
        assert with_marks["svg"].count("stroke-dasharray") - plain["svg"].count("stroke-dasharray") == 2


def test_a_training_without_acts_says_so_and_many_acts_are_cut(tmp_path):
    out = make_run(tmp_path / "out")
    log = out / "train" / "log.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines() if '"act"' not in line))
    report(out)
    assert "The log holds no act of the watchman" in read(out).text
    acts = [{"kind": "act", "images": i, "reason": f"reason {i}", "act": "warn", "words": "w"} for i in range(100)]
    rows = page.act_rows(acts)
    assert len(rows["rows"]) == page.MOST_ACTS and rows["left_out"] == 60 and rows["rows"][-1]["why"] == "reason 99"


def test_a_volume_is_shown_by_its_middle_slice():
    volume = np.arange(2 * 5 * 3 * 3).reshape(2, 5, 3, 3)
    assert np.array_equal(folder.middle(volume), volume[:, 2]) and np.array_equal(folder.middle(volume[0]), volume[0])


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(("value", "like", "expected"), [
    (1.237, None, "1.24"), (1234.5, None, "1,234"), (0.012345, None, "0.0123"), (-3.0, None, "−3.00"), (12, None, "12"), (1000, None, "1,000"), (None, None, "–"),
    (float("nan"), None, "–"), (0.25, [12.0], "0.2"), (1.1, [0.3], "1.10"), (0.0, None, "0.00"), (2.5e-7, None, "2.50e-07"), ("text", None, "text"),
])  # fmt: skip
def test_numbers_have_three_significant_digits(value, like, expected):
    assert words.number(value, like) == expected


def test_reasons_are_counted_without_file_names_and_kinds_are_described():
    assert words.reasons([{"file": "a.dcm", "reason": "x"}, {"file": "b.dcm", "reason": "x"}, "y"]) == [
        {"reason": "x", "count": 2},
        {"reason": "y", "count": 1},
    ]
    aside = [{"modality": "MR", "channels": 1, "dimensions": 3, "scans": 4, "images": 1200}]
    assert words.aside(aside) == [{"reason": "MR volumes, 1 channel, 1,200 images", "count": 4}]


def test_a_ratio_interval_is_the_interval_over_the_floor():
    mark = page.ratio_mark({"better": "lower", "ratio": 4.0, "floor": 0.5, "interval": [1.5, 2.5], "title": "T"}, "t")
    assert mark == {"title": "T", "ratio": 4.0, "low": 3.0, "high": 5.0}
    assert page.ratio_mark({"better": "higher", "ratio": 0.8}, "t") is None
    assert page.ratio_mark({"better": "lower", "ratio": float("inf")}, "t") is None
