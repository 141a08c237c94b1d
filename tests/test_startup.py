"""Commands import less than their libraries would, and other programs' imports are left alone."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import PATIENCE_S
from tiny import tiny_model_yaml

from osm.models.llm import unused_packages
from osm.models.model_config import LlmConfig
from osm.models.weights import conversion_folder
from osm.quiet import quiet_command
from osm.startup import quick_loading, without_unused

UNUSED = ("scipy", "sklearn", "torchao")


def test_only_commands_hide_packages_from_a_library_that_is_imported_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)

    def imported(library: str = "not_imported_yet") -> bool:
        with without_unused(library, ["colorsys", "sys"]):
            try:
                importlib.import_module("colorsys")
            except ImportError:
                return False
            return True

    hidden = quiet_command(imported)  # type: ignore[arg-type]
    assert hidden() is False
    assert importlib.import_module("colorsys").rgb_to_hsv and "sys" in sys.modules
    monkeypatch.delitem(sys.modules, "colorsys")
    assert imported()
    monkeypatch.delitem(sys.modules, "colorsys")
    assert hidden("json"), "json may already know that it has colorsys"


def test_garbage_is_collected_again_after_loading_even_if_it_fails() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="no such file"), quick_loading():
        assert not gc.isenabled()
        raise ValueError("no such file")
    assert gc.isenabled()
    gc.disable()
    try:
        with quick_loading():
            pass
        assert not gc.isenabled(), "the user has disabled it"
    finally:
        gc.enable()


def test_garbage_of_other_programs_and_later_loads_is_still_freed() -> None:
    gc.unfreeze()
    with quick_loading():
        pass
    assert gc.get_freeze_count() == 0

    def load() -> int:
        with quick_loading():
            pass
        return gc.get_freeze_count()

    try:
        first = quiet_command(load)()
        more = [[number] for number in range(10_000)]
        assert 0 < quiet_command(load)() <= first and len(more) == 10_000
    finally:
        gc.unfreeze()


def test_packages_that_an_llm_needs_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert unused_packages(LlmConfig(name=str(folder))) == (*UNUSED, "accelerate")
    assert unused_packages(LlmConfig(name=str(folder), quantization="torchao_int8")) == ()
    assert unused_packages(LlmConfig(name="nobody/nothing-of-the-kind")) == ()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {}}))
    assert unused_packages(LlmConfig(name=str(folder))) == ()
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    assert unused_packages(LlmConfig(name=str(gguf))) == UNUSED, "transformers reads GGUF files with accelerate"
    conversion_folder(gguf).mkdir(parents=True)
    assert unused_packages(LlmConfig(name=str(gguf))) == (*UNUSED, "accelerate")


def test_a_command_loads_its_model_without_the_packages_it_does_not_use(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "photo.png")
    script = (
        "import gc, sys\n"
        "from osm.cli import main\n"
        "code = main(sys.argv[1:])\n"
        f"print(code, gc.isenabled(), sorted({set(UNUSED) | {'torch._dynamo'}} & set(sys.modules)))\n"
    )
    words = ["name", tmp_path / "photo.png", "--checkpoint", checkpoint, "--box", "4,4,20,20", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines()[-1] == "0 True []", done.stderr


def test_the_compiler_works_after_loading() -> None:
    script = (
        "import sys\n"
        "from osm.startup import in_command, quick_loading\n"
        "@in_command\n"
        "def main():\n"
        "    with quick_loading():\n"
        "        import torch\n"
        "        marked = torch.compiler.disable(lambda x: x + 1)\n"
        "        from torch._dynamo.utils import is_compile_supported\n"
        "        from torchvision.ops import roi_align\n"
        "    early = 'torch._dynamo' in sys.modules\n"
        "    supported = is_compile_supported('cpu')\n"
        "    compiled = torch.compile(lambda x: x * 2, backend='eager')\n"
        "    print(early, supported, float(compiled(marked(torch.ones(())))))\n"
        "    return 0\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "False True 4.0\n", done.stderr


def test_anything_else_of_the_compiler_is_there_while_loading() -> None:
    script = (
        "import sys\n"
        "from osm.startup import in_command, quick_loading\n"
        "@in_command\n"
        "def main():\n"
        "    with quick_loading():\n"
        "        import torch._dynamo.config as config\n"
        "        import torch\n"
        "        print(config is torch._dynamo.config, type(torch._dynamo).__name__, torch._dynamo.is_compiling())\n"
        "    return 0\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "True module False\n", done.stderr


def test_lora_finds_the_packages_that_it_needs(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    config = tiny_model_yaml(tmp_path, lora={"rank": 2})
    script = (
        "import sys\n"
        "from osm.startup import in_command\n"
        "@in_command\n"
        "def main():\n"
        "    from osm.models.factory import build\n"
        "    from osm.models.model_config import load_model_config\n"
        "    model, _ = build(load_model_config(sys.argv[1]))\n"
        "    print(sum('.lora_' in name for name, _ in model.llm.named_parameters()))\n"
        "    return 0\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, config], capture_output=True, text=True, timeout=PATIENCE_S)
    assert int(done.stdout) > 0, done.stderr
