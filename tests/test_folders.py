"""Two folders of scans: what belongs together and why, what is left over, and what is refused because it must be a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scansmith import prepare
from scansmith.dataset import Dataset
from scansmith.formats import Source
from scansmith.prepare import folders, pairs
from scansmith.prepare.folders import TARGET, Unrelated
from scansmith.prepare.scans import NO_PARTNER
from scansmith.prepare.write import held_out

BOX = tuple(np.eye(4).ravel().tolist())
FAR = tuple((np.eye(4) + np.outer([1, 0, 0, 0], [0, 0, 0, 500.0])).ravel().tolist())


def scan(name: str, modality: str = "OT", *, files: int = 1, affine: tuple[float, ...] | None = BOX, **rest) -> Source:
    paths = tuple(Path("/data") / (name if k == 0 else f"{name}{k}") for k in range(files))
    return Source(paths, "nifti", modality, 1, 3, (9, 9, 9), affine=affine, **rest)


def find(left: list[Source], right: list[Source], tmp_path: Path, patients=None, modality=None):
    """Pairs as (name, name), and the words; the folder of targets is there, its files are not."""
    sources = [*left, *right]
    names = [source.files[0].relative_to("/data").as_posix() for source in sources]
    names = [f"{TARGET if k >= len(left) else ''}{name}" for k, name in enumerate(names)]
    patients = patients or [f"patient:{s.patient}" if s.patient else f"scan:{n}" for s, n in zip(sources, names)]
    found, words = pairs.find(str(tmp_path), sources, patients, names, modality)
    return [(names[one], names[other].removeprefix(TARGET)) for one, other in found], words


@pytest.fixture(autouse=True)
def different(monkeypatch):
    """A file that is not there is no copy of another."""
    real = folders.filecmp.cmp
    monkeypatch.setattr(
        folders.filecmp, "cmp", lambda one, *rest, **options: one.is_file() and real(one, *rest, **options)
    )


# ------------------------------------------------------------------------------------------------ ways


@pytest.mark.parametrize(
    "left, right, expected",
    [
        (["a/1.nii.gz", "b/1.nii.gz"], ["b/1.nii", "a/1.nii"], [("a/1.nii.gz", "a/1.nii"), ("b/1.nii.gz", "b/1.nii")]),
        (["p1_MR.nii", "p2_MR.nii"], ["p2_ct.nii", "p1_ct.nii"], [("p1_MR.nii", "p1_ct.nii"), ("p2_MR.nii", "p2_ct.nii")]),
        (["1PA1/mr.nii", "1PA2/mr.nii"], ["1PA2/ct.nii"], [("1PA2/mr.nii", "1PA2/ct.nii")]),
        (["s1_soft.png", "s2_soft.png"], ["s1_sharp.png", "s2_sharp.png"], [("s1_soft.png", "s1_sharp.png"), ("s2_soft.png", "s2_sharp.png")]),
        (["noisy/a1.png"], ["clean/A1.PNG"], [("noisy/a1.png", "clean/A1.PNG")]),
    ],
)  # fmt: skip
def test_names_that_are_equal_or_differ_by_a_word_of_one_side_belong_together(tmp_path, left, right, expected):
    found, words = find([scan(name) for name in left], [scan(name) for name in right], tmp_path)
    assert found == expected
    assert words[0].startswith(f"pairs: {len(expected)} of {len(left)} source") and "names" in words[0]


def test_series_are_called_after_their_folders(tmp_path):
    found, _ = find([scan("p1/IM7", files=3)], [scan("p1/IM1", files=5), scan("p2/IM1", files=5)], tmp_path)
    assert found == [("p1/IM7", "p1/IM1")]


def test_patients_count_before_frames_before_studies_before_names(tmp_path):
    left = [scan("1.nii", patient="A", frame_of_reference="2", study="7"), scan("2.nii", patient="B")]
    right = [scan("1.nii", patient="b", frame_of_reference="2", study="7"), scan("2.nii", patient="A ")]
    found, words = find(left, right, tmp_path)
    assert found == [("1.nii", "2.nii"), ("2.nii", "1.nii")] and "by patient" in words[0]
    for known in ("frame_of_reference", "study"):
        left = [scan("1.nii", **{known: "2"}), scan("2.nii", **{known: "3"})]
        right = [scan("1.nii", **{known: "3"}), scan("2.nii", **{known: "2"})]
        found, words = find(left, right, tmp_path)
        assert found == [("1.nii", "2.nii"), ("2.nii", "1.nii")] and f"by {known.split('_')[0]}" in words[0]


def test_of_several_scans_of_a_patient_those_that_lie_alike_belong_together(tmp_path):
    left = [scan("head", patient="A"), scan("leg", patient="A", affine=FAR)]
    right = [scan("x", patient="A", affine=FAR), scan("y", patient="A"), scan("z", patient="A")]
    found, words = find(left, right, tmp_path)
    assert sorted(found) == [("head", "y"), ("leg", "x")]
    assert words[1] == "without a partner: 0 sources and 1 target, left out and listed"


def test_scans_of_two_known_patients_are_no_pair_whatever_their_names(tmp_path):
    with pytest.raises(Unrelated, match=r"--pairs.*--task unpaired"):
        find([scan("1.nii", patient="A")], [scan("1.nii", patient="B")], tmp_path)


@pytest.mark.parametrize("right", [["c.nii", "d.nii"], ["mr.nii"]])
def test_folders_without_anything_in_common_are_unrelated(tmp_path, right):
    with pytest.raises(Unrelated):
        find([scan("a.nii"), scan("ct.nii")], [scan(name) for name in right], tmp_path)


# ------------------------------------------------------------------------------------------------ refused


def test_two_scans_with_one_name_and_no_place_are_refused(tmp_path):
    left = [scan("p1_t1.png", affine=None), scan("p1_t2.png", affine=None)]
    with pytest.raises(ValueError, match=r"one partner for each scan, found 'p1_t1.png' and 'p1_t2.png'.*keep one"):
        find(left, [scan("p1_ct.png", affine=None)], tmp_path)


def test_swapped_files_and_swapped_folders_are_refused(tmp_path):
    left, right = ([scan(f"{k}.nii", one, patient=str(k)) for k, one in enumerate(kinds)] for kinds in (["MR", "MR", "CT"], ["CT", "CT", "MR"]))  # fmt: skip
    with pytest.raises(ValueError, match=r"found 1 pair of CT to MR among 2 of MR to CT \(such as '2.nii'\).*swapped"):
        find(left, right, tmp_path)
    with pytest.raises(ValueError, match=r"expected CT scans as sources and MR scans as targets.*swap the folders"):
        find(left[:2], right[:2], tmp_path, modality="CT:MR")
    assert len(find(left[:2], right[:2], tmp_path, modality="MR:CT")[0]) == 2


def test_the_same_scan_on_both_sides_is_refused(tmp_path, monkeypatch):
    left, right = [scan("1.nii"), scan("2.nii")], [scan("1.nii"), scan("2.nii", instances=("7",))]
    assert len(find(left, right, tmp_path)[0]) == 2
    monkeypatch.setattr(folders.filecmp, "cmp", lambda one, *_args, **_options: one.name == "2.nii")
    with pytest.raises(ValueError, match=r"the same one on both sides in 1 of 2 pairs \(such as '2.nii'\)"):
        find(left, right, tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the same one on both sides"):
        find([scan("1", instances=("7", "8"), files=2)], [scan("1", instances=("8",), files=3)], tmp_path)


def test_an_empty_side_is_told(tmp_path):
    with pytest.raises(ValueError, match="found 1 and 0"):
        find([scan("1.nii")], [], tmp_path)


# ------------------------------------------------------------------------------------------------ prepared


def written(folder: Path, names: list[str], sign: int) -> Path:
    """Small smooth volumes, that of one name alike in both folders but for sign and place."""
    for name in names:
        random = np.random.default_rng(sum(map(ord, name)))
        waves = [np.cos(random.uniform(1, 3) * np.linspace(0, 6, size)) for size in (20, 24, 3)]
        values = 500 + 400 * sign * waves[0][:, None, None] * waves[1][:, None] * waves[2]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([-2.0, -2, 4, 1])), folder / f"{name}.nii.gz")
    return folder


def test_prepare_takes_the_folder_of_targets_as_pairs_lists_the_rest_and_knows_what_it_held_out(tmp_path):
    names = [f"{k}/scan" for k in range(8)]
    left = written(tmp_path / "mr", [*names, "lonely/one"], 1)
    right = written(tmp_path / "ct", [*names[::-1], "zebra"], -1)
    result = prepare(left, tmp_path / "data", pairs=str(right), modality="MR:CT", workers=1)
    assert sorted((Path(entry["file"]).parent.name, entry["reason"]) for entry in result["skipped"]) == [
        ("ct", NO_PARTNER),
        ("lonely", NO_PARTNER),
    ]
    data = Dataset.open(tmp_path / "data")
    assert data.info["target"]["modality"] == "CT" and len(set(data.columns["case"].tolist())) == 8
    for row in range(len(data)):
        assert np.corrcoef(data.image(row).ravel(), data.target(row).ravel())[0, 1] < -0.99
    assert not any(word.encode() in (tmp_path / "data" / "dataset.json").read_bytes() for word in ("lonely", "zebra"))
    held = held_out(tmp_path / "data")
    cases = json.loads((tmp_path / "data.private.json").read_text())["cases"]
    of_holdout = {str(case) for case in data.columns["case"][data.rows("holdout")]}
    assert {str(file) for (file,) in held} == {cases[case]["files"][0] for case in of_holdout} and held
    assert all(file.is_relative_to(left) for (file,) in held)
    assert prepare(left, tmp_path / "data", pairs=str(right), modality="MR:CT", workers=1)["unchanged"]
    written(tmp_path / "ct", ["new"], -1)
    assert "unchanged" not in prepare(left, tmp_path / "data", pairs=str(right), modality="MR:CT", workers=1)


def test_a_folder_copied_to_the_targets_is_refused(tmp_path):
    left, right = (written(tmp_path / name, ["a", "b", "c"], 1) for name in ("mr", "ct"))
    with pytest.raises(ValueError, match="the same one on both sides in 3 of 3 pairs"):
        prepare(left, tmp_path / "data", pairs=str(right), workers=1)


def test_a_folder_within_the_other_is_refused(tmp_path):
    left = written(tmp_path / "all", ["a", "b"], 1)
    right = written(tmp_path / "all" / "ct", ["a", "b"], -1)
    for one, other in ((left, right), (right, left), (left, left)):
        with pytest.raises(ValueError, match="expected two folders side by side"):
            prepare(one, tmp_path / "data", pairs=str(other))
    with pytest.raises(ValueError, match="outside the folder"):
        prepare(right, tmp_path / "ct2" / "data", pairs=str(written(tmp_path / "ct2", ["a", "b"], -1)))
