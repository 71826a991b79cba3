"""A slow network on one machine: one network namespace per rank, joined by a switch, shaped by tbf.

Every rank gets a namespace with one interface, a full-duplex NIC of the given rate::

    rank 0 [link0]=====[port0]            [port1]=====[link0] rank 1
              |            |    bridge       |            |
          tbf: egress   tbf: ingress     tbf: ingress   tbf: egress

The bridge has a namespace of its own, so that nothing is left in, or filtered by, the machine's
own network, and deleting the namespaces deletes all of it. Needs root and iproute2::

    with ShapedLink(world_size=2, rate="100mbit") as link:
        subprocess.run([*link.command_prefix(0), "python", "train.py"],
                       env={**os.environ, **link.environment(0)})
        print(link.tx_bytes(0))

``python bench/shaped_link.py --world 2 --rate 1gbit`` builds one and checks its real rate.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

_NAME_PREFIX = "fastcomm"
_INTERFACE = "link0"
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_RATE_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_LARGEST_PACKET_BYTES = 65536  # that a host hands to its NIC
# cubic is what most hosts have; where namespaces may not use it, reno is the nearest. bbr, the
# default of some, takes seldom small messages for a slow link, and sends at that rate.
_CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"
_CHOOSE_CONGESTION_CONTROL = (
    f"echo cubic > {_CONGESTION_CONTROL} || echo reno > {_CONGESTION_CONTROL}"
)
_serial_numbers = itertools.count()
_open_names: set[str] = set()


class ShapeSupport(NamedTuple):
    """Whether this process may build a ShapedLink and, when it may not, why."""

    possible: bool
    reason: str


def can_shape() -> ShapeSupport:
    """Say whether this process can build a ShapedLink (it builds a small one to find out)."""
    if sys.platform != "linux":
        return ShapeSupport(False, "network namespaces need Linux")
    if os.geteuid() != 0:
        return ShapeSupport(False, "network namespaces need root")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return ShapeSupport(False, f"the command '{tool}' (package iproute2) is not installed")
    try:
        with ShapedLink(world_size=1, rate="1gbit"):
            return ShapeSupport(True, "")
    except (OSError, RuntimeError) as error:
        return ShapeSupport(False, str(error))


def parse_rate(rate: str) -> int:
    """Bits per second of a rate in tc's words: "100mbit", "2.5gbit"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?bit)", rate)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"rate must look like '100mbit' or '2.5gbit', got {rate!r}")
    return round(float(match[1]) * _RATE_UNITS[match[2]])


class ShapedLink:
    """Namespaces for ``world_size`` ranks with a NIC of ``rate`` each (None: unshaped).

    A context manager. The namespaces, and whatever still runs in them, go when it is left: by
    return, exception, Ctrl-C, SIGTERM or SIGHUP. What a killed process left behind is removed when
    the next link is made.

    After a pause 128 KiB pass at full speed: messages smaller than that are not slowed down.

    The default MTU is that of clusters with jumbo frames: headers are 0.7 % of the bytes, so that
    the payload gets the asked rate (1500 would leave it 95.6 %).
    """

    def __init__(self, world_size: int, rate: str | None, mtu: int = 9000) -> None:
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, got {world_size}")
        self.world_size = world_size
        self.rate = rate
        self.mtu = mtu
        self.bits_per_second = None if rate is None else parse_rate(rate)
        stem = f"{_NAME_PREFIX}-{os.getpid()}-{next(_serial_numbers)}"
        self._switch = f"{stem}-switch"
        self._namespaces = [f"{stem}-rank{rank}" for rank in range(world_size)]
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "ShapedLink":
        _remove_stale_namespaces()
        _open_names.update([self._switch, *self._namespaces])
        self._end_by_exception()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._remove()

    def namespace(self, rank: int) -> str:
        """Name of this rank's network namespace."""
        return self._namespaces[rank]

    def command_prefix(self, rank: int) -> list[str]:
        """Return what goes before a command so that it runs on this rank's side of the link."""
        return ["ip", "netns", "exec", self._namespaces[rank]]

    def cut(self, rank: int) -> None:
        """Cut a rank off: nothing reaches it any more, and nobody is told."""
        _run(["ip", "-n", self._namespaces[rank], "link", "set", _INTERFACE, "down"])

    def address(self, rank: int) -> str:
        """IPv4 address of this rank, reachable from the other ranks only."""
        return f"10.77.{rank // 250}.{rank % 250 + 1}"

    def interface(self, rank: int) -> str:
        """Name of this rank's interface inside its namespace (the same for all)."""
        return _INTERFACE

    def environment(self, rank: int) -> dict[str, str]:
        """Environment variables that make torch.distributed meet and talk over this link."""
        return {
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": self.interface(rank),
            "NCCL_SOCKET_IFNAME": self.interface(rank),
        }

    def congestion_control(self) -> str:
        """Return the name of how TCP finds its rate over this link."""
        return _run([*self.command_prefix(0), "cat", _CONGESTION_CONTROL]).strip()

    def tx_bytes(self, rank: int) -> int:
        """Bytes this rank's interface has sent, frame headers included."""
        return self._counter(rank, "tx")

    def rx_bytes(self, rank: int) -> int:
        """Bytes this rank's interface has received, frame headers included."""
        return self._counter(rank, "rx")

    def measure_rate(self, sender: int = 0, receiver: int = 1, seconds: float = 0.4) -> float:
        """Payload bits per second of one TCP stream that lasts ``seconds``."""
        program = [sys.executable, "-S", str(Path(__file__).with_name("plain_stream.py"))]
        receive = [*self.command_prefix(receiver), *program, "receive"]
        send = [*self.command_prefix(sender), *program, "send", self.address(receiver)]
        with subprocess.Popen(receive, stdout=subprocess.PIPE, text=True) as receiving:
            assert receiving.stdout is not None
            port = receiving.stdout.readline().strip()
            try:
                subprocess.run([*send, port, str(seconds)], check=True, timeout=seconds + 30)
                return float(receiving.stdout.readline())
            finally:
                receiving.kill()

    def _build(self) -> None:
        names = [self._switch, *self._namespaces]
        _batch(["ip"], [f"netns add {name}" for name in names])
        wires = ["link add bridge0 type bridge", "link set bridge0 up"]
        for rank, name in enumerate(self._namespaces):
            end = f"mtu {self.mtu} type veth peer name {_INTERFACE} mtu {self.mtu} netns {name}"
            wires += [f"link add port{rank} {end}", f"link set port{rank} master bridge0 up"]
        _batch(["ip", "-n", self._switch], wires)
        for rank, name in enumerate(self._namespaces):
            address = f"addr add {self.address(rank)}/16 dev {_INTERFACE}"
            _batch(["ip", "-n", name], ["link set lo up", address, f"link set {_INTERFACE} up"])
            _run([*self.command_prefix(rank), "sh", "-c", _CHOOSE_CONGESTION_CONTROL], check=False)
        if self.bits_per_second is not None:
            shape = self._token_bucket(self.bits_per_second)
            for rank, name in enumerate(self._namespaces):
                _batch(["tc", "-n", name], [f"qdisc add dev {_INTERFACE} root {shape}"])
                _batch(["tc", "-n", self._switch], [f"qdisc add dev port{rank} root {shape}"])

    def _token_bucket(self, bits_per_second: int) -> str:
        bytes_per_second = bits_per_second / 8
        # tbf would cut packets above its burst in pieces, at a cost that no NIC with segmentation
        # offload has: two of the largest fit. 200 us of burst bridge late timers.
        burst = max(2 * _LARGEST_PACKET_BYTES, round(bytes_per_second * 200e-6))
        # 20 ms of queue, as in a switch: enough for two senders to one receiver.
        limit = burst + max(256 * 1024, round(bytes_per_second * 20e-3))
        return f"tbf rate {bits_per_second}bit burst {burst} limit {limit}"

    def _counter(self, rank: int, direction: str) -> int:
        show = ["ip", "-n", self._namespaces[rank], "-j", "-s", "link", "show", _INTERFACE]
        return int(json.loads(_run(show))[0]["stats64"][direction]["bytes"])

    def _end_by_exception(self) -> None:
        # The default action of these signals would end the process without __exit__.
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING_SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._previous_handlers[number] = signal.signal(number, _raise_system_exit)

    def _remove(self) -> None:
        with _signals_held_back():
            for name in [self._switch, *self._namespaces]:
                _remove_namespace(name)
                _open_names.discard(name)
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)
            self._previous_handlers.clear()


def _raise_system_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let no second Ctrl-C cut the removal short."""
    held_back = {signal.SIGINT, *_ENDING_SIGNALS}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, held_back)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _remove_stale_namespaces() -> None:
    """Remove the namespaces of processes that ended without removing them."""
    for line in _run(["ip", "netns", "list"]).splitlines():
        name = line.split()[0]
        match = re.fullmatch(rf"{_NAME_PREFIX}-(\d+)-\d+-(?:switch|rank\d+)", name)
        if match is None or name in _open_names:
            continue
        if int(match[1]) == os.getpid() or not os.path.exists(f"/proc/{match[1]}"):
            _remove_namespace(name)


def _remove_namespace(name: str) -> None:
    if not os.path.exists(f"/run/netns/{name}"):
        return
    for process in _run(["ip", "netns", "pids", name], check=False).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    _run(["ip", "netns", "del", name], check=False)


def _batch(tool: list[str], commands: list[str]) -> None:
    _run([*tool, "-batch", "-"], standard_input="\n".join(commands) + "\n")


def _run(command: list[str], standard_input: str = "", check: bool = True) -> str:
    # In a session of its own, so that a Ctrl-C at the terminal does not stop it halfway.
    done = subprocess.run(
        command, input=standard_input, capture_output=True, text=True, start_new_session=True
    )
    if check and done.returncode != 0:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"'{' '.join(command)}' failed: {reason[0]}")
    return done.stdout


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="build a shaped link and check its real rate")
    parser.add_argument("--world", type=int, default=2, help="ranks, at least 2 (default 2)")
    parser.add_argument("--rate", default="100mbit", help="tc's words, e.g. 1gbit")
    return parser.parse_args()


def main() -> None:
    """Build a link, measure its rate between neighbours, print both."""
    arguments = parse_arguments()
    with ShapedLink(arguments.world, arguments.rate) as link:
        for rank in range(arguments.world):
            receiver = (rank + 1) % arguments.world
            measured = link.measure_rate(rank, receiver) / 1e6
            print(f"rank {rank} -> {receiver}: {measured:.1f} Mbit/s of {arguments.rate}")


if __name__ == "__main__":
    main()
