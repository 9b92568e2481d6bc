"""Compare two algorithms on one task. Leave out `runner` for a full run."""

import metarun

for algorithm in ("maml", "protonet"):
    experiment = metarun.experiment(
        task="vision/glyphs", algorithm=algorithm, runner={"iterations": 2, "val_episodes": 4, "test_episodes": 10}
    )
    accuracy = experiment.run().summary["test"]["accuracy"]
    print(f"{algorithm}: {accuracy['mean']:.3f} ± {accuracy['ci95']:.3f}")
