"""Which window was used, as it is said and as a command that uses it again."""

import pytest

from asd_policy.eval.show.windows import (
    base_command,
    fixed_options,
    sampled_sequentially,
    window_phrases,
    window_text,
    windows_differ,
)


def window(requested, *used, chosen=None):
    """As results.json has it: so many chunks of each window."""
    counts = {str(each): used.count(each) for each in sorted(set(used))}
    most = max(used, key=used.count) if used else None
    return {"requested": requested, "chosen": chosen or most, "chunks_by_window": counts}


def results(resolved=None, **windows):
    return {
        "resolved": {"threads": 2} | (resolved or {}),
        "samplers": {name.replace("_", "-"): {"window": w} for name, w in windows.items()},
    }


def config(requested="auto", threads=None):
    return {"settings": {"window": requested, "threads": threads}}


@pytest.mark.parametrize(
    ("used", "written"),
    [
        (window(16, 16, 16), "16"),
        (window("auto", 24), "24 (auto)"),
        (window("auto", 1, 1, 24), "1 to 24 (auto)"),
        (window("auto", 8, 100, 24), "8 to 100 (auto)"),
        (window("auto"), "–"),
        ({"requested": "auto", "chosen": 24}, "24 (auto)"),  # a run without the counts
    ],
)
def test_a_window_is_written_as_it_was(used, written):
    assert window_text(used) == written


def test_the_line_of_settings_names_each_window_once():
    assert window_phrases(results(asd=window("auto", 24), asd_paper=window("auto", 24))) == [
        "window 24 (auto)"
    ]
    mixed = results(asd=window("auto", 1, 1, 24), ddpm=None, paradigms=window("auto", 32))
    assert window_phrases(mixed) == [
        "windows 1 to 24 (auto) for asd",
        "window 32 (auto) for paradigms",
    ]
    assert window_phrases(results(ddpm=None)) == []
    assert window_phrases(results(asd=window("auto"))) == []


def test_only_a_run_that_was_sequential_throughout_is_said_to_be():
    """A mean of 73 calls came from chunks of window 24 among those of window 1."""
    assert sampled_sequentially(results(asd=window("auto", 1, 1))) == ["asd"]
    assert sampled_sequentially(results(asd=window("auto", 1, 1, 24))) == []
    assert sampled_sequentially(results(asd=window(1, 1, 1))) == []
    assert sampled_sequentially(results(paradigms=window("auto", 1), ddpm=None)) == []


def test_what_auto_came_to_is_added_to_the_command():
    threads = ("--threads", ("resolved", "threads"))
    chosen = ("--window", ("samplers", "asd", "window", "chosen"))
    same = results(asd=window("auto", 24), asd_paper=window("auto", 24, 24), ddpm=None)
    assert fixed_options(config(), same) == [chosen, threads]
    assert fixed_options(config(threads=1), same) == [chosen]
    assert fixed_options(config(requested=24), same) == [threads]
    assert fixed_options(config(), results(ddpm=None)) == [threads]
    unknown = results({"threads": 0}, asd=window("auto"))  # no chunk yet
    assert fixed_options(config(), unknown) == []
    auto = {"settings": {**config(threads=1)["settings"], "engine": "auto"}}
    named = results({"engine": "openvino"}, ddpm=None)
    assert fixed_options(auto, named) == [("--engine", ("resolved", "engine"))]
    remote = auto | {"command": "asd-policy eval --remote ws://host:8000"}
    assert fixed_options(remote, same) == [], "all are the server's"
    known = results({"windows": {"asd": 24}}, asd=window("auto"))
    assert fixed_options(config(), known)[0] == ("--window", ("resolved", "windows", "asd"))


@pytest.mark.parametrize(
    "different",
    [
        results(asd=window("auto", 1, 24)),
        results(asd=window("auto", 16), asd_paper=window("auto", 24)),
        results({"windows": {"asd_paper": 32}}, asd=window("auto", 1, 24)),
    ],
)
def test_no_window_is_added_where_none_would_do(different):
    assert [option for option, _ in fixed_options(config(), different)] == ["--threads"]
    assert windows_differ(different)


def test_windows_that_were_asked_for_do_not_differ():
    assert not windows_differ(results(asd=window(16, 16), ddpm=None))
    assert not windows_differ(results(asd=window("auto", 16), paradigms=window("auto", 16)))


@pytest.mark.parametrize(
    ("command", "base"),
    [
        ("asd-policy eval", "asd-policy eval"),
        ("asd-policy eval --episodes 2 --out a/b --resume", "asd-policy eval --episodes 2"),
        ("asd-policy eval --out '--out' --video 1", "asd-policy eval --video 1"),
        ("asd-policy eval --name 'my run' --out x", "asd-policy eval --name 'my run'"),
        ("it isn't one", "it isn't one"),
    ],
)
def test_a_command_is_repeated_without_its_folder(command, base):
    assert base_command(command) == base
