"""Names of a run's directory, and what a name says."""

from mnist_ray.run import layout


def test_names_and_back() -> None:
    for number in (0, 7, 99_999, 100_000):
        for folder in (layout.trial_folder, layout.tensorboard_folder):
            assert layout.trial_of(folder(number)) == number
            assert layout.trial_of(f"{folder(number)}/latest.safetensors") == number
        assert layout.trial_of(layout.error_file(number)) == number
    for member in (1, 2, 30):
        assert layout.stage_of(f"{layout.stage_folder(3, member)}/curve.parquet") == (3, member)


def test_other_names_belong_to_no_trial_and_no_stage() -> None:
    for name in (
        "run.json",
        "best/model.safetensors",
        "tune/experiment_state.json",
        "finetune.log",
    ):
        assert layout.trial_of(name) is None
        assert layout.stage_of(name) is None


def test_every_file_of_a_run_is_known_as_one() -> None:
    named = {
        k: v for k, v in vars(layout).items() if k.isupper() and isinstance(v, str) and "." in v
    }
    stage = [f"{layout.stage_folder(1)}/{v}" for k, v in named.items() if k.startswith("STAGE_")]
    own = [f"{layout.own_folder('0')}/{v}" for k, v in named.items() if k.startswith("OWN_")]
    names = [v for k, v in named.items() if not k.startswith(("STAGE_", "OWN_"))]
    made = [layout.tuned_state("0" * 64), *map(layout.smaller_model, layout.SMALLER)]
    found = [*names, *stage, *own, *made, layout.lease_file("search")]
    assert [name for name in found if not layout.is_ours(name)] == []
    assert not layout.is_ours("notes.txt")
