"""ttm-web's page in a real browser (Debian's chromium, headless): it loads, repaints, is steered by keys, stays smooth.

A test waits for an element, never for a page that is idle: the stream of events never ends. With TTMFS_PICTURES set to
a folder the pictures of the documents are written there.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.mount.mount_harness import MIB, Device
from tests.tools.web_tools import PATIENCE, Web

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
common = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed")
Keys = common.Keys

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]

MOUNT_OPTIONS = ("--vram", "32M", "--visible-vram", "24M", "--gtt", "64M", "--memory", "128M")


class Page:
    """A tab."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def look(self, url: str, width: int, height: int) -> None:
        """Load anything."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get(url)

    def open(self, url: str, width: int = 1280, height: int = 1000) -> None:
        """Load the page, and wait until the first maps are drawn."""
        self.look(url, width, height)
        self.until("ttmWeb.past.length > 1 && ttmWeb.timings.length > 0 && document.querySelectorAll('.region').length")

    def js(self, expression: str, *arguments: object) -> Any:
        """The value of an expression; arguments are `a[0]`, `a[1]`..."""
        return self.driver.execute_script(f"const a = arguments; return {expression};", *arguments)

    def until(self, expression: str, *arguments: object) -> Any:
        """Wait until it is true; its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.js(expression, *arguments)):
            assert time.monotonic() < end, f"never came: {expression}\n{self.js('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def press(self, keys: str, target: str = "body") -> None:
        """Type into an element."""
        self.driver.find_element("css selector", target).send_keys(keys)

    def click(self, target: str) -> None:
        """Click an element."""
        self.driver.find_element("css selector", target).click()

    def picture(self, name: str) -> None:
        """A picture for the documents."""
        folder = os.environ.get("TTMFS_PICTURES")
        path = Path(folder) / name if folder else None
        data = self.driver.get_screenshot_as_png()
        assert data.startswith(b"\x89PNG")
        if path is not None:
            path.write_bytes(data)

    def complaints(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """One browser for the module."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture
def web(device: Device) -> Iterator[Callable[..., Web]]:
    """Starts servers of the device."""
    started: list[Web] = []

    def start(*options: str) -> Web:
        started.append(Web(device.mountpoint, "--interval", "0.2", *options))
        return started[-1]

    yield start
    for server in started:
        assert server.end() == 0


@pytest.fixture
def page(browser: Page, web: Callable[..., Web]) -> Iterator[Page]:
    """The browser; the console must have said nothing, and nothing but the server may have been asked."""
    browser.complaints()
    browser.driver.get_log("performance")
    yield browser
    asked = set()
    for entry in browser.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(urlsplit(message["params"]["request"]["url"]).netloc)
    browser.driver.get("about:blank")
    assert browser.complaints() == []
    assert all(host.startswith("127.0.0.1:") for host in asked if host), asked


DRAWN = "document.querySelector(`canvas[data-region=${a[0]}]`).toDataURL()"
ROWS = "[...document.querySelectorAll('.row:not([hidden])')].map((row) => row.firstChild.textContent)"


def test_the_page_shows_what_is_where_and_is_steered_by_keys(
    page: Page, device: Device, web: Callable[..., Web]
) -> None:
    device.make("mesh", MIB, 1)
    device.make("tex0", 8 * MIB, 1, "vram")
    device.make("<img src=x onerror=alert(1)>", MIB, 1)
    page.open(web().url)
    page.until(f"{ROWS}.length === 3")
    assert page.js("document.images.length") == 0
    # A move is repainted, without anything being done here.
    before = page.js(DRAWN, "vram")
    device.make("tex1", 4 * MIB, 1, "vram")
    page.until(f"{DRAWN} !== a[1]", "vram", before)
    page.until(f"{ROWS}.includes('tex1')")
    # A cell that is pointed at is named.
    canvas = page.driver.find_element("css selector", "canvas[data-region=vram]")
    at = page.js("ttmWeb.state.maps.get('vram').runs[0] / ttmWeb.state.maps.get('vram').pages")
    actions = webdriver.ActionChains(page.driver)
    low = canvas.size["height"] * (at - 0.5) + 5
    actions.move_to_element_with_offset(canvas, 0, int(low)).perform()
    page.until("!document.querySelector('#tip').hidden")
    assert "tex" in page.js("document.querySelector('#tip').textContent")
    # Keys: colours, filter, selection, details, the way back.
    who = page.js(DRAWN, "system")
    page.press("2")
    page.until(f"{DRAWN} !== a[1]", "system", who)
    page.press("1")
    page.until(f"{DRAWN} === a[1]", "system", who)
    page.press("/")
    page.press("tex1", "#filter")
    page.until(f"{ROWS}.length === 1")
    page.press(Keys.ARROW_DOWN, "#rows")
    page.until("document.querySelector('#detail').innerText.includes('mem_type')")
    assert page.js("document.querySelector('#detail h2').textContent") == "tex1"
    assert page.js("[...document.querySelectorAll('#detail button')].map((b) => b.textContent)") == ["close"]
    page.press(Keys.ESCAPE, "#rows")
    page.until("document.querySelector('#detail').hidden")
    page.press(Keys.ESCAPE, "#filter")
    page.until(f"{ROWS}.length === 4")
    page.press(Keys.ARROW_RIGHT, "canvas[data-region=system]")
    page.until("document.querySelector('#said').textContent.includes('system pages 0')")
    page.press("?")
    page.until("!document.querySelector('#keys').hidden")


def test_the_way_back(page: Page, device: Device, web: Callable[..., Web]) -> None:
    device.make("tex0", 8 * MIB, 1, "vram")
    page.open(web().url)
    page.until("ttmWeb.state.maps.get('vram')?.owners.length === 1")
    drawn = page.until(f"ttmWeb.past.last.maps.get('vram').owners.length === 1 && {DRAWN}", "vram")
    assert device.command("objects/tex0/evict", "\n") == "ok"
    page.until(f"{DRAWN} !== a[1]", "vram", drawn)
    page.press(" ")
    page.until("document.querySelector('#ago').textContent !== 'live'")
    for _ in range(60):
        page.press(",")
        if page.js(DRAWN, "vram") == drawn:
            break
    page.until(f"{DRAWN} === a[1]", "vram", drawn)
    assert page.js("document.querySelector('#ago').textContent").startswith("\u2212")
    page.press(Keys.END, "#time")
    page.until(f"document.querySelector('#ago').textContent === 'live' && {DRAWN} !== a[1]", "vram", drawn)


def test_commands_and_a_list_that_is_sorted(page: Page, device: Device, web: Callable[..., Web]) -> None:
    for number in range(6):
        device.make(f"tex{number}", (number + 1) * MIB, 1)
    page.open(web("--allow-commands").url)
    page.until(f"{ROWS}.length === 6")
    assert "token" not in page.driver.current_url
    page.click("#head button:nth-child(3)")
    page.until("ttmWeb.state.maps.has('system')")
    page.until(f"{ROWS}[0] === 'tex5'")
    page.click(".row")
    page.until("document.querySelector('#detail').innerText.includes('mem_type')")
    page.driver.find_element("xpath", "//section[@id='detail']//button[text()='to vram']").click()
    page.until("document.querySelector('#detail .result').textContent.includes('done')")
    assert device.status("tex5")["mem_type"] == "vram"
    page.until("document.querySelector('#detail .why').textContent.includes('vram')")
    page.until("[...document.querySelectorAll('#log li')].some((line) => line.textContent.includes('move_end tex5'))")
    # Policies are switched, and groups shown where the mount has them.
    page.until("document.querySelector('#policies select[aria-label=\"evict vram\"]')")
    page.js(
        "(() => { const set = document.querySelector('#policies select[aria-label=\"evict vram\"]');"
        "set.value = 'lfu'; set.dispatchEvent(new Event('change')); return 1; })()"
    )
    device.until(lambda: "vram lfu" in device.shell.do("slurp(path('policies/evict'))"))
    device.shell.do("open(path('policies/evict'), 'w').write('vram lru\\n')")


def remove_group(device: Device, name: str) -> None:
    """As soon as the copies of the BOs that were unlinked, which are still its own, have ended."""
    device.until(lambda: device.shell.errno(f"os.rmdir(path('groups/{name}'))") == "ok")


def test_groups_and_vms_are_shown_while_one_looks(page: Page, device: Device, web: Callable[..., Web]) -> None:
    page.open(web("--allow-commands").url)
    assert page.js("document.querySelector('#groups').hidden"), "the root group alone says nothing"
    assert page.js("document.querySelector('#vms').hidden"), "there are none"
    device.shell.do("os.makedirs(path('groups/game/level')); os.mkdir(path('vm/game')); make('bo/a', 0)")
    try:
        assert device.command("objects/a/vm", "game") == "ok"
        device.make("a", 4 * MIB, 1)
        assert device.command("vm/game/bind", "1G a 0 4M") == "ok"
        assert device.command("vm/game/exec", "fill 1G 4K 1") == "ok"
        assert device.command("objects/a/group", "/game/level") == "ok"
        assert device.command("objects/a/validate", "vram") == "ok"
        row = "[...document.querySelectorAll('#groups tr')].find((tr) => tr.innerText.startsWith('/game/level\\tvram'))"
        page.until(f"{row}?.cells[2].textContent === '4M'")
        page.js(
            "(() => { const box = document.querySelector('#groups input[aria-label=\"max of vram for /game\"]');"
            "box.value = '2m'; box.dispatchEvent(new Event('change')); return 1; })()"
        )
        page.until(f"{row}?.cells[2].textContent === '0'", "what is over a lowered limit is evicted")
        assert "vram 2097152" in device.shell.do("slurp(path('groups/game/dmem.max'))")
        page.until("document.querySelector('#groups .share i').style.width !== ''")
        page.until("document.querySelector('#vms').innerText.includes('game\\t4M\\t1\\t1\\t1\\t0\\t1\\t1\\t0')")
        page.click(".row")
        page.until("document.querySelector('#detail .why').textContent.includes('the VM game: it was evicted')")
        page.press(Keys.ESCAPE, "#rows")
    finally:
        device.shell.do("os.unlink(path('bo/a'))")
        remove_group(device, "game/level")
        remove_group(device, "game")
        device.shell.do("os.rmdir(path('vm/game'))")
    page.until("document.querySelector('#groups').hidden && document.querySelector('#vms').hidden")


def thrash(device: Device, rounds: int) -> None:
    """BOs that do not fit into vram together, used in turn."""
    for number in range(rounds):
        assert device.command(f"objects/tex{number % 6}/validate", "vram") == "ok"
        device.shell.do(f"open(path('bo/tex{number % 6}'), 'rb', buffering=0).read(65536)")


@pytest.fixture
def prefer(page: Page) -> Iterator[Callable[[str], None]]:
    """Sets which colours people ask for, light or dark ones, and waits until the page has them."""

    def features(*values: str) -> None:
        wanted = [{"name": "prefers-color-scheme", "value": value} for value in values]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})

    def change(scheme: str) -> None:
        features(scheme)
        back = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
        page.until(f"({back} > 128) === a[0]", scheme == "light")
        page.until("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    yield change
    features()


CUT_OFF = """(() => {
    const rows = document.querySelector('#rows'), groups = document.querySelector('#groups .cells');
    const end = rows.getBoundingClientRect().left + rows.clientWidth;
    return [...rows.querySelectorAll('.row span')].some((one) => one.getBoundingClientRect().right > end)
        || (innerWidth > 500 && groups.scrollWidth > groups.clientWidth);
})()"""
"""Whether a column of the BOs or the groups is not seen whole."""


@pytest.mark.parametrize("width", [1280, 375])
def test_pictures(
    page: Page, device: Device, web: Callable[..., Web], prefer: Callable[[str], None], width: int
) -> None:
    for number in range(6):
        device.make(f"tex{number}", (4 + 2 * number) * MIB, 1)
    device.shell.do("os.mkdir(path('bo/mesh'))")
    for number in range(24):
        device.make(f"mesh/part{number:02}", 200 * 1024, 1)
    device.shell.do("os.makedirs(path('groups/game'), exist_ok=True)")
    device.shell.do("open(path('groups/game/dmem.low'), 'w').write('vram 8M\\n')")
    assert device.command("objects/tex0/group", "/game") == "ok"
    page.open(web("--allow-commands").url, width, 1500)
    thrash(device, 12)
    page.until("document.querySelectorAll('#log li').length > 5 && ttmWeb.past.length > 8")
    page.until("document.querySelector('#next').textContent.includes('vram: 1')")
    page.until("document.querySelector('#groups').innerText.includes('/game')")
    page.js("(document.querySelector('#mount').textContent = '/tmp/gpu', 1)")
    for scheme in ("light", "dark"):
        prefer(scheme)
        assert page.js("document.documentElement.scrollWidth") <= width
        assert not page.js(CUT_OFF)
        page.picture(f"ttm-web-{width}-{scheme}.png")
    device.shell.do("os.unlink(path('bo/tex0'))")
    remove_group(device, "game")


def test_a_report_in_the_browser(page: Page, device: Device, run: Callable[..., Any], tmp_path: Path) -> None:
    for number in range(6):
        device.make(f"tex{number}", (4 + 2 * number) * MIB, 1)
    trace, out = tmp_path / "run.trace", tmp_path / "run.html"
    # The picture of the documents is of a run that has some samples.
    pause = "sleep 0.2" if os.environ.get("TTMFS_PICTURES") else ":"
    work = (
        "for k in 1 2 3; do for n in 0 1 2 3 4 5; do echo vram > $TTMFS_MOUNT/objects/tex$n/validate;"
        f"head -c 64K $TTMFS_MOUNT/bo/tex$n > /dev/null; {pause}; done; done"
    ).replace("$TTMFS_MOUNT", '"$TTMFS_MOUNT"')
    assert run("trace", "record", "-m", device.mountpoint, "-o", str(trace), "--", "bash", "-c", work).returncode == 0
    done = run("report", str(trace), "-o", str(out), "--title", "ttmfs: six textures in turn")
    assert done.returncode == 0, done.stderr
    page.look(f"file://{out}", 1280, 1900)
    assert page.js("[...document.images].every((image) => image.complete && image.naturalWidth > 100)")
    rows = "[...document.querySelectorAll('table')].at(-1).querySelectorAll('tbody tr:not([hidden])').length"
    every = page.js(rows)
    page.press("evict", "input")
    page.until(f"{rows} > 0 && {rows} < a[0]", every)
    page.js("scrollTo(0, 0)")
    page.picture("ttm-report.png")
    page.look(f"file://{out}", 375, 800)
    assert page.js("document.documentElement.scrollWidth") <= 375


@pytest.mark.stress
def test_ten_thousand_bos_stay_smooth(page: Page, device: Device, web: Callable[..., Web]) -> None:
    device.shell.do("[open(path(f'bo/b{n:05}'), 'wb').write(b'x') for n in range(10000)]", 90)
    page.open(web().url)
    page.until("document.querySelector('#count').textContent === '10000'")
    assert page.js(f"{ROWS}.length") < 60
    page.press(Keys.END, "#rows")
    page.until(f"{ROWS}.includes('b09999')")
    page.click("#head button:nth-child(3)")
    page.js("(ttmWeb.timings.length = 0, 1)")
    for number in range(10):
        assert device.command(f"objects/b{number:05}/validate", "vram") == "ok"
        count = page.js("ttmWeb.timings.length")
        page.until("ttmWeb.timings.length > a[0]", count)
    page.until("ttmWeb.timings.length >= 20")
    timings = sorted(page.js("ttmWeb.timings"))
    assert timings[len(timings) // 2] < 100, timings
