"""GGUF files that are read in less time have the same content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from osm.models.gguf_reading import quick_gguf

gguf = pytest.importorskip("gguf", reason="gguf is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with fields of several types and a tensor."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list([b"a", "ä".encode(), b"long " * 20])
    writer.add_token_types([1, 2, 3])
    writer.add_bool("llama.flag", True)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_values_are_the_same(path: Path) -> None:
    slow = gguf.GGUFReader(str(path))
    with quick_gguf():
        quick = gguf.GGUFReader(str(path))
    assert list(quick.fields) == list(slow.fields) and "tokenizer.ggml.tokens" in quick.fields
    for name, field in slow.fields.items():
        assert quick.fields[name].contents() == field.contents(), name
    [one], [other] = quick.tensors, slow.tensors
    assert (one.name, one.tensor_type, one.shape.tolist()) == (other.name, other.tensor_type, other.shape.tolist())
    assert np.array_equal(one.data, other.data) and type(one.data) is np.ndarray


def test_a_file_is_read_once_and_the_package_is_left_as_it_was(path: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map, gguf.gguf_reader.np
    with pytest.raises(KeyError), quick_gguf():
        assert gguf.GGUFReader(str(path)) is gguf.GGUFReader(str(path))
        arch = gguf.MODEL_ARCH.LLAMA
        assert gguf.get_tensor_name_map(arch, 2) is gguf.get_tensor_name_map(arch, 2)
        raise KeyError
    assert before == (gguf.GGUFReader, gguf.get_tensor_name_map, gguf.gguf_reader.np)
    assert gguf.GGUFReader(str(path)) is not gguf.GGUFReader(str(path))
