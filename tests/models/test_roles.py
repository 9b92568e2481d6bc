"""Roles: what an algorithm needs of a model."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import metarun
from metarun.config.build import construct, locate
from metarun.config.catalogue import catalogue
from metarun.models.roles import ROLES, members, misfit, missing
from metarun.tasks.episode import Spec


class Bare(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


class Encoding(Bare):
    def encode(self, *transition: Any) -> Any:
        return transition[0]


def test_every_role_is_one_of_a_shipped_model_whose_class_offers_it() -> None:
    found = {}
    for entry in catalogue("model"):
        kind = locate(entry.section)
        found[kind.role] = found.get(kind.role, 0) + 1
        methods = [name for name in members(ROLES[kind.role]) if callable(vars(ROLES[kind.role]).get(name))]
        assert [name for name in methods if not hasattr(kind, name)] == []
    assert {*found} == {*ROLES}
    assert {role for e in catalogue("algorithm") for role in e.attributes.get("roles", ())} <= {*ROLES}


@pytest.mark.parametrize(
    "name", ["gru_policy", "belief_policy", "context_policy", "transformer_policy", "snail_policy", "mlp_policy"]
)
def test_policies_have_the_attributes_of_their_role(name: str) -> None:
    (section,) = (entry.section for entry in catalogue("model") if entry.name == name)
    model = construct(section, spec=Spec("control", "vector", (3,), 2))
    assert missing(model, ROLES[model.role]) == []


def test_what_is_missing_is_named() -> None:
    assert misfit(Bare(), ("features",), "image") is None
    assert "lacks forward" in str(misfit(nn.Module(), ("features",), "image"))
    assert "lacks encode, example: metarun.models.roles.TextEncoder" in str(misfit(Bare(), ("features",), "text"))
    assert "lacks head, value, features" in str(misfit(Encoding(), ("recurrent_policy",), "vector"))
    spec = Spec("control", "state", (1,), 5, discrete_actions=True)
    with pytest.raises(metarun.UserError, match=r"Encoding lacks head, value, features"):
        metarun.make("rl2", model=Encoding(), spec=spec)
    with pytest.raises(metarun.UserError, match=r"Encoding lacks head, value, features: metarun.models.roles.Recurr"):
        metarun.experiment("task=rl/bandit", algorithm="rl2", model=Encoding, runner={"iterations": 1}).run()
