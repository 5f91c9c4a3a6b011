"""Masks: which label map belongs to which scan, and its labels on the scan's grid."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import formats
from ..formats import FormatError, Source, bids
from ..image import Image
from ..preprocess.align import corners, exact_map, index_map, overlap, place_exact, resample, same_proportions
from ..preprocess.slices import is_mask
from .names import match as match_patterns
from .names import plural, stem

# mask -> why it goes to none of the scans that its name fits
Doubts = dict[int, str]
Groups = tuple[dict[int, list[int]], set[int], Doubts]
Found = tuple[dict[int, list[int]], set[int], tuple[str, ...]]
MASK_FOLDERS = {
    "labels",
    "label",
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
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "scans", "data", "raw"}
# What a folder's name may add: imagesTr and labelsTr belong together, imagesTs and labelsTr do not.
SPLITS = {
    **dict.fromkeys(("tr", "train", "training"), "train"),
    **dict.fromkeys(("va", "val", "valid", "validation"), "validation"),
    **dict.fromkeys(("ts", "test", "testing"), "test"),
}
FOLDER = re.compile(
    rf"(?:({'|'.join(SPLITS)})[_-]?)??({'|'.join(sorted(MASK_FOLDERS | IMAGE_FOLDERS))})(?:[_-]?({'|'.join(SPLITS)}))?"
)
# Parts of a file's name that say "label map", with what stands before and behind it: 001mask, mask001, label1.
MASK_WORDS = re.compile(
    r"(\w*\d)??(?:[^\W\d_]*mask|seg|dseg|probseg|label|labels|labelmap|segmentation|annotation|groundtruth|gt|manual)(\d*)",
    re.IGNORECASE,
)
# One observer of several.
OBSERVER = re.compile(r"\d(st|nd|rd|th)ho", re.IGNORECASE)
# MR weightings, whose numbers count nothing.
WEIGHTING = re.compile(r"t[12]\w{0,4}", re.IGNORECASE)
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
# Of a mask's box on another grid, what must lie inside the scan's.
LEAST_INSIDE = 0.5


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
    lost = placed = vague = 0
    for mask in sorted(roles, key=lambda number: names[number]):
        own = sources[mask]
        # The images themselves say more than their series, which may hold several volumes.
        images = {image for uid in own.refers_to for image in by_image.get(uid, ())}
        images = images or {image for uid in own.refers_to for image in by_series.get(uid, ())}
        if not images and own.frame_of_reference:
            images = by_frame.get((own.patient, own.frame_of_reference), set())
            placed += bool(images)
        told = _of_one_session(names[mask], images, names)
        vague += bool(images) and not told
        lost += not images
        for image in told:
            found[image].append(mask)
    return dict(found), _role_words(len(found), len(roles) - lost - vague, placed, lost, vague)


def _of_one_session(mask: str, images: set[int], names: Sequence[str]) -> set[int]:
    """Of the images that a BIDS mask refers to, those of its session and run; none where it does not say which of several."""
    own = bids.entities(mask.rpartition("/")[2])
    for key in ("ses", "run"):
        if not own or key in own:
            continue
        groups: defaultdict[tuple[tuple[str, str], ...], dict[int, str | None]] = defaultdict(dict)
        for image in images:
            said = bids.entities(names[image].rpartition("/")[2])
            # Sessions are the subject's, runs those of one kind of image.
            kind = tuple(sorted(item for item in said.items() if item[0] != "run")) if key == "run" else ()
            groups[kind][image] = said.get(key)
        images = {
            image
            for group in groups.values()
            for image, value in group.items()
            if value is None or len(set(group.values())) == 1
        }
    return images


def _role_words(scans: int, used: int, placed: int, lost: int, vague: int) -> list[str]:
    words = []
    if scans:
        words.append(f"masks: {plural(scans, 'scan')} with a mask, by what {plural(used, 'mask')} refer to")
    if placed:
        words.append(f"{plural(placed, 'mask')} matched by patient and Frame of Reference UID (0020,0052) alone")
    if lost:
        words.append(f"{plural(lost, 'mask')} of no scan in this folder, left aside")
    if vague:
        words.append(
            f"{plural(vague, 'mask')} of a subject with several sessions or runs without saying of which, left aside: name it with ses- or run- in the file name"
        )
    return words


def _same_grid(one: Source, other: Source) -> bool:
    """Whether two headers say the same size and, where both say it, the same place."""
    if one.shape != other.shape:
        return False
    if one.affine is None or other.affine is None:
        return True
    return bool(np.allclose(one.affine, other.affine, rtol=1e-4, atol=1e-2))


def _may_lie_on(mask: Source, image: Source) -> bool:
    """Whether headers allow a mask on a scan: pictures in its proportions, volumes mostly inside it; True where they do not tell."""
    if mask.shape == image.shape:
        return True
    if mask.dimensions == image.dimensions == 2:
        return same_proportions(mask.shape, image.shape)
    if mask.affine is None or image.affine is None:
        return True
    (low, high), (least, most) = _box(mask), _box(image)
    inside = np.clip(np.minimum(high, most) - np.maximum(low, least), 0.0, None)
    return bool(inside.prod() >= LEAST_INSIDE * (high - low).prod())


def _box(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest RAS+ coordinates in mm of the box around a scan."""
    edges = np.array(source.affine).reshape(4, 4) @ corners(source.shape, 0.5)
    return edges[:3].min(axis=1), edges[:3].max(axis=1)


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
        pairs, suspects, doubts = groups([number for number in candidates if number not in every], sources, names)
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
        words += _name_words(how, pairs, suspects, doubts)
    return found, every, words


def _name_words(how: str, pairs: dict[int, list[int]], suspects: set[int], doubts: Doubts) -> list[str]:
    words = [f"masks: {plural(len(pairs), 'scan')} with a mask, by {NAMED_BY[how]}"] if pairs else []
    several = sum(len(own) > 1 for own in pairs.values())
    if several and how != "structure":
        words.append(f"{plural(several, 'scan')} with several masks, as of two observers: the first by name is taken")
    lost = len(suspects - {mask for own in pairs.values() for mask in own} - set(doubts))
    for doubt, count in sorted(Counter(doubts[mask] for mask in doubts).items()):
        words.append(f"{plural(count, 'mask')} {doubt}, left aside: --masks IMAGES:MASKS with name patterns says which")
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


def _folder_groups(candidates: list[int], sources: Sequence[Source], names: Sequence[str]) -> Groups:
    """Images and masks in sibling folders (images/ and labels/) under one file name, a mask's word or number apart."""
    images: defaultdict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    masks: defaultdict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for number in candidates:
        parts = _parts(sources[number], names[number])
        for at, part in enumerate(parts[:-1]):
            kind, split = _folder(part)
            key = (*parts[:at], "*", *parts[at + 1 : -1])
            if kind in MASK_FOLDERS and sources[number].format != "dicom":
                masks[key].append((split, number))
            elif kind in IMAGE_FOLDERS:
                images[key].append((split, number))
    pairs: defaultdict[int, list[int]] = defaultdict(list)
    suspects: set[int] = set()
    doubts: Doubts = {}
    for key, own in masks.items():
        if key not in images:
            continue
        suspects.update(number for _, number in own)
        for split in sorted({split for split, _ in own}):
            alike = [number for other, number in images[key] if other == split or not split]
            alike = alike or [number for other, number in images[key] if not other]
            _pair(alike, [number for other, number in own if other == split], sources, names, pairs, doubts)
    return {image: pairs[image] for image in sorted(pairs)}, suspects, doubts


def _folder(part: str) -> tuple[str, str]:
    """What a folder holds, and of which split: "imagesTr" -> ("images", "train"); ("", "") for any other name."""
    found = FOLDER.fullmatch(part.lower())
    return (found[2], SPLITS.get(found[1] or found[3] or "", "")) if found else ("", "")


def _structure_groups(candidates: list[int], sources: Sequence[Source], names: Sequence[str]) -> Groups:
    """One scan, and beside it a folder with a mask for each structure: ct.nii.gz and segmentations/liver.nii.gz."""
    images: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    masks: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number in candidates:
        *folders, _ = _parts(sources[number], names[number])
        if folders and _folder(folders[-1])[0] in MASK_FOLDERS and sources[number].format != "dicom":
            masks[tuple(folders[:-1])].append(number)
        else:
            images[tuple(folders)].append(number)
    pairs: dict[int, list[int]] = {}
    for key, own in masks.items():
        alike = [mask for mask in own if len(images[key]) == 1 and _same_grid(sources[mask], sources[images[key][0]])]
        if alike:
            pairs[images[key][0]] = sorted(alike, key=lambda number: names[number])
    return pairs, {mask for own in pairs.values() for mask in own}, {}


def _name_groups(candidates: list[int], sources: Sequence[Source], names: Sequence[str]) -> Groups:
    """Images and masks in one folder: X.png and X_mask.png, X_flair.nii.gz and X_seg.nii.gz, img1.png and mask1.png."""
    folders: defaultdict[tuple[str, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for number in candidates:
        parts = _parts(sources[number], names[number])
        said = sources[number].format != "dicom" and any(_says_mask(token) for token in _tokens(parts[-1]))
        folders[parts[:-1]][said].append(number)
    pairs: defaultdict[int, list[int]] = defaultdict(list)
    suspects: set[int] = set()
    doubts: Doubts = {}
    for images, masks in folders.values():
        if images and masks:
            _pair(images, masks, sources, names, pairs, doubts)
            matched = {mask for image in images for mask in pairs.get(image, ())} | (doubts.keys() & set(masks))
            suspects.update(masks if matched else ())
    return {image: pairs[image] for image in sorted(pairs)}, suspects, doubts


SEVERAL = "that would fit several scans"
SHIFTED = "with the scans' numbers but for a shift, such as 1 to 9 instead of 0 to 8"
ELSEWHERE = "with a scan's name but of another size or at another place"


@dataclass(frozen=True, slots=True)
class Called:
    """What the scans of some folders are called.

    Attributes:
        images: the scans.
        tokens: the parts of each one's name, and of each mask's.
        by_tokens: the first parts of a name, however many -> scans.
        by_numbers: the numbers in a name -> scans.
    """

    images: list[int]
    tokens: dict[int, tuple[str, ...]]
    by_tokens: dict[tuple[str, ...], list[int]]
    by_numbers: dict[tuple[int, ...], list[int]]

    def exactly(self, parts: tuple[str, ...]) -> list[int]:
        """The scans with these parts and no more in their names."""
        return (
            [image for image in self.by_tokens.get(parts, ()) if len(self.tokens[image]) == len(parts)] if parts else []
        )


def _called(images: list[int], masks: list[int], sources: Sequence[Source], names: Sequence[str]) -> Called:
    tokens = {number: _tokens(_parts(sources[number], names[number])[-1]) for number in (*images, *masks)}
    by_tokens: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    by_numbers: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for image in images:
        by_numbers[_numbers(tokens[image])].append(image)
        for count in range(len(tokens[image]) + 1):
            by_tokens[tokens[image][:count]].append(image)
    return Called(images, tokens, dict(by_tokens), dict(by_numbers))


def _pair(
    images: list[int],
    masks: list[int],
    sources: Sequence[Source],
    names: Sequence[str],
    pairs: defaultdict[int, list[int]],
    doubts: Doubts,
) -> None:
    """Add each mask to the scans of its name, else to the one of its number; where that is in doubt, to none."""
    called = _called(images, masks, sources, names)
    shifted = _shifted(masks, called)
    for mask in sorted(masks, key=lambda number: names[number].lower()):
        owners, doubt = ([], SHIFTED) if mask in shifted else _owners(mask, called, sources, names)
        if doubt:
            doubts[mask] = doubt
        for image in owners:
            pairs[image].append(mask)


def _shifted(masks: list[int], called: Called) -> set[int]:
    """The masks whose names are numbers, where these are the scans' but for a shift: label1 to label9 for image0 to image8."""
    bases = {mask: _base(called.tokens[mask]) for mask in masks if not called.exactly(called.tokens[mask])}
    counted = {mask: _numbers(base) for mask, base in bases.items() if base and all(part.isdigit() for part in base)}
    own = sorted(numbers[0] for numbers in counted.values() if len(numbers) == 1)
    other = sorted(numbers[0] for numbers, images in called.by_numbers.items() for _ in images if len(numbers) == 1)
    shifts = {one - two for one, two in zip(own, other)}
    return set(counted) if len(own) == len(other) > 1 and len(shifts) == 1 and shifts != {0} else set()


def _owners(mask: int, called: Called, sources: Sequence[Source], names: Sequence[str]) -> tuple[list[int], str | None]:
    """The scans of a mask's name; a name that goes on (case_0000, x_flair) counts where the grids are the same."""
    base = _base(called.tokens[mask])
    exact = called.exactly(called.tokens[mask]) or called.exactly(base)
    if exact:
        return _one_place(mask, exact, sources, names)
    alike = [image for image in called.by_tokens.get(base, ()) if _same_grid(sources[image], sources[mask])]
    if not alike:
        return _by_number(mask, called, sources, names)
    # Of a mask whose name says nothing: pictures of one size are no sign that they belong together, volumes at one place are.
    placed = all(sources[number].affine is not None for number in (mask, *alike))
    if base or len(called.images) == 1 or (placed and len(called.images) <= MOST_SHARING):
        return alike, None
    return [], SEVERAL


def _by_number(
    mask: int, called: Called, sources: Sequence[Source], names: Sequence[str]
) -> tuple[list[int], str | None]:
    """The scan of a mask's number: image1 of label1, ct1 of seg1; or of one of several observers: a of a_mask1, a_mask2."""
    base, plain = _base(called.tokens[mask]), _base(called.tokens[mask], digits=False)
    words, numbers = {part for part in base if not part.isdigit()}, _numbers(base)
    if not numbers or (words and base == plain):
        return [], None
    alike = [image for image in called.by_numbers.get(numbers, ()) if words <= set(called.tokens[image])]
    if len(alike) > 1:
        return [], SEVERAL
    without = called.by_numbers.get((), []) if not words else []
    if alike or called.exactly(plain) or len(called.images) == len(without) == 1:
        return _one_place(mask, alike or called.exactly(plain) or without, sources, names)
    return [], SEVERAL if without else None


def _one_place(
    mask: int, owners: list[int], sources: Sequence[Source], names: Sequence[str]
) -> tuple[list[int], str | None]:
    """The scans of one folder that a mask may lie on; none where scans of several folders have its name."""
    owners = [image for image in owners if _may_lie_on(sources[mask], sources[image])]
    if not owners:
        return [], ELSEWHERE
    if len({names[image].rpartition("/")[0] for image in owners}) > 1:
        owners = [image for image in owners if _same_grid(sources[image], sources[mask])]
        if len({names[image].rpartition("/")[0] for image in owners}) != 1:
            return [], SEVERAL
    return owners, None


def _parts(source: Source, name: str) -> tuple[str, ...]:
    """The folders and the bare name; of a series its folder stands for the name."""
    parts = name.split("/")
    return tuple(parts[:-1]) if len(source.files) > 1 and len(parts) > 1 else (*parts[:-1], stem(name))


def _tokens(bare: str) -> tuple[str, ...]:
    return tuple(part.lower() for part in re.split(r"[_\-. ]+", bare) if part)


def _says_mask(token: str) -> bool:
    return bool(MASK_WORDS.fullmatch(token) or OBSERVER.fullmatch(token))


def _base(tokens: tuple[str, ...], digits: bool = True) -> tuple[str, ...]:
    """A name's parts without the words that say "label map"; the digits behind these stay ("mask001" -> "001") if wished."""
    result: list[str] = []
    for token in tokens:
        if OBSERVER.fullmatch(token):
            continue
        found = MASK_WORDS.fullmatch(token)
        result += [part for part in (found[1], found[2] if digits else "") if part] if found else [token]
    return tuple(result)


def _numbers(tokens: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers in a name, without those of MR weightings: ("ct", "p7", "t1") -> (7,)."""
    counting = [token for token in tokens if not WEIGHTING.fullmatch(token)]
    return tuple(int(digits) for token in counting for digits in re.findall(r"\d+", token))


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
