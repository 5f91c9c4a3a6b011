"""Images a second from file to network input, against MONAI and TorchIO doing the same job: one process, one thread, in turns.

    OMP_NUM_THREADS=1 python benchmarks/prepare_speed.py [--files 64] [--rounds 5]

The job: load, orient, resample, scale to [-1, 1] and crop or pad, of 64-px JPEGs, 512-px PNG and DICOM slices, and a 256^3
int16 NIfTI volume, plain and gzipped. scansmith's time includes finding the files and reading their headers, as in
`scansmith prepare`. Seconds are processor seconds, so that what else the machine does counts less. That all do the same
job is checked by the correlation of what they made ("agreement"). TorchIO is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    LoadImage,
    Orientation,
    Resize,
    ResizeWithPadOrCrop,
    ScaleIntensityRange,
    Spacing,
)
from PIL import Image as Picture

from scansmith import anatomy, formats
from scansmith.formats.write import Marking
from scansmith.intensity import IntensityMap
from scansmith.preprocess.slices import Placement, cut
from scansmith.preprocess.volumes import place_volume

try:
    import torchio
except ImportError:
    torchio = None

HU = (-1024.0, 1000.0)
# As viewers export CT: a soft-tissue window.
EXPORTED_HU = (-160.0, 240.0)
GREY = (0.0, 255.0)
# Grid of the pictures; of the DICOM slices, with its pixel size in mm; of the volumes, with their voxel size in mm.
PICTURE, THUMBNAIL = (256, 256), (48, 48)
SLICE, SLICE_MM = (256, 256), 1.2
VOLUME, VOLUME_MM = (160, 160, 160), 1.5

Job = Callable[[Path], list[np.ndarray]]


# ------------------------------------------------------------------------------------------------ the files


def write_files(folder: Path, count: int) -> dict[str, Path]:
    """Folder of each kind of file, from procedural patients."""
    folders = {name: folder / name for name in ("jpeg", "png", "dicom", "nii", "nii.gz")}
    for one in folders.values():
        one.mkdir()
    raster = anatomy.axial_raster(512, max(count // 4, 2))
    tissues = anatomy.render(anatomy.draw_patient(1), raster)
    image = anatomy.ct(tissues, 1)
    formats.write(image, folders["dicom"] / "scan", "dicom", Marking("scansmith", "phantom", 1, 0))
    low, high = EXPORTED_HU
    grey = np.clip((image.array[0].astype(np.float32) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    for k in range(grey.shape[2]):
        Picture.fromarray(grey[:, :, k].T).save(folders["png"] / f"{k:04d}.png")
    for number in range(count):
        small = Picture.fromarray(grey[:, :, number % grey.shape[2]].T).resize((64, 64))
        small.rotate(number).save(folders["jpeg"] / f"{number:04d}.jpeg", quality=95)
    coarse = anatomy.ct(anatomy.render(anatomy.draw_patient(2), anatomy.axial_raster(128, 64, 3.0)), 2)
    volume = coarse.array[0].repeat(2, 0).repeat(2, 1).repeat(4, 2)
    affine = np.diag([-1.2, -1.2, 1.2, 1.0])
    for name in ("nii", "nii.gz"):
        nibabel.save(nibabel.Nifti1Image(volume, affine), folders[name] / f"scan.{name}")
    return folders


# ------------------------------------------------------------------------------------------------ scansmith


def scansmith_slices(grid: tuple[int, int], spacing: float | None, window: tuple[float, float]) -> Job:
    intensity = IntensityMap(*window)

    def job(folder: Path) -> list[np.ndarray]:
        made = []
        for source in formats.discover(folder)[0]:
            slices = cut(formats.read(source), source.format)
            wished = None if spacing is None else (spacing, spacing)
            place = Placement.choose(slices.array.shape[-2:], slices.spacing, grid, wished)
            made += list(intensity.encode(place.apply(slices.array, window[0]))[:, 0])
        return made

    return job


def scansmith_volumes(folder: Path) -> list[np.ndarray]:
    intensity = IntensityMap(*HU)
    return [
        intensity.encode(place_volume(formats.read(source), VOLUME, (VOLUME_MM,) * 3, fill=HU[0])[0])[0]
        for source in formats.discover(folder)[0]
    ]


# ------------------------------------------------------------------------------------------------ MONAI


def monai_pictures(grid: tuple[int, int]) -> Job:
    work = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Resize(grid, mode="bilinear", anti_aliasing=True),
            ScaleIntensityRange(*GREY, -1, 1, clip=True),
            ResizeWithPadOrCrop(grid),
        ]
    )
    return lambda folder: [work(path)[0].numpy().T for path in sorted(folder.iterdir())]


def monai_dicom(folder: Path) -> list[np.ndarray]:
    work = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Spacing((SLICE_MM, SLICE_MM), mode="bilinear", padding_mode="border"),
            ScaleIntensityRange(*HU, -1, 1, clip=True),
            ResizeWithPadOrCrop(SLICE, value=-1),
        ]
    )
    return [work(path)[0].numpy().T for path in sorted(folder.rglob("*.dcm"))]


def monai_volumes(folder: Path) -> list[np.ndarray]:
    work = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("LPS"),
            Spacing((VOLUME_MM,) * 3, mode="bilinear", padding_mode="border"),
            ScaleIntensityRange(*HU, -1, 1, clip=True),
            ResizeWithPadOrCrop(VOLUME, value=-1),
        ]
    )
    return [work(path)[0].numpy().T for path in sorted(folder.iterdir())]


# ------------------------------------------------------------------------------------------------ TorchIO


def torchio_files(window: tuple[float, float], *steps: object) -> Job:
    work = torchio.Compose(
        [
            *steps[:-1],
            torchio.Clamp(*window),
            torchio.RescaleIntensity((-1, 1), in_min_max=window),
            steps[-1],
        ]
    )

    def job(folder: Path) -> list[np.ndarray]:
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpeg", ".png", ".dcm", ".nii", ".gz"))
        made = [work(torchio.ScalarImage(path)).data[0].numpy().T for path in files]
        return [array[0] if len(array) == 1 else array for array in made]

    return job


def torchio_jobs() -> dict[str, Job]:
    return {
        "jpeg": torchio_files(GREY, torchio.Resize((*THUMBNAIL, 1)), torchio.CropOrPad((*THUMBNAIL, 1))),
        "png": torchio_files(GREY, torchio.Resize((*PICTURE, 1)), torchio.CropOrPad((*PICTURE, 1))),
        "dicom": torchio_files(HU, torchio.Resample((SLICE_MM, SLICE_MM, 6.0)), torchio.CropOrPad((*SLICE, 1))),
        "nii": torchio_files(HU, torchio.ToOrientation("LPS"), torchio.Resample(VOLUME_MM), torchio.CropOrPad(VOLUME)),
    }


# ------------------------------------------------------------------------------------------------ in turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("expected OMP_NUM_THREADS=1 in the environment: every way is to have one thread")
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    own = {
        "jpeg": scansmith_slices(THUMBNAIL, None, GREY),
        "png": scansmith_slices(PICTURE, None, GREY),
        "dicom": scansmith_slices(SLICE, SLICE_MM, HU),
        "nii": scansmith_volumes,
    }
    monai = {
        "jpeg": monai_pictures(THUMBNAIL),
        "png": monai_pictures(PICTURE),
        "dicom": monai_dicom,
        "nii": monai_volumes,
    }
    ways = {"scansmith": own, "MONAI": monai} | ({"TorchIO": torchio_jobs()} if torchio else {})
    print(f"{date.today()}, {platform.machine()}, one process, one thread, torch {torch.__version__}")
    if torchio is None:
        print("TorchIO is not installed: left out")
    names = {
        "jpeg": "64-px JPEG",
        "png": "512-px PNG",
        "dicom": "512-px DICOM",
        "nii": "256^3 .nii",
        "nii.gz": "256^3 .nii.gz",
    }
    others = list(ways)[1:]
    print(
        f"| files | {' | '.join(f'{way} images/s' for way in ways)} | {' | '.join(f'x {way}' for way in others)} | agreement |"
    )
    print("|---" * (2 + len(ways) + len(others)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, files in write_files(Path(folder), options.files).items():
            jobs = {way: table[name.removesuffix(".gz")] for way, table in ways.items()}
            rates, agreement = measure(jobs, files, options.rounds)
            ratios = [rates["scansmith"] / rates[way] for way in others]
            cells = [f"{rate:.3g}" for rate in rates.values()] + [f"{ratio:.1f}" for ratio in ratios]
            print(f"| {names[name]} | {' | '.join(cells)} | {', '.join(f'{value:.3f}' for value in agreement)} |")


def measure(jobs: dict[str, Job], files: Path, rounds: int) -> tuple[dict[str, float], list[float]]:
    """Images a second of each way (median of the rounds, after one to warm up), and how well each agrees with the first."""
    seconds: dict[str, list[float]] = {way: [] for way in jobs}
    made = {}
    for _ in range(rounds + 1):
        for way, job in jobs.items():
            start = time.process_time()
            made[way] = job(files)
            seconds[way].append(time.process_time() - start)
    first, *others = (np.stack(arrays) for arrays in made.values())
    agreement = []
    for other in others:
        assert other.shape == first.shape, (other.shape, first.shape)
        assert -1.001 <= other.min() <= other.max() <= 1.001
        agreement.append(float(np.corrcoef(first.ravel()[::7], other.ravel()[::7])[0, 1]))
    assert min(agreement, default=1.0) > 0.9, f"not the same job: {agreement}"
    return {way: len(first) / statistics.median(times[1:]) for way, times in seconds.items()}, agreement


if __name__ == "__main__":
    main()
