"""The pool grows to what is in use at once, never over its bound, and gives idle sandboxes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from purplebox.isolation import SetupError
from purplebox.isolation import pool as module
from purplebox.isolation.pool import Pool, Ready
from purplebox.isolation.started import Started

LEAST, MOST = 1, 4


class Fake:
    started: object


class Made:
    """Counts what a pool makes and discards."""

    def __init__(self) -> None:
        self.alive = self.made = 0
        self.stand_by: set[Ready] = set()

    async def make(self) -> Ready:
        self.alive += 1
        self.made += 1
        end: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        ready = cast(Ready, Fake())
        started = SimpleNamespace(end=end, stand_by=lambda: self.stand_by.add(ready))
        ready.started = cast(Started, started)
        return ready

    async def refuse(self) -> Ready:
        raise SetupError("no sandbox")

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


def test_the_next_alone_stands_by() -> None:
    async def body(pool: Pool, made: Made) -> None:
        for taken in await asyncio.gather(*(pool.take() for _ in range(MOST))):
            made.discard(taken)
            pool.done()
        await until(lambda: len(pool._ready) == MOST)
        assert made.stand_by & set(pool._ready) == {pool._ready[0]}
        ready = pool.take_ready()
        assert ready in made.stand_by
        assert pool._ready[0] not in made.stand_by  # not beside what is carried out now
        made.discard(ready)
        pool.done()
        assert pool._ready[0] in made.stand_by

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


def test_what_is_in_use_for_long_is_replaced_when_the_pool_hears_of_it() -> None:
    async def body(pool: Pool, made: Made) -> None:
        await until(lambda: made.alive == LEAST)
        await asyncio.sleep(0.05)  # for the look after the first
        ready = pool.take_ready()
        assert ready is not None and pool.take_ready() is None
        await asyncio.sleep(0.05)
        assert made.made == LEAST  # a replacement would be in the way of a short one
        pool.refill()
        await until(lambda: made.alive == LEAST + 1)
        made.discard(ready)
        pool.done()

    assert with_pool(body).alive == 0


def test_calls_that_never_pause_have_replacements_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REFILL_SECONDS", 0.01)

    async def body(pool: Pool, made: Made) -> None:
        first, second = [await pool.take() for _ in range(2)]
        await until(lambda: len(pool._ready) == pool._wanted)
        third = pool.take_ready()
        assert third is not None
        before = made.made
        await asyncio.sleep(0.02)  # in which a replacement would have been begun
        assert made.made == before
        made.discard(first)
        pool.done()  # others are in use still
        await until(lambda: made.made > before)
        for ready in (second, third):
            made.discard(ready)
            pool.done()

    assert with_pool(body).alive == 0


def test_who_comes_when_one_could_not_be_made_has_another_made() -> None:
    async def body(pool: Pool, made: Made) -> None:
        await until(lambda: made.alive == LEAST)
        await asyncio.sleep(0.05)  # for the look after the first
        first = await pool.take()
        real, pool._make = pool._make, made.refuse
        with pytest.raises(SetupError):
            await pool.take()
        pool._make = real  # those that have failed count as being made still
        second = await pool.take()
        for ready in (first, second):
            made.discard(ready)
            pool.done()

    assert with_pool(body).alive == 0


def test_who_has_been_cancelled_is_not_told_when_it_closes() -> None:
    async def body(pool: Pool, made: Made) -> None:
        await until(lambda: made.alive == LEAST)
        await asyncio.sleep(0.05)  # for the look after the first
        pool._make = asyncio.Event().wait  # type: ignore[assignment]  # for ever
        taken = await pool.take()
        first, second = [asyncio.create_task(pool.take()) for _ in range(2)]
        await until(lambda: len(pool._waiting) == 2)
        first.cancel()  # which its future hears before it does
        await pool.aclose()
        assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], BaseException)
        with pytest.raises(SetupError, match="closed"):
            await second
        made.discard(taken)
        pool.done()

    assert with_pool(body).alive == 0


def test_who_waits_hears_of_any_error() -> None:
    async def body(pool: Pool, made: Made) -> None:
        await until(lambda: made.alive == LEAST)
        await asyncio.sleep(0.05)  # for the look after the first

        async def fail() -> Ready:
            raise OSError(24, "no files")

        pool._make = fail
        taken = await pool.take()
        with pytest.raises(OSError, match="no files"):
            await pool.take()
        made.discard(taken)
        pool.done()

    assert with_pool(body).alive == 0
