"""Checks of data before an engine starts: problems that load, and prompts that fit.

Each raises DataError where nothing can be read; the text names field, value and remedy.
"""

from drgrpo.config.errors import Mistake
from drgrpo.demonstrations import load_completions
from drgrpo.inspection import Inspection
from drgrpo.models import tokenizer_arguments
from drgrpo.tokenization import Fit, Questions, TokenizerError, count_fitting


def check_train(run: Inspection) -> None:
    """The training problems load."""
    _ = run.train


def check_held_out(run: Inspection) -> None:
    """The held-out problems load."""
    _ = run.held_out


def check_completions(run: Inspection) -> None:
    """Where a column holds completions, there is one for each training problem."""
    load_completions(run.config)


def check_step(run: Inspection) -> list[Mistake]:
    """Something is left to train on that is not held out, and enough for a step."""
    wanted, found = run.config.data.prompts_per_step, len(run.splits.train)
    if wanted <= found:
        return []
    return [_too_few(wanted, found, f"data.train has {found} problems", "give more problems")]


def check_prompts(run: Inspection) -> list[Mistake]:
    """The tokenizer makes prompts, and enough of them are short enough: for a step, and for the evaluation."""
    path, data = run.config.model.path, run.config.data
    try:
        fits = _fits(run)
    except TokenizerError as error:
        remedy = "save it there again, or set model.trust_remote_code to true if it brings its own code"
        return [Mistake("model.path", path, f"its tokenizer cannot be loaded: {error}", remedy)]
    too_long = [_too_long(run, name, fit) for name, fit in fits.items() if fit.num_fitting == 0]
    found = fits["data.train"].num_fitting if "data.train" in fits else 0
    if not 0 < found < data.prompts_per_step or run.doubts("data.prompts_per_step"):
        return too_long
    there_are = f"data.train has {found} problems with a prompt of at most {data.max_prompt_tokens} tokens"
    return [*too_long, _too_few(data.prompts_per_step, found, there_are, "raise data.max_prompt_tokens")]


def _fits(run: Inspection) -> dict[str, Fit]:
    model, data = run.config.model, run.config.data
    wanted = {"data.train": data.prompts_per_step, "data.eval": 1}
    arguments = tokenizer_arguments(model.path, revision=model.revision, cache_dir=run.settings.cache_dir)
    return count_fitting(
        {name: Questions([p.question for p in found], wanted[name]) for name, found in run.known_problems.items()},
        tokenizer=arguments,
        trust_remote_code=model.trust_remote_code,
        prompt={
            "style": data.prompt_style,
            "system_prompt": data.system_prompt,
            "prompt_template": data.prompt_template,
        },
        max_prompt_tokens=data.max_prompt_tokens,
    )


def _too_long(run: Inspection, name: str, fit: Fit) -> Mistake:
    num = len(run.known_problems[name])
    problem = f"every one of the {num} prompts of {name} is longer, the shortest has {fit.shortest} tokens"
    return Mistake("data.max_prompt_tokens", run.config.data.max_prompt_tokens, problem, "raise the limit")


def _too_few(wanted: int, found: int, there_are: str, remedy: str) -> Mistake:
    problem = f"{there_are}, so a step would hold some twice, with the same samples"
    return Mistake("data.prompts_per_step", wanted, problem, f"lower it to {found}, or {remedy}")
