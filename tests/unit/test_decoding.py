"""Texts are those of transformers' own `batch_decode`, whatever it adds to the Rust tokenizer's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from drgrpo.decoding import Decoder
from tests.tiny_model import VOCAB_SIZE, build_tiny_tokenizer


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


def _add_token(path: Path, content: str, is_special: bool) -> None:
    """Into the list of added tokens of one of a tokenizer's two files."""
    saved = json.loads(path.read_text())
    options = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    token = {"content": content, "special": is_special, **options}
    if path.name == "tokenizer.json":
        saved["added_tokens"].append({"id": VOCAB_SIZE, **token})
    else:
        saved.setdefault("added_tokens_decoder", {})[str(VOCAB_SIZE)] = token
    path.write_text(json.dumps(saved))


def test_the_text_of_every_token_is_that_of_batch_decode(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    ids = np.random.default_rng(0).integers(0, len(tokenizer), (64, 40))
    sequences = [*ids, *arrays([], [tokenizer.eos_token_id], *[[index] for index in range(len(tokenizer))])]
    assert Decoder(tokenizer).texts(sequences) == tokenizer.batch_decode(sequences, skip_special_tokens=True)
    assert Decoder(tokenizer).texts([]) == []


def test_added_tokens_stand_for_themselves_and_ids_without_a_token_for_nothing(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    tokenizer.add_tokens(["<a b>", "ä—", "plain"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<none>"]})
    space, dash, plain, special = (len(tokenizer) - count for count in (4, 3, 2, 1))
    sequences = arrays([space, dash, plain, special], [dash, len(tokenizer), len(tokenizer) + 70_000, space])
    texts = Decoder(tokenizer).texts(sequences)
    assert texts == ["<a b>ä—plain", "ä—<a b>"]
    assert texts == tokenizer.batch_decode(sequences, skip_special_tokens=True)


def test_what_is_special_the_tokenizer_decides_where_its_files_disagree(tmp_path: Path) -> None:
    build_tiny_tokenizer(tmp_path)
    for name, is_special in (("tokenizer.json", True), ("tokenizer_config.json", False)):
        _add_token(tmp_path / name, "<think>", is_special)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    (index,) = tokenizer.convert_tokens_to_ids(["<think>"])
    texts = tokenizer.batch_decode([[index]], skip_special_tokens=True)
    assert Decoder(tokenizer).texts(arrays([index])) == texts == [""]


def test_bytes_that_are_no_text_become_what_batch_decode_makes_of_them(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    alphabet = tokenizer.convert_tokens_to_ids([bytes_to_unicode()[byte] for byte in range(256)])
    assert None not in alphabet
    rng = np.random.default_rng(0)
    broken = [rng.choice(alphabet, size) for size in rng.integers(1, 40, 500)]
    whole = arrays(*[[alphabet[byte] for byte in "né😀".encode()[start:]] for start in range(8)])
    texts = Decoder(tokenizer).texts([*whole, *broken])
    assert texts == tokenizer.batch_decode([*whole, *broken], skip_special_tokens=True)
    assert texts[0] == "né😀"


@pytest.mark.parametrize("cleans", [False, True])
def test_a_tokenizer_that_cleans_up_still_does(cleans: bool) -> None:
    tokenizer = word_pieces(clean_up_tokenization_spaces=cleans)
    texts = Decoder(tokenizer).texts(arrays([1, 2, 3, 4, 5, 6, 7]))
    assert texts == ["it's done." if cleans else "it ' s done ."]
    assert texts == tokenizer.batch_decode([[1, 2, 3, 4, 5, 6, 7]], skip_special_tokens=True)


def test_a_tokenizer_with_a_way_of_its_own_keeps_it(tmp_path: Path) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _decode(self, *arguments: Any, **options: Any) -> str:
            return super()._decode(*arguments, **options).upper()

    plain = word_pieces()
    tokenizer = Shouting(tokenizer_object=plain.backend_tokenizer, eos_token="[END]")
    assert Decoder(tokenizer).texts(arrays([1, 7], [4, 5])) == ["IT", "DONE"]
