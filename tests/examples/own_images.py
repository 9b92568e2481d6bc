"""Adapt a learner to your own images: the folder my_images holds one folder of images for each class."""

import metarun

experiment = metarun.experiment(
    task="vision/glyphs", algorithm="protonet", runner={"iterations": 2, "val_episodes": 4, "test_episodes": 4}
)
run = experiment.run()  # later, in another program: metarun.load(run.path)
learner = metarun.adapt(run, "my_images")
found = learner.predict(["unknown_1.png", "unknown_2.png"])
for label, probabilities in zip(found.labels, found.probabilities, strict=True):
    print(f"{label} ({probabilities.max():.0%})")
