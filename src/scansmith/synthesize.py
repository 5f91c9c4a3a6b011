"""Verb `synthesize`: model -> new scans that other tools open, marked as synthetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .image import Image
    from .model import Model

# Images are always made in aligned groups of this many, so that sample i has the same bits whatever is asked around it.
GROUP = 16
SUFFIXES = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}
FORMATS = {"dicom": "dicom", "nifti": "nifti", "nrrd": "nifti", "metaimage": "nifti", "png": "png", "jpeg": "png"}


def synthesize(
    model: Path,
    out: Path,
    *,
    count: int = 100,
    first: int = 0,
    format: Literal["auto", "png", "nifti", "dicom"] = "auto",
    label: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Make new scans with a trained model: files in physical units, each marked as synthetic, and a manifest.

    Sample i depends on (seed, i) only: asking for more, or for a part, never changes an image.

    Args:
        model: model folder (RUN/model).
        out: folder for the scans; with labels, one sub-folder a class.
        count: number of scans.
        first: index of the first one.
        format: "png" (16 bit), "nifti" or "dicom"; "auto" follows the training scans.
        label: make this class only; default: classes as frequent as in the training scans.
        seed: another seed gives other scans.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"out", "count", "format", "model", "seed", "label_counts"}.

    Raises:
        ValueError: no model, an unknown label, or scans of another run in `out`.
    """
    from . import __version__, formats
    from .model import load
    from .runtime import Progress, choose_device

    opened, out = load(model), Path(out)
    if count < 1 or first < 0:
        raise ValueError(
            f"expected a count of at least 1 and a first index of at least 0, got count={count}, first={first}"
        )
    if label is not None and label not in opened.labels:
        raise ValueError(f"expected a label of {opened.labels or 'none (the model has no labels)'}, got {label!r}")
    kind = FORMATS[opened.config["source_format"]] if format == "auto" else format
    files = [entry_of(opened, index, kind, label, seed) for index in range(first, first + count)]
    manifest = {
        "software": f"scansmith {__version__}",
        "model": opened.hash,
        "seed": seed,
        "format": kind,
        "count": count,
        "synthetic": True,
        "modality": opened.config["modality"],
        "intensity": opened.intensity.to_json(),
        "spacing": opened.config["spacing"],
        "size": [opened.grid.box_height, opened.grid.box_width],
        "files": files,
    }
    clear(out)
    # The manifest comes first, as incomplete: after a kill it still says which files are ours.
    formats.write_manifest(out, {**manifest, "complete": False})
    with Progress("synthesizing", count, "scans") as progress:
        for entry, encoded in zip(files, draw(opened, first, count, label, seed, choose_device(device)), strict=True):
            words = "generated, not acquired" + (f"; {entry['label']}" if entry["label"] else "")
            marking = formats.Marking(f"scansmith {__version__}", opened.hash, seed, entry["index"], words)
            formats.write(to_image(opened, encoded), out / entry["file"].removesuffix(SUFFIXES[kind]), kind, marking)
            progress.update(entry["index"] - first + 1)
    formats.write_manifest(out, {**manifest, "complete": True})
    counts = {name: sum(entry["label"] == name for entry in files) for name in opened.labels}
    return {"out": str(out), "count": count, "format": kind, "model": opened.hash, "seed": seed, "label_counts": counts}


def entry_of(model: Model, index: int, format: str, label: str | None, seed: int) -> dict[str, Any]:
    """The manifest's row of one sample: file below the folder, index, seed, class name or None."""
    name = label if label or not model.labels else model.labels[class_of(model, seed, index, None)]
    file = f"{index:06d}{SUFFIXES[format]}"
    return {"file": f"{folder_name(name)}/{file}" if name else file, "index": index, "seed": seed, "label": name}


def draw(
    model: Model, first: int, count: int, label: str | None, seed: int, device: torch.device
) -> Iterator[np.ndarray]:
    """Images (C, H, W) in [-1, 1] without padding, one for each index of the range."""
    import torch

    from .networks.blocks import latent

    generator, fixed = model.generator.to(device), None if label is None else model.labels.index(label)
    with torch.inference_mode():
        for start in range(first - first % GROUP, first + count, GROUP):
            z = latent(seed, GROUP, generator.latent, start)  # type: ignore[arg-type]
            numbers = [class_of(model, seed, start + i, fixed) for i in range(GROUP)]
            classes = torch.tensor(numbers, device=device) if model.labels else None
            images = generator(z.to(device), classes).clamp(-1.0, 1.0).cpu().numpy()
            for i in range(GROUP):
                if first <= start + i < first + count:
                    yield model.grid.crop(images[i])


def class_of(model: Model, seed: int, index: int, fixed: int | None) -> int:
    """Class number of sample `index`: the fixed one, or drawn as often as in training, from (seed, index) alone."""
    import numpy as np

    from .runtime import derive_seed

    if fixed is not None or not model.labels:
        return fixed or 0
    counts = np.asarray(model.config["label_counts"], np.float64)
    return int(np.random.default_rng(derive_seed(seed, "class", index)).choice(len(counts), p=counts / counts.sum()))


def to_image(model: Model, encoded: np.ndarray) -> Image:
    """(C, H, W) in [-1, 1] -> an Image in physical units; HU are whole numbers again."""
    import numpy as np

    from .image import Image

    intensity, spacing = model.intensity, model.config["spacing"]
    physical = intensity.decode(encoded).transpose(0, 2, 1)[..., None]
    if intensity.units == "HU":
        physical = np.rint(physical).astype(np.int16)
    rows, columns = spacing or (1.0, 1.0)
    return Image(
        array=np.ascontiguousarray(physical),
        affine=plane(model.config["orientation"], rows, columns),
        modality=model.config["modality"],
        units=intensity.units,
        spacing_known=spacing is not None,
        window=(intensity.low, intensity.high),
    )


def plane(orientation: list[list[float]] | None, rows: float, columns: float) -> np.ndarray:
    """Affine of a slice at the origin that lies as most training slices do; axial where that is not known.

    Args:
        orientation: unit vectors (RAS+) along columns and rows, or None.
        rows, columns: pixel size in mm down and to the right.
    """
    import numpy as np

    right, down = np.asarray(orientation or [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right * columns, down * rows, np.cross(right, down)], axis=1)
    return affine


def folder_name(label: str) -> str:
    """A class name as a folder: what no file system takes becomes "_"."""
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in label).strip(". ") or "_"


def clear(out: Path) -> None:
    """Remove what an earlier `synthesize` wrote into `out`, whole or not.

    Raises:
        ValueError: `out` holds files that no manifest of ours names.
    """
    from . import formats

    if (out / "manifest.json").is_file():
        for entry in formats.read_manifest(out)["files"]:
            (out / entry["file"]).unlink(missing_ok=True)
        (out / "manifest.json").unlink()
    found = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.endswith(".partial")]
    if found:
        raise ValueError(
            f"expected an empty folder for synthetic scans, found {found[0].name} and {len(found) - 1} more files in {out}: choose another folder"
        )
