import pytest
import torch

from lspt_serve.errors import DataError
from lspt_serve.training.distributed import join_processes, rank, world_size
from lspt_serve.training.settings import pick_device


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were process 2 of 3 that torchrun started, on a machine with three GPUs."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def test_without_torchrun_there_is_one_process() -> None:
    join_processes(torch.device("cpu"))

    assert (rank(), world_size()) == (0, 1)


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize(
    ("device", "own"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")]
)
def test_every_process_has_a_gpu_of_its_own(device: str, own: str) -> None:
    assert str(pick_device(device)) == own


@pytest.mark.usefixtures("torchrun")
def test_processes_are_not_put_on_one_gpu() -> None:
    with pytest.raises(DataError, match="device cuda:0 was asked for by 3 processes; give cuda"):
        pick_device("cuda:0")


@pytest.mark.usefixtures("torchrun")
def test_the_only_process_has_the_gpu_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")

    assert str(pick_device("cuda:2")) == "cuda:2"
    assert str(pick_device("cuda")) == "cuda:0"


@pytest.mark.usefixtures("torchrun")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(DataError, match=r"3 processes on 2 GPU\(s\); lower --nproc-per-node"):
        pick_device("auto")
