"""Jinja templates from elsewhere: a sandbox that bounds their time and the size of their text.

Jinja's own sandbox keeps templates away from the rest of the program, but lets them loop without
end and build gigabytes: in nested loops, by doubling, by `"x" * 10**9`, by a width of a billion.
Here every loop, call, filter and operator is counted, and every value has a largest size. The
limits are far above what a prompt needs.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, cast

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

LARGEST = 2**22
"""Most characters of a rendered text, and of each value in between."""

LARGEST_SOURCE = 2**20
"""Most characters of a template."""

TODAY = datetime(2024, 7, 26)
"""What chat templates print as today's date: prompts, and cached answers to them, are the same on
every day. Templates of Llama 3 write this one where no clock is offered to them."""

_MADE = 2**28  # characters of all values of one rendering together
_STEPS = 300_000  # rounds of loops, calls, filters and operators
_SECONDS = 10.0  # of processor time: comparing large values is one step too
_LONGEST_INTEGER = 10_000  # bits of a product or power
_NODE = 32  # characters that an item of a list counts for, besides its own

# Filters and methods of texts whose result can be as long as the product of their arguments.
_MULTIPLYING = frozenset(
    {"expandtabs", "indent", "join", "tojson", "translate", "urlize", "wordwrap", "xmlattr"}
)
_WIDENING = _MULTIPLYING | {"batch", "center", "ljust", "rjust", "slice", "truncate", "zfill"}
_FORMATTING = frozenset({"format", "format_map", "strftime_now"})
_NUMBER = re.compile(r"\d+")


class LimitError(SecurityError):
    """A template exceeds a limit; the message says which."""


class _Use(threading.local):
    """What the rendering in this thread has used."""

    steps = 0
    made = 0
    until = math.inf  # of the thread's processor time
    look = math.inf  # the earliest time at which so much of it can be used


class _Counted(NodeTransformer):
    """Rewrites a template so that everything that loops or builds values is counted."""

    def visit_For(self, node: nodes.For, *args: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node, *args)
        node.iter = _call("rounds", cast(nodes.Expr, node.iter))
        return node

    def visit_Concat(self, node: nodes.Concat, *args: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node, *args)
        node.nodes = [_call("checked", inner) for inner in node.nodes]
        return _call("made", node)

    def visit_Compare(self, node: nodes.Compare, *args: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node, *args)
        node.expr = _call("checked", node.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem, *args: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node, *args)
        if isinstance(node.arg, nodes.Slice) and node.ctx == "load":
            return _call("made", node)
        return node

    def _literal(self, node: nodes.Expr, *args: Any) -> nodes.Node:
        self.generic_visit(node, *args)
        return _call("checked", node) if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Dict = visit_Tuple = _literal  # noqa: N815


class _Direct(CodeGenerator):
    """Writes the calls that `_Counted` adds without the checks of what a template calls."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: N802
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.visit(node.node, frame)
        self.write("(")
        self.visit(node.args[0], frame)
        self.write(")")


def _call(name: str, value: nodes.Expr) -> nodes.Expr:
    called = nodes.Call(nodes.EnvironmentAttribute(name), [value], [], None, None)
    called.set_lineno(value.lineno)
    return called


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits; render its templates with `render`."""

    code_generator_class = _Direct
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs, finalize=self.checked, optimized=False)
        self._use = _Use()
        self.globals.pop("lipsum", None)
        self.limit()

    def limit(self) -> None:
        """Count the filters and tests; to be called again when others were added."""
        for table in (self.filters, self.tests):
            for name, function in table.items():
                if not hasattr(function, "is_limited"):
                    table[name] = self._limited(name, cast(Callable[..., Any], function))

    def render(self, template: Template, values: Mapping[str, Any]) -> str:
        """Return the text of a template of this environment.

        Raises:
            LimitError: the template exceeds a limit.
            Exception: a template is a program, and may raise anything.
        """
        self._begin()
        parts: list[str] = []
        length = 0
        for part in template.generate(values):
            length += len(part)
            self._check(length)
            parts.append(part)
        return "".join(parts)

    def _begin(self) -> None:
        self._use.steps = self._use.made = 0
        self._use.until = time.thread_time() + _SECONDS
        self._use.look = time.monotonic() + _SECONDS

    # --- what compiled templates call

    def rounds(self, values: Any) -> Iterator[Any]:
        """Yield the values of a loop, and count its rounds."""
        for value in values:
            self._step()
            yield value

    def checked(self, value: Any) -> Any:
        """Return a value, once its size was checked."""
        self._step()
        self._check(size(value))
        return value

    def made(self, value: Any) -> Any:
        """Return a new value, once its size was checked and added to that of the others."""
        length = size(value)
        self._check(length)
        self._use.made += length
        _refuse_above(_MADE, self._use.made)
        return value

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the parts of a macro or block; several small ones may be too much together."""
        parts = list(parts)
        _refuse_above(LARGEST, sum(map(len, parts)))
        return "".join(parts)

    def call(
        __self,  # noqa: N805  # a template may pass an argument `self`
        __context: Context,
        __obj: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call something from a template; see the sandbox."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
        owner = getattr(method, "__self__", None)
        values = [*args, *(v for k, v in kwargs.items() if k != "_loop_vars")]
        if isinstance(owner, str):
            values.insert(0, owner)
        __self._step()
        _refuse_growth(getattr(method, "__name__", ""), values)
        return __self._kept(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator; see the sandbox."""
        self._step()
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "*" and whole:
            _refuse_above(_LONGEST_INTEGER, left.bit_length() + right.bit_length())
        elif operator == "*":
            for times, value in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(value, float):
                    _refuse_above(LARGEST, max(0, times) * size(value))
        elif operator == "**" and whole:
            _refuse_above(_LONGEST_INTEGER, left.bit_length() * max(0, right))
        elif operator == "%" and isinstance(left, str):
            _refuse_growth("format", [left, right])
        return self._kept(super().call_binop(context, operator, left, right))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        self._begin()  # constants are computed here
        counted = _Counted().visit(source)
        counted.set_environment(self)
        return super()._generate(counted, *args, **kwargs)

    # --- limits

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps how Jinja passes the context
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._step()
            values = [v for v in (*args, *kwargs.values()) if not _is_jinja(v)]
            _refuse_growth(name, values)
            return self._kept(function(*args, **kwargs))

        limited.is_limited = True  # type: ignore[attr-defined]
        return limited

    def _kept(self, result: Any) -> Any:
        if isinstance(result, Iterator):  # of filters such as `map`
            return map(self.made, self.rounds(result))
        return self.made(result)

    def _step(self) -> None:
        self._use.steps += 1
        if self._use.steps > _STEPS:
            raise LimitError(f"it takes more than {_STEPS} steps")
        # Asking for processor time is a call to the system; asking for the time is none.
        if time.monotonic() > self._use.look and time.thread_time() > self._use.until:
            raise LimitError(f"it takes more than {_SECONDS:g} s")

    @staticmethod
    def _check(length: int) -> None:
        _refuse_above(LARGEST, length)


def _is_jinja(value: Any) -> bool:
    return isinstance(value, Environment | Context | nodes.EvalContext)


def size(value: Any) -> int:
    """Return roughly how many characters a value has when it is printed, up to a little more than
    `LARGEST`.
    """
    total = 0
    waiting = [value]
    while waiting and total <= LARGEST:
        found = waiting.pop()
        if isinstance(found, str | bytes | range):
            total += len(found)
        elif isinstance(found, int):
            total += 1 + found.bit_length() // 4
        elif isinstance(found, Mapping):
            total += _NODE * len(found)
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple | set | frozenset):
            total += _NODE * len(found)
            if total <= LARGEST:
                waiting += found
    return total


def _refuse_above(limit: int, length: float) -> None:
    if length > limit:
        raise LimitError(f"it builds more than {limit} characters")


def _refuse_growth(name: str, values: list[Any]) -> None:
    """Refuse a call whose result may be far larger than its arguments."""
    if name in _WIDENING:
        _refuse_above(LARGEST, max(_integers(values[1:]), default=0))
    if name == "replace" and len(values) >= 3:
        text, old, new = map(str, values[:3])
        _refuse_above(LARGEST, len(text) + text.count(old) * len(new))
    elif name in _MULTIPLYING:
        sizes = [value if isinstance(value, int) else size(value) for value in values]
        _refuse_above(16 * LARGEST, math.prod(max(1, abs(n)) for n in sizes))
    elif name in _FORMATTING and values and isinstance(values[0], str):
        text, given = values[0], values[1:]
        widths = [float(number) for number in _NUMBER.findall(text)]
        places = text.count("{") + text.count("%")
        longest = max([*widths, *_integers(given), size(given)])
        _refuse_above(16 * LARGEST, len(text) + places * longest)


def _integers(values: Any) -> Iterator[int]:
    """Yield the integers in some arguments: they may be widths."""
    for value in values:
        if isinstance(value, int):
            yield abs(value)
        elif isinstance(value, list | tuple):
            yield from _integers(value)
        elif isinstance(value, Mapping):
            yield from _integers(value.values())


def compiled(environment: LimitedEnvironment, source: str) -> Template:
    """Compile a template.

    Raises:
        TemplateError: bad syntax, or a template that is too long or nested too deeply.
    """
    if len(source) > LARGEST_SOURCE:
        raise TemplateError(f"it is longer than {LARGEST_SOURCE} characters")
    try:
        source.encode()
        return environment.from_string(source)
    except (RecursionError, MemoryError, SyntaxError):  # of Python's compiler
        raise TemplateError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise TemplateError("it contains half a character (a surrogate)") from None


class _ChatTemplate:
    """A chat template with limits, in place of one that transformers would compile."""

    def __init__(self, own: Environment, source: str):
        self.environment = LimitedEnvironment(
            trim_blocks=own.trim_blocks,
            lstrip_blocks=own.lstrip_blocks,
            extensions=[type(extension) for extension in own.extensions.values()],
        )
        self.environment.globals |= {k: v for k, v in own.globals.items() if k != "lipsum"}
        self.environment.globals["strftime_now"] = strftime_now
        self.environment.filters |= own.filters
        self.environment.tests |= own.tests
        self.environment.limit()
        self._template = compiled(self.environment, source)

    def render(self, **values: Any) -> str:
        return self.environment.render(self._template, values)


def strftime_now(form: str) -> str:
    """Return `TODAY` in a form, for a chat template."""
    return TODAY.strftime(form)


_one_at_a_time = threading.RLock()


def apply_chat_template(renderer: Any, messages: Sequence[Any], **options: Any) -> str:
    """Return a chat as one text, by the template of a checkpoint.

    Args:
        renderer: a tokenizer or processor of transformers.
        messages: the chat.
        options: further arguments of the renderer's own `apply_chat_template`.

    Raises:
        Exception: a template is a program, and may raise anything; LimitError beyond a limit.
    """
    from transformers.utils import chat_template_utils as library

    with _one_at_a_time:
        theirs = library._compile_jinja_template
        library._compile_jinja_template = lambda source: _chat_template(theirs, source)
        try:
            text: str = renderer.apply_chat_template(messages, tokenize=False, **options)
        finally:
            library._compile_jinja_template = theirs
    return text


@lru_cache(maxsize=16)
def _chat_template(theirs: Callable[[str], Template], source: str) -> _ChatTemplate:
    # An empty template has the same environment; to compile this one there may take all memory.
    return _ChatTemplate(theirs("").environment, source)
