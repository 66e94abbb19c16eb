"""Text comes out of markup without what is around it; a page that hangs, kills or fails costs one document."""

import io
import itertools
import os
import random
import signal
import subprocess
import time
from multiprocessing import active_children
from pathlib import Path

import multiprocess
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from hfgpt.data import extract
from hfgpt.data.documents import Ledger, make_document
from hfgpt.data.extract import Extract, extract_html, extract_wikitext
from hfgpt.data.readers import RowErrors, SourceConfig, read_rows


KOREAN = [
    "오늘은 날씨가 매우 맑아서 아이들과 함께 공원에 나가 오랜만에 자전거를 탔다. 바람이 시원하게 불어서 기분이 좋았다.",
    "점심으로는 김밥과 떡볶이를 나누어 먹었고, 햇빛을 피해 나무 그늘 아래에서 한 시간 남짓 책을 읽었다. 뙤약볕도 괜찮았다.",
]
ENGLISH = [
    "The river had risen in the night, and by morning the lower fields were under water as far as the old stone bridge.",
    "Nobody in the village remembered such a flood, although the oldest of them had seen eighty winters come and go there.",
]
BOILERPLATE = ["Login", "Subscribe now", "We use cookies", "All rights reserved", "개인정보처리방침", "var tracker"]


def page(paragraphs, charset="utf-8"):
    body = "".join(f"<p>{paragraph}</p>\n" for paragraph in paragraphs * 3)
    return f"""<!DOCTYPE html><html><head><meta charset="{charset}"><title>Title</title>
<script>var tracker = 1;</script><style>p {{ color: red }}</style></head><body>
<div class="cookie-banner" id="cookie-consent"><p>We use cookies to improve your visit.</p><button>OK</button></div>
<nav><ul><li><a href="/">Home</a></li><li><a href="/login">Login</a></li></ul></nav>
<article><h1>A heading</h1>{body}</article>
<aside class="sidebar"><a href="/s">Subscribe now</a></aside>
<footer>Copyright 2020 All rights reserved. <a href="/p">개인정보처리방침</a></footer></body></html>"""


def run(*documents, **arguments):
    step = Extract(ledger := Ledger(), **arguments)
    return list(step.run(documents)), {
        reason: numbers["documents"] for reasons in ledger.dropped.values() for reason, numbers in reasons.items()
    }


def marked(text, kind="html", id="0"):
    document = make_document(text, id, "source", url="https://a.example/b")
    document.metadata["markup"] = kind
    return document


@pytest.mark.parametrize("paragraphs", [KOREAN, ENGLISH])
def test_page_gives_its_paragraphs_and_nothing_around_them(paragraphs):
    lines = extract_html(page(paragraphs), "https://a.example/").split("\n")
    assert lines == ["A heading", *paragraphs * 3]


def test_text_does_not_depend_on_the_pages_before_it():
    assert len({extract_html(page(KOREAN)) for _ in range(5)}) == 1


def test_line_breaks_of_the_source_are_spaces_and_those_of_the_page_are_lines():
    source = page(
        [
            "tools like <code>this</code>\nand <a href=/x>that</a>\n  and <b>a\nthird</b>\none: " + ENGLISH[0],
            ENGLISH[1],
        ]
    )
    source = source.replace("</article>", "<pre>def f():\n    return <i>1\n    + 2</i>\n</pre></article>")
    lines = extract_html(source).split("\n")
    assert lines[1] == "tools like this and that and a third one: " + ENGLISH[0]
    assert {"def f():", "return 1"} <= set(lines)


def test_tables_that_place_the_text_are_read_and_tables_of_data_are_not():
    """As pages of the years of EUC-KR are made."""
    data = "<table><tr><th>Year</th><th>Value</th></tr><tr><td>2001</td><td>5</td></tr></table>"
    source = f"""<html><body><table><tr><td colspan=2><a href=/>홈</a> | <a href=/l>로그인</a></td></tr>
        <tr><td><a href=/1>공지사항</a><br><a href=/2>사진첩</a></td>
        <td>{KOREAN[0]} {KOREAN[1]} {KOREAN[0]}<br><br>{data}{KOREAN[1]} {KOREAN[0]}</td></tr>
        <tr><td colspan=2>Copyright 2003 All rights reserved.</td></tr></table></body></html>"""
    text = extract_html(source)
    assert text.split("\n") == [" ".join([*KOREAN, KOREAN[0]]), " ".join(KOREAN[::-1])]


@pytest.mark.parametrize(
    "source",
    ["", " ", "<html></html>", "<script>var tracker = 1;</script>", "\x00", "<?php ?>", "<body><img src=a.png>"],
)
def test_page_without_text_gives_none(source):
    assert extract_html(source) is None


def test_part_of_a_page_is_read_as_a_page():
    paragraphs = ENGLISH + KOREAN
    assert extract_html("".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)).split("\n") == paragraphs


@pytest.mark.parametrize("odd", ["&#xD800;", "\ud800", "\x00", "&#0;", "<?xml version='1.0' encoding='euc-kr'?>"])
def test_text_can_be_written_as_utf8_whatever_the_page_has(odd):
    source = page([odd + paragraph for paragraph in KOREAN])
    assert KOREAN[0] in extract_html(odd + source).encode().decode()


def test_charset_that_a_decoded_page_declares_is_of_no_account():
    assert KOREAN[1] in extract_html(page(KOREAN, charset="euc-kr"))


PAGES = list(itertools.islice(Path("/usr/share/doc").rglob("*.html"), 200)) if Path("/usr/share/doc").exists() else []


@pytest.mark.skipif(not any(path.stat().st_size > 5000 for path in PAGES), reason="no HTML under /usr/share/doc")
def test_real_pages_give_text_without_tags():
    path = next(path for path in PAGES if path.stat().st_size > 5000)
    text = extract_html(path.read_text(encoding="utf-8", errors="replace"))
    assert text is None or ("<div" not in text and "\n\n" not in text)


ARTICLE = """{{Infobox person|name=Ada|image=Ada.jpg|caption=a {{nested|template}}}}
[[File:Ada.jpg|thumb|upright|A [[portrait]] of Ada]]
[[파일:에이다.jpg|섬네일|초상화]]
'''Ada Lovelace''' ({{IPA|en|x}}; {{lang|en|Countess}} of ''Lovelace''; 1815&ndash;1852<ref name="a">{{cite book|title=B}}</ref>) was an
[[England|English]] [[mathematician]].<ref>Note [http://x.example text].</ref><!-- comment --> See [https://a.example her site].
{| class="wikitext"
! Year !! Work
|-
| 1843 || [[Notes]]
|}
== Life ==
=== Youth ===
She was born in [[London]]<br />in 1815.
* one item
** a ''nested'' item
# numbered
== Empty ==
{{empty}}
== References ==
{{reflist}}
A line of the references.
=== Notes ===
A line of the notes.
== Legacy ==
A language is named after her. __NOTOC__
<gallery>
File:b.jpg|A caption of the gallery
</gallery>
== External links ==
* [https://b.example A link]
[[Category:1815 births]]
[[분류:수학자]]
[[de:Ada Lovelace]]
[[:Category:Women]]
"""


def test_article_gives_its_prose_and_the_headings_of_what_has_some():
    assert extract_wikitext(ARTICLE).split("\n") == [
        "Ada Lovelace (Countess of Lovelace; 1815–1852) was an",
        "English mathematician. See her site.",
        "Life",
        "Youth",
        "She was born in London",
        "in 1815.",
        "one item",
        "a nested item",
        "numbered",
        "Legacy",
        "A language is named after her.",
    ]


def test_korean_article_gives_its_prose():
    article = """{{다른 뜻}}
'''세종'''({{llang|ko|世宗}}, [[1397년]] ~ [[1450년]])은 [[조선]]의 제4대 [[국왕|임금]]이다.<ref>실록</ref>
[[파일:세종.jpg|섬네일|왼쪽|세종의 [[어진]]]]
== 생애 ==
한글을 만들었다.
== 같이 보기 ==
* [[한글]]
== 각주 ==
<references />
== 외부 링크 ==
* [http://a.example 누리집]
[[분류:조선의 왕]]
"""
    assert extract_wikitext(article).split("\n") == [
        "세종(1397년 ~ 1450년)은 조선의 제4대 임금이다.",
        "생애",
        "한글을 만들었다.",
    ]


@pytest.mark.parametrize(
    "broken", ["[[", "{{", "{| class=x\n| a", "'''", "<ref>", "<div>", "== x", "</b>", "[[File:x.jpg|"]
)
def test_broken_markup_does_not_swallow_the_prose_before_it(broken):
    text = extract_wikitext(f"A sentence of prose.\n{broken}\nAnother one.")
    assert text.split("\n")[0] == "A sentence of prose."
    assert not any(piece in text for piece in ("[[", "{{", "{|", "'''"))


@pytest.mark.parametrize("markup", ["", " ", "{{only|a template}}", "== Heading ==", "[[Category:x]]", "|-\n| 1"])
def test_article_without_prose_is_empty(markup):
    assert extract_wikitext(markup) == ""


def test_deeply_nested_markup_ends():
    for markup in ("{{a|" * 200, "[[" * 5000, "<div>" * 500 + "text", "'''''" * 5000, "{|\n|" * 2000):
        extract_wikitext("Prose.\n" + markup)
    extract_html("<html><body>" + "<div>" * 5_000 + "text" + "<table><tr><td>" * 2_000)


def test_step_replaces_markup_and_passes_plain_documents():
    plain = make_document("plain <b>text</b>", "2", "source")
    unmarked = marked("also plain", None, "3")
    documents, dropped = run(
        marked(page(KOREAN)), marked("'''Prose''' of an [[article]].", "wikitext", "1"), plain, unmarked
    )
    assert [document.text.split("\n")[-1] for document in documents] == [
        KOREAN[1],
        "Prose of an article.",
        "plain <b>text</b>",
        "also plain",
    ]
    assert [document.metadata for document in documents] == [
        {"source": "source", "language": None, "url": url}
        for url in ("https://a.example/b",) * 2 + (None, "https://a.example/b")
    ]
    assert dropped == {}
    assert active_children() == []


def test_no_process_is_started_where_nothing_has_markup(monkeypatch):
    monkeypatch.setattr(extract._Sandbox, "_ensure_process", lambda *_: pytest.fail("a process was started"))
    documents = [make_document(str(number), str(number), "source") for number in range(3)]
    assert run(*documents)[0] == documents


def misbehave(html, url=None):
    if "hang" in html:
        for path in html.split()[1:]:
            Path(path).touch()
        time.sleep(600)
    if "crash" in html:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in html:
        raise UnicodeDecodeError("utf-8", b"a", 0, 1, "no")
    return html.upper() or None


def test_bad_page_costs_one_document_and_is_counted(monkeypatch):
    monkeypatch.setattr(extract, "extract_html", misbehave)
    texts = ["a", "hang", "b", "crash", "crash", "c", "fail", "d", "", "e" * 1_000_000]
    documents, dropped = run(*(marked(text, id=str(n)) for n, text in enumerate(texts)), timeout_seconds=1.0)
    assert [document.text[0] for document in documents] == ["A", "B", "C", "D", "E"]
    assert dropped == {
        "extraction timed out": 1,
        "extraction crashed": 2,
        "extraction failed": 1,
        "no main text": 1,
    }
    assert active_children() == []


def test_page_that_kills_its_process_while_it_is_sent_is_counted(monkeypatch):
    """The pipe holds less than the page: unless the other end is known to be closed, the send would never return."""
    step = Extract(ledger := Ledger())
    results = step.run([marked(page(ENGLISH)), marked(page(ENGLISH * 4_000)), marked(page(ENGLISH))])
    next(results)
    (process,) = active_children()
    os.kill(process.pid, signal.SIGSTOP)
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    assert len(list(results)) == 1
    assert ledger.dropped["source"]["extraction crashed"]["documents"] == 1


def test_gigantic_page_costs_one_document():
    documents, dropped = run(marked("<p>word word</p>\n" * 3_000_000), marked(page(ENGLISH)))
    assert len(documents) == 1
    assert dropped == {"page too large": 1}


def in_worker(numbers):
    documents = list(Extract(Ledger()).run([marked(page(ENGLISH), id=str(number)) for number in numbers]))
    return [document.id for document in documents], [child.pid for child in active_children()]


def test_step_runs_in_the_workers_of_the_local_executor():
    """Which are daemons of `multiprocess`: those may have no children of that package."""
    with multiprocess.get_context("fork").Pool(2) as pool:
        results = pool.map(in_worker, [[0, 1], [2, 3]])
    assert results == [(["0", "1"], []), (["2", "3"], [])]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_on_a_page(pids, hanging):
    """What a worker does that is killed between two pages, or while one hangs (and writes the file `hanging`)."""
    documents = [marked("a"), marked(f"hang {hanging}")] if hanging else [marked("a")]
    for _ in Extract(Ledger()).run(documents):
        pids.put(active_children()[0].pid)
        if not hanging:
            time.sleep(600)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("hanging", [False, True])
def test_process_ends_with_a_worker_that_is_killed(monkeypatch, tmp_path, hanging):
    monkeypatch.setattr(extract, "extract_html", misbehave)
    # The alarm is set for the time-out and a little: here for a second.
    monkeypatch.setattr(extract.math, "ceil", lambda _: -4)
    context = multiprocess.get_context("fork")
    worker = context.Process(target=wait_on_a_page, args=(pids := context.Queue(), hanging and tmp_path / "hanging"))
    worker.start()
    pid = pids.get(timeout=60)
    if hanging:
        assert any((tmp_path / "hanging").exists() or time.sleep(0.02) for _ in range(1000))
    else:
        assert is_alive(pid)
    worker.kill()
    worker.join()
    assert any(not is_alive(pid) or time.sleep(0.05) for _ in range(400))


def test_web_archives_go_in_and_clean_text_comes_out(tmp_path):
    """The way of a crawl: WARC and WET, good pages and what is none, all accounted for."""
    archive, wet = tmp_path / "a.warc.gz", tmp_path / "a.warc.wet.gz"
    records = [
        ("https://a.example/ko", "200 OK", "text/html; charset=euc-kr", page(KOREAN, "euc-kr").encode("cp949")),
        ("https://a.example/en", "200 OK", "text/html", page(ENGLISH).encode()),
        ("https://a.example/nav", "200 OK", "text/html", b"<html><body><img src=a.png></body></html>"),
        ("https://a.example/gone", "404 Not Found", "text/html", page(ENGLISH).encode()),
        ("https://a.example/png", "200 OK", "image/png", b"\x89PNG"),
        ("https://a.example/bad", "200 OK", "text/html; charset=utf-8", b"<html>" + random.Random(0).randbytes(4000)),
    ]
    with open(archive, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        writer.write_record(writer.create_warcinfo_record("a.warc.gz", {"software": "test"}))
        for url, status, kind, payload in records:
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
            stream = io.BytesIO(payload)
            writer.write_record(writer.create_warc_record(url, "response", payload=stream, http_headers=headers))
    with open(wet, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        stream = io.BytesIO("\n".join(KOREAN).encode())
        writer.write_record(
            writer.create_warc_record(
                "https://b.example/", "conversion", payload=stream, warc_content_type="text/plain"
            )
        )
    source = SourceConfig(name="crawl", path=[str(archive), str(wet)])
    documents = []
    for number, row in enumerate(read_rows(source, errors := RowErrors())):
        documents.append(make_document(row["text"], str(number), "crawl", url=row["url"]))
        documents[-1].metadata["markup"] = source.markup_of(row)
    kept, dropped = run(*documents)
    assert [document.metadata["url"] for document in kept] == [
        "https://a.example/ko",
        "https://a.example/en",
        "https://b.example/",
    ]
    assert [document.text.split("\n")[-2:] for document in kept] == [KOREAN, ENGLISH, KOREAN]
    assert not any(piece in document.text for document in kept for piece in BOILERPLATE)
    assert dropped == {"no main text": 1}
    assert errors.passed_over == {"not a page": 1, "HTTP status": 1, "not HTML": 1}
    assert errors.count == 1
    assert errors.examples == [f"{archive}:7: not valid utf-8"]
