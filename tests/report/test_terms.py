"""Numbers as the report writes them."""

import numpy as np
import pandas as pd
import pytest

from scl_ray.report import terms


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.371, 0.262], ["0.371", "0.262"]), ([6.81, -6.39], ["6.81", "−6.39"]), ([512.3, 0.04], ["512", "0"]),
     ([1.25e-8, 3e-9], ["1.25e−8", "3.00e−9"]), ([3.1e30, -0.5], ["3.10e30", "−5.00e−1"]), ([0.0, 0.0], ["0.00"] * 2),
     ([1e30, 0.0], ["1.00e30", "0"]), ([np.nan, 0.5], ["–", "0.500"]), ([np.inf, 0.5], ["inf", "0.500"])],
)  # fmt: skip
def test_three_significant_digits_of_the_largest(values, shown):
    digits = terms.decimals(pd.Series(values))
    assert [terms.number(value, np.nan, digits) for value in values] == shown


def test_there_is_no_minus_zero():
    assert terms.signed(-0.0004, 3) == terms.signed(0.0004, 3) == "0.000"
    assert terms.interval(-0.0004, 0.0104, 3) == "[0.000, 0.010]"
    assert (terms.signed(-0.0006, 3), terms.signed(0.0006, 3)) == ("−0.001", "+0.001")


def test_a_difference_has_the_digits_that_it_needs():
    # A small difference that is decided is not written as zero; one inside its interval takes no more than that.
    assert terms.resolving(0.0004, 0.0001, 0.0007, significant=2) == 5
    assert terms.resolving(1e-9, -0.02, 0.02, significant=2) == 3
    assert terms.resolving(-0.021, np.nan, np.nan) == 4


def test_what_is_decided_is_not_rounded_to_what_is_not():
    told = [terms.p_value(p) for p in (0.0496, 0.0499999, 0.05, 0.0004, 0.031)]
    assert told == ["< 0.05", "< 0.05", "= 0.050", "< 0.001", "= 0.031"]
