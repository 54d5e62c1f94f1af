"""Parameters of a trained model that may differ from its training, such as the steps of a process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from p2pzoo.models.model_file import ModelHeader
from p2pzoo.plugin import schema
from p2pzoo.plugin.registry import Registry
from p2pzoo.utils.errors import UserError

AtUse = Mapping[str, Mapping[str, Any]]  # {"process" or "generator": {parameter: value}}


def with_parameters(header: ModelHeader, at_use: AtUse | None, registry: Registry) -> ModelHeader:
    """The header of the same model with these parameters.

    Raises UserError for a model without a process, and for parameters that may not differ or do not fit.
    """
    for kind, table in (at_use or {}).items():
        if table:
            header = _with_table(header, kind, table, registry)
    return header


def _with_table(header: ModelHeader, kind: str, table: Mapping[str, Any], registry: Registry) -> ModelHeader:
    named = header.process if kind == "process" else header
    if named is None:
        raise UserError(f"this model has no process that could take {', '.join(table)}: its generator is asked once")
    try:
        values = schema.check_at_use(registry.get(kind, named.use).load(), table)
    except schema.InvalidParameters as error:
        raise UserError(*(f"{kind} '{named.use}': {message}" for _, message in error.faults)) from None
    params = {**named.params, **schema.to_jsonable(values)}
    header = replace(header, as_json={**header.as_json, kind: {**header.as_json[kind], "params": params}})
    return (
        replace(header, params=params)
        if named is not header.process
        else replace(header, process=replace(named, params=params))
    )
