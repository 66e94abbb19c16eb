"""Perplexity over moving windows, against a token-by-token computation."""

import copy
import math

import pytest
import torch
from converted_models import TEXTS, save_pair
from helpers import write_jsonl
from transformers import AutoTokenizer

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.data.packing import TokenStream
from hfgpt.data.readers import SourceConfig
from hfgpt.evaluation.perplexity import perplexity_of, total_loss
from hfgpt.generation import load


WINDOW = 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    gpt2, tokenizer, folder = save_pair(tmp_path_factory.mktemp("models"))
    return gpt2, tokenizer, load(folder, device="cpu")[0]


def token_by_token(gpt2, ids, stride, start_id):
    """Each token once, after what its window has before it: the last `WINDOW` tokens up to the window's end."""
    read, total = [start_id, *ids], 0.0
    for place, token in enumerate(ids):
        # The end of the window that first holds this token, as a number of tokens read.
        over = max(place + 1 - WINDOW, 0)
        end = min(WINDOW + math.ceil(over / stride) * stride, len(ids))
        context = read[max(end - WINDOW, 0) : place + 1]
        with torch.no_grad():
            total -= torch.log_softmax(gpt2(torch.tensor([context])).logits[0, -1].double(), -1)[token].item()
    return total


@pytest.mark.parametrize("tokens", [5, 16, 17, 50])
@pytest.mark.parametrize("stride", [1, 7, 16])
def test_each_token_is_scored_once_in_its_window(pair, tokens, stride):
    gpt2, tokenizer, gpt3 = pair
    ids = torch.randint(2, len(tokenizer), (tokens,), generator=torch.Generator().manual_seed(tokens))
    found = total_loss(gpt3, ids, WINDOW, stride, tokenizer.eos_token_id, progress=False)
    assert found == pytest.approx(token_by_token(gpt2, ids.tolist(), stride, tokenizer.eos_token_id), abs=1e-3)


def test_documents_are_one_stream_with_the_end_of_text_between(pair, tmp_path):
    gpt2, tokenizer, gpt3 = pair
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS[:2]])
    found = perplexity_of(gpt3, tokenizer, path, progress=False)
    end = tokenizer.eos_token_id
    ids = [id for text in TEXTS[:2] for id in [*tokenizer.encode(text), end]]
    with torch.no_grad():
        logits = gpt2(torch.tensor([[end, *ids[:-1]]])).logits[0].double()
    total = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
    text_bytes = sum(len(text.encode()) for text in TEXTS[:2])
    assert found.tokens == len(ids) and found.documents == 2 and found.bytes == text_bytes
    assert found.loss == pytest.approx(total / len(ids), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / len(ids)), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / text_bytes, abs=1e-5)
    assert (found.window, found.stride) == (
        gpt3.config.max_position_embeddings,
        gpt3.config.max_position_embeddings // 2,
    )


def test_a_text_file_and_rows_of_another_field(pair, tmp_path):
    _, tokenizer, gpt3 = pair
    (tmp_path / "one.txt").write_text(TEXTS[0], encoding="utf-8")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"review": TEXTS[0]}, {"other": 1}])
    plain = perplexity_of(gpt3, tokenizer, str(tmp_path / "one.txt"), progress=False)
    source = SourceConfig(path=str(rows), text_field="review")
    named = perplexity_of(gpt3, tokenizer, source, progress=False)
    assert named.loss == pytest.approx(plain.loss, abs=1e-6)
    assert plain.bad_rows == 0 and named.bad_rows == 1 and "rows.jsonl:2: no field `review`" in named.bad_examples[0]


def test_a_prepared_corpus_is_its_held_out_split(corpus):
    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    torch.manual_seed(0)
    config = GPT3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = GPT3ForCausalLM(config).eval()
    found = perplexity_of(model, tokenizer, corpus, stride=64, progress=False)
    stream = TokenStream(corpus, "validation")
    assert (found.tokens, found.bytes) == (len(stream), stream.info["bytes"])
    assert found.perplexity == pytest.approx(len(tokenizer), rel=0.05)  # it has learnt nothing
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) * found.tokens / found.bytes)
    other = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    other.add_tokens(["film"])
    with pytest.raises(ValueError, match="another tokenizer"):
        perplexity_of(model, other, corpus, progress=False)


@pytest.mark.parametrize("stride", [0, 193])
def test_a_stride_past_the_window_is_refused(pair, tmp_path, stride):
    _, tokenizer, gpt3 = pair
    (tmp_path / "one.txt").write_text(TEXTS[0], encoding="utf-8")
    with pytest.raises(ValueError, match="from 1 to the model's 192 positions"):
        perplexity_of(gpt3, tokenizer, tmp_path / "one.txt", stride=stride, progress=False)


def test_no_text_is_no_perplexity(pair, tmp_path):
    _, tokenizer, gpt3 = pair
    path = write_jsonl(tmp_path / "rows.jsonl", [{"other": 1}])
    with pytest.raises(ValueError, match=r"No text in rows\.jsonl \(1 malformed"):
        perplexity_of(gpt3, tokenizer, path, progress=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_no_perplexity(pair, tmp_path, bad):
    _, tokenizer, gpt3 = pair
    (tmp_path / "one.txt").write_text(TEXTS[0], encoding="utf-8")
    broken = copy.deepcopy(gpt3)
    with torch.no_grad():
        broken.get_output_embeddings().weight[0] = bad
    with pytest.raises(ValueError, match=r"loss is not a number \((nan|inf)\).*`learning_rate`"):
        perplexity_of(broken, tokenizer, tmp_path / "one.txt", progress=False)
