"""Question answering in English and Korean: `qa` finds the answer in a passage, `free-qa` puts it in its own words.

The question comes before the passage: the tokens of the passage can then tell whether they answer it, as the span head
of `GPT3ForQuestionAnswering` needs, whose attention looks back alone.
"""

from .base import TextTask


PROMPTS = {
    "en": "Question: {question}\nPassage: {context}\nAnswer:",
    "ko": "질문: {question}\n지문: {context}\n답:",
}

# F1 over words; in Korean, whose words carry particles, over characters.
METRICS = {"en": ["f1", "exact_match"], "ko": ["char_f1", "f1", "exact_match"]}

QA = {
    language: TextTask(
        name="qa" if language == "en" else f"qa-{language}",
        prompt=prompt,
        target_field="answer",
        context_field="context",
        metrics=METRICS[language],
        max_new_tokens=32,
    )
    for language, prompt in PROMPTS.items()
}

FREE_QA = {
    language: TextTask(
        name="free-qa" if language == "en" else f"free-qa-{language}",
        prompt=prompt,
        target_field="answer",
        metrics=METRICS[language],
    )
    for language, prompt in PROMPTS.items()
}
