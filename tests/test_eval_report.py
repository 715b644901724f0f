"""The page that runs are shown in: what stands in it, that it needs nothing else, and how a real browser shows it."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import invented_runs
import pytest

from edge_rag.errors import EdgeRagError, UsageError
from edge_rag.evaluation import plot
from edge_rag.evaluation.predictions import Interval, Run
from edge_rag.evaluation.report import markdown_table, write_report

HOSTILE = "</script></bdi></dd><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&\x00\ud800\u202e"


VOID = ("meta", "wbr", "link", "img")


class Outline(HTMLParser):
    """Notes what tests ask for: tags with their attributes, texts by tag, and whether tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.misplaced: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.misplaced += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.misplaced.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    asked, mixed = invented_runs.questions(90), invented_runs.questions(60, unanswerable=True)
    return [
        *(invented_runs.run(arm, asked) for arm in invented_runs.ARMS),
        *(invented_runs.run(arm, mixed, set="mixed/harbours", skill=-0.1) for arm in ("closed", "gold", "gold+4")),
    ]


@pytest.fixture(scope="module")
def written(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(runs, path)
    return path


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return written.read_text(encoding="utf-8")


def page_of(tmp_path: Path, *runs: Run) -> str:
    write_report(runs, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", "".join(text for _, text in Outline(html).texts))


# ---- what stands in the page


def test_tags_close_in_order_and_ids_are_unique(html: str) -> None:
    outline = Outline(html)
    assert not outline.misplaced
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in outline.named("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_the_page_needs_nothing_from_outside_and_no_script(html: str) -> None:
    outline = Outline(html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in outline.tags}
    assert not [
        a for _, a in outline.tags if a.keys() & {"src", "srcset", "style"} or any(k.startswith("on") for k in a)
    ]
    assert "url(" not in html and "@import" not in html
    policy = next(a["content"] for a in outline.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_headings_are_in_order_and_tables_have_scopes(html: str) -> None:
    outline = Outline(html)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(cell.get("scope") in ("col", "row", "rowgroup") for cell in outline.named("th"))
    assert len(outline.named("table")) > 5


def test_every_row_of_a_table_is_as_long_as_its_head(html: str) -> None:
    for table in re.findall(r"<table>.*?</table>", html, re.S):
        lengths = {
            sum(int(wide or 1) for wide in re.findall(r"<t[hd](?=[ >])(?:[^>]*colspan=\"(\d+)\")?", row))
            for row in re.findall(r"<tr>.*?</tr>", table, re.S)
        }
        assert len(lengths) == 1


def test_a_command_that_made_several_runs_is_given_once(runs: list[Run], tmp_path: Path) -> None:
    text = page_of(
        tmp_path, *(replace(run, config={**run.config, "command": "edge-rag eval run x"}) for run in runs[:3])
    )
    assert text.count("edge-rag eval run x") == 1


def test_every_plot_says_in_words_what_it_shows(html: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(plots) >= 6
    for drawn in plots:
        picture = ElementTree.fromstring(drawn)
        for part in ("title", "desc"):
            found = picture.find(f"{{http://www.w3.org/2000/svg}}{part}")
            assert found is not None and found.text
        assert picture.get("role") == "img"


def test_every_figure_of_every_run_stands_in_the_page(runs: list[Run], html: str) -> None:
    text = plain(html)
    for run in runs:
        for name, figure in run.summary.metrics.items():
            value = f"{figure.value:,.0f}" if name.endswith("tokens") and figure.value >= 100 else None
            assert (value or f"{figure.value * (1 if name.endswith('tokens') else 100):.1f}") in text, name


def test_a_metric_and_a_setting_that_nobody_knows_are_shown(runs: list[Run], tmp_path: Path) -> None:
    metrics = {**runs[1].summary.metrics, "bert_<score>": Interval(0.4321, 0.4111, 0.4552, 90)}
    odd = replace(runs[1], summary=replace(runs[1].summary, metrics=metrics), config={**runs[1].config, "mood": "<b>"})
    text = plain(page_of(tmp_path, odd))
    assert "bert <score>" in text and "43.2" in text and "41.1–45.5" in text
    assert "mood" in text


def test_a_run_with_only_a_set_and_an_arm_is_enough(runs: list[Run], tmp_path: Path) -> None:
    bare = replace(
        runs[0],
        config={"set": "s", "arm": "whatever"},
        predictions=(),
        summary=replace(runs[0].summary, n=0, metrics={}, risk_coverage=[], timings={}),
    )
    assert "whatever" in plain(page_of(tmp_path, bare))
    assert "| s | whatever | 0 | – | – | – |" in markdown_table([bare])


def test_the_best_is_marked_only_where_it_is_certain(tmp_path: Path) -> None:
    asked = invented_runs.questions(90)
    bad, good = invented_runs.run("closed", asked), invented_runs.run("gold", asked)
    assert page_of(tmp_path, bad, good).count("★<span") >= 3
    again = replace(good, config={**good.config, "seed": 1})
    assert "★<span" not in page_of(tmp_path, good, again)
    assert "★<span" not in page_of(tmp_path, good)


def test_lower_is_better_for_rates_of_error(tmp_path: Path) -> None:
    # recall@1 is marked at the higher, a rate of refusals nowhere: that table marks nothing
    asked = invented_runs.questions(90)
    one, two = invented_runs.run("closed", asked), invented_runs.run("given", asked)
    table = page_of(tmp_path, one, two).partition('aria-label="Refusals"')[2].partition("</table>")[0]
    assert "false refusal rate" in table and "★<span" not in table


def test_questions_say_right_or_wrong_and_which_passages_were_gold(runs: list[Run], tmp_path: Path) -> None:
    gold_run = runs[invented_runs.ARMS.index("gold+1")]
    text = plain(page_of(tmp_path, gold_run))
    for prediction in gold_run.predictions[:5]:
        assert prediction.question in text and prediction.answer in text
        assert f"{prediction.gold_ids[0]} (gold)" in text
    wrong = sum(not p.scores["contains"] and not p.refused for p in gold_run.predictions)
    assert f"Wrong: {wrong} of 90" in text


def test_questions_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    one = invented_runs.run("gold", invented_runs.questions(600))
    text = page_of(tmp_path, one)
    listed = text.count('class="question"')
    left_out = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) more are left out", text))
    assert listed <= 210
    assert listed + left_out == 600


def test_fifty_runs_stay_below_three_megabytes(tmp_path: Path) -> None:
    asked = invented_runs.questions(200)
    made = [invented_runs.run(arm, asked) for arm in ("given", "gold+8")]
    many = [replace(made[n % 2], config={**made[n % 2].config, "set": f"set {n // 5}", "seed": n}) for n in range(50)]
    write_report(many, tmp_path / "many.html")
    assert (tmp_path / "many.html").stat().st_size < 3_000_000


def test_hostile_texts_are_only_texts(runs: list[Run], tmp_path: Path) -> None:
    def spoil(run: Run) -> Run:
        predictions = tuple(
            replace(
                p,
                question=HOSTILE,
                answers=(HOSTILE, HOSTILE * 2),
                output="x" * 100_000,
                answer=HOSTILE,
                shown=(HOSTILE, *p.shown),
                gold_ids=(HOSTILE, *p.gold_ids),
                cited=(HOSTILE,),
            )
            for p in run.predictions
        )
        config: dict[str, Any] = dict.fromkeys(run.config, HOSTILE) | {HOSTILE: [HOSTILE], "arm": run.config["arm"]}
        metrics = {**run.summary.metrics, HOSTILE: Interval(0.5, 0.4, 0.6, 90)}
        return replace(run, config=config, predictions=predictions, summary=replace(run.summary, metrics=metrics))

    html = page_of(tmp_path, spoil(runs[1]), spoil(runs[2]), spoil(runs[4]))
    outline = Outline(html)
    assert not outline.misplaced
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}
    assert not [c for c in "\x00\ud800\u202e" if c in html]
    assert "x" * 1000 not in html and "(100,000 characters)" in html
    for drawn in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(drawn)


def test_no_run_is_refused_and_an_old_report_survives_a_failure(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run"):
        write_report([], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = replace(runs[0], config={"arm": "given"})
    with pytest.raises(KeyError):
        write_report([broken], path)
    assert path.read_text() == "old"


def test_a_place_that_cannot_be_written_is_one_clear_line(runs: list[Run], tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(EdgeRagError, match="cannot be written"):
        write_report(runs[:1], tmp_path / "folder.html")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    (tmp_path / "file").touch()
    with pytest.raises(EdgeRagError, match="cannot be written"):
        write_report(runs[:1], tmp_path / "file" / "page.html")


def test_the_same_runs_give_the_same_bytes(runs: list[Run], written: Path, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()


def test_the_axes_of_the_noise_plots_say_what_they_measure(html: str) -> None:
    noise = html.partition('id="noise"')[2].partition("</section>")[0]
    for label in ("F1 (%)", "contains (%)", "distractors beside the gold passages"):
        assert f">{label}</text>" in noise


# ---- Markdown


def test_markdown_has_a_row_for_each_run_with_interval_and_n(runs: list[Run]) -> None:
    lines = markdown_table(runs[:3], ("em", "prompt_tokens", "ndcg@10")).splitlines()
    assert lines[0] == "| set | arm | n | EM | prompt tokens | nDCG@10 |"
    assert len(lines) == 5
    em = runs[0].summary.metrics["em"]
    value = f"{em.value * 100:.1f} ({em.low * 100:.1f}–{em.high * 100:.1f})"
    assert lines[2].startswith(f"| lighthouses (dev) | closed | 90 | {value} | ") and lines[2].endswith(" | – |")


def test_markdown_tells_runs_of_one_arm_apart_and_keeps_its_cells(runs: list[Run]) -> None:
    other = replace(runs[1], config={**runs[1].config, "generator": "a|b\nc"})
    lines = markdown_table([runs[1], other]).splitlines()
    assert "given · smollm2-135m-instruct" in lines[2]
    assert "given · a\\|b c" in lines[3]


# ---- plots


def test_names_of_points_do_not_touch_each_other() -> None:
    dots = [plot.Dot(f"arm {n}", 100 + n, 40 + n / 5, 35, 45) for n in range(8)]
    picture = ElementTree.fromstring(plot.scatter_plot("t", plot.Axis("x", low=0), plot.Axis("y", low=0), dots))
    places = [
        (float(t.get("x") or 0), float(t.get("y") or 0))
        for t in picture.iter("{http://www.w3.org/2000/svg}text")
        if (t.text or "").startswith("arm")
    ]
    assert len(places) == 8
    wide = 0.58 * 15 * 5
    for number, (x, y) in enumerate(places):
        assert x >= 0 and x + wide <= plot.IN_PAGE.width
        assert all(abs(x - a) >= wide - 0.2 or abs(y - b) >= 14.8 for a, b in places[:number])


def test_lines_differ_in_more_than_colour() -> None:
    series = [plot.Series(f"line {n}", [(0, n), (1, n)]) for n in range(6)]
    drawn = plot.line_plot("t", plot.Axis("x"), plot.Axis("y"), series, plot.IN_PAGE)
    lines = re.findall(r"<polyline[^>]*>", drawn)
    assert len({re.sub('points="[^"]*"', "", line) for line in lines}) == 6


def test_long_names_are_cut_to_the_width_of_the_plot() -> None:
    rows = [plot.Row("n" * 300, [(1, 0.5, 2), None])]
    drawn = plot.row_plot("t", plot.Axis("seconds", low=0), ["a", "b"], rows)
    names = [t.text or "" for t in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert any(name.endswith("n…") and len(name) < 60 for name in names)


# ---- in a real browser

needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="needs Chromium: apt-get install --no-install-recommends chromium"
)

MEASURE = """(() => {
  document.querySelectorAll('details').forEach(d => { d.open = true });
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.99) return c;
    }
    return [255, 255, 255];
  };
  const weak = new Set(), small = new Set();
  let phone_text = 99;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || e.closest('title, desc, .hidden')) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const a = light(parse(svg ? style.fill : style.color)), b = light(ground(e));
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) weak.add(e.tagName + '.' + e.className + ': ' + e.textContent);
    if (svg) phone_text = Math.min(phone_text, parseFloat(style.fontSize) * svg.clientWidth / svg.viewBox.baseVal.width);
    else if (parseFloat(style.fontSize) < 16) small.add(e.tagName + ': ' + e.textContent);
  }
  const svgs = [...document.querySelectorAll('svg')];
  const outside = svgs.flatMap(s => [...s.querySelectorAll('text')].filter(t => {
    const box = s.getBoundingClientRect(), own = t.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map(t => t.textContent));
  const overlapping = [...document.querySelectorAll('th.side')].filter(t => t.scrollWidth > t.clientWidth + 1);
  return {
    wide: document.documentElement.scrollWidth, weak: [...weak], small: [...small], phone_text, outside,
    overlapping: overlapping.map(t => t.textContent),
    svgs: svgs.map(s => [s.clientWidth, s.clientHeight]), paper: getComputedStyle(document.body).backgroundColor,
    lines: [...new Set([...document.querySelectorAll('svg .s0')].map(e => getComputedStyle(e).color))],
    title: document.title, questions: [...document.querySelectorAll('.question dl')].filter(e => e.clientHeight).length,
  };
})()"""


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Page]:
    with browser.opened() as page:
        yield page


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [browser.PHONE, browser.DESKTOP], ids=["phone", "desktop"])
def test_a_browser_shows_it_readably(tab: browser.Page, written: Path, size: tuple[int, int], dark: bool) -> None:
    tab.open(written, size, dark=dark)
    seen = tab.evaluate(MEASURE)
    assert seen["wide"] <= size[0], "the page scrolls sideways"
    assert seen["weak"] == [] and seen["small"] == []
    assert seen["phone_text"] >= 9.5
    assert seen["outside"] == [] and seen["overlapping"] == []
    assert len(seen["svgs"]) >= 6 and all(width > 200 and height > 150 for width, height in seen["svgs"])
    assert seen["paper"] == ("rgb(20, 23, 26)" if dark else "rgb(251, 251, 249)")
    assert seen["lines"] == ["rgb(108, 180, 255)" if dark else "rgb(10, 95, 168)"]
    assert tab.complaints() == []
    assert tab.requests() == [written.resolve().as_uri()]


@needs_browser
def test_a_browser_without_scripts_shows_the_same(tab: browser.Page, written: Path, runs: list[Run]) -> None:
    tab.open(written, browser.PHONE, scripts=False)
    rows = "[...document.querySelectorAll('#answers ~ .scroll tr')].map(r => [...r.cells].map(c => c.textContent))"
    cells = {row[0]: row for row in reversed(tab.evaluate(rows))}  # the first set's rows win
    for run in runs[:9]:
        em = run.summary.metrics["em"]
        assert f"{em.value * 100:.1f}" in cells[run.config["arm"]][1]
        assert f"{em.low * 100:.1f}–{em.high * 100:.1f}" in cells[run.config["arm"]][1]
    opened = "(() => { const d = document.querySelector('.run'); d.querySelector('summary').click(); return d.open })()"
    assert tab.evaluate(opened)


@needs_browser
def test_hostile_texts_do_nothing_in_a_browser(tab: browser.Page, runs: list[Run], tmp_path: Path) -> None:
    spoilt = tuple(replace(p, question=HOSTILE, answer=HOSTILE, output=HOSTILE * 99) for p in runs[1].predictions)
    path = tmp_path / "hostile.html"
    write_report([replace(runs[1], predictions=spoilt, config={**runs[1].config, "generator": HOSTILE})], path)
    tab.open(path, browser.PHONE)
    seen = tab.evaluate(MEASURE)
    assert seen["title"] == "Answers to lighthouses (dev)"
    assert seen["wide"] <= browser.PHONE[0]
    assert tab.complaints() == [] and tab.requests() == [path.resolve().as_uri()]


@needs_browser
def test_the_watch_on_requests_and_complaints_sees_them(tab: browser.Page, written: Path, tmp_path: Path) -> None:
    """Without this, a browser that reports nothing would pass for a page that does nothing."""
    page = written.read_text(encoding="utf-8")
    leaky = page.replace(
        "<body>", '<body><img src="http://example.invalid/x.png"><script>console.log("hello")</script>'
    )
    path = tmp_path / "leaky.html"
    path.write_text(leaky, encoding="utf-8")
    tab.open(path, browser.DESKTOP)
    assert any("Content Security Policy" in complaint for complaint in tab.complaints())
    path.write_text(re.sub("<meta http-equiv[^>]*>", "", leaky), encoding="utf-8")
    tab.open(path, browser.DESKTOP)
    assert "http://example.invalid/x.png" in tab.requests()
    assert any("hello" in complaint for complaint in tab.complaints())


@needs_browser
def test_it_prints_on_pages(tab: browser.Page, written: Path) -> None:
    tab.open(written, browser.DESKTOP)
    pages = tab.pdf().count(b"/Type /Page\n")
    assert 2 <= pages <= 30
