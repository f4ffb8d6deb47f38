"""Token ids to text, the completions of a step at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast


def decode(tokenizer: Any, token_ids: Sequence[np.ndarray]) -> list[str]:
    """What `tokenizer.batch_decode` returns, without special tokens; on all cores where the tokenizer is in Rust.

    `batch_decode` of transformers 5 decodes one sequence after the other, and the step waits for it.
    """
    if not _is_plain(tokenizer):
        texts: list[str] = tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return texts
    texts = tokenizer.backend_tokenizer.decode_batch([ids.tolist() for ids in token_ids], skip_special_tokens=True)
    return texts


def _is_plain(tokenizer: Any) -> bool:
    """Whether transformers adds nothing to what the Rust tokenizer returns."""
    if getattr(type(tokenizer), "_decode", None) is not PreTrainedTokenizerFast._decode:
        return False
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    corrupts = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return not tokenizer.clean_up_tokenization_spaces or (is_bpe and not corrupts)
