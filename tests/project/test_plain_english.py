"""The list of words catches what it is for, and the project is free of it."""

from plain_english import faults, main


def test_the_project_is_free_of_the_words_on_the_list(capsys):
    assert main() == 0, capsys.readouterr().out


def test_a_word_on_the_list_is_named_with_its_place_and_what_to_write():
    text = "# fine\n# Java was not to be had, so the picture is mended\n"
    java, mended, picture = faults("onediff/x.py", text)
    assert java == "onediff/x.py:2:8: 'was not to be had': write `is available`, `was missing`"
    assert "'mended': write `fix`" in mended and "'picture': write `image`" in picture
    assert len(list(faults("data_prep/compose/words.py", text))) == 2, "captions may say picture"
