"""The model card (``README.md``) of a model in Hugging Face's format."""

from typing import Any

USE = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{where}")  # this folder, or its name on the hub
logits = model.encode(["a text"], convert_to_tensor=True)  # (texts, classes)
probabilities = logits.softmax(-1)
labels = [LABELS[i] for i in logits.argmax(-1)]
"""

LIMITS = """\
- It knows the classes above and no others, and gives every text one of them.
- Texts are cut after {max_length} tokens.
- {calibration}
- It has learnt from the data above, mistakes in it included, and inherits what its base model \
learnt.
- `encode` gives logits, not embeddings. `AutoModel` loads the encoder alone. \
`AutoModelForSequenceClassification` and the pipeline `text-classification` compute another head, \
which this model does not have: do not use them.
"""


def model_card(facts: dict[str, Any]) -> str:
    """Return the model card of what ``nanonet.json`` describes.

    There is no license in it: that is for the one who publishes to say.
    """
    labels, learner = facts["labels"], facts["learner"]
    rows = zip(labels["values"], labels["names"], strict=True)
    classes = "\n".join(f"| {i} | {_cell(v)} | {_cell(n)} |" for i, (v, n) in enumerate(rows))
    backbone = learner["backbone"]
    origin = f"[{backbone}](https://huggingface.co/{backbone})" if backbone else "a local encoder"
    use = USE.replace("{where}", "PATH").replace("LABELS", "names")
    normalised = ", L2 normalisation" if facts["normalize"] else ""
    return f"""\
{_front_matter(facts)}
# {len(labels["names"])}-class text classifier

Layers {", ".join(map(str, learner["layers"]))} of {origin} (counted from 1), {facts["pooling"]} \
pooling{normalised} and a linear head: {facts["parameters"]:,} parameters. Trained with NanoNet \
{facts["versions"]["nanonet"]} (learner `{learner["name"]}`).

| logit | label | name |
|---|---|---|
{classes}

## Use

```python
names = {labels["names"]!r}
{use}```

Needs transformers 5. The outputs are those of the trained model to \
{facts["largest_difference_from_the_run"]:.0e}.

## Training data

| texts | rows | fingerprint |
|---|---|---|
{_data(facts["data"])}

Backbone: SHA-256 `{facts["data"].get("backbone_fingerprint", "unknown")}`; trained tensors: \
SHA-256 `{learner["weights_sha256"]}`.

Chosen by {facts["selection"]["criterion"]}; labels used for the choice: \
{facts["selection"]["labels_used"]}.

## Evaluation

{_evaluations(facts["evaluations"])}

## Limits

{LIMITS.format(max_length=facts["max_length"], calibration=_calibration(facts))}"""


def _calibration(facts: dict[str, Any]) -> str:
    found, priors = facts["calibration"], facts["priors"]
    said = []
    if found is not None and not found["method"].startswith("none"):
        said.append(
            f"Probabilities are calibrated: the logits have been divided by"
            f" {found['temperature']:.3f} (from: {found['method']})."
        )
    if priors is not None:
        said.append(f"They are fitted to how common the classes are ({priors['method']}).")
    return " ".join(said) or "Probabilities are the model's own: they were not calibrated."


def _front_matter(facts: dict[str, Any]) -> str:
    backbone = facts["learner"]["backbone"]
    base = [f"base_model: {backbone}"] if backbone else []
    lines = [
        "---",
        "# license: say under which one you publish; the base model's and the data's bind you",
        *base,
        "library_name: sentence-transformers",
        "pipeline_tag: text-classification",
        "tags:",
        "- nanonet",
        "- sentence-transformers",
        "- text-classification",
        "---",
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Return a value as one cell of a table, whatever characters it has."""
    return " ".join(str(value).replace("|", "\\|").split())


def _data(inputs: dict[str, Any]) -> str:
    tables = {name: facts for name, facts in inputs.items() if isinstance(facts, dict)}
    return "\n".join(
        f"| {name}: {_cell(facts['source'])} | {facts['rows']} | `{facts['fingerprint']}` |"
        for name, facts in tables.items()
        if {"source", "rows", "fingerprint"} <= facts.keys()
    )


def _evaluations(evaluations: list[dict[str, Any]]) -> str:
    if not evaluations:
        return "Not evaluated: run `nanonet evaluate RUN --data FILE` and export again."
    rows = "\n".join(
        f"| {_cell(row['source'])} | {row['examples']} | {row['accuracy']:.4f}"
        f" | {row['macro_f1']:.4f} |"
        for row in evaluations
    )
    return f"| texts | rows | accuracy | macro F1 |\n|---|---|---|---|\n{rows}"
