"""Translation between English and Korean, French or German, both ways.

A row's fields are named by their languages, so that the same rows serve both directions.
"""

from .base import TextTask


NAMES = {"en": "English", "ko": "Korean", "fr": "French", "de": "German"}
KOREAN_NAMES = {"en": "영어", "ko": "한국어", "fr": "프랑스어", "de": "독일어"}


def _translation(source: str, target: str) -> TextTask:
    # Asked in the language of the source.
    names = KOREAN_NAMES if source == "ko" else NAMES
    return TextTask(
        name=f"translation-{source}-{target}",
        prompt=f"{names[source]}: {{{source}}}\n{names[target]}:",
        target_field=target,
        # Words of Korean carry particles: BLEU over characters.
        metrics=["chrf", "bleu_char" if target == "ko" else "bleu", "exact_match"],
        max_new_tokens=128,
    )


TRANSLATION = {
    f"{source}-{target}": _translation(source, target)
    for other in ("ko", "fr", "de")
    for source, target in (("en", other), (other, "en"))
}
