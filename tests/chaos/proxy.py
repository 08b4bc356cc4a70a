"""A TCP proxy between boxes, bridge and broker whose links can be cut, stalled and slowed. Driven by the supervisor.

One thread runs all links. A *half-open* link is what a pulled plug leaves behind: both ends believe in it, and what
they send is gone for ever; only their keep-alives find out.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Literal, Self

CHUNK_BYTES = 16 * 1024
Mode = Literal["open", "cut", "half-open", "slow"]


class Wire:
    """One listening port in front of the broker."""

    def __init__(self, target: int, slow_s: float = 0.25) -> None:
        """Forward to `target` on loopback; `slow_s` is the delay of each chunk while the wire is slow."""
        self.port = 0
        self.mode: Mode = "open"
        self.connections = 0
        self._target, self._slow_s = target, slow_s
        self._living: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()  # swallow everything from now on
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Take a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def turn(self, mode: Mode) -> None:
        """Change how the wire behaves; a cut ends its connections, a stall leaves them dead for ever."""
        self.mode = mode
        if mode == "half-open":
            self._dead |= self._living
        if mode == "cut":
            for writer in list(self._living):
                writer.transport.abort()

    async def close(self) -> None:
        """Stop listening, and end what is connected."""
        if self._server is not None:
            self._server.close()
        await self.turn("cut")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._living.add(writer)
        up: asyncio.StreamWriter | None = None
        try:
            if self.mode == "cut":
                return
            if self.mode == "half-open":
                self._dead.add(writer)
                while await reader.read(CHUNK_BYTES):
                    pass
                return
            down, up = await asyncio.open_connection("127.0.0.1", self._target)
            self._no_delay(writer, up)
            self._living.add(up)
            pumps = [asyncio.ensure_future(self._pump(a, b)) for a, b in ((reader, up), (down, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # no broker at the moment
        finally:
            for one in (writer, up):
                if one is not None:
                    self._living.discard(one)
                    self._dead.discard(one)
                    one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self.mode == "slow":
                    await asyncio.sleep(self._slow_s)
                if writer in self._dead:
                    continue
                writer.write(data)
                await writer.drain()

    @staticmethod
    def _no_delay(*writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Proxy:
    """All wires, in one thread of their own."""

    def __init__(self, target: int) -> None:
        """Prepare wires to `target` on loopback."""
        self._target = target
        self._wires: list[Wire] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self._wires:
            self._do(wire.close())
        self._do(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def wire(self) -> Wire:
        """Return a new wire that listens."""
        made = Wire(self._target)
        self._do(made.listen())
        self._wires.append(made)
        return made

    def turn(self, wire: Wire, mode: Mode) -> None:
        """Change how a wire behaves."""
        self._do(wire.turn(mode))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    @staticmethod
    async def _end_tasks() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
