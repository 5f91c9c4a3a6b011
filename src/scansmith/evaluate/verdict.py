"""The evaluation from top to bottom: load, compare, classify, search for copies, write metrics.json and nearest.png."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..metrics import METRICS, classifier, radiomics
from ..metrics.intervals import wilson
from ..metrics.nearest import EXTRACTOR, SIZE, Nearest
from ..runtime import Progress, choose_device, derive_seed, write_atomic, write_json
from . import copies, words
from .compare import compare, encode
from .load import Scans, holds_volumes, load, open_scans
from .planes import COMPARED, PLANES, side_by_side

# Longest side compared, most scans of a set in memory and their bytes, most training scans searched for copies.
LONGEST, MOST, MEMORY, SEARCHED, PART = 256, 2000, 2**28, 20_000, 2048
LONGEST_VOLUME = 128
CLASSIFIED = 1000
# Most pixels of a set that the encoders see: 2000 scans of 64 pixels, 256 of 256; more would take minutes on a CPU.
ENCODED = 2**24


@dataclass(frozen=True)
class Sets:
    """What is compared with what.

    Attributes:
        reference: real scans that the model never saw.
        others: other real scans for the floor: the training scans, or the second half of the real ones.
        train: scans that the model learned from, or None.
        fake: the synthetic scans.
        split: what the reference is: "holdout", "validation" where there is no holdout, "half" of real scans of which
            nobody said which were learned from, or half of the "train" scans where nothing is held out.
    """

    reference: Scans
    others: Scans
    train: Scans | None
    fake: Scans
    split: str


def evaluate(
    real: Path, fake: Path, out: Path, train: Path | None, draws: int, limit: int, seed: int, device_name: str
) -> dict[str, Any]:
    """See `scansmith.evaluate`."""
    if draws < 1 or limit < 2:
        raise ValueError(f"expected draws of at least 1 and a limit of at least 2, got draws={draws}, limit={limit}")
    device = choose_device(device_name)
    sets = choose_sets(real, fake, train, seed)
    size = compared_size(sets.fake.size)
    volumes = sets.fake.volumes
    planes, unmirrored = (PLANES, sets.fake.channels) if volumes else (1, 0)
    shown = (max(size), max(size)) if volumes else size
    most = min(MOST, max(16, MEMORY // (4 * planes * sets.fake.channels * shown[0] * shown[1])))
    with Progress("evaluating", 5, "steps") as progress:
        reference, reference_scans = loaded(sets.reference.sample(most, seed, "real"), size, "real", False)
        rounded = sets.reference.whole
        fakes, fake_scans = loaded(sets.fake.sample(most, seed, "fake"), size, "synthetic", rounded)
        others, other_scans = load(sets.others.sample(most, seed, "others"), size)
        progress.update(1, "scans read")
        pixels = int(np.prod(fakes.shape[1:]))
        seen = [at_random(images, max(16, ENCODED // pixels), seed) for images in (reference, others, fakes)]
        features = encode(seen[0], seen[1], seen[2], device, planes)
        entries, reasons, count = compare(features, draws, limit, seed)
        held_out = {"holdout": "your held-out scans", "validation": "your validation scans"}.get(
            sets.split, "your real scans"
        )
        for name, entry in entries.items():
            entry["words"] = words.metric_words(METRICS[name], entry, held_out)
        progress.update(2, "distances done")
        judged = classify(reference, others, fakes, seed, device, entries, reasons)
        progress.update(3, judged)
        repeated = copies.repeats(fakes, others, other_scans.groups, seed, device, unmirrored, fake_scans.apart)
        add_repeats(repeated, entries, reasons)
        found, pairs = search_copies(
            sets, size, reference, reference_scans, fakes, fake_scans, seed, device, entries, reasons, out
        )
        progress.update(5)
    looks = features[radiomics.features]
    drifted = words.drifted_features(looks["real"], looks["fake"], radiomics.NAMES)
    correlated = any(len(np.unique(scans.groups)) < len(scans) for scans in (sets.reference, sets.others))
    result = {
        "version": version("scansmith"),
        "seed": seed,
        "created": date.today().isoformat(),
        "real": {
            "count": len(sets.reference),
            "split": sets.split,
            "split_level": sets.reference.split_level,
            "source": sets.reference.origin,
        },
        "train": {"count": len(sets.train)} if sets.train is not None else None,
        "fake": {"count": len(sets.fake), "model": sets.fake.model},
        "size": list(size),
        "channels": sets.fake.channels,
        "compared": COMPARED if volumes else "whole images",
        "compared_per_draw": count,
        "draws": draws,
        "metrics": entries,
        "not_computed": reasons,
        "nearest": pairs,
        "nearest_picture": "nearest.png" if pairs else None,
        "verdict": words.verdict(
            entries, found, reasons.get("near_copies", ""), repeated, drifted, count, COMPARED if volumes else None
        ),
        "not_checked": words.not_checked(
            size,
            sets.fake.size,
            correlated,
            sets.split,
            sets.reference.split_level,
            found,
            (count, len(seen[0])),
        ),
    }
    write_json(out / "metrics.json", result)
    return result


def choose_sets(real: Path, fake: Path, train: Path | None, seed: int) -> Sets:
    """Decide what is compared with what.

    Raises:
        ValueError: a folder holds no scans, or too few, or the channels differ.
    """
    listed = partial(open_scans, volumes=holds_volumes(real, fake, train))
    synthetic = listed(fake)
    prepared = (real / "dataset.json").is_file()
    learned = listed(train, "train") if train is not None else listed(real, "train") if prepared else None
    learned = learned if learned is None or len(learned) else None
    reference, split = listed(real, "holdout" if prepared else None), "holdout"
    if len(reference) == 0:
        reference, split = listed(real, "validation"), "validation"
    if len(reference) == 0:
        learned_from = train is None or train.resolve() == real.resolve()
        reference, split = listed(real), "train" if learned_from else "holdout"
    if learned is None:
        split = "half"
    reference, others = halves(reference, seed) if learned is None or split == "train" else (reference, learned)
    for scans, name in ((synthetic, fake), (reference, real)):
        if len(scans) == 0:
            raise ValueError(f"expected scans to compare in {name}, found none")
    for scans, name in ((reference, real), (others, train or real)):
        if scans.channels != synthetic.channels:
            raise ValueError(
                f"expected the same channels on both sides, found {scans.channels} in {name} and {synthetic.channels} in {fake}: convert one of them (grey or RGB)"
            )
    return Sets(
        same_window(reference, synthetic),
        same_window(others, synthetic),
        learned and same_window(learned, synthetic),
        same_window(synthetic, reference),
        split,
    )


def same_window(scans: Scans, partner: Scans) -> Scans:
    """CT of a plain folder takes the window of its partner: HU mean the same on both sides."""
    if (
        scans.origin == "folder of scans"
        and scans.modality == "CT"
        and partner.window is not None
        and partner.window.units == "HU"
    ):
        return replace(scans, window=partner.window)
    return scans


def halves(scans: Scans, seed: int) -> tuple[Scans, Scans]:
    """Two random halves; the images of one patient or volume stay together unless there is only one of them."""
    rng = np.random.default_rng(derive_seed(seed, "halves"))
    groups = scans.groups if len(np.unique(scans.groups)) > 1 else np.arange(len(scans))
    names = rng.permutation(np.unique(groups))
    sizes = np.array([np.sum(groups == name) for name in names])
    first = names[: 1 + int(np.searchsorted(np.cumsum(sizes), len(scans) / 2.0))] if len(names) > 1 else names
    first = first[: max(1, len(names) - 1)] if len(names) > 1 else first
    inside = np.isin(groups, first)
    return scans.part(np.flatnonzero(inside)), scans.part(np.flatnonzero(~inside))


def compared_size(size: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) or (D, H, W) at which everything is compared: the synthetic scans' own, 16 to 256 pixels or 128 voxels a side."""
    scale = min(1.0, (LONGEST if len(size) == 2 else LONGEST_VOLUME) / max(size))
    scale = max(scale, 16.0 / min(size))
    return tuple(max(16, round(side * scale)) for side in size)


def loaded(scans: Scans, size: tuple[int, ...], kind: str, rounded: bool) -> tuple[np.ndarray, Scans]:
    """`load`, which must give at least one image.

    Raises:
        ValueError: no file could be read.
    """
    images, kept = load(scans, size, rounded)
    if len(images) == 0:
        raise ValueError(
            f"expected readable {kind} scans, found that none of {len(scans)} can be read: check the files"
        )
    return images, kept


def at_random(images: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most this many of the images (N, C, H, W), drawn at random: their order follows files and classes."""
    rng = np.random.default_rng(derive_seed(seed, "encoded"))
    return images if len(images) <= most else images[rng.choice(len(images), most, replace=False)]


def classify(
    reference: np.ndarray,
    others: np.ndarray,
    fakes: np.ndarray,
    seed: int,
    device: torch.device,
    entries: words.Entries,
    reasons: dict[str, str],
) -> str:
    """Add the entry of the fresh classifier, or the reason against it; returns words for the progress bar."""
    if min(len(reference), len(fakes) // 2) < 8:
        reasons["classifier"] = f"needs 8 held-out and 16 synthetic images, here are {len(reference)} and {len(fakes)}"
        return ""
    real, learned = (at_random(images, CLASSIFIED, seed) for images in (reference, others))
    fake = at_random(fakes, 2 * CLASSIFIED, seed)
    judged = classifier.accuracy(real, fake, learned if len(learned) >= 20 else None, seed=seed, device=device)
    entries["classifier"] = {
        "title": "A fresh classifier's accuracy",
        "value": judged.accuracy,
        "interval": list(judged.interval),
        "floor": 0.5,
        "floor_interval": None,
        "ratio": None,
        "better": "chance",
        "counts": {"real": judged.images // 2, "fake": judged.images // 2},
        "extractor": classifier.EXTRACTOR,
        "words": words.classifier_words(judged),
    }
    return f"real or synthetic: {words.percent(judged.accuracy)} told apart"


def add_repeats(repeated: tuple[int, int] | None, entries: words.Entries, reasons: dict[str, str]) -> None:
    """Add the share of synthetic scans that repeat each other, or the reason against it."""
    if repeated is None:
        reasons["repeats"] = "needs 10 images on either side, of more than one patient or scan"
        return
    hits, count = repeated
    entries["repeats"] = {
        "title": "Synthetic scans that repeat each other",
        "value": hits / count,
        "interval": list(wilson(hits, count)),
        "floor": 0.01,
        "floor_interval": None,
        "ratio": None,
        "better": "lower",
        "counts": {"real": count, "fake": count},
        "extractor": EXTRACTOR,
        "words": f"{hits:,} of {count:,} synthetic images resemble another one more than 99 % of equally many real images resemble one of another patient.",
    }


def search_copies(
    sets: Sets,
    size: tuple[int, ...],
    reference: np.ndarray,
    reference_scans: Scans,
    fakes: np.ndarray,
    fake_scans: Scans,
    seed: int,
    device: torch.device,
    entries: words.Entries,
    reasons: dict[str, str],
    out: Path,
) -> tuple[copies.Copies | None, list[dict[str, Any]]]:
    """Search all training scans, part by part, for the nearest of each synthetic and held-out image; draw the closest pairs.

    Where nothing is held out the pairs are drawn, but nothing says how near is too near, so they are not judged.
    """
    if sets.train is None:
        reasons["near_copies"] = "no training scans were given (--train names them)"
        (out / "nearest.png").unlink(missing_ok=True)
        return None, []
    unmirrored = sets.fake.channels if sets.fake.volumes else 0
    searching = [fakes] if sets.split == "train" else [fakes, reference]
    train = sets.train.sample(SEARCHED, seed, "train")
    found: list[Nearest] | None = None
    searched: list[Scans] = []
    for start in range(0, len(train), PART):
        images, kept = load(train.part(np.arange(start, min(start + PART, len(train)))), size)
        if len(images):
            found = copies.nearest_in_parts(searching, images, sum(map(len, searched)), found, device, unmirrored)
            searched.append(kept)
    if found is None:
        reasons["near_copies"] = "no training scan can be read"
        return None, []
    judged: copies.Copies | None = None
    if len(found) == 1:
        reasons["near_copies"] = (
            "the dataset holds nothing out that would show how near is too near; look at the closest pairs"
        )
    else:
        judged = copies.search(found[0], found[1], fakes, reference, reference_scans.groups, device, unmirrored)
        added = copies.entries(judged, seed)
        words.copy_words(added, judged, sum(map(len, searched)))
        entries.update(added)
    rows = np.concatenate([part.rows for part in searched])
    positions = copies.closest(found[0])
    train_rows = rows[found[0].rows[positions]]
    draw_closest(out, found[0], positions, fakes, fake_scans, train, train_rows, size)
    pairs = [
        {
            "fake": int(fake_scans.rows[position]),
            "file": fake_scans.file(int(position)),
            "train": int(row),
            "similarity": float(found[0].similarity[position]),
        }
        for position, row in zip(positions, train_rows)
    ]
    return judged, pairs


def draw_closest(
    out: Path,
    found: Nearest,
    positions: np.ndarray,
    fakes: np.ndarray,
    fake_scans: Scans,
    train: Scans,
    train_rows: np.ndarray,
    size: tuple[int, ...],
) -> None:
    """Write nearest.png; the training images are read once more, as the search keeps none."""
    from .picture import align, draw_pairs

    volumes = train.volumes
    pairs = []
    for position, row in zip(positions, train_rows):
        image, _ = load(train.part(np.flatnonzero(train.rows == row)), size)
        rows, columns = (int(step) for step in found.shift[position])
        aligned = align(
            image[0], bool(found.mirrored[position]), (rows, columns), SIZE, train.channels if volumes else 0
        )
        moved = ", mirrored" if found.mirrored[position] else ""
        pairs.append(
            (
                side_by_side(fakes[position]) if volumes else fakes[position],
                side_by_side(aligned) if volumes else aligned,
                str(fake_scans.rows[position]),
                f"{row}{moved}",
                float(found.similarity[position]),
            )
        )
    write_atomic(out / "nearest.png", lambda path: draw_pairs(path, pairs))
