"""What the tests ask of the sampler."""

from drgrpo.rollout.sampling import Completion, SampleRequest, Sampling
from tests.engines.process import EngineProcess
from tests.engines.samples import LIMIT, random_samples

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=LIMIT, logprobs=True)


def sample_requests() -> list[SampleRequest]:
    """Four prompts of different lengths, eight seeds each."""
    prompts = [list(sample.prompt_ids) for sample in random_samples(num_groups=4, group_size=2)[::2]]
    return [SampleRequest(prompt, seed=100 * i + k) for i, prompt in enumerate(prompts) for k in range(8)]


def generate(sampler: EngineProcess, wanted: list[SampleRequest], sampling: Sampling = SAMPLING) -> list[Completion]:
    """Completions of the initial policy."""
    completions: list[Completion] = sampler.call("generate", wanted, sampling, policy_version=0)
    return completions
