"""Which of the found scans are used: one kind, by patient, with its pairs and masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..dataset import source_layer
from ..formats import Skipped, Source
from ..image import MODALITIES
from . import pairs as pair_sources
from . import several
from .names import plural, stem
from .overrides import Choices

NO_CHOICES = Choices()
NO_PARTNER = "no scan of the other folder belongs to it: not used"
# Words that de-identification leaves in Patient ID: all patients would become one.
PLACEHOLDERS = {
    "",
    "anon",
    "anonymous",
    "anonymised",
    "anonymized",
    "deidentified",
    "de-identified",
    "unknown",
    "none",
    "na",
    "n/a",
    "patient",
    "0",
}


@dataclass(frozen=True)
class Request:
    """What the user asked `prepare` for, besides the folders."""

    labels: str = "auto"
    pairs: str | None = None
    masks: str = "auto"
    modality: str | None = None
    max_side: int = 512
    seed: int = 0
    choices: Choices = NO_CHOICES
    volumes: bool = False  # learned from as such, from two on

    @property
    def target_folder(self) -> Path | None:
        """The folder of the targets, where one is given as pairs."""
        return Path(self.pairs) if self.pairs and Path(self.pairs).is_dir() else None


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan as the dataset takes it.

    Attributes:
        name: posix path of its first file below the folder of scans, with "#" and the first frame of a multi-frame file;
            private.
        source: the scan.
        target: the scan it is paired with, or None.
        masks: label maps of it.
        patient: what names its patient; private.
        label: its class or None.
        structures: for each mask the names of what it marks, where they have names.
        measured: whether the pair's misregistration is estimated, which takes a quarter of a second a picture.
        sources: of several sources each, None where it is missing, of which `source` is the first that is there; empty
            where there is one.
    """

    name: str
    source: Source
    target: Source | None
    masks: tuple[Source, ...]
    patient: str
    label: str | None
    measured: bool = True
    structures: tuple[tuple[str, ...], ...] = ()
    sources: tuple[Source | None, ...] = ()

    @property
    def first(self) -> int:
        """Which of several sources `source` is."""
        return next((number for number, one in enumerate(self.sources) if one is not None), 0)

    @property
    def further(self) -> tuple[Source, ...]:
        """The other sources that are there."""
        return tuple(one for one in self.sources[self.first + 1 :] if one is not None)

    @property
    def file(self) -> str:
        """Posix path of its first file below the folder of scans."""
        return self.name.rpartition("#")[0] if self.source.frames else self.name

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of scan, pair and masks."""
        others = (*self.further, *([self.target] if self.target else []), *self.masks)
        return (*self.source.files, *(file for other in others for file in other.files))


def paired(
    request: Request, every: list[Source], images: list[int], patients: Sequence[str], called: Sequence[str]
) -> tuple[list[int], dict[int, int], str | None, list[str], several.Several | None]:
    """Which sources are scans, the target of each, the modality to take, words about the pairs, and the cases of several sources."""
    if request.pairs is None:
        return images, {}, request.modality, [], None
    own = (
        [every[number] for number in images],
        [patients[number] for number in images],
        [called[number] for number in images],
    )
    cases = several.find(request.pairs, *own)
    if cases is not None:
        cases = cases.numbered(images)
        target_of = {one: target for one, (_, target) in sorted(cases.of_first().items())}
        return list(target_of), target_of, request.modality, list(cases.words), cases
    found, words = pair_sources.find(request.pairs, *own, request.modality)
    target_of = {images[source]: images[target] for source, target in found}
    return list(target_of), target_of, (request.modality or "").split(":")[0] or None, list(words), None


def partners(sources: list[int], target_of: dict[int, int], cases: several.Several | None) -> list[list[int]]:
    """The other scans of each pair or case: a list for each source and the target, itself where one is missing."""
    if not target_of:
        return []
    targets = [target_of[number] for number in sources]
    members = cases.of_first() if cases else {}
    own = [members[number][0] if cases else () for number in sources]
    further = [[number if one is None else one for one, number in zip(of_one, sources)] for of_one in zip(*own)]
    return [targets, *further]


def without_partner(
    request: Request, every: list[Source], images: list[int], target_of: dict[int, int]
) -> list[Skipped]:
    """The scans of two folders that are in no pair."""
    if request.target_folder is None:
        return []
    used = {*target_of, *target_of.values()}
    return [Skipped(every[number].files[0], NO_PARTNER) for number in images if number not in used]


def target_kind(request: Request, every: list[Source], sources: list[int], target_of: dict[int, int]) -> str | None:
    """The modality of the paired scans: one for all, the file's word or, where files do not say, the user's.

    Raises:
        ValueError: pairs of several modalities or colours.
    """
    if not target_of:
        return None
    targets = [every[target_of[number]] for number in sources]
    kinds = {(target.modality, target.channels, target.dimensions) for target in targets}
    if len(kinds) > 1:
        found = ", ".join(sorted(_name(kind) for kind in kinds))
        raise ValueError(f"expected paired scans of one kind, found {found}: narrow the pairs")
    said = (request.modality or "").partition(":")[2].upper()
    if said and said not in MODALITIES:
        raise ValueError(f"expected a modality of {', '.join(MODALITIES)} for the paired scans, got {said!r}")
    own = targets[0].modality
    return said if said and own == "OT" else own


def layers_in(scans: Sequence[Scan]) -> tuple[str, ...]:
    layers = ["images"]
    if any(scan.masks for scan in scans):
        layers.append("masks")
    if any(scan.target for scan in scans):
        layers.append("targets")
    return (*layers, *(source_layer(number) for number in range(1, len(scans[0].sources))))


def scan_name(file: str, source: Source) -> str:
    """What a scan is called: its first file, and the frame, since the stacks of a multi-frame file share it."""
    return f"{file}#{source.frames[0]}" if source.frames else file


def with_structures(scans: list[Scan], before: tuple[str, ...] | None = None) -> list[Scan]:
    """The scans with the names of what their masks mark.

    DICOM masks name their segments. Where a scan of the data set has several mask files, each file of every scan is one
    structure, named by what its file name has beyond the scan's: "liver" of segmentations/liver.nii.gz, "desc-lesion_mask"
    of sub-01_desc-lesion_mask.nii.gz beside sub-01_T1w.nii.gz. Otherwise a label map keeps its own numbers.

    Args:
        scans: all of the data set.
        before: the names in the dataset that grows: none means that label maps keep their numbers; None for a new one.
    """
    several = any(sum(not mask.segments for mask in scan.masks) > 1 for scan in scans)
    several |= any(mask.segments for scan in scans for mask in scan.masks)
    if before is not None:
        several = bool(before)

    def named(scan: Scan, mask: Source) -> tuple[str, ...]:
        return mask.segments or ((_beyond(mask, scan.source),) if several else ())

    return [replace(scan, structures=tuple(named(scan, mask) for mask in scan.masks)) for scan in scans]


def _beyond(mask: Source, image: Source) -> str:
    own, other = (re.split(r"[_. ]+", stem(source.files[0].name)) for source in (mask, image))
    return "_".join(part for part in own if part not in other) or "mask"


def segments_of(scans: Sequence[Scan], before: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of all structures: equal names get equal numbers in every patient; new ones come behind those of `before`.

    Raises:
        ValueError: more than 255 different ones.
    """
    own_names = {name for scan in scans for own in scan.structures for name in own}
    names = [*before, *sorted(own_names - set(before))]
    if len(names) > 255:
        raise ValueError(
            f"expected at most 255 different segment names in the masks, found {len(names)}: prepare with --masks none, or with fewer"
        )
    return tuple(names)


def nothing(scans: Path, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"expected scans (DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG) in {scans}, found none: check the path"
    reason, count = Counter(entry.reason for entry in skipped).most_common(1)[0]
    return f"expected scans in {scans}, found {len(skipped)} files and none of them usable; the commonest reason ({count} times): {reason}"


def images_in(source: Source) -> int:
    """How many 2-D images a scan gives, from its header: a volume is cut along the axis with the fewest voxels, nearly always."""
    return source.shape[2] if source.format == "dicom" or source.dimensions == 2 else min(source.shape)


def choose_group(
    found: list[Source], modality: str | None
) -> tuple[list[Source], bool, list[dict[str, str | int]], list[str]]:
    """The scans to use: of one modality, number of channels and dimensions, the kind with most images.

    Returns:
        the scans, whether the modality is the user's word, what is left aside, and the reasons.
    """
    wished = modality.upper() if modality else None
    if wished is not None and wished not in MODALITIES:
        raise ValueError(f"expected a modality of {', '.join(MODALITIES)}, got {modality!r}")
    images: Counter[tuple[str, int, int]] = Counter()
    scans: Counter[tuple[str, int, int]] = Counter()
    for source in found:
        kind = (source.modality, source.channels, source.dimensions)
        images[kind] += images_in(source)
        scans[kind] += 1
    matching = [kind for kind in images if wished in (None, kind[0])]
    declared = not matching and any(kind[0] == "OT" for kind in images)
    if declared:  # files such as NIfTI or PNG do not say what they are: the user's word stands
        matching = [kind for kind in images if kind[0] == "OT"]
    if not matching:
        raise ValueError(f"expected {wished} scans, found {_listing(images, scans)}")
    best = max(sorted(matching), key=lambda kind: images[kind])
    aside: list[dict[str, str | int]] = [
        {"modality": kind[0], "channels": kind[1], "dimensions": kind[2], "scans": scans[kind], "images": images[kind]}
        for kind in sorted(images)
        if kind != best
    ]
    used = [source for source in found if (source.modality, source.channels, source.dimensions) == best]
    words = f"{plural(scans[best], f'{_name(best)} scan')} with {images[best]} images" + (
        f", taken as {wished} as declared" if declared else ""
    )
    reasons = [f"used: {words}"]
    if best[0] == "OT" and best[2] == 3 and not declared:
        reasons.append(
            "the files do not say the modality: --modality CT (or MR, CR, DX) does, and CT then keeps Hounsfield units"
        )
    if aside:
        others = {kind: count for kind, count in scans.items() if kind != best}
        reasons.append(
            f"left aside: {_listing(images, others)} (one kind a dataset: the one with most images, or --modality)"
        )
    return used, declared, aside, reasons


def _name(kind: tuple[str, int, int]) -> str:
    modality, channels, dimensions = kind
    return f"{'RGB ' if channels == 3 else ''}{'' if modality == 'OT' else modality + ' '}{dimensions}-D"


def _listing(images: dict[tuple[str, int, int], int], scans: dict[tuple[str, int, int], int]) -> str:
    order = sorted(scans, key=lambda kind: (-images[kind], kind))
    return ", ".join(plural(scans[kind], f"{_name(kind)} scan") for kind in order)


def patient_keys(sources: Sequence[Source], names: Sequence[str]) -> tuple[list[str], str, str]:
    """For every scan what names its patient (private), the split level, and both in words.

    Patient ID, else the study, else the scan itself, whose slices at least stay together.
    """
    keys: list[str] = []
    for source, name in zip(sources, names):
        named = source.patient is not None and source.patient.strip().lower() not in PLACEHOLDERS
        if named:
            keys.append(f"patient:{str(source.patient).strip()}")
        elif source.study:
            keys.append(f"study:{source.study}")
        else:
            keys.append(f"scan:{name}")
    return keys, *split_level(keys, any(images_in(source) > 1 for source in sources))


def split_level(keys: Sequence[str], volumes: bool) -> tuple[str, str]:
    """The split level and its words, from what names the patients."""
    kinds = Counter(key.split(":")[0] for key in keys)
    if not kinds["scan"] and not kinds["study"]:
        return "patient", f"split by patient: {plural(len(set(keys)), 'patient')}"
    if not kinds["scan"]:
        nameless = f"Patient ID (0010,0020) is empty or a placeholder in {kinds['study']} of {len(keys)} scans"
        words = "only the scans of one study stay together; one patient's studies may lie on both sides"
        return "study", f"study-level split: {nameless}, of which {words}"
    known = len(keys) - kinds["scan"]
    who = "no patient known" if not known else f"patient unknown for {kinds['scan']} of {len(keys)} scans"
    together = ", slices of one scan stay together" if volumes else ""
    return "image", f"image-level split: {who}{together}; one patient's scans may lie on both sides"
