"""Records made by reasoning-gym's generators, with seeds that training and held-out problems never share."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from drgrpo.data.errors import DataError, suggest
from drgrpo.data.files import Record

PREFIX = "reasoning_gym:"

# A generator seeds its i-th problem with seed + i, so the two ranges must lie further apart than any set is long.
HELD_OUT_SEED = 2**30


def generate_records(
    source: str, *, num_problems: int, options: Mapping[str, int | float | str | bool], held_out: bool, field: str
) -> Iterator[Record]:
    """The first `num_problems` problems of generator `reasoning_gym:<name>`; the same call gives the same problems.

    Raises:
        DataError: Unknown generator or option, an option out of range, or no number of problems.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    name = source.removeprefix(PREFIX)
    if name not in DATASETS:
        raise DataError(f"{field} = {source!r}: reasoning_gym has no generator {name!r}{suggest(name, DATASETS)}")
    if not 0 < num_problems < HELD_OUT_SEED:
        raise DataError(
            f"{field} = {source!r}: a generator needs a number of problems, got {num_problems}; "
            "set data.num_train_problems and evaluation.num_problems"
        )
    known = {item.name for item in fields(DATASETS[name][1])} - {"seed", "size"}
    for option in options:
        if option not in known:
            raise DataError(
                f"data.generator_options.{option} = {options[option]!r}: {name} has no such option"
                f"{suggest(option, known)}; seed and size follow from the split and the number of problems"
            )
    try:
        seed = HELD_OUT_SEED if held_out else 0
        dataset = reasoning_gym.create_dataset(name, size=num_problems, seed=seed, **options)
        rows: list[dict[str, Any]] = [dataset[index] for index in range(num_problems)]
    except Exception as error:
        raise DataError(f"data.generator_options = {dict(options)}: {name} refuses them: {error}") from error
    return ((f"{source} problem {index}", row) for index, row in enumerate(rows))
