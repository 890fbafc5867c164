"""Permits as their actor gives them, in this process."""

import asyncio

from scl_ray.cluster.permits import Permits

WITHIN = 60.0  # seconds


def test_a_request_that_comes_twice_is_given_once() -> None:
    """Ray sends one again when the answer was lost on its way."""

    async def work() -> None:
        desk = Permits({"train": 1, "evaluate": 1})
        for _ in range(2):
            await desk.acquire("a", "one", "train")
        await desk.acquire("b", "one", "train")  # one more than there is room for
        waits = [asyncio.create_task(desk.acquire("c", "two", "evaluate")) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        await desk.release("a")
        await asyncio.wait_for(asyncio.gather(*waits), WITHIN)
        for key in "bc":
            await desk.release(key)
        # Nothing is held any more.
        for key in "de":
            await asyncio.wait_for(desk.acquire(key, "three", "train"), WITHIN)

    asyncio.run(work())
