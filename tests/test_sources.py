"""Several scans as the source of one, any of which may be missing; tables of patients alone; and the slices of one patient in blocks."""

from __future__ import annotations

import importlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from test_pairs import scan

from scansmith import dataset, evaluate, intensity, model, pairings, patterns, prepare, train, translate
from scansmith.dataset import Dataset
from scansmith.evaluate import subsets
from scansmith.pairings import Several
from scansmith.pairings.scans import MISSING, THERE, drawn
from scansmith.prepare import blocks, several
from scansmith.prepare.write import held_out
from scansmith.train import pairs
from scansmith.train.recipes import RECIPES

SIZE = (32, 36, 20)
PATTERNS = "*T1*+*FLAIR*:*T2*"
RECIPE = replace(RECIPES["fidelity"], width=4, batch=4, images=64, threads=1, train_images=20, target=32)


def write_case(folder: Path, number: int, lacking: tuple[str, ...] = (), scale: float = 1.0) -> None:
    """T1, FLAIR = 1000 - T1 and T2 = T1 + 2 FLAIR inside a cylinder, 0 outside; every patient is different."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(number)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in SIZE), indexing="ij")
    wave = gaussian_filter(random.normal(size=SIZE), 2.0)
    middle, radius = random.uniform(-0.2, 0.2, 2), random.uniform(0.6, 1.0, 2)
    inside = sum(((axis - m) / r) ** 2 for axis, m, r in zip(axes[:2], middle, radius)) < 0.9
    t1 = np.rint(500 + 300 * wave / np.abs(wave).max())
    for name, values in (("T1", t1), ("FLAIR", 1000 - t1), ("T2", t1 + 2 * (1000 - t1))):
        if name not in lacking:
            place = np.diag([2.0 * scale, 2.0 * scale, 3.0 * scale, 1.0])
            nibabel.save(nibabel.Nifti1Image(np.where(inside, values, 0).astype(np.int16), place), folder / f"{name}.nii.gz")  # fmt: skip


def write_cases(root: Path, lacking: dict[int, tuple[str, ...]], count: int = 6) -> Path:
    for number in range(count):
        write_case(root / f"case{number}", number, lacking.get(number, ()))
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """Eight cases, two without T1, two without FLAIR, one of each held out; and their dataset."""
    root = tmp_path_factory.mktemp("sources")
    scans = write_cases(root / "scans", {1: ("T1",), 4: ("FLAIR",), 6: ("T1",), 7: ("FLAIR",)}, count=8)
    table = root / "splits.csv"
    splits = {0: "train", 1: "train", 2: "train", 3: "validation", 4: "train", 5: "holdout", 6: "holdout", 7: "holdout"}
    first = {1: "FLAIR", 6: "FLAIR"}
    lines = [f"case{k}/{first.get(k, 'T1')}.nii.gz,{split}" for k, split in splits.items()]
    table.write_text("\n".join(["file,split", *lines]))
    asked = json.dumps({"splits": str(table), "crop": "none"})
    prepare(scans, root / "data", pairs=PATTERNS, modality="MR:MR", plan=asked, workers=1)
    return scans, root / "data"


@pytest.fixture(scope="module")
def learned(prepared, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("learned") / "run"
    train(prepared[1], run, images=240, minutes=0.1, device="cpu")
    return run / "model"


def find(text: str, names: list[str]) -> several.Several | None:
    return several.find(text, [scan(name) for name in names], [f"scan:{name}" for name in names], names)


def opened(prepared: tuple[Path, Path]) -> tuple[Dataset, Several]:
    data = Dataset.open(prepared[1])
    pairing = pairings.pairing("paired", data)
    assert isinstance(pairing, Several)
    return data, pairing


def a_row(data: Dataset, present: tuple[bool, ...]) -> int:
    """A row from the middle of a case that has these sources."""
    rows = np.flatnonzero((data.columns["present"] == present).all(axis=1))
    return int(rows[len(rows) // 2])


# ------------------------------------------------------------------------------------------------ found


def test_patterns_joined_with_plus_give_cases_in_which_a_source_may_be_missing():
    names = ["a/T1.nii", "a/FLAIR.nii", "a/T2.nii", "b/T1.nii", "b/T2.nii", "c/FLAIR.nii", "c/T2.nii", "d/T1.nii"]
    found = find("*T1*+*FLAIR*:*T2*", names)
    assert found is not None
    assert found.cases == (((0, 1), 2), ((3, None), 4), ((None, 5), 6))
    assert found.names == ("T1", "FLAIR") and found.patterns == ("*T1*", "*FLAIR*")
    assert found.words[:2] == (
        "pairs: 3 cases of 2 sources by name patterns: T1 in 2, FLAIR in 2",
        "a source is missing in 2 cases, which stay and say so",
    )
    assert found.of_first() == {0: ((0, 1), 2), 3: ((3, None), 4), 5: ((None, 5), 6)}


def test_names_that_differ_beside_the_pattern_go_together_by_folder():
    names = [f"{p}/VSD.{kind}.{p}{k}.mha" for p in (1, 2) for k, kind in enumerate(("T1", "T1c", "Flair", "T2"))]
    found = find("*T1.*+*T1c.*+*Flair*:*T2*", names)
    assert found is not None and found.cases == (((0, 1, 2), 3), ((4, 5, 6), 7))
    assert found.names == ("T1", "T1c", "Flair")


def test_a_table_names_sources_in_columns_of_their_own_and_leaves_cells_empty(tmp_path):
    names = ["a/x1.nii", "a/x2.nii", "a/y.nii", "b/x1.nii", "b/y.nii"]
    table = tmp_path / "table.csv"
    table.write_text("source,source2,target\na/x1.nii,a/x2.nii,a/y.nii\nb/x1.nii,,b/y.nii\n")
    found = find(str(table), names)
    assert found is not None and found.cases == (((0, 1), 2), ((3, None), 4))
    assert found.names == ("source 1", "source 2") and found.patterns == (None, None)
    table.write_text("source,target\na/x1.nii,a/y.nii\n")
    assert find(str(table), names) is None


def test_a_plus_that_names_hold_and_one_source_are_as_they_were():
    assert find("*t1+gd*:*t2*", ["a_t1+gd.nii", "a_t2.nii"]) is None
    assert find("*t1*:*t2*", ["a_t1.nii", "a_t2.nii"]) is None
    assert find("MR:CT", ["a_t1.nii", "a_t2.nii"]) is None


@pytest.mark.parametrize(
    "text, names, words",
    [
        ("*T1*+T*:*FL*", ["a/T1.nii", "a/FL1.nii"], "as many wildcards"),
        ("*T1*+*1*:*T2*", ["a/T1.nii", "a/T2.nii"], "as two of"),
        ("*T1*+*PD*:*T2*", ["a/T1.nii", "a/T2.nii"], "none for '\\*PD\\*'"),
    ],
)
def test_sources_that_nothing_fits_or_a_scan_in_two_are_refused(text, names, words):
    with pytest.raises(ValueError, match=words):
        find(text, names)


def test_patterns_that_hold_a_patient_id_are_not_kept():
    names = ["4711_T1.nii", "4711_FLAIR.nii", "4711_T2.nii"]
    sources = [scan(name, patient="4711") for name in names]
    found = several.find("4711_T1*+4711_FLAIR*:4711_T2*", sources, ["patient:4711"] * 3, names)
    assert found is not None and found.patterns == (None, None) and found.names == ("T1", "FLAIR")


def test_sources_of_two_kinds_in_one_column_or_colour_are_refused():
    cases = several.Several((((0, 1), 2), ((3, None), 4)), ("a", "b"), (None, None), ())
    sources = [scan("0", "MR"), scan("1", "CT"), scan("2"), scan("3", "CT"), scan("4")]
    with pytest.raises(ValueError, match="of one kind as source a"):
        several.kinds(cases, sources, None)
    same = [scan("0"), scan("1"), scan("2"), scan("3"), scan("4")]
    assert [one["modality"] for one in several.kinds(cases, same, "MR+CT:CT")] == ["MR", "CT"]
    assert [one["modality"] for one in several.kinds(cases, same, "MR:CT")] == ["MR", "MR"]
    with pytest.raises(ValueError, match="for all 2 sources or for each"):
        several.kinds(cases, same, "MR+CT+MR:CT")


# ------------------------------------------------------------------------------------------------ stored


def test_every_source_is_stored_on_one_grid_to_the_bit_and_a_missing_one_is_marked(prepared):
    data, _ = opened(prepared)
    assert [(one["name"], one["modality"], one["scans"]) for one in data.info["sources"]] == [("T1", "MR", 6), ("FLAIR", "MR", 6)]  # fmt: skip
    assert set(data.info["layers"]) == {"images", "targets", "source2"}
    seen = Counter()
    for row in range(0, len(data), 7):
        t1, flair = data.sources(row)
        here = tuple(data.columns["present"][row].tolist())
        seen[here] += 1
        target = data.target(row)[0]
        inside = target > 0
        assert here == (bool(np.isfinite(t1).all()), bool(np.isfinite(flair).all()))
        assert all(np.isnan(one).all() for one, there in zip((t1, flair), here) if not there)
        own = t1 if here[0] else 1000 - flair
        np.testing.assert_array_equal(own[inside], 2000 - target[inside])
        np.testing.assert_array_equal(data.image(row)[0], t1 if here[0] else flair)
        if all(here):
            np.testing.assert_array_equal(flair[inside], 1000 - t1[inside])
        low, high = (data.columns[name][row] for name in ("source_low", "source_high"))
        np.testing.assert_array_equal(np.isfinite(low), here)
        first = here.index(True)
        assert (low[first], high[first]) == (data.columns["low"][row], data.columns["high"][row])
    assert set(seen) == {(True, True), (False, True), (True, False)}
    part = (slice(3, 9), slice(5, 20))
    np.testing.assert_array_equal(data.sources(0, part), data.sources(0)[:, 3:9, 5:20])
    assert data.source_intensity(a_row(data, (True, True)), 1).units == "a.u."


def test_a_source_that_cannot_be_used_is_missing_and_listed_and_the_case_stays(tmp_path):
    """One file is cut off, one shows another region."""
    scans = write_cases(tmp_path / "scans", {}, count=4)
    cut, away = (scans / case / "FLAIR.nii.gz" for case in ("case1", "case2"))
    cut.write_bytes(cut.read_bytes()[:9000])
    place = np.diag([2.0, 2.0, 3.0, 1.0])
    place[0, 3] = 900.0
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(away).dataobj), place), away)
    found = prepare(scans, tmp_path / "data", pairs=PATTERNS, modality="MR", workers=1)
    data = Dataset.open(tmp_path / "data")
    cases = {case: tuple(here) for case, here in zip(data.columns["case"].tolist(), data.columns["present"].tolist())}
    assert sorted(cases.values()) == [(True, False)] * 2 + [(True, True)] * 2
    reasons = {Path(entry["file"]).parent.name: entry["reason"] for entry in found["skipped"]}
    assert reasons.keys() == {"case1", "case2"}
    assert reasons["case2"].startswith("this source is taken as missing: expected two scans of one region")


def test_a_dataset_of_several_sources_grows_keeps_its_rows_and_refuses_other_sources(tmp_path):
    scans = write_cases(tmp_path / "scans", {1: ("T1",)}, count=4)
    prepare(scans, tmp_path / "data", pairs=PATTERNS, modality="MR", workers=1)
    before = Dataset.open(tmp_path / "data")
    split = dict(zip(before.columns["sha256"].tolist(), before.columns["split"].tolist()))
    values = {sha: before.sources(row) for row, sha in enumerate(before.columns["sha256"].tolist())}
    write_case(scans / "case9", 9, ("FLAIR",))
    prepare(scans, tmp_path / "data", pairs=PATTERNS, modality="MR", workers=1)
    after = Dataset.open(tmp_path / "data")
    assert after.info["generation"] == 2 and after.info["choices"] == before.info["choices"]
    assert len(after) > len(before) and after.info["sources"][1]["scans"] == 4
    for row, sha in enumerate(after.columns["sha256"].tolist()):
        if sha in split:
            assert after.columns["split"][row] == split[sha]
            np.testing.assert_array_equal(after.sources(row), values[sha])
    assert not list((tmp_path / "data").glob("source2-0001-*"))


def test_a_mask_of_any_source_belongs_to_the_case(tmp_path):
    """Named after FLAIR, which is not the first source."""
    scans = write_cases(tmp_path / "scans", {}, count=3)
    marked = np.zeros(SIZE, np.uint8)
    marked[10:20, 10:20, 4:16] = 2
    for case in scans.iterdir():
        nibabel.save(nibabel.Nifti1Image(marked, np.diag([2.0, 2.0, 3.0, 1.0])), case / "FLAIR_mask.nii.gz")
    masks = "*/FLAIR.nii.gz:*/FLAIR_mask.nii.gz"
    prepare(scans, tmp_path / "data", pairs="*/T1.*+*/FLAIR.*:*/T2.*", masks=masks, plan='{"crop": "none"}', workers=1)
    data = Dataset.open(tmp_path / "data")
    assert data.columns["masked"].all() and set(data.info["layers"]) == {"images", "masks", "targets", "source2"}
    row = int(np.flatnonzero(data.columns["slice"] == 8)[0])
    assert int((data.mask(row) == 2).sum()) == 100


def test_a_dataset_of_one_source_says_nothing_of_several(tmp_path):
    scans = write_cases(tmp_path / "scans", {}, count=3)
    prepare(scans, tmp_path / "data", pairs="*T1*:*T2*", modality="MR", workers=1)
    data = Dataset.open(tmp_path / "data")
    assert not set(dataset.SOURCE_COLUMNS) & set(data.columns)
    assert "sources" not in data.info and "sources" not in data.info["choices"] and len(data.info["ct_windows"]) == 2
    assert type(pairings.pairing("paired", data)) is pairings.scans.Scans


def test_paired_mr_is_scaled_by_its_medians_in_the_dataset_and_before_a_model_alike(tmp_path, learned):
    scans = write_cases(tmp_path / "scans", {}, count=3)
    asked = '{"dimensions": 3, "crop": "none"}'
    prepare(scans, tmp_path / "data", pairs="*T1*:*T2*", modality="MR:MR", plan=asked, workers=1)
    prepare(tmp_path / "scans", tmp_path / "alone", plan=asked, modality="MR", labels="none", workers=1)
    data, alone = Dataset.open(tmp_path / "data"), Dataset.open(tmp_path / "alone")
    assert data.info["choices"]["by_median"] and not alone.info["choices"]["by_median"]
    assert model.load(learned).config["translation"]["choices"]["by_median"]
    for row in range(len(data)):
        image, columns = data.image(row), data.columns
        for values, side in ((image, ""), (data.target(row), "target_")):
            low, high = columns[f"{side}low"][row], columns[f"{side}high"][row]
            foreground = values[values > intensity.background_level(values)[1]]
            assert (high - low) / (np.median(foreground) - low) == pytest.approx(intensity.MEDIANS, rel=0.02)
    prepare(
        scans, tmp_path / "data", pairs="*T1*:*T2*", modality="MR:MR", workers=1
    )  # grows by nothing, keeps the choice
    assert Dataset.open(tmp_path / "data").info["choices"]["by_median"]


# ------------------------------------------------------------------------------------------------ learned from


def test_a_source_of_several_is_their_images_and_what_says_which_are_there(prepared):
    data, pairing = opened(prepared)
    assert data.info["neighbours"] == 2 and pairing.in_channels == 2 * 2 * 5
    row = a_row(data, (False, True))
    source = pairing.source(row)
    assert source.shape == (20, *data.shape[1:]) and source.dtype == np.float32
    middle = pairing.middle(source)
    np.testing.assert_array_equal(middle[[0, 2]], [np.full(data.shape[1:], value) for value in (-1.0, MISSING)])
    np.testing.assert_array_equal(middle[3], np.full(data.shape[1:], THERE))
    window = data.source_intensity(row, 1)
    np.testing.assert_allclose(middle[1], 2 * (data.sources(row)[1] - window.low) / (window.high - window.low) - 1, atol=1e-5)  # fmt: skip
    np.testing.assert_array_equal(pairing.view(source), middle[1])
    np.testing.assert_array_equal(source, pairing.source(row))  # without draws it is always the same
    air = (pairing.target(row)[0] <= -0.9) & (middle[1] <= -0.9)
    assert air.any() and not pairing.body(source, pairing.target(row))[air].any()  # that T1 is missing is no body


def test_while_learning_sources_are_dropped_at_random_but_never_all_nor_one_brought_back(prepared):
    data, pairing = opened(prepared)
    both, one = a_row(data, (True, True)), a_row(data, (True, False))

    def said(row: int, seed: int) -> tuple[float, ...]:
        middle = pairing.middle(pairing.source(row, random=np.random.default_rng(seed)))
        for image, flag in zip(*np.split(middle, 2)):
            assert (flag == flag.flat[0]).all() and ((image == -1.0).all() == (flag.flat[0] == MISSING))
        return tuple(float(flag.flat[0]) for flag in middle[2:])

    found = Counter(said(both, seed) for seed in range(80))
    assert set(found) == {(THERE, THERE), (THERE, MISSING), (MISSING, THERE)}
    assert {said(one, seed) for seed in range(10)} == {(THERE, MISSING)}


def test_every_set_of_sources_comes_and_half_of_the_draws_are_whole():
    random = np.random.default_rng(0)
    present = np.array([True, True, False, True])
    found = Counter(tuple(drawn(present, random).tolist()) for _ in range(7000))
    assert len(found) == 7 and all(any(one) and not one[2] for one in found)
    for one, count in found.items():
        assert count / 7000 == pytest.approx(0.5 + 0.5 / 7 if one == tuple(present) else 0.5 / 7, abs=0.02)


def test_each_source_is_made_brighter_by_itself_and_ct_never(prepared):
    data, pairing = opened(prepared)
    row = a_row(data, (True, True))
    plain = pairing.images(pairing.source(row))
    ct = {**data.info, "sources": [data.info["sources"][0] | {"modality": "CT"}, data.info["sources"][1]]}
    mixed = Several(replace(data, info=ct))
    for seed in range(40):
        made = mixed.images(mixed.source(row, random=np.random.default_rng(seed)))
        assert np.array_equal(made[0], plain[0]) or (made[0] == -1.0).all()
        assert not np.array_equal(made[1], plain[1])
    assert mixed.alike == 1 and pairing.alike == 0


def test_the_line_is_the_least_squares_of_all_sources_and_better_than_of_one(prepared):
    _, pairing = opened(prepared)
    found = pairs.gather(pairing, RECIPE, (32, 32)).line
    assert len(found) == 1 + 4
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 3))
    y = 2.0 + x @ [1.0, -3.0, 0.5]
    np.testing.assert_allclose(pairs.fitted_line([(x[:200], y[:200]), (x[200:], y[200:])]), [2.0, 1.0, -3.0, 0.5], atol=1e-9)  # fmt: skip
    row = a_row(pairing.data, (True, True))
    source, target = pairing.source(row), pairing.target(row)
    one = pairings.scans.Scans(pairing.data)
    inside = pairing.body(source, target)
    simple = pairs.gather(one, RECIPE, (32, 32)).line
    own, others = (
        by.error(by.simple(line, by.source(row)), target, inside) for by, line in ((pairing, found), (one, simple))
    )
    assert own < 0.6 * others


def test_only_some_sources_can_be_asked_for(prepared):
    data, pairing = opened(prepared)
    flair = replace(pairing, only=(1,))
    lost = data.columns["case"][a_row(data, (True, False))]
    kept = np.concatenate([flair.rows(split) for split in dataset.SPLITS])
    assert lost not in data.columns["case"][kept] and len(kept) == int(data.columns["present"][:, 1].sum())
    row = a_row(data, (True, True))
    np.testing.assert_array_equal(flair.images(flair.source(row))[1], pairing.images(pairing.source(row))[1])
    assert (flair.images(flair.source(row))[0] == -1.0).all()
    with pytest.raises(ValueError, match="expected a row with one of the sources"):
        flair.source(a_row(data, (True, False)))


def test_tasks_of_one_source_refuse_several(prepared):
    with pytest.raises(ValueError, match="expected one source for each target"):
        pairings.pairing("denoise", Dataset.open(prepared[1]))


# ------------------------------------------------------------------------------------------------ cases to translate

ABOUT = [
    {"name": "T1", "modality": "MR", "pattern": "*T1*"},
    {"name": "T1c", "modality": "MR", "pattern": "*T1c*"},
    {"name": "PET", "modality": "PT", "pattern": None},
]


@pytest.mark.parametrize(
    "names, cases, left",
    [
        (["/d/p_T1.nii", "/d/p_T1c.nii", "/d/q_T1.nii"], [(0, 1, None), (2, None, None)], []),
        (["/d/a/s1_T1.nii", "/d/a/s2_T1c.nii", "/d/b/s3_T1c.nii"], [(0, 1, None), (None, 2, None)], []),
        (["/d/a/x_T1.nii", "/d/a/pet.nii", "/d/a/notes.nii"], [(0, None, 1)], [2]),
        (["/d/a/T1.nii"], [(0, None, None)], []),
        (["/d/a/1_T1.nii", "/d/a/2_T1.nii", "/d/a/9_T1c.nii", "/d/b/1_T1.nii"], [(3, None, None)], [0, 1, 2]),
    ],
)
def test_scans_are_one_case_by_wildcards_else_by_folder(names, cases, left):
    found = patterns.cases(ABOUT, [scan(name) for name in names], names)
    assert list(found.cases) == cases and [number for number, _ in found.left] == left


def test_without_patterns_modality_and_words_say_which_source_a_scan_is():
    about = [one | {"pattern": None} for one in ABOUT]
    sources = [scan("a/1/0.dcm", "PT", files=3), scan("a/t1/0.dcm", files=3), scan("a/t1c/0.dcm", files=3)]
    names = ["/d/a/1/0.dcm", "/d/a/t1/0.dcm", "/d/a/t1c/0.dcm"]
    assert patterns.cases(about, sources, names).cases == ((1, 2, 0),)


# ------------------------------------------------------------------------------------------------ used


def copied(scans: Path, out: Path, wanted: dict[str, tuple[str, ...]]) -> Path:
    for case, kinds in wanted.items():
        (out / case).mkdir(parents=True)
        for kind in kinds:
            shutil.copy(scans / case / f"{kind}.nii.gz", out / case / f"{kind}.nii.gz")
    return out


def test_any_set_of_sources_is_translated_in_the_place_of_the_first_and_what_was_missing_is_said(
    prepared, learned, tmp_path
):
    scans = copied(prepared[0], tmp_path / "scans", {"case0": ("T1", "FLAIR"), "case2": ("FLAIR",), "case3": ("T1",)})
    shutil.copy(prepared[0] / "case0" / "T2.nii.gz", scans / "notes.nii.gz")
    # A FLAIR on another grid of the same region.
    image = nibabel.load(scans / "case0" / "FLAIR.nii.gz")
    place = image.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::2, ::2], place), scans / "case0" / "FLAIR.nii.gz")
    found = translate(learned, scans, tmp_path / "out", device="cpu")
    assert found["missing"] == {"case2/FLAIR": ["T1"], "case3/T1": ["FLAIR"]}
    assert sorted(found["files"]) == ["case0/T1", "case2/FLAIR", "case3/T1"]
    assert len(found["skipped"]) == 1 and found["skipped"][0].startswith(
        "notes.nii.gz: expected one of T1 (*T1*), FLAIR"
    )
    for name in found["files"]:
        made, own = nibabel.load(tmp_path / "out" / f"{name}.nii.gz"), nibabel.load(scans / f"{name}.nii.gz")
        assert made.shape == own.shape and np.array_equal(made.affine, own.affine)
        assert np.isfinite(made.get_fdata()).all() and np.ptp(made.get_fdata()) > 0
    assert json.loads((tmp_path / "out" / "translated.json").read_text())["missing"] == found["missing"]
    assert translate(learned, scans, tmp_path / "out", device="cpu")["files"] == found["files"]
    shutil.copy(prepared[0] / "case2" / "T1.nii.gz", scans / "case2" / "T1.nii.gz")
    again = translate(learned, scans, tmp_path / "out", device="cpu")
    assert "case2/T1" in again["files"] and again["missing"] == {"case3/T1": ["FLAIR"]}


def test_what_is_written_says_what_it_was_made_from(prepared, learned, tmp_path):
    module = importlib.import_module("scansmith.translate")
    scans = copied(prepared[0], tmp_path / "scans", {"case2": ("FLAIR",)})
    written = []
    from scansmith import formats

    real = formats.write_derived
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "write_derived", lambda *given: written.append(given[3].words) or real(*given))
        module.translate(learned, scans, tmp_path / "out", maps=False, device="cpu")
    assert written[0].startswith("MR made from FLAIR (MR), without T1 (MR), which was missing by a neural network")


def test_what_is_translated_from_one_source_is_what_the_network_makes_with_the_other_missing(
    prepared, learned, tmp_path
):
    """The stored row with one source hidden, and the file alone, come to the same values."""
    data, pairing = opened(prepared)
    scans = copied(prepared[0], tmp_path / "scans", {"case0": ("T1",)})
    translate(learned, scans, tmp_path / "out", device="cpu")
    made = nibabel.load(tmp_path / "out" / "case0" / "T1.nii.gz").get_fdata()
    translator = model.load(learned)
    own = np.asarray(nibabel.load(prepared[0] / "case0" / "T1.nii.gz").dataobj)
    inference = importlib.import_module("scansmith.inference")
    alone = replace(pairing, only=(0,))
    compared = 0
    for row in np.flatnonzero(data.columns["present"][:, 0]):
        stored, k = data.sources(int(row))[0], int(data.columns["slice"][row])
        # At the ends empty slices are not stored, and the nearest stands in.
        if not 5 <= k <= 14 or not np.array_equal(np.sort(stored.ravel()), np.sort(own[:, :, k].ravel())):
            continue
        middle = inference.translate(translator.generator, alone.source(int(row)), translator.config["translation"]["patch"], "cpu")[0]  # fmt: skip
        window = translator.intensity
        there = (middle[0] + 1) / 2 * (window.high - window.low) + window.low
        np.testing.assert_allclose(np.sort(there.ravel()), np.sort(made[:, :, k].ravel()), atol=1.0)
        compared += 1
    assert compared == 10


def test_a_source_unlike_those_learned_from_refuses_the_case_by_name(prepared, learned, tmp_path):
    scans = copied(prepared[0], tmp_path / "scans", {"case0": ("T1", "FLAIR")})
    write_case(tmp_path / "scans" / "far", 0, ("T2",), scale=4.0)
    found = translate(learned, scans, tmp_path / "out", device="cpu")
    assert list(found["files"]) == ["case0/T1"]
    assert len(found["skipped"]) == 1 and "T1: refused" in found["skipped"][0]


# ------------------------------------------------------------------------------------------------ judged


def test_evaluation_says_what_each_set_of_sources_gives(prepared, learned, tmp_path):
    found = evaluate(prepared[1], learned, tmp_path / "out", device="cpu")
    table = {tuple(one["sources"]): one for one in found["sources"]["table"]}
    assert set(table) == {("T1", "FLAIR"), ("T1",), ("FLAIR",)}
    assert [table[one]["cases"] for one in (("T1", "FLAIR"), ("T1",), ("FLAIR",))] == [1, 2, 2]
    assert all(one["mae"]["value"] > 0 for one in table.values())
    assert len(found["metrics"]["translation"]["mae"]["each"]) == 3
    assert len(found["metrics"]["identity"]["mae"]["each"]) == 2  # one case has no T1
    assert any(line.startswith("Identity is T1") for line in found["words"])


def test_sets_are_all_each_alone_and_all_but_each():
    assert subsets.sets_of(2) == [(0, 1), (0,), (1,)]
    assert subsets.sets_of(3) == [(0, 1, 2), (0,), (1,), (2,), (1, 2), (0, 2), (0, 1)]


def test_a_model_of_several_sources_is_not_judged_on_others(prepared):
    settings = {"sources": [{"name": "T1", "modality": "MR"}, {"name": "PD", "modality": "MR"}]}
    with pytest.raises(ValueError, match=r"expected a dataset of T1 \(MR\), PD \(MR\)"):
        subsets.check(settings, opened(prepared)[1])
    with pytest.raises(ValueError, match="expected a dataset of one source"):
        subsets.check({}, opened(prepared)[1])


# ------------------------------------------------------------------------------------------------ patients from a table


@pytest.mark.parametrize("named", ["T1", "T2"])
def test_a_table_of_file_and_patient_alone_says_whose_the_scans_are_and_gives_no_classes(tmp_path, named):
    scans = write_cases(tmp_path / "scans", {})
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\n" + "".join(f"case{k}/{named}.nii.gz,person {k // 2}\n" for k in range(6)))
    found = prepare(scans, tmp_path / "data", pairs="*T1*:*T2*", labels=str(table), modality="MR", workers=1)
    assert found["split_level"] == "patient" and found["patients"] == 3 and found["labels"] == []
    assert "labels: none; with the table the patients of 6 of 6 scans are known" in found["plan"]
    data = Dataset.open(tmp_path / "data")
    assert "person" not in (tmp_path / "data" / "dataset.json").read_text()
    for case in set(data.columns["patient"].tolist()):
        assert len(set(data.columns["split"][data.columns["patient"] == case].tolist())) == 1


def test_a_table_of_patients_that_names_no_scan_and_one_that_lacks_classes_are_refused(tmp_path):
    scans = write_cases(tmp_path / "scans", {}, count=3)
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\nother.nii.gz,x\n")
    with pytest.raises(ValueError, match="to name the patients of scans, found no match"):
        prepare(scans, tmp_path / "data", pairs="*T1*:*T2*", labels=str(table), workers=1)
    table.write_text("file,patient,grade\ncase0/T1.nii.gz,x,2\n")
    with pytest.raises(ValueError, match="expected the columns label and one of"):
        prepare(scans, tmp_path / "data", pairs="*T1*:*T2*", labels=str(table), workers=1)


# ------------------------------------------------------------------------------------------------ few patients


def test_blocks_are_contiguous_and_no_slice_is_near_two_of_them():
    for count, step, gap in ((40, 1.0, 4.0), (100, 3.0, 12.0), (31, 0.5, 5.0)):
        places = np.arange(count) * step
        found = blocks.cut(places, step, gap, ("train", "validation", "holdout"))
        used = [places[found == name] for name in ("train", "validation", "holdout")]
        assert all(len(own) for own in used)
        for before, after in pairwise(used):
            assert after.min() - before.max() >= gap
        for own in used:
            np.testing.assert_allclose(np.diff(own), step)
        usable = count * step - 2 * gap
        assert len(used[0]) * step == pytest.approx(0.7 * usable, abs=1.01 * step)


def test_single_pictures_of_one_patient_lie_in_the_order_of_their_names():
    names = [f"s{k}.png" for k in (10, 2, 1, 30)]
    columns = {"case": np.array(list("abcd")), "slice": np.zeros(4, int), "affine": np.full((4, 4, 4), np.nan)}
    places, step, in_mm = blocks.positions(columns, np.arange(4), names)
    assert places.tolist() == [2, 1, 0, 3] and step == 1.0 and not in_mm


def test_volumes_of_one_patient_are_cut_at_the_same_place_in_the_patient():
    """Two scans of unequal slices, one turned round."""
    first = [np.diag([1.0, 1.0, 3.0, 1.0]) for _ in range(10)]
    for k, affine in enumerate(first):
        affine[2, 3] = 3.0 * k
    second = [np.diag([1.0, 1.0, -3.0, 1.0]) for _ in range(10)]
    for k, affine in enumerate(second):
        affine[2, 3] = 28.0 - 3.0 * k
    columns = {"case": np.array(["a"] * 10 + ["b"] * 10), "slice": np.tile(np.arange(10), 2), "affine": np.array(first + second)}  # fmt: skip
    places, step, in_mm = blocks.positions(columns, np.arange(20), [""] * 20)
    assert in_mm and step == 3.0
    np.testing.assert_allclose(places, [*range(0, 30, 3), *range(28, -1, -3)])


def test_one_patient_is_split_by_blocks_two_and_three_by_patient_and_it_is_said(tmp_path):
    scans = tmp_path / "scans"
    found = {}
    for count in (1, 2, 3):
        write_case(scans / f"case{count}", count)
        out = tmp_path / f"data{count}"
        found[count] = prepare(scans, out, pairs="*T1*:*T2*", modality="MR", workers=1), Dataset.open(out)
    one, data = found[1]
    assert one["split_level"] == "slices" and one["patients"] == 1
    assert data.info["blocked"] == "blocked slices of one patient: no statement about other patients"
    assert any(data.info["blocked"] in line for line in one["plan"])
    spread = {name: data.columns["slice"][data.rows(name)] for name in ("train", "validation", "holdout")}
    seen = {name: {int(near) for row in data.rows(name) for near in data.neighbours(int(row))} for name in spread}
    assert all(len(own) for own in spread.values()) and not len(data.rows("calibration"))
    assert not seen["train"] & seen["validation"] and not seen["validation"] & seen["holdout"]
    assert held_out(tmp_path / "data1") == []  # no file was left out of learning
    two, data = found[2]
    sides = {
        name: set(data.columns["patient"][data.rows(name)].tolist()) for name in ("train", "validation", "holdout")
    }
    assert (
        sides["train"] == sides["validation"] and not sides["train"] & sides["holdout"] and len(sides["holdout"]) == 1
    )
    assert "blocked" not in data.info and any("validation by blocked slices" in line for line in two["plan"])
    assert len(held_out(tmp_path / "data2")) == 1
    _, data = found[3]
    assert [len(set(data.columns["patient"][data.rows(name)].tolist())) for name in sides] == [1, 1, 1]
    assert not (data.columns["split"] == "").any()


def test_who_gives_the_splits_gets_them(tmp_path):
    write_case(tmp_path / "scans" / "case1", 1)
    table = tmp_path / "splits.csv"
    table.write_text("file,split\ncase1/T1.nii.gz,train\n")
    asked = json.dumps({"splits": str(table)})
    found = prepare(tmp_path / "scans", tmp_path / "data", pairs="*T1*:*T2*", modality="MR", plan=asked, workers=1)
    assert found["split_level"] != "slices" and found["splits"]["holdout"]["images"] == 0


def test_real_patients_are_left_out_where_there_are_two(shared_data, tmp_path):
    scans = shared_data / "paired_t1_t2_flair_3d_openms"
    if not scans.is_dir():
        pytest.skip(f"no open_ms at {scans}")
    asked = json.dumps({"height": 48, "width": 40, "dimensions": 2})
    found = prepare(scans, tmp_path / "data", pairs="*T1*:*T2*", modality="MR", plan=asked, workers=1)
    data = Dataset.open(tmp_path / "data")
    assert any("validation by blocked slices" in line for line in found["plan"])
    assert len(set(data.columns["patient"][data.rows("holdout")].tolist())) == 1
    last, first = (data.columns["slice"][data.rows(name)] for name in ("train", "validation"))
    assert min(abs(int(a) - int(b)) for a in last for b in first) > 3


def test_evaluation_of_one_patient_says_that_it_says_nothing_of_others(prepared, learned, tmp_path):
    """The model of several patients, on the slices of one."""
    write_case(tmp_path / "scans" / "case", 30, ())
    prepare(tmp_path / "scans", tmp_path / "data", pairs=PATTERNS, modality="MR:MR", plan='{"crop": "none"}', workers=1)
    found = evaluate(tmp_path / "data", learned, tmp_path / "out", device="cpu")
    assert found["split"] == "holdout" and found["patients"] == 1
    assert "Blocked slices of one patient: no statement about other patients." in found["words"]
