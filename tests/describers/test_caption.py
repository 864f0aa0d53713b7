"""Captions: those of models, against the likeliest words by hand, and those of readers."""

import io

import numpy as np
import pytest
from PIL import Image

from ravqa.core.accounts import Account, Cost, charged_to, total
from ravqa.core.errors import DataError, PromptError, ServerError, UserError
from ravqa.core.factory import build_part
from ravqa.core.outcomes import Failure
from ravqa.core.records import Description, Question
from ravqa.core.settings import Part
from ravqa.describers import DESCRIBERS
from ravqa.describers.cached import CachedDescriber
from ravqa.describers.caption import Captioner
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader

SIZES = {"hidden_size": 16, "intermediate_size": 16}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}
SQUARE = {"height": 32, "width": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *"a cat dog red tree on in".split()]


def png(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FAILS = {b"dark": Failure("too dark"), b"gone": Failure("the server is gone", fatal=True)}


class Eyes(Reader):
    """Answers with the prompt and the image's bytes."""

    fingerprint = "eyes"
    weights = "eyes' weights"
    supports_images = True
    deterministic = True
    calls = 0

    def generate(self, prompts):
        Eyes.calls += len(prompts)
        return [FAILS.get(p.image) or Generation(f"{p.text}\n{p.image!r}") for p in prompts]


class Blind(Eyes):
    supports_images = False


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """Build the describer reader-caption with one of the readers above."""
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path))
    monkeypatch.setattr(Eyes, "calls", 0)
    own, get = {"eyes": Eyes, "blind": Blind}, READERS.get
    monkeypatch.setattr(READERS, "get", lambda name: own.get(name) or get(name))

    def build(reader="eyes", **options):
        part = Part(name="reader-caption", reader={"name": reader}, **options)
        return CachedDescriber(build_part(DESCRIBERS, part, "describer"))

    return build


ASKED = [Question(1, "Who?", b"a"), Question(2, "Where?", b"a"), Question(3, "Who?", b"b")]


def test_a_prompt_without_the_question_is_answered_once_per_image(asking):
    made = asking()
    assert made.describe_questions(ASKED) == [
        Description(caption="Describe this image in one sentence. b'a'"),
        Description(caption="Describe this image in one sentence. b'a'"),
        Description(caption="Describe this image in one sentence. b'b'"),
    ]
    assert asking().describe([b"b"])[0].caption.endswith("b'b'")
    assert Eyes.calls == 2
    assert made.weights == "eyes' weights"


def test_a_prompt_with_the_question_is_answered_for_each(asking):
    made = asking(prompt="caption-for-question")
    captions = [one.caption for one in made.describe_questions(ASKED)]
    for caption, q in zip(captions, ASKED, strict=True):
        assert caption.startswith(f"Question: {q.question} Do not answer the question.")
    assert [c[-4:] for c in captions] == ["b'a'", "b'a'", "b'b'"]
    made.describe_questions([Question(9, "Where?", b"a")])
    assert Eyes.calls == 3
    assert made.fingerprint != asking().fingerprint


def test_what_a_reader_cannot_do_is_one_line(asking):
    with pytest.raises(UserError, match="the reader blind does not look at images"):
        asking("blind")
    with pytest.raises(PromptError, match="the describer reader-caption: too dark"):
        asking().describe([b"dark"])
    with pytest.raises(UserError, match=r"no prompt 'captions': .*caption"):
        asking(prompt="captions")


def test_a_reader_that_is_gone_is_told_from_an_image_that_it_cannot_read(asking):
    """A run must not leave out questions because of it, and what was paid for is kept."""
    with pytest.raises(ServerError) as error:
        asking().describe([b"a", b"gone"])
    assert str(error.value) == "the describer reader-caption: the server is gone"
    assert Eyes.calls == 2
    asking().describe([b"a"])
    assert Eyes.calls == 2


def test_descriptions_are_charged_and_kept_ones_told_apart(asking):
    made, account = asking(), Account()
    with charged_to(account), account.booked() as costs:
        made.describe_questions(ASKED)
    assert total(costs.values()) == Cost(unknown=2)
    with charged_to(account), account.booked() as costs:
        made.describe_questions(ASKED)
    assert total(costs.values()) == Cost(reused=2, reused_unknown=2)


def bert():
    import transformers

    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def blip(folder):
    import transformers as t
    from reader_models import save

    ids = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {**SIZES, **ids, "vocab_size": len(WORDS), "max_position_embeddings": 64}
    text |= {"encoder_hidden_size": 16, "projection_dim": 16}
    config = t.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    processor = t.BlipProcessor(t.BlipImageProcessorPil(size=SQUARE), bert())
    save(folder, t.BlipForConditionalGeneration(config), processor)
    return t.BlipForConditionalGeneration.from_pretrained(folder), "input_ids", 5


def git(folder):
    import transformers as t
    from reader_models import save

    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = t.GitConfig(
        vision_config=VISION, **SIZES, **ids, vocab_size=len(WORDS), max_position_embeddings=64
    )
    images = t.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    save(folder, t.GitForCausalLM(config), t.GitProcessor(images, bert()))
    return t.GitForCausalLM.from_pretrained(folder), "input_ids", 2


def vit_gpt2(folder):
    import transformers as t
    from reader_models import save, tokenizer

    tok = tokenizer()
    text = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 64, "add_cross_attention": True}
    decoder = t.GPT2Config(vocab_size=len(tok), **text, bos_token_id=2, eos_token_id=1)
    model = t.VisionEncoderDecoderModel(
        encoder=t.ViTModel(t.ViTConfig(**VISION)), decoder=t.GPT2LMHeadModel(decoder)
    )
    for own in (model.config, model.generation_config):
        own.decoder_start_token_id, own.pad_token_id, own.eos_token_id = 2, 0, 1
    save(folder, model, tok)
    t.ViTImageProcessorPil(size=SQUARE).save_pretrained(folder)
    return t.VisionEncoderDecoderModel.from_pretrained(folder), "decoder_input_ids", 2


@pytest.mark.slow
@pytest.mark.parametrize("build", [blip, git, vit_gpt2], ids=lambda f: f.__name__)
def test_a_caption_is_the_likeliest_words(build, tmp_path):
    """Word by word: the likeliest next token after those so far, until the end mark."""
    import torch
    import transformers

    from ravqa.testing import check_describer

    torch.manual_seed(0)
    model, name, start = build(tmp_path)
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    for seed in range(3):
        opened = Image.open(io.BytesIO(png(seed))).convert("RGB")
        pixels = images(images=opened, return_tensors="pt")["pixel_values"]
        tokens = [start]
        with torch.no_grad():
            while len(tokens) <= 9 and tokens[-1] != model.generation_config.eos_token_id:
                inputs = {name: torch.tensor([tokens]), "pixel_values": pixels}
                tokens.append(int(model.eval()(**inputs).logits[0, -1].argmax()))
        expected.append(" ".join(tok.decode(tokens, skip_special_tokens=True).split()))
    assert len(set(expected)) > 1  # the images matter

    settings = {"model": str(tmp_path), "max_new_tokens": 9, "device": "cpu"}
    made = Captioner(Captioner.Config(**settings, batch_size=2))
    found = made.describe([png(seed) for seed in range(3)])
    assert [one.caption for one in found] == expected
    check_describer(made)
    with pytest.raises(DataError, match="not an image"):
        made.describe([b"no image"])
    other = Captioner(Captioner.Config(**settings, beams=2))
    assert made.fingerprint != other.fingerprint


@pytest.mark.slow
def test_a_model_that_needs_a_prompt_is_refused(tmp_path):
    import reader_models

    reader_models.llama(tmp_path)
    with pytest.raises(UserError, match=r"\(llama\) is none .*: the describer reader-caption asks"):
        Captioner(Captioner.Config(model=str(tmp_path)))
