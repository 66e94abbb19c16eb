"""Plain text out of HTML pages and MediaWiki articles: one paragraph, heading or list item a line.

The markup of others can hang or kill whatever parses it. `Extract` therefore parses in a process of its own (datatrove's
sandbox), so that a bad page costs one document. A page that times out depends on the machine's speed, and nothing else
here does.
"""

import logging
import math
import re
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.extractors.base import ExtractorSandbox

from .documents import Ledger, Step
from .readers import MAX_PAGE_BYTES


# A table with more characters in a cell is there for its looks: its cells are the parts of the page.
LAYOUT_CELL_CHARACTERS = 200
# Templates whose last argument is shown as it is; all others are dropped.
TEXT_TEMPLATES = {"lang", "nowrap", "nobr"}
# Tags whose contents are no prose.
DROPPED_TAGS = {
    *("categorytree", "ce", "chem", "gallery", "graph", "hiero", "imagemap", "includeonly", "indicator", "inputbox"),
    *("mapframe", "maplink", "pages", "ref", "references", "score", "section", "source", "style", "syntaxhighlight"),
    *("table", "templatedata", "templatestyles", "timeline"),
}
DROPPED_NAMESPACES = {
    *("file", "image", "media", "category"),
    *("파일", "그림", "미디어", "분류"),
    *("kategorie", "catégorie", "categoría", "categoria", "категория", "カテゴリ", "分类", "分類"),
}
MEDIA_FILE = re.compile(r"[^:]+:.+\.(?:jpe?g|png|gif|svg|webp|tiff?|og[gav]|webm|mp[34]|pdf|djvu)\s*", re.IGNORECASE)
INTERWIKI = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*:\S")
# Sections that list things and have no prose, in English and Korean.
DROPPED_SECTIONS = {
    *("references", "external links", "see also", "further reading", "notes", "notes and references", "footnotes"),
    *("citations", "bibliography", "sources", "works cited", "references and notes", "gallery", "general references"),
    *(
        "각주",
        "주석",
        "주해",
        "외부 링크",
        "바깥 고리",
        "같이 보기",
        "함께 보기",
        "참고 문헌",
        "참고문헌",
        "참고 자료",
    ),
    *(
        "출처",
        "더 보기",
        "관련 항목",
        "갤러리",
        "내용주",
        "참조주",
        "각주 및 참고 문헌",
        "각주와 참고 문헌",
        "읽을거리",
    ),
}


def extract_html(html: str, url: str | None = None) -> str | None:
    """The main text of an HTML page, without navigation, advertisements, footers, comments and tables; None if none.

    Args:
        html: A page, or a part of one.
        url: Its address, where known.
    """
    import trafilatura

    if not re.search(r"<(?:html|body)\b", html, re.IGNORECASE):
        # A fragment, as some data sets hold them, would pass for what is no HTML.
        html = f"<html><body>{html}</body></html>"
    tree = trafilatura.load_html(html)
    if tree is None:
        return None
    _loosen_layout_tables(tree)
    _join_broken_lines(tree)
    text = trafilatura.extract(
        tree,
        url=url,
        favor_precision=True,
        include_comments=False,
        include_tables=False,
        # Its memory goes across pages: the text of one would depend on those before it.
        deduplicate=False,
    )
    return _lines(text) or None if text else None


def _loosen_layout_tables(tree: Any) -> None:
    """Make blocks of the tables by which old pages place their text, so that they are not dropped as data."""
    for table in list(tree.iter("table")):
        if table.find(".//table") is None and not any(
            len("".join(cell.itertext())) > LAYOUT_CELL_CHARACTERS for cell in table.iter("td")
        ):
            continue
        for element in table.xpath(
            "./tbody|./thead|./tr|./*/tr|./tr/*[self::td or self::th]|./*/tr/*[self::td or self::th]"
        ):
            element.tag = "div"
        table.tag = "div"


def _join_broken_lines(tree: Any) -> None:
    """Make spaces of the line breaks of the HTML source, which are no breaks on the page."""
    verbatim = set()
    for element in tree.iter():
        if element.tag in ("pre", "textarea") or element.getparent() in verbatim:
            verbatim.add(element)
        elif element.text:
            element.text = re.sub(r"\s*\n\s*", " ", element.text)
        if element.tail and element.getparent() not in verbatim:
            element.tail = re.sub(r"\s*\n\s*", " ", element.tail)


def extract_wikitext(markup: str) -> str:
    """The prose of a MediaWiki article with the headings of its sections; "" if there is none.

    Templates, tables, references, files, categories, and sections such as References or 외부 링크 are dropped.
    """
    import mwparserfromhell

    lines: list[str] = []
    # Headings that have nothing under them so far, and the level of the section being dropped.
    headings: list[tuple[int, str]] = []
    dropping = math.inf
    for line in "".join(_visible(mwparserfromhell.parse(markup))).split("\n"):
        heading = re.fullmatch(r"\0(\d)(.*)\0", line)
        if heading:
            level, title = int(heading[1]), _tidy(heading[2])
            if level > dropping:
                continue
            dropping = level if title.lower() in DROPPED_SECTIONS else math.inf
            headings = [(above, text) for above, text in headings if above < level]
            if dropping == math.inf:
                headings.append((level, title))
            continue
        text = _tidy(line)
        # `{|` and `|` begin what is left of a table that the parser could not make out.
        if dropping < math.inf or not any(map(str.isalnum, text)) or text.startswith(("|", "{|")):
            continue
        lines += [title for _, title in headings if title]
        headings = []
        lines.append(text)
    return _lines("\n".join(lines))


def _visible(code: Any) -> Iterator[str]:
    """The pieces of parsed wikitext that a reader sees as text; a heading as a line between NULs, its level first."""
    from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink

    for node in code.nodes:
        if isinstance(node, Text):
            yield node.value.replace("\0", "")
        elif isinstance(node, HTMLEntity):
            yield node.normalize().replace("\0", "")
        elif isinstance(node, Wikilink):
            if _is_shown(str(node.title).strip()):
                yield from _visible(node.text if node.text is not None else node.title)
        elif isinstance(node, ExternalLink):
            if node.title is not None:
                yield from _visible(node.title)
            elif not node.brackets:
                yield str(node.url)
        elif isinstance(node, Heading):
            yield f"\n\0{node.level}{''.join(_visible(node.title)).strip()}\0\n".replace("\n\n", "\n")
        elif isinstance(node, Tag):
            name = str(node.tag).strip().lower()
            if name == "br":
                yield "\n"
            elif node.contents is not None and name not in DROPPED_TAGS:
                yield from _visible(node.contents)
        elif isinstance(node, Template) and str(node.name).strip().lower() in TEXT_TEMPLATES and node.params:
            yield from _visible(node.params[-1].value)


def _is_shown(title: str) -> bool:
    # A colon before a category, a file or another language makes it a link like any other.
    return title.startswith(":") or not (
        title.partition(":")[0].strip().lower() in DROPPED_NAMESPACES
        or MEDIA_FILE.fullmatch(title)
        or INTERWIKI.match(title)
    )


def _tidy(line: str) -> str:
    """A line without what templates and broken markup leave behind."""
    line = re.sub(r"'{2,}|\[\[|\]\]|\{\{|\}\}|__[^\W\d_]+__", "", line)
    # "(; born 1950)", "()": pronunciations and dates are templates.
    line = re.sub(r"([(（])[\s,;:·]+", r"\1", line)
    line = re.sub(r"[\s,;:·]+([)）])", r"\1", line)
    line = re.sub(r"\s*(?:\(\)|（）)", "", line)
    line = re.sub(r"\s+", " ", line)
    return re.sub(r" ([,.;:])(?=\s|$)", r"\1", line).strip(" :")


def _lines(text: str) -> str:
    """Lines without outer white space, none empty, in characters that UTF-8 can hold."""
    stripped = (line.strip() for line in text.encode("utf-8", "ignore").decode().split("\n"))
    return "\n".join(line for line in stripped if line)


class Extract(Step):
    """Replaces markup by its text in the documents whose metadata has a `markup` of "html" or "wikitext".

    The key `markup` is taken out; documents without one, or with None, pass as they are. What gives no text is dropped.
    """

    name = "extract text"

    def __init__(self, ledger: Ledger, timeout_seconds: float = 30.0):
        super().__init__(ledger)
        self.timeout_seconds = timeout_seconds

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents with their text."""
        with _Sandbox(self.timeout_seconds) as sandbox:
            for document in data:
                kind = document.metadata.pop("markup", None)
                text = document.text if kind is None else self._extract(document, kind, sandbox)
                if text is not None:
                    document.text = text
                    yield document

    def _extract(self, document: Document, kind: str, sandbox: "_Sandbox") -> str | None:
        if len(document.text) > MAX_PAGE_BYTES:
            self.ledger.drop(document, "page too large")
            return None
        try:
            text = sandbox.extract(kind, document.text, document.metadata.get("url"))
        except TimeoutError:
            self.ledger.drop(document, "extraction timed out")
        except (EOFError, OSError):
            self.ledger.drop(document, "extraction crashed")
        except RuntimeError:
            self.ledger.drop(document, "extraction failed")
        else:
            if text:
                return text
            self.ledger.drop(document, "no main text")
        return None


class _Sandbox(ExtractorSandbox):
    """datatrove's sandbox, made to end with its worker however that ends, and to notice at once that its process died.

    For that each process closes the other's end of the pipe: a read or write then fails when the other is gone.
    """

    def __init__(self, timeout_seconds: float):
        super().__init__(timeout_seconds, warmup_text=("html", "", None, timeout_seconds))

    def extract(self, kind: str, markup: str, url: str | None) -> str | None:
        """The text of one page.

        Raises:
            TimeoutError: It took too long.
            OSError: The process died over it. EOFError: the same.
            RuntimeError: Extraction raised an error.
        """
        if self.process is None:
            # Here, so that the process has them from the start, and the next one too if it dies.
            import mwparserfromhell  # noqa: F401
            import trafilatura  # noqa: F401
        try:
            return self.process_document((kind, markup, url, self.timeout), _extract_page)
        except OSError:
            if self.process is not None:
                self._cleanup_process()
            raise

    def _ensure_process(self, extract_fn: Any) -> None:
        super()._ensure_process(extract_fn)
        self.child_conn.close()

    def _worker(self, conn: Any, extract_fn: Any) -> None:
        self.parent_conn.close()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # It logs an error for every page that is none; those are counted.
        logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
        super()._worker(conn, extract_fn)


def _extract_page(kind: str, markup: str, url: str | None, timeout_seconds: float) -> str | RuntimeError | None:
    """Runs in the sandbox's process."""
    # Should the worker be killed while a page hangs, nobody is left to end this process but the alarm.
    signal.alarm(math.ceil(timeout_seconds) + 5)
    try:
        return extract_html(markup, url) if kind == "html" else extract_wikitext(markup)
    except Exception as error:
        # Not every exception survives a pipe.
        return RuntimeError(f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
