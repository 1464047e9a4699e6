"""The demo magazine in a real browser: every page, both forms, the login and the admin.

uvicorn serves the site from a fresh SQLite file, as `make demo` does. Whatever goes wrong on the
way fails the test that caused it: an error on the browser's console, a request without a good
answer, a page that scrolls sideways, a traceback in the server's output.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, Response, Route, expect, sync_playwright

DEMO = Path(__file__).resolve().parents[2] / "demo"
CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
# Quiet: a browser that looks for updates of its own would fail for reasons of its own.
CHROMIUM_ARGS = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WIDE, NARROW = 1400, 360

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@dataclass
class Site:
    """A running site: its address, and what uvicorn printed so far."""

    url: str
    output: list[str] = field(default_factory=list)


@contextmanager
def served(database: Path, **environment: str) -> Iterator[Site]:
    """Serve the demo with this SQLite file on a port that the system chooses."""
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "magazine_site.asgi:application", "--port", "0"],
        cwd=DEMO,
        env=demo_environment(database, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output: list[str] = []
    reader = threading.Thread(target=output.extend, args=[process.stdout])
    try:
        for line in process.stdout:
            output.append(line)
            # uvicorn says this when it accepts connections and the application has started.
            if running := re.search(r"running on (http://\S+)", line):
                break
        else:
            pytest.fail(f"uvicorn ended before it served anything:\n{''.join(output)}")
        # Read on, or the pipe fills up and the server waits for a reader.
        reader.start()
        yield Site(running[1], output)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("uvicorn did not end within 10 s of SIGTERM")
        finally:
            if reader.ident:
                reader.join()
            process.stdout.close()
    assert "Traceback" not in "".join(output), "".join(output)


def demo_environment(database: Path, **more: str) -> dict[str, str]:
    settings = {
        "DATABASE_URL": f"sqlite:///{database}",
        "DJANGO_SETTINGS_MODULE": "magazine_site.settings",
    }
    return {**os.environ, **settings, **more}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with 120 articles."""
    path = tmp_path_factory.mktemp("magazine") / "magazine.sqlite3"
    for command in (["migrate", "--verbosity=0"], ["loadsample", "--articles=120"]):
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=DEMO,
            env=demo_environment(path),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def site(database: Path) -> Iterator[Site]:
    with served(database) as site:
        yield site


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    # Of the module, not of the session: while Playwright is open its event loop counts as the
    # running one of this thread, and no test elsewhere could start another.
    # Root cannot use Chromium's sandbox.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=CHROMIUM_ARGS + sandbox
        )
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, url: str, width: int = WIDE) -> Iterator[Page]:
    """Open a page of a new browser profile, and fail at the end if anything went wrong on it."""
    problems: list[str] = []

    def on_response(response: Response) -> None:
        if response.status >= 400:
            problems.append(f"{response.status} for {response.url}")

    def on_failure(request: Request) -> None:
        # Aborted: the test went on to another page before this one had all its parts.
        if request.failure != "net::ERR_ABORTED":
            problems.append(f"{request.failure} for {request.url}")

    context = browser.new_context(base_url=url, viewport={"width": width, "height": 900})
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", on_response)
    page.on("requestfailed", on_failure)
    yield page
    context.close()
    assert not problems


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    with watched_page(browser, site.url) as page:
        yield page


def open_first_article(page: Page) -> None:
    page.goto("/")
    page.locator(".teaser h2 a").first.click()
    expect(page.locator(".story h1")).to_be_visible()


def shown_count(page: Page) -> int:
    """The number of comments that the article's page shows."""
    heading = page.locator("#comments h2").first.inner_text()
    return int(heading.split()[0])


def post_comment(page: Page, body: str, email: str = "") -> None:
    page.get_by_label("Your name").fill("Odile Renard")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Your comment").fill(body)
    page.get_by_role("button", name="Post comment").click()


def log_in(page: Page, password: str = "nuages") -> None:
    page.goto("/login/")
    page.get_by_label("Username").fill("editor")
    page.get_by_label("Password").fill(password)
    page.get_by_role("main").get_by_role("button", name="Log in").click()


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_page_is_there_and_fits(browser: Browser, site: Site, width: int) -> None:
    def check(heading: str | re.Pattern[str]) -> None:
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, page.url

    with watched_page(browser, site.url, width) as page:
        page.goto("/")
        check("The latest articles")
        page.get_by_role("link", name="Older").click()
        expect(page.get_by_text("Page 2 of 10")).to_be_visible()
        check("The latest articles")
        page.get_by_label("Sections").get_by_role("link", name="Music").click()
        check("Music")

        title = page.locator(".teaser h2 a").first.inner_text()
        page.locator(".teaser h2 a").first.click()
        check(title)
        tag = page.locator(".tags a").first.inner_text()
        writer = page.locator(".story .byline a").inner_text()
        page.locator(".tags a").first.click()
        check(tag)
        page.go_back()
        page.locator(".story .byline a").click()
        check(writer)

        page.get_by_label("Search the magazine").fill("bread")
        page.keyboard.press("Enter")
        expect(page.get_by_text(re.compile("articles with “bread”"))).to_be_visible()
        check("Search")
        page.get_by_role("link", name="Dashboard").click()
        check("Dashboard")
        page.get_by_role("link", name="Log in").click()
        check("Log in")


def test_article_walks_its_relations(page: Page) -> None:
    open_first_article(page)
    expect(page.locator(".story .byline a")).to_have_attribute("href", re.compile("^/authors/"))
    assert page.locator(".tags a").count() >= 1
    assert page.locator("[id^=comment-]").count() == shown_count(page)


def test_search_marks_what_it_found(page: Page) -> None:
    page.goto("/search/?q=BREAD")
    marks = page.locator("main mark").all_inner_texts()
    assert marks
    assert {mark.lower() for mark in marks} == {"bread"}


def test_search_for_markup_shows_it_as_text(page: Page) -> None:
    page.goto("/search/")
    page.get_by_label("Search the magazine").fill("<script>alert(1)</script>")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("0 articles with “<script>alert(1)</script>”")).to_be_visible()


def test_invalid_comment_says_why_and_stores_nothing(page: Page) -> None:
    open_first_article(page)
    before = shown_count(page)
    post_comment(page, "Too short")
    expect(page.get_by_text("A few more words, please")).to_be_visible()
    expect(page.get_by_label("Your comment")).to_have_value("Too short")
    expect(page.get_by_label("Your comment")).to_have_attribute("aria-invalid", "true")
    assert shown_count(page) == page.locator("[id^=comment-]").count() == before


def test_valid_comment_is_shown_and_counted(page: Page) -> None:
    open_first_article(page)
    before = shown_count(page)
    body = "I whistled this all the way home & <b>back</b>."
    post_comment(page, body, email="odile@example.org")
    expect(page).to_have_url(re.compile(r"#comment-\d+$"))
    expect(page.get_by_role("status")).to_have_text("Thank you for your comment.")
    expect(page.locator("[id^=comment-]").last).to_contain_text(body)
    assert shown_count(page) == page.locator("[id^=comment-]").count() == before + 1

    # The form asks the database too: the same comment again is refused.
    post_comment(page, body)
    expect(page.get_by_text("This comment is here already.")).to_be_visible()
    assert shown_count(page) == before + 1


def test_comment_with_a_link_waits_for_an_editor(page: Page) -> None:
    open_first_article(page)
    before = shown_count(page)
    post_comment(page, "Cheap strings at https://strings.example/ today")
    expect(page.get_by_role("status")).to_contain_text("An editor reads comments with links")
    assert shown_count(page) == page.locator("[id^=comment-]").count() == before


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_summary_arrives_word_by_word(browser: Browser, site: Site, width: int) -> None:
    with watched_page(browser, site.url, width) as page:
        open_first_article(page)
        text = page.locator("#summary .text")
        expect(text).to_be_hidden()
        # What the text was after each change, so that no clock has to be met.
        text.evaluate(
            """(text) => {
                window.lengths = [];
                new MutationObserver(() => window.lengths.push(text.textContent.length))
                    .observe(text, {childList: true});
            }"""
        )
        page.get_by_role("button", name="Summarise").click()
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        expect(page.get_by_role("button", name="Summarise again")).to_be_visible()
        lengths = page.evaluate("window.lengths")
        assert len(set(lengths)) > 10
        assert lengths == sorted(lengths)
        body = " ".join(page.locator(".body").inner_text().split())
        for sentence in re.findall(r"[^.!?]+[.!?]", text.inner_text()):
            assert sentence.strip() in body
        words = len(text.inner_text().split())
        expect(page.locator("#summary .state")).to_contain_text(f"{words} words")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_summary_can_be_stopped_and_asked_for_again(page: Page) -> None:
    open_first_article(page)
    page.get_by_role("button", name="Summarise").click()
    expect(page.locator("#summary .text")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#summary .state")).to_contain_text("Stopped after")
    stopped = page.locator("#summary .text").inner_text()
    page.get_by_role("button", name="Summarise again").click()
    expect(page.get_by_role("button", name="Summarise again")).to_be_visible()
    assert page.locator("#summary .text").inner_text().startswith(stopped.rstrip())


def test_summary_goes_on_after_the_last_word_received(page: Page) -> None:
    open_first_article(page)
    url = page.locator("#summary").get_attribute("data-url")
    assert url is not None
    whole = page.request.get(url).text()
    events = whole.split("\n\n")
    assert events[0] == "retry: 1000"
    assert events[1].startswith("event: token\nid: 1\ndata: ")
    assert events[-2].startswith("event: done\n")
    rest = page.request.get(url, headers={"Last-Event-ID": "10"}).text()
    assert rest.split("\n\n")[1:] == events[11:]
    # The browser does the same by itself where the connection ends after ten words.
    asked: list[Route] = []

    def cut_once(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:
            body = "".join(f"{event}\n\n" for event in events[:11])
            route.fulfill(body=body, content_type="text/event-stream")
        else:
            route.continue_()

    page.route(f"**{url}", cut_once)
    page.get_by_role("button", name="Summarise").click()
    expect(page.get_by_role("button", name="Summarise again")).to_be_visible()
    assert len(asked) == 2
    tokens = [json.loads(event.partition("data: ")[2])["text"] for event in events[1:-2]]
    assert page.locator("#summary .text").inner_text() == "".join(tokens).strip()
    page.unroute_all()
    for wrong in ("x", "-1", "9" * 5000):
        assert page.request.get(url, headers={"Last-Event-ID": wrong}).ok


def test_dashboard_waits_for_all_at_the_same_time(page: Page) -> None:
    page.goto("/dashboard/")
    expect(page.locator(".timeline dt")).to_have_count(5)
    expect(page.get_by_text("no answer")).to_have_count(0)
    together = int(page.locator("#together-ms").inner_text())
    in_a_row = int(page.locator("#sum-ms").inner_text())
    # Each of the two services alone takes 150 ms.
    assert 150 <= together < in_a_row
    assert in_a_row >= 300
    expect(page.get_by_role("table")).to_have_count(3)
    assert page.locator(".cards .links li").count() == 5


def test_login_refuses_a_wrong_password(page: Page) -> None:
    log_in(page, password="wrong")
    expect(page.get_by_text("Please enter a correct username and password")).to_be_visible()


def test_editor_logs_in_edits_an_article_and_logs_out(page: Page) -> None:
    log_in(page)
    page.get_by_role("link", name="My page").click()
    expect(page.get_by_text("Staff writer since")).to_be_visible()
    page.get_by_role("link", name="Admin").click()
    page.get_by_role("main").get_by_role("link", name="Articles", exact=True).click()
    expect(page.locator("#result_list tbody tr")).to_have_count(50)
    page.locator("#searchbar").fill("the")
    page.get_by_role("button", name="Search").click()
    expect(page).to_have_url(re.compile("q=the"))
    page.locator("#result_list tbody th a").first.click()

    page.get_by_label("Title").fill("Nuages, in the key of F")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".messagelist .success")).to_contain_text("was changed successfully")
    page.goto("/search/?q=in+the+key+of")
    expect(page.locator(".teaser h2")).to_have_text("Nuages, in the key of F")

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    page.goto("/admin/")
    expect(page.get_by_label("Username")).to_be_visible()


def test_editor_publishes_a_held_comment(page: Page) -> None:
    log_in(page)
    page.goto("/admin/magazine/comment/?status__exact=held")
    held = page.locator("#result_list tbody tr")
    before = held.count()
    title = held.first.locator(".field-article").inner_text()
    held.first.locator("input[type=checkbox]").check()
    page.locator("select[name=action]").select_option("publish")
    page.locator("#changelist-form .actions button[name=index]").click()
    expect(page.locator(".messagelist .success")).to_have_text("Comments changed: 1.")
    assert held.count() == before - 1

    page.goto("/search/")
    page.get_by_label("Search the magazine").fill(title)
    page.get_by_role("button", name="Search").click()
    page.get_by_role("heading", name=title, exact=True).get_by_role("link").click()
    assert shown_count(page) == page.locator("[id^=comment-]").count()


def test_not_found_page_without_debug(browser: Browser, database: Path) -> None:
    with served(database, DJANGO_DEBUG="0") as site, browser.new_page() as page:
        answer = page.goto(f"{site.url}/articles/never-written/")
        assert answer is not None
        assert answer.status == 404
        expect(page.get_by_role("heading", level=1)).to_have_text("This page has drifted off")
        # The stylesheet came as well: without it the page would be as wide as the window.
        assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"
