"""Numbers as sentences that a doctor understands."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..metrics import Metric
from ..metrics.classifier import Verdict
from .copies import Copies
from .planes import COMPARED

Entries = dict[str, dict[str, Any]]
# Beyond this multiple of the floor grey values, noise or texture give synthetic scans away.
TELL_TALE = 4.0
# So many images above the most alike of equally many real ones happen by chance once in about fifty small sets: pairs
# come as two images, and of fresh pairs each further one beats all real pairs half as often.
FEW_REPEATS = 11


def percent(share: float) -> str:
    """0.536 -> "54 %"; shares below 1 % and above 99 % keep a decimal."""
    return f"{100 * share:.1f} %" if 0.0005 <= share < 0.00995 or 0.9905 < share < 0.9995 else f"{100 * share:.0f} %"


def times(ratio: float) -> str:
    """How many times, in words: "about 6 times as much as"."""
    if ratio < 1.15:
        return "no more than"
    return f"about {ratio:.1f} times as much as" if ratio < 9.5 else f"about {ratio:.0f} times as much as"


def is_are(count: int, noun: str) -> str:
    """ "1 scan is", "7 scans are"."""
    return f"{count:,} {noun} is" if count == 1 else f"{count:,} {noun}s are"


def metric_words(metric: Metric, entry: dict[str, Any], held_out: str) -> str:
    """One sentence for an entry that `compare` made."""
    value, floor, numbers = entry["value"], entry["floor"], f"{entry['title']}: {entry['value']:.3g}"
    if entry["better"] == "lower":
        what = f" in {metric.words}" if metric.words else ""
        if entry["ratio"] is None:
            compared = (
                "not at all"
                if value < 1e-9
                else "measurably"
                + (" while two sets of your real scans do not differ at all" if floor is not None else "")
            )
            return f"The synthetic scans differ from {held_out}{what} {compared} ({numbers})."
        return f"The synthetic scans differ from {held_out}{what} {times(entry['ratio'])} two sets of your real scans differ from each other ({numbers} against {floor:.3g})."
    said = metric.words.format(share=percent(value), value=f"{value:.2f}")
    shown = percent(floor) if floor is not None and "{share}" in metric.words else f"{floor or 0:.2f}"
    return said + ("." if floor is None else f" (two sets of your real scans: {shown}).")


def classifier_words(verdict: Verdict) -> str:
    """What the classifier's accuracy says."""
    low, high = verdict.interval
    found = f"A fresh classifier tells real from synthetic in {percent(verdict.accuracy)} of cases (50 % = cannot tell; 95 % interval {percent(low)} to {percent(high)})"
    if low > 0.5:
        return found + "."
    return found + (
        ": it cannot tell them apart." if high - low < 0.15 else ": not enough scans to say whether it can."
    )


def copy_words(entries: Entries, copies: Copies, searched: int) -> None:
    """Add the sentence to each entry that `copies.entries` made."""
    share, above = int(copies.copied.sum()), int(copies.above.sum())
    real, fake = f"{len(copies.real):,} held-out images", f"{len(copies.fake):,} synthetic images"
    words = {
        "nearest_training_median": "Half of the synthetic images are more similar than this to a training image; for held-out images, which cannot be copies, see the floor.",
        "nearest_training_p99": "One in a hundred synthetic images is more similar than this to a training image; the floor is the same for held-out images.",
        "above_holdout_p99": f"{is_are(above, 'synthetic image')} more similar to a training image than 99 % of the {real} are; without copies 1 % is to be expected.",
        "near_copies": f"{share:,} of {fake} are near copies of one of {searched:,} training images: too similar to it, and much nearer to it than to any held-out image.",
        "train_holdout_ratio": "How much nearer the training images are than the held-out ones; well below the floor, which held-out images give, means memorising.",
    }
    for name, sentence in words.items():
        if name in entries:
            entries[name]["words"] = sentence


def memorising(copies: Copies | None, unjudged: str) -> str:
    """The sentence on memorised training scans; `unjudged` is the reason why there are no `copies`."""
    if copies is None:
        return f"Nothing can be said about copies of training scans: {unjudged}."
    if copies.blind:
        return "ALARM: some held-out images are themselves copies of training images, so that a copy made by the model cannot be told from them: remove duplicates or split by patient, then evaluate again."
    count, all_of_them = int(copies.copied.sum()), len(copies.copied)
    if copies.alarm:
        found = (
            f"{count:,} of {all_of_them:,} synthetic images ({percent(count / all_of_them)}) are near copies of single training images"
            if count
            else "the synthetic scans lie much nearer to training scans than to held-out ones"
        )
        return f"ALARM, memorising: {found}. Do not share these scans before looking at the closest pairs and removing the copies."
    if count:
        return f"No sign of wholesale memorising, but {is_are(count, 'synthetic image')} close to a single training image: look at the closest pairs before sharing."
    few = (
        ""
        if len(copies.real) >= 50
        else f" Only {len(copies.real)} held-out images calibrate this search, so it is a weak one."
    )
    return f"No sign of memorising: none of {all_of_them:,} synthetic images is nearer to a training image than held-out images are by chance.{few}"


def collapse(entries: Entries, repeated: tuple[int, int] | None) -> str | None:
    """The alarm that the synthetic scans repeat themselves, or None."""
    reasons = []
    for name, what in (("recall", "reach"), ("coverage", "cover")):
        entry = entries.get(name)
        if (
            entry
            and entry["floor"] is not None
            and entry["interval"][1] < entry["floor_interval"][0]
            and entry["value"] < 0.5 * entry["floor"]
        ):
            reasons.append(
                f"they {what} {percent(entry['value'])} of the real variety where real scans {what} {percent(entry['floor'])}"
            )
    if repeated is not None and repeated[0] > max(0.1 * repeated[1], min(FEW_REPEATS, repeated[1] - 1)):
        reasons.append(
            f"{repeated[0]:,} of {repeated[1]:,} synthetic images resemble another one more than real images of different patients resemble each other"
        )
    return f"ALARM, little variety: {'; '.join(reasons)}." if reasons else None


def tell_tale(entries: Entries, drifted: list[str]) -> str | None:
    """The warning that grey values, noise or texture give the synthetic scans away, or None."""
    entry = entries.get("radiomics_frechet")
    if entry is None or entry["ratio"] is None or entry["ratio"] < TELL_TALE:
        return None
    most = f" Most different: {', '.join(drifted)}." if drifted else ""
    return f"ALARM, tell-tale: grey values, noise or texture differ from the real scans {times(entry['ratio'])} two sets of real scans differ.{most}"


def verdict(
    entries: Entries,
    copies: Copies | None,
    unjudged: str,
    repeated: tuple[int, int] | None,
    drifted: list[str],
    count: int,
    compared: str | None = None,
) -> list[str]:
    """The sentences of the verdict, alarms first; `compared` says what of a scan, None is all of it."""
    memory = memorising(copies, unjudged)
    alarms = [
        sentence
        for sentence in (memory, collapse(entries, repeated), tell_tale(entries, drifted))
        if sentence and sentence.startswith("ALARM")
    ]
    order = ("classifier", "random_conv_frechet", "radiomics_frechet", "recall", "precision")
    found = [entries[name]["words"] for name in order if name in entries]
    sentences = alarms + found + ([memory] if memory not in alarms else [])
    if compared:
        sentences.append(f"Compared were {compared}: an image here is these.")
    if count < 50:
        sentences.append(
            f"Only {is_are(count, 'image')} compared with equally many at a time: the numbers are rough, and small differences cannot be seen."
        )
    return sentences


def not_checked(
    size: tuple[int, ...],
    native: tuple[int, ...],
    correlated: bool,
    split: str,
    split_level: str,
    copies: Copies | None,
    drawn: tuple[int, int],
) -> list[str]:
    """What this evaluation cannot tell; `drawn`: images a side in one draw, and real ones to draw from."""
    count, held_out = drawn
    sentences = [
        "Usefulness: whether a model trained with these scans does better on real patients.",
        "Readers: no radiologist has looked at the scans.",
        "Small findings: a lesion that is missing, invented or out of place hardly moves any of these numbers.",
        "Other hospitals: everything is measured against scans like yours.",
        "Another training: the intervals cover which scans were compared, not how a second training would turn out.",
    ]
    if split == "train":
        sentences.append(
            "Unseen patients: the dataset holds nothing out, so the scans were compared with those that the model learned from, which flatters them."
        )
    if split == "validation":
        sentences.append(
            "Unseen patients: the dataset has no holdout, so validation scans stand in, on which the training was watched."
        )
    if count > 0.8 * held_out:
        sentences.append(
            f"Other real scans: each draw takes {'all' if count == held_out else f'{count:,} of the'} {held_out:,} real images that the synthetic ones are compared with, so the intervals leave out what another choice of these would change."
        )
    if copies is not None:
        sentences.append(
            "Hidden copies: scans are compared as wholes, mirrored and moved by up to 2 in 64 pixels; a rotated, cropped, warped or partial copy can be missed, and none found does not prove that nobody can be recognised."
        )
    if size != native:
        sentences.append(
            f"Fine detail: scans of {' x '.join(map(str, native))} {'pixels' if len(size) == 2 else 'voxels'} were compared at {' x '.join(map(str, size))}."
        )
    if len(size) == 3:
        sentences.append(
            f"Whole volumes: only {COMPARED} (axial, coronal, sagittal) were compared, each stretched to a square; what lies beside them was not looked at."
        )
    if correlated:
        sentences.append(
            "Correlated scans: several images come from one patient but were drawn as if independent, so the intervals are too narrow."
        )
    if split_level != "patient":
        doubt = (
            "some are known by their study alone, so that studies of one patient may be both learned from and held out"
            if split_level == "study"
            else "it is not known that training and held-out scans come from different patients"
        )
        harm = "and the floor" if split in ("half", "train") else "and hide copies"
        sentences.append(f"Patients: {doubt}, which would flatter the scans {harm}.")
    return sentences


def drifted_features(real: np.ndarray, fake: np.ndarray, names: tuple[str, ...], most: int = 2) -> list[str]:
    """The features whose mean moved most, as "noise (lower)"; at least one standard deviation of the real scans."""
    deviation = real.std(axis=0)
    usable = deviation > 1e-6 * (np.abs(real.mean(axis=0)) + 1.0)
    z = np.where(usable, (fake.mean(axis=0) - real.mean(axis=0)) / np.where(usable, deviation, 1.0), 0.0)
    order = np.argsort(-np.abs(z), kind="stable")[:most]
    return [f"{names[i]} ({'higher' if z[i] > 0 else 'lower'})" for i in order if abs(z[i]) > 1.0]
