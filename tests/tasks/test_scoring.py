"""Scoring equals one sequence at a time, whatever is shared, padded and cut into batches."""

import logging
from itertools import pairwise

import pytest
import torch
from small_models import KINDS, POSITIONS, make_model, make_tokenizer, random_ids
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from hfgpt.tasks import ChoiceTask, Example, TextTask, scoring
from hfgpt.tasks.encoding import Encoded, continuation_ids, encode, token_ids
from hfgpt.tasks.scoring import (
    classify,
    find_spans,
    generate_texts,
    log_likelihoods,
    predict,
    span_labels,
)


@pytest.fixture
def forwards(monkeypatch):
    """Shapes of the ids that a model is given, in order."""

    def watch(model):
        shapes, forward = [], model.forward

        def watched(input_ids, **kwargs):
            shapes.append(tuple(input_ids.shape))
            return forward(input_ids=input_ids, **kwargs)

        monkeypatch.setattr(model, "forward", watched)
        return shapes

    return watch


def score(model, prompts, choices, **options):
    return log_likelihoods(model, prompts, choices, pad_token_id=0, progress=False, **options)


@torch.no_grad()
def brute_force(model, prompt: list[int], choice: list[int]) -> tuple[float, bool]:
    log_probs = model(torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    tokens = torch.tensor(choice)
    return float(log_probs[range(len(choice)), tokens].sum()), bool((log_probs.argmax(-1) == tokens).all())


def check(model, prompts, choices, **options):
    found = score(model, prompts, choices, **options)
    assert [len(row) for row in found] == [len(row) for row in choices]
    for prompt, row, likelihoods in zip(prompts, choices, found):
        for choice, likelihood in zip(row, likelihoods):
            total, greedy = brute_force(model, prompt, choice)
            assert likelihood.total == pytest.approx(total, abs=1e-4, rel=1e-5)
            assert likelihood.total / likelihood.tokens == pytest.approx(total / len(choice), abs=1e-5, rel=1e-5)
            assert (likelihood.tokens, likelihood.greedy) == (len(choice), greedy)
    return found


SHOTS = random_ids(30, seed=9)[0]
PROMPTS = {
    "of any length": random_ids(40, 1, 7, 23, 23, 55),
    "of one token": [[5], [6], [7]],
    "with the same shots": [SHOTS + ids for ids in random_ids(5, 1, 20, 12, 5, 3, seed=4)],
    "with two sets of shots": [SHOTS[: 30 - i % 2] + ids for i, ids in enumerate(random_ids(5, 9, 20, 12, 5, 3))],
    "the same twice": [SHOTS, SHOTS],
    "one within another": [SHOTS, SHOTS[:20], [*SHOTS[:20], 3]],
}
CHOICES = {
    "one token": lambda count: [[[1], [2], [3]]] * count,
    "many tokens": lambda count: [random_ids(3, 1, 8, 2, seed=index) for index in range(count)],
    "two": lambda count: [random_ids(*range(2, 4), seed=index) for index in range(count)],
    "one or none": lambda count: [random_ids(*[5] * (index % 2), seed=index) for index in range(count)],
}


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_each_sequence_alone(kind, prompts, choices):
    check(make_model(kind), PROMPTS[prompts], CHOICES[choices](len(PROMPTS[prompts])))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("layer_types", [["sliding_attention"] * 3, ["sliding_attention"] * 2 + ["full_attention"]])
def test_bands_are_of_tokens_whatever_is_padded_and_shared(layer_types, implementation):
    model = make_model("gpt3", layer_types=layer_types, sliding_window=3, attn_implementation=implementation)
    for prompts in PROMPTS.values():
        check(model, prompts, CHOICES["many tokens"](len(prompts)))


@pytest.mark.parametrize("max_batch_tokens", [1, 30, 60, 200])
@pytest.mark.parametrize("synced_gpus", [False, True])
def test_batches_change_nothing(max_batch_tokens, synced_gpus):
    model = make_model("gpt3")
    for prompts in (PROMPTS["of any length"], PROMPTS["with the same shots"]):
        for choices in (CHOICES["many tokens"](6), CHOICES["one token"](6)):
            expected = score(model, prompts, choices)
            found = score(model, prompts, choices, max_batch_tokens=max_batch_tokens, synced_gpus=synced_gpus)
            for row, others in zip(found, expected):
                assert [one.total for one in row] == pytest.approx([other.total for other in others], abs=1e-4)


def test_what_is_greedy_is_known():
    model, prompt = make_model("gpt2"), random_ids(10)[0]
    written = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    likeliest = written[0, 10:].tolist()
    other = [likeliest[0], (likeliest[1] + 1) % 97]
    (found,) = check(model, [prompt], [[likeliest, other, likeliest[:1], other[1:]]])
    assert [likelihood.greedy for likelihood in found] == [True, False, True, False]


def test_a_prompt_is_run_once_for_all_its_choices(forwards):
    model = make_model("gpt3")
    shapes = forwards(model)
    score(model, random_ids(40, 38), [random_ids(4, 4, 4, 2, 1)] * 2)
    assert shapes == [(2, 40), (8, 3)]
    shapes.clear()
    score(model, random_ids(40, 38), [[[1], [2], [3]]] * 2)
    assert shapes == [(2, 40)]


def test_one_choice_is_run_with_its_prompt(forwards):
    model = make_model("gpt3")
    shapes = forwards(model)
    score(model, random_ids(40, 38), [random_ids(4)] * 2)
    assert shapes == [(2, 43)]


def test_shots_are_run_once_for_all_batches(forwards):
    model = make_model("gpt3")
    shapes = forwards(model)
    prompts = [SHOTS + ids for ids in random_ids(6, 5, 4, 3, seed=4)]
    score(model, prompts, [[[1], [2]]] * 4, max_batch_tokens=72)
    # Rows of one batch go on at the same column, the shorter ones from less of what was run.
    assert shapes == [(1, 30), (2, 6), (2, 4)]


def test_a_short_start_is_not_run_by_itself(forwards):
    model = make_model("gpt3")
    shapes = forwards(model)
    score(model, [SHOTS[:15] + ids for ids in random_ids(6, 5, seed=4)], [[[1], [2]]] * 2)
    assert shapes == [(2, 21)]


def test_the_longest_are_run_first(forwards):
    model = make_model("gpt3")
    shapes = forwards(model)
    score(model, random_ids(3, 40, 9, 20), [[[1], [2]]] * 4, max_batch_tokens=1)
    assert [shape[1] for shape in shapes] == [40, 20, 9, 3]


def test_a_model_whose_cache_is_no_keys_and_values_is_run_on_whole_sequences(forwards):
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4, bos_token_id=0, eos_token_id=0)
    ).eval()
    shapes = forwards(model)
    prompts = random_ids(20, 20)
    score(model, prompts, [random_ids(3, 3)] * 2)
    assert shapes == [(4, 22)]
    check(model, prompts, [random_ids(3, 3)] * 2)


@pytest.mark.parametrize(
    ("message", "choices"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "one token"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "many tokens"),
        (
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
            "one or none",
        ),
    ],
)
def test_a_batch_is_halved_where_memory_runs_out(monkeypatch, message, choices):
    model, sizes = make_model("gpt2"), []
    forward = model.forward
    # Slow beside many other tests' objects.
    monkeypatch.setattr("accelerate.utils.memory.gc.collect", lambda: None)

    def small_forward(*args, **kwargs):
        sizes.append(kwargs["attention_mask"].numel() if "attention_mask" in kwargs else 0)
        if sizes[-1] > 100:
            error = torch.OutOfMemoryError if "CUDA" in message else RuntimeError
            raise error(message)
        return forward(*args, **kwargs)

    prompts = PROMPTS["of any length"]
    expected = check(model, prompts, CHOICES[choices](len(prompts)))
    monkeypatch.setattr(model, "forward", small_forward)
    found = score(model, prompts, CHOICES[choices](len(prompts)), max_batch_tokens=1000)
    for row, others in zip(found, expected):
        for one, other in zip(row, others):
            assert one.total == pytest.approx(other.total, abs=1e-4) and one.tokens == other.tokens
    assert max(sizes) > 100


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("broken")])
def test_what_cannot_be_helped_is_raised_and_the_model_put_back(monkeypatch, error):
    model = make_model("gpt2").train()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(type(error)):
        score(model, random_ids(4, 5), [[[1], [2]]] * 2)
    assert model.training


def test_positions_are_checked_before_anything_is_run(forwards):
    model = make_model("gpt3")
    shapes = forwards(model)
    full = random_ids(POSITIONS - 3, 10)
    with pytest.raises(ValueError, match=r"Prompt 0 takes 61 tokens and its answer 4.*64 positions"):
        score(model, full, [random_ids(1, 4), random_ids(1)])
    with pytest.raises(ValueError, match=r"Prompt 1 is empty.*bos_token_id"):
        score(model, [[1], []], [[[1]], [[2]]])
    with pytest.raises(ValueError, match="Prompt 0 has a completion without tokens"):
        score(model, [[1]], [[[1], []]])
    with pytest.raises(ValueError, match="`max_batch_tokens` must be positive"):
        score(model, [[1]], [[[1]]], max_batch_tokens=0)
    assert shapes == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_and_a_long_completion_of_another_share_no_batch(kind):
    """Together their columns would go past the positions."""
    check(make_model(kind), random_ids(POSITIONS - 3, 5, 30), [random_ids(3, 2), random_ids(40, 50), random_ids(9, 9)])


def test_scores_are_the_same_again_and_the_model_is_put_back():
    model = make_model("gpt3", hidden_dropout=0.5).train()
    found = [score(model, PROMPTS["of any length"], CHOICES["many tokens"](6)) for _ in range(2)]
    assert found[0] == found[1] and model.training
    assert not any(parameter.grad_fn for parameter in model.parameters())
    score(model.eval(), [[1]], [[[2]]])
    assert not model.training


def test_nothing_to_score_is_no_error():
    assert score(make_model("gpt2"), [], []) == []
    with pytest.raises(ValueError, match="one example at least"):
        score(make_model("gpt2"), [], [], synced_gpus=True)


def test_a_process_with_fewer_prompts_runs_as_often_as_the_others(forwards, monkeypatch):
    # Another one has 5 prompts, the longest of 40 tokens.
    monkeypatch.setattr(scoring, "_largest", lambda model, value: 40 if value > 10 else 5)
    model = make_model("gpt3")
    shapes = forwards(model)
    found = score(model, random_ids(20, 12, 15), [[[1], [2]]] * 3, max_batch_tokens=80, synced_gpus=True)
    assert shapes == [(2, 20), (1, 12), (1, 12)]
    assert all(len(row) == 2 for row in found)


def test_precision_is_that_of_the_context():
    model = make_model("gpt3")
    exact = score(model, PROMPTS["of any length"], CHOICES["many tokens"](6))
    rounded = score(
        model, PROMPTS["of any length"], CHOICES["many tokens"](6), autocast=torch.autocast("cpu", torch.bfloat16)
    )
    assert exact != rounded
    for row, others in zip(exact, rounded):
        assert [one.total for one in row] == pytest.approx([other.total for other in others], rel=0.1, abs=0.5)


def test_chunks_of_positions_change_nothing(monkeypatch):
    model = make_model("gpt3")
    expected = score(model, PROMPTS["of any length"], CHOICES["many tokens"](6))
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 97 * 4 * 2)
    assert score(model, PROMPTS["of any length"], CHOICES["many tokens"](6)) == expected


# Answers


def scripted_model(kind: str, tokenizer, scripts: dict[str, str], **fields):
    """A model that, whatever it is asked, writes the script that begins with the prompt's last token.

    Each token is followed by the next one of its script: the logits are a table of tokens.
    """
    model = make_model(kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **fields)
    table = torch.zeros(len(tokenizer), len(tokenizer))
    for start, script in scripts.items():
        ids = token_ids(tokenizer, start) + token_ids(tokenizer, script)
        for token, following in pairwise(ids):
            table[token, following] = 10.0
    forward = model.forward

    def write(*args, input_ids, **kwargs):
        outputs = forward(*args, input_ids=input_ids, **kwargs)
        outputs.logits = outputs.logits * 0.0 + table[input_ids][:, -outputs.logits.shape[1] :]
        return outputs

    model.forward = write
    return model


END = "<|endoftext|>"


def ask(model, tokenizer, texts, **options):
    prompts = [token_ids(tokenizer, text) for text in texts]
    return generate_texts(model, tokenizer, prompts, progress=False, **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_end_at_the_end_of_text_or_a_stop_text(kind, num_beams):
    tokenizer = make_tokenizer()
    scripts = {"A": "bcd" + END + "z", "E": "fgh\nijk", "L": "mno다p"}
    model = scripted_model(kind, tokenizer, scripts)
    texts = ["a long way to A", "E", "x L", "A"]
    options = {"stop": ["\n", "다"], "num_beams": num_beams}
    assert ask(model, tokenizer, texts, **options) == ["bcd", "fgh", "mno", "bcd"]
    assert ask(model, tokenizer, texts, max_batch_tokens=1, **options) == ["bcd", "fgh", "mno", "bcd"]


def test_a_stop_text_of_several_tokens_ends_the_answer_at_once(forwards):
    """Each token is a byte here, and 끝 three of them, none of which is text by itself."""
    tokenizer = make_tokenizer()
    assert len(token_ids(tokenizer, "n끝p")) == len("n끝p".encode())
    model = scripted_model("gpt3", tokenizer, {"L": "mn끝pqrstuvw"})
    shapes = forwards(model)
    assert ask(model, tokenizer, ["L"], max_new_tokens=40, stop=["n끝p"]) == ["m"]
    assert len(shapes) == len(token_ids(tokenizer, "mn끝p"))
    # A text that stood in the prompt ends nothing, and the first of several that end it counts.
    assert ask(model, tokenizer, ["qr L"], stop=["r", "끝p", "qr"]) == ["mn"]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_do_not_depend_on_their_batch(kind):
    tokenizer = make_tokenizer()
    model = make_model(kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    prompts = random_ids(30, 3, 17, 8, vocab_size=len(tokenizer))
    for beams in (1, 4):
        options = {"max_new_tokens": 6, "num_beams": beams, "length_penalty": 0.6, "progress": False}
        together = generate_texts(model, tokenizer, prompts, **options)
        for prompt, answer in zip(prompts, together):
            written = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=6,
                num_beams=beams,
                do_sample=False,
                **({"length_penalty": 0.6} if beams > 1 else {}),
            )
            assert answer == tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True).strip()
        assert generate_texts(model, tokenizer, prompts, synced_gpus=True, **options) == together


def test_settings_of_the_model_do_not_leak_in_and_are_put_back(caplog):
    tokenizer = make_tokenizer()
    model = make_model("gpt3", vocab_size=len(tokenizer)).train()
    plain = ask(model, tokenizer, ["A", "The film"])
    own = GenerationConfig(
        do_sample=True, temperature=3.0, top_k=5, repetition_penalty=5.0, num_beams=2, max_length=7, eos_token_id=3
    )
    model.generation_config = own
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)
        assert ask(model, tokenizer, ["A", "The film"]) == plain
        ask(model, tokenizer, ["A"], num_beams=2, length_penalty=0.6)
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
    assert model.generation_config is own and model.training


def test_an_end_token_of_the_model_ends_an_answer_too():
    tokenizer = make_tokenizer()
    model = scripted_model("gpt2", tokenizer, {"A": "bcd"})
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, token_ids(tokenizer, "c")[0]]
    assert ask(model, tokenizer, ["A"]) == ["b"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_gets_a_shorter_answer(kind):
    tokenizer = make_tokenizer()
    model = make_model(kind, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = None
    prompts = random_ids(POSITIONS - 2, 5, POSITIONS - 1, vocab_size=len(tokenizer))
    written = []
    tokens = scoring._read_answer

    def count(tokenizer, ids, ends, stop):
        written.append(len(ids))
        return tokens(tokenizer, ids, ends, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_read_answer", count)
        patch.setattr(scoring, "_end_tokens", lambda *_: set())
        generate_texts(model, tokenizer, prompts, max_new_tokens=8, progress=False)
        assert sorted(written) == [1, 2, 8]
        # Processes that go together take all in one batch, whose longest prompt then counts.
        written.clear()
        generate_texts(model, tokenizer, prompts, max_new_tokens=8, progress=False, synced_gpus=True)
        assert written == [1, 1, 1]
    with pytest.raises(ValueError, match="64 positions"):
        generate_texts(model, tokenizer, random_ids(POSITIONS), max_new_tokens=8, progress=False)
    with pytest.raises(ValueError, match="Prompt 0 is empty"):
        generate_texts(model, tokenizer, [[]], max_new_tokens=8, progress=False)
    with pytest.raises(ValueError, match="`stop` has an empty text"):
        generate_texts(model, tokenizer, [[1]], max_new_tokens=8, stop=["\n", ""], progress=False)


def test_an_adapter_answers_as_itself():
    from peft import LoraConfig, get_peft_model

    tokenizer = make_tokenizer()
    base = make_model("gpt3", vocab_size=len(tokenizer))
    prompts = random_ids(30, 12)
    before = score(base, prompts, [random_ids(3, 4)] * 2)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    own = base.generation_config
    answers, likelihoods = ask(model, tokenizer, ["A", "The film"]), score(model, prompts, [random_ids(3, 4)] * 2)
    assert base.generation_config is own
    assert likelihoods != before
    merged = model.merge_and_unload()
    assert ask(merged, tokenizer, ["A", "The film"]) == answers
    for row, others in zip(likelihoods, score(merged, prompts, [random_ids(3, 4)] * 2)):
        assert [one.total for one in row] == pytest.approx([other.total for other in others], abs=1e-3)


# Heads


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_those_of_each_prompt_alone(kind):
    model = make_model(kind, "classification", num_labels=3)
    prompts = random_ids(30, 1, 12, 45)
    found = classify(model, prompts, pad_token_id=0, max_batch_tokens=80, progress=False)
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([prompt])).logits for prompt in prompts]).log_softmax(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    synced = classify(model, prompts, pad_token_id=0, max_batch_tokens=80, progress=False, synced_gpus=True)
    torch.testing.assert_close(synced, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("head", ["choice", "text", "classification", "span"])
def test_scores_that_are_no_numbers_are_no_answer(head, num_beams, bad):
    """Else the first choice would be taken for it, in every row."""
    tokenizer, examples, encoded = encode_qa()
    task: ChoiceTask | TextTask = TextTask(
        "qa", "{question} {context}", context_field="context", target_field="answer", num_beams=num_beams
    )
    if head in ("choice", "classification"):
        task = ChoiceTask("which", "{text}", choices={"no": " no", "yes": " yes"})
        examples = [task.example({"text": word, "label": "yes"}, f"rows:{n}") for n, word in enumerate("ABC", start=1)]
        encoded = [encode(tokenizer, example, max_length=30) for example in examples]
    head = {"choice": "lm", "text": "lm"}.get(head, head)
    model = make_model(
        "gpt3", head, vocab_size=len(tokenizer), **({"num_labels": 2} if head == "classification" else {})
    )
    assert len(predict(model, tokenizer, task, examples, encoded, head=head, progress=False)) == len(examples)
    with torch.no_grad():
        next(model.parameters())[encoded[1].prompt_ids] = bad
    with pytest.raises(ValueError, match=r"scores of \d of \d rows are not numbers \(first: \w.*`learning_rate`"):
        predict(model, tokenizer, task, examples, encoded, head=head, progress=False)


def test_a_class_needs_the_padding_token():
    model = make_model("gpt3", "classification", num_labels=2)
    with pytest.raises(ValueError, match="Prompt 1 ends in the padding token 0"):
        classify(model, [[1], [2, 0]], pad_token_id=0, progress=False)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"set `model.config.pad_token_id`"):
        classify(model, [[1], [2, 3]], pad_token_id=0, progress=False)


QA = TextTask(name="qa", prompt="Q: {question}\nP: {context}\nA:", target_field="answer", context_field="context")
ROWS = [
    {"question": "Who?", "context": "Mary Shelley wrote it in Geneva, 1816.", "answer": "Geneva"},
    {"question": "언제?", "context": "그는 감동의 리뷰를 1816년에 썼다.", "answer": ["1816년", "썼다"]},
    {"question": "Geneva?", "context": "Geneva ", "answer": "Geneva"},
]


def make_marking_tokenizer(words):
    """One that puts a mark of a space before any text, as Llama 2's, with a token for each of some words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator([words] * 9, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def encode_qa(rows=ROWS, max_length=POSITIONS, room=None):
    tokenizer = make_tokenizer()
    examples = [QA.example(row) for row in rows]
    return tokenizer, examples, [encode(tokenizer, example, max_length, room) for example in examples]


def spell(model, starts: dict[int, float], ends: dict[int, float]):
    """The model with a span head that scores tokens by their places."""

    def forward(input_ids, **kwargs):
        scores = torch.zeros(2, *input_ids.shape)
        for kind, given in enumerate((starts, ends)):
            scores[kind][:, list(given)] = torch.tensor(list(given.values()))
        return QuestionAnsweringModelOutput(start_logits=scores[0], end_logits=scores[1])

    model.forward = forward
    return model


def test_labels_are_found_again_as_the_answer():
    tokenizer, examples, encoded = encode_qa(max_length=200)
    for row, example, item in zip(ROWS, examples, encoded):
        start, end = span_labels(tokenizer, example, item)
        answer = tokenizer.decode(item.prompt_ids[start : end + 1]).strip()
        assert answer == example.references[0] == (row["answer"] if isinstance(row["answer"], str) else "1816년")
        # In the passage, not in the question, which may hold it too.
        assert start >= len(token_ids(tokenizer, example.before.rstrip()))
        model = spell(make_model("gpt3", "span", max_position_embeddings=256), {start: 1.0}, {end: 1.0})
        found = find_spans(model, tokenizer, [example], [item], max_answer_tokens=20, progress=False)
        assert found == [answer]


@pytest.mark.parametrize(("lost", "found"), [(2, True), (10, True), (11, False), (20, False)])
def test_an_answer_that_was_cut_off_has_no_label(lost, found):
    row = {
        "question": "Who?",
        "context": "Mary Shelley wrote it in Geneva in 1816 끝났다.",
        "answer": "Geneva in 1816",
    }
    tokenizer, (example,), (whole,) = encode_qa([row], max_length=200, room=2)
    (item,) = [encode(tokenizer, example, len(whole.prompt_ids) + 2 - lost, room=2)]
    assert item.cut_tokens == lost
    labels = span_labels(tokenizer, example, item)
    assert ("Geneva in 1816" in tokenizer.decode(item.prompt_ids)) == found == (labels is not None)
    if labels is not None:
        assert tokenizer.decode(item.prompt_ids[labels[0] : labels[1] + 1]).strip() == "Geneva in 1816"


def test_labels_reach_to_the_cut_by_tokenizers_that_mark_beginnings():
    """What stands behind the text begins with no mark there: it takes a token less than by itself."""
    words = "Q: Who? P: Mary Shelley wrote it in Geneva. A:"
    tokenizer = make_marking_tokenizer(words)
    task = TextTask("qa", "Q: {question} P: {context}. A:", context_field="context", target_field="answer")
    example = task.example({"question": "Who?", "context": "Mary Shelley wrote it in Geneva", "answer": "it"})
    before, after = token_ids(tokenizer, example.before.rstrip()), continuation_ids(tokenizer, example.after)
    assert len(after) < len(token_ids(tokenizer, example.after))
    item = encode(tokenizer, example, len(before) + 4 + len(after), room=0)
    assert item.cut_tokens > 0
    place = len(before) + 3
    assert tokenizer.convert_ids_to_tokens(item.prompt_ids)[place] == "▁it"
    assert span_labels(tokenizer, example, item) == (place, place)
    model = spell(make_model("gpt3", "span"), {place: 9.0}, {place: 9.0})
    assert find_spans(model, tokenizer, [example], [item], max_answer_tokens=5, progress=False) == ["it"]


def test_an_answer_begins_before_it_ends_is_short_and_stands_in_the_text():
    tokenizer, (example, *_), (item, *_) = encode_qa()
    start, end = span_labels(tokenizer, example, item)
    last = len(item.prompt_ids) - 1

    def find(starts, ends, max_answer_tokens=20):
        model = spell(make_model("gpt3", "span"), starts, ends)
        return find_spans(model, tokenizer, [example], [item], max_answer_tokens=max_answer_tokens, progress=False)

    # The best start is in the question, the best end behind the passage.
    assert find({0: 9.0, start: 5.0}, {last: 9.0, end: 5.0}) == ["Geneva"]
    # The best end comes before the best start.
    assert find({start: 5.0}, {start - 4: 2.0, end: 1.0}) == ["Geneva"]
    # The best pair is too long by one.
    fits = end - start + 1  # and the space before it is a token, which no answer begins with
    assert find({start - 2: 2.0, start: 1.0}, {end: 5.0}, max_answer_tokens=fits + 1) == ["Geneva"]
    assert find({start - 2: 2.0, start: 1.0}, {end: 5.0}, max_answer_tokens=fits + 2) != ["Geneva"]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_do_not_depend_on_their_batch(kind):
    tokenizer, examples, encoded = encode_qa()
    model = make_model(kind, "span", vocab_size=len(tokenizer))
    options = {"max_answer_tokens": 5, "progress": False}
    together = find_spans(model, tokenizer, examples, encoded, **options)
    assert together == [
        find_spans(model, tokenizer, [example], [item], **options)[0] for example, item in zip(examples, encoded)
    ]
    for example, answer in zip(examples, together):
        assert answer and answer in example.text
    assert find_spans(model, tokenizer, examples, encoded, synced_gpus=True, max_batch_tokens=9, **options) == together


def test_a_span_needs_its_own_example_and_a_fast_tokenizer():
    tokenizer, examples, encoded = encode_qa()
    with pytest.raises(ValueError, match="not this example"):
        span_labels(tokenizer, examples[0], Encoded([1, 2, 3], [], []))

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="fast tokenizer"):
        span_labels(Slow(), examples[0], encoded[0])


# All together


def choice_task(**fields) -> ChoiceTask:
    return ChoiceTask(
        name="toy", prompt="Review: {text}\nSentiment:", choices={"bad": " negative", "good": " positive!"}, **fields
    )


def encode_all(task, rows):
    tokenizer = make_tokenizer()
    examples = [task.example(row) for row in rows]
    return tokenizer, examples, [encode(tokenizer, example, POSITIONS) for example in examples]


REVIEWS = [{"text": "The film was dull", "label": "bad"}, {"text": "the music", "label": "good"}]


@pytest.mark.parametrize("normalization", ["token", "sum", "unconditional"])
def test_choices_are_compared_as_the_task_says(normalization):
    task = choice_task(normalization=normalization)
    tokenizer, examples, encoded = encode_all(task, REVIEWS)
    model = make_model("gpt3", vocab_size=len(tokenizer))
    found = predict(model, tokenizer, task, examples, encoded, progress=False)
    alone = token_ids(tokenizer, task.unconditional_prompt)
    for item, prediction in zip(encoded, found):
        expected = []
        for choice in item.choice_ids:
            total, _ = brute_force(model, item.prompt_ids, choice)
            divisor = len(choice) if normalization == "token" else 1
            without = brute_force(model, alone, choice)[0] if normalization == "unconditional" else 0.0
            expected.append(total / divisor - without)
        assert prediction.scores == pytest.approx(expected, abs=1e-4)
        assert prediction.label == expected.index(max(expected))
        assert prediction.text == task.labels[prediction.label]
    assert predict(model, tokenizer, task, examples, encoded, progress=False, synced_gpus=True) == [
        prediction.__class__(prediction.text, prediction.label, pytest.approx(prediction.scores, abs=1e-4))
        for prediction in found
    ]


def test_completions_alone_are_scored_once(forwards):
    task = choice_task(normalization="unconditional")
    tokenizer, examples, encoded = encode_all(task, REVIEWS * 4)
    model = make_model("gpt3", vocab_size=len(tokenizer))
    shapes = forwards(model)
    predict(model, tokenizer, task, examples, encoded, progress=False)
    assert shapes[-1][0] == 2


def test_a_rows_own_choice_is_named_by_its_text():
    task = ChoiceTask(name="own", prompt="Q: {q}\nA:", choices_field="options", choice=' "{choice}"')
    rows = [{"q": "a", "options": ["one", "the film", "it"], "label": 1}]
    tokenizer, examples, encoded = encode_all(task, rows)
    model = make_model("gpt2", vocab_size=len(tokenizer))
    (found,) = predict(model, tokenizer, task, examples, encoded, progress=False)
    assert found.text == rows[0]["options"][found.label] and len(found.scores) == 3


def test_each_head_answers_its_kind_of_task():
    task = choice_task()
    tokenizer, examples, encoded = encode_all(task, REVIEWS)
    model = make_model("gpt3", "classification", vocab_size=len(tokenizer), num_labels=2)
    for item, found in zip(encoded, predict(model, tokenizer, task, examples, encoded, head="classification")):
        with torch.no_grad():
            expected = model(torch.tensor([item.prompt_ids])).logits[0].log_softmax(-1)
        assert found.scores == pytest.approx(expected.tolist(), abs=1e-5)
        assert found.text == task.labels[int(expected.argmax())]
    with pytest.raises(ValueError, match="3 labels"):
        wide = make_model("gpt3", "classification", vocab_size=len(tokenizer), num_labels=3)
        predict(wide, tokenizer, task, examples, encoded, head="classification")
    with pytest.raises(ValueError, match="`head: span`"):
        predict(model, tokenizer, task, examples, encoded, head="span")

    tokenizer, examples, encoded = encode_qa()
    spans = predict(
        make_model("gpt3", "span", vocab_size=len(tokenizer)), tokenizer, QA, examples, encoded, head="span"
    )
    assert all(found.text in example.text and found.label is None for found, example in zip(spans, examples))


def test_a_text_task_stops_where_it_says():
    task = TextTask(name="free", prompt="Q: {q}\nA:", stop=["!"], max_new_tokens=9)
    tokenizer = make_tokenizer()
    examples = [task.example({"q": "a", "target": "b"})]
    encoded = [encode(tokenizer, example, POSITIONS) for example in examples]
    model = scripted_model("gpt2", tokenizer, {":": "bc\nd!e"})
    (found,) = predict(model, tokenizer, task, examples, encoded, progress=False)
    assert (found.text, found.label, found.scores) == ("bc\nd", None, ())
    (found,) = predict(model, tokenizer, task, examples, encoded, num_beams=1, progress=False)
    assert found.text == "bc\nd"


def test_examples_without_an_answer_are_asked_too():
    task = choice_task()
    tokenizer = make_tokenizer()
    example = Example("Review: ", "the film", "\nSentiment:", "", (" negative", " positive!"))
    found = predict(
        make_model("gpt2", vocab_size=len(tokenizer)),
        tokenizer,
        task,
        [example],
        [encode(tokenizer, example, POSITIONS)],
        progress=False,
    )
    assert found[0].text in task.labels
