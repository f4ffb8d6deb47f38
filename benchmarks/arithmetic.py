"""Sums of several terms with their solutions written out, for a baseline on a task that a small model can learn.

python -m benchmarks.arithmetic DIRECTORY --terms 4 6 --digits 2 3
python -m benchmarks.baseline --data DIRECTORY --work DIRECTORY --out DIRECTORY

The problems are reasoning-gym's `chain_sum`; train.jsonl and test.jsonl have the form of GSM8K's, question and answer,
the answer being a line for each partial sum and then `#### ` with the last. validation/test.jsonl has further
problems, to choose settings by (`data.eval`). No problem is in two of them.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from drgrpo.data.generated import generate_records

SOURCE = "reasoning_gym:chain_sum"
VALIDATION = "validation/test.jsonl"


def solution(expression: str) -> str:
    """`4 + 3 - 2` as the lines `4 + 3 = 7`, `7 - 2 = 5` and `#### 5`."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {result}")
        total = result
    return "\n".join([*lines, f"#### {total}"])


def problems(count: int, options: dict[str, int], *, held_out: bool) -> Iterator[dict[str, str]]:
    """Question and answer of the generator's first `count` problems; some may be equal.

    Raises: ValueError where a solution is not reasoning-gym's.
    """
    for _, row in generate_records(
        SOURCE, num_problems=count, options=options, held_out=held_out, field="benchmarks.arithmetic"
    ):
        expression = row["metadata"]["expression"]
        answer = solution(expression)
        if answer.rpartition("#### ")[2] != row["answer"]:
            raise ValueError(f"{expression} is {row['answer']} for reasoning-gym and not as in {answer!r}")
        yield {"question": f"What is {expression}?", "answer": answer}


def write_splits(folder: Path, *, train: int, test: int, validation: int, options: dict[str, int]) -> None:
    """All splits; no question is twice in one or in two of them. The same arguments give the same bytes.

    Raises: ValueError where the options leave too few different problems.
    """
    seen: set[str] = set()
    for held_out, sizes in (False, {"train.jsonl": train}), (True, {"test.jsonl": test, VALIDATION: validation}):
        found = problems(2 * sum(sizes.values()), options, held_out=held_out)
        by_question = {row["question"]: row for row in found if row["question"] not in seen}
        rows = iter(by_question.values())
        for name, size in sizes.items():
            chosen = list(islice(rows, size))
            if len(chosen) < size:
                raise ValueError(f"{name}: {len(chosen)} different problems of {size}; raise --terms or --digits")
            seen |= {row["question"] for row in chosen}
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in chosen))


def main() -> None:
    """Write all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--terms", type=int, nargs=2, default=(4, 6), metavar=("FROM", "TO"))
    parser.add_argument("--digits", type=int, nargs=2, default=(2, 3), metavar=("FROM", "TO"))
    counts = ("TRAIN", "TEST", "VALIDATION")
    parser.add_argument("--problems", type=int, nargs=3, default=(8192, 1024, 512), metavar=counts)
    given = parser.parse_args()
    (min_terms, max_terms), (min_digits, max_digits) = given.terms, given.digits
    options = {"min_terms": min_terms, "max_terms": max_terms, "min_digits": min_digits, "max_digits": max_digits}
    train, test, validation = given.problems
    write_splits(given.directory, train=train, test=test, validation=validation, options=options)


if __name__ == "__main__":
    main()
