"""Which completions make up each optimizer step."""

from drgrpo.trainer.minibatches import minibatches


def test_one_minibatch_keeps_the_order_of_the_table() -> None:
    assert minibatches(6, size=6, seed=3, step=5) == [[0, 1, 2, 3, 4, 5]]
    assert minibatches(4, size=6, seed=3, step=5) == [[0, 1, 2, 3]]


def test_every_sample_is_in_exactly_one_minibatch() -> None:
    parts = minibatches(24, size=8, seed=0, step=0)
    assert [len(part) for part in parts] == [8, 8, 8]
    assert sorted(i for part in parts for i in part) == list(range(24))


def test_lost_samples_make_the_last_minibatch_smaller() -> None:
    parts = minibatches(21, size=8, seed=0, step=0)
    assert [len(part) for part in parts] == [8, 8, 5]
    assert sorted(i for part in parts for i in part) == list(range(21))


def test_the_order_depends_on_seed_and_step_alone() -> None:
    # Written down, because a resumed run on another version has to draw the same.
    assert minibatches(8, size=4, seed=0, step=0) == minibatches(8, size=4, seed=0, step=0) == FIRST
    orders = [minibatches(64, size=8, seed=seed, step=step) for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_groups_are_mixed_over_the_minibatches() -> None:
    groups = [{i // 8 for i in part} for part in minibatches(64, size=16, seed=0, step=0)]
    assert all(len(part) > 2 for part in groups)


FIRST = [[0, 2, 1, 6], [4, 7, 3, 5]]
