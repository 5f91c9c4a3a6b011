"""Verb `synthesize`: model -> new scans that other tools open, marked as synthetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .image import Image
    from .model import Model

# Images are always made in aligned groups of this many, so that sample i has the same bits whatever is asked around it.
GROUP = 16
# Most voxels of volumes in a group: a generator holds some 64 float32 values a voxel.
GROUP_VOXELS = 2**20
SUFFIXES = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}
# Format of the training scans -> that of the synthetic ones; volumes follow DICOM alone.
FORMATS = {
    "dicom": "dicom",
    "nifti": "nifti",
    "nrrd": "nifti",
    "metaimage": "nifti",
    "png": "png",
    "jpeg": "png",
    "tiff": "png",
}


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
        format: "png" (16 bit, not for volumes), "nifti" or "dicom" (of a volume a folder with one file a slice); "auto"
            follows the training scans.
        label: make this class only; default: classes as frequent as in the training scans.
        seed: another seed gives other scans.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"out", "count", "format", "model", "seed", "label_counts"}.

    Raises:
        ValueError: no model, an unknown label, a format that cannot hold the scans, or scans of another run in `out`.
    """
    from . import __version__, formats
    from .model import load
    from .runtime import Progress, choose_device

    opened, out = load(model), Path(out)
    if "translation" in opened.config:
        raise ValueError(
            f"expected a model that makes scans in {model}, found one that translates: train without pairs"
        )
    if count < 1 or first < 0:
        raise ValueError(
            f"expected a count of at least 1 and a first index of at least 0, got count={count}, first={first}"
        )
    if label is not None and label not in opened.labels:
        raise ValueError(f"expected a label of {opened.labels or 'none (the model has no labels)'}, got {label!r}")
    kind = choose_format(opened, format)
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
        "size": list(opened.grid.box),
        "files": files,
    }
    clear(out)
    # The manifest comes first, as incomplete: after a kill it still says which files are ours.
    formats.write_manifest(out, {**manifest, "complete": False})
    with Progress("synthesizing", count, "scans") as progress:
        for entry, encoded in zip(files, draw(opened, first, count, label, seed, choose_device(device)), strict=True):
            words = "generated, not acquired" + (f"; {entry['label']}" if entry["label"] else "")
            marking = formats.Marking(f"scansmith {__version__}", opened.hash, seed, entry["index"], words)
            formats.write(
                to_image(opened, encoded), out / entry["file"].removesuffix(suffix_of(opened, kind)), kind, marking
            )
            progress.update(entry["index"] - first + 1)
    formats.write_manifest(out, {**manifest, "complete": True})
    counts = {name: sum(entry["label"] == name for entry in files) for name in opened.labels}
    return {"out": str(out), "count": count, "format": kind, "model": opened.hash, "seed": seed, "label_counts": counts}


def choose_format(model: Model, format: str) -> str:
    """The format to write, "auto" resolved.

    Raises:
        ValueError: the format cannot hold the model's volumes.
    """
    volumes, spacing = model.grid.dimensions == 3, model.config["spacing"]
    if format == "auto":
        followed = FORMATS[model.config["source_format"]]
        return followed if not volumes or (followed == "dicom" and spacing) else "nifti"
    if volumes and format == "png":
        raise ValueError(
            "expected the format 'nifti' or 'dicom' for a model of volumes, got 'png', which holds single images: leave --format out"
        )
    if volumes and format == "dicom" and not spacing:
        raise ValueError(
            "expected the format 'nifti' for volumes whose voxel size the training scans did not say, got 'dicom', which demands it: leave --format out"
        )
    return format


def suffix_of(model: Model, format: str) -> str:
    """Suffix of one scan's file; "" for a volume in DICOM, which is a folder."""
    return "" if format == "dicom" and model.grid.dimensions == 3 else SUFFIXES[format]


def entry_of(model: Model, index: int, format: str, label: str | None, seed: int) -> dict[str, Any]:
    """The manifest's row of one sample: file (or folder of slices) below the folder, index, seed, class name or None."""
    name = label if label or not model.labels else model.labels[class_of(model, seed, index, None)]
    file = f"{index:06d}{suffix_of(model, format)}"
    return {"file": f"{folder_name(name)}/{file}" if name else file, "index": index, "seed": seed, "label": name}


def draw(
    model: Model, first: int, count: int, label: str | None, seed: int, device: torch.device
) -> Iterator[np.ndarray]:
    """Images (C, H, W) or (C, D, H, W) in [-1, 1] without padding, one for each index of the range."""
    import torch

    from .networks.blocks import latent

    generator, fixed = model.generator.to(device), None if label is None else model.labels.index(label)
    group = GROUP if model.grid.dimensions == 2 else max(1, min(GROUP, GROUP_VOXELS // model.grid.pixels))
    with torch.inference_mode():
        for start in range(first - first % group, first + count, group):
            z = latent(seed, group, generator.latent, start)  # type: ignore[arg-type]
            numbers = [class_of(model, seed, start + i, fixed) for i in range(group)]
            classes = torch.tensor(numbers, device=device) if model.labels else None
            images = generator(z.to(device), classes).clamp(-1.0, 1.0).cpu().numpy()
            for i in range(group):
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
    """(C, H, W) or (C, D, H, W) in [-1, 1] -> an Image in physical units; HU are whole numbers again."""
    import numpy as np

    from .image import Image

    intensity, spacing = model.intensity, model.config["spacing"]
    slices = encoded if encoded.ndim == 4 else encoded[:, None]
    physical = intensity.decode(slices).transpose(0, 3, 2, 1)
    if intensity.units == "HU":
        physical = np.rint(physical).astype(np.int16)
    return Image(
        array=np.ascontiguousarray(physical),
        affine=affine_of(model.config["orientation"], spacing or (1.0,) * (encoded.ndim - 1)),
        modality=model.config["modality"],
        units=intensity.units,
        spacing_known=spacing is not None,
        window=(intensity.low, intensity.high),
    )


def affine_of(orientation: Sequence[Sequence[float]] | None, spacing: Sequence[float]) -> np.ndarray:
    """Affine of a scan whose first voxel is at the origin and that lies as most training scans do.

    Args:
        orientation: unit vectors (RAS+) along columns and rows and, of a volume, slices; None, not known, is axial, slices
            from the feet to the head.
        spacing: (row, column) pixel size in mm, of a volume (slice, row, column).
    """
    import numpy as np

    right, down, *across = np.asarray(orientation or [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    step = across[0] if across else np.cross(right, down)
    rows, columns = spacing[-2:]
    apart = spacing[0] if len(spacing) == 3 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right * columns, down * rows, step * apart], axis=1)
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
            path = out / entry["file"]
            for file in path.glob("*.dcm") if path.is_dir() else [path]:
                file.unlink(missing_ok=True)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        (out / "manifest.json").unlink()
    found = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.endswith(".partial")]
    if found:
        raise ValueError(
            f"expected an empty folder for synthetic scans, found {found[0].name} and {len(found) - 1} more files in {out}: choose another folder"
        )
