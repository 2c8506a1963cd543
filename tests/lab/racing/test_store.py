import os
import sqlite3

import pytest

from schuss.lab.racing.store import Store, StoreError

RESULT = {"status": "finished", "curve": {"metric": [1.0, 0.1 + 0.2]}, "seconds": 0.1}


def test_what_is_saved_comes_back_to_the_last_digit(tmp_path):
    with Store(tmp_path) as store:
        store.save("a", "task", RESULT)
        store.put("c", {"step": {"seconds": 1e-3}})
    with Store(tmp_path) as store:
        assert store.results() == {"a": RESULT}
        assert store.get("c") == {"step": {"seconds": 1e-3}}
        assert store.get("d") is None


def test_the_same_race_again_is_welcome_and_another_version_is_not(tmp_path):
    old, new = {"the code": "a"}, {"the code": "b"}
    with Store(tmp_path) as store:
        store.guard("digits", "1", old)
        store.guard("digits", "1", old)
        store.guard("text", "2", old)
        store.save("a", "digits", RESULT)
        store.guard("text", "3", new)  # nothing was run on it
        message = r"1 runs on 'digits' by another version of the code or the data, since 20.*code changed \(a; now b\)"
        with pytest.raises(StoreError, match=message):
            store.guard("digits", "3", new)


def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path):
    with Store(tmp_path), pytest.raises(StoreError, match="Another race is being written"):
        Store(tmp_path)
    with Store(tmp_path):
        pass


def test_a_reader_reads_while_the_race_writes(tmp_path):
    with Store(tmp_path) as store:
        store.save("a", "task", RESULT)
        reader = sqlite3.connect(tmp_path / "race.sqlite")
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        reader.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "race.sqlite"
    path.write_text(
        "these are my notes, not a database at all, and they are long enough to be read as a header"
    )
    before = path.read_bytes()
    with pytest.raises(StoreError, match="cannot be used: file is not a database"):
        Store(tmp_path)
    assert path.read_bytes() == before


def test_somebody_elses_database_is_refused(tmp_path):
    other = sqlite3.connect(tmp_path / "race.sqlite")
    other.execute("CREATE TABLE runs (mine)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="is a database, but not a race's"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store(tmp_path / "file" / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written to"):
        Store(tmp_path)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path):
    with Store(tmp_path) as store:
        store.save("a", "task", RESULT)
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be out of room
        with pytest.raises(StoreError, match="could not be written: database or disk is full"):
            store.save("b", "task", {"curve": list(range(100_000))})
        assert store.results() == {"a": RESULT}
    with Store(tmp_path) as store:
        assert store.results() == {"a": RESULT}
