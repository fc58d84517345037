"""`train`: what is refused, and that nothing is lost by it."""

import pytest

from nanonet.core.errors import BackboneError, ConfigError, DataError, RunError
from nanonet.data.readers import table_from_lists
from nanonet.models.encoders import BertEncoder
from nanonet.models.peft import PEFT, PeftMethod
from nanonet.training.inputs import TrainingTables
from nanonet.training.run_folder import RunFolder
from nanonet.training.train import train
from test_training import contents, unread
from tiny import AT_ONCE, make_settings, make_tables


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["cohort.students=1"], "mutual needs 2 students or more"),
        (["cohort.teacher=false"], "needs a teacher, but cohort.teacher is false"),
        (["cohort.teacher=false", "cohort.students=0"], "nobody|nothing to learn"),
        (["phases.students.stop=0.3"], "'student1' nothing to learn"),
        (["phases.students.start=1"], r"students.start is 1.0, but must be less than .*stop=1.0"),
        (["phases.teacher.stop=0.25"], r"teacher.start is 0.25, .*less than phases.teacher.stop"),
        (
            ["cohort.students=0", "phases.teacher.objectives.feedback.weight=0.1"],
            "feedback needs 1 students or more",
        ),
        (["phases.students.objectives.mutul.weight=1"], "did you mean 'mutual'"),
        (["cohort.student_peft=bitfi"], "did you mean 'bitfit'"),
        (["cohort.student_layers=5"], "the backbone has 4 layers"),
        (["cohort.layer_map=spred"], "did you mean 'spread'"),
        (["data.max_length=65"], "positions for 64 tokens"),
        (["training.device=cuda:99"], "not available"),
        (["cohort.layer_map=[[1, 5], [2, 3]]"], r"student 1 is \[1, 5\].* from 1 to 4; take fewer"),
        (["cohort.layer_map=[[1, 2], [0, 3]]"], r"student 2 is \[0, 3\].* from 1 to 4; take fewer"),
        (["cohort.layer_map=[[2, 1], [2, 3]]"], r"student 1 is \[2, 1\]: layers must increase"),
        (["cohort.layer_map=[[1, 2]]"], "lists 1 students, but cohort.students is 2"),
        (
            ["cohort.students=4"],
            r"layer map 'spread' of student 3 is \[0, 4\].*take fewer students",
        ),
        (
            ["cohort.students=3", "cohort.layer_map=block"],
            "gives 3 students only 2 distinct views .*take fewer students, or list the maps",
        ),
        (["cohort.layer_map=[[1, 2], [1, 2]]"], "gives 2 students only 1 distinct views"),
        (
            ["cohort.students=1"],
            "set phases.students.objectives.mutual.weight=0 or cohort.students=2",
        ),
        (
            ["cohort.student_peft=lora", "lora.targets=['quary']"],
            r"lora.targets \['quary'\] match no linear map.*: dense, key, query, value .*leave",
        ),
        (["cohort.teacher_peft=lora", "lora.targets=['quary']"], "lora.targets .* match no linear"),
        (
            ["views.learners.studnet1.token_cutoff=0.1"],
            r"views.learners.studnet1 names no learner .did you mean 'student1'.*teacher, student1",
        ),
        (["cohort.students=1", "views.learners.student2.shuffle=1"], "student2 names no learner"),
        (
            ["views.learners.student1.tokn_cutoff=0.1"],
            "student1.tokn_cutoff' .did you mean 'token_",
        ),
        (["views.learners.student1.dropout=1"], "'views.learners.student1.dropout' is 1.0"),
        (["warmup.steps=5", "warmup.peft=head"], "nothing to learn: set warmup.steps=0"),
        (
            ["warmup.steps=5", "warmup.objectives.representation_distillation.weight=0"],
            "nothing to learn: set warmup.steps=0",
        ),
        (
            ["warmup.steps=5", "warmup.objectives.supervised.weight=1"],
            "objectives.supervised cannot be learnt before .*use representation_distillation",
        ),
        (["warmup.steps=5", "warmup.objectives.mutual.weight=1"], "objectives.mutual cannot be"),
        (["warmup.steps=5", "warmup.objectives.mutul.weight=1"], "did you mean 'mutual'"),
        (["warmup.peft=ful"], "did you mean 'full'"),
        (
            [
                "cohort.student_peft=head",
                *(
                    f"phases.students.objectives.{name}.weight=0"
                    for name in ("supervised", "mutual", "prediction_distillation")
                ),
            ],
            "phases.students leaves student1 nothing to train: representation_distillation do not"
            " reach the head; set cohort.student_peft=bitfit, or the weight",
        ),
        (
            ["warmup.steps=5", "warmup.peft=lora", "lora.targets=['quary']"],
            r"lora.targets \['quary'\] match no linear map",
        ),
    ],
)
def test_contradictions_are_refused_before_data_is_read(
    tmp_path, tiny_bert_folder, settings, expected
):
    with pytest.raises(ConfigError, match=expected) as error:
        train(make_settings(tiny_bert_folder, *settings), unread, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "learner"),
    [
        ("views.adversarial=1", "student1"),
        ("views.feature_cutoff=0.1", "student1"),
        ("views.learners.teacher.adversarial=1", "teacher"),
        ("views.learners.student2.feature_cutoff=0.1", "student2"),
    ],
)
def test_views_that_a_backbone_has_no_access_for(
    tmp_path, tiny_bert_folder, monkeypatch, setting, learner
):
    monkeypatch.setattr(BertEncoder, "has_embedding_output", False)
    train(
        make_settings(tiny_bert_folder, "views.shuffle=0.1", "training.steps=1"),
        make_tables,
        tmp_path / "a",
    )
    expected = f"the view of {learner} changes the embedding output.*set views.adversarial=0 and"
    with pytest.raises(ConfigError, match=expected) as error:
        train(make_settings(tiny_bert_folder, setting), unread, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("learner", ["teacher", "student"])
def test_a_method_that_finds_nothing_to_train_is_refused(
    tmp_path, tiny_bert_folder, monkeypatch, learner
):
    class Nothing(PeftMethod):
        """What layernorm would be in an encoder without one."""

        @staticmethod
        def apply(encoder, lora):
            return []

    monkeypatch.setitem(PEFT._entries, "nothing", Nothing)
    config = make_settings(tiny_bert_folder, f"cohort.{learner}_peft=nothing")
    with pytest.raises(ConfigError, match=r"'nothing' finds no parameter to train .*use another"):
        train(config, unread, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_anything_to_learn_is_refused_before_data_is_read(
    tmp_path, tiny_bert_folder
):
    nothing = "phases.teacher.objectives.supervised.weight=0"
    config = make_settings(tiny_bert_folder, nothing, recipe=AT_ONCE)
    with pytest.raises(ConfigError, match="'teacher' nothing to learn"):
        train(config, unread, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_backbone_is_refused_before_data_is_read(tmp_path):
    with pytest.raises(BackboneError, match="does not exist"):
        train(make_settings(tmp_path / "no"), unread, tmp_path / "run")


def test_a_folder_in_the_way(tmp_path, tiny_bert_folder):
    out = tmp_path / "run"
    config = make_settings(tiny_bert_folder, "training.steps=2")
    train(config, make_tables, out)
    before = contents(out)
    with pytest.raises(RunError, match=r"--resume.*--overwrite.*--out"):
        train(config, unread, out)
    assert contents(out) == before
    other = make_settings(tiny_bert_folder, "training.steps=3", "seed=5")
    assert train(other, make_tables, out, mode="overwrite")["steps"] == 3
    assert RunFolder(out).read_config()[0] == other
    (tmp_path / "file").write_text("x")
    for mode in ("new", "resume", "overwrite"):
        with pytest.raises(RunError, match="file"):
            train(config, unread, tmp_path / "file", mode=mode)
    (tmp_path / "empty").mkdir()
    assert train(config, make_tables, tmp_path / "empty")["finished"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda: (_ for _ in ()).throw(DataError("train.csv, line 3: no label")),
        lambda: TrainingTables(table_from_lists(["iron", "tin"], [1, 1])),
        lambda: TrainingTables(table_from_lists(["iron"])),
        lambda: TrainingTables(
            table_from_lists(["iron", "lake"], [0, 1]), None, table_from_lists(["sea"], [2])
        ),
    ],
)
@pytest.mark.parametrize("mode", ["overwrite", "new"])
def test_bad_data_changes_nothing_on_disk(tmp_path, tiny_bert_folder, broken, mode):
    out = tmp_path / "run"
    if mode == "overwrite":
        train(make_settings(tiny_bert_folder, "training.steps=2"), make_tables, out)
    before = contents(tmp_path)
    with pytest.raises(DataError) as error:
        train(make_settings(tiny_bert_folder), broken, out, mode=mode)
    assert error.value.exit_code != 0
    assert contents(tmp_path) == before
    assert out.exists() == (mode == "overwrite")


def test_bad_monitor_labels_change_nothing_on_disk(tmp_path, tiny_bert_folder):
    out = tmp_path / "run"
    train(make_settings(tiny_bert_folder, "training.steps=2"), make_tables, out)
    before = contents(out)
    odd = table_from_lists(["iron"], [7])
    with pytest.raises(DataError, match="unknown label 7"):
        train(make_settings(tiny_bert_folder), make_tables, out, mode="overwrite", monitor=odd)
    assert contents(out) == before


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite"])
@pytest.mark.parametrize("name", ["thesis.txt", "config.toml"])
def test_a_foreign_folder_is_never_touched(tmp_path, tiny_bert_folder, mode, name):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / name).write_text('title = "my site"\n')
    with pytest.raises(RunError):
        train(make_settings(tiny_bert_folder), make_tables, folder, mode=mode)
    assert contents(folder) == {name: b'title = "my site"\n'}
