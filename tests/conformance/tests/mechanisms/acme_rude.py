"""Mechanisms that break the contract around the numbers: arguments, parameters, copies, schemas."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
from acme_plain import STATISTICS, Plain, PlainConfig
from pydantic import ConfigDict, Field, field_validator

from polyattn_core.errors import PolyattnError
from polyattn_core.parameters import Parameters
from polyattn_core.spec import Capabilities


class TakesEverything(Plain):
    """Does not refuse what its spec does not declare."""

    def __init__(self, config, *, spec):
        everything = Capabilities(
            partial=True, dropout=True, statistics=STATISTICS, parametric=True, positional=True
        )
        super().__init__(config, spec=replace(spec, capabilities=everything))
        self.spec = spec


class RaisesPlainErrors(Plain):
    def attend(self, *arrays, **options):
        try:
            return super().attend(*arrays, **options)
        except PolyattnError as error:
            raise ValueError(str(error)) from None


class IgnoresUnknownStatistics(Plain):
    def observe(self, query, key, value, *statistics, **options):
        known = [name for name in statistics if name in STATISTICS]
        return super().observe(query, key, value, *known, **options)


class DoesWithoutSideInput(Plain):
    def _checked_side(self, side):
        return side


class CallsItselfOther(Plain):
    name = "acme/other"  # type: ignore[assignment]


class StartsAnywhere(Plain):
    def _initial_parameters(self, rng):
        return super()._initial_parameters(np.random.default_rng())


class UnusedParameter(Plain):
    def _initial_parameters(self, rng):
        return {**super()._initial_parameters(rng), "unused": np.ones(3)}


class _Writable(Parameters):
    def __getitem__(self, name):
        return self._arrays[name]


class WritableParameters(Plain):
    def __init__(self, config, *, spec):
        super().__init__(config, spec=spec)
        self._parameters = _Writable(dict(self.parameters))


class _OneByOne(Parameters):
    def update(self, arrays, *, partial=False):
        for name, array in arrays.items():
            super().update({name: array}, partial=True)
        super().update(arrays, partial=partial)


class SetsOneByOne(Plain):
    def _initial_parameters(self, rng):
        return {**super()._initial_parameters(rng), "other": np.ones(3)}

    def __init__(self, config, *, spec):
        super().__init__(config, spec=spec)
        self._parameters = _OneByOne(dict(self.parameters))


class _Coarse(Parameters):
    def save(self, path):
        rounded = {name: np.round(array, 2) for name, array in self.items()}
        Parameters(rounded).save(path)


class SavesRounded(Plain):
    def __init__(self, config, *, spec):
        super().__init__(config, spec=spec)
        self._parameters = _Coarse(dict(self.parameters))


class Unpicklable(Plain):
    def __init__(self, config, *, spec):
        super().__init__(config, spec=spec)
        self.scale = lambda: config.scale


class CopiesShallowly(Plain):
    def __deepcopy__(self, memo):
        return copy.copy(self)


class Anonymous(Plain):
    __repr__ = object.__repr__


# ---- schemas ------------------------------------------------------------------------------------


class IgnoresUnknownOptions(PlainConfig):
    """Takes any option."""

    model_config = ConfigDict(extra="ignore")


class WithoutBounds(PlainConfig):
    """A number may be anything."""

    scale: float = 0.5
    """Factor of the scores."""


class WithoutDescription(PlainConfig):
    """An option that says nothing of itself."""

    scale: float = Field(default=0.5, gt=0)


class LosesOption(PlainConfig):
    """An option that is not written."""

    scale: float = Field(default=0.5, gt=0, exclude=True)
    """Factor of the scores."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"scale": 0.25, **options} if len(options) < 3 else options)


class TakesAnyText(PlainConfig):
    """A number that may be written as any text."""

    @field_validator("scale", mode="before")
    @classmethod
    def _guess(cls, value: object) -> object:
        return 0.5 if isinstance(value, str) else value


class AnyHeads(PlainConfig):
    """Does not look whether heads divide the width."""

    def _check_heads(self):
        return self
