"""Few-shot prompts and what is compared, against hand computations from transformers' own GPT-2."""

import copy
import re

import pytest
import torch
from converted_models import POSITIONS, by_hand, save_pair
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from hfgpt.data.readers import RowErrors
from hfgpt.evaluation.benchmarks import BENCHMARKS, field_map
from hfgpt.evaluation.protocol import answer, ask, draw_shots
from hfgpt.generation import load
from hfgpt.tasks import ChoiceTask, TextTask, get_task
from hfgpt.tasks.encoding import token_ids
from hfgpt.tasks.scoring import log_likelihoods


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """GPT-2, its tokenizer, and the same model as gpt3."""
    gpt2, tokenizer, folder = save_pair(tmp_path_factory.mktemp("models"))
    gpt3, _ = load(folder, device="cpu")
    assert gpt3.config.model_type == "gpt3"
    return gpt2, tokenizer, gpt3


def reviews(count, start=0):
    words = ["dull", "warm", "funny", "tedious"]
    return [
        {
            "text": f"The film number {n} was {words[n % 4]}.",
            "label": "positive" if n % 4 in (1, 2) else "negative",
        }
        for n in range(start, start + count)
    ]


def examples(task, rows, name="rows"):
    return [task.example(row, f"{name}:{number}") for number, row in enumerate(rows, start=1)]


TASK = get_task("sentiment")
POOL = examples(TASK, reviews(9, start=100), "train.jsonl")
ROWS = examples(TASK, reviews(5), "test.jsonl")


# What is drawn


def test_each_row_has_its_own_examples_and_they_are_always_the_same():
    drawn = [draw_shots(POOL, row, 3, seed=0, number=number) for number, row in enumerate(ROWS)]
    assert drawn == [draw_shots(POOL, row, 3, seed=0, number=number) for number, row in enumerate(ROWS)]
    assert all(len({shot.where for shot in shots}) == 3 for shots in drawn)
    assert len({tuple(shot.where for shot in shots) for shots in drawn}) == len(ROWS)
    assert drawn != [draw_shots(POOL, row, 3, seed=1, number=number) for number, row in enumerate(ROWS)]


def test_every_training_row_is_drawn_about_equally_often():
    counts = dict.fromkeys((shot.where for shot in POOL), 0)
    for number in range(900):
        for shot in draw_shots(POOL, ROWS[0], 2, seed=0, number=number):
            counts[shot.where] += 1
    assert min(counts.values()) > 120 and max(counts.values()) < 290  # of 200 each


def test_fewer_examples_are_the_beginning_of_more():
    few, more = (draw_shots(POOL, ROWS[0], count, seed=0, number=4) for count in (2, 6))
    assert more[:2] == few


def test_a_row_is_never_its_own_example():
    pool = [*ROWS, *examples(TASK, [reviews(1)[0]], "again.jsonl")]
    for number, row in enumerate(ROWS):
        shots = draw_shots(pool, row, len(pool), seed=0, number=number)
        assert row.prompt not in [shot.prompt for shot in shots]
        assert len(shots) == len(pool) - (2 if number == 0 else 1)


def test_fixed_shots_are_one_beginning_for_all_rows(pair):
    _, tokenizer, _ = pair
    options = {"max_length": POSITIONS, "shots": 2, "pool": POOL}
    fixed = ask(tokenizer, TASK, ROWS, fixed_shots=True, **options)
    assert len({one.shots for one in fixed}) == 1
    assert len({one.shots for one in ask(tokenizer, TASK, ROWS, **options)}) > 1


# What is read


def test_a_few_shot_prompt_is_answered_examples_with_newlines_between(pair):
    _, tokenizer, _ = pair
    one = ask(tokenizer, TASK, ROWS[:1], max_length=POSITIONS, shots=2, pool=POOL)[0]
    first, second = one.shots
    assert tokenizer.decode(one.encoded[0].prompt_ids) == (
        f"Review: {first.text}\nSentiment: {first.references[0]}\n\n"
        f"Review: {second.text}\nSentiment: {second.references[0]}\n\n"
        f"Review: {ROWS[0].text}\nSentiment:"
    )


def test_a_few_shot_prompt_is_tokenized_as_one_text(pair):
    _, tokenizer, _ = pair
    one = ask(tokenizer, TASK, ROWS[:1], max_length=POSITIONS, shots=2, pool=POOL)[0]
    assert one.encoded[0].prompt_ids == tokenizer.encode(one.example.prompt, add_special_tokens=False)


def test_examples_that_do_not_fit_are_left_out_whole(pair):
    _, tokenizer, _ = pair
    asked = ask(tokenizer, TASK, ROWS, max_length=100, shots=6, pool=POOL)
    for number, one in enumerate(asked):
        assert 1 <= len(one.shots) < 6
        assert one.cut_tokens == 0
        assert tokenizer.decode(one.encoded[0].prompt_ids).startswith("Review: The film number 10")
        longest = max(map(len, one.encoded[0].choice_ids))
        assert len(one.encoded[0].prompt_ids) + longest <= 100
        # In the order they were drawn; one that was passed over would not have fitted with those before it.
        kept = []
        for shot in draw_shots(POOL, ROWS[number], len(POOL), seed=0, number=number):
            if shot in one.shots:
                kept.append(shot)
                continue
            text = "".join(shown.prompt + shown.completion + "\n\n" for shown in [*kept, shot]) + ROWS[number].prompt
            assert len(tokenizer.encode(text)) + longest > 100
        assert tuple(kept) == one.shots


@pytest.mark.parametrize("long", [0, 1, 5])
def test_an_example_that_is_too_long_by_itself_takes_no_others_away(pair, long):
    _, tokenizer, _ = pair
    endless = examples(
        TASK, [{"text": f"{n} " + "dull " * 300, "label": "negative"} for n in range(long)], "long.jsonl"
    )
    pool = [*POOL[:3], *endless]
    for one in ask(tokenizer, TASK, ROWS, max_length=POSITIONS, shots=3, pool=pool):
        assert {shot.where for shot in one.shots} == {shot.where for shot in POOL[:3]}
        assert one.cut_tokens == 0


def test_a_full_context_ends_the_drawing(pair, monkeypatch):
    _, tokenizer, _ = pair
    drawn = []
    monkeypatch.setattr("hfgpt.evaluation.protocol.permute", lambda index, *_: drawn.append(index) or index)
    long = {"text": "dull " * 30, "label": "negative"}
    pool = examples(TASK, [{**long, "text": f"{n} {long['text']}"} for n in range(500)], "train.jsonl")
    (one,) = ask(tokenizer, TASK, ROWS[:1], max_length=POSITIONS, shots=100, pool=pool)
    assert 1 <= len(one.shots) < 10 and 64 < len(drawn) < 100


def test_an_example_is_tokenized_by_itself_once(pair, monkeypatch):
    _, tokenizer, _ = pair
    texts = []

    def counting(tokenizer, text):
        texts.append(text)
        return token_ids(tokenizer, text)

    monkeypatch.setattr("hfgpt.evaluation.protocol.token_ids", counting)
    for max_length in (POSITIONS, 100):
        texts.clear()
        ask(tokenizer, TASK, ROWS * 6, max_length=max_length, shots=3, pool=POOL)
        # Each example alone and behind itself; of each row its prompt, and two choices.
        assert len(texts) <= 2 * len(POOL) + 3 * len(ROWS * 6)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("lambada", {"text": "LONG on the red mat"}),
        ("hellaswag", {"activity_label": "Cake", "ctx": "LONG on the red", "endings": ["mat", "dog"], "label": 0}),
        ("piqa", {"goal": "LONG on the red", "sol1": "mat", "sol2": "dog", "label": 0}),
        (
            "openbookqa",
            {
                "question_stem": "LONG on the red",
                "choices": {"text": ["mat", "dog"], "label": ["A", "B"]},
                "answerKey": "A",
            },
        ),
        (
            "storycloze",
            {
                **{f"InputSentence{n}": "LONG" for n in (1, 2, 3)},
                "InputSentence4": "on the red",
                "RandomFifthSentenceQuiz1": "mat",
                "RandomFifthSentenceQuiz2": "dog",
                "AnswerRightEnding": 1,
            },
        ),
        ("winogrande", {"sentence": "LONG on the red _ was he.", "option1": "mat", "option2": "dog", "answer": "1"}),
        (
            "kobest-hellaswag",
            {"context": "LONG on the red", **{f"ending_{n}": "mat" for n in (1, 2, 3, 4)}, "label": 0},
        ),
        (
            "kobest-copa",
            {"premise": "LONG on the red", "question": "결과", "alternative_1": "a", "alternative_2": "b", "label": 0},
        ),
    ],
)
@pytest.mark.parametrize("shots", [0, 1])
def test_a_long_text_keeps_the_words_that_its_answer_goes_on_from(pair, name, row, shots):
    _, tokenizer, _ = pair
    benchmark = BENCHMARKS[name]
    task = benchmark.task_for(shots)
    long = {
        key: value.replace("LONG", "words " * 150) if isinstance(value, str) else value for key, value in row.items()
    }
    example = field_map(benchmark).example(long, task, "rows:1")
    pool = [field_map(benchmark).example({**row, next(iter(row)): row[next(iter(row))] + " x"}, task, "train:1")]
    one = ask(tokenizer, task, [example], max_length=POSITIONS, shots=shots, pool=pool)[0]
    assert one.cut_tokens > 0 and one.shots == ()
    for encoded in one.encoded:
        read = tokenizer.decode(encoded.prompt_ids)
        assert "on the red" in read[-60:]
        assert read.endswith(task.prompt.rpartition("}")[2]) and len(encoded.prompt_ids) <= POSITIONS
    assert ("Fill in blank:" in tokenizer.decode(one.encoded[0].prompt_ids)) == (name == "lambada" and shots == 1)


def test_a_row_that_alone_is_too_long_is_cut_and_has_no_examples(pair):
    _, tokenizer, _ = pair
    long = examples(TASK, [{"text": "dull " * 200, "label": "negative"}])
    one = ask(tokenizer, TASK, long, max_length=60, shots=2, pool=POOL)[0]
    assert one.shots == () and one.cut_tokens > 100


def test_a_row_whose_prompt_has_no_room_is_counted_by_file_and_line(pair):
    _, tokenizer, _ = pair
    errors = RowErrors()
    assert ask(tokenizer, TASK, ROWS[:2], max_length=8, errors=errors) == []
    assert errors.count == 2 and errors.examples[1].startswith("test.jsonl:2: prompt and answer take")
    with pytest.raises(ValueError, match=r"test\.jsonl:1"):
        ask(tokenizer, TASK, ROWS[:2], max_length=8)


def test_more_shots_than_training_rows_are_refused(pair):
    _, tokenizer, _ = pair
    with pytest.raises(ValueError, match=r"10 shots .* there are 9"):
        ask(tokenizer, TASK, ROWS, max_length=POSITIONS, shots=10, pool=POOL)


# What is compared: each by hand, from the logits of transformers' GPT-2


@pytest.mark.parametrize("shots", [0, 1, 3])
@pytest.mark.parametrize("fixed_shots", [False, True])
def test_choices_are_compared_by_likelihood_per_token(pair, shots, fixed_shots):
    gpt2, tokenizer, gpt3 = pair
    asked = ask(tokenizer, TASK, ROWS, max_length=POSITIONS, shots=shots, pool=POOL, seed=3, fixed_shots=fixed_shots)
    predictions = answer(gpt3, tokenizer, TASK, asked, max_batch_tokens=300, progress=False)
    for one, prediction, row in zip(asked, predictions, ROWS):
        assert len(one.shots) == shots
        before = "".join(f"Review: {s.text}\nSentiment: {s.references[0]}\n\n" for s in one.shots)
        scores = []
        for label in ("negative", "positive"):
            total, tokens, _ = by_hand(gpt2, tokenizer, f"{before}Review: {row.text}\nSentiment:", f" {label}")
            assert tokens > 1
            scores.append(total / tokens)
        assert prediction.scores == pytest.approx(scores, abs=1e-5)
        assert prediction.label == scores.index(max(scores))
        assert prediction.text == ["negative", "positive"][prediction.label]


def test_arc_is_normalized_by_the_unconditional_probability(pair):
    gpt2, tokenizer, gpt3 = pair
    task = BENCHMARKS["arc-easy"].task
    assert isinstance(task, ChoiceTask) and task.normalization == "unconditional"
    choices = ["in the film", "a warm film of 1816", "music"]
    rows = examples(task, [{"question": f"Where is {n}?", "choices": choices, "answer": n % 3} for n in range(4)])
    pool = examples(task, [{"question": f"Who is {n}?", "choices": choices, "answer": n % 3} for n in range(5)])
    asked = ask(tokenizer, task, rows, max_length=POSITIONS, shots=2, pool=pool)
    for one, prediction in zip(asked, answer(gpt3, tokenizer, task, asked, progress=False)):
        before = "".join(f"{shot.before}{shot.text}{shot.after} {shot.references[0]}\n\n" for shot in one.shots)
        assert before.count("Question: Who is") == 2
        scores = []
        for choice in choices:
            total, _, _ = by_hand(gpt2, tokenizer, f"{before}Question: {one.row.text}\nAnswer:", f" {choice}")
            alone, _, _ = by_hand(gpt2, tokenizer, "Answer:", f" {choice}")
            scores.append(total - alone)
        assert prediction.scores == pytest.approx(scores, abs=1e-5)
        assert prediction.label == scores.index(max(scores))


@pytest.mark.parametrize("shots", [0, 2])
def test_winogrande_compares_the_ending_after_each_option(pair, shots):
    gpt2, tokenizer, gpt3 = pair
    benchmark = BENCHMARKS["winogrande"]
    raw = [
        {
            "sentence": f"The film had {n} reviews but the music had none because the _ was dull.",
            "option1": "film",
            "option2": "music number two",
            "answer": str(1 + n % 2),
        }
        for n in range(8)
    ]
    rows = examples(benchmark.task, [benchmark.adapt(row) for row in raw])
    asked = ask(tokenizer, benchmark.task, rows[:4], max_length=POSITIONS, shots=shots, pool=rows[4:])
    predictions = answer(gpt3, tokenizer, benchmark.task, asked, progress=False)
    for n, (one, prediction) in enumerate(zip(asked, predictions)):
        before = "".join(
            raw[int(shot.where.split(":")[1]) - 1]["sentence"].replace("_", shot.references[0]) + "\n"
            for shot in one.shots
        )
        start = f"{before}The film had {n} reviews but the music had none because the"
        scores = [
            by_hand(gpt2, tokenizer, f"{start} {option}", " was dull.")[0] for option in ("film", "music number two")
        ]
        assert prediction.scores == pytest.approx(scores, abs=1e-5)
        assert prediction.label == scores.index(max(scores))
        assert one.row.label == n % 2
        assert one.row.completion == f" {one.row.references[0]} was dull."


def test_winogrande_scores_the_ending_after_options_that_begin_the_sentence(pair):
    gpt2, tokenizer, gpt3 = pair
    benchmark = BENCHMARKS["winogrande"]
    raw = {"sentence": "_ was dull.", "option1": "The film", "option2": "Music", "answer": "1"}
    row = field_map(benchmark).example(raw, benchmark.task, "rows:1")
    before = field_map(benchmark).example({**raw, "sentence": "So _ was warm."}, benchmark.task, "train:1")
    for shots, start in ((0, ""), (1, "So The film was warm.\n")):
        asked = ask(tokenizer, benchmark.task, [row], max_length=POSITIONS, shots=shots, pool=[before])
        (found,) = answer(gpt3, tokenizer, benchmark.task, asked, progress=False)
        scores = [by_hand(gpt2, tokenizer, start + option, " was dull.")[0] for option in ("The film", "Music")]
        assert found.scores == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("shots", [0, 2])
def test_lambada_is_right_where_every_token_of_the_last_word_is_the_likeliest(pair, shots):
    gpt2, tokenizer, gpt3 = pair
    benchmark = BENCHMARKS["lambada"]
    task = benchmark.task_for(shots)
    pool = examples(task, [{"context": f"Review {n} is", "word": "dull"} for n in range(3)])
    rows = examples(task, [{"context": f"{n} films {n % 7} in {n % 11}", "word": "tedious"} for n in range(300)])
    options = {"max_length": POSITIONS, "shots": shots, "pool": pool, "fixed_shots": True}
    right: list[int] = []
    # The word that the model itself would go on with, where it would go on with a word.
    for number, one in enumerate(ask(tokenizer, task, rows, **options)):
        own = gpt2(torch.tensor([one.encoded[0].prompt_ids])).logits[0, -1].argmax()
        word = tokenizer.decode(own)
        if re.fullmatch(r" \w\w+", word):
            rows[number] = task.example({"context": one.row.text, "word": word.strip()})
            right.append(number)
    others = [number for number in range(len(rows)) if number not in right]
    rows = [rows[number] for number in [*right[:5], *others[:3]]]
    asked = ask(tokenizer, task, rows, **options)
    predictions = answer(gpt3, tokenizer, task, asked, progress=False)
    found = []
    for one, prediction in zip(asked, predictions):
        before = "".join(f"Fill in blank:\n{shot.text} ____. -> dull\n\n" for shot in one.shots)
        prompt = f"Fill in blank:\n{one.row.text} ____. ->" if shots else one.row.text
        total, _, greedy = by_hand(gpt2, tokenizer, before + prompt, f" {one.row.references[0]}")
        assert prediction.scores == pytest.approx([total], abs=1e-4)
        assert (prediction.text == one.row.references[0]) == greedy
        found.append(greedy)
    assert found.count(True) == len(right[:5]) and (right or shots)


@pytest.mark.parametrize("name", ["lambada", "winogrande", "triviaqa", "piqa"])
def test_a_model_whose_scores_are_no_numbers_has_no_answers(pair, name):
    _, tokenizer, gpt3 = pair
    task = BENCHMARKS[name].task
    row = {
        "lambada": {"context": "A warm", "word": "film"},
        "winogrande": {"before": "The", "options": ["film", "music"], "ending": " was dull.", "answer": 1},
        "triviaqa": {"question": "Who?", "answers": ["Mary"]},
        "piqa": {"goal": "A film.", "solutions": ["See it.", "Eat it."], "label": 0},
    }[name]
    asked = ask(tokenizer, task, examples(task, [row]), max_length=POSITIONS)
    broken = copy.deepcopy(gpt3)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"of 1 of 1 rows are not numbers \(first: rows:1\)"):
        answer(broken, tokenizer, task, asked, progress=False)


def test_a_word_is_scored_as_in_running_text_by_tokenizers_that_mark_beginnings(pair, monkeypatch):
    _, _, gpt3 = pair
    bare = Tokenizer(models.BPE(unk_token="<unk>"))
    # As Llama 2's: a mark more before a text that begins with a space.
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    text = "A warm film of 1816."
    bare.train_from_iterator(text.split() * 9, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>")
    asked_for = []

    def noting(model, prompts, completions, **options):
        asked_for.extend(prompt + completion for prompt, (completion,) in zip(prompts, completions))
        return log_likelihoods(model, prompts, completions, **options)

    monkeypatch.setattr("hfgpt.evaluation.protocol.log_likelihoods", noting)
    task = BENCHMARKS["lambada"].task
    rows = examples(task, [{"context": "A warm", "word": "film"}, {"context": "A warm film of", "word": "1816."}])
    answer(gpt3, tokenizer, task, ask(tokenizer, task, rows, max_length=POSITIONS), progress=False)
    assert asked_for == [token_ids(tokenizer, row.prompt + row.completion) for row in rows]


def test_free_text_is_written_by_four_beams_with_the_papers_length_penalty(pair):
    gpt2, tokenizer, gpt3 = pair
    task = BENCHMARKS["triviaqa"].task
    assert isinstance(task, TextTask) and (task.num_beams, task.length_penalty) == (4, 0.6)
    rows = examples(task, [{"question": f"Who wrote {n}?", "answers": ["Mary"]} for n in range(3)])
    pool = examples(task, [{"question": f"Where is {n}?", "answers": ["Geneva"]} for n in range(4)])
    asked = ask(tokenizer, task, rows, max_length=POSITIONS, shots=2, pool=pool)
    predictions = answer(gpt3, tokenizer, task, asked, progress=False)
    for one, prediction in zip(asked, predictions):
        before = "".join(f"Q: {shot.text}\n\nA: Geneva\n\n" for shot in one.shots)
        ids = torch.tensor([tokenizer.encode(f"{before}Q: {one.row.text}\n\nA:")])
        written = gpt2.generate(
            ids,
            max_new_tokens=24,
            num_beams=4,
            length_penalty=0.6,
            do_sample=False,
            stop_strings=["\n"],
            tokenizer=tokenizer,
        )
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert prediction.text == text.split("\n")[0].strip()
