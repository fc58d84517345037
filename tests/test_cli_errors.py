"""Bad input: one line that names the culprit, a status, and nothing written."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanonet.data.writers import write_table
from runs import refuse, succeed
from tiny import make_texts


def replaced(arguments: list[object], option: str, value: object) -> list[object]:
    """Return the arguments with another value of one option."""
    at = arguments.index(option)
    return [*arguments[: at + 1], value, *arguments[at + 2 :]]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


GOOD = 'text,label\n"the apple",0\n"a river",1\n'

# name of the file, its content, what the message must hold
BAD_LABELED = [
    (
        "columns.csv",
        "txt,lbl\na,0\nb,1\n",
        ["no column 'text'", "did you mean 'txt'", "data.text_"],
    ),
    ("nolabel.csv", "text\na\nb\n", ["no column 'label'", "data.label_column"]),
    ("semicolon.csv", "text;label\na;0\nb;1\n", ["separated by ';'"]),
    ("emptytext.csv", GOOD + ",1\n", ["line 4", "'text' is empty"]),
    ("nolabelrow.csv", GOOD + "new,\n", ["line 4", "no label"]),
    ("oneclass.csv", "text,label\na,0\nb,0\n", ["only one class", "'0'"]),
    ("mixed.csv", GOOD + "new,water\n", ["mixes numbers and words", "line 2", "line 4"]),
    ("latin.csv", "text,label\ncafé,0\n".encode("latin-1"), ["line 2", "0xE9", "UTF-8"]),
    ("broken.csv", GOOD + 'a,b,"c\n', ["line 4", "broken row"]),
    ("fields.csv", GOOD + "a,b,1\n", ["line 4", "3 fields"]),
    ("broken.jsonl", '{"text": "a", "label": 0}\n{"text": \n', ["line 2", "broken JSON"]),
    ("list.jsonl", '["a", 0]\n', ["line 1", "JSON object", "list"]),
    ("empty.csv", "", ["is empty"]),
    ("header.csv", "text,label\n", ["no rows"]),
    ("damaged.parquet", b"PAR1 but no more", ["no Parquet file"]),
    ("texts.txt", GOOD, ["unknown file type"]),
    ("nul.csv", GOOD + "a\0b,1\n", ["line 4", "NUL"]),
    ("names.csv", "text,label,label_name\na,0,x\nb,0,y\n", ["line 3", "'y'", "'x'"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), BAD_LABELED, ids=[b[0] for b in BAD_LABELED])
def test_labelled_file(train_arguments, tmp_path, name, content, parts):
    file = put(tmp_path / name, content)
    arguments = replaced(train_arguments, "--labeled", file)
    refuse(*arguments, "--out", tmp_path / "run", parts=[str(file), *parts])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--labeled", "--unlabeled"])
def test_file_that_is_not_there_or_a_folder(train_arguments, corpus, tmp_path, option):
    out = tmp_path / "run"
    wrong = replaced(train_arguments, option, corpus / "labelled.csv")
    refuse(
        *wrong, "--out", out, parts=["no such file", "labelled.csv", "did you mean 'labeled.csv"]
    )
    refuse(*replaced(train_arguments, option, corpus), "--out", out, parts=["is a folder"])
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [("", ["is empty"]), ("text\n", ["no rows"]), ('text\n""\n" "\n', ["empty in all 2 rows"])],
)
def test_unlabelled_file_without_texts(train_arguments, tmp_path, content, parts):
    file = put(tmp_path / "u.csv", content)
    arguments = replaced(train_arguments, "--unlabeled", file)
    refuse(*arguments, "--out", tmp_path / "run", parts=[str(file), *parts])
    assert not (tmp_path / "run").exists()


def test_validation_label_that_training_never_saw(train_arguments, tmp_path):
    file = put(tmp_path / "v.csv", GOOD + "new,7\n")
    parts = ["v.csv, line 4", "unknown label 7", "0 (fruit), 1 (metal), 2 (water)"]
    refuse(*train_arguments, "--validation", file, "--out", tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


def test_test_label_that_training_never_saw(run_folder, bundle, tmp_path):
    file = put(tmp_path / "t.csv", "text,label\nthe apple,fruits\n")
    parts = ["t.csv, line 2", "unknown label 'fruits'", "did you mean 'fruit'"]
    for folder in (run_folder, bundle):
        refuse("evaluate", folder, "--data", file, "--json", parts=parts)


def test_labels_may_be_given_by_name(bundle, tmp_path):
    file = put(tmp_path / "t.csv", "text,label\nthe apple,fruit\nthe lake,water\n")
    assert "examples  2" in succeed("evaluate", bundle, "--data", file).out


# backbones


def damaged_backbone(source: Path, folder: Path, how: str) -> tuple[Path, list[str]]:
    """Return a copy of a backbone with one thing wrong, and what the message must hold."""
    shutil.copytree(source, folder)
    config = folder / "config.json"
    if how == "no config":
        config.unlink()
        return folder, ["holds no encoder", "config.json is missing"]
    if how == "no weights":
        (folder / "model.safetensors").unlink()
        return folder, ["holds no encoder", "model.safetensors is missing"]
    if how == "family":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gpt2"}))
        return folder, ["gpt2", "bert, camembert, modernbert"]
    if how == "unheard-of family":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gurk"}))
        return folder, ["gurk"]
    if how == "config is no JSON":
        config.write_text("{")
        return folder, ["cannot be loaded", "JSON"]
    if how == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
        return folder, ["tokenizer"]
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    return folder, ["cannot be loaded"]


DAMAGES = [
    *("no config", "no weights", "family", "unheard-of family", "config is no JSON"),
    "truncated weights",
    "no tokenizer",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_backbone_folder(train_arguments, tiny_bert_folder, tmp_path, how):
    folder, parts = damaged_backbone(tiny_bert_folder, tmp_path / "backbone", how)
    arguments = replaced(train_arguments, "--backbone", folder)
    refuse(*arguments, "--out", tmp_path / "run", parts=[str(folder), *parts])
    assert not (tmp_path / "run").exists()


def test_backbone_that_does_not_exist(train_arguments, tmp_path):
    arguments = replaced(train_arguments, "--backbone", tmp_path / "none")
    refuse(*arguments, "--out", tmp_path / "run", parts=[f"{tmp_path / 'none'} does not exist"])


@pytest.mark.parametrize("what", ["backbone", "labelled"])
def test_hub_without_a_network(train_arguments, tmp_path, what):
    option, value = {
        "backbone": ("--backbone", "nobody/nothing"),
        "labelled": ("--labeled", "hub:nobody/nothing"),
    }[what]
    arguments = replaced(train_arguments, option, value)
    start = time.monotonic()
    refuse(
        *arguments,
        "--out",
        tmp_path / "run",
        parts=["nobody/nothing", "folder" if what == "backbone" else "file"],
    )
    assert time.monotonic() - start < 20
    assert not (tmp_path / "run").exists()


def test_more_tokens_than_the_backbone_has_positions(train_arguments, tmp_path):
    parts = ["data.max_length is 65", "64 tokens"]
    arguments = [*train_arguments, "--set", "data.max_length=65", "--out", tmp_path / "run"]
    refuse(*arguments, parts=parts, status=2)
    assert not (tmp_path / "run").exists()


# settings and folders


@pytest.mark.parametrize(
    ("more", "parts", "status"),
    [
        (["--recipe", "nanonett"], ["unknown recipe 'nanonett'", "did you mean 'nanonet'"], 2),
        (["--recipe", "none.toml"], ["recipe file none.toml does not exist"], 2),
        (["--device", "gpu"], ["unknown device 'gpu'", "cuda"], 2),
        (["--device", "cuda:99"], ["cuda:99", "not available"], 2),
        (["--resume", "--overwrite"], ["--resume", "--overwrite"], 2),
        (["--seed", "-1"], ["seed", "at least 0"], 2),
        (["--max-minutes", "-1"], ["max_minutes", "at least 0"], 2),
        (["--init", "no-run"], ["no-run"], 1),
        (["--init", "no-run", "--set", "warmup.steps=3"], ["no-run"], 1),
    ],
)
def test_options_of_train(train_arguments, tmp_path, more, parts, status):
    out = tmp_path / "run"
    refuse(*train_arguments, *more, "--out", out, parts=parts, status=status)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["cohort.layer_map=[[1, 9], [2, 3]]"], ["student 1 is [1, 9]", "from 1 to 4"]),
        (["cohort.layer_map=[[1, 2], [1, 2]]"], ["only 1 distinct views", "take fewer students"]),
        (
            ["cohort.students=1"],
            ["mutual needs 2 students", "set phases.students.objectives.mutual"],
        ),
        (["cohort.student_peft=lora", "lora.targets=['qery']"], ["lora.targets", "query, value"]),
        (["cohort.student_peft=lroa"], ["unknown PEFT method 'lroa'", "did you mean 'lora'"]),
        (["views.learners.student9.shuffle=0.1"], ["views.learners.student9 names no learner"]),
        (["views.learners.student1.shufle=0.1"], ["did you mean 'shuffle'"]),
        (["cohort.student_width=7", "cohort.student_peft=full"], ["cohort.student_width is 7"]),
        (["cohort.student_width=16"], ["cohort.student_width is 16", "student_peft=full"]),
        (["warmup.steps=3", "warmup.peft=head"], ["set warmup.steps=0"]),
        (["training.dropout=0.1"], ["unknown key 'training.dropout'"]),
    ],
    ids=lambda value: value[0],
)
def test_settings_that_do_not_fit_each_other_or_the_backbone(
    train_arguments, tmp_path, settings, parts
):
    # A data file that is not there would be named, were it looked at.
    arguments = replaced(train_arguments, "--labeled", tmp_path / "none.csv")
    more = [part for setting in settings for part in ("--set", setting)]
    refuse(*arguments, *more, "--out", tmp_path / "run", parts=parts, status=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[phases", ["not valid TOML"]),
        ("[phases.x]\nlearners = 'nobody'\n", ["phases.x.learners", "nobody"]),
        ("[phases.x]\nlearning_rate = 1\n", ["phases.x.learners", "missing"]),
        ("[phase.x]\n", ["unknown key 'phase'", "did you mean 'phases'"]),
        ("[data]\n", ["phase"]),
        (b"\xff", ["cannot be read"]),
    ],
)
def test_recipe_files(train_arguments, tmp_path, content, parts):
    recipe = put(tmp_path / "my.toml", content)
    arguments = [*train_arguments, "--recipe", recipe, "--out", tmp_path / "run"]
    refuse(*arguments, parts=parts, status=2)
    assert not (tmp_path / "run").exists()


def test_train_without_labelled_texts(tmp_path):
    parts = ["--labeled FILE is missing"]
    refuse("train", "--out", tmp_path / "run", parts=parts, status=2)
    assert not (tmp_path / "run").exists()


def test_a_file_where_a_folder_is_needed(train_arguments, run_folder, bundle, corpus, tmp_path):
    file = put(tmp_path / "file", "x")
    for out in (file, file / "below"):
        refuse(*train_arguments, "--out", out, parts=[str(out)])
        refuse("export", run_folder, "--out", out, parts=[str(out)])
        refuse(
            *("split", corpus / "all.csv", "--labeled-per-class", 2, "--out", out),
            parts=[str(out)],
        )
    source = ["--input", corpus / "test.csv"]
    output = file / "below.csv"
    refuse("predict", bundle, *source, "--output", output, parts=[str(output)])
    assert file.read_text() == "x"


def test_folders_that_are_neither_run_nor_bundle(corpus, tmp_path):
    for command in (["evaluate", tmp_path, "--data", corpus / "test.csv"],):
        refuse(*command, parts=[str(tmp_path), "neither a run folder nor a bundle"])
    refuse("export", tmp_path, "--out", tmp_path / "b", parts=["is not a run folder"])
    refuse("predict", tmp_path, "text", parts=["is not a bundle"])
    none = tmp_path / "none"
    refuse("evaluate", none, "--data", corpus / "test.csv", parts=[f"{none} does not exist"])
    refuse("export", none, "--out", tmp_path / "b", parts=[f"{none} does not exist"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_finished(run_folder, corpus, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "summary.json").unlink()
    refuse("evaluate", run, "--data", corpus / "test.csv", parts=["not finished", "--resume"])
    refuse("export", run, "--out", tmp_path / "b", parts=["not finished", "--resume"])
    assert not (tmp_path / "b").exists()


def test_a_run_whose_backbone_has_changed(run_folder, tiny_modernbert_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    config = (run / "config.toml").read_text()
    old = next(line for line in config.splitlines() if line.startswith("name = "))
    (run / "config.toml").write_text(config.replace(old, f'name = "{tiny_modernbert_folder}"'))
    refuse("export", run, "--out", tmp_path / "b", parts=["trained on another"])
    (run / "config.toml").write_text(config.replace(old, 'name = "/gone"'))
    refuse("export", run, "--out", tmp_path / "b", parts=["/gone does not exist"])


@pytest.mark.parametrize("name", ["learners.safetensors", "summary.json", "config.toml"])
def test_a_run_with_a_damaged_file(run_folder, tmp_path, name):
    run = shutil.copytree(run_folder, tmp_path / "run")
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    refuse("export", run, "--out", tmp_path / "b", parts=[str(run), name])
    assert not (tmp_path / "b").exists()


def test_a_run_whose_configuration_is_cut_at_the_end_of_a_table(run_folder, tmp_path):
    """What is left is valid TOML, but lacks what the run read."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    content = (run / "config.toml").read_text()
    (run / "config.toml").write_text(content[: content.index("[inputs")])
    refuse("export", run, "--out", tmp_path / "b", parts=[str(run / "config.toml"), "[inputs]"])


@pytest.mark.parametrize(
    ("arguments", "parts", "status"),
    [
        ([], ["TEXTs or --input"], 2),
        (["text", "--input", "x.csv"], ["TEXTs or --input"], 2),
        (["text", "--output", "x.csv"], ["--output goes with --input"], 2),
        (["--input", "x.csv", "--output", "x.doc"], ["x.doc", "unknown file type", ".csv"], 2),
        (["--input", "x.csv", "--output", "none/x.csv"], ["none does not exist"], 1),
        (["--input", "x.csv"], ["no such file: x.csv"], 1),
        (["text", "--set", "data.text_column=x"], ["--set", "--input"], 2),
        (["--input", "x.csv", "--set", "training.steps=1"], ["data.*"], 2),
        (["--input", "x.csv", "--set", "data.text=1"], ["unknown key 'data.text'"], 2),
        (["bytes \udcff"], ["half of a surrogate pair"], 1),
    ],
)
def test_options_of_predict(bundle, tmp_path, monkeypatch, arguments, parts, status):
    monkeypatch.chdir(tmp_path)
    refuse("predict", bundle, *arguments, parts=parts, status=status)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "parts", "status"),
    [
        (["--labeled-per-class", 0], ["labeled_per_class", "at least 1"], 2),
        (["--labeled-per-class", 99], ["40 usable rows", "largest possible"], 1),
        (["--labeled-per-class", 1, "--seed", -1], ["seed", "at least 0"], 2),
    ],
)
def test_options_of_split(corpus, tmp_path, more, parts, status):
    arguments = ["split", corpus / "all.csv", *more, "--out", tmp_path / "s"]
    refuse(*arguments, parts=parts, status=status)
    assert not (tmp_path / "s").exists()


def test_a_real_process_prints_one_line_and_no_traceback(train_arguments, tmp_path):
    arguments = [*replaced(train_arguments, "--labeled", "none.csv"), "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "nanonet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such file: none.csv")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# warnings


def test_odd_texts_are_counted_in_warnings(train_arguments, tmp_path):
    texts, labels = make_texts(10)
    copies = [texts[0], texts[1].upper()]
    labeled = {"text": [*texts, *copies], "label": [*labels, 1 - labels[0], labels[1]]}
    write_table(tmp_path / "l.csv", labeled)
    foreign = [f"слово{i} другое{i}" for i in range(3)]
    unlabeled = [*make_texts(4, seed=5)[0], " ", texts[2], *foreign, *["iron " * 50] * 2]
    write_table(tmp_path / "u.csv", {"text": unlabeled})
    write_table(tmp_path / "v.csv", {"text": texts[2:6], "label": labels[2:6]})
    arguments = replaced(train_arguments, "--labeled", tmp_path / "l.csv")
    arguments = replaced(arguments, "--unlabeled", tmp_path / "u.csv")
    outcome = succeed(
        *(*arguments, "--validation", tmp_path / "v.csv"),
        *("--set", "training.steps=1", "--quiet", "--out", tmp_path / "run"),
    )
    warnings = outcome.err.splitlines()
    expected = [
        ["l.csv: 1 copy of an earlier text with another label", "line 2 and line 32"],
        ["l.csv: 1 copy of an earlier text with the same label"],
        ["u.csv: 1 empty texts left out"],
        ["4 texts of", "v.csv are also among the labelled texts"],
        ["1 texts of", "v.csv are also among the unlabelled texts"],
        ["u.csv: 2 of 18 texts are longer than 32 tokens"],
    ]
    for parts in expected:
        assert any(all(p in line for p in parts) for line in warnings), (parts, warnings)
    assert all(line.startswith("warning: ") for line in warnings)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert all(line in log for line in warnings)


def test_texts_in_a_script_that_the_tokenizer_does_not_know(train_arguments, tmp_path):
    rows = {"text": [f"слово{i} два {i}" for i in range(6)], "label": [0, 1, 2] * 2}
    write_table(tmp_path / "l.csv", rows)
    arguments = replaced(train_arguments, "--labeled", tmp_path / "l.csv")
    outcome = succeed(*arguments, "--set", "training.steps=1", "--out", tmp_path / "run")
    assert "l.csv: the tokenizer does not know 100% of the tokens" in outcome.err


def test_predict_does_not_overwrite_its_input(bundle, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text\nan apple\n")
    refuse("predict", bundle, "--input", path, "--output", path, parts=["is the input"], status=2)
    assert path.read_text() == "text\nan apple\n"


def test_test_texts_among_the_training_texts_are_counted_for_a_bundle(bundle, corpus):
    outcome = succeed("evaluate", bundle, "--data", corpus / "labeled.csv")
    assert "were among the labelled training texts" in outcome.err
