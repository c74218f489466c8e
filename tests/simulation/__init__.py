"""
The promises about state, proved on the real gateway in virtual time (DESIGN.md, S1 to S8 and C2).

    drawing.py      a schedule from a seed             schedule.py   what a schedule is
    world.py        the schedule run: a history        loop.py       asyncio's loop, virtual and seeded
    upstream.py     an eventually consistent upstream  promises.py   what a history breaks
    mutants.py      the gateway with a guard less      story.py      a history, to be read
    plays.py        schedules written by hand

`python -m benchmarks.simulate --seed S --schedules 1 --trace` replays one.
"""
