"""Sentiment: is a review positive or negative? In English and Korean."""

from .base import ChoiceTask


SENTIMENT = {
    "en": ChoiceTask(
        name="sentiment",
        prompt="Review: {text}\nSentiment:",
        choices={"negative": " negative", "positive": " positive"},
    ),
    "ko": ChoiceTask(
        name="sentiment-ko",
        prompt="리뷰: {text}\n감정:",
        choices={"negative": " 부정", "positive": " 긍정"},
    ),
}
