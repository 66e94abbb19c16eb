"""Cleaning: characters of every document, boilerplate and rules of thumb for raw crawls, and the language.

The rules are those of C4 (Raffel et al. 2020, section 2.2) and Gopher (Rae et al. 2021, appendix A.1.1), as far as they
hold for Korean as well as English: Gopher's word lengths and English stop words do not.

datatrove has filters of the same origin. They do not serve here: `GopherQualityFilter`, `GopherRepetitionFilter` and
`FineWebQualityFilter` count words with spaCy, Kiwi or Stanza, one package a language; `C4QualityFilter` rewrites white
space and drops prose that mentions cookies; `C4BadWordsFilter` and `LanguageFilter` (fastText) download word lists and
models when they run.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from datatrove.data import Document

from .documents import Ledger, Step


# Scripts written without spaces between words (inside a character class): Thai, Lao, Myanmar, Khmer, kana, Han.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(f"[{UNSPACED}]")
# Control characters but \n and \t, surrogates, noncharacters of the basic plane, and the byte order mark.
_NOISE_RANGES = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff"
_NOISE = re.compile(f"[{_NOISE_RANGES}]")
# Each plane ends in two noncharacters. Naming them makes the search ten times slower: done only where one can be.
_HIGH = re.compile("[\U0001fffe-\U0010ffff]")
_HIGH_NOISE = re.compile(
    "[" + "".join(map(chr, (p * 0x10000 + n for p in range(1, 17) for n in (0xFFFE, 0xFFFF)))) + "]"
)
# Normalising is quadratic in a run of combining marks: texts go through in pieces, cut before white space.
_PIECE_CHARACTERS = 1024
_PIECES = re.compile(f".{{1,{_PIECE_CHARACTERS}}}(?=[ \n])|.{{1,{_PIECE_CHARACTERS}}}", re.DOTALL)
_COUNT_CHARACTERS = 1_000_000

# Longer lines are prose, whatever they begin with.
_BOILERPLATE_CHARACTERS = 160
_NAVIGATION_ITEMS = (
    r"home(?:page)?|menu|search|log ?in|sign ?in|log ?out|sign ?out|sign ?up|register|subscribe|about(?: us)?|contact(?: us)?",
    r"faqs?|site ?map|privacy(?: policy| notice)?|cookie (?:policy|settings|preferences|notice)|my account|(?:add to )?cart",
    r"terms (?:of|and|&) (?:use|service|conditions)|advertise(?: with us)?|rss|(?:back )?to (?:the )?top|read more|load more",
    r"(?:previous|next) (?:post|article|page)|skip to (?:main )?(?:content|navigation)|leave a (?:comment|reply)",
    r"continue reading|share this(?: (?:post|article|page))?|accept(?: all|(?: all)? cookies)|reject all",
    r"홈|메인|(?:전체 ?)?메뉴|로그인|로그아웃|회원 ?가입|고객 ?센터|마이 ?페이지|장바구니|사이트 ?맵|(?:통합 ?)?검색|이용 ?약관|공지사항",
    r"개인정보 ?(?:처리|취급) ?방침|청소년 ?보호 ?정책|저작권 ?정책|이메일 ?무단 ?수집 ?거부|회사 ?소개|광고 ?문의|제휴 ?문의|기사 ?제보",
    r"목록(?:으로|보기)?|(?:이전|다음) ?(?:글|기사|페이지)|맨 ?위로|더 ?보기|닫기|공유(?:하기)?|스크랩(?:하기)?|인쇄(?:하기)?|신고(?:하기)?",
    r"댓글 ?(?:쓰기|달기|\d+개?)|구독(?:하기| ?신청)?|뉴스레터 ?(?:구독(?:하기| ?신청)?|신청)|(?:본문|메뉴)(?:으로)? ?바로 ?가기|url ?복사",
    r"(?:아이디|비밀번호)(?:/비밀번호)? ?찾기|(?:모든 ?|모두 ?)?쿠키 ?(?:정책|설정|허용|동의|거부|관리|안내)(?:하기)?|글자 ?크기(?: ?조절)?",
)
_NAVIGATION = f"(?:{'|'.join(_NAVIGATION_ITEMS)})"
_NETWORKS = "facebook|twitter|x|linkedin|pinterest|whatsapp|reddit|tumblr|telegram|email|e-mail|line|kakaotalk"
_NETWORKS += "|페이스북|트위터|카카오톡|카카오스토리|네이버|네이버 ?블로그|밴드|라인|텔레그램|인스타그램|이메일"
_BOILERPLATE = re.compile(
    "|".join(
        (
            rf"[\s|/·•›»>│ㅣ,&-]*{_NAVIGATION}(?:[\s|/·•›»>│ㅣ,&-]+{_NAVIGATION})*[\s|/·•›»>│ㅣ,&-]*",
            # Cookies.
            r"(?:this|our) (?:web ?)?(?:site|page) uses? cookies\b.*",
            r"(?:we|we and our partners) use cookies\b.*\b(?:site|website|experience|brows\w+|analy\w+|traffic|ads|consent)\b.*",
            r"by (?:continuing|using|browsing|clicking|closing)\b.*\b(?:cookies|terms of (?:use|service)|privacy policy)\b.*",
            r"(?:이|본|저희|당사?) ?(?:웹 ?)?(?:사이트|홈페이지|서비스|페이지|블로그)(?:는|은|에서는|에서)? .*쿠키(?:를|가|의)? .*",
            # JavaScript.
            r"(?:please |you (?:need|have) to |you must )?(?:enable|turn on|activate|allow) java ?script\b.*",
            r"(?:your browser|this (?:site|page|app|website)|we)\b.*\bjava ?script\b.*",
            r"java ?script (?:is|has been|must be|seems to be|appears to be)\b.*\b(?:disabled|enabled|required|turned off|supported)\b.*",
            r".*자바 ?스크립트(?:를|가|을|이)? ?(?:사용|활성화|비활성화|지원|허용|실행|차단|꺼).*(?:주세요|주십시오|바랍니다|습니다|합니다)\.?",
            # Newsletters, channels, accounts.
            r"(?:subscribe|sign up)(?: now| today| here)? (?:to|for) (?:our|the|my)\b.*\b(?:newsletter|mailing list|channel|updates|feed)\b.*",
            r".*(?:구독|좋아요) ?(?:과|와|,|·|&|및)? ?(?:구독|좋아요|알림 ?설정).*(?:부탁|눌러|클릭|해 ?주세요).*",
            r"(?:you must|you need to|please) (?:be logged in|log ?in|sign in|register)\b.*",
            r"(?:회원 ?)?로그인(?: ?후|을 ?하셔야|하셔야|이 필요).*(?:있습니다|주세요|주십시오|합니다|서비스입니다|바랍니다)\.?",
            r"your email address will not be published\b.*",
            # Sharing.
            rf"(?:click to )?(?:share|tweet|pin)(?: this| it)?(?: (?:on|via|to|with|by))? (?:{_NETWORKS})(?:[\s,|/·]+(?:{_NETWORKS}))*(?: \(.*\))?",
            rf"(?:{_NETWORKS})(?:으로|로|에)? ?(?:공유|보내기|공유하기|퍼가기)",
            # Copyright.
            r"(?:copyright ?)?(?:©|ⓒ|\(c\)|&copy;).*",
            r"copyright,? (?:by |\d{4}).*",
            r".*\ball rights? reserved\b.{0,20}",
            r"[<\[(（【ⓒ©〈＜\s]*저작권자 ?[:：ⓒ©(（|].*",
            r".{0,80}무단 ?(?:전재|복제|배포) ?(?:및|[-,·/&]|와|과)? ?(?:재 ?배포|배포|복제|전재|수집|ai ?학습).*금(?:지|합니다).{0,20}",
            r"(?:proudly )?powered by \S+(?: \S+)?",
        )
    ),
    re.IGNORECASE,
)


def clean_text(text: str) -> str:
    r"""The same text with `\n` for every line end, without control characters, in Unicode's composed form (NFC).

    Control characters but `\n` and `\t`, surrogates, noncharacters and byte order marks go; all else stays.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _NOISE.search(text):
        text = _NOISE.sub("", text)
    if text.isascii():
        return text
    if _HIGH.search(text):
        text = _HIGH_NOISE.sub("", text)
    if len(text) <= _PIECE_CHARACTERS:
        return unicodedata.normalize("NFC", text)
    return "".join(unicodedata.normalize("NFC", piece) for piece in _PIECES.findall(text))


def count_words(text: str) -> int:
    """Words by white space; two characters of a script without spaces count as a word."""
    words = 0
    # In chunks, so that the words of a gigantic text are never in memory together.
    for start in range(0, len(text), _COUNT_CHARACTERS):
        chunk = text[start : start + _COUNT_CHARACTERS]
        words += len(chunk.split())
        if not chunk.isascii():
            words += _UNSPACED.subn("", chunk)[1] // 2
    return words


def remove_boilerplate(text: str) -> tuple[str, int]:
    """The text without its lines of navigation, and how many they were.

    A line goes when all of it, in at most 160 characters, is menus, or a notice on cookies, JavaScript, subscribing,
    logging in, sharing or copyright, in English or Korean.
    """
    lines = text.split("\n")
    kept = [line for line in lines if len(line) > _BOILERPLATE_CHARACTERS or not _BOILERPLATE.fullmatch(line.strip())]
    return ("\n".join(kept), len(lines) - len(kept)) if len(kept) < len(lines) else (text, 0)


@dataclass
class CleanConfig:
    """Rules for the documents of raw crawls (`curated: false`); null turns one off."""

    boilerplate: bool = field(
        default=True, metadata={"help": "Remove lines of navigation, cookie, login, sharing and copyright notices."}
    )
    min_words: int | None = field(default=20, metadata={"help": "Words a document has at least."})
    max_symbols_per_word: float | None = field(
        default=0.1, metadata={"help": "Number signs, and ellipses, for every word at most (Gopher)."}
    )
    max_repeated_lines: float | None = field(
        default=0.3, metadata={"help": "Share of lines that repeat an earlier one at most (Gopher)."}
    )
    max_top_line: float | None = field(
        default=0.2, metadata={"help": "Share of characters in the line that repeats most at most (Gopher)."}
    )
    max_replacement_characters: float | None = field(
        default=0.01, metadata={"help": "Share of characters that are U+FFFD, the sign of a wrong encoding, at most."}
    )
    drop_lorem_ipsum: bool = field(default=True, metadata={"help": "Drop documents with this placeholder text (C4)."})
    drop_curly_brackets: bool = field(
        default=False, metadata={"help": "Drop documents with a `{`, as pages of code have (C4)."}
    )

    def __post_init__(self) -> None:
        if self.min_words is not None and self.min_words < 1:
            raise ValueError(f"`min_words` must be at least 1, or null, got {self.min_words}.")
        if self.max_symbols_per_word is not None and self.max_symbols_per_word < 0:
            raise ValueError(f"`max_symbols_per_word` must be at least 0, or null, got {self.max_symbols_per_word}.")
        for name in ("max_repeated_lines", "max_top_line", "max_replacement_characters"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` must be from 0 to 1, or null, got {value}.")


def why_dropped(text: str, config: CleanConfig) -> str | None:
    """The rule that a crawled text breaks, in words, or None."""
    most = config.max_replacement_characters
    if most is not None and text.count("\ufffd") > most * len(text):
        return "broken encoding"
    if config.drop_curly_brackets and "{" in text:
        return "curly brackets"
    if config.drop_lorem_ipsum and "lorem ipsum" in text.lower():
        return "lorem ipsum"
    words = count_words(text)
    if config.min_words is not None and words < config.min_words:
        return f"fewer than {config.min_words} words"
    if config.max_symbols_per_word is not None:
        most = config.max_symbols_per_word * words
        if text.count("#") > most or text.count("...") + text.count("…") > most:
            return "mostly symbols"
    if config.max_repeated_lines is not None or config.max_top_line is not None:
        lines = Counter(line for line in map(str.strip, text.split("\n")) if line)
        count = lines.total()
        if config.max_repeated_lines is not None and count - len(lines) > config.max_repeated_lines * count:
            return "repeated lines"
        characters = sum(len(line) * times for line, times in lines.items())
        most_repeated = max((len(line) * times for line, times in lines.items() if times > 1), default=0)
        if config.max_top_line is not None and most_repeated > config.max_top_line * characters:
            return "one line repeated"
    return None


class Clean(Step):
    """Cleans characters everywhere, and applies the rules to documents of crawls.

    Counts `boilerplate_lines` and `boilerplate_documents`; what is dropped is counted as it came in.
    """

    name = "clean"

    def __init__(self, config: CleanConfig, crawl_sources: Collection[str], ledger: Ledger):
        super().__init__(ledger)
        self.config, self.crawl_sources = config, frozenset(crawl_sources)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents that are left."""
        for document in data:
            source = document.metadata["source"]
            text, lines = clean_text(document.text), 0
            reason = None if text.strip() else "empty"
            if source in self.crawl_sources and not reason:
                if self.config.boilerplate:
                    text, lines = remove_boilerplate(text)
                reason = why_dropped(text, self.config) if text.strip() else "nothing but boilerplate"
            if reason:
                self.ledger.drop(document, reason)
                continue
            if lines:
                self.ledger.count(source, boilerplate_lines=lines, boilerplate_documents=1)
            document.text = text
            yield document


# ISO 639-1.
_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es "
    "et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki "
    "kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no "
    "nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te "
    "tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
LANGUAGES = frozenset(_CODES.split())
UNDETERMINED = "und"
# Letters below which a text is too short for statistics.
MIN_LETTERS = 20
_SAMPLE_CHARACTERS = 400
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff]")
_KANA = re.compile("[\u3041-\u30ff]")
_KANA_OR_HAN = re.compile("[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_THAI = re.compile("[\u0e01-\u0e3a\u0e40-\u0e4e]")
# Digits, ASCII's punctuation and white space, which say little about the language.
_NOT_LETTERS = re.compile(r"[\s!-&(-@\[-`{-~]+")


def check_languages(languages: Collection[str] | None, where: str) -> None:
    """Accept ISO 639-1 codes of languages alone.

    Raises:
        ValueError: Another code, naming `where` and those near it.
    """
    for code in languages or ():
        if code not in LANGUAGES:
            near = sorted(known for known in LANGUAGES if str(code)[:1].lower() == known[0])
            hint = f"did you mean one of {', '.join(near)}?" if near else "such as ko or en."
            raise ValueError(f"`{where}` has {code!r}, which is no ISO 639-1 code: {hint}")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    # "zxx" is no language at all: numbers, tables.
    identifier.set_languages([code for code in identifier.labels if code in LANGUAGES or code == "zxx"])
    return identifier


def _sample(text: str) -> str:
    sample = _NOT_LETTERS.sub(" ", text[: 10 * _SAMPLE_CHARACTERS])[:_SAMPLE_CHARACTERS]
    if len(text) > 20 * _SAMPLE_CHARACTERS:
        middle = text[len(text) // 2 : len(text) // 2 + 10 * _SAMPLE_CHARACTERS]
        sample += " " + _NOT_LETTERS.sub(" ", middle)[:_SAMPLE_CHARACTERS]
    return sample


def detect_language(text: str) -> str:
    """The ISO 639-1 code of the language of a text, or "und" where it cannot be told.

    By script where that settles it (half the letters are Hangul; below 20 letters, kana or Thai), else by py3langid on
    400 characters of the start and, in long texts, 400 of the middle.
    """
    sample = _sample(text)
    letters = sum(map(str.isalpha, sample))
    if letters and 2 * len(_HANGUL.findall(sample)) >= letters:
        return "ko"
    if letters >= MIN_LETTERS:
        language = _identifier().classify(sample)[0]
        return UNDETERMINED if language == "zxx" else language
    if _KANA.search(sample) and 2 * len(_KANA_OR_HAN.findall(sample)) >= letters:
        return "ja"
    return "th" if letters and 2 * len(_THAI.findall(sample)) >= letters else UNDETERMINED


class DetectLanguage(Step):
    """Sets `metadata["language"]`, and drops documents in other languages than those wanted.

    Documents whose language cannot be told ("und") stay. Counts `language_ko` and so on, of what stays.

    Args:
        languages: The ISO 639-1 codes wanted, or None for all.
        declared: The language of sources that say it; they are not detected.
        ledger: Of the stage.

    Raises:
        ValueError: An unknown code, or a source in a language that is not wanted.
    """

    name = "detect language"

    def __init__(self, languages: list[str] | None, declared: Mapping[str, str], ledger: Ledger):
        super().__init__(ledger)
        check_languages(languages, "languages")
        for source, language in declared.items():
            check_languages([language], f"language of source {source}")
            if languages is not None and language not in languages:
                raise ValueError(
                    f"The source `{source}` is declared `language: {language}`, which `languages` "
                    f"({', '.join(languages)}) leaves out: add it there, or leave out the source."
                )
        self.languages, self.declared = languages, dict(declared)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents in the languages wanted."""
        for document in data:
            source = document.metadata["source"]
            language = self.declared.get(source) or detect_language(document.text)
            document.metadata["language"] = language
            if self.languages is not None and language not in (*self.languages, UNDETERMINED):
                self.ledger.drop(document, f"language: {language}")
                continue
            self.ledger.count(source, **{f"language_{language}": 1})
            yield document
