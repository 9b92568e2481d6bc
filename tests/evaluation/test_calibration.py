"""Calibration against sums written out, and temperatures against a search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metarun.evaluation.calibration import BINS, Calibration, calibration_sums, expected_error, fitted_temperature

TASKS, QUERIES, WAY = 6, 40, 4


def drawn(sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn by the probabilities of ``logits / sharpness``."""
    noise = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(TASKS, QUERIES, WAY, generator=noise, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=noise).view(TASKS, QUERIES)
    return logits * sharpness, y


def test_measures_are_their_definitions() -> None:
    logits, y = drawn()
    found = Calibration(calibration_sums(logits, y, 0.7).numpy()).as_dict()
    p = (logits / 0.7).softmax(-1).flatten(0, 1)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    nll = brier = 0.0
    for row, label in zip(p, y.flatten(), strict=True):
        confidence = float(row.max())
        bins[math.ceil(confidence * BINS) - 1].append((confidence, bool(row.argmax() == label)))
        nll -= float(row[label].log())
        brier += sum((float(row[k]) - (k == int(label))) ** 2 for k in range(WAY))
    count = TASKS * QUERIES
    error = sum(abs(sum(c for c, _ in each) - sum(r for _, r in each)) for each in bins) / count
    assert found["ece"]["mean"] == pytest.approx(error)
    assert found["nll"]["mean"] == pytest.approx(nll / count)
    assert found["brier"]["mean"] == pytest.approx(brier / count)
    assert found["nll"]["n"] == TASKS
    shares = [len(each) / count for each in bins if each]
    assert [row[0] for row in found["reliability"]] == pytest.approx(shares)
    per_task = torch.nn.functional.cross_entropy(logits.flatten(0, 1) / 0.7, y.flatten(), reduction="none").view(
        TASKS, -1
    )
    assert found["nll"]["ci95"] == pytest.approx(1.96 * float(per_task.mean(1).std()) / TASKS**0.5)


def test_the_interval_of_the_error_covers_that_of_new_tasks() -> None:
    logits, y = drawn(3.0)
    found = Calibration(calibration_sums(logits, y).numpy()).as_dict()["ece"]
    halves = [float(expected_error(calibration_sums(logits[i::2], y[i::2]).numpy().sum(0))) for i in (0, 1)]
    assert found["ci95"] > 0
    assert abs(halves[0] - halves[1]) < 2 * found["ci95"]
    assert Calibration(calibration_sums(logits, y).numpy()).as_dict()["ece"] == found


def test_tasks_that_depend_on_each_other_count_as_one() -> None:
    sums = calibration_sums(*drawn()).numpy()
    once, twice = Calibration(sums).as_dict(), Calibration(np.repeat(sums, 2, 0), together=2).as_dict()
    for name in ("ece", "nll", "brier"):
        assert twice[name]["ci95"] == pytest.approx(once[name]["ci95"])


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_a_fitted_temperature_is_the_most_likely(sharpness: float) -> None:
    logits, y = (each.flatten(0, 1) for each in drawn(sharpness))
    found = fitted_temperature(logits, y)
    assert found is not None

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, y))

    assert all(nll(found) < nll(found * factor) for factor in (0.95, 1.05))
    assert found == pytest.approx(sharpness, rel=0.35)
    assert fitted_temperature(logits.where(logits < 1, math.nan), y) is None
    right = torch.nn.functional.one_hot(y, WAY).double()
    assert fitted_temperature(right, y) == pytest.approx(0.01)  # no temperature is the best


def test_a_temperature_mends_overconfidence() -> None:
    logits, y = drawn(5.0)
    temperature = fitted_temperature(logits[:3].flatten(0, 1), y[:3].flatten())
    before, after = (expected_error(calibration_sums(logits[3:], y[3:], t).numpy().sum(0)) for t in (1.0, temperature))
    assert after < before / 2
