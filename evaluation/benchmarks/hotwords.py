"""What a list of hotwords costs and finds, in the CTC filter and in the whole `Transcriber`; one thread.

    python evaluation/benchmarks/hotwords.py                       # 1,000 hotwords
    python evaluation/benchmarks/hotwords.py --hotwords 10000 --rounds 0 --json       # the filter alone
    python evaluation/benchmarks/hotwords.py --model runs/asr --data test.json --hotword_file hotwords.txt

1. The filter, on synthetic posteriors of 10-s utterances: they have a spike per character. Of all characters a
   share is misheard: another of the ten that sound alike wins, by up to `--margin` nats. Two hotwords of the list are
   said in each utterance; the others are random words, a third of them a said one with one character replaced by one
   that sounds alike. `false` counts hotwords that the prompt would get although they were not said.
2. The `Transcriber` in mode lm, without hotwords and with the list, on the same recordings, in turns in one process:
   `ratio`, of the two times of each round, and `ratio_of_fastest`, of the fastest rounds of each, which other load
   of the machine disturbs least. `ratio_of_words_not_said` is the same for a list of the same characters in another
   order, of which hardly a word is said: the search and the prompts of what is misheard. `prompt_tokens_read` is
   what the language model reads before an answer, padding included: what prompts share is read once. Without
   `--model` the recogniser is randomly initialised, of the sizes that are printed: noise goes through its encoder,
   CTC head and language model, but the posteriors of 1. replace what the CTC head makes of it, and answers have
   `--answer_tokens` tokens, since a random model knows no end. Words of the prompt's template are a token each, and
   of hotwords every character is one. The language model is far smaller than Qwen3-0.6B; `--preset large
   --lm_layers 28 --lm_hidden 1024 --device cuda` is near to it. On the CPU its time is that of the process. With a
   model and recordings of known text, also: which hotwords prompts name and texts hold although they were not said.
"""

import argparse
import itertools
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nest_hf import NestConfig, NestFeatureExtractor
from nest_hf.asr_prompt import AUDIO_TOKEN, CHAT_TEMPLATE
from nest_hf.configuration_nest_asr import NestAsrConfig
from nest_hf.ctc_tokenizer import build_ctc_tokenizer
from nest_hf.data import decode_audio, load_speech_dataset
from nest_hf.decoding_settings import DecodingSettings
from nest_hf.hotwords import HotwordFilter
from nest_hf.modeling_nest_asr import NestAsrForConditionalGeneration
from nest_hf.processing_nest_asr import NestAsrProcessor
from nest_hf.transcription import Transcriber

FRAME_S = 0.08
BLANK_ID, UNKNOWN_ID, FIRST_ID = 0, 1, 2
ALIKE = 10  # characters that sound alike have consecutive ids
GREEDY = -1e-6
# of the template, as a vocabulary of byte pairs has them
WORDS = """
system assistant user You are helpful
结合 上下文 信息 更加 准确 完成 语音 转写 任务 如果 没有 相关 我们 热词 列表
"""
WORDS = [*WORDS.split(), "\n\n\n"]
THRESHOLDS = (-0.5, -1.0, -1.5, -2.0, -3.0)


class CodePointTokenizer:
    """Characters are consecutive code points."""

    is_fast, unk_token_id = False, UNKNOWN_ID

    def __call__(self, texts: list[str], add_special_tokens: bool = False) -> dict:
        return {"input_ids": [[ord(character) - 0x4E00 for character in text] for text in texts]}


def make_list(number: int, num_classes: int, num_said: int, rng: np.random.Generator) -> tuple[list, list]:
    """Distinct words (tuples of ids) of 2-6 characters: those that will be said, and the others."""
    words = set()

    def new_word() -> tuple:
        while (word := tuple(rng.integers(FIRST_ID, num_classes, rng.integers(2, 7)).tolist())) in words:
            pass
        words.add(word)
        return word

    said = [new_word() for _ in range(num_said)]
    others = []
    while len(said) + len(others) < number:
        if len(others) % 3:
            others.append(new_word())
            continue
        near = list(said[rng.integers(num_said)])
        place = rng.integers(len(near))
        near[place] = int(alike(near[place], num_classes, rng))
        if tuple(near) not in words:
            words.add(tuple(near))
            others.append(tuple(near))
        elif rng.random() < 0.01:  # all neighbours of a short list are taken
            others.append(new_word())
    return said, others


def alike(token: int, num_classes: int, rng: np.random.Generator) -> int:
    """Another token of the same group."""
    group = (token - FIRST_ID) // ALIKE * ALIKE + FIRST_ID
    choices = [other for other in range(group, min(group + ALIKE, num_classes)) if other != token]
    return rng.choice(choices) if choices else token


def make_posteriors(tokens: list[int], args, rng: np.random.Generator) -> torch.Tensor:
    """(1, T, V) log-probabilities of an utterance of `args.seconds`."""
    num_frames = round(args.seconds / FRAME_S)
    logits = rng.normal(-12.0, 1.5, (num_frames, args.classes)).astype(np.float32)
    logits[:, BLANK_ID] = 0.0
    frames = np.sort(rng.choice(num_frames // 2, len(tokens), replace=False)) * 2
    for frame, token in zip(frames, tokens, strict=True):
        group = (token - FIRST_ID) // ALIKE * ALIKE + FIRST_ID
        logits[frame, BLANK_ID] = rng.uniform(-6, -1)
        near = logits[frame, group : group + ALIKE]
        near[:] = rng.uniform(-8, -2, len(near))
        logits[frame, token] = 0.0
        if rng.random() < args.misheard:
            logits[frame, alike(token, args.classes, rng)] = rng.uniform(0, args.margin)
    return torch.from_numpy(logits).log_softmax(-1)[None]


def shuffled(words: list[str], rng: np.random.Generator) -> list[str]:
    """Words of the same lengths from the same characters in another order."""
    characters = iter(rng.permutation(list("".join(words))).tolist())
    return ["".join(itertools.islice(characters, len(word))) for word in words]


def measure_filter(args) -> tuple[dict, list[str], list[tuple[torch.Tensor, set]]]:
    """The report of the filter, the list, and of each utterance its posteriors `(1, T, V)` and the words said."""
    rng = np.random.default_rng(args.seed)

    # 1. the list, and the filter made from it
    said, others = make_list(args.hotwords, args.classes, max(1, min(100, args.hotwords // 3)), rng)
    as_text = {word: "".join(chr(0x4E00 + token) for token in word) for word in said + others}
    start = time.perf_counter()
    hotword_filter = HotwordFilter([as_text[word] for word in said + others], CodePointTokenizer(), blank_id=BLANK_ID)
    build_ms = 1000 * (time.perf_counter() - start)

    # 2. utterances of about 4 characters per second with two hotwords each
    times, counts, utterances = [], [], []
    for _ in range(args.utterances):
        chosen = rng.choice(len(said), min(2, len(said)), replace=False)
        tokens = rng.integers(FIRST_ID, args.classes, round(3 * args.seconds)).tolist()
        for word, place in zip(chosen, sorted(rng.integers(0, len(tokens), len(chosen)), reverse=True), strict=True):
            tokens[place:place] = said[word]
        log_probs = make_posteriors(tokens, args, rng)
        start = time.perf_counter()
        hotword_filter(log_probs)
        times.append(1000 * (time.perf_counter() - start))
        spoken = {as_text[said[word]] for word in chosen}
        found = {
            threshold: {word.text for word in hotword_filter(log_probs, threshold=threshold)[0]}
            for threshold in (*THRESHOLDS, GREEDY)
        }
        counts.append({t: (len(words & spoken), len(words - spoken), len(spoken)) for t, words in found.items()})
        if len(utterances) < args.recordings:
            utterances.append((log_probs, spoken))
    totals = {t: np.sum([row[t] for row in counts], axis=0).tolist() for t in (*THRESHOLDS, GREEDY)}

    # 3. what each threshold keeps
    report = {"hotwords": args.hotwords, "classes": args.classes, "seconds": args.seconds, "threads": 1,
              "build_ms": round(build_ms, 1), "median_ms": round(float(np.median(times)), 2),
              "p95_ms": round(float(np.percentile(times, 95)), 2)}  # fmt: skip
    report["recall_greedy"] = round(totals[GREEDY][0] / totals[GREEDY][2], 3)
    report["thresholds"] = [
        {
            "threshold": threshold,
            "recall": round(totals[threshold][0] / totals[threshold][2], 3),
            "false_per_utterance": round(totals[threshold][1] / args.utterances, 2),
        }
        for threshold in THRESHOLDS
    ]
    return report, list(as_text.values()), utterances


def random_transcriber(args, posteriors: list[torch.Tensor]) -> Transcriber:
    """A randomly initialised recogniser whose CTC head hears `posteriors`, one recording after the other."""
    characters = [chr(0x4E00 + token) for token in range(FIRST_ID, args.classes)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", AUDIO_TOKEN]
    known = [*specials, "<unk>", *sorted({*map(chr, range(32, 127)), *CHAT_TEMPLATE, *characters, *WORDS})]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*WORDS, r"(?m)."])), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token=specials[0], eos_token=specials[2],
        additional_special_tokens=specials,
    )  # fmt: skip
    processor = NestAsrProcessor(NestFeatureExtractor(), tokenizer, build_ctc_tokenizer(characters))
    torch.manual_seed(args.seed)
    config = NestAsrConfig(
        audio_config=NestConfig.from_preset(args.preset),
        ctc_config={"vocab_size": len(processor.ctc_tokenizer), "pad_token_id": BLANK_ID},
        text_config={
            "model_type": "qwen3", "vocab_size": len(tokenizer), "hidden_size": args.lm_hidden,
            "intermediate_size": 3 * args.lm_hidden, "num_hidden_layers": args.lm_layers, "head_dim": 64,
            "num_attention_heads": args.lm_hidden // 64, "num_key_value_heads": args.lm_hidden // 128,
        },
        audio_token_id=processor.audio_token_id,
        prompt_ids=processor.prompt_ids(),
    )  # fmt: skip
    model = NestAsrForConditionalGeneration(config).to(args.device, torch.bfloat16 if args.bf16 else torch.float32)
    # runs before the limit of each recording, which has the last word
    model.generation_config.suppress_tokens = processor.end_token_ids
    heard, ctc_logits = itertools.cycle(posteriors), model.ctc_logits
    columns = [*range(FIRST_ID), *range(FIRST_ID + 1, len(processor.ctc_tokenizer))]  # the space is the third class

    def scripted(encoded_audio):
        logits, mask = ctc_logits(encoded_audio=encoded_audio)
        scripted = torch.full_like(logits, -20.0)
        scripted[..., BLANK_ID] = 0.0
        for row, log_probs in zip(scripted, heard, strict=False):
            num_frames = min(len(row), log_probs.shape[1])
            row[:num_frames, columns] = log_probs[0, :num_frames]
        return scripted, mask

    model.ctc_logits = scripted
    tokens_per_s = (args.answer_tokens - 16) / args.seconds  # `max_new_tokens` adds 16
    settings = DecodingSettings(tokens_per_s=tokens_per_s, batch_duration_s=args.batch * (args.seconds + 4))
    return Transcriber(model, processor, settings=settings)


def measure_transcriber(transcriber: Transcriber, recordings, hotwords: list[str], strangers: list[str], args):
    """Times without hotwords, with the list and with words that are not said, in turns; and what the list gives."""
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    lists = {"without": None, "with": hotwords, "strangers": strangers}
    seconds, read = {name: [] for name in lists}, dict.fromkeys(lists, 0)

    def count(module, args, kwargs):
        rows, positions = kwargs["inputs_embeds"].shape[:2]
        read[name] += rows * positions * (positions > 1)

    transcriber.decoder.model.model.language_model.register_forward_pre_hook(count, with_kwargs=True)
    for number in range(1 + args.rounds):  # the first is for warming up
        for name in list(lists)[number % 3 :] + list(lists)[: number % 3]:
            start = clock()
            found = transcriber(recordings, hotwords=lists[name])
            if number:
                seconds[name].append(clock() - start)
            if name == "with":
                results = found
    seconds = {name: np.array(values) for name, values in seconds.items()}
    ratios, not_said = (seconds[name] / seconds["without"] for name in ("with", "strangers"))
    fastest = {name: values.min() for name, values in seconds.items()}
    encode = transcriber.decoder.processor.apply_transcription_request
    lengths = [encode(np.zeros(1600), keywords=list(r.hotwords))["input_ids"].shape[1] for r in results]
    report = {
        "recordings": len(recordings),
        "rounds": args.rounds,
        "seconds_without": round(float(np.median(seconds["without"])), 3),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_lowest": round(float(ratios.min()), 3),
        "ratio_highest": round(float(ratios.max()), 3),
        "ratio_of_fastest": round(float(fastest["with"] / fastest["without"]), 3),
        "ratio_of_words_not_said": round(float(np.median(not_said)), 3),
        "ratio_of_words_not_said_fastest": round(float(fastest["strangers"] / fastest["without"]), 3),
        "hotwords_in_a_prompt": round(float(np.mean([len(r.hotwords) for r in results])), 2),
        "prompt_tokens_read": {name: round(n / (1 + args.rounds) / len(recordings), 1) for name, n in read.items()},
        "tokens_they_add": round(float(np.mean(lengths)) - encode(np.zeros(1600))["input_ids"].shape[1], 1),
    }
    return report, results


def insertions(results, spoken: list[set], hotwords: list[str], *, has_text: bool) -> dict:
    """Hotwords that were not said: in prompts and, of a trained model, in texts; each per recording."""
    report = {"false_in_a_prompt": sum(len({*r.hotwords} - s) for r, s in zip(results, spoken, strict=True))}
    if has_text:
        written = [{word for word in hotwords if word in r.text} for r in results]
        report["false_in_a_text"] = sum(len(words - said) for words, said in zip(written, spoken, strict=True))
        report["false_in_a_text_but_not_in_the_prompt"] = sum(
            len(words - said - {*r.hotwords}) for r, words, said in zip(results, written, spoken, strict=True)
        )
    report = {key: round(count / len(results), 3) for key, count in report.items()}
    num_said = sum(map(len, spoken))
    in_prompt = sum(len({*r.hotwords} & s) for r, s in zip(results, spoken, strict=True))
    return {**report, "recall_in_prompts": round(in_prompt / num_said, 3) if num_said else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hotwords", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=5000, help="of the CTC head")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--misheard", type=float, default=0.15, help="share of characters whose best class is wrong")
    parser.add_argument("--margin", type=float, default=6.0, help="nats by which the wrong class wins at most")
    parser.add_argument("--rounds", type=int, default=15, help="of the whole Transcriber; 0 leaves it out")
    parser.add_argument("--recordings", type=int, default=16, help="in a round")
    parser.add_argument("--batch", type=int, default=8, help="recordings in a batch")
    parser.add_argument("--preset", default="small", help="of the encoder")
    parser.add_argument("--lm_layers", type=int, default=6)
    parser.add_argument("--lm_hidden", type=int, default=512)
    parser.add_argument("--answer_tokens", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--model", help="a trained recogniser; with --data and --hotword_file")
    parser.add_argument("--data", help="labelled recordings")
    parser.add_argument("--hotword_file", help="a hotword per line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args()
    if len({bool(value) for value in (args.model, args.data, args.hotword_file)}) > 1:
        parser.error("--model, --data and --hotword_file belong together; give all of them, or none.")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("nest_hf.transcription").setLevel(logging.ERROR)  # all answers of a random model are cut off

    report, hotwords, utterances = measure_filter(args)
    whole = {}
    if args.rounds:
        if args.model:
            dtype = torch.bfloat16 if args.bf16 else torch.float32
            transcriber = Transcriber.from_pretrained(args.model, device=args.device, dtype=dtype)
            rows = load_speech_dataset(args.data, name="data", need_duration=False)
            rate = transcriber.decoder.sampling_rate
            recordings = [decode_audio(row["audio"], sampling_rate=rate).samples for row in rows]
            words = Path(args.hotword_file).read_text(encoding="utf-8").splitlines()
            hotwords = [word.strip() for word in words if word.strip()]
            spoken = [{word for word in hotwords if word in row["text"]} for row in rows]
        else:
            rng = np.random.default_rng(args.seed)
            num_samples = round(args.seconds * 16000)
            recordings = list(rng.normal(0, 0.1, (len(utterances), num_samples)).astype(np.float32))
            transcriber = random_transcriber(args, [log_probs for log_probs, _ in utterances])
            spoken = [words for _, words in utterances]
        strangers = shuffled(hotwords, np.random.default_rng(args.seed + 1))
        whole, results = measure_transcriber(transcriber, recordings, hotwords, strangers, args)
        whole |= insertions(results, spoken, hotwords, has_text=bool(args.model))
        model = transcriber.decoder.model
        for name in ("audio_tower", "language_model"):
            whole[f"parameters_{name}"] = sum(p.numel() for p in getattr(model.model, name).parameters())

    if args.json:
        print(json.dumps({**report, "transcriber": whole}))
        return
    for key, value in report.items():
        if key != "thresholds":
            print(f"{key:15} {value}")
    print("threshold  recall  false per utterance")
    for row in report["thresholds"]:
        print(f"{row['threshold']:9.1f}  {row['recall']:6.3f}  {row['false_per_utterance']:8.2f}")
    for key, value in whole.items():
        print(f"{key:38} {value:,}" if isinstance(value, int) else f"{key:38} {value}")


if __name__ == "__main__":
    main()
