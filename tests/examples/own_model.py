"""Meta-train a torch module of your own."""

from torch import Tensor, nn

import metarun


class Network(nn.Module):
    def __init__(self, spec: metarun.Spec, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(spec.input_shape[0], width, 3, stride=3), nn.ReLU(), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:  # [N, channels, height, width], bytes -> features [N, F]
        return self.layers(images.float() / 255)


run = metarun.experiment("task=vision/glyphs", "runner.iterations=2", "runner.test_episodes=10", model=Network).run()
print(run.summary["test"]["accuracy"])
