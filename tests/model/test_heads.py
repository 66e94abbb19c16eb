"""The heads for sequences, tokens and answers, and the pipelines of transformers on all of the models."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TINY, collect_complaints, make_ids, make_model, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from hfgpt import (
    GPT3ForCausalLM,
    GPT3ForQuestionAnswering,
    GPT3ForSequenceClassification,
    GPT3ForTokenClassification,
    GPT3Model,
)


VOCAB = TINY["vocab_size"]
LIMIT = TINY["max_position_embeddings"]
PAD = 5

HEADS: dict[type, Any] = {
    GPT3ForSequenceClassification: AutoModelForSequenceClassification,
    GPT3ForTokenClassification: AutoModelForTokenClassification,
    GPT3ForQuestionAnswering: AutoModelForQuestionAnswering,
}
heads = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def make_head(head: type, **overrides: Any) -> Any:
    """A tiny model with a head, the weights of the decoder those of `make_model`, three labels unless said otherwise."""
    model = head(tiny_config(**{"num_labels": 3, "pad_token_id": PAD, **overrides}))
    lm = make_model(**{name: value for name, value in overrides.items() if name in TINY})
    model.model.load_state_dict(lm.model.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("model."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def make_text(batch: int, length: int, seed: int = 2) -> torch.Tensor:
    """Ids without the pad token."""
    ids = make_ids(batch, length, vocab_size=VOCAB - 1, seed=seed)
    return ids + (ids >= PAD)


def pad(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[index, span], mask[index, span] = row, 1
    return ids, mask


def make_labels(head: type, batch: int = 2, length: int = 20) -> dict[str, torch.Tensor]:
    if head is GPT3ForSequenceClassification:
        return {"labels": torch.arange(batch) % 3}
    if head is GPT3ForTokenClassification:
        return {"labels": make_ids(batch, length, vocab_size=3)}
    return {"start_positions": torch.arange(batch) + 3, "end_positions": torch.arange(batch) + length - 4}


def logits_of(output: Any) -> torch.Tensor:
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=-1)


def enable_checkpointing(model: Any) -> None:
    # The older name is deprecated where there is a newer one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


# Scores


@heads
def test_scores_are_a_linear_map_of_the_last_hidden_states(head):
    model, ids = make_head(head), make_text(2, 20)
    states = model.model(ids).last_hidden_state
    scores = logits_of(model(ids))
    if head is GPT3ForSequenceClassification:
        assert_same(scores, states[:, -1] @ model.score.weight.T)
        assert model.score.bias is None
    else:
        last = model.score if head is GPT3ForTokenClassification else model.qa_outputs
        assert_same(scores, states @ last.weight.T + last.bias)


@implementations
@heads
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_scored_as_each_alone(head, side, implementation):
    model = make_head(head, attn_implementation=implementation)
    rows = [make_text(1, length, seed=length)[0] for length in (1, 3, 21, 40)]
    ids, mask = pad(rows, side)
    scores = logits_of(model(ids, attention_mask=mask))
    assert scores.isfinite().all()
    for index, row in enumerate(rows):
        alone = logits_of(model(row[None]))[0]
        assert_same(scores[index] if head is GPT3ForSequenceClassification else scores[index][mask[index] == 1], alone)


def test_sequences_of_any_length_need_a_pad_token():
    model = make_head(GPT3ForSequenceClassification, pad_token_id=None)
    with pytest.raises(ValueError, match="padding token"):
        model(make_text(2, 20))
    with_pad = make_head(GPT3ForSequenceClassification)
    assert_same(model(make_text(1, 20)).logits, with_pad(make_text(1, 20)).logits)


@heads
def test_embeddings_in_place_of_ids_give_the_same_scores(head):
    model, ids = make_head(head), make_text(2, 20)
    embeddings = model.get_input_embeddings()(ids)
    assert_same(logits_of(model(inputs_embeds=embeddings)), logits_of(model(ids)))


@heads
def test_tuple_output_holds_loss_and_scores(head):
    model, ids, labels = make_head(head), make_text(2, 20), make_labels(head)
    output = model(ids, **labels)
    values = model(ids, **labels, return_dict=False)
    assert torch.equal(values[0], output.loss)
    assert torch.equal(values[1], logits_of(output) if "logits" in output else output.start_logits)


@heads
def test_hidden_states_and_attentions_are_returned(head):
    output = make_head(head, attn_implementation="eager")(
        make_text(2, 20), output_hidden_states=True, output_attentions=True
    )
    assert [states.shape for states in output.hidden_states] == [(2, 20, 32)] * 5
    assert [weights.shape for weights in output.attentions] == [(2, 4, 20, 20)] * 4


@heads
def test_scores_past_the_last_position_are_refused(head):
    with pytest.raises(ValueError, match="max_position_embeddings"):
        make_head(head)(make_text(1, LIMIT + 1))


# Losses


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_by_the_mean_reads_every_token_of_a_sequence_and_no_padding(side, tmp_path):
    model = make_head(GPT3ForSequenceClassification, classifier_pooling="mean")
    short, long = make_ids(1, 4), make_ids(1, 7)
    expected = torch.cat([model.score(model.model(ids).last_hidden_state.mean(1)) for ids in (short, long)])
    padding, at_left = torch.full((1, 3), PAD), side == "left"
    padded = torch.cat([padding, short] if at_left else [short, padding], dim=1)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, slice(3) if at_left else slice(4, None)] = 0
    output = model(torch.cat([padded, long]), attention_mask=mask, labels=torch.tensor([0, 2]))
    assert_same(output.logits, expected)
    assert_same(output.loss, nn.functional.cross_entropy(expected, torch.tensor([0, 2])))
    assert_same(model(long, return_dict=False)[0], expected[1:])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.classifier_pooling == "mean"
    assert_same(loaded(long).logits, expected[1:])


def test_pooling_by_the_mean_needs_the_mask_of_what_it_reads():
    model = make_head(GPT3ForSequenceClassification, classifier_pooling="mean")
    with pytest.raises(ValueError, match="classifier_pooling"):
        model(make_ids(2, 4), attention_mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match="last or mean"):
        tiny_config(classifier_pooling="max")


def test_loss_of_one_label_is_the_squared_error():
    model = make_head(GPT3ForSequenceClassification, num_labels=1)
    labels = torch.tensor([0.5, -1.25])
    output = model(make_text(2, 20), labels=labels)
    assert output.logits.shape == (2, 1)
    assert output.loss.item() == pytest.approx((output.logits[:, 0] - labels).square().mean().item())


def test_loss_of_one_label_among_several_is_the_cross_entropy():
    model = make_head(GPT3ForSequenceClassification)
    output = model(make_text(2, 20), labels=torch.tensor([2, 0]))
    probabilities = output.logits.softmax(dim=-1)
    expected = -(probabilities[0, 2].log() + probabilities[1, 0].log()) / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_loss_of_several_labels_at_once_is_the_binary_cross_entropy(problem_type):
    model = make_head(GPT3ForSequenceClassification, problem_type=problem_type)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = model(make_text(2, 20), labels=labels)
    there = output.logits.sigmoid()
    expected = -torch.where(labels == 1, there, 1 - there).log().mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_padded_sequences_is_that_of_each_alone():
    model = make_head(GPT3ForSequenceClassification)
    rows, labels = [make_text(1, length)[0] for length in (9, 30)], torch.tensor([2, 1])
    ids, mask = pad(rows, "right")
    alone = [model(row[None], labels=labels[index : index + 1]).loss for index, row in enumerate(rows)]
    assert_same(model(ids, attention_mask=mask, labels=labels).loss, sum(alone) / 2)


def test_loss_of_tokens_is_the_mean_cross_entropy_and_ignores_minus_100():
    model, ids = make_head(GPT3ForTokenClassification), make_text(2, 20)
    labels = make_ids(2, 20, vocab_size=3)
    labels[0, :15] = labels[1, 4] = -100
    output = model(ids, labels=labels)
    assert output.logits.shape == (2, 20, 3)
    chosen = [
        output.logits[row, place].log_softmax(-1)[labels[row, place]]
        for row, place in (labels >= 0).nonzero().tolist()
    ]
    assert len(chosen) == 5 + 19
    assert output.loss.item() == pytest.approx(-torch.stack(chosen).mean().item(), rel=1e-5)


def test_loss_of_answers_is_the_mean_over_their_ends_and_ignores_those_outside():
    model, ids = make_head(GPT3ForQuestionAnswering), make_text(2, 20)
    output = model(ids, start_positions=torch.tensor([3, 20]), end_positions=torch.tensor([6, 19]))
    assert output.start_logits.shape == output.end_logits.shape == (2, 20)
    start, end = output.start_logits.log_softmax(-1), output.end_logits.log_softmax(-1)
    expected = -(start[0, 3] + (end[0, 6] + end[1, 19]) / 2) / 2
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert model(ids, start_positions=torch.tensor([3, 2])).loss is None


# Training


@heads
def test_every_parameter_gets_a_gradient_and_the_same_with_checkpointing(head):
    ids, labels = make_text(2, 20), make_labels(head)
    gradients = []
    for checkpointing in (False, True):
        model, forwards = make_head(head, classifier_dropout=0.0).train(), []
        if checkpointing:
            enable_checkpointing(model)
        model.model.layers[1].mlp.register_forward_pre_hook(lambda *_, forwards=forwards: forwards.append(None))
        model(ids, **labels, use_cache=False).loss.backward()
        assert len(forwards) == 1 + checkpointing
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    # Adding a constant to every key of a query changes no softmax, nor does one to the scores of every place.
    without = {f"model.layers.{layer}.self_attn.k_proj.bias" for layer in range(4)}
    if head is GPT3ForQuestionAnswering:
        without |= {"model.norm.bias", "qa_outputs.bias"}
    assert {name for name, gradient in gradients[0].items() if not gradient.abs().max() > 1e-6} == without
    for name, gradient in gradients[1].items():
        assert_same(gradient, gradients[0][name])


@heads
def test_a_few_steps_lower_the_loss(head):
    torch.manual_seed(0)
    model = make_head(head, classifier_dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(make_text(2, 20), **make_labels(head)).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 3


def test_classifier_dropout_acts_in_training_alone():
    model, ids = make_head(GPT3ForTokenClassification, classifier_dropout=0.5), make_text(1, 20)
    plain = make_head(GPT3ForTokenClassification, classifier_dropout=0.0)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    torch.manual_seed(0)
    assert (model.train()(ids).logits - plain(ids).logits).abs().max() > 1e-2


@heads
def test_heads_work_in_bfloat16(head):
    model, ids = make_head(head), make_text(2, 20)
    expected = logits_of(model(ids))
    model.to(torch.bfloat16)
    output = model(ids, **make_labels(head))
    assert logits_of(output).dtype == torch.bfloat16
    assert (logits_of(output) - expected).abs().mean() < 0.05 * expected.abs().mean()
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Initial weights, saving and loading


@heads
def test_initial_weights_of_a_head_are_normal(head):
    torch.manual_seed(0)
    model = head(tiny_config(hidden_size=64, num_labels=40))
    last = model.qa_outputs if head is GPT3ForQuestionAnswering else model.score
    assert last.weight.std().item() == pytest.approx(0.02, rel=0.2)
    if last.bias is not None:
        assert (last.bias == 0).all()
    assert model.model.layers[0].mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.1)


@heads
def test_saved_head_is_loaded_by_its_auto_class_with_equal_scores_and_labels(tmp_path, head):
    names = {0: "no", 1: "maybe", 2: "yes"}
    labels = (
        {}
        if head is GPT3ForQuestionAnswering
        else {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    )
    model, ids = make_head(head, **labels), make_text(2, 20)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [head.__name__]
    loaded, info = HEADS[head].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is head
    assert not any(info.values())
    assert torch.equal(logits_of(loaded(ids)), logits_of(model(ids)))
    if labels:
        assert loaded.config.id2label == names
        assert loaded.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert type(HEADS[head].from_config(AutoConfig.from_pretrained(tmp_path))) is head


@heads
@pytest.mark.parametrize("tied", [True, False])
def test_head_is_added_to_a_pretrained_language_model(tmp_path, head, tied):
    lm, ids = make_model(tie_word_embeddings=tied), make_text(1, 20)
    lm.save_pretrained(tmp_path)
    torch.manual_seed(0)
    with collect_complaints() as complaints:
        model, info = HEADS[head].from_pretrained(tmp_path, num_labels=4, output_loading_info=True)
    new = ["qa_outputs.weight", "qa_outputs.bias"] if head is GPT3ForQuestionAnswering else ["score.weight"]
    new += ["score.bias"] * (head is GPT3ForTokenClassification)
    assert set(info["missing_keys"]) == set(new)
    assert set(info["unexpected_keys"]) == (set() if tied else {"lm_head.weight"})
    assert len(complaints) == 1 and "MISSING" in complaints[0] and all(name in complaints[0] for name in new)

    assert torch.equal(model.model(ids).last_hidden_state, lm.model(ids).last_hidden_state)
    last = model.get_parameter(new[0])
    assert last.shape == (2 if head is GPT3ForQuestionAnswering else 4, 32)
    assert last.std().item() == pytest.approx(0.02, rel=0.4)


@heads
def test_decoder_of_a_head_is_loaded_under_the_language_model(tmp_path, head):
    model, ids = make_head(head), make_text(1, 20)
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is GPT3Model
    assert not info["missing_keys"]
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    lm, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(lm) is GPT3ForCausalLM
    assert not info["missing_keys"]
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


@heads
def test_resized_vocabulary_keeps_the_scores(tmp_path, head):
    model, ids = make_head(head), make_text(2, 20)
    before = logits_of(model(ids))
    model.resize_token_embeddings(VOCAB + 7)
    assert model.config.vocab_size == VOCAB + 7
    assert torch.equal(logits_of(model(ids)), before)
    ids[0, 3] = VOCAB + 6
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].shape == (VOCAB + 7, 32)
    assert torch.equal(logits_of(HEADS[head].from_pretrained(tmp_path)(ids)), logits_of(model(ids)))


# Pipelines


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 290 words."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(["the cat sat on the mat", "a dog and a cat ran to the other mat"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=LIMIT,
        chat_template=(
            "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        ),
    )


def sizes_for(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        # Words of such a model are chance: none shall end a text.
        "eos_token_id": None,
        "bos_token_id": None,
    }


TEXTS = ["the cat", "a dog and a cat ran to the other mat", "on"]


def test_text_generation_pipeline_continues_texts_one_by_one_and_in_batches(tokenizer):
    model = make_model(**sizes_for(tokenizer))
    options = {"max_new_tokens": 12, "do_sample": False}
    with collect_complaints() as complaints:
        generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
        single = [generate(text, **options)[0]["generated_text"] for text in TEXTS]
        batch = [rows[0]["generated_text"] for rows in generate(TEXTS, batch_size=3, **options)]
        continued = [rows[0]["generated_text"] for rows in generate(TEXTS, return_full_text=False, **options)]
        sampled = generate("the", do_sample=True, num_return_sequences=3, max_new_tokens=4)
    assert complaints == []
    assert single == batch == [text + new for text, new in zip(TEXTS, continued)]
    assert len(sampled) == 3
    for text, new in zip(TEXTS, continued):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = model.generate(ids, **options)[0, ids.shape[1] :]
        assert new == tokenizer.decode(expected)


def test_text_generation_pipeline_answers_a_chat(tokenizer):
    model = make_model(**sizes_for(tokenizer))
    chat = [{"role": "user", "content": "the cat"}]
    with collect_complaints() as complaints:
        generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
        answered = generate(chat, max_new_tokens=6, do_sample=False)[0]["generated_text"]
        plain = generate("user: the cat\nassistant: ", max_new_tokens=6, do_sample=False, return_full_text=False)
    assert complaints == []
    assert answered == [*chat, {"role": "assistant", "content": plain[0]["generated_text"]}]


def test_text_generation_pipeline_loads_a_folder(tmp_path, tokenizer):
    model = make_model(**sizes_for(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"max_new_tokens": 6, "do_sample": False}
    with collect_complaints() as complaints:
        loaded = pipeline(model=str(tmp_path), task="text-generation")(TEXTS[0], **options)
    assert complaints == []
    assert loaded == pipeline("text-generation", model=model, tokenizer=tokenizer)(TEXTS[0], **options)


def test_text_classification_pipeline_names_the_likeliest_label(tokenizer):
    names = {0: "bad", 1: "fair", 2: "good"}
    model = make_head(GPT3ForSequenceClassification, **sizes_for(tokenizer), id2label=names)
    with collect_complaints() as complaints:
        classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
        results = classify(TEXTS, batch_size=3)
        every = classify(TEXTS[0], top_k=None)
    assert complaints == []
    for text, result in zip(TEXTS, results):
        probabilities = model(tokenizer(text, return_tensors="pt").input_ids).logits[0].softmax(-1)
        assert result["label"] == names[int(probabilities.argmax())]
        assert result["score"] == pytest.approx(probabilities.max().item(), rel=1e-4)
    assert sum(each["score"] for each in every) == pytest.approx(1.0)
    assert {each["label"] for each in every} == set(names.values())


def test_token_classification_pipeline_names_a_label_for_each_token(tokenizer):
    names = {0: "B", 1: "I", 2: "X"}
    model = make_head(GPT3ForTokenClassification, **sizes_for(tokenizer), id2label=names)
    with collect_complaints() as complaints:
        classify = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])
        results = classify(TEXTS, batch_size=3)
        groups = pipeline("ner", model=model, tokenizer=tokenizer, aggregation_strategy="simple")(TEXTS[1])
    assert complaints == []
    assert groups
    for text, tokens in zip(TEXTS, results):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = model(ids).logits[0].argmax(-1).tolist()
        assert [token["entity"] for token in tokens] == [names[label] for label in expected]
        assert "".join(text[token["start"] : token["end"]] for token in tokens) == text


def test_feature_extraction_pipeline_returns_the_last_hidden_states(tokenizer):
    model = make_model(**sizes_for(tokenizer)).model
    with collect_complaints() as complaints:
        features = pipeline("feature-extraction", model=model, tokenizer=tokenizer)(TEXTS)
    assert complaints == []
    for text, rows in zip(TEXTS, features):
        states = model(tokenizer(text, return_tensors="pt").input_ids).last_hidden_state
        assert_same(torch.tensor(rows), states)


def test_zero_shot_classification_pipeline_ranks_labels_by_entailment(tokenizer):
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    label2id = {name: number for number, name in names.items()}
    model = make_head(GPT3ForSequenceClassification, **sizes_for(tokenizer), id2label=names, label2id=label2id)
    with collect_complaints() as complaints:
        classify = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)
        result = classify("the cat", candidate_labels=["animals", "mats"], hypothesis_template="on {}")
    assert complaints == []
    entailments = []
    for label in ("animals", "mats"):
        ids = tokenizer("the cat", f"on {label}", return_tensors="pt").input_ids
        entailments.append(model(ids).logits[0, 2])
    expected = dict(zip(("animals", "mats"), torch.stack(entailments).softmax(-1).tolist()))
    assert dict(zip(result["labels"], result["scores"])) == pytest.approx(expected, rel=1e-4)


def test_question_answering_pipeline_is_no_longer_part_of_transformers(tokenizer):
    """The model is there for training and scoring; should the pipeline return, it deserves a test."""
    model = make_head(GPT3ForQuestionAnswering, **sizes_for(tokenizer))
    with pytest.raises(KeyError, match="question-answering"):
        pipeline("question-answering", model=model, tokenizer=tokenizer)


def test_pipeline_complains_of_a_head_it_cannot_use(tokenizer):
    """The control of the tests above: complaints of unsupported models are seen."""
    model = make_head(GPT3ForTokenClassification, **sizes_for(tokenizer))
    with collect_complaints() as complaints:
        pipeline("text-classification", model=model, tokenizer=tokenizer)
    assert any("'GPT3ForTokenClassification' is not supported" in complaint for complaint in complaints)


def test_heads_are_modules_that_peft_and_trainers_find_by_name():
    assert isinstance(make_head(GPT3ForSequenceClassification).score, nn.Linear)
    assert isinstance(make_head(GPT3ForTokenClassification).score, nn.Linear)
    assert isinstance(make_head(GPT3ForQuestionAnswering).qa_outputs, nn.Linear)
