"""Cleaning changes what it must and nothing else; rules and languages hold for Korean as for English."""

import json
import pickle
import unicodedata
from pathlib import Path

import pytest

from hfgpt.config import from_mapping
from hfgpt.data.clean import (
    LANGUAGES,
    Clean,
    CleanConfig,
    DetectLanguage,
    _identifier,
    check_languages,
    clean_text,
    count_words,
    detect_language,
    remove_boilerplate,
    why_dropped,
)
from hfgpt.data.documents import Ledger, make_document


NSMC = Path(__file__).resolve().parents[3] / "shared/data/nsmc/test.jsonl"

ENGLISH = (
    "The film follows two brothers who return to the harbour where they grew up, and it takes its time to tell why "
    "they left. The older one repairs boats. The younger one writes letters that nobody answers."
)
KOREAN = (
    "영화는 어릴 적 살던 항구로 돌아온 두 형제의 이야기를 따라가며 그들이 왜 떠났는지를 천천히 들려준다. 형은 배를 고치고 "
    "동생은 아무도 답하지 않는 편지를 쓴다. 음악이 아름답고 마지막 장면은 오래 기억에 남는다. 다시 보고 싶은 작품이다."
)
# Legitimate text with the words of notices.
PROSE = [
    "She dipped the cookies in milk while JavaScript compiled on the old laptop beside her.",
    "We use cookies and chocolate for the base of this cake.",
    "He had to log in twice before the terminal believed him, and then he subscribed to three newsletters.",
    "Copyright law changed in 1976, and with it the share of works in the public domain.",
    "Home is where the heart is.",
    "쿠키를 구울 때는 버터를 넉넉히 사용합니다.",
    "자바스크립트는 웹에서 쓰이는 언어로, 1995년에 만들어졌다.",
    "나는 로그인 화면 앞에서 한참을 망설였다.",
    "그는 신문 구독을 끊고 다음 날부터 라디오를 들었다.",
    "저작권은 창작과 함께 생긴다.",
    "이전 작품보다 검색 장면이 좋았다.",
]
NOTICES = [
    "Home | About Us | Contact",
    "Skip to main content",
    "This website uses cookies to ensure you get the best experience.",
    "We use cookies to improve your experience on our site.",
    "Accept all cookies",
    "Please enable JavaScript to view the comments.",
    "JavaScript is disabled in your browser.",
    "Subscribe to our newsletter",
    "Log in / Sign up",
    "Click to share on Facebook (Opens in new window)",
    "Share on Twitter",
    "© 2021 Example Media",
    "Copyright 2019 Example Inc. All rights reserved.",
    "Powered by WordPress",
    "로그인 | 회원가입 | 고객센터",
    "홈 > 전체메뉴",
    "본 사이트는 쿠키를 사용합니다.",
    "모든 쿠키 허용",
    "이 페이지를 보려면 자바스크립트를 활성화해 주세요.",
    "저작권자 ⓒ 예시일보, 무단 전재 및 재배포 금지",
    "<저작권자(c) 예시뉴스, 무단전재-재배포 금지>",
    "ⓒ 예시신문",
    "구독과 좋아요 부탁드립니다!",
    "로그인이 필요한 서비스입니다.",
    "페이스북 공유하기",
    "개인정보처리방침 이용약관",
    "본문 바로가기",
]


def run(step_class, texts, *arguments, source="crawl"):
    """What a step lets through, and its ledger."""
    ledger = Ledger()
    step = pickle.loads(pickle.dumps(step_class(*arguments, ledger)))
    documents = [make_document(text, str(n), source) for n, text in enumerate(texts)]
    return list(step.run(iter(documents))), step.ledger


def drops(ledger, source="crawl"):
    return {reason: numbers["documents"] for reason, numbers in ledger.dropped.get(source, {}).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\n", "a\nb\nc\n"),
        ("\ufeffone\x00\x07 two\x7f\x85", "one two"),
        ("x\ud800y\ufdd0z\uffff\U0001ffff\U0010fffe!", "xyz!"),
        (unicodedata.normalize("NFD", KOREAN), KOREAN),
        (unicodedata.normalize("NFD", KOREAN * 50), KOREAN * 50),
        ("cafe\u0301", "café"),
    ],
    ids=["newlines", "control", "noncharacters", "nfd", "nfd-long", "accent"],
)
def test_characters_that_are_no_text_go(text, expected):
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "  leading\ttabs \n\n",
        "ㅋㅋㅋ ^^;; ①②",
        "😀👩‍👩‍👧 한글\u200b\u00a0",
        "\u2028 \u3000",
        "\U00020000\U0001f600\U000e0041",
        KOREAN,
    ],
)
def test_all_other_characters_stay(text):
    assert clean_text(text) == text


def test_long_texts_are_normalised_as_whole_ones():
    text = unicodedata.normalize("NFD", (KOREAN + "\n" + ENGLISH + " é\u0323 ") * 40)
    assert len(text) > 10_000
    assert clean_text(text) == unicodedata.normalize("NFC", text)


def test_normalising_sees_short_pieces_alone(monkeypatch):
    # It takes quadratic time in a run of combining marks: 5 seconds for 80,000 of them, hours for a million.
    lengths = []

    def normalize(form, text):
        lengths.append(len(text))
        return text

    monkeypatch.setattr("hfgpt.data.clean.unicodedata.normalize", normalize)
    text = "a" + "\u0301\u0323" * 10_000
    assert clean_text(text) == text
    assert max(lengths) <= 1024


@pytest.mark.parametrize(
    ("text", "words"), [("one two\nthree", 3), ("나는 간다", 2), ("映画は本当に面白かった", 6), ("", 0)]
)
def test_words_are_counted_in_scripts_with_and_without_spaces(text, words):
    assert count_words(text) == words


@pytest.mark.parametrize("line", NOTICES)
def test_notices_are_removed(line):
    assert remove_boilerplate(f"{ENGLISH}\n  {line} \n{KOREAN}") == (f"{ENGLISH}\n{KOREAN}", 1)


def test_prose_with_the_words_of_notices_survives():
    text = "\n".join(PROSE)
    assert remove_boilerplate(text) == (text, 0)


def test_a_long_line_is_no_notice():
    line = NOTICES[2] + " The rest of the paragraph tells a long story." * 5
    assert remove_boilerplate(line) == (line, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENGLISH, None),
        (KOREAN, None),
        ("too short", "fewer than 20 words"),
        ("# " * 5 + ENGLISH, "mostly symbols"),
        (KOREAN.replace(" ", "... "), "mostly symbols"),
        ("\n".join([*ENGLISH.split(". "), *["go on"] * 5]), "repeated lines"),
        ("\n".join([KOREAN, *"가나다라", ENGLISH, KOREAN]), "one line repeated"),
        (ENGLISH + "\ufffd" * 5, "broken encoding"),
        (ENGLISH + " Lorem ipsum dolor sit amet", "lorem ipsum"),
    ],
)
def test_rules_name_what_is_wrong(text, reason):
    assert why_dropped(text, CleanConfig()) == reason


def test_every_rule_can_be_turned_off():
    recipe = {
        "boilerplate": False,
        "drop_lorem_ipsum": False,
        **dict.fromkeys(
            [
                "min_words",
                "max_symbols_per_word",
                "max_repeated_lines",
                "max_top_line",
                "max_replacement_characters",
            ]
        ),
    }
    texts = ["#", "a\na\na", "\ufffd", "lorem ipsum", "{", NOTICES[0]]
    kept, ledger = run(Clean, texts, from_mapping(CleanConfig, recipe, "the recipe"), ["crawl"])
    assert [document.text for document in kept] == texts
    assert ledger.dropped == {}
    assert why_dropped(ENGLISH + "{", CleanConfig(drop_curly_brackets=True)) == "curly brackets"


def test_crawls_are_held_to_the_rules_and_curated_sources_are_not():
    texts = [f"{NOTICES[0]}\n{ENGLISH}\r\n", "short", " \x00\n\ufeff", "\n".join(NOTICES)]
    kept, ledger = run(Clean, texts, CleanConfig(), {"crawl"})
    assert [document.text for document in kept] == [ENGLISH + "\n"]
    assert drops(ledger) == {"fewer than 20 words": 1, "empty": 1, "nothing but boilerplate": 1}
    assert ledger.counts == {"crawl": {"boilerplate_lines": 1, "boilerplate_documents": 1}}

    kept, ledger = run(Clean, texts, CleanConfig(), {"crawl"}, source="books")
    assert [document.text for document in kept] == [f"{NOTICES[0]}\n{ENGLISH}\n", "short", "\n".join(NOTICES)]
    assert drops(ledger, "books") == {"empty": 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_words", 0), ("max_repeated_lines", 1.5), ("max_top_line", -0.1), ("max_symbols_per_word", -1)],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=rf"`{field}` must be .*, got {value}"):
        from_mapping(CleanConfig, {field: value}, "the recipe")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (KOREAN, "ko"),
        ("재밌다 ㅋㅋ", "ko"),
        ("ㅋ" * 40, "ko"),
        ("ㅋㅋㅋ lol " * 8, "ko"),
        ("The Dark Knight 진짜 최고의 영화 Batman 배우들 연기가 정말 좋았고 음악도 훌륭했다", "ko"),
        ("이 영화 " + ENGLISH, "en"),
        ("面白かった", "ja"),
        ("この映画は本当に面白かったです。音楽もとても良かったと思います。", "ja"),
        ("这部电影很好看，我非常喜欢，音乐也很美，大家都应该去看一看。", "zh"),
        ("Le film suit deux frères qui reviennent au port où ils ont grandi.", "fr"),
        ("Ok!", "und"),
        ("好", "und"),
        ("Да", "und"),
        ("12, 34, 56", "und"),
        ("1234 5678 " * 500, "und"),
        ("0x1F 0xAB 0xFF 3e-5 kg m/s " * 6, "und"),
        ("", "und"),
    ],
)
def test_language_is_told_by_script_or_statistics(text, language):
    assert detect_language(text) == language


def test_language_of_a_long_text_does_not_depend_on_how_it_opens():
    assert detect_language("1 2 3 | " * 100 + KOREAN * 10) == "ko"
    assert detect_language("= " * 400 + ENGLISH * 1000) == "en"


@pytest.mark.skipif(not NSMC.exists(), reason="the Korean reviews are not here")
def test_korean_reviews_are_korean():
    texts = [json.loads(line)["text"] for line in NSMC.open(encoding="utf-8")]
    texts = [text for text in texts if sum(map(str.isalpha, text)) >= 20]
    assert len(texts) > 800
    assert sum(detect_language(text) == "ko" for text in texts) / len(texts) > 0.99
    # No line of 2,000 reviews is a notice.
    assert [text for text in texts if remove_boilerplate(text)[1]] == []


def test_other_languages_are_dropped_and_undetermined_texts_kept():
    texts = [ENGLISH, KOREAN, "Le film suit deux frères qui reviennent au port où ils ont grandi.", "Ok!"]
    kept, ledger = run(DetectLanguage, texts, ["ko", "en"], {})
    assert [document.metadata["language"] for document in kept] == ["en", "ko", "und"]
    assert drops(ledger) == {"language: fr": 1}
    assert ledger.counts == {"crawl": {"language_en": 1, "language_ko": 1, "language_und": 1}}

    kept, ledger = run(DetectLanguage, texts, None, {"crawl": "ko"})
    assert [document.metadata["language"] for document in kept] == ["ko"] * 4


def test_languages_are_iso_codes():
    assert len(LANGUAGES) == 183 and {"ko", "en", "ja"} <= LANGUAGES
    assert set(_identifier().labels) - LANGUAGES == {"zxx"}
    check_languages(["ko", "en"], "languages")
    check_languages(None, "languages")
    with pytest.raises(
        ValueError, match=r"`languages` has 'korean', which is no ISO 639-1 code: did you mean .*\bko\b"
    ):
        DetectLanguage(["en", "korean"], {}, Ledger())
    with pytest.raises(ValueError, match="`language of source books` has 'eng'"):
        DetectLanguage(None, {"books": "eng"}, Ledger())
    with pytest.raises(ValueError, match=r"`books` is declared `language: fr`, which `languages` \(ko\) leaves out"):
        DetectLanguage(["ko"], {"books": "fr"}, Ledger())
