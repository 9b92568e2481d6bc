"""A task sampler for tests: poles of lengths that the policy is not told."""

import gymnasium


def sample(rng, split):
    return rng.uniform(0.2, 1.0)


def make(length):
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.length = length
    return env
