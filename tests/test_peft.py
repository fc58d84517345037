import copy

import pytest
import torch
from torch import nn

from nanonet.core.config import CohortConfig, Config, LoraConfig
from nanonet.core.errors import ConfigError
from nanonet.models.backbones import Backbone, load_backbone, offline_minilm
from nanonet.models.cohort import build_cohort
from nanonet.models.encoders import wrap_model
from nanonet.models.learner import Chunk
from nanonet.models.peft import PEFT, PeftMethod, make_trainable
from test_backbones import make_batch, roberta_config
from tiny import bert_config, make_model, modernbert_config

CONFIGS = {"bert": bert_config, "modernbert": modernbert_config, "roberta": roberta_config}
FAMILIES = list(CONFIGS)
METHODS = list(PEFT)
# Each method once the teacher's and once the students', never both.
MIXED = list(zip(METHODS, METHODS[1:] + METHODS[:1], strict=True))
HEAD = 3 * 32 + 3


def make_cohort(
    family: str,
    teacher: str,
    student: str,
    students: int = 2,
    lora: LoraConfig | None = None,
    seed=0,
):
    encoder = wrap_model(make_model(CONFIGS[family]()))
    backbone = Backbone(family, encoder, "", "mean", "")
    settings = CohortConfig(
        students=students, student_layers=2, teacher_peft=teacher, student_peft=student
    )
    config = Config(cohort=settings, lora=lora or LoraConfig(), seed=seed)
    return encoder, build_cohort(backbone, config, classes=3)


def is_declared(method: str, name: str, module: nn.Module) -> bool:
    """Whether a method says that it trains this parameter of an encoder."""
    leaf = name.split(".")[-1]
    return {
        "bitfit": leaf == "bias",
        "layernorm": isinstance(module, nn.LayerNorm),
        "head": False,
        "layers": not isinstance(module, nn.Embedding),
        "full": True,
        "lora": ".lora_A." in name or ".lora_B." in name,
    }[method]


def read(cohort, seed: int = 3) -> dict[str, torch.Tensor]:
    """Logits of every learner."""
    ids, mask = make_batch([30, 5, 11], seed=seed)
    with torch.no_grad():
        return {name: cohort[name](ids, mask) for name in cohort}


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


@pytest.mark.parametrize(("teacher", "student"), MIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_declared_parameters_change_and_the_others_stay_shared(family, teacher, student):
    encoder, cohort = make_cohort(family, teacher, student)
    base = {n: (p.data_ptr(), p.detach().clone()) for n, p in encoder.named_parameters()}
    before = {n: t.clone() for n, t in cohort.own_tensors().items()}
    step(cohort)

    originals = {id(p) for p in encoder.parameters()}
    storages = {pointer for pointer, _ in base.values()}
    for name in cohort:
        learner, method = cohort[name], teacher if name == "teacher" else student
        for full_name, parameter in learner.encoder.named_parameters():
            module = learner.encoder.get_submodule(full_name.rpartition(".")[0])
            declared = is_declared(method, full_name, module)
            assert parameter.requires_grad == declared, full_name
            assert (id(parameter) in originals) == (not declared), full_name
            assert (parameter.data_ptr() in storages) == (not declared), full_name
        assert all(p.requires_grad for p in learner.head.parameters())
    for name, parameter in encoder.named_parameters():
        assert parameter.data_ptr() == base[name][0], name
        assert torch.equal(parameter, base[name][1]), name
    changed = {n for n, t in cohort.own_tensors().items() if not torch.equal(t, before[n])}
    assert changed == before.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_begins_as_the_pretrained_layers(family, method):
    encoder, cohort = make_cohort(family, method, method)
    ids, mask = make_batch([30, 5])
    for name in cohort:
        learner = cohort[name]
        plain = encoder.subset(learner.layer_map)
        with torch.no_grad():
            before = [plain.embed(ids), *plain.run_layers(plain.embed(ids), mask)]
            embedded = learner.encoder.embed(ids)
            after = [embedded, *learner.encoder.run_layers(embedded, mask)]
        for a, b in zip(
            (*after, learner.encoder.finish(after[-1])),
            (*before, plain.finish(before[-1])),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("teacher", "student"), MIXED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_learner_is_plain_and_computes_the_same(family, teacher, student):
    encoder, cohort = make_cohort(family, teacher, student)
    base = {n: (p.data_ptr(), p.detach().clone()) for n, p in encoder.named_parameters()}
    step(cohort)
    expected, own = read(cohort), {n: t.clone() for n, t in cohort.own_tensors().items()}
    frozen = {id(p) for p in encoder.parameters()}
    merged = {name: cohort[name].merged() for name in cohort}

    for name, learner in merged.items():
        torch.testing.assert_close(read(merged)[name], expected[name], rtol=0, atol=1e-5)
        assert expected[name].std() > 0.1
        method = teacher if name == "teacher" else student
        pretrained = encoder.subset(learner.layer_map)
        names = {n for n, _ in learner.encoder.named_parameters()}
        plain = {n for n, _ in pretrained.named_parameters()}
        assert names >= plain
        created = {n.rpartition(".")[2] for n in names - plain}
        assert created == ({"bias"} if (family, method) == ("modernbert", "bitfit") else set())
        assert {type(m) for m in learner.encoder.modules()} == {
            type(m) for m in pretrained.modules()
        }
        if method not in ("full", "layers"):  # which train the largest tensors themselves
            assert frozen & {id(p) for p in learner.encoder.parameters()}
    for name, parameter in encoder.named_parameters():
        assert parameter.data_ptr() == base[name][0], name
        assert torch.equal(parameter, base[name][1]), name
    # The learners go on as they were.
    assert all(torch.equal(t, own[n]) for n, t in cohort.own_tensors().items())
    assert all(torch.equal(z, expected[n]) for n, z in read(cohort).items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_learner_fits_the_stock_class(family, method):
    from transformers import AutoModel

    encoder, cohort = make_cohort(family, method, "head")
    step(cohort)
    merged = cohort["teacher"].merged()
    # The names of a ModernBERT with biases are Hugging Face's own.
    biased = {"norm_bias": True, "attention_bias": True, "mlp_bias": True}
    switches = biased if (family, method) == ("modernbert", "bitfit") else {}
    config = copy.deepcopy(encoder.config)
    for key, value in switches.items():
        setattr(config, key, value)
    stock = AutoModel.from_config(config).eval()
    wrap_model(stock).load_state_dict(merged.encoder.state_dict(), strict=True)
    ids, mask = make_batch([30, 5, 11])
    real = mask.bool()
    with torch.no_grad():
        theirs = stock(input_ids=ids, attention_mask=mask).last_hidden_state
        states = merged.encoder.run_layers(merged.encoder.embed(ids), mask)
        ours = merged.encoder.finish(states[-1])
    torch.testing.assert_close(theirs[real], ours[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("teacher", "student"), MIXED)
def test_trained_tensors_go_out_and_in(teacher, student):
    for family in ("bert", "modernbert"):
        _, source = make_cohort(family, teacher, student)
        step(source)
        _, target = make_cohort(family, teacher, student, seed=1)  # whatever chance gave it
        target.load_own_tensors({n: t.clone() for n, t in source.own_tensors().items()})
        for name, logits in read(source).items():
            assert torch.equal(read(target)[name], logits)


@pytest.mark.parametrize("method", METHODS)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_bitfit_creates_biases_of_zero_where_there_are_none_in_the_learner_alone(family):
    encoder, cohort = make_cohort(family, "bitfit", "head")
    learner = cohort["teacher"].encoder
    names = {n for n, _ in encoder.named_parameters()}
    created = {n: p for n, p in learner.named_parameters() if n not in names}
    assert bool(created) == (family == "modernbert")
    assert all((p == 0).all() for p in created.values())
    assert {n for n, _ in encoder.named_parameters()} == names  # the original got no bias


def test_bitfit_gives_modernbert_a_bias_on_every_linear_map_and_norm():
    encoder = wrap_model(make_model(modernbert_config())).subset([1, 2])
    make_trainable(encoder, "bitfit", LoraConfig())
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
        make_trainable(encoder, "bitfit", LoraConfig())
    counts = {nn.Linear: 0, nn.LayerNorm: 0}
    for module in encoder.modules():
        if type(module) in counts:
            counts[type(module)] += module.bias.numel()
    assert counts == {nn.Linear: 135_168, nn.LayerNorm: 34_560}
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 135_168 + 34_560


# Numbers per learner of a 32 wide, 48 deep encoder: embeddings, and what stands in a layer.
LORA = 8  # rank
BERT_LAYER = {
    "bitfit": 4 * 32 + 32 + 48 + 32 + 32,  # query, key, value, output; norm; up; down; norm
    "layernorm": 2 * 64,
    "lora": LORA * (4 * (32 + 32) + (32 + 48) + (48 + 32)),
    "layers": 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 2 * 64,
    "head": 0,
}
# Outside of layers: the norm after the embeddings.
BERT_REST = {"bitfit": 32, "layernorm": 64, "lora": 0, "layers": 64, "head": 0}
BERT_EMBEDDINGS = (36 + 64 + 2) * 32
# Joint query, key and value; output; the gated up; down; a norm before each half.
MODERN_LAYER = {
    "bitfit": 96 + 32 + 96 + 32 + 2 * 32,
    "layernorm": 2 * 32,
    "lora": LORA * ((32 + 96) + (32 + 32) + (32 + 96) + (48 + 32)),
    "layers": 32 * 96 + 32 * 32 + 32 * 96 + 48 * 32 + 2 * 32,
    "head": 0,
}
MODERN_REST = {"bitfit": 2 * 32, "layernorm": 2 * 32, "lora": 0, "layers": 2 * 32, "head": 0}
FIRST_NORM = {"bitfit": 32, "layernorm": 32, "lora": 0, "layers": 32, "head": 0}


def counts(family: str, method: str, layers: int, first: bool) -> tuple[int, int]:
    """Trained numbers and all numbers of a learner with a head of three classes.

    Args:
        first: it has the pretrained model's first layer, which in ModernBERT lacks a norm.
    """
    layer, rest, embeddings = {
        "bert": (BERT_LAYER, BERT_REST, BERT_EMBEDDINGS),
        "modernbert": (MODERN_LAYER, MODERN_REST, 36 * 32),
    }[family]

    def without_embeddings(kind: str) -> int:
        missing = FIRST_NORM[kind] if first and family == "modernbert" else 0
        return layers * layer[kind] + rest[kind] - missing

    whole = embeddings + without_embeddings("layers") + HEAD
    if method == "full":
        return whole, whole
    trained = without_embeddings(method) + HEAD
    added = (family, method) == ("modernbert", "bitfit") or method == "lora"
    return trained, whole + (trained - HEAD if added else 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_counts_by_arithmetic(family, method):
    _, cohort = make_cohort(family, method, method)
    for name in cohort:
        learner = cohort[name]
        expected = counts(family, method, len(learner.layer_map), learner.layer_map[0] == 1)
        assert (learner.trainable_count(), learner.total_count()) == expected


def test_counts_of_minilm():
    if offline_minilm() is None:
        pytest.skip("the extra 'offline' is not installed")
    cohort = build_cohort(load_backbone("minilm"), Config(), classes=4)
    assert {n: cohort[n].trainable_count() for n in cohort} == {
        "teacher": 27_268,
        "student1": 14_596,
        "student2": 14_596,
    }
    assert cohort["student1"].layer_map == (2, 4, 6)
    assert cohort["teacher"].total_count() - 384 * 4 - 4 == 22_565_376


def test_trainable_copies_are_32_bits_whatever_the_base():
    encoder = wrap_model(make_model(bert_config()).to(torch.bfloat16)).subset([1])
    make_trainable(encoder, "bitfit", LoraConfig())
    assert {p.dtype for p in encoder.parameters() if p.requires_grad} == {torch.float32}


def test_unknown_and_empty_methods(monkeypatch):
    class Nothing(PeftMethod):
        """Nothing, and not the head alone."""

        @staticmethod
        def apply(encoder, lora):
            return []

    encoder = wrap_model(make_model(bert_config())).subset([1])
    with pytest.raises(ConfigError, match=r"unknown PEFT method 'bitfi' .did you mean 'bitfit'"):
        make_trainable(encoder, "bitfi", LoraConfig())
    monkeypatch.setitem(PEFT._entries, "nothing", Nothing)
    with pytest.raises(ConfigError, match="'nothing' finds no parameter to train"):
        make_trainable(encoder, "nothing", LoraConfig())


# LoRA


def adapted(encoder) -> dict[str, nn.Module]:
    return {n: m for n, m in encoder.named_modules() if hasattr(m, "lora_A")}


@pytest.mark.parametrize(
    ("family", "targets", "leaves"),
    [
        ("bert", [], {"query", "key", "value", "dense"}),
        ("bert", ["query", "value"], {"query", "value"}),
        ("bert", ["attention.output.dense"], {"dense"}),
        ("roberta", ["key"], {"key"}),
        ("modernbert", [], {"Wqkv", "Wo", "Wi"}),
        ("modernbert", ["mlp.Wo"], {"Wo"}),
    ],
)
def test_lora_obeys_its_settings(family, targets, leaves):
    lora = LoraConfig(rank=3, alpha=7.0, targets=targets)
    _, cohort = make_cohort(family, "lora", "lora", lora=lora)
    for name in cohort:
        learner = cohort[name].encoder
        found = adapted(learner)
        assert {n.split(".")[-1] for n in found} == leaves
        per_layer = {"bert": 6, "modernbert": 4}.get(family) if not targets else len(targets)
        assert len(found) == per_layer * len(learner.layers)
        for full_name, module in found.items():
            assert not targets or any(full_name.endswith(f".{t}") for t in targets)
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            assert (a.shape[0], b.shape[1]) == (3, 3)
            assert module.scaling["default"] == pytest.approx(7 / 3)
            assert (b == 0).all()
            assert a.std() > 0


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_lora_adds_alpha_over_rank_times_b_a(family):
    lora = LoraConfig(rank=3, alpha=7.0)
    encoder, cohort = make_cohort(family, "lora", "lora", lora=lora)
    step(cohort)
    own = cohort.own_tensors()
    for name in cohort:
        learner = cohort[name]
        merged, plain = learner.merged().encoder, encoder.subset(learner.layer_map)
        for full_name in adapted(learner.encoder):
            prefix = f"{name}.encoder.{full_name}"
            a = own[f"{prefix}.lora_A.default.weight"]
            b = own[f"{prefix}.lora_B.default.weight"]
            module, base = merged.get_submodule(full_name), plain.get_submodule(full_name)
            by_hand = base.weight + 7 / 3 * b @ a
            torch.testing.assert_close(module.weight, by_hand, rtol=0, atol=1e-6)
            assert (module.weight - base.weight).abs().max() > 1e-3
            assert module.bias is base.bias


def test_one_seed_gives_lora_one_first_matrix_and_every_learner_its_own():
    def first(seed: int) -> dict[str, torch.Tensor]:
        torch.seed()  # whatever state the process is in
        _, cohort = make_cohort("bert", "lora", "lora", seed=seed)
        return {n: t.clone() for n, t in cohort.own_tensors().items() if ".lora_A." in n}

    ours, again, other = first(0), first(0), first(1)
    assert all(torch.equal(t, again[n]) for n, t in ours.items())
    assert not any(torch.equal(t, other[n]) for n, t in ours.items())
    for name, tensor in ours.items():
        owner, _, rest = name.partition(".")
        for peer in {"teacher", "student1", "student2"} - {owner}:
            if f"{peer}.{rest}" in ours:
                assert not torch.equal(tensor, ours[f"{peer}.{rest}"]), name


def test_building_a_cohort_leaves_the_global_chance_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_cohort("bert", "lora", "lora")
    # The model of the test is made in a fork of its own, too.
    assert torch.equal(torch.rand(3), expected)


def test_targets_that_match_nothing():
    encoder = wrap_model(make_model(bert_config())).subset([1])
    with pytest.raises(ConfigError, match=r"lora.targets \['quary'\].*dense, key, query, value"):
        make_trainable(encoder, "lora", LoraConfig(targets=["quary"]))
