"""A table of a recipe as a value that can be compared and hashed, as the settings that hold it are."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import CoreSchema, core_schema


class FrozenTable(dict[str, Any]):
    """A dict that nobody changes.

    >>> {FrozenTable(steps=4): 1}[FrozenTable({"steps": 4})]
    1
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.dict_schema())


NO_TABLE = FrozenTable()
