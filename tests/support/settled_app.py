"""Lets Textual's pilot wait until an app has done what it was asked for, however little of the processor it gets.

By itself it takes a process that computes nothing for some milliseconds for an idle one, which on a busy machine is one
that waits for its turn: what a test looked at behind a key was then what stood there before it.
"""

import asyncio
import time
from typing import Any

import textual.app
import textual.pilot
from textual._wait import wait_for_idle

FRAME_SECONDS = 0.005
"""What is due that soon is waited for as well: frames are drawn by a timer, and what follows them by the next."""
_NUM_QUIET = 3
"""Turns of the event loop without anything to do; the first may only have found what the system had to say."""
_MOST_TIMERS = 200
"""After so many, or as much work as Textual waits for, an app that never comes to rest is looked at as it is."""


async def wait_until_settled(min_sleep: float = 0.0, max_sleep: float = 1.0) -> None:
    """Wait as Textual does, and then until nothing is due in the event loop, now or with the next frame."""
    await wait_for_idle(min_sleep, max_sleep)
    loop: Any = asyncio.get_running_loop()
    num_quiet = num_timers = 0
    begun = time.process_time()
    while time.process_time() - begun < max_sleep:
        if loop._ready:
            num_quiet = 0
        elif num_timers < _MOST_TIMERS and (seconds := _seconds_to_the_next(loop)) < FRAME_SECONDS:
            num_quiet, num_timers = 0, num_timers + 1
            await asyncio.sleep(max(0.0, seconds))
            continue
        else:
            num_quiet += 1
            if num_quiet == _NUM_QUIET:
                return
        await asyncio.sleep(0)


def _seconds_to_the_next(loop: Any) -> float:
    """Return when the first timer is due that nobody has cancelled."""
    now = loop.time()
    return min((each.when() - now for each in loop._scheduled if not each.cancelled()), default=FRAME_SECONDS)


def let_pilots_wait() -> None:
    """Let every pilot wait so, in this process."""
    for module in (textual.app, textual.pilot):
        module.wait_for_idle = wait_until_settled  # type: ignore[attr-defined]
