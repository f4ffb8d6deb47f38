"""Texts are those of transformers' own `batch_decode`, whatever it adds to the Rust tokenizer's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from drgrpo.decoding import decode
from tests.tiny_model import build_tiny_tokenizer


def arrays(*sequences: list[int]) -> list[np.ndarray]:
    return [np.array(sequence, dtype=np.int64) for sequence in sequences]


def tiny(folder: Path) -> Any:
    build_tiny_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def word_pieces(**options: Any) -> PreTrainedTokenizerFast:
    """One that cleans up what its pieces leave, as BERT's does: `it ' s done .` becomes `it's done.`"""
    vocabulary = {piece: index for index, piece in enumerate(["[UNK]", "it", "'", "s", "do", "##ne", ".", "[END]"])}
    rust = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="[END]", **options)


def test_the_text_of_every_token_is_that_of_batch_decode(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    ids = np.random.default_rng(0).integers(0, len(tokenizer), (64, 40))
    sequences = [*ids, *arrays([], [tokenizer.eos_token_id], *[[index] for index in range(len(tokenizer))])]
    assert decode(tokenizer, sequences) == tokenizer.batch_decode(sequences, skip_special_tokens=True)
    assert decode(tokenizer, []) == []


def test_added_tokens_stand_for_themselves_and_ids_without_a_token_for_nothing(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    tokenizer.add_tokens(["<a b>", "ä—", "plain"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<none>"]})
    space, dash, plain, special = (len(tokenizer) - count for count in (4, 3, 2, 1))
    sequences = arrays([space, dash, plain, special], [dash, len(tokenizer), len(tokenizer) + 70_000, space])
    texts = decode(tokenizer, sequences)
    assert texts == ["<a b>ä—plain", "ä—<a b>"]
    assert texts == tokenizer.batch_decode(sequences, skip_special_tokens=True)


def test_bytes_that_are_no_text_become_what_batch_decode_makes_of_them(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    alphabet = tokenizer.convert_tokens_to_ids([bytes_to_unicode()[byte] for byte in range(256)])
    assert None not in alphabet
    rng = np.random.default_rng(0)
    broken = [rng.choice(alphabet, size) for size in rng.integers(1, 40, 500)]
    whole = arrays(*[[alphabet[byte] for byte in "né😀".encode()[start:]] for start in range(8)])
    assert decode(tokenizer, [*broken, *whole]) == tokenizer.batch_decode([*broken, *whole], skip_special_tokens=True)
    assert decode(tokenizer, whole)[0] == "né😀"


@pytest.mark.parametrize("cleans", [False, True])
def test_a_tokenizer_that_cleans_up_still_does(cleans: bool) -> None:
    tokenizer = word_pieces(clean_up_tokenization_spaces=cleans)
    texts = decode(tokenizer, arrays([1, 2, 3, 4, 5, 6, 7]))
    assert texts == ["it's done." if cleans else "it ' s done ."]
    assert texts == tokenizer.batch_decode([[1, 2, 3, 4, 5, 6, 7]], skip_special_tokens=True)


def test_a_tokenizer_with_a_way_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _decode(self, *arguments: Any, **options: Any) -> str:
            return super()._decode(*arguments, **options).upper()

    plain = word_pieces()
    tokenizer = Shouting(tokenizer_object=plain.backend_tokenizer, eos_token="[END]")
    assert decode(tokenizer, arrays([1, 7], [4, 5])) == ["IT", "DONE"]
