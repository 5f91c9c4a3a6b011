"""Masks: which label map belongs to which scan, and its labels on the scan's grid."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .. import formats
from ..formats import FormatError, Source
from ..image import Image
from .align import exact_map, index_map, overlap, place_exact, resample, same_proportions
from .names import match as match_patterns
from .names import plural, stem
from .slices import is_mask

Found = tuple[dict[int, list[int]], set[int], tuple[str, ...]]
MASK_FOLDERS = {
    "labels",
    "label",
    "labelstr",
    "labelsts",
    "masks",
    "mask",
    "segmentations",
    "segmentation",
    "segs",
    "seg",
    "annotations",
    "annotation",
    "groundtruth",
    "ground_truth",
    "gt",
}
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "imagestr", "imagests", "scans", "data", "raw"}
# Parts of a file's name that say "label map", also of one observer of several.
MASK_WORDS = re.compile(
    r"(\w*mask|seg|dseg|probseg|label|labels|labelmap|segmentation|annotation|groundtruth|gt|manual)\d*|\d(st|nd|rd|th)ho",
    re.IGNORECASE,
)
NAMED_BY = {
    "folder": "folders such as images and labels",
    "structure": "a folder of structures beside it",
    "file name": "file name",
}
# A mask whose name says nothing else belongs to all scans of its folder on its grid, if these are few.
MOST_SHARING = 8
MOST_LOOKS = 6
# Of the masks that were read; a label map that fails is damaged, several are scans with misleading names.
MOST_FAILURES = 0.34
MOST_PICTURE_LABELS = 32


def match(masks: str, sources: Sequence[Source], names: Sequence[str]) -> Found:
    """Which masks belong to which scan.

    Args:
        masks: "auto" (DICOM SEG and RTSTRUCT by what they refer to, BIDS derivatives, folders such as labels/ beside
            images/, names such as X_mask.png beside X.png), "none", or name patterns such as
            "images/*.nii.gz:labels/*.nii.gz" (see `names.match`).
        sources: everything that was found, scans and masks.
        names: each one's posix path below root, of a series its first file's.

    Returns:
        scan -> its masks, sorted by name; all masks, which are no scans; and in words what was done.

    Raises:
        ValueError: `masks` is none of these, or the patterns match nothing.
    """
    roles = {number for number, source in enumerate(sources) if source.role == "mask"}
    if masks.lower() == "none":
        return {}, roles, (f"masks: none, as asked; {plural(len(roles), 'mask')} left aside",) if roles else ()
    if masks.lower() != "auto":
        return _by_patterns(masks, sources, names, roles)
    found, words = _by_role(sorted(roles), sources, names)
    named, all_named, name_words = _by_name(sources, names, roles)
    for image, own in named.items():
        found.setdefault(image, own)
    return {image: found[image] for image in sorted(found)}, roles | all_named, (*words, *name_words)


def _by_patterns(masks: str, sources: Sequence[Source], names: Sequence[str], roles: set[int]) -> Found:
    if masks.count(":") != 1:
        raise ValueError(
            f"expected 'auto', 'none' or two name patterns such as images/*.nii.gz:labels/*.nii.gz as masks, got {masks!r}"
        )
    found = match_patterns("masks", masks, sources, names)
    result = {image: [mask] for image, mask in found.pairs}
    # What the right pattern alone matches is a mask without a scan; a wide left pattern matches scans without a mask.
    every = {mask for _, mask in found.pairs} | (set(found.right) - set(result)) | roles
    words = [f"masks: {plural(len(result), 'scan')} with a mask, by name patterns"]
    words += (
        [f"{plural(len(every) - len(result), 'mask')} without a scan, left aside"] if len(every) > len(result) else []
    )
    return {image: own for image, own in result.items() if image not in every}, every, tuple(words)


# ------------------------------------------------------------------------------------------------ what masks refer to


def _by_role(
    roles: list[int], sources: Sequence[Source], names: Sequence[str]
) -> tuple[dict[int, list[int]], list[str]]:
    """Masks by the UIDs (DICOM) or names (BIDS) of the images they refer to, else by patient and frame of reference."""
    by_image: defaultdict[str, set[int]] = defaultdict(set)
    by_series: defaultdict[str, set[int]] = defaultdict(set)
    by_frame: defaultdict[tuple[str | None, str], set[int]] = defaultdict(set)
    for number in (number for number, source in enumerate(sources) if source.role == "image"):
        source = sources[number]
        for uid in (*source.instances, names[number]):
            by_image[uid].add(number)
        by_series[source.series or ""].add(number)
        by_frame[source.patient, source.frame_of_reference or ""].add(number)
    found: defaultdict[int, list[int]] = defaultdict(list)
    lost = placed = 0
    for mask in sorted(roles, key=lambda number: names[number]):
        own = sources[mask]
        # The images themselves say more than their series, which may hold several volumes.
        images = {image for uid in own.refers_to for image in by_image.get(uid, ())}
        images = images or {image for uid in own.refers_to for image in by_series.get(uid, ())}
        if not images and own.frame_of_reference:
            images = by_frame.get((own.patient, own.frame_of_reference), set())
            placed += bool(images)
        lost += not images
        for image in images:
            found[image].append(mask)
    return dict(found), _role_words(len(found), len(roles) - lost, placed, lost)


def _role_words(scans: int, used: int, placed: int, lost: int) -> list[str]:
    words = []
    if scans:
        words.append(f"masks: {plural(scans, 'scan')} with a mask, by what {plural(used, 'mask')} refer to")
    if placed:
        words.append(f"{plural(placed, 'mask')} matched by patient and Frame of Reference UID (0020,0052) alone")
    if lost:
        words.append(f"{plural(lost, 'mask')} of no scan in this folder, left aside")
    return words


def _same_grid(one: Source, other: Source) -> bool:
    """Whether two headers say the same size and, where both say it, the same place."""
    if one.shape != other.shape:
        return False
    if one.affine is None or other.affine is None:
        return True
    return bool(np.allclose(one.affine, other.affine, rtol=1e-4, atol=1e-2))


# ------------------------------------------------------------------------------------------------ what names say


def _by_name(
    sources: Sequence[Source], names: Sequence[str], roles: set[int]
) -> tuple[dict[int, list[int]], set[int], list[str]]:
    """Label maps among volumes and pictures, by folder and then by file name, if what they hold agrees."""
    candidates = [number for number in range(len(sources)) if number not in roles]
    found: dict[int, list[int]] = {}
    every: set[int] = set()
    words: list[str] = []
    for how, groups in (("folder", _folder_groups), ("structure", _structure_groups), ("file name", _name_groups)):
        pairs, suspects = groups([number for number in candidates if number not in every], sources, names)
        if not suspects:
            continue
        looked, failed = _look(sorted(suspects), sources)
        if failed > MOST_FAILURES * looked:
            words.append(
                f"{plural(len(suspects), 'file')} named like masks (by {NAMED_BY[how]}) hold no label maps, and are taken as scans; --masks IMAGES:MASKS with name patterns takes them as masks"
            )
            continue
        every |= suspects
        pairs = {image: own for image, own in pairs.items() if image not in found and image not in every}
        for image, own in pairs.items():
            found[image] = own if how == "structure" else own[:1]
        words += _name_words(how, pairs, suspects)
    return found, every, words


def _name_words(how: str, pairs: dict[int, list[int]], suspects: set[int]) -> list[str]:
    words = [f"masks: {plural(len(pairs), 'scan')} with a mask, by {NAMED_BY[how]}"] if pairs else []
    several = sum(len(own) > 1 for own in pairs.values())
    if several and how != "structure":
        words.append(f"{plural(several, 'scan')} with several masks, as of two observers: the first by name is taken")
    lost = len(suspects - {mask for own in pairs.values() for mask in own})
    if lost:
        words.append(f"{plural(lost, 'mask')} without a scan, left aside")
    return words


def _look(suspects: list[int], sources: Sequence[Source]) -> tuple[int, int]:
    """Of a few files how many could be judged, and how many of these are no label maps; files all of one value are passed over."""
    spread = [np.linspace(0, len(suspects) - 1, min(len(suspects), count)) for count in (MOST_LOOKS, 4 * MOST_LOOKS)]
    looked = failed = 0
    for at in dict.fromkeys(round(float(place)) for place in np.concatenate(spread)):
        verdict = is_label_map(sources[suspects[at]])
        looked += verdict is not None
        failed += verdict is False
        if looked == MOST_LOOKS:
            break
    return looked, failed


def is_label_map(source: Source) -> bool | None:
    """Whether a file holds labels rather than intensities; None when it is empty or cannot be read."""
    try:
        array = formats.read(source).array
    except (FormatError, OSError):
        return None
    if len(array) == 3 and bool((array == array[:1]).all()):
        array = array[:1]
    if (array == array.flat[0]).all():
        return None
    return len(array) == 1 and is_mask(array.transpose(0, 3, 2, 1))


def _folder_groups(
    candidates: list[int], sources: Sequence[Source], names: Sequence[str]
) -> tuple[dict[int, list[int]], set[int]]:
    """Images and masks in sibling folders (images/ and labels/) under one file name, a mask's word or number apart."""
    images: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    masks: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number in candidates:
        parts = _parts(sources[number], names[number])
        for at, part in enumerate(parts[:-1]):
            kind = part.lower()
            key = (*parts[:at], "*", *parts[at + 1 : -1])
            if kind in MASK_FOLDERS and sources[number].format != "dicom":
                masks[key].append(number)
            elif kind in IMAGE_FOLDERS:
                images[key].append(number)
    pairs: defaultdict[int, list[int]] = defaultdict(list)
    suspects: set[int] = set()
    for key, own in masks.items():
        if key in images:
            suspects.update(own)
            _pair(images[key], own, sources, names, pairs)
    return {image: pairs[image] for image in sorted(pairs)}, suspects


def _structure_groups(
    candidates: list[int], sources: Sequence[Source], names: Sequence[str]
) -> tuple[dict[int, list[int]], set[int]]:
    """One scan, and beside it a folder with a mask for each structure: ct.nii.gz and segmentations/liver.nii.gz."""
    images: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    masks: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number in candidates:
        *folders, _ = _parts(sources[number], names[number])
        if folders and folders[-1].lower() in MASK_FOLDERS and sources[number].format != "dicom":
            masks[tuple(folders[:-1])].append(number)
        else:
            images[tuple(folders)].append(number)
    pairs: dict[int, list[int]] = {}
    for key, own in masks.items():
        alike = [mask for mask in own if len(images[key]) == 1 and _same_grid(sources[mask], sources[images[key][0]])]
        if alike:
            pairs[images[key][0]] = sorted(alike, key=lambda number: names[number])
    return pairs, {mask for own in pairs.values() for mask in own}


def _name_groups(
    candidates: list[int], sources: Sequence[Source], names: Sequence[str]
) -> tuple[dict[int, list[int]], set[int]]:
    """Images and masks in one folder: X.png and X_mask.png, X_flair.nii.gz and X_seg.nii.gz, image.nii.gz and mask.nii.gz."""
    folders: defaultdict[tuple[str, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for number in candidates:
        parts = _parts(sources[number], names[number])
        said = sources[number].format != "dicom" and len(_base(parts[-1])) < len(_tokens(parts[-1]))
        folders[parts[:-1]][said].append(number)
    pairs: defaultdict[int, list[int]] = defaultdict(list)
    for images, masks in folders.values():
        if images and masks:
            _pair(images, masks, sources, names, pairs)
    return {image: pairs[image] for image in sorted(pairs)}, {mask for own in pairs.values() for mask in own}


def _pair(
    images: list[int],
    masks: list[int],
    sources: Sequence[Source],
    names: Sequence[str],
    pairs: defaultdict[int, list[int]],
) -> None:
    """Add each mask to the scans of its name; a name that goes on (case_0000, x_flair) counts where the grids are the same."""
    by_tokens: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for image in images:
        tokens = _tokens(_parts(sources[image], names[image])[-1])
        for count in range(len(tokens) + 1):
            by_tokens[tokens[:count]].append(image)
    lengths = {image: len(_tokens(_parts(sources[image], names[image])[-1])) for image in images}
    for mask in sorted(masks, key=lambda number: names[number].lower()):
        last = _parts(sources[mask], names[mask])[-1]
        whole = [image for image in by_tokens.get(_tokens(last), ()) if lengths[image] == len(_tokens(last))]
        base = _base(last)
        exact = whole or [image for image in by_tokens.get(base, ()) if lengths[image] == len(base)]
        longer = [image for image in by_tokens.get(base, ()) if _same_grid(sources[image], sources[mask])]
        longer = longer if base or len(images) <= MOST_SHARING else []
        for image in exact or longer:
            pairs[image].append(mask)


def _parts(source: Source, name: str) -> tuple[str, ...]:
    """The folders and the bare name; of a series its folder stands for the name."""
    parts = name.split("/")
    return tuple(parts[:-1]) if len(source.files) > 1 and len(parts) > 1 else (*parts[:-1], stem(name))


def _tokens(bare: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in re.split(r"[_\-. ]+", bare) if part)


def _base(bare: str) -> tuple[str, ...]:
    """A name's parts without those that say "label map"."""
    return tuple(part for part in _tokens(bare) if not MASK_WORDS.fullmatch(part))


# ------------------------------------------------------------------------------------------------ labels


def label_map(mask: Image, image: Image) -> np.ndarray:
    """A mask's labels on the grid of `image`: (I, J, K) uint8, 0 for background.

    Copied exactly where the grids agree (also permuted, flipped or cropped), else nearest neighbour. Black and white
    pictures (0 and 255, also with JPEG noise around them) become 0 and 1.

    Raises:
        ValueError: the values are no labels from 0 to 255, or the mask lies elsewhere.
    """
    labels = _labels(mask)
    shape = image.array.shape[1:]
    if mask.spacing_known and image.spacing_known:
        step = index_map(mask, image)
        exact = exact_map(step, mask, image)
        placed = (
            place_exact(labels[None], exact, shape, 0.0)[0]
            if exact is not None
            else resample(labels[None], step, shape, 0.0, None, nearest=True)[0]
        )
        if labels.any() and not placed.any():
            raise ValueError(
                f"expected a mask on its scan, found that none of its labelled voxels lies inside the scan ({overlap(step, mask, image):.0%} of the scan's box is covered): it belongs to another scan"
            )
        return placed
    if labels.shape == shape:
        return labels
    if not same_proportions(labels.shape, shape):
        raise ValueError(
            f"expected a mask of its picture's size {shape[0]} x {shape[1]} or in its proportions, found {labels.shape[0]} x {labels.shape[1]}"
            + (f" in {labels.shape[2]} slices instead of {shape[2]}" if labels.shape[2] != shape[2] else "")
            + ": crop both alike"
        )
    step = np.diag([labels.shape[0] / shape[0], labels.shape[1] / shape[1], 1.0, 1.0])
    step[:3, 3] = np.diag(step)[:3] / 2 - 0.5  # pixel centres lie at whole numbers
    return resample(labels[None], step, shape, 0.0, None, nearest=True)[0]


def _labels(mask: Image) -> np.ndarray:
    """(I, J, K) uint8 labels as the mask holds them."""
    array = mask.array
    if len(array) > 1 and not bool((array == array[:1]).all()):
        raise ValueError(
            "expected a grey mask with one value for each label, found colours: save it with label numbers instead of colours"
        )
    array = array[0]
    values = np.unique(array)
    if not np.array_equal(values, np.rint(values)):
        raise ValueError(
            f"expected whole numbers as labels, found values such as {values[values != np.rint(values)][0]:g}: an image or a probability map is no mask; threshold it first"
        )
    if values[0] < 0 or values[-1] > 255:
        raise ValueError(f"expected labels from 0 to 255, found {values[0]:g} to {values[-1]:g}: renumber them")
    if array.shape[2] == 1 and len(values) > MOST_PICTURE_LABELS:
        raise ValueError(
            f"expected at most {MOST_PICTURE_LABELS} labels in a picture, found {len(values)} different values: lossy compression (JPEG) or smoothing changes labels; save it as PNG"
        )
    if values[-1] == 255 and _black_and_white(values):
        return (array > 127).astype(np.uint8)
    return array.astype(np.uint8)


def _black_and_white(values: np.ndarray) -> bool:
    """Whether the values are 0 and 255, or lie around both as lossy compression leaves them."""
    black, white = values[values <= 32], values[values >= 223]
    return len(black) + len(white) == len(values) and len(black) > 0 and (len(values) == 2 or len(white) > 1)
