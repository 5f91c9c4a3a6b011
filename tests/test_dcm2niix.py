"""Every DICOM series of the real scans beside dcm2niix: the same voxels in the same place, or a stated difference."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scansmith import formats
from scansmith.formats.series import unshear

FOLDERS = [
    "chest_ct_slices_contrast_labels",
    "dicom_ct_head_ge_tilt",
    "dicom_ct_kernel_pair_phantom",
    "dicom_paired_series_pgbm",
    "dicom_varied/enhanced_mr",
    "dicom_varied/multiecho_same_instance_numbers",
    "dicom_varied/pydicom/dicomdirtests",
    "dicom_varied/rtutils/oriented_data",
    "dicom_varied/torchio_series",
]
AFFINE_MM = 1e-3

ONE_GRID = "dcm2niix puts all slices into one volume of one slice distance; here they lie where their positions say"
INVERTED = "MONOCHROME1 is inverted here and left as stored there; a film has no position in the patient"
# First file of our volume -> why it is not dcm2niix's. Every entry is asserted slice by slice below.
EXPECTED_DIFFERENCES = {
    "dicom_ct_head_ge_tilt/GE/01.dcm": ONE_GRID,
    "dicom_ct_head_ge_tilt/GE/15.dcm": ONE_GRID,
    "dicom_varied/pydicom/dicomdirtests/77654033/CT2/17106": ONE_GRID,
    "dicom_varied/pydicom/dicomdirtests/77654033/CT2/17136": ONE_GRID,
    "dicom_varied/pydicom/dicomdirtests/77654033/CR1/6154": INVERTED,
    "dicom_varied/pydicom/dicomdirtests/77654033/CR2/6247": INVERTED,
    "dicom_varied/pydicom/dicomdirtests/77654033/CR3/6278": INVERTED,
}
# Volumes of dcm2niix that no volume of ours is, by folder and reason.
EXPECTED_EXTRA = {
    "dicom_ct_head_ge_tilt": [
        "one slice distance for two",
        "tilt undone and slices made even by resampling",
    ],
    "dicom_varied/pydicom/dicomdirtests": [
        "one slice distance for two",
        "the gap of 200 mm filled by resampling",
        "a localizer, which is left aside here",
        *["MONOCHROME1 as stored"] * 3,
    ],
}


def dcm2niix():
    """Debian's program, else that of the wheel, which lies beside the interpreter."""
    wheel = Path(sysconfig.get_path("scripts")) / "dcm2niix"
    found = shutil.which("dcm2niix") or (str(wheel) if wheel.is_file() else None)
    if found is None:
        pytest.skip("dcm2niix is not installed (Debian package or wheel dcm2niix)")
    return found


def convert(folder, out):
    """Run dcm2niix once over a folder: Series Instance UID -> [(array (I, J, K), affine, file name)]."""
    # %j series, %s number, %e echo; -p n: the rescale of the standard, not Philips' private one.
    command = [dcm2niix(), "-b", "n", "-z", "n", "-p", "n", "-d", "9", "-f", "%j_%s_%e", "-o", str(out), str(folder)]
    subprocess.run(command, check=False, capture_output=True, timeout=60)
    volumes = {}
    for file in sorted(out.glob("*.nii")):
        image = nibabel.load(file)
        array = np.asanyarray(image.dataobj)
        array = array.reshape(*array.shape[:2], array.shape[2] if array.ndim > 2 else 1, -1)
        for t in range(array.shape[3]):
            name = f"{file.name} {t}"
            volumes.setdefault(file.name.split("_")[0], []).append(
                (array[..., t].astype(np.float64), image.affine, name)
            )
    return volumes


def place(image, array, affine):
    """Their voxels on our grid and the largest distance of voxel centres in mm, or None where the grids differ."""
    shape = image.array.shape[1:]
    into = np.linalg.inv(affine) @ image.affine
    whole = np.rint(into)
    # One voxel along one axis each: axes may be turned and flipped, not scaled or sheared.
    if not np.array_equal(np.abs(whole[:3, :3]).sum(0), [1, 1, 1]) or abs(np.linalg.det(whole[:3, :3])) != 1:
        return None
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in shape))]).T
    apart = np.linalg.norm(((image.affine - affine @ whole) @ corners)[:3], axis=0).max()
    there = whole[:3, :3].astype(int) @ np.indices(shape).reshape(3, -1) + whole[:3, 3:].astype(int)
    if apart > 1 or array.shape != tuple((np.abs(whole[:3, :3]) @ shape).astype(int)) or (there < 0).any():
        return None
    return array[tuple(there)].reshape(shape), float(apart)


def same(ours, theirs, notes):
    """Equal to float32's last digits; where padding was set to air, outside of what lies below air there."""
    differs = np.abs(ours - theirs) > 1e-6 * max(1.0, np.abs(theirs).max())
    if any("padding" in note for note in notes):
        return not differs.any() or bool((theirs[differs] < -1024).all() and (ours[differs] == -1024).all())
    return not differs.any()


def outcome(image, volumes):
    """(name of the volume of theirs that ours is, mm apart), or (None, None)."""
    for array, affine, name in volumes:
        found = place(image, array, affine)
        if found is not None and found[1] <= AFFINE_MM and same(image.array[0], found[0], image.notes):
            return name, found[1]
    return None, None


def ours_of(folder):
    sources, _ = formats.discover(folder)
    return [(source, formats.read(source)) for source in sources if source.format == "dicom" and source.role == "image"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_series_holds_dcm2niixs_voxels_where_dcm2niix_puts_them(shared_data, tmp_path, folder):
    volumes = convert(shared_data / folder, tmp_path)
    used = []
    different = {}
    ours = ours_of(shared_data / folder)
    assert ours and volumes
    for source, image in ours:
        name, _ = outcome(image, volumes.get(source.series, []))
        if name is None:
            first = source.files[0].relative_to(shared_data).as_posix()
            different[first] = image, volumes.get(source.series, [])
        else:
            used.append(name)
    assert sorted(different) == sorted(name for name in EXPECTED_DIFFERENCES if name.startswith(folder + "/"))
    assert len(set(used)) == len(used), "no two of our volumes are one of theirs"
    extra = [name for group in volumes.values() for *_, name in group if name not in used]
    assert len(extra) == len(EXPECTED_EXTRA.get(folder, [])), extra
    for first, (image, group) in different.items():
        is_stated = slices_are_theirs if EXPECTED_DIFFERENCES[first] == ONE_GRID else is_inverted
        assert is_stated(image, group), first


def slices_are_theirs(image, volumes):
    """Every slice of ours is one of theirs, rows upside down as dcm2niix writes them, in the same order."""
    array = next(array for array, *_ in volumes if array.shape[:2] == image.array.shape[1:3])
    count = image.array.shape[3]
    return any(
        all(same(image.array[0, :, :, k], array[:, ::-1, first + k], image.notes) for k in range(count))
        for first in range(array.shape[2] - count + 1)
    )


def is_inverted(image, volumes):
    total = image.array[0, :, :, 0].astype(np.float64) + volumes[0][0][:, ::-1, 0]
    return len(volumes) == 1 and "MONOCHROME1 inverted" in image.notes and np.allclose(total, total[0, 0], rtol=1e-6)


@pytest.mark.parametrize("part", [0, 1])
def test_the_tilted_head_set_upright_is_dcm2niixs_own_correction(shared_data, tmp_path, part):
    """Given one of the two evenly spaced stacks, dcm2niix undoes the tilt on the same grid, with the same values."""
    source, image = ours_of(shared_data / "dicom_ct_head_ge_tilt")[part]
    (tmp_path / "slices").mkdir()
    for file in source.files:
        shutil.copy(file, tmp_path / "slices")
    (volumes,) = convert(tmp_path / "slices", tmp_path).values()
    ((array, affine, _),) = [volume for volume in volumes if "Tilt" in volume[2]]
    upright = unshear(image)
    theirs, apart = place(upright, array, affine)
    assert apart <= AFFINE_MM
    body = theirs > -500  # at the border of the field of view, padding is -1500 there and air here
    assert np.mean(np.abs(upright.array[0] - theirs)[body] <= 1) > 0.9995
    # leaning the other way is another grid
    mirrored = image.affine.copy()
    mirrored[:3, 2] -= 2 * (image.affine[:3, 2] - upright.affine[:3, 2])
    assert place(unshear(replace(image, affine=mirrored)), array, affine) is None
