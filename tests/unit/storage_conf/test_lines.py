"""Keys are found in the lines they stand in, however the file is written."""

import tomllib

import pytest
from squashmount.storage_conf.lines import Lines, line_of_error

TEXT = '''\
# a comment with [brackets] and "quotes
top = 1
"quoted.key" = """
x = 1
[not.a.table]
"""
[storage]   # the first
driver = "overlay"
options.size = "1"
[storage.options]
additionalimagestores = [
  "/a",  # ]
  "/b",
]
pull_options = { a = "1", b = 2 }
[[stores]]
path = '/c#'
[[stores]]
path = "/d\\"]"
[stores.more]
x = [[1], [2]]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("quoted.key",), 3),
        (("storage",), 7),
        (("storage", "driver"), 8),
        (("storage", "options", "size"), 9),
        (("storage", "options", "additionalimagestores"), 11),
        (("storage", "options", "pull_options", "b"), 15),
        (("stores",), 16),
        (("stores", 0, "path"), 17),
        (("stores", 1, "path"), 19),
        (("stores", 1, "more", "x"), 21),
        (("storage", "nothing"), 7),
        (("nothing",), 0),
    ],
)
def test_lines(path: tuple[str | int, ...], line: int) -> None:
    assert Lines(TEXT).of(*path) == line
    assert Lines(TEXT.replace("\n", "\r\n")).of(*path) == line


def test_a_text_that_is_no_toml() -> None:
    assert Lines("a = 1\nb = = 2\n").of("a") == 1
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads("a = 1\nb = = 2\n")
    assert line_of_error(caught.value) == 2
