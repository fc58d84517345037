import pytest
import torch
from torch import nn

from nanonet.core.config import CohortConfig, HeadConfig
from nanonet.core.errors import ConfigError
from nanonet.models.backbones import Backbone, load_backbone, offline_minilm, wrap_model
from nanonet.models.cohort import Chunk, build_cohort
from nanonet.models.peft import PEFT, make_trainable
from test_backbones import make_batch, roberta_config
from tiny import bert_config, make_model, modernbert_config

CONFIGS = {"bert": bert_config, "modernbert": modernbert_config, "roberta": roberta_config}


def make_cohort(family: str, teacher: str, student: str, students: int = 2):
    encoder = wrap_model(make_model(CONFIGS[family]()))
    backbone = Backbone(family, encoder, "", "mean", "")
    settings = CohortConfig(
        students=students, student_layers=2, teacher_peft=teacher, student_peft=student
    )
    return encoder, build_cohort(backbone, settings, HeadConfig(), classes=3)


def is_declared(method: str, name: str, module: nn.Module) -> bool:
    """Whether a method says that it trains this parameter of an encoder."""
    leaf = name.split(".")[-1]
    return {
        "bitfit": leaf == "bias",
        "layernorm": isinstance(module, nn.LayerNorm),
        "head": False,
        "full": True,
    }[method]


def step(cohort, times: int = 3) -> None:
    ids, mask = make_batch([9, 4])
    chunk = Chunk(torch.arange(2), ids, mask)
    own = [p for name in cohort for p in cohort[name].own_parameters().values()]
    optimizer = torch.optim.AdamW(own, lr=1e-2, weight_decay=0.1)
    for _ in range(times):
        total = sum(
            nn.functional.cross_entropy(cohort[name].read([chunk]).logits, torch.tensor([0, 1]))
            for name in cohort
        )
        total.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", list(PEFT))
@pytest.mark.parametrize("family", list(CONFIGS))
def test_only_declared_parameters_change_and_the_others_stay_shared(family, method):
    encoder, cohort = make_cohort(family, teacher=method, student=method)
    base = {n: p.detach().clone() for n, p in encoder.named_parameters()}
    before = {n: t.clone() for n, t in cohort.own_tensors().items()}
    step(cohort)

    originals = {id(p) for p in encoder.parameters()}
    for name in cohort:
        learner = cohort[name]
        for full_name, parameter in learner.encoder.named_parameters():
            module = learner.encoder.get_submodule(full_name.rpartition(".")[0])
            declared = is_declared(method, full_name, module)
            assert parameter.requires_grad == declared, full_name
            assert (id(parameter) in originals) == (not declared), full_name
        assert all(p.requires_grad for p in learner.head.parameters())
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, base[name]), name
    changed = {n for n, t in cohort.own_tensors().items() if not torch.equal(t, before[n])}
    assert changed == before.keys()


@pytest.mark.parametrize("method", list(PEFT))
def test_learners_own_no_tensor_of_another(method):
    _, cohort = make_cohort("modernbert", teacher=method, student=method)
    owners: dict[int, str] = {}
    for name in cohort:
        for parameter in cohort[name].own_parameters().values():
            assert owners.setdefault(parameter.data_ptr(), name) == name
    frozen = [
        {p.data_ptr() for p in cohort[name].encoder.parameters() if not p.requires_grad}
        for name in cohort.students
    ]
    if method != "full":
        assert frozen[0] & frozen[1]


def test_methods_of_teacher_and_students_are_apart():
    _, cohort = make_cohort("bert", teacher="full", student="head")
    teacher = cohort["teacher"]
    assert teacher.trainable_count() == teacher.total_count()
    assert cohort["student1"].trainable_count() == 3 * 32 + 3
    assert cohort["student1"].total_count() < teacher.total_count()


@pytest.mark.parametrize("family", list(CONFIGS))
def test_bitfit_leaves_the_function_as_it_was(family):
    encoder = wrap_model(make_model(CONFIGS[family]()))
    learner = encoder.subset(range(1, len(encoder.layers) + 1))
    names = [n for n, _ in encoder.named_parameters()]
    make_trainable(learner, "bitfit")
    assert [n for n, _ in encoder.named_parameters()] == names  # the original got no bias
    created = {n: p for n, p in learner.named_parameters() if n not in names}
    assert bool(created) == (family == "modernbert")
    assert all((p == 0).all() for p in created.values())
    ids, mask = make_batch([30, 5])
    with torch.no_grad():
        before = encoder.finish(encoder.run_layers(encoder.embed(ids), mask)[-1])
        after = learner.finish(learner.run_layers(learner.embed(ids), mask)[-1])
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_bitfit_gives_modernbert_a_bias_on_every_linear_map_and_norm():
    encoder = wrap_model(make_model(modernbert_config())).subset([1, 2])
    make_trainable(encoder, "bitfit")
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            assert module.bias.requires_grad, name
            out = module.out_features if isinstance(module, nn.Linear) else 32
            assert module.bias.shape == (out,), name
    assert isinstance(encoder.layers[0].attn_norm, nn.Identity)


def test_bias_count_of_the_real_modernbert_base():
    from transformers import AutoModel, ModernBertConfig

    with torch.device("meta"):
        encoder = wrap_model(AutoModel.from_config(ModernBertConfig()))
        make_trainable(encoder, "bitfit")
    counts = {nn.Linear: 0, nn.LayerNorm: 0}
    for module in encoder.modules():
        if type(module) in counts:
            counts[type(module)] += module.bias.numel()
    assert counts == {nn.Linear: 135_168, nn.LayerNorm: 34_560}
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 135_168 + 34_560


def test_counts_of_a_tiny_bert():
    _, cohort = make_cohort("bert", "bitfit", "bitfit")
    layer = 32 * 4 + 32 + 48 + 32 + 32  # query, key, value, output; norm; up; down; norm
    head = 3 * 32 + 3
    assert cohort["teacher"].trainable_count() == 32 + 4 * layer + head
    assert cohort["student2"].trainable_count() == 32 + 2 * layer + head


def test_counts_of_minilm():
    if offline_minilm() is None:
        pytest.skip("the extra 'offline' is not installed")
    cohort = build_cohort(load_backbone("minilm"), CohortConfig(), HeadConfig(), classes=4)
    assert {n: cohort[n].trainable_count() for n in cohort} == {
        "teacher": 27_268,
        "student1": 14_596,
        "student2": 14_596,
    }
    assert cohort["student1"].layer_map == (2, 4, 6)
    assert cohort["teacher"].total_count() - 384 * 4 - 4 == 22_565_376


def test_trainable_copies_are_32_bits_whatever_the_base():
    encoder = wrap_model(make_model(bert_config()).to(torch.bfloat16)).subset([1])
    make_trainable(encoder, "bitfit")
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}


def test_unknown_and_empty_methods(monkeypatch):
    encoder = wrap_model(make_model(bert_config())).subset([1])
    with pytest.raises(ConfigError, match=r"unknown PEFT method 'bitfi' .did you mean 'bitfit'"):
        make_trainable(encoder, "bitfi")
    monkeypatch.setitem(PEFT._entries, "nothing", lambda encoder: [])
    with pytest.raises(ConfigError, match="'nothing' finds no parameter to train"):
        make_trainable(encoder, "nothing")
