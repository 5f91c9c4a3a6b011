"""BIDS, the Brain Imaging Data Structure (version 1.10): what its paths say of the scans in them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

from .source import Source

NAME = re.compile(r"sub-[A-Za-z0-9+]+(_[A-Za-z]+-[A-Za-z0-9+]+)*_[A-Za-z0-9]+\.nii(\.gz)?")
SUBJECT = re.compile(r"sub-[A-Za-z0-9+]+")
# Suffixes of images whose modality is known; the others (pet, eeg ...) stay as they are.
MR_SUFFIXES = {
    "T1w", "T2w", "PDw", "PD", "T2starw", "T2star", "FLAIR", "FLASH", "PDT2", "inplaneT1", "inplaneT2", "angio",
    "T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "MTsat", "T1rho", "UNIT1",
    "MP2RAGE", "MPRAGE", "MEGRE", "MESE", "VFA", "IRT1", "MPM", "MTS", "MTR", "SWI", "QSM",
    "bold", "cbv", "sbref", "dwi", "epi", "asl", "m0scan", "phasediff", "phase1", "phase2", "magnitude",
    "magnitude1", "magnitude2", "fieldmap",
}  # fmt: skip
MODALITIES = {**dict.fromkeys(MR_SUFFIXES, "MR"), "ct": "CT", "CT": "CT"}
MASK_SUFFIXES = {"dseg", "mask", "probseg", "roi", "defacemask"}
# What a label map says of itself and not of the image that it was drawn on.
MASK_ENTITIES = {"desc", "label", "atlas", "seg", "hemi", "scale"}


def entities(name: str) -> dict[str, str]:
    """The entities of a BIDS file name in its order, and "suffix"; empty for any other name.

    "sub-01_ses-02_acq-hi_T1w.nii.gz" gives {"sub": "01", "ses": "02", "acq": "hi", "suffix": "T1w"}.
    """
    if not NAME.fullmatch(name):
        return {}
    *pairs, suffix = name.partition(".")[0].split("_")
    return {**dict(pair.split("-", 1) for pair in pairs), "suffix": suffix}


def understand(sources: list[Source], names: dict[Path, str], root: Path) -> list[Source]:
    """Give NIfTI scans in a BIDS layout the patient, study, modality and role that their paths say.

    A file is in such a layout when its name is one of BIDS and starts with the subject whose folder it lies in, or
    when it lies in a folder with dataset_description.json; nothing is guessed from other names. The patient is
    "sub-01", behind the path of its data set where dataset_description.json lies below the root ("study-a/sub-01"),
    the study "sub-01/ses-02", or None without sessions. Label maps (dseg, mask, probseg, roi) have the role "mask", and
    `refers_to` holds the names of the images they were drawn on, as far as entities tell: of the same subject,
    session and further entities (without desc, label, atlas, seg, hemi, scale), in the same data set or the one that it
    is derived from; a mask in another space refers to images in that space alone.

    Args:
        sources: scans of all formats.
        names: posix path below the root of each file.
        root: the folder, whose own name may be the subject's.
    """
    described = {PurePosixPath(names[file]).parent for file in names if file.name == "dataset_description.json"}
    found: dict[int, tuple[str, dict[str, str]]] = {}
    for index, source in enumerate(sources):
        if source.format == "nifti":
            place = _place(names[source.files[0]], root.resolve().name, described)
            if place is not None:
                found[index] = place
    result = list(sources)
    images: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for index, (patient, said) in found.items():
        if said["suffix"] not in MASK_SUFFIXES:
            images[patient].append((names[sources[index].files[0]], said))
    for index, (patient, said) in found.items():
        source = sources[index]
        mask = said["suffix"] in MASK_SUFFIXES
        drawn_on = sorted(name for name, image in images[patient] if _fits(said, image)) if mask else []
        result[index] = replace(
            source,
            patient=patient,
            study=f"{patient}/ses-{said['ses']}" if "ses" in said else None,
            modality=MODALITIES.get(said["suffix"], source.modality) if source.modality == "OT" else source.modality,
            role="mask" if mask else source.role,
            refers_to=tuple(drawn_on),
        )
    return result


def _place(name: str, root: str, described: set[PurePosixPath]) -> tuple[str, dict[str, str]] | None:
    """Patient and entities of a file in a BIDS layout, else None."""
    path = PurePosixPath(name)
    said = entities(path.name)
    if not said:
        return None
    subject = f"sub-{said['sub']}"
    folders = [root, *path.parts[:-1]]
    at = [number for number, folder in enumerate(folders) if SUBJECT.fullmatch(folder)]
    if at and folders[at[0]] == subject:
        home = PurePosixPath(*folders[1 : at[0]])
    elif not at and path.parent in described:
        home = path.parent
    else:
        return None
    if "derivatives" in home.parts:  # of the data set that they were derived from
        home = PurePosixPath(*home.parts[: home.parts.index("derivatives")])
    while home.parts and home not in described:
        home = home.parent
    return (home / subject).as_posix(), said


def _fits(mask: dict[str, str], image: dict[str, str]) -> bool:
    """Whether a mask was drawn on an image, as far as their entities tell."""
    ours = {key: value for key, value in mask.items() if key not in {*MASK_ENTITIES, "suffix"}}
    theirs = {key: value for key, value in image.items() if key not in {*MASK_ENTITIES, "suffix"}}
    space = ours.pop("space", None), theirs.pop("space", None)
    if space[0] != space[1] and {*space} != {None, "orig"}:
        return False
    return all(theirs.get(key) == value for key, value in ours.items() if key not in ("res", "den"))
