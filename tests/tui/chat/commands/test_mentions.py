"""`@` proposes text files near the working folder: no hidden or ignored ones, in bounded time, the likeliest first."""

import itertools
import subprocess
import time

from tui.chat.commands import mentions
from tui.chat.commands.mentions import NearbyFiles, closest_files, mention_at, mentioned_files, text_files


def grow(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("text\n")


def test_a_mention_is_the_word_before_the_cursor_that_begins_with_an_at():
    for line, column, typed in (
        ("@", 1, ""),
        ("see @no", 7, "no"),
        ("see @no more", 7, "no"),
        ("see @no more", 12, None),
        ("me@example", 10, None),
        ("@@x", 3, None),
        ("\t@src/a", 7, "src/a"),
        ("@no", 0, None),
    ):
        assert mention_at(line, column) == typed, (line, column)


def test_files_that_git_would_leave_out_are_not_proposed(tmp_path):
    """git itself is the oracle, with rules in several folders, and asked in one below the repository's root."""
    grow(
        tmp_path, "a.txt", "b.log", "keep.log", "sub/c.py", "sub/c.pyc", "sub/deep/d.md", "sub/deep/no.md", "out/e.txt"
    )
    grow(tmp_path, "sub/out/f.txt", "sub/only/here.txt", "sub/.hidden/g.txt", ".env", "sub/photo.png", "sub/x.ts")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n/out/\nsub/only/\n*.pyc\n")
    (tmp_path / "sub/deep/.gitignore").write_text("no.*\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for folder in (tmp_path, tmp_path / "sub", tmp_path / "sub/deep"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--others", "--exclude-standard"], cwd=folder, check=True, capture_output=True
        ).stdout.decode()
        shown = {path for path in listed.split("\0") if path and not path.endswith(".png")}
        shown = {path for path in shown if not any(part.startswith(".") for part in path.split("/"))}
        assert set(text_files(folder)) == shown, folder
    assert set(text_files(tmp_path / "sub")) == {"c.py", "deep/d.md", "out/f.txt", "x.ts"}


def test_a_folder_is_read_from_the_near_to_the_far_and_for_so_long_only(tmp_path, monkeypatch):
    grow(tmp_path, "z.txt", "a/b/c/deep.txt", "a/near.txt", "b/near.txt")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    found = ["z.txt", "a/near.txt", "b/near.txt", "a/b/c/deep.txt"]
    assert list(text_files(tmp_path)) == found
    assert list(text_files(tmp_path, max_files=2)) == found[:2]
    clock = itertools.count()
    monkeypatch.setattr(mentions.time, "monotonic", lambda: float(next(clock)))
    assert len(list(text_files(tmp_path, seconds=4.5))) < len(found)


def test_the_file_whose_name_is_meant_comes_first():
    paths = ["prompts/readme.txt", "tests/test_prompt.py", "prompt.py", "src/deep/prompt.md", "pro/m/pt.py", "other.py"]
    assert closest_files("prompt.py", paths)[:2] == ["prompt.py", "tests/test_prompt.py"]
    assert closest_files("tp", paths)[0] == "tests/test_prompt.py"
    assert closest_files("zz", paths) == []
    assert closest_files("", paths) == paths


def test_letters_that_match_in_thousands_of_ways_take_no_time():
    """Textual's matcher tries every way: 20 of these letters in a path match in 125,970 ways each."""
    paths = [f"{'e' * 20}/x{number}" + "f" * 20 for number in range(200)]
    begun = time.perf_counter()
    assert len(closest_files("eeeeeeffff", paths)) == 50
    assert time.perf_counter() - begun < 2 * mentions.MATCH_SECONDS + 1


def test_a_name_that_begins_a_path_elsewhere_is_completed_as_a_path(tmp_path, monkeypatch):
    grow(tmp_path, "home/notes.txt", "home/.secret", "work/a.txt")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files = NearbyFiles(tmp_path / "work")
    assert [each.text for each in files.propose("~/no")] == ["~/notes.txt"]
    assert [each.text for each in files.propose(f"{tmp_path}/ho")] == [f"{tmp_path}/home/"]
    assert [(each.text, each.is_file) for each in files.propose("")] == [("a.txt", True)]
    grow(tmp_path, "work/b.txt")
    assert [each.text for each in files.propose("b")] == []
    monkeypatch.setattr(mentions, "FRESH_SECONDS", -1.0)
    assert [each.text for each in files.propose("b")] == ["b.txt"]


def test_files_are_found_in_a_text_that_mentions_them_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grow(tmp_path, "a.txt", "sub/b.txt")
    text = "compare @a.txt, with @sub/b.txt? not @sub, @gone.txt or me@a.txt or @~nobody/x"
    assert [word for word, _ in mentioned_files(text)] == ["@a.txt", "@sub/b.txt"]
