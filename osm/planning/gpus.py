"""GPUs that plans are made for: peak throughput, memory bandwidth and memory, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from osm.errors import OsmError, not_one_of
from osm.training.gpu_peaks import PEAK_TFLOPS

_GIB = 2**30
_CONTEXT = 1.5 * _GIB
"""Memory that torch's allocator does not manage: the CUDA context, NCCL's buffers and the workspaces of cuBLAS."""
_FRAGMENTATION = 0.06
"""The share of the memory that the allocator holds, but cannot use for large tensors."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: the name of the GPU.
        tflops: peak TFLOP/s of dense bfloat16 products (float16 where the GPU has no bfloat16).
        gb_per_s: peak memory bandwidth in GB/s.
        gib: memory in GiB.
    """

    name: str
    tflops: float
    gb_per_s: float
    gib: float

    @property
    def usable(self) -> int:
        """Bytes that the tensors of a process may take."""
        return round(max(0.0, self.gib * _GIB * (1 - _FRAGMENTATION) - _CONTEXT))


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", PEAK_TFLOPS["A100"], 2039, 80),
        Gpu("H100", PEAK_TFLOPS["H100 80GB HBM3"], 3350, 80),
        Gpu("H200", PEAK_TFLOPS["H200"], 4800, 141),
        Gpu("L40S", PEAK_TFLOPS["L40S"], 864, 48),
        Gpu("L4", PEAK_TFLOPS["L4"], 300, 24),
        Gpu("A10", PEAK_TFLOPS["A10"], 600, 24),
        Gpu("RTX4090", PEAK_TFLOPS["RTX 4090"], 1008, 24),
        Gpu("RTX3090", PEAK_TFLOPS["RTX 3090"], 936, 24),
        Gpu("V100", PEAK_TFLOPS["V100"], 900, 32),
    )
}


def gpu_of(name: str, gib: float | None, tflops: float) -> Gpu:
    """Return a GPU, with another amount of memory or another peak throughput if they are given.

    Args:
        name: a name in `GPUS`.
        gib: memory in GiB; None = that of the GPU.
        tflops: peak TFLOP/s (`--peak_tflops`); 0 = that of the GPU.

    Raises:
        OsmError: the GPU is unknown, or the memory is not between 1 and 10,000 GiB.
    """
    if name not in GPUS:
        raise not_one_of("--gpu", name, tuple(GPUS))
    known = GPUS[name]
    if gib is not None and not 1 <= gib <= 10_000:
        raise OsmError(f"--gpu_memory {gib:g} is not between 1 and 10000 (GiB)")
    return Gpu(name, tflops or known.tflops, known.gb_per_s, known.gib if gib is None else gib)
