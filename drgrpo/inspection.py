"""What the checks before a start look at, each thing read once: configuration, machine, model, problems."""

from functools import cached_property

from drgrpo.config import TrainConfig
from drgrpo.config.doubt import in_doubt
from drgrpo.config.errors import Mistake
from drgrpo.data.problems import Problem
from drgrpo.data.sources import LoadedProblems, Splits, load_problems, separate
from drgrpo.device_lock import visible_devices
from drgrpo.models import ModelFacts, inspect_model
from drgrpo.problems import sources
from drgrpo.settings import Settings

_BOTH = ("data.subset", "data.question_field", "data.answer_field", "data.generator_options")
MODEL = ("model.path", "model.revision")
TRAIN = ("data.train", "data.train_split", "data.num_train_problems", *_BOTH)
EVAL = ("data.eval", "data.eval_split", "evaluation.num_problems", *_BOTH)


class Inspection:
    """A configuration on this machine, with the mistakes known so far.

    With `train_too` it is to be trained on, not only evaluated.

    A property raises ModelError or DataError where it cannot be had; look at it only when its fields are not in doubt.
    """

    def __init__(self, config: TrainConfig, settings: Settings, mistakes: list[Mistake], *, train: bool = True) -> None:
        self.config, self.settings, self.mistakes, self.train_too = config, settings, mistakes, train
        self._train, self._held_out = sources(config)

    def doubts(self, *fields: str) -> bool:
        """Whether a known mistake leaves one of the fields in doubt."""
        return in_doubt(self.mistakes, *fields)

    @cached_property
    def model(self) -> ModelFacts:
        """What is known of the model."""
        model = self.config.model
        return inspect_model(model.path, revision=model.revision, cache_dir=self.settings.cache_dir)

    @cached_property
    def train(self) -> LoadedProblems:
        """The training problems, those held out among them."""
        return load_problems(self._train)

    @cached_property
    def held_out(self) -> LoadedProblems:
        """The held-out problems."""
        return load_problems(self._held_out)

    @cached_property
    def splits(self) -> Splits:
        """Both, without a common question."""
        return separate(self._train, self.train, self._held_out, self.held_out)

    @property
    def known_problems(self) -> dict[str, list[Problem]]:
        """The problems of `data.train`, if it is to be trained on, and `data.eval`, of those that are not in doubt."""
        found = {}
        if self.train_too and not self.doubts(*TRAIN):
            found["data.train"] = self.train.problems if self.doubts(*EVAL) else self.splits.train
        if not self.doubts(*EVAL):
            found["data.eval"] = self.held_out.problems
        return found

    @property
    def devices(self) -> list[str] | None:
        """GPUs of a run, by index or UUID; empty on a CPU, None on a cluster, of which this machine knows nothing."""
        if self.settings.ray_address:
            return None
        return [] if self.settings.device == "cpu" else visible_devices()

    @property
    def is_on_cpu(self) -> bool:
        """Whether this machine computes, and without a GPU."""
        return self.devices == [] and self.settings.device != "cuda"
