"""TRL's GRPOTrainer with a clock on its stages, and with completions of given lengths.

Nothing of its work is changed: vLLM gets a limit for each request instead of one for all, as our sampler does.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer

from benchmarks.clock import now
from benchmarks.given_lengths import with_limits
from benchmarks.hash_reward import fraction

Seconds = dict[str, float]


def hash_rewards(completions: list[Any], **_: Any) -> list[float]:
    """The reward of our own benchmark; of a conversation, that of its last message."""
    return [fraction(text if isinstance(text, str) else text[-1]["content"]) for text in completions]


class TimedTrainer(GRPOTrainer):
    """A GRPOTrainer that adds up the seconds of its stages, and the tokens of what it sampled.

    `lengths`: completion i of a generation is cut after lengths[i mod n] tokens; empty: as the model ends.
    """

    def __init__(self, *args: Any, lengths: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lengths = lengths
        self.seconds: Seconds = defaultdict(float)
        self.tokens = {"prompt_tokens": 0, "completion_tokens": 0}
        if self.use_vllm:
            engine: Any = self.vllm_generation
            engine.sync_weights = self._timed("sync", engine.sync_weights)
            if lengths:
                engine.llm.generate = with_limits(engine.llm.generate, lengths)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._clocked(stage):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def _clocked(self, stage: str) -> Iterator[None]:
        started = now()
        yield
        self.seconds[stage] += now() - started

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        with self._clocked("generation"):
            completions, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if self.lengths:  # vLLM has stopped there; transformers knows one limit only
            completions = [ids[:limit] for ids, limit in zip(completions, cycle(self.lengths), strict=False)]
        self.tokens["prompt_tokens"] += sum(map(len, prompt_ids))
        self.tokens["completion_tokens"] += sum(map(len, completions))
        return completions, logprobs

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        with self._clocked("generation_and_scoring"):
            return super()._generate_and_score_completions(*args, **kwargs)

    def take(self) -> tuple[Seconds, dict[str, int]]:
        """Seconds of generation, sync and scoring since the last call, apart from each other, and the tokens."""
        spent, tokens = self.seconds, self.tokens
        self.seconds, self.tokens = defaultdict(float), dict.fromkeys(tokens, 0)
        stages = {
            "generation": spent["generation"] - spent["sync"],
            "sync": spent["sync"],
            "scoring": spent["generation_and_scoring"] - spent["generation"],
        }
        return stages, tokens


class Iterations(TrainerCallback):
    """Seconds and tokens of every iteration: a rollout and its `num_updates` optimizer steps.

    `save` gets all that are finished after each, so that a time limit loses nothing.
    """

    def __init__(self, num_updates: int, save: Callable[[list[dict[str, float]]], None]) -> None:
        self.num_updates, self.save = num_updates, save
        self.trainer: TimedTrainer | None = None
        self.finished: list[dict[str, float]] = []
        self._seconds = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = now()

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        """Stop it; after the last optimizer step of a rollout the iteration is done."""
        self._seconds += now() - self._started
        if state.global_step % self.num_updates == 0 and self.trainer is not None:
            stages, tokens = self.trainer.take()
            update = self._seconds - sum(stages.values())
            self.finished.append({"seconds": self._seconds, **stages, "update": update, **tokens})
            self._seconds = 0.0
            self.save(self.finished)
            print("TRL", {key: round(value, 2) for key, value in self.finished[-1].items()}, flush=True)
