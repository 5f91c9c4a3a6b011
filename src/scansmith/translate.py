"""Verb `translate`: scans -> scans of another kind, voxel by voxel in their place, in units, with bounds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from .formats import Skipped, Source
    from .image import Image
    from .model import Model
    from .translator import Ready

    Case = tuple[Source | None, ...]

# What is written beside a translation: name in `Translated.maps` -> what it is.
MAPS = {"lower": "lower bound", "upper": "upper bound", "trust": "trust map", "confidence": "confidence map"}
# What the names of a translation and its maps end with.
KINDS_OF_FILES = ("", *(f"-{what}" for what in MAPS))
SUFFIXES = ("nii", "nrrd", "nhdr", "mha", "mhd", "hdr", "img", "dcm", "ima", "png", "jpg", "jpeg", "tif", "tiff")
ENDS = 2**16  # bytes of a file that tell it from others
# What is said of label maps in place of a modality, and what a translation is called.
KINDS = {"mask": "label map"}
COLOURS = {1: "a grey scan with one channel", 3: "colours with three channels"}
WHAT = {"image": "translated image", "mask": "label map"}


def translate(
    model: Path, scans: Path, out: Path, *, maps: bool = True, force: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Turn scans into the kind that the model learned, voxel by voxel in their place, in the format of their files.

    A DICOM series becomes a new series of the same patient and study that refers to its source; NIfTI, NRRD and MetaImage
    files keep their place to the bit; pictures become PNG. CT comes in HU. A scan unlike those that the model learned from is
    refused. One scan that cannot be translated never stops the others. Not for diagnosis.

    Args:
        model: model folder of a training on pairs (RUN/model).
        scans: folder of scans of the source's kind, or one file.
        out: folder for the translations; what this model has translated into it before is not translated again.
        maps: a lower and an upper bound and a trust map are written, too, in DICOM as Parametric Maps; without, the scans alone.
        force: translate also what is refused; the files say so.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"out", "count", "model", "maps", "promise", "files", "skipped"}.

    Raises:
        ValueError: a model that makes scans, or no scan that can be translated.
    """
    return translate_files(Path(model), Path(scans), None, Path(out), maps, force, device)


def translate_files(
    model: Path, scans: Path, only: Sequence[Path] | None, out: Path, maps: bool, force: bool, device: str
) -> dict[str, Any]:
    """`translate` for those files of the folder alone; None takes all."""
    from . import formats
    from .model import load
    from .runtime import Progress, choose_device
    from .translator import promise

    opened = load(model)
    if "translation" not in opened.config:
        raise ValueError(f"expected a model that translates in {model}, found one that makes scans: use synthesize")
    chosen = choose_device(device)
    opened.generator.to(chosen)
    found, skipped = formats.discover(scans, only)
    if out.resolve() == scans.resolve():
        raise ValueError(
            f"expected a folder for translations apart from the scans, found {out} for both: choose another folder"
        )
    if out.resolve().is_relative_to(scans.resolve()):
        found = [source for source in found if not source.files[0].resolve().is_relative_to(out.resolve())]
    sources = found
    if opened.config["translation"]["input"] != "mask":
        masks = [source for source in sources if source.role == "mask"]
        skipped += [formats.Skipped(mask.files[0], "a mask, not a scan: left out") for mask in masks]
        sources = [source for source in sources if source.role == "image"]
    record = Record.open(out, opened.hash, maps, promise(opened))
    written: dict[str, list[str]] = {}
    cases, alone = cases_of(opened, sources)
    skipped += alone
    sources = [next(one for one in case if one is not None) for case in cases]
    names = names_of(sources, scans)
    missing: dict[str, list[str]] = {}
    with Progress("translating", len(sources), "scans") as progress:
        for number, (name, source, case) in enumerate(zip(names, sources, cases), 1):
            try:
                earlier = record.begin(name, "-".join(fingerprint(one) if one else "none" for one in case))
                if earlier is None:
                    record.end(name, one_scan(opened, source, out, name, maps, force, chosen, case))
                written[name] = record.files[name]
                missing |= {name: gone} if (gone := names_missing(opened, case)) else {}
            except (ValueError, OSError) as error:
                skipped.append(formats.Skipped(source.files[0], str(error)))
            except (MemoryError, RuntimeError) as error:
                skipped.append(formats.Skipped(source.files[0], failed(error, source)))
            progress.update(number)
    listed = [f"{below(entry.file, scans)}: {entry.reason}" for entry in skipped]
    if not written:
        raise ValueError(
            f"expected scans to translate in {scans}, found none that can be: {listed[0] if listed else 'it is empty'}"
        )
    several = {"missing": missing} if "sources" in opened.config["translation"] else {}
    record.save(skipped=listed, **several)
    said = {"model": opened.hash, "maps": maps, "promise": record.promise, "files": written, "skipped": listed}
    return {"out": str(out), "count": len(written), **said, **several}


def cases_of(model: Model, sources: Sequence[Source]) -> tuple[list[Case], list[Skipped]]:
    """The scans that are translated together, in the order of the model's sources, and those of no case; of one source each scan by itself."""
    from .formats import Skipped
    from .patterns import cases

    about = model.config["translation"].get("sources")
    if about is None:
        return [(source,) for source in sources], []
    found = cases(about, sources, [source.files[0].absolute().as_posix() for source in sources])
    together = [tuple(None if one is None else sources[one] for one in case) for case in found.cases]
    return together, [Skipped(sources[scan].files[0], reason) for scan, reason in found.left]


def names_missing(model: Model, case: Case) -> list[str]:
    """What the sources are called that a case lacks."""
    about = model.config["translation"].get("sources", [])
    return [str(one["name"]) for one, source in zip(about, case) if source is None]


def failed(error: Exception, source: Source) -> str:
    """What is said of a scan whose translation broke off, for want of memory most often."""
    from .formats.source import explain

    words = explain(error, source.files)
    if isinstance(error, MemoryError) or "memory" in words.lower():
        return f"expected enough memory for {' x '.join(map(str, source.shape))} voxels, found too little ({words}): cut the scan into parts, or use another device or machine"
    return f"expected that the model can be applied to it, found {words}: tell the maker of the model"


# ------------------------------------------------------------------------------------------------ what is written


@dataclass
class Record:
    """`translated.json`: what lies in the folder of translations, so that the same command goes on and overwrites nothing.

    Attributes:
        out: the folder.
        model, maps, promise: of all translations in it.
        files: name -> its files below the folder.
        sources: name -> `fingerprint` of what it was made of.
        begun: name that was being translated; what lies there is not whole.
    """

    out: Path
    model: str
    maps: bool
    promise: str
    files: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    begun: str | None = None

    @classmethod
    def open(cls, out: Path, model: str, maps: bool, promise: str) -> Record:
        """
        Raises:
            ValueError: translations by another model, or with other maps.
        """
        made, file = cls(out, model, maps, promise), out / "translated.json"
        if not file.is_file():
            return made
        found = json.loads(file.read_text())
        if found["model"] != model or found["maps"] != maps:
            raise ValueError(
                f"expected an empty folder or one of model {model} with the same maps, found translations by {found['model']} in {out}: choose another folder"
            )
        return replace(made, files=found["files"], sources=found.get("sources", {}), begun=found.get("begun"))

    def begin(self, name: str, source: str) -> list[str] | None:
        """The files of a scan that is translated already; None when its place is free now.

        Raises:
            ValueError: something else lies there.
        """
        whole = name in self.files and all((self.out / file).is_file() for file in self.files[name])
        if whole and self.sources.get(name) == source:
            return self.files[name]
        if name == self.begun or (name in self.files and self.sources.get(name) == source):
            self.clear(name)
        there = self.lying(name)
        if there:
            raise ValueError(
                f"expected nothing at {there[0].relative_to(self.out)} in {self.out}, found a file or folder that is no translation of this scan: choose another folder"
            )
        self.begun, self.sources[name] = name, source
        self.save()
        return None

    def end(self, name: str, files: list[str]) -> None:
        """The scan is translated."""
        self.files[name], self.begun = files, None
        self.save()

    def lying(self, name: str) -> list[Path]:
        """What lies where a scan's translation and its maps go."""
        place = self.out / name
        found = place.parent.iterdir() if place.parent.is_dir() else ()
        ours = [f"{place.name}{kind}" for kind in KINDS_OF_FILES]
        return sorted(
            path for path in found if path.name in ours or path.name.removesuffix(".gz").rpartition(".")[0] in ours
        )

    def clear(self, name: str) -> None:
        """Remove what is left of a translation that is not whole, unless another's lies within."""
        others = [self.out / file for own, files in self.files.items() if own != name for file in files]
        for path in self.lying(name):
            if not any(other.is_relative_to(path) for other in others):
                rmtree(path) if path.is_dir() else path.unlink()

    def save(self, **more: Any) -> None:
        """Write it."""
        from .runtime import write_json

        about = {"model": self.model, "maps": self.maps, "promise": self.promise, "files": self.files}
        write_json(self.out / "translated.json", {**about, "sources": self.sources, "begun": self.begun, **more})


def fingerprint(source: Source) -> str:
    """16 hex digits of what a scan's files are: how many, how large, and both ends of the first one."""
    sizes = [file.stat().st_size for file in source.files]
    with source.files[0].open("rb") as stream:
        first = stream.read(ENDS)
        stream.seek(max(0, sizes[0] - ENDS))
        last = stream.read(ENDS)
    about = repr((sizes, source.instances, source.frames)).encode()
    return hashlib.sha256(about + first + last).hexdigest()[:16]


def names_of(sources: Sequence[Source], scans: Path) -> list[str]:
    """Where each scan's translation lies below the output folder, without suffix: as its file, or its series' folder, below `scans`.

    No name is another's or that of another's map, nor a folder that another one lies in.
    """
    names: list[str] = []
    taken: set[str] = set()
    for source in sources:
        inside = below(source.files[0], scans)
        series = len(source.files) > 1 and inside.parent != Path()
        plain = (inside.parent if series else inside.with_name(stem(inside.name))).as_posix()
        tries = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
        name = next(one for one in tries if not taken & {one + kind for kind in KINDS_OF_FILES})
        names.append(name)
        taken |= {name + kind for kind in KINDS_OF_FILES} | {parent.as_posix() for parent in Path(name).parents}
    return names


def stem(name: str) -> str:
    """A file's name without what says its format; other dots stay, as in "1.2.840.dcm"."""
    bare = name.removesuffix(".gz")
    first, _, last = bare.rpartition(".")
    return first if first and last.lower() in SUFFIXES else bare


def below(file: Path, scans: Path) -> Path:
    """A file's path below the folder of scans, else its name."""
    return file.relative_to(scans) if scans.is_dir() and file.is_relative_to(scans) else Path(file.name)


def one_scan(
    model: Model,
    source: Source,
    out: Path,
    name: str,
    maps: bool,
    force: bool,
    device: torch.device,
    case: Case = (),
) -> list[str]:
    """Translate and write one scan, or one case of several sources of which it is the first; the files, posix paths below `out`.

    Raises:
        ValueError: the scan cannot be translated, or written in its format.
        OSError: with the way out.
    """
    from . import __version__, formats
    from .together import made_from
    from .translator import judged, translated

    for number, one in enumerate(case or (source,)):
        unlike = readable(one, model, number) if one else None
        if unlike and not force:
            raise ValueError(unlike)
    refuse_if_too_large(source, model)
    scan, ready = loaded(model, source, case)
    judgement = judged(model, scan, source.format, ready)
    refused = judgement is not None and judgement.refused
    if judgement and refused and not force:
        raise ValueError(f"{judgement.words}; --force translates it all the same")
    made = translated(model, scan, source.format, device, ready)
    settings = model.config["translation"]
    kinds = (
        KINDS.get(settings["output"], settings["target"]["modality"]),
        KINDS.get(settings["input"], settings["source"]["modality"])
        if ready.here is None
        else made_from(model, ready.here),
    )
    words = f"{kinds[0]} made from {kinds[1]} by a neural network, not acquired; {made.words}{'; FORCED: ' + judgement.words if judgement and refused else ''}"
    derivation = formats.Derivation(f"scansmith {__version__}", model.hash, WHAT[settings["output"]], words)
    if settings["output"] == "mask":
        labels = settings["target"]["labels"]
        files = formats.write_segmentation(source, made.image, out / name, derivation, labels)
    else:
        files = formats.write_derived(source, made.image, out / name, derivation)
    for number, what in enumerate(MAPS, 1):
        image = made.maps.get(what) if maps else None
        if image is None:
            continue
        about = replace(derivation, what=MAPS[what], number=derivation.number + number)
        if source.format == "dicom" and source.affine is not None:
            files += formats.write_parametric_map(source, image, out / f"{name}-{what}", about, MAPS[what])
        else:
            files += formats.write_derived(source, image, out / f"{name}-{what}", about)
    return [file.relative_to(out).as_posix() for file in files]


def loaded(model: Model, source: Source, case: Case) -> tuple[Image, Ready]:
    """A scan as it is read, of several sources the first, and as its voxels are worked on."""
    from . import formats
    from .together import joined
    from .translator import prepared, prepared_together

    if "sources" not in model.config["translation"]:
        scan = formats.read(source)
        return scan, prepared(model, scan, source.format)
    sources = joined(model, [None if one is None else formats.read(one) for one in case])
    return sources.scan, prepared_together(model, sources, source.format)


def refuse_if_too_large(source: Source, model: Model) -> None:
    """Nothing when the scan's header promises that its translation fits into memory.

    Raises:
        ValueError: it does not.
    """
    from .capacity import available, gigabytes
    from .image import Image
    from .translator import needed

    channels = len(model.config["translation"].get("sources", ())) or source.channels
    voxels = np.broadcast_to(np.float32(0.0), (channels, *source.shape))
    place = np.eye(4) if source.affine is None else np.reshape(source.affine, (4, 4))
    scan = Image(voxels, place, source.modality, spacing_known=source.affine is not None)
    wanted, free = needed(model, scan, source.format), available()
    if wanted > free:
        raise ValueError(
            f"expected a scan whose translation fits into the {gigabytes(free)} of memory that are free, found {' x '.join(map(str, source.shape))} voxels, which need about {gigabytes(wanted)}: cut it into parts, or use a machine with more memory"
        )


def readable(source: Source, model: Model, number: int = 0) -> str | None:
    """Why a scan cannot be translated by this model, of several sources as one of them, from its header alone; None where it can."""
    settings = model.config["translation"]
    wished = settings.get("sources", [settings["source"]])[number]["modality"]
    if settings["input"] == "image" and source.modality not in (wished, "OT") and wished != "OT":
        return f"expected {wished}, which the model learned to translate, found {source.modality}: use a model for it"
    wished_channels = settings["choices"]["channels"]
    if settings["input"] == "image" and source.channels != wished_channels:
        return f"expected {COLOURS.get(wished_channels, wished_channels)}, found {COLOURS.get(source.channels, source.channels)}: convert it, or use a model for it"
    return None
