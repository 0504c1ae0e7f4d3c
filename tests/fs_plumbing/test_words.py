"""Words: names as one word of a command and as one field of a table, for every name that a file can have."""

import errno
import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttmfs.errors import TtmError
from ttmfs.fs.commands.quoting import NO_NAMES, cell, escape, for_shell, readable, split_names, split_words, unescape

NAMES = st.binary(min_size=1, max_size=255).filter(lambda raw: b"\0" not in raw).map(os.fsdecode) | st.sampled_from(
    ["a b", "a,b", "a\tb", "a\nb", "a\u2028b", "a\u00a0b", "übér", "\udcff", "\U00100041", "\\040", "'", '"', *NO_NAMES]
)


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_escaped_names_are_one_word_and_come_back(names: list[str]) -> None:
    line = ",".join(map(escape, names)) + " vram"
    words = split_words(line)
    assert len(words) == 2
    assert split_names(words[0]) == names
    assert [unescape(word) for word in split_words(" ".join(map(escape, names)))] == names


@given(NAMES)
def test_an_escaped_name_keeps_a_table_cuttable(name: str) -> None:
    written = escape(name)
    assert len(written.split()) == len(written.splitlines()) == 1
    assert "," not in written
    assert written not in NO_NAMES
    written.encode()  # no stray bytes: the table is UTF-8


@given(st.text())
def test_a_cell_is_one_field_of_one_line(text: str) -> None:
    written = cell(text)
    assert "\t" not in written
    assert len(written.splitlines()) <= 1
    assert cell(written) == written


def test_printable_names_stay_as_they_are() -> None:
    assert escape("textures/übér-1.png") == "textures/übér-1.png"
    assert cell("a b: 'x'") == "a b: 'x'"


@pytest.mark.parametrize("path", ["objects/a b/evict", "objects/it's/evict", "objects/a-b/evict"])
def test_a_printable_path_is_one_word_of_a_shell(path: str) -> None:
    assert shlex.split(for_shell(path)) == [path]


def test_other_paths_are_quoted_as_bash_reads_them() -> None:
    assert for_shell("objects/a\n'b\udcff/evict") == r"$'objects/a\012\047b\377/evict'"


def test_messages_show_escapes_as_they_were_written() -> None:
    [word] = split_words(r"vram\000\054")
    assert readable(f"{word!r} is no region") == r"'vram\000\054' is no region"


@pytest.mark.parametrize("line", ["vram 'gtt", 'a "b', "a\0b"])
def test_what_cannot_be_split_is_einval(line: str) -> None:
    with pytest.raises(TtmError) as failed:
        split_words(line)
    assert failed.value.errno == errno.EINVAL
