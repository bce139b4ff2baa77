"""torch as an engine: the reference on a CPU, and for CUDA GPUs. Needs the extra `train`.

B batch, F pooled features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lspt_serve.errors import BackboneError, GraphError, MethodError
from lspt_serve.feed import TaskTensors, prompts_axes, row_inputs
from lspt_serve.graph import ATTENTION, FEATURES, NUM_PROMPTS, GraphSpec, load_graph_spec
from lspt_serve.models import PromptedViT, SharedGraph, create_prompted_vit, load_backbone
from lspt_serve.runtime.bank import DeviceBank, Gathered
from lspt_serve.runtime.engine import Precision
from lspt_serve.runtime.onnx import Device
from lspt_serve.sizes import USUAL_PROMPTS

__all__ = ["TorchEngine"]

KNOWN: tuple[Precision, ...] = ("fp32", "bf16")
NUM_SLOTS = 64  # twice the tasks that the largest batch of a server can have
Array = NDArray[np.float32]
Forward = Callable[[Array, Gathered, NDArray[np.int64]], Array]
NOTHING = Gathered([], {}, None)  # what a linear probe takes


class TorchEngine:
    """The model itself, on the backbone that the graph was exported from; graph.onnx is not read.

    On a GPU batches run by CUDA graphs, which are captured when a batch of their size first comes.

    Args:
        folder: what `lspt export` wrote.
        device: `auto` is CUDA where torch sees a GPU, else the CPU.
        precision: bf16 is that of matrix products; norms, the residual stream and what a prompt
            coder remembers stay in fp32. On a GPU fp32 is without TF32, in the whole process.
        num_threads: of the whole process, torch has no other; 0 leaves them as they are.
        num_slots: tasks whose tensors stay on the device; a batch of more runs in parts.

    Raises:
        GraphError: no such graph, its backbone cannot be loaded or is another by now, or a device
            or precision that cannot be had.
    """

    name = "torch"
    num_prompts = USUAL_PROMPTS

    def __init__(
        self,
        folder: Path,
        *,
        device: Device = "auto",
        precision: Precision = "fp32",
        num_threads: int = 0,
        num_slots: int = NUM_SLOTS,
    ) -> None:
        self.graph = load_graph_spec(folder)
        self.precision = precision
        self._device = _find_device(device, precision)
        on_gpu = self._device.type == "cuda"
        self.provider = torch.cuda.get_device_name(self._device) if on_gpu else "CPU"
        self.num_beside = self.num_batches = 2 if on_gpu else 1
        if num_threads:
            torch.set_num_threads(num_threads)
        if on_gpu:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        model = _load_model(self.graph)
        if precision == "bf16":
            _halve_products(model.backbone)
        model = model.to(self._device)
        self._model = SharedGraph(model)
        self._turn = Lock()
        self._features = self._create_gpu_forward(model) if on_gpu else self._forward(FEATURES)
        self.bank = DeviceBank(
            self.graph.inputs,
            num_slots=num_slots,
            device=self._device,
            dtypes=_halved_tensors(self.graph) if precision == "bf16" else {},
        )

    def features(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        return self._answer(images, tasks, self._features)

    def attention(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        return self._answer(images, tasks, self._forward(ATTENTION))

    def _answer(self, images: Array, tasks: Sequence[TaskTensors], forward: Forward) -> Array:
        if not self.graph.inputs:  # a linear probe
            return forward(images, NOTHING, np.zeros(len(images), np.int64))
        answers: dict[int, Array] = {}  # by row
        left = list(range(len(images)))
        while left:  # once, unless there are more tasks than slots
            gathered = self.bank.gather([tasks[row] for row in left])
            numbers = {id(task): number for number, task in enumerate(gathered.tasks)}
            rows = [row for row in left if id(tasks[row]) in numbers]
            left = [row for row in left if id(tasks[row]) not in numbers]
            whose = np.array([numbers[id(tasks[row])] for row in rows])
            part = images if len(rows) == len(images) else images[rows]
            answers |= dict(zip(rows, forward(part, gathered, whose), strict=True))
        return np.stack([answers[row] for row in range(len(images))])

    def num_wanted(self) -> int:
        return self.num_batches

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        if self.graph.inputs:
            self.bank.prefetch(tasks)

    def close(self) -> None:
        pass

    def _create_gpu_forward(self, model: PromptedViT) -> Forward:
        from lspt_serve.runtime.gpu.forward import GPUForward  # needs Triton

        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return GPUForward(model, self._device, dtype, self._turn).features

    def _forward(self, output: str) -> Forward:
        """The model as it is, to one of its outputs."""
        number = self.graph.outputs.index(output)
        halved = self.precision == "bf16"

        def run(images: Array, gathered: Gathered, whose: NDArray[np.int64]) -> Array:
            autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=halved)
            # a call has its tasks' tensors in the model
            with self._turn, torch.inference_mode(), autocast:
                pixels = torch.from_numpy(images).to(self._device)
                rows = {
                    name: torch.from_numpy(array).to(self._device)
                    for name, array in row_inputs(whose).items()
                }
                if gathered.num_prompts is not None:  # else no row is padded: no mask is needed
                    rows[NUM_PROMPTS] = gathered.num_prompts
                answers: Tensor = self._model(pixels, gathered.tensors, rows)[number]
                return answers.float().cpu().numpy()

        return run


def _find_device(device: Device, precision: Precision) -> torch.device:
    if precision not in KNOWN:
        raise GraphError(f"torch has no {precision} here; wanted {' or '.join(KNOWN)}")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise GraphError("device 'cuda' was asked for, but torch sees no CUDA GPU")
    if device == "cpu" or not there:
        return torch.device("cpu")
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise GraphError(f"{torch.cuda.get_device_name()} has no bf16; take fp32")
    return torch.device("cuda", torch.cuda.current_device())


def _load_model(graph: GraphSpec) -> PromptedViT:
    wanted = graph.backbone
    try:
        backbone = load_backbone(wanted.source, img_size=graph.preprocess.img_size)
        model = create_prompted_vit(
            backbone,
            graph.method.name,
            num_classes=1,
            pool=graph.pool,
            options=graph.method.options,
        )
    except (BackboneError, MethodError) as error:
        raise GraphError(f"engine 'torch' cannot make the graph's model: {error}") from error
    if backbone.sha256 != wanted.sha256:
        raise GraphError(
            f"the graph was exported from {wanted.source} with sha256 {wanted.sha256[:12]}, which "
            f"is now {backbone.sha256[:12]}; export it again, or take another engine"
        )
    return model.eval().requires_grad_(False)


def _halve_products(backbone: nn.Module) -> None:
    """Once, what autocast would do to the weights of every matrix product in every batch."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)


def _halved_tensors(graph: GraphSpec) -> dict[str, torch.dtype]:
    """The same for a method's: its matrices, all but the prompts, and biases are of products."""
    prompts = prompts_axes(graph.inputs)
    return {
        name: torch.bfloat16
        for name, shape in graph.inputs.items()
        if name not in prompts and (len(shape) == 2 or "bias" in name.rpartition(".")[2])
    }
