"""How a question becomes a prompt: text, and the token ids that sampler and trainer both use."""

from collections.abc import Iterable
from typing import Any, Literal

from drgrpo.data.errors import DataError
from drgrpo.data.problems import Problem, TokenizedProblem

PromptStyle = Literal["chat", "plain", "r1", "qwen_math"]

# Both templates word for word as in the code released with arXiv 2503.20783.
_R1_START = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
    "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, "
    "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: "
)
_R1_END = "\nAssistant: <think>"
_QWEN_START = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n"
)
_QWEN_END = "<|im_end|>\n<|im_start|>assistant\n"


def render_prompt(
    question: str, *, style: PromptStyle, system_prompt: str, prompt_template: str, tokenizer: Any
) -> tuple[str, list[int]]:
    """The prompt of `question` as text and as token ids, which are made here once and never again from the text.

    The ids start with exactly one BOS where the tokenizer adds one by itself, also if the template spells it out.

    Args:
        question: The question.
        style: `chat` (the tokenizer's template), `plain`, `r1` or `qwen_math`.
        system_prompt: System message of the chat style. Empty passes none, and a template that has a system message
            of its own then inserts that one, as it does in any other program.
        prompt_template: Text with `{question}` in it.
        tokenizer: A transformers tokenizer.

    Raises:
        DataError: No `{question}` in the template, no chat template in the tokenizer, or one that refuses the prompt.
    """
    if "{question}" not in prompt_template:
        raise DataError(f"data.prompt_template = {prompt_template!r}: no {{question}} in it; mark where it goes")
    body = prompt_template.replace("{question}", question)
    if style == "chat":
        text = _chat(body, system_prompt, tokenizer)
    else:
        start, end = {"plain": ("", ""), "r1": (_R1_START, _R1_END), "qwen_math": (_QWEN_START, _QWEN_END)}[style]
        text = start + body + end
    return text, _encode(text, tokenizer)


def default_stop(style: PromptStyle) -> list[str]:
    """Stop strings of a style, to be kept in the completion: the graders look for them."""
    return ["</answer>"] if style == "r1" else []


def tokenize_problems(
    problems: Iterable[Problem],
    *,
    style: PromptStyle,
    system_prompt: str,
    prompt_template: str,
    max_prompt_tokens: int,
    tokenizer: Any,
) -> tuple[list[TokenizedProblem], int]:
    """Problems with their prompts, in order, and how many were dropped for a prompt over `max_prompt_tokens`.

    Raises:
        DataError: As `render_prompt`, or every prompt is over the limit.
    """
    kept: list[TokenizedProblem] = []
    lengths: list[int] = []
    for problem in problems:
        text, ids = render_prompt(
            problem.question,
            style=style,
            system_prompt=system_prompt,
            prompt_template=prompt_template,
            tokenizer=tokenizer,
        )
        lengths.append(len(ids))
        if len(ids) <= max_prompt_tokens:
            kept.append(TokenizedProblem(problem, text, ids))
    if not kept:
        raise DataError(
            f"data.max_prompt_tokens = {max_prompt_tokens}: every one of {len(lengths)} prompts is longer, the "
            f"shortest has {min(lengths, default=0)} tokens; raise the limit"
        )
    return kept, len(lengths) - len(kept)


def _chat(body: str, system_prompt: str, tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "data.prompt_style = 'chat': the model's tokenizer has no chat template; use plain, r1 or qwen_math"
        )
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages = [*system, {"role": "user", "content": body}]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program, which raises what it likes
        raise DataError(
            f"data.prompt_style = 'chat': the chat template of the model's tokenizer refuses the prompt ({error}); "
            "leave data.system_prompt empty, or use plain, r1 or qwen_math"
        ) from error
    return text


def _encode(text: str, tokenizer: Any) -> list[int]:
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    # Asked of the tokenizer, because add_bos_token is not set on all that add one, nor obeyed by all that set it.
    adds_bos = bos is not None and tokenizer.encode("a", add_special_tokens=True)[:1] == [bos]
    if adds_bos and ids[:1] != [bos]:
        return [bos, *ids]
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids
