"""Thousands of boxes in one thread: the protocol of a box over sockets of our own, without a disk behind it.

`python -m tests.bench.light_boxes SPEC`, run by fleet.py. Each box has its own connection, birth, will, subscriptions,
health and acks, sends as `edge/publish/delivery.py` does (new events first, windows, capped backlog), and keeps in
memory what is not acked. What it leaves out: TLS, the outbox's disk, twins, losses.
"""

import heapq
import os
import random
import resource
import secrets
import select
import socket
import struct
import sys
import time
from collections import deque

import msgspec

from edge.publish.delivery import DeliverySettings, Pace
from edge.wire import ROOT, SCHEMA, AnyEvent, Batch, BoxState, BridgeState, decode_ack, encode_batch, stream_name, topic
from tests.bench import light_mqtt as mqtt
from tests.bench.fleet_boxes import (
    QUIET,
    SITE,
    VOCABULARY,
    BoxesSpec,
    Report,
    happening,
    health,
    name_of,
    next_pause_s,
    read_spec,
    say,
)

EVENT, COMMIT, HEALTH, CONNECT = range(4)
KEEP_ALIVE_S = 150  # above twice the health period: a box that only says its health never has to ping
RECONNECT_S = 2.0
HEADERS_BYTES = 52  # IPv4 and TCP with timestamps
_TCP_INFO = struct.Struct("=120xQQII")  # linux/tcp.h: bytes acked, bytes received, segments out, segments in
LIMITS = DeliverySettings()


class LightBox:
    """One box."""

    __slots__ = (
        "accepting", "acks", "backlog", "budget", "budget_s", "buffer", "counted", "events", "fresh", "happened",
        "in_flight", "index", "mid", "name", "nonce", "out", "pace", "pending", "rng", "seq", "sock", "stream",
        "topics", "unacked", "up", "waiting", "window",
    )  # fmt: skip

    def __init__(self, index: int, number: int, backlog: int) -> None:
        """Make a box that brings a backlog and is not connected."""
        self.index, self.name = index, name_of(number)
        self.rng = random.Random(number)
        self.stream, self.nonce = secrets.randbits(63) or 1, secrets.token_hex(8)
        self.topics = {kind: topic(SITE, self.name, kind) for kind in ("events", "state", "health", "ack")}
        self.sock: socket.socket | None = None
        self.buffer, self.out = bytearray(), bytearray()
        self.up = self.accepting = False
        self.window, self.mid = 0, 1
        self.in_flight: set[int] = set()
        self.happened: list[tuple[int, AnyEvent]] = []  # since the last commit: when, what
        self.fresh: deque[tuple[int, int, bytes]] = deque()  # batches never sent: first, last, payload
        self.unacked: dict[int, tuple[int, bytes, float]] = {}  # first → last, payload, when it was sent
        self.seq = self.pending = backlog
        self.events = self.backlog = backlog  # that happened; of the outage and not yet sent
        self.budget, self.budget_s = LIMITS.backlog_per_s, 0.0
        self.pace, self.waiting = Pace(LIMITS), set[int]()  # which batches of the backlog wait for their first ack
        self.counted = (0, 0)  # bytes and segments of this connection in the sum already


class Fleet:
    """All of them, and the loop that drives them."""

    def __init__(self, spec: BoxesSpec) -> None:
        """Make the boxes and plan when each connects."""
        self.spec, self.report, self.quiet = spec, Report(), False
        self.began_ms = time.time_ns() // 1_000_000
        self.epoll = select.epoll()
        self.boxes = [LightBox(i, spec.first + i, spec.backlog) for i in range(spec.count)]
        self.by_fd: dict[int, LightBox] = {}
        now_s = time.time() + 0.5
        self.due = [(now_s + i / spec.connects_per_s, i, CONNECT) for i in range(spec.count)]
        self.database = bytes.fromhex(spec.database.replace("-", ""))
        self.events_topics = [mqtt.topic_bytes(box.topics["events"]) for box in self.boxes]

    def run(self) -> None:
        """Live until the orders end."""
        self.epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        while True:
            wait_s = max(0.0, min(self.due[0][0] - time.time(), 0.5)) if self.due else 0.5
            for fd, events in self.epoll.poll(wait_s):
                if fd == sys.stdin.fileno():
                    order = os.read(fd, 4096)
                    if not order:
                        return
                    self.quiet |= QUIET in order
                    say(self._report())
                    continue
                box = self.by_fd.get(fd)
                if box is not None:
                    self._serve(box, events)
            now_s = time.time()
            while self.due and self.due[0][0] <= now_s:
                due_s, index, what = heapq.heappop(self.due)
                self.report.late_s = max(self.report.late_s, now_s - due_s)
                self._do(index, what, due_s)

    # -- what happens to a box ---------------------------------------------------------------------------------------

    def _do(self, index: int, what: int, due_s: float) -> None:
        box, spec = self.boxes[index], self.spec
        again_s = 0.0
        if what == EVENT and not self.quiet:
            at_ms = round(due_s * 1000)
            box.happened.append((at_ms, happening(box.events, at_ms)))
            box.events += 1
            box.pending += 1
            again_s = due_s + next_pause_s(box.rng, spec.rate_hz) if spec.rate_hz else 0.0
        elif what == COMMIT:
            if box.happened:
                self._commit(box)
            self._send(box)
            again_s = due_s + spec.commit_s
        elif what == HEALTH:
            self._resend(box, due_s)
            if box.up:
                said = health(stream_name(box.stream), box.nonce, round(due_s * 1000), box.pending)
                self._write(
                    box, mqtt.publish(mqtt.topic_bytes(box.topics["health"]), said, expiry_s=round(2 * spec.health_s))
                )
                self.report.health += 1
            again_s = due_s + spec.health_s
        elif what == CONNECT and box.sock is None:
            self._connect(box)
            if not box.counted[1] and box.events == spec.backlog:  # the first time: its life begins
                for kind, period_s in ((EVENT, 1 / spec.rate_hz), (COMMIT, spec.commit_s), (HEALTH, spec.health_s)):
                    heapq.heappush(self.due, (due_s + 1.0 + box.rng.random() * period_s, index, kind))
        if again_s:
            heapq.heappush(self.due, (again_s, index, what))

    def _commit(self, box: LightBox) -> None:
        base_ms = box.happened[0][0]
        events = tuple(msgspec.structs.replace(e, t_ms=e.t_ms - base_ms) for _, e in box.happened)  # type: ignore[union-attr]
        first, box.seq = box.seq + 1, box.seq + len(events)
        batch = Batch(SCHEMA, box.stream, first, base_ms, 0, _DIGEST, events)
        box.fresh.append((first, box.seq, encode_batch(batch)))
        box.happened.clear()

    def _of_backlog(self, box: LightBox) -> tuple[int, int, bytes]:
        size = self.spec.backlog_batch
        begin = self.spec.backlog - box.backlog
        base_ms = self.spec.backlog_ms(begin, self.began_ms)
        events = tuple(happening(begin + i, self.spec.backlog_ms(begin + i, 0) - self.spec.backlog_ms(begin, 0))
                       for i in range(size))  # fmt: skip
        return (
            begin + 1,
            begin + size,
            encode_batch(Batch(SCHEMA, box.stream, begin + 1, base_ms, 0, _DIGEST, events, VOCABULARY)),
        )

    def _send(self, box: LightBox) -> None:
        """Send what may be sent: new events first, then backlog at its capped rate."""
        if not (box.up and box.accepting):
            return
        now_s = time.time()
        box.budget = min(LIMITS.backlog_per_s, box.budget + (now_s - box.budget_s) * LIMITS.backlog_per_s)
        box.budget_s = now_s
        while len(box.in_flight) < box.window:
            if box.fresh:
                first, last, payload = box.fresh.popleft()
            elif box.backlog and box.budget >= 1.0 and box.pace.may_send(len(box.waiting), now_s):
                first, last, payload = self._of_backlog(box)
                box.waiting.add(first)
                box.backlog -= self.spec.backlog_batch
                box.budget -= 1.0
            else:
                return
            self._send_one(box, first, last, payload, now_s)

    def _send_one(self, box: LightBox, first: int, last: int, payload: bytes, now_s: float) -> None:
        box.mid = box.mid % 65_535 + 1
        box.in_flight.add(box.mid)
        box.unacked[first] = (last, payload, now_s)
        self.report.messages += 1
        self._write(box, mqtt.publish(self.events_topics[box.index], payload, box.mid))

    def _resend(self, box: LightBox, now_s: float, older_s: float = LIMITS.resend_s) -> None:
        """Put what was not acked in time before what is new, with the vocabulary in it (P8, P20)."""
        late = [(first, *sent) for first, sent in box.unacked.items() if now_s - sent[2] >= older_s]
        for first, last, payload, _ in reversed(late):
            batch = msgspec.msgpack.decode(payload, type=Batch)
            box.waiting.discard(first)
            box.fresh.appendleft((first, last, encode_batch(msgspec.structs.replace(batch, vocabulary=VOCABULARY))))
            del box.unacked[first]
            self.report.resent += 1

    # -- the connection ----------------------------------------------------------------------------------------------

    def _connect(self, box: LightBox) -> None:
        box.sock = sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(("127.0.0.1", self.spec.port))
        self.by_fd[sock.fileno()] = box
        box.buffer.clear()
        box.out.clear()
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        box.out += mqtt.connect(
            f"facefleet-{SITE}-{box.name}", KEEP_ALIVE_S, box.topics["state"], self._state(box, "offline")
        )

    def _close(self, box: LightBox) -> None:
        assert box.sock is not None
        self._count(box)
        self.report.connected -= box.up
        self.report.lost += 1
        del self.by_fd[box.sock.fileno()]
        box.sock.close()
        box.sock, box.up, box.accepting, box.counted = None, False, False, (0, 1)
        box.in_flight.clear()
        self._resend(box, float("inf"))
        heapq.heappush(self.due, (time.time() + RECONNECT_S * (0.5 + box.rng.random()), box.index, CONNECT))

    def _serve(self, box: LightBox, events: int) -> None:
        assert box.sock is not None
        try:
            if events & select.EPOLLOUT:
                self._flush(box)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                data = box.sock.recv(65_536)
                if not data:
                    raise ConnectionError("closed")
                box.buffer += data
                for kind, flags, body in mqtt.packets(box.buffer):
                    self._hear(box, kind, flags, body)
        except BlockingIOError:
            return
        except OSError:
            self._close(box)

    def _write(self, box: LightBox, data: bytes) -> None:
        if box.out or box.sock is None:
            box.out += data
            return
        try:
            sent = box.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the next read says so too
        if sent < len(data):
            box.out += data[sent:]
            self.epoll.modify(box.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, box: LightBox) -> None:
        assert box.sock is not None
        del box.out[: box.sock.send(box.out)]
        if not box.out:
            self.epoll.modify(box.sock.fileno(), select.EPOLLIN)

    def _hear(self, box: LightBox, kind: int, flags: int, body: bytes) -> None:
        if kind == mqtt.PUBLISH:
            name, mid, payload = mqtt.read_publish(flags, body)
            if mid:
                self._write(box, mqtt.puback(mid))
            if name == box.topics["ack"]:
                self._acked(box, payload)
            elif name.startswith(f"{ROOT}/bridge/"):
                state = msgspec.json.decode(payload, type=BridgeState)
                if state.database == self.spec.database:
                    before, box.accepting = box.accepting, state.state == "accepting" and state.ack
                    if box.accepting and not before:
                        self._resend(box, float("inf"))
        elif kind == mqtt.PUBACK:
            box.in_flight.discard(int.from_bytes(body[:2], "big"))
            if box.backlog:
                self._send(box)
        elif kind == mqtt.CONNACK:
            box.window = max(1, mqtt.receive_maximum(body) - 2)
            own = [(box.topics["state"], 1), (box.topics["health"], 0), (box.topics["ack"], 1)]
            self._write(box, mqtt.subscribe(1, [*own, (f"{ROOT}/bridge/+/state", 1)]))
        elif kind == mqtt.SUBACK:
            box.up = True
            self.report.connected += 1
            birth = self._state(box, "online")
            self._write(box, mqtt.publish(mqtt.topic_bytes(box.topics["state"]), birth, 1, retain=True))

    def _acked(self, box: LightBox, payload: bytes) -> None:
        ack = decode_ack(payload)
        if ack.database != self.database:
            return
        self.report.acks += 1
        now_s, took_s = time.time(), 0.0
        for said in ack.covered:
            if said.stream == box.stream:
                runs = ((1, said.upto), *zip(said.ranges[::2], said.ranges[1::2], strict=True))
                for first in [f for f, sent in box.unacked.items() if any(a <= f and sent[0] <= b for a, b in runs)]:
                    last, _, sent_s = box.unacked.pop(first)
                    box.pending -= last - first + 1
                    if first in box.waiting:
                        box.waiting.remove(first)
                        took_s = max(took_s, now_s - sent_s)
        if took_s:
            box.pace.acked(took_s, now_s)
        if box.backlog:
            self._send(box)

    def _state(self, box: LightBox, state: str) -> bytes:
        online = state == "online"
        return msgspec.json.encode(
            BoxState(
                "online" if online else "offline", stream_name(box.stream), "simulated", "simulated", box.nonce,
                "" if online else "vanished", self.began_ms, "0.1.0", "", VOCABULARY if online else None,
            )
        )  # fmt: skip

    # -- figures -----------------------------------------------------------------------------------------------------

    def _count(self, box: LightBox) -> None:
        """Add what this connection has carried since the last count."""
        if box.sock is None:
            return
        try:
            info = box.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        except OSError:
            return
        acked, received, out, back = _TCP_INFO.unpack_from(info)
        now = acked + received + HEADERS_BYTES * (out + back)
        self.report.wire_bytes += now - box.counted[0]
        box.counted = (now, 1)

    def _report(self) -> Report:
        report, size = self.report, self.spec.backlog_batch
        for box in self.boxes:
            self._count(box)
        report.events = sum(box.events for box in self.boxes)
        report.pending = sum(box.pending for box in self.boxes)
        end = self.spec.backlog
        report.backlog = sum(
            box.backlog + sum(size for first, sent in box.unacked.items() if sent[0] <= end)
            + sum(size for _, last, _ in box.fresh if last <= end) for box in self.boxes
        )  # fmt: skip
        report.cpu_s = time.process_time()
        said = msgspec.structs.replace(report)
        report.late_s = 0.0
        return said


_DIGEST = VOCABULARY.digest()


def main(argv: list[str]) -> int:
    """Be the boxes of a spec."""
    spec = read_spec(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = spec.count + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, wanted) if os.geteuid() == 0 else most,) * 2)
    Fleet(spec).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
