"""Optimizer.step(): supported parameters in Go, the rest in torch.

A step calls gather.c with all groups. If every parameter that has a gradient is supported, gather.c steps them;
otherwise it writes nothing and returns a code for each parameter. Then Python decides about the parameters that C
cannot, torch steps those that are not supported, and gather.c is called again for the rest. This module handles no
addresses. The user's optimizer is never changed: torch steps a stand-in with its own groups.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks as _global_post_hooks,
    _global_optimizer_pre_hooks as _global_pre_hooks,
)

from goptim import _native, _numbers, _parts, _scaler, _storage
from goptim._around import Around
from goptim._eligible import (
    PLAIN,
    SCALED,
    SHARED,
    WITH_GROUP,
    WITH_OTHERS,
    dispatch_modes,
    looks_up,
    memory_of,
    reason_of_optimizer,
)
from goptim._fallback import stand_in, threads_after_fork, undecorated_step, with_message
from goptim._kinds import Kind, kind_of
from goptim._parts import GO, NO_GRADIENT, PYTHON, TORCH, Asked, Part, bump_versions
from goptim._zero import ZeroGrad, begin_record, end_record
from goptim.averages import EMA

_FOR_TORCH = bytes([NO_GRADIENT, TORCH])

# Values of the argument threads of step_groups, in gather.c.
ASK, CHECK = 0, -1

# The end of the docstring of every class.
_KEYWORDS = (
    "With the keywords ``state_dtype``, ``master_weights``, ``rounding`` and ``seed``, also keys of a group,\n"
    "parameters of 16 bits and states are stored in other ways: see ``__init__`` and docs/half.md."
)

# How many times a step checks the parameters: other code may change them after a check.
_TURNS = 10


class GoStep(ZeroGrad):
    """An optimizer of torch.optim whose update runs in Go.

    Mixed into a class before torch's: ``class SGD(GoStep, torch.optim.SGD)``. Construction, validation, hooks, state
    and its keys, pickling and ``param_groups`` are inherited from torch. Go describes the scalars and the states of
    each class (_kinds.py); a class overrides a method only where they do not follow from the group alone.
    """

    torch_class: ClassVar[type[Optimizer]]
    """The corresponding class of torch.optim."""

    elementwise: ClassVar[bool] = True
    """Whether an element's update is independent of other elements, so that part of a parameter can be stepped."""

    together: ClassVar[bool] = False
    """Whether the update of a parameter depends on the gradients of all. If one falls back, all do."""

    stored: ClassVar[bool] = True
    """Whether it has the keywords of _storage.py."""

    part_class: ClassVar[type[Part]] = Part

    max_grad_norm: float | None = None
    """For every step, the argument ``max_grad_norm`` that is not given to it. It is copied and pickled with the
    optimizer, but not in its state_dict."""

    norm_dtype: torch.dtype | None = None
    """For every step, the argument ``norm_dtype`` that is not given to it. It is copied and pickled with the
    optimizer, but not in its state_dict."""

    ema: EMA | None = None
    """For every step, the argument ``ema`` that is not given to it. It is copied and pickled with the optimizer, but
    not in its state_dict."""

    grad_norm: Tensor | None = None
    """The norm of all gradients before clipping, in the last step with ``max_grad_norm``. A compiled step does not set
    it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        first, *others = cls.__bases__
        if others and issubclass(first, GoStep) and not hasattr(cls, "torch_class"):
            cls.torch_class = others[0]
        if others and cls.__module__.startswith("goptim.") and "__init__" not in vars(cls):
            base: Any = others[-1]
            setattr(cls, "__init__", _storage.constructor(cls, base.__init__))  # noqa: B010 for mypy
            cls.__init__.__doc__ = GoStep.__init__.__doc__
        if others and cls.stored and cls.__module__.startswith("goptim.") and (doc := vars(cls).get("__doc__")):
            cls.__doc__ = f"{inspect.cleandoc(doc)}\n\n{_KEYWORDS}\n"

    def __init__(
        self,
        *args: Any,
        state_dtype: torch.dtype | None = None,
        master_weights: bool | None = None,
        rounding: Literal["nearest", "stochastic", "kahan"] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """The arguments of torch's class, and four keywords, which can also be keys of a group. See docs/half.md.

        Args:
            state_dtype: torch.float32 or torch.bfloat16, the dtype of the tensors in the state of a 16-bit or float32
                parameter. By default that of the parameter.
            master_weights: step a float32 copy of each 16-bit parameter, its state ``master_param``, of which the
                parameter is the rounded value.
            rounding: of a 16-bit parameter after the step: ``"nearest"`` (the default); ``"stochastic"``, up or down
                with the probabilities that make the expected value exact; or ``"kahan"``, with its error in the state
                ``compensation``, which the next step adds again.
            seed: of the random numbers of ``"stochastic"``, from 0 to 2**64 - 1; 0 by default.

        Raises:
            ValueError: one of them has another value, or ``master_weights`` is combined with another rounding.
        """
        values = (state_dtype, master_weights, rounding, seed)
        self._storage_defaults = _storage.given(dict(zip(_storage.KEYS, values, strict=True)))
        super().__init__(*args, **kwargs)
        del self._storage_defaults

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {key: vars(self)[key] for key in ("max_grad_norm", "norm_dtype", "ema") if key in vars(self)}

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """torch's wrapper that runs hooks around a class's step, with a cheaper profiler record."""
        torch_wrapper = Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self = args[0]
            if torch.compiler.is_compiling() or dispatch_modes():  # they look for torch's record
                return torch_wrapper(*args, **kwargs)
            record = begin_record(f"Optimizer.step#{type(self).__name__}.step")
            try:
                own = self._optimizer_step_pre_hooks
                for pre_hook in (*_global_pre_hooks.values(), *own.values()) if own or _global_pre_hooks else ():
                    result = pre_hook(self, args, kwargs)
                    if result is not None:
                        if not isinstance(result, tuple) or len(result) != 2:
                            raise RuntimeError(
                                f"{func} must return None or a tuple of (new_args, new_kwargs), but got {result}."
                            )
                        args, kwargs = result
                out = func(*args, **kwargs)
                self._optimizer_step_code()
                own = self._optimizer_step_post_hooks
                for post_hook in (*own.values(), *_global_post_hooks.values()) if own or _global_post_hooks else ():
                    post_hook(self, args, kwargs)
                return out
            finally:
                end_record(record)

        return wrapper

    @property
    def kind(self) -> Kind:
        """Go's description of the class."""
        return kind_of(self.torch_class)  # type: ignore[arg-type]

    def kind_in(self, group: dict[str, Any]) -> Kind:
        """Go's description of the step of a group, if groups differ."""
        return self.kind

    def options(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options of a group, as gather.c reads them."""
        return group if type(group) is dict else self.kind.plain_group(group)

    def extra(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """The scalars that Go needs besides those in a group. If one is None, the group falls back to torch."""
        return ()

    def _begin_step(self) -> None:
        """Raise an error if the optimizer cannot step now."""

    def _complete_gradients(self) -> None:
        """Change gradients after the closure has been called."""

    def _finish_step(self, groups: list[dict[str, Any]], asked: Sequence[Asked]) -> None:
        """Change groups after a step."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        core = _native.core()
        self.defaults.update(vars(self).get("_storage_defaults", {}))
        if isinstance(param_group, dict):
            try:
                storage = _storage.storage_of({**self.defaults, **param_group})
            except ValueError as e:
                raise ValueError(f"{type(self).__name__}: group {len(self.param_groups)}: {e}") from e
            if storage is not None and core is not None and not self.kind.stored:
                named = ", ".join(_storage.given({**self.defaults, **param_group}))
                raise ValueError(f"{type(self).__name__}: {named}, which this class does not have: see docs/half.md")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict as torch's class does, without changing the dtypes of states that differ on purpose.

        The keys state_dtype, master_weights, rounding and seed of a group stay if one is set. Otherwise they are those
        of the state_dict. docs/half.md has the conversions of a state with other keys.
        """
        own = [_storage.given(group) for group in self.param_groups]
        found: list[dict[str, Any]] = []
        before = self.register_load_state_dict_pre_hook(lambda _, given: found.append(given))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore(own, found[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore(self, own: list[dict[str, Any]], given: dict[str, Any]) -> None:
        """Undo what torch's load_state_dict has done to the keys of _storage.py, and to the dtypes of states."""
        for i, (group, keys, saved) in enumerate(zip(self.param_groups, own, given["param_groups"], strict=True)):
            if keys:
                for key in _storage.KEYS:
                    group.pop(key, None)
                group.update(keys)
            try:
                storage = _storage.storage_of(group)
            except ValueError as e:
                raise ValueError(f"{type(self).__name__}: group {i} of the state_dict: {e}") from e
            if storage is None or not self.kind.stored:
                continue
            part = self.part_class(self, i, group, ((), self.options(group), self.extra(group)))
            for p, name in zip(group["params"], saved["params"], strict=True):
                if p.dtype not in _storage.CONVERTED or not self.state.get(p):
                    continue
                state = self.state[p]
                for key, t in given["state"][name].items():
                    now = state.get(key)
                    if isinstance(t, Tensor) and isinstance(now, Tensor) and now.dtype != t.dtype and key != "step":
                        state[key] = t.to(p.device)
                part.restore(p)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_grad_norm: float | None = None,
        norm_dtype: torch.dtype | None = None,
        ema: EMA | None = None,
        zero_grad: bool = False,
    ) -> Any:
        """Update the parameters by their gradients, in place.

        The keyword arguments have the results of separate calls before and after the step, bit for bit, in fewer
        passes over the memory. The gradients then stay as they were before clipping. Those of parameters that fall back
        to torch, and of classes that are not elementwise (Adafactor and Muon), are clipped in place.

        Args:
            closure: re-evaluates the model and returns the loss; it runs with gradients enabled.
            max_grad_norm: clip the gradients of all parameters of the optimizer first, as
                :func:`torch.nn.utils.clip_grad_norm_` does. Their norm is then ``grad_norm``. The default is the
                attribute of the same name.
            norm_dtype: for max_grad_norm, as for :func:`goptim.clip_grad_norm_`: ``torch.float32`` does not round
                norms of 16-bit gradients. The default is the attribute of the same name.
            ema: averages to update after the step. All of them are updated, also those of parameters that this step
                leaves out. The default is the attribute of the same name.
            zero_grad: fill the gradients with zeros afterwards, as ``zero_grad(set_to_none=False)`` does.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: the shape of a gradient or a state differs from its parameter's, a sparse gradient has a row
                index that is out of range, max_grad_norm is not a number of at least 0, or norm_dtype is neither
                torch.float32 nor None. Nothing has been written in
                that case, except that gradients may have been clipped in place.
        """
        self._begin_step()
        if max_grad_norm is None:
            max_grad_norm = self.max_grad_norm
        if norm_dtype is None:
            norm_dtype = self.norm_dtype
        if ema is None:
            ema = self.ema
        if max_grad_norm is None and ema is None and zero_grad is False:
            return self._step(closure)
        around = Around(self, max_grad_norm, norm_dtype, ema, zero_grad)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step(None, around)
        return loss

    def _step(self, closure: Callable[[], Any] | None, around: Around | None = None) -> Any:
        """Step with what surrounds it. If that is not None, the closure has been called."""
        if torch.compiler.is_compiling():  # first, because a compiler cannot trace what follows
            return self._all_torch(closure, around, "the step is being compiled")
        if (why := reason_of_optimizer(self)) is not None:
            if why is SCALED and (around is not None or _scaler.is_fused(self)):
                return _scaler.step(self, closure, around)
            with threads_after_fork():
                loss = self._all_torch(closure, around, why)
            if _parts.watch is not None:
                _parts.watch(
                    self, 0, [why for group in self.param_groups for p in group["params"] if p.grad is not None]
                )
            return loss
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._complete_gradients()
        groups = list(self.param_groups)
        asked = tuple([self._ask(group) for group in groups])
        done = self._go(asked) if around is None else around.go(asked)
        if type(done) is not int:
            given, asked = asked, tuple(map(self._with_floats, groups, asked))
            if any(map(operator.is_not, asked, given)):
                done = self._go(asked) if around is None else around.go(asked)
        if type(done) is int:
            if _parts.watch is not None:
                _parts.watch(self, done, [])
            for group, (_, options, _) in zip(groups, asked, strict=True) if self.kind.results else ():
                if options is not group:
                    group.update({key: options[key] for key in self.kind.results})
        elif self.kind.results and not self._all_for_torch(groups, done):
            # Copies, since torch's part of the step may change the groups before Go's part.
            asked = tuple([(params, {key: options[key] for key in options}, extra) for params, options, extra in asked])
            after = [self.advanced(options) for _, options, _ in asked]  # type: ignore[attr-defined]
            self._step_parts(groups, asked, done, around)
            for group, new in zip(groups, after, strict=True):
                group.update(new)
        else:
            self._step_parts(groups, asked, done, around)
        self._finish_step(groups, asked)
        if around is not None:
            around.finish()
        return loss

    def _all_torch(self, closure: Callable[[], Any] | None, around: Around | None, why: str) -> Any:
        """A step in torch alone."""
        self._refuse(why)
        if around is not None:
            around.why = why
            around.clip(in_go=False)
        loss = undecorated_step(self.torch_class)(self, closure)
        if around is not None:
            around.finish()
        return loss

    def _refuse(self, why: str) -> None:
        """Raise an error if torch cannot step a parameter that has a gradient."""
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    self._refuse_param(i, p, why)

    def _refuse_param(self, i: int, p: Tensor, why: str) -> None:
        """Raise an error if torch cannot step a parameter of group i. Go may not be loaded."""
        group = self.param_groups[i]
        if any(group.get(key) is not None for key in _storage.KEYS):
            self.part_class(self, i, group, ((), self.options(group), ())).refuse(p, why)

    @property
    def _stores(self) -> bool:
        """Whether a group has a key of _storage.py."""
        return any(group.get(key) is not None for group in self.param_groups for key in _storage.KEYS)

    def _ask(self, group: dict[str, Any]) -> Asked:
        """The arguments of gather.c for a group. The list of parameters is read only here."""
        return tuple(group["params"]), self.options(group), self.extra(group)

    def _with_floats(self, group: dict[str, Any], asked: Asked) -> Asked:
        """The arguments with the scalars as floats, if they are real numbers of other types and torch accepts those."""
        params, options, extra = asked
        kind = self.kind_in(group)
        numbers = kind.numbers(options)
        if numbers is None or kind.is_plain(options, extra):
            return asked
        floats = _numbers.as_floats((*numbers, *extra))
        absent = {key: None for key, value in group.items() if value is None}  # Go may have a number for it
        if floats is None or not _numbers.torch_accepts(
            self.torch_class, {**group, **options, **absent}, undecorated_step(self.torch_class), kind.sparse
        ):
            return asked
        return params, kind.with_numbers(options, floats), floats[len(numbers) :]

    def _go(self, groups: tuple[Asked, ...], threads: int | None = None, kind: Kind | None = None) -> Any:
        """Step groups in Go if all are supported, and return the number of parameters; otherwise a code for each.

        If threads is ASK, step nothing. If it is CHECK, raise the errors that the step would raise, and write nothing.
        """
        kind = kind or self.kind
        core: Any = _native.core()
        if threads is None:
            threads = torch.get_num_threads()
        done = core.step_groups(kind.handle, _native.layout(), PLAIN, self.state, groups, threads)
        return bytes([PYTHON]) * len(done) if kind.sparse and type(done) is bytes else done

    def _all_for_torch(self, groups: list[dict[str, Any]], codes: bytes) -> bool:
        """Whether torch's step runs on the optimizer itself, so that it changes the groups too."""
        return (
            _parts.watch is None
            and not codes.translate(None, _FOR_TORCH)
            and all(type(group["params"]) in (list, tuple) for group in groups)
            and not self._stores
        )

    def _step_parts(
        self, groups: list[dict[str, Any]], asked: Sequence[Asked], codes: bytes, around: Around | None
    ) -> None:
        """Step groups in which some parameters do not run in Go, or need a decision by Python."""
        if self._all_for_torch(groups, codes):
            if around is not None:
                around.clip_rest([p for group in groups for p in group["params"]])
            self._torch_step(groups, asked, None)
            return
        sparse: list[tuple[Part, Tensor, Tensor]] = []
        watched, reasons = 0, list[str]()  # of all parameters: later turns have those of Go alone
        for turn in range(_TURNS):
            parts = self._sort(groups, asked, codes)
            for part in parts:
                for p, g in part.sparse:
                    part.check_sparse(p, g)
            new = self._make_states(parts)
            for part in parts:
                for p in part.unlike:
                    part.store(p)
            if any(part.fresh for part in parts) and any(part.rest for part in parts):
                rechecked = self._go(tuple(asked), ASK)  # new states may share memory with a parameter of torch
                if type(rechecked) is bytes:
                    fresh = [part.fresh for part in parts]
                    parts = self._sort(groups, asked, rechecked)
                    for part, params in zip(parts, fresh, strict=True):
                        part.fresh = params
            self._keep_order(parts)
            if any(part.rest and looks_up(part.group) for part in parts):
                for part in parts:
                    part.fall_back({id(p) for p in part.stepped}, WITH_GROUP)
            if self.together and any(part.rest for part in parts):
                for part in parts:
                    part.fall_back({id(p) for p in part.stepped}, WITH_OTHERS)
            sparse += [(part, p, g) for part in parts for p, g in part.sparse]
            if turn == 0:
                watched = sum(len(part.go) + len(part.sparse) for part in parts)
                reasons = [why for part in parts for why in part.reasons]
            if any(part.rest for part in parts):
                if any(part.go for part in parts):
                    try:
                        self._go(tuple([part.checked for part in parts if part.go]), CHECK)
                    except Exception:  # torch has not stepped yet
                        for p in new:
                            self.state.pop(p, None)
                        raise
                if around is not None:
                    around.clip_rest([p for part in parts for p in part.rest])
                self._torch_step(groups, asked, parts)
            for part in parts:
                part.finish()
            try:
                again = tuple([part.asked for part in parts if part.go])
                done = self._go(again) if around is None else around.go(again)
            except Exception:  # nothing has been written; new states may depend on a wrong lr, so they are removed
                for p in [p for part in parts for p in part.fresh]:
                    self.state.pop(p, None)
                raise
            if type(done) is int:
                bump_versions([t for part in parts for t in part.written])
                for part in parts:
                    for state, made in part.made:
                        for key, t in made.items():
                            state[key] = t
                if around is not None:
                    around.clip_rest([p for _, p, _ in sparse])
                for part, p, g in sparse:
                    part.step_sparse(p, g)
                if _parts.watch is not None:
                    _parts.watch(self, watched, reasons)
                return
            # Other code has changed something since the check, or new states need a decision by Python.
            given = [type(x) is tuple and len(x) > 2 for part in parts for x in part.go]
            codes = bytes([PYTHON if row and x == GO else x for row, x in zip(given, done, strict=True)])
            asked = [part.asked_again for part in parts]
        raise RuntimeError(f"{type(self).__name__}: the parameters or their states change all the time")

    def _sort(self, groups: list[dict[str, Any]], asked: Sequence[Asked], codes: bytes) -> list[Part]:
        """Decide who steps each parameter, and raise an error if neither Go nor torch can."""
        code = iter(codes)
        parts = [self.part_class(self, i, *both) for i, both in enumerate(zip(groups, asked, strict=True))]
        for part in parts:
            for p in part.params:
                part.sort(p, next(code))
        return parts

    def _keep_order(self, parts: list[Part]) -> None:
        """Make parameters fall back to torch that share memory with one stepped elsewhere, or are new in two groups.

        gather.c has compared the parameters that it reads with the others; those that Python decided about are
        compared here.
        """
        seen: set[int] = set()
        twice: set[int] = set()  # in two groups, so that the state is new only in the first one
        for part in parts:
            fresh = {id(p) for p in part.fresh}
            twice |= fresh & seen
            seen |= fresh
        for part in parts if twice else ():
            part.fall_back(twice, SHARED)
        if not any(part.classified for part in parts) or not any(part.rest or part.sparse for part in parts):
            return
        spans = sorted(
            (*span, id(p))
            for part in parts
            for p in part.stepped
            if id(p) in part.unsupported
            for span in memory_of(self, p)
        )
        clusters: list[list[Any]] = []  # spans that overlap
        end = 0
        for span in spans:
            if span[0] >= end:
                clusters.append([])
            clusters[-1].append(span)
            end = max(end, span[1])
        clusters = [cluster for cluster in clusters if any(written for _, _, written, _ in cluster)]
        mixed: set[int] | None = None
        while mixed is None or mixed:  # one that falls back may share memory with others
            places = {
                id(p): place
                for part in parts
                for place, params in enumerate((part.go_params, part.rest, [p for p, _ in part.sparse]))
                for p in params
            }
            together = [{of for *_, of in cluster} for cluster in clusters]
            mixed = {of for ids in together if len({places[of] for of in ids}) > 1 for of in ids}
            for part in parts if mixed else ():
                part.fall_back(mixed, SHARED)

    def _make_states(self, parts: list[Part]) -> list[Tensor]:
        """Create the states of new parameters, in Go and in torch, in the order of a state_dict.

        Returns:
            The new parameters.
        """
        made: list[Tensor] = []
        if not any(part.fresh or part.sparse for part in parts):
            return made  # torch creates states for the parameters that it steps
        for part in parts:
            new = {id(p): p for p in part.stepped if not self.state.get(p)}
            if not new:
                continue
            try:
                part.init_group(list(new.values()))
            except Exception:
                for p in new.values():  # a state may be incomplete
                    self.state.pop(p, None)
                if not part.rest:
                    raise
                return made  # torch's step will raise the same error
            made += new.values()
        return made

    def _torch_step(self, groups: list[dict[str, Any]], asked: Sequence[Asked], parts: list[Part] | None) -> None:
        """Have torch step the parameters in ``parts`` that do not run in Go; all parameters if it is None."""
        step = undecorated_step(self.torch_class)
        try:
            if parts is None:
                step(self)
            else:
                rests = [(group, part.rest) for group, part in zip(groups, parts, strict=True) if part.rest]
                with stand_in(self, rests) as other:
                    step(other)
        except Exception as e:
            rest = None if parts is None else {id(p) for part in parts for p in part.rest}
            if parts is not None and rest is not None:
                for p in [p for part in parts for p in part.fresh if id(p) not in rest]:
                    self.state.pop(p, None)  # created for Go, which will not step now
            incompatible = []
            for i, both in enumerate(zip(groups, asked, strict=True)):
                part = self.part_class(self, i, *both)
                incompatible += [
                    x for p in part.params if rest is None or id(p) in rest for x in part.incompatibilities(p)
                ]
            if not incompatible:
                raise
            says = f"{'; '.join(incompatible)}; and torch refuses that: {e}. What torch had written before stays"
            raise with_message(e, says) from e
