"""Names of P3's subsets: T0's mixture, the held-out tasks, and the cap on large data sets."""

from pathlib import Path

import pytest

from hart.data.p3.names import (
    canonical,
    dataset_of,
    held_out,
    held_out_column,
    is_scoring_copy,
    sampling_size,
    training_mixture,
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("imdb_Sentiment_with_choices_", "imdb_Sentiment_with_choices"),
        ("dbpedia_14_given_a_choice__of_categories_", "dbpedia_14_given_a_choice_of_categories"),
        ("anli_GPT_3_style_r2", "anli_r2_GPT_3_style"),
        ("anli_r2_GPT_3_style", "anli_r2_GPT_3_style"),
        ("glue_mrpc_paraphrase", "glue_mrpc_paraphrase"),
    ],
)
def test_spellings_of_one_name_are_one(written: str, meant: str):
    assert canonical(written) == meant


def test_scoring_copies_are_known_by_their_name():
    assert is_scoring_copy("dbpedia_14_pick_one__score_eval") and not is_scoring_copy("wiki_qa_found_on_google")


def test_mixture_is_that_of_t0():
    names = training_mixture()
    assert len({dataset_of(name) for name in names}) == 38
    assert len(names) == 313
    assert {"ropes_prompt_mix", "quoref_Read_And_Extract", "trec_fine_grained_LOC", "gigaword_TLDR"} <= names
    assert not any(held_out_column(name) for name in names)


def test_held_out_tasks_are_the_columns_of_the_paper():
    counts = {column: {len(own) for own in datasets.values()} for column, datasets in held_out().items()}
    assert list(counts) == ["ANLI", "HSwag", "CB", "COPA", "RTE", "WiC", "WSC", "WGD"]
    assert counts == dict(zip(counts, ({15}, {4}, {15}, {12}, {10}, {10}, {10}, {5}), strict=True))
    assert list(held_out()["ANLI"]) == ["anli_r1", "anli_r2", "anli_r3"]
    assert held_out_column("super_glue_wsc.fixed_replaced_with") == "WSC"
    assert held_out_column("super_glue_boolq_exam") is None


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("wiki_qa_Jeopardy_style", "wiki_qa"),
        ("trec_fine_grained_NUM", "trec"),
        ("anli_GPT_3_style_r1", "anli_r1"),
        ("super_glue_boolq_exam", "super_glue_boolq"),
        ("of_my_own", "of_my_own"),
    ],
)
def test_data_set_of_a_subset(name: str, dataset: str):
    assert dataset_of(name) == dataset


@pytest.mark.parametrize(
    ("name", "rows", "size"),
    [
        ("gigaword_TLDR", 3_803_957, 500_000 // 9),
        ("wiki_bio_who", 582_659, 500_000 // 5),
        ("yelp_review_full_this_place", 100, 100),  # a part of the data set
        ("glue_qqp_meaning", 363_846, 363_846),
        ("of_my_own", 2_000_000, 500_000),
        ("of_my_own", 7, 7),
    ],
)
def test_large_data_sets_are_capped(name: str, rows: int, size: int):
    assert sampling_size(name, rows) == size


def test_real_subsets_are_all_known(shared_data: Path):
    names = [path.name for path in (shared_data / "p3").iterdir() if path.is_dir()]
    assert {dataset_of(name) for name in names} >= {"super_glue_boolq", "glue_sst2", "story_cloze_2016"}
    listed = {subset for datasets in held_out().values() for own in datasets.values() for subset in own}
    present = {canonical(name) for name in names if held_out_column(name)}
    assert present <= listed
    assert listed - present == {"hellaswag_Randomized_prompts_template"}
