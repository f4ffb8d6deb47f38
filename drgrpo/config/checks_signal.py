"""Checks that a run can learn: the reward, the group and the sampler leave a signal in the advantages."""

from drgrpo.config.errors import Mistake
from drgrpo.config.train import TrainConfig
from drgrpo.rewards.registry import name_errors


def check_group(config: TrainConfig) -> list[Mistake]:
    """A statistic over one sample carries no signal."""
    norm, group, step = config.adv_norm, config.rollout.group_size, config.completions_per_step
    sizes = {"group": group, "batch": step, "none": 0}
    also = ("adv_norm.mean_level", "adv_norm.std_level", "adv_norm.leave_one_out")
    if sizes[norm.mean_level] == 1:
        problem = "every advantage is 0: a single sample is its own mean"
        if norm.leave_one_out:
            problem = "leave_one_out has no other sample to take the mean of"
        remedy = "sample at least 2 completions a prompt, or set adv_norm.mean_level to batch or none"
        return [Mistake("rollout.group_size", group, problem, remedy, also=also)]
    if sizes[norm.std_level] == 1:
        problem, remedy = "a single sample has no standard deviation", "set it to none, or raise rollout.group_size"
        return [Mistake("adv_norm.std_level", norm.std_level, problem, remedy, also=("rollout.group_size",))]
    return []


def check_reward(config: TrainConfig) -> list[Mistake]:
    """Rewards must be able to differ."""
    reward, weights = config.reward, list(config.reward.functions.values())
    mistakes = []
    if not any(weights):
        problem, remedy = "all weights are 0, so every reward is the same", "give one function a weight"
        mistakes.append(Mistake("reward.functions", reward.functions, problem, remedy))
    elif reward.scaling == 0:
        mistakes.append(Mistake("reward.scaling", 0.0, "every reward is 0", "give another scale than 0"))
    else:
        extremes = [sum(min(w, 0) for w in weights), sum(max(w, 0) for w in weights)]
        scaled = [(extreme + reward.bias) * reward.scaling for extreme in extremes]
        if reward.clip and len({max(-reward.clip, min(reward.clip, value)) for value in scaled}) == 1:
            problem = f"best and worst reward ({max(scaled):g}, {min(scaled):g}) are clipped to the same value"
            also, remedy = ("reward.scaling", "reward.bias", "reward.functions"), "raise it, or set 0 to switch it off"
            mistakes.append(Mistake("reward.clip", reward.clip, problem, remedy, also=also))
    return mistakes


def check_reward_names(config: TrainConfig) -> list[Mistake]:
    """Reward functions must be there."""
    functions = config.reward.functions
    return [Mistake("reward.functions", functions, text, "correct the name") for text in name_errors(functions)]


def check_overlong(config: TrainConfig) -> list[Mistake]:
    """The buffer of the penalty lies within the completion limit."""
    overlong, limit = config.reward.overlong, config.rollout.max_completion_tokens
    if not overlong.enabled or overlong.buffer_tokens <= limit:
        return []
    problem, remedy = f"longer than rollout.max_completion_tokens = {limit}", f"lower it to at most {limit}"
    also = ("rollout.max_completion_tokens",)
    return [Mistake("reward.overlong.buffer_tokens", overlong.buffer_tokens, problem, remedy, also=also)]


def check_advantage_options(config: TrainConfig) -> list[Mistake]:
    """Options of the mean and the divisor need a mean and a divisor."""
    norm, mistakes = config.adv_norm, []
    if norm.leave_one_out and norm.mean_level == "none":
        problem, remedy = "adv_norm.mean_level = none subtracts no mean", "set mean_level to group (RLOO), or drop this"
        mistakes.append(Mistake("adv_norm.leave_one_out", True, problem, remedy, also=("adv_norm.mean_level",)))
    if norm.normalize_by == "mean" and norm.std_level == "none":
        problem, remedy = "adv_norm.std_level = none divides by nothing", "set std_level to group (MaxRL), or drop this"
        mistakes.append(Mistake("adv_norm.normalize_by", "mean", problem, remedy, also=("adv_norm.std_level",)))
    return mistakes


def check_mean_normalization(config: TrainConfig) -> list[Mistake]:
    """MaxRL divides by the mean reward, which must not be negative, and be the group's own."""
    norm, reward = config.adv_norm, config.reward
    if norm.normalize_by != "mean" or norm.std_level == "none":
        return []
    mistakes = []
    causes = {
        "reward.bias": reward.bias < 0,
        "reward.scaling": reward.scaling < 0,
        "reward.overlong.enabled": reward.overlong.enabled and reward.overlong.penalty > 0,
        "reward.functions": any(weight < 0 for weight in reward.functions.values()),
    }
    negative = tuple(path for path, is_cause in causes.items() if is_cause)
    if negative:
        problem, remedy = f"{' and '.join(negative)} can make the mean reward negative", "set it to std, or drop those"
        mistakes.append(Mistake("adv_norm.normalize_by", "mean", problem, remedy, also=negative))
    if norm.std_level != norm.mean_level:
        problem = f"the mean of one level ({norm.mean_level}) is subtracted and that of another divides"
        remedy = f"set adv_norm.std_level to {norm.mean_level}" if norm.mean_level != "none" else "set mean_level too"
        mistakes.append(Mistake("adv_norm.std_level", norm.std_level, problem, remedy, "warning"))
    return mistakes


def check_sampling(config: TrainConfig) -> list[Mistake]:
    """What the sampler draws from must leave something to learn from."""
    rollout, mistakes = config.rollout, []
    if rollout.top_k == 1:
        problem, remedy = "greedy: all completions of a group are equal, every advantage is 0", "set it to -1"
        mistakes.append(Mistake("rollout.top_k", 1, problem, remedy))
    elif config.loss.correction == "off" and (rollout.top_p < 1 or rollout.top_k > 0):
        problem = "the trainer's logprobs are of the whole distribution, so the gradient is biased"
        name, value = ("top_p", rollout.top_p) if rollout.top_p < 1 else ("top_k", rollout.top_k)
        mistakes.append(Mistake(f"rollout.{name}", value, problem, "sample with top_p 1 and top_k -1", "warning"))
    if rollout.ignore_eos and config.reward.truncated_reward == "zero":
        problem = "every completion runs to its limit, and reward.truncated_reward = zero scores it 0"
        remedy = "set it to false, or truncated_reward to keep; meant for benchmarks only"
        mistakes.append(Mistake("rollout.ignore_eos", True, problem, remedy, "warning"))
    return mistakes


def check_stop(config: TrainConfig) -> list[Mistake]:
    """A completion must be able to begin."""
    stop = config.rollout.stop
    return [Mistake("rollout.stop", stop, "an empty string stops at once", "remove it")] if "" in stop else []


def check_correction(config: TrainConfig) -> list[Mistake]:
    """The correction needs the sampler's own distribution, whole."""
    correction, rollout = config.loss.correction, config.rollout
    if correction == "off":
        return []
    mistakes = []
    if not rollout.sampler_logprobs:
        problem, remedy = "needs the sampler's logprobs", "set rollout.sampler_logprobs to true, or correction to off"
        mistakes.append(Mistake("loss.correction", correction, problem, remedy, also=("rollout.sampler_logprobs",)))
    for name, value, whole in (("top_p", rollout.top_p, 1.0), ("top_k", rollout.top_k, -1)):
        if value not in (whole, 0):
            problem = f"loss.correction = {correction} would compare a cut distribution with a whole one"
            remedy = f"set {name} to {whole}, or correction to off"
            mistakes.append(Mistake(f"rollout.{name}", value, problem, remedy, also=("loss.correction",)))
    return mistakes
