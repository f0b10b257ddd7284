import yaml

from onediff.cli import main
from onediff.config.compose import load_run, write_run


def test_a_renamed_key_is_refused_with_its_new_name_and_an_older_run_loads(tmp_path, capsys):
    assert main(["config", "show", "configs/demo.yaml", "model.vision.picture.fit=pad"]) == 2
    assert "'model.vision.picture' is now called 'image'; write model.vision.image" in capsys.readouterr().err
    config = load_run("configs/demo.yaml", ["model.vision.image.fit=pad"])
    write_run(config, tmp_path / "config.yaml")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    values["model"]["vision"]["picture"] = values["model"]["vision"].pop("image")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert load_run(tmp_path) == config


def test_a_removed_key_is_refused_with_a_hint_and_an_older_run_that_did_not_use_it_loads(tmp_path, capsys):
    assert main(["config", "show", "configs/demo.yaml", "training.fp8=[language]"]) == 2
    assert "'training.fp8' was removed: no measurement on a GPU showed a gain" in capsys.readouterr().err
    config = load_run("configs/demo.yaml", [])
    write_run(config, tmp_path / "config.yaml")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for asked in ([], ["language"]):
        values["training"]["fp8"] = asked
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        if asked:
            assert (
                main(["config", "show", str(tmp_path)]) == 2 and "'training.fp8' was removed" in capsys.readouterr().err
            )
        else:
            assert load_run(tmp_path) == config
