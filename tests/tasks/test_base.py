import pytest
import torch
from transformers import AutoTokenizer

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.tasks import get_task
from hfgpt.tasks.base import ChoiceTask, CompletionCollator, choice_scores, classification_metrics


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT3ForCausalLM(
        GPT3Config(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
        )
    ).eval()


PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [15] * 20]


@torch.no_grad()
def brute_force(model, prompt, choice):
    logits = model(torch.tensor([prompt + choice])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(choice)) / len(choice)


@pytest.mark.parametrize("choices", [[[1], [2], [3]], [[1, 2], [3]], [[1, 2, 3], [4, 5]]])
def test_scores_are_the_mean_log_likelihood_per_token(model, choices):
    scores = choice_scores(model, PROMPTS, choices, pad_token_id=0, batch_size=3, progress=False)
    expected = torch.tensor([[brute_force(model, prompt, choice) for choice in choices] for prompt in PROMPTS])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_a_batch_has_its_loss_on_the_completions_alone(model):
    examples = [
        {"prompt_ids": [5, 6, 7], "completion_ids": [8, 9]},
        {"prompt_ids": [10], "completion_ids": [11]},
    ]
    batch = CompletionCollator(pad_token_id=0)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [0, 0, 0, 10, 11]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 8, 9], [-100, -100, 11]]
    assert batch["logits_to_keep"] == 3
    loss = model(**batch).loss
    expected = -(2 * brute_force(model, [5, 6, 7], [8, 9]) + brute_force(model, [10], [11])) / 3
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_a_long_text_loses_its_end_and_never_the_template(pretrained):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    task = get_task("sentiment")
    ids = task.prompt_ids(tokenizer, "The film was dull. " * 50, max_length=40)
    text = tokenizer.decode(ids)
    assert len(ids) == 40
    assert text.startswith("Review: The film was dull.") and text.endswith("\nSentiment:")
    with pytest.raises(ValueError, match="`max_length`"):
        task.prompt_ids(tokenizer, "The film was dull. " * 50, max_length=3)


def test_braces_in_a_text_are_text(pretrained):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    text = "a {text} {0} }{ film"
    assert text in tokenizer.decode(get_task("sentiment").prompt_ids(tokenizer, text, max_length=60))


def test_a_prompt_needs_the_text():
    with pytest.raises(ValueError, match=r"\{text\}"):
        ChoiceTask(name="x", prompt="no place", choices={"a": " a", "b": " b"})


def test_unknown_tasks_and_languages_are_listed():
    with pytest.raises(ValueError, match="sentiment"):
        get_task("sentimental")
    with pytest.raises(ValueError, match="en, ko"):
        get_task("sentiment", "fr")


def test_metrics_of_a_known_table():
    metrics = classification_metrics([0, 0, 1, 1], [0, 1, 1, 1], num_labels=2)
    assert metrics == pytest.approx({"accuracy": 0.75, "majority_accuracy": 0.75, "macro_f1": (2 / 3 + 0.8) / 2})


def test_the_korean_task_asks_and_answers_in_korean(pretrained):
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    task = get_task("sentiment", "ko")
    ids = task.prompt_ids(tokenizer, "감동 그 자체입니다", max_length=200)
    assert tokenizer.decode(ids) == "리뷰: 감동 그 자체입니다\n감정:"
    assert [tokenizer.decode(choice) for choice in task.choice_ids(tokenizer)] == [" 부정", " 긍정"]
