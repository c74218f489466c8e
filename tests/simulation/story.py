"""
A history as lines to read, in the order of time: for the one who has to find out what went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from tests.simulation.schedule import Change, Request
from tests.simulation.upstream import Sent
from tests.simulation.world import History, Told


def story(history: History) -> Iterator[str]:
    schedule = history.schedule
    yield f"seed {schedule.seed}: {schedule.terms}"
    yield f"{schedule.climate}"
    events = [
        *(event for sent in history.ledger for event in _sent(sent)),
        *(event for told in history.told.values() for event in _told(told)),
        *((line.time, f"    {line.event} {line.id} {_why(line.record)}") for line in history.log),
        *(
            (action.at, f"    upstream: {action.field} of {action.participant} becomes {action.value}")
            for action in schedule.actions
            if isinstance(action, Change)
        ),
    ]
    for time, line in sorted(events, key=itemgetter(0)):
        yield f"{time:10.6f} {line}"


def _sent(sent: Sent) -> Iterator[tuple[float, str]]:
    yield sent.begun, f"#{sent.number} {sent.id} {sent.method} {sent.target} {sent.body.decode()}"
    if sent.left is not None and sent.body:
        yield sent.left, f"#{sent.number} leaves"
    for time in sent.applied:
        yield time, f"#{sent.number} is applied"
    if sent.ended is not None:
        shown = " ".join(f"{participant}={value}" for (participant, _), value in sent.shown.items())
        yield sent.ended, f"#{sent.number} is answered: {sent.status or sent.error} {shown}"
    if sent.complete is not None:
        yield sent.complete, f"#{sent.number} is read to its end"


def _told(told: Told) -> Iterator[tuple[float, str]]:
    request: Request = told.request
    yield told.arrived, f"{request.id} comes from {request.caller}"
    if told.left is not None:
        yield told.left, f"{request.id} leaves"
    if told.ended is not None:
        rewrite = next((value.decode() for name, value in told.headers if name == b"gateway-rewrite"), "")
        yield told.ended, f"{request.id} ends: {told.status or repr(told.failure)} {rewrite}"


def _why(record: dict[str, object]) -> object:
    return record.get("changes") or record.get("reason") or record.get("status")
