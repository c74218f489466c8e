"""
What a repair is: its settings, its place among the others, what it reads, and what it finds in a call.

A repair is one file beside this one: a subclass of RepairSettings, one of Repair, and its line in REPAIRS.
It does no I/O, reads no clock and logs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, ClassVar

from gateway.repairs.findings import Draft, Explicit, Finding
from gateway.units import Section


class Stage(IntEnum):
    """What a repair changes. A rule's repairs stand in this order, since each relies on those before it."""

    ENCODING = 1  # makes the body a JSON object in plain UTF-8, which is what all others read
    FIELDS = 2  # changes the method and header fields
    CHECKS = 3  # changes nothing
    MEMBERS = 4  # changes members, knowing nothing but the call
    LOOK_UP = 5  # says what to look up: it runs last, on the members as they will be sent. Only `fill`


class RepairSettings(Section, ABC):
    """
    A repair as config.yaml has it. `type` is the repair's name, as a Literal; every key that is required has
    an example. `parameters` are the names in the path of the rule, in order.
    """

    type: str

    @abstractmethod
    def describe(self, parameters: tuple[str, ...]) -> Iterator[str]:
        """The lines that `gateway check` prints."""

    def errors(self, parameters: tuple[str, ...], method: str) -> Iterator[tuple[str, str]]:
        """What does not fit the rule and its method: a key, and what is wrong with it there."""
        return iter(())

    def warnings(self) -> Iterator[str]:
        """What is allowed but should be known."""
        return iter(())


class Repair(ABC):
    """A repair as a rule has it. It is made once, when the configuration is read, and is never changed."""

    __slots__ = ()

    settings: ClassVar[type[RepairSettings]]
    stage: ClassVar[Stage]
    # Whether a rule may have it only once.
    once: ClassVar[bool] = False
    # If False, the finding depends on the header fields alone, where the body is a JSON object in UTF-8 and
    # declared as nothing else. It is then found once for all calls that have the same fields.
    reads_body: ClassVar[bool] = True
    # Whether it is shown the call only when all others have made it; then it is of the stage CHECKS.
    after: bool = False

    @classmethod
    @abstractmethod
    def of(cls, settings: Any, limit: int, parameters: tuple[str, ...]) -> Repair:
        """`limit`: bytes a decoded body may have; `parameters`: the names in the rule's path, in order."""

    @abstractmethod
    def diagnose(self, draft: Draft) -> Finding:
        """`draft`: the call as the repairs before this one have made it."""

    def explicit(self, draft: Draft) -> Explicit | None:
        """The value that the client gave itself, in a call that may not be touched."""
        return None

    def accepts(self, media_type: bytes) -> bool:
        """Whether this rule takes a type (in lower case) for JSON that not every rule does."""
        return False

    def claims(self, methods: Sequence[str]) -> bool:
        """Whether this rule takes a call whose fields claim these methods (in upper case) for its own."""
        return False
