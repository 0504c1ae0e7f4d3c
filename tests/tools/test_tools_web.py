"""ttm-web's server: who is answered, what is streamed, which commands it gives, what it reads and leaves behind."""

import base64
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import Headers

from tests.mount.mount_harness import MIB, Device
from tests.tools.web_tools import PATIENCE, Web, until
from ttm_tools.device import Device as Reader
from ttm_tools.errors import CommandFailed
from ttm_tools.web import sampler
from ttm_tools.web.commands import is_allowed, run
from ttm_tools.web.guard import peer_uid, refusal
from ttm_tools.web.palette import PALETTE
from ttm_tools.web.sampler import Paced, Sampler, counters, histogram
from ttm_tools.web.settings import Settings
from ttm_tools.web.state import EVENTS_A_MESSAGE, Seen, State

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M")


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Starts servers, and ends them."""
    started: list[Web] = []

    def start(mount: str, *options: str) -> Web:
        started.append(Web(mount, *options))
        return started[-1]

    yield start
    for server in started:
        if server.popen.poll() is None:
            assert server.end() == 0


# -- on a mount --------------------------------------------------------------------------------------------------------


@pytest.mark.mount
def test_who_is_answered_and_what_is_streamed(device: Device, web: Callable[..., Web]) -> None:
    device.make("tex0", 4 * MIB, 1, "vram")
    device.make("odd \udcff", MIB, 1)
    server = web(device.mountpoint)
    assert server.ask("/")[0] == 200
    for name, value in (
        ("Host", "evil.example"),
        ("Host", f"127.0.0.1.evil.example:{server.port}"),
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Sec_Fetch_Site", "cross-site"),
    ):
        for path in ("/", "/events", "/static/app.js"):
            assert server.ask(path, **{name: value})[0] == 403, (name, path)
    assert server.ask("/", Origin=f"http://127.0.0.1:{server.port}")[0] == 200
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"):
        assert server.ask(path)[0] in (404, 405), path
    with server.events() as stream:
        parts = until(stream, lambda parts: "map vram" in parts and parts.get("recording", {}).get("why") == "")
        assert (parts["hello"]["mount"], parts["hello"]["commands"]) == (device.mountpoint, False)
        found = parts["map vram"]
        runs = np.frombuffer(base64.b64decode(found["runs"]), "<i4").reshape(-1, 4)
        assert found["owners"] == ["tex0"]
        assert int(runs[:, 1].sum()) == 1024
        assert device.command("objects/tex0/evict", "\n") == "ok"
        until(stream, lambda parts: parts.get("map vram", found)["owners"] == [] and len(parts["events"]) >= 2)
    status, found = server.ask("/api/status", {"names": ["tex0", "odd \udcff", "gone"]})
    assert (status, set(found)) == (200, {"tex0", "odd \udcff"})
    status, found = server.ask("/api/bo", {"name": "odd \udcff"})
    assert (status, found["runs"]) == (200, [["s", 256]])
    assert found["why"] == []
    found = server.ask("/api/bo", {"name": "tex0"})[1]
    assert "'tex0' vram to gtt: was evicted, 4M" in found["why"][0]
    assert server.ask("/api/bo", {"name": "gone"})[0] == 404
    bodies: tuple[Any, ...] = ({"name": "../ctl"}, {"name": 7}, [], {"name": "a\0b"})
    for body in bodies:
        assert server.ask("/api/bo", body)[0] == 400
    assert server.ask("/api/command", {"file": "objects/tex0/evict"})[0] == 403


@pytest.mark.mount
def test_commands_need_the_token(device: Device, web: Callable[..., Web]) -> None:
    device.make("tex0", MIB, 1)
    server = web(device.mountpoint, "--allow-commands")
    for token in ("", "x" * len(server.token), "é"):
        assert server.ask("/api/command", {"file": "objects/tex0/pin"}, X_TTM_Token=token)[0] == 403
    assert device.status("tex0")["pin_count"] == 0
    assert server.command("objects/tex0/validate", "vram")[1]["mem_type"] == "vram"
    assert server.command("objects/tex0/pin") == (200, {"ok": True, "pin_count": 1})
    status, found = server.command("objects/tex0/evict")
    assert (status, found["ok"]) == (200, False)
    assert "pinned" in found["error"]
    assert server.command("ctl/unplug")[0] == 400


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
def test_another_user_is_not_answered(device: Device, web: Callable[..., Web]) -> None:
    server = web(device.mountpoint)
    ask = (
        "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=30);"
        "c.request('GET', '/'); print(c.getresponse().status)"
    )
    for user, status in ((65534, "403"), (0, "200")):
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", ask, str(server.port)],
            user=user, capture_output=True, text=True, timeout=PATIENCE, check=True, cwd="/",
        )  # fmt: skip
        assert done.stdout.strip() == status


@pytest.mark.mount
def test_what_is_recorded_is_as_it_was_before(device: Device, web: Callable[..., Web]) -> None:
    def recorded() -> str:
        text: str = device.shell.do("open(path('ctl/trace')).read()")
        return text.splitlines()[0]

    server = web(device.mountpoint)
    assert recorded() == "off"
    with server.events() as stream:
        until(stream, lambda parts: parts.get("recording", {}).get("why") == "")
        assert "evict" in recorded()
        # Somebody begins to record: it is theirs, and what they have set stays.
        device.shell.do("open(path('ctl/trace'), 'w').write('fault\\n')")
        until(stream, lambda parts: "somebody else" in parts.get("recording", {}).get("why", ""))
        assert server.end() == 0
    assert recorded() == "fault"
    device.shell.do("open(path('ctl/trace'), 'w').write('off\\n')")
    server = web(device.mountpoint)
    with server.events() as stream:
        until(stream, lambda parts: parts.get("recording", {}).get("why") == "")
    # The page is closed, and the server is not.
    device.until(lambda: recorded() == "off")


@pytest.mark.mount
def test_a_daemon_that_hangs_is_said_and_waited_for(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS, "--watchdog", "0")
    state = State()
    with Reader(device.mountpoint, read_seconds=0.5) as reader:
        reading = Sampler(reader, state, lambda: None, 0.1, "")

        def said() -> dict[str, Any]:
            value: dict[str, Any] = json.loads(state.message(Seen()))
            return value

        reading.start()
        reading.watch(1)
        try:
            device.until(lambda: said().get("trouble") == "")
            os.kill(device.daemon.pid, signal.SIGSTOP)
            try:
                device.until(lambda: "does not answer" in said()["trouble"])
            finally:
                os.kill(device.daemon.pid, signal.SIGCONT)
            device.until(lambda: said()["trouble"] == "")
            # Nobody looks: nobody reads.
            reading.watch(0)
            device.until(lambda: not reading.reads)
            rounds = reading.rounds
            device.stats()
            assert reading.rounds == rounds
        finally:
            reading.stop()
    assert state.ended == ""


@pytest.mark.mount
def test_a_daemon_that_dies_ends_the_page_and_the_server(
    mounted: Callable[..., Device], web: Callable[..., Web]
) -> None:
    device = mounted(*MOUNT_OPTIONS, "--watchdog", "0")
    server = web(device.mountpoint)
    with server.events() as stream:
        until(stream, lambda parts: "now" in parts)
        device.daemon.popen.kill()
        until(stream, lambda parts: "has ended" in parts.get("ended", ""))
    assert server.popen.wait(PATIENCE) == 1
    assert server.popen.stderr is not None
    assert "has ended" in server.popen.stderr.read()


@pytest.mark.mount
def test_a_port_that_is_taken(device: Device, web: Callable[..., Web], run: Callable[..., Any]) -> None:
    server = web(device.mountpoint)
    done = run("web", device.mountpoint, "--port", str(server.port))
    assert done.returncode == 1
    assert "--port 0" in done.stderr


# -- parts -------------------------------------------------------------------------------------------------------------


def test_hosts_and_origins() -> None:
    assert refusal(Headers({"host": "localhost:1"})) == ""
    assert refusal(Headers({"host": "127.0.0.1"})) == ""
    assert refusal(Headers({})) != ""
    assert refusal(Headers({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:2"})) != ""
    assert refusal(Headers({"host": "127.0.0.1:1", "sec-fetch-site": "same-site"})) != ""


def test_the_user_of_a_socket() -> None:
    line = "   1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1"
    table = f"header\n{line}\n"
    assert peer_uid(table, "127.0.0.1", 0x9C40) == 1000
    assert peer_uid(table, "127.0.0.1", 0x1F90) is None


@pytest.mark.parametrize(
    ("file", "words", "allowed"),
    [
        ("objects/a/validate", "vram gtt", True),
        ("objects/f/a/evict", "", True),
        ("objects/a/priority", "2", True),
        ("ctl/evict", "vram all", True),
        ("policies/evict", "vram lfu", True),
        ("policies/evict", "vram /tmp/x.py:Evil", False),
        ("policies/evict", "vram os:system", False),
        ("groups/a/b/dmem.max", "vram 4096", True),
        ("groups/dmem.max", "vram 4096", False),
        ("groups/a/cgroup.procs", "1", False),
        ("objects/../ctl/unplug", "", False),
        ("objects/a/../../ctl/evict", "", False),
        ("objects/evict", "", False),
        ("/etc/passwd", "", False),
        ("ctl/unplug", "", False),
        ("ctl/x/evict", "", False),
        ("objects/a/pin", "\nunplug", False),
        ("bo/a", "x", False),
    ],
)
def test_which_commands_the_page_may_give(file: str, words: str, allowed: bool) -> None:
    assert is_allowed(file, words) is allowed


class Files:
    """A mount of a few files."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.written: list[tuple[str, str]] = []

    def text(self, name: str) -> str:
        if name.replace("//", "/") not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        return self.files[name.replace("//", "/")]

    def entries(self, folder: str) -> list[str]:
        top = folder.rstrip("/") + "/"
        found = {name.removeprefix(top).split("/")[0] for name in self.files if name.startswith(top)}
        if not found:
            raise FileNotFoundError(2, "No such file or directory")
        return sorted(found)

    def write(self, name: str, words: str) -> None:
        if words == "bad":
            raise OSError(22, "Invalid argument")
        self.written.append((name, words))

    def last_error(self) -> str:
        return "TIME\tEINVAL\twho\twhat is wrong"

    def command(self, name: str, words: str) -> list[dict[str, Any]]:
        if words == "busy":
            raise CommandFailed("EBUSY", "it is busy")
        return [{"ok": True, "name": name}]


def test_policies_of_a_mount_and_commands_that_fail() -> None:
    nothing: Any = Files({"stats": "{}"})
    assert Settings(nothing).read() is None
    some: Any = Files(
        {
            "policies/evict": "system lru\nvram s3fifo small=0.1\n",
            "policies/prefetch": "window\n",
            "policies/promote": "none\n",
            "policies/available": "evict\tlru\t-\tTTM's own list\nevict\tlfu\tage=0\tthe least used\n",
            "policies/stats": '{"evict": {"vram": {"asked": 3}}}',
        }
    )
    settings = Settings(some)
    found = settings.read()
    assert found is not None
    assert found["evict"] == [["system", "lru"], ["vram", "s3fifo small=0.1"]]
    assert found["available"][1][:2] == ["evict", "lfu"]
    assert found["stats"]["evict"]["vram"]["asked"] == 3
    some.files["policies/available"] = "read once"
    assert settings.read() == found
    assert run(some, "groups/game/dmem.max", "vram 1") == {"ok": True}
    assert some.written == [("groups/game/dmem.max", "vram 1")]
    assert run(some, "groups/game/dmem.max", "bad") == {"ok": False, "errno": "EINVAL", "error": "what is wrong"}
    assert run(some, "objects/a/evict", "busy") == {"ok": False, "errno": "EBUSY", "error": "it is busy"}


def test_a_page_gets_what_it_has_not_seen() -> None:
    state, one, other = State(), Seen(), Seen()
    assert state.message(one) == "{}"
    assert state.put("now", "1")
    assert state.message(one) == '{"now": 1}'
    assert state.message(one) == "{}"
    assert not state.put("now", "1")
    assert state.message(one) == "{}"
    state.put("now", "2")
    state.put("map vram", "[]")
    assert state.message(one) == '{"now": 2, "map vram": []}'
    assert state.message(other) == '{"now": 2, "map vram": []}'
    state.add_events([{"n": number} for number in range(EVENTS_A_MESSAGE + 7)])
    text = state.message(one)
    assert '"missed": 7' in text
    assert text.count('"n"') == EVENTS_A_MESSAGE
    assert state.message(one) == "{}"


def test_a_source_takes_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(sampler.time, "monotonic", lambda: now)  # type: ignore[attr-defined]
    paced = Paced(0.5)
    assert paced.due("a")

    def slow() -> str:
        nonlocal now
        now += 0.2
        return "text"

    assert paced.read("a", slow) == "text"
    now += 3.0
    assert not paced.due("b")  # it took 0.2 s: not before 4 s
    now += 1.1
    assert paced.due("b")
    assert not paced.due("a")
    now += 5.0
    assert not paced.due("a")  # nothing has changed: not before 20 s
    now += 11.0
    assert paced.due("a")


def test_counters_tell_of_moves() -> None:
    stats = {"moves": {"count": 1}, "regions": {"vram": {"used": 5}}}
    assert counters(stats) == counters({**stats, "requests": {"read": 9}})
    assert counters(stats) != counters({**stats, "moves": {"count": 2}})
    assert counters(stats) != counters({**stats, "regions": {"vram": {"used": 6}}})


def test_a_histogram_is_counts_by_bucket() -> None:
    text = 'x_bucket{le="0.001"} 3\nx_bucket{le="0.01"} 5\nx_bucket{le="+Inf"} 6\nx_count 6\ny_bucket{le="1"} 9\n'
    assert histogram(text, "x") == [[0.001, 3], [0.01, 2], [0.0, 1]]


# Machado, Oliveira and Fernandes 2009, severity 1: linear red, green, blue as a protanope and a deuteranope see them.
_SIGHT = {
    "all": np.eye(3),
    "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
}


def _lab(colour: str, sight: str) -> Any:
    """CIE L*a*b* of #rrggbb."""
    value = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(_SIGHT[sight] @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", _SIGHT)
def test_colours_are_told_apart_without_red_or_green(sight: str) -> None:
    letters = [colour for colour, _what in PALETTE["letters"].values()]
    for colours, least in ((PALETTE["bos"], 10), (letters, 10)):
        seen = [_lab(colour, sight) for colour in colours]
        for number, one in enumerate(seen):
            for other in seen[:number]:
                assert np.linalg.norm(one - other) > least
    lightness = [_lab(colour, sight)[0] for colour in PALETTE["scale"]]
    assert all(above - below > 3 for below, above in itertools.pairwise(lightness))


def test_nothing_on_the_page_is_of_another_host() -> None:
    static = sampler.__file__.replace("sampler.py", "static")
    for name in os.listdir(static):
        with open(f"{static}/{name}", encoding="utf-8") as file:
            text = file.read()
        for found in ("https://", "//cdn", "innerHTML", "outerHTML", "insertAdjacent", "eval("):
            assert found not in text, (name, found)
        assert text.replace("http://www.w3.org/2000/svg", "").count("http://") == 0, name
