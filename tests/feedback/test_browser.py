"""The pages in a real browser: keys, dragging, lost connections, hostile texts, accessibility.

Needs the extra `browser` and Chromium (apt-get install chromium). With TEXTRL_SCREENSHOTS=FOLDER
the pictures of the documentation are written there.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from labels import Served, or_fail

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra browser")

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PROMPT = "Explain the moon landing to a six-year-old in a few sentences."
OUTPUTS = [
    "People went to the moon in a big rocket, walked about, and came home with a bag of stones.",
    "Explain gravity. Explain satellites. Explain war.",
    "The moon is a natural satellite of the Earth.",
    "In 1969 two people stood on the moon, and a third one waited for them up above.",
]
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 320, "height": 640}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        or_fail("no Chromium here (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page on which nothing may go wrong unseen: requests, errors and dialogs are noted."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(viewport=WIDE, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)  # ms; a loaded machine is slow, not wrong
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))

    def task(self, link: str) -> Any:
        self.page.goto(link)
        self.page.locator("#task:not([hidden])").wait_for()
        return self.page

    def done(self, count: int) -> None:
        try:
            self.page.get_by_text(f": {count} done").wait_for()
        except Exception as error:
            said = self.page.locator("#fault, #banner, #refused-text, #progress, #hint")
            focused = self.page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
            raise AssertionError(f"{said.all_inner_texts()}, focus on {focused}") from error

    def at(self, task: int) -> None:
        self.page.locator(f"#task[data-task='{task}']:not([hidden])").wait_for()

    def faults(self) -> list[Any]:
        """Return what axe finds, WCAG 2.2 AA rules included."""
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = axe.Axe().run(self.page, options={"runOnly": {"type": "tag", "values": tags}})
        return [
            (violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in found.response["violations"]
        ]


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that starts a server on the given tasks for ann and bob."""
    started = []

    def start(rows: list[dict[str, Any]], *arguments: str, port: int = 0) -> Served:
        (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        options = ["--prompts=tasks.jsonl", "--labelers=ann,bob", *arguments]
        started.append(Served(tmp_path, *options, port=port))
        return started[-1]

    yield start
    for served in started:
        served.stop()


def ranking_tasks(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{PROMPT} ({i})", "completions": OUTPUTS} for i in range(count)]


def exported(served: Served, kind: str = "rankings") -> list[dict[str, Any]]:
    with served.client("lead") as client:
        lines = client.get(f"/api/lead/export/{kind}").text.splitlines()
    return [json.loads(line) for line in lines]


def texts(page: Any) -> list[str]:
    found: list[str] = page.locator("#outputs .text").all_inner_texts()
    return found


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("TEXTRL_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_four_outputs_in_six_key_presses(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(3))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    assert "token" not in page.url
    shown = texts(page)
    for key in ("3", "1", "2", "4", "Enter"):  # the last one would place itself: four are enough
        page.keyboard.press(key)
    visit.at(2)
    (row,) = exported(served)
    ranks = dict(zip(row["completions"], row["ranks"], strict=True))
    assert [ranks[text] for text in shown] == [1, 2, 0, 3]
    shown = texts(page)
    for key in ("2", "=", "4", "1", "r", "6", "d"):
        page.keyboard.press(key)
    page.keyboard.type("A better one")
    page.keyboard.press("Control+Enter")
    visit.done(2)
    row = exported(served)[1]
    ranks = dict(zip(row["completions"], row["ranks"], strict=True))
    assert [ranks[text] for text in shown] == [1, 0, 2, 0]
    assert row["rating"] == 6
    assert [row["completion"] for row in exported(served, "demonstrations")] == [" A better one"]
    assert visit.errors == []
    assert visit.hosts == {f"127.0.0.1:{served.port}"}


def test_undo_skip_and_going_back(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(3))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    for key in ("3", "1", "u", "2", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Not placed yet: output 1, 4.").wait_for()  # nothing was sent
    for key in ("1", "Backspace", "Backspace", "4", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Not placed yet: output 1, 2.").wait_for()
    page.keyboard.press("s")
    page.keyboard.type("All four are wrong")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text(f"{PROMPT} (1)").wait_for()
    page.keyboard.press("u")  # a fresh task: the last answer opens
    page.get_by_text("You are changing an answer").wait_for()
    page.get_by_text(f"{PROMPT} (0)").wait_for()
    shown = texts(page)
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    visit.done(1)
    (row,) = exported(served)
    assert [row["completions"].index(text) for text in shown] == [
        row["ranks"].index(rank) for rank in range(4)
    ]
    assert visit.errors == []


def test_dragging_with_the_mouse_and_moving_with_arrows(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(2))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    shown = texts(page)
    card = "#outputs article:nth-child({}) h3"
    page.drag_and_drop(card.format(2), "#order .gap:last-child")
    page.drag_and_drop(card.format(4), "#order .gap:first-child")
    page.drag_and_drop(card.format(1), "#order .gap:last-child")  # the third one falls into place
    chips = page.locator("#order .chip strong")
    assert chips.all_inner_texts() == ["4", "2", "1", "3"]
    page.drag_and_drop("#order [data-placed='3'] strong", "#order .gap:last-child")
    assert chips.all_inner_texts() == ["2", "1", "3", "4"]
    page.locator("#order [data-placed='0']").focus()
    page.keyboard.press("ArrowUp")
    assert chips.all_inner_texts() == ["1", "2", "3", "4"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("=")
    assert page.locator("#order .tier").count() == 3  # 2 and 1 are tied
    page.keyboard.press("Enter")
    visit.done(1)
    (row,) = exported(served)
    ranks = dict(zip(row["completions"], row["ranks"], strict=True))
    assert [ranks[text] for text in shown] == [0, 0, 1, 2]
    assert visit.errors == []


def test_a_finger_can_drag_too(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(1))
    visit = Visit(browser, has_touch=True)
    page = visit.task(served.links["ann"])
    page.locator("#outputs article:nth-child(2) button").first.tap()
    assert page.locator("#order .chip strong").all_inner_texts() == ["2"]
    session = visit.context.new_cdp_session(page)
    start = page.locator("#outputs article:nth-child(3) h3").bounding_box()
    end = page.locator("#order .gap").first.bounding_box()
    for kind, box in (("touchStart", start), ("touchMove", end), ("touchEnd", None)):
        at = [{"x": box["x"] + 5, "y": box["y"] + box["height"] / 2}] if box else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
    assert page.locator("#order .chip strong").all_inner_texts() == ["3", "2"]


def test_nothing_typed_is_lost(browser: Any, serve: Serve) -> None:
    """A reload keeps the draft; what is sent to a dead server arrives when it is back."""
    served = serve(ranking_tasks(3))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    page.keyboard.press("4")
    page.keyboard.press("1")
    page.locator("#demonstration").fill("half a thou")
    page.reload()
    page.locator("#task:not([hidden])").wait_for()
    assert page.locator("#demonstration").input_value() == "half a thou"
    assert page.locator("#order .chip strong").all_inner_texts() == ["4", "1"]
    port = served.port
    served.kill()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.get_by_text("Your work is kept here").wait_for()
    again = serve(ranking_tasks(3), port=port)
    visit.done(1)
    (row,) = exported(again)
    assert row["labeler"] == "ann"
    assert exported(again, "demonstrations")[0]["completion"].strip() == "half a thou"
    page.get_by_text(f"{PROMPT} (1)").wait_for()
    assert page.locator("#demonstration").input_value() == ""


def test_what_is_typed_while_sending_cannot_be_lost(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(3))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    page.route("**/answer", lambda route: route.abort())
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Your work is kept here").wait_for()
    assert "Sent" not in page.locator("#said").inner_text()
    page.keyboard.press("d")  # the form takes nothing while the answer is on its way
    page.keyboard.type("too late")
    assert page.locator("#demonstration").input_value() == ""
    page.unroute("**/answer")
    visit.at(2)
    assert page.locator("#order .chip").count() == 0
    assert page.locator("#demonstration").input_value() == ""
    page.get_by_text("Sent.").wait_for(state="attached")


def test_a_refused_answer_is_told_and_its_text_shown(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(2))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    with served.client("ann") as other_tab:
        task = other_tab.post("/api/claim").json()["task"]["task_id"]
        other_tab.post(f"/api/tasks/{task}/answer", json={"ranks": [0, 0, 0, 1]})
    for key in ("1", "2", "3", "d"):
        page.keyboard.press(key)
    page.keyboard.type("my text")
    page.keyboard.press("Control+Enter")
    visit.at(2)
    page.get_by_text("edit that answer. You wrote: my text").wait_for()
    page.get_by_role("button", name="I have seen it").click()
    assert page.locator("#refused").is_hidden()
    assert "Sent" not in page.locator("#said").inner_text()


def test_an_edit_survives_a_reload(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(2))
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    visit.at(2)
    page.keyboard.press("u")
    visit.at(1)
    page.locator("#demonstration").fill("a long second thought")
    page.reload()
    visit.at(2)
    page.keyboard.press("u")
    visit.at(1)
    assert page.locator("#demonstration").input_value() == "a long second thought"
    page.locator("#stop-editing").click()
    visit.at(2)


def test_another_database_and_another_link_begin_afresh(browser: Any, serve: Serve) -> None:
    first = serve(ranking_tasks(1))
    visit = Visit(browser)
    page = visit.task(first.links["ann"])
    page.keyboard.press("4")
    port = first.port
    first.stop()
    rows = [{"prompt": "Something else.", "completions": ["a", "b"]}]
    second = serve(rows, "--database=sqlite:///other.db", port=port)
    page = visit.task(second.links["ann"])  # the old draft of "task 1" has a fourth output
    page.get_by_text("Something else.").wait_for()
    assert page.locator("#order .chip").count() == 0
    page.goto(second.links["bob"])  # only the fragment changes
    page.get_by_text("bob: 0 done").wait_for()
    assert "token" not in page.url
    assert visit.errors == []


def hostile() -> list[str]:
    """Return fifty texts that would like to be more than text."""
    payloads = [
        "<script>hit()</script>",
        "<img src=x onerror=hit()>",
        "<svg onload=hit()>",
        "<svg><script>hit()</script></svg>",
        "<iframe src='javascript:hit()'></iframe>",
        "<a href='javascript:hit()'>press</a>",
        "<body onload=hit()>",
        "<details open ontoggle=hit()>",
        "</div></article><script>hit()</script>",
        "<style>@import 'http://example.com/x.css';</style>",
        "<link rel=stylesheet href=http://example.com/x.css>",
        "<img src=http://example.com/pixel.png>",
        "<form action=http://example.com><button>x</button></form>",
        "<meta http-equiv=refresh content='0;url=http://example.com'>",
        "<math><mtext></mtext><mglyph><style><img src=x onerror=hit()>",
        "{{constructor.constructor('hit()')()}}",
        "${hit()} #{hit()} <%= hit() %>",
        "javascript:hit()",
        "\u202egnp.exe \u2066 turned \u2069",
        "\x1b[2J\x1b[31mred\x1b]0;title\x07",
        "null\x01bell\x07back\x08",
        "\ufeff\u200b\u200d zero width",
        "a" * 1_000_000,
        "<b>" * 20_000,
        "\U0001f469\u200d\U0001f680" * 5_000 + "\u0301" * 500,
    ]
    return [*payloads, *(f'\'"><x y="{p[:2000]}" --><!-- {i}' for i, p in enumerate(payloads))]


def test_fifty_hostile_outputs_stay_text(browser: Any, serve: Serve) -> None:
    payloads = hostile()
    assert len(set(payloads)) == 50
    parts = [payloads[i : i + 5] for i in range(0, 50, 5)]
    served = serve([{"prompt": part[0][:5000], "completions": part} for part in parts])
    visit = Visit(browser)
    visit.page.expose_function("hit", lambda: visit.errors.append("a script ran"))
    page = visit.task(served.links["ann"])
    for count, part in enumerate(parts, start=1):
        visit.at(count)
        prompt = page.locator("#prompt .text").inner_text()
        for text in part:
            if text.startswith("<") and len(text) < 200:
                assert page.get_by_text(text, exact=True).first.is_visible()
        assert page.locator("#outputs :is(script, img, svg, iframe, form, style, a)").count() == 0
        assert not set(prompt) & set("\u202e\x1b\x07")
        for key in ("1", "2", "3", "4"):
            page.keyboard.press(key)
        # not of the megabyte, which is no answer to be sent; by the keyboard: a megabyte is laid
        # out late, and a click lands where the button was
        cards = page.locator("#outputs article", has_not_text="a" * 100)
        cards.get_by_text("Edit a copy").first.press("Enter")
        page.locator("#demonstration:focus").wait_for()
        page.keyboard.press("Control+Enter")
        visit.done(count)
    page.get_by_text("Nothing left for you").wait_for()
    page.keyboard.press("a")
    page.locator("#answers button").first.wait_for()
    lead = Visit(browser)
    lead.page.expose_function("hit", lambda: lead.errors.append("a script ran"))
    lead.page.goto(served.links["lead"])
    lead.page.locator("#tasks tbody tr").first.wait_for()
    assert visit.errors == lead.errors == []
    assert visit.hosts | lead.hosts == {f"127.0.0.1:{served.port}"}
    kept = {text for row in exported(served) for text in row["completions"]}
    assert kept == set(payloads)  # and none was changed on its way


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
def test_accessible_in_every_dress(browser: Any, serve: Serve, scheme: str, size: str) -> None:
    """The rules of axe; no sideways scrolling at 320 pixels, which is 640 at 200% zoom."""
    tasks = [*ranking_tasks(2), {"prompt": [{"role": "user", "content": "Write a haiku."}]}]
    served = serve(tasks, "--overlap=2")
    found: dict[str, Any] = {}

    def look(visit: Visit, name: str) -> None:
        found[name] = visit.faults()
        wide = visit.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= visit.page.viewport_size["width"], name
        picture(visit.page, f"{name}-{size}-{scheme}")

    for name, keys in (("ann", "3142"), ("bob", "1234")):
        visit = Visit(browser, color_scheme=scheme)
        visit.page.set_viewport_size(WIDE if size == "wide" else PHONE)
        page = visit.task(served.links[name])
        look(visit, "fresh")
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("r")
        page.keyboard.press("5")
        look(visit, "ranked")
        page.keyboard.press("Enter")
        visit.at(2)
        for key, dialog in (("?", "keys"), ("a", "answers"), ("s", "skip")):
            page.keyboard.press(key)
            page.locator(f"#{dialog}-dialog[open]").wait_for()
            look(visit, dialog)
            page.keyboard.press("Escape")
        for key in "1234":
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.get_by_text("Write a haiku.").wait_for()
        look(visit, "write")
    visit.page.goto(served.links["lead"])
    visit.page.locator("#tasks tbody tr").first.wait_for()
    visit.page.locator("#disagreements article").first.wait_for()
    look(visit, "lead")
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_the_lead_adds_pauses_and_downloads(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(2))
    lead = Visit(browser)
    lead.page.goto(served.links["lead"])
    lead.page.locator("#name").fill("cat")
    lead.page.get_by_text("Add a labeler").click()
    link = lead.page.locator("#link code").inner_text()
    visit = Visit(browser)
    page = visit.task(link)
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    visit.at(2)
    lead.page.get_by_role("button", name="Pause", exact=True).first.click()
    lead.page.get_by_role("button", name="Go on", exact=True).first.wait_for()
    for key in ("1", "2", "3", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("The lead has paused the work").wait_for()
    lead.page.locator("#labelers", has_text="cat").wait_for()
    with lead.page.expect_download() as download:
        lead.page.get_by_role("button", name="Download").click()
    rows = Path(download.value.path()).read_text().splitlines()
    assert [json.loads(row)["labeler"] for row in rows] == ["cat", "cat"]
    labeler_there = Visit(browser)
    labeler_there.page.goto(link.replace("/#", "/lead#"))
    labeler_there.page.get_by_text("This page is the lead's").wait_for()
    assert labeler_there.page.locator("#main").is_hidden()
    assert lead.errors == visit.errors == []


def test_the_lead_reads_filters_and_asks_before_shutting_out(browser: Any, serve: Serve) -> None:
    served = serve(ranking_tasks(60))
    with served.client("ann") as ann:
        for flags in ([], ["unclear"]):
            number = ann.post("/api/claim").json()["task"]["task_id"]
            body = {"ranks": [0, 1, 2, 3], "flags": flags, "demonstration": "<b>mine</b>"}
            ann.post(f"/api/tasks/{number}/answer", json=body)
    lead = Visit(browser)
    page = lead.page
    page.goto(served.links["lead"])
    page.get_by_text("Tasks 1 to 50").wait_for()
    assert page.get_by_role("button", name="Previous tasks").is_disabled()
    page.get_by_role("button", name="Next tasks").click()
    page.get_by_text("Tasks 51 to 60").wait_for()
    assert page.get_by_role("button", name="Next tasks").is_disabled()
    page.get_by_role("button", name="Previous tasks").click()
    page.get_by_text("Tasks 1 to 50").wait_for()
    page.locator("#state").select_option("flagged")
    page.get_by_text("Tasks 2 to 2").wait_for()
    page.get_by_role("button", name="Read task 2").click()
    page.locator("#read-dialog").get_by_text("<b>mine</b>").wait_for()
    assert "unclear" in page.locator("#read-dialog").inner_text()
    page.locator("#read-close").click()
    page.get_by_role("button", name="Shut out ann").click()
    page.get_by_role("button", name="Keep them").click()
    with served.client("ann") as ann:
        assert ann.get("/api/me").status_code == 200
        page.get_by_role("button", name="Shut out ann").click()
        page.get_by_role("button", name="Shut them out").click()
        page.get_by_text("ann (shut out)").wait_for()
        assert ann.get("/api/me").status_code == 401
    page.locator("#curves").get_by_role("img", name="Answers: ann 2").wait_for()
    page.get_by_text("58 answers are missing").wait_for()
    assert lead.errors == []


def test_the_page_says_what_fits_the_task(browser: Any, serve: Serve) -> None:
    """The instructions, the key that sends, code in fences, and who has the last task."""
    code = "Like so:\n```python\nx = 1\n```\nThat is all."
    ranking = {"prompt": "Show an assignment.", "completions": [code, "x = 1, and that is long"]}
    served = serve([ranking, {"prompt": "Write a haiku."}])
    visit = Visit(browser)
    page = visit.task(served.links["ann"])
    assert "Put the outputs in order" in page.locator("#instructions").inner_text()
    assert page.locator("#submit-key").inner_text() == "Enter"
    assert page.locator("#outputs pre.code").inner_text() == "x = 1\n"
    for key in ("1", "2"):
        page.keyboard.press(key)
    assert "and that is long" in page.locator("#order").inner_text()
    page.keyboard.press("Enter")
    visit.at(2)
    assert "write the answer" in page.locator("#instructions").inner_text()
    assert page.locator("#submit-key").inner_text() == "Ctrl+Enter"
    other = Visit(browser)
    other.page.goto(served.links["bob"])
    other.page.get_by_text("Others have the task that is left.").wait_for()
    assert other.page.locator("#about").is_hidden()
    assert visit.errors == other.errors == []
