"""Compare two algorithms on one task. Leave out `runner` for a full run."""

import metarun

for algorithm in ("maml", "cavia"):
    experiment = metarun.experiment(
        task="regression/sinusoid",
        algorithm=algorithm,
        runner={"iterations": 2, "val_episodes": 4, "test_episodes": 10},
    )
    mse = experiment.run().summary["test"]["mse"]
    print(f"{algorithm}: {mse['mean']:.3f} ± {mse['ci95']:.3f}")
