"""Which completions make up each optimizer step."""

from drgrpo.trainer.minibatches import minibatches


def groups(num_groups: int, group_size: int = 4) -> list[int]:
    return [group for group in range(num_groups) for _ in range(group_size)]


def test_one_minibatch_keeps_the_order_of_the_table() -> None:
    assert minibatches([7, 7, 3, 3, 5, 5], size=6, seed=3, step=5) == [[0, 1, 2, 3, 4, 5]]
    assert minibatches([7, 7, 3, 3], size=6, seed=3, step=5) == [[0, 1, 2, 3]]


def test_every_sample_is_in_exactly_one_minibatch() -> None:
    parts = minibatches(groups(6), size=8, seed=0, step=0)
    assert [len(part) for part in parts] == [8, 8, 8]
    assert sorted(i for part in parts for i in part) == list(range(24))


def test_lost_samples_are_missing_from_all_minibatches_alike() -> None:
    for num_samples, sizes in ((21, [7, 7, 7]), (17, [5, 6, 6]), (16, [8, 8]), (9, [4, 5]), (0, [])):
        parts = minibatches(groups(6)[:num_samples], size=8, seed=0, step=0)
        assert [len(part) for part in parts] == sizes
        assert sorted(i for part in parts for i in part) == list(range(num_samples))


def test_the_order_depends_on_seed_and_step_alone() -> None:
    # Written down, because a resumed run on another version has to draw the same.
    assert minibatches(groups(4), size=4, seed=0, step=0) == minibatches(groups(4), size=4, seed=0, step=0) == FIRST
    orders = [minibatches(groups(16), size=8, seed=seed, step=step) for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_a_group_stays_in_one_minibatch_and_the_groups_are_shuffled() -> None:
    ids = groups(16, group_size=8)
    parts = [[ids[i] for i in part] for part in minibatches(ids, size=16, seed=0, step=0)]
    assert all(len(set(part)) == 2 for part in parts)
    assert [part[0] for part in parts] != sorted(part[0] for part in parts)


def test_groups_are_told_by_their_id_and_not_by_their_place() -> None:
    (first, second) = minibatches([1, 2, 1, 2], size=2, seed=0, step=0)
    assert sorted([first, second]) == [[0, 2], [1, 3]]


FIRST = [[0, 1, 2, 3], [12, 13, 14, 15], [4, 5, 6, 7], [8, 9, 10, 11]]
