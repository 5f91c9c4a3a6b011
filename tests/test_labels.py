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


def test_a_folder_in_full_means_all_below_it_and_a_shortened_one_that_lies_in_several_folders_none():
    sources = [scan(f"{p}/{s}/0.dcm", f"PID{p}", files=2) for p in (1, 2, 3) for s in (1, 2, 3)]
    sources.append(scan("4/only/0.dcm", "PID4", files=2))
    found = names.locate(["1", "2/3", "3", "only", "scans/2/1", "/x/scans/1", "gone"], sources, names_of(sources))
    assert found == {"1": [0, 1, 2], "2/3": [5], "3": [6, 7, 8], "only": [9], "scans/2/1": [3], "/x/scans/1": [0, 1, 2]}
    below = [scan(f"a/{p}/CT/0.dcm", f"PID{p}", files=2) for p in (1, 2)]
    assert names.locate(["CT", "1/CT", "a"], below, names_of(below)) == {"CT": [], "1/CT": [0], "a": [0, 1]}


def test_rows_that_fit_several_scans_label_none_and_are_counted(table):
    sources = [scan(f"g/p{p}/{s}/0.dcm", f"PID00{p}", files=2) for p in range(4) for s in (1, 2)]
    text = "file,label\n1,wrong\n" + "".join(f"p{p}/2,{'ab'[p % 2]}\n" for p in range(4))
    found, words = find(table(text), sources)
    assert found == [None, "a", None, "b"] * 2
    assert "1 of its 5 rows fit several scans or folders and so none: give the path" in words


@pytest.mark.parametrize("missing", ["n/a", "N/A", "NaN", "null", ""])
def test_what_says_that_a_value_is_missing_is_no_class_and_no_patient(table, missing):
    found, words = find(table(column(["AD", "CN", missing, "AD", "CN"] * 2)), TEN)
    assert found == ["AD", "CN", None, "AD", "CN"] * 2
    assert "2 scans are not in it, or have no value there, and have no label" in words
    sources = [scan("a.png"), scan("b.png")]
    path = table(f"file,patient,label\na.png,{missing},1\nb.png,{missing},0\n")
    assert labels.patients_of(str(path), sources, ["scan:a", "scan:b"], names_of(sources)) == ["scan:a", "scan:b"]


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
        ["Left Lung", "Right Lung"] * 5,
        ["Lung, Left", "Lung, Right"] * 5,
        ["Mild Demented", "Very Mild Demented"] * 5,
        ["Normal", "Viral Pneumonia"] * 5,
        ["march fracture", "may be malignant"] * 5,
        ["034Y", "056Y"] * 5,
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
        (["Jan 5, 1980", "March 3, 1971"] * 5, "look like dates"),
        (["5. Mai 1980", "3. Oktober 1971"] * 5, "look like dates"),
        (["5 de mayo de 1980", "x"] * 5, "look like dates"),
        (["1980-05", "x"] * 5, "look like dates"),
        (["05/1980", "x"] * 5, "look like dates"),
        (["May 1980", "x"] * 5, "look like dates"),
        (["1980", "1971"] * 5, "look like years"),
        (["034Y", "056Y", "071Y", "045Y", "034Y"] * 2, "look like ages"),
        (["MRN1234", "x"] * 5, "look like phone or ID numbers"),
        (["Smith MD", "x"] * 5, "look like names of persons"),
        (["Meier, Hans", "Huber, Anna"] * 5, "look like names of people"),
        (["O'Brien, P.", "de Vries, Jan-Willem"] * 5, "look like names of people"),
        (["Hans Meier", "Anna Huber"] * 5, "look like names of people"),
        (["a"] * 10, "found 'a' alone: use --labels none"),
    ],
)
def test_what_identifies_or_describes_a_patient_is_refused(table, values, words):
    with pytest.raises(ValueError, match=words):
        find(table(column([f'"{value}"' for value in values])), TEN)


@pytest.mark.parametrize("patients", [3, 4, 7])
def test_a_value_of_its_own_for_each_of_a_few_patients_is_refused(table, patients):
    sources = [scan(f"{p}/{k}.dcm", f"PID{p:04d}") for p in range(patients) for k in range(3)]
    own = ["Meierhofer", "Schmidlin", "Hubacher", "Kowalska", "Weberknecht", "Kochanski", "Bauernfeind"][:patients]
    rows = [f"PID{p:04d},{value}\n" for p, value in enumerate(own)]
    with pytest.raises(ValueError, match=f"{patients} different values for {patients} patients") as error:
        find(table("patient,label\n" + "".join(rows)), sources)
    assert not any(value in str(error.value) for value in own)
    shared = [f"PID{p:04d},{'ab'[p % 2]}\n" for p in range(patients)]
    assert set(find(table("patient,label\n" + "".join(shared)), sources)[0]) == {"a", "b"}


def test_codes_of_an_attribute_may_be_different_in_each_of_a_few_patients():
    sources = [scan(f"{k}.dcm", f"PID000{k}", tags=(("ViewPosition", v),)) for k, v in enumerate(("AP", "PA", "LL"))]
    assert find("tag:ViewPosition", sources)[0] == ["AP", "PA", "LL"]


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


@pytest.mark.parametrize(
    "name",
    ["patient_name", "dob", "Radiologist", "study date", "comments", "MRN", "zipcode", "PLZ", "postcode", "postal_code"]
    + ["accession", "AccessionNumber", "initials", "subject", "Nachname", "vorname", "apellido", "Nom", "prénom"]
    + ["person", "yob", "birthyear", "year_of_birth", "Jahrgang", "PatientID", "case_id", "family name", "studydate"],
)
def test_a_column_is_refused_by_its_name_too(table, name):
    path = table(column("ababababab", f"file,{name}"))
    with pytest.raises(ValueError, match="a column whose name says identifier, date or free text"):
        find(f"{path}:{name}", TEN)


@pytest.mark.parametrize("name", ["candidate", "covid", "mass", "birads", "T-stage", "thyroid", "cap", "homogeneous"])
def test_a_column_that_only_holds_the_letters_of_a_private_word_is_taken(table, name):
    path = table(column("ababababab", f"file,{name}"))
    assert find(f"{path}:{name}", TEN)[0] == list("ababababab")


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("year", ["1980", "unknown"] * 5, "look like years"),
        ("age", ["34", "56", "71", "45", "34"] * 2, "4 different numbers from a measurement"),
    ],
)
def test_years_and_a_few_ages_are_refused_by_what_the_column_is_called(table, name, values, words):
    path = table(column(values, f"file,{name}"))
    with pytest.raises(ValueError, match=words):
        find(f"{path}:{name}", TEN)
    codes = ["1", "2", "3", "1", "2"] * 2
    assert find(f"{table(column(codes, f'file,{name}'))}:{name}", TEN)[0] == codes


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


def test_sex_is_taken_as_a_class_and_said_to_be_personal():
    sources = [scan(f"{k}.dcm", tags=(("PatientSex", "MF"[k % 2]),)) for k in range(4)]
    found, words = find("tag:PatientSex", sources)
    assert found == ["M", "F", "M", "F"]
    assert "PatientSex (0010,0040), a personal attribute (PS3.15 table E.1-1) that now travels" in words
    assert (
        "personal"
        not in find("tag:Modality", [scan("a", tags=(("Modality", "CT"),)), scan("b", tags=(("Modality", "MR"),))])[1]
    )


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
PatientWeight PatientSize PatientSexNeutered SmokingStatus PregnancyStatus PatientBodyMassIndex ResponsiblePersonRole
MeasuredAPDimension PatientState ClinicalTrialTimePointID LastMenstrualDate PatientSizeCodeSequence VisitStatusID
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
