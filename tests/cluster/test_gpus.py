"""Which GPUs programs on this machine can use, by what its driver says and what CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygen.cluster import gpus, session
from raygen.cluster.gpus import Card, Gpu, variables_for_head, visible_gpus
from raygen.errors import ServiceError

GIB = 2**30


@dataclass
class Device:
    """A GPU or MIG device as the driver knows it; `parts` by their places, of which some are empty."""

    uuid: str
    memory_bytes: int | None = 80 * GIB
    mig_mode: int | None = None
    parts: Sequence[Device | None] = ()
    instances: tuple[int, int] = (0, 0)
    is_lost: bool = False


@dataclass
class Driver:
    """What NVML answers."""

    devices: list[Device] = field(default_factory=list)

    def init(self) -> None: ...

    def shutdown(self) -> None: ...

    def get_count(self) -> int:
        return len(self.devices)

    def get_handle_by_index(self, index: int) -> Device:
        if self.devices[index].is_lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.devices[index]

    def get_uuid(self, device: Device) -> str:
        return device.uuid

    def get_mig_mode(self, device: Device) -> list[int]:
        if device.mig_mode is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [device.mig_mode, device.mig_mode]

    def get_max_mig_device_count(self, device: Device) -> int:
        return len(device.parts)

    def get_mig_device_handle_by_index(self, device: Device, index: int) -> Device:
        part = device.parts[index]
        if part is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return part

    def get_gpu_instance_id(self, device: Device) -> int:
        return device.instances[0]

    def get_compute_instance_id(self, device: Device) -> int:
        return device.instances[1]

    def get_memory_info(self, device: Device) -> Any:
        if device.memory_bytes is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        memory = pynvml.c_nvmlMemory_t()
        memory.total = device.memory_bytes
        return memory


ANSWERS = {
    "nvmlInit": "init",
    "nvmlShutdown": "shutdown",
    "nvmlDeviceGetCount": "get_count",
    "nvmlDeviceGetHandleByIndex": "get_handle_by_index",
    "nvmlDeviceGetUUID": "get_uuid",
    "nvmlDeviceGetMigMode": "get_mig_mode",
    "nvmlDeviceGetMaxMigDeviceCount": "get_max_mig_device_count",
    "nvmlDeviceGetMigDeviceHandleByIndex": "get_mig_device_handle_by_index",
    "nvmlDeviceGetGpuInstanceId": "get_gpu_instance_id",
    "nvmlDeviceGetComputeInstanceId": "get_compute_instance_id",
    "nvmlDeviceGetMemoryInfo": "get_memory_info",
}
"""Which method answers for which function of NVML."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    for name, answer in ANSWERS.items():
        monkeypatch.setattr(pynvml, name, getattr(driver, answer))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


def test_without_a_driver_there_are_none(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    driver.devices = [Device("GPU-1")]
    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    assert gpus.here() == []
    assert session.local_capacity().gpus == 0


def test_a_driver_that_cannot_say_how_many_is_told(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", fails)
    with pytest.raises(ServiceError, match="the GPUs of this machine cannot be counted: Unknown Error"):
        session.local_capacity()


def test_a_gpu_that_was_lost_is_left_out(driver: Driver) -> None:
    driver.devices = [Device("GPU-1", is_lost=True), Device("GPU-2")]
    assert [gpu.uuid for gpu in gpus.here()] == ["GPU-2"]


def test_each_gpu_has_its_memory(driver: Driver) -> None:
    driver.devices = [Device("GPU-1"), Device("GPU-2", memory_bytes=24 * GIB), Device("GPU-3", memory_bytes=None)]
    assert [gpu.memory_bytes for gpu in gpus.here()] == [80 * GIB, 24 * GIB, None]


def test_the_smallest_memory_is_that_of_all_or_is_not_known() -> None:
    known = [Gpu(uuid=f"GPU-{size}", memory_bytes=size * GIB) for size in (80, 24)]
    assert gpus.smallest_memory_bytes(known) == 24 * GIB
    assert gpus.smallest_memory_bytes([*known, Gpu(uuid="GPU-0", memory_bytes=None)]) is None
    assert gpus.smallest_memory_bytes([]) is None


def test_a_gpu_in_mig_mode_is_its_mig_devices(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        Device("MIG-a", 20 * GIB, instances=(1, 0)),
        None,
        Device("MIG-b", 40 * GIB, instances=(2, 0)),
    ]
    driver.devices = [
        Device("GPU-1", mig_mode=pynvml.NVML_DEVICE_MIG_ENABLE, parts=parts),
        Device("GPU-2", mig_mode=pynvml.NVML_DEVICE_MIG_DISABLE),
        Device("GPU-3", mig_mode=pynvml.NVML_DEVICE_MIG_ENABLE, parts=[None, None]),
    ]
    found = gpus.here()
    assert [(gpu.uuid, gpu.memory_bytes) for gpu in found] == [
        ("MIG-a", 20 * GIB),
        ("MIG-b", 40 * GIB),
        ("GPU-2", 80 * GIB),
    ]
    assert session.local_capacity().gpus == 3
    assert variables_for_head(found)["CUDA_VISIBLE_DEVICES"] == "MIG-a,MIG-b,GPU-2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-1/2/0")
    assert [gpu.uuid for gpu in gpus.here()] == ["MIG-b"]


def test_a_head_counts_whole_gpus_itself() -> None:
    assert variables_for_head([Gpu(uuid="GPU-1", memory_bytes=None)]) == {}
    assert variables_for_head([]) == {}


def whole(uuid: str) -> Card:
    return Card(uuid=uuid, gpus=(Gpu(uuid=uuid, memory_bytes=80 * GIB),))


UUIDS = [f"GPU-{beginning}-0000-0000-0000-000000000000" for beginning in ("1a", "1b", "2c")]
WHOLE = [whole(uuid) for uuid in UUIDS]

COUNTED = {
    "": 0,
    "-1": 0,
    "NoDevFiles": 0,
    "none": 0,
    "0": 1,
    "0,1": 2,
    " 2 , 0 ": 2,
    "0,1,2,3": 3,
    "3,0": 0,
    "0,-1,1": 1,
    "0,,1": 1,
    "0,0": 0,
    "0,00": 0,
    UUIDS[2]: 1,
    f"{UUIDS[0]},{UUIDS[1]}": 2,
    "GPU-2": 1,
    "GPU-1": 0,
    "GPU-2,GPU-9,GPU-1a": 1,
    "GPU-2,GPU-2c": 0,
    "GPU-2,0": 1,
    "0,GPU-2": 1,
    "MIG-a": 0,
}


@pytest.mark.parametrize("variable", COUNTED)
def test_gpus_are_counted_as_cuda_does(variable: str) -> None:
    assert len(visible_gpus(variable, WHOLE)) == COUNTED[variable]
    assert visible_gpus(variable, []) == []


def test_all_gpus_count_where_none_is_named() -> None:
    assert [gpu.uuid for gpu in visible_gpus(None, WHOLE)] == UUIDS


FORMS = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "",
    " 1",
    "+1",
    "1x",
    "x",
    *("GPU-1a", "GPU-1", "GPU-2c", "GPU-2", " GPU-2", "GPU-9"),
]


@given(st.lists(st.sampled_from([*FORMS, "GPU-"]), max_size=4).map(",".join))
def test_gpus_are_counted_as_torch_does(variable: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CUDA_VISIBLE_DEVICES", variable)
        patched.setattr(torch.cuda, "_raw_device_count_nvml", lambda: len(UUIDS))
        patched.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: UUIDS)
        assert len(visible_gpus(variable, WHOLE)) == torch.cuda._device_count_nvml()


MIXED = [
    Card(
        uuid="GPU-1a",
        gpus=(
            Gpu(uuid="MIG-a1", memory_bytes=10 * GIB, former_name="MIG-GPU-1a/1/0"),
            Gpu(uuid="MIG-a2", memory_bytes=10 * GIB, former_name="MIG-GPU-1a/2/0"),
        ),
    ),
    whole("GPU-2b"),
    Card(uuid="GPU-3c", gpus=()),
    # As drivers before R470 call them.
    Card(uuid="GPU-4d", gpus=(Gpu(uuid="MIG-GPU-4d/1/0", memory_bytes=None, former_name="MIG-GPU-4d/1/0"),)),
]

NAMED = {
    "0": ["MIG-a1", "MIG-a2"],
    "1": ["GPU-2b"],
    "1,0": ["GPU-2b", "MIG-a1", "MIG-a2"],
    "1,2,3": ["GPU-2b"],
    "GPU-1": ["MIG-a1", "MIG-a2"],
    "GPU-2b,GPU-4": ["GPU-2b", "MIG-GPU-4d/1/0"],
    "MIG-a1": ["MIG-a1"],
    "MIG-a2,MIG-a1": ["MIG-a2", "MIG-a1"],
    "MIG-a1,MIG-a1": [],
    "MIG-a1,MIG-GPU-1a/1/0": [],
    "MIG-a": [],
    "MIG-a1,MIG-x,MIG-a2": ["MIG-a1"],
    "MIG-a1,GPU-2b": ["MIG-a1"],
    "GPU-2b,MIG-a1": ["GPU-2b"],
    "MIG-GPU-1a/2/0": ["MIG-a2"],
    "MIG-GPU-4d/1/0": ["MIG-GPU-4d/1/0"],
    "MIG-GPU-1a/3/0": [],
}


@pytest.mark.parametrize("variable", NAMED)
def test_mig_devices_are_named_by_all_their_names(variable: str) -> None:
    assert [gpu.uuid for gpu in visible_gpus(variable, MIXED)] == NAMED[variable]


PARTS = ["0", "1", "2", "3", "GPU-1a", "GPU-2b", "MIG-a1", "MIG-a2", "MIG-GPU-1a/1/0", "MIG-GPU-4d/1/0", "MIG-"]


@given(st.lists(st.sampled_from(PARTS), max_size=4).map(",".join))
def test_what_a_head_is_told_names_the_same_gpus_one_by_one(variable: str) -> None:
    found = visible_gpus(variable, MIXED)
    assert len(set(found)) == len(found), "none is handed out twice"
    told = variables_for_head(found).get("CUDA_VISIBLE_DEVICES", "")
    for name, gpu in zip(told.split(","), found, strict=True) if told else ():
        assert visible_gpus(name, MIXED) == [gpu], "a process that Ray gives this part sees it alone"


@pytest.mark.parametrize(
    ("variables", "backend"),
    [([None, None], "nccl"), (["0", "GPU-1a"], "nccl"), (["MIG-1a", "MIG-2b"], "gloo"), (["0", "MIG-1a"], "gloo")],
)
def test_processes_on_parts_of_a_gpu_are_not_joined_by_nccl(
    variables: list[str | None], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raygen.cluster.rendezvous import PrivateTorchConfig, has_mig_device, suitable

    answers = []
    for variable in variables:
        monkeypatch.delenv(gpus.VARIABLE, raising=False)
        if variable is not None:
            monkeypatch.setenv(gpus.VARIABLE, variable)
        answers.append(has_mig_device())
    assert suitable(PrivateTorchConfig(backend="nccl"), answers).backend == backend
