"""What the sampler is asked for and what it returns: plain values, so that any process may hold them."""

from array import array
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One completion to sample: the prompt's token ids and the seed of this sample."""

    prompt_ids: list[int]
    seed: int
    max_tokens: int = 0  # 0: the sampling parameters' limit


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters shared by a batch; temperature 0 is greedy."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled completion: vLLM's token ids (EOS included), why it ended, and its logprobs if they were asked for."""

    token_ids: "array[int]"  # of 32-bit integers: a step's lists of Python integers take 18 ms between two processes
    finish_reason: str
    logprobs: list[float] | None
