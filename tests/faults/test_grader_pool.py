"""The graders really hang, crash and hoard memory; they are in `rewards_graders`."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from drgrpo.rewards import Grade, GradeItem, GraderPool, check_reward_functions

MODULE = "tests.unit.rewards_graders"


def _items(*completions: str) -> list[GradeItem]:
    return [GradeItem(completion, "18", "why") for completion in completions]


def _pool(functions: dict[str, float] | None = None, **options: Any) -> GraderPool:
    options = {"num_workers": 2, "timeout_s": 20.0} | options
    return GraderPool(functions or {f"{MODULE}:trouble": 1.0}, **options)


def _statuses(grades: list[Grade]) -> list[str]:
    return [grade.status for grade in grades]


def _wait_until_gone(pids: list[int], seconds: float = 10.0) -> None:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=seconds)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_rewards_are_weighted_and_come_back_in_order() -> None:
    completions = [rf"so \boxed{{{number}}}" for number in range(200)]
    with _pool({"gsm8k": 2.0, "format": 0.25, f"{MODULE}.length": -0.5}) as pool:
        grades = pool.grade(_items(*completions))
    assert [grade.status for grade in grades] == ["ok"] * 200
    assert grades[18].per_function == {"gsm8k": 1.0, "format": 1.0, f"{MODULE}.length": 13.0}
    assert grades[18].reward == 2.0 + 0.25 - 6.5
    assert [grade.reward for grade in grades[:3]] == [0.25 - 6.0] * 3
    assert [index for index, grade in enumerate(grades) if grade.per_function["gsm8k"]] == [18]


def test_an_empty_batch_has_no_grades_and_the_answer_mode_arrives() -> None:
    with _pool({"gsm8k": 1.0}, answer_mode="lenient") as pool:
        assert pool.grade([]) == []
        assert pool.grade(_items("it is 18"))[0].reward == 1.0


@pytest.mark.parametrize("hang", ["loop", "hang", "sleep 1000"])
def test_a_grader_that_hangs_costs_its_own_sample_only(hang: str) -> None:
    completions = ["good"] * 30
    completions[7] = completions[20] = hang
    with _pool(timeout_s=3.0) as pool:
        start = time.monotonic()
        grades = pool.grade(_items(*completions))
        elapsed = time.monotonic() - start
        again = pool.grade(_items("good"))
    assert [index for index, grade in enumerate(grades) if grade.status == "timeout"] == [7, 20]
    assert [grade.reward for grade in grades] == [float(completion == "good") for completion in completions]
    assert grades[7].message == "the grader took over 3 s" and grades[7].per_function == {f"{MODULE}:trouble": 0.0}
    assert again[0].status == "ok"
    assert 3 < elapsed < 30


CRASHES = [
    ("exit 7", "the grader process exited with 7"),
    ("exit 0", "the grader process exited with 0"),
    ("segfault", "the grader process died of signal 11"),
    ("closefds", "the grader process"),
    ("raise oh no", f"{MODULE}:trouble: RuntimeError: oh no"),
    ("base x", f"{MODULE}:trouble: BaseException: x"),
    ("sysexit", f"{MODULE}:trouble: SystemExit: 3"),
    ("unprintable", f"{MODULE}:trouble: E"),
    ("deep", f"{MODULE}:trouble: RecursionError"),
    ("interrupted", f"{MODULE}:trouble: KeyboardInterrupt"),
    ("value NaN", f"{MODULE}:trouble: ValueError: a reward must be finite, not nan"),
    ("value -Infinity", f"{MODULE}:trouble: ValueError: a reward must be finite, not -inf"),
    ("value null", f"{MODULE}:trouble: TypeError: a reward must be a number, not NoneType"),
    ("value [1]", f"{MODULE}:trouble: TypeError: a reward must be a number, not list"),
    ("text 1.0", f"{MODULE}:trouble: TypeError: a reward must be a number, not str"),
    ("value 1" + "0" * 400, f"{MODULE}:trouble: OverflowError"),
]


def test_graders_that_crash_or_return_no_number_cost_their_own_samples_only() -> None:
    crashes = [crash for crash, _ in CRASHES]
    with _pool() as pool:
        grades = pool.grade(_items(*[completion for crash in crashes for completion in ("good", crash)], "good"))
    assert _statuses(grades) == ["ok", "error"] * len(crashes) + ["ok"]
    assert [grade.reward for grade in grades] == [1.0, 0.0] * len(crashes) + [1.0]
    for grade, (_, message) in zip(grades[1::2], CRASHES, strict=True):
        assert grade.message.startswith(message)


def test_a_failing_function_makes_the_whole_reward_0_and_shows_the_others() -> None:
    with _pool({f"{MODULE}:length": 1.0, f"{MODULE}:trouble": 1.0}) as pool:
        grade = pool.grade(_items("raise x"))[0]
    assert grade.reward == 0.0 and grade.per_function == {f"{MODULE}:length": 7.0, f"{MODULE}:trouble": 0.0}


def test_true_counts_as_1_and_an_overflowing_sum_is_an_error() -> None:
    with _pool({f"{MODULE}:trouble": 10.0}) as pool:
        true, overflow = pool.grade(_items("value true", "value 1e308"))
    assert true.reward == 10.0
    assert overflow.status == "error" and overflow.reward == 0.0


def test_a_memory_hog_costs_its_own_sample_and_1_gib_is_no_hog() -> None:
    with _pool() as pool:
        grades = pool.grade(_items("good", "hoard 6", "hoard 1", "good"))
    assert _statuses(grades) == ["ok", "error", "ok", "ok"]
    assert "MemoryError" in grades[1].message


def test_noise_on_stdout_does_not_corrupt_the_replies() -> None:
    with _pool() as pool:
        assert _statuses(pool.grade(_items("noise x", "good", "noise y"))) == ["ok"] * 3


@pytest.mark.parametrize("functions", [{"gsm8k": 1.0, "format": 1.0, "number": 1.0}, {"math": 1.0}])
@pytest.mark.parametrize("answer_mode", ["strict", "lenient"])
def test_100_000_characters_cost_one_sample(functions: dict[str, float], answer_mode: str) -> None:
    long = [unit * (100_000 // len(unit)) for unit in ("7", "\\frac{", "9^", "\ud800")]
    long += [f"\\boxed{{{text[:99_990]}}}" for text in long[1:3]]
    completions = [text for pair in zip(long, [r"\boxed{18}"] * 6, strict=True) for text in pair]
    with _pool(functions, timeout_s=3.0, answer_mode=answer_mode) as pool:
        start = time.monotonic()
        grades = pool.grade(_items(*completions))
    assert time.monotonic() - start < 60
    assert [grade.status for grade in grades[1::2]] == ["ok"] * 6
    assert all(
        grade.per_function.get("gsm8k", 0.0) == grade.per_function.get("math", 0.0) == 0 for grade in grades[::2]
    )


def test_a_power_tower_in_a_box_costs_its_own_sample_of_the_math_reward() -> None:
    tower = r"\boxed{9^{9^{9^{9}}}}"
    with _pool({"math": 1.0}, timeout_s=4.0) as pool:
        grades = pool.grade(_items(r"\boxed{18}", tower, r"\boxed{18}"))
    assert [grade.reward for grade in grades] == [1.0, 0.0, 1.0]


def test_the_limit_holds_per_completion_not_per_chunk() -> None:
    with _pool(num_workers=1, timeout_s=3.0) as pool:
        assert _statuses(pool.grade(_items(*["sleep 0.7"] * 5))) == ["ok"] * 5


SLOW_START = """
import os, time
from pathlib import Path
starts = Path(__file__).with_name("starts.txt")
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(600 if len(starts.read_text().split()) in SLOW else 3)
def grade(completion, answer):
    while completion == "hang": pass
    return 1.0
"""


def _slow_start(path: Path, monkeypatch: pytest.MonkeyPatch, *slow: int) -> GraderPool:
    """One worker that takes longer to start than it may to grade; the starts numbered `slow` never come to an end."""
    (path / "slow_start.py").write_text(SLOW_START.replace("SLOW", repr(slow)))
    monkeypatch.syspath_prepend(str(path))
    return _pool({"slow_start:grade": 1.0}, num_workers=1, timeout_s=2.5)


def test_starting_a_worker_does_not_count_against_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _slow_start(tmp_path, monkeypatch) as pool:
        assert _statuses(pool.grade(_items("good", "hang", "good"))) == ["ok", "timeout", "ok"]


def test_a_worker_killed_while_it_starts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = tmp_path / "starts.txt"
    with _slow_start(tmp_path, monkeypatch, 2) as pool:
        first = pool.worker_pids[0]

        def kill_the_second() -> None:
            while len(pids := starts.read_text().splitlines()) < 2:
                time.sleep(0.05)
            os.kill(int(pids[1]), signal.SIGKILL)

        killer = threading.Thread(target=kill_the_second)
        os.kill(first, signal.SIGKILL)
        killer.start()
        assert _statuses(pool.grade(_items("good"))) == ["ok"]
        killer.join()
        assert pool.worker_pids == [int(starts.read_text().split()[2])] != [first]


def test_a_module_that_ends_its_process_on_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_on_import.py").write_text("import os\nos._exit(5)")
    monkeypatch.syspath_prepend(str(tmp_path))
    for check in (check_reward_functions, _pool):
        with pytest.raises(ValueError, match="exited with 5"):
            check({"ends_on_import:grade": 1.0})


def test_a_worker_killed_from_outside_costs_nothing_the_first_time(tmp_path: Path) -> None:
    with _pool() as pool:
        grades = pool.grade(_items("good", f"once {tmp_path / 'mark'}", "good"))
        for pid in pool.worker_pids:
            os.kill(pid, signal.SIGKILL)
        after = pool.grade(_items(*["good"] * 10))
    assert [grade.reward for grade in grades] == [1.0] * 3
    assert _statuses(after) == ["ok"] * 10


def test_workers_killed_again_and_again_from_outside_lose_no_sample(tmp_path: Path) -> None:
    completions = ["good"] * 40
    marks = {position: tmp_path / str(position) for position in (0, 7, 20, 39)}  # each dies once while it is graded
    for position, mark in marks.items():
        completions[position] = f"mortal {mark}"
    with _pool(timeout_s=100.0) as pool:
        result: list[Grade] = []
        grading = threading.Thread(target=lambda: result.extend(pool.grade(_items(*completions))))
        grading.start()
        alive = set(marks.values())
        while alive and grading.is_alive():
            for mark in [mark for mark in alive if mark.exists()]:
                os.kill(int(mark.read_text()), signal.SIGKILL)
                alive.remove(mark)
            time.sleep(0.02)
        grading.join()
    assert alive == set()
    assert _statuses(result) == ["ok"] * 40 and [grade.reward for grade in result] == [1.0] * 40


def test_a_stopped_worker_is_a_timeout_like_any_hang() -> None:
    with _pool(num_workers=1, timeout_s=3.0) as pool:
        os.kill(pool.worker_pids[0], signal.SIGSTOP)
        grades = pool.grade(_items("good", "good"))
    assert _statuses(grades) == ["timeout", "ok"]


def test_no_process_is_left_after_close_nor_what_a_grader_started(tmp_path: Path) -> None:
    pool = _pool(timeout_s=4.0)
    path = tmp_path / "pid"
    assert _statuses(pool.grade(_items(f"spawn {path}"))) == ["timeout"]
    pids = [*pool.worker_pids, int(path.read_text())]
    assert len(pool.worker_pids) >= 1
    pool.close()
    pool.close()
    _wait_until_gone(pids)
    assert pool.worker_pids == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade(_items("good"))


def test_closing_ends_a_batch_that_hangs() -> None:
    pool = _pool(timeout_s=500.0)
    threading.Timer(0.5, pool.close).start()
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade(_items("hang", "hang", "good"))


PARENT = f"""
import sys, time
from drgrpo.rewards import GradeItem, GraderPool
import threading
pool = GraderPool({{"{MODULE}:trouble": 1.0}}, num_workers=2, timeout_s=500)
grading = threading.Thread(target=pool.grade, args=([GradeItem("hang", ""), GradeItem("good", "")],), daemon=True)
grading.start()
time.sleep(0.5)
print(*pool.worker_pids, flush=True)
time.sleep(1000)
"""


def test_workers_die_with_their_parent_also_when_they_hang() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    parent.kill()
    parent.wait()
    _wait_until_gone(pids)


def test_a_pool_outlives_the_thread_that_made_it() -> None:
    made: list[GraderPool] = []
    maker = threading.Thread(target=lambda: made.append(_pool()))
    maker.start()
    maker.join()
    time.sleep(0.2)
    with made[0] as pool:
        pids = pool.worker_pids
        assert {grade.reward for grade in pool.grade(_items(*["pid"] * 50))} <= set(map(float, pids))


def test_workers_import_no_torch() -> None:
    code = "import sys; import drgrpo.rewards.worker, drgrpo.rewards.mathematics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_function_gets_the_columns_that_it_names_or_all_of_them() -> None:
    item = GradeItem("", "18", "why", {"level": 3, "completion": "forged", "answer": "forged"})
    with _pool({f"{MODULE}:columns": 1.0, f"{MODULE}:everything": 1.0}, answer_mode="lenient") as pool:
        assert pool.grade([item])[0].reward == 2.0


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended, which other work on the machine hardly changes."""
    return math.fsum(os.times()[:4])


def test_10_000_trivial_completions_take_seconds() -> None:
    start = _cpu_seconds()
    with _pool({"gsm8k": 1.0}) as pool:
        grades = pool.grade(_items(*[r"\boxed{18}"] * 10_000))
    assert math.fsum(grade.reward for grade in grades) == 10_000
    assert _cpu_seconds() - start < 10  # about 2 s


def test_mistaken_functions_are_all_named_before_anything_starts() -> None:
    check_reward_functions({"gsm8k": 1.0, "math": 0.5, f"{MODULE}:length": 1.0})
    for check in (check_reward_functions, _pool):
        with pytest.raises(ValueError, match=r"'gms8k': did you mean 'gsm8k'"):
            check({"gms8k": 1.0})
        with pytest.raises(ValueError, match=r"No module named 'no_such'.*no attribute 'nothing'.*coroutine.*too many"):
            check({"no_such:f": 1.0, "os.nothing": 1.0, f"{MODULE}:coroutine": 1.0, f"{MODULE}:no_answer": 1.0})
        with pytest.raises(ValueError, match="weight of reward function 'math' is nan"):
            check({"math": math.nan})
    with pytest.raises(ValueError, match="no reward function"):
        check_reward_functions({})
    with pytest.raises(ValueError, match="timeout_s is 0"):
        _pool(timeout_s=0)
    with pytest.raises(ValueError, match="num_workers is 0"):
        _pool(num_workers=0)
    with pytest.raises(ValueError, match="answer_mode is 'loose'"):
        _pool(answer_mode="loose")


def test_a_batch_that_comes_while_the_pool_closes_fails_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool()
    serve = pool._lanes[0].serve

    def late(batch: Any) -> None:
        pool.close()  # all lanes have ended before they see the batch
        serve(batch)

    monkeypatch.setattr(pool._lanes[0], "serve", late)
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade(_items("good", "good"))
