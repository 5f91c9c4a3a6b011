"""Masks: which belong to which scan, what is no mask after all, and labels on the scan's grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from scansmith import formats
from scansmith.formats import Source
from scansmith.image import Image
from scansmith.prepare import masks

ROOT = Path("/data/scans")


def scan(name, role="image", *, format="nifti", shape=(16, 16, 8), patient=None, root=ROOT, **rest):
    return Source((root / name,), format, "OT", 1, 3 if shape[2] > 1 else 2, shape, patient, role=role, **rest)


def names_of(sources, root=ROOT):
    return [source.files[0].relative_to(root).as_posix() for source in sources]


def called(found, names):
    """name of the scan -> names of its masks."""
    return {names[image]: [names[mask] for mask in own] for image, own in found.items()}


def write_pictures(root, names, seed=0):
    """Noise for scans, and a square of 255 for names that say mask, or under a folder that does; returns (sources, names)."""
    rng = np.random.default_rng(seed)
    sources = []
    for name in names:
        label = any(word in name.lower() for word in ("mask", "label", "seg", "ho.png"))
        pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
        if label:
            pixels = np.zeros((16, 16), np.uint8)
            pixels[4:10, rng.integers(1, 5) : 12] = 255
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(pixels).save(root / name)
        sources.append(scan(name, format="png", shape=(16, 16, 1), root=root))
    return sources, list(names)


# ------------------------------------------------------------------------------------------------ what masks refer to


def test_a_dicom_mask_belongs_to_the_images_it_names_else_to_their_series():
    sources = [
        scan("a/1.dcm", format="dicom", instances=("1.1", "1.2"), series="1"),
        scan("a/2.dcm", format="dicom", instances=("1.3",), series="1"),
        scan("b/1.dcm", format="dicom", instances=("2.1",), series="2"),
        scan("seg-by-instance", "mask", format="dicom", refers_to=("1.3", "1")),
        scan("seg-by-series", "mask", format="dicom", refers_to=("9.9", "1")),
    ]
    found, every, words = masks.match("auto", sources, names_of(sources))
    assert found == {0: [4], 1: [3, 4]}
    assert every == {3, 4}
    assert words == ("masks: 2 scans with a mask, by what 2 masks refer to",)


def test_a_dicom_mask_without_known_images_belongs_to_its_patients_frame_of_reference():
    sources = [
        scan("a", format="dicom", patient="P", frame_of_reference="7"),
        scan("b", format="dicom", patient="Q", frame_of_reference="7"),
        scan("s", "mask", format="dicom", patient="P", frame_of_reference="7", refers_to=("9.9",)),
        scan("t", "mask", format="dicom", patient="P", frame_of_reference="8"),
    ]
    found, every, words = masks.match("auto", sources, names_of(sources))
    assert found == {0: [2]} and every == {2, 3}
    assert "1 mask matched by patient and Frame of Reference UID (0020,0052) alone" in words
    assert "1 mask of no scan in this folder, left aside" in words


def test_a_bids_label_map_belongs_to_the_images_that_it_names():
    image = "sub-01/anat/sub-01_T1w.nii.gz"
    sources = [
        scan(image),
        scan("sub-02/anat/sub-02_T1w.nii.gz"),
        scan("derivatives/x/sub-01/anat/sub-01_dseg.nii.gz", "mask", refers_to=(image,)),
    ]
    assert masks.match("auto", sources, names_of(sources))[:2] == ({0: [2]}, {2})


@pytest.mark.parametrize(
    "images, mask, expected",
    [
        (["ses-1_T1w", "ses-2_T1w"], "label-lesion_dseg", []),
        (["ses-1_T1w", "ses-2_FLAIR"], "label-lesion_dseg", []),
        (["ses-1_T1w", "ses-1_FLAIR"], "label-lesion_dseg", [0, 1]),
        (["ses-1_run-1_T1w", "ses-1_run-2_T1w"], "ses-1_dseg", []),
        (["ses-1_T1w", "ses-1_run-2_T1w", "ses-1_FLAIR"], "ses-1_dseg", [0, 2]),
        (["run-1_T1w", "FLAIR"], "dseg", [0, 1]),
        (["ses-1_run-1_T1w", "ses-1_run-2_T1w"], "ses-1_run-2_dseg", [1]),
    ],
)
def test_a_bids_mask_that_does_not_say_its_session_or_run_goes_to_none_of_several(images, mask, expected):
    from scansmith.formats import bids

    listed = [scan(f"sub-01/anat/sub-01_{name}.nii.gz") for name in images]
    listed.append(scan(f"derivatives/x/sub-01/anat/sub-01_{mask}.nii.gz"))
    sources = bids.understand(listed, dict(zip([s.files[0] for s in listed], names_of(listed))), ROOT)
    found, every, words = masks.match("auto", sources, names_of(sources))
    assert found == {image: [len(images)] for image in expected} and every == {len(images)}
    vague = "1 mask of a subject with several sessions or runs without saying of which, left aside"
    assert any(line.startswith(vague) for line in words) == (not expected)


def test_a_bids_folder_is_understood_from_the_files(tmp_path):
    import nibabel

    scan_of, mask_of = np.random.default_rng(0).normal(size=(8, 8, 8)), np.eye(8)[..., None] * np.ones(8)
    for subject in ("01", "02"):
        for name, array in ((f"anat/sub-{subject}_T1w", scan_of), (f"anat/sub-{subject}_dseg", mask_of)):
            folder = tmp_path / ("derivatives/x" if "dseg" in name else ".") / f"sub-{subject}"
            (folder / "anat").mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    sources, names, found, every, _ = found_in(tmp_path)
    assert {image.split("/")[-1]: own for image, own in called(found, names).items()} == {
        f"sub-{subject}_T1w.nii.gz": [f"derivatives/x/sub-{subject}/anat/sub-{subject}_dseg.nii.gz"]
        for subject in ("01", "02")
    }
    assert len(every) == 2 and len(sources) == 4


def test_none_matches_nothing_but_masks_are_still_no_scans(tmp_path):
    sources, names = write_pictures(tmp_path, ["images/1.png", "labels/1.png"])
    sources.append(scan("s.dcm", "mask", format="dicom", root=tmp_path))
    found, every, words = masks.match("none", sources, [*names, "s.dcm"])
    assert found == {} and every == {2} and words == ("masks: none, as asked; 1 mask left aside",)


# ------------------------------------------------------------------------------------------------ what names say


@pytest.mark.parametrize(
    "names, expected",
    [
        (["images/1.png", "images/2.png", "labels/1.png", "labels/2.png"], {"images/1.png": ["labels/1.png"]}),
        (["train/images/1.png", "train/masks/1_mask.png"], {"train/images/1.png": ["train/masks/1_mask.png"]}),
        (["images/a/1.png", "masks/a/1.png"], {"images/a/1.png": ["masks/a/1.png"]}),
        (["imagesTr/p_0000.png", "labelsTr/p.png"], {"imagesTr/p_0000.png": ["labelsTr/p.png"]}),
        (["x/s.png", "x/s_mask.png"], {"x/s.png": ["x/s_mask.png"]}),
        (["example_seg_mr.png", "example_mr_sm.png"], {"example_mr_sm.png": ["example_seg_mr.png"]}),
        (
            ["p/p_flair.png", "p/p_t1.png", "p/p_seg.png"],
            {"p/p_flair.png": ["p/p_seg.png"], "p/p_t1.png": ["p/p_seg.png"]},
        ),
        (["p1/image.png", "p1/mask.png"], {"p1/image.png": ["p1/mask.png"]}),
        (["I_01L.png", "I_01L_1stHO.png", "I_01L_2ndHO.png"], {"I_01L.png": ["I_01L_1stHO.png"]}),
        (
            ["p1/ct.png", "p1/segmentations/liver.png", "p1/segmentations/spleen.png"],
            {"p1/ct.png": ["p1/segmentations/liver.png", "p1/segmentations/spleen.png"]},
        ),
    ],
)
def test_names_say_which_mask_belongs_to_which_scan(tmp_path, names, expected):
    sources, names = write_pictures(tmp_path, names)
    found, every, words = masks.match("auto", sources, names)
    for image, own in expected.items():
        assert called(found, names)[image] == own
    assert {names[mask] for mask in every} == {
        name for name in names if any(word in name.lower() for word in ("mask", "label", "seg", "ho.png"))
    }
    assert words[0].startswith(f"masks: {len(found)} scan")


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/image{}.png", "labels/label{}.png"),
        ("img{}.png", "mask{}.png"),
        ("images/{:03}.png", "masks/mask{:03}.png"),
        ("images/{:03}.png", "masks/{:03}mask.png"),
        ("ct{}.png", "seg{}.png"),
        ("images/image_{}.png", "labels/mask_{:02}.png"),
        ("images/patient_{:04}_t1.png", "labels/seg_{}.png"),
        ("a_x{}.png", "a_mask{}.png"),
        ("p{}.png", "p{}mask.png"),
    ],
)
def test_the_number_in_a_masks_name_says_its_scan(tmp_path, image, mask):
    numbers = (1, 2, 3, 10)
    sources, names = write_pictures(
        tmp_path, [image.format(k) for k in numbers] + [mask.format(k) for k in (*numbers[1:], 77)]
    )
    found, every, words = masks.match("auto", sources, names)
    assert called(found, names) == {image.format(k): [mask.format(k)] for k in numbers[1:]}
    assert len(every) == 4 and "1 mask without a scan, left aside" in words


@pytest.mark.parametrize(
    "names, words",
    [
        (["images/a.png", "images/b.png", "masks/mask1.png", "masks/mask2.png"], "2 masks that would fit several"),
        (["images/a.png", "images/b.png", "masks/mask.png"], "1 mask that would fit several scans"),
        (["ct1.png", "mr1.png", "seg1.png"], "1 mask that would fit several scans"),
        (
            [f"images/image{k}.png" for k in range(3)] + [f"labels/label{k + 1}.png" for k in range(3)],
            "3 masks with the scans' numbers but for a shift",
        ),
        (["images/1.png", "scans/1.png", "labels/1.png"], "1 mask that would fit several scans"),
        (["imagesTr/1.png", "imagesTs/1.png", "labels/1.png"], "1 mask that would fit several scans"),
    ],
)
def test_a_mask_that_would_fit_several_scans_goes_to_none_and_it_is_said(tmp_path, names, words):
    sources, names = write_pictures(tmp_path, names)
    found, every, said = masks.match("auto", sources, names)
    assert found == {} and {names[mask] for mask in every} == {
        name for name in names if "mask" in name or "label" in name or "seg" in name
    }
    assert said[0].startswith(words) and "--masks IMAGES:MASKS" in said[0]


def test_numbered_masks_of_a_folders_only_scan_are_its_observers(tmp_path):
    sources, names = write_pictures(tmp_path, ["p/scan.png", "p/mask1.png", "p/mask2.png", "q/a.png", "q/a_mask2.png"])
    found, _, words = masks.match("auto", sources, names)
    assert called(found, names) == {"p/scan.png": ["p/mask1.png"], "q/a.png": ["q/a_mask2.png"]}
    assert "1 scan with several masks, as of two observers: the first by name is taken" in words


@pytest.mark.parametrize(
    "train, test, label", [("imagesTr", "imagesTs", "labelsTr"), ("images_train", "images_test", "train_masks")]
)
def test_masks_of_the_training_folder_never_go_to_scans_of_the_test_folder(tmp_path, train, test, label):
    sources, names = write_pictures(
        tmp_path, [f"{folder}/00{k}.png" for folder in (train, test, label) for k in (1, 2)]
    )
    found, every, _ = masks.match("auto", sources, names)
    assert called(found, names) == {f"{train}/00{k}.png": [f"{label}/00{k}.png"] for k in (1, 2)}
    assert len(every) == 2


def test_of_two_scans_of_one_name_the_one_on_the_masks_grid_has_it():
    here, there = tuple(np.eye(4).ravel()), tuple((np.eye(4) + np.outer([500, 0, 0, 0], [0, 0, 0, 1])).ravel())
    sources = [
        scan("images/1.nii", affine=here),
        scan("raw/1.nii", affine=here, shape=(32, 32, 8)),
        scan("labels/1.nii", affine=here),
        scan("images/2.nii", affine=there),
        scan("labels/2.nii", affine=here, shape=(10, 10, 4)),
        scan("images/3.nii", affine=here),
        scan("labels/3.nii", affine=here, shape=(10, 10, 4)),
    ]
    pairs, suspects, doubts = masks._folder_groups(list(range(7)), sources, names_of(sources))
    assert pairs == {0: [2], 5: [6]} and suspects == {2, 4, 6}
    assert doubts == {4: masks.ELSEWHERE}


def test_a_picture_mask_of_other_proportions_is_left_aside_and_it_is_said(tmp_path):
    sources, names = write_pictures(tmp_path, ["images/1.png", "images/2.png", "labels/1.png", "labels/2.png"])
    sources[0] = scan(names[0], format="png", shape=(16, 24, 1), root=tmp_path)
    sources[1] = scan(names[1], format="png", shape=(32, 32, 1), root=tmp_path)
    found, every, words = masks.match("auto", sources, names)
    assert called(found, names) == {"images/2.png": ["labels/2.png"]} and every == {2, 3}
    assert any(line.startswith("1 mask with a scan's name but of another size") for line in words)


def test_of_two_observers_the_first_is_taken_and_it_is_said(tmp_path):
    sources, names = write_pictures(tmp_path, ["a.png", "a_2ndHO.png", "a_1stHO.png"])
    found, every, words = masks.match("auto", sources, names)
    assert found == {0: [2]} and every == {1, 2}
    assert "1 scan with several masks, as of two observers: the first by name is taken" in words


def test_scans_with_names_like_masks_stay_scans(tmp_path):
    rng = np.random.default_rng(0)
    sources, names = write_pictures(tmp_path, ["images/1.png", "labels/1.png", "b.png", "b_mask.png"])
    for name in ("labels/1.png", "b_mask.png"):
        Picture.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / name)
    found, every, words = masks.match("auto", sources, names)
    assert found == {} and every == set()
    assert all("hold no label maps, and are taken as scans" in line for line in words) and len(words) == 2


def test_masks_that_are_empty_are_masks_when_others_or_names_say_so(tmp_path):
    sources, names = write_pictures(tmp_path, [f"{kind}/{k}.png" for kind in ("images", "masks") for k in range(9)])
    for k in range(8):
        Picture.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / f"masks/{k}.png")
    assert len(masks.match("auto", sources, names)[1]) == 9
    Picture.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "masks/8.png")
    assert len(masks.match("auto", sources, names)[0]) == 9


def test_a_mask_without_its_scan_is_left_aside_and_counted(tmp_path):
    sources, names = write_pictures(tmp_path, ["images/1.png", "labels/1.png", "labels/2.png"])
    found, every, words = masks.match("auto", sources, names)
    assert found == {0: [1]} and every == {1, 2} and "1 mask without a scan, left aside" in words


def test_a_name_that_goes_on_needs_the_same_grid():
    sources = [scan("s_ct.nii"), scan("s_mr.nii", shape=(20, 20, 8)), scan("s_seg.nii")]
    pairs, suspects, doubts = masks._name_groups([0, 1, 2], sources, names_of(sources))
    assert pairs == {0: [2]} and suspects == {2} and not doubts


def test_patterns_match_without_looking_and_take_what_the_left_side_wins():
    sources = [scan("a.nii"), scan("a_x.nii"), scan("b.nii"), scan("c_x.nii"), scan("s", "mask", format="dicom")]
    found, every, words = masks.match("*.nii:*_x.nii", sources, names_of(sources))
    assert found == {0: [1]} and every == {1, 3, 4}
    assert words == ("masks: 1 scan with a mask, by name patterns", "2 masks without a scan, left aside")


@pytest.mark.parametrize("text", ["yes", "a:b:c", "*.jpg:*_mask.png"])
def test_patterns_that_match_nothing_are_refused(text):
    with pytest.raises(ValueError, match=r"expected .*masks"):
        masks.match(text, [scan("a.nii")], ["a.nii"])


# ------------------------------------------------------------------------------------------------ labels


def image(array, affine=None, known=True):
    return Image(np.asarray(array), np.eye(4) if affine is None else affine, "OT", spacing_known=known)


def square(value=1, dtype=np.uint8, shape=(12, 12, 6)):
    result = np.zeros((1, *shape), dtype)
    result[0, 3:7, 4:9, : max(1, shape[2] - 2)] = value
    return result


def test_labels_on_the_same_or_a_flipped_grid_are_exact():
    labels = np.random.default_rng(0).integers(0, 105, (1, 12, 12, 6)).astype(np.float32)
    own = masks.label_map(image(labels), image(np.zeros((1, 12, 12, 6))))
    assert own.dtype == np.uint8 and np.array_equal(own, labels[0])
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 11
    flipped = masks.label_map(image(labels), image(np.zeros((1, 12, 12, 6)), flip))
    assert np.array_equal(flipped, labels[0, ::-1])


def test_a_mask_of_some_slices_lies_where_its_affine_says():
    affine = np.eye(4)
    affine[2, 3] = 4
    labels = masks.label_map(image(square(3, shape=(12, 12, 2)), affine), image(np.zeros((1, 12, 12, 6))))
    assert not labels[..., :4].any() and (labels[3:7, 4:9, 4] == 3).all()


def test_other_grids_take_the_nearest_label_and_no_new_one_appears():
    labels = square(7) + 2 * square(1)
    fine = np.diag([0.4, 0.4, 0.4, 1.0])
    own = masks.label_map(image(labels), image(np.zeros((1, 29, 29, 14)), fine))
    assert set(np.unique(own)) == {0, 9}
    index = np.minimum(np.rint(np.arange(29) * 0.4), 11).astype(int)
    deep = np.minimum(np.rint(np.arange(14) * 0.4), 5).astype(int)
    assert (own == labels[0][np.ix_(index, index, deep)]).mean() > 0.99


def test_black_and_white_become_0_and_1_also_through_jpeg():
    clean = square(255, shape=(12, 12, 1))
    noisy = clean.astype(int)
    noisy[0, ::2, ::3] += 3 * (clean[0, ::2, ::3] == 0)
    noisy[0, 1::2] -= 4 * (clean[0, 1::2] == 255)
    fixed = image(np.zeros((1, 12, 12, 1)), known=False)
    for array in (clean, noisy.astype(np.uint8), np.repeat(clean, 3, axis=0)):
        assert np.array_equal(masks.label_map(image(array, known=False), fixed), clean[0] // 255)
    kept = clean.copy()
    kept[0, 0, 0] = 2
    assert set(np.unique(masks.label_map(image(kept, known=False), fixed))) == {0, 2, 255}  # a label and "ignore"


def test_a_picture_mask_of_half_the_size_is_scaled_by_the_nearest_pixel():
    labels = square(5, shape=(12, 12, 1))
    own = masks.label_map(image(labels, known=False), image(np.zeros((1, 24, 24, 1)), known=False))
    assert np.array_equal(own, labels[0].repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(
    "mask, words",
    [
        (image(square(0.5, np.float32)), "found values such as 0.5"),
        (image(square(1000, np.int16)), "found 0 to 1000: renumber"),
        (image(square(-1, np.int16)), "found -1 to 0"),
        (image(np.arange(144, dtype=np.uint8).reshape(1, 12, 12, 1)), "at most 32 labels in a picture, found 144"),
        (image(np.concatenate([square(), square(2), square(3)])), "found colours"),
        (image(square(), np.diag([1.0, 1.0, 1.0, 1.0]) + np.outer([100, 0, 0, 0], [0, 0, 0, 1])), "another scan"),
        (image(square(shape=(12, 6, 6)), known=False), "found 12 x 6: crop both alike"),
    ],
)
def test_what_is_no_mask_of_the_scan_is_refused_with_the_reason(mask, words):
    with pytest.raises(ValueError, match=words):
        masks.label_map(mask, image(np.zeros((1, 12, 12, 6))))


# ------------------------------------------------------------------------------------------------ real scans


def found_in(folder):
    sources, _ = formats.discover(folder)
    names = names_of(sources, folder)
    return sources, names, *masks.match("auto", sources, names)


def test_hippocampus_labels_are_found_and_lie_on_their_scans(shared_data):
    sources, names, found, every, words = found_in(shared_data / "image_to_mask_3d_hippocampus")
    assert len(found) == 70 and len(every) == 70
    assert all(called(found, names)[name] == [name.replace("images", "labels")] for name in called(found, names))
    assert words == ("masks: 70 scans with a mask, by folders such as images and labels",)
    labels = masks.label_map(formats.read(sources[found[0][0]]), formats.read(sources[0]))
    assert set(np.unique(labels)) == {0, 1, 2} and labels.shape == sources[0].shape


def test_retina_vessels_of_the_first_observer_are_found(shared_data):
    sources, names, found, every, words = found_in(shared_data / "image_to_mask_2d_retina_chase")
    assert len(found) == 28 and len(every) == 56
    assert all(own == [image.replace(".jpg", "_1stHO.png")] for image, own in called(found, names).items())
    assert "28 scans with several masks, as of two observers: the first by name is taken" in words
    first = next(iter(found))
    labels = masks.label_map(formats.read(sources[found[first][0]]), formats.read(sources[first]))
    assert set(np.unique(labels)) == {0, 1} and 0.03 < labels.mean() < 0.2


def test_totalsegmentator_labels_go_to_the_scan_on_their_grid(shared_data):
    _, names, found, _, _ = found_in(shared_data / "volume_formats")
    own = called(found, names)
    assert own["example_ct_sm.nii.gz"] == ["example_seg.nii.gz"]
    assert own["example_mr_sm.nii.gz"] == ["example_seg_mr.nii.gz"]
