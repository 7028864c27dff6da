"""A CUDA device that holds no data, on a CPU build of PyTorch: shapes, dtypes, autograd, CUDA's own autocast.

`pretend_cuda()` makes "cuda" a device whose tensors are `FakeTensor`s. An operation that mixes devices
raises, as it does on a GPU. Whatever would make the host wait for the device is counted under the line of
the project that asked for it, and gets a made-up value. So it finds mixed devices, lost precision and host
waits; it cannot find wrong numbers.

Import this before torch: the device guard (`guard.cpp`, compiled with g++ once for a version of PyTorch) has
to be loaded first.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

assert "torch" not in sys.modules, "import the pretended device before torch"
ROOT = Path(__file__).resolve().parents[2]


def compiled_guard() -> Path:
    """guard.cpp as a shared library, from the temporary folder or compiled now."""
    library = Path(tempfile.gettempdir()) / f"trilemma-guard-{version('torch')}-{os.getuid()}.so"
    if not library.exists():
        torch_folder = Path(find_spec("torch").submodule_search_locations[0])
        headers, libraries = torch_folder / "include", torch_folder / "lib"
        aside = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{headers}",
             f"-I{headers / 'torch/csrc/api/include'}", str(Path(__file__).with_name("guard.cpp")), "-o",
             str(aside), f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu"],
            check=True,
        )  # fmt: skip
        aside.replace(library)
    return library


ctypes.CDLL(str(compiled_guard()), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

CUDA = torch.device("cuda", 0)

NEEDS_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose output's size depends on values: the host waits for it."""

READ = {torch.bool: False, torch.int32: 0}
"""What `.item()` of a dtype gives; 1 for the others."""


def project_line() -> str:
    """The innermost line of the project on the stack, as `training/loop/loop.py:12`."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] not in ("tests", ".venv"):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "outside the project"


class PretendedDevice(TorchDispatchMode):
    """waits: (operation, line of the project) -> how often the host waited for the device there.

    float64: whether the device has it; where it has not, as on Apple's MPS, a float64 tensor on it raises.
    """

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64 = float64
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_device = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if not on_device and CUDA.type not in {x.type for x in leaves if isinstance(x, torch.device)}:
            return function(*args, **kwargs)
        name = function._schema.name.split("::")[1]
        if name == "_local_scalar_dense":
            self._wait("item")
            return READ.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if name == "equal":
            self._wait(name)
            return True
        if name in ("_to_copy", "copy_"):
            copied = self._copy(name, args, kwargs)
            if copied is not None:
                return copied
        if name in NEEDS_VALUES:
            self._wait(name)
            return self._one_row(args[0]) if name == "nonzero" else self._empty((1,), args[0].dtype)
        if name == "index" and (answer := self._index(*args)) is not None:
            return answer
        with self.fake:
            answer = function(*args, **kwargs)
        if not self.float64 and any(map(_is_float64, tree_leaves(answer))):
            raise TypeError(f"this device has no float64: {name}")
        return answer

    def _wait(self, what: str) -> None:
        self.waits[what, project_line()] += 1

    def _copy(self, name: str, args, kwargs) -> torch.Tensor | None:
        """A copy to the host, of zeros; None for other copies, which the fake tensors do."""
        into = name == "copy_"
        source = args[1] if into else args[0]
        target = args[0].device if into else kwargs.get("device") or source.device
        if source.device.type == target.type:
            return None
        without_waiting = kwargs.get("non_blocking") or (into and len(args) > 2 and args[2])
        if not without_waiting:
            self._wait(f"copy from {source.device.type} to {target.type}")
        if target.type != "cpu":
            return None
        dtype = kwargs.get("dtype") or source.dtype
        if not self.float64 and torch.float64 in (dtype, args[0].dtype):
            raise TypeError("this device has no float64: a copy to the host converts there")
        return args[0].zero_() if into else torch.zeros(source.shape, dtype=dtype)

    def _index(self, values: torch.Tensor, indices) -> torch.Tensor | None:
        """Indexing by a mask, of which two rows are said to be true; None for other indices."""
        if not isinstance(values, FakeTensor):
            raise RuntimeError("values on the host cannot be indexed from the device")
        masks = [i for i in indices if i is not None and i.dtype is torch.bool]
        if masks:
            self._wait("index by a mask")
            return self._empty((2, *values.shape[masks[0].ndim :]), values.dtype)
        if any(i is not None and not isinstance(i, FakeTensor) for i in indices):
            self._wait("index from the host")
        return None

    def _one_row(self, of: torch.Tensor) -> torch.Tensor:
        return self._empty((1, of.ndim), torch.int64)

    def _empty(self, shape, dtype) -> torch.Tensor:
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=CUDA)


def _is_float64(value) -> bool:
    return isinstance(value, FakeTensor) and value.dtype is torch.float64


@contextlib.contextmanager
def pretend_cuda(float64: bool = True) -> Iterator[PretendedDevice]:
    """Inside the block, torch.device("cuda") is a device without data, and without float64 if so asked."""
    lifts_cpu_only = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(x, device="cuda") shows its copy to the mode
    state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.mem_get_info": lambda *args, **kwargs: (2**33, 2**33),
        "torch.cuda.is_bf16_supported": lambda *args, **kwargs: True,
        "torch.cuda.get_rng_state": lambda *args, **kwargs: state,
        "torch.cuda.set_rng_state": lambda *args, **kwargs: None,
        "torch.cuda.get_device_name": lambda *args, **kwargs: "a device without data",
    }
    if not float64:
        answers["trilemma.pipelines.shared.WITHOUT_FLOAT64"] = ("cuda",)
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, answer))
        # No thread for each device in a backward pass: a `FakeTensor` that is asked for its device while
        # another thread computes with its mode answers "meta".
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        try:
            yield stack.enter_context(PretendedDevice(float64))
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts_cpu_only)


def cuda_accelerator(precision: str = "no", **options):
    """An Accelerator of one process whose device is the pretended one."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, device_placement=False, **options)
    accelerator.state._mixed_precision, accelerator.native_amp = precision, precision != "no"
    PartialState._shared_state["device"] = AcceleratorState._shared_state["device"] = CUDA
    accelerator.scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
    return accelerator
