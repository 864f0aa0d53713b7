"""The bundled pipelines' readers and answering, with a tiny random model in the hub model's place.

Only plumbing is shown: prompt, image, decision rule and reader of each file fit together.
"""

from io import BytesIO

import numpy as np
import pytest
import reader_models
from cases import slow_but
from PIL import Image

from ravqa.answering.answerer import Answerer
from ravqa.answering.rules import answering_config
from ravqa.core.factory import build_part
from ravqa.core.locations import PIPELINES
from ravqa.core.records import Description, Hit, Passage, Question, Tag
from ravqa.core.settings import Part, load_pipeline
from ravqa.core.texts import is_wordless
from ravqa.readers import READERS

LOCAL = {
    "preflmr-l-blip2": "blip2_t5",
    "preflmr-l-flan-t5": "t5",
    "preflmr-l-llava": "llava",
    "preflmr-l-qwen2.5-vl": "qwen2_5_vl",
    "rerank-vlm": "qwen2_5_vl",
}


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_every_pipeline_with_a_local_multimodal_or_seq2seq_reader_is_here():
    found = {
        path.stem
        for path in PIPELINES.glob("*.yaml")
        if load_pipeline(path.stem)[0]["reader"]["name"].startswith(
            ("transformers-vlm", "transformers-seq2seq")
        )
    }
    assert found == set(LOCAL)


@pytest.mark.parametrize("name", slow_but(["preflmr-l-flan-t5"], sorted(LOCAL)))
def test_the_pipeline_answers_with_a_tiny_model(name, tmp_path, fresh_cache):
    tiny = LOCAL[name]
    if tiny.startswith("qwen"):
        pytest.importorskip("torchvision", reason="the processor of Qwen2.5-VL needs torchvision")
    folder = getattr(reader_models, tiny)(tmp_path / "model")
    settings, _ = load_pipeline(name, [f"reader.model={folder}", "reader.device=cpu"])
    reader = build_part(READERS, Part(**settings["reader"]), "reader")
    config = answering_config(settings["answering"])
    answerer = Answerer(config, reader)
    seen = Description(tags=(Tag(("koala",), 0.9),), caption="a koala in a tree")
    questions = [Question(i, "What is it?", image=picture(i), description=seen) for i in range(2)]
    passages = [(Hit(f"p{i}", 3.0 - i, i + 1), Passage(f"p{i}", f"Fact {i}.")) for i in range(3)]
    answers = answerer.answer(questions, [passages, passages])
    drafts = 1 if config.decision == "concat" else 3
    assert [len(answer.drafts) for answer in answers] == [drafts, drafts]
    for answer in answers:
        assert answer.decision == config.decision
        assert all(d.log_prob < 0 and 0 < d.tokens <= reader.max_new_tokens for d in answer.drafts)
        assert {p for d in answer.drafts for p in d.passage_ids} == {"p0", "p1", "p2"}
    sees = reader.supports_images
    assert sees == (tiny != "t5")
    log_probs = [[d.log_prob for d in answer.drafts] for answer in answers]
    assert (log_probs[0] == log_probs[1]) != sees  # the images are all that differs
    before = answerer.cached.generated
    assert answerer.answer(questions, [passages, passages]) == answers
    # A random model may write no word: that is no answer, is not kept, and is generated again.
    wordless = sum(is_wordless(draft.raw) for answer in answers for draft in answer.drafts)
    assert answerer.cached.generated == before + wordless
