"""Token ids to text, the completions of a step at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


class Decoder:
    """Gives the texts that `tokenizer.batch_decode` gives without special tokens.

    The step waits for them, and the Rust tokenizer takes 50 ms for 512 completions of 512 tokens, on 16 cores as on
    two. Where a text is the bytes of its tokens (byte-level BPE), they are laid end to end here. Tokens that are added
    to the tokenizer later are not known.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = ByteVocabulary(tokenizer.backend_tokenizer) if _is_bytes(tokenizer) else None

    def texts(self, token_ids: Sequence[np.ndarray]) -> list[str]:
        """The text of each sequence of ids."""
        if self._vocabulary is not None:
            return [self._vocabulary.text(ids) for ids in token_ids]
        texts: list[str] = self._tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return texts


class ByteVocabulary:
    """The bytes of every token; a special token has none, nor has an id without a token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens = _tokens(tokenizer)
        ordered = [tokens.get(index, b"") for index in range(max(tokens, default=-1) + 2)]  # the last is every other id
        self._bytes = np.frombuffer(b"".join(ordered), dtype=np.uint8)
        self._lengths = np.array([len(token) for token in ordered], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths

    def text(self, token_ids: np.ndarray) -> str:
        """The text of a sequence; bytes that are no UTF-8 become U+FFFD."""
        known = np.minimum(token_ids, len(self._lengths) - 1)
        lengths = self._lengths[known]
        ends = lengths.cumsum()
        places = (self._starts[known] - ends + lengths).repeat(lengths)  # where in all bytes each one lies, but for ...
        places += np.arange(len(places))  # ... its place in the text
        return self._bytes[places].tobytes().decode(errors="replace")


def _tokens(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes of each id. What is special the tokenizer decides: its files may disagree."""
    ids = {*tokenizer.get_vocab(with_added_tokens=True).values()}
    added = {*tokenizer.get_added_tokens_decoder()}
    special = {index for index in ids & added if not tokenizer.decode([index], skip_special_tokens=True)}
    return {index: _bytes(tokenizer.id_to_token(index) or "") for index in ids - special}


def _is_bytes(tokenizer: Any) -> bool:
    """Whether a text is the bytes of its tokens, and transformers changes nothing in it."""
    if getattr(type(tokenizer), "_decode", None) is not PreTrainedTokenizerFast._decode:
        return False
    rust = tokenizer.backend_tokenizer
    if not (isinstance(rust.model, models.BPE) and isinstance(rust.decoder, decoders.ByteLevel)):
        return False
    corrupts = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return not (tokenizer.clean_up_tokenization_spaces and corrupts)


def _bytes(token: str) -> bytes:
    """An added token may have characters outside of the alphabet of bytes; it stands for itself then."""
    values = [_BYTE_OF.get(character, -1) for character in token]
    return token.encode() if -1 in values else bytes(values)
