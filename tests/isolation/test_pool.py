"""The pool grows to what is in use at once, never over its bound, and gives idle sandboxes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from purplebox.isolation import pool as module
from purplebox.isolation.pool import Pool, Ready

LEAST, MOST = 1, 4


class Made:
    """Counts what a pool makes and discards."""

    def __init__(self) -> None:
        self.alive = self.made = 0

    async def make(self) -> Ready:
        self.alive += 1
        self.made += 1
        end: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        return cast(Ready, SimpleNamespace(started=SimpleNamespace(end=end)))

    def discard(self, _: Ready) -> None:
        self.alive -= 1


def with_pool(body: Callable[[Pool, Made], Awaitable[None]]) -> Made:
    made = Made()

    async def go() -> None:
        pool = Pool(made.make, made.discard, least=LEAST, most=MOST)
        pool.start()
        await body(pool, made)
        await pool.aclose()

    asyncio.run(asyncio.wait_for(go(), 120))
    return made


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_it_grows_to_what_is_in_use_at_once_and_not_over_its_bound() -> None:
    async def body(pool: Pool, made: Made) -> None:
        await until(lambda: made.alive == LEAST)
        taken = await asyncio.gather(*(pool.take() for _ in range(3 * MOST)))
        for ready in taken:
            made.discard(ready)
            pool.done()
        await until(lambda: made.alive == MOST)
        await asyncio.sleep(0.05)
        assert made.alive == MOST

    assert with_pool(body).alive == 0


def test_an_idle_pool_shrinks_to_its_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.01)

    async def body(pool: Pool, made: Made) -> None:
        for ready in await asyncio.gather(*(pool.take() for _ in range(MOST))):
            made.discard(ready)
            pool.done()
        await until(lambda: made.made > MOST and made.alive == LEAST)

    assert with_pool(body).alive == 0


def test_one_that_died_while_it_waited_is_not_handed_out() -> None:
    async def body(pool: Pool, made: Made) -> None:
        await until(lambda: made.alive == LEAST)
        pool._ready[0].started.end.set_result({})
        ready = await pool.take()
        assert not ready.started.end.done()
        made.discard(ready)
        pool.done()

    assert with_pool(body).alive == 0
