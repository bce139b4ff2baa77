"""Serve the three digit tasks and say, once they answer, what to try.

python examples/digits/serve.py --port 3000
"""

import argparse
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SAMPLES = Path("build/digits/samples")
STARTUP_S = 120.0


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Whether the server became ready before it ended or STARTUP_S were over."""
    deadline = time.monotonic() + STARTUP_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def print_what_to_try(url: str) -> None:
    lines = [
        f"curl -F image=@{SAMPLES}/{digit}.png -F task={task} {url}/classify"
        for digit, task in ((9, "digit"), (4, "parity"), (8, "loop"))
    ]
    print("\nReady. Try, in another terminal:\n")
    print("\n".join(f"  {line}" for line in [*lines, f"curl {url}/tasks"]))
    print(f"\nOr open {url} in a browser. Ctrl-C stops the server.\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the three digit tasks.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    args = parser.parse_args()
    lspt = Path(sys.executable).with_name("lspt")
    command = [lspt, "serve", "--host", args.host, "--port", str(args.port)]
    server = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the server too
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    url = f"http://{args.host}:{args.port}"
    if wait_until_ready(url, server):
        print_what_to_try(url)
    sys.exit(server.wait())


if __name__ == "__main__":
    main()
