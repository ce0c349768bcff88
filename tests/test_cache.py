"""The cache of derived values: what is put is found again, and a broken file says that it may be deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cache import Cache, key_of
from pipeline.errors import StorageError


def test_what_is_put_is_found_by_the_next_process_under_its_kind_alone(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    keys = [key_of("model", f"text {number}") for number in range(1200)]  # more than one query looks up
    with Cache(path) as cache:
        assert cache.get("ifd", keys[0]) is None
        cache.put("ifd", {key: b"%d" % number for number, key in enumerate(keys)})
        cache.put("ifd", {keys[7]: b"later"})
    with Cache(path) as cache:
        assert cache.get("ifd", keys[7]) == b"later"
        assert cache.get("text", keys[7]) is None
        assert len(cache.get_many("ifd", [*keys, key_of("unknown")])) == 1200


def test_keys_tell_apart_where_one_part_ends() -> None:
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc")
    assert key_of("ab") == key_of(b"ab")
    assert key_of("\ud800")  # a lone surrogate is a text, too


def test_a_file_that_is_no_cache_says_that_it_may_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"this is no database, but a text of more than a hundred bytes" * 4)
    with pytest.raises(StorageError, match="may be deleted"), Cache(path) as cache:
        cache.get("ifd", b"key")
