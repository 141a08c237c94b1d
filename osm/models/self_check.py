"""Tests the LLM and the bridge of a new model on a few tokens: gradients, padding, caching and generation.

LLM classes treat embeddings, padding and caches differently in `forward`, and some LLMs silently ignore arguments. An
LLM that computes wrong results is rejected. If only the LLM's cache or transformers' `generate` is missing or wrong,
the LLM is accepted, and names are decoded without that feature: correctly, but slowly (see `LlmSupport`).

The result of a check is stored in the cache folder, so that a large LLM is checked only once and not at every start.
Only the results of accepted LLMs are stored.

Shapes: R rows, T positions (prefix and text), P prefix embeddings, W LLM width, V vocabulary,
K selected rows, N = 1 image, L image tokens, C tower width, S input size.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osm.config import as_dict
from osm.documents import parse_json
from osm.errors import OsmError
from osm.files import remove_abandoned, replacing
from osm.models import llm, llm_forward
from osm.models.bridges import gated
from osm.models.bridges.bridge import Instruction
from osm.models.file_hashes import cache_folder, installed_version
from osm.models.llm import generate, token_losses
from osm.models.llm_forward import (
    LlmInputs,
    LlmSupport,
    cache_argument,
    llm_config,
    read_prefix,
    read_tokens,
    set_llm_support,
    word_embeddings,
)
from osm.models.lora import lora_parameters, without_lora
from osm.models.osm import OmniScientModel

ROWS, TEXT, PREFIX = 3, 6, 3
_LENGTHS = (TEXT, TEXT - 2, TEXT - 1)  # the text lengths of the rows in the padding checks
# The largest accepted RMS difference between logits, relative to the standard deviation of the logits.
_TOLERANCE, _TOLERANCE_QUANTISED = 1e-3, 0.3
_SLOPE = 0.2  # relative tolerance between a gradient and the finite difference of the loss
_STEPS = (1e-3, 1e-4, 1e-2, 1e-5)  # relative finite-difference steps; one of them is small but above rounding errors
_SAMPLED = 1024  # the number of values of each tensor that are hashed into the key of a check
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")


def check_model(model: OmniScientModel) -> None:
    """Check a newly built model, and record which optimizations its LLM supports (`llm_support`).

    The check runs once for each combination of LLM and bridge sizes. After that, the stored result is reused. The check
    changes neither torch's random state nor any weights.

    Raises:
        OsmError: the LLM computes wrong results with embeddings, padding or gradients, or the bridge does not affect
            the LLM.
    """
    path = cache_folder() / "checks" / f"{check_key(model)}.json"
    support = _read(path)
    if support is None:
        support = examine(model)
        _write(path, support)
    set_llm_support(model.llm, support)
    slow = [] if support.cache else ["its cache is missing or wrong, so each step recomputes all earlier positions"]
    slow += [] if support.chunks else ["its cache accepts only one token at a time"]
    slow += [] if support.generate else ["transformers' generate is wrong for it, so a greedy loop is used instead"]
    if slow:
        warnings.warn(f"{name_of_llm(model)}: {'; '.join(slow)}; results are correct, but slow", stacklevel=3)


def check_key(model: OmniScientModel) -> str:
    """Return a hash of everything that affects the result of a check.

    The hash covers the LLM's config; the name, shape and 1024 evenly spaced values of each LLM tensor; the bridge's
    sizes; LoRA; the library versions; and the code of the check. Only a few MB of a 7B model are read.
    """
    config = model.config
    sizes = {name: as_dict(getattr(config, name)) for name in ("bridge", "lora")}
    digest = hashlib.sha256(json.dumps([config.llm.quantization, sizes], sort_keys=True).encode())
    digest.update(str(llm_config(model.llm).to_json_string()).encode())
    for name in _LIBRARIES:
        digest.update(f"{name} {installed_version(name)}".encode())
    for module in (gated, llm_forward, llm):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    for name, value in sorted(without_lora(model.llm.state_dict()).items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(_sampled(value))
    return digest.hexdigest()[:32]


def examine(model: OmniScientModel) -> LlmSupport:
    """Check a model without using any stored results.

    Raises:
        OsmError: the LLM computes wrong results with embeddings, padding or gradients, or the bridge does not affect
            the LLM.
    """
    training = {name: module.training for name, module in model.named_modules() if module.training}
    model.eval()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), model.bridge.opened():
        warnings.simplefilter("ignore")
        found = _Examination(model).run()
    if training:
        model.train()
    return found


def name_of_llm(model: OmniScientModel) -> str:
    """Return a description of a model's LLM for use in messages: the config field, its value, and the LLM's class."""
    config = model.config
    field, name = (
        ("base_model_name", config.base_model_name) if config.base_model_name else ("llm.name", config.llm.name)
    )
    return f"model.{field} {name!r} ({type(model.llm).__name__})"


class _Examination:
    """The steps of the check.

    The LLM's input is the bridge's output for random image tokens, followed by random text tokens.

    All steps use the same batch.
    """

    def __init__(self, model: OmniScientModel) -> None:
        self.model, self.llm = model, model.llm
        self.words = word_embeddings(model.llm)
        self.device = self.words.weight.device
        self.quantised = bool(model.config.llm.quantization)
        self.generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(self.words.num_embeddings, (ROWS, TEXT), generator=self.generator).to(self.device)

    def run(self) -> LlmSupport:
        with torch.no_grad():
            self._takes_embeddings()
            inputs = self._inputs()
            plain_RTV = self._plain(inputs)
            self._is_causal(inputs, plain_RTV)
            self._pads_on_the_right(inputs)
        self._has_gradients(inputs)
        self._trains()
        with torch.no_grad():
            cache = cache_argument(self.llm) is not None and self._works(self._caches, inputs, plain_RTV)
            set_llm_support(self.llm, LlmSupport(cache))
            chunks = not cache or self._works(self._reads_chunks, inputs, plain_RTV)
            return LlmSupport(cache, chunks, self._works(self._generates, inputs, plain_RTV))

    # -- required properties ------------------------------------------------------------------------------------------

    def _takes_embeddings(self) -> None:
        with self._refused("does not run on embeddings"):
            by_ids_RTV = self.llm(input_ids=self.ids, use_cache=False).logits
            embeds_RTW = self.words(self.ids)
            by_embeds_RTV = self.llm(inputs_embeds=embeds_RTW, use_cache=False).logits
        if not torch.equal(embeds_RTW, self.words(self.ids)):
            raise self._error("the LLM modifies its input embeddings in place")
        if not torch.isfinite(by_ids_RTV).all():
            raise self._error("the LLM's logits are not finite")
        if not self._close(by_embeds_RTV, by_ids_RTV):
            raise self._error(
                "the LLM's logits for token ids differ from its logits for the embeddings of these tokens (per-layer "
                "embeddings, for example, need token ids), so a mask's embeddings cannot be placed before the text"
            )

    def _inputs(self) -> LlmInputs:
        with self._refused("does not accept the bridge's output for a mask"):
            text = LlmInputs(self.words(self.ids), torch.ones_like(self.ids))
            prefix_RPW, gated_kv, *_ = self._condition()
            if not prefix_RPW.shape[1]:
                return LlmInputs(text.embeds_RTW, text.mask_RT, gated_kv)
            # These positions include an output of a query, because gradients have to reach the layers of the bridge.
            direct_first = getattr(self.model.bridge.config, "direct_first", False)
            prefix_RPW = prefix_RPW[:, -PREFIX:] if direct_first else prefix_RPW[:, :PREFIX]
            prefix_RPW = prefix_RPW.to(text.embeds_RTW)
            return LlmInputs(
                torch.cat([prefix_RPW, text.embeds_RTW], 1),
                torch.cat([text.mask_RT.new_ones(prefix_RPW.shape[:2]), text.mask_RT], 1),
                gated_kv,
            )

    def _condition(self) -> Any:
        """Return the bridge's output for several masks in one random image."""
        model, size = self.model, self.model.config.input_size
        tokens_NLC = torch.randn(model.window_pos_embed.shape, generator=self.generator).to(model.window_pos_embed)
        masks_R1SS = torch.zeros(ROWS, 1, size, size, device=tokens_NLC.device)
        for row in range(ROWS):
            masks_R1SS[row, :, row * size // 4 : (row + 2) * size // 4] = 1
        image_R = torch.zeros(ROWS, dtype=torch.long, device=tokens_NLC.device)
        pixels_13SS = torch.zeros(1, 3, size, size, device=tokens_NLC.device) if model.zoom else None
        features = model.mask_features(masks_R1SS, torch.ones_like(masks_R1SS), pixels_13SS, image_R)
        ones_RT = torch.ones(ROWS, 2, dtype=torch.long, device=tokens_NLC.device)
        state = model.bridge.image_state(model.add_positions(tokens_NLC))
        modes = [model.config.modes[row % len(model.config.modes)] for row in range(ROWS)]
        return model.bridge(state, image_R, features, Instruction(ones_RT, ones_RT), modes)

    def _plain(self, inputs: LlmInputs) -> Tensor:
        with self._refused("does not run on embeddings that are no token's"), inputs.conditioned():
            logits_RTV = self.llm(inputs_embeds=inputs.embeds_RTW, use_cache=False).logits
        if not torch.isfinite(logits_RTV).all():
            raise self._error("the LLM's logits are not finite")
        return logits_RTV

    def _is_causal(self, inputs: LlmInputs, plain_RTV: Tensor) -> None:
        cut_RTW = inputs.embeds_RTW[:, :-2]
        with inputs.conditioned():
            logits_RTV = self.llm(inputs_embeds=cut_RTW, use_cache=False).logits
        if not self._close(logits_RTV, plain_RTV[:, :-2]):
            raise self._error("the LLM attends to later tokens (it is an encoder or bidirectional)")

    def _pads_on_the_right(self, inputs: LlmInputs) -> None:
        """Check that padding on the right, which training uses, does not change a row's loss."""
        padded, labels_RT = self._padded(inputs)
        together_R = token_losses(self.llm, padded, labels_RT)[0]
        for row in range(ROWS):
            real_T = padded.mask_RT[row].bool()
            alone = padded.select(torch.tensor([row]))
            alone = LlmInputs(alone.embeds_RTW[:, real_T], alone.mask_RT[:, real_T], alone.gated_kv)
            loss = token_losses(self.llm, alone, labels_RT[row : row + 1, real_T])[0]
            if (loss - together_R[row]).abs() > (0.5 if self.quantised else 5e-3) * (1 + loss.abs()) ** 0.5:
                raise self._error("padding on the right of a row changes the loss of that row")

    def _padded(self, inputs: LlmInputs) -> tuple[LlmInputs, Tensor]:
        mask_RT = inputs.mask_RT.clone()
        prefix = mask_RT.shape[1] - TEXT
        for row, length in enumerate(_LENGTHS):
            mask_RT[row, prefix + length :] = 0
        labels_RT = torch.cat([self.ids.new_full((ROWS, prefix), -100), self.ids], 1)
        labels_RT[:, : prefix + 1] = -100
        return LlmInputs(inputs.embeds_RTW, mask_RT, inputs.gated_kv), labels_RT.masked_fill(mask_RT == 0, -100)

    def _has_gradients(self, inputs: LlmInputs) -> None:
        """Check that gradients flow through all layers and, at the bridge's output, match finite differences."""
        padded, labels_RT = self._padded(inputs)
        prefix = padded.embeds_RTW.shape[1] - TEXT
        if padded.gated_kv is None:
            given = [padded.embeds_RTW[:, :prefix]]
        else:
            given = [tensor for pair in padded.gated_kv.keys_values for tensor in pair]
        leaves = [tensor.detach().clone().requires_grad_() for tensor in given]

        def loss(at: list[Tensor]) -> Tensor:
            embeds_RTW, gated_kv = padded.embeds_RTW, padded.gated_kv
            if gated_kv is None:
                embeds_RTW = torch.cat([at[0], embeds_RTW[:, prefix:]], 1)
            else:
                gated_kv = gated.GatedKeyValues(gated_kv.layers, list(zip(at[::2], at[1::2], strict=True)))
            return token_losses(self.llm, LlmInputs(embeds_RTW, padded.mask_RT, gated_kv), labels_RT)[0].sum()

        with self._refused("has no gradient"), _cut_off(self.llm) as names:
            gradients = torch.autograd.grad(loss(leaves), leaves)
        if names:
            raise self._error(
                f"gradients do not flow through {len(names)} of the LLM's linear layers (the first is {names[0]}), so "
                "the bridge cannot be trained well"
            )
        if self.quantised:
            return  # finite differences are useless, because rounded activations make the loss a step function
        expected = float(sum(g.square().sum() for g in gradients)) ** 0.5
        size = float(sum(leaf.detach().square().sum() for leaf in leaves)) ** 0.5
        slope = 0.0
        for share in _STEPS:
            step = share * size
            with torch.no_grad():
                ahead, behind = (
                    loss([x + sign * step / max(expected, 1e-30) * g for x, g in zip(leaves, gradients, strict=True)])
                    for sign in (1, -1)
                )
            slope = float(ahead - behind) / (2 * step)
            if abs(slope - expected) <= _SLOPE * max(abs(slope), expected) + 1e-4:
                return
        raise self._error(f"the gradient of the LLM's loss is {expected:.3g}, but the finite difference is {slope:.3g}")

    def _trains(self) -> None:
        """Check that gradients reach every layer of the bridge, and LoRA's weights for each kind of linear layer."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with self._refused("does not train"), torch.enable_grad():
            padded, labels_RT = self._padded(self._inputs())
            loss = token_losses(self.llm, padded, labels_RT)[0].sum()
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        reached = {id(p) for p, g in zip(trained.values(), found, strict=True) if g is not None and bool(g.any())}
        for number, layer in enumerate(self.model.bridge.layers()):
            if not any(id(p) in reached for p in layer.parameters()):
                raise self._error(f"no gradient reaches {type(layer).__name__} {number} of the bridge")
        kinds: dict[str, bool] = {}
        for name, parameter in lora_parameters(self.llm).items():
            if "lora_B" in name:  # lora_A has no gradient at first, because lora_B starts at 0
                kind = re.sub(r"\.\d+\.", ".*.", name)
                kinds[kind] = kinds.get(kind, False) or id(parameter) in reached
        for kind, there in kinds.items():
            if not there:
                raise self._error(f"no gradient reaches LoRA's {kind}")

    # -- optional optimizations ---------------------------------------------------------------------------------------

    def _caches(self, inputs: LlmInputs, plain_RTV: Tensor) -> bool:
        """Check that decoding with the cache is correct, even after cache rows are selected, repeated or copied."""
        start = inputs.embeds_RTW.shape[1] - 3
        cut = LlmInputs(inputs.embeds_RTW[:, :start], inputs.mask_RT[:, :start], inputs.gated_kv)
        logits_KV, state = read_prefix(self.llm, cut)
        right = [self._close(logits_KV, plain_RTV[:, start - 1])]
        rows, ids_RT = [2, 0, 1, 2], self.ids[:, -3:]
        copied = state.copied(rows)
        for step in range(2):
            logits_KV, copied = read_tokens(self.llm, ids_RT[rows, step, None].tolist(), copied)
            right.append(self._close(logits_KV, plain_RTV[rows, start + step]))
        copied = copied.keep([1, 3])
        logits_KV, _ = read_tokens(self.llm, ids_RT[[0, 2], 2, None].tolist(), copied)
        right.append(self._close(logits_KV, plain_RTV[[0, 2], start + 2]))
        # Using the copies must not change `state`.
        logits_KV, _ = read_tokens(self.llm, ids_RT[:, 0, None].tolist(), state)
        return all([*right, self._close(logits_KV, plain_RTV[:, start])])

    def _reads_chunks(self, inputs: LlmInputs, plain_RTV: Tensor) -> bool:
        start = inputs.embeds_RTW.shape[1] - 3
        cut = LlmInputs(inputs.embeds_RTW[:, :start], inputs.mask_RT[:, :start], inputs.gated_kv)
        _, state = read_prefix(self.llm, cut)
        rows = [1, 0, 2, 2]
        copied = state.copied(rows)
        logits_KTV, _ = read_tokens(self.llm, self.ids[rows, -3:].tolist(), copied, every_position=True)
        return self._close(logits_KTV, plain_RTV[rows, start:])

    def _generates(self, inputs: LlmInputs, plain_RTV: Tensor) -> bool:
        padded, _ = self._padded(inputs)
        options = {"max_new_tokens": 3, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
        out = generate(self.llm, padded, **options)
        for row in range(ROWS):
            real_T = padded.mask_RT[row].bool()
            part = padded.select(torch.tensor([row]))
            embeds_1TW = torch.cat([part.embeds_RTW[:, real_T], self.words(out.sequences[row : row + 1, :-1])], 1)
            with part.conditioned():
                logits_TV = self.llm(inputs_embeds=embeds_1TW, use_cache=False).logits[0, -len(out.logits) :]
            if not self._close(torch.stack([step[row] for step in out.logits]), logits_TV):
                return False
        return True

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _works(self, step: Any, inputs: LlmInputs, plain_RTV: Tensor) -> bool:
        try:
            return step(inputs, plain_RTV)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the code of an LLM may raise any exception
            return False

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        """Return whether logits of any shape are equal within the tolerance."""
        found, expected = found.double(), expected.double()
        if found.shape != expected.shape:
            return False
        scale = (expected - expected.mean(-1, keepdim=True)).square().mean().sqrt()
        difference = (found - expected).square().mean().sqrt()
        return bool(difference <= (_TOLERANCE_QUANTISED if self.quantised else _TOLERANCE) * scale + 1e-7)

    @contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OsmError, torch.OutOfMemoryError) as error:
            if isinstance(error, OsmError):
                raise self._error(f"it {what}: {error}") from None
            raise
        except Exception as error:  # the code of an LLM may raise any exception
            said = textwrap.shorten(str(error) or repr(error), 200, placeholder=" ...")
            raise self._error(f"it {what}: {said}") from error

    def _error(self, what: str) -> OsmError:
        named, kind = name_of_llm(self.model), self.model.config.bridge.kind
        return OsmError(f"{named} cannot be used with the bridge {kind!r}: {what}. Choose a different LLM")


@contextmanager
def _cut_off(llm: nn.Module) -> Iterator[list[str]]:
    """Inside the `with` block, collect the names of linear layers that propagate no gradient to their input."""
    names: list[str] = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            given = any(isinstance(x, Tensor) and x.requires_grad for x in args)
            if given and isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad:
                names.append(name)

        return record

    handles = [m.register_forward_hook(hook(name)) for name, m in llm.named_modules() if hasattr(m, "in_features")]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


# -- stored results in the cache folder ------------------------------------------------------------------------------


def _sampled(value: Any) -> bytes:
    """Return evenly spaced values from a tensor as bytes."""
    if type(value) not in (Tensor, nn.Parameter):
        return b""  # a library quantized the tensor; the key contains its shape and the LLM's config instead
    flat = value.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    return flat[::step][:_SAMPLED].cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _read(path: Path) -> LlmSupport | None:
    try:
        found = parse_json(path.read_bytes())
        if set(found) == set(asdict(LlmSupport())) and all(isinstance(value, bool) for value in found.values()):
            return LlmSupport(**found)
    except (OSError, ValueError, TypeError):
        pass
    return None


def _write(path: Path, support: LlmSupport) -> None:
    """Store the result of a check. If the cache folder is not writable, the check runs again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        with replacing(path, shared=True) as file:
            file.write(json.dumps(asdict(support)).encode())
    except OSError:
        pass
