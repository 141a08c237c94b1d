"""Packed linear layers and folded batch norms give what the plain model gives."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import osm
from osm.errors import OsmError
from osm.models import fast_inference
from osm.models.fast_inference import fold_batch_norms, pack_convs
from osm.models.packed_conv import PackedConv, can_be_packed, is_packing_possible
from osm.models.packed_linear import PackedLinear, is_packing_right, pack_linears
from osm.models.towers.tower import Tower
from osm.recognition.recognizer import load_recognizer

needs_packing = pytest.mark.skipif(not is_packing_right(), reason="this PyTorch has no packed product")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (64, 96), (3, 17, 96), (300, 96)])
@torch.inference_mode()
def test_a_packed_layer_computes_what_the_layer_does(shape: tuple[int, ...], bias: bool) -> None:
    linear, x = nn.Linear(96, 130, bias=bias), torch.randn(shape)
    packed = PackedLinear(linear)
    torch.testing.assert_close(packed(x), linear(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.gelu(x), nn.functional.gelu(linear(x)), atol=1e-5, rtol=0)
    if len(shape) == 3:  # rows that are not contiguous
        torch.testing.assert_close(packed(x.transpose(0, 1)), linear(x.transpose(0, 1)), atol=1e-5, rtol=0)


@needs_packing
def test_its_weight_is_that_of_the_layer() -> None:
    linear = nn.Linear(96, 130)
    packed = PackedLinear(linear)
    assert packed.state_dict().keys() == linear.state_dict().keys()
    assert torch.equal(packed.weight, linear.weight) and packed.weight is packed.weight
    assert torch.equal(packed.state_dict()["weight"], linear.weight)
    other = PackedLinear(nn.Linear(96, 130))
    other.load_state_dict(linear.state_dict())
    twin, x = copy.deepcopy(other), torch.randn(5, 96)
    with torch.inference_mode():
        for layer in (other, twin):
            torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=0)


@needs_packing
def test_it_stays_on_the_cpu_in_float32() -> None:
    packed = PackedLinear(nn.Linear(96, 130))
    assert packed.to("cpu").float() is packed
    for move in (packed.half, packed.double, lambda: packed.to("meta")):
        with pytest.raises(OsmError, match="load it for this device, or with load_recognizer"):
            move()


@needs_packing
def test_gradients_and_autocast_are_those_of_the_layer() -> None:
    linear, x = nn.Linear(96, 130), torch.randn(5, 7, 96, requires_grad=True)
    packed, frozen = PackedLinear(linear), PackedLinear(nn.Linear(96, 130).requires_grad_(False))
    frozen.load_state_dict(linear.state_dict())
    expected = torch.autograd.grad(linear(x).square().sum(), x)[0]
    assert torch.equal(torch.autograd.grad(packed(x).square().sum(), x)[0], expected)
    for _ in range(2):
        found = torch.autograd.grad(frozen(x).square().sum(), x)[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    smooth = torch.autograd.grad(nn.functional.gelu(linear(x)).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(frozen.gelu(x).sum(), x)[0], smooth, atol=1e-4, rtol=1e-5)
    packed(x).sum().backward()
    assert packed.weight.grad is not None  # a trained layer is trained
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x), linear(x)) and packed(x).dtype == torch.bfloat16
        assert torch.equal(packed.gelu(x), nn.functional.gelu(linear(x)))


class Odd(nn.Linear):
    pass


@needs_packing
def test_only_plain_large_float32_layers_are_packed() -> None:
    words = nn.Embedding(100, 96)
    head = nn.Linear(96, 100, bias=False)
    head.weight = words.weight
    hooked = nn.Linear(96, 96)
    hooked.register_forward_pre_hook(lambda module, args: None)
    model = nn.ModuleDict(
        {
            "words": words,
            "head": head,
            "plain": nn.Linear(96, 96),
            "odd": Odd(96, 96),
            "small": nn.Linear(96, 8),
            "bits16": nn.Linear(96, 96).half(),
            "with_hook": hooked,
        }
    )
    assert pack_linears(model) == 2
    packed = {name for name, one in model.items() if isinstance(one, PackedLinear)}
    assert packed == {"head", "plain"}
    assert model["head"].weight is words.weight  # shared, not copied


class Net(Tower):
    """A tower of two convolutions, the second of which has something between itself and its batch norm or not."""

    patch = 16

    def __init__(self, between: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8)
        self.between = between
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x_N3SS: Tensor) -> tuple[None, Tensor]:
        x = self.conv2(torch.relu(self.bn1(self.conv1(x_N3SS))))
        return None, self.bn2(x.tanh() if self.between else x).flatten(2).transpose(1, 2)


def test_batch_norms_are_folded_if_the_tokens_stay() -> None:
    window = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        net = Net(between=False).eval()
        before = net(window)[1]
        assert fold_batch_norms(net, 32) == 2
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        torch.testing.assert_close(net(window)[1], before, atol=1e-5, rtol=1e-5)
        net = Net(between=True).eval()
        before = net(window)[1]
        assert fold_batch_norms(net, 32) == 0
        assert torch.equal(net(window)[1], before)
        assert fold_batch_norms(Net(between=False).train(), 32) == 0


class CnnTower(Tower):
    """The first maps of a CNN from timm, frozen."""

    patch = 16

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.model = timm.create_model(name, features_only=True, out_indices=(2,)).requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> tuple[None, Tensor]:
        return None, self.model(x)[0].flatten(2).transpose(1, 2)


def test_a_timm_tower_is_folded() -> None:
    tower, window = CnnTower("efficientnet_lite0"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tower(window)[1]
        assert fold_batch_norms(tower, 64) > 10
        torch.testing.assert_close(tower(window)[1], before, atol=1e-4 * float(before.abs().max()), rtol=0)


class ReadsNorms(CnnTower):
    """A tower whose own code needs its batch norms."""

    def forward(self, x: Tensor) -> tuple[None, Tensor]:
        assert self.model.bn1.weight is not None
        return super().forward(x)


def test_a_tower_that_would_fail_is_left_as_it_is() -> None:
    tower, window = ReadsNorms("efficientnet_lite0"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tower(window)[1]
        assert fold_batch_norms(tower, 64) == 0
        assert torch.equal(tower(window)[1], before)


needs_convs = pytest.mark.skipif(not is_packing_possible(), reason="this PyTorch has no packed convolution")
ACTIVATIONS = [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()]


@needs_convs
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: type(act).__name__)
@pytest.mark.parametrize("groups", [1, 12])
@pytest.mark.parametrize("kind", ["plain", "strided", "same", "same_odd", "same_dilated", "same_mixed"])
@torch.inference_mode()
def test_a_packed_convolution_computes_what_the_layers_do(act: nn.Module, groups: int, kind: str) -> None:
    from timm.layers import Conv2dSame

    conv: nn.Conv2d = {
        "plain": nn.Conv2d(12, 24, 3, padding=1, groups=groups),
        "strided": nn.Conv2d(12, 24, (5, 3), (2, 1), (2, 0), groups=groups, bias=False),
        "same": Conv2dSame(12, 24, 3, 2, groups=groups),
        "same_odd": Conv2dSame(12, 24, (5, 2), (3, 1), groups=groups),
        "same_dilated": Conv2dSame(12, 24, (4, 3), (1, 2), dilation=2, groups=groups),
        "same_mixed": Conv2dSame(12, 24, (2, 4), (2, 1), dilation=(2, 1), groups=groups),
    }[kind]
    conv.requires_grad_(False)
    assert can_be_packed(conv, act)
    packed = PackedConv(conv, act)
    assert packed.state_dict().keys() == conv.state_dict().keys()
    shapes = [(1, 12, 20, 20), (3, 12, 9, 14), *((1, 12, side, 8) for side in range(9, 13)), (2, 12, 20, 20)]
    # With `same_mixed`, the padded copy of the first one has the size of the second one.
    shapes += [(1, 12, 12, 4), (1, 12, 13, 7)]
    for number, shape in enumerate(shapes):  # more sizes than are kept
        packed = copy.deepcopy(packed) if number == 1 else packed
        x = 4 * torch.randn(shape)
        for order in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(packed(x.contiguous(memory_format=order)), act(conv(x)), atol=1e-5, rtol=0)
    flops = []
    for layer in (packed, conv):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        flops.append(counter.get_total_flops())
    # If the padding is not symmetric, zeros are added to the packed kernel, and the counter counts them.
    assert flops[0] >= flops[1] > 0 and (flops[0] == flops[1] or kind.startswith("same"))


@needs_convs
@torch.inference_mode()
def test_the_input_is_not_copied_to_pad_it() -> None:
    from timm.layers import Conv2dSame

    copies = {}
    for dilation in (1, 2):
        packed = PackedConv(Conv2dSame(8, 8, 4, 2, dilation=dilation).requires_grad_(False), nn.ReLU6())
        windows = [torch.randn(1, 8, side, side) for side in (7, 8)]
        for _ in range(2):  # the weights are packed in the first pass
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                for window in windows:
                    packed(window)
        copies[dilation] = sum(event.count for event in profiler.key_averages() if event.key == "aten::constant_pad_nd")
    assert copies == {1: 0, 2: 1}  # a dilated kernel can only be extended by its dilation


@needs_convs
def test_a_packed_convolution_is_plain_where_packing_is_not_possible() -> None:
    conv, act = nn.Conv2d(12, 24, 3, 2, 1).requires_grad_(False), nn.ReLU6()
    packed, x = PackedConv(conv, act), torch.randn(2, 12, 9, 9)
    plain = act(conv(x))
    torch.testing.assert_close(packed(x), plain, atol=1e-5, rtol=0)
    found, expected = (
        torch.autograd.grad(layers(graded).square().sum(), graded)[0]
        for layers in (packed, nn.Sequential(conv, act))
        for graded in [x.clone().requires_grad_()]
    )
    assert torch.equal(found, expected)
    assert packed(x[:0]).shape == (0, *plain.shape[1:])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x), act(conv(x))) and packed(x).dtype == torch.bfloat16
    other = nn.Conv2d(12, 24, 3, 2, 1).requires_grad_(False)
    packed.load_state_dict(other.state_dict())  # what was packed before is no longer used
    torch.testing.assert_close(packed(x), act(other(x)), atol=1e-5, rtol=0)
    copied = pickle.loads(pickle.dumps(packed))
    assert torch.equal(copied(x), packed(x))
    assert torch.equal(copied.double()(x.double()), act(copy.deepcopy(other).double()(x.double())))
    packed.requires_grad_(True)
    with torch.no_grad():
        packed.weight.mul_(2)
        assert torch.equal(packed(x), act(nn.functional.conv2d(x, packed.weight, packed.bias, 2, 1)))


@needs_convs
def test_a_tower_is_packed_if_its_tokens_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, window = CnnTower("tf_efficientnet_lite0"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tower(window)[1]
        assert pack_convs(tower, 64) == 0  # type: ignore[arg-type]  # no batch norm is folded yet
        fold_batch_norms(tower, 64)  # type: ignore[arg-type]
        folded = copy.deepcopy(tower)
        assert pack_convs(tower, 64) > 10  # type: ignore[arg-type]
        torch.testing.assert_close(tower(window)[1], before, atol=1e-4 * float(before.abs().max()), rtol=0)
        assert pack_convs(tower, 64) == 0  # type: ignore[arg-type]  # all are packed
        before = folded(window)[1]
        monkeypatch.setattr(fast_inference, "PackedConv", lambda conv, act: nn.Sequential(conv, nn.Sigmoid()))
        assert pack_convs(folded, 64) == 0  # type: ignore[arg-type]
        assert torch.equal(folded(window)[1], before)


def test_a_fast_recognizer_gives_the_same_names(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osm.models.packed_linear._SMALLEST", 8)  # the layers of the tiny model are small
    counts: list[int] = []
    monkeypatch.setattr(fast_inference, "pack_linears", lambda model: counts.append(pack_linears(model)))
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 5:20, 5:30], masks[1, 30:, :], masks[2, 10:40, 40:70] = True, True, True
    found = []
    for fast in (False, True):
        recognizer = load_recognizer(checkpoint, device="cpu", fast=fast)
        recognizer.set_image(image)
        found.append([answers[0] for answers in recognizer.name(masks)])
    assert sum(counts) > 10 or not is_packing_right()
    assert [one.text for one in found[0]] == [one.text for one in found[1]]
    assert [one.prob for one in found[0]] == pytest.approx([one.prob for one in found[1]], abs=1e-4)


def test_a_loaded_model_is_never_packed(checkpoint: Path) -> None:
    model, _, _ = osm.load_model(checkpoint)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
