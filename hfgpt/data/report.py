"""What became of a corpus: `report.json` for programs, and `report.html`, one page that needs nothing else, for people.

The report is a mapping. A section that is absent or empty (its stage was switched off) is left out of the page:

- `name`, `hfgpt_version`, `created` (ISO time), `recipe` (the recipe as a mapping), `sources` (names, in order)
- `stages`: a list of `{name, seconds (wall), cpu_seconds, tasks, workers, resumed, sources, dropped, examples}` with
  `sources[source] = {documents_in, bytes_in, documents_out, bytes_out, ...}`, `dropped[source][reason] =
  {documents, bytes}` and `examples[reason] = [{source, id, text}]`. A stage that cuts documents up also counts
  `documents_cut` and the `pieces` they were cut into. A stage that neither writes nor drops documents (one that only
  looks at them) has no `documents_out`, and no place in the plots and the accounts.
- `duplicates`: `{clusters, documents_in_clusters, removed, cluster_sizes: {"2": n}, pairs_between_sources:
  {"a -> b": n}, largest: [{size, kept: {source, id, text}, removed: [{source, id, text}]}]}`
- `contamination[benchmark] = {examples, too_short, dirty, left_in_corpus, documents_cut, documents_dropped}`
- `quality[language] = {positives, negatives, filtered, held_out_accuracy, held_out_auc, scores: {name: counts of equal
  bins from 0 to 1}, expected_kept: {"positives": share, "negatives": share}, kept, dropped}`; of a language that was not
  filtered `{positives, negatives, filtered, why, kept, dropped}`
- `fertility`: a list of `{language, documents, words, bytes, characters, tokens, tokens_per_word, tokens_per_byte,
  tokens_per_document}`
- `tokenizer`: `{vocab_size, trained, sample: [{source, language, bytes}]}`
- `splits[split] = {documents, tokens, bytes}`, `tokens_by_source[source] = {split: tokens}`
- `mixture`: `{train_tokens, sources: [{source, weight, weight_normalised, realised, tokens, epochs}]}`
- `bad_rows`: `{count, examples: ["file:line: reason"]}`

Notable: all text passes through one function that escapes it; names never reach matplotlib, which lacks Korean glyphs
and reads dollar signs as mathematics: plots are drawn with stand-ins that are exchanged in the SVG, so that the
browser's fonts draw them. The files depend on the report alone.
"""

import html
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .documents import written_whole


Report = Mapping[str, Any]

# Plots are as wide as a phone and stand side by side where there is room, so that their text is never scaled far down.
PLOT_WIDTH_INCHES = 4.7
# From this colour on, sources share one grey: more cannot be told apart.
OTHER_COLOUR = 7
PLOTTED_REASONS = 15
SHOWN_CHARACTERS = 600
SHOWN_REMOVED = 5
LISTED_STAGES = 7
LABEL_COLUMNS = 26


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into a folder; each is whole under its name or not there.

    Args:
        report: As the module describes it. Numbers that JSON does not know (NaN, infinity) become null.
        folder: Made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = _plain(report)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True)
    _write(folder / "report.json", text + "\n")
    _write(folder / "report.html", _page(plain))


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """The value as strict JSON can hold it: finite numbers, valid Unicode, string keys."""
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return _plain(value.tolist())
    return str(value).encode("utf-8", "replace").decode()


# --- The accounts ----------------------------------------------------------------------------------------------------


def reconciles(report: Report) -> list[str]:
    """Sentences on what does not add up; empty where every document is accounted for.

    In each stage and source, documents in - dropped = documents out; where documents were cut, `documents_cut` of them
    became `pieces`. What a stage reads is what the stage before it wrote.
    """
    problems = []
    previous: Report | None = None
    for stage in _writing_stages(report):
        before = _by_source(previous)
        here = _by_source(stage)
        for source in _sources(report):
            counts = here.get(source, {})
            read, wrote = counts.get("documents_in", 0), counts.get("documents_out", 0)
            if previous is not None and read != (given := before.get(source, {}).get("documents_out", 0)):
                problems.append(
                    f'Stage "{stage.get("name")}" read {_count(read)} documents of "{source}", but stage '
                    f'"{previous.get("name")}" before it wrote {_count(given)}.'
                )
            dropped = _dropped(stage, source)
            sum_in_words = f"{_count(read)} documents in - {_count(dropped)} dropped"
            expected = read - dropped
            if "pieces" in counts:
                cut = counts.get("documents_cut", 0)
                expected += counts["pieces"] - cut
                sum_in_words += f" - {_count(cut)} cut + {_count(counts['pieces'])} pieces"
            if expected != wrote:
                problems.append(
                    f'Stage "{stage.get("name")}", source "{source}": {sum_in_words} = {_count(expected)}, but '
                    f"{_count(wrote)} documents were written."
                )
        previous = stage
    return problems


def _by_source(stage: Report | None) -> dict[str, Any]:
    return (stage or {}).get("sources") or {}


def _writing_stages(report: Report) -> list[Report]:
    """The stages that pass documents on; a source whose documents were all dropped has no count of those written."""
    return [
        stage
        for stage in report.get("stages") or []
        if any("documents_out" in counts for counts in _by_source(stage).values()) or _dropped(stage)
    ]


def _sources(report: Report) -> list[str]:
    """The sources' names: the recipe's order, then whatever else the stages met."""
    named = list(report.get("sources") or [])
    met = {
        source
        for stage in report.get("stages") or []
        for source in (*_by_source(stage), *(stage.get("dropped") or {}))
    }
    return named + sorted(met - set(named))


def _dropped(stage: Report, source: str | None = None, reason: str | None = None, unit: str = "documents") -> int:
    """Documents (or bytes) that a stage dropped, of one source or reason or of all."""
    return sum(
        numbers.get(unit, 0)
        for its_source, reasons in (stage.get("dropped") or {}).items()
        for its_reason, numbers in reasons.items()
        if source in (None, its_source) and reason in (None, its_reason)
    )


def _reasons(stage: Report) -> list[str]:
    """The reasons for which a stage dropped documents, the most frequent first."""
    reasons = {reason for by_reason in (stage.get("dropped") or {}).values() for reason in by_reason}
    return sorted(reasons, key=lambda reason: (-_dropped(stage, reason=reason), reason))


def _total(stage: Report, name: str) -> int:
    return sum(counts.get(name, 0) for counts in _by_source(stage).values())


def _seconds(report: Report) -> float:
    return sum(stage.get("seconds") or 0.0 for stage in report.get("stages") or [])


def _split_total(report: Report, unit: str) -> int:
    return sum(split.get(unit) or 0 for split in (report.get("splits") or {}).values())


def _tokens_per_byte(report: Report) -> float | None:
    """Of the finished corpus, else of what the tokenizer was measured on."""
    tokens, size = _split_total(report, "tokens"), _split_total(report, "bytes")
    if not (tokens and size):
        rows = report.get("fertility") or []
        tokens, size = (sum(row.get(unit) or 0 for row in rows) for unit in ("tokens", "bytes"))
    return tokens / size if tokens and size else None


# --- Numbers in words ------------------------------------------------------------------------------------------------


def _count(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.4g}"


def _human(number: float, units: Sequence[str], exact_below: float) -> str:
    """Three significant digits and a unit of thousands."""
    if abs(number) < exact_below:
        return f"{_count(number)} {units[0]}".strip()
    power = 0
    # 999.5 would be rounded to 1000.
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f} {units[power]}"


def _human_count(number: float) -> str:
    return _human(number, ("", "k", "M", "B", "T"), 10_000)


def _human_bytes(number: float) -> str:
    return _human(number, ("B", "kB", "MB", "GB", "TB", "PB"), 1000)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _without_zeros(number: str) -> str:
    """1.50 GB as 1.5 GB, for the ticks of an axis."""
    return re.sub(r"\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)", r"\1", number)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _columns(text: str) -> int:
    """How many columns a terminal gives the text: Korean letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _shorten(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while _columns(text) > columns - 1:
        text = text[:-1]
    return text + "…"


# --- Lines for the terminal ------------------------------------------------------------------------------------------


def summary_lines(report: Report, folder: Path | None = None) -> list[str]:
    """A few lines of plain text: documents through the stages, tokens, the mixture, and where the page is.

    Args:
        report: As `write_report` takes it.
        folder: Where the report was written.
    """
    report = _plain(report)
    lines = [f"Corpus {report.get('name') or ''}".rstrip() + f". {_in_words(report)}"]
    stages = _writing_stages(report)
    # Many stages: those that dropped most, in their order.
    listed = sorted(range(len(stages)), key=lambda i: -_dropped(stages[i]))[:LISTED_STAGES]
    rows: list[tuple[str, ...]] = [("stage", "documents in", "out", "dropped for")]
    for stage in (stages[i] for i in sorted(listed)):
        reasons = [f"{reason} {_count(_dropped(stage, reason=reason))}" for reason in _reasons(stage)]
        dropped = ", ".join(reasons[:3]) + (f", and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        documents = (_count(_total(stage, name)) for name in ("documents_in", "documents_out"))
        rows.append((str(stage.get("name") or ""), *documents, dropped or "-"))
    if stages:
        lines += _aligned(rows)
    tokens = {
        "tokens": {split: numbers.get("tokens") or 0 for split, numbers in (report.get("splits") or {}).items()},
        "tokens by source": {
            source: sum(numbers.values()) for source, numbers in (report.get("tokens_by_source") or {}).items()
        },
    }
    groups = [
        f"{title}: " + ", ".join(f"{name} {_count(number)}" for name, number in numbers.items())
        for title, numbers in tokens.items()
        if numbers
    ]
    if groups:
        lines.append("; ".join(groups))
    if mixed := (report.get("mixture") or {}).get("sources"):
        shares = (
            f"{row.get('source')} {_share(row.get('realised'))} (wanted {_share(row.get('weight_normalised'))}, "
            f"{_figure_or_dash(row.get('epochs'))} epochs)"
            for row in mixed
        )
        lines.append("mixture: " + ", ".join(shares))
    if contamination := report.get("contamination"):
        found = (
            f"{name} {_count(numbers.get('dirty') or 0)} (left: {_count(numbers.get('left_in_corpus') or 0)})"
            for name, numbers in contamination.items()
        )
        lines.append("benchmark examples found in the corpus: " + ", ".join(found))
    if rows_left_out := (report.get("bad_rows") or {}).get("count"):
        lines.append(f"malformed rows left out: {_count(rows_left_out)}")
    if problems := reconciles(report):
        lines.append(f"WARNING, the accounts do not add up ({len(problems)} places): {problems[0]}")
    lines.append(f"report: {(folder or Path()) / 'report.html'}")
    return lines


def _share(share: float | None) -> str:
    return "-" if share is None else _percent(share)


def _figure_or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:,.2f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first and last column to the left, numbers to the right."""
    widths = [max(_columns(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        name, *numbers = (" " * (width - _columns(cell)) for cell, width in zip(row, widths))
        cells = [row[0] + name, *(space + cell for space, cell in zip(numbers, row[1:3])), row[3]]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _in_words(report: Report) -> str:
    """The whole run in two sentences."""
    stages, tokens, seconds = _writing_stages(report), _split_total(report, "tokens"), _seconds(report)
    sentences = []
    kept_tokens = f"{_count(tokens)} tokens" if report.get("splits") else ""
    if stages:
        read, kept = _total(stages[0], "documents_in"), _total(stages[-1], "documents_out")
        share = f" ({_percent(kept / read)})" if read else ""
        size = f"{_human_bytes(_total(stages[-1], 'bytes_out'))} of text"
        size += f", {kept_tokens}" if kept_tokens else ""
        sentences.append(f"Of {_count(read)} documents, {_count(kept)}{share} were kept: {size}.")
    elif kept_tokens:
        sentences.append(f"The corpus has {kept_tokens}.")
    if seconds:
        speed = f", {_count(round(tokens / seconds))} tokens a second" if tokens else ""
        sentences.append(f"The stages took {_duration(seconds)}{speed}.")
    return " ".join(sentences) or "No stage was run."


# --- HTML ------------------------------------------------------------------------------------------------------------


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def _html(value: Any) -> Html:
    """The value for a page: text escaped, numbers with separators, nothing as a dash."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("–")
    if isinstance(value, bool):
        return Html("yes" if value else "no")
    if isinstance(value, (int, float)):
        return Html(_count(value))
    # Control characters have no place in HTML, escaped or not.
    text = str(value).encode("utf-8", "replace").decode()
    return Html(html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)))


def _exact(number: float | None, show: Callable[[float], str], unit: str = "") -> Html:
    """A rounded number that carries its exact value."""
    if number is None:
        return _html(None)
    exact = f"{number:,} {unit}".strip()
    return Html(f'<data value="{number}" title="{exact}">{_html(show(number))}</data>')


def _alarming(number: float | None) -> Html:
    """A number that should be nothing."""
    return Html(f"<strong>{_html(number)}</strong>") if number else _html(number)


def _bytes(number: float | None) -> Html:
    return _exact(number, _human_bytes, "bytes")


def _ratio(number: float | None) -> Html:
    return _exact(number, lambda value: f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}")


def _part(number: float | None, whole: float | None) -> Html:
    """A share of the whole, in percent."""
    return _exact(number / whole, _percent) if number is not None and whole else _html(None)


def _join(pieces: Sequence[Any], between: str = "") -> Html:
    return Html(between.join(_html(piece) for piece in pieces))


def _table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], texts: int = 1, total: bool = False
) -> Html:
    """A table that scrolls within the page; the first `texts` columns name the row, `total` sets off the last row."""
    if not rows:
        return Html("")
    titles = "".join(
        f'<th scope="col"{" class=text" if column < texts else ""}>{_html(name)}</th>'
        for column, name in enumerate(head)
    )
    body = []
    for number, row in enumerate(rows):
        names = "".join(f'<th scope="row">{_html(cell)}</th>' for cell in row[:texts])
        cells = "".join(f"<td>{_html(cell)}</td>" for cell in row[texts:])
        last = " class=total" if total and number == len(rows) - 1 else ""
        body.append(f"<tr{last}>{names}{cells}</tr>")
    # Reached by the keyboard, so that it can be scrolled by it.
    return Html(
        f'<div class="scroll" role="region" aria-label="{_html(caption)}" tabindex="0"><table>'
        f"<caption>{_html(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _details(summary: Any, *content: Any) -> Html:
    return Html(f"<details><summary>{_html(summary)}</summary>{_join(content)}</details>")


def _paragraph(text: Any) -> Html:
    return Html(f"<p>{_html(text)}</p>")


def _list(items: Sequence[Any]) -> Html:
    return Html(f"<ul>{''.join(f'<li>{_html(item)}</li>' for item in items)}</ul>")


def _document(document: Report, label: str = "") -> Html:
    """A document: where it comes from, and the beginning of its text."""
    text = str(document.get("text") or "")
    text = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    where = f"{label}{document.get('source') or ''} {document.get('id') or ''}".strip()
    # A text may run from right to left, or contain marks that turn what follows it around.
    return Html(
        f'<figure class="document"><figcaption><bdi>{_html(where)}</bdi></figcaption>'
        f'<pre dir="auto">{_html(text)}</pre></figure>'
    )


# --- Plots -----------------------------------------------------------------------------------------------------------


def _colour(series: int) -> str:
    """A colour of which the page makes its own, by light and dark: `_Plot.html` exchanges it."""
    return f"#ff00{min(series, OTHER_COLOUR):02}"


class _Plot:
    """One set of axes that becomes inline SVG with the page's fonts and colours."""

    def __init__(self, height: float):
        # Not pyplot: no global state, no window.
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(PLOT_WIDTH_INCHES, height), layout="constrained")
        self.axes = self.figure.add_subplot()
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.patch.set_visible(False)
        self.axes.set_axisbelow(True)
        self._texts: list[str] = []

    def stand_in(self, text: str) -> str:
        """What to draw in place of a text: letters that matplotlib knows, about as wide."""
        text = _shorten(text, LABEL_COLUMNS)
        self._texts.append(text)
        start = f"zq{len(self._texts) - 1}q"
        return start + "n" * (_columns(text) - len(start))

    def html(self, name: str, caption: str, alt: str, legend: Sequence[tuple[int, str]] = ()) -> Html:
        """The plot with a caption, a legend of (colour, name), and words for those who cannot see it."""
        import matplotlib

        file = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["DejaVu Sans"]}):
            self.figure.savefig(file, format="svg", transparent=True)
        svg = file.getvalue()
        view = re.search(r'viewBox="[^"]*"', svg)
        assert view is not None
        svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
        # What matplotlib says of itself and the time.
        svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
        # One page holds many plots, and an id may occur once.
        svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
        svg = re.sub(r"#ff00(\d\d)", lambda match: f"var(--colour-{int(match[1])})", svg)
        svg = svg.replace("#000000", "currentColor")
        svg = re.sub(r"zq(\d+)qn*", lambda match: _html(self._texts[int(match[1])]), svg)
        keys = "".join(
            f'<li><span class="key" style="background: var(--colour-{min(colour, OTHER_COLOUR)})"></span>{_html(label)}</li>'
            for colour, label in legend
        )
        width = round(PLOT_WIDTH_INCHES * 96)
        return Html(
            f'<figure class="plot" id="{name}">'
            + (f'<ul class="legend">{keys}</ul>' if keys else "")
            + f'<svg {view[0]} width="{width}" role="img" aria-label="{_html(alt)}">{svg}'
            + f"<figcaption>{_html(caption)}</figcaption></figure>"
        )


def _legend(sources: Sequence[str]) -> list[tuple[int, str]]:
    legend = list(enumerate(sources[:OTHER_COLOUR]))
    if others := sources[OTHER_COLOUR:]:
        legend.append((OTHER_COLOUR, f"others: {', '.join(others)}"))
    return legend


def _bars(
    name: str,
    title: str,
    caption: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    show: Callable[[float], str],
    stacked: bool = True,
    log: bool = False,
) -> Html:
    """Horizontal bars, one (stacked) or one of each series (not stacked) for each label, from the top down."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    lengths = [sum(values) if stacked else max(values) for values in zip(*series.values())]
    largest = max(lengths, default=0)
    if largest <= 0:
        return Html("")
    lines = 1 if stacked else len(series)
    plot = _Plot(height=0.6 + 0.27 * len(labels) * (0.75 * lines + 0.25))
    axes, thickness = plot.axes, 0.8 / lines
    starts = [0.0] * len(labels)
    for number, values in enumerate(series.values()):
        offset = 0.0 if stacked else (number - (lines - 1) / 2) * thickness
        places = [place + offset for place in range(len(labels))]
        bars = axes.barh(places, values, thickness, left=None if log else starts, color=_colour(number), log=log)
        if stacked:
            starts = [start + value for start, value in zip(starts, values)]
        if number == len(series) - 1 or not stacked:
            ends = [show(value) for value in (starts if stacked else values)]
            axes.bar_label(bars, ends, padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), [plot.stand_in(label) for label in labels], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    if log:
        axes.set_xlim(0.5, largest * 8)
        axes.minorticks_off()
    else:
        axes.set_xlim(0, largest * 1.25)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _without_zeros(show(value))))
    axes.grid(axis="x", color="#808080", alpha=0.3)
    axes.set_title(title, fontsize=9, loc="left")
    alt = f"{title}. " + "; ".join(
        f"{label}: "
        + ", ".join(
            f"{key} {show(values[i])}" if len(series) > 1 else show(values[i]) for key, values in series.items()
        )
        for i, label in enumerate(labels)
    )
    return plot.html(name, caption, alt, _legend(list(series)) if len(series) > 1 else ())


def _histogram(name: str, title: str, caption: str, series: Mapping[str, Sequence[float]]) -> Html:
    """Outlines of histograms over 0 to 1, each as shares of its own total."""
    from matplotlib.ticker import PercentFormatter

    totals = {key: sum(counts) for key, counts in series.items()}
    if not any(totals.values()):
        return Html("")
    plot = _Plot(height=2.6)
    axes, alt = plot.axes, [title]
    for number, (key, counts) in enumerate(series.items()):
        if totals[key]:
            shares = [count / totals[key] for count in counts]
            edges = [i / len(counts) for i in range(len(counts) + 1)]
            axes.stairs(shares, edges, fill=True, color=_colour(number), alpha=0.25)
            axes.stairs(
                shares, edges, color=_colour(number), linewidth=1.6, linestyle=("-", "--", ":", "-.")[number % 4]
            )
            mean = sum(share * (i + 0.5) / len(counts) for i, share in enumerate(shares))
            alt.append(f"{key}: {_count(totals[key])} documents, mean score {mean:.2f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(labelsize=8)
    axes.grid(color="#808080", alpha=0.3)
    axes.set_title(plot.stand_in(title), fontsize=9, loc="left")
    axes.set_xlabel("score (1: like the curated sources)", fontsize=8)
    return plot.html(name, caption, ". ".join(alt), _legend(list(series)))


# --- Sections of the page --------------------------------------------------------------------------------------------


def _funnel(report: Report) -> Html:
    stages, sources = _writing_stages(report), _sources(report)
    if not stages:
        return Html("")
    labels = ["read", *(str(stage.get("name") or "") for stage in stages)]
    labels[0] = "before all stages"
    plots, tables = [], []
    for unit, show in (("documents", _human_count), ("bytes", _human_bytes)):
        series = {
            source: [
                _by_source(stages[0]).get(source, {}).get(f"{unit}_in", 0),
                *(_by_source(stage).get(source, {}).get(f"{unit}_out", 0) for stage in stages),
            ]
            for source in sources
        }
        caption = (
            f"Each bar is what is left after a stage, in {unit}, coloured by source; the step down to it was dropped."
        )
        plots.append(_bars(f"funnel-{unit}", f"{unit} left after each stage", caption, labels, series, show))
        cell = _bytes if unit == "bytes" else _html
        rows = [
            (
                label,
                *(cell(series[source][i]) for source in sources),
                cell(sum(series[source][i] for source in sources)),
            )
            for i, label in enumerate(labels)
        ]
        tables.append(_table(f"{unit} left after each stage", ("after", *sources, "all"), rows))
    return _join((Html(f'<div class="plots">{_join(plots)}</div>'), _details("The numbers of these plots", *tables)))


def _stages(report: Report) -> Html:
    per_byte = _tokens_per_byte(report)
    writing = [id(stage) for stage in _writing_stages(report)]
    rows = []
    for stage in report.get("stages") or []:
        size, seconds = _total(stage, "bytes_in"), stage.get("seconds")
        speed = size / seconds if size and seconds else None
        writes = id(stage) in writing
        rows.append(
            (
                f"{stage.get('name') or ''}{' (resumed)' if stage.get('resumed') else ''}",
                _total(stage, "documents_in"),
                _total(stage, "documents_out") if writes else None,
                _dropped(stage),
                _bytes(size),
                _bytes(_total(stage, "bytes_out")) if writes else None,
                _exact(seconds, _duration, "seconds"),
                _exact(stage.get("cpu_seconds"), _duration, "seconds"),
                stage.get("tasks"),
                stage.get("workers"),
                _exact(speed, lambda value: f"{value / 1e6:,.2f}", "bytes a second"),
                round(speed * per_byte) if speed and per_byte else None,
            )
        )
    if not rows:
        return Html("")
    note = "MB/s and tokens/s are of the text that a stage reads, by the clock on the wall"
    if per_byte:
        note += f"; tokens are reckoned at the corpus's {per_byte:.4f} a byte"
    if any(stage.get("resumed") for stage in report.get("stages") or []):
        note += ". A resumed stage found part of its tasks done by an earlier run"
    head = ("stage", "documents in", "documents out", "dropped", "bytes in", "bytes out", "time", "CPU time")
    return _join(
        (
            _table("Stages, in their order", (*head, "tasks", "workers", "MB/s", "tokens/s"), rows),
            _paragraph(f"{note}."),
        )
    )


def _drops(report: Report) -> Html:
    sources = _sources(report)
    pairs = [(stage, reason) for stage in report.get("stages") or [] for reason in _reasons(stage)]
    rows = [
        (
            stage.get("name"),
            reason,
            *(_dropped(stage, source, reason) for source in sources),
            _dropped(stage, reason=reason),
            _part(_dropped(stage, reason=reason), _total(stage, "documents_in")),
            _bytes(_dropped(stage, reason=reason, unit="bytes")),
        )
        for stage, reason in pairs
    ]
    most = sorted(pairs, key=lambda pair: -_dropped(pair[0], reason=pair[1]))[:PLOTTED_REASONS]
    plot = _bars(
        "drops-documents",
        "documents dropped, by reason",
        "Each bar is one reason, the most frequent first, coloured by source: the longer, the more documents it took.",
        [reason for _, reason in most],
        {source: [_dropped(stage, source, reason) for stage, reason in most] for source in sources},
        _human_count,
    )
    head = ("stage", "reason", *sources, "all documents", "share of those read", "bytes")
    return _join((plot, _table("Documents dropped, by stage, reason and source", head, rows, texts=2)))


def _examples(report: Report) -> Html:
    return _join(
        [
            _details(
                f"{stage.get('name')}: {reason} ({_count(_dropped(stage, reason=reason))} documents)",
                *(_document(example) for example in examples),
            )
            for stage in report.get("stages") or []
            for reason, examples in sorted((stage.get("examples") or {}).items())
            if examples
        ]
    )


def _size_bins(sizes: Mapping[str, int]) -> dict[str, int]:
    """Clusters by size in bins that double: 2, 3-4, 5-8, and so on; empty bins are left out."""
    bins: dict[int, int] = {}
    for size, clusters in sizes.items():
        power = (int(size) - 1).bit_length()
        bins[power] = bins.get(power, 0) + clusters
    lows = {power: 2 ** (power - 1) + 1 for power in bins if power > 0}
    return {
        f"{lows[power]:,}" if lows[power] == 2**power else f"{lows[power]:,} to {2**power:,}": bins[power]
        for power in sorted(lows)
        if bins[power]
    }


def _duplicates(report: Report) -> Html:
    numbers = report.get("duplicates") or {}
    if not numbers:
        return Html("")
    bins = _size_bins(numbers.get("cluster_sizes") or {})
    plot = _bars(
        "duplicates-sizes",
        "clusters, by documents in them",
        "Each bar is the number of clusters of that size, on a scale where each line is ten times the one before.",
        list(bins),
        {"clusters": list(bins.values())},
        _human_count,
        log=True,
    )
    between = numbers.get("pairs_between_sources") or {}
    largest = [
        _details(
            f"{_count(cluster.get('size') or 0)} documents, kept: {(cluster.get('kept') or {}).get('source')} "
            f"{(cluster.get('kept') or {}).get('id')}",
            _document(cluster.get("kept") or {}, "kept: "),
            *(_document(removed, "removed: ") for removed in (cluster.get("removed") or [])[:SHOWN_REMOVED]),
        )
        for cluster in numbers.get("largest") or []
    ]
    return _join(
        (
            _table(
                "Near-duplicates",
                ("", "clusters", "documents in them", "removed"),
                [("all sources", *(numbers.get(name) for name in ("clusters", "documents_in_clusters", "removed")))],
            ),
            plot,
            _table("Clusters by size", ("documents in a cluster", "clusters"), list(bins.items())),
            _table("Pairs between sources", ("kept -> removed", "pairs"), sorted(between.items())),
            Html("<h3>The largest clusters</h3>") if largest else "",
            *largest,
        )
    )


def _contamination(report: Report) -> Html:
    names = ("examples", "too_short", "dirty", "left_in_corpus", "documents_cut", "documents_dropped")
    rows = [
        (
            benchmark,
            *(numbers.get(name) for name in names[:3]),
            _part(numbers.get("dirty"), numbers.get("examples")),
            _alarming(numbers.get("left_in_corpus")),
            *(numbers.get(name) for name in names[4:]),
        )
        for benchmark, numbers in (report.get("contamination") or {}).items()
    ]
    head = ("benchmark", "examples", "too short to look for", "found in the corpus", "of all", "left in the corpus")
    return _table("Benchmark examples found in the corpus", (*head, "documents cut", "documents dropped"), rows)


def _quality(report: Report) -> Html:
    languages = report.get("quality") or {}
    plots = [
        _histogram(
            f"quality-{number}",
            f"scores, {language}",
            "Each outline shows which share of its documents got each score; the less they overlap, the better the filter.",
            numbers.get("scores") or {},
        )
        for number, (language, numbers) in enumerate(languages.items())
    ]
    rows = [
        (
            language,
            numbers.get("positives"),
            numbers.get("negatives"),
            numbers.get("filtered"),
            numbers.get("why"),
            _ratio(numbers.get("held_out_accuracy")),
            _ratio(numbers.get("held_out_auc")),
            *(_part((numbers.get("expected_kept") or {}).get(name), 1) for name in ("positives", "negatives")),
            numbers.get("kept"),
            numbers.get("dropped"),
            _part(numbers.get("kept"), (numbers.get("kept") or 0) + (numbers.get("dropped") or 0)),
        )
        for language, numbers in languages.items()
    ]
    head = (
        "language",
        "positives",
        "negatives",
        "filtered",
        "why not",
        "held-out accuracy",
        "held-out AUC",
        "expected kept of positives",
        "expected kept of negatives",
        "kept",
        "dropped",
        "kept of all",
    )
    return (
        _join((Html(f'<div class="plots">{_join(plots)}</div>'), _table("Quality filters", head, rows)))
        if rows
        else Html("")
    )


def _fertility(report: Report) -> Html:
    rows = report.get("fertility") or []
    if not rows:
        return Html("")
    languages = [str(row.get("language") or "unknown") for row in rows]
    plots = [
        _bars(
            f"fertility-{unit}",
            f"tokens per {unit}",
            f"Each bar is one language: the longer, the more tokens the same {unit}s cost.",
            languages,
            {"tokens": [row.get(f"tokens_per_{unit}") or 0 for row in rows]},
            lambda value: f"{value:.3g}",
        )
        for unit in ("word", "byte")
    ]
    sizes = ("documents", "words", "bytes", "characters", "tokens")
    table = [
        (
            language,
            *(_bytes(row.get(name)) if name == "bytes" else row.get(name) for name in sizes),
            *(_ratio(row.get(f"tokens_per_{unit}")) for unit in ("word", "byte", "document")),
        )
        for language, row in zip(languages, rows)
    ]
    head = ("language", *sizes, "tokens per word", "tokens per byte", "tokens per document")
    return _join((Html(f'<div class="plots">{_join(plots)}</div>'), _table("Fertility, by language", head, table)))


def _tokenizer(report: Report) -> Html:
    tokenizer = report.get("tokenizer") or {}
    if not tokenizer:
        return Html("")
    made = "trained on a sample of the corpus" if tokenizer.get("trained") else "given, not trained here"
    sample = [
        (row.get("source"), row.get("language") or "unknown", _bytes(row.get("bytes")))
        for row in tokenizer.get("sample") or []
    ]
    return _join(
        (
            _paragraph(f"{_html(tokenizer.get('vocab_size'))} tokens in the vocabulary; {made}."),
            _table("What the tokenizer was trained on", ("source", "language", "bytes"), sample, texts=2),
        )
    )


def _splits(report: Report) -> Html:
    splits = report.get("splits") or {}
    rows: list[tuple[Any, ...]] = [
        (split, numbers.get("documents"), numbers.get("tokens"), _bytes(numbers.get("bytes")))
        for split, numbers in splits.items()
    ]
    if len(rows) > 1:
        documents, tokens, size = (_split_total(report, unit) for unit in ("documents", "tokens", "bytes"))
        rows.append(("all", documents, tokens, _bytes(size)))
    by_source = report.get("tokens_by_source") or {}
    names = list(dict.fromkeys([*splits, *(split for numbers in by_source.values() for split in numbers)]))
    whole = sum(sum(numbers.values()) for numbers in by_source.values())
    tokens_of = [
        (source, *(numbers.get(name, 0) for name in names), sum(numbers.values()), _part(sum(numbers.values()), whole))
        for source, numbers in by_source.items()
    ]
    return _join(
        (
            _table("Splits", ("split", "documents", "tokens", "bytes"), rows, total=len(rows) > 1),
            _table("Tokens by source", ("source", *names, "all", "of the corpus"), tokens_of),
        )
    )


def _mixture(report: Report) -> Html:
    mixture = report.get("mixture") or {}
    rows = mixture.get("sources") or []
    if not rows:
        return Html("")
    plot = _bars(
        "mixture-shares",
        "share of the training tokens",
        "Two bars for each source: the share its weight asks for and the share it gets; they should be equally long.",
        [str(row.get("source") or "") for row in rows],
        {
            "wanted": [row.get("weight_normalised") or 0 for row in rows],
            "realised": [row.get("realised") or 0 for row in rows],
        },
        _percent,
        stacked=False,
    )
    table = [
        (
            row.get("source"),
            _ratio(row.get("weight")),
            _exact(row.get("weight_normalised"), _percent),
            _exact(row.get("realised"), _percent),
            row.get("tokens"),
            _ratio(row.get("epochs")),
        )
        for row in rows
    ]
    head = ("source", "weight", "wanted", "realised", "tokens", "epochs")
    return _join(
        (
            _paragraph(f"For {_html(mixture.get('train_tokens'))} training tokens."),
            plot,
            _table("The mixture, wanted and realised", head, table),
        )
    )


def _bad_rows(report: Report) -> Html:
    bad = report.get("bad_rows") or {}
    if not bad.get("count"):
        return Html("")
    examples = bad.get("examples") or []
    return _join(
        (
            _paragraph(f"{_count(bad['count'])} rows could not be read and were left out. The first {len(examples)}:"),
            _list(examples),
        )
    )


def _recipe(report: Report) -> Html:
    if not report.get("recipe"):
        return Html("")
    return Html(f"<pre>{_html(yaml.safe_dump(report['recipe'], sort_keys=False, allow_unicode=True))}</pre>")


SECTIONS: Sequence[tuple[str, str, Callable[[Report], Html]]] = (
    ("funnel", "What is left after each stage", _funnel),
    ("stages", "Stages", _stages),
    ("drops", "What was dropped, and why", _drops),
    ("examples", "Examples of what was dropped", _examples),
    ("duplicates", "Near-duplicates", _duplicates),
    ("contamination", "Benchmarks in the corpus", _contamination),
    ("quality", "Quality filter", _quality),
    ("tokenizer", "Tokenizer", _tokenizer),
    ("fertility", "Fertility of the tokenizer", _fertility),
    ("splits", "Tokens", _splits),
    ("mixture", "Mixture", _mixture),
    ("bad-rows", "Malformed rows", _bad_rows),
    ("recipe", "Recipe", _recipe),
)

# Stages that a recipe may switch off: the page says so.
OPTIONAL_SECTIONS = ("duplicates", "contamination", "quality", "mixture")

STYLE = """
:root {
  --page: #fff; --text: #1b1f24; --faint: #59636e; --line: #d1d9e0; --panel: #f5f7f9; --warn: #8a3b00; --link: #0550ae;
  --colour-0: #0072b2; --colour-1: #d55e00; --colour-2: #009e73; --colour-3: #b3579a; --colour-4: #b58900;
  --colour-5: #3aa0d8; --colour-6: #7a4b2a; --colour-7: #8c959f;
}
@media screen { :root { color-scheme: light dark; } }
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --text: #e6e9ec; --faint: #a3adb8; --line: #39414a; --panel: #1e2329; --warn: #ffb077;
    --link: #7cb7ff; --colour-0: #56a8e0; --colour-1: #f0883e; --colour-2: #35b88a; --colour-3: #d98cc4;
    --colour-4: #e0bb4a; --colour-5: #9ad4f5; --colour-6: #b98a63; --colour-7: #8c959f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 74rem; background: var(--page); color: var(--text); line-height: 1.5;
  font-family: system-ui, "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; margin: 0.5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; border-bottom: 1px solid var(--line); padding-bottom: 0.2rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
a { color: var(--link); }
nav ul, .legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0; margin: 0.5rem 0; list-style: none; }
.faint, figcaption, caption { color: var(--faint); font-size: 0.85rem; }
.warning { border-left: 4px solid var(--warn); background: var(--panel); padding: 0.5rem 1rem; margin: 1rem 0; }
strong { color: var(--warn); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding-bottom: 0.3rem; }
th, td { text-align: right; padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); white-space: nowrap; word-break: keep-all; }
thead th { vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
th.text, tbody th { text-align: left; font-weight: 600; }
tbody th { font-weight: 400; white-space: normal; min-width: 7rem; max-width: 18rem; }
tr.total > * { border-top: 2px solid var(--line); font-weight: 600; }
figure { margin: 1rem 0; }
.plots { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
.plot { width: 452px; max-width: 100%; }
.plot svg { display: block; max-width: 100%; height: auto; }
.plot svg text { font-family: inherit !important; fill: currentColor !important; }
.legend { font-size: 0.85rem; margin: 0 0 0.2rem; }
.key { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em; print-color-adjust: exact; }
details { margin: 0.3rem 0; }
summary { cursor: pointer; }
pre { background: var(--panel); padding: 0.6rem; margin: 0.2rem 0; white-space: pre-wrap; font-size: 0.85rem; }
.document { margin: 0.5rem 0 0.5rem 1rem; }
.document pre { font-family: inherit; unicode-bidi: isolate; max-height: 14rem; overflow-y: auto; }
@media print {
  nav { display: none; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 0.1rem 0.3rem; }
  thead th, tbody th { min-width: 0; }
  .plot, tr, .document { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  .document pre { max-height: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


def _page(report: Report) -> str:
    """The whole page."""
    sections = [(id, title, _html(make(report))) for id, title, make in SECTIONS]
    present = [(id, title, content) for id, title, content in sections if content]
    name = _html(report.get("name") or "corpus")
    made = [f"hfgpt {report['hfgpt_version']}" if report.get("hfgpt_version") else "", report.get("created") or ""]
    absent = [title.lower() for id, title, content in sections if id in OPTIONAL_SECTIONS and not content]
    links = "".join(f'<li><a href="#{id}">{title}</a></li>' for id, title, _ in present)
    body = "".join(
        f'<section id="{id}" aria-labelledby="{id}-title"><h2 id="{id}-title">{title}</h2>{content}</section>'
        for id, title, content in present
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: corpus report</title><style>{STYLE}</style></head><body>\n"
        f"<header><h1>{name}</h1><p class=faint>{_html(', '.join(part for part in made if part))}</p>"
        f"<p>{_html(_in_words(report))}"
        f"{_html(' Not part of this run: ' + ', '.join(absent) + '.') if absent else ''}</p></header>\n"
        f"{_accounts(report)}"
        f"<nav aria-label=Sections><ul>{links}</ul></nav>\n<main>{body}</main>\n</body></html>\n"
    )


def _accounts(report: Report) -> Html:
    problems = reconciles(report)
    if problems:
        title = "<strong>Warning: the accounts do not add up.</strong>"
        return Html(f'<aside class="warning">{title}{_list(problems)}</aside>')
    if not _writing_stages(report):
        return Html("")
    return _paragraph(
        "The accounts add up: in every stage and source, documents in less those dropped are documents out."
    )
