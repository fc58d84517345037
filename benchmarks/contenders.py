"""What ``inference.py`` compares; each contender runs in a process of its own.

    python benchmarks/contenders.py SPEC.json

SPEC names the contender, its threads and the files it needs. The process answers a request per line
of its standard input, {"do": ..., ...}, with a line of JSON. Times are in seconds.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Texts = list[str]
Predict = Callable[[Texts], Any]
GEMM = (2048, 384, 1536)  # rows, inner, columns: a chunk of tokens through MiniLM's widest map


def bundle(spec: dict[str, Any]) -> Predict:
    """A bundle, as ``Predictor`` runs it."""
    from nanonet import Predictor

    return Predictor.load(spec["path"], threads=spec["threads"])


def setfit(spec: dict[str, Any]) -> Predict:
    """SetFit's prediction, which is also that of a frozen encoder with logistic regression.

    ``SetFitModel.predict`` of setfit 1.2.0 is ``SentenceTransformer.encode(batch_size=32)``, then
    scikit-learn's ``predict``.
    """
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    torch.set_num_threads(spec["threads"])
    encoder = SentenceTransformer(spec["encoder"], device="cpu")
    encoder.max_seq_length = 256
    head = LogisticRegression(max_iter=1000)
    saved = Path(spec["head"])
    if not saved.exists():
        labeled = json.loads(Path(spec["labeled"]).read_text())
        head.fit(encoder.encode(labeled["texts"]), labeled["labels"])
        np.savez(saved, coef=head.coef_, intercept=head.intercept_, classes=head.classes_)
    with np.load(saved) as found:
        head.coef_, head.intercept_ = found["coef"], found["intercept"]
        head.classes_ = found["classes"]

    def predict(texts: Texts) -> Any:
        return head.predict(encoder.encode(texts, batch_size=32, show_progress_bar=False))

    return predict


def tfidf(spec: dict[str, Any]) -> Predict:
    """TF-IDF with logistic regression; it is fitted at each start, which takes milliseconds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    labeled = json.loads(Path(spec["labeled"]).read_text())
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    model.fit(labeled["texts"], labeled["labels"])
    return model.predict  # type: ignore[no-any-return]


def gemm(spec: dict[str, Any]) -> Predict:
    """One matrix product of ONNX Runtime in the given type: the machine's arithmetic limit."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = GEMM
    rng = np.random.default_rng(0)
    if spec["dtype"] == "fp32":
        operation, kind, out = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT
        left = rng.standard_normal((rows, inner), dtype=np.float32)
        right = rng.standard_normal((inner, columns), dtype=np.float32)
    else:
        operation, kind, out = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
        left = rng.integers(0, 255, (rows, inner), dtype=np.uint8)
        right = rng.integers(-127, 127, (inner, columns), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node(operation, ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", kind, [rows, inner])],
        [helper.make_tensor_value_info("c", out, [rows, columns])],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda _: session.run(None, {"a": left})


CONTENDERS = {"bundle": bundle, "setfit": setfit, "tfidf": tfidf, "gemm": gemm}


def memory_mb() -> dict[str, float]:
    """Return resident memory now and at its peak, where Linux tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    kb = {"resident_mb": lines["VmRSS"], "peak_mb": lines["VmHWM"]}
    return {name: round(int(value.split()[0]) * 1024 / 1e6, 1) for name, value in kb.items()}


def answer(request: dict[str, Any], predict: Predict, texts: Texts) -> Any:
    """Return what a request asks for."""
    if request["do"] == "batched":
        start = time.perf_counter()
        predict(texts[: request["count"]])
        return time.perf_counter() - start
    if request["do"] == "single":
        times = []
        for i in range(request["first"], request["first"] + request["count"]):
            start = time.perf_counter()
            predict([texts[i % len(texts)]])
            times.append(time.perf_counter() - start)
        return times
    return memory_mb()


def main() -> None:
    """Answer requests until the input ends."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    texts = json.loads(Path(spec["texts"]).read_text())
    predict = CONTENDERS[spec["contender"]](spec)
    predict(texts[:1])
    print(json.dumps("ready"), flush=True)  # to this line is a cold start
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), predict, texts)), flush=True)


if __name__ == "__main__":
    main()
