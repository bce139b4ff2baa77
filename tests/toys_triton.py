"""A real tritonserver; the one that can be installed for tests has the python backend alone."""

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv" / "tritonserver"  # set up by make test
SERVER = VENV / f"lib/python{sysconfig.get_python_version()}/site-packages/pytriton/tritonserver"
LIBRARIES = "nvidia_pytriton.libs"
START_S = 120

needs_triton = pytest.mark.skipif(
    not SERVER.is_dir(), reason="no tritonserver: nvidia-pytriton could not be installed"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


class TritonServer:
    """Serves FOLDER/models, at the same ports however often it is started."""

    def __init__(self, folder: Path) -> None:
        self.ports = {"http": free_port(), "grpc": free_port()}
        self.log = folder / "log"
        self._prefix = f"lspt-test-{self.ports['http']}-"  # of what it leaves in shared memory
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copytree(SERVER / "backends", folder / "backends")
        stubs = SERVER / "python_backend_stubs" / sysconfig.get_python_version()
        shutil.copy(stubs / "triton_python_backend_stub", folder / "backends" / "python")
        self._command = [
            str(SERVER / "bin" / "tritonserver"),
            "--allow-metrics=false",
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            *(f"--{name}-port={port}" for name, port in self.ports.items()),
        ]

    def start(self) -> None:
        libraries = [sysconfig.get_config_var("LIBDIR"), str(SERVER.parents[1] / LIBRARIES)]
        libraries += [os.environ.get("LD_LIBRARY_PATH", "")]
        environment = os.environ | {
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """As an operator stops it."""
        if self._process is not None:
            self._process.terminate()
            self._end()

    def kill(self) -> None:
        """As it dies; what it leaves behind is swept up."""
        self.send(signal.SIGKILL)
        self._end()
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):
            left.unlink()

    def _end(self) -> None:
        """The process, and those of models that outlive one that was killed."""
        assert self._process is not None
        self._process.wait(timeout=60)
        with suppress(ProcessLookupError):  # there are none
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process = None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        while number == signal.SIGSTOP and self._state() != "T":
            time.sleep(0.01)

    def _state(self) -> str:
        """As the kernel has it: T is stopped."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{self.ports['grpc']}")
        for _ in range(START_S * 5):
            if self._process.poll() is not None:
                pytest.fail(self.log.read_text()[-3000:])
            try:
                if client.is_server_ready():
                    return
            except InferenceServerException:
                pass  # it does not listen yet
            time.sleep(0.2)
        pytest.fail(f"no tritonserver after {START_S} s: {self.log.read_text()[-3000:]}")
