"""The whole of `prepare`: survey, store, split, write; what is private goes beside the dataset, never into it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import dataset as prepared
from .. import formats
from ..formats import Index
from ..runtime import worker_count, write_atomic
from . import blocks
from . import labels as label_sources
from .fingerprint import Survey, least_images, survey
from .folders import TARGET
from .ledger import Journal, Ledger, Pseudonyms
from .manifest import columns_of, known_rows, near_copies, split_scans, windows_of
from .page import write_page
from .scans import Request
from .stream import digest, store_scans
from .summary import Outcome, describe, report


@dataclass(frozen=True)
class Places:
    """Where `prepare` reads and writes.

    Attributes:
        scans: folder of scans (or one file).
        root: the dataset.
        private: file of real paths, the pseudonyms' key and the splits, beside the dataset.
        cache: folder beside the dataset: what headers said and what was read for each shard; private, safe to delete.
        unpacked: folder in it for what zip archives hold.
        targets: folder of the targets of pairs, where they are in a folder of their own.
    """

    scans: Path
    root: Path
    private: Path
    cache: Path
    unpacked: Path
    targets: Path | None = None

    @classmethod
    def of(cls, scans: Path, root: Path, targets: Path | None = None) -> Places:
        beside = root.resolve()
        return cls(
            scans,
            root,
            beside.with_name(f"{beside.name}.private.json"),
            beside.with_name(f"{beside.name}.private.cache"),
            beside.with_name(f"{beside.name}.private.cache") / "unpacked",
            targets,
        )

    def name_of(self, file: Path) -> str:
        """Posix path below the folder of scans, also of what lies in an archive; of a target that below its own, behind `TARGET`."""
        for folder in (self.targets, self.unpacked_targets):
            if folder is not None and file.is_relative_to(folder):
                return TARGET + file.relative_to(folder).as_posix()
        return formats.name_of(file, self.scans, self.unpacked)

    @property
    def unpacked_targets(self) -> Path | None:
        """Folder for what zip archives of targets hold."""
        return self.unpacked.with_name("unpacked-targets") if self.targets else None


def prepare(
    scans: Path,
    root: Path,
    request: Request,
    workers: int | None = None,
) -> dict[str, Any]:
    """See `scansmith.prepare.prepare`."""
    targets = request.target_folder
    refuse_inside(scans, root)
    if targets:
        refuse_inside(targets, root)
        refuse_nested(scans, targets)
    places = Places.of(scans, root, targets)
    asked = request_of(scans, request)
    earlier = _read_private(places.private)
    if earlier.get("request") == asked and _generation(root) == earlier.get("generation"):
        opened = prepared.Dataset.open(root)
        prepared.clear(root, keep=earlier["generation"])
        if not (root / "report.html").is_file():
            write_page(root, opened)
        return {**earlier["result"], "unchanged": True}
    key = bytes.fromhex(earlier.get("key") or secrets.token_hex(32))
    # Before the long work: is this a place to write? And the pseudonyms' key outlives an interruption.
    _write_private(places.private, {**earlier, "key": key.hex(), "request": None})
    _private_folder(places.cache)
    with alone(places.cache):
        found = look_around(places, request, workers, earlier)
        return _carry_out(places, found, request, workers, {**earlier, "key": key.hex()}, asked)


def look_around(
    places: Places,
    request: Request,
    workers: int | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> Survey:
    """List the scans, opening only files that are new since the last time, and make the plan.

    Args:
        places: where to look; with a cache folder that can be written.
        request: what the user asked for.
        workers: processes.
        earlier: the private file of an earlier run; None looks without leaving a trace.
    """
    tags = label_sources.tags_needed(request.labels)
    found = _listed(places.scans, places.unpacked, places.cache / "index.jsonl", tags, workers, earlier is not None)
    if places.targets and places.unpacked_targets:
        index = places.cache / "index-targets.jsonl"
        more = _listed(places.targets, places.unpacked_targets, index, tags, workers, earlier is not None)
        found = [*found[0], *more[0]], [*found[1], *more[1]]
    names = {source.files[0]: places.name_of(source.files[0]) for source in found[0]}
    kept = _kept_choices(places.root, request, earlier)
    return survey(found, places.scans, names, request, kept, workers)


def _listed(
    scans: Path, unpacked: Path, index_file: Path, tags: tuple[str, ...], workers: int | None, kept: bool
) -> tuple[list[formats.Source], list[formats.Skipped]]:
    """What a folder holds; with `kept`, what headers say is taken from the index file and kept in it."""
    index = Index.load(index_file) if kept else Index(tags)
    found = formats.discover(
        scans, index=index, workers=workers or worker_count(None, 10_000), unpack_into=unpacked, tags=tags
    )
    if kept:
        index.save(index_file)
    return found


def looked(scans: Path, request: Request) -> Survey:
    """What `prepare` would find and do; nothing is kept on disk."""
    targets = request.target_folder
    if targets:
        refuse_nested(scans, targets)
    with tempfile.TemporaryDirectory() as folder:
        return look_around(Places.of(scans, Path(folder) / "dataset", targets), request)


def held_out(root: Path, layer: str = "source") -> list[list[Path]]:
    """The files of each scan that nothing learns from: the holdout's, or where nothing is held out those of validation; none of a
    scan whose other slices train.

    Args:
        root: a prepared dataset with its private file beside it.
        layer: "source" or "masks".
    """
    data = prepared.Dataset.open(root)
    rows = next((rows for split in ("holdout", "validation") if len(rows := data.rows(split))), ())
    cases = _read_private(Places.of(root, root).private).get("cases", {})
    learned = set(data.columns["case"][data.rows("train")].tolist())
    own = dict.fromkeys(case for row in rows if (case := str(data.columns["case"][row])) not in learned)
    return [[Path(file) for file in cases[case][layer]] for case in own if cases.get(case, {}).get(layer)]


def _kept_choices(root: Path, request: Request, earlier: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The choices of the dataset that the folder holds, when it was made by the same arguments and now grows."""
    if not earlier or earlier.get("arguments") != arguments_of(request) or _generation(root) is None:
        return None
    info = prepared.Dataset.open(root).info
    kept = {name: info[name] for name in ("choices", "facts", "said", "ct_windows")}
    return {**kept, "segments": earlier.get("segments", [])}


def refuse_inside(scans: Path, root: Path) -> None:
    if scans.is_dir() and root.resolve().is_relative_to(scans.resolve()):
        raise ValueError(
            f"expected the dataset outside the folder of scans, got {root} inside {scans}: what is written there would be read as scans next time"
        )


def refuse_nested(scans: Path, targets: Path) -> None:
    one, other = scans.resolve(), targets.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ValueError(
            f"expected two folders side by side, got {scans} and {targets}: one holds the other, so that its scans would be on both sides"
        )


def _carry_out(
    places: Places, found: Survey, request: Request, workers: int | None, earlier: dict[str, Any], asked: str
) -> dict[str, Any]:
    """Read, split and write what the survey found."""
    root, called = places.root, places.name_of
    names = Pseudonyms(bytes.fromhex(earlier["key"]))
    last = _generation(root)
    generation = (last or 0) + 1
    plan, ledger, writer = store_scans(root, places.cache, found, called, workers, generation, request.seed)
    found = replace(found, plan=plan)
    _require_enough(ledger, places, least_images(len(plan.layers) > 1 or request.volumes))
    same = earlier.get("arguments") in (None, arguments_of(request))
    near = near_copies(root, found, ledger, generation)
    splits, left_out, split_words = split_scans(
        found,
        ledger,
        near,
        known_rows(root) if last and same else {},
        earlier.get("splits", {}) if same else {},
        request,
    )
    windows, window_words = windows_of(plan, ledger, splits)
    columns = columns_of(found, ledger, names, splits, windows, left_out)
    block = _blocks(found, ledger, columns, request)
    words = [*window_words, *split_words, *(block.words if block else ())]
    if block:
        columns["split"] = block.split
    outcome = Outcome(found, ledger, columns, splits, windows, words, near, left_out, block)
    info = describe(outcome, names, called, request.choices)
    result = report(outcome, root, info)
    private = {
        "key": earlier["key"],
        "request": asked,
        "arguments": arguments_of(request),
        "generation": generation,
        "result": result,
        "segments": list(plan.segments),
        "splits": {**(earlier.get("splits", {}) if same else {}), **_by_patient(found, splits)},
        "cases": _cases(found, ledger, names, called),
    }
    _write_private(places.private, private)
    (root / "report.html").unlink(missing_ok=True)  # of an earlier generation; made again if this run dies here
    opened = writer.finish(info, columns)
    write_page(root, opened)
    Journal.forget(places.cache, keep=generation)
    return result


def _blocks(found: Survey, ledger: Ledger, columns: dict[str, Any], request: Request) -> blocks.Blocks | None:
    """Blocks of slices for translation, where there are one or two patients and the user did not say who judges."""
    plan = found.plan
    if len(plan.layers) == 1 or plan.stored_dimensions == 3 or request.choices.splits or request.choices.fractions:
        return None
    return blocks.blocked(columns, [found.scans[scan].name for scan in ledger.scans], plan.neighbours)


def _by_patient(found: Survey, splits: Mapping[int, str]) -> dict[str, str]:
    return {found.scans[scan].patient: split for scan, split in splits.items()}


def _cases(
    found: Survey, ledger: Ledger, names: Pseudonyms, called: Callable[[Path], str]
) -> dict[str, dict[str, Any]]:
    """Pseudonym -> what it stands for, for the private file."""
    skipped = [*found.skipped, *(entry for _, entry in ledger.skipped)]
    return {
        names.case(called(entry.file)): {"files": [str(entry.file.absolute())], "skipped": entry.reason}
        for entry in skipped
    } | {
        names.case(scan.name): {
            "files": [str(file.absolute()) for file in scan.files],
            "source": [str(file.absolute()) for one in (scan.source, *scan.further) for file in one.files],
            "masks": [str(file.absolute()) for mask in scan.masks for file in mask.files],
            "patient": scan.patient,
        }
        for scan in found.scans
    }


def _require_enough(ledger: Ledger, places: Places, least: int) -> None:
    """A folder whose scans are mostly empty, broken or copies leaves no dataset."""
    found = len(ledger.scans)
    if found >= least:
        return
    prepared.clear(places.root, keep=_generation(places.root))
    empty = ledger.empty
    reasons = empty + Counter(entry.reason for _, entry in ledger.skipped)
    why = f"; the commonest reason: {reasons.most_common(1)[0][0]}" if reasons else ""
    raise ValueError(
        f"expected at least {least} images to learn from in {places.scans}, found {found}: {len(ledger.skipped)} scans or slices were skipped, "
        f"{sum(empty.values())} slices are empty and {len(ledger.copies)} images are copies{why}"
    )


# ------------------------------------------------------------------------------------------------ state and private file


def arguments_of(request: Request) -> str:
    """Hash of what the user asked for: a dataset grows only under the same arguments."""
    choices = request.choices.made()
    table = request.choices.splits
    return digest(
        [
            prepared.VERSION,
            request.labels,
            request.pairs,
            request.masks,
            request.modality,
            request.max_side,
            request.seed,
        ]
        + ["volumes"] * request.volumes
        + [choices, hashlib.sha256(Path(table).read_bytes()).hexdigest() if table else None]
    )


def request_of(scans: Path, request: Request) -> str:
    """Hash of the arguments and of every file's path, size and time of change: equal when there is nothing new to do."""
    state = hashlib.sha256(f"{scans.resolve()}\0{arguments_of(request)}".encode("utf-8", "surrogateescape"))
    tops = [top for top in (scans, request.target_folder) if top is not None]
    files = [top for top in tops if not top.is_dir()]
    files += [Path(folder) / name for top in tops for folder, _, names in os.walk(top) for name in names]
    tables = [
        Path(text.rsplit(":", 1)[0]) for text in (request.labels, request.pairs or "", request.masks) if "." in text
    ]
    tables += [Path(text) for text in (request.labels, request.pairs or "") if text]
    for file in [*sorted(files), *tables]:
        try:
            status = file.stat()
            state.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            state.update(f"{file}\0gone\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _generation(root: Path) -> int | None:
    """The generation of the whole dataset in the folder; None when there is none, or one that lost a part."""
    try:
        return int(prepared.Dataset.open(root).info["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """Inside, no other process prepares the dataset of this private folder; where the system has no locks, nothing is checked.

    Raises:
        ValueError: another one does.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(
            f"expected to prepare {cache.name.removesuffix('.private.cache')} alone, found that another prepare is writing it: wait for it, or stop it"
        ) from error
    finally:
        os.close(folder)


def _private_folder(path: Path) -> None:
    """Made if needed; for its owner alone."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def _read_private(path: Path) -> dict[str, Any]:
    """What an earlier run left, or nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_private(path: Path, content: dict[str, Any]) -> None:
    """Readable for the owner alone."""

    def fill(partial: Path) -> None:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(json.dumps(content, allow_nan=False))

    write_atomic(path, fill)
