"""Attention in blocks beside torch's own."""

from typing import Any

import pytest
import torch
from edge_rag.train.attention import BLOCK, attend, use_blocks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at names of its own arguments


def tensors(tokens: int, heads: int = 6, shared: int = 2, rows: int = 2, width: int = 8) -> list[Any]:
    draw = torch.Generator().manual_seed(tokens)
    return [torch.randn(rows, n, tokens, width, generator=draw, requires_grad=True) for n in (heads, shared, shared)]


def theirs(query: Any, key: Any, value: Any, mask: Any) -> Any:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )


def branches(tokens: int, rows: int) -> Any:
    """A prompt of half of the tokens, and two answers that do not see each other; the second row is padded on its left."""
    segments = torch.zeros(rows, tokens, dtype=torch.long)
    segments[:, tokens // 2 :] = 1
    segments[:, tokens - tokens // 4 :] = 2
    segments[1:, : tokens // 5] = -1
    seen, seeing = segments[:, None, :], segments[:, :, None]
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return (causal & ((seen == 0) | (seen == seeing)))[:, None]


@pytest.mark.parametrize("tokens", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 88])
@pytest.mark.parametrize("heads, shared", [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_attend_as_torch_does(tokens: int, heads: int, shared: int, masked: bool) -> None:
    given = tensors(tokens, heads, shared)
    mask = branches(tokens, 2) if masked else None
    ours, expected = attend(*given, mask, 8**-0.5), theirs(*given, mask)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    found, wanted = torch.autograd.grad(ours, given, towards), torch.autograd.grad(expected, given, towards)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-3)


def test_bfloat16_stays_near_32_bits() -> None:
    given = tensors(BLOCK + 50)
    halves = [each.detach().bfloat16().requires_grad_() for each in given]
    ours, expected = attend(*halves, None, 8**-0.5), theirs(*given, None)
    assert (ours.float() - expected).abs().max() < 0.05
    found, wanted = torch.autograd.grad(ours.sum(), halves), torch.autograd.grad(expected.sum(), given)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(one.float().flatten(), other.flatten(), dim=0) > 0.999


def test_padding_that_sees_nothing_spoils_nothing() -> None:
    query, key, value = tensors(BLOCK + 9)
    mask = torch.ones(BLOCK + 9, BLOCK + 9, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    mask[1, :, :, :7] = False  # the second row's first seven tokens are seen by none, themselves included
    out = attend(query, key, value, mask, 1.0)
    assert out.isfinite().all()
    assert torch.autograd.grad(out[1, :, 7:].sum(), value)[0][1, :, :7].abs().max() == 0


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_a_network_computes_the_same_with_blocks_and_with_keys_from_before(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.randint(0, 50, (2, 300))
    padded = torch.ones_like(tokens)
    padded[1, :40] = 0
    before = network(input_ids=tokens, attention_mask=padded).logits
    use_blocks(network)
    after = network(input_ids=tokens, attention_mask=padded)
    torch.testing.assert_close(after.logits[padded == 1], before[padded == 1], atol=1e-4, rtol=1e-4)
    more = network(
        input_ids=tokens[:, :1],
        attention_mask=torch.cat([padded, padded[:, -1:]], 1),
        past_key_values=after.past_key_values,
    )
    whole = network(
        input_ids=torch.cat([tokens, tokens[:, :1]], 1), attention_mask=torch.cat([padded, padded[:, -1:]], 1)
    )
    torch.testing.assert_close(more.logits[:, -1], whole.logits[:, -1], atol=1e-4, rtol=1e-4)
