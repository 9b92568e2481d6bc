"""Meta-train on a task family of your own: straight lines, whose slope and offset differ from task to task."""

import torch

import metarun


class Lines(metarun.Task):
    kind, modality, metric, higher_is_better = "regression", "vector", "mse", False
    spec, shape = metarun.Spec("regression", "vector", (1,), 1), metarun.EpisodeShape(way=0, shot=5, query=10)

    def batch(self, split, indices, shape=None):
        shot, count = (shape or self.shape).shot, (shape or self.shape).shot + (shape or self.shape).query
        u = torch.tensor(metarun.uniforms(self.seed, split, indices, 2 + count)).float().to(self.device)
        x = 2 * u[:, 2:, None] - 1
        y = u[:, :1, None] * x + u[:, 1:2, None]
        return metarun.TaskBatch(*(metarun.Labelled(x[:, at], y[:, at]) for at in (slice(shot), slice(shot, None))))


run = metarun.experiment(task=Lines, algorithm="maml", runner={"iterations": 50, "test_episodes": 20}).run()
print(run.summary["test"]["mse"], run.metrics["train/mse"])
