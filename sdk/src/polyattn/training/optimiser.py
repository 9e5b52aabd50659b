"""What optimisers have in common: groups, checks, a state that can be kept.

Parameters change where they lie; the state is a mapping of names to arrays.
An optimiser is made with its options and stepped with two mappings of names to arrays::

    optimiser = AdamW(learning_rate=1e-3)
    optimiser.step(parameters, gradients)

The parameters are writable arrays, which change in place, or the `parameters` of a mechanism or a
pipeline, which are set through their `update`.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, DTypeError, ParameterError, ShapeError

from ._checks import real

Rate = float | Callable[[int], float]
Groups = Mapping[str, Mapping[str, Any]]
"""Wildcards for names of parameters → options that these have of their own."""


class Optimiser(ABC):
    """Base of optimisers.

    Parameters
    ----------
    learning_rate
        A number, or a schedule: a function of the steps taken so far.
    groups
        Options of some parameters, by wildcards for their names: `learning_rate`, and
        `weight_decay` where there is one, as in ``{"*.bias": {"weight_decay": 0}}``. Those of the
        first wildcard that fits count, and the optimiser's own for what they do not say.
    """

    name: ClassVar[str]
    slots: tuple[str, ...] = ()
    """Names of what is remembered about each parameter."""
    grouped: tuple[str, ...] = ("learning_rate",)
    """Options that groups may have."""

    def __init__(self, *, learning_rate: Rate, groups: Groups | None = None) -> None:
        self.learning_rate: Rate = _checked("learning_rate", learning_rate)
        self.groups = self._checked_groups(groups)
        """Wildcards with their options, in order."""
        self._group_of: dict[str, str] = {}  # name → wildcard, "" for none
        self._all_fit = not self.groups
        self.steps = 0
        """Steps taken."""
        self._state: dict[str, dict[str, Array]] = {}

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of parameters that no group gives another."""
        return self._at(self.learning_rate)

    def rate_of(self, name: str) -> float:
        """The learning rate of the next step of one parameter."""
        return self._at(self._option(name, "learning_rate"))

    def _at(self, rate: Rate) -> float:
        return real("learning_rate", rate(self.steps), least=0) if callable(rate) else rate

    def _option(self, name: str, option: str) -> Any:
        """An option as it is for one parameter."""
        if not self.groups:
            return getattr(self, option)
        pattern = self._group_of.get(name)
        if pattern is None:
            fitting = (p for p in self.groups if fnmatch.fnmatchcase(name, p))
            pattern = self._group_of[name] = next(fitting, "")
        return self.groups.get(pattern, {}).get(option, getattr(self, option))

    def _checked_groups(self, groups: Groups | None) -> dict[str, dict[str, Any]]:
        if groups is None:
            return {}
        known = f"a mapping of wildcards to options: {', '.join(self.grouped)}"
        if not isinstance(groups, Mapping):
            raise ArgumentError("groups", groups, known)
        found: dict[str, dict[str, Any]] = {}
        for pattern, options in groups.items():
            if not isinstance(pattern, str) or not pattern or not isinstance(options, Mapping):
                raise ArgumentError("groups", {pattern: options}, known)
            place = f"groups[{pattern!r}]"
            for option in options:
                if option not in self.grouped:
                    raise ArgumentError(place, option, f"options {', '.join(self.grouped)}")
            found[pattern] = {k: _checked(k, v, f"{place}: {k}") for k, v in options.items()}
        return found

    def _check_patterns(self, names: Mapping[str, Any]) -> None:
        """All wildcards fit something: a mistake would make their options have no effect."""
        for pattern in () if self._all_fit else self.groups:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                accepted = f"wildcards for {', '.join(names) or 'no names'}"
                raise ParameterError("groups", pattern, accepted)
        self._all_fit = True

    def step(
        self,
        parameters: Mapping[str, Any],
        gradients: Mapping[str, Any],
        *,
        check_finite: bool = False,
    ) -> None:
        """Change the parameters that have a gradient; the others stay as they are.

        Allocates nothing for contiguous arrays after the first step.

        Parameters
        ----------
        parameters
            Writable arrays by name, or the `parameters` of a mechanism or pipeline.
        gradients
            Arrays by the same names.
        check_finite
            Refuse gradients that are not finite, for one more pass over them. Those of a mechanism
            or pipeline always are refused.

        Raises
        ------
        ParameterError, ShapeError, DTypeError
            Where a gradient has no parameter, or another shape than it, or is refused; or where, in
            the first step, a group has no parameter. Nothing has changed then.
        """
        managed = is_managed(parameters)
        self._check_patterns(parameters)
        work: dict[str, tuple[Array, Array]] = {}
        for name, gradient in gradients.items():
            if name not in parameters:
                known = ", ".join(parameters) or "none"
                raise ParameterError("gradients", f"one of {name}", f"those of {known}")
            work[name] = self._pair(name, parameters[name], gradient, copied=managed)
            if (managed or check_finite) and not _finite(work[name][1]):
                value = "values that are not finite"
                raise ParameterError(f"gradients[{name!r}]", value, "finite numbers")
        rates, count = {name: self.rate_of(name) for name in work}, self.steps + 1
        for name, (array, _) in work.items():
            self._slots_of(name, array)
        if managed:
            self._step_managed(parameters, work, rates, count)
        else:
            for name, (array, gradient) in work.items():
                state = self._slots_of(name, array)
                self._step_one(name, array, gradient, state, rates[name], count)
        self.steps = count

    def _step_managed(
        self, parameters: Any, work: dict[str, tuple[Array, Array]], rates: Mapping[str, float],
        count: int,
    ) -> None:  # fmt: skip
        # On copies of the state, because `update` refuses a step that leads to infinity.
        states = {}
        for name, (array, gradient) in work.items():
            states[name] = {k: a.copy() for k, a in self._slots_of(name, array).items()}
            self._step_one(name, array, gradient, states[name], rates[name], count)
        parameters.update({name: array for name, (array, _) in work.items()}, partial=True)
        self._state.update(states)

    def _step_one(
        self, name: str, array: Array, gradient: Array, state: dict[str, Array], rate: float,
        count: int,
    ) -> None:  # fmt: skip
        if array.flags.c_contiguous:
            self._change(name, array, gradient, state, rate, count)
        else:
            dense = np.ascontiguousarray(array)
            self._change(name, dense, gradient, state, rate, count)
            array[...] = dense

    def _pair(self, name: str, array: Any, gradient: Any, *, copied: bool) -> tuple[Array, Array]:
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            kind = getattr(array, "dtype", type(array).__name__)
            raise DTypeError(name, str(kind), "an array of float32 or float64")
        if copied:
            array = array.copy()
        elif not array.flags.writeable:
            raise ParameterError(name, "a read-only array", "one that may be written")
        found = np.asarray(gradient)
        if found.dtype.kind != "f":
            raise DTypeError(f"gradients[{name!r}]", str(found.dtype), "an array of real numbers")
        self._check_shape(name, array, found)
        found = np.ascontiguousarray(found, array.dtype).reshape(found.shape)
        return array, found

    def _check_shape(self, name: str, array: Array, gradient: Array) -> None:
        if gradient.shape != array.shape:
            raise ShapeError(f"gradients[{name!r}]", gradient.shape, f"shape {array.shape}")

    def _slots_of(self, name: str, array: Array) -> dict[str, Array]:
        if name not in self._state:
            self._state[name] = {
                slot: np.zeros(self._slot_shape(name, slot, array), array.dtype)
                for slot in self.slots
            }
        for slot, found in self._state[name].items():
            shape = self._slot_shape(name, slot, array)
            if found.shape != shape or found.dtype != array.dtype:
                value, wanted = f"{found.dtype} {found.shape}", f"{array.dtype} {shape}"
                raise ParameterError(name, value, f"{wanted}, as what is remembered of it")
        return self._state[name]

    def _slot_shape(self, name: str, slot: str, array: Array) -> tuple[int, ...]:
        return array.shape

    @abstractmethod
    def _change(
        self,
        name: str,
        array: Array,
        gradient: Array,
        state: dict[str, Array],
        rate: float,
        step: int,
    ) -> None:
        """Step number `step`, from 1, of one parameter; writes `array` and `state`."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What it was made with, apart from learning rates, ready for JSON."""

    def _group_options(self) -> dict[str, Any]:
        """The groups as part of :meth:`options`: pairs in their order, which decides."""
        if not self.groups:
            return {}
        pairs = [
            [pattern, {k: v for k, v in options.items() if k != "learning_rate"}]
            for pattern, options in self.groups.items()
        ]
        return {"groups": pairs}

    def state(self) -> dict[str, Array]:
        """Copies of what is remembered, by ``slot/parameter``; :attr:`steps` belongs to it."""
        return {
            f"{slot}/{name}": array.copy()
            for name, slots in self._state.items()
            for slot, array in slots.items()
        }

    def load_state(self, state: Mapping[str, Any], steps: int) -> None:
        """Continue from what :meth:`state` returned after so many steps.

        Raises
        ------
        ParameterError
            Where a slot is unknown, or one of a parameter is missing. Nothing has changed then.
        """
        found: dict[str, dict[str, Array]] = {}
        for full, array in state.items():
            slot, _, name = full.partition("/")
            if slot not in self.slots or not name:
                accepted = f"slots of {self.name}: {', '.join(self.slots) or 'none'}"
                raise ParameterError("state", full, accepted)
            found.setdefault(name, {})[slot] = np.array(array, order="C")
        for name, slots in found.items():
            if missing := [slot for slot in self.slots if slot not in slots]:
                raise ParameterError("state", f"no {missing[0]}/{name}", f"all of {self.slots}")
        self._state = {
            name: {slot: slots[slot] for slot in self.slots} for name, slots in found.items()
        }
        self.steps = int(steps)

    def __repr__(self) -> str:
        options = {"learning_rate": self.learning_rate, **self.options()}
        if self.groups:
            options["groups"] = self.groups
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def is_managed(parameters: Mapping[str, Any]) -> bool:
    """Parameters of a mechanism or pipeline, which `update` sets; arrays are written to."""
    return hasattr(parameters, "update") and not isinstance(parameters, dict)


def _checked(option: str, value: Any, place: str = "") -> Any:
    """A learning rate or weight decay."""
    if option == "learning_rate" and callable(value):
        return value
    return real(place or option, value, least=0)


def _finite(array: Array) -> bool:
    flat = array.reshape(-1)
    # The sum of squares is one fast pass; what overflows in it may still be finite.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(flat).all())
