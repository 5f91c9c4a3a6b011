"""What lies in a folder: walking it, the index, zip archives, DICOMDIR and BIDS."""

from __future__ import annotations

import builtins
import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from scansmith import formats
from scansmith.formats import FormatError, Index, archives, bids


def png(path, value=0, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("L", size, value).save(path, "PNG")
    return path


def nifti(path, shape=(2, 3, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), path)
    return path


def png_bytes(value=0):
    stream = io.BytesIO()
    Pillow.new("L", (4, 3), value).save(stream, "PNG")
    return stream.getvalue()


def listed(found, root, unpack_into=None):
    sources, skipped = found
    return [formats.name_of(source.files[0], root, unpack_into) for source in sources], {
        formats.name_of(entry.file, root, unpack_into): entry.reason for entry in skipped
    }


# ------------------------------------------------------------------------------------------------ the folder


def test_several_processes_find_what_one_finds(tmp_path):
    for number in range(300):
        png(tmp_path / f"{number % 7}" / f"{number}.png")
    nifti(tmp_path / "v.nii.gz")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    alone = formats.discover(tmp_path)
    assert len(alone[0]) == 301 and len(alone[1]) == 1
    assert formats.discover(tmp_path, workers=2) == alone


def test_a_link_that_runs_in_a_circle_ends_and_one_that_leaves_is_told(tmp_path):
    png(tmp_path / "in" / "a.png")
    png(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    names, skipped = listed(formats.discover(tmp_path / "in"), tmp_path / "in")
    assert names == ["a.png"]
    assert set(skipped) == {"away", "self"} and "which is not followed" in skipped["away"]


def test_names_that_are_no_unicode_are_read_and_indexed(tmp_path):
    name = os.fsdecode(b"scan-\xff\xfe.png")
    png(tmp_path / name)
    nifti(tmp_path / os.fsdecode(b"v-\xe9.nii"))
    index = Index()
    sources, skipped = formats.discover(tmp_path, index=index)
    assert len(sources) == 2 and not skipped and all(formats.read(source) for source in sources)
    index.save(tmp_path / ".index")
    again = Index.load(tmp_path / ".index")
    assert again.entries == index.entries and name in again.entries


def test_a_very_deep_folder_is_walked(tmp_path):
    folder = tmp_path
    for _ in range(400):
        folder = folder / "d"
    png(folder / "a.png")
    assert len(formats.discover(tmp_path)[0]) == 1


def test_a_folder_that_cannot_be_opened_does_not_stop_the_others(tmp_path, monkeypatch):
    png(tmp_path / "a.png")
    png(tmp_path / "closed" / "b.png")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":  # root may open everything, so permissions alone do not do
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names, skipped = listed(formats.discover(tmp_path), tmp_path)
    assert names == ["a.png"] and skipped == {
        "closed": "this folder cannot be opened (Permission denied): check its permissions"
    }


def test_a_file_that_vanishes_while_it_is_listed_is_skipped_and_tried_again(tmp_path, monkeypatch):
    png(tmp_path / "a.png")
    png(tmp_path / "b.png")
    real = builtins.open

    def vanish(file, *args, **options):
        if str(file).endswith("b.png"):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return real(file, *args, **options)

    index = Index()
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", vanish)
        names, skipped = listed(formats.discover(tmp_path, index=index), tmp_path)
    assert names == ["a.png"] and "cannot be opened" in skipped["b.png"]
    assert listed(formats.discover(tmp_path, index=index), tmp_path) == (["a.png", "b.png"], {})


def test_only_the_named_files_are_looked_at(tmp_path):
    for name in ("a.png", "b.png"):
        png(tmp_path / name)
    sources, skipped = formats.discover(tmp_path, [tmp_path / "b.png", tmp_path / "gone.png"])
    assert [source.files[0].name for source in sources] == ["b.png"]
    assert [entry.file.name for entry in skipped] == ["gone.png"] and "No such file" in skipped[0].reason


def test_a_tag_that_dicom_does_not_know_is_the_users_mistake(tmp_path):
    with pytest.raises(ValueError, match="keyword of a DICOM attribute"):
        formats.discover(tmp_path, tags=("BodyPart",))


# ------------------------------------------------------------------------------------------------ the index


def test_a_grown_folder_is_listed_by_opening_its_new_files_alone(tmp_path, shared_data, monkeypatch):
    import shutil

    shutil.copytree(shared_data / "dicom_varied" / "torchio_series", tmp_path / "s")
    for name in ("a.png", "b.jpg"):
        png(tmp_path / name)
    nifti(tmp_path / "v.nii.gz")
    (tmp_path / "words").write_text("no scan")
    (tmp_path / "README.md").write_text("words")
    index = Index()
    found = formats.discover(tmp_path, index=index)
    assert index.opened == sum(1 for path in tmp_path.rglob("*") if path.is_file())
    index.save(tmp_path / ".index")
    index = Index.load(tmp_path / ".index")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", lambda *_, **__: pytest.fail("a known file was opened"))
        assert formats.discover(tmp_path, index=index) == found
    assert index.opened == 0
    png(tmp_path / "c.png")
    more, _ = formats.discover(tmp_path, index=index)
    assert index.opened == 1 and len(more) == len(found[0]) + 1


def test_a_changed_or_removed_file_is_not_taken_from_the_index(tmp_path):
    path, index = png(tmp_path / "a.png"), Index()
    png(tmp_path / "b.png")
    formats.discover(tmp_path, index=index)
    png(path, size=(9, 9))
    (tmp_path / "b.png").unlink()
    (source,), _ = formats.discover(tmp_path, index=index)
    assert source.shape == (9, 9, 1) and index.opened == 3 and set(index.entries) == {"a.png"}
    earlier = path.stat()
    png(path, size=(9, 9), value=7)
    os.utime(path, ns=(earlier.st_atime_ns, earlier.st_mtime_ns + 1))
    formats.discover(tmp_path, index=index)
    assert index.opened == 4


def test_other_tags_or_a_broken_index_are_read_anew(tmp_path):
    png(tmp_path / "a.png")
    index = Index()
    formats.discover(tmp_path, index=index)
    formats.discover(tmp_path, index=index, tags=("BodyPartExamined",))
    assert index.opened == 2
    index.save(tmp_path / ".index")
    assert Index.load(tmp_path / ".index") == Index(("BodyPartExamined",), index.entries)
    whole = (tmp_path / ".index").read_text()
    for broken in (
        whole[:-3],
        whole.splitlines()[0] + "\n",
        "",
        "[]\n" + whole,
        whole.replace('"version"', '"v"'),
        whole.replace("BodyPartExamined", "\xff"),
        whole.replace('"version": "', '"version": "0'),
    ):
        (tmp_path / ".index").write_text(broken)
        assert Index.load(tmp_path / ".index") == Index()
    assert Index.load(tmp_path / "nowhere") == Index()


# ------------------------------------------------------------------------------------------------ zip archives


def archive(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as opened:
        for name, data in members:
            opened.writestr(name, data)
    return path


def test_a_zip_is_skipped_unless_there_is_a_place_to_unpack_it(tmp_path):
    archive(tmp_path / "a.zip", [("x.png", png_bytes())])
    assert "zip archive: unpack it first" in formats.discover(tmp_path)[1][0].reason


def test_members_are_scans_below_the_name_of_their_archive(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    png(scans / "a.png")
    archive(
        scans / "sub" / "b.zip", [("series/1.png", png_bytes()), ("series/2.png", png_bytes()), (".DS_Store", b"x")]
    )
    index = Index()
    found = formats.discover(scans, unpack_into=place, index=index)
    assert listed(found, scans, place) == (["a.png", "sub/b.zip/series/1.png", "sub/b.zip/series/2.png"], {})
    assert set(index.entries) == {"a.png", "sub/b.zip", "sub/b.zip/series/1.png", "sub/b.zip/series/2.png"}
    assert np.array_equal(formats.read(found[0][1]).array, formats.read(found[0][0]).array)
    opened = index.opened
    assert formats.discover(scans, unpack_into=place, index=index) == found and index.opened == opened
    (source,), _ = formats.discover(
        archive(tmp_path / "alone.zip", [("x.png", png_bytes())]), unpack_into=tmp_path / "other"
    )
    assert formats.name_of(source.files[0], tmp_path / "alone.zip", tmp_path / "other") == "alone.zip/x.png"


def test_a_place_to_unpack_inside_the_folder_is_not_listed_twice(tmp_path):
    archive(tmp_path / "a.zip", [("x.png", png_bytes())])
    for _ in range(2):
        found = formats.discover(tmp_path, unpack_into=tmp_path / "unpacked")
        assert listed(found, tmp_path, tmp_path / "unpacked") == (["a.zip/x.png"], {})


def test_a_zip_that_was_unpacked_is_left_until_it_changes(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    archive(scans / "a.zip", [("x.png", png_bytes()), ("../y.png", png_bytes())])
    first = formats.discover(scans, unpack_into=place)
    inode = (place / "a.zip" / "x.png").stat().st_ino
    assert formats.discover(scans, unpack_into=place) == first and len(first[1]) == 1
    assert (place / "a.zip" / "x.png").stat().st_ino == inode
    archive(scans / "a.zip", [("z.png", png_bytes())])
    assert listed(formats.discover(scans, unpack_into=place), scans, place) == (["a.zip/z.png"], {})


def test_an_unpacking_that_was_killed_is_done_anew(tmp_path, monkeypatch):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    archive(scans / "a.zip", [(f"{number}.png", png_bytes()) for number in range(5)])
    real, calls = archives._copy, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_copy", killed)
        with pytest.raises(KeyboardInterrupt):
            formats.discover(scans, unpack_into=place)
    assert not (place / "a.zip").exists()
    assert len(formats.discover(scans, unpack_into=place)[0]) == 5
    assert sorted(path.name for path in place.iterdir()) == ["a.zip"]


def test_a_folder_that_is_in_the_way_is_left_alone(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    archive(scans / "a.zip", [("x.png", png_bytes())])
    png(place / "a.zip" / "mine.png")
    sources, (entry,) = formats.discover(scans, unpack_into=place)
    assert not sources and "holds something else" in entry.reason and (place / "a.zip" / "mine.png").exists()


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/x.png", "C:/x.png", "c:x.png", "..\\x.png", "\\x.png", "a\\..\\..\\x.png"]
)
def test_a_member_that_climbs_out_is_refused_and_the_others_come(tmp_path, name):
    scans, place = tmp_path / "scans", tmp_path / "in" / "unpacked"
    archive(scans / "a.zip", [(name, png_bytes()), ("good.png", png_bytes())])
    names, skipped = listed(formats.discover(scans, unpack_into=place), scans, place)
    assert names == ["a.zip/good.png"]
    assert skipped == {
        "a.zip": "a zip archive with 1 member whose path is absolute or climbs out of the archive: left out"
    }
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["good.png"]


def test_links_encrypted_and_repeated_members_are_refused(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(
            scans / "a.zip",
            [
                (link, "/etc/passwd"),
                ("a.png", png_bytes(1)),
                ("a.png", png_bytes(2)),
                ("a.png/b.png", png_bytes(3)),
                ("a/secret.png", png_bytes()),
                ("x" * 300 + ".png", png_bytes()),
                ("inner.zip", b"PK\x03\x04"),
            ],
        )
    data = bytearray(path.read_bytes())
    for mark, at in [(b"PK\x03\x04", 30), (b"PK\x01\x02", 46)]:  # set the bit that says encrypted
        place_of = data.find(b"a/secret.png", data.find(mark)) if at == 30 else data.rfind(b"a/secret.png")
        data[place_of - at + (6 if at == 30 else 8)] |= 1
    path.write_bytes(data)
    sources, skipped = formats.discover(scans, unpack_into=place)
    assert [formats.name_of(source.files[0], scans, place) for source in sources] == ["a.zip/a.png"]
    assert formats.read(sources[0]).array.max() == 1
    assert sorted(entry.reason for entry in skipped) == [
        "a zip archive with 1 member of a name that this disk cannot hold: left out",
        "a zip archive with 1 member that are encrypted: unpack it first",
        "a zip archive with 1 member that are links or devices: left out",
        "a zip archive with 2 members of a name that came before: left out",
        "expected a scan, found a zip archive: unpack it first",
    ]


def test_a_zip_bomb_is_refused_by_its_claim_its_ratio_and_its_overlap(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    honest = archive(scans / "zeros.zip", [("zeros.raw", bytes(2**22))]).read_bytes()
    claims = bytearray(archive(scans / "claims.zip", [("x", bytes(1000))]).read_bytes())
    for mark, at in [(b"PK\x03\x04", 22), (b"PK\x01\x02", 24)]:
        start = claims.find(mark) + at
        claims[start : start + 4] = struct.pack("<I", 2**31)
    (scans / "claims.zip").write_bytes(claims)
    # One stream of zeros that a hundred directory entries share.
    (scans / "overlap.zip").write_bytes(shared_stream(honest, 100))
    lies = bytearray(honest)
    for mark, at in [(b"PK\x03\x04", 22), (b"PK\x01\x02", 24)]:
        start = lies.find(mark) + at
        lies[start : start + 4] = struct.pack("<I", 1000)
    (scans / "lies.zip").write_bytes(lies)
    _, skipped = listed(formats.discover(scans, unpack_into=place), scans, place)
    assert "as in a zip bomb" in skipped["claims.zip"] and "overlapping members" in skipped["overlap.zip"]
    assert "that are broken (checksum" in skipped["lies.zip"]
    assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) < 2**22 + 2**12


def test_an_archive_that_grows_two_hundred_times_is_refused_alone_and_in_sum_where_that_is_much(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    zeros, noise = bytes(2**20), np.random.default_rng(0).bytes(2**20)
    scans.mkdir()
    # 105 MB of zeros as one member, 105 members of 1 MB, and the one beside noise that makes the whole look honest.
    for name, members, beside in (("one", 1, b""), ("many", 105, b""), ("hidden", 1, noise)):
        with zipfile.ZipFile(scans / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
            for number in range(members):
                with opened.open(f"{number}.raw", "w") as member:
                    for _ in range(105 // members):
                        member.write(zeros)
            if beside:
                opened.writestr("noise.raw", beside)
    archive(scans / "small.zip", [("zeros.raw", zeros)])
    _, skipped = listed(formats.discover(scans, unpack_into=place), scans, place)
    assert all("expected at most 200 times its" in skipped[f"{name}.zip"] for name in ("one", "many"))
    assert "1 member that unpack to more than 100 MB and 200 times" in skipped["hidden.zip"]
    assert "unpack it yourself if you trust it" in skipped["hidden.zip"] and "small.zip" not in skipped
    sizes = {path.name: path.stat().st_size for path in place.rglob("*.raw")}
    assert sizes == {"noise.raw": 2**20, "zeros.raw": 2**20}


def shared_stream(data, times):
    """A zip archive of one member, whose directory names it many times."""
    directory = data.find(b"PK\x01\x02")
    end = data.find(b"PK\x05\x06")
    entries = data[directory:end] * times
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, times, times, len(entries), directory, 0)
    return data[:directory] + entries + tail


def test_a_full_disk_leaves_a_zip_out_for_now(tmp_path, monkeypatch):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    archive(scans / "a.zip", [("x.png", png_bytes())])
    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30})())
        _, (entry,) = formats.discover(scans, unpack_into=place)
    assert "1.0 GB free on the disk" in entry.reason
    assert len(formats.discover(scans, unpack_into=place)[0]) == 1


def test_a_broken_zip_or_member_never_stops_the_folder(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    png(scans / "a.png")
    data = archive(scans / "b.zip", [("x.png", png_bytes()), ("y.png", png_bytes(9))]).read_bytes()
    (scans / "cut.zip").write_bytes(data[: len(data) // 2])
    broken = bytearray(data)
    broken[data.find(b"x.png") + 20] ^= 0xFF
    (scans / "b.zip").write_bytes(broken)
    (scans / "none.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (scans / "bz.zip").write_bytes(
        archive(tmp_path / "z", [("x.png", png_bytes())], compression=zipfile.ZIP_BZIP2).read_bytes()
    )
    names, skipped = listed(formats.discover(scans, unpack_into=place), scans, place)
    assert names == ["a.png", "b.zip/y.png"]
    assert "1 member that are broken" in skipped["b.zip"] and "readable zip archive" in skipped["cut.zip"]
    assert "otherwise than by deflate" in skipped["bz.zip"]


def test_names_of_old_and_new_zips_are_kept(tmp_path):
    scans, place = tmp_path / "scans", tmp_path / "unpacked"
    archive(scans / "a.zip", [("M\u00fcller/\u4e2d.png", png_bytes()), ("e\u0301.png", png_bytes())])
    sources, skipped = formats.discover(scans, unpack_into=place)
    assert not skipped
    assert [formats.name_of(source.files[0], scans, place) for source in sources] == [
        "a.zip/M\u00fcller/\u4e2d.png",
        "a.zip/\u00e9.png",
    ]


# ------------------------------------------------------------------------------------------------ DICOMDIR


def dicomdir(path, names, length=None):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    records = []
    for name in names:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedFileID = name.split("/")
        records.append(record)
    dataset.DirectoryRecordSequence = records
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def test_a_dicomdir_is_silent_when_complete_and_counts_what_is_missing(tmp_path):
    dicomdir(tmp_path / "cd" / "DICOMDIR", ["IMAGES/IM1", "IMAGES/IM2", "IMAGES/IM3", "OTHER/IM4"])
    png(tmp_path / "cd" / "IMAGES" / "IM1")
    png(tmp_path / "cd" / "images" / "im2")
    png(tmp_path / "cd" / "IMAGES" / "IM3")
    sources, (entry,) = formats.discover(tmp_path)
    assert len(sources) == 3
    assert entry.file.name == "DICOMDIR" and "names 1 file that is not there" in entry.reason
    png(tmp_path / "cd" / "OTHER" / "IM4")
    assert not formats.discover(tmp_path)[1]


def test_a_broken_dicomdir_is_no_matter(tmp_path):
    dicomdir(tmp_path / "DICOMDIR", ["IM1"])
    data = (tmp_path / "DICOMDIR").read_bytes()
    png(tmp_path / "IM1")
    rng = np.random.default_rng(0)
    for _ in range(50):
        broken = bytearray(data[: rng.integers(300, len(data))])
        broken[rng.integers(300, len(broken)) if len(broken) > 300 else 299] ^= 0xFF
        (tmp_path / "DICOMDIR").write_bytes(broken)
        assert len(formats.discover(tmp_path)[0]) == 1


# ------------------------------------------------------------------------------------------------ BIDS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_T1w.nii.gz", {"sub": "01", "suffix": "T1w"}),
        ("sub-01_ses-02_acq-hi_T1w.nii", {"sub": "01", "ses": "02", "acq": "hi", "suffix": "T1w"}),
        ("sub-01.nii.gz", {}),
        ("sub-01_T1w.png", {}),
        ("xsub-01_T1w.nii", {}),
        ("sub-a b_T1w.nii", {}),
    ],
)
def test_bids_entities_are_read_off_a_name(name, expected):
    assert bids.entities(name) == expected


def test_a_bids_layout_says_patient_session_modality_and_masks(tmp_path):
    root = tmp_path / "ds"
    for name in (
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_acq-hi_FLAIR.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/ct/sub-02_ct.nii.gz",
        "sub-02/pet/sub-02_pet.nii.gz",
        "derivatives/net/sub-01/ses-a/anat/sub-01_ses-a_acq-hi_desc-lesion_mask.nii.gz",
        "derivatives/net/sub-02/anat/sub-02_space-orig_dseg.nii.gz",
        "derivatives/net/sub-02/anat/sub-02_space-MNI_desc-brain_mask.nii.gz",
        "derivatives/net/sub-02/anat/sub-02_space-MNI_T1w.nii.gz",
        "sub-03/anat/sub-04_T1w.nii.gz",
        "other/subject01_T1w.nii.gz",
    ):
        nifti(root / name)
    nifti(root / "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz", (2, 3, 4, 5))
    (root / "dataset_description.json").write_text("{}")
    (root / "participants.tsv").write_text("participant_id\tsex\n")
    sources, skipped = formats.discover(root)
    said = {
        formats.name_of(source.files[0], root).rsplit("/")[-1].partition(".")[0]: (
            source.patient,
            source.study,
            source.modality,
            source.role,
            tuple(name.rsplit("/")[-1].partition(".")[0] for name in source.refers_to),
        )
        for source in sources
    }
    assert said == {
        "sub-01_ses-a_T1w": ("sub-01", "sub-01/ses-a", "MR", "image", ()),
        "sub-01_ses-a_acq-hi_FLAIR": ("sub-01", "sub-01/ses-a", "MR", "image", ()),
        "sub-01_ses-b_T1w": ("sub-01", "sub-01/ses-b", "MR", "image", ()),
        "sub-02_T1w": ("sub-02", None, "MR", "image", ()),
        "sub-02_ct": ("sub-02", None, "CT", "image", ()),
        "sub-02_pet": ("sub-02", None, "OT", "image", ()),
        "sub-01_ses-a_acq-hi_desc-lesion_mask": (
            "sub-01",
            "sub-01/ses-a",
            "OT",
            "mask",
            ("sub-01_ses-a_acq-hi_FLAIR",),
        ),
        "sub-02_space-orig_dseg": ("sub-02", None, "OT", "mask", ("sub-02_T1w", "sub-02_ct", "sub-02_pet")),
        "sub-02_space-MNI_desc-brain_mask": ("sub-02", None, "OT", "mask", ("sub-02_space-MNI_T1w",)),
        "sub-02_space-MNI_T1w": ("sub-02", None, "MR", "image", ()),
        "sub-04_T1w": (None, None, "OT", "image", ()),
        "subject01_T1w": (None, None, "OT", "image", ()),
    }
    assert [entry.file.name for entry in skipped] == ["sub-01_ses-a_task-rest_bold.nii.gz"]
    assert "4-D" in skipped[0].reason
    refers = next(source.refers_to for source in sources if source.files[0].name.endswith("lesion_mask.nii.gz"))
    assert refers == ("sub-01/ses-a/anat/sub-01_ses-a_acq-hi_FLAIR.nii.gz",)


def test_subjects_of_two_data_sets_are_two_patients_and_a_subject_alone_is_one(tmp_path):
    for part in ("one", "two"):
        nifti(tmp_path / part / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
        (tmp_path / part / "dataset_description.json").write_text("{}")
    assert [source.patient for source in formats.discover(tmp_path)[0]] == ["one/sub-01", "two/sub-01"]
    (source,), _ = formats.discover(tmp_path / "one" / "sub-01")
    assert source.patient == "sub-01"
    nifti(tmp_path / "flat" / "sub-07_T1w.nii.gz")
    assert formats.discover(tmp_path / "flat")[0][0].patient is None
    (tmp_path / "flat" / "dataset_description.json").write_text("{}")
    assert formats.discover(tmp_path / "flat")[0][0].patient == "sub-07"


def test_a_mask_needs_an_image_whose_place_is_known(tmp_path):
    (picture,), _ = formats.discover(png(tmp_path / "a.png"))
    with pytest.raises(FormatError, match="place in the patient"):
        formats.read_mask(picture, picture)
