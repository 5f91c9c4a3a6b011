"""Image: voxels in physical units with their place in the patient, the one currency between files and stages."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# DICOM (0008,0060) Modality terms that this version understands; "OT" (other) is a file that does not say.
MODALITIES = ("CT", "MR", "CR", "DX", "MG", "US", "XA", "RF", "OT")
# X-ray films, which are projections; ultrasound frames are pictures too.
PROJECTION = ("CR", "DX", "MG", "XA", "RF")
PICTURES = (*PROJECTION, "US")


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One scan: a 2-D picture is a volume with K = 1.

    Attributes:
        array: voxels, shape (C, I, J, K), native dtype, in physical units (HU for CT). I is the column index
            (to the right in a displayed slice), J the row index (downwards), K the slice index, so a displayed
            slice is ``array[0, :, :, k].T``.
        affine: (4, 4) float64, voxel index (i, j, k, 1) -> millimetres in RAS+ (positive towards the patient's
            Right, Anterior and Superior, as NIfTI does; DICOM's own frame is LPS+).
        modality: one of `MODALITIES`.
        units: "HU" for CT, "a.u." (arbitrary) otherwise.
        spacing_known: False when the file gave no pixel spacing and the affine holds 1 mm as a placeholder.
        notes: what the reader altered, in words (for example "MONOCHROME1 inverted").
        window: (low, high) that the values of a whole set lie in, when known: files that scale values then all use it.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = "OT"
    units: str = "a.u."
    spacing_known: bool = True
    notes: tuple[str, ...] = field(default=())
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise ValueError(f"expected an array of shape (C, I, J, K), got shape {self.array.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"expected an affine of shape (4, 4), got {self.affine.shape}")
        if self.modality not in MODALITIES:
            raise ValueError(f"expected a modality of {MODALITIES}, got {self.modality!r}")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along I, J and K."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)
