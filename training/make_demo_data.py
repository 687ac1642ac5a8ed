"""Make the demo's data: synthetic Mandarin and English speech, noise, and NeMo manifests. No download, no GPU.

    pip install "nest_hf[demo]"
    python training/make_demo_data.py --output_dir demo_data                                # 0.1 hours
    python training/make_demo_data.py --output_dir demo_data --hours 2 --format flac        # at least 2 hours
    python training/make_demo_data.py --output_dir demo_data --num_files 20 --overwrite     # exactly 20 utterances

The folder then holds 16-bit, 16 kHz audio in `speech/` and `noise/`, and `train.jsonl`, `validation.jsonl`,
`noise_train.jsonl` and `noise_validation.jsonl`, whose `audio_filepath` is relative to the manifest. The splits share
no speaker, not even in babble; `text` has numbers as words and no punctuation. Same arguments and library versions,
same bytes. The voices are rule-based: they test a pipeline, and say nothing of how well a model hears people.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from nest_hf.data.call_grammar import TELEPHONE_DIGITS, read_digits, read_mandarin
from nest_hf.data.espeak import SAMPLING_RATE, VARIANTS, Speaker, Synthesizer

MANIFESTS = {"speech": "{split}.jsonl", "noise": "noise_{split}.jsonl"}
NOISE_KINDS = ("babble", "ventilation", "hum", "pink", "brown", "white")


@dataclass
class DemoDataArguments:
    output_dir: str = HfArg(help="Folder to fill; must be new or empty unless `--overwrite` is given.")
    hours: float | None = HfArg(default=None, help="At least this much speech, both splits together. Default: 0.1.")
    num_files: int | None = HfArg(default=None, help="Instead of hours: exactly this many utterances in both splits.")
    num_noise_files: int = HfArg(default=20, help="Noise clips, both splits together; 0 for none.")
    noise_s: float = HfArg(default=15.0, help="Length of each noise clip in seconds.")
    seed: int = HfArg(default=0, help="Seed of the texts, voices and noise.")
    format: Literal["wav", "flac"] = HfArg(default="wav", help="Audio file format, 16 bits either way.")
    validation_share: float = HfArg(default=0.1, help="Validation's share of the speech, the speakers and the noise.")
    min_duration_s: float = HfArg(default=1.0, help="Shortest utterance in seconds.")
    max_duration_s: float = HfArg(default=12.0, help="Longest utterance in seconds.")
    overwrite: bool = HfArg(default=False, help="Replace what an earlier run wrote to `output_dir`.")

    def __post_init__(self):
        if self.hours is None and self.num_files is None:
            self.hours = 0.1
        for name, valid, remedy in (
            ("num_files", self.hours is None or self.num_files is None, "pass it or `hours`, not both"),
            ("hours", self.hours is None or 0 < self.hours <= 10_000, "pass a positive number up to 10000"),
            ("num_files", self.num_files is None or self.num_files >= 2, "pass 2 or more, each split needs one"),
            ("num_noise_files", self.num_noise_files == 0 or self.num_noise_files >= 2, "pass 0, or 2 or more"),
            ("noise_s", 0.1 <= self.noise_s <= 3600, "pass 0.1 to 3600 seconds"),
            ("seed", 0 <= self.seed < 2**31, "pass 0 to 2147483647"),
            ("validation_share", 0 < self.validation_share < 1, "pass a share between 0 and 1"),
            ("min_duration_s", 0 < self.min_duration_s <= self.max_duration_s - 5, "pass 0 to `max_duration_s` - 5"),
        ):
            if not valid:
                raise ValueError(f"`{name}` is {getattr(self, name)}; {remedy}.")


# 1. The grammar.
TEMPLATES = {
    "zh": """您好请问有什么可以帮您|早上好我姓{name}|{name}先生您好|谢谢您的来电再见|请您稍等|我想查询一下账户余额
您的余额是{amount}元|这个月的话费是{amount}元|您要转账{amount}元对吗|一共{amount}元|我的电话号码是{phone}|请拨打{phone}
您的验证码是{code}|订单号码是{code}|我们约在{date}{clock}|会议改到{date}|请在{date}以前付款|快递{clock}送到
{clock}我在{place}等你|去{place}怎么走|去{place}要{minutes}分钟|今天{place}的天气很好|过{minutes}分钟再打给你
明天可能会下雨请带伞|请帮我转人工服务|我听不清楚请再说一遍|网络有问题不能上网|我想换一个套餐|我的手机没有电了""",
    "en": """hello how may i help you|good morning my name is {name}|is this {name} speaking|please hold the line
your balance is {amount} dollars|please transfer {amount} dollars to my savings account|that makes {amount} dollars
my phone number is {phone}|you can reach me at {phone}|your confirmation code is {code}|we meet on {date} at {clock}
please pay before {date}|the parcel arrives at {clock}|i will wait at the {place} until {clock}|the line is bad
how do i get to the {place}|it takes {minutes} minutes to the {place}|i will call back in {minutes} minutes
it may rain tomorrow so take an umbrella|could you say that again please|i want to change my plan|thank you goodbye""",
}
NAMES = {"zh": "王李张刘陈杨赵黄周吴", "en": "anna peter susan david mary james linda robert karen thomas".split()}
PLACES = {"zh": "北京 上海 医院 学校 银行 机场".split(), "en": "airport hospital school bank library".split()}
NUMBERS_EN = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
NUMBERS_EN += "sixteen seventeen eighteen nineteen".split()
TENS_EN = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS_EN = "january february march april may june july august september october november december".split()


def read_english(number: int) -> str:
    """Reads 1 to 9999 in English: 2050 is "two thousand fifty"."""
    for unit, name in ((1000, " thousand"), (100, " hundred")):
        if number >= unit:
            return read_english(number // unit) + name + (f" {read_english(number % unit)}" if number % unit else "")
    tens = TENS_EN[number // 10 - 2] + (f" {NUMBERS_EN[number % 10]}" if number % 10 else "")
    return tens if number >= 20 else NUMBERS_EN[number]


def draw_sentence(lang: str, rng: np.random.Generator) -> str:
    """Draws a template and a value for each of its slots; `lang` is "zh" or "en"."""
    read = {"zh": read_mandarin, "en": read_english}[lang]
    slots = {"name": rng.choice(list(NAMES[lang])), "place": rng.choice(PLACES[lang])}
    slots |= {"amount": read(int(10 ** rng.uniform(0.5, 4))), "minutes": read(int(rng.integers(3, 60)))}
    month, day, hour, half = rng.integers([1, 1, 3, 0], [13, 13, 13, 2]).tolist()
    digits = rng.integers(0, 10, size=9)
    if lang == "zh":
        slots["phone"] = read_digits((1, 3, *digits), TELEPHONE_DIGITS)
        slots["code"] = read_digits(digits[:6])
        slots["date"] = f"{read(month)}月{read(day)}号"
        slots["clock"] = f"{rng.choice(['上午', '下午'])}{read(hour)}点{'半' * half}"
    else:
        slots["phone"], slots["code"] = (" ".join(NUMBERS_EN[digit] for digit in digits[:n]) for n in (9, 6))
        slots["date"] = f"{MONTHS_EN[month - 1]} {read(day)}"
        slots["clock"] = "half past " * half + read(hour)
    return rng.choice(TEMPLATES[lang].replace("\n", "|").split("|")).format(**slots)


# 2. The speakers and their voices.
def split_count(total: int, validation_share: float) -> dict[str, int]:
    """Divides `total` (0, or 2 and more) between the splits, at least one each."""
    validation = min(max(1, round(validation_share * total)), total - 1) if total else 0
    return {"train": total - validation, "validation": validation}


def draw_speakers(validation_share: float, seed: int) -> dict[str, list[Speaker]]:
    """Draws a speaker for each variant, and gives each split its own."""
    rng, num_train = np.random.default_rng([seed, 0]), split_count(len(VARIANTS), validation_share)["train"]
    rates_and_pitches = rng.integers([145, 30], [206, 71], size=(len(VARIANTS), 2)).tolist()
    variants = rng.permutation(VARIANTS).tolist()
    speakers = [Speaker(f"spk{i:02d}_{v}", v, *rates_and_pitches[i]) for i, v in enumerate(variants)]
    return {"train": speakers[:num_train], "validation": speakers[num_train:]}


def draw_utterance(synthesizer: Synthesizer, rng, args: DemoDataArguments, *, lang: str, speaker: Speaker):
    """Joins sentences up to a drawn length, within the shortest and the longest allowed; returns (wave, text)."""
    target_s = rng.uniform(args.min_duration_s, args.max_duration_s)
    waves, texts, total_s = [], [], 0.0
    while total_s < target_s:
        text = draw_sentence(lang, rng)
        wave = synthesizer(text, lang=lang, speaker=speaker)
        if total_s + len(wave) / SAMPLING_RATE <= args.max_duration_s:
            waves, texts, total_s = [*waves, wave], [*texts, text], total_s + len(wave) / SAMPLING_RATE
        elif total_s >= args.min_duration_s:
            break
    return np.concatenate(waves), ("" if lang == "zh" else " ").join(texts)


# 3. The noise.
def colored_noise(rng, num_samples: int, *, exponent: float, low_hz: float = 20, high_hz: float = 8000) -> np.ndarray:
    """Noise with power 1 / f ** exponent (0 white, 1 pink, 2 brown) between two frequencies, (samples,)."""
    frequencies = np.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE)
    gains = np.maximum(frequencies, low_hz) ** (-exponent / 2) * ((frequencies >= low_hz) & (frequencies <= high_hz))
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(num_samples)) * gains, n=num_samples)


def draw_noise(kind: str, rng, args: DemoDataArguments, *, synthesizer: Synthesizer, speakers: list[Speaker]):
    """Draws a noise of one of `NOISE_KINDS`, (samples,)."""
    seconds = np.arange(round(args.noise_s * SAMPLING_RATE)) / SAMPLING_RATE
    if kind == "babble":
        noise = np.zeros(len(seconds))
        for talker in range(6):
            lang, speaker = ("zh", "en")[talker % 2], speakers[rng.integers(len(speakers))]
            wave, _ = draw_utterance(synthesizer, rng, args, lang=lang, speaker=speaker)
            # Each talker starts somewhere else and repeats: (any length,) -> (samples,)
            noise += np.resize(np.roll(wave, rng.integers(len(wave))), len(seconds)) / np.abs(wave).max()
        return noise
    if kind == "hum":
        mains_hz, harmonics = rng.choice([50, 60]), np.arange(1, 11)[:, None]
        tones = np.sin(2 * np.pi * (mains_hz * harmonics * seconds + rng.uniform(size=(10, 1))))
        return (tones / harmonics**1.5).sum(axis=0) + 0.02 * rng.standard_normal(len(seconds))
    if kind == "ventilation":
        low_hz, high_hz, depth, swell_hz, phase = rng.uniform([40, 800, 0.2, 0.1, 0], [120, 2500, 0.5, 0.6, 1])
        noise = colored_noise(rng, len(seconds), exponent=1, low_hz=low_hz, high_hz=high_hz)
        return noise * (1 + depth * np.sin(2 * np.pi * (swell_hz * seconds + phase)))
    return colored_noise(rng, len(seconds), exponent={"white": 0, "pink": 1, "brown": 2}[kind])


# 4. The folder.
def prepare_folder(folder: Path, *, overwrite: bool):
    """Makes the subfolders; with `overwrite`, deletes what an earlier run wrote and nothing else."""
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"`output_dir` {folder} is not empty; pass a new folder or `--overwrite`.")
    for kind, manifest in MANIFESTS.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            for path in (folder / manifest.format(split=split), *(folder / kind).glob(f"{split}-[0-9]*")):
                path.unlink(missing_ok=True)


def write_audio(folder: Path, name: str, wave: np.ndarray, rng) -> dict:
    """Scales `wave` to a drawn peak below full scale, writes 16 bits, and returns its manifest row."""
    soundfile.write(folder / name, wave * (rng.uniform(0.2, 0.9) / np.abs(wave).max()), SAMPLING_RATE, "PCM_16")
    return {"audio_filepath": name, "duration": len(wave) / SAMPLING_RATE, "id": name.split(".")[0].replace("/", "-")}


def main():
    # 1. Arguments, the plan, the folder.
    parser = HfArgumentParser(DemoDataArguments, allow_abbrev=False)
    try:
        (args,) = parser.parse_args_into_dataclasses()
        folder, synthesizer = Path(args.output_dir), Synthesizer(args.seed)
        prepare_folder(folder, overwrite=args.overwrite)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"make_demo_data.py: error: {error}") from None
    speakers = draw_speakers(args.validation_share, args.seed)
    num_files, num_noise = (split_count(n, args.validation_share) for n in (args.num_files or 0, args.num_noise_files))
    amount = f"{args.num_files} utterances" if args.num_files else f"at least {args.hours:g} hours, utterances"
    print(f"Speech: {amount} of {args.min_duration_s:g} to {args.max_duration_s:g} s, Mandarin and English in turn")
    print(f"Voices: {len(speakers['train'])} for training, {len(speakers['validation'])} others for validation")
    print(f"Noise:  {args.num_noise_files} clips of {args.noise_s:g} s\nFolder: {folder} ({args.format})", flush=True)

    # 2. Audio. Every file draws from a generator seeded by what it is.
    rows = {}
    bar_format = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}]"
    unit, total = ("files", args.num_files) if args.num_files else ("s", round(args.hours * 3600))
    bar = tqdm(total=total, unit=unit, bar_format=bar_format)
    for split_index, split in enumerate(speakers):
        speech, noise = rows["speech", split], rows["noise", split] = [], []
        total_s, share = 0.0, args.validation_share if split == "validation" else 1 - args.validation_share
        while len(speech) < num_files[split] or total_s < (args.hours or 0) * 3600 * share:
            rng = np.random.default_rng([args.seed, 1, split_index, len(speech)])
            speaker, lang = speakers[split][rng.integers(len(speakers[split]))], ("zh", "en")[len(speech) % 2]
            wave, text = draw_utterance(synthesizer, rng, args, lang=lang, speaker=speaker)
            row = write_audio(folder, f"speech/{split}-{len(speech):05d}.{args.format}", wave, rng)
            speech.append(row | {"text": text, "speaker": speaker.id, "lang": lang})
            total_s += row["duration"]
            bar.update(1 if args.num_files else row["duration"])
        for index in range(num_noise[split]):
            kind = NOISE_KINDS[index % len(NOISE_KINDS)]
            rng = np.random.default_rng([args.seed, 3, split_index, index])
            wave = draw_noise(kind, rng, args, synthesizer=synthesizer, speakers=speakers[split])
            noise.append(write_audio(folder, f"noise/{split}-{index:05d}.{args.format}", wave, rng) | {"kind": kind})
    bar.close()

    # 3. Manifests come last: a folder that has them is whole.
    print(f"Made in {bar.format_dict['elapsed']:.0f} s:")
    for (kind, split), entries in rows.items():
        manifest = folder / MANIFESTS[kind].format(split=split)
        if entries:
            partial = manifest.with_suffix(".partial")
            partial.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries), encoding="utf-8")
            partial.replace(manifest)
            print(f"  {manifest}: {len(entries)} files, {sum(e['duration'] for e in entries) / 3600:.3f} hours")


if __name__ == "__main__":
    main()
