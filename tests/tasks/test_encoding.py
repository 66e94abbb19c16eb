"""Examples as token ids: nothing but the text is ever cut, and the loss falls on completions alone."""

from dataclasses import replace

import pytest
import torch
from small_models import KINDS, TEXTS, make_model, make_tokenizer, random_ids
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hfgpt.tasks import Example, TextTask, get_task
from hfgpt.tasks.encoding import CompletionCollator, continuation_ids, encode, first_ids, token_ids


FILM = "The film was dull. "


def make_llama_tokenizer() -> PreTrainedTokenizerFast:
    """The small one, which begins texts as Llama 3's does."""
    plain = make_tokenizer()
    llama = PreTrainedTokenizerFast(
        tokenizer_object=type(plain.backend_tokenizer).from_str(plain.backend_tokenizer.to_str()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    llama.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", llama.bos_token_id)]
    )
    return llama


def test_prompt_completion_and_choices():
    tokenizer = make_tokenizer()
    example = get_task("sentiment").example({"text": FILM * 2, "label": "positive"})
    encoded = encode(tokenizer, example, max_length=200)
    assert tokenizer.decode(encoded.prompt_ids) == f"Review: {FILM * 2}\nSentiment:"
    assert [tokenizer.decode(choice) for choice in encoded.choice_ids] == [" negative", " positive"]
    assert encoded.completion_ids == encoded.choice_ids[1] and encoded.cut_tokens == 0


def test_free_text_ends_in_the_end_of_text():
    tokenizer = make_tokenizer()
    example = TextTask(name="x", prompt="{q}\nA:").example({"q": "a", "target": "dull"})
    ids = encode(tokenizer, example, 100).completion_ids
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[:-1]) == " dull"
    # A row to be predicted only has no answer, and so no end of one.
    assert encode(tokenizer, Example("", "a", "\nA:", ""), 100).completion_ids == []


@pytest.mark.parametrize("room", [None, 20])
def test_a_long_text_loses_its_end_and_never_the_template(room):
    tokenizer = make_tokenizer()
    example = get_task("sentiment").example({"text": FILM * 50, "label": "negative"})
    whole = encode(tokenizer, example, 10_000)
    encoded = encode(tokenizer, example, max_length=80, room=room)
    text = tokenizer.decode(encoded.prompt_ids)
    # Room for the longest choice, or as much as was asked for.
    assert len(encoded.prompt_ids) == 80 - (room or max(map(len, encoded.choice_ids)))
    assert text.startswith("Review: The film was dull.") and text.endswith("\nSentiment:")
    assert encoded.cut_tokens == len(whole.prompt_ids) - len(encoded.prompt_ids) > 0
    assert encoded.prompt_ids[:40] == whole.prompt_ids[:40]


STORY = "".join(f"And then the film number {i} was dull. " for i in range(50)) + "It was the"


@pytest.mark.parametrize("prompt", ["{text}", "Go on:\n{text}", "Story: {text}\nEnd:"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_long_text_loses_its_start_where_the_answer_goes_on_from_its_end(prompt, kind):
    tokenizer = make_tokenizer() if kind == "gpt2" else make_llama_tokenizer()
    task = TextTask(name="x", prompt=prompt, cut_side="start")
    example = task.example({"text": STORY, "target": "dull"})
    whole = encode(tokenizer, example, 10_000)
    assert tokenizer.decode(whole.prompt_ids, skip_special_tokens=True) == prompt.format(text=STORY)
    for max_length in (len(whole.prompt_ids) + len(whole.completion_ids) - 1, 80):
        encoded = encode(tokenizer, example, max_length)
        assert encoded.completion_ids == whole.completion_ids
        assert len(encoded.prompt_ids) == max_length - len(whole.completion_ids)
        before = prompt.split("{text}")[0]
        read = tokenizer.decode(encoded.prompt_ids, skip_special_tokens=True)
        assert read.startswith(before.rstrip(" ")) and read.endswith(prompt.format(text=STORY)[-40:])
        assert encoded.prompt_ids[: len(first_ids(tokenizer))] == first_ids(tokenizer)
        # Not a word between what stays: the rest of the prompt is its end.
        assert STORY.endswith(read[len(before.rstrip(" ")) :].removesuffix("\nEnd:"))
        assert encoded.cut_tokens >= 1
    assert encoded.cut_tokens > 500


def test_a_template_that_does_not_fit_is_refused_whichever_side_is_cut():
    task = TextTask(name="x", prompt="Story: {text}\nEnd:", cut_side="start")
    with pytest.raises(ValueError, match=r"stories\.jsonl:3: .*`max_length` is 8"):
        encode(make_tokenizer(), task.example({"text": STORY, "target": "dull"}, "stories.jsonl:3"), 8)


def test_a_text_that_just_fits_is_whole():
    tokenizer = make_tokenizer()
    example = get_task("sentiment").example({"text": FILM * 5, "label": "negative"})
    whole = encode(tokenizer, example, 10_000)
    length = len(whole.prompt_ids) + max(map(len, whole.choice_ids))
    assert encode(tokenizer, example, length) == whole
    assert encode(tokenizer, example, length - 1).cut_tokens == 1


def test_a_template_that_does_not_fit_is_named_by_its_row():
    tokenizer = make_tokenizer()
    example = get_task("sentiment").example({"text": FILM, "label": "negative"}, "reviews.jsonl:7")
    with pytest.raises(ValueError, match=r"reviews\.jsonl:7: .*`max_length` is 8"):
        encode(tokenizer, example, 8)


def test_the_middle_field_is_cut_where_the_task_says():
    tokenizer = make_tokenizer()
    task = TextTask(name="qa", prompt="Passage: {context}\nQuestion: {question}\nAnswer:", cut_field="context")
    example = task.example({"context": FILM * 30, "question": "Who wrote it?", "target": "Mary"})
    text = tokenizer.decode(encode(tokenizer, example, 90).prompt_ids)
    assert text.startswith(f"Passage: {FILM}") and text.endswith("\nQuestion: Who wrote it?\nAnswer:")


@pytest.mark.parametrize("text", ["a {text} {0} }{ film", "{", "감동 {그} 자체"])
def test_braces_in_a_text_are_text(text):
    tokenizer = make_tokenizer()
    encoded = encode(tokenizer, get_task("sentiment").example({"text": text, "label": "negative"}), 200)
    assert tokenizer.decode(encoded.prompt_ids) == f"Review: {text}\nSentiment:"


def test_the_korean_task_asks_and_answers_in_korean():
    tokenizer = make_tokenizer()
    example = get_task("sentiment", "ko").example({"text": "감동 그 자체입니다", "label": "positive"})
    encoded = encode(tokenizer, example, 200)
    assert tokenizer.decode(encoded.prompt_ids) == "리뷰: 감동 그 자체입니다\n감정:"
    assert [tokenizer.decode(choice) for choice in encoded.choice_ids] == [" 부정", " 긍정"]


def test_a_tokenizer_that_begins_texts_begins_prompts_and_not_completions():
    plain, llama = make_tokenizer(), make_llama_tokenizer()
    assert first_ids(plain) == []
    assert first_ids(llama) == [llama.bos_token_id]
    example = get_task("sentiment").example({"text": FILM * 20, "label": "negative"})
    for max_length in (1000, 60):
        encoded = encode(llama, example, max_length)
        ours = encode(plain, example, max_length - 1)
        assert encoded.prompt_ids == [llama.bos_token_id, *ours.prompt_ids]
        assert encoded.choice_ids == ours.choice_ids


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_its_loss_on_the_completions_alone(kind):
    model = make_model(kind)
    examples = [
        {"prompt_ids": prompt, "completion_ids": completion}
        for prompt, completion in zip(random_ids(3, 1, 20), random_ids(2, 1, 5, seed=3))
    ]
    loss = model(**CompletionCollator(pad_token_id=0)(examples)).loss
    total = count = 0
    for example in examples:
        prompt, completion = example["prompt_ids"], torch.tensor(example["completion_ids"])
        log_probs = model(torch.tensor([prompt + completion.tolist()])).logits[0].log_softmax(-1)
        total += log_probs[len(prompt) - 1 : -1].gather(-1, completion.unsqueeze(-1)).sum()
        count += len(completion)
    torch.testing.assert_close(loss, -total / count, atol=1e-5, rtol=1e-5)


def test_what_is_in_a_batch():
    batch = CompletionCollator(pad_token_id=0)(
        [{"prompt_ids": [5, 6, 7], "completion_ids": [8, 9]}, {"prompt_ids": [10], "completion_ids": [11]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [-100, -100, 11]]
    assert batch["logits_to_keep"] == 3


def test_ids_of_nothing_are_none():
    assert token_ids(make_tokenizer(), "") == []


# Completions in running text

LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def make_marking_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers of the kinds there are. The first four put a space, or its mark, before a text that has none."""
    tokenizer, alphabet, special = Tokenizer(models.BPE()), [], ["<s>", "</s>"]
    texts = TEXTS * 20
    if kind == "llama 2":
        tokenizer.model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
        texts = [word for text in texts for word in text.split()]
    elif kind.startswith("metaspace"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.split()[1])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=kind.split()[1])
    else:
        byte_level = pre_tokenizers.ByteLevel(
            add_prefix_space=kind == "byte level, prefix", use_regex=kind != "llama 3"
        )
        words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level]) if kind == "llama 3" else byte_level
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


MARKING = ["llama 2", "metaspace always", "metaspace first", "byte level, prefix"]
CONTINUATIONS = [
    " positive",
    "positive",
    " 긍정",
    "긍정",
    "\nSentiment:",
    "\n\nPassage",
    ". It",
    " (",
    "1816",
    "\tMary",
]


@pytest.mark.parametrize("prompt", ["Review: dull.", "리뷰: 감동", "Answer:", "Geneva in ("])
@pytest.mark.parametrize("kind", MARKING)
def test_a_completion_is_tokenized_as_in_running_text(kind, prompt):
    tokenizer = make_marking_tokenizer(kind)
    before = token_ids(tokenizer, prompt)
    compared = 0
    for text in CONTINUATIONS:
        whole = token_ids(tokenizer, prompt + text)
        if whole[: len(before)] == before:  # or the two have a token in common
            assert continuation_ids(tokenizer, text) == whole[len(before) :], text
            compared += 1
    assert compared >= 5
    # What this is for: by itself a text begins with one space too many.
    assert any(continuation_ids(tokenizer, text) != token_ids(tokenizer, text) for text in CONTINUATIONS)
    assert continuation_ids(tokenizer, "") == []


@pytest.mark.parametrize("kind", ["gpt 2", "llama 3", "ours"])
def test_where_texts_get_no_mark_a_completion_is_as_it_is_alone(kind):
    tokenizer = make_tokenizer() if kind == "ours" else make_marking_tokenizer(kind)
    for text in [*CONTINUATIONS, "a", "\n", "b c", " ", "  x", "{"]:
        assert continuation_ids(tokenizer, text) == token_ids(tokenizer, text)


@pytest.mark.parametrize("cut_side", ["end", "start"])
@pytest.mark.parametrize("kind", MARKING)
def test_an_example_reads_as_running_text(kind, cut_side):
    tokenizer = make_marking_tokenizer(kind)
    task = replace(get_task("sentiment"), cut_side=cut_side)
    example = task.example({"text": FILM * 20, "label": "positive"})
    whole = encode(tokenizer, example, 10_000)
    for label, choice in enumerate(example.choices):
        assert whole.prompt_ids + whole.choice_ids[label] == token_ids(tokenizer, example.prompt + choice)
    cut = encode(tokenizer, example, 60)
    assert cut.choice_ids == whole.choice_ids and len(cut.prompt_ids) <= 60 - max(map(len, cut.choice_ids))
    # What stands around the text is that of the whole, without a mark between.
    behind = continuation_ids(tokenizer, example.after)
    assert cut.prompt_ids[-len(behind) :] == whole.prompt_ids[-len(behind) :] == behind
    head = token_ids(tokenizer, example.before.rstrip(" "))
    assert cut.prompt_ids[: len(head)] == whole.prompt_ids[: len(head)] == head
    free = TextTask(name="x", prompt="{q}\nA:").example({"q": "a", "target": "dull"})
    encoded = encode(tokenizer, free, 100)
    running = token_ids(tokenizer, free.prompt + free.completion)
    assert encoded.prompt_ids + encoded.completion_ids == [*running, tokenizer.eos_token_id]
