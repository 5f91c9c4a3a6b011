"""Class labels: from sub-folders that are classes, the user's table or a DICOM attribute; none when in doubt, and nothing private."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..formats import Source
from . import tables
from .names import locate, plural

# Folder names that say what files are for, not what they show.
ROLES = {
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "holdout",
    "images",
    "image",
    "imgs",
    "img",
    "imagestr",
    "imagests",
    "labels",
    "label",
    "labelstr",
    "masks",
    "mask",
    "seg",
    "segs",
    "segmentation",
    "segmentations",
    "data",
    "raw",
    "dicom",
    "nifti",
    "scans",
    "new",
    "old",
}
MOST_CLASSES = 50
# From this many patients on, a value of its own for each says who they are.
LEAST_OWN_VALUES = 3
LEAST_SCANS_PER_FOLDER = 5
LEAST_SCANS_PER_CLASS_ON_AVERAGE = 15
# Two or three capitalised words: Meier_Hans, "OBrien Pat", DOE^JANE.
PERSON = re.compile(r"[^\W\d_]*[A-Z][^\W\d_]+([_ ,^.-]+[A-Z][^\W\d_]*){1,2}")
KEYS = ("file", "patient", "uid", "participant_id")
PATIENTS, SCANS = (
    ("patient", "participant_id"),
    ("file", "uid"),
)  # columns that name the patient, and those that name the scan
Labels = list[str | None]


def find(
    labels: str, root: Path, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str]
) -> tuple[Labels, str]:
    """For every scan its class or None, and where the classes come from in words without anything private.

    Args:
        labels: "auto" (sub-folders that look like classes), "none", the path of a table (column label), "table.csv:column",
            or "tag:" and a DICOM keyword, for which `Source.tags` holds what `tags_needed` named.
        root: the folder of scans, for the words of errors.
        sources: the scans.
        patients: what names each scan's patient.
        names: each scan's posix path below root, of a series its first file's.

    Raises:
        ValueError: the table cannot be read or fits no scan, or its values are no classes or may identify a patient.
    """
    if labels.lower() == "none":
        return [None] * len(sources), "labels: none, as asked"
    if labels.lower() == "auto":
        return from_folders(names, sources, patients)
    if labels.lower().startswith("tag:"):
        return from_tag(tags_needed(labels)[0], sources, patients)
    return from_table(labels, root, sources, patients, names)


# ------------------------------------------------------------------------------------------------ sub-folders


def from_folders(names: Sequence[str], sources: Sequence[Source], patients: Sequence[str]) -> tuple[Labels, str]:
    """Classes from the first level of sub-folders, unless these may be patients, series, splits or the like."""
    none: Labels = [None] * len(sources)
    if any("/" not in name for name in names):
        return none, "labels: none (scans lie directly in the folder)"
    folders = [name.split("/")[0] for name in names]
    sizes = Counter(folders)
    people: defaultdict[str, set[str]] = defaultdict(set)
    for folder, patient in zip(folders, patients):
        people[folder].add(patient)
    doubt = why_not_classes(sizes, people) or private_words(sizes, sources)
    if doubt:
        return none, f"labels: none ({doubt}; to give classes: --labels TABLE.csv with columns file and label)"
    return (
        list(folders),
        f"labels: {len(sizes)} classes from the sub-folders: {', '.join(f'{name} {size}' for name, size in sorted(sizes.items()))}",
    )


def why_not_classes(sizes: dict[str, int], patients: dict[str, set[str]]) -> str | None:
    """None when sub-folders look like classes, else why they do not.

    Args:
        sizes: folder -> number of scans.
        patients: folder -> its patients.
    """
    if len(sizes) < 2:
        return "one sub-folder only"
    if len(sizes) > MOST_CLASSES or sum(sizes.values()) < LEAST_SCANS_PER_CLASS_ON_AVERAGE * len(sizes):
        return f"{len(sizes)} sub-folders for {sum(sizes.values())} scans look like patients or series"
    if min(sizes.values()) < LEAST_SCANS_PER_FOLDER:
        return f"a sub-folder with {min(sizes.values())} scans is too small for a class"
    if min(len(who) for who in patients.values()) < 2:
        return "a sub-folder with a single patient looks like a patient"
    if any(name.lower() in ROLES for name in sizes):
        return "the sub-folders' names say what the files are for, such as train or masks"
    if all(PERSON.fullmatch(name) for name in sizes):
        return "the sub-folders' names look like names of people"
    if len({re.sub(r"\d+", "#", name) for name in sizes}) == 1:
        return "numbered sub-folders look like patients"
    return None


# ------------------------------------------------------------------------------------------------ a table


def from_table(
    labels: str, root: Path, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str]
) -> tuple[Labels, str]:
    """Classes from a CSV or TSV table with one of the columns of `KEYS`; the one that names most scans is used."""
    table, column = _parts(labels)
    columns, rows = tables.read(table)
    keys = [key for key in KEYS if key in columns]
    if _patients_alone(columns) and column == "label":
        return _no_labels(table, root, patients)
    if not keys or column not in columns:
        raise ValueError(
            f"expected the columns {column} and one of {', '.join(KEYS)} in {table}, found {', '.join(columns) or 'no rows'}: rename them in the first line, or name the column of the classes as {table.name}:COLUMN; a table of file and patient alone names the patients"
        )
    named = [_named(key, column, rows, sources, patients, names) for key in keys]
    at = max(range(len(keys)), key=lambda index: len({scan for scans in named[index].values() for scan in scans}))
    key, scans = keys[at], named[at]
    found, undecided = _labelled(key, column, rows, scans, len(sources), table)
    given = [_spelled(key, row) for row in rows if row[key] and row[column]]
    unused, several = sum(name not in scans for name in given), sum(scans.get(name) == [] for name in given)
    empty = sum(bool(row[key]) and not row[column] for row in rows)
    matched = sum(label is not None for label in found)
    if not matched:
        example = next((row[key] for row in rows if row[key]), "nothing")
        raise ValueError(
            f"expected column {key!r} of {table} to name the scans, found no match among {len(rows)} rows (the first is {example!r}): give paths as they lie below {root}, in full where a file name occurs twice"
        )
    _check_column(column, f"column {column} of {table}")
    _check_classes(found, sources, patients, f"column {column} of {table}", column)
    words = [f"labels: {len(set(found) - {None})} classes from the table, matched by {key}"]
    if matched + undecided < len(sources):
        value = ", or have no value there," if empty else ""
        words.append(f"{len(sources) - matched - undecided} scans are not in it{value} and have no label")
    if undecided:
        words.append(f"{plural(undecided, 'series')} with different labels for single files without a label")
    if unused:
        words.append(f"{unused} of its {len(rows)} rows name no scan that is used")
    if several:
        words.append(
            f"{several} of its {len(rows)} rows fit several scans or folders and so none: give the path below the folder of scans in full"
        )
    return found, "; ".join(words)


def _patients_alone(columns: Sequence[str]) -> bool:
    """Whether a table says whose the scans are and nothing else."""
    named = [set(columns) & set(some) for some in (PATIENTS, SCANS)]
    return all(named) and set(columns) <= {*KEYS, ""}


def _no_labels(table: Path, root: Path, patients: Sequence[str]) -> tuple[Labels, str]:
    """No classes, from a table of patients alone; `patients_of` has taken these.

    Raises:
        ValueError: it names no scan.
    """
    known = sum(patient.startswith("patient:") for patient in patients)
    if not known:
        raise ValueError(
            f"expected {table} to name the patients of scans, found no match: give paths as they lie below {root}, in full where a file name occurs twice"
        )
    return [None] * len(
        patients
    ), f"labels: none; with the table the patients of {known} of {plural(len(patients), 'scan')} are known"


def _parts(labels: str) -> tuple[Path, str]:
    """The table and the column of the classes, in lower case."""
    path, colon, column = labels.rpartition(":")
    if colon and not Path(labels).is_file() and Path(path).is_file():
        return Path(path), column.strip().lower()
    if not Path(labels).is_file():
        raise ValueError(
            f"expected 'auto', 'none', a CSV or TSV file (TABLE.csv or TABLE.csv:COLUMN) or tag:KEYWORD as labels, found no file {labels}"
        )
    return Path(labels), "label"


def _named(
    key: str,
    column: str,
    rows: list[dict[str, str]],
    sources: Sequence[Source],
    patients: Sequence[str],
    names: Sequence[str],
) -> dict[str, list[int]]:
    """What one key column says in the rows that have a label -> the scans that it names."""
    wanted = list(dict.fromkeys(_spelled(key, row) for row in rows if row[key] and row[column]))
    return locate(wanted, sources, names) if key == "file" else _by_identifier(key, wanted, sources, patients, names)


def _labelled(
    key: str, column: str, rows: list[dict[str, str]], scans: dict[str, list[int]], count: int, table: Path
) -> tuple[Labels, int]:
    """Every scan's label, and how many series have several labels and so none."""
    given: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row[key] and row[column]:
            given[_spelled(key, row)].add(row[column])
    several = [own for own in given.values() if len(own) > 1]
    if several:
        raise ValueError(
            f"expected one label for each {key} in {table}, found {len(several[0])} different ones for one {key}, and {plural(len(several), 'such case')}: keep one row for each"
        )
    wished: defaultdict[int, set[str]] = defaultdict(set)
    for name, numbers in scans.items():
        for number in numbers:
            wished[number] |= given[name]
    found: Labels = [None] * count
    for number, own in wished.items():
        found[number] = next(iter(own)) if len(own) == 1 else None
    return found, sum(len(own) > 1 for own in wished.values())


def _by_identifier(
    key: str, wanted: Iterable[str], sources: Sequence[Source], patients: Sequence[str], names: Sequence[str]
) -> dict[str, list[int]]:
    """Identifier in the table -> the scans that carry it."""
    spelled: defaultdict[str, list[str]] = defaultdict(list)
    for name in wanted:
        spelled[_subject(name) if key == "participant_id" else name].append(name)
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, (source, patient, path) in enumerate(zip(sources, patients, names)):
        for identifier in dict.fromkeys(_identifiers(key, source, patient, path)):
            for name in spelled.get(identifier, ()):
                found[name].append(number)
    return found


def _identifiers(key: str, source: Source, patient: str, name: str) -> list[str]:
    """What a table may call a scan's patient, study, series or image."""
    if key == "uid":
        return [uid for uid in (source.study, source.series, *source.instances) if uid]
    own = [source.patient.strip()] if source.patient else []
    if key == "patient":
        return [*own, *([patient.removeprefix("patient:")] if patient.startswith("patient:") else [])]
    parts = re.split(r"[/_]", name)
    return [_subject(text) for text in [*own, *(part for part in parts if part.startswith("sub-"))]]


def _subject(text: str) -> str:
    """BIDS participant_id without its "sub-"."""
    return text.strip().removeprefix("sub-")


def patients_of(labels: str, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str]) -> list[str]:
    """What names each scan's patient, completed from the table's columns file (or uid) and patient where files do not say.

    Args:
        labels, sources, patients, names: as for `find`; keys that begin with "patient:" stay as they are.
    """
    if labels.lower() in ("auto", "none") or labels.lower().startswith("tag:"):
        return list(patients)
    columns, rows = tables.read(_parts(labels)[0])
    who = next((key for key in PATIENTS if key in columns), None)
    if who is None or not set(SCANS) & set(columns):
        return list(patients)
    result = list(patients)
    for key in ("uid", "file"):  # the file says it more exactly
        if key not in columns:
            continue
        own = {_spelled(key, row): row[who] for row in rows if row[key] and row[who]}
        scans = locate(own, sources, names) if key == "file" else _by_identifier(key, own, sources, patients, names)
        for name, numbers in scans.items():
            for number in numbers:
                if not patients[number].startswith("patient:"):
                    result[number] = f"patient:{own[name]}"
    return result


def _spelled(key: str, row: dict[str, str]) -> str:
    return row[key].replace("\\", "/") if key == "file" else row[key]


# ------------------------------------------------------------------------------------------------ a DICOM attribute

# PS3.3 value representations of codes and numbers; all others name, date, describe or identify.
CODED = {"CS", "IS", "DS", "US", "SS", "UL", "SL", "FL", "FD"}
# Short texts that the scanner writes, not a person.
SCANNER_TEXT = {
    "Manufacturer",
    "ManufacturerModelName",
    "ConvolutionKernel",
    "FilterType",
    "SequenceName",
    "PulseSequenceName",
    "ReceiveCoilName",
    "TransmitCoilName",
}
# Groups about the patient (weight, smoking, pregnancy ...), the clinical trial and the visit: table E.1-1 takes out most
# of them, also the codes and numbers.
PERSONAL_GROUPS = {0x0010, 0x0012, 0x0038}
# Table E.1-1 lists it too, but models of body parts are asked for by sex: it is taken, and said.
PERSONAL_CLASS = "PatientSex"
# Codes and numbers that the basic profile of PS3.15 table E.1-1 takes out all the same.
IDENTIFYING = re.compile(r"^GPS|^Other|^Lens|^Selector|Number$|Numbers$|ID$|InstanceOriginStatus|Institution|Station")


def tags_needed(labels: str) -> tuple[str, ...]:
    """The DICOM keywords that `formats.discover` must collect for these labels; none unless they say "tag:KEYWORD".

    Raises:
        ValueError: there is no such keyword, or the attribute may identify a patient: one that PS3.15 Annex E names, a
            date, a person, an identifier, free text or, but for the sex, what describes the patient.
    """
    if not labels.lower().startswith("tag:"):
        return ()
    from pydicom.datadict import DicomDictionary, dictionary_VR, keyword_dict

    keyword = labels[4:].strip()
    if keyword not in keyword_dict or not keyword:
        known = {name.lower(): name for name in keyword_dict}
        near = difflib.get_close_matches(keyword.lower(), known, 1, 0.6)
        hint = f"did you mean {known[near[0]]}?" if near else "for example BodyPartExamined"
        raise ValueError(f"expected a DICOM keyword after tag:, got {keyword!r}: {hint}")
    kind, retired = dictionary_VR(keyword), DicomDictionary[keyword_dict[keyword]][3] == "Retired"
    plain = kind in CODED or (kind in ("LO", "SH") and keyword in SCANNER_TEXT)
    personal = keyword_dict[keyword] >> 16 in PERSONAL_GROUPS and keyword != PERSONAL_CLASS
    if not plain or retired or personal or IDENTIFYING.search(keyword):
        raise ValueError(
            f"expected an attribute with codes or numbers as labels, got {keyword} (VR {kind}), which may name a patient, a date or a person, describe the patient or hold free text (DICOM PS3.15 Annex E): take BodyPartExamined, ViewPosition, Manufacturer or the like, or make a table of classes"
        )
    return (keyword,)


def from_tag(keyword: str, sources: Sequence[Source], patients: Sequence[str]) -> tuple[Labels, str]:
    """Classes from a DICOM attribute; codes in upper case, so that "Chest" and "CHEST" are one class."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    upper = dictionary_VR(keyword) == "CS"
    values = [" ".join(dict(source.tags).get(keyword, "").split()) for source in sources]
    found: Labels = [(value.upper() if upper else value) or None for value in values]
    number = tag_for_keyword(keyword) or 0
    name = f"{keyword} ({number >> 16:04X},{number & 0xFFFF:04X})"
    if not any(found):
        raise ValueError(f"expected scans with {name} as labels, found none that say it: give a CSV table instead")
    # The codes of an attribute that names nobody may well be different in each of a few patients.
    _check_classes(found, sources, patients, name, keyword, coded=True)
    missing = sum(label is None for label in found)
    words = f"labels: {len(set(found) - {None})} classes from DICOM {name}"
    if keyword == PERSONAL_CLASS:
        words += ", a personal attribute (PS3.15 table E.1-1) that now travels with the dataset"
    return found, words + (f"; {missing} scans do not say it and have no label" if missing else "")


# ------------------------------------------------------------------------------------------------ what is no class

# Names of columns that describe or name a person: their values travel with the dataset, whatever they look like.
PRIVATE_COLUMNS = re.compile(
    r"(^|[ _.-])("
    # who: also in German, French, Spanish, Portuguese, Italian, Dutch, Polish and the Nordic languages
    r"patients?|name|(first|last|middle|given|family|full|maiden|patient|subject)[ _.-]?names?|forenames?|surnames?|initials?|person|subjects?|"
    r"nachname|vorname|familienname|nom|pr[eé]nom|apellidos?|nombres?|sobrenome|cognome|nome|naam|achternaam|voornaam|nazwisko|imi[eę]|"
    r"efternamn|f[oö]rnamn|etternavn|efternavn|fornavn|navn|namn|"
    r"doctor|physician|radiologist|referrer|operator|arzt|hospital|institution|"
    # numbers of persons and examinations
    r"ids?|uid|identifiers?|(patient|subject|case|study|series|person|participant|record|exam)[ _.-]?(ids?|uid|number|nr|no)|mrn|ssn|accession\w*|insurance\w*|passport|"
    # when and where
    r"dob|yob|born|birth\w*|(year|date|day)of\w*|geburt\w*|geboren|jahrgang|naissance|nacimiento|nascita|"
    r"date|(birth|study|scan|exam|visit|series|acquisition)date|datetime|time|datum|fecha|"
    r"address|adresse|stra(ss|ß)e|street|zip\w*|post[ _.-]?(al[ _.-]?)?codes?|postal|postleitzahl|plz|city|"
    r"phone|telephone|tele[fp]h?on|tel|fax|mobile|e-?mail|"
    # free text
    r"comments?|notes?|remarks?|report|history|findings|impression|description|filename|path"
    r")($|[ _.-])"
)
MEASURED_COLUMNS = re.compile(r"(^|[ _.-])(age|weight|height|size|bmi|dose|volume|score)($|[ _.-])")
AGE_COLUMNS = re.compile(r"(^|[ _.-])(age|alter|edad|[aâ]ge|idade|et[aà])($|[ _.-])")
YEAR_COLUMNS = re.compile(r"(^|[ _.-])(year|jahr|ann[eé]e|a[nñ]o|anno|ano)($|[ _.-])")
YEAR = re.compile(r"19\d\d|20([0-2]\d|3[0-5])")
AGE = re.compile(r"\d{3}[YMWD]")  # VR AS
_MONTH = (
    r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|m[aä]r|mrz|mai|okt|dez|f[eé]v|avr|jui|ao[uû]|d[eé]c|ene|abr|ago|set|dic|"
    r"gen|mag|giu|lug|ott|fev|out)[^\W\d_]{0,8}\.?"
)
PRIVATE_VALUES = {
    "dates": re.compile(
        r"\b(19|20)\d\d[-/.](0?[1-9]|1[0-2])[-/.](0?[1-9]|[12]\d|3[01])\b|\b\d{1,2}[-/.]\d{1,2}[-/.](\d\d|\d{4})\b|"
        r"\b(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?!\d)|"
        r"\b(19|20)\d\d[-/.](0[1-9]|1[0-2])\b|\b(0[1-9]|1[0-2])[-/.](19|20)\d\d\b|"
        rf"\b\d{{1,2}}(st|nd|rd|th)?[ .-]*(de )?{_MONTH}[ .,-]*(de )?(\d\d|\d{{4}})\b|"
        rf"\b{_MONTH}[ .,-]*(\d{{1,2}}(st|nd|rd|th)?[ .,-]+)?(19|20)\d\d\b|\b(19|20)\d\d[ .,-]+{_MONTH}(?!\w)",
        re.IGNORECASE,
    ),
    "e-mail addresses": re.compile(r"\S@\S+\.\S"),
    "names of persons": re.compile(
        r"\w\^\w|^(dr|prof|mr|mrs|ms)\. *\w|^(dr|prof|herr|frau) +\w|"
        r"(?-i:^([^\W\d_]+[ .-]+)*[A-Z][^\W\d_]+,? +(M\.?D\.?|Ph\.?D\.?|FRCR|RN|Jr\.?|Sr\.?)$)",
        re.IGNORECASE,
    ),
    "UIDs": re.compile(r"\b\d+(\.\d+){4,}\b"),
    "phone or ID numbers": re.compile(r"\d{5}|\d(?:[ ()/.+-]?\d){6}|(?<![^\W\d_])mrn(?![^\W\d_])", re.IGNORECASE),
}
# "Meier, Hans", also of "von der Aa, H."
SURNAME_FIRST = re.compile(
    r"(?:[^\W\d_]+ ){0,2}[A-Z][^\W\d_'’]*(?:['’-]?[^\W\d_]+)*, *[A-Z][^\W\d_]*\.?(?:[ -][A-Z][^\W\d_]*\.?)*"
)


def private_words(values: Iterable[str], sources: Sequence[Source]) -> str | None:
    """Why values may identify a patient, without repeating one; None when they look like names of classes."""
    values = list(values)
    for what, pattern in PRIVATE_VALUES.items():
        if any(pattern.search(value) for value in values):
            return f"some values look like {what}"
    if all(YEAR.fullmatch(value) for value in values):
        return "the values look like years"
    if len(values) > 2 and all(AGE.fullmatch(value) for value in values):
        return "the values look like ages"
    if _people(values):
        return "the values look like names of people"
    # Patients called 1, 2, 3 say nothing about classes called 0 and 1.
    people = {word for word in (_plain(source.patient or "") for source in sources) if len(word) >= 4}
    plain = [_plain(value) for value in values]
    if any(word in people for word in plain) or any(person in word for word in plain for person in people):
        return "some values hold Patient IDs"
    return None


def _people(values: list[str]) -> bool:
    """Whether half of the values are "Surname, First name", or all two or three capitalised words that no other value has.

    Names of classes share words ("Lung, Left" and "Lung, Right") or are not all of this form.
    """
    listed = [value for value in values if SURNAME_FIRST.fullmatch(value)]
    if 2 * len(listed) >= len(values) and 2 * len({value.split(",")[0] for value in listed}) > len(listed):
        return True
    words = [word.casefold() for value in values for word in set(re.split(r"[_ ,^.-]+", value))]
    return len(values) > 1 and all(PERSON.fullmatch(value) for value in values) and len(set(words)) == len(words)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text).casefold()


def _check_column(column: str, where: str) -> None:
    if column != "label" and PRIVATE_COLUMNS.search(column):
        raise ValueError(
            f"expected classes in {where}, found a column whose name says identifier, date or free text: make a column of classes, and call it label"
        )


def _check_classes(
    found: Labels,
    sources: Sequence[Source],
    patients: Sequence[str],
    where: str,
    column: str,
    coded: bool = False,
) -> None:
    """Refuse values that name, measure or describe patients instead of classing them: they would travel with the dataset.

    Args:
        found, sources, patients: each scan's label, itself and what names its patient.
        where, column: what the values come from, in the words of errors and by name.
        coded: they are codes of an attribute that names nobody, which may be different in each of a few patients.
    """
    given = [(label, source, patient) for label, source, patient in zip(found, sources, patients) if label is not None]
    classes, scans = sorted({label for label, _, _ in given}), len(given)
    own = sum(bool(source.patient) and _plain(label) == _plain(str(source.patient)) for label, source, _ in given)
    if 2 * own > scans:
        raise ValueError(f"expected classes in {where}, found Patient IDs: give a column with few different values")
    if len(classes) == 1:
        raise ValueError(f"expected at least 2 classes in {where}, found {classes[0]!r} alone: use --labels none")
    if _measured(classes, column):
        raise ValueError(
            f"expected classes in {where}, found {len(classes)} different numbers from a measurement: make classes of them first, such as 0-40, 41-60, 61+"
        )
    # A label that stays the same within a patient says as much about the patient as there are patients.
    constant = len({(label, patient) for label, _, patient in given}) == len({patient for _, _, patient in given})
    owners = len({patient for _, _, patient in given}) if constant else scans
    if len(classes) > MOST_CLASSES or (owners >= 8 and 2 * len(classes) > owners):
        raise ValueError(
            f"expected at most {MOST_CLASSES} classes in {where}, each for several scans and patients, found {len(classes)} different values for {scans} scans: an identifier, a number or free text is no class"
        )
    if constant and len(classes) == owners >= LEAST_OWN_VALUES and not coded:
        raise ValueError(
            f"expected classes in {where}, each for several patients, found {owners} different values for {owners} patients and {scans} scans: a value of its own for each patient is a name or a number of the patient; give a column in which patients share values"
        )
    long = next((name for name in classes if len(name) > 60 or "\n" in name or len(name.split()) > 8), None)
    if long is not None:
        raise ValueError(
            f"expected short class names in {where}, found one of {len(long)} characters: free text is no class"
        )
    private = private_words(classes, sources)
    if not private and YEAR_COLUMNS.search(column) and any(YEAR.fullmatch(name) for name in classes):
        private = "some values look like years"
    if private:
        raise ValueError(
            f"expected classes in {where}, but {private}: they would travel with the dataset; give a column with few different values that say nothing about one patient, or names of classes in lower case or with an underscore"
        )


def _measured(classes: list[str], column: str) -> bool:
    """Whether the values are numbers from a scale rather than codes or grades; "045Y" is an age (VR AS)."""
    try:
        numbers = [float(re.sub(r"^(\d+)[YMWD]$", r"\1", name).replace(",", ".")) for name in classes]
    except ValueError:
        return False
    if len(numbers) > 2 and max(numbers) >= 10 and AGE_COLUMNS.search(column):
        return True
    broken, spread = any(number % 1 for number in numbers), max(numbers) - min(numbers)
    if len(numbers) <= 5:
        return False
    return broken or len(numbers) > 12 or spread > 3 * len(numbers) or bool(MEASURED_COLUMNS.search(column))
