"""Rewards: from a completion and a reference answer to a number, computed in processes that may hang or crash."""

from drgrpo.rewards.grade import Grade, GradeItem, GradeStatus
from drgrpo.rewards.pool import GraderPool, check_reward_functions
from drgrpo.rewards.registry import BUILT_IN, RewardFunction, load_reward_functions, name_errors

__all__ = [
    "BUILT_IN",
    "Grade",
    "GradeItem",
    "GradeStatus",
    "GraderPool",
    "RewardFunction",
    "check_reward_functions",
    "load_reward_functions",
    "name_errors",
]
