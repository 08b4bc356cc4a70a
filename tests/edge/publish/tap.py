"""A wire to a broker that writes down what passes, packet by packet: what a message costs is counted, not computed."""

import contextlib
import socket
import threading
from typing import Self

PUBLISH, PUBACK = 3, 4


class Tap:
    """Listens on a port of its own and passes everything on, both ways."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._open: list[socket.socket] = [self._server]
        self._passed: list[bytearray] = []  # one for each direction of each connection

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def bytes_of(self, *kinds: int) -> int:
        """Return the bytes of all whole packets of some kinds so far, headers included."""
        return sum(size for passed in self._passed for kind, size in packets(bytes(passed)) if kind in kinds)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    passed = bytearray()
                    self._passed.append(passed)
                    threading.Thread(target=self._pass_on, args=(source, sink, passed), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, passed: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                passed += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def packets(stream: bytes) -> list[tuple[int, int]]:
    """Return kind and size of each whole MQTT packet: a byte of kind and flags, a length of 7 bits a byte, the rest."""
    found, at = [], 0
    while at < len(stream):
        length = shift = 0
        for size in range(2, 6):
            if at + size > len(stream):
                return found
            length |= (stream[at + size - 1] & 0x7F) << shift
            shift += 7
            if stream[at + size - 1] < 0x80:
                break
        if at + size + length > len(stream):
            return found
        found.append((stream[at] >> 4, size + length))
        at += size + length
    return found
