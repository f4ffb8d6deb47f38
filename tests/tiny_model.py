"""A random model small enough for any test, in the form of a real one: safetensors, tokenizer, chat template."""

from pathlib import Path
from typing import Literal

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 320


def build_tiny_model(path: Path, *, seed: int = 0, architecture: Literal["Llama", "Qwen2"] = "Llama") -> Path:
    """Write two layers (tied embeddings, float32, 0.4 M parameters) with a byte-level tokenizer to `path`."""
    import torch
    import transformers
    from transformers import GenerationConfig

    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # Wide enough that the next-token distribution is far from uniform, which would hide errors.
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{architecture}ForCausalLM")(config).to(torch.float32)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):  # zero from the start, which would hide that it is left out
                torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(path)
    build_tiny_tokenizer(path)
    return path


def build_tiny_tokenizer(path: Path) -> None:
    """Write a byte-level BPE tokenizer of 320 tokens: three special ones, all bytes, and merges of digits and words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = [
        "user assistant system",
        "What is 12 + 34? The answer is 46.",
        "Reply with the number only: question, think, box",
    ]
    tokenizer.train_from_iterator(text * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    ).save_pretrained(path)
