"""One TCP stream, to find out what a link carries: an end of ShapedLink.measure_rate().

python bench/plain_stream.py receive                  # prints its port, then bits per second
python bench/plain_stream.py send 127.0.0.1 34567 1.5 # to this port, for so many seconds
"""

import argparse
import socket
import time


def receive_stream(warm_up_seconds: float = 0.1) -> float:
    """Accept one stream and return its payload rate in bits per second, slow start left out."""
    with socket.create_server(("", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    buffer = bytearray(1 << 20)
    received, first, last = 0, 0.0, 0.0
    opened = time.perf_counter()
    while count := connection.recv_into(buffer):
        last = time.perf_counter()
        if first:
            received += count
        elif last - opened >= warm_up_seconds:
            first = last
    return received * 8 / max(last - first, 1e-9)


def send_stream(address: str, port: int, seconds: float) -> None:
    """Send for so long."""
    with socket.create_connection((address, port)) as connection:
        chunk = bytes(1 << 18)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.sendall(chunk)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ends = parser.add_subparsers(dest="end", required=True)
    ends.add_parser("receive")
    send = ends.add_parser("send")
    send.add_argument("address")
    send.add_argument("port", type=int)
    send.add_argument("seconds", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    if arguments.end == "receive":
        print(receive_stream(), flush=True)
    else:
        send_stream(arguments.address, arguments.port, arguments.seconds)
