"""card.md: a model card in the form of the Hub, made from a run folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from burnish.data.new_tokens import virtual_tokens
from burnish.report.facts import Facts, environment_rows, metric_words, number, read_facts, template, time_words
from burnish.run import RunFolder
from burnish.task import registry
from burnish.units import steps_words

#: The Hub's tag of a task whose name is none.
_TAGS = {"preference-tuning": "text-generation", "reward-modeling": "text-classification"}
#: Labels listed in the card; more are counted.
_LABELS = 50


def render_card(folder: RunFolder) -> str:
    """Return the model card of a run, from its files.

    Raises:
        UserError: a file is missing or damaged.
    """
    facts = read_facts(folder)
    usage = _USAGE.get(facts.task, _any_usage)(facts)
    # Whatever a template prints is escaped as Markdown text, unless a filter here made it Markdown.
    page = template("card.md.jinja", autoescape=False, finalize=escaped)
    return page.render(
        facts=facts,
        front=Markup(front_matter(facts)),
        settings=settings(facts),
        results=results(facts),
        labels=labels(facts),
        usage=fenced(usage, "python"),
        alone=re.search("^(import|from) burnish", usage, re.M) is None,
        load=fenced(_load(facts), "python"),
        predict=fenced(_predict(facts), "sh"),
        again=fenced(_again(facts), "sh"),
        recipe=fenced(_without_folder(facts.recipe), "yaml"),
        environment=environment_rows(facts),
    )


# -- Markdown ----------------------------------------------------------------------------------------------------


def escaped(value: Any) -> str:
    """Return a value as one line of Markdown that shows it as it is, also in a table; Markdown stays Markdown."""
    if isinstance(value, Markup):
        return str(value)
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def fenced(text: str, language: str) -> Markup:
    """Return a block of code, in a fence longer than any run of backticks inside."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{fence}{language}\n{text.strip()}\n{fence}")


def front_matter(facts: Facts) -> str:
    """Return the metadata that the Hub reads, as YAML."""
    values: dict[str, Any] = {"library_name": "transformers"}
    if facts.task:
        values["pipeline_tag"] = _TAGS.get(facts.task, facts.task)
    if base := hub_id(facts.config.model.path):
        values |= {"base_model": base, "base_model_relation": "finetune"}
    if datasets := list(dict.fromkeys(filter(None, map(_dataset, facts.config.data.train)))):
        values["datasets"] = datasets
    values["tags"] = ["burnish", *([facts.task] if facts.task else [])]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).strip()


def hub_id(name: str | None) -> str | None:
    """Return the name of a model or dataset if it is one on the Hub, not a folder: other names mean nothing there."""
    if name is None or Path(name).expanduser().exists():
        return None
    return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) else None


def _dataset(source: str) -> str | None:
    """Return the Hub id in ORG/NAME[:SUBSET][@SPLIT]; None for a file or folder."""
    name = source.partition("@")[0].partition(":")[0]
    return hub_id(name) if name.count("/") == 1 and not Path(source).expanduser().exists() else None


# -- what the card tells -----------------------------------------------------------------------------------------


def settings(facts: Facts) -> list[tuple[str, str]]:
    """Return the main settings of training: name and value."""
    config, plan = facts.config, facts.plan
    optim, schedule = config.optim, config.schedule
    rows = [
        ("optimizer", optim.name),
        ("peak learning rate", f"{plan['lr']:g}"),
        ("schedule", f"{schedule.name}, {steps_words(plan['warmup_steps'])} of warm-up"),
        ("weight decay", f"{optim.weight_decay:g}"),
        ("gradient clipping", f"norm {optim.clip:g}" if optim.clip else "none"),
        ("batch", f"{config.train.batch:,} rows"),
        ("length", _length(facts)),
        ("longest sequence", f"{plan['sequence']:,} {facts.unit}"),
        ("precision", plan["precision"]),
    ]
    if config.train.dropout is not None:
        rows.append(("dropout", f"{config.train.dropout:g}"))
    if layers := config.freeze.layers:
        lowest = f"embeddings and lowest layers, {layers} of them"
        rows.append(("frozen", "the whole backbone" if layers == "all" else lowest))
    if config.freeze.pattern:
        rows.append(("frozen by name", ", ".join(config.freeze.pattern)))
    rows.append(("seed", str(config.run.seed)))
    if seconds := facts.metrics.get("seconds"):
        rows.append(("training time", f"{time_words(seconds)} on {facts.environment['device']}"))
    return rows


def _length(facts: Facts) -> str:
    epochs = f", {facts.epochs:.3g} epochs" if facts.epochs else ""
    return f"{facts.last_step:,} of {facts.plan['total_steps']:,} steps{epochs}"


def results(facts: Facts) -> list[tuple[str, str, str, str]]:
    """Return split, metric, value and 95 % interval of every measured figure."""
    rows = []
    for split in facts.splits:
        for name in facts.metric_names:
            if name in facts.metrics[split]:
                edges = facts.interval(split, name)
                shown = f"{number(edges[0])} to {number(edges[1])}" if edges else "–"
                rows.append((split, metric_words(name), number(facts.metrics[split][name]), shown))
    return rows


def labels(facts: Facts) -> list[tuple[str, int]]:
    """Return the labels with the number of training rows of each; none for a task without."""
    known = facts.plan["facts"]
    return list(zip(known.get("labels", []), known.get("counts", []), strict=False))[:_LABELS]


def _again(facts: Facts) -> str:
    """Return the command that does the run again, with what else the last bits depend on."""
    plan = facts.plan
    fixed = f"--run.threads {plan['threads']} --train.micro-batch {plan['micro_batch']}"
    return f"burnish train recipe.yaml {fixed} --run.dir {shlex.quote(f'{facts.folder}-again')}"


def _without_folder(recipe: str) -> str:
    """Return the recipe without the folder of this very run, so that giving it again starts another."""
    values = yaml.safe_load(recipe)
    run = values.get("run")
    if isinstance(run, dict) and run.pop("dir", None) is not None and not run:
        del values["run"]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


# -- how to use it -----------------------------------------------------------------------------------------------


def _example(facts: Facts) -> str:
    asked = registry()[facts.task].asks[0] if facts.task in registry() else "text"
    if asked in ("image", "audio"):
        return {"image": "photo.jpg", "audio": "speech.wav"}[asked]
    prompts = facts.plan["facts"].get("prompts") or ["Once upon a time"]
    return (
        prompts[0] if _TAGS.get(facts.task, facts.task) == "text-generation" else "the plot is thin but the cast shines"
    )


def _predict(facts: Facts) -> str:
    """Return the command that uses the run."""
    settings = registry()[facts.task].use_settings if facts.task in registry() else ""
    return f"burnish predict {shlex.quote(str(facts.folder))} {shlex.quote(_example(facts))}{settings}"


def _read(facts: Facts) -> str:
    """Return Python source of the example as the model reads it: with its virtual tokens, if it has any."""
    return _text("".join(virtual_tokens(facts.config)) + _example(facts))


def _text(value: Any) -> str:
    """Return Python source of a text; JSON's double-quoted form is one."""
    return json.dumps(str(value), ensure_ascii=False)


#: An input of a task that takes more than a text.
_INPUTS = {
    "question-answering": {"question": "Who sees the river?", "context": "Never slowly, the old king sees the river."},
    "reward-modeling": {"prompt": "Who sees the river?", "chosen": " The old king does."},
}


def _load(facts: Facts) -> str:
    asked = _INPUTS.get(facts.task)
    return f"""
import burnish

run = burnish.load({_text(facts.folder)})
print(run.predict({f"[{json.dumps(asked)}]" if asked else _text(_example(facts))}))
"""


def _own(facts: Facts) -> str:
    """Return the line that makes an architecture of ours known to transformers; nothing for one of theirs."""
    from burnish.models import own

    ours = {name for names in own.HEADS.values() for name in names}
    return "import burnish.models.own\n" if _architecture(facts) in ours else ""


def _architecture(facts: Facts) -> str:
    """Return the name of the model's class."""
    return facts.plan["model"]["summary"].partition(",")[0]


def _generation_usage(facts: Facts) -> str:
    chosen = facts.config.generate
    how = f"do_sample=True, temperature={chosen.temperature}, top_k={chosen.top_k}, top_p={chosen.top_p}"
    return f"""
{_own(facts)}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {_text(facts.folder.model)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer({_read(facts)}, add_special_tokens=False, return_tensors="pt")
output = model.generate(
    input_ids=inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    max_new_tokens={min(chosen.max_tokens, max(1, facts.plan["sequence"] - 1))},
    {how if chosen.temperature else "do_sample=False"},
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


def _classification_usage(facts: Facts) -> str:
    return f"""
{_own(facts)}import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {_text(facts.folder.model)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
inputs = tokenizer({_read(facts)}, truncation=True, max_length={facts.plan["sequence"]}, return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(-1)[0]
best = int(probabilities.argmax())
print(model.config.id2label[best], float(probabilities[best]))
"""


def _image_usage(facts: Facts) -> str:
    return f"""
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = {_text(facts.folder.model)}
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
model = AutoModelForImageClassification.from_pretrained(folder).eval()
inputs = processor(Image.open({_text(_example(facts))}).convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(-1)[0]
best = int(probabilities.argmax())
print(model.config.id2label[best], float(probabilities[best]))
"""


def _answer_usage(facts: Facts) -> str:
    question, context = _INPUTS["question-answering"].values()
    return f"""
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder = {_text(facts.folder.model)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
question, context = {_text(question)}, {_text(context)}
inputs = tokenizer(question, context, truncation="only_second", max_length={facts.plan["sequence"]}, return_tensors="pt")
with torch.inference_mode():
    logits = model(**inputs)
start, end = int(logits.start_logits.argmax()), int(logits.end_logits.argmax())
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
"""


def _reward_usage(facts: Facts) -> str:
    prompt, answer = _INPUTS["reward-modeling"].values()
    return f"""
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {_text(facts.folder.model)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
prompt, answer = {_text(prompt)}, {_text(answer)}
inputs = tokenizer(prompt, answer, truncation=True, max_length={facts.plan["sequence"]}, return_tensors="pt")
with torch.inference_mode():
    print(float(model(**inputs).logits))
"""


def _vector_usage(facts: Facts) -> str:
    return f"""
import torch
from transformers import AutoModel, AutoTokenizer

folder = {_text(facts.folder.model)}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
inputs = tokenizer({_text(_example(facts))}, truncation=True, max_length={facts.plan["sequence"]}, return_tensors="pt")
with torch.inference_mode():
    vector = torch.nn.functional.normalize(model(**inputs).last_hidden_state[0].mean(0), dim=0)
print(vector)
"""


def _sound_usage(facts: Facts) -> str:
    return f"""
import soundfile
import soxr
from transformers import pipeline

model = pipeline({_text(facts.task)}, model={_text(facts.folder.model)})
samples, rate = soundfile.read({_text(_example(facts))}, dtype="float32", always_2d=True)
print(model(soxr.resample(samples.mean(1), rate, model.feature_extractor.sampling_rate)))
"""


def _heard_usage(facts: Facts) -> str:
    if _architecture(facts) != "WhisperForConditionalGeneration":
        return _sound_usage(facts)
    reader = facts.folder.read_json(facts.folder.model / "tokenizer_config.json")
    return _letters_usage(facts) if reader["tokenizer_class"] == "Wav2Vec2CTCTokenizer" else _sound_usage(facts)


def _letters_usage(facts: Facts) -> str:
    """Return code for a Whisper from scratch, whose letters a pipeline would take for those of CTC, which repeat."""
    return f"""
import soundfile
import soxr
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

folder = {_text(facts.folder.model)}
extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
samples, rate = soundfile.read({_text(_example(facts))}, dtype="float32", always_2d=True)
samples = soxr.resample(samples.mean(1), rate, extractor.sampling_rate)
inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=model.config.max_target_positions - 1)
print(tokenizer.decode(output[0], skip_special_tokens=True, group_tokens=False))
"""


def _spoken_usage(facts: Facts) -> str:
    vocoder = (yaml.safe_load(facts.recipe).get("task") or {}).get("vocoder")
    voice = facts.plan["facts"].get("voice") or [0.0]
    if _architecture(facts) == "SpeechT5ForTextToSpeech":
        speaker = f"torch.tensor([{voice}])" if any(voice) else "torch.zeros(1, model.config.speaker_embedding_dim)"
        said = f'model.generate_speech(inputs["input_ids"], {speaker})'
    else:
        said = "model(**inputs).spectrogram[0]"
    if vocoder:
        needed = "from transformers import SpeechT5HifiGan"
        rest = f"    samples = SpeechT5HifiGan.from_pretrained({_text(vocoder)})(mels)"
    else:
        needed = "from burnish.ops.griffin_lim import griffin_lim, magnitudes_of"
        rest = """
magnitudes = magnitudes_of(10**mels.T, torch.from_numpy(extractor.mel_filters).float())
samples = griffin_lim(magnitudes, torch.from_numpy(extractor.window).float(), extractor.sample_stride, seed=0)
""".strip()
    return f"""
{_own(facts)}import soundfile
import torch
{needed}
from transformers import AutoFeatureExtractor, AutoModelForTextToSpectrogram, AutoTokenizer

folder = {_text(facts.folder.model)}
extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model = AutoModelForTextToSpectrogram.from_pretrained(folder).eval()
inputs = tokenizer({_text(_example(facts))}, return_tensors="pt")
with torch.inference_mode():
    mels = {said}
{rest}
soundfile.write("spoken.wav", samples.numpy(), extractor.sampling_rate)
"""


def _any_usage(facts: Facts) -> str:
    return f"""
from transformers import pipeline

model = pipeline({_text(facts.task)}, model={_text(facts.folder.model)})
print(model({_text(_example(facts))}))
"""


#: Task to its code for plain transformers; any other task is given as a pipeline.
_USAGE: dict[str, Callable[[Facts], str]] = {
    "text-generation": _generation_usage,
    "text-classification": _classification_usage,
    "image-classification": _image_usage,
    "audio-classification": _sound_usage,
    "automatic-speech-recognition": _heard_usage,
    "text-to-speech": _spoken_usage,
    "question-answering": _answer_usage,
    "preference-tuning": _generation_usage,
    "reward-modeling": _reward_usage,
    "sentence-similarity": _vector_usage,
}
