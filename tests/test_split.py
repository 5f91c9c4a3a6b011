"""Splits: patients stay where they are, classes are spread, copies never cross, tables are honoured."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scansmith.dataset import SPLITS
from scansmith.prepare import split

COUNT = st.integers(0, 25)
STEPS = st.integers(1, 4).flatmap(
    lambda classes: st.lists(st.lists(COUNT, min_size=classes, max_size=classes), min_size=1, max_size=5)
)


def grow(steps, seed=0, earlier=None):
    """(labels, splits) of the patients after each step; a step says how many come to each class."""
    labels, result = {}, []
    for step in steps:
        for label, count in enumerate(step):
            labels |= {f"p{len(labels) + i}": str(label) for i in range(count)}
        earlier = split.assign({name: [name] for name in labels}, labels, seed, earlier)
        result.append((dict(labels), earlier))
    return result


def test_without_earlier_splits_the_result_is_the_one_of_the_first_version():
    found = []
    for seed, sizes in ((0, [30]), (1, [40, 25, 7]), (2, [3, 1, 60, 19])):
        labels = {f"{k}-{i}": (str(k) if k else None) for k, size in enumerate(sizes) for i in range(size)}
        hashes = {name: [name, f"{name}x"] for name in labels}
        chosen = split.assign(hashes, labels, seed)
        assert chosen == split.assign(hashes, labels, seed, {}) == split.assign(hashes, labels, seed, {"gone": "train"})
        found.append(sorted(chosen.items()))
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    assert digest == "1d3d87f756d67830bc5615701880ea71be0941b90f552c5c99103b64fe4fa28f"


@settings(max_examples=40)
@given(STEPS, st.integers(0, 3))
def test_nobody_ever_moves_and_shares_stay_within_three_patients(steps, seed):
    before = {}
    for labels, now in grow(steps, seed):
        assert now.keys() == labels.keys()
        assert all(now[patient] == where for patient, where in before.items())
        before = now
        wanted = split.counts(len(labels))
        assert all(abs(count - wanted[name]) <= 3 for name, count in Counter(now.values()).items())
        for label in set(labels.values()):
            own = Counter(now[patient] for patient in labels if labels[patient] == label)
            size = sum(own.values())
            assert all(abs(own[name] - size * wanted[name] / len(labels)) <= 3 for name in SPLITS)


@settings(max_examples=8)
@given(st.lists(st.integers(0, 3), min_size=60, max_size=90))
def test_patients_who_come_one_by_one_fill_every_split_of_every_class(arrivals):
    labels, now = grow([[int(label == one) for label in range(4)] for one in arrivals])[-1]
    wanted = split.counts(len(labels))
    total = Counter(now.values())
    assert all(abs(total[name] - wanted[name]) <= 2 for name in SPLITS)
    for label, size in Counter(labels.values()).items():
        own = Counter(now[patient] for patient in labels if labels[patient] == label)
        if size >= 20:
            assert own["holdout"] and own["validation"] and own["train"] > size / 2


def test_a_patient_who_gets_more_images_does_not_move():
    labels = {f"p{i}": None for i in range(30)}
    first = split.assign({name: [name] for name in labels}, labels, 0)
    more = {name: [name, f"{name} again"] for name in labels}
    assert split.assign(more, labels, 0, first) == first
    assert split.assign(more, labels, 0) != first  # why `earlier` is needed


def test_calibration_begins_to_fill_when_the_folder_grows_beyond_nineteen_patients():
    (_, small), (_, large) = grow([[19], [21]])
    assert "calibration" not in small.values()
    assert Counter(large.values())["calibration"] == 2
    assert small.items() <= large.items()


def test_calibration_fills_one_by_one_too():
    history = grow([[1]] * 60)
    assert all("calibration" not in now.values() for _, now in history[:19])
    assert Counter(history[-1][1].values())["calibration"] in (2, 3, 4)


def test_a_class_that_lies_in_one_split_leaves_the_other_classes_their_shares():
    earlier = {f"a{i}": "holdout" for i in range(20)}
    labels = dict.fromkeys(earlier, "a") | {f"b{i}": "b" for i in range(100)} | {f"c{i}": "a" for i in range(10)}
    chosen = split.assign({name: [name] for name in labels}, labels, 0, earlier)
    assert earlier.items() <= chosen.items()
    assert not [name for name in labels if name.startswith("c") and chosen[name] == "holdout"]
    others = Counter(chosen[name] for name in labels if name.startswith("b"))
    assert others == {"train": 70, "validation": 10, "calibration": 5, "holdout": 15}


def test_an_official_split_of_everybody_is_left_as_it_is():
    given_splits = {f"p{i}": ("train" if i < 80 else "holdout") for i in range(100)}
    labels = {name: str(hash(name) % 2) for name in given_splits}
    assert split.assign({name: [name] for name in labels}, labels, 3, given_splits) == given_splits


def test_own_fractions_are_met():
    fractions = {"train": 0.5, "validation": 0.25, "calibration": 0.0, "holdout": 0.25}
    labels = {f"p{i}": None for i in range(100)}
    chosen = split.assign({name: [name] for name in labels}, labels, 0, None, fractions)
    assert Counter(chosen.values()) == {"train": 50, "validation": 25, "holdout": 25}


def test_from_scratch_a_grown_folder_moves_few_patients():
    moved = []
    for draw in range(12):
        names = [f"{draw}-{i}" for i in range(110)]
        before = split.assign({name: [name] for name in names[:100]}, dict.fromkeys(names[:100]), 0)
        after = split.assign({name: [name] for name in names}, dict.fromkeys(names), 0)
        moved.append(sum(before[name] != after[name] for name in before) / 100)
    assert sum(moved) / len(moved) < 0.05


# ------------------------------------------------------------------------------------------------ copies

LINKED = st.integers(2, 8).flatmap(
    lambda patients: st.tuples(
        st.lists(st.integers(0, patients - 1), min_size=4, max_size=30),  # row -> patient
        st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=25),
        st.dictionaries(st.integers(0, patients - 1), st.sampled_from(SPLITS), max_size=patients),
        st.sets(st.integers(0, 29)),
    )
)


def case(drawn):
    rows, pairs, earlier, known = drawn
    owner = [f"p{patient}" for patient in rows]
    links = [(i % len(rows), j % len(rows)) for i, j in pairs if i % len(rows) != j % len(rows)]
    given_splits = {f"p{patient}": where for patient, where in earlier.items() if patient in rows}
    return links, owner, given_splits, {row for row in known if row < len(rows) and owner[row] in given_splits}


@settings(max_examples=50)
@given(LINKED)
def test_copies_never_cross_splits_and_nobody_moves(drawn):
    links, owner, earlier, known = case(drawn)
    cluster, out = split.resolve(links, owner, earlier, known)
    assert set(cluster) == set(owner)
    held = split.splits_of_clusters(cluster, earlier)  # asserts that no cluster holds two splits
    hashes = {name: [name] for name in set(cluster.values())}
    chosen = split.assign(hashes, dict.fromkeys(hashes), 0, held)
    assert all(chosen[cluster[patient]] == where for patient, where in earlier.items())
    for i, j in links:
        if i not in out and j not in out:
            assert cluster[owner[i]] == cluster[owner[j]]


@given(LINKED)
def test_a_row_is_left_out_only_for_a_link_to_an_older_one(drawn):
    links, owner, earlier, known = case(drawn)
    _, out = split.resolve(links, owner, earlier, known)
    age = lambda row: (row not in known, row)
    for row in out:
        partners = [j if i == row else i for i, j in links if row in (i, j) and owner[i] != owner[j]]
        assert any(age(partner) < age(row) for partner in partners)


@given(LINKED, st.randoms(use_true_random=False))
def test_the_order_of_links_and_of_their_ends_does_not_matter(drawn, random):
    links, owner, earlier, known = case(drawn)
    other = [pair[::-1] if random.random() < 0.5 else pair for pair in links]
    random.shuffle(other)
    assert split.resolve(links, owner, earlier, known) == split.resolve(other, owner, earlier, known)


@settings(max_examples=50)
@given(LINKED)
def test_a_second_run_moves_nobody_and_leaves_out_no_more(drawn):
    links, owner, earlier, known = case(drawn)
    cluster, out = split.resolve(links, owner, earlier, known)
    hashes = {name: [name] for name in set(cluster.values())}
    chosen = split.assign(hashes, dict.fromkeys(hashes), 0, split.splits_of_clusters(cluster, earlier))
    now = {patient: chosen[cluster[patient]] for patient in owner}
    again, out_again = split.resolve(links, owner, now, set(range(len(owner))) - set(out))
    # A row may come back whose patients were free and went to one split; none that was kept is lost.
    assert set(out_again) <= set(out)
    split.splits_of_clusters(again, now)  # asserts that nobody was tied across splits


@given(LINKED)
def test_without_earlier_splits_nothing_is_left_out(drawn):
    links, owner, _, _ = case(drawn)
    cluster, out = split.resolve(links, owner, {})
    assert out == []
    assert cluster == split.join(owner, [(owner[i], owner[j]) for i, j in links])


def test_a_new_patient_between_two_splits_stays_with_the_one_it_shares_more_with():
    owner = ["a", "b", "b", "new", "new", "new"]
    earlier = {"a": "train", "b": "holdout"}
    cluster, out = split.resolve([(0, 3), (1, 4), (2, 5)], owner, earlier, {0, 1, 2})
    assert out == [3]
    assert cluster == {"a": "a", "b": "b", "new": "b"}


def test_two_splits_are_not_tied_through_two_new_patients():
    owner = ["a", "b", "x", "x", "y", "y"]
    cluster, out = split.resolve([(0, 2), (3, 4), (5, 1)], owner, {"a": "train", "b": "holdout"}, {0, 1})
    assert len(out) == 1
    assert cluster["a"] != cluster["b"]


def test_of_two_known_patients_the_newer_row_goes_whatever_its_number():
    cluster, out = split.resolve([(0, 1)], ["a", "b"], {"a": "train", "b": "holdout"}, {1})
    assert (cluster, out) == ({"a": "a", "b": "b"}, [0])
    assert split.resolve([(0, 1)], ["a", "b"], {"a": "train", "b": "holdout"}, {0, 1})[1] == [1]
    assert split.resolve([(0, 1)], ["a", "b"], {"a": "train", "b": "train"}, {0, 1}) == ({"a": "a", "b": "a"}, [])


# ------------------------------------------------------------------------------------------------ tables


def write(folder, text, name="splits.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_table_of_files_or_patients_is_read_under_the_names_people_use(tmp_path):
    table = write(
        tmp_path, "\ufeffFile, Split\r\na\\1.png,Train\r\n./b/2.png,val\r\nc.png,TEST\r\nd.png,calibration\r\n,\r\n"
    )
    assert split.read_splits(table) == {
        "a/1.png": "train", "b/2.png": "validation", "c.png": "holdout", "d.png": "calibration",
    }  # fmt: skip
    table = write(tmp_path, "patient\tage\tsplit\nP1\t40\ttraining\nP1\t40\ttrain\nP2\t50\tholdout\n", "splits.tsv")
    assert split.read_splits(table) == {"P1": "train", "P2": "holdout"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,split\na.png,fold3\n", "line 2.*'fold3'"),
        ("file,split\na.png,train\na.png,test\n", "'a.png'.*train and holdout"),
        ("file,split\na.png,\n", "line 2.*'a.png' alone"),
        ("name,split\na.png,train\n", "found name, split"),
        ("file,label\na.png,train\n", "found file, label"),
        ("", "found no columns"),
        ("file,split\n", "empty table"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_with_the_place(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        split.read_splits(write(tmp_path, text))


def test_a_missing_or_binary_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        split.read_splits(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"file,split\n\xff\xfe\x00,train\n")
    with pytest.raises(ValueError, match="UTF-8"):
        split.read_splits(tmp_path / "binary.csv")


def test_names_in_a_table_become_patients():
    names, patients = ["a/1.png", "a/2.png", "b/1.png", "c/9.png"], ["A", "A", "B", "C"]
    assert split.patients_of({"a/1.png": "train", "9.png": "holdout"}, names, patients) == {
        "A": "train",
        "C": "holdout",
    }
    assert split.patients_of({"B": "holdout"}, names, patients) == {"B": "holdout"}
    with pytest.raises(ValueError, match="one patient in one split"):
        split.patients_of({"a/1.png": "train", "a/2.png": "holdout"}, names, patients)
    with pytest.raises(ValueError, match="no match among its 1 names"):
        split.patients_of({"z.png": "train"}, names, patients)
    assert split.patients_of({}, names, patients) == {}


def test_splits_of_clusters_refuses_two_splits_in_one_cluster():
    with pytest.raises(AssertionError):
        split.splits_of_clusters({"a": "a", "b": "a"}, {"a": "train", "b": "holdout"})
    groups = defaultdict(list)
    for patient, name in split.join("abcd", [("b", "a"), ("c", "d")]).items():
        groups[name].append(patient)
    assert dict(groups) == {"a": ["a", "b"], "c": ["c", "d"]}
