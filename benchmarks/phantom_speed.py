"""Phantom slices a second on one core: draw a patient, render the tissue map, and image it as CT, T1 and T2.

    OMP_NUM_THREADS=1 python benchmarks/phantom_speed.py [--patients 5] [--size 128] [--slices 16]

The whole way is timed for each modality alone, as `scansmith phantom` goes it but for writing files.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import date

from scansmith import anatomy


def seconds(modality, patients, size, slices):
    """Processor seconds for so many patients."""
    raster = anatomy.axial_raster(size=size, slices=slices)
    start = time.process_time()
    for seed in range(patients):
        tissues = anatomy.render(anatomy.draw_patient(seed), raster)
        image = anatomy.ct(tissues, seed) if modality == "CT" else anatomy.mr(tissues, modality, seed)
        assert image.array.shape == (1, size, size, slices)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--slices", type=int, default=16)
    options = parser.parse_args()
    print(
        f"{date.today()}, {platform.machine()}, one core, {options.slices} slices of {options.size} x {options.size} pixels"
    )
    seconds("CT", 1, options.size, options.slices)
    for modality in ("CT", "T1", "T2"):
        best = min(seconds(modality, options.patients, options.size, options.slices) for _ in range(3))
        print(f"{modality}: {options.patients * options.slices / best:.0f} slices/s (best of three)")


if __name__ == "__main__":
    main()
