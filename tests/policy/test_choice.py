"""`--policy` as it is written: kind and words, files from where one stands; what is wrong is said."""

import os

import pytest

from ttmfs.errors import TtmError
from ttmfs.policy.choice import parse_choice


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("evict:vram=s3fifo", "evict", ("vram", "s3fifo")),
        ("evict:vram=s3fifo,small=0.2,ghost=1", "evict", ("vram", "s3fifo", "small=0.2", "ghost=1")),
        ("evict:gtt=/x/mine.py:Mine,a=b=c", "evict", ("gtt", "/x/mine.py:Mine", "a=b=c")),
        ("evict:vram=mine.py:Mine", "evict", ("vram", f"{os.getcwd()}/mine.py:Mine")),
        ("prefetch=module:Class", "prefetch", ("module:Class",)),
        ("promote=moverate,rate=1M", "promote", ("moverate", "rate=1M")),
    ],
)
def test_what_is_understood(text: str, kind: str, words: tuple[str, ...]) -> None:
    assert parse_choice(text) == (kind, words)


@pytest.mark.parametrize(
    "text",
    ["", "lru", "evict=lru", "evict:=lru", "evict:vram=", "prefetch:vram=tree", "promote=", "swap=lru", "evict:vram"],
)
def test_what_is_not_says_what_to_say(text: str) -> None:
    with pytest.raises(TtmError, match=r"say evict:REGION=NAME\[,key=value…\], prefetch=NAME or promote=NAME"):
        parse_choice(text)


@pytest.mark.parametrize("text", ["evict:vram=Lru", "prefetch=tree,percent", "promote=moverate,rate=1,rate=2"])
def test_what_is_no_policy_or_parameter(text: str) -> None:
    with pytest.raises(TtmError) as caught:
        parse_choice(text)
    assert caught.value.name == "EINVAL"
