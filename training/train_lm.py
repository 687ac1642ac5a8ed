"""
Trains a small language model of the texts, for a recogniser where no pretrained one is given.

    python training/train_lm.py --text sentences.txt --eval_text held_out.txt --output_dir runs/lm --num_train_epochs 5
    python training/train_lm.py --model_name_or_path Qwen/Qwen3-0.6B --text sentences.txt --output_dir runs/qwen_calls

Besides sentences it learns to repeat one that stands, with mistakes, where the audio will be. The folder has a model
and a tokenizer: give it as `--language_model` to training/finetune.py.
"""

import sys

from nest_hf.language_model import LanguageModelArguments, LanguageModelTrainingArguments, train_language_model
from nest_hf.parsing import error_line, parse_arguments
from nest_hf.runs import end_processes


def main():
    train_language_model(*parse_arguments(LanguageModelArguments, LanguageModelTrainingArguments))


if __name__ == "__main__":
    try:
        main()
        end_processes()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")
