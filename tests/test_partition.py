"""Dealing training examples to workers, and drawing batches from what they hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fltrust_repro.errors import BadInput
from fltrust_repro.partition import (
    Shards,
    of_users,
    partition,
    root_examples,
    sample_batches,
    share_groups,
    sorted_parts,
)

LABELS = np.arange(1000) % 7


def deal(labels, classes, workers, non_iid, seed=0):
    return partition(np.asarray(labels), classes, workers, non_iid, np.random.default_rng(seed))


def of_sizes(*sizes):
    """Shards of consecutive examples: worker 0 holds 0..sizes[0]-1, and so on."""
    ends = np.cumsum(sizes)
    return Shards.of([np.arange(end - size, end) for size, end in zip(sizes, ends)])


# --- by labels in order, by users


def test_sorted_parts_are_equal_in_order_and_all_is_held_by_who_attacks():
    labels = np.array([2, 0, 1, 0, 2, 1])
    shards = sorted_parts(labels, workers=5, compromised=2)
    assert [shards[i].tolist() for i in range(5)] == [[1, 3, 2, 5, 0, 4]] * 2 + [
        [1, 3], [2, 5], [0, 4],
    ]  # fmt: skip


def test_each_user_is_a_worker_and_holds_what_is_the_users():
    shards = of_users(np.array([7, 3, 7, 9, 3]), 3)
    assert [shards[i].tolist() for i in range(3)] == [[1, 4], [0, 2], [3]]


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        (None, "does not say whose its examples are; use --reading dealing=once"),
        (np.array([1, 2, 2]), "has 2 users for 3 workers; use --workers 2, or"),
    ],
)
def test_users_that_are_no_workers_are_refused(users, problem):
    with pytest.raises(BadInput, match=problem):
        of_users(users, 3)


# --- partition


@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.floats(0.01, 1),
    st.integers(0, 60),
    st.integers(0, 2**32),
)
def test_every_example_is_dealt_once(classes, workers, non_iid, n, seed):
    shards = deal(np.arange(n) % classes, classes, workers, non_iid, seed)
    assert len(shards) == workers
    assert sorted(shards.examples.tolist()) == list(range(n))
    assert shards.sizes.sum() == n
    assert [len(shards[i]) for i in range(workers)] == shards.sizes.tolist()


def test_with_p_1_group_l_holds_label_l_alone():
    labels = np.arange(3000) % 10
    shards = deal(labels, 10, 100, 1.0)
    for worker in range(100):
        assert set(labels[shards[worker]]) == {worker // 10}


def test_the_share_of_label_l_in_group_l_is_p():
    labels = np.repeat(np.arange(10), 5000)
    shards = deal(labels, 10, 50, 0.5)
    in_group = np.zeros((10, 10))
    for worker in range(50):
        in_group[worker // 5] += np.bincount(labels[shards[worker]], minlength=10)
    shares = in_group / 5000
    np.testing.assert_allclose(np.diag(shares), 0.5, atol=0.03)
    # The rest goes to the other nine groups uniformly.
    np.testing.assert_allclose(shares[~np.eye(10, dtype=bool)], 0.5 / 9, atol=0.015)


def test_inside_a_group_workers_are_equally_likely():
    sizes = deal(np.zeros(50000, dtype=int), 2, 20, 1.0).sizes
    np.testing.assert_allclose(sizes[:10], 5000, atol=5 * 5000**0.5)
    assert (sizes[10:] == 0).all()


def test_with_p_one_over_l_workers_do_not_depend_on_the_label():
    labels = np.repeat(np.arange(5), 8000)
    shards = deal(labels, 5, 10, 0.2)
    counts = np.array([np.bincount(labels[shards[i]], minlength=5) for i in range(10)])
    assert ((counts - 800) ** 2 / 800).sum() < 80  # chi-square with about 45 degrees of freedom


def test_neighbouring_groups_share_a_worker_where_m_is_no_multiple_of_l():
    # Eight groups of 12.5 workers: label 0 falls on workers 0 to 12, label 1 on 12 to 24.
    labels = np.repeat(np.arange(8), 12500)
    shards = deal(labels, 8, 100, 1.0)
    for label in range(8):
        holders = [i for i in range(100) if (labels[shards[i]] == label).any()]
        assert holders == list(range(int(12.5 * label), int(np.ceil(12.5 * (label + 1)))))
    shared = np.bincount(labels[shards[12]], minlength=8)
    np.testing.assert_allclose(shared[:2], 500, atol=120)  # half a worker's 1000 from each
    np.testing.assert_allclose(shards.sizes, 1000, atol=160)


def test_fewer_workers_than_labels():
    labels = np.repeat(np.arange(10), 100)
    shards = deal(labels, 10, 4, 1.0)
    held = [set(labels[shards[i]]) for i in range(4)]
    assert held == [{0, 1, 2}, {2, 3, 4}, {5, 6, 7}, {7, 8, 9}]


@pytest.mark.parametrize(("classes", "workers"), [(1, 5), (1, 1), (10, 1)])
def test_one_class_or_one_worker(classes, workers):
    shards = deal(np.arange(200) % classes, classes, workers, 0.5)
    assert sorted(shards.examples) == list(range(200))
    assert (shards.sizes > 0).all()


def test_the_generator_decides_the_partition():
    labels = np.arange(500) % 10
    first, again, other = (deal(labels, 10, 20, 0.5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.examples, again.examples)
    assert first.sizes.tolist() != other.sizes.tolist()


def test_shuffling_numbers_the_same_shards_otherwise():
    shards = deal(np.arange(300) % 10, 10, 30, 0.8)
    shuffled = shards.shuffled(np.random.default_rng(3))
    before = [tuple(shards[i]) for i in range(30)]
    after = [tuple(shuffled[i]) for i in range(30)]
    assert sorted(before) == sorted(after)
    assert before != after


def test_after_shuffling_any_worker_may_be_the_first():
    shards = of_sizes(*range(1, 6))
    firsts = [len(shards.shuffled(np.random.default_rng(k))[0]) for k in range(500)]
    np.testing.assert_allclose(np.bincount(firsts, minlength=6)[1:], 100, atol=45)


# --- batches


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8),
    st.integers(1, 10),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_batches_hold_different_examples_of_their_own_worker(sizes, batch_size, rounds, seed):
    shards = of_sizes(*sizes)
    batches = sample_batches(shards, LABELS, batch_size, rounds, np.random.default_rng(seed))
    assert batches.rows.shape == (rounds, len(sizes), batch_size)
    assert batches.counts.tolist() == [min(size, batch_size) for size in sizes]
    for drawn in batches.rows:
        for worker, count in enumerate(batches.counts):
            batch = drawn[worker, :count].tolist()
            assert len(set(batch)) == count
            assert set(batch) <= set(shards[worker].tolist())
    assert (batches.labels == LABELS[batches.rows]).all()


def test_a_batch_larger_than_the_shard_is_the_whole_shard():
    batches = sample_batches(of_sizes(3, 0, 2), LABELS, 5, 1, np.random.default_rng(0))
    assert batches.counts.tolist() == [3, 0, 2]
    assert sorted(batches.rows[0, 0, :3]) == [0, 1, 2]
    assert sorted(batches.rows[0, 2, :2]) == [3, 4]


def test_with_replacement_every_batch_is_whole_and_every_example_equally_likely():
    shards, rng = of_sizes(3, 0, 2, 0), np.random.default_rng(0)
    batches = sample_batches(shards, LABELS, 4000, 2, rng, with_replacement=True)
    assert batches.counts.tolist() == [4000, 0, 4000, 0]
    assert (batches.labels == LABELS[batches.rows]).all()
    for round_ in batches.rows:
        assert np.bincount(round_[0]).tolist() == pytest.approx([4000 / 3] * 3, abs=4.5 * 30)
        assert np.bincount(round_[2])[3:].tolist() == pytest.approx([2000] * 2, abs=4.5 * 32)


def test_where_nobody_holds_an_example_all_batches_are_empty():
    for replaced in (False, True):
        batches = sample_batches(
            of_sizes(0, 0), LABELS, 4, 2, np.random.default_rng(0), with_replacement=replaced
        )
        assert batches.rows.shape == batches.labels.shape == (2, 2, 4)
        assert batches.counts.tolist() == [0, 0]


def test_every_example_and_every_pair_is_equally_likely():
    # One worker with 7 examples, batches of 3, 7000 draws: 3000 of each, 1000 of each pair.
    rows = sample_batches(of_sizes(7), LABELS, 3, 7000, np.random.default_rng(1)).rows[:, 0]
    singles = np.bincount(rows.ravel(), minlength=7)
    np.testing.assert_allclose(singles, 3000, atol=4.5 * (7000 * 3 / 7 * 4 / 7) ** 0.5)
    together = np.zeros((7, 7))
    for batch in rows:
        together[np.ix_(batch, batch)] += 1
    pairs = together[np.triu_indices(7, 1)]
    np.testing.assert_allclose(pairs, 1000, atol=4.5 * (7000 / 7 * 6 / 7) ** 0.5)


def test_batches_are_drawn_afresh_each_round_and_iteration():
    shards, rng = of_sizes(1000), np.random.default_rng(2)
    first, second = (
        sample_batches(shards, LABELS, 10, 2, rng),
        sample_batches(shards, LABELS, 10, 2, rng),
    )
    drawn = {tuple(sorted(rows)) for rows in [*first.rows[:, 0], *second.rows[:, 0]]}
    assert len(drawn) == 4


def test_workers_draw_independently():
    rows = sample_batches(of_sizes(100, 100), LABELS, 5, 1, np.random.default_rng(3)).rows[0]
    assert set(rows[0]) != set(rows[1] - 100)


def test_the_generator_decides_the_batches():
    shards = of_sizes(30, 40)
    first, again, other = (
        sample_batches(shards, LABELS, 8, 2, np.random.default_rng(seed)).rows for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("workers", "classes"), [(100, 2), (10, 10), (7, 3), (2, 5)])
def test_a_shared_group_is_what_each_of_its_workers_holds(workers, classes):
    labels = np.arange(600) % classes
    shards = share_groups(labels, classes, workers, 0.9, np.random.default_rng(0))
    groups = [int((i + 0.5) * classes / workers) for i in range(workers)]
    for i, group in enumerate(groups):
        assert (labels[shards[i]] == group).mean() > 0.8
        assert shards[i].tolist() == shards[groups.index(group)].tolist()
    everybody = np.concatenate([shards[groups.index(g)] for g in set(groups)])
    assert len(set(everybody.tolist())) == len(everybody)
    if workers >= classes:
        assert len(everybody) == 600


TEN_CLASSES = np.repeat(np.arange(10), 60)


@pytest.mark.parametrize("bias", [None, 0, 0.1, 0.5, 1])
@pytest.mark.parametrize("size", [1, 33, 60])
def test_root_examples_are_so_many_and_class_1_has_its_share(size, bias):
    drawn = root_examples(TEN_CLASSES, 10, size, bias, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == size
    assert (drawn == np.sort(drawn)).all()
    counts = np.bincount(TEN_CLASSES[drawn], minlength=10)
    if bias is not None:
        assert counts[1] == round(bias * size)
        others = np.delete(counts, 1)
        assert others.max() - others.min() <= 1


def test_root_examples_at_random_are_any_with_equal_chance():
    rng = np.random.default_rng(0)
    drawn = np.concatenate([root_examples(TEN_CLASSES, 10, 60, None, rng) for _ in range(500)])
    counts = np.bincount(drawn, minlength=600)
    assert counts.mean() == 50
    assert 25 < counts.min() < counts.max() < 80  # more than 3.5 deviations away


def test_root_examples_that_there_are_not_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(BadInput, match="root_size is 600; it must be less than all 600 examples"):
        root_examples(TEN_CLASSES, 10, 600, None, rng)
    words = "takes 90 examples of class 1, of which there are 60; use a smaller size"
    with pytest.raises(BadInput, match=words):
        root_examples(TEN_CLASSES, 10, 100, 0.9, rng)
    assert root_examples(np.zeros(9, dtype=int), 1, 4, 0.5, rng).size == 4


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=9),
    taken=st.sets(st.integers(0, 40)),
)
def test_examples_taken_away_are_missing_where_they_were(sizes, taken):
    shards = of_sizes(*sizes)
    left = shards.without(np.array(sorted(taken), dtype=np.int64))
    for worker in range(len(sizes)):
        assert left[worker].tolist() == [e for e in shards[worker].tolist() if e not in taken]
