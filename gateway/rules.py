"""
The rules, as config.yaml has them and compiled: which calls are repaired, and which others write or read what
a fill looks up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from msgspec import Struct
from pydantic import AfterValidator, Field, model_validator

from gateway import paths as templates
from gateway import repairs
from gateway.cases.settings import CaseSettings
from gateway.http.grammar import SAFE_METHODS
from gateway.paths import PathMatch, Routes, decoded
from gateway.repairs import AnyRepairSettings, Fill, Repair, Retarget
from gateway.repairs.fill import FillSettings
from gateway.repairs.retarget import RetargetSettings
from gateway.sunset import FieldLine, SunsetSettings
from gateway.units import Section, at_least_one, checked

PATHS_KEPT = 8192  # at about 1.5 KiB each
PATH_KEPT = 256  # bytes: a longer one is matched anew each time

Mode = Literal["observe", "shadow", "enforce", "on_reject"]


def _method_with_a_body(value: str) -> None:
    if value.encode() in SAFE_METHODS or value == "CONNECT":
        raise ValueError("expected a method that carries a body, such as PATCH")


class MatchSettings(Section):
    method: Annotated[str, Field(pattern=r"^[A-Z]+$"), checked(_method_with_a_body)] = "PATCH"
    """A method that carries a body."""
    path: Annotated[str, checked(templates.parse_whole)]
    """`{name}` is one segment, `{name:one|two}` lists what it may be."""


class RuleSettings(Section):
    # The name is written as a token into Gateway-Rewrite (RFC 9651 section 3.3.4).
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]*$")]
    """A token: stands in the log and in Gateway-Rewrite."""
    match: MatchSettings
    """The calls that the rule is for."""
    upstream: str | None = None
    """The one of `upstreams` whose calls it is for; none given: those that go to `upstream`."""
    mode: Mode = "enforce"
    """The rule's own; without it the `mode` at the top."""
    on_lookup_failure: Literal["reject", "forward"] = "reject"
    """`forward`: the call goes on unfilled (a failing store is refused with 503 all the same)."""
    # None: every unsafe call on what the fills look up, and below it.
    writes: tuple[Annotated[str, checked(templates.parse_write)], ...] | None = None
    """
    The unsafe calls that may change what is looked up, beside those that rules match: `[except ][METHOD
    ]/path`, `**` for the rest, the most specific counts; one without the conversation's parameter makes the
    gateway forget all. None given: `from` and all below.
    """
    repairs: Annotated[tuple[AnyRepairSettings, ...], AfterValidator(at_least_one)]
    """
    What is repaired: `type: encoding`, `method`, `content_type`, `validate`, `retarget` or `fill`, in this
    order, with the keys of each.
    """
    sunset: SunsetSettings | None = None
    """
    When the repairs end: replies to repaired calls then have `Deprecation`, `Sunset` and `Link`; an
    upstream's own `Deprecation` or `Sunset` stands.
    """
    cases: tuple[CaseSettings, ...] = ()
    """
    The rule's own tests, in any mode: `gateway check` runs them without a network, and shows what came out
    differently.
    """

    @model_validator(mode="after")
    def _parts_that_fit(self) -> RuleSettings:
        errors: list[str] = []
        problem = repairs.out_of_order(self.repairs)
        if problem is not None:
            errors.append(f"repairs: {problem}")
        errors += [
            f"repairs[{i}].{key}: {problem}"
            for i, repair in enumerate(self.repairs)
            for key, problem in repair.errors(self.parameters, self.match.method)
        ]
        if not self.fills:
            errors += [
                f"repairs[{i}].or: expected a fill in this rule"
                for i, repair in enumerate(self.repairs)
                if isinstance(repair, RetargetSettings) and repair.otherwise == "fill"
            ]
        if len({fill.field for fill in self.fills}) < len(self.fills):
            errors.append("repairs: expected one fill for a field")
        if len({fill.conversation for fill in self.fills}) > 1:
            errors.append("repairs: expected fills that look up the same conversation")
        if errors:
            raise ValueError("\n".join(errors))
        return self

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names in the path, in order."""
        return templates.parse(self.match.path).names

    @property
    def fills(self) -> tuple[FillSettings, ...]:
        return tuple(repair for repair in self.repairs if isinstance(repair, FillSettings))

    @property
    def written_by(self) -> tuple[str, ...]:
        """The calls that may change what the fills look up."""
        if self.writes is not None:
            return self.writes
        return tuple(f"{fill.source}/**" for fill in self.fills)

    def describe(self) -> Iterator[str]:
        """The lines that `gateway check` prints."""
        yield f"{self.name} ({self.mode}, a failed look-up: {self.on_lookup_failure})"
        yield f"  {self.match.method} {self.match.path}" + (f" to {self.upstream}" if self.upstream else "")
        for repair in self.repairs:
            for line in repair.describe(self.parameters):
                yield f"  {line}"
        for write in self.written_by:
            yield f"  written by {write}"
        if self.sunset is not None:
            yield f"  ends {self.sunset.date:%Y-%m-%d}, as the replies to repaired calls say"


@dataclass(frozen=True, slots=True)
class Rule:
    """
    `forwards_unfilled`: whether a call goes on when its look-up failed. `watched`: the members that only
    other rules fill. A call that names one of them may change what those look up (S4). `sunset` goes with
    the replies to repaired calls. `path` is the template, as written. `retarget` is what may fall back, and
    `otherwise` the repairs without it.
    """

    name: str
    mode: str
    forwards_unfilled: bool
    repairs: tuple[Repair, ...]
    fills: tuple[Fill, ...]
    watched: frozenset[str]
    sunset: tuple[FieldLine, ...] = ()
    path: str = ""
    retarget: Retarget | None = None
    otherwise: tuple[Repair, ...] = ()

    @classmethod
    def of(cls, settings: RuleSettings, limit: int, filled: frozenset[str]) -> Rule:
        """`limit`: bytes that a decoded body may have; `filled`: the members that any rule fills."""
        built = repairs.build(settings.repairs, limit, settings.parameters)
        fills = tuple(repair for repair in built if isinstance(repair, Fill))
        return cls(
            settings.name,
            settings.mode,
            settings.on_lookup_failure == "forward",
            built,
            fills,
            filled.difference(fill.field for fill in fills),
            settings.sunset.field_lines() if settings.sunset is not None else (),
            settings.match.path,
            next((one for one in built if isinstance(one, Retarget) and one.falls_back), None),
            tuple(one for one in built if not isinstance(one, Retarget)),
        )


def identity(name: str) -> str:
    """
    One name for a conversation in whatever case its id is written, since some upstreams ignore the case. With
    those that do not, two conversations may share a lock and be invalidated together: that costs a look-up
    and does no harm.
    """
    return name.casefold()


class FillTarget(Struct, frozen=True):
    """
    A fill at one path. `target` is that of the GET that it needs, `data` has the path's parameters, decoded.
    `subject` says whose value it is, by whichever path and for all callers; `which` tells the values that are
    selected from one reply from each other.
    """

    fill: Fill
    target: bytes
    data: dict[str, str]
    subject: tuple[str, ...]
    which: tuple[str, ...]

    @classmethod
    def of(cls, fill: Fill, parameters: dict[str, bytes], data: dict[str, str]) -> FillTarget:
        named = (fill.conversation, *fill.subject)
        subject = (fill.field, *[identity(data[name]) for name in named])
        return cls(fill, fill.source.filled(parameters), data, subject, (fill.select, *data.values()))


class RouteMatch(Struct, frozen=True):
    """
    A rule at one path: all that the path says, read once. `conversation` is what a call to it is about, None
    where the rule fills nothing; `targets` has the rule's fills by their fields, `parameters` the path's raw
    segments.
    """

    rule: Rule
    data: dict[str, str]
    conversation: str | None
    targets: dict[str, FillTarget]
    parameters: dict[str, bytes]

    @classmethod
    def of(cls, found: PathMatch[Rule]) -> RouteMatch:
        rule, parameters = found.value, found.parameters
        data = {name: decoded(segment) for name, segment in parameters.items()}
        conversation = identity(data[rule.fills[0].conversation]) if rule.fills else None
        return cls(
            rule,
            data,
            conversation,
            {fill.field: FillTarget.of(fill, parameters, data) for fill in rule.fills},
            parameters,
        )


@dataclass(frozen=True, slots=True)
class Write:
    """
    A call that may change the state of the conversation that `parameter` of its path names, or where that is
    None, of any. `excepted`: it does not, although another template says so.
    """

    parameter: str | None
    excepted: bool

    def conversation(self, parameters: dict[str, bytes]) -> str | None:
        return None if self.parameter is None else identity(decoded(parameters[self.parameter]))


ANYWHERE = PathMatch(Write(None, excepted=False), {})


class Rules:
    def __init__(self, settings: Sequence[RuleSettings], limit: int) -> None:
        """`limit`: bytes that a decoded body may have. The settings have been checked."""
        self._rules: Routes[Rule] = Routes()
        # The same participants are called for again and again.
        self._match_cached = lru_cache(PATHS_KEPT)(self._match)
        self._claimed: set[str] = set()  # methods that a call may claim by a field
        self._writes: Routes[Write] = Routes()
        self._folded_writes: Routes[Write] = Routes()
        self._reads: Routes[Fill] = Routes()
        self._reads_cached = lru_cache(PATHS_KEPT)(self._reads.match)
        writes: list[tuple[templates.WriteTemplate, Write]] = []
        filled = frozenset(fill.field for one in settings for fill in one.fills)
        for one in settings:
            rule = Rule.of(one, limit, filled)
            self._rules.add(one.match.method, templates.parse(one.match.path), rule)
            for text in one.written_by:
                template = templates.parse_write(text)
                names = template.template.names
                named = next((fill.conversation for fill in rule.fills if fill.conversation in names), None)
                writes.append((template, Write(named, template.excepted)))
            if any(repair.claims([one.match.method]) for repair in rule.repairs):
                self._claimed.add(one.match.method)
            for fill in rule.fills:
                if fill.learn:
                    self._reads.add("GET", fill.source, fill)
        # Where two rules have the same template, the one that knows which parameter is the conversation wins.
        for template, write in sorted(writes, key=lambda one: one[1].parameter is None):
            self._writes.add(template.method, template.template, write)
            self._folded_writes.add(template.method, template.template.folded(), write)

    def match(self, method: str, path: bytes, overrides: Sequence[str] = ()) -> RouteMatch | None:
        """`overrides`: the methods, in upper case, that the call's fields claim."""
        if overrides and method == "POST" and overrides[0] in self._claimed:
            # What is sent on as the method that it claims is matched as that, before any rule for POST.
            claimed = self.match(overrides[0], path)
            if claimed is not None and any(one.claims(overrides) for one in claimed.rule.repairs):
                return claimed
        # Methods are case-sensitive (RFC 9110 section 9.1), but some clients write `patch` and mean PATCH: it
        # is matched as that, and goes on as sent.
        method = method.upper()
        return self._match_cached(method, path) if len(path) <= PATH_KEPT else self._match(method, path)

    def _match(self, method: str, path: bytes) -> RouteMatch | None:
        found = self._rules.match(method, path)
        return None if found is None else RouteMatch.of(found)

    def writes(self, path: bytes, *methods: str) -> PathMatch[Write] | None:
        """
        What a call that no rule fills writes, None for one that is no write. An upstream may read an
        ambiguous path as any other: then the write may be about any conversation. It may also ignore the
        path's case or its last slash: what is a write in either reading is one. `methods` are all that the
        call may mean: its own, and those that its fields claim.
        """
        plain = templates.plain(path)
        for method in map(str.upper, methods):
            if method.encode() in SAFE_METHODS:
                continue
            if templates.is_ambiguous(plain):
                return ANYWHERE
            found = self._folded_writes.match(method, templates.folded(plain))
            if found is not None and found.value.excepted:
                found = self._writes.match(method, plain)
            if found is not None and not found.value.excepted:
                return found
        return None

    def reads(self, method: str, path: bytes) -> PathMatch[Fill] | None:
        """The fill that can learn from the reply: the call is the GET that it would look up itself."""
        if method != "GET":
            return None
        return self._reads_cached("GET", path) if len(path) <= PATH_KEPT else self._reads.match("GET", path)
