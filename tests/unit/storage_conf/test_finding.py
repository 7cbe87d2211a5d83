"""What findings add up to."""

from squashmount.storage_conf.finding import error, exit_code, info, summary, warning

BAD, DOUBTFUL, FINE = (kind("what", "why", "fix") for kind in (error, warning, info))


def test_the_summary_counts_and_the_worst_decides() -> None:
    assert summary([]) == "nothing wrong"
    assert summary([BAD, DOUBTFUL, DOUBTFUL, FINE, FINE]) == "1 error, 2 warnings, 2 info"
    assert (
        exit_code([FINE]),
        exit_code([DOUBTFUL]),
        exit_code([DOUBTFUL], strict=True),
        exit_code([DOUBTFUL, BAD]),
    ) == (0, 0, 11, 11)
