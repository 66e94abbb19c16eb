import pytest
import torch
from transformers import AutoTokenizer

from hfgpt.generation import generate, load


@pytest.fixture(scope="module")
def loaded(pretrained):
    return load(pretrained, device="cpu")


def test_what_is_streamed_is_what_is_returned(loaded):
    pieces = []
    text = generate(*loaded, "The film was", max_new_tokens=40, write=pieces.append, do_sample=True, seed=0)
    assert "".join(pieces) == text
    assert len(pieces) > 1


def test_korean_streams_whole_characters(loaded):
    """A character of several byte tokens never comes out in halves."""
    model, tokenizer = loaded
    pieces = []
    ids = tokenizer("감동 그 자체", return_tensors="pt").input_ids
    assert ids.shape[1] > 6  # the tokenizer has seen no Korean: bytes
    text = generate(model, tokenizer, "감동 그 자체", max_new_tokens=10, write=pieces.append, do_sample=True, seed=0)
    assert "".join(pieces) == text


def test_an_empty_prompt_starts_a_document(loaded):
    assert isinstance(generate(*loaded, "", max_new_tokens=3), str)


def test_the_default_length_stays_within_the_positions(loaded):
    model, tokenizer = loaded
    prompt = "The film was dull and the story was dull and the cast was dull and the camera work " * 2
    used = len(AutoTokenizer.from_pretrained(model.name_or_path)(prompt).input_ids)
    assert 0 < model.config.max_position_embeddings - used < 64
    assert generate(model, tokenizer, prompt, min_new_tokens=4)


def test_the_models_precision_is_kept(pretrained, tmp_path):
    model, tokenizer = load(pretrained, device="cpu")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu")[0].dtype == torch.bfloat16


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("device", ["foo", "cuda:99", ""])
def test_a_device_that_is_not_here_is_named(pretrained, device):
    with pytest.raises(ValueError, match=f"`--device {device}` cannot be used here .*: give cpu"):
        load(pretrained, device=device)
