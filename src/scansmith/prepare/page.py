"""The prepared dataset's own page: what was found, what was chosen and why, what it looks like, what was left out."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..dataset import SPLITS, Dataset
from ..runtime import derive_seed, write_atomic
from .page_figures import OUTLINES, SOFT_TISSUE, floor_of, histogram_svg, number, short, views, window_words

SECTIONS = {
    "images": "What the images look like", "holds": "What the dataset holds", "choices": "What was chosen, and why",
    "intensity": "Intensities", "pairs": "Pairs", "copies": "Copies", "text": "Text in the pictures",
    "left": "Skipped, altered, left aside", "json": "The same as JSON",
}  # fmt: skip
MODALITIES = {
    "CT": "CT", "MR": "MR", "CR": "X-ray (CR)", "DX": "X-ray (DX)", "MG": "mammography", "US": "ultrasound",
    "XA": "angiography (XA)", "RF": "fluoroscopy (RF)", "OT": "not said by the files",
}  # fmt: skip
SPLIT_WORDS = {
    "train": "Training", "validation": "Validation", "calibration": "Calibration", "holdout": "Holdout", "left out": "In no split",
}  # fmt: skip
SPLIT_LEVELS = {
    "patient": "The split is by patient: no patient is in two splits.",
    "study": "The split is by study: some patients are known by their study alone, so studies of one patient may be in two splits.",
    "image": "The split is by scan: some patients are not known, so scans of one patient may be in two splits.",
    "slices": "The split is by blocks of slices of one patient: it says nothing about other patients.",
}
DTYPES = {
    "uint8": "8-bit whole numbers", "int8": "8-bit whole numbers with sign", "int16": "16-bit whole numbers with sign",
    "uint16": "16-bit whole numbers", "float32": "32-bit floating point",
}  # fmt: skip
POINTS = {"0": "Smallest", "0.5": "0.5 %", "5": "5 %", "25": "25 %", "50": "Median", "75": "75 %", "95": "95 %", "99.5": "99.5 %", "100": "Largest"}  # fmt: skip
# (HU, name, the side of the line on which the name stands); what lies near them differs between scanners.
CT_MARKS = ((-1000.0, "air", "start"), (0.0, "water", "end"), (300.0, "bone", "start"))
# Entries of the fingerprint that have their own place on the page.
SHOWN = {
    "scans", "images", "dtype", "sizes", "spacing", "intensity", "intensity_by_label", "foreground_box", "inspected", "formats", "slices",
}  # fmt: skip
PAIR_TERMS = {
    "count": "Paired scans", "measured": "Pairs measured", "shift_mm": "Shift (mm)", "shift_pixels": "Shift (pixels)", "estimated": "Pairs whose shift could be estimated", "far": "Pairs farther apart than one voxel",
}  # fmt: skip
MOST_FIGURES = 24
MOST_TILES = 72
MOST_LABELS = 12  # with pictures and a histogram of their own
MOST_LABEL_ROWS = 40
MOST_LISTED = 20
MOST_PAIRS_SHOWN = 6
FEW_IMAGES = 8


def write_page(root: Path, dataset: Dataset) -> None:
    """Write report.html into the dataset's folder, from the dataset alone; the same dataset gives the same bytes.

    Args:
        root: the folder of the prepared dataset.
        dataset: opened; entries of its `dataset.json` that are missing leave their section out.

    Raises:
        OSError: the page cannot be written.
    """
    write_atomic(Path(root) / "report.html", render(gather(dataset)))


def render(content: dict[str, Any]) -> str:
    """Fill the template; every value is escaped on its way onto the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("scansmith.prepare", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters["number"] = lambda value: "–" if value is None else number(value)
    return environment.get_template("page.html").render(content)


def gather(dataset: Dataset) -> dict[str, Any]:
    """Everything on the page; a section that has nothing to say is None."""
    counted_rows = tally(dataset)
    parts = {
        "images": images(dataset), "holds": holds(dataset, counted_rows), "choices": choices(dataset.info),
        "intensity": intensities(dataset), "pairs": pairs(dataset.info), "copies": copies(dataset),
        "text": burned_in(dataset.info), "left": left_out(dataset.info), "json": True,
    }  # fmt: skip
    sections = {name: title for name, title in SECTIONS.items() if parts[name]}
    return {**parts, "sections": sections, "header": header(dataset, counted_rows["All"]), "notices": notices(dataset)}


# ------------------------------------------------------------------------------------------------ words


def count(number_of: int, noun: str, plural: str = "") -> str:
    """For example "1 scan", "2 scans"."""
    return f"{number(int(number_of))} {noun if number_of == 1 else plural or noun + 's'}"


def numbered(values: np.ndarray) -> np.ndarray:
    """One number for each different value, -1 for "": a million names are compared once, numbers often."""
    names, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64) - (1 if len(names) and names[0] == "" else 0)


def distinct(numbers: np.ndarray) -> int:
    """How many different numbers that are not -1."""
    return int(np.count_nonzero(np.bincount(numbers[numbers >= 0])))


def listing(words: list[str]) -> str:
    """For example "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def patient_noun(dataset: Dataset) -> tuple[str, str]:
    """What the patient column counts, singular and plural."""
    level = dataset.info.get("split_level")
    return ("patient or study", "patients or studies") if level == "study" else ("patient", "patients")


def counted(entries: Any) -> list[dict[str, Any]]:
    """Rows {"words", "count"}, most frequent first, of a dict words -> count."""
    if not isinstance(entries, dict):
        return []
    return [
        {"words": str(words), "count": int(found)}
        for words, found in sorted(entries.items(), key=lambda item: (-item[1], item[0]))
    ]


def cut(rows: list[Any], noun: str, plural: str = "", most: int = MOST_LISTED) -> dict[str, Any]:
    """The first rows of a table, and what is said of the rest."""
    rest = len(rows) - most
    said = (
        f"{count(rest, f'further {noun}', plural and f'further {plural}')} not listed here: see dataset.json."
        if rest > 0
        else ""
    )
    return {"rows": rows[:most], "rest": said}


def plain(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(term, value) of every plain entry, nested ones as "outer, inner"."""
    result: list[tuple[str, str]] = []
    for name, value in values.items():
        term = str(name).replace("_mm", " (mm)").replace("_", " ")
        term = term[:1].upper() + term[1:]
        if isinstance(value, dict):
            result += [(f"{term}, {inner[:1].lower()}{inner[1:]}", words) for inner, words in plain(value)]
        elif isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
            result.append((term, ", ".join(map(setting, value)) or "none"))
        elif value is None or isinstance(value, (str, int, float)):
            result.append((term, setting(value)))
    return result


def setting(value: Any) -> str:
    """A plain value as the page writes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, int) else short(value) if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------ sections


def tally(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Patients, scans, images, and images by split, of "All", "left out", every split and "label 0", "label 1" ... (-1: no label)."""
    columns, splits = dataset.columns, dataset.columns["split"]
    known = dataset.info.get("split_level") in ("patient", "study")
    # Without known patients the column holds one key a scan, which counts nobody.
    scans, patients = numbered(columns["case"]), numbered(columns["patient"]) if known else None
    inside = {split: splits == split for split in SPLITS}

    def of(rows: np.ndarray) -> dict[str, Any]:
        return {"patients": None if patients is None else distinct(patients[rows]), "scans": distinct(scans[rows]), "images": int(rows.sum()),
                "by_split": [int((rows & own).sum()) for own in inside.values()]}  # fmt: skip

    labels = dataset.classes()
    numbers = range(-1 if (labels < 0).any() and dataset.labels else 0, min(len(dataset.labels), MOST_LABEL_ROWS))
    return {
        "All": of(np.ones(len(dataset), bool)),
        **{split: of(own) for split, own in inside.items()},
        "left out": of(~np.isin(splits, SPLITS)),
        **{f"label {number_of}": of(labels == number_of) for number_of in numbers},
    }


def header(dataset: Dataset, everything: dict[str, Any]) -> dict[str, Any]:
    """Title, one sentence of counts, and what identifies the dataset."""
    info, cases, patients = dataset.info, everything["scans"], everything["patients"]
    kind = MODALITIES.get(info.get("modality", ""), "") if info.get("modality") != "OT" else ""
    stored = "volume" if len(dataset.shape) == 4 else "image"
    of = "" if patients is None else f" of {count(patients, *patient_noun(dataset))}"
    facts = {"Software": f"scansmith {metadata.version('scansmith')}"}
    if info.get("hash"):
        facts["Data hash"] = str(info["hash"])[:16]
    return {
        "title": f"Prepared dataset: {number(cases)} {kind} scan{'s' * (cases != 1)}".replace("  ", " "),
        "summary": f"{count(len(dataset), stored)} from {count(cases, 'scan')}{of}.",
        "facts": facts,
    }


def notices(dataset: Dataset) -> list[str]:
    """What a reader should look at first."""
    info = dataset.info
    burned, near = info.get("burned_in") or [], info.get("near_duplicates") or []
    skipped = sum((info.get("skipped_by_reason") or {}).values()) or len(info.get("skipped") or [])
    said = []
    if burned:
        said.append(f"{count(total(info, 'burned_in', burned), 'scan')} may show text burned into the picture, perhaps a name: look at them before sharing anything.")  # fmt: skip
    if info.get("split_level") in ("study", "image", "slices"):
        said.append(f"{SPLIT_LEVELS[info['split_level']]} Results on the holdout may look better than they are.")
    if len(dataset) and not len(dataset.rows("holdout")):
        said.append("Nothing is held out: what is learned cannot be judged on unseen scans.")
    if near:
        said.append(f"{count(len(near), 'image')} nearly {'repeats' if len(near) == 1 else 'repeat'} another one.")
    if split_apart := apart(dataset):
        said.append(f"{count(split_apart, 'near copy', 'near copies')} and the original are in different splits: the holdout is not independent.")  # fmt: skip
    if info.get("left_out"):
        said.append(f"{count(info['left_out'], 'image')} in no split: {'it copies' if info['left_out'] == 1 else 'they copy'} an image of another split.")  # fmt: skip
    paired = info.get("pairs") or {}
    shift = (paired.get("shift_mm") or paired.get("shift_pixels") or {}).get("worst")
    if isinstance(shift, (int, float)) and paired.get("far", 1):
        unit = "mm" if "shift_mm" in paired else "pixels"
        said.append(f"Paired scans seem to be out of register by up to {short(shift)} {unit}.")
    if skipped:
        said.append(
            f"{count(skipped, 'file or scan', 'files or scans')} could not be used; each is listed with the reason."
        )
    return said + small_classes(dataset)


def small_classes(dataset: Dataset) -> list[str]:
    """One sentence about the classes with few training images."""
    numbers = dataset.classes()[dataset.rows("train")]
    few = [name for i, name in enumerate(dataset.labels) if (numbers == i).sum() < FEW_IMAGES]
    shown = few[:MOST_LABELS] + ([f"{len(few) - MOST_LABELS} more"] if len(few) > MOST_LABELS else [])
    return [f"Fewer than {FEW_IMAGES} training images of {listing(shown)}."] if few else []


def holds(dataset: Dataset, tallied: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts, splits, labels, sizes and pixel spacing."""
    info, fingerprint = dataset.info, dataset.info.get("fingerprint") or {}
    depth, (height, width) = dataset.shape[1:-2], dataset.shape[-2:]
    facts = {
        "Modality": MODALITIES.get(info.get("modality", ""), "not known"),
        "Source format": formats_words(info), "Scans": number(tallied["All"]["scans"]),
        "Volumes" if depth else "Images": number(len(dataset)),
        "Stored size": " × ".join(str(side) for side in (*depth, height, width)) + (" voxels" if depth else " pixels") + channels_words(dataset.shape[0]),
        "Stored pixel spacing": stored_spacing(dataset), "Field of view": field_of_view(dataset), "Crop": crop_words(dataset),
        "Values": DTYPES.get(str(fingerprint.get("dtype")), str(fingerprint.get("dtype") or "not known")),
        "Window": windows_words(dataset), "Foreground": foreground_words(fingerprint), "Slices in a scan": range_words(fingerprint.get("slices")),
        "Masks": mask_words(info.get("masks")), "Neighbours": neighbour_words(info.get("neighbours")),
    }  # fmt: skip
    more = plain({name: value for name, value in fingerprint.items() if name not in SHOWN})
    return {
        "facts": [(term, fact) for term, fact in facts.items() if fact], "splits": split_rows(tallied), "labels": label_rows(dataset, tallied),
        "split_level": SPLIT_LEVELS.get(str(info.get("split_level")), ""), "patients": patient_noun(dataset)[1].capitalize() if tallied["All"]["patients"] is not None else "",
        "spacing": spacing_rows(fingerprint.get("spacing")), "inspected": inspected_words(fingerprint, tallied["All"]["scans"]), "sizes": size_rows(fingerprint.get("sizes")), "more": more,
        "rows": "Volumes" if depth else "Images",
    }  # fmt: skip


def inspected_words(fingerprint: dict[str, Any], scans: int) -> str:
    """How many scans the sizes were taken from, where these are not all."""
    found = fingerprint.get("inspected")
    return f"; {count(found, 'scan')} looked at" if isinstance(found, int) and found < scans else ""


def channels_words(channels: int) -> str:
    return "" if channels == 1 else ", colour" if channels == 3 else f", {channels} channels"


def formats_words(info: dict[str, Any]) -> str:
    """The source formats, with counts where they are known."""
    named = {"dicom": "DICOM", "nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage", "png": "PNG", "jpeg": "JPEG", "tiff": "TIFF"}  # fmt: skip
    several = (info.get("fingerprint") or {}).get("formats")
    if isinstance(several, dict) and several:
        return ", ".join(
            f"{named.get(row['words'], row['words'])} ({number(row['count'])})" for row in counted(several)
        )
    only = str(info.get("source_format") or "")
    return named.get(only, only)


def stored_spacing(dataset: Dataset) -> str:
    """The median voxel size of the stored rows and its range, (slice x) row x column, in mm."""
    spacing = np.asarray(dataset.columns["spacing"], np.float64)
    spacing = spacing if len(dataset.shape) == 4 else spacing[:, -2:]
    known = spacing[np.isfinite(spacing).all(axis=1)]
    if not len(known):
        return "not said by the files"
    median = np.median(known, axis=0)
    words = " × ".join(short(side) for side in median) + " mm"
    varied = bool((np.ptp(known, axis=0) > 0.01 * np.median(known, axis=0)).any())
    words += f" (median; {short(known.min())} to {short(known.max())} mm)" if varied else ""
    lost = len(spacing) - len(known)
    return words + (f", not known for {count(lost, 'image')}" if lost else "")


def field_of_view(dataset: Dataset) -> str:
    """Height x width of the stored image in mm, where one spacing holds."""
    spacing = dataset.info.get("spacing")
    if not spacing:
        return ""
    height, width = dataset.shape[-2:]
    return f"{round(height * spacing[-2])} × {round(width * spacing[-1])} mm"


def crop_words(dataset: Dataset) -> str:
    """How much of the displayed source slice a stored image covers."""
    crop = np.asarray(dataset.columns["crop"], np.float64)
    if crop.ndim != 2 or not np.isfinite(crop).all(axis=1).any():
        return ""
    height, width = np.nanmedian(crop[:, -2:], axis=0)
    return f"covers {round(height)} × {round(width)} pixels of the source slice (median)"


def windows_words(dataset: Dataset) -> str:
    """The intensity window, one for all or one a scan."""
    if not len(dataset):
        return ""
    low, high = (np.asarray(dataset.columns[end], np.float64) for end in ("low", "high"))
    units = " HU" if units_of(dataset) == "HU" else ""
    if np.ptp(low) == 0 and np.ptp(high) == 0:
        return f"{short(low[0])} to {short(high[0])}{units} for every scan"
    return f"of each scan its own (median {short(np.median(low))} to {short(np.median(high))}{units})"


def foreground_words(fingerprint: dict[str, Any]) -> str:
    """How much of a scan the box around its foreground takes."""
    share = fingerprint.get("foreground_box")
    return f"its box takes {100 * share:.0f} % of a scan (median)" if isinstance(share, (int, float)) else ""


def range_words(points: Any) -> str:
    """Median and range, from percentiles; nothing when every scan is a single slice."""
    if not isinstance(points, dict) or not {"0", "50", "100"} <= set(points) or points["100"] <= 1:
        return ""
    spread = f" (median; {short(points['0'])} to {short(points['100'])})" if points["0"] != points["100"] else ""
    return short(points["50"]) + spread


def mask_words(masks: Any) -> str:
    """How many rows have a mask, and what its values mean."""
    if not isinstance(masks, dict) or not isinstance(masks.get("rows"), int):
        return ""
    return f"{count(masks['rows'], 'image')}; values {masks.get('values') or 'as in the files'}"


def neighbour_words(neighbours: Any) -> str:
    """For 2.5-D data, how many slices go along with each."""
    return f"{count(neighbours, 'slice')} on either side go along with each" if neighbours else ""


def split_rows(tallied: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Patients, scans and images of every split, and of all."""
    names = (*SPLITS, *(["left out"] if tallied["left out"]["images"] else []), "All")
    return [{"name": SPLIT_WORDS.get(split, split), **tallied[split]} for split in names]


def label_rows(dataset: Dataset, tallied: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Patients, scans and images of every label, the images by split."""
    if not dataset.labels:
        return None
    names = {f"label {number_of}": name for number_of, name in enumerate(dataset.labels)} | {"label -1": "No label"}
    rows = [{"name": name, **tallied[key]} for key, name in names.items() if key in tallied]
    rest = len(dataset.labels) - MOST_LABEL_ROWS
    said = f"{count(rest, 'further label')} not listed here: see label_counts in dataset.json." if rest > 0 else ""
    return {"rows": rows, "rest": said, "splits": [SPLIT_WORDS[split] for split in SPLITS]}


def spacing_rows(spacing: Any) -> dict[str, Any] | None:
    """Percentiles of the source's pixel spacing."""
    if not isinstance(spacing, dict):
        return None
    kinds = {name: points for name, points in spacing.items() if isinstance(points, dict) and points}
    if not kinds:
        return None
    points = list(next(iter(kinds.values())))
    names = {"row": "Between rows", "column": "Between columns", "slice": "Between slices"}
    rows = [
        {"name": names.get(name, name), "values": [short(own[point]) if own.get(point) is not None else "–" for point in points]}
        for name, own in kinds.items()
    ]  # fmt: skip
    return {"points": [POINTS.get(point, f"{point} %") for point in points], "rows": rows}


def size_rows(sizes: Any) -> dict[str, Any] | None:
    """Sizes of the source's slices, most frequent first."""
    rows = [{**row, "words": row["words"].replace("x", " × ")} for row in counted(sizes)]
    return cut(rows, "size", most=8) if rows else None


def choices(info: dict[str, Any]) -> dict[str, Any] | None:
    """The plan's sentences, split into topic and words, and what the user set."""
    rows = []
    for sentence in info.get("plan") or []:
        topic, colon, words = str(sentence).partition(": ")
        named = bool(colon) and len(topic) <= 40
        rows.append({"topic": topic if named else "", "words": words if named else str(sentence)})
    overrides = plain(info.get("overrides") or {})
    return {"rows": rows, "overrides": overrides} if rows or overrides else None


def intensities(dataset: Dataset) -> dict[str, Any] | None:
    """Histograms of the training values, of all and of every label, and their percentiles."""
    known = (dataset.info.get("fingerprint") or {}).get("intensity") or {}
    charts, rest = histograms(dataset)
    points = known.get("percentiles") or {}
    if not charts and not points:
        return None
    largest = max((abs(float(value)) for value in points.values()), default=0.0)
    table = [(POINTS.get(point, f"{point} %"), number(float(value), largest)) for point, value in points.items()]
    units = "HU" if units_of(dataset) == "HU" else "arbitrary units"
    said = [f"Values of the training scans, in {units}."]
    if charts:
        said.append(f"Solid lines: the ends of the intensity window, {windows_words(dataset)}. Values outside it are learned and shown as its nearer end.")  # fmt: skip
        said += (
            ["Dotted lines: air (−1\u202f000 HU), water (0 HU) and bone (from about 300 HU)."] if units == "HU" else []
        )
        said += ["The thin grey line in a label's chart repeats all training images."] if len(charts) > 1 else []
    return {"charts": charts, "rest": rest, "percentiles": table, "units": units, "words": said}


def histograms(dataset: Dataset) -> tuple[list[dict[str, Any]], str]:
    """One chart for all training values, one for each of the first labels, and what is said of the rest."""
    fingerprint = dataset.info.get("fingerprint") or {}
    everything = (fingerprint.get("intensity") or {}).get("histogram")
    by_label = {
        str(label): own
        for label, own in sorted((fingerprint.get("intensity_by_label") or {}).items())
        if own and sum(own.get("counts", ()))
    }
    shown = list(by_label.items())[:MOST_LABELS]
    low, high = (np.asarray(dataset.columns[end], np.float64) for end in ("low", "high"))
    options: dict[str, Any] = {
        "window": (float(np.median(low)), float(np.median(high))) if len(dataset) else None, "units": units_of(dataset),
        "marks": CT_MARKS if units_of(dataset) == "HU" else (), "floor": floor_of([own for _, own in shown] + ([everything] if everything else [])),
    }  # fmt: skip
    charts = []
    if everything:
        svg = histogram_svg(everything, words="Histogram of all training values", **options)
        charts.append({"title": "All training images", "svg": svg})
    for label, own in shown:
        words = f"Histogram of the training values of {label}"
        charts.append({"title": label, "svg": histogram_svg(own, words=words, behind=everything, **options)})
    rest = len(by_label) - MOST_LABELS
    said = f"{count(rest, 'further label')} not drawn here: see intensity_by_label in dataset.json." if rest > 0 else ""
    return charts, said


def units_of(dataset: Dataset) -> str:
    return str(dataset.columns["units"][0]) if len(dataset) else "a.u."


def pairs(info: dict[str, Any]) -> dict[str, Any] | None:
    """How many pairs there are, how far they lie apart, and lists of single pairs."""
    known = info.get("pairs")
    if not isinstance(known, dict) or not known:
        return None
    tables = [
        {"title": str(name).replace("_", " ").capitalize(), **table(entries)}
        for name, entries in known.items()
        if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    ]
    named = {
        PAIR_TERMS.get(str(name), str(name)): "could not be estimated" if value is None else value
        for name, value in known.items()
    }
    return {"facts": plain(named), "tables": tables}


def total(info: dict[str, Any], name: str, listed: list[Any]) -> int:
    """How many there are; dataset.json lists the first of many."""
    return int((info.get("totals") or {}).get(name, len(listed)))


def table(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A table of objects: one column a key."""
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    rows = [[setting(entry.get(name)) if not isinstance(entry.get(name), (list, dict)) else "…" for name in names] for entry in entries]  # fmt: skip
    heads = [str(name).replace("_mm", " (mm)").replace("_", " ").capitalize() for name in names]
    return {"heads": heads, **cut(rows, "entry", "entries")}


def copies(dataset: Dataset) -> dict[str, Any] | None:
    """Exact copies, stored once, and near copies, some of them side by side."""
    exact, near = dataset.info.get("duplicates"), near_copies(dataset)
    if exact is None and dataset.info.get("near_duplicates") is None:
        return None
    exact_rows = [exact_row(dataset, entry) for entry in exact or []]
    listed = [{**exact_row(dataset, entry), "correlation": correlation_words(entry)} for entry, _, _ in near]
    shown = [
        near_pair(dataset, entry, own, other)
        for entry, own, other in near[:MOST_PAIRS_SHOWN]
        if own is not None and other is not None
    ]
    return {
        "exact": cut(exact_rows, "copy", "copies"), "exact_count": total(dataset.info, "duplicates", exact_rows), "exact_known": exact is not None,
        "near": cut(listed, "image"), "near_count": total(dataset.info, "near_duplicates", near), "near_known": dataset.info.get("near_duplicates") is not None,
        "shown": shown, "apart": apart(dataset),
    }  # fmt: skip


def near_copies(dataset: Dataset) -> list[tuple[dict[str, Any], int | None, int | None]]:
    """The near copies, most alike first, each with its own row and the row it is like; None where a row is not stored."""
    entries = sorted(
        dataset.info.get("near_duplicates") or [], key=lambda entry: -float(entry.get("correlation") or 0.0)
    )
    cases, slices = dataset.columns["case"], dataset.columns["slice"]
    named = np.flatnonzero(np.isin(cases, [str(entry.get("case", "")) for entry in entries]))
    places = {(str(cases[row]), int(slices[row])): int(row) for row in named}
    result = []
    for entry in entries:
        other = entry.get("copy_of_row")
        known = isinstance(other, int) and 0 <= other < len(dataset)
        own = entry.get("row", places.get((str(entry.get("case")), entry.get("slice", -1))))
        result.append((entry, own, other if known else None))
    return result


def apart(dataset: Dataset) -> int:
    """How many near copies lie in another split than the image they are like."""
    splits = dataset.columns["split"]
    return sum(
        own is not None and other is not None and not entry.get("left_out") and splits[own] != splits[other]
        for entry, own, other in near_copies(dataset)
    )


def correlation_words(entry: dict[str, Any]) -> str:
    return f"{float(entry.get('correlation') or 0.0):.4f}"


def exact_row(dataset: Dataset, entry: dict[str, Any]) -> dict[str, Any]:
    """A copy and the image it copies, by case and slice."""
    row = entry.get("copy_of_row")
    known = isinstance(row, int) and 0 <= row < len(dataset)
    return {
        "case": str(entry.get("case", "")), "slice": entry.get("slice"),
        "other": str(dataset.columns["case"][row]) if known else "", "other_slice": int(dataset.columns["slice"][row]) if known else None,
    }  # fmt: skip


def near_pair(dataset: Dataset, entry: dict[str, Any], own: int, other: int) -> dict[str, Any]:
    """Two near copies side by side."""
    shots = [views(dataset, row) for row in (own, other)]
    both = [{**shown[0], "caption": caption(dataset, row)} for (shown, _), row in zip(shots, (own, other))]
    return {
        "views": both,
        "widths": columns_css([widths[0] for _, widths in shots]),
        "correlation": correlation_words(entry),
    }


def burned_in(info: dict[str, Any]) -> dict[str, Any] | None:
    """Scans that may show text."""
    flagged = info.get("burned_in")
    if flagged is None:
        return None
    rows = [{"case": str(entry.get("case", "")), "reason": str(entry.get("reason", ""))} for entry in flagged]
    return {"count": total(info, "burned_in", rows), **cut(rows, "scan")}


def left_out(info: dict[str, Any]) -> dict[str, Any] | None:
    """Skipped, altered, left aside and empty slices."""
    keys = ("skipped", "skipped_by_reason", "altered", "left_aside", "empty_slices")
    if not any(key in info for key in keys):
        return None
    listed = [
        {"case": str(one.get("case", "")), "reason": str(one.get("reason", ""))} for one in info.get("skipped") or []
    ]
    reasons = info.get("skipped_by_reason") or {}
    if not reasons:
        for one in listed:
            reasons[one["reason"]] = reasons.get(one["reason"], 0) + 1
    aside = [{"words": aside_words(one), "count": one.get("scans", one.get("count", 1))} for one in info.get("left_aside") or [] if isinstance(one, dict)]  # fmt: skip
    tables = {
        "Skipped: could not be read or used": ("Files", counted(reasons)), "Altered while reading": ("Scans", counted(info.get("altered"))),
        "Left aside: readable, but not of the kind chosen": ("Scans", aside), "Slices dropped": ("Slices", counted(info.get("empty_slices"))),
    }  # fmt: skip
    shown = [
        {"title": title, "head": head, **cut(rows, "reason", most=40)} for title, (head, rows) in tables.items() if rows
    ]
    return {"tables": shown, "cases": cut(listed, "case", most=50) if listed else None}


def aside_words(entry: dict[str, Any]) -> str:
    """For example "CT volumes, 240 images"."""
    if entry.get("reason"):
        return str(entry["reason"])
    kind = str(entry.get("modality", "")).replace("OT", "modality not said:")
    words = f"{kind} " + {2: "pictures", 3: "volumes"}.get(entry.get("dimensions", 0), "scans")
    words += channels_words(entry["channels"]) if isinstance(entry.get("channels"), int) else ""
    return (words + (f", {count(entry['images'], 'image')}" if isinstance(entry.get("images"), int) else "")).strip()


# ------------------------------------------------------------------------------------------------ contact sheet


def images(dataset: Dataset) -> dict[str, Any] | None:
    """Images of every label and split, drawn by seed, as pictures with their case numbers."""
    if not len(dataset):
        return None
    names = label_groups(dataset)
    first, widths = views(dataset, 0)
    most = int(np.clip(MOST_TILES // len(first), 6, MOST_FIGURES))
    groups = []
    for name, rows in names[:MOST_LABELS]:
        drawn = draw(dataset, rows, max(2, most // min(len(names), MOST_LABELS)), name)
        figures = [shot(dataset, row) for row in drawn]
        groups.append({"label": name, "figures": figures})
    hidden = len(names) - MOST_LABELS
    soft = any("soft-tissue" in view["words"] for view in first)
    return {
        "groups": groups, "least": f"{(7.0 if len(dataset.shape) == 4 else 8.2) * len(widths):.1f}",
        "words": sheet_words(dataset, soft), "legend": legend(dataset), "rest": f"{count(hidden, 'further label')} not shown." if hidden > 0 else "",
    }  # fmt: skip


def shot(dataset: Dataset, row: int) -> dict[str, Any]:
    """The pictures of one row, their columns' widths as CSS, and what stands below."""
    shown, widths = views(dataset, row)
    return {"views": shown, "widths": columns_css(widths), "caption": caption(dataset, row)}


def columns_css(widths: list[int]) -> str:
    """Columns of a grid in proportion, for example "36fr 50fr"."""
    return " ".join(f"minmax(0, {width}fr)" for width in widths)


def label_groups(dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """Label and its rows; one group without a name when the dataset has no labels."""
    numbers = dataset.classes()
    groups = [(name, np.flatnonzero(numbers == i)) for i, name in enumerate(dataset.labels)]
    if (numbers < 0).any():
        groups.append(("No label" if groups else "", np.flatnonzero(numbers < 0)))
    return [(name, rows) for name, rows in groups if len(rows)]


def draw(dataset: Dataset, rows: np.ndarray, wanted: int, label: str) -> list[int]:
    """Rows to show: by turns from every split, each time another scan where there is one, with a mask where there are masks."""
    splits = dataset.columns["split"][rows]
    queues = []
    for split in SPLITS:
        own = rows[splits == split]
        seed = derive_seed(str(dataset.info.get("hash", "")), "contact sheet", label, split)
        drawn = np.random.default_rng(seed).permutation(own)[: 8 * wanted].tolist()
        queues.append(sorted(drawn, key=lambda row: not marked(dataset, row)))
    chosen: list[int] = []
    while len(chosen) < wanted and any(queues):
        for queue in queues:
            if queue and len(chosen) < wanted:
                seen = {dataset.columns["case"][row] for row in chosen}
                best = next((row for row in queue if dataset.columns["case"][row] not in seen), queue[0])
                queue.remove(best)
                chosen.append(best)
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(chosen, key=lambda row: order[str(dataset.columns["split"][row])])


def marked(dataset: Dataset, row: int) -> bool:
    """Whether a mask marks anything in this row."""
    mask = dataset.mask(row)
    return mask is not None and bool(mask.any())


def caption(dataset: Dataset, row: int) -> dict[str, str]:
    """Case number, slice and split of one row."""
    columns = dataset.columns
    number_of = int(columns["slice"][row])
    volume = len(dataset.shape) == 4 or number_of < 0 or dataset.info.get("dimensions") == 2
    return {
        "case": str(columns["case"][row]),
        "slice": "" if volume else f"slice {number_of}",
        "split": SPLIT_WORDS.get(str(columns["split"][row]), ""),
    }


def sheet_words(dataset: Dataset, soft: bool) -> list[str]:
    """How the contact sheet was drawn and what its pictures are, in sentences."""
    layers, volumes = dataset.info.get("layers") or {}, len(dataset.shape) == 4
    kinds = [f"the stored window, {windows_words(dataset)}"]
    kinds += [f"a soft-tissue window, {window_words(SOFT_TISSUE)}"] if soft else []
    kinds += ["the outline of the mask, where there is one"] if "masks" in layers else []
    kinds += ["the paired scan"] if "targets" in layers else []
    spaced = bool(np.isfinite(dataset.columns["spacing"]).any())
    said = ["Drawn by seed from every split, not picked by eye."]
    said += ["Images with a mask come first."] if "masks" in layers else []
    said.append("Proportions follow the pixel spacing." if spaced else "The pixel spacing is not known: pixels are shown square.")  # fmt: skip
    if volumes:
        said.append("Each volume is shown by three planes through its middle: axial, coronal, sagittal.")
    if dataset.shape[0] not in (1, 3):
        said.append(f"Of {dataset.shape[0]} channels the first is shown.")
    order = "top to bottom" if volumes else "left to right"
    said.append(f"From {order}: {'; '.join(kinds)}." if len(kinds) > 1 else f"Grey values follow {kinds[0]}.")
    return [*said, "Below each picture stand its case number and its split."]


def legend(dataset: Dataset) -> list[dict[str, Any]]:
    """Label values of the masks, where they have names, with the colour of their outline."""
    names = dataset.info.get("mask_labels")
    if not isinstance(names, dict):
        return []
    known = sorted((int(value), str(name)) for value, name in names.items() if int(value) > 0)
    return [
        {"name": name, "colour": Markup(OUTLINES[(value - 1) % len(OUTLINES)])} for value, name in known[:MOST_LABELS]
    ]
