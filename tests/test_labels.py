"""Labels: from sub-folders, tables and DICOM attributes; what identifies, measures or describes is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from scansmith.formats import Source
from scansmith.prepare import labels, names, tables

ROOT = Path("/data/scans")


def scan(name, patient=None, *, files=1, **rest):
    paths = (ROOT / name, *((ROOT / name).with_name(f"{k:03d}.dcm") for k in range(1, files)))
    return Source(paths, "dicom", "CT", 1, 3, (8, 8, files), patient, **rest)


def names_of(sources):
    return [source.files[0].relative_to(ROOT).as_posix() for source in sources]


def find(text, sources, patients=None):
    called = names_of(sources)
    keys = [f"patient:{source.patient}" if source.patient else f"scan:{name}" for source, name in zip(sources, called)]
    return labels.find(str(text), ROOT, sources, patients or keys, called)


@pytest.fixture
def table(tmp_path):
    def write(text, name="t.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


TEN = [scan(f"p{k}.dcm", f"PID{k:04d}") for k in range(10)]


def column(values, head="file,label"):
    return head + "\n" + "".join(f"p{k}.dcm,{value}\n" for k, value in enumerate(values))


# ------------------------------------------------------------------------------------------------ sub-folders


def test_sub_folders_are_classes_by_their_names_inside_archives_too():
    sources = [scan(f"{kind}/scans.zip/{k}.png") for kind in ("normal", "pneumonia") for k in range(20)]
    found, words = find("auto", sources)
    assert found == ["normal"] * 20 + ["pneumonia"] * 20
    assert words == "labels: 2 classes from the sub-folders: normal 20, pneumonia 20"


@pytest.mark.parametrize("folders", [("Doe^Jane", "Roe^Rick"), ("PID-4711", "PID-4712x"), ("2020-01-31", "2021-02-03")])
def test_sub_folders_that_may_identify_are_no_classes_and_are_not_repeated(folders):
    sources = [scan(f"{folder}/{k}.png", f"PID-471{k}") for folder in folders for k in range(20)]
    found, words = find("auto", sources)
    assert set(found) == {None}
    assert not any(folder in words for folder in folders)


def test_none_gives_none():
    assert find("none", TEN) == ([None] * 10, "labels: none, as asked")


# ------------------------------------------------------------------------------------------------ tables: how they are written


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("file,label\np0.dcm,a\np1.dcm,b\n", "utf-8"),
        ('\ufeff"File";"Label"\r\n"p0.dcm";"a"\r\n\r\n"p1.dcm";"b"\r\n', "utf-8"),
        ("label\tage\tfile\na\t1\tp0.dcm\nb\t\t./p1.dcm\n", "utf-8"),
        ("sep=;\r\nfile;label;note\r\n.\\p0.dcm;a;x\r\nC:\\me\\scans\\p1.dcm;b\r\n", "utf-16"),
        ("file,label\np0.dcm,a\np0.dcm,a\np1,b\n", "utf-8"),
        ('file,label,text\np0.dcm,a,"one, ""two""\nthree"\np1.dcm,b,\n', "utf-8"),
    ],
)
def test_every_way_to_write_a_table_gives_the_same_labels(table, text, encoding):
    found, words = find(table(text, encoding=encoding), TEN[:2])
    assert found == ["a", "b"]
    assert words == "labels: 2 classes from the table, matched by file"


@pytest.mark.parametrize(
    "content, words",
    [
        (b"file,label\np0.dcm,\xe4\n", "expected a CSV table in UTF-8"),
        (b"file,label,Label\n", "'label' twice"),
        (b"", "found no rows"),
        (
            b"name,label\nx,a\n",
            "expected the columns label and one of file, patient, uid, participant_id in .* found name",
        ),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        find(tmp_path / "t.csv", TEN)


def test_a_quoted_separator_in_the_first_line_does_not_count():
    assert tables._separator(['"a,b,c,d";label\n']) == ";"


# ------------------------------------------------------------------------------------------------ tables: what they name


def test_labels_are_found_by_any_key(table):
    sources = [scan(f"sub-{k}/ct/000.dcm", f"P{k}", files=3, study=f"1.{k}", series=f"2.{k}") for k in range(4)]
    sources = [
        Source(**{**{name: getattr(source, name) for name in source.__slots__}, "instances": (f"3.{k}.1", f"3.{k}.2")})
        for k, source in enumerate(sources)
    ]
    for key, spell in {
        "file": lambda k: f"sub-{k}/ct/002.dcm",
        "File": lambda k: f"sub-{k}\\ct",
        "patient": lambda k: f"P{k}",
        "participant_id": lambda k: f"sub-{k}",
        "uid": lambda k: f"1.{k}",
        "UID": lambda k: f"2.{k}",
        "Uid": lambda k: f"3.{k}.2",
    }.items():
        text = f"{key},label\n" + "".join(f"{spell(k)},{'ab'[k % 2]}\n" for k in range(4))
        assert find(table(text), sources)[0] == ["a", "b", "a", "b"], key


def test_participants_are_found_where_the_patient_is_known_by_bids_alone(table):
    sources = [scan(f"sub-0{k}/anat/sub-0{k}_T1w.nii.gz", f"sub-0{k}") for k in (1, 2, 3)]
    path = table("participant_id\tsex\tgroup\nsub-01\tF\tcontrol\nsub-02\tM\tpatient\nsub-09\tM\tpatient\n", "p.tsv")
    found, words = find(f"{path}:group", sources)
    assert found == ["control", "patient", None]
    assert words == (
        "labels: 2 classes from the table, matched by participant_id; 1 scans are not in it and have no label; "
        "1 of its 3 rows name no scan that is used"
    )


def test_the_key_that_names_most_scans_is_used(table):
    text = "file,patient,label\n" + "".join(f"old/{k}.dcm,PID{k:04d},{'ab'[k % 2]}\n" for k in range(10))
    found, words = find(table(text), TEN)
    assert found == list("ababababab") and "matched by patient" in words


def test_a_file_name_that_occurs_twice_names_no_scan():
    sources = [
        scan("a/1.png"),
        scan("b/1.png"),
        scan("b/2.png"),
        scan("c/x/0.dcm", files=2),
        scan("c/x/9.dcm", files=2),
    ]
    found = names.locate(["1.png", "b/1.png", "2.png", "2", "c/x", "x/9.dcm", "gone"], sources, names_of(sources))
    assert found == {"1.png": [], "b/1.png": [1], "2.png": [2], "2": [2], "c/x": [3, 4], "x/9.dcm": [4]}


def test_a_series_whose_files_have_different_labels_has_none(table):
    sources = [scan("s/000.dcm", files=3), *TEN]
    text = "file,label\ns/000.dcm,a\ns/001.dcm,b\n" + "".join(f"p{k}.dcm,{'ab'[k % 2]}\n" for k in range(10))
    found, words = find(table(text), sources)
    assert found[0] is None and found[1:] == list("ababababab")
    assert words.endswith("1 series with different labels for single files without a label")


def test_two_labels_for_one_file_are_refused_without_repeating_them(table):
    with pytest.raises(ValueError, match="expected one label for each file") as error:
        find(table("file,label\np0.dcm,secret\np0.dcm,hidden\n"), TEN)
    assert "secret" not in str(error.value)


def test_patients_come_from_the_table_where_files_do_not_name_them(table):
    sources = [scan("a.png"), scan("b.png"), scan("c.png"), scan("d.dcm", "P9")]
    path = table("file,patient,label\na.png,X,1\nb.png,X,0\nd.dcm,Y,0\n")
    keys = ["scan:a.png", "scan:b.png", "scan:c.png", "patient:P9"]
    found = labels.patients_of(str(path), sources, keys, names_of(sources))
    assert found == ["patient:X", "patient:X", "scan:c.png", "patient:P9"]
    for text in ("auto", "none", "tag:Modality", str(table("file,label\na.png,1\n", "u.csv"))):
        assert labels.patients_of(text, sources, keys, names_of(sources)) == keys


# ------------------------------------------------------------------------------------------------ what is no class


@pytest.mark.parametrize(
    "values",
    [
        "0101010101",
        ["0", "1", "2", "3", "4"] * 2,
        ["normal", "Ground-glass opacity, grade 2"] * 5,
        ["T1N0", "T2N1", "T3N0", "T1N0", "T3N0"] * 2,
        ["MR brain", "ms lesion"] * 5,
        ["1.25", "2.5"] * 5,
        ["0-40", "41-60"] * 5,
    ],
)
def test_names_of_classes_codes_and_grades_are_classes(table, values):
    quoted = [f'"{value}"' for value in values]
    assert find(table(column(quoted)), TEN)[0] == list(values)


@pytest.mark.parametrize(
    "values, words",
    [
        ([f"PID{k:04d}" for k in range(10)], "found Patient IDs"),
        (["PID0003-left", "right"] * 5, "some values hold Patient IDs"),
        (["pid_0003", "x"] * 5, "some values hold Patient IDs"),
        ([f"name {k}" for k in range(10)], "found 10 different values for 10 scans"),
        (["2020-01-31", "2020-02-01"] * 5, "look like dates"),
        (["31.1.2020", "none"] * 5, "look like dates"),
        (["20200131", "none"] * 5, "look like dates"),
        (["3 Feb 2021", "none"] * 5, "look like dates"),
        (["jane@doe.org", "x"] * 5, "look like e-mail addresses"),
        (["DOE^JANE", "x"] * 5, "look like names of persons"),
        (["Dr. Nosey", "x"] * 5, "look like names of persons"),
        (["1.2.840.10008.1", "x"] * 5, "look like UIDs"),
        (["+49 30 1234567", "x"] * 5, "look like phone or ID numbers"),
        (["MRN 12", "x"] * 5, "look like phone or ID numbers"),
        (["a" * 61, "b"] * 5, "free text is no class"),
        (["one two three four five six seven eight nine", "b"] * 5, "free text is no class"),
        (["a"] * 10, "found 'a' alone: use --labels none"),
    ],
)
def test_what_identifies_or_describes_a_patient_is_refused(table, values, words):
    with pytest.raises(ValueError, match=words):
        find(table(column(values)), TEN)


@pytest.mark.parametrize(
    "values", [list(range(23, 83)), [f"{k / 7:.3f}" for k in range(60)], [f"{k:03d}Y" for k in range(20, 80)]]
)
def test_a_measurement_is_refused_and_says_to_make_classes_of_it(table, values):
    sources = [scan(f"p{k}.dcm") for k in range(60)]
    with pytest.raises(ValueError, match="60 different numbers from a measurement: make classes of them first"):
        find(table(column(values)), sources)


def test_a_label_that_every_patient_has_its_own_of_is_refused_however_many_scans():
    sources = [scan(f"{p}/{k}.dcm", f"PID{p:04d}") for p in range(10) for k in range(9)]
    with pytest.raises(ValueError, match="found 8 different values for 90 scans"):
        labels._check_classes(
            [f"class {'abcdefgh'[p % 8]}" for p in range(10) for _ in range(9)],
            sources,
            [str(source.patient) for source in sources],
            "column",
            "label",
        )
    # Nine parts of the body, each seen in all patients, are classes.
    labels._check_classes(
        [f"part {k}" for _ in range(10) for k in "abcdefghi"], sources, [str(s.patient) for s in sources], "c", "label"
    )


@pytest.mark.parametrize("name", ["patient_name", "dob", "Radiologist", "study date", "comments", "MRN"])
def test_a_column_is_refused_by_its_name_too(table, name):
    path = table(column("ababababab", f"file,{name}"))
    with pytest.raises(ValueError, match="a column whose name says identifier, date or free text"):
        find(f"{path}:{name}", TEN)


def test_another_column_is_chosen_by_name_in_any_case(table):
    path = table(column("0110101011", "file,Contrast"))
    assert find(f"{path}:contrast", TEN)[0] == list("0110101011")
    with pytest.raises(ValueError, match="expected the columns agent and one of"):
        find(f"{path}:agent", TEN)
    with pytest.raises(ValueError, match="found no file"):
        find(f"{path}x:contrast", TEN)


def test_neither_words_nor_refusals_repeat_what_identifies(table):
    secrets = [f"Mustermann{k}" for k in range(10)]
    with pytest.raises(ValueError) as error:
        find(table(column(secrets)), TEN)
    assert "Mustermann" not in str(error.value)
    _, words = find(table(column("ababababab"), "Mustermann.csv"), TEN)
    assert "Mustermann" not in words and "PID" not in words


# ------------------------------------------------------------------------------------------------ DICOM attributes


def test_a_tag_gives_classes_in_one_spelling():
    values = ["CHEST", "Chest ", "", "HEAD"] * 3
    sources = [scan(f"{k}.dcm", tags=(("BodyPartExamined", value),)) for k, value in enumerate(values)]
    sources.append(scan("x.dcm"))
    found, words = find("tag:BodyPartExamined", sources)
    assert found == ["CHEST", "CHEST", None, "HEAD"] * 3 + [None]
    assert words == (
        "labels: 2 classes from DICOM BodyPartExamined (0018,0015); 4 scans do not say it and have no label"
    )
    with pytest.raises(ValueError, match=r"expected scans with Modality \(0008,0060\) as labels, found none"):
        find("tag:Modality", sources)


def test_only_tags_ask_for_tags():
    assert labels.tags_needed("tag:BodyPartExamined") == ("BodyPartExamined",)
    assert labels.tags_needed("auto") == labels.tags_needed("t.csv:label") == ()


@pytest.mark.parametrize(
    "keyword",
    ["BodyPartExamined", "Modality", "ViewPosition", "PatientSex", "Manufacturer", "KVP", "ConvolutionKernel"],
)
def test_codes_numbers_and_what_the_scanner_writes_may_be_labels(keyword):
    assert labels.tags_needed(f"tag:{keyword}") == (keyword,)


# Of the attributes that PS3.15 table E.1-1 takes out or replaces, one or more of every kind.
PROFILE = """
AccessionNumber AcquisitionComments AcquisitionDate AcquisitionDateTime AcquisitionFieldOfViewLabel AcquisitionTime
AdditionalPatientHistory AdmissionID AdmittingDiagnosesDescription Allergies BranchOfService CassetteID
ClinicalTrialSiteID ClinicalTrialSubjectID ClinicalTrialSponsorName CommentsOnThePerformedProcedureStep ContentDate
ContrastBolusAgent CountryOfResidence CurrentPatientLocation DerivationDescription DetectorID DeviceSerialNumber
EthnicGroup FrameComments FrameOfReferenceUID GantryID GeneratorID GPSLatitudeRef IconImageSequence ImageComments
InstanceCreationDate InstanceOriginStatus InstitutionAddress InstitutionName InstitutionalDepartmentName
IssuerOfPatientID LensMake MedicalAlerts MedicalRecordLocator MilitaryRank NameOfPhysiciansReadingStudy Occupation
OperatorsName OriginalAttributesSequence OtherPatientIDs OtherPatientNames PatientAddress PatientAge PatientBirthDate
PatientBirthName PatientBirthTime PatientComments PatientID PatientInsurancePlanCodeSequence PatientMotherBirthName
PatientName PatientReligiousPreference PatientTelephoneNumbers PerformedProcedureStepDescription
PerformedProcedureStepID PerformedStationName PerformingPhysicianName PerformedStationAETitle PlateID ProtocolName
ReasonForStudy ReferringPhysicianName RegionOfResidence RequestedProcedureDescription RequestingService
ResponsiblePerson ReviewerName RetrieveAETitle ScheduledStationName SelectorASValue SeriesDate SeriesDescription
SeriesInstanceUID SeriesTime ServiceEpisodeID SOPInstanceUID SpecialNeeds StationName StudyComments StudyDate
StudyDescription StudyID StudyInstanceUID StudyTime TextString TimezoneOffsetFromUTC VisitComments PixelData
""".split()  # noqa: SIM905


@pytest.mark.parametrize("keyword", PROFILE)
def test_attributes_that_may_identify_are_refused(keyword):
    with pytest.raises(ValueError, match=f"got {keyword} .*which may name a patient"):
        labels.tags_needed(f"tag:{keyword}")


def test_a_keyword_that_does_not_exist_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"did you mean BodyPartExamined\?"):
        labels.tags_needed("tag:bodypartexamind")


# ------------------------------------------------------------------------------------------------ real scans


def test_contrast_of_real_ct_slices_is_read_from_their_table(shared_data):
    from scansmith import formats

    folder = shared_data / "chest_ct_slices_contrast_labels"
    sources, _ = formats.discover(folder)
    called = [source.files[0].relative_to(folder).as_posix() for source in sources]
    keys = [f"patient:{source.patient}" for source in sources]
    found, _ = labels.find(f"{folder / 'index.csv'}:contrast", folder, sources, keys, called)
    assert all(label == name.split("CONTRAST_")[1][0] for label, name in zip(found, called))
    for column_name, refused in (("age", "a measurement"), ("patient", "identifier")):
        with pytest.raises(ValueError, match=refused):
            labels.find(f"{folder / 'index.csv'}:{column_name}", folder, sources, keys, called)
