"""Optimizers that torch.optim does not have, in operations of torch.

Such a class is the fallback of goptim's class, which is derived from it, and what its tests compare with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

# The for-loops by their names, which Go's descriptions and saved files have, and goptim's classes by the same names.
CLASSES: dict[str, type[ForLoop]] = {}
IN_GO: dict[str, type[ForLoop]] = {}


def name_in_goptim(name: str) -> str:
    """The name of a class in package goptim: ``Lion`` of Lion, and ``timm.Lion`` of TimmLion."""
    ours = IN_GO.get(name)
    if ours is None or ours.__name__ == name:
        return name
    return f"{ours.__module__.removeprefix('goptim.')}.{ours.__name__}"


# Classes of goptim whose constructors do not have parameters alone as their first argument, by their names. They have a
# reference too, and replaces.
OTHERS: dict[str, Any] = {}


def counterpart(reference: str) -> Callable[[type], type]:
    """A decorator of such a class, with the class of another package that has the same arguments and results."""

    def register(cls: Any) -> Any:
        cls.reference = reference
        OTHERS[cls.__name__] = cls
        return cls

    return register


def counterparts() -> dict[str, Any]:
    """All classes that have a reference."""
    return {**CLASSES, **OTHERS}


class ForLoop(Optimizer):
    """An optimizer whose step updates one parameter after another.

    A derived class ``<Name>ForLoop`` is the fallback of goptim's ``<Name>``, and its ``__name__`` is that name, which
    messages and profilers have. So do Go's description and saved files. If a module has the classes of another package,
    such as :mod:`goptim.timm`, only these have the name of the derived class, which begins with that of the module:
    ``TimmLionForLoop`` is the fallback of ``goptim.timm.Lion``.
    """

    name_in_go: ClassVar[str]
    """The name in Go's description."""

    states: ClassVar[tuple[str, ...]] = ()
    """The keys of a parameter's state: tensors like the parameter, and ``step``, a count that is a tensor of no
    dimensions. All are zero at first, except those in ``initial``."""

    absent: ClassVar[tuple[str, ...]] = ()
    """Keys of a parameter's state that are None. The class of another package expects them."""

    initial: ClassVar[dict[str, float]] = {}
    """The initial values of states that are not zero."""

    when: ClassVar[dict[str, str]] = {}
    """The options of a group that states depend on: they exist if the option, or its first element, is above 0."""

    numbers: ClassVar[dict[str, int | float]] = {}
    """The states that are Python numbers instead of tensors, with their initial values."""

    order: ClassVar[tuple[str, ...]] = ()
    """The states in the order in which they are created, if it is not that of ``states``, which is Go's."""

    late: ClassVar[tuple[str, ...]] = ()
    """The states that a parameter's first update creates, after the others."""

    scalars: ClassVar[tuple[str, ...]] = ()
    """The states that are tensors of no dimensions, besides ``step``. They keep their dtype in ``load_state_dict``."""

    vectors: ClassVar[tuple[str, ...]] = ()
    """The states that have an element for every ``slice_p``-th one of a parameter; ``p0`` may have no dimensions."""

    sparse: ClassVar[bool] = True
    """Whether a sparse gradient is not an error."""

    complexes: ClassVar[bool] = True
    """Whether a complex parameter is not an error."""

    entries: ClassVar[dict[str, Any]] = {}
    """The entries of a group that are not arguments, with their values at first. They are saved with the arguments."""

    other_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments that are not entries of a group, and False or None by default."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Arguments that are tuples, and the entries of a group that have their elements."""

    paths: ClassVar[bool] = True
    """Whether the argument ``foreach`` selects torch's arithmetic for 16-bit parameters."""

    reference: ClassVar[str] = ""
    """The class of another package with the same arguments and results, such as ``package.Class``."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        # By name: the next class may be that of another package, whose constructor has other arguments (_patch.py).
        Optimizer.__init__(self, params, {**defaults, **self.entries})

    @classmethod
    def replaces(cls, **arguments: Any) -> bool:
        """Whether :func:`goptim.patch` replaces an optimizer of ``reference`` that is constructed with arguments."""
        return True

    @property
    def reason_unsaved(self) -> str | None:
        """Why a file cannot contain the optimizer's state and hyperparameters."""
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = cls.__name__.removesuffix("ForLoop")
        if name != cls.__name__:
            cls.__name__ = cls.name_in_go = name
            CLASSES[name] = cls
        elif cls.__module__.startswith("goptim.") and cls.__bases__[-1] in CLASSES.values():
            IN_GO[cls.name_in_go] = cls
            cls.__bases__[-1].__name__ = cls.__name__

    def __getstate__(self) -> dict[str, Any]:
        return Optimizer.__getstate__(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)  # by name, as in the constructor
        missing = {**self._off(), **self.entries}
        for group in self.param_groups:
            for key, value in missing.items():
                group.setdefault(key, value)
        tensor = "step" in self.states and "step" not in self.numbers
        for of in self.state.values() if tensor else ():  # older versions stored a number
            if "step" in of and not isinstance(of["step"], Tensor):
                of["step"] = torch.tensor(float(of["step"]), dtype=dtype_of_counts(), device="cpu")

    def _off(self) -> dict[str, Any]:
        """The entries of a group that are off by default. Versions without these options did not save them."""
        cls = CLASSES.get(getattr(self, "name_in_go", ""))
        if cls is None:
            return {}
        arguments = inspect.signature(cls.__init__).parameters
        off = {key: x.default for key, x in arguments.items() if x.default is None or x.default is False}
        off = {key: value for key, value in off.items() if key not in self.other_arguments}
        if "corrected_weight_decay" in off:
            off["max_lr_snapshot"] = self.defaults.get("max_lr_snapshot", float(self.defaults["lr"]))
        return off

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.scalars:
            super().load_state_dict(state_dict)
            return
        found: list[dict[str, Any]] = []
        before = self.register_load_state_dict_pre_hook(lambda _, given: found.append(given))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_scalars(found[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore_scalars(self, given: dict[str, Any]) -> None:
        """Undo that torch converts scalars to the dtype and the device of their parameter."""
        for group, saved in zip(self.param_groups, given["param_groups"], strict=True):
            for p, name in zip(group["params"], saved["params"], strict=True):
                of = given["state"].get(name, {})
                self.state[p].update({key: of[key].clone() for key in self.scalars if isinstance(of.get(key), Tensor)})
                if not self.state[p]:
                    del self.state[p]

    def _init_group(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is not None and not self.state[p]:
                keys = [key for key in self.order or self.states if key not in self.when or group[self.when[key]] > 0]
                keys = [key for key in keys if key not in self.late]
                self.state[p].update({key: self._initial(key, p) for key in keys})
                self.state[p].update(dict.fromkeys(self.absent))

    def _initial(self, key: str, p: Tensor) -> Tensor | int | float:
        """A new state."""
        if key in self.numbers:
            return self.numbers[key]
        if key == "step" or key in self.scalars:
            return torch.tensor(0.0, dtype=dtype_of_counts(), device="cpu")
        return torch.full_like(p, self.initial.get(key, 0.0), requires_grad=False)

    def _require_ready(self) -> None:
        """Raise an error if the optimizer cannot step now."""

    def _complete_gradients(self) -> None:
        """Change gradients after the closure has been called."""

    def _check(self, p: Tensor) -> None:
        """Raise an error for a parameter that cannot be stepped."""
        if not self.sparse and p.grad is not None and p.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if not self.complexes and p.is_complex():
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        """Update a parameter by its gradient, in place."""
        raise NotImplementedError

    def advanced(self, group: dict[str, Any]) -> dict[str, Any]:
        """The entries of a group that the next step changes."""
        return {}

    def _update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient, and then entries of the group."""
        new = self.advanced(group)
        for p in params:
            self._update(p, group)
        group.update(new)

    def _update_all(self, work: list[tuple[list[Tensor], dict[str, Any]]]) -> None:
        """Update the parameters of all groups that have a gradient."""
        for params, group in work:
            self._update_group(params, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by their gradients, in place."""
        self._require_ready()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._complete_gradients()
        work = [([p for p in group["params"] if p.grad is not None], group) for group in self.param_groups]
        for params, group in work:
            if params and group.get("capturable"):
                raise AssertionError(
                    f"{type(self).__name__}: capturable is True, expected False: CUDA graphs are not supported"
                )
            for p in params:
                self._check(p)
        for group in self.param_groups:
            self._init_group(group)
        self._update_all(work)
        return loss


def dtype_of_counts() -> torch.dtype:
    """The dtype of new step counts, as in torch's optimizers."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
