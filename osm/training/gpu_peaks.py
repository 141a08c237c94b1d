"""Peak throughputs of GPUs. This module does not import torch, so that `osm plan --help` stays fast."""

from __future__ import annotations

# Device name -> peak bf16 and fp16 TFLOP/s without sparsity, from vendor data sheets.
PEAK_TFLOPS = {"H100 80GB HBM3": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200": 989.0, "A100": 312.0}
PEAK_TFLOPS |= {"L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "V100": 125.0}
PEAK_TFLOPS |= {"RTX 4090": 165.0, "RTX 3090": 71.0}
