import json

import pytest
import torch

from nanonet.core.errors import BackboneError, ConfigError
from nanonet.models.attention import PACKED, packed_attention, register_attention
from nanonet.models.backbones import (
    check_length,
    load_backbone,
    offline_minilm,
    weights_fingerprint,
)
from nanonet.models.encoders import ENCODERS, additive_mask, wrap_model
from tiny import bert_config, make_model, make_tokenizer, modernbert_config, save_folder


def roberta_config(kind: str = "roberta"):
    from transformers import CamembertConfig, RobertaConfig, XLMRobertaConfig

    classes = {
        "roberta": RobertaConfig,
        "xlm-roberta": XLMRobertaConfig,
        "camembert": CamembertConfig,
    }
    return classes[kind](
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=66,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )


def make_batch(lengths: list[int], vocabulary: int = 36, seed: int = 0):
    """Rows of these lengths, padded on the right with 0 as `tokenization.pad` does."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def assert_same(model, lengths):
    """Our hidden states are Hugging Face's, on the real tokens."""
    ids, mask = make_batch(lengths)
    encoder = wrap_model(model)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        embedded = encoder.embed(ids)
        states = [embedded, *encoder.run_layers(embedded, mask)]
        final = encoder.finish(states[-1])
    real = mask.bool()
    # Some families list the final norm's output as the last hidden state: compare that apart.
    assert len(theirs.hidden_states) == len(states)
    for ours, other in zip(states[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours[real], other[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(final[real], theirs.last_hidden_state[real], rtol=0, atol=1e-5)
    assert states[1].std() > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_equals_hugging_face(attention):
    model = make_model(bert_config())
    model.set_attn_implementation(attention)
    assert_same(model, [12, 3, 7, 64])


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_roberta_family_equals_hugging_face_up_to_its_last_position(kind):
    model = make_model(roberta_config(kind))
    encoder = wrap_model(model)
    assert encoder.max_length == 64  # 66 positions, of which padding_idx + 1 = 2 are not for text
    assert_same(model, [9, 2, 64])
    ids, _ = make_batch([65])
    with pytest.raises((IndexError, RuntimeError)):
        encoder.embed(ids)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [[3, 5], [90, 40, 6]], ids=["within window", "beyond"])
def test_modernbert_equals_hugging_face(attention, lengths):
    model = make_model(modernbert_config())
    model.set_attn_implementation(attention)
    assert_same(model, lengths)


def test_modernbert_has_both_kinds_of_layers_and_locality_matters():
    model = make_model(modernbert_config())
    encoder = wrap_model(model)
    kinds = [layer.attention_type for layer in encoder.layers]
    assert kinds == (["full_attention"] + ["sliding_attention"] * 2) * 2
    ids, mask = make_batch([30])
    other = ids.clone()
    other[0, -1] = ids[0, -1] % 30 + 5
    local = encoder.subset([2])
    with torch.no_grad():
        change = local.run_layers(local.embed(ids), mask)[0]
        change = (change - local.run_layers(local.embed(other), mask)[0]).abs().sum(-1)[0]
    window = model.config.sliding_window
    assert (change[: 29 - window] == 0).all()
    assert (change[29 - window :] > 0).all()


@pytest.mark.parametrize("config", [bert_config, modernbert_config])
@pytest.mark.parametrize("layers", [[1], [1, 3, 4], [2, 4]])
def test_subset_shares_every_tensor_and_equals_its_layers_by_hand(config, layers):
    encoder = wrap_model(make_model(config()))
    student = encoder.subset(layers)
    assert len(student.layers) == len(layers)
    whole = {id(t): t.data_ptr() for t in [*encoder.parameters(), *encoder.buffers()]}
    for tensor in [*student.parameters(), *student.buffers()]:
        assert whole[id(tensor)] == tensor.data_ptr()
    assert not {id(m) for m in student.modules()} & {id(m) for m in encoder.modules()}

    ids, mask = make_batch([20, 4])
    with torch.no_grad():
        states = encoder.subset([layers[0]]).run_layers(encoder.embed(ids), mask)
        for layer in layers[1:]:
            states += encoder.subset([layer]).run_layers(states[-1], mask)
        ours = student.run_layers(student.embed(ids), mask)
        assert len(ours) == len(states)
        for a, b in zip(ours, states, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(student.finish(ours[-1]), encoder.finish(ours[-1]))
    if layers == [1]:
        first = encoder.run_layers(encoder.embed(ids), mask)[0]
        assert torch.equal(ours[0], first)


def test_subset_leaves_the_whole_as_it_was():
    encoder = wrap_model(make_model(bert_config()))
    layers = list(encoder.layers)
    with pytest.raises(IndexError):
        encoder.subset([1, 9])
    encoder.subset([2])
    assert list(encoder.layers) == layers


def test_additive_mask_is_finite():
    mask = additive_mask(torch.tensor([True, False]), torch.bfloat16)
    assert mask.tolist() == [0.0, torch.finfo(torch.bfloat16).min]


def test_wrapped_model_is_frozen_and_evaluating():
    encoder = wrap_model(make_model(bert_config()).train())
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_loaded_backbone(tiny_bert_folder, tiny_modernbert_folder):
    bert = load_backbone(str(tiny_bert_folder))
    assert (bert.layers, bert.pooling, bert.encoder.hidden_size) == (4, "mean", 32)
    assert bert.fingerprint == load_backbone(str(tiny_bert_folder)).fingerprint
    modern = load_backbone(str(tiny_modernbert_folder), attention="sdpa")
    assert modern.layers == 6
    assert modern.fingerprint != bert.fingerprint
    assert json.loads(bert.tokenizer_json)["model"]["type"] == "WordLevel"
    assert load_backbone(str(tiny_bert_folder), "cls").pooling == "cls"
    for backbone in (bert, modern):
        assert {p.dtype for p in backbone.encoder.parameters()} == {torch.float32}


def test_half_precision_weights_are_loaded_in_32_bits(tmp_path):
    make_model(bert_config()).to(torch.bfloat16).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    parameters = load_backbone(str(tmp_path)).encoder.parameters()
    assert {p.dtype for p in parameters} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_pooling_of_a_sentence_transformers_folder(tmp_path, settings, expected):
    save_folder(bert_config(), tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert load_backbone(str(tmp_path)).pooling == expected


def test_pooling_that_a_modernbert_config_names(tmp_path):
    save_folder(modernbert_config(classifier_pooling="cls"), tmp_path)
    assert load_backbone(str(tmp_path)).pooling == "cls"
    assert load_backbone(str(tmp_path), "mean").pooling == "mean"


def refuse(name: str, *expected: str) -> None:
    with pytest.raises(BackboneError) as error:
        load_backbone(name)
    message = str(error.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_unusable_backbones(tmp_path):
    from transformers import DistilBertConfig

    refuse(str(tmp_path / "no"), "does not exist")
    refuse("./no", "does not exist")
    refuse(str(tmp_path), "config.json is missing")
    (tmp_path / "config.json").write_text("{}")
    refuse(str(tmp_path), "model.safetensors is missing")
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    refuse(str(tmp_path), "cannot be loaded")
    refuse("owner/never-downloaded", "cannot be loaded", "nanonet[offline]")
    other = tmp_path / "other"
    sizes = {"vocab_size": 40, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16}
    save_folder(DistilBertConfig(**sizes), other)
    refuse(str(other), "'distilbert'", "there are: bert, camembert")


def test_a_truncated_weights_file_is_refused(tmp_path):
    save_folder(bert_config(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refuse(str(tmp_path), "cannot be loaded")


def test_length_that_the_encoder_has_no_positions_for():
    encoder = wrap_model(make_model(bert_config()))
    check_length(encoder, 64)
    with pytest.raises(ConfigError, match=r"data.max_length=64 or less"):
        check_length(encoder, 65)


def test_fingerprint_sees_every_parameter():
    encoder = wrap_model(make_model(bert_config()))
    seen = {weights_fingerprint(encoder)}
    for parameter in encoder.parameters():
        parameter.view(-1)[-1] += 1
        seen.add(weights_fingerprint(encoder))
    assert len(seen) == 1 + len(list(encoder.parameters()))


def test_minilm_when_the_offline_extra_is_there():
    if offline_minilm() is None:
        pytest.skip("the extra 'offline' is not installed")
    backbone = load_backbone("minilm")
    assert (backbone.layers, backbone.pooling, backbone.encoder.hidden_size) == (6, "mean", 384)


def test_altered_minilm_is_refused(monkeypatch):
    if offline_minilm() is None:
        pytest.skip("the extra 'offline' is not installed")
    monkeypatch.setattr("nanonet.models.backbones.MINILM_SHA256", "0" * 64)
    refuse("minilm", "is not the published", "reinstall")


def test_families():
    assert list(ENCODERS) == ["bert", "camembert", "modernbert", "roberta", "xlm-roberta"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_chunks_read_at_once_give_what_they_give_one_by_one(kind, checkpointing):
    """States at real tokens, and gradients of biases, with tokens hidden from attention."""
    register_attention()
    config = bert_config() if kind == "bert" else roberta_config(kind)
    results = []
    for name in (PACKED, "eager"):
        encoder = wrap_model(make_model(config))
        encoder.config._attn_implementation = name
        encoder.gradient_checkpointing = checkpointing
        biases = {n: p for n, p in encoder.named_parameters() if n.endswith("bias")}
        for bias in biases.values():
            bias.requires_grad_(True)
        chunks = [make_batch(lengths, seed=i) for i, lengths in enumerate([[9, 7], [5, 5, 5], [3]])]
        real = [mask for _, mask in chunks]
        seen = [mask.clone() for mask in real]
        seen[0][1, 2] = 0  # as a data view does
        embedded = [encoder.embed(ids) for ids, _ in chunks]
        states = encoder.run_chunks(embedded, real, seen, [None] * len(chunks))
        tokens = [s[m.bool()] for own, m in zip(states, real, strict=True) for s in own]
        weight = torch.randn(32, generator=torch.Generator().manual_seed(0))
        sum((t.tanh() @ weight).sum() for t in tokens).backward()
        found = {n: p.grad for n, p in biases.items() if p.grad is not None}
        results.append((torch.cat(tokens).detach(), found))
    (ours, gradients), (theirs, others) = results
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert gradients.keys() == others.keys()
    assert len(gradients) > 4 * 8
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-4)
    assert ours.std() > 0.01


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("mask", ["none", "padding", "window"])
@pytest.mark.parametrize("length", [9, 16])
def test_attention_is_the_textbooks(monkeypatch, kind, learns, mask, length):
    """Context and gradients; fused, but for gradients and short rows in bf16."""
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: calls.append(1) or fused(*a, **k),
    )
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(3, 2, length, 8, generator=generator) for _ in range(3)]
    query, key, value = (x.to(kind).requires_grad_(learns) for x in given)
    allowed = torch.arange(length) < torch.tensor([length, 6, 3])[:, None, None, None]
    if mask == "none":
        allowed = torch.ones(1, 1, 1, length, dtype=torch.bool)
    if mask == "window":  # of the third text, places after the sixth see nothing
        allowed = allowed & ((torch.arange(length)[:, None] - torch.arange(length)).abs() <= 3)
    added = None if mask == "none" else additive_mask(allowed, torch.float32)
    context, _ = packed_attention(torch.nn.Identity(), query, key, value, added)
    assert bool(calls) != (kind == torch.bfloat16 and (learns or length == 9))
    exact = [x.detach().double().requires_grad_(learns) for x in (query, key, value)]
    scores = (exact[0] @ exact[1].mT / 8**0.5).masked_fill(~allowed, -1e30)
    expected = (scores.softmax(-1) @ exact[2]).transpose(1, 2)
    assert context.dtype == kind
    near, sees = (1e-5 if kind == torch.float32 else 1e-2), allowed.any(-1).expand(3, 2, length)
    where = sees.transpose(1, 2)
    assert (context - expected)[where].norm() < near * expected[where].norm()
    assert context.isfinite().all()
    if learns:
        context.double()[where].square().sum().backward()
        expected[where].square().sum().backward()
        for ours, theirs in zip((query, key, value), exact, strict=True):
            assert (ours.grad - theirs.grad).norm() < 2 * near * theirs.grad.norm()


def test_attention_drops_probabilities_only_while_it_trains():
    query = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    value = torch.ones(1, 1, 4, 8, dtype=torch.bfloat16)
    module = torch.nn.Identity()
    for trains in (False, True):
        torch.manual_seed(0)
        module.train(trains)
        context, _ = packed_attention(module, query, query, value, None, dropout=0.5)
        assert (context == 1).all().item() is not trains
