"""What 500 masks take: a process of its own, in which one masks' worth of pixels is not kept for every mask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, resource, sys
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
import torch
sys.path.insert(0, "benchmarks")
import recognition as benchmark
from osm.recognition.recognizer import Recognizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model, processor = benchmark.random_cpu_model(tiny=True)
width, height = 1200, 900
rles = []
for number in range(500):
    mask = np.zeros((height, width), np.uint8, order="F")
    top, left = 28 * (number % 25), 50 * (number // 25)
    mask[top : top + 160, left : left + 160] = 1
    rles.append(coco_mask.encode(mask))
recognizer = Recognizer(model, processor, max_new_tokens=4)
recognizer.set_image(Image.new("RGB", (width, height)))
few = recognizer.name(rles[:64], modes=["any"])
before = peak()
many = recognizer.name(rles, modes=["any"])
names = sum(bool(answer.token_probs) for answers in many for answer in answers)
print(json.dumps({"before": before, "more": peak() - before, "names": names}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in KiB on Linux alone")
def test_500_masks_of_a_large_picture() -> None:
    # By default, glibc may keep freed blocks, which would be counted as used.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"] == 500
    assert found["more"] < 120, found  # the masks alone are 540 MB of pixels
