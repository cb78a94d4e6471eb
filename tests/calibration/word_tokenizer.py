"""A tokenizer of a few words, as the bytes of a tokenizer.json."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

VOCABULARY = {"[PAD]": 7, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "good": 4, "bad": 5, "film": 6}


def word_tokenizer(padding: dict[str, object] | None = None) -> bytes:
    """Return a tokenizer that frames texts as [CLS] ... [SEP] and knows the words of `VOCABULARY`."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    if padding:
        tokenizer.enable_padding(**padding)
    return tokenizer.to_str().encode()
