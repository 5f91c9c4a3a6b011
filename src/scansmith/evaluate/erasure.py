"""Lesions put into held-out scans and taken out again: does the translation keep them, does it invent any?

What is inserted is simple: a soft-edged ellipsoid of one tissue, in the source alone. It tests what becomes of a spot that the
network has not seen, not whether a real lesion of another kind is shown as the target's scanner would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import lesions
from ..model import Model
from ..pairings import Pairing
from ..runtime import derive_seed
from .held_out import Scan, changed, stacked, through

MOST_SCANS = 8  # held-out scans that lesions are put into
MOST_SLICES = 48  # of a scan, those around the largest section of the body
PICTURES = 4  # slices that are taken one by one where they do not lie beside each other
CONTRAST = 4.0  # robust deviations of the tissue around, brighter or darker
# Lesions of a scan and their radii in mm, of pictures without a known pixel size in pixels; less where there is less room.
SIZES = ((6, (4.0, 8.0)), (3, (4.0, 6.0)), (1, (4.0, 4.0)))
SHOWN = 1.5  # radii that a voxel may be long
LARGEST = 2.0  # times as large as `SIZES`, where voxels are coarse; beyond, slices are taken one by one
NONE = "Lesions: none could be put into the held-out scans, which have no room for one of 8 mm and for the places it is compared with."


@dataclass(frozen=True)
class Tried:
    """What became of the lesions of one scan.

    Attributes:
        survived: of lesions put in.
        left: of the same lesions after they were taken out again.
        created: at how many places without a lesion the translation differs from the reference by as much; None without one.
        contrasts: of each lesion in the source, encoded, signed.
        scale: spread of the source's body, encoded.
    """

    survived: lesions.Survival
    left: lesions.Survival
    created: lesions.Share | None
    contrasts: list[float]
    scale: float


def chosen(count: int) -> set[int]:
    """The numbers of at most `MOST_SCANS` of so many scans, evenly spaced."""
    return set(np.unique(np.linspace(0, count - 1, min(MOST_SCANS, count)).astype(int)).tolist())


def tried(
    pairs: Pairing,
    rows: np.ndarray,
    scan: Scan,
    model: Model,
    device: torch.device,
    number: int,
    seed: int,
    true: bool = True,
) -> list[Tried]:
    """Lesions in one scan: in its slices together where they lie beside each other, else in some of them one by one.

    Args:
        pairs: what source and target of a row are.
        rows: of the scan, in the order of its slices.
        scan: `translated_scan` of them.
        model, device: that translate, where.
        number: of the scan; whether its first lesion is bright or dark.
        seed: equal seeds give equal lesions.
        true: whether the scan's target is a reference.

    Returns:
        Nothing where the body has no room.
    """  # fmt: skip
    for stacks in (together(scan), alone(scan)):
        found = []
        for stack in stacks:
            put = inserted(scan, stack, number, derive_seed(seed, "lesions", number, stack.start))
            one = put and judged(pairs, rows, scan, stack, put, model, device, seed, true)
            found += [one] if one else []
        if found:
            return found
    return []


def together(scan: Scan) -> list[slice]:
    """The longest stretch of neighbouring slices, cut to `MOST_SLICES` about the largest section of the body; none of single slices."""
    longest = max(scan.runs, key=lambda run: run.stop - run.start, default=slice(0, 0))
    if longest.stop - longest.start < 3 or enlarged(scan, longest) > LARGEST:
        return []
    largest = longest.start + int(scan.inside[longest].sum(axis=(1, 2)).argmax())
    first = int(np.clip(largest - MOST_SLICES // 2, longest.start, max(longest.start, longest.stop - MOST_SLICES)))
    return [slice(first, min(first + MOST_SLICES, longest.stop))]


def alone(scan: Scan) -> list[slice]:
    """The slices with most of the body, at most `PICTURES`, in their order."""
    largest = np.argsort(-scan.inside.sum(axis=(1, 2)), kind="stable")[:PICTURES]
    return [slice(k, k + 1) for k in sorted(largest.tolist())]


def spacing_of(scan: Scan) -> tuple[float, float, float]:
    """Voxel sizes in mm; 1 where they are not known."""
    depth, height, width = (step if np.isfinite(step) and step > 0 else 1.0 for step in scan.spacing)
    return depth, height, width


def enlarged(scan: Scan, stack: slice) -> float:
    """How much larger than `SIZES` lesions must be for the voxels to show them."""
    steps = spacing_of(scan)[0 if stack.stop - stack.start > 1 else 1 :]
    return max(1.0, max(steps) / SHOWN / SIZES[-1][1][0])


def inserted(scan: Scan, stack: slice, number: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The source with lesions and their labels; as many and as large as there is room for, None where there is none.

    Half are bright, half dark; of an odd number, and where one kind goes beyond the range of values, more of the other.
    """
    source, body, factor = (
        scan.source[stack],
        scan.inside[stack],
        1.0001 * enlarged(scan, stack),
    )  # not below by rounding
    if not body.any():
        return None
    contrasts = (CONTRAST, -CONTRAST) if number % 2 == 0 else (-CONTRAST, CONTRAST)
    for count, (least, most) in SIZES:
        made, labels = source, np.zeros(source.shape, np.uint8)
        for contrast, wished in zip(contrasts, (count - count // 2, count // 2)):
            try:
                made, more = lesions.insert(
                    made, spacing_of(scan), body & (labels == 0), derive_seed(seed, "bright" if contrast > 0 else "dark"), count=max(1, wished),
                    radius=(factor * least, factor * most), contrast=contrast,
                )  # fmt: skip
            except ValueError:  # no room, or no range of values left
                continue
            labels = np.where(more > 0, more + labels.max(), labels)
            if count == 1:
                break
        if labels.any():
            return made, labels
    return None


def judged(
    pairs: Pairing, rows: np.ndarray, scan: Scan, stack: slice, put: tuple[np.ndarray, np.ndarray],
    model: Model, device: torch.device, seed: int, true: bool,
) -> Tried | None:  # fmt: skip
    """The translations with and without lesions side by side; None where there is no room for lesion-free places."""
    with_lesions, labels = put
    source, body, before, spacing = scan.source[stack], scan.inside[stack], scan.middle[stack], spacing_of(scan)
    numbers = [int(label) for label in np.unique(labels) if label]
    if not numbers:
        return None
    filled = lesions.remove(with_lesions, spacing, labels, seed)
    after, again = (
        translated_with(pairs, rows, scan, stack, one - source, model, device) for one in (with_lesions, filled)
    )
    sources = source, with_lesions
    try:
        survived = lesions.survival(before, after, labels, spacing, body, seed, sources=sources)
        left = lesions.survival(before, again, labels, spacing, body, seed, sources=sources)
        created = (
            lesions.false_creation(before, scan.target[stack], labels, spacing, body, survived, seed) if true else None
        )
    except ValueError:  # no room
        return None
    change = with_lesions - source
    contrasts = [float(change[labels == label].mean()) for label in numbers]
    return Tried(survived, left, created, contrasts, lesions.spread(source, body))


def translated_with(
    pairs: Pairing, rows: np.ndarray, scan: Scan, stack: slice, change: np.ndarray, model: Model, device: torch.device
) -> np.ndarray:
    """(D, H, W) of the stack: the translation after the source was changed there."""
    whole = np.zeros(scan.source.shape, np.float32)
    whole[stack] = change
    window = pairs.window(int(rows[0]))
    flat = len(pairs.data.shape) == 3
    depth = 1 if flat else pairs.data.shape[1]
    touched = range(stack.start // depth, (stack.stop - 1) // depth + 1)
    made = [through(model, changed(pairs, rows, k, whole), window, device)[0] for k in touched]
    first = touched.start * depth
    return stacked(made)[stack.start - first : stack.stop - first]


# ------------------------------------------------------------------------------------------------ numbers


def summarised(found: Sequence[Tried], scans: int, units: str, span: float, known: bool) -> dict[str, Any] | None:
    """What became of all lesions; None where none could be put in.

    Args:
        found: of every scan.
        scans: how many scans they were put into.
        units: of the source; span: encoded -> these units.
        known: whether the voxel size is.
    """
    if not found:
        return None
    survived = lesions.together([trace for one in found for trace in one.survived.traces])
    left = lesions.together([trace for one in found for trace in one.left.traces])
    created = [one.created for one in found if one.created is not None]
    sizes = [trace.diameter for trace in survived.traces]
    contrasts = np.array([value for one in found for value in one.contrasts])
    shares = np.array([value / one.scale for one in found for value in one.contrasts if one.scale])
    result = {
        "scans": scans,
        "inserted": survived.rate.count,
        "diameter": [round(float(value), 1) for value in (min(sizes), np.median(sizes), max(sizes))],
        "diameter_unit": "mm" if known else "pixels",
        "bright": int((contrasts > 0).sum()),
        "contrast": {
            "deviations": CONTRAST,
            "of_spread": round(float(np.median(np.abs(shares))), 4) if len(shares) else None,
            "units": round(float(np.median(np.abs(contrasts))) * span, 2) if units == "HU" else None,
        },
        "survival": counted(survived.rate.hits, survived.rate.count),
        "kept_contrast": None if survived.ratio is None else round(survived.ratio, 4),
        "left": counted(left.rate.hits, left.rate.count),
        "creation": counted(sum(one.hits for one in created), sum(one.count for one in created)) if created else None,
    }
    return result | {"words": list(sentences(result))}


def counted(hits: int, count: int) -> dict[str, Any]:
    """A share with the 95 % interval of Wilson 1927, as if lesions were independent."""
    from scipy.stats import binomtest

    low, high = binomtest(hits, count).proportion_ci(method="wilson")
    return {
        "value": hits / count,
        "hits": hits,
        "count": count,
        "interval": [round(float(low), 5), round(float(high), 5)],
    }


def sentences(result: dict[str, Any]) -> list[str]:
    """What was found, and what such a lesion is."""
    survival, left, creation = result["survival"], result["left"], result["creation"]
    low, _, high = result["diameter"]
    contrast = result["contrast"]
    size = f"{low:g} to {high:g} {result['diameter_unit']} across"
    strength = f"{contrast['deviations']:g} deviations of the tissue around them"
    if contrast["units"] is not None:
        strength += f" ({contrast['units']:.3g} HU in the median)"
    elif contrast["of_spread"] is not None:
        strength += f" ({contrast['of_spread']:.0%} of the body's range of values in the median)"
    kept = result["kept_contrast"]
    said = [
        f"Lesions: {shown(survival)} of those put into the source are still seen in the translation"
        + ("." if kept is None else f"; {keeps(kept)}."),
        f"Taken out again, {shown(left)} still leave a trace; {lesions.LEVEL:.0%} would by chance.",
    ]
    if creation is not None:
        said.append(
            f"At {shown(creation)} places without a lesion the translation of the untouched scan differs from the reference by as much as an inserted lesion changes it: invented or lost structure, noise, or pairs that lie apart."
        )
    said.append(
        f"The lesions are simulated: soft-edged ellipsoids, {size}, {result['bright']} brighter and {result['inserted'] - result['bright']} darker than their surroundings by {strength}, in {result['scans']} scan{'s' * (result['scans'] != 1)}; smaller, fainter or other ones were not tried, and whether a real one would look so in the target's kind of scan is not known."
    )
    return said


def keeps(kept: float) -> str:
    """What is left of the contrast; between kinds of scan it need not be all, and dark may become bright."""
    turned = "" if kept >= 0.0 else ", turned round: bright has become dark, or dark bright"
    return f"the median one has {abs(kept):.0%} of its contrast{turned}"


def shown(share: dict[str, Any]) -> str:
    """ "45 of 48 (94%, 83% to 98%)"."""
    value, low, high = (f"{100 * one:.{int(0.0 < one < 0.095)}f}%" for one in (share["value"], *share["interval"]))
    return f"{share['hits']} of {share['count']} ({value}, {low} to {high})"
