"""One TCP stream, to find out what a link carries: an end of ShapedLink.measure_rate().

python plain_stream.py receive                         # prints its port, then bits per second
python plain_stream.py send ADDRESS PORT SECONDS
"""

import socket
import sys
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


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        print(receive_stream(), flush=True)
    else:
        send_stream(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
