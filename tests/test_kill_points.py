"""The short forms of `kill_points.py` and `mutations.py`: some points, and some damaged files of each kind."""

import warnings

import pytest
from kill_points import Runs, check_all
from mutations import KINDS, READ, REFUSED, Mutations, outcome_of


def test_a_fit_that_is_killed_leaves_the_old_model_or_the_new_one(tmp_path):
    assert list(check_all(Runs(tmp_path), every=13)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_by_name_or_read(kind, tmp_path):
    mutations = Mutations(kind, tmp_path, seed=1)
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(100):
            read = mutations.make_next()
            outcomes.append(outcome_of(read, mutations.path))
    assert [outcome for outcome in outcomes if outcome[0] not in (READ, REFUSED)] == []
    assert sum(code == REFUSED for code, _ in outcomes) > 50
