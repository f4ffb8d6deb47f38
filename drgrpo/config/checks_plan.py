"""Checks that a run fits together: steps, data, schedule, devices, checkpoints."""

import math
from pathlib import PurePath

from drgrpo.config.errors import Mistake
from drgrpo.config.train import TrainConfig
from drgrpo.data.generated import PREFIX


def check_minibatch(config: TrainConfig) -> list[Mistake]:
    """A rollout splits into whole optimizer steps."""
    step, update = config.completions_per_step, config.trainer.completions_per_update
    if step % update == 0:
        return []
    # Bounded, so that an absurd number costs no hours: complete for steps of up to 1e10 completions.
    small = [n for n in range(1, min(math.isqrt(step), 100_000) + 1) if step % n == 0]
    divisors = sorted({*small, *(step // n for n in small)}, key=lambda n: abs(n - update))[:4]
    problem = (
        f"does not divide the {step} completions of a step ({config.data.prompts_per_step} prompts x "
        f"{config.rollout.group_size} completions)"
    )
    remedy = f"the nearest that do: {', '.join(map(str, sorted(divisors)))}"
    also = ("data.prompts_per_step", "rollout.group_size")
    return [Mistake("trainer.completions_per_update", update, problem, remedy, also=also)]


def check_data(config: TrainConfig) -> list[Mistake]:
    """The training problems, their number, and the wall between training and evaluation."""
    data = config.data
    mistakes = _check_end("data.train", data.train, "data.num_train_problems", data.num_train_problems)
    if 0 < data.num_train_problems < data.prompts_per_step:
        problem = f"one step needs more problems than data.num_train_problems = {data.num_train_problems}"
        remedy = f"lower it to at most {data.num_train_problems}, or raise num_train_problems"
        size = "data.num_train_problems"
        mistakes.append(Mistake("data.prompts_per_step", data.prompts_per_step, problem, remedy, also=(size,)))
    if is_same_split(config):
        problem, remedy = "the same problems as data.train: training would read the held-out split", "name another"
        also = ("data.train", "data.train_split", "data.eval")
        field = "data.eval" if is_file(data.eval) else "data.eval_split"
        value = data.eval if is_file(data.eval) else data.eval_split
        mistakes.append(Mistake(field, value, problem, remedy, also=also))
    return mistakes


def check_held_out(config: TrainConfig) -> list[Mistake]:
    """The held-out problems, their number, and how a problem becomes a prompt."""
    data = config.data
    mistakes = _check_end("data.eval", data.eval, "evaluation.num_problems", config.evaluation.num_problems)
    if "{question}" not in data.prompt_template:
        problem, remedy = "the question never reaches the model", "put `{question}` where it belongs"
        mistakes.append(Mistake("data.prompt_template", data.prompt_template, problem, remedy))
    return mistakes


def _check_end(path: str, source: str, size_path: str, number: int) -> list[Mistake]:
    if not source.startswith(PREFIX) or number:
        return []
    problem = f"{path} = {source} generates problems without end"
    return [Mistake(size_path, 0, problem, "give their number", also=(path,))]


def is_file(source: str) -> bool:
    """True for a single data file, which has no splits."""
    return PurePath(source).suffix in (".jsonl", ".json", ".parquet")


def is_same_split(config: TrainConfig) -> bool:
    """Generated problems are kept apart by their seeds, everything else by its split."""
    data = config.data
    if data.train != data.eval or data.train.startswith(PREFIX):
        return False
    return is_file(data.train) or data.train_split == data.eval_split


def check_schedule(config: TrainConfig) -> list[Mistake]:
    """The learning rate must reach its peak, and not be 0."""
    optimizer, steps = config.optimizer, config.total_steps * config.updates_per_step
    if 0 < steps <= optimizer.warmup_steps:
        problem = f"the run ends after {steps} optimizer steps, before the peak learning rate"
        also = ("total_steps", "trainer.completions_per_update", "data.prompts_per_step", "rollout.group_size")
        return [
            Mistake("optimizer.warmup_steps", optimizer.warmup_steps, problem, f"give less than {steps}", also=also)
        ]
    if optimizer.lr == 0:
        problem, remedy = "the policy never changes", "give a learning rate above 0, unless this is a control run"
        return [Mistake("optimizer.lr", 0.0, problem, remedy, "warning")]
    return []


def check_clip(config: TrainConfig) -> list[Mistake]:
    """A clip range without width stops every step after the first."""
    loss = config.loss
    if loss.clip_eps_low == loss.clip_eps_high == 0:
        problem, remedy = "with clip_eps_low = 0 every change of the ratio is clipped", "give 0.2, as the paper"
        return [Mistake("loss.clip_eps_high", 0.0, problem, remedy, also=("loss.clip_eps_low",))]
    if loss.correction != "off" and loss.correction_cap < 1:
        problem, remedy = "cuts even a ratio of 1, where sampler and trainer agree", "give 1 or more"
        also = ("loss.correction",)
        return [Mistake("loss.correction_cap", loss.correction_cap, problem, remedy, also=also)]
    return []


def check_microbatch(config: TrainConfig) -> list[Mistake]:
    """A sequence over the token budget still trains, with the memory of its own length."""
    budget, longest = config.trainer.tokens_per_microbatch, config.data.max_prompt_tokens
    longest += config.rollout.max_completion_tokens
    if budget >= longest:
        return []
    problem = f"the longest sequence has {longest} tokens and gets a micro-batch of its own"
    remedy = f"give {longest} or more, or see that memory suffices for {longest}"
    return [Mistake("trainer.tokens_per_microbatch", budget, problem, remedy, "warning")]


def check_placement(config: TrainConfig) -> list[Mistake]:
    """Ranks and engines must have work, and each engine a rank."""
    placement, trainer, mistakes = config.placement, config.trainer, []
    if trainer.num_ranks > trainer.completions_per_update:
        problem = f"more ranks than trainer.completions_per_update = {trainer.completions_per_update}"
        also = ("trainer.completions_per_update",)
        mistakes.append(Mistake("trainer.num_ranks", trainer.num_ranks, problem, "lower it", also=also))
    engines = placement.num_rollout_engines
    if engines > trainer.num_ranks:
        problem = f"more engines than trainer.num_ranks = {trainer.num_ranks}, and each takes its weights from a rank"
        remedy = f"lower it to at most {trainer.num_ranks}, or raise trainer.num_ranks to {engines}"
        also = ("trainer.num_ranks",)
        mistakes.append(Mistake("placement.num_rollout_engines", engines, problem, remedy, also=also))
    if engines > config.data.prompts_per_step:
        problem = f"more engines than data.prompts_per_step = {config.data.prompts_per_step}"
        also = ("data.prompts_per_step",)
        mistakes.append(Mistake("placement.num_rollout_engines", engines, problem, "lower it", also=also))
    return mistakes


def check_rollback(config: TrainConfig) -> list[Mistake]:
    """A gate that rolls back needs a checkpoint from before what it saw."""
    rules = [rule for rule in config.health.rules() if rule.action == "rollback"]
    checkpoint = config.checkpoint
    if rules and not checkpoint.has_cadence:
        path = f"health.{rules[0].gate}.action"
        problem, remedy = f"there is no checkpoint that {path} = rollback could go back to", "give a cadence"
        return [Mistake("checkpoint.every_steps", 0, problem, remedy, also=("checkpoint.every_minutes", path))]
    # A fall below the best evaluation goes back to the best, whose checkpoint stays.
    patience, gate = max(((rule.patience, rule.gate) for rule in rules if rule.kind != "below_best"), default=(0, ""))
    every, kept = checkpoint.every_steps, checkpoint.keep_last
    # The policy of the step before the first bad one is good, and as many checkpoints may be newer.
    needed = math.ceil((patience + 1) / every) + 1 if every and gate else 0
    if kept >= needed:
        return []
    path = f"health.{gate}.patience"
    problem = f"with checkpoint.every_steps = {every} all may be too new to roll back to after {path} = {patience}"
    rarely = f", or 2 with a checkpoint.every_steps of {patience + 1}" if needed > 2 else ""
    remedy = f"give {needed} or more{rarely}"
    also = ("checkpoint.every_steps", path, f"health.{gate}.action")
    return [Mistake("checkpoint.keep_last", kept, problem, remedy, also=also)]
