"""Sums of several terms with their solutions written out, for a baseline on a task that a small model can learn.

python -m benchmarks.arithmetic DIRECTORY --terms 4 6 --digits 2 3
python -m benchmarks.baseline --data DIRECTORY --work DIRECTORY --out DIRECTORY

The problems are reasoning-gym's `chain_sum`; train.jsonl and test.jsonl have the form of GSM8K's, question and answer,
the answer being a line for each partial sum and then `#### ` with the last. validation/test.jsonl has further problems
that are in neither: to choose settings by (`data.eval`).
"""

import argparse
import json
from itertools import islice
from pathlib import Path

from drgrpo.data.generated import generate_records

SOURCE = "reasoning_gym:chain_sum"


def solution(expression: str) -> str:
    """`4 + 3 - 2` as the lines `4 + 3 = 7`, `7 - 2 = 5` and `#### 5`."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {result}")
        total = result
    return "\n".join([*lines, f"#### {total}"])


def write_split(path: Path, *, problems: range, options: dict[str, int], held_out: bool) -> None:
    """Problems of the generator as a file; the same arguments give the same bytes.

    Raises: ValueError where a solution is not reasoning-gym's.
    """
    records = generate_records(
        SOURCE, num_problems=problems.stop, options=options, held_out=held_out, field="benchmarks.arithmetic"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _, row in islice(records, problems.start, None):
            expression = row["metadata"]["expression"]
            answer = solution(expression)
            if answer.rpartition("#### ")[2] != row["answer"]:
                raise ValueError(f"{expression} is {row['answer']} for reasoning-gym and not as in {answer!r}")
            file.write(json.dumps({"question": f"What is {expression}?", "answer": answer}) + "\n")


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
    folder = given.directory
    write_split(folder / "train.jsonl", problems=range(train), options=options, held_out=False)
    write_split(folder / "test.jsonl", problems=range(test), options=options, held_out=True)
    further = range(test, test + validation)
    write_split(folder / "validation" / "test.jsonl", problems=further, options=options, held_out=True)


if __name__ == "__main__":
    main()
