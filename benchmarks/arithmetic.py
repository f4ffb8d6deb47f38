"""Sums of several terms with their solutions written out, for a baseline on a task that a small model can learn.

python -m benchmarks.arithmetic DIRECTORY --terms 4 6 --digits 2 3
python -m benchmarks.baseline --data DIRECTORY --work DIRECTORY --out DIRECTORY

The problems are reasoning-gym's `chain_sum`; train.jsonl and test.jsonl have the form of GSM8K's, question and answer,
the answer being a line for each partial sum and then `#### ` with the last.
"""

import argparse
import json
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


def write_split(path: Path, *, num_problems: int, options: dict[str, int], held_out: bool) -> None:
    """One split; the same arguments give the same bytes. Raises ValueError where a solution is not reasoning-gym's."""
    records = generate_records(
        SOURCE, num_problems=num_problems, options=options, held_out=held_out, field="benchmarks.arithmetic"
    )
    with path.open("w") as file:
        for _, row in records:
            expression = row["metadata"]["expression"]
            answer = solution(expression)
            if answer.rpartition("#### ")[2] != row["answer"]:
                raise ValueError(f"{expression} is {row['answer']} for reasoning-gym and not as in {answer!r}")
            file.write(json.dumps({"question": f"What is {expression}?", "answer": answer}) + "\n")


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--terms", type=int, nargs=2, default=(4, 6), metavar=("FROM", "TO"))
    parser.add_argument("--digits", type=int, nargs=2, default=(2, 3), metavar=("FROM", "TO"))
    parser.add_argument("--problems", type=int, nargs=2, default=(8192, 1024), metavar=("TRAIN", "TEST"))
    given = parser.parse_args()
    (min_terms, max_terms), (min_digits, max_digits) = given.terms, given.digits
    options = {"min_terms": min_terms, "max_terms": max_terms, "min_digits": min_digits, "max_digits": max_digits}
    given.directory.mkdir(parents=True, exist_ok=True)
    for split, count in zip(("train", "test"), given.problems, strict=True):
        path = given.directory / f"{split}.jsonl"
        write_split(path, num_problems=count, options=options, held_out=split == "test")


if __name__ == "__main__":
    main()
