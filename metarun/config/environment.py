"""Values of environment variables: runs use them, while stored, sent and printed configurations hold their names.

A configuration keeps ``${oc.env:NAME}`` as written, from the command line to config.yaml. :func:`resolved` returns the
values from which objects are built and registers them with :func:`metarun.errors.conceal`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from metarun.errors import UserError, concealed

_EXPRESSION = re.compile(r"(\\*)\$\{")


def as_written(config: Any) -> Any:
    """Return an OmegaConf node as plain values, resolved except for those that depend on an environment variable.

    Text that merely looks like an expression is escaped, so that :func:`resolved` restores it.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    def plain(node: Any, keys: Any) -> Iterator[tuple[Any, Any]]:
        for key in keys:
            if OmegaConf.is_interpolation(node, key):
                value = _container(node[key])
                yield key, node._get_node(key)._value() if _depends(node, key, value) else _escaped(value)
            else:
                yield key, as_written(node[key])

    if isinstance(config, DictConfig):
        return dict(plain(config, list(config)))
    if isinstance(config, ListConfig):
        return [value for _, value in plain(config, range(len(config)))]
    return _escaped(config)


def _depends(node: Any, key: Any, value: Any) -> bool:
    """Return whether the value of an interpolation changes with the environment."""
    with _other_environment():
        try:
            return _container(node[key]) != value
        except Exception:  # the changed variable no longer converts, to a number for example
            return True


@contextmanager
def _other_environment() -> Iterator[None]:
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def other(name: str, default: Any = None) -> str:
        return f"not_{name}_of_the_environment"

    OmegaConf.register_new_resolver("oc.env", other, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _container(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return _EXPRESSION.sub(lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value


def expressions(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, text) of every value with an expression."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from expressions(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from expressions(inner, f"{key}[{i}]")
    elif isinstance(value, str) and "${" in value:
        yield key, value


def resolved(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with the values of environment variables, which are registered as secret.

    Raises:
        UserError: A variable is not set.
    """
    written = dict(expressions(config))
    if not written:
        return config
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        made = OmegaConf.create(dict(config))
        for key, text in written.items():
            value = OmegaConf.select(made, key)
            if isinstance(value, str) and any(len(found[1]) % 2 == 0 for found in _EXPRESSION.finditer(text)):
                concealed[value] = text
        plain = OmegaConf.to_container(made, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).strip().splitlines()[0]) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
